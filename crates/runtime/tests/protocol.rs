//! The protocol between server and keeper as version 1 spoke it, frozen: keepers outlive the server that started them, so
//! a later server still says what they understand and understands what they say.
//!
//! WHEN A TEST FAILS HERE: do not change `protocol_v1.jsonl`. Make what is new optional.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use wardian_runtime::wire::{
    Boxed, Create, Destroyed, Exec, Failure, Hello, Message, Op, Placement, ProcessState, Reply, Run,
    Started, Stdio, Transfer, VERSION, decode, decode_reply, encode,
};
use wardian_sys::{memfd, packet};

fn frozen(to: &str) -> Vec<(String, Value)> {
    let text = include_str!("protocol_v1.jsonl");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ours = lines.filter(|line| line["to"] == to);
    ours.map(|line| (line["name"].as_str().unwrap().to_owned(), line["json"].clone())).collect()
}

/// A message as it comes, with so many descriptors.
fn packet(json: &Value, fds: usize) -> packet::Message {
    let fds = (0..fds).map(|_| memfd::sealed("x", b"", 0o400).unwrap()).collect();
    packet::Message { bytes: serde_json::to_vec(json).unwrap(), fds, whole: true }
}

/// Descriptors by name: the order in which they travel is as frozen as the words are.
fn place(v1_procs: &[&'static str], v2_dir: Option<&'static str>) -> Placement<&'static str> {
    Placement { v1_procs: v1_procs.into(), v2_dir }
}

fn boxed(binds: &[(&str, &'static str)], hierarchies: &[&str]) -> Boxed<&'static str> {
    Boxed {
        config: "config.json",
        rootfs: "rootfs",
        binds: binds.iter().map(|(path, fd)| ((*path).to_owned(), *fd)).collect(),
        files: Vec::new(),
        v1_hierarchies: hierarchies.iter().map(|name| (*name).to_owned()).collect(),
        v1_mounts: Vec::new(),
    }
}

/// What a server of today says, with what version 1 knew of, and the descriptors beside it.
fn said(name: &str) -> (Value, Vec<&'static str>) {
    let id = || "p".to_owned();
    let (seq, op) = match name {
        "exec" => {
            let exec = Exec {
                args: ["sh", "-c", "x"].map(str::to_owned).into(),
                env: vec!["A=b".to_owned()],
                dir: "/".to_owned(),
                make_dir: true,
                user: "root".to_owned(),
                rlimits: vec![(7, 1024)],
                capabilities: 5,
                capabilities_non_root: 4,
                no_new_privileges: true,
                ..Exec::default()
            };
            return (serde_json::to_value(exec).unwrap(), Vec::new());
        }
        "hello" => (1, Op::Hello),
        "prepare" => (0, Op::Prepare { tasks: vec!["cpu", "memory"] }),
        "create" => {
            let boxed = boxed(&[("/etc/hosts", "hosts")], &["cpu"]);
            let place = place(&["v1-a", "v1-b", "v1-c"], Some("v2"));
            let (init, network, user) = ("init", "net", Some("user"));
            (2, Op::Create(Create { init, network, user, sysfs: None, boxed, place }))
        }
        "run" => (3, Op::Run(Run { id: id(), exec: "exec", pea: None, place: place(&[], None) })),
        "run-pea" => {
            let place = place(&["v1-a"], Some("v2"));
            (4, Op::Run(Run { id: id(), exec: "exec", pea: Some(boxed(&[], &[])), place }))
        }
        "transfer" => {
            let (user, path) = ("vcap".to_owned(), "/in".to_owned());
            let place = place(&[], Some("v2"));
            (5, Op::Transfer(Transfer { inward: true, user, path, tar: "tar", place }))
        }
        "attach" => (6, Op::Attach { id: id() }),
        "close-stdin" => (7, Op::CloseStdin { id: id() }),
        "signal" => (8, Op::Signal { id: id(), signal: 15 }),
        "release" => (9, Op::Release { id: id() }),
        "destroy" => (10, Op::Destroy),
        other => panic!("nobody says {other}"),
    };
    let (bytes, fds) = encode(seq, op).unwrap();
    (serde_json::from_slice(&bytes).unwrap(), fds)
}

/// The descriptors of version 1, in their order.
fn travel(name: &str) -> &'static [&'static str] {
    match name {
        "prepare" => &["cpu", "memory"],
        "create" => &["init", "net", "user", "config.json", "rootfs", "hosts", "v1-a", "v1-b", "v1-c", "v2"],
        "run" => &["exec"],
        "run-pea" => &["exec", "config.json", "rootfs", "v1-a", "v2"],
        "transfer" => &["tar", "v2"],
        _ => &[],
    }
}

/// Everything in `old` is in `new`: who knows only the old fields sees no difference.
fn contains(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(key, old)| new.get(key).is_some_and(|new| contains(new, old)))
        }
        (new, old) => new == old,
    }
}

#[test]
fn an_old_keeper_understands_what_is_said_today() {
    for (name, old) in frozen("keeper") {
        let (new, fds) = said(&name);
        assert!(contains(&new, &old), "{name}:\n  version 1: {old}\n  today:     {new}");
        assert_eq!(fds, travel(&name), "{name}");
        // And a keeper of today what an old server has said, though none is told to.
        if name == "exec" {
            serde_json::from_value::<Exec>(old).unwrap();
        } else {
            decode(packet(&old, fds.len())).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
    }
}

#[test]
fn what_an_old_keeper_says_is_understood() {
    let mut names = BTreeSet::new();
    for (name, old) in frozen("server") {
        if name == "processes" {
            let states: Vec<ProcessState> = serde_json::from_value(old).unwrap();
            let told: Vec<_> = states.iter().map(|p| (p.id.as_str(), p.status, p.pea)).collect();
            assert_eq!(told, [("p", None, false), ("q", Some(7), true)]);
            names.insert(name);
            continue;
        }
        let fds = match name.as_str() {
            "started" => 3,
            name if name.starts_with("hello") => 1,
            _ => 0,
        };
        let message: Message<OwnedFd> =
            decode_reply(packet(&old, fds)).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let right = match (name.as_str(), message) {
            ("hello", Message::Reply { seq: 1, reply: Reply::Hello(Hello { version, pid, init, .. }) }) => {
                (version, pid, init) == (1, 77, Some(78))
            }
            ("hello-without-init", Message::Reply { reply: Reply::Hello(Hello { init, .. }), .. }) => {
                init.is_none()
            }
            (
                "started",
                Message::Reply { seq: 2, reply: Reply::Started(Started { pid, warnings, stdio }) },
            ) => {
                let whole = matches!(stdio, Stdio::Pipes { stdin: Some(_), output: Some(_) });
                (warnings, pid, whole) == (vec!["w".to_owned()], 79, true)
            }
            ("done", Message::Reply { seq: 3, reply: Reply::Done })
            | ("gone", Message::Gone { status: 137 }) => true,
            (
                "destroyed",
                Message::Reply { reply: Reply::Destroyed(Destroyed { killed_us, unmounted_us }), .. },
            ) => (killed_us, unmounted_us) == (5, 6),
            (failed, Message::Reply { seq: 4, reply: Reply::Failed { kind, message } }) => {
                let expected = match failed {
                    "failed" => Failure::ExecutableNotFound,
                    "failed-unknown" => Failure::UnknownProcess,
                    _ => Failure::Other,
                };
                kind == expected && message == "m"
            }
            ("exited", Message::Exited { id, status }) => (id.as_str(), status) == ("p", 143),
            _ => false,
        };
        assert!(right, "{name} is misunderstood");
        names.insert(name);
    }
    assert_eq!(names.len(), 11);
}

#[test]
fn what_a_later_keeper_adds_is_passed_over() {
    let hello = json!({"Reply": {"seq": 1, "reply":
        {"Hello": {"version": VERSION + 1, "pid": 77, "init": 78, "new": {"a": 1}}}}});
    match decode_reply(packet(&hello, 1)) {
        Ok(Message::Reply { reply: Reply::Hello(Hello { version, .. }), .. }) => assert!(version > VERSION),
        other => panic!("{other:?}"),
    }
}
