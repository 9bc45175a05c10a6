//! Names of images: how many a source may give, and what they are compared by.

use crate::cli::Alone;
use crate::support::{digest, tar_of};
use serde_json::json;
use std::fs;

/// What `docker save` writes of an image that has these names.
fn saved_as(names: &[String], layer: &[u8]) -> Vec<u8> {
    let diff_id = format!("sha256:{}", digest(layer));
    // As long as whoever makes it likes.
    let history = vec![json!({"created_by": "x".repeat(100)}); 2000];
    let config = json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}, "history": history}).to_string();
    let manifest = json!([{"Config": "config.json", "RepoTags": names, "Layers": ["0.tar"]}]).to_string();
    tar_of(&[("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes()), ("0.tar", layer)])
}

/// Each name is a record. An archive of a few megabytes can have any number of names.
#[test]
fn a_source_gives_its_image_a_bounded_number_of_names() {
    let alone = Alone::new();
    let place = &alone.place;
    let layer = tar_of(&[("a", b"a")]);
    let names = |count: usize| (0..count).map(|n| format!("n{n}:1")).collect::<Vec<_>>();
    let many = alone.write("many.tar", &saved_as(&names(20_000), &layer));
    for args in [&["image", "import", &many][..], &["image", "import", &many, "--force"]] {
        let text = place.fail(args);
        assert!(text.contains("20000 names") && text.contains("-t NAME"), "{text}");
        assert!(place.names("images").is_empty() && place.names("layers").is_empty());
    }
    // One that is said is enough, and the same name again and again is one.
    place.say(&["image", "import", &many, "-t", "mine"]);
    let same = alone.write("same.tar", &saved_as(&vec!["one:1".to_owned(); 1000], &layer));
    place.say(&["image", "import", &same]);
    // Those that are taken cost little each.
    let some = alone.write("some.tar", &saved_as(&names(64), &layer));
    place.say(&["image", "import", &some]);
    let files = fs::read_dir(place.root.join("images")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(place.names("images").iter().filter(|name| name.ends_with(".json")).count(), 66);
    assert!(bytes < 2 << 20, "{bytes}");
    assert!(place.usage()["records_bytes"].as_u64().unwrap() >= bytes);
    let mut rm = vec!["image", "rm", "mine", "one:1"];
    let names = names(64);
    rm.extend(names.iter().map(String::as_str));
    place.say(&rm);
    assert!(place.names("images").is_empty());
    alone.finish();
}
