//! Things that other users put into a run directory before a server's first start, where they may: on a tmpfs that was mounted
//! with its usual mode, 1777.

use crate::support::{Server, WARDIAN, names, say};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

const NOBODY: u32 = 65534;
const OURS: [&str; 10] = [
    "lock",
    ".lock.guard",
    ".lock.new",
    ".mount.guard",
    "instance.json",
    "instance.json.new",
    "garden.sock",
    "pool",
    "containers",
    "rootfs",
];

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn empty(run: &Path) {
    for entry in std::fs::read_dir(run).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        } else {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn directory(path: &Path) {
    std::fs::create_dir_all(path.join("below")).unwrap();
}

fn file(path: &Path) {
    std::fs::write(path, "").unwrap();
}

/// A process of hers answers there.
fn socket(path: &Path) {
    std::mem::forget(UnixListener::bind(path).unwrap());
}

#[tokio::test]
async fn nothing_that_was_planted_keeps_a_server_down() {
    let mut server = Server::start().await;
    let run = server.run();
    let reset = ["reset", "--yes", "--root", server.root().to_str().unwrap(), "--run", run.to_str().unwrap()]
        .map(str::to_owned);
    for plant in [directory, file, socket] {
        server.terminate().await;
        empty(&run);
        set_mode(&run, 0o1777);
        for name in OURS {
            plant(&run.join(name));
            chown(run.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        server.restart().await;
        server.create("c").await;
        assert_eq!(say(&server.client(), "c", "echo lives").await.trim(), "lives");
        for name in OURS {
            let stat = std::fs::symlink_metadata(run.join(name));
            assert!(
                stat.is_ok_and(|stat| stat.uid() == 0) || name.starts_with('.') || name.ends_with(".new"),
                "{name}"
            );
        }
        assert_eq!(std::fs::metadata(&run).unwrap().mode() & 0o7777, 0o711);
        // What she can go on filling is out of the way, and not taken apart.
        let aside = names(&run).into_iter().filter(|name| name.starts_with(".planted.")).count();
        assert!(aside == 0 || std::fs::metadata(run.join(".planted.0/below")).is_ok(), "{aside}");
        // A server that is started again is at home in the directory.
        server.kill9();
        server.restart().await;
        server.client().destroy("c").await.unwrap();
        // A reset is not kept from its work either, in a directory that others could write to once.
        server.terminate().await;
        for name in ["lock", ".lock.guard", ".lock.new", "instance.json.new", "pool"] {
            let path = run.join(name);
            let _ = std::fs::remove_file(&path);
            let _ = std::fs::remove_dir_all(&path);
            plant(&path);
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let out = Command::new(WARDIAN).args(&reset).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::create_dir_all(&run).unwrap();
        server.restart().await;
    }
    server.finish().await;
}
