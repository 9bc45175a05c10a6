//! What root's `cp` may be led to by links that others have moved, what it makes on the host, and what it takes of a container.

use crate::commands::command;
use crate::host_files::{cp, cp_out, give, hers_and_roots, place};
use crate::support::{Server, say};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use wardian_garden::Io;
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
    // Into a directory such as /tmp, too; one of root's that is there is no such place.
    let link = tempfile::Builder::new().make_in("/tmp", |path| symlink(&roots, path)).unwrap();
    assert_eq!(cp(&server, &link.path().join("key"), "h:/tmp").code, Some(1));
    let own = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    symlink(&roots, own.path().join("link")).unwrap();
    assert_eq!(cp(&server, &own.path().join("link/key"), "h:/tmp").code, Some(0));
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
        idmap: false,
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
    // The length that stat(2) tells of it is another one.
    for path in ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let to = base.path().join("made-up");
        assert_eq!(cp_out(&server, &format!("h:{path}"), &to).code, Some(0), "{path}");
        let copied = fs::read_to_string(&to).unwrap();
        assert_eq!(copied.trim_end(), say(&client, "h", &format!("cat {path}")).await, "{path}");
        assert!(!copied.is_empty() && !copied.contains('\0'), "{path}: {copied:?}");
    }
    server.finish().await;
}

/// A bind mount with what is root's of the host, among files of everybody's.
#[tokio::test]
async fn what_cannot_be_read_is_named_and_the_rest_is_copied() {
    let server = Server::start().await;
    let base = place();
    let shared = base.path().join("shared");
    fs::create_dir_all(shared.join("c-closed/d")).unwrap();
    for name in ["a", "b-secret", "c-closed/d/f", "z"] {
        fs::write(shared.join(name), format!("of {name}")).unwrap();
    }
    fs::set_permissions(shared.join("b-secret"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(shared.join("c-closed"), PermissionsExt::from_mode(0o700)).unwrap();
    let bind = BindMount {
        src_path: shared.to_str().unwrap().into(),
        dst_path: "/mnt/shared".into(),
        mode: 0,
        origin: 0,
        idmap: false,
    };
    let client = server.client();
    let spec = ContainerSpec { handle: "h".into(), bind_mounts: vec![bind], ..Default::default() };
    client.create(&spec).await.unwrap();
    let named = |said: &str, above: &str| {
        assert!(said.contains("2 entries could not be read"), "{said}");
        for name in ["b-secret", "c-closed"] {
            assert!(said.contains(&format!("{above}{name}: Permission denied")), "{name}: {said}");
        }
        assert!(!said.contains("cut off"), "{said}");
    };
    let copied = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "z"]);
        assert_eq!(fs::read_to_string(dir.join("z")).unwrap(), "of z");
    };
    for (from, name, below, above) in [
        ("h:/mnt/shared", "one", "", "shared/"),
        ("h:/mnt/shared/.", "contents", "", "./"),
        ("h:/", "root", "mnt/shared", "mnt/shared/"),
    ] {
        let to = base.path().join(name);
        let said = cp_out(&server, from, &to);
        assert_eq!(said.code, Some(1), "{said:?}");
        named(&said.err, above);
        copied(&to.join(below));
    }
    // The tar for others is whole in its form, and its end is that of a failure.
    let tar = command(&server, &["cp", "h:/mnt/shared", "-"]).output().unwrap();
    let said = String::from_utf8_lossy(&tar.stderr);
    assert!(tar.status.code() == Some(1) && said.contains("something is missing in the tar"), "{said}");
    named(&said, "shared/");
    assert!(tar.stdout.ends_with(&[0; 1024]));
    tar::Archive::new(&tar.stdout[..]).unpack(base.path().join("tar")).unwrap();
    copied(&base.path().join("tar/shared"));
    // A client of Garden's sees a body that is broken off.
    let mut stream = server.connect();
    let line = "GET /containers/h/files?source=%2Fmnt%2Fshared&user= HTTP/1.1\r\nHost: api\r\n\r\n";
    stream.write_all(line.as_bytes()).unwrap();
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(!reply.ends_with(b"\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&reply));
    // What was asked for itself is an error.
    let to = base.path().join("none");
    for path in ["b-secret", "c-closed", "missing"] {
        let said = cp_out(&server, &format!("h:/mnt/shared/{path}"), &to);
        assert!(said.code == Some(1) && !said.err.contains("all else"), "{said:?}");
        assert!(said.err.contains(path) && !to.exists(), "{said:?}");
    }
    server.finish().await;
}

#[tokio::test]
async fn files_that_come_and_go_end_no_copy() {
    let server = Server::start().await;
    let client = server.create("h").await;
    say(
        &client,
        "h",
        "mkdir /d; echo y >/d/a; echo y >/d/z; dd if=/dev/zero of=/d/big bs=1M count=8 2>/dev/null",
    )
    .await;
    // Directories as well: their entries are gone before they are looked at.
    let code = "while true; do for n in 1 2 3 4 5 6 7 8 9; do mkdir -p /d/d$n/e; : >/d/d$n/f; : >/d/f$n; \
                    ln -s x /d/l$n; done; rm -rf /d/d? /d/f? /d/l?; done";
    let process = client.run("h", &crate::support::script(code), Io::default()).await.unwrap();
    let base = place();
    for n in 0..12 {
        let to = base.path().join(n.to_string());
        let said = cp_out(&server, "h:/d/.", &to);
        assert!(said.code == Some(0) || said.code == Some(1), "{said:?}");
        assert_eq!(said.code == Some(1), said.err.contains("could not be read"), "{said:?}");
        for name in ["a", "z"] {
            assert_eq!(fs::read_to_string(to.join(name)).unwrap(), "y\n", "{n}: {said:?}");
        }
        assert_eq!(to.join("big").metadata().unwrap().len(), 8 << 20);
    }
    drop(process);
    server.finish().await;
}

#[tokio::test]
async fn proc_is_copied_but_for_what_cannot_be_read() {
    let server = Server::start().await;
    let client = server.create("h").await;
    let base = place();
    let to = base.path().join("d");
    let said = cp_out(&server, "h:/proc", &to);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.err.contains("proc/1/auxv: ") && said.err.lines().last().unwrap().contains(" more"),
        "{said:?}"
    );
    let version = fs::read_to_string(to.join("version")).unwrap();
    assert_eq!(version.trim_end(), say(&client, "h", "cat /proc/version").await);
    assert!(to.join("uptime").exists() && to.join("1/comm").exists());
    server.finish().await;
}

/// The server would tell of a damaged tar.
#[tokio::test]
async fn what_is_no_tar_is_told_before_it_is_sent() {
    let server = Server::start().await;
    let client = server.create("h").await;
    let said = cp(&server, "/dev/null".as_ref(), "h:/tmp/null");
    assert!(said.code == Some(1) && said.err.contains("/dev/null is a device"), "{said:?}");
    let base = place();
    fs::write(base.path().join("f"), "x").unwrap();
    let piped = |command_line: &str| {
        let wardian = command(&server, &["cp", "-", "h:/tmp"]);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("{command_line} | \"$0\" \"$@\"")]).arg(wardian.get_program());
        shell.args(wardian.get_args()).env("WARDIAN_SOCKET", server.socket()).current_dir(base.path());
        let output = shell.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (command_line, told) in [
        ("true", "standard input is empty"),
        ("tar c f | gzip", "compressed by gzip"),
        ("tar c f | xz", "compressed by xz"),
    ] {
        let (code, said) = piped(command_line);
        assert!(code == Some(1) && said.contains(told), "{command_line}: {said}");
    }
    assert_eq!(say(&client, "h", "ls /tmp").await, "");
    // Its first bytes were read by the command, one of them alone.
    let (code, said) = piped("tar c f | { dd bs=1 count=1 2>/dev/null; sleep 0.2; cat; }");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(say(&client, "h", "cat /tmp/f").await, "x");
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
        let bind =
            |n| BindMount { src_path: src_path.clone(), dst_path: path(n), mode: 0, origin: 0, idmap: false };
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
