//! What the server and the keepers hold for programs that have ended.

use crate::support::{STUCK, Server, listen, say, script};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use wardian_garden::wire::ProcessSpec;
use wardian_garden::{Client, Io};

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The keeper of a container: the parent of its pid 1.
async fn keeper(server: &Server, handle: &str) -> u32 {
    let init = crate::support::init(server, handle).await;
    crate::support::parent(init).unwrap()
}

/// Programs that leave something behind, which holds their outputs open; their clients go.
async fn leave(client: &Client, handle: &str, programs: usize) {
    for _ in 0..programs {
        let left = script("sleep 100000 & exit 0");
        drop(client.run(handle, &left, listen()).await.unwrap());
    }
}

#[tokio::test]
async fn outputs_that_outlive_their_programs_are_few() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let spec = ProcessSpec { id: "first".into(), ..script("echo early; sleep 100000 & exit 3") };
    client.run("c", &spec, Io::default()).await.unwrap();
    let keeper = keeper(&server, "c").await;
    let before = [server.settled_descriptors().await, descriptors(keeper)];
    leave(&client, "c", 200).await;
    // Two for each of those that are left open, and what has not been closed yet.
    let started = Instant::now();
    loop {
        let now = [server.descriptors(), descriptors(keeper)];
        if now[0] <= before[0] + 80 && now[1] <= before[1] + 80 {
            break;
        }
        assert!(started.elapsed() < STUCK / 4, "{before:?} became {now:?}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
        // The clients of the last ones have just gone.
        leave(&client, "c", 1).await;
    }
    // The first is over: whoever comes hears how it has ended.
    let attached = client.attach("c", "first", listen()).await.unwrap();
    assert_eq!(tokio::time::timeout(STUCK, attached.wait()).await.unwrap().unwrap(), 3);
    // A client that is there keeps its own.
    let mut watched = Vec::new();
    for _ in 0..40 {
        watched.push(client.run("c", &script("(sleep 3; echo late) & exit 4"), listen()).await.unwrap());
    }
    for process in watched {
        let said = crate::support::end(process).await;
        assert_eq!((said.code, said.out.as_str()), (4, "late\n"));
    }
    client.destroy("c").await.unwrap();
    let started = Instant::now();
    while server.descriptors() > before[0] {
        assert!(started.elapsed() < STUCK / 4, "{} were {before:?}", server.descriptors());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.finish().await;
}

fn limit(server: &Server, current: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap().current
}

/// Ask for a program while the server has so many descriptors left.
async fn ask(server: &Server, left: usize) -> String {
    let mut stream: UnixStream = server.connect();
    stream.write_all(b"GET /ping HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
    let mut reply = [0; 4096];
    assert!(stream.read(&mut reply).unwrap() > 0);
    let body = "{\"path\":\"sleep\",\"args\":[\"100000\"]}";
    server.settled_descriptors().await;
    let names = crate::support::names(format!("/proc/{}/fd", server.pid()).as_ref());
    let used: Vec<u64> = names.iter().filter_map(|name| name.rsplit('/').next()?.parse().ok()).collect();
    let free = (0..).filter(|number| !used.contains(number));
    let before = limit(server, free.take(left + 1).last());
    write!(
        stream,
        "POST /containers/c/processes HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let read = stream.read(&mut reply);
    limit(server, before);
    String::from_utf8_lossy(&reply[..read.unwrap()]).into_owned()
}

#[tokio::test]
async fn a_container_outlives_a_shortage_of_descriptors() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let (mut started, mut lacked) = (0, 0);
    for left in 0..16 {
        let reply = ask(&server, left).await;
        if reply.starts_with("HTTP/1.1 201 ") {
            started += 1;
        } else {
            lacked += usize::from(reply.contains("no file descriptor is left"));
        }
        assert_eq!(say(&client, "c", "echo works").await, "works", "{left} left: {reply}\n{}", server.log());
    }
    assert!(started > 0 && lacked > 0, "{started} {lacked}\n{}", server.log());
    // Programs of which nobody knows do not go on.
    let sleeping =
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep '^sleep '; done | wc -l";
    let began = Instant::now();
    while say(&client, "c", sleeping).await != started.to_string() {
        assert!(began.elapsed() < STUCK / 4, "{started} were started\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.finish().await;
}

#[tokio::test]
async fn a_program_that_has_ended_is_a_few_bytes() {
    let server = Server::start().await;
    let handles = ["a", "b", "c", "d", "e"];
    for handle in handles {
        server.create(handle).await;
    }
    let client = server.client();
    let spec = ProcessSpec { path: "true".into(), ..Default::default() };
    let first = client.run("a", &ProcessSpec { id: "first".into(), ..script("exit 7") }, listen()).await;
    assert_eq!(crate::support::end(first.unwrap()).await.code, 7);
    let run = async |each: usize| {
        for handle in handles {
            for _ in 0..each {
                let process = client.run(handle, &spec, Io::default()).await.unwrap();
                assert_eq!(process.wait().await.unwrap(), 0);
            }
        }
    };
    run(100).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = server.memory("RssAnon");
    run(800).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = server.memory("RssAnon");
    assert!(after < before + (6 << 10), "{before} KiB became {after}");
    // The oldest is known all the same.
    let attached = client.attach("a", "first", listen()).await.unwrap();
    assert_eq!(crate::support::end(attached).await.code, 7);
    server.finish().await;
}
