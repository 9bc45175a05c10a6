//! Events that have happened before somebody asks, until a time, and some kinds alone.

use crate::commands::{command, fails, ok};
use crate::support::Server;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Kinds and handles of the events that a command prints.
fn told(server: &Server, args: &[&str]) -> Vec<String> {
    let until = now().to_string();
    let out = ok(server, &[&["events", "--json", "--until", &until], args].concat());
    let field = |line: &str, name: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        value[name].as_str().unwrap_or_default().to_owned()
    };
    out.lines().map(|line| format!("{} {}", field(line, "event"), field(line, "handle"))).collect()
}

#[tokio::test]
async fn what_has_happened() {
    let server = Server::start().await;
    let client = server.client();
    ok(&server, &["create", "--name", "a"]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let later = now().to_string();
    client.pause("a").await.unwrap();
    client.unpause("a").await.unwrap();
    ok(&server, &["create", "--name", "b"]);
    ok(&server, &["exec", "b", "true"]);
    assert_eq!(
        told(&server, &["--since", "1h"]),
        ["create a", "pause a", "unpause a", "create b", "process-start b", "process-exit b"]
    );
    assert_eq!(
        told(&server, &["--since", &later]),
        ["pause a", "unpause a", "create b", "process-start b", "process-exit b"]
    );
    assert_eq!(
        told(&server, &["--since", "0", "--filter", "container=a", "-f", "event=create"]),
        ["create a"]
    );
    assert_eq!(
        told(&server, &["--since", "0", "-f", "event=die", "-f", "event=pause"]),
        ["pause a", "process-exit b"]
    );
    assert_eq!(told(&server, &["--since", "0", "--handle", "b", "-f", "event=create"]), ["create b"]);
    assert_eq!(ok(&server, &["events", "--since", "0", "--until", "1"]), "");
    assert_eq!(told(&server, &[]), Vec::<String>::new(), "without --since nothing that was before");

    // Until a time to come.
    let started = Instant::now();
    let until = (now() + 1.0).to_string();
    let child = command(&server, &["events", "--until", &until])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    ok(&server, &["rm", "a"]);
    let said = child.wait_with_output().unwrap();
    assert!(said.status.success() && started.elapsed() < Duration::from_secs(10), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stdout).contains("destroy        a"), "{said:?}");

    assert!(fails(&server, 2, &["events", "--filter", "event=nope"]).contains("there is no event \"nope\""));
    fails(&server, 2, &["events", "--since", "yesterday"]);
    for bad in ["since_ms=x", "until_ms=NaN", "since_ms=-1", "since_ms=1.5"] {
        let reply = server.http(&format!("GET /wardian/events?{bad}"), "", "");
        assert!(!reply.starts_with("HTTP/1.1 200") && reply.contains("is no time"), "{bad}: {reply}");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_kill_for_want_of_memory_is_an_event() {
    let mut server = Server::start().await;
    ok(&server, &["create", "-m", "32M", "--name", "o"]);
    let grow = "tr '\\0' x < /dev/zero | sed p > /dev/null";
    let said = command(&server, &["exec", "o", "sh", "-c", grow]).output().unwrap();
    assert!(!said.status.success(), "{said:?}");
    let all = told(&server, &["--since", "0", "--handle", "o"]);
    let place =
        |event: &str| all.iter().position(|one| one == event).unwrap_or_else(|| panic!("{event}: {all:?}"));
    assert!(place("oom o") < place("process-exit o"), "{all:?}");
    // It is told once, whatever ends afterwards, and the next server does not tell it again.
    ok(&server, &["exec", "o", "true"]);
    assert_eq!(told(&server, &["--since", "0", "-f", "event=oom"]), ["oom o"]);
    server.kill9();
    server.restart().await;
    ok(&server, &["exec", "o", "true"]);
    // What the earlier server has told is forgotten, and that is told.
    assert_eq!(told(&server, &["--since", "0", "-f", "event=oom"]), ["forgotten "]);
    server.finish().await;
}
