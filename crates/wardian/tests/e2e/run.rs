//! Processes in a container.

use crate::support::{Out, STUCK, Server, digest, end, listen, message, run, say, script, sh};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wardian_garden::wire::{ContainerSpec, ProcessSpec};
use wardian_garden::{ErrorKind, Io};

#[tokio::test]
async fn output_and_exit_codes() {
    let server = Server::start().await;
    let client = server.create("r").await;
    let done = sh(&client, "r", "echo to-out; echo to-err >&2; exit 3").await;
    assert_eq!(done, Out { code: 3, out: "to-out\n".into(), err: "to-err\n".into() });
    assert_eq!(sh(&client, "r", "kill -9 $$").await.code, 137);
    assert_eq!(sh(&client, "r", "kill -15 $$").await.code, 143);
    for (kill, code) in [(true, 137), (false, 143)] {
        let process = client.run("r", &script("exec sleep 1000"), listen()).await.unwrap();
        process.signal(kill).await.unwrap();
        assert_eq!(end(process).await.code, code);
    }
    server.finish().await;
}

#[tokio::test]
async fn environment() {
    let server = Server::start().await;
    let client = server.client();
    let spec = ContainerSpec {
        handle: "e".into(),
        env: vec!["FROM=container".into(), "KEPT=yes".into()],
        ..Default::default()
    };
    client.create(&spec).await.unwrap();
    let env = |spec: ProcessSpec| {
        let client = client.clone();
        async move {
            let spec = ProcessSpec { path: "env".into(), args: Vec::new(), ..spec };
            let done = run(&client, "e", &spec).await;
            let mut lines: Vec<String> = done.out.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        }
    };
    let root_path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let user_path = "PATH=/usr/local/bin:/usr/bin:/bin";
    assert_eq!(
        env(ProcessSpec::default()).await,
        ["FROM=container", "HOME=/root", "KEPT=yes", root_path, "USER=root"]
    );
    let given = ProcessSpec {
        user: "vcap".into(),
        env: vec!["FROM=process".into(), "TWICE=1".into(), "TWICE=2".into()],
        ..Default::default()
    };
    assert_eq!(
        env(given).await,
        ["FROM=process", "HOME=/home/vcap", "KEPT=yes", user_path, "TWICE=2", "USER=vcap"]
    );
    let own = ProcessSpec {
        env: vec!["PATH=/bin".into(), "USER=x".into(), "HOME=/tmp".into()],
        ..Default::default()
    };
    assert_eq!(env(own).await, ["FROM=container", "HOME=/tmp", "KEPT=yes", "PATH=/bin", "USER=x"]);
    server.finish().await;
}

#[tokio::test]
async fn users() {
    let server = Server::start().await;
    let client = server.create("u").await;
    let ids = |user: &str| {
        let (client, spec) =
            (client.clone(), ProcessSpec { user: user.into(), ..script("id -u; id -g; pwd") });
        async move { run(&client, "u", &spec).await.out.replace('\n', " ") }
    };
    assert_eq!(ids("").await, "0 0 /root ");
    assert_eq!(ids("root").await, "0 0 /root ");
    assert_eq!(ids("vcap").await, "2000 2000 /home/vcap ");
    assert_eq!(ids("2000").await, "2000 2000 /home/vcap ");
    assert_eq!(ids("1000:1001").await, "1000 1001 / ");
    assert_eq!(ids("vcap:users").await, "2000 100 /home/vcap ");
    let refused = |user: &str| {
        let (client, spec) = (client.clone(), ProcessSpec { user: user.into(), ..script("true") });
        async move { message(client.run("u", &spec, listen()).await) }
    };
    assert_eq!(refused("bob").await, "unable to find user bob: no matching entries in passwd file");
    assert_eq!(refused("2147483648").await, "uids and gids must be in range 0-2147483647");
    server.finish().await;
}

#[tokio::test]
async fn working_directory() {
    let server = Server::start().await;
    let client = server.create("d").await;
    let spec =
        ProcessSpec { dir: "/made/for/it".into(), user: "vcap".into(), ..script("pwd; stat -c %U . ..") };
    assert_eq!(run(&client, "d", &spec).await.out, "/made/for/it\nvcap\nvcap\n");
    let relative = ProcessSpec { dir: "tmp".into(), ..script("true") };
    let error = message(client.run("d", &relative, listen()).await);
    assert!(error.contains("Cwd must be an absolute path"), "{error}");
    let file = ProcessSpec { dir: "/etc/passwd".into(), ..script("true") };
    let error = message(client.run("d", &file, listen()).await);
    assert!(error.contains("not a directory"), "{error}");
    server.finish().await;
}

#[tokio::test]
async fn programs_that_cannot_be_run() {
    let server = Server::start().await;
    let client = server.create("x").await;
    for (path, text) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/bin/nope", "exec: \"/bin/nope\": stat /bin/nope: no such file or directory"),
        ("", "exec: \"\": executable file not found in $PATH"),
    ] {
        let spec = ProcessSpec { path: path.into(), ..Default::default() };
        let error = client.run("x", &spec, listen()).await.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ExecutableNotFound), "{path}: {error}");
        assert!(error.to_string().contains(text), "{path}: {error}");
    }
    for path in ["/etc/passwd", "/etc"] {
        let spec = ProcessSpec { path: path.into(), ..Default::default() };
        let error = client.run("x", &spec, listen()).await.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::Other), "{path}: {error}");
        assert!(error.to_string().contains("permission denied"), "{path}: {error}");
    }
    server.until_idle("x").await;
    server.finish().await;
}

#[tokio::test]
async fn input_is_echoed_to_its_end() {
    let server = Server::start().await;
    let client = server.create("i").await;
    let (mut ours, theirs) = tokio::io::duplex(64);
    let spec = ProcessSpec { path: "cat".into(), ..Default::default() };
    let io = Io { stdin: Some(Box::new(theirs)), ..listen() };
    let mut process = client.run("i", &spec, io).await.unwrap();
    let mut stdout = process.take_stdout().unwrap();
    ours.write_all("grüße\n".as_bytes()).await.unwrap();
    let mut echo = vec![0; "grüße\n".len()];
    tokio::time::timeout(STUCK, stdout.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(echo).unwrap(), "grüße\n");
    drop(ours);
    assert_eq!(end(process).await.code, 0);
    // Nothing more.
    assert_eq!(stdout.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    server.finish().await;
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let server = Server::start().await;
    let client = server.create("m").await;
    let spec =
        script("dd if=/dev/urandom of=/tmp/r bs=1M count=8 2>/dev/null; sha256sum </tmp/r >&2; cat /tmp/r");
    let mut process = client.run("m", &spec, listen()).await.unwrap();
    let mut stdout = process.take_stdout().unwrap();
    let mut bytes = Vec::new();
    let (read, done) = tokio::join!(stdout.read_to_end(&mut bytes), end(process));
    read.unwrap();
    assert_eq!((done.code, bytes.len()), (0, 8 << 20));
    assert_eq!(done.err.split(' ').next().unwrap(), digest(&bytes));
    server.finish().await;
}

#[tokio::test]
async fn attach() {
    let server = Server::start().await;
    let client = server.create("a").await;
    let (mut ours, theirs) = tokio::io::duplex(64);
    let spec = ProcessSpec { id: "cat".into(), path: "cat".into(), ..Default::default() };
    let io = Io { stdin: Some(Box::new(theirs)), ..listen() };
    let first = client.run("a", &spec, io).await.unwrap();
    let second = server.client().attach("a", "cat", listen()).await.unwrap();
    assert_eq!(second.id(), "cat");
    ours.write_all(b"to both\n").await.unwrap();
    drop(ours);
    let (first, second) = tokio::join!(end(first), end(second));
    assert_eq!((first.code, first.out.as_str()), (0, "to both\n"));
    assert_eq!((second.code, second.out.as_str()), (0, "to both\n"));

    let spec = ProcessSpec { id: "seven".into(), ..script("exit 7") };
    assert_eq!(run(&client, "a", &spec).await.code, 7);
    let late = client.attach("a", "seven", listen()).await.unwrap();
    assert_eq!(end(late).await, Out { code: 7, out: String::new(), err: String::new() });
    let taken = client.run("a", &spec, listen()).await;
    assert_eq!(message(taken), "process ID 'seven' already in use");

    for (handle, id) in [("a", "nope"), ("nope", "cat")] {
        let error = client.attach(handle, id, listen()).await.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ProcessNotFound));
        assert_eq!(error.to_string(), format!("unknown process: {id}"));
    }
    server.finish().await;
}

#[tokio::test]
async fn a_process_outlives_its_client() {
    let server = Server::start().await;
    let client = server.create("o").await;
    let spec = ProcessSpec { id: "p".into(), ..script("cat >/dev/null; echo over >/tmp/over; exit 5") };
    let process = client.run("o", &spec, listen()).await.unwrap();
    drop(process);
    // Its input has ended with the client; it goes on.
    let again = client.attach("o", "p", listen()).await.unwrap();
    assert_eq!(end(again).await.code, 5);
    assert_eq!(say(&client, "o", "cat /tmp/over").await, "over");
    server.finish().await;
}

#[tokio::test]
async fn stop_ends_processes_and_keeps_the_container() {
    let server = Server::start().await;
    let client = server.create("s").await;
    let process = client.run("s", &script("exec sleep 1000"), listen()).await.unwrap();
    client.stop("s", true).await.unwrap();
    assert_eq!(end(process).await.code, 137);
    assert_eq!(client.info("s").await.unwrap().state, "stopped");
    let process =
        client.run("s", &script("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"), listen()).await;
    let mut process = process.unwrap();
    let mut stdout = process.take_stdout().unwrap();
    let mut up = [0; 3];
    stdout.read_exact(&mut up).await.unwrap();
    client.stop("s", false).await.unwrap();
    assert_eq!(end(process).await.code, 9);
    assert_eq!(sh(&client, "s", "true").await.code, 0);
    server.finish().await;
}
