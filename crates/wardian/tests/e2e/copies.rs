//! What root's `cp` may be led to by links that others have moved, what it makes on the host, and what it takes of a container.

use crate::commands::command;
use crate::host_files::{cp, cp_out, give, hers_and_roots, place};
use crate::support::{Server, say};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::process::Command;
use wardian_garden::wire::{BindMount, ContainerSpec};

#[tokio::test]
async fn a_link_of_roots_in_a_users_directory_leads_no_copy() {
    let server = Server::start().await;
    let client = server.create("h").await;
    say(&client, "h", "mkdir /d; echo x >/d/f").await;
    let base = place();
    let (hers, roots) = hers_and_roots(base.path());
    give(&hers);
    // As if she had moved it there: it is root's.
    symlink(&roots, hers.join("link")).unwrap();
    for said in [
        cp_out(&server, "h:/d", &hers.join("link")),
        cp_out(&server, "h:/d/.", &hers.join("link/new")),
        cp(&server, &hers.join("link/key"), "h:/tmp"),
        cp(&server, &hers.join("link/."), "h:/tmp"),
    ] {
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains("name the directory that it should lead to"), "{said:?}");
    }
    assert_eq!(fs::read_dir(&roots).unwrap().count(), 1);
    assert_eq!(say(&client, "h", "ls /tmp").await, "");
    // In a directory such as /tmp nobody moves what is root's.
    let link = tempfile::Builder::new().make_in("/tmp", |path| symlink(&roots, path)).unwrap();
    assert_eq!(cp(&server, &link.path().join("key"), "h:/tmp").code, Some(0));
    // And where it is hers to lead it, only to what it is.
    chown(&hers, Some(0), Some(0)).unwrap();
    assert_eq!(cp_out(&server, "h:/d", &hers.join("link")).code, Some(0));
    assert!(roots.join("d/f").exists());
    server.finish().await;
}

#[tokio::test]
async fn the_umask_holds_for_files_and_directories() {
    let server = Server::start().await;
    let client = server.create("h").await;
    say(&client, "h", "mkdir -p /d/open /d/closed; chmod 777 /d/open; chmod 500 /d/closed; touch /d/open/f; chmod 666 /d/open/f").await;
    let base = place();
    let mut seen = Vec::new();
    for umask in ["077", "022", "000"] {
        let to = base.path().join(umask);
        for (from, name) in [("h:/d", "one"), ("h:/d/.", "contents")] {
            let wardian = command(&server, &["cp", from, to.join(name).to_str().unwrap()]);
            let args: Vec<_> = wardian.get_args().map(std::ffi::OsStr::to_owned).collect();
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", &format!("umask {umask}; mkdir -p {}; exec \"$0\" \"$@\"", to.display())]);
            shell.arg(wardian.get_program()).args(args).env("WARDIAN_SOCKET", server.socket());
            let output = shell.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let mode = |path: &str| to.join(name).join(path).metadata().unwrap().mode() & 0o7777;
            seen.push([mode(""), mode("open"), mode("closed"), mode("open/f")]);
        }
    }
    // The directory `one` is the container's, `contents` is a new one.
    let expected = [
        [0o700, 0o700, 0o500, 0o600],
        [0o700, 0o700, 0o500, 0o600],
        [0o755, 0o755, 0o500, 0o644],
        [0o755, 0o755, 0o500, 0o644],
        [0o755, 0o755, 0o500, 0o666],
        [0o777, 0o755, 0o500, 0o666],
    ];
    assert_eq!(seen, expected, "{seen:?}");
    server.finish().await;
}

#[tokio::test]
async fn a_whole_container_is_copied_without_what_the_kernel_makes_up() {
    let server = Server::start().await;
    let base = place();
    let shared = base.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("f"), "of the host").unwrap();
    let bind = |dst: &str| BindMount {
        src_path: shared.to_str().unwrap().into(),
        dst_path: dst.into(),
        mode: 0,
        origin: 0,
    };
    let spec =
        ContainerSpec { handle: "h".into(), bind_mounts: vec![bind("/mnt/shared")], ..Default::default() };
    let client = server.client();
    client.create(&spec).await.unwrap();
    say(&client, "h", "mkdir /d; echo x >/d/f; echo y >/dev/shm/f").await;
    for (from, name) in [("h:/", "root"), ("h:/.", "dot")] {
        let to = base.path().join(name);
        let said = cp_out(&server, from, &to);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.err.contains("left out: what is in /proc and /sys"), "{said:?}");
        for (path, text) in [("d/f", "x\n"), ("dev/shm/f", "y\n"), ("mnt/shared/f", "of the host")] {
            assert_eq!(fs::read_to_string(to.join(path)).unwrap(), text, "{path}");
        }
        assert!(to.join("etc/passwd").exists() && to.join("etc/resolv.conf").exists());
        for path in ["proc", "sys"] {
            assert_eq!(fs::read_dir(to.join(path)).unwrap().count(), 0, "{path}");
        }
    }
    let tar = command(&server, &["cp", "h:/", "-"]).output().unwrap();
    let said = String::from_utf8_lossy(&tar.stderr);
    assert!(tar.status.success() && said.contains("left out: what is in /proc and /sys"), "{said}");
    // What is asked for by its name is copied.
    let to = base.path().join("version");
    assert_eq!(cp_out(&server, "h:/proc/version", &to).code, Some(0));
    server.finish().await;
}

/// Their destinations reach the container's keeper in one message, of which the kernel takes so much.
#[tokio::test]
async fn bind_mounts_with_long_paths_fit_or_are_refused() {
    let server = Server::start().await;
    let client = server.client();
    let base = place();
    fs::write(base.path().join("f"), "text").unwrap();
    // 768 bytes in the message each: 128 of them are all that it holds.
    let binds = |length: usize| -> Vec<BindMount> {
        let deep = format!("/{}/", "d".repeat(200)).repeat(10);
        let path = |n: usize| format!("{}/{n:03}", &deep[..length - 4]);
        let src_path = base.path().join("f").to_str().unwrap().to_owned();
        let bind = |n| BindMount { src_path: src_path.clone(), dst_path: path(n), mode: 0, origin: 0 };
        (0..128).map(bind).collect()
    };
    let spec = |handle: &str, length| ContainerSpec {
        handle: handle.into(),
        bind_mounts: binds(length),
        ..Default::default()
    };
    let error = client.create(&spec("refused", 766)).await.unwrap_err().to_string();
    assert!(error.contains("bind_mounts.dst_path of all together: 98432 bytes, of which 98304"), "{error}");
    assert!(client.list(&Default::default()).await.unwrap().is_empty());
    let most = spec("h", 765);
    client.create(&most).await.unwrap();
    assert_eq!(say(&client, "h", &format!("cat {}", most.bind_mounts[127].dst_path)).await, "text");
    server.finish().await;
}
