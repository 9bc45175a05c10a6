//! Errors for images that cannot be used.

use super::Tar;
use super::image::Layout;
use crate::{Digest, Error};

const NAME: &str = "org.opencontainers.image.ref.name";

#[test]
fn a_tag_that_is_none_is_told_with_those_that_are_there() {
    let tar = Tar::default().end();
    let layout = Layout::new();
    let manifest = layout.manifest(&[&tar], &[Digest::of(&tar)]);
    let entry = |tag: &str| format!(r#"{manifest},"annotations":{{"{NAME}":"{tag}"}}"#);
    layout.index(&[entry("v1"), entry("v2")]);
    let told = layout.open(":v3").unwrap_err().to_string();
    assert!(told.ends_with(r#"no manifest is tagged "v3"; it has "v1", "v2""#), "{told}");
    layout.index(&(0..20).map(|n| entry(&format!("v{n}"))).collect::<Vec<_>>());
    let told = layout.open(":x").unwrap_err().to_string();
    assert!(told.ends_with(r#""v7", …"#), "{told}");
    layout.index(&[manifest]);
    let told = layout.open(":x").unwrap_err().to_string();
    assert!(told.ends_with(r#"no manifest is tagged "x"; nothing in it has a name"#), "{told}");
}

/// Charts, signatures and modules are stored like images. Some have a config that could be parsed as an image's.
#[test]
fn an_artifact_is_told_by_its_type() {
    let tar = Tar::default().end();
    let layout = Layout::new();
    let config = |text: &str| layout.blob(text.as_bytes());
    let image = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, Digest::of(&tar));
    let open = |kind: &str, config: &str, more: &str| {
        let layer = layout.blob(&tar);
        let manifest =
            format!(r#"{{"config":{{"mediaType":"{kind}",{config}}},"layers":[{{{layer}}}]{more}}}"#);
        layout.index(&[layout.blob(manifest.as_bytes())]);
        layout.open("")
    };
    let artifact = r#","artifactType":"application/vnd.example\u001bthing""#;
    for (kind, json, more, told) in [
        ("application/vnd.cncf.helm.config.v1+json", "{}", "", "application/vnd.cncf.helm.config.v1+json"),
        ("application/vnd.wasm.config.v1+json", &*image, "", "application/vnd.wasm.config.v1+json"),
        ("application/vnd.oci.empty.v1+json", "{}", artifact, "application/vnd.example\\x1bthing"),
    ] {
        let error = open(kind, &config(json), more).unwrap_err();
        assert!(
            matches!(&error, Error::Artifact { kind, .. } if *kind == format!("\"{told}\"")),
            "{error:?}"
        );
        assert!(error.to_string().contains(&layout.path().display().to_string()), "{error}");
    }
    for kind in [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        "application/octet-stream",
        "",
    ] {
        assert_eq!(open(kind, &config(&image), artifact).unwrap().layers.len(), 1, "{kind}");
    }
}

#[test]
fn an_image_for_another_platform_says_so() {
    let tar = Tar::default().end();
    let layout = Layout::new();
    let host = crate::format::manifest::host_architecture();
    let other = if host == "arm64" { "amd64" } else { "arm64" };
    let foreign = |os: &str, architecture: &str| {
        let config = format!(
            r#"{{"os":{os},"architecture":{architecture},"rootfs":{{"diff_ids":["{}"]}}}}"#,
            Digest::of(&tar)
        );
        let (config, layer) = (layout.blob(config.as_bytes()), layout.blob(&tar));
        let manifest = format!(r#"{{"config":{{{config}}},"layers":[{{{layer}}}]}}"#);
        layout.index(&[layout.blob(manifest.as_bytes())]);
        let image = layout.open("").unwrap();
        assert_eq!(image.config.foreign.is_some(), image.config.warning().is_some());
        image.config.foreign
    };
    let [linux, ours, theirs] = ["linux", host, other].map(|text| format!("\"{text}\""));
    for (os, architecture) in [(&*linux, &*ours), ("null", &*ours), (&*linux, "\"\""), ("\"\"", "null")] {
        assert_eq!(foreign(os, architecture), None, "{os} {architecture}");
    }
    assert_eq!(foreign(&linux, &theirs), Some(format!("linux/{other}")));
    assert_eq!(foreign("\"windows\"", &ours), Some(format!("windows/{host}")));
    assert_eq!(foreign("null", "\"x\\u001by\""), Some("?/x\\u{1b}y".to_owned()));
}
