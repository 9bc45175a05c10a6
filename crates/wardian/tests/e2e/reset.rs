//! Everything gone: at a start that was told so, and by `wardian reset`.

use crate::equipped::{all, equip, is_broken};
use crate::support::{Server, WARDIAN, cgroups, describe, init, members, mounts, names, parent, signal};
use rustix::process::Signal;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// A container that is whole, and one whose keeper was killed.
async fn whole_and_broken(server: &Server) {
    equip(server, "whole").await;
    equip(server, "broken").await;
    signal(parent(init(server, "broken").await).unwrap(), Signal::KILL);
    is_broken(server, "broken").await;
}

#[tokio::test]
async fn a_start_can_destroy_what_was_left() {
    let mut server = Server::start().await;
    for by_file in [false, true] {
        whole_and_broken(&server).await;
        server.kill9();
        if by_file {
            let file = server.base().join("wardian.toml");
            std::fs::write(&file, "destroy-containers-on-startup = true\n").unwrap();
            server.args = vec!["--config".into(), file.to_str().unwrap().into()];
        } else {
            server.args = vec!["--destroy-containers-on-startup".into()];
        }
        server.restart().await;
        // Before anybody was served.
        assert_eq!(server.client().list(&all()).await.unwrap(), Vec::<String>::new());
        assert_eq!(names(&server.run().join("containers")), Vec::<String>::new());
        // A killed process is a member for a moment longer.
        let init = |pid: &u32| Some(describe(pid)).filter(|process| process.contains("init"));
        server.until_empty("inits", || members(&server.group()).iter().filter_map(init).collect()).await;
    }
    server.create("after").await;
    // Only what is there at the start.
    assert_eq!(server.client().list(&all()).await.unwrap(), ["after"]);
    server.finish().await;
}

fn reset(server: &Server, args: &[&str]) -> Output {
    let mut command = Command::new(WARDIAN);
    command.arg("reset").arg("--root").arg(server.root()).arg("--run").arg(server.run()).args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn nothing_lives(server: &Server) {
    server.until_empty("processes", || members(&server.group()).iter().map(describe).collect()).await;
    assert_eq!(cgroups(&server.group()), Vec::<String>::new());
    assert_eq!(mounts(&[server.base(), &server.run()]), Vec::<String>::new());
    assert_eq!(names(&server.run()), Vec::<String>::new());
    for name in ["rootfs", "trash", "staging"] {
        assert_eq!(names(&server.root().join(name)), Vec::<String>::new());
    }
}

#[tokio::test]
async fn reset_removes_everything() {
    let mut server = Server::start().await;
    whole_and_broken(&server).await;
    let attached = Command::new(WARDIAN)
        .args(["rootfs", "create", server.image().to_str().unwrap(), "mine", "--root"])
        .arg(server.root())
        .arg("--run")
        .arg(server.run())
        .output()
        .unwrap();
    assert!(attached.status.success(), "{attached:?}");

    let refused = reset(&server, &["--yes"]);
    assert!(!refused.status.success() && said(&refused).contains("stop the server first"), "{refused:?}");
    server.kill9();
    let unasked = reset(&server, &[]);
    assert!(!unasked.status.success() && said(&unasked).contains("say --yes"), "{unasked:?}");
    assert!(!members(&server.group()).is_empty());

    let done = reset(&server, &["--yes"]);
    assert!(done.status.success(), "{done:?}");
    for words in ["containers: broken, whole", "processes killed", "cgroups", "1 mounts"] {
        assert!(said(&done).contains(words), "{words}: {}", said(&done));
    }
    nothing_lives(&server).await;
    assert!(!names(&server.root().join("layers")).is_empty());
    let again = reset(&server, &["--yes", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&json["processes"], &json["trees"]), (&0.into(), &0.into()), "{json}");

    // The store is as good as before.
    std::fs::create_dir_all(server.run()).unwrap();
    server.restart().await;
    equip(&server, "next").await;
    server.kill9();
    let done = reset(&server, &["--yes", "--images"]);
    assert!(done.status.success() && said(&done).contains("the store with its images"), "{done:?}");
    nothing_lives(&server).await;
    assert!(!server.root().exists(), "{:?}", names(&server.root()));
    std::fs::create_dir_all(server.run()).unwrap();
    server.restart().await;
    server.create("last").await;
    server.finish().await;
}

#[tokio::test]
async fn reset_asks_on_a_terminal() {
    let mut server = Server::start().await;
    server.create("c").await;
    server.kill9();
    for (answer, code) in [("n", 1), ("y", 0)] {
        // A terminal of its own.
        let line =
            format!("{WARDIAN} reset --root {} --run {}", server.root().display(), server.run().display());
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{answer}").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains("Go on? [y/N]"), "{}", said(&output));
        assert_eq!(said(&output).contains("nothing was done"), answer == "n", "{}", said(&output));
        assert_eq!(server.run().join("containers").exists(), answer == "n");
    }
    nothing_lives(&server).await;
    std::fs::create_dir_all(server.run()).unwrap();
    server.restart().await;
    server.finish().await;
}
