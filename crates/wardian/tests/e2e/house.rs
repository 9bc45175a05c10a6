//! What may call what: the crates' manifests against the table of docs/architecture.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The words in backquotes.
fn names(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The table of the page.
fn allowed(root: &Path) -> Arrows {
    let page = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let part = page.split("## What may call what").nth(1).expect("the part of the page");
    let part = part.split("\n## ").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    let mut arrows = Arrows::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        for name in names(cells[1]) {
            arrows.insert(name, names(cells[2]));
        }
    }
    arrows
}

/// What the manifests say.
fn actual(root: &Path) -> Arrows {
    let mut arrows = Arrows::new();
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        let manifest = entry.unwrap().path().join("Cargo.toml");
        let manifest: toml::Table = std::fs::read_to_string(manifest).unwrap().parse().unwrap();
        let ours = |name: &str| name.strip_prefix("wardian-").map(str::to_owned);
        let name = manifest["package"]["name"].as_str().unwrap();
        let uses = manifest.get("dependencies").and_then(|list| list.as_table());
        let uses = uses.into_iter().flat_map(|list| list.keys()).filter_map(|name| ours(name)).collect();
        arrows.insert(ours(name).unwrap_or_else(|| name.to_owned()), uses);
    }
    arrows
}

#[test]
fn crates_use_what_they_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (allowed, actual) = (allowed(&root), actual(&root));
    assert_eq!(
        actual, allowed,
        "what the manifests say (left) is not what docs/architecture.md says (right)"
    );
    // Arrows point down only: something is used by nobody that it uses.
    let mut left = actual;
    while !left.is_empty() {
        let lowest: Vec<String> = left
            .iter()
            .filter(|(_, uses)| uses.iter().all(|name| !left.contains_key(name)))
            .map(|(name, _)| name.clone())
            .collect();
        assert!(!lowest.is_empty(), "a circle of crates: {left:?}");
        lowest.iter().for_each(|name| drop(left.remove(name)));
    }
}
