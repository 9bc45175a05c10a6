//! Names of images, as docker and podman read them: `busybox` is `docker.io/library/busybox:latest` (distribution's
//! `reference` package, "normalized" and "familiar" names).

use std::path::Path;

use crate::error::show;

/// The prefixes of the default registry, to which names without a registry belong.
const DEFAULT: [&str; 3] = ["docker.io/", "index.docker.io/", "registry-1.docker.io/"];
/// File extensions of images, root file systems and apps.
const FILES: [&str; 13] =
    ["tar", "tgz", "tzst", "txz", "tbz", "tbz2", "gz", "zst", "xz", "bz2", "zip", "img", "json"];
/// The maximum number of image names that an error lists.
const MAX_SHOWN: usize = 8;

/// Returns the short form of a name: without the default `docker.io` and `library/`, and without the default tag
/// `latest`. Two names mean the same image if they have the same short form. A text that is no such name is returned
/// unchanged.
pub fn short(name: &str) -> &str {
    let is_name = |rest: &&str| rest.starts_with(|first: char| first.is_ascii_alphanumeric());
    let rest = DEFAULT.iter().find_map(|registry| name.strip_prefix(registry));
    let rest = rest.filter(is_name).filter(|rest| !has_registry(rest)).unwrap_or(name);
    let official = rest.strip_prefix("library/").filter(is_name).filter(|rest| !rest.contains('/'));
    let rest = official.unwrap_or(rest);
    // In a name with a digest the tag has no meaning, and is kept.
    rest.strip_suffix(":latest").filter(is_name).unwrap_or(rest)
}

/// Whether the first part of a name is a registry and not a user of the default one.
fn has_registry(name: &str) -> bool {
    name.split_once('/').is_some_and(|(first, _)| is_registry(first))
}

/// Whether a name's part before the first slash is a registry and not a namespace of the default one.
pub(crate) fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Whether a name could be meant as a file: its short form has no tag, and the extension of an image file.
pub fn is_like_a_file(name: &str) -> bool {
    let name = short(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    last.rsplit_once('.').is_some_and(|(_, end)| FILES.iter().any(|file| end.eq_ignore_ascii_case(file)))
}

/// `localhost:5000/app:v1` is `localhost:5000/app` and `v1`.
pub(crate) fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((base, tag)) if !tag.contains('/') => (base, Some(tag)),
        _ => (name, None),
    }
}

/// Returns the error text for an address without a tag or name, if the archive or layout has several images.
pub(crate) fn several_images<'a>(names: impl Iterator<Item = &'a str>, scheme: &str, path: &Path) -> String {
    match listed(names) {
        None => "there are several images, without names to tell them apart".into(),
        Some(names) => format!(
            "there are several images: {names}; say which one with the address {scheme}://{}:NAME",
            path.display()
        ),
    }
}

/// Returns the end of an error text about an unknown name: the names that exist.
pub(crate) fn but_there_are<'a>(names: impl Iterator<Item = &'a str>) -> String {
    listed(names).map_or_else(|| "nothing in it has a name".into(), |names| format!("it has {names}"))
}

/// Lists untrusted names, escaped and limited in number to fit a line; `None` if there are none.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut shown: Vec<String> = names.take(MAX_SHOWN + 1).map(|name| show(name.as_bytes())).collect();
    let more = if shown.len() > MAX_SHOWN { ", …" } else { "" };
    shown.truncate(MAX_SHOWN);
    (!shown.is_empty()).then(|| shown.join(", ") + more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms() {
        for name in [
            "busybox",
            "busybox:latest",
            "library/busybox",
            "docker.io/busybox",
            "docker.io/library/busybox",
            "docker.io/library/busybox:latest",
            "index.docker.io/library/busybox:latest",
            "registry-1.docker.io/library/busybox",
        ] {
            assert_eq!(short(name), "busybox", "{name}");
        }
        for (name, form) in [
            ("docker.io/user/app:latest", "user/app"),
            ("docker.io/library/a/b", "library/a/b"),
            ("busybox:1", "busybox:1"),
            ("localhost/busybox:latest", "localhost/busybox"),
            ("localhost:5000/busybox", "localhost:5000/busybox"),
            ("reg.example/library/busybox", "reg.example/library/busybox"),
            ("busybox@sha256:0f", "busybox@sha256:0f"),
            // Names with another registry are not shortened.
            ("docker.io/reg.example/a", "docker.io/reg.example/a"),
            ("docker.io/localhost/a", "docker.io/localhost/a"),
            // Not names.
            ("docker.io/", "docker.io/"),
            ("docker.io/../a", "docker.io/../a"),
            ("library/.a", "library/.a"),
            (":latest", ":latest"),
            ("", ""),
        ] {
            assert_eq!(short(name), form, "{name}");
            assert_eq!(short(form), form, "{name}");
        }
    }

    #[test]
    fn names_like_files() {
        for name in ["i.tar", "i.tar:latest", "docker.io/library/i.TAR", "dir/rootfs.tar.gz", "a.b.tgz"] {
            assert!(is_like_a_file(name), "{name}");
        }
        for name in ["busybox", "i.tar:1", "reg.example/tar", "my.app", "i.tar@sha256:0f", "tar"] {
            assert!(!is_like_a_file(name), "{name}");
        }
    }
}
