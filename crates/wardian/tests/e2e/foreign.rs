//! Directories, mounts and devices of somebody else, named by mistake: nothing is deleted, unmounted or replaced.

use crate::cli::Said;
use crate::commands::command;
use crate::support::{NETWORK, Server, WARDIAN, mounts, names, say};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn wardian(args: &[&str], root: &Path, run: &Path) -> Said {
    let mut command = Command::new(WARDIAN);
    command
        .args(args)
        .arg("--root")
        .arg(root)
        .arg("--run")
        .arg(run)
        .env("WARDIAN_LOG", "info")
        .env(NETWORK, "none");
    command.stdin(Stdio::null()).output().unwrap().into()
}

fn reset(root: &Path, run: &Path) -> Said {
    wardian(&["reset", "--yes", "--images"], root, run)
}

/// A disk of an operator: a tmpfs with a file in it, for the test alone.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "operators"]).arg(&at).status().unwrap();
        assert!(status.success());
        fs::write(at.join("precious"), "data").unwrap();
        Self(at)
    }

    fn is_whole(&self) -> bool {
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounted.contains(&format!(" {} ", self.0.display()))
            && fs::read_to_string(self.0.join("precious")).unwrap() == "data"
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // By its own path, and nothing below it.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Directories of another program that has names as ours are.
fn another_programs(base: &Path) -> PathBuf {
    let dir = base.join("theirs");
    for name in ["trash", "staging", "layers", "rootfs", "containers", "pool"] {
        fs::create_dir_all(dir.join(name).join("inner")).unwrap();
        fs::write(dir.join(name).join("inner/precious"), "data").unwrap();
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn is_whole(dir: &Path) -> bool {
    let inner = |name: &str| fs::read_to_string(Path::new(name).join("inner/precious")).ok();
    let all = names(dir);
    all.len() == 6
        && all.iter().all(|name| inner(name).as_deref() == Some("data"))
        && fs::metadata(dir).unwrap().mode() & 0o777 == 0o755
}

#[test]
fn reset_touches_no_directory_that_is_not_ours() {
    for of in ["/var/tmp", "/dev/shm"] {
        let base = tempfile::tempdir_in(of).unwrap();
        let (dir, empty) = (another_programs(base.path()), base.path().join("new"));
        let disk = Disk::mount(base.path().join("theirs-too/disk"));
        let above = disk.0.parent().unwrap();
        for (root, run, says) in [
            (&*dir, &*empty, "is no store of wardian"),
            (&*empty, &*dir, "is no run directory of wardian"),
            (above, &*empty, "is no store of wardian"),
            (&*empty, above, "is no run directory of wardian"),
        ] {
            let said = reset(root, run);
            assert!(said.code == Some(1) && said.err.contains(says), "{said:?}");
            assert!(said.err.contains("Nothing was touched; name "), "{said:?}");
            assert!(is_whole(&dir) && disk.is_whole() && !empty.exists());
        }
        // Nothing is there, and nothing is made.
        let said = reset(&empty, &empty.join("run"));
        assert!(said.code == Some(0) && said.out == "there was nothing to remove\n", "{said:?}");
        fs::create_dir(&empty).unwrap();
        let said = reset(&base.path().join("none"), &empty);
        assert!(said.code == Some(0) && said.out == "there was nothing to remove\n", "{said:?}");
    }
}

#[test]
fn no_server_and_no_command_takes_a_directory_that_is_not_ours() {
    for of in ["/var/tmp", "/dev/shm"] {
        let base = tempfile::tempdir_in(of).unwrap();
        let (dir, new) = (another_programs(base.path()), base.path().join("new"));
        let socket = format!("unix:{}/socket", base.path().display());
        let serve = ["serve", "--listen", &socket];
        let said = wardian(&serve, &new, &dir);
        assert!(said.code != Some(0) && said.err.contains("is no run directory of wardian"), "{said:?}");
        assert!(is_whole(&dir) && mounts(&[&dir]).is_empty());
        for args in [&serve[..], &["store", "reap", "--wait"], &["image", "ls"]] {
            let said = wardian(args, &dir, &base.path().join("run"));
            assert!(
                said.code != Some(0) && said.err.contains("is no store of wardian"),
                "{args:?}: {said:?}"
            );
            assert!(is_whole(&dir), "{args:?}");
        }
    }
}

#[tokio::test]
async fn reset_deletes_nothing_below_a_mount_of_somebody_else() {
    let mut server = Server::start().await;
    server.create("h").await;
    server.kill9();
    // In the store, in the run directory, and where a root file system would be attached.
    for place in [
        server.root().join("trash/disk"),
        server.run().join("containers/disk"),
        server.run().join("rootfs/disk"),
    ] {
        let disk = Disk::mount(place);
        let said = reset(&server.root(), &server.run());
        assert!(said.code == Some(1) && said.err.contains("is mounted by somebody else"), "{said:?}");
        assert!(said.err.contains(&format!("umount {}", disk.0.display())), "{said:?}");
        assert!(disk.is_whole() && server.run().join("instance.json").exists());
        let at = disk.0.clone();
        drop(disk);
        fs::remove_dir(at).unwrap();
    }
    let said = reset(&server.root(), &server.run());
    assert_eq!(said.code, Some(0), "{said:?}");
    for line in ["containers: h\n", "the records of the run directory\n", "the store with its images\n"] {
        assert!(said.out.contains(line), "{line}: {said:?}");
    }
    assert!(!server.root().exists());
    // Records alone are something, and a store that is not there is nothing.
    fs::create_dir_all(server.run()).unwrap();
    let instance = serde_json::json!({"tag": "t", "root": server.root(), "pid": 1});
    fs::write(server.run().join("instance.json"), instance.to_string()).unwrap();
    let said = reset(&server.root(), &server.run());
    assert_eq!(said.out, "removed:\nthe records of the run directory\n", "{said:?}");
    let said = reset(&server.root(), &server.run());
    assert_eq!(said.out, "there was nothing to remove\n", "{said:?}");
    fs::create_dir_all(server.run()).unwrap();
    server.restart().await;
    server.finish().await;
}

#[tokio::test]
async fn a_copy_replaces_no_device() {
    let server = Server::start().await;
    let client = server.create("h").await;
    say(&client, "h", "mkdir /d; echo x >/d/null; echo x >/d/fifo").await;
    let dir = server.base().join("to");
    fs::create_dir(&dir).unwrap();
    // A device of the test's own, with the numbers of /dev/null.
    for (name, kind) in [("null", &["c", "1", "3"][..]), ("fifo", &["p"])] {
        assert!(Command::new("mknod").arg(dir.join(name)).args(kind).status().unwrap().success());
    }
    let copy = |from: &str, to: &Path| -> Said {
        command(&server, &["cp", from, to.to_str().unwrap()]).output().unwrap().into()
    };
    for (name, what) in [("null", "is a device"), ("fifo", "is a FIFO")] {
        let from = format!("h:/d/{name}");
        // By its own name, into its directory, and with others.
        for (from, to) in [(&*from, &*dir.join(name)), (&*from, &*dir)] {
            let said = copy(from, to);
            assert!(said.code == Some(1) && said.err.contains(what), "{said:?}");
        }
        assert_eq!(copy("h:/d/.", &dir).code, Some(1));
    }
    assert!(fs::symlink_metadata(dir.join("null")).unwrap().file_type().is_char_device());
    assert!(fs::symlink_metadata(dir.join("fifo")).unwrap().file_type().is_fifo());
    fs::write(dir.join("file"), "old").unwrap();
    assert_eq!(copy("h:/d/null", &dir.join("file")).code, Some(0));
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "x\n");
    server.finish().await;
}
