//! Images with the words that docker has for them: load, save, import, history, and ids as they are printed.

use crate::cli::{Place, Said};
use crate::support::{Server, tar_of};
use serde_json::{Value, json};
use std::fs;

fn ok(place: &Place, args: &[&str]) -> String {
    let said = place.wardian(args);
    assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
    said.out
}

/// With this on standard input.
fn fed(place: &Place, args: &[&str], input: &[u8]) -> Said {
    crate::commands::fed(place.command(args), input).into()
}

/// The names that there are.
fn names(place: &Place) -> Vec<String> {
    let all: Value = serde_json::from_str(&ok(place, &["image", "--json", "ls"])).unwrap();
    all.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn several_images_are_saved_and_loaded() {
    let server = Server::start().await;
    let place = Place::of(&server);
    let image = server.image().to_str().unwrap().to_owned();
    let other = server.image_with("marker", "x");
    ok(&place, &["import", &image, "one"]);
    ok(&place, &["image", "import", &other, "-t", "two:v2"]);
    let file = server.base().join("both.tar");
    let file = file.to_str().unwrap();
    ok(&place, &["save", "-o", file, "one", "two:v2"]);
    let piped = place.command(&["save", "one", "two:v2"]).output().unwrap();
    assert!(piped.status.success(), "{piped:?}");
    assert_eq!(piped.stdout, fs::read(file).unwrap(), "the same bytes");
    // One that exists is replaced, as by docker.
    ok(&place, &["save", "-o", file, "one", "two:v2"]);

    for round in ["file", "input", "quiet"] {
        ok(&place, &["rmi", "one", "two:v2"]);
        assert_eq!(names(&place), Vec::<String>::new());
        let loaded = match round {
            "file" => place.wardian(&["load", "-i", file]),
            "input" => fed(&place, &["load"], &piped.stdout),
            _ => place.wardian(&["load", "-q", "-i", file]),
        };
        assert_eq!(loaded.code, Some(0), "{round}: {loaded:?}");
        assert_eq!(names(&place), ["one", "two:v2"], "{round}");
        if round == "quiet" {
            assert_eq!(loaded.out, ok(&place, &["images", "-q"]));
        }
    }
    // Names are taken from others, and that is said.
    ok(&place, &["tag", "two:v2", "one"]);
    let loaded = place.wardian(&["load", "-i", file]);
    assert!(loaded.code == Some(0) && loaded.err.contains("one was the image"), "{loaded:?}");
    assert_eq!(
        server
            .client()
            .create(&wardian_garden::wire::ContainerSpec {
                handle: "c".into(),
                rootfs: "two:v2".into(),
                ..Default::default()
            })
            .await
            .unwrap(),
        "c"
    );
    let staging = server.root().join("staging");
    let left: Vec<_> = fs::read_dir(&staging).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".tar")), "{left:?}");
    server.finish().await;
}

#[tokio::test]
async fn a_root_file_system_from_standard_input() {
    let server = Server::start().await;
    let place = Place::of(&server);
    let tar = fs::read(server.image()).unwrap();
    let imported = fed(&place, &["import", "-", "fed"], &tar);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    let id = ok(&place, &["images", "-q"]).trim().to_owned();
    // It comes from no file that the store could know again, so it is another image.
    let again = fed(&place, &["image", "import", "-", "-q", "-t", "again"], &tar);
    assert!(again.code == Some(0) && again.out.trim().len() == id.len(), "{again:?}");
    // The id as it is printed names the image.
    ok(&place, &["tag", &id, "third"]);
    ok(&place, &["image", "inspect", &id]);
    ok(&place, &["history", &id]);
    assert_eq!(crate::commands::ok(&server, &["run", "--rm", &id, "echo", "by id"]), "by id\n");
    ok(&place, &["rmi", "again", "third"]);
    ok(&place, &["rmi", &id]);
    assert_eq!(names(&place), Vec::<String>::new());

    for odd in [&b""[..], b"no tar at all", &tar_of(&[("x", b"y")])[..700]] {
        let refused = fed(&place, &["import", "-", "odd"], odd);
        assert_ne!(refused.code, Some(0), "{refused:?}");
    }
    let refused = fed(&place, &["image", "import", "--no-wait", "-", "odd"], &tar);
    assert!(refused.code == Some(2) && refused.err.contains("--no-wait"), "{refused:?}");
    assert_eq!(names(&place), Vec::<String>::new());
    server.finish().await;
}

#[tokio::test]
async fn how_an_image_was_made() {
    let server = Server::start().await;
    let place = Place::of(&server);
    let history = json!([
        {"created": "2026-01-02T03:04:05Z", "created_by": "/bin/sh -c #(nop) ADD file:0123 in /"},
        {"created": "2026-01-02T03:04:06Z", "created_by": "ENV A=\u{1b}[2Jb", "empty_layer": true},
        {"created": "2026-01-03T03:04:06Z", "created_by": format!("RUN {}", "x".repeat(100))},
    ]);
    let dir = crate::image_command::layout_with(&server, "made", &json!({}), Some(&history));
    ok(&place, &["image", "import", dir.to_str().unwrap(), "-t", "made"]);
    let table = ok(&place, &["history", "made"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("LAYER") && lines.len() == 4, "{table}");
    assert!(
        lines[1].contains("2026-01-03") && lines[1].ends_with('…') && !lines[1].starts_with('-'),
        "{table}"
    );
    assert!(lines[2].starts_with("- ") && lines[2].contains("ENV A=\\u{1b}[2Jb"), "{table}");
    assert!(lines[3].contains("ADD file:0123"), "{table}");
    assert!(lines.iter().all(|line| line.chars().count() <= 100), "{table}");
    assert!(ok(&place, &["history", "--no-trunc", "made"]).contains(&"x".repeat(100)));
    let all: Value = serde_json::from_str(&ok(&place, &["image", "--json", "history", "made"])).unwrap();
    assert!(all[0]["layer"].is_string() && all[1]["layer"].is_null() && all[0]["bytes"].is_u64(), "{all}");
    // One that tells nothing of itself.
    ok(&place, &["import", server.image().to_str().unwrap(), "plain"]);
    assert_eq!(ok(&place, &["history", "-q", "plain"]).lines().count(), 1);
    server.finish().await;
}
