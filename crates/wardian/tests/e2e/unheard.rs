//! Commands whose words reach nobody, whose input cannot be read, and whose reader stands still: none of them panics, hangs, takes
//! half for a whole, or leaves behind what nobody knows of.

use crate::cli::{Place, Said};
use crate::commands::command;
use crate::support::{STUCK, Server, WARDIAN, ended_within, signal};
use crate::tty::handles;
use rustix::process::Signal;
use std::fs::File;
use std::io::PipeReader;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A request that no server takes is refused with what to do about it.
#[tokio::test]
async fn an_environment_that_is_too_long_is_called_so() {
    let server = Server::start().await;
    let file = server.base().join("env");
    for (variables, says) in [(1300, "env: "), (6000, "fewer or shorter variables")] {
        let lines: String = (0..variables).map(|n| format!("A{n}={}\n", "x".repeat(1000))).collect();
        std::fs::write(&file, lines).unwrap();
        let run =
            command(&server, &["run", "--rm", "--env-file", file.to_str().unwrap(), "--", "true"]).output();
        let said = Said::from(run.unwrap());
        assert!(said.code == Some(125) && said.err.contains(says), "{said:?}");
    }
    server.finish().await;
}

/// Waits until no process of a container has this in its command line.
fn until_gone(server: &Server, handle: &str, word: &str) {
    let script = format!("ps -o args | grep -v grep | grep -q {word}");
    let begun = Instant::now();
    while command(server, &["exec", handle, "sh", "-c", &script]).status().unwrap().success() {
        assert!(begun.elapsed() < STUCK, "{word} goes on in {handle}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Its end, which must come in so long.
fn within(limit: Duration, child: &mut Child) -> ExitStatus {
    ended_within(child, limit).unwrap_or_else(|| panic!("still there after {limit:?}"))
}

/// With a reader that takes nothing: started, and held up by it.
fn stalled(command: &mut Command) -> (Child, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let size = u64::try_from(rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap()).unwrap();
    let child = command.stdout(writer).spawn().unwrap();
    command.stdout(Stdio::null());
    let begun = Instant::now();
    // A line that does not fit is not begun.
    while rustix::io::ioctl_fionread(&reader).unwrap() + 512 < size {
        assert!(begun.elapsed() < STUCK, "the pipe is not full");
        std::thread::sleep(Duration::from_millis(5));
    }
    // It has begun the write that does not end.
    std::thread::sleep(Duration::from_millis(100));
    (child, reader)
}

#[tokio::test]
async fn messages_that_cannot_be_written_end_nothing() {
    let server = Server::start().await;
    for handle in ["a", "n", "p"] {
        server.create(handle).await;
    }
    let code =
        |args: &[&str]| command(&server, args).stderr(full()).stdout(Stdio::null()).status().unwrap().code();
    // A process's output that is lost ends it, whichever of the two it is.
    assert_eq!(
        code(&["run", "--rm", "--name", "left", "--", "sh", "-c", "echo x >&2; exec sleep 300"]),
        Some(125)
    );
    assert_eq!(code(&["exec", "a", "--", "sh", "-c", "echo x >&2; exec sleep 4711"]), Some(125));
    until_gone(&server, "a", "4711");
    assert_eq!(code(&["rm", "nobody", "no-one", "p"]), Some(1));
    assert_eq!(code(&["exec", "nobody", "true"]), Some(125));
    assert_eq!(code(&["run", "--no-such-flag"]), Some(2));
    assert_eq!(handles(&server), "a\nn\n");
    let place = Place::of(&server);
    let mut logged = place.command(&["image", "rm", "none", "neither"]);
    assert_eq!(logged.env("WARDIAN_LOG", "trace").stderr(full()).status().unwrap().code(), Some(1));
    server.finish().await;
}

#[tokio::test]
async fn input_that_cannot_be_read_is_not_taken_for_its_end() {
    let server = Server::start().await;
    server.create("a").await;
    for input in ["/tmp", "/proc/self/mem"] {
        for args in [
            &["exec", "-i", "a", "--", "sh", "-c", "cat; exec sleep 4712"][..],
            &["run", "--rm", "-i", "--", "cat"],
        ] {
            let said = command(&server, args).stdin(File::open(input).unwrap()).output().unwrap();
            let said = Said::from(said);
            assert_eq!((said.code, said.out.as_str()), (Some(125), ""), "{args:?} {said:?}");
            assert!(said.err.contains("read the input: "), "{args:?} {said:?}");
        }
        until_gone(&server, "a", "4712");
    }
    assert_eq!(handles(&server), "a\n");
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_does_not_keep_a_command_that_is_to_end() {
    let server = Server::start().await;
    let place = Place::of(&server);
    place.say(&["image", "import", server.image().to_str().unwrap(), "-t", "bb"]);
    let quick = Duration::from_secs(5);
    for format in ["docker-archive", "tar"] {
        let (mut child, _reader) =
            stalled(place.command(&["image", "export", "bb", "-", "--format", format]).stderr(Stdio::null()));
        signal(child.id(), Signal::TERM);
        assert_eq!(within(quick, &mut child).code(), Some(143), "{format}");
    }

    // Output that nobody takes is cut, and the container goes.
    let (mut child, _reader) = stalled(&mut command(&server, &["run", "--rm", "--", "cat", "/dev/zero"]));
    signal(child.id(), Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    signal(child.id(), Signal::INT);
    assert_eq!(within(Duration::from_secs(8), &mut child).code(), Some(130));
    assert_eq!(handles(&server), "");
    // Messages are for the same reader; a script sends one signal.
    let both = "exec \"$@\" 2>&1";
    let mut run = Command::new("sh");
    run.args(["-c", both, "sh"])
        .arg(WARDIAN)
        .args(["run", "--rm", "--", "cat", "/dev/zero"])
        .env("WARDIAN_SOCKET", server.socket());
    let (mut child, _reader) = stalled(run.stdin(Stdio::null()));
    signal(child.id(), Signal::TERM);
    assert_eq!(within(Duration::from_secs(20), &mut child).code(), Some(143));
    assert_eq!(handles(&server), "");

    // What is printed as it happens.
    let socket = server.socket();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let happening = std::thread::spawn(move || {
        while stopped.try_recv().is_err() {
            for args in [&["create", "--name", "probe"][..], &["rm", "probe"]] {
                Command::new(WARDIAN)
                    .args(args)
                    .env("WARDIAN_SOCKET", &socket)
                    .stdout(Stdio::null())
                    .status()
                    .unwrap();
            }
        }
    });
    let (mut child, _reader) = stalled(&mut command(&server, &["events", "--json"]));
    stop.send(()).unwrap();
    happening.join().unwrap();
    signal(child.id(), Signal::TERM);
    assert_eq!(within(quick, &mut child).code(), Some(143));
    server.finish().await;
}

#[tokio::test]
async fn a_signal_overtakes_input_that_the_process_does_not_take() {
    let server = Server::start().await;
    for rm in [true, false] {
        let mut run = command(&server, &["run", "-i"]);
        run.args(rm.then_some("--rm")).args(["--name", "i", "--", "sleep", "300"]);
        let mut child = run.stdin(File::open("/dev/zero").unwrap()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        signal(child.id(), Signal::TERM);
        assert_eq!(within(Duration::from_secs(8), &mut child).code(), Some(143));
        assert_eq!(handles(&server), if rm { "" } else { "i\n" });
    }
    server.finish().await;
}

#[test]
fn a_server_that_does_not_answer_does_not_keep_a_command_that_is_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let cases = [
        (1, &["events"][..]),
        (1, &["stats"]),
        (1, &["attach", "c"]),
        (1, &["cp", "c:/x", "-"]),
        (2, &["create"]),
        (2, &["exec", "c", "true"]),
        (2, &["exec", "-d", "c", "true"]),
        // Who is asked only once waits as long as for a stop.
        (1, &["create"]),
        (1, &["run", "--", "true"]),
        (1, &["exec", "c", "true"]),
    ];
    let mut connections = Vec::new();
    let start = |(signals, args): (i32, &'static [&str])| {
        let mut child = Command::new(WARDIAN);
        child.args(args).env("WARDIAN_SOCKET", &socket).stdin(Stdio::null());
        let child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // It has asked, and so it catches signals.
        connections.push(listener.accept().unwrap());
        for _ in 0..signals {
            std::thread::sleep(Duration::from_millis(100));
            signal(child.id(), Signal::TERM);
        }
        (args, child)
    };
    for (args, mut child) in cases.map(start) {
        assert_eq!(within(Duration::from_secs(15), &mut child).code(), Some(143), "{args:?}");
    }
}

#[tokio::test]
async fn what_nobody_was_told_of_does_not_stay() {
    let server = Server::start().await;
    server.create("a").await;
    let gone = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for (code, args) in [
        (1, &["create"][..]),
        (125, &["run", "-d", "--", "sleep", "300"]),
        (125, &["exec", "-d", "a", "--", "sleep", "4713"]),
    ] {
        let said = Said::from(command(&server, args).stdout(full()).stderr(Stdio::piped()).output().unwrap());
        assert_eq!(said.code, Some(code), "{args:?} {said:?}");
        assert!(said.err.contains("can be told to nobody") && said.err.contains("No space left"), "{said:?}");
        assert_eq!(command(&server, args).stdout(gone()).status().unwrap().code(), Some(141), "{args:?}");
        assert_eq!(handles(&server), "a\n", "{args:?}");
    }
    until_gone(&server, "a", "4713");
    // Who has given the name need not read it.
    let known = ["create", "--name", "known"];
    assert_eq!(command(&server, &known).stdout(gone()).status().unwrap().code(), Some(0));
    assert_eq!(handles(&server), "a\nknown\n");
    server.finish().await;
}

#[test]
fn figures_go_to_a_file() {
    for args in [
        &["lab", "bench", "--json", "-"][..],
        &["lab", "scale", "--json", "-"],
        &["lab", "teardown", "--json", "-"],
        &["lab", "record", "--json", "-", "--", "true"],
    ] {
        let said = Said::from(Command::new(WARDIAN).args(args).output().unwrap());
        assert!(said.code == Some(2) && said.err.contains("a file is needed"), "{args:?}: {said:?}");
    }
}
