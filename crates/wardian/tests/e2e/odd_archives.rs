//! Odd but legal tars streamed into a container are what GNU tar makes of them.

#[path = "../../../archive/tests/odd/mod.rs"]
mod archives;

use self::archives::{Odd, archive, compare, scratch, tree, unpack_by_tar};
use crate::support::{Server, header, init, say, sh};
use std::io::Cursor;
use std::path::Path;
use wardian_garden::Client;

async fn stream_in(client: &Client, user: &str, to: &str, tar: Vec<u8>) -> wardian_garden::Result<()> {
    let length = Some(tar.len() as u64);
    client.stream_in("c", user, to, Cursor::new(tar), length).await
}

/// What differs on purpose is not compared: everything belongs to the user; nothing sets a user or group id, as with
/// `--no-same-permissions`; devices and names with `..` are refused.
fn check(ours: &Path, odd: &Odd) {
    let theirs = scratch();
    unpack_by_tar(&odd.tar, theirs.path(), &["--no-same-owner", "--no-same-permissions"]);
    let (ours, theirs) = (tree(ours, odd, false, 0o777), tree(theirs.path(), odd, false, 0o777));
    compare(&ours, &theirs, &odd.story);
}

async fn rounds(seeds: std::ops::Range<u64>) {
    let server = Server::start().await;
    let client = server.create("c").await;
    let root = format!("/proc/{}/root", init(&server, "c").await);
    for seed in seeds {
        let odd = archive(seed, false);
        say(&client, "c", "rm -rf /w; mkdir /w").await;
        let done = stream_in(&client, "root", "/w", odd.tar.clone()).await;
        done.unwrap_or_else(|e| panic!("{e:?}\n{}", odd.story));
        check(&Path::new(&root).join("w"), &odd);
    }
    server.finish().await;
}

#[tokio::test]
async fn odd_archives_are_what_tar_makes_of_them() {
    rounds(0..100).await;
}

/// Minutes: for `./dev test --long`.
#[tokio::test]
#[ignore = "long"]
async fn many_odd_archives_are_what_tar_makes_of_them() {
    rounds(100..5100).await;
}

/// The later entry counts, and what is there stays where it could be lost.
#[tokio::test]
async fn an_entry_that_is_there_twice() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let entries = |list: &[(tar::EntryType, &str, &str, u32)]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (kind, name, link, mode) in list {
            let data = if *kind == tar::EntryType::Regular { *link } else { "" };
            let mut header = header(data.len());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            tar.append(&header, data.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    };
    use tar::EntryType::{Directory, Link, Regular};
    let tar = entries(&[
        (Regular, "a", "file", 0o644),
        (Directory, "a", "", 0o700),
        (Regular, "a/in", "kept", 0o644),
        (Directory, "a", "", 0o755),
        (Directory, "b", "", 0o755),
        (Regular, "b", "file", 0o644),
        (Link, "b", "b", 0o644),
    ]);
    stream_in(&client, "root", "/w", tar).await.unwrap();
    assert_eq!(say(&client, "c", "stat -c %a /w/a; cat /w/a/in /w/b").await, "755\nkeptfile");
    // A user's directory is closed by its own mode, and the mode of one in it comes all the same, in whatever order they are named.
    say(&client, "c", "mkdir -m 777 /u").await;
    let tar = entries(&[(Directory, "a", "", 0o755), (Directory, "a/b", "", 0o500), (Directory, "a", "", 0)]);
    stream_in(&client, "1000", "/u", tar).await.unwrap();
    assert_eq!(say(&client, "c", "stat -c %a /u/a /u/a/b").await, "0\n500");
    // A directory that has something in it may hold what is in no archive.
    let tar = entries(&[(Regular, "a", "file", 0o644)]);
    let error = stream_in(&client, "root", "/w", tar).await.unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(say(&client, "c", "cat /w/a/in").await, "kept");
    server.finish().await;
}

/// Capabilities are root's to set: for another user they are left out, and the rest is unpacked.
#[tokio::test]
async fn an_attribute_that_the_user_may_not_set_is_left_out() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let root = format!("/proc/{}/root", init(&server, "c").await);
    say(&client, "c", "mkdir -m 777 /w").await;
    let mut capability = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
    capability.resize(20, 0);
    let mut tar = tar::Builder::new(Vec::new());
    let pairs = [("SCHILY.xattr.security.capability", &capability[..]), ("SCHILY.xattr.user.note", b"note")];
    tar.append_pax_extensions(pairs).unwrap();
    let mut header = header(1);
    header.as_old_mut().name[..1].copy_from_slice(b"f");
    header.set_cksum();
    tar.append(&header, &b"x"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    for (user, kept) in [("1000", false), ("root", true)] {
        stream_in(&client, user, &format!("/w/{user}"), tar.clone()).await.unwrap();
        let file = format!("{root}/w/{user}/f");
        let mut value = [0; 64];
        let note = rustix::fs::lgetxattr(&file, "user.note", &mut value[..]);
        assert_eq!(note.map(|n| value[..n].to_vec()), Ok(b"note".to_vec()), "{user}");
        let set = rustix::fs::lgetxattr(&file, "security.capability", &mut value[..]).is_ok();
        assert_eq!(set, kept, "{user}");
        assert_eq!(sh(&client, "c", &format!("cat /w/{user}/f")).await.out, "x");
    }
    server.finish().await;
}

/// GNU tar refuses a number of blanks; docker and Python's tarfile take it for 0.
#[tokio::test]
async fn empty_numbers_are_zero() {
    let server = Server::start().await;
    let client = server.create("c").await;
    for (fill, name) in [(0, "nul"), (b' ', "blank")] {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = header(0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[100..148].fill(fill);
        header.set_cksum();
        // Its size is 0, whatever the crate reads there.
        tar.get_mut().extend(header.as_bytes());
        let tar = tar.into_inner().unwrap();
        stream_in(&client, "root", "/w", tar).await.unwrap();
        assert_eq!(say(&client, "c", &format!("stat -c '%a %Y %s' /w/{name}")).await.trim(), "0 0 0");
    }
    server.finish().await;
}
