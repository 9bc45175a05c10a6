//! Names of images: how many a source may give, and what they are compared by.

use crate::cli::{Alone, Said};
use crate::support::{digest, tar_of};
use serde_json::json;
use std::fs;
use std::path::Path;

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
    // None that reads as another image's digest: who names an image so trusts that no other is called that.
    let digests = ["sha256:0f", "docker.io/library/sha256:0f", "q@sha256:0f", "good:1"].map(str::to_owned);
    let digest = alone.write("digest.tar", &saved_as(&digests, &layer));
    for force in [&[][..], &["--force"]] {
        place.say(&[&["image", "import", &digest], force].concat());
        let files = place.names("images");
        assert_eq!(files.iter().filter(|name| name.ends_with(".json")).count(), 1, "{files:?}");
    }
    place.say(&["image", "rm", "good:1"]);
    alone.finish();
}

/// `busybox`, `busybox:latest` and `docker.io/library/busybox` are one name, whoever says it.
#[test]
fn a_name_in_another_form_is_not_free() {
    let alone = Alone::new();
    let place = &alone.place;
    let write = |file: &str, name: &str, text: &[u8]| {
        alone.write(file, &saved_as(&[name.to_owned()], &tar_of(&[("a", text)])))
    };
    let trusted = write("trusted.tar", "docker.io/library/busybox:latest", b"trusted");
    let id = place.json(&["image", "import", &trusted])["id"].clone();
    assert_eq!(place.images(), ["busybox"]);
    for (n, form) in ["busybox", "busybox:latest", "library/busybox:latest", "docker.io/busybox:latest"]
        .into_iter()
        .enumerate()
    {
        let evil = write(&format!("evil{n}.tar"), form, b"evil");
        let text = place.fail(&["image", "import", &evil]);
        assert!(text.contains("busybox") && text.contains("--force"), "{text}");
        let inspected: serde_json::Value =
            serde_json::from_str(&place.say(&["image", "inspect", form])).unwrap();
        assert_eq!((&inspected["name"], &inspected["id"]), (&"busybox".into(), &id));
    }
    place.say(&["image", "import", &trusted, "-t", "index.docker.io/library/busybox:latest"]);
    place.say(&["image", "rm", "docker.io/library/busybox"]);
    assert!(place.images().is_empty() && place.names("layers").is_empty());
    alone.finish();
}

/// Whoever says `i.tar` means the file: an archive that calls itself so does not come instead of it.
#[test]
fn an_archive_does_not_take_the_place_of_a_file() {
    let alone = Alone::new();
    let place = &alone.place;
    let here = |args: &[&str]| {
        let mut command = place.command(args);
        command.current_dir(Path::new(&alone.path("i.tar")).parent().unwrap());
        Said::from(command.output().unwrap())
    };
    alone.write("i.tar", &tar_of(&[("mine", b"mine")]));
    let names = ["i.tar:latest", "docker.io/library/i.tar:latest", "evil:1"].map(str::to_owned);
    let evil = alone.write("evil.tar", &saved_as(&names, &tar_of(&[("theirs", b"theirs")])));
    let said = place.wardian(&["image", "import", &evil]);
    assert!(said.code == Some(0) && said.err.contains("`-t i.tar`"), "{said:?}");
    assert_eq!(place.images(), ["evil:1"]);
    let holds = |image: &str, file: &str| {
        let said = here(&["rootfs", "create", image, "r"]);
        assert_eq!(said.code, Some(0), "{image}: {said:?}");
        assert!(Path::new(said.out.trim_end()).join(file).exists(), "{image}");
        place.say(&["rootfs", "delete", "r"]);
    };
    holds("i.tar", "mine");
    // If the operator says so, both could be meant.
    place.say(&["image", "import", &evil, "-t", "i.tar"]);
    let said = here(&["rootfs", "create", "i.tar", "r"]);
    let advised = ["`i.tar:latest`", "`./i.tar`"].iter().all(|says| said.err.contains(says));
    assert!(said.code == Some(1) && advised, "{said:?}");
    holds("./i.tar", "mine");
    holds("i.tar:latest", "theirs");
    // Where there is no such file, the name says enough.
    let path = place.say(&["rootfs", "create", "i.tar", "r"]);
    assert!(Path::new(path.trim_end()).join("theirs").exists());
    place.say(&["rootfs", "delete", "r"]);
    place.say(&["image", "rm", "i.tar", "evil:1"]);
    place.say(&["store", "gc"]);
    alone.finish();
}
