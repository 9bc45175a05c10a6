//! Processes with a terminal.

use crate::support::{STUCK, Server, end, listen, pea, run, script, sh};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use wardian_garden::wire::{ProcessSpec, Tty, WindowSize};
use wardian_garden::{Client, Io, Process};

/// With a terminal; of the usual size if `size` is 0.
fn tty(spec: ProcessSpec, (columns, rows): (u16, u16)) -> ProcessSpec {
    let window_size = (columns > 0).then_some(WindowSize { columns, rows });
    ProcessSpec { tty: Some(Tty { window_size }), ..spec }
}

/// A process, what to type into it, and what it prints by lines.
async fn start(
    client: &Client,
    spec: &ProcessSpec,
) -> (Process, tokio::io::DuplexStream, tokio::io::Lines<BufReader<wardian_garden::OutputReader>>) {
    let (keyboard, theirs) = tokio::io::duplex(4096);
    let io = Io { stdin: Some(Box::new(theirs)), ..listen() };
    let mut process = client.run("t", spec, io).await.unwrap();
    let lines = BufReader::new(process.take_stdout().unwrap()).lines();
    (process, keyboard, lines)
}

#[tokio::test]
async fn a_terminal_is_a_terminal() {
    let server = Server::start().await;
    let client = server.create("t").await;
    let usual =
        run(&client, "t", &tty(script("stty size; tty; echo out; echo err >&2; exit 5"), (0, 0))).await;
    assert_eq!((usual.code, usual.out.as_str()), (5, "24 80\r\n/dev/pts/0\r\nout\r\nerr\r\n"), "{usual:?}");
    assert_eq!(usual.err, "");
    let sized = run(&client, "t", &tty(script("stty size; stty -a | grep -o ' onlcr'"), (456, 123))).await;
    assert_eq!(sized.out, "123 456\r\n onlcr\r\n");
    // It is the controlling terminal, and its owner's.
    let owned =
        ProcessSpec { user: "1001:1002".into(), ..script("echo seen >/dev/tty; stat -c '%u %g %a' $(tty)") };
    assert_eq!(run(&client, "t", &tty(owned, (0, 0))).await.out, "seen\r\n1001 5 620\r\n");
    // Its end leaves nothing behind.
    let started = std::time::Instant::now();
    while sh(&client, "t", "ls /dev/pts").await.out != "ptmx\n" {
        assert!(started.elapsed() < STUCK);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let missing = ProcessSpec { path: "no-such-program".into(), ..ProcessSpec::default() };
    let error = client.run("t", &tty(missing, (0, 0)), Io::default()).await.unwrap_err();
    assert!(error.to_string().contains("executable file not found in $PATH"), "{error}");
    server.finish().await;
}

#[tokio::test]
async fn typing_resizing_and_interrupting() {
    let server = Server::start().await;
    let client = server.create("t").await;
    let spec = tty(
        script(
            "trap 'stty size' WINCH; trap 'echo stopped; exit 7' INT; echo ready; while :; do read x && echo got $x; done",
        ),
        (100, 30),
    );
    let (process, mut keyboard, mut lines) = start(&client, &spec).await;
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "ready");
    keyboard.write_all(b"hello\n").await.unwrap();
    // The terminal echoes.
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "hello");
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "got hello");
    process.resize(123, 45).await.unwrap();
    keyboard.write_all(b"\n").await.unwrap();
    loop {
        let line = lines.next_line().await.unwrap().unwrap();
        if line == "45 123" {
            break;
        }
        assert!(line.is_empty() || line == "got ", "{line:?}");
    }
    // Ctrl-C reaches the foreground group through the terminal.
    keyboard.write_all(b"\x03").await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 7);
    let mut last = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        last = line;
    }
    assert_eq!(last, "^Cstopped");
    server.finish().await;
}

#[tokio::test]
async fn whoever_attaches_sees_and_types_too() {
    let mut server = Server::start().await;
    let client = server.create("t").await;
    let spec = ProcessSpec {
        id: "shell".into(),
        ..tty(
            script("stty -echo; echo ready; while read x; do echo got $x; [ $x != end ] || exit 9; done"),
            (0, 0),
        )
    };
    let (first, keyboard, mut lines) = start(&client, &spec).await;
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "ready");
    // A client that goes does not end what others may type.
    drop((first, keyboard, lines));
    let attach = |client: Client| async move {
        let (keyboard, theirs) = tokio::io::duplex(4096);
        let io = Io { stdin: Some(Box::new(theirs)), ..listen() };
        let mut process = client.attach("t", "shell", io).await.unwrap();
        let lines = BufReader::new(process.take_stdout().unwrap()).lines();
        (process, keyboard, lines)
    };
    let (_second, mut keyboard, mut lines) = attach(client.clone()).await;
    keyboard.write_all(b"one\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "got one");
    server.kill9();
    server.restart().await;
    let (third, mut keyboard, mut lines) = attach(server.client()).await;
    keyboard.write_all(b"end\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "got end");
    assert_eq!(third.wait().await.unwrap(), 9);
    server.finish().await;
}

#[tokio::test]
async fn all_that_a_fast_printer_has_printed_arrives() {
    let server = Server::start().await;
    let client = server.create("t").await;
    let expected: String = (1..=10_000).map(|n| format!("{n}\r\n")).collect();
    for _ in 0..20 {
        let done = run(&client, "t", &tty(script("seq 10000"), (0, 0))).await;
        assert_eq!((done.code, done.out.len(), done.out == expected), (0, expected.len(), true));
    }
    server.finish().await;
}

#[tokio::test]
async fn a_pea_has_a_terminal_of_its_own_devpts() {
    let server = Server::start().await;
    let client = server.create("t").await;
    let image = server.image_with("marker", "x");
    let (outer, _keyboard, mut lines) = start(&client, &tty(script("tty; read x"), (0, 0))).await;
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "/dev/pts/0");
    let done = run(
        &client,
        "t",
        &tty(pea(&image, "tty; stty size; ls /dev/pts | tr '\\n' ' '; cat /marker"), (90, 20)),
    )
    .await;
    assert_eq!((done.code, done.out.as_str()), (0, "/dev/pts/0\r\n20 90\r\n0 ptmx x"), "{done:?}");
    outer.signal(true).await.unwrap();
    assert_eq!(outer.wait().await.unwrap(), 137);
    server.finish().await;
}

#[tokio::test]
async fn a_size_for_a_process_without_a_terminal_changes_nothing() {
    let server = Server::start().await;
    let client = server.create("t").await;
    let (process, keyboard, mut lines) = start(&client, &script("cat; exit 3")).await;
    process.resize(10, 10).await.unwrap();
    let mut keyboard = keyboard;
    keyboard.write_all(b"still here\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "still here");
    drop(keyboard);
    assert_eq!(process.wait().await.unwrap(), 3);
    assert!(server.log().contains("it has no terminal"), "{}", server.log());
    server.finish().await;
}

#[tokio::test]
async fn input_ends_when_everybody_has_ended_it() {
    let server = Server::start().await;
    let client = server.create("t").await;
    let spec = ProcessSpec { id: "cat".into(), ..script("cat; exit 4") };
    let (first, mut keyboard, mut lines) = start(&client, &spec).await;
    let (mut other_keyboard, theirs) = tokio::io::duplex(64);
    let second = client.attach("t", "cat", Io { stdin: Some(Box::new(theirs)), ..listen() }).await.unwrap();
    other_keyboard.write_all(b"from the second\n").await.unwrap();
    drop(other_keyboard);
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "from the second");
    keyboard.write_all(b"from the first\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "from the first");
    // One that goes without a word ends its input as well.
    let (_third_keyboard, theirs) = tokio::io::duplex(64);
    drop(client.attach("t", "cat", Io { stdin: Some(Box::new(theirs)), ..listen() }).await.unwrap());
    keyboard.write_all(b"again\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "again");
    drop(keyboard);
    assert_eq!(first.wait().await.unwrap(), 4);
    let done = tokio::time::timeout(STUCK, end(second)).await.unwrap();
    assert_eq!((done.code, done.out.as_str()), (4, "from the second\nfrom the first\nagain\n"));
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_output_and_nobody_else_waits() {
    let server = Server::start().await;
    let client = server.create("t").await;
    let spec = ProcessSpec { id: "loud".into(), ..script("read x; head -c 314572800 /dev/zero; exit 6") };
    let (mut deaf, mut keyboard, lines) = start(&client, &spec).await;
    let mut reader = lines.into_inner().into_inner();
    let listener = client.attach("t", "loud", listen()).await.unwrap();
    keyboard.write_all(b"\n").await.unwrap();
    let done = tokio::time::timeout(STUCK, end(listener)).await.unwrap();
    assert_eq!((done.code, done.out.len()), (6, 300 << 20));
    assert_eq!(deaf.wait().await.unwrap(), 6);
    let mut got = Vec::new();
    reader.read_to_end(&mut got).await.unwrap();
    assert!(deaf.lost() > 0, "{}", got.len());
    assert_eq!(got.len() as u64 + deaf.lost(), 300 << 20);
    assert!(deaf.take_stderr().is_some());
    assert!(server.log().contains("process.output-lost"), "{}", server.log());
    server.finish().await;
}
