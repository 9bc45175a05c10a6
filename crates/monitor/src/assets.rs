//! The files of the page, which are part of the program: nothing is built for them, and nothing is fetched from elsewhere.

use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::sync::LazyLock;

/// A file of the page.
#[derive(Debug)]
pub(crate) struct Asset {
    /// Its path below `/monitor/`.
    pub(crate) name: &'static str,
    /// Its media type.
    pub(crate) kind: &'static str,
    /// Its content.
    pub(crate) content: &'static [u8],
    /// The entity tag: a digest of the content, in quotation marks.
    pub(crate) tag: String,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($name:literal: $kind:expr),* $(,)?) => {
        [$(($name, $kind, include_bytes!(concat!("../assets/", $name)).as_slice())),*]
    };
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let files = files!(
        "index.html": "text/html; charset=utf-8",
        "style.css": "text/css; charset=utf-8",
        "icon.svg": "image/svg+xml",
        "main.js": SCRIPT,
        "theme.js": SCRIPT,
        "words.js": SCRIPT,
        "scale.js": SCRIPT,
        "graph.js": SCRIPT,
        "history.js": SCRIPT,
        "run.js": SCRIPT,
        "stream.js": SCRIPT,
        "table.js": SCRIPT,
        "spark.js": SCRIPT,
        "live.js": SCRIPT,
    );
    let asset = |(name, kind, content)| Asset { name, kind, content, tag: tag(content) };
    let pictures = ("pictures.css", "text/css; charset=utf-8", wardian_pictures::css().as_bytes());
    files.into_iter().chain([pictures]).map(asset).collect()
});

/// Returns the file of this name; the empty name is that of the page.
pub(crate) fn find(name: &str) -> Option<&'static Asset> {
    let name = if name.is_empty() { "index.html" } else { name };
    ASSETS.iter().find(|asset| asset.name == name)
}

/// Returns an entity tag for this content.
pub(crate) fn tag(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let mut tag = String::from("\"");
    for byte in &digest[..12] {
        let _ = write!(tag, "{byte:02x}");
    }
    tag + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy allows neither: `script-src` and `style-src` have no `unsafe-inline`.
    #[test]
    fn the_page_has_no_inline_script_or_style_and_names_no_other_host() {
        let page = std::str::from_utf8(find("").unwrap().content).unwrap();
        assert!(!page.contains("<style") && !page.contains("style=") && !page.contains(" onclick="));
        for asset in ASSETS.iter() {
            let text = std::str::from_utf8(asset.content).unwrap();
            let elsewhere = text
                .match_indices("://")
                .map(|(at, _)| &text[at.saturating_sub(5)..(at + 30).min(text.len())])
                .find(|around| !around.contains("://www.w3.org/"));
            assert_eq!(elsewhere, None, "{}", asset.name);
        }
    }

    #[test]
    fn every_script_that_is_imported_is_there() {
        for asset in ASSETS.iter().filter(|asset| asset.kind == SCRIPT) {
            let text = std::str::from_utf8(asset.content).unwrap();
            for imported in text.split("from './").skip(1) {
                let name = imported.split('\'').next().unwrap();
                assert!(find(name).is_some(), "{} imports {name}", asset.name);
            }
        }
    }
}
