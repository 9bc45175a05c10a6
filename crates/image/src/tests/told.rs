//! What is told of an image that cannot be what somebody wants.

use super::Tar;
use super::image::Layout;
use crate::Digest;

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
