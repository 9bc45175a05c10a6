//! Signals to processes in containers, and stops with a signal and a time of one's own.

use crate::commands::{command, fails, ok};
use crate::support::{Server, message, signal};
use rustix::process::Signal;
use serde_json::json;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};
use wardian_garden::wire::{ContainerSpec, Stop};

/// Says which signals it gets, in /got, and goes on.
fn hears(signals: &str) -> String {
    let traps: String =
        signals.split(' ').map(|name| format!("trap 'echo {name} >>/got' {name}; ")).collect();
    format!("{traps} echo up >>/got; while :; do sleep 0.01; done")
}

/// Waits until the container has got this.
async fn until(server: &Server, handle: &str, expected: &str) {
    let started = Instant::now();
    loop {
        let got = ok(server, &["exec", handle, "sh", "-c", "cat /got 2>/dev/null; true"]);
        if got == expected {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{got:?} and not {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn any_signal_reaches_the_main_process_or_another() {
    let server = Server::start().await;
    ok(&server, &["run", "-d", "--name", "s", "--", "sh", "-c", &hears("HUP USR1 WINCH")]);
    until(&server, "s", "up\n").await;
    assert_eq!(ok(&server, &["kill", "-s", "SIGUSR1", "s"]), "s\n");
    until(&server, "s", "up\nUSR1\n").await;
    ok(&server, &["kill", "--signal=1", "s"]);
    ok(&server, &["kill", "-s", "winch", "--process", "main", "s"]);
    until(&server, "s", "up\nUSR1\nHUP\nWINCH\n").await;
    let other = ok(&server, &["exec", "-d", "s", "sleep", "1000"]);
    ok(&server, &["kill", "--process", other.trim(), "s"]);
    let attached = command(&server, &["attach", "s", other.trim()]).output().unwrap();
    assert_eq!(attached.status.code(), Some(137), "{attached:?}");
    let ended = fails(&server, 1, &["kill", "--process", other.trim(), "s"]);
    assert!(ended.contains("has ended with status 137"), "{ended}");
    // A real-time signal, which nobody waits for, ends it.
    ok(&server, &["kill", "-s", "RTMIN+3", "s"]);
    let attached = command(&server, &["attach", "s"]).output().unwrap();
    assert_eq!(attached.status.code(), Some(128 + 37), "{attached:?}");

    assert!(fails(&server, 2, &["kill", "-s", "NOPE", "s"]).contains("\"NOPE\" is no signal"));
    assert!(fails(&server, 1, &["kill", "-s", "HUP", "nope"]).contains("unknown handle: nope"));
    let unknown = fails(&server, 1, &["kill", "-s", "HUP", "--process", "nope", "s"]);
    assert!(unknown.contains("no process nope in s"), "{unknown}");
    for body in [r#"{"signal":"0"}"#, r#"{"signal":"33"}"#, r#"{"signal":""}"#, "{}", r#"{"signal":"-9"}"#] {
        let head = "Content-Type: application/json\r\n";
        let reply = server.http("POST /wardian/containers/s/processes/main/signal", head, body);
        assert!(!reply.starts_with("HTTP/1.1 200") && reply.contains("is no signal"), "{body}: {reply}");
    }
    server.finish().await;
}

#[tokio::test]
async fn what_an_attached_command_gets_is_passed_on() {
    let server = Server::start().await;
    let mut child = command(&server, &["run", "--name", "s", "--", "sh", "-c"])
        .arg("trap 'echo usr1' USR1; trap 'echo quit' QUIT; trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.01; done")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut says = |expected: &str| {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{expected}\n"));
    };
    says("up");
    for (number, expected) in [(Signal::USR1, "usr1"), (Signal::QUIT, "quit"), (Signal::USR1, "usr1")] {
        signal(child.id(), number);
        says(expected);
    }
    signal(child.id(), Signal::TERM);
    says("term");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    server.finish().await;
}

#[tokio::test]
async fn a_stop_has_a_signal_and_a_time() {
    let server = Server::start().await;
    let stubborn = "trap 'echo TERM >>/got' TERM; trap 'echo INT >>/got; exit 0' INT; echo up >>/got; while :; do sleep 0.01; done";
    let start = |handle: &str, flags: &[&str]| {
        let all = [&["run", "-d", "--name", handle], flags, &["--", "sh", "-c", stubborn]].concat();
        ok(&server, &all);
    };
    start("slow", &[]);
    start("fast", &[]);
    start("int", &["--stop-signal", "SIGINT"]);
    for handle in ["slow", "fast", "int"] {
        until(&server, handle, "up\n").await;
    }
    let timed = |args: &[&str]| {
        let started = Instant::now();
        ok(&server, args);
        started.elapsed()
    };
    let took = timed(&["stop", "-t", "2", "slow"]);
    assert!((2..8).contains(&took.as_secs()), "{took:?}");
    assert!(timed(&["stop", "--time", "0", "fast"]) < Duration::from_secs(2));
    let took = timed(&["stop", "int"]);
    assert!(took < Duration::from_secs(5), "{took:?}");
    until(&server, "int", "up\nINT\n").await;
    start("given", &[]);
    until(&server, "given", "up\n").await;
    assert!(timed(&["stop", "-s", "2", "--timeout", "20", "given"]) < Duration::from_secs(10));
    fails(&server, 2, &["stop", "-t", "-1", "given"]);
    fails(&server, 2, &["stop", "-t", "86401", "given"]);
    fails(&server, 2, &["run", "--stop-signal", "NOPE", "--", "true"]);

    let client = server.client();
    let long = Stop { grace_ms: Some(1 << 40), ..Stop::default() };
    assert!(message(client.stop_so("given", &long).await).contains("at most 86400 seconds"));
    let odd = Stop { signal: "0".into(), ..Stop::default() };
    assert!(message(client.stop_so("given", &odd).await).contains("is no signal"));
    let spec = ContainerSpec { handle: "x".into(), stop_signal: "nope".into(), ..ContainerSpec::default() };
    assert!(message(client.create(&spec).await).contains("stop_signal: \"nope\" is no signal"));
    server.finish().await;
}

#[tokio::test]
async fn an_image_has_a_stop_signal() {
    let server = Server::start().await;
    let image = |name: &str, signal: &str| {
        let dir = crate::image_command::layout(&server, name, &json!({"StopSignal": signal}));
        format!("oci://{}", dir.display())
    };
    let (int, odd) = (image("int", "SIGINT"), image("odd", "x\u{1b}[2J"));
    let ends = "trap 'echo INT >>/got; exit 0' INT; trap 'echo TERM >>/got; exit 0' TERM; echo up >>/got; while :; do sleep 0.01; done";
    ok(&server, &["run", "-d", "--name", "of-image", &int, "sh", "-c", ends]);
    ok(&server, &["run", "-d", "--name", "given", "--stop-signal", "TERM", &int, "sh", "-c", ends]);
    // A Garden client does not ask for it.
    let client = server.client();
    let spec = ContainerSpec { handle: "gardens".into(), rootfs: int.clone(), ..ContainerSpec::default() };
    client.create(&spec).await.unwrap();
    ok(&server, &["exec", "-d", "gardens", "sh", "-c", ends]);
    for (handle, expected) in [("of-image", "up\nINT\n"), ("given", "up\nTERM\n"), ("gardens", "up\nTERM\n")]
    {
        until(&server, handle, "up\n").await;
        client.stop(handle, false).await.unwrap();
        until(&server, handle, expected).await;
    }
    let refused = fails(&server, 125, &["run", "--rm", &odd, "true"]);
    assert!(refused.contains("StopSignal") && !refused.contains('\u{1b}'), "{refused}");
    assert_eq!(ok(&server, &["run", "--rm", "--stop-signal", "TERM", &odd, "echo", "runs"]), "runs\n");
    server.finish().await;
}

#[tokio::test]
async fn many_are_stopped_together_and_errors_come_in_order() {
    let server = Server::start().await;
    let handles: Vec<String> = (0..6).map(|n| format!("h{n}")).collect();
    for handle in &handles {
        ok(
            &server,
            &[
                "run",
                "-d",
                "--name",
                handle,
                "--",
                "sh",
                "-c",
                "trap '' TERM; echo up >/got; while :; do sleep 0.1; done",
            ],
        );
        until(&server, handle, "up\n").await;
    }
    let all: Vec<&str> = handles.iter().map(String::as_str).collect();
    let started = Instant::now();
    let out = ok(&server, &[&["stop", "-t", "2"], &all[..]].concat());
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}: one after another", started.elapsed());
    assert_eq!(out, "h0\nh1\nh2\nh3\nh4\nh5\n");
    let mut child = command(&server, &["rm", "h0", "no1", "h1", "no2", "h2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), out.as_str()), (Some(1), "h0\nh1\nh2\n"));
    assert!(err.find("no1").unwrap() < err.find("no2").unwrap(), "{err}");
    assert_eq!(ok(&server, &["rm", "-f", "h0", "h3", "h4", "h5"]), "h3\nh4\nh5\n");
    server.finish().await;
}
