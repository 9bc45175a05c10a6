//! Layers with a base directory.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::image::Layout;
use super::{Cage, Tar};
use crate::{Digest, Error, Limits, Unpacked, Watch};

/// The image of one ordinary layer and one with that base directory.
fn layout(base: &str, tar: &[u8]) -> Layout {
    let layout = Layout::new();
    let below = Tar::default().file("x", b"").end();
    let annotated = format!(
        r#"{},"annotations":{{"org.cloudfoundry.experimental.image.base-directory":"{base}"}}"#,
        layout.blob(tar)
    );
    let layers = [layout.blob(&below), annotated];
    layout.index(&[layout.manifest_of(&layers, &[Digest::of(&below), Digest::of(tar)])]);
    layout
}

fn unpack(cage: &Cage, base: &str, tar: &[u8], below: &[&Path]) -> Result<Unpacked, Error> {
    let layout = layout(base, tar);
    let image = layout.open("").unwrap();
    let below: Vec<_> = below.iter().map(|dir| File::open(dir).unwrap()).collect();
    let below: Vec<_> = below.iter().map(AsFd::as_fd).collect();
    let into = File::open(cage.root()).unwrap();
    image.layers[1].unpack(into.as_fd(), &below, &Limits::default(), &Watch::default())
}

/// Unpacks a layer below.
fn below(tar: Tar) -> Cage {
    let cage = Cage::new();
    cage.unpack(&tar.end()).unwrap();
    cage
}

fn dir(tar: Tar, name: &str, mode: u32, uid: u64) -> Tar {
    tar.raw(tar::EntryType::Directory, name, "", b"", |h| {
        h.set_mode(mode);
        h.set_uid(uid);
        h.set_gid(uid + 1);
        h.set_mtime(uid);
    })
}

#[test]
fn names_and_links_are_relative_to_it() {
    let low = below(dir(dir(Tar::default(), "home", 0o751, 7), "home/vcap", 0o2770, 8));
    let top = below(dir(Tar::default(), "home", 0o700, 9));
    let tar = Tar::default()
        .file("a", b"a")
        .file("/b/c", b"c")
        .link("d", "/b/c")
        .symlink("out", "/etc")
        .file("out/inside", b"i")
        .file(".wh.gone", b"")
        .file(".wh..wh..opq", b"")
        .end();
    let cage = Cage::new();
    unpack(&cage, "/home/./vcap/", &tar, &[&top.root(), &low.root()]).unwrap();
    let attributes = |name| {
        let stat = cage.stat(name);
        (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime())
    };
    assert_eq!(attributes("home"), (0o700, 9, 10, 9), "the topmost layer counts");
    assert_eq!(attributes("home/vcap"), (0o2770, 8, 9, 8), "only the lower one has it");
    assert_eq!((cage.text("home/vcap/a"), cage.text("home/vcap/b/c")), ("a".into(), "c".into()));
    assert_eq!(cage.stat("home/vcap/d").ino(), cage.stat("home/vcap/b/c").ino());
    assert_eq!(cage.text("etc/inside"), "i");
    assert!(cage.is_whiteout("home/vcap/gone") && cage.is_opaque("home/vcap") && !cage.is_opaque("home"));
    // An entry for the directory itself.
    let cage = Cage::new();
    let own = dir(Tar::default(), "./", 0o711, 3).end();
    unpack(&cage, "home/vcap", &own, &[&top.root(), &low.root()]).unwrap();
    let stat = cage.stat("home/vcap");
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.mtime()), (0o711, 3, 3));
}

#[test]
fn hidden_or_missing_below() {
    let has = || dir(dir(Tar::default(), "home", 0o755, 1), "home/vcap", 0o755, 2);
    let full = below(has());
    let tar = Tar::default().file("a", b"").end();
    let cases = [
        ("nowhere", vec![Tar::default()]),
        ("whiteout", vec![Tar::default().file(".wh.home", b"")]),
        ("whiteout inside", vec![Tar::default().file("home/.wh.vcap", b"")]),
        ("opaque", vec![Tar::default().file("home/.wh..wh..opq", b"")]),
        ("file", vec![Tar::default().file("home", b"")]),
        ("symlink", vec![Tar::default().symlink("home/vcap", "/")]),
        ("symlink out", vec![Tar::default().symlink("home", "../../..")]),
        ("hidden further down", vec![Tar::default(), Tar::default().file(".wh.home", b"")]),
    ];
    for (what, above) in cases {
        let above: Vec<_> = above.into_iter().map(below).collect();
        let mut roots: Vec<_> = above.iter().map(Cage::root).collect();
        if what != "nowhere" {
            roots.push(full.root());
        }
        let roots: Vec<_> = roots.iter().map(std::path::PathBuf::as_path).collect();
        let result = unpack(&Cage::new(), "home/vcap", &tar, &roots);
        assert!(matches!(result, Err(Error::BaseDirectory { .. })), "{what}: {result:?}");
    }
    // Opaque hides what is below, not itself.
    let opaque = below(has().file("home/.wh..wh..opq", b""));
    unpack(&Cage::new(), "home/vcap", &tar, &[&opaque.root()]).unwrap();
    // Directories that the new layer has already stay unchanged.
    let cage = Cage::new();
    std::fs::create_dir_all(cage.root().join("home/vcap")).unwrap();
    std::fs::set_permissions(cage.root().join("home"), std::fs::Permissions::from_mode(0o123)).unwrap();
    unpack(&cage, "home/vcap", &tar, &[]).unwrap();
    assert_eq!(cage.stat("home").mode() & 0o7777, 0o123);
}

#[test]
fn hostile() {
    for base in ["..", "a/../b", "/..", ".wh.a", "a/.wh..wh..opq", "a\\u0000b"] {
        let result = layout(base, b"").open("");
        assert!(matches!(result, Err(Error::UnsafePath { .. })), "{base}: {result:?}");
    }
    for base in ["a/".repeat(257), "a".repeat(4097)] {
        assert!(matches!(layout(&base, b"").open(""), Err(Error::Limit { .. })));
    }
    let home = below(dir(Tar::default(), "home", 0o755, 0).file("secret", b"s"));
    for (what, tar) in [
        ("name", Tar::default().file("../x", b"")),
        ("link", Tar::default().link("x", "../secret")),
        ("itself as a file", Tar::default().file(".", b"")),
    ] {
        let result = unpack(&Cage::new(), "home", &tar.end(), &[&home.root()]);
        assert!(matches!(result, Err(Error::UnsafePath { .. })), "{what}: {result:?}");
    }
}

#[test]
fn is_part_of_the_chain_id() {
    let tar = Tar::default().file("a", b"").end();
    let ids: Vec<_> = ["", "/", "home", "/home/./", "home/a"]
        .map(|base| layout(base, &tar).open("").unwrap().layers[1].chain_id.clone())
        .into();
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[2], ids[3]);
    assert!(ids[0] != ids[2] && ids[2] != ids[4]);
}
