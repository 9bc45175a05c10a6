use super::*;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wardian_sys::{memfd, packet};

/// A memory file whose content is its name.
fn file(name: &str) -> OwnedFd {
    memfd::sealed(name, name.as_bytes(), 0o400).unwrap()
}

fn name(fd: &OwnedFd) -> String {
    let mut bytes = [0; 64];
    let n = rustix::io::pread(fd, &mut bytes, 0).unwrap();
    String::from_utf8(bytes[..n].to_vec()).unwrap()
}

/// Sends a packet through a socket, as between server and keeper.
fn sent(bytes: &[u8], fds: &[BorrowedFd<'_>]) -> packet::Message {
    let (ours, theirs) = packet::pair().unwrap();
    packet::send(&ours, bytes, fds).unwrap();
    packet::receive(&theirs, rustix::net::RecvFlags::empty()).unwrap()
}

fn heard(op: Op<OwnedFd>) -> Op<OwnedFd> {
    let (bytes, fds) = encode(7, op).unwrap();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let (seq, op) = decode(sent(&bytes, &fds)).unwrap();
    assert_eq!(seq, 7);
    op
}

fn answered(reply: Reply<OwnedFd>) -> Reply<OwnedFd> {
    let (bytes, fds) = encode_reply(Message::Reply { seq: 7, reply }).unwrap();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    match decode_reply(sent(&bytes, &fds)) {
        Ok(Message::Reply { seq: 7, reply }) => reply,
        other => panic!("{other:?}"),
    }
}

fn place(v1: &[&str], v2: Option<&str>) -> Placement<OwnedFd> {
    Placement { v1_procs: v1.iter().map(|name| file(name)).collect(), v2_dir: v2.map(file) }
}

fn boxed(binds: &[&str], files: &[&str]) -> Boxed<OwnedFd> {
    let named = |names: &[&str]| names.iter().map(|name| (format!("/{name}"), file(name))).collect();
    Boxed {
        config: file("config"),
        rootfs: file("rootfs"),
        binds: named(binds),
        files: named(files),
        v1_hierarchies: vec!["cpu".to_owned()],
        v1_mounts: if binds.is_empty() { Vec::new() } else { vec![file("cpu mount")] },
    }
}

fn check_place(place: &Placement<OwnedFd>, v1: &[&str], v2: Option<&str>) {
    assert_eq!(place.v1_procs.iter().map(name).collect::<Vec<_>>(), v1);
    assert_eq!(place.v2_dir.as_ref().map(name).as_deref(), v2);
}

fn check_boxed(boxed: &Boxed<OwnedFd>, binds: &[&str], files: &[&str]) {
    assert_eq!((name(&boxed.config), name(&boxed.rootfs)), ("config".to_owned(), "rootfs".to_owned()));
    for (given, names) in [(&boxed.binds, binds), (&boxed.files, files)] {
        assert_eq!(given.len(), names.len());
        for ((path, fd), expected) in given.iter().zip(names) {
            assert_eq!((path.as_str(), name(fd)), (format!("/{expected}").as_str(), (*expected).to_owned()));
        }
    }
    assert_eq!(boxed.v1_hierarchies, ["cpu"]);
    let mounts: Vec<String> = boxed.v1_mounts.iter().map(name).collect();
    assert_eq!(mounts, if binds.is_empty() { &[][..] } else { &["cpu mount"] });
}

#[test]
fn descriptors_arrive_under_their_names() {
    for (user, binds, files, v1, v2) in [
        (None, &[][..], &[][..], &[][..], None),
        (Some("user"), &["a", "b"], &["hosts"], &["cpu", "memory"], Some("v2")),
        (Some("user"), &[], &["hosts", "resolv"], &[], Some("v2")),
        (None, &["a"], &[], &["cpu"], None),
    ] {
        let op = heard(Op::Create(Create {
            init: file("init"),
            network: file("net"),
            user: user.map(file),
            sysfs: v2.map(|_| file("sysfs")),
            boxed: boxed(binds, files),
            place: place(v1, v2),
        }));
        let Op::Create(create) = op else { panic!("{op:?}") };
        assert_eq!((name(&create.init), name(&create.network)), ("init".to_owned(), "net".to_owned()));
        assert_eq!(create.user.as_ref().map(name).as_deref(), user);
        assert_eq!(create.sysfs.as_ref().map(name).as_deref(), v2.map(|_| "sysfs"));
        check_boxed(&create.boxed, binds, files);
        check_place(&create.place, v1, v2);

        for pea in [false, true] {
            let pea = pea.then(|| boxed(binds, files));
            let is_pea = pea.is_some();
            let op =
                heard(Op::Run(Run { id: "p".to_owned(), exec: file("exec"), pea, place: place(v1, v2) }));
            let Op::Run(run) = op else { panic!("{op:?}") };
            assert_eq!(
                (run.id.as_str(), name(&run.exec), run.pea.is_some()),
                ("p", "exec".to_owned(), is_pea)
            );
            if let Some(pea) = &run.pea {
                check_boxed(pea, binds, files);
            }
            check_place(&run.place, v1, v2);
        }

        let (user, path) = ("vcap".to_owned(), "/x".to_owned());
        let op = heard(Op::Transfer(Transfer {
            inward: true,
            user,
            path,
            tar: file("tar"),
            place: place(v1, v2),
        }));
        let Op::Transfer(transfer) = op else { panic!("{op:?}") };
        assert!(transfer.inward && transfer.user == "vcap" && transfer.path == "/x");
        assert_eq!(name(&transfer.tar), "tar");
        check_place(&transfer.place, v1, v2);
    }
    let op = heard(Op::Prepare { tasks: vec![file("cpu"), file("memory")] });
    let files = heard(Op::Rewrite { files: vec![file("hosts"), file("resolv")] });
    assert!(
        matches!(&files, Op::Rewrite { files } if files.iter().map(name).eq(["hosts", "resolv"])),
        "{files:?}"
    );
    assert!(matches!(&op, Op::Prepare { tasks } if tasks.iter().map(name).eq(["cpu", "memory"])), "{op:?}");
}

#[test]
fn stdio_arrives_as_it_is() {
    let started =
        |stdio| match answered(Reply::Started(Started { pid: 5, warnings: vec!["w".to_owned()], stdio })) {
            Reply::Started(Started { pid: 5, warnings, stdio }) if warnings == ["w"] => stdio,
            other => panic!("{other:?}"),
        };
    for stdin in [None, Some("in")] {
        for output in [None, Some(("out", "err"))] {
            let pipes = Stdio::Pipes {
                stdin: stdin.map(file),
                output: output.map(|(out, err)| (file(out), file(err))),
            };
            // A process without any stdio descriptor is one whose output has been released.
            let Stdio::Pipes { stdin: got, output: outputs } = started(pipes) else { panic!() };
            assert_eq!(got.as_ref().map(name).as_deref(), stdin);
            let outputs = outputs.as_ref().map(|(out, err)| (name(out), name(err)));
            assert_eq!(outputs, output.map(|(out, err)| (out.to_owned(), err.to_owned())));
        }
    }
    for master in [None, Some("pty")] {
        let Stdio::Terminal(got) = started(Stdio::Terminal(master.map(file))) else { panic!() };
        assert_eq!(got.as_ref().map(name).as_deref(), master);
    }
    let made = answered(Reply::Made { pid: 9, init: file("pidfd") });
    assert!(matches!(&made, Reply::Made { pid: 9, init } if name(init) == "pidfd"), "{made:?}");
    let hello = answered(Reply::Hello(Hello { version: 3, pid: 1, init: Some(2), processes: file("list") }));
    let Reply::Hello(hello) = hello else { panic!("{hello:?}") };
    assert_eq!(
        (hello.version, hello.pid, hello.init, name(&hello.processes)),
        (3, 1, Some(2), "list".to_owned())
    );
}

#[test]
fn a_descriptor_that_is_missing_or_too_many_refuses_its_request_alone() {
    let whole = Op::Create(Create {
        init: file("init"),
        network: file("net"),
        user: Some(file("user")),
        sysfs: Some(file("sysfs")),
        boxed: boxed(&["a"], &["hosts"]),
        place: place(&["cpu"], Some("v2")),
    });
    let (bytes, fds) = encode(3, whole).unwrap();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut said = HashSet::new();
    for n in 0..fds.len() {
        match decode(sent(&bytes, &fds[..n])) {
            Err(Refused::Answer { seq: 3, kind: Failure::Other, message }) => assert!(said.insert(message)),
            other => panic!("{n}: {other:?}"),
        }
    }
    let more: Vec<_> = fds.iter().chain(&fds[..1]).copied().collect();
    assert!(matches!(decode(sent(&bytes, &more)), Err(Refused::Answer { seq: 3, .. })));
    // A packet of which the kernel has dropped some descriptors.
    let cut = packet::Message { whole: false, ..sent(&bytes, &fds) };
    assert!(matches!(decode(cut), Err(Refused::Answer { seq: 3, .. })));

    // A mount of a cgroup for another number of hierarchies than there are.
    let mut pea = boxed(&["a"], &[]);
    pea.v1_hierarchies.push("memory".to_owned());
    let run = Run { id: "p".to_owned(), exec: file("exec"), pea: Some(pea), place: place(&[], None) };
    let (bytes, few) = encode(3, Op::Run(run)).unwrap();
    let few: Vec<_> = few.iter().map(AsFd::as_fd).collect();
    assert!(matches!(decode(sent(&bytes, &few)), Err(Refused::Answer { seq: 3, .. })));

    let reply = |text: &str, n| decode_reply(sent(text.as_bytes(), &fds[..n])).unwrap_err();
    let hello = r#"{"Reply":{"seq":4,"reply":{"Hello":{"version":3,"pid":1,"init":null}}}}"#;
    assert_eq!(reply(hello, 0), Unheard::Incomplete { seq: 4, what: "the list of processes" });
    let started = r#"{"Reply":{"seq":4,"reply":{"Started":{"warnings":[],"stdin":true,"pid":1}}}}"#;
    assert_eq!(reply(started, 0), Unheard::Incomplete { seq: 4, what: "standard input" });
    assert_eq!(reply(started, 2), Unheard::Incomplete { seq: 4, what: "standard error" });
    let cut = packet::Message { whole: false, ..sent(hello.as_bytes(), &[]) };
    assert_eq!(decode_reply(cut).unwrap_err(), Unheard::NoDescriptors { seq: 4 });
    assert_eq!(reply("{}", 0), Unheard::Unreadable);
}

#[test]
fn what_is_not_known_is_answered_and_what_has_no_number_is_not() {
    for text in
        [r#"{"seq":5,"op":{"Freeze":{"id":"a"}}}"#, r#"{"seq":5,"op":"Thaw","more":1}"#, r#"{"seq":5}"#]
    {
        match decode(sent(text.as_bytes(), &[])) {
            Err(Refused::Answer { seq: 5, kind: Failure::Unsupported, .. }) => {}
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in ["{}", "no JSON", r#"{"seq":-1,"op":"Hello"}"#, "[]"] {
        assert!(matches!(decode(sent(text.as_bytes(), &[])), Err(Refused::Unreadable)), "{text}");
    }
    // A kind of failure of a later keeper.
    let failed = r#"{"Reply":{"seq":4,"reply":{"Failed":{"kind":"Tired","message":"no"}}}}"#;
    let reply = decode_reply(sent(failed.as_bytes(), &[])).unwrap();
    assert!(matches!(reply, Message::Reply { reply: Reply::Failed { kind: Failure::Other, .. }, .. }));
}
