//! Output is not lost without a failure: a process waits for clients that have asked for that, and is not over before its
//! streams are.

use crate::commands::command;
use crate::support::{STUCK, Server, digest, end, ended_within, listen, say, script, signal};
use rustix::process::Signal;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use wardian_garden::Io;
use wardian_garden::wire::ProcessSpec;

/// More than waits for one client at most.
const BYTES: usize = 160 << 20;
/// Longer than a process is held up for a client that has not asked.
const LONG: Duration = Duration::from_secs(3);

/// What prints it.
fn much() -> String {
    format!("yes 0123456789abcde | head -c {BYTES}")
}

fn expected() -> String {
    digest("0123456789abcde\n".repeat(BYTES / 16).as_bytes())
}

fn piped(server: &Server, args: &[&str]) -> Child {
    command(server, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How a client has ended, and what it said to standard error.
fn ended(mut child: Child) -> (ExitStatus, String) {
    let status = ended_within(&mut child, STUCK).expect("the client does not end");
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (status, err)
}

/// Everything that a client prints, with a pause after each of the first pieces.
fn read(child: &mut Child, pauses: u32) -> std::thread::JoinHandle<Vec<u8>> {
    let mut out = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        let mut all = vec![0; 1 << 20];
        for number in 0..pauses {
            let at = all.len();
            if number > 0 {
                all.resize(at + (1 << 20), 0);
            }
            let begin = all.len() - (1 << 20);
            out.read_exact(&mut all[begin..]).unwrap();
            std::thread::sleep(LONG);
        }
        if pauses == 0 {
            all.clear();
        }
        out.read_to_end(&mut all).unwrap();
        all
    })
}

fn whole(child: Child, reading: std::thread::JoinHandle<Vec<u8>>) {
    let all = reading.join().unwrap();
    let (status, err) = ended(child);
    assert_eq!((status.code(), err.as_str()), (Some(0), ""));
    assert_eq!((all.len(), digest(&all)), (BYTES, expected()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_gets_everything() {
    let server = Server::start().await;
    server.create("c").await;
    let mut child = piped(&server, &["exec", "c", "sh", "-c", &much()]);
    let reading = read(&mut child, 2);
    tokio::task::spawn_blocking(move || whole(child, reading)).await.unwrap();
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_stopped_gets_everything() {
    let server = Server::start().await;
    server.create("c").await;
    let mut child = piped(&server, &["exec", "c", "sh", "-c", &much()]);
    let mut out = child.stdout.take().unwrap();
    let mut begin = vec![0; 1 << 20];
    out.read_exact(&mut begin).unwrap();
    signal(child.id(), Signal::STOP);
    tokio::time::sleep(LONG).await;
    signal(child.id(), Signal::CONT);
    let reading = std::thread::spawn(move || {
        out.read_to_end(&mut begin).unwrap();
        begin
    });
    tokio::task::spawn_blocking(move || whole(child, reading)).await.unwrap();
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_different_speed_get_everything() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let spec = ProcessSpec { id: "p".into(), ..script(&format!("read go; {}", much())) };
    let (keyboard, theirs) = tokio::io::duplex(64);
    let io = Io { stdin: Some(Box::new(theirs)), ..Io::default() };
    let started = client.run("c", &spec, io).await.unwrap();
    let before = server.settled_descriptors().await;
    let mut both = [0, 1].map(|_| piped(&server, &["attach", "c", "p"]));
    // Both are there when it begins.
    until_attached(&server, before, 2).await;
    let readings = [0, 2].map(|pauses| read(&mut both[usize::from(pauses > 0)], pauses));
    let mut keyboard = keyboard;
    tokio::io::AsyncWriteExt::write_all(&mut keyboard, b"go\n").await.unwrap();
    assert_eq!(started.wait().await.unwrap(), 0);
    tokio::task::spawn_blocking(move || {
        for (child, reading) in both.into_iter().zip(readings) {
            whole(child, reading);
        }
    })
    .await
    .unwrap();
    server.finish().await;
}

/// Three connections for each: the process's, and two of its streams.
async fn until_attached(server: &Server, before: usize, clients: usize) {
    let started = Instant::now();
    while server.descriptors() < before + 3 * clients {
        assert!(started.elapsed() < STUCK, "{before} and {} descriptors", server.descriptors());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_held_up_by_the_dead() {
    let server = Server::start().await;
    let client = server.create("c").await;
    // One that reads nothing and is killed.
    let text = format!("{}; touch /done", much());
    let mut child = piped(&server, &["exec", "c", "sh", "-c", &text]);
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    tokio::time::sleep(LONG).await;
    assert_eq!(say(&client, "c", "test -e /done || echo waits").await, "waits");
    child.kill().unwrap();
    child.wait().unwrap();
    let there = "for i in $(seq 1000); do test -e /done && exit; sleep 0.05; done; exit 1";
    say(&client, "c", there).await;
    // The end of the container is not held up either, and is told to one that is stopped in the middle.
    for (handle, ending) in [("c", "destroy"), ("d", "stop")] {
        if handle == "d" {
            server.create("d").await;
        }
        let mut child = piped(&server, &["exec", handle, "sh", "-c", &much()]);
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        let begun = Instant::now();
        match ending {
            "destroy" => client.destroy(handle).await.unwrap(),
            _ => client.stop(handle, true).await.unwrap(),
        }
        assert!(begun.elapsed() < STUCK / 2);
        let mut rest = child.stdout.take().unwrap();
        let reading = std::thread::spawn(move || rest.read_to_end(&mut Vec::new()).unwrap());
        let (status, err) = tokio::task::spawn_blocking(move || ended(child)).await.unwrap();
        reading.join().unwrap();
        // Killed, with what was printed until then; or some of that is lost, and it says so.
        assert!(matches!(status.code(), Some(137 | 125 | 141)), "{ending}: {status:?} {err}");
    }
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_leaves_behind_prints_for_its_clients() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let text = "(sleep 1; echo late; echo later >&2) & echo ok; exit 3";
    let said = command(&server, &["exec", "c", "sh", "-c", text]).output().unwrap();
    assert_eq!((said.status.code(), said.stdout.as_slice()), (Some(3), &b"ok\nlate\n"[..]));
    assert_eq!(said.stderr, b"later\n");
    // A Garden client, and one that attaches after the program's end.
    let spec = ProcessSpec { id: "p".into(), ..script("(read x </wait; echo late) & echo ok; exit 3") };
    say(&client, "c", "mkfifo /wait").await;
    let first = client.run("c", &spec, listen()).await.unwrap();
    let second = client.attach("c", "p", listen()).await.unwrap();
    let third = piped(&server, &["exec", "c", "sh", "-c", "sleep 1; echo go >/wait"]);
    let (first, second) = tokio::join!(end(first), end(second));
    assert_eq!((first.code, first.out.as_str(), second.code), (3, "ok\nlate\n", 3));
    // The second may have come before the first line.
    assert!(["late\n", "ok\nlate\n"].contains(&second.out.as_str()), "{}", second.out);
    assert!(tokio::task::spawn_blocking(move || ended(third)).await.unwrap().0.success());
    // No line of a filter is lost.
    let text = "exec > >(cat); for i in $(seq 50); do echo $i; done";
    let lines: String = (1..=50).map(|i| format!("{i}\n")).collect();
    for _ in 0..60 {
        assert_eq!(client_says(&server, text), lines);
    }
    server.finish().await;
}

/// What a script prints, by a shell that knows `>(…)`; busybox's does not, so it is done by a pipe that is inherited.
fn client_says(server: &Server, text: &str) -> String {
    let text = text.replace("exec > >(cat);", "rm -f /f; mkfifo /f; cat </f & exec >/f;");
    let said = command(server, &["exec", "c", "sh", "-c", &text]).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    String::from_utf8(said.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_program_is_known_at_once_and_that_of_its_output_with_the_container() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let mut events = command(&server, &["events", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let spec = ProcessSpec { id: "p".into(), ..script("sleep 1000 & exit 3") };
    // The listener may come after the end of the first ones, which it does not hear of.
    let mut held = Vec::new();
    let exit = loop {
        let spec = ProcessSpec { id: format!("p{}", held.len()), ..spec.clone() };
        held.push(client.run("c", &spec, listen()).await.unwrap());
        let heard = async {
            loop {
                let line: String = told.recv().await.expect("events");
                if line.contains("exit") {
                    return line;
                }
            }
        };
        if let Ok(line) = tokio::time::timeout(Duration::from_secs(2), heard).await {
            break line;
        }
        assert!(held.len() < 30, "nothing is heard");
    };
    assert!(exit.contains("\"status\":3") || exit.contains("\"status\": 3"), "{exit}");
    events.kill().unwrap();
    events.wait().unwrap();
    // Their clients wait for the rest of their output, until there cannot be any.
    let waits = held[0].wait();
    assert!(tokio::time::timeout(Duration::from_millis(300), waits).await.is_err());
    client.stop("c", true).await.unwrap();
    for process in held {
        assert_eq!(end(process).await.code, 3);
    }
    let left = client.run("c", &ProcessSpec { id: "q".into(), ..spec }, listen()).await.unwrap();
    assert!(tokio::time::timeout(LONG, left.wait()).await.is_err());
    client.destroy("c").await.unwrap();
    assert_eq!(end(left).await.code, 3);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_output_goes_nowhere_says_so() {
    let server = Server::start().await;
    server.create("c").await;
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let said =
        command(&server, &["exec", "c", "echo", "ok"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let err = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(125), "{err}");
    assert!(err.contains("output is lost: No space left on device"), "{err}");
    // A reader that has seen enough ends the program, unless signals are not for it.
    let pipe = |args: &[&str]| {
        let mut child = piped(&server, args);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (line, child)
    };
    let (line, child) =
        pipe(&["exec", "c", "sh", "-c", "trap 'touch /told; exit 4' TERM; while :; do echo x; done"]);
    let (status, err) = tokio::task::spawn_blocking(move || ended(child)).await.unwrap();
    assert_eq!((line.as_str(), status.code(), err.as_str()), ("x\n", Some(4), ""));
    let client = server.client();
    let spec = ProcessSpec { id: "p".into(), ..script("while :; do echo x; done") };
    let living = client.run("c", &spec, Io::default()).await.unwrap();
    let (line, child) = pipe(&["attach", "--no-signals", "c", "p"]);
    let (status, err) = tokio::task::spawn_blocking(move || ended(child)).await.unwrap();
    assert_eq!((line.as_str(), status.code(), err.as_str()), ("x\n", Some(141), ""));
    assert!(tokio::time::timeout(LONG, living.wait()).await.is_err(), "the process has ended");
    server.finish().await;
}

#[test]
fn a_client_that_is_told_of_a_loss_fails() {
    let dir = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut asked, mut streams) = (String::new(), Vec::new());
        for number in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            if number == 0 {
                asked = head;
                stream.write_all(b"{\"process_id\":\"p\",\"stream_id\":\"1\"}\n").unwrap();
            } else if head.contains("stdout") {
                stream.write_all(b"some").unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            } else {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
            streams.push(stream);
        }
        streams[0].write_all(b"{\"process_id\":\"p\",\"exit_status\":0,\"lost\":3000000}\n").unwrap();
        (asked, streams)
    });
    let said = Command::new(crate::support::WARDIAN)
        .args(["exec", "c", "true"])
        .env("WARDIAN_SOCKET", &socket)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let err = String::from_utf8(said.stderr).unwrap();
    assert_eq!((said.status.code(), said.stdout.as_slice()), (Some(125), &b"some"[..]), "{err}");
    assert!(err.contains("3.0 MB of output were lost"), "{err}");
    let (asked, _streams) = server.join().unwrap();
    assert!(asked.contains("Wardian-Wait-For: stdout,stderr\r\n"), "{asked}");
}
