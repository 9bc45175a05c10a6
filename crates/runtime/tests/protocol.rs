//! The protocol between server and keeper as version 1 spoke it, frozen: keepers outlive the server that started them, so
//! a later server still says what they understand and understands what they say.
//!
//! WHEN A TEST FAILS HERE: do not change `protocol_v1.jsonl`. Make what is new optional.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use wardian_runtime::wire::{
    Boxed, Exec, Failure, Message, Op, Placement, ProcessState, Reply, Request, VERSION,
};

fn frozen(to: &str) -> Vec<(String, Value)> {
    let text = include_str!("protocol_v1.jsonl");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ours = lines.filter(|line| line["to"] == to);
    ours.map(|line| (line["name"].as_str().unwrap().to_owned(), line["json"].clone())).collect()
}

fn place(v1_procs: usize, v2_dir: bool) -> Placement {
    Placement { v1_procs, v2_dir }
}

/// What a server of today says, with what version 1 knew of.
fn said(name: &str) -> Value {
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
            return serde_json::to_value(exec).unwrap();
        }
        "hello" => (1, Op::Hello),
        "prepare" => (0, Op::Prepare),
        "create" => {
            let boxed = Boxed {
                binds: vec!["/etc/hosts".to_owned()],
                v1_hierarchies: vec!["cpu".to_owned()],
                ..Boxed::default()
            };
            (2, Op::Create { user: true, boxed, place: place(3, true) })
        }
        "run" => (3, Op::Run { id: id(), boxed: None, place: place(0, false) }),
        "run-pea" => (4, Op::Run { id: id(), boxed: Some(Boxed::default()), place: place(1, true) }),
        "transfer" => {
            let (user, path) = ("vcap".to_owned(), "/in".to_owned());
            (5, Op::Transfer { inward: true, user, path, place: place(0, true) })
        }
        "attach" => (6, Op::Attach { id: id() }),
        "close-stdin" => (7, Op::CloseStdin { id: id() }),
        "signal" => (8, Op::Signal { id: id(), signal: 15 }),
        "release" => (9, Op::Release { id: id() }),
        "destroy" => (10, Op::Destroy),
        other => panic!("nobody says {other}"),
    };
    serde_json::to_value(Request { seq, op }).unwrap()
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
        let new = said(&name);
        assert!(contains(&new, &old), "{name}:\n  version 1: {old}\n  today:     {new}");
        // And a keeper of today what an old server has said, though none is told to.
        if name == "exec" {
            serde_json::from_value::<Exec>(old).unwrap();
        } else {
            serde_json::from_value::<Request>(old).unwrap_or_else(|e| panic!("{name}: {e}"));
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
        let message: Message = serde_json::from_value(old).unwrap_or_else(|e| panic!("{name}: {e}"));
        let right = match (name.as_str(), message) {
            ("hello", Message::Reply { seq: 1, reply: Reply::Hello { version, pid, init } }) => {
                (version, pid, init) == (1, 77, Some(78))
            }
            ("hello-without-init", Message::Reply { reply: Reply::Hello { init, .. }, .. }) => init.is_none(),
            ("started", Message::Reply { seq: 2, reply: Reply::Started { warnings, stdin, pid, tty } }) => {
                (warnings, stdin, pid, tty) == (vec!["w".to_owned()], true, 79, false)
            }
            ("done", Message::Reply { seq: 3, reply: Reply::Done })
            | ("gone", Message::Gone { status: 137 }) => true,
            ("destroyed", Message::Reply { reply: Reply::Destroyed { killed_us, unmounted_us }, .. }) => {
                (killed_us, unmounted_us) == (5, 6)
            }
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
    let message: Message = serde_json::from_value(hello).unwrap();
    assert!(
        matches!(message, Message::Reply { reply: Reply::Hello { version, .. }, .. } if version > VERSION)
    );
}
