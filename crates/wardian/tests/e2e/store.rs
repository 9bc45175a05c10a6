//! `wardian store`, and stores in trouble.

use crate::cli::{Alone, Place, Said, disk_bytes, saved};
use crate::support::{Server, WARDIAN, noise, tar_of};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn bytes(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

/// Two images that share their lower layer.
fn import_two(alone: &Alone) {
    let layer = |name: &str, size: usize| tar_of(&[(name, &noise(size))]);
    let (shared, a, b) = (layer("shared", 300_000), layer("a", 200_000), layer("b", 100_000));
    for (name, upper) in [("a", a), ("b", b)] {
        let file = alone.write("saved.tar", &saved(Some(name), &[&shared, &upper]));
        alone.place.say(&["image", "import", &file]);
    }
}

#[test]
fn the_numbers_add_up() {
    let alone = Alone::new();
    let place = &alone.place;
    import_two(&alone);
    place.say(&["image", "import", &alone.image(), "-t", "bb"]);
    place.say(&["image", "pin", "b"]);
    let path = place.say(&["rootfs", "create", "bb", "r"]);
    std::fs::write(Path::new(path.trim_end()).join("mine"), noise(500_000)).unwrap();
    // Its blocks are allocated when they are written.
    rustix::fs::syncfs(std::fs::File::open(&place.root).unwrap()).unwrap();
    let usage = place.usage();
    let of = |name: &str| bytes(&usage, name);
    let on_disk: u64 =
        place.names("layers").iter().map(|layer| disk_bytes(&Path::new(layer).join("fs"))).sum();
    assert_eq!((of("layers"), of("layers_bytes")), (4, on_disk));
    let parts = ["used_bytes", "pinned_bytes", "reclaimable_bytes", "suspect_bytes"];
    assert_eq!(parts.iter().map(|part| of(part)).sum::<u64>(), on_disk);
    let images = usage["images"].as_array().unwrap();
    let image = |name: &str| images.iter().find(|image| image["name"] == name).unwrap();
    assert_eq!(bytes(image("a"), "bytes") - bytes(image("a"), "own_bytes"), of("shared_bytes"));
    assert_eq!(bytes(image("b"), "bytes"), of("pinned_bytes"));
    assert_eq!(bytes(image("a"), "own_bytes"), of("reclaimable_bytes"));
    assert_eq!(bytes(image("bb"), "bytes"), of("used_bytes"));
    let rootfs = &usage["rootfs"][0];
    assert_eq!(bytes(rootfs, "own_bytes"), of("rootfs_bytes"));
    assert_eq!(
        of("rootfs_bytes"),
        place.names("rootfs").iter().map(|dir| disk_bytes(Path::new(dir))).sum::<u64>()
    );
    assert!(of("rootfs_bytes") >= 500_000 && of("trash_bytes") == 0 && of("staging_bytes") == 0);
    assert!(of("free_bytes") > 0 && of("free_bytes") < of("total_bytes"));
    let text = place.say(&["store", "usage"]);
    assert!(["reclaimable", "bb", "ROOT FILE SYSTEM"].iter().all(|word| text.contains(word)), "{text}");
    place.say(&["rootfs", "delete", "r"]);
    alone.finish();
}

#[test]
fn garbage_is_what_nobody_uses_and_no_pin_holds() {
    let alone = Alone::new();
    let place = &alone.place;
    import_two(&alone);
    place.say(&["image", "import", &alone.image(), "-t", "bb"]);
    place.say(&["image", "pin", "b"]);
    place.say(&["rootfs", "create", "bb", "r"]);
    let large = place.json(&["store", "gc", "--threshold", "1G"]);
    assert_eq!(strings(&large["layers"]), Vec::<&str>::new());
    let before = bytes(&place.usage(), "layers_bytes");
    let done = place.json(&["store", "gc", "--threshold", "0"]);
    assert_eq!((strings(&done["layers"]).len(), strings(&done["images"])), (1, vec!["a"]));
    assert_eq!(bytes(&done, "freed_bytes") + bytes(&done, "kept_bytes"), before);
    assert_eq!(bytes(&place.usage(), "layers_bytes"), bytes(&done, "kept_bytes"));
    assert_eq!(place.images(), ["b", "bb"]);
    // A layer that is shared goes with the last image that has it.
    place.say(&["image", "unpin", "b"]);
    assert_eq!(strings(&place.json(&["image", "rm", "b"])[0]["layers"]).len(), 2);
    let rm = place.json(&["image", "rm", "bb"]);
    assert_eq!((strings(&rm[0]["layers"]).len(), &rm[0]["layers_that_stay"]), (0, &1.into()));
    place.say(&["rootfs", "delete", "r"]);
    let text = place.say(&["store", "gc"]);
    assert!(text.contains("in 1 layer"), "{text}");
    assert_eq!(place.names("layers"), Vec::<String>::new());
    for bad in ["x", "-1", "1.5G", ""] {
        assert_eq!(place.wardian(&["store", "gc", &format!("--threshold={bad}")]).code, Some(2), "{bad}");
    }
    alone.finish();
}

#[test]
fn one_failure_does_not_keep_the_others_from_going() {
    let alone = Alone::new();
    import_two(&alone);
    let said = alone.place.wardian(&["image", "rm", "a", "nope", "b"]);
    assert!(
        said.code == Some(1) && said.err.contains("\"nope\"") && said.out.lines().count() == 2,
        "{said:?}"
    );
    assert_eq!(alone.place.images(), Vec::<String>::new());
    alone.finish();
}

#[test]
fn reap_deletes_what_lies_there() {
    let alone = Alone::new();
    let place = &alone.place;
    place.say(&["image", "import", &alone.image(), "-t", "bb"]);
    place.say(&["image", "rm", "bb"]);
    place.until_clean();
    for planted in ["trash/layer-x/fs", "rootfs/x/upper/deep", "staging/x/fs"] {
        std::fs::create_dir_all(place.root.join(planted)).unwrap();
    }
    assert!(bytes(&place.usage(), "trash_bytes") > 0);
    place.say(&["store", "reap", "--wait"]);
    assert!(["trash", "rootfs", "staging"].iter().all(|dir| place.names(dir).is_empty()));
    std::fs::create_dir_all(place.root.join("trash/layer-y/fs")).unwrap();
    place.say(&["store", "reap"]);
    alone.finish();
}

#[tokio::test]
async fn reap_waits_for_the_server() {
    let server = Server::start().await;
    let place = Place::of(&server);
    std::fs::create_dir_all(place.root.join("trash/layer-x/fs")).unwrap();
    let waiting = {
        let place = place.clone();
        move || place.say(&["store", "reap", "--wait"])
    };
    tokio::task::spawn_blocking(waiting).await.unwrap();
    assert_eq!(place.names("trash"), Vec::<String>::new());
    server.finish().await;
}

/// A script in a mount namespace of its own; what it mounts ends with it.
fn apart(place: &Place, script: &str) -> Said {
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", script]);
    command.env("W", WARDIAN).env("WARDIAN_ROOT", &place.root).env("WARDIAN_RUN", &place.run);
    command.output().unwrap().into()
}

#[test]
fn a_read_only_store_says_so() {
    let alone = Alone::new();
    alone.place.say(&["image", "import", &alone.image(), "-t", "bb"]);
    for command in ["image ls", "image rm bb", "store gc", "rootfs create bb r"] {
        let read_only = "mount --bind $WARDIAN_ROOT $WARDIAN_ROOT && mount -o remount,bind,ro $WARDIAN_ROOT";
        let said = apart(&alone.place, &format!("{read_only} && exec $W {command}"));
        assert!(said.code == Some(1) && said.err.contains("Read-only file system"), "{command}: {said:?}");
    }
    assert_eq!(alone.place.images(), ["bb"]);
    alone.place.say(&["rootfs", "create", "bb", "r"]);
    alone.place.say(&["rootfs", "delete", "r"]);
    alone.finish();
}

#[test]
fn a_full_disk_is_given_back() {
    let alone = Alone::new();
    let big = alone.write("big.tar", &tar_of(&[("big", &noise(20 << 20))]));
    let small = alone.write("small.tar", &tar_of(&[("small", &noise(2 << 20))]));
    std::fs::create_dir_all(&alone.place.root).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=8m none $WARDIAN_ROOT || exit 9
        $W image import {big} -t big; echo code=$?
        $W store reap --wait && $W image ls && $W store usage --json || exit 8
        $W image import {small} -t small || exit 7
        $W image ls"
    );
    let said = apart(&alone.place, &script);
    assert!(said.code == Some(0) && said.out.contains("code=1"), "{said:?}");
    assert!(said.err.contains("No space left on device"), "{said:?}");
    let json = said.out.find('{').zip(said.out.rfind('}')).map(|(from, to)| &said.out[from..=to]).unwrap();
    let usage: Value = serde_json::from_str(json).unwrap();
    for name in ["layers_bytes", "staging_bytes", "trash_bytes"] {
        assert_eq!(bytes(&usage, name), 0, "{name}");
    }
    assert!(bytes(&usage, "free_bytes") > 7 << 20);
    let last = said.out.rsplit_once('}').unwrap().1;
    assert!(last.lines().any(|line| line.starts_with("small ")) && !last.contains("big"), "{last}");
    alone.finish();
}
