//! The kinds of documents that registries give for the name of an image.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{Error, RegistryError};
use crate::format::manifest::parse;

/// The media types of manifests and indexes that are understood: OCI's and docker's. The old ones are asked for too,
/// so that a registry says that an image has only these.
pub(super) const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1, application/vnd.docker.distribution.manifest.v1+json;q=0.1";
/// The prefix of the media types of docker's schema 1, signed and unsigned.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Index,
    Manifest,
    Schema1,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
    #[serde(default)]
    config: Option<IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

/// Returns the media type of a header, without its parameters.
pub(super) fn media_type(header: &str) -> String {
    header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Returns what a document is. The content decides, and must fit the media type that the registry gives: otherwise
/// one name could be two images, depending on who reads it (CVE-2021-41190).
///
/// # Errors
/// [`Error::Json`], [`Error::Limit`]; [`RegistryError::NoDocument`] if it is no JSON and does not say so;
/// [`Error::Corrupt`] if it can be read in two ways.
pub(super) fn kind(bytes: &[u8], media_type: &str, what: &str) -> Result<Kind, Error> {
    let shape: Shape = match parse(bytes, what) {
        Err(Error::Json { .. }) if is_other(media_type) => {
            return Err(RegistryError::NoDocument { kind: media_type.to_owned() }.into());
        }
        shape => shape?,
    };
    let corrupt = |why: &str| Err(Error::Corrupt { what: what.to_owned(), why: why.to_owned() });
    if media_type.starts_with(SCHEMA_1) || shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return Ok(Kind::Schema1);
    }
    let kind = match (shape.manifests.is_some(), shape.layers.is_some() || shape.config.is_some()) {
        (true, false) => Kind::Index,
        (false, true) => Kind::Manifest,
        (true, true) => return corrupt("it is an index and a manifest at once"),
        (false, false) => return corrupt("it is neither an index nor a manifest"),
    };
    for said in [Some(media_type), shape.media_type.as_deref()].into_iter().flatten() {
        if of(said).is_some_and(|said| said != kind) {
            return corrupt("its media type is not that of its content");
        }
    }
    Ok(kind)
}

/// Whether a media type is that of a page for people, such as that of a proxy that wants a login.
fn is_other(media_type: &str) -> bool {
    matches!(
        media_type,
        "text/html" | "text/plain" | "application/xhtml+xml" | "application/xml" | "text/xml"
    )
}

/// Returns the kind that a media type stands for; `None` for one that says nothing.
fn of(media_type: &str) -> Option<Kind> {
    match media_type {
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => Some(Kind::Manifest),
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Kind::Index),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let (index, manifest) =
            ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json");
        let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        for (text, media_type, expected) in [
            (r#"{"manifests":[]}"#, index, Some(Kind::Index)),
            (r#"{"manifests":[]}"#, "", Some(Kind::Index)),
            (r#"{"manifests":[]}"#, "text/plain", Some(Kind::Index)),
            (r#"{"config":{},"layers":[]}"#, manifest, Some(Kind::Manifest)),
            (r#"{"config":{},"layers":null}"#, "application/json", Some(Kind::Manifest)),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "", Some(Kind::Schema1)),
            (r#"{"fsLayers":[]}"#, "", Some(Kind::Schema1)),
            (r#"{}"#, signed, Some(Kind::Schema1)),
            (r#"{"manifests":[],"layers":[]}"#, "", None),
            (r#"{"manifests":[],"config":{}}"#, index, None),
            (r#"{"manifests":[]}"#, manifest, None),
            (r#"{"layers":[],"config":{}}"#, index, None),
            (r#"{"layers":[],"config":{},"mediaType":"application/vnd.oci.image.index.v1+json"}"#, "", None),
            ("{}", "", None),
            ("<html>", manifest, None),
        ] {
            assert_eq!(kind(text.as_bytes(), media_type, "x").ok(), expected, "{text} {media_type}");
        }
        let page = kind(b"<html>", &media_type("text/html; charset=utf-8"), "x").unwrap_err().to_string();
        assert_eq!(page, "the answer is no manifest: it is text/html");
        assert_eq!(media_type("Application/JSON ; charset=utf-8"), "application/json");
    }
}
