//! `wardian rootfs`, and what the doctor says of it.

use crate::cli::{Alone, Place, many_files};
use crate::support::{Server, WARDIAN, names, noise};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use wardian_needs::needs;

fn create(place: &Place, image: &str, id: &str) -> PathBuf {
    let path = PathBuf::from(place.say(&["rootfs", "create", image, id]).trim_end());
    assert!(path.join("bin/busybox").is_file(), "{path:?}");
    path
}

fn ids(place: &Place) -> Vec<String> {
    let all = place.json(&["rootfs", "list"]);
    all.as_array().unwrap().iter().map(|rootfs| rootfs["id"].as_str().unwrap().to_owned()).collect()
}

/// Root file systems come, are seen and go.
fn life(place: &Place, image: &str) {
    // Fetched, as it is missing.
    let first = create(place, image, "first");
    let imported = place.json(&["image", "import", image, "-t", "bb"]);
    assert_eq!(imported["layers"][0]["fetched"], false);
    let second = place.json(&["rootfs", "create", "bb", "second"]);
    let second = Path::new(second["path"].as_str().unwrap());
    fs::write(first.join("bin/busybox"), "overwritten").unwrap();
    fs::write(first.join("big"), vec![1; 1 << 20]).unwrap();
    assert_ne!(fs::read(second.join("bin/busybox")).unwrap(), b"overwritten");

    assert_eq!(ids(place), ["first", "second"]);
    let stats = |id: &str| -> Value { serde_json::from_str(&place.say(&["rootfs", "stats", id])).unwrap() };
    let (of_first, of_second) = (stats("first"), stats("second"));
    assert!(of_first["own_bytes"].as_u64() >= Some(1 << 20), "{of_first}");
    assert!(of_second["own_bytes"].as_u64() < Some(1 << 20), "{of_second}");
    assert_eq!((&of_second["image"], &of_first["image_bytes"]), (&"bb".into(), &of_second["image_bytes"]));
    assert_eq!(of_first["path"], first.to_str().unwrap());
    assert!(place.fail(&["rootfs", "stats", "third"]).contains("rootfs list"));

    assert!(place.fail(&["rootfs", "create", "bb", "first"]).contains("exists"));
    assert!(first.join("big").exists());
    assert!(place.fail(&["rootfs", "create", "nope", "third"]).contains("nope"));
    for id in ["../x", "a/b", "", ".hidden", "a b"] {
        assert!(place.fail(&["rootfs", "create", "bb", id]).contains("is no id"), "{id:?}");
        assert!(place.fail(&["rootfs", "delete", id]).contains("is no id"), "{id:?}");
    }

    // Its layers may go from the store's lists, not from under it.
    place.say(&["image", "rm", "bb"]);
    place.say(&["store", "gc"]);
    assert!(second.join("bin/busybox").is_file());

    place.say(&["rootfs", "delete", "first"]);
    assert!(!first.exists());
    assert_eq!(ids(place), ["second"]);
    place.say(&["rootfs", "delete", "second"]);
    for id in ["second", "never"] {
        let said = place.wardian(&["rootfs", "delete", id]);
        assert!(said.code == Some(0) && said.err.contains(id) && said.out.is_empty(), "{said:?}");
    }
    assert_eq!(ids(place), Vec::<String>::new());
}

#[test]
fn root_file_systems_without_a_server() {
    let alone = Alone::new();
    life(&alone.place, &alone.image());
    alone.finish();
}

#[tokio::test]
async fn root_file_systems_beside_a_server() {
    let server = Server::start().await;
    let (place, image) = (Place::of(&server), server.image());
    tokio::task::spawn_blocking(move || life(&place, image.to_str().unwrap())).await.unwrap();
    server.finish().await;
}

#[test]
fn one_that_is_in_use_stays() {
    let alone = Alone::new();
    let path = create(&alone.place, &alone.image(), "r");
    let file = fs::File::create(path.join("open")).unwrap();
    let text = alone.place.fail(&["rootfs", "delete", "r"]);
    assert!(text.contains("busy"), "{text}");
    fs::write(path.join("more"), "x").unwrap();
    assert_eq!(ids(&alone.place), ["r"]);
    drop(file);
    alone.place.say(&["rootfs", "delete", "r"]);
    alone.finish();
}

#[tokio::test]
async fn a_server_keeps_what_a_command_made() {
    let mut server = Server::start().await;
    let (place, image) = (Place::of(&server), server.image().to_str().unwrap().to_owned());
    let made = create(&place, &image, "before");
    fs::write(made.join("kept"), "x").unwrap();
    assert!(server.terminate().await.success());
    let alone = create(&place, &image, "between");
    fs::write(alone.join("kept"), "x").unwrap();
    server.restart().await;
    server.kill9();
    server.restart().await;
    assert_eq!(ids(&place), ["before", "between"]);
    assert!(made.join("kept").exists() && alone.join("kept").exists());
    server.create("c").await;
    // A container's belongs to the container.
    let of_container = ids(&place).into_iter().find(|id| !id.starts_with("be")).unwrap();
    assert!(place.fail(&["rootfs", "delete", &of_container]).contains("container"));
    for id in ["before", "between"] {
        place.say(&["rootfs", "delete", id]);
    }
    // It also deletes what was thrown away.
    server.finish().await;
}

#[test]
fn another_run_directory_is_refused() {
    let alone = Alone::new();
    let path = create(&alone.place, &alone.image(), "r");
    let other = Place { run: alone.path("other").into(), ..alone.place.clone() };
    for args in [&["rootfs", "list"][..], &["image", "ls"], &["store", "gc"], &["rootfs", "delete", "r"]] {
        let text = other.fail(args);
        assert!(text.contains(alone.place.run.to_str().unwrap()) && text.contains("--run"), "{text}");
    }
    assert!(path.join("bin/busybox").is_file());
    alone.place.say(&["rootfs", "delete", "r"]);
    // Now nothing speaks against it.
    other.say(&["image", "ls"]);
    alone.finish();
}

#[test]
fn a_run_directory_on_a_disk_gets_a_tmpfs_until_it_is_empty() {
    let alone = Alone::new();
    let place = Place { run: alone.path("run").into(), ..alone.place.clone() };
    let is_tmpfs = || rustix::fs::statfs(&place.run).is_ok_and(|fs| fs.f_type == 0x0102_1994);
    let children: Vec<_> =
        (0..4).map(|n| place.spawn(&["rootfs", "create", &alone.image(), &format!("r{n}")])).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    assert_eq!(ids(&place), ["r0", "r1", "r2", "r3"]);
    for n in 0..4 {
        assert!(is_tmpfs());
        place.say(&["rootfs", "delete", &format!("r{n}")]);
    }
    assert!(!is_tmpfs());
    alone.finish();
}

#[test]
fn nobody_waits_for_the_deletion() {
    let alone = Alone::new();
    let big = alone.path("big.tar");
    many_files(Path::new(&big), 20_000);
    alone.place.say(&["image", "import", &big, "-t", "big"]);
    // The process that deletes holds neither the pipe nor the lock that this shell has open.
    let lock = alone.write("lock", b"");
    let script = format!("exec 9>{lock}; flock 9; {WARDIAN} image rm big");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).env("WARDIAN_ROOT", &alone.place.root).env("WARDIAN_RUN", &alone.place.run);
    let output = shell.stdin(Stdio::null()).output().unwrap();
    let there = !alone.place.names("trash").is_empty();
    assert!(output.status.success(), "{output:?}");
    assert!(there, "deleted before the command ended");
    assert!(Command::new("flock").args(["-n", &lock, "true"]).status().unwrap().success());
    alone.finish();
}

fn leaks(place: &Place) -> Vec<String> {
    let output = Command::new(WARDIAN).args(["doctor", "--leaks", "--run"]).arg(&place.run).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let run = place.run.to_str().unwrap();
    text.lines().filter(|line| line.contains(run)).map(str::to_owned).collect()
}

#[test]
fn the_doctor_knows_which_are_left_behind() {
    let alone = Alone::new();
    let place = &alone.place;
    let path = create(place, &alone.image(), "r");
    assert_eq!(leaks(place), Vec::<String>::new());
    let record = place.run.join("rootfs/r.json");
    let kept = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    let found = leaks(place);
    fs::write(&record, kept).unwrap();
    assert!(
        found.iter().any(|leak| leak.starts_with("mount") && leak.contains(path.to_str().unwrap())),
        "{found:?}"
    );
    assert!(Command::new("umount").arg(&path).status().unwrap().success());
    let found = leaks(place);
    assert!(found.iter().any(|leak| leak.starts_with("rootfs") && leak.contains("r.json")), "{found:?}");
    // And the remedy that it names.
    place.say(&["rootfs", "delete", "r"]);
    assert_eq!(leaks(place), Vec::<String>::new());
    assert_eq!(names(&place.run.join("rootfs")), Vec::<String>::new());
    alone.finish();
}

#[test]
fn limits_bound_what_is_written_to_one() {
    needs!(Loop);
    let alone = Alone::new();
    let (place, image) = (&alone.place, alone.image());
    let create = |flags: &[&str], id: &str| {
        let args = [&["rootfs", "create"], flags, &[&image, id]].concat();
        PathBuf::from(place.say(&args).trim_end())
    };
    let write = |path: &Path, name: &str, mib: usize| fs::write(path.join(name), noise(mib << 20)).is_ok();
    let bytes = create(&["--disk", "10M", "--disk-scope", "exclusive"], "bytes");
    assert!(write(&bytes, "six", 6) && !write(&bytes, "five", 5));
    let inodes = create(&["--inodes", "50"], "inodes");
    let made = (0..100).take_while(|n| fs::write(inodes.join(n.to_string()), "").is_ok()).count();
    assert!((40..=50).contains(&made), "{made}");
    let free = create(&[], "free");
    assert!(write(&free, "eleven", 11));
    let stats = |id: &str| -> Value { serde_json::from_str(&place.say(&["rootfs", "stats", id])).unwrap() };
    assert_eq!(stats("bytes")["bound"], serde_json::json!({"bytes": 10 << 20}));
    assert_eq!(stats("inodes")["bound"], serde_json::json!({"inodes": 50}));
    assert_eq!(stats("free")["bound"], serde_json::json!({}));
    let image_bytes = stats("free")["image_bytes"].as_u64().unwrap();
    let total = create(&["--disk", &(image_bytes + (5 << 20)).to_string()], "total");
    assert!(write(&total, "four", 4) && !write(&total, "two", 2));

    let create = |flags: &[&'static str]| [&["rootfs", "create"], flags, &["x", "y"]].concat();
    let small = place.fail(&["rootfs", "create", "--disk", "1K", &image, "small"]);
    assert!(small.contains("disk limit is smaller than volume size"), "{small}");
    for flags in
        [&["--disk", "much"][..], &["--inodes", "0"], &["--disk-scope", "total"], &["--disk-scope", "both"]]
    {
        place.refuse(&create(flags));
    }
    // What is dirty is thrown away: nobody waits for it.
    for id in ["bytes", "inodes", "free", "total"] {
        place.say(&["rootfs", "delete", id]);
    }
    assert_eq!(ids(place), Vec::<String>::new());
    alone.finish();
}
