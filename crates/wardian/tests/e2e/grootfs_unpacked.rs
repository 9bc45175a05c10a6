//! What the program under the name `grootfs` makes of an image's files: contents, owners, modes, times and links, and
//! layers over layers.

use crate::grootfs::{World, inside, root};
use crate::grootfs_images::{Entry, Layer, archive, layout, tar};
use crate::support::names;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The user that is the root of the containers of a store with a mapping.
const ROOT: u32 = 4_294_967_294;
/// The other users of that mapping begin here.
const OTHERS: u32 = 100_000;

fn mapped() -> String {
    let of = |flag: &str| format!("--{flag} 0:{ROOT}:1 --{flag} 1:{OTHERS}:65000");
    format!("{} {}", of("uid-mapping"), of("gid-mapping"))
}

/// A root file system of an image with one tar; where the test sees it.
fn unpacked(world: &World, id: &str, entries: &[Entry]) -> PathBuf {
    let path = world.path(&format!("{id}.tar"));
    fs::write(&path, archive(entries)).unwrap();
    let answer = world.create(&format!("{} {id}", path.display()));
    inside(world, &root(&answer))
}

/// A root file system of an image of these layers, the lowest first.
fn layered(world: &World, id: &str, layers: &[&[Entry]]) -> PathBuf {
    let layers: Vec<Layer> = layers.iter().map(|entries| Layer::gzip(&archive(entries))).collect();
    layout(&world.path(id), &layers, &[], None);
    let answer = world.create(&format!("oci://{} {id}", world.path(id).display()));
    assert_eq!(root(&answer), world.path(&format!("st/images/{id}/rootfs")));
    inside(world, &root(&answer))
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let meta = fs::symlink_metadata(&path).unwrap();
    (meta.uid(), meta.gid())
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn end(world: World, ids: &[&str]) {
    for id in ids {
        assert_eq!(world.say(&format!("delete {id}")), format!("Image {id} deleted\n"));
    }
    world.until_clean();
    assert_eq!(world.mounts(), Vec::<String>::new());
    world.finish();
}

fn of_several_users() -> [Entry; 6] {
    [
        Entry::file("root", b"r"),
        Entry::file("file", b"x").owner(4000),
        Entry::symlink("link", "file").owner(5000),
        Entry::dir("closed/").owner(4000).mode(0o700),
        Entry::file("closed/in", b"in").owner(4000),
        Entry::file("www", b"w").owner(33),
    ]
}

#[test]
fn owners_are_those_of_the_image() {
    let world = World::new();
    world.say("init-store");
    for (id, path) in [
        ("tar", unpacked(&world, "tar", &of_several_users())),
        ("oci", layered(&world, "oci", &[&of_several_users()])),
    ] {
        for (name, user) in [("root", 0), ("file", 4000), ("link", 5000), ("closed", 4000), ("www", 33)] {
            assert_eq!(owner(path.join(name)), (user, user), "{id}: {name}");
        }
        assert_eq!(fs::read(path.join("closed/in")).unwrap(), b"in");
    }
    end(world, &["tar", "oci"]);
}

#[test]
fn owners_are_mapped_and_the_mapped_root_can_list() {
    let world = World::new();
    world.say(&format!("init-store {}", mapped()));
    for (id, path) in [
        ("tar", unpacked(&world, "tar", &of_several_users())),
        ("oci", layered(&world, "oci", &[&of_several_users()])),
    ] {
        let of = |user: u32| if user == 0 { ROOT } else { user + OTHERS - 1 };
        for (name, user) in [("root", 0), ("file", 4000), ("link", 5000), ("closed", 4000), ("www", 33)] {
            assert_eq!(owner(path.join(name)), (of(user), of(user)), "{id}: {name}");
        }
        assert_eq!((mode(path.join("closed")), mode(path.join("file"))), (0o700, 0o644));
        assert_eq!(fs::read(path.join("closed/in")).unwrap(), b"in");
        let ids = format!("--reuid {ROOT} --regid {ROOT} --clear-groups");
        let at = world.path(&format!("st/images/{id}/rootfs"));
        let listed = world.shell(&format!("setpriv {ids} ls {}", at.display()));
        assert_eq!((listed.code, listed.out.as_str()), (Some(0), "closed\nfile\nlink\nroot\nwww\n"), "{id}");
    }
    end(world, &["tar", "oci"]);
}

#[test]
fn a_tar_is_unpacked_as_it_is() {
    let world = World::new();
    world.say("init-store");
    let entries = [
        Entry::dir("open/").mode(0o777),
        Entry::file("hello", b"hello").mtime(1_400_000_000),
        Entry::dir("sub/"),
        Entry::symlink("sub/link", "../hello").mtime(1_300_000_000),
        Entry::file("setuid", b"s").mode(0o4755),
    ];
    let (one, two) = (unpacked(&world, "one", &entries), unpacked(&world, "two", &entries));
    assert_eq!(fs::read(one.join("hello")).unwrap(), b"hello");
    assert_eq!((mode(one.join("open")), mode(one.join("setuid"))), (0o777, 0o4755));
    let mtime = |name: &str| fs::symlink_metadata(one.join(name)).unwrap().mtime();
    assert_eq!((mtime("hello"), mtime("sub/link")), (1_400_000_000, 1_300_000_000));
    // The link leads where the image says.
    assert_eq!(fs::read_link(one.join("sub/link")).unwrap(), Path::new("../hello"));
    assert_eq!(fs::read(one.join("sub/link")).unwrap(), b"hello");
    // What is written to one is not in the other.
    fs::write(one.join("hello"), "changed").unwrap();
    fs::write(one.join("open/new"), "new").unwrap();
    assert_eq!(fs::read(two.join("hello")).unwrap(), b"hello");
    assert_eq!(names(&two.join("open")), Vec::<String>::new());
    end(world, &["one", "two"]);
}

#[test]
fn layers_hide_and_replace_what_is_below() {
    let world = World::new();
    world.say("init-store");
    let path = layered(
        &world,
        "many",
        &[
            &[
                Entry::file("base", b"base"),
                Entry::dir("dir/"),
                Entry::file("dir/below", b"below"),
                Entry::file("gone", b"x"),
                Entry::dir("gone-dir/"),
                Entry::file("gone-dir/x", b"x"),
                Entry::file("becomes-link", b"x"),
                Entry::file("read-only", b"1").mode(0o444),
                Entry::dir("volume/"),
            ],
            &[
                // The marker comes after a file of the same directory and layer.
                Entry::dir("dir/"),
                Entry::file("dir/same-layer", b"same"),
                Entry::file("dir/.wh..wh..opq", b""),
                Entry::file(".wh.gone", b""),
                Entry::file(".wh.gone-dir", b""),
                Entry::symlink("becomes-link", "base"),
                Entry::file("read-only", b"2").mode(0o555),
                Entry::dir("read-only-dir/").mode(0o555),
                Entry::file("read-only-dir/child", b"child"),
            ],
            &[
                // Parents that no entry makes.
                Entry::file("deep/er/file", b"deep").mode(0o600).owner(1000),
                Entry::hard_link("deep/er/hard", "deep/er/file"),
                Entry::dir("links/"),
                Entry::dir("links/nested/"),
                Entry::file("links/nested/first", b"linked"),
                Entry::hard_link("links/before", "links/nested/first"),
                Entry::hard_link("links/nested/zz", "links/before"),
                Entry::file("ping", b"p").mode(0o4711),
            ],
        ],
    );
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    assert_eq!(read("base"), b"base");
    assert_eq!(names(&path.join("dir")).len(), 1);
    assert_eq!(read("dir/same-layer"), b"same");
    for gone in ["gone", "gone-dir", ".wh.gone", "dir/.wh..wh..opq"] {
        assert!(fs::symlink_metadata(path.join(gone)).is_err(), "{gone}");
    }
    assert_eq!(
        (read("becomes-link"), fs::read_link(path.join("becomes-link")).unwrap()),
        (b"base".into(), "base".into())
    );
    assert_eq!((read("read-only"), mode(path.join("read-only"))), (b"2".into(), 0o555));
    assert_eq!((read("read-only-dir/child"), mode(path.join("read-only-dir"))), (b"child".into(), 0o555));
    assert_eq!(read("deep/er/file"), b"deep");
    assert_eq!((mode(path.join("deep/er/file")), owner(path.join("deep/er/file"))), (0o600, (1000, 1000)));
    let inode = |name: &str| {
        let meta = fs::metadata(path.join(name)).unwrap();
        (meta.ino(), meta.nlink())
    };
    assert_eq!(inode("deep/er/file"), inode("deep/er/hard"));
    assert_eq!(inode("links/before").1, 3);
    for name in ["links/nested/first", "links/nested/zz"] {
        assert_eq!(inode(name), inode("links/before"), "{name}");
    }
    assert_eq!(mode(path.join("ping")), 0o4711);
    // A declared volume is a directory as any other.
    assert!(path.join("volume").is_dir());
    end(world, &["many"]);
}

#[test]
fn any_user_can_run_a_program_of_the_image() {
    let world = World::new();
    world.say("init-store");
    let image = world.path("busybox.tar");
    wardian_lab::image::build(&image).unwrap();
    layout(&world.path("bb"), &[Layer::gzip(&fs::read(&image).unwrap())], &[], None);
    world.create(&format!("oci://{} bb", world.path("bb").display()));
    let at = world.path("st/images/bb/rootfs");
    let listed = world.shell(&format!("chroot --userspec=12345:54321 {} /bin/busybox ls /", at.display()));
    assert!(listed.code == Some(0) && listed.out.lines().any(|line| line == "bin"), "{listed:?}");
    end(world, &["bb"]);
}

#[test]
fn a_layer_that_is_there_is_used_again() {
    let world = World::new();
    world.say("init-store");
    let path = world.path("i.tar");
    fs::write(&path, tar(&[("a", b"1")])).unwrap();
    let image = path.to_str().unwrap().to_owned();
    world.create(&format!("{image} one"));
    let layers = || names(&world.path("st/layers"));
    let [layer] = <[String; 1]>::try_from(layers()).unwrap();
    let state = || fs::metadata(Path::new(&layer).join("fs")).map(|meta| (meta.ino(), meta.mtime())).unwrap();
    fs::write(Path::new(&layer).join("fs/injected"), "x").unwrap();
    let before = state();
    let two = inside(&world, &root(&world.create(&format!("{image} two"))));
    assert_eq!(fs::read(two.join("injected")).unwrap(), b"x");
    assert_eq!((layers().len(), state()), (1, before));
    // So it is for a layout, of which each layer is one.
    let several: Vec<Layer> = (0..3).map(|n| Layer::gzip(&tar(&[(["p", "q", "r"][n], b"x")]))).collect();
    layout(&world.path("oci"), &several, &[], None);
    let uri = format!("oci://{}", world.path("oci").display());
    world.create(&format!("{uri} three"));
    let all = layers();
    assert_eq!(all.len(), 4);
    world.create(&format!("{uri} four"));
    assert_eq!(layers(), all);
    // A tar with another content is another layer, and the old one goes once nobody has it.
    fs::write(&path, tar(&[("a", b"2")])).unwrap();
    let five = inside(&world, &root(&world.create(&format!("{image} five"))));
    assert_eq!(fs::read(five.join("a")).unwrap(), b"2");
    assert_eq!(layers().len(), 5);
    for id in ["one", "two"] {
        world.say(&format!("delete {id}"));
    }
    world.say("clean");
    world.until_left(3);
    assert!(!layers().contains(&layer));
    assert_eq!(layers().len(), 4);
    end(world, &["three", "four", "five"]);
}

#[test]
fn a_layer_that_is_not_what_was_promised_is_not_kept() {
    let world = World::new();
    world.say("init-store");
    let good = || Layer::gzip(&tar(&[("good", b"x")]));
    let bad = Layer::damaged(&tar(&[("bad", b"x")]));
    let other = Layer::gzip(&tar(&[("other", b"x")]));
    let wrong = Layer::gzip(&tar(&[("wrong", b"x")])).promising(&other);
    let create = |id: &str, layers: &[Layer]| {
        layout(&world.path(id), layers, &[], None);
        world.fail(&format!("create oci://{} {id}", world.path(id).display()))
    };
    let layers = || names(&world.path("st/layers"));
    let said = create("first", &[bad]);
    assert!(said.contains("digest mismatch"), "{said}");
    assert_eq!(layers(), Vec::<String>::new());
    let said = create("bogus", &[wrong]);
    assert!(said.contains("diffID digest mismatch"), "{said}");
    assert_eq!(layers(), Vec::<String>::new());
    // The layer below it may have come to stay: it is what was promised.
    create("second", &[good(), Layer::damaged(&tar(&[("bad", b"x")]))]);
    assert!(layers().len() <= 1, "{:?}", layers());
    layout(&world.path("good"), &[good()], &[], None);
    world.create(&format!("oci://{} good", world.path("good").display()));
    assert_eq!(layers().len(), 1);
    assert_eq!(world.say("list"), format!("{}\n", world.path("st/images/good").display()));
    end(world, &["good"]);
}

/// The files of the image's configuration alone: what it says of commands, users and volumes is the caller's affair.
#[test]
fn variables_are_the_only_thing_that_is_told_of_the_configuration() {
    let world = World::new();
    world.say("init-store");
    layout(&world.path("env"), &[Layer::gzip(&tar(&[("a", b"x")]))], &["PATH=/bin", "B=c=d"], None);
    let answer = world.create(&format!("oci://{} env", world.path("env").display()));
    let process: &Value = &answer["process"];
    assert_eq!(process["env"], serde_json::json!(["PATH=/bin", "B=c=d"]));
    assert_eq!((&process["cwd"], &process["user"]["uid"]), (&"".into(), &0.into()));
    assert_eq!(answer.as_object().unwrap().keys().collect::<Vec<_>>(), ["ociVersion", "process", "root"]);
    // Its path is entered by a test as root; a mode that others could use is the image's.
    assert_eq!(fs::metadata(world.path("st/images")).unwrap().permissions().mode() & 0o7, 0);
    end(world, &["env"]);
}
