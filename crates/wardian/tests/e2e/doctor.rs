//! What `wardian doctor` finds, and what a server leaves.

use crate::support::{Server, WARDIAN, cgroups};
use std::process::Command;

fn leaks(server: &Server) -> (Option<i32>, String) {
    let output =
        Command::new(WARDIAN).args(["doctor", "--leaks", "--run"]).arg(server.run()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Other servers come and go beside this test: only what is said of this one counts.
fn mine(server: &Server, text: &str) -> Vec<String> {
    let names = [server.group(), server.run().display().to_string(), server.base().display().to_string()];
    text.lines().filter(|line| names.iter().any(|name| line.contains(name))).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_planted_leak_is_found() {
    let server = Server::start().await;
    server.create("l").await;
    let top = cgroups(&server.group()).into_iter().find(|dir| dir.ends_with(&server.group())).unwrap();
    let planted = format!("{top}/0123456789abcdef0123456789abcdef");
    std::fs::create_dir(&planted).unwrap();
    let (code, text) = leaks(&server);
    std::fs::remove_dir(&planted).unwrap();
    assert_eq!(code, Some(3), "{text}");
    assert!(mine(&server, &text).iter().any(|line| line.contains(&planted)), "{text}");

    let planted = server.run().join("containers/0123456789abcdef0123456789abcdef");
    std::fs::create_dir(&planted).unwrap();
    let (code, text) = leaks(&server);
    std::fs::remove_dir(&planted).unwrap();
    assert_eq!(code, Some(3), "{text}");
    assert!(mine(&server, &text).iter().any(|line| line.contains(planted.to_str().unwrap())), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn a_run_directory_that_nobody_uses_is_found() {
    let server = Server::start().await;
    let planted = server.base().join("planted");
    std::fs::create_dir(&planted).unwrap();
    let mount = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).arg(&planted).status().unwrap().success());
    };
    mount("mount", &["-t", "tmpfs", "wardian"]);
    let (code, text) = leaks(&server);
    mount("umount", &[]);
    assert_eq!(code, Some(3), "{text}");
    let line = format!("tmpfs on {}", planted.display());
    assert!(text.lines().any(|l| l.contains(&line)), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn a_stopped_server_leaves_no_cgroup() {
    let mut server = Server::start().await;
    let group = server.group();
    assert!(server.terminate().await.success());
    let started = std::time::Instant::now();
    while !cgroups(&group).is_empty() {
        assert!(started.elapsed().as_secs() < 5, "{:?}", cgroups(&group));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_healthy_server_has_no_leaks() {
    let server = Server::start().await;
    server.create("l").await;
    let (_, text) = leaks(&server);
    assert_eq!(mine(&server, &text), Vec::<String>::new());
    server.finish().await;
}
