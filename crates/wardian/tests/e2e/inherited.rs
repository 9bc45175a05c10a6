//! What a server keeps from other users of its host, and what containers inherit from it.

use crate::support::{Server, run, say, script};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use wardian_garden::wire::{ContainerSpec, ProcessSpec};

fn walk(dir: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        found.push((entry.path(), metadata.permissions().mode() & 0o777));
        if metadata.is_dir() {
            walk(&entry.path(), found);
        }
    }
}

/// Nobody but root reads environments and properties, whatever the umask of who starts the server.
#[tokio::test]
async fn records_are_for_root_alone() {
    let mut server = Server::start().await;
    let spec = ContainerSpec {
        handle: "c".into(),
        env: vec!["TOKEN=secret".into()],
        properties: [("key".to_owned(), "secret".to_owned())].into(),
        ..Default::default()
    };
    server.client().create(&spec).await.unwrap();
    let sleeper = crate::support::pea(server.image().to_str().unwrap(), "sleep 1000");
    let pea = server.client().run("c", &sleeper, crate::support::listen()).await.unwrap();
    let check = |server: &Server| {
        let mut found = Vec::new();
        walk(&server.run(), &mut found);
        assert!(found.len() > 5, "{found:?}");
        for (path, mode) in found {
            let socket = path == server.socket();
            assert!(socket || mode & 0o077 == 0, "{}: {mode:o}", path.display());
        }
    };
    check(&server);
    // What an earlier version has left open is closed at the start of this one.
    server.kill9();
    let mut found = Vec::new();
    walk(&server.run(), &mut found);
    // Those of root file systems have always been root's, and a container of an earlier server shows its own files from there;
    // nobody comes to a socket in a closed directory.
    let closed = |path: &Path| {
        let own = ["hosts", "resolv.conf", "keeper.sock"].iter().any(|name| path.ends_with(name));
        own || path.starts_with(server.run().join("rootfs"))
    };
    for (path, mode) in found.into_iter().filter(|(path, _)| !closed(path)) {
        let open = std::fs::Permissions::from_mode(mode | if path.is_dir() { 0o055 } else { 0o044 });
        std::fs::set_permissions(&path, open).unwrap();
    }
    server.restart().await;
    check(&server);
    let mode = std::fs::metadata(server.run()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & 0o066, 0, "{mode:o}");
    drop(pea);
    server.finish().await;
}

/// A server started with all that it should not hand on.
#[tokio::test]
async fn nothing_is_inherited_from_the_server() {
    let mut server = Server::start().await;
    server.terminate().await;
    let command = server.command();
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let set =
        "umask 000; ulimit -n 4000; ulimit -S -c unlimited; ulimit -S -s 4096; trap '' HUP USR1 CHLD PIPE";
    let mut shell = std::process::Command::new("/bin/sh");
    shell.arg("-c").arg(format!("{set}; exec {}", words.join(" ")));
    server.restart_as(shell).await;
    let client = server.client();
    for (handle, privileged) in [("u", false), ("p", true)] {
        client
            .create(&ContainerSpec { handle: handle.into(), privileged, ..Default::default() })
            .await
            .unwrap();
        for user in ["root", "vcap"] {
            let look = script("umask; ulimit -S -c; ulimit -S -s");
            let done = run(&client, handle, &ProcessSpec { user: user.into(), ..look }).await;
            assert_eq!(done.out, "0022\n0\n8192\n", "{handle} {user}: {done:?}");
            // Not by a shell, which ignores signals of its own.
            let look = ProcessSpec {
                path: "grep".into(),
                args: ["-E", "^(SigIgn|SigBlk|Groups):", "/proc/self/status"].map(str::to_owned).into(),
                user: user.into(),
                ..Default::default()
            };
            let done = run(&client, handle, &look).await;
            let words: Vec<&str> = done.out.split_whitespace().collect();
            let none = "0000000000000000";
            assert_eq!(words, ["Groups:", "SigBlk:", none, "SigIgn:", none], "{handle} {user}: {done:?}");
        }
        // Pid 1 as well.
        let status = say(&client, handle, "grep -E '^(Umask|SigIgn|SigBlk|Groups):' /proc/1/status").await;
        let words: Vec<&str> = status.split_whitespace().collect();
        let expected =
            ["Umask:", "0022", "Groups:", "SigBlk:", "0000000000000000", "SigIgn:", "0000000000000000"];
        assert_eq!(words, expected, "{handle}");
    }
    server.finish().await;
}
