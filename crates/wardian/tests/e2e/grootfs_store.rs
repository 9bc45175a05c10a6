//! The program under the name `grootfs`: what it does to a store, and says of one. `init-store`, `delete`, `stats`,
//! `list`, `clean`, and the logs.

use crate::grootfs::{SOON, World, inside, root};
use crate::grootfs_images::{Layer, layout, tar};
use crate::support::names;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;
use wardian_needs::needs;

const MIB: u64 = 1 << 20;

/// A tar of its own kind in the world; its path.
fn image(world: &World, name: &str) -> String {
    let path = world.path(&format!("{name}.tar"));
    fs::write(&path, tar(&[(name, name.as_bytes())])).unwrap();
    path.to_str().unwrap().to_owned()
}

fn layers(world: &World) -> usize {
    names(&world.path("st/layers")).len()
}

fn end(world: World) {
    world.until_clean();
    assert_eq!(world.mounts(), Vec::<String>::new());
    world.finish();
}

/// The messages and sessions' data of a log of JSON lines.
fn lines(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

#[test]
fn a_store_without_a_mapping_is_roots_alone() {
    let world = World::new();
    world.say("init-store");
    let meta = fs::metadata(world.path("st")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, 0o700));
    // Without a mapping nobody else needs a way to the root file systems.
    world.create(&format!("{} one", image(&world, "i")));
    for dir in ["st", "st/images", "st/images/one"] {
        assert_eq!(fs::metadata(world.path(dir)).unwrap().mode() & 0o7777, 0o700, "{dir}");
    }
    let again = world.grootfs("--log-level debug init-store");
    assert_eq!((again.code, again.out.as_str()), (Some(0), ""));
    let told = lines(&again.err);
    assert!(
        told.iter().any(|line| line["message"].as_str().unwrap().contains("already-initialized")),
        "{told:?}"
    );
    assert_eq!(fs::metadata(world.path("st")).unwrap().mode() & 0o7777, 0o700);
    // Flags of the file system that GrootFS makes have no effect, and are no error.
    for flags in ["--store-size-bytes 500000000", "--with-direct-io"] {
        assert_eq!(world.say(&format!("init-store {flags}")), "");
    }
    assert_eq!(world.say("list"), format!("{}\n", world.path("st/images/one").display()));
    world.say("delete one");
    end(world);
}

#[test]
fn what_is_on_disk_is_used_again_by_init_store_and_create() {
    let world = World::new();
    let image = image(&world, "i");
    world.say("init-store");
    world.create(&format!("{image} one"));
    assert_eq!(world.say("init-store"), "");
    assert_eq!(layers(&world), 1);
    // There is no file of sizes to make again, and nothing that a create could lack of it.
    assert_eq!(world.say("generate-volume-size-metadata"), "");
    world.create(&format!("{image} two"));
    assert_eq!(layers(&world), 1);
    world.say("delete one");
    world.say("delete two");
    end(world);
}

/// As a package installs it.
#[test]
fn a_link_of_its_name_is_enough() {
    let world = World::new();
    let image = image(&world, "i");
    fs::create_dir_all(world.path("usr/bin")).unwrap();
    fs::create_dir_all(world.path("usr/lib/wardian")).unwrap();
    fs::rename(world.path("bin/grootfs"), world.path("usr/bin/wardian")).unwrap();
    std::os::unix::fs::symlink("../../bin/wardian", world.path("usr/lib/wardian/grootfs")).unwrap();
    let run = |args: &str| {
        let said = world.shell(&format!("usr/lib/wardian/grootfs --store st {args}"));
        assert!(said.code == Some(0) && said.err.is_empty(), "{args}: {said:?}");
        said.out
    };
    run("init-store");
    run(&format!("create --with-clean {image} one"));
    assert_eq!(run("delete one"), "Image one deleted\n");
    end(world);
}

#[test]
fn files_of_others_in_a_root_file_system_go_with_it() {
    let world = World::new();
    world.say("init-store");
    let path = inside(&world, &root(&world.create(&format!("{} one", image(&world, "i")))));
    let script =
        "mkdir closed && chown 4000:4000 closed && chmod 0600 closed && cd closed && touch x && chmod 0 x";
    let made = world.shell(&format!("cd {} && {script}", world.path("st/images/one/rootfs").display()));
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(path.join("closed/x").exists());
    assert_eq!(world.say("delete one"), "Image one deleted\n");
    assert!(!world.path("st/images/one").exists());
    end(world);
}

#[test]
fn a_mount_of_somebody_else_makes_delete_fail_and_nothing_is_lost() {
    let world = World::new();
    world.say("init-store");
    let path = inside(&world, &root(&world.create(&format!("{} one", image(&world, "i")))));
    fs::write(path.join("written"), "w").unwrap();
    fs::create_dir(world.path("data")).unwrap();
    fs::write(world.path("data/keep"), "k").unwrap();
    let at = world.path("st/images/one");
    let failed = format!("deleting image path '{}' failed", at.display());
    let listed = format!("{}\n", at.display());
    for point in ["beside", "rootfs/below"] {
        let point = at.join(point);
        let mount = format!("mkdir -p {0} && mount --bind data {0}", point.display());
        assert_eq!(world.shell(&mount).code, Some(0), "{point:?}");
        let said = world.fail("delete one");
        assert!(said.starts_with(&failed), "{said}");
        assert_eq!(fs::read(world.path("data/keep")).unwrap(), b"k", "{point:?}");
        assert_eq!(world.say("list"), listed);
        let back = format!("umount {0} && rmdir {0}", point.display());
        assert_eq!(world.shell(&back).code, Some(0), "{point:?}");
        if point.starts_with(at.join("rootfs")) {
            assert_eq!(fs::read(path.join("written")).unwrap(), b"w", "what was written is gone");
        }
    }
    assert_eq!(world.say("delete one"), "Image one deleted\n");
    assert_eq!(world.say("list"), "Store empty\n");
    end(world);
}

#[test]
fn of_a_missing_store_the_log_has_the_id() {
    let world = World::new();
    let deleted = world.grootfs("--log-level debug delete some-id");
    assert_eq!(
        (deleted.code, deleted.out.as_str()),
        (Some(0), "Image `some-id` not found. Skipping delete.\n")
    );
    let stats = world.grootfs("--log-level debug stats some-id");
    assert_eq!((stats.code, stats.out.as_str()), (Some(1), "Image `some-id` not found.\n"));
    for said in [deleted, stats] {
        let told = lines(&said.err);
        assert!(told.iter().any(|line| line["data"].to_string().contains("some-id")), "{told:?}");
    }
    assert!(!world.path("st").exists());
    world.finish();
}

#[test]
fn figures_and_lists_are_those_of_the_configured_store() {
    let world = World::new();
    fs::write(world.path("c.yml"), format!("store: {}\n", world.path("st").display())).unwrap();
    let run = |args: &str| {
        let said = world.shell(&format!("grootfs --config c.yml {args}"));
        assert!(said.code == Some(0) && said.err.is_empty(), "{args}: {said:?}");
        said.out
    };
    run("init-store");
    assert_eq!(run("list"), "Store empty\n");
    run(&format!("create {} one", image(&world, "i")));
    let path = world.path("st/images/one");
    assert_eq!(run("list"), format!("{}\n", path.display()));
    fs::write(inside(&world, &path.join("rootfs/big")), vec![1; 1 << 20]).unwrap();
    let by_path = run(&format!("stats {}", path.display()));
    let stats: Value = serde_json::from_str(&by_path).unwrap();
    let figure = |name: &str| stats["disk_usage"][name].as_u64().unwrap();
    assert_eq!((figure("quota_size_bytes"), figure("committed_space_bytes")), (0, 1));
    assert!((MIB..2 * MIB).contains(&figure("exclusive_bytes_used")), "{stats}");
    assert_eq!(run("stats one"), by_path);
    run("delete one");
    end(world);
}

#[test]
fn clean_removes_what_nobody_has_once_it_is_more_than_the_threshold() {
    let world = World::new();
    world.say("init-store");
    let of = |names: [&str; 4]| -> Vec<Layer> {
        names.iter().map(|name| Layer::gzip(&tar(&[(*name, b"x")]))).collect()
    };
    for (id, files) in [("kept", ["a", "b", "c", "d"]), ("unused", ["e", "f", "g", "h"])] {
        layout(&world.path(id), &of(files), &[], None);
        world.create(&format!("oci://{} {id}", world.path(id).display()));
    }
    world.say("delete unused");
    assert_eq!(layers(&world), 8);
    let none = "threshold not reached: skipping clean\n";
    assert_eq!(world.say("clean --threshold-bytes 1000000"), none);
    assert_eq!(layers(&world), 8);
    fs::write(world.path("c.yml"), "clean: {threshold_bytes: 1000000}\n").unwrap();
    let by_file = world.shell("grootfs --config c.yml --store st clean");
    assert_eq!((by_file.code, by_file.out.as_str()), (Some(0), none));
    assert_eq!(world.say("clean --threshold-bytes 8"), "clean completed\n");
    assert_eq!(layers(&world), 4);
    let path = inside(&world, &world.path("st/images/kept/rootfs"));
    assert_eq!(names(&path).len(), 4);
    world.say("delete kept");
    assert_eq!(world.say("clean"), "clean completed\n");
    world.until_clean();
    assert_eq!(layers(&world), 0);
    end(world);
}

/// What each threshold does to the layer of `old`, which nobody has, when another image is made.
#[test]
fn a_create_cleans_if_it_is_asked_to_and_there_is_enough() {
    let world = World::new();
    world.say("init-store");
    let [old, new] = ["old", "new"].map(|name| image(&world, name));
    let log = world.path("clean.log");
    let create = |flags: &str, id: &str| {
        let _ = fs::remove_file(&log);
        world.create(&format!("{flags} --clean-log-file {} {new} {id}", log.display()));
        // Whether it cleans is up to a process that nobody waits for.
        let started = Instant::now();
        while !fs::read_to_string(&log).is_ok_and(|log| log.contains("groot-cleaning.ending")) {
            assert!(started.elapsed() < SOON, "{flags}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let forget = |id: &str| assert_eq!(world.say(&format!("delete {id}")), format!("Image {id} deleted\n"));
    world.create(&format!("{old} gone"));
    forget("gone");
    // Adds its own layer, and no more is done.
    world.create(&format!("--without-clean {new} one"));
    assert_eq!(layers(&world), 2);
    create("--with-clean --threshold-bytes 1000000", "two");
    assert_eq!(layers(&world), 2);
    // A layer that is there and about to be used is left as it is.
    let layer = |name: &str| {
        let has = |layer: &String| fs::metadata(format!("{layer}/fs/{name}")).is_ok();
        names(&world.path("st/layers")).into_iter().find(has)
    };
    forget("one");
    forget("two");
    let state =
        |layer: &str| fs::metadata(format!("{layer}/fs")).map(|meta| (meta.ino(), meta.mtime())).unwrap();
    let before = state(&layer("new").unwrap());
    create("--with-clean", "three");
    assert_eq!((layer("old"), layers(&world)), (None, 1));
    assert_eq!(state(&layer("new").unwrap()), before);
    // So it is by the configuration.
    world.create(&format!("{old} gone"));
    forget("gone");
    let file = format!("store: {}\ncreate: {{with_clean: true}}\n", world.path("st").display());
    fs::write(world.path("c.yml"), file).unwrap();
    let made = world.shell(&format!("grootfs --config c.yml create {new} four"));
    assert_eq!(made.code, Some(0), "{made:?}");
    let started = Instant::now();
    while layer("old").is_some() {
        assert!(started.elapsed() < SOON);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    forget("three");
    forget("four");
    end(world);
}

#[test]
fn what_is_promised_counts_for_the_threshold() {
    needs!(Loop);
    let world = World::new();
    world.say("init-store");
    world.create(&format!("{} gone", image(&world, "old")));
    world.say("delete gone");
    world.create(&format!("--disk-limit-size-bytes {} {} one", 10 * MIB, image(&world, "new")));
    assert_eq!(
        world.say(&format!("clean --threshold-bytes {}", 20 * MIB)),
        "threshold not reached: skipping clean\n"
    );
    assert_eq!(layers(&world), 2);
    assert_eq!(world.say(&format!("clean --threshold-bytes {}", 9 * MIB)), "clean completed\n");
    assert_eq!(layers(&world), 1);
    world.say("delete one");
    end(world);
}

#[test]
fn a_hundred_creates_beside_a_hundred_cleans() {
    let world = World::new();
    world.say("init-store");
    let images = ["a", "b", "c", "d"].map(|name| image(&world, name));
    std::thread::scope(|scope| {
        for (part, image) in images.iter().enumerate() {
            let world = &world;
            scope.spawn(move || (0..25).for_each(|n| drop(world.create(&format!("{image} i{part}-{n}")))));
            scope.spawn(move || (0..25).for_each(|_| assert_eq!(world.say("clean"), "clean completed\n")));
        }
    });
    assert_eq!(world.say("list").lines().count(), 100);
    for part in 0..4 {
        for n in 0..25 {
            let file = ["a", "b", "c", "d"][part];
            let path = world.path(&format!("st/images/i{part}-{n}/rootfs/{file}"));
            assert_eq!(fs::read(inside(&world, &path)).unwrap(), file.as_bytes());
            world.say(&format!("delete i{part}-{n}"));
        }
    }
    world.say("clean");
    world.until_clean();
    assert_eq!(layers(&world), 0);
    end(world);
}

#[test]
fn the_log_goes_where_it_is_sent() {
    let world = World::new();
    world.say("init-store");
    let image = image(&world, "i");
    // At the level info a log file has lines, at the default level standard error has none.
    world.create(&format!("{image} silent"));
    let log = world.path("own.log");
    let said = world.grootfs(&format!("--log-file {} create {image} filed", log.display()));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let told = lines(&fs::read_to_string(&log).unwrap());
    assert!(!told.is_empty() && told.iter().all(|line| line["level"] != "debug"), "{told:?}");
    let said = world.grootfs(&format!("--log-level debug --log-file {} delete filed", log.display()));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let told = lines(&fs::read_to_string(&log).unwrap());
    assert!(
        told.iter()
            .any(|line| line["level"] == "debug" && line["message"].as_str().unwrap().contains("delete"))
    );
    // The lines of a clean: on the standard error of the create, which its reader has until the clean ends, or in a file.
    let said = world.grootfs(&format!("--log-level info create --with-clean {image} heard"));
    assert!(said.code == Some(0) && said.err.contains("groot-cleaning"), "{said:?}");
    let cleaned = world.path("clean.log");
    let flags = format!("--with-clean --clean-log-file {}", cleaned.display());
    let said = world.grootfs(&format!("--log-level info create {flags} {image} unheard"));
    assert!(said.code == Some(0) && !said.err.contains("groot-cleaning"), "{said:?}");
    let started = Instant::now();
    while !fs::read_to_string(&cleaned).is_ok_and(|log| log.contains("groot-cleaning.ending")) {
        assert!(started.elapsed() < SOON);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for id in ["silent", "heard", "unheard"] {
        world.say(&format!("delete {id}"));
    }
    end(world);
}
