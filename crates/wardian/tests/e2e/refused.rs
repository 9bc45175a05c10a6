//! Requests and signals that are not taken: what the server says of the one is heard, and the others stay ignored.

use crate::support::{STUCK, Server, WARDIAN, signal};
use rustix::process::Signal;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

fn wardian(server: &Server, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(WARDIAN);
    command.args(args).env("WARDIAN_SOCKET", server.socket()).stdin(Stdio::null());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn what_is_too_long_is_called_so() {
    let server = Server::start().await;
    server.create("c").await;
    let file = server.base().join("env");
    // Each variable is one that the kernel takes; all together are more than a request may have.
    let lines = |n: usize| -> String { (0..n).map(|n| format!("V{n}={}\n", "x".repeat(100_000))).collect() };
    // By the server's timing some of these broke the pipe.
    for _ in 0..10 {
        for (n, args) in [
            (13, &["run", "--rm", "--env-file"][..]),
            (50, &["run", "--rm", "--env-file"]),
            (50, &["create", "--env-file"]),
            (50, &["exec", "--env-file"]),
        ] {
            std::fs::write(&file, lines(n)).unwrap();
            let path = file.to_str().unwrap();
            let last: &[&str] = match args[0] {
                "exec" => &[path, "c", "true"],
                "run" => &[path, "--", "true"],
                _ => &[path],
            };
            let (code, said) = wardian(&server, &[args, last].concat());
            // What fits into a request is measured by what it is.
            let expected = if n == 13 { "1048576 are allowed" } else { "request body too large" };
            assert!(code != Some(0) && said.contains(expected), "{args:?}: {code:?} {said}");
        }
    }
    server.finish().await;
}

/// A shell that executes the program with these signals ignored.
fn ignoring(signals: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' {signals}; exec \"$@\""), "sh", &WARDIAN]);
    command
}

#[tokio::test]
async fn signals_that_are_ignored_stay_so() {
    let mut server = Server::start().await;
    // A process's client: it lives on, and so does the process.
    let mut command = ignoring("INT HUP QUIT");
    command
        .args(["run", "--rm", "-i", "--", "sh", "-c", "echo up; cat"])
        .env("WARDIAN_SOCKET", server.socket());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    for number in [Signal::INT, Signal::HUP, Signal::QUIT] {
        signal(child.id(), number);
    }
    child.stdin.take().unwrap().write_all(b"still there\n").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("still there\n", Some(0)));

    // Long work of a command's own, at any moment of it.
    let big = server.base().join("big.tar");
    crate::cli::many_files(&big, 5000);
    let mut command = ignoring("INT");
    command.args(["image", "import"]).arg(&big).args(["-t", "big"]);
    command.env("WARDIAN_ROOT", server.root()).env("WARDIAN_RUN", server.run());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let comm = format!("/proc/{}/comm", child.id());
    // Neither ours before its exec, nor the shell that ignores for it.
    while std::fs::read_to_string(&comm).unwrap() != "wardian\n" {
        std::thread::sleep(Duration::from_millis(1));
    }
    let status = loop {
        signal(child.id(), Signal::INT);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{status}");

    // An experiment, and what it has started.
    let mut command = ignoring("INT");
    let recorded =
        command.args(["lab", "record", "--", "sh", "-c", "echo up; sleep 2; exit 7"]).stdout(Stdio::piped());
    let mut child = recorded.stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("up") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "it has ended");
    }
    signal(child.id(), Signal::INT);
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    assert_ne!(child.wait().unwrap().code(), Some(130));

    // A server: `wardian serve &` in a script.
    server.terminate().await;
    let given = server.command();
    let mut command = ignoring("INT");
    command.args(given.get_args()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    server.restart_as(command).await;
    signal(server.pid(), Signal::INT);
    std::thread::sleep(Duration::from_millis(200));
    tokio::time::timeout(STUCK, server.client().ping()).await.unwrap().unwrap();
    server.finish().await;
}
