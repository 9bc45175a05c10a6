//! Numbers of processes come round again: whoever has one by then must not be taken for its former owner.

use crate::support::{Server, WARDIAN};
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wardian_needs::needs;

/// So few that the test can hold them all. The first 300 are not given out a second time (RESERVED_PIDS of the kernel).
const NUMBERS: u32 = 600;
const FIRST: u32 = 300;

/// Programs of a pid namespace that end with it.
struct Inside {
    init: Child,
    /// The namespace's pid 1 as the host sees it.
    pid: String,
}

impl Inside {
    /// A pid namespace with [`NUMBERS`] numbers.
    fn new() -> Self {
        const FILE: &str = "/proc/sys/kernel/pid_max";
        let before = std::fs::read_to_string(FILE).unwrap();
        // Past the numbers that are given out but once.
        let script = "mount -t proc proc /proc && echo $1 >/proc/sys/kernel/pid_max; \
                      i=0; while [ $i -lt $2 ]; do (:) & wait; i=$((i+1)); done; exec sleep 1000";
        let init = Command::new("unshare")
            .args([
                "--pid",
                "--fork",
                "--mount",
                "--kill-child",
                "sh",
                "-c",
                script,
                "sh",
                &NUMBERS.to_string(),
                &FIRST.to_string(),
            ])
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", init.id());
        let begin = Instant::now();
        let pid = loop {
            let pid = std::fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if !pid.is_empty() && line.starts_with(b"sleep\0") {
                break pid;
            }
            assert!(begin.elapsed() < crate::support::STUCK, "no namespace");
            std::thread::sleep(Duration::from_millis(5));
        };
        let inside = Self { init, pid };
        if std::fs::read_to_string(FILE).unwrap() != before {
            std::fs::write(FILE, before).unwrap();
            panic!("this kernel has one pid_max for the whole host");
        }
        inside
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--pid", "--mount", "--", program]);
        command
    }

    /// A process that sleeps; `None`: there is no number left.
    fn sleeper(&self) -> Option<Child> {
        let mut child = self.command("sleep").arg("1000").stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        while child.try_wait().unwrap().is_none() {
            if !std::fs::read_to_string(&children).unwrap_or_default().is_empty() {
                return Some(child);
            }
            if begin.elapsed() > crate::support::STUCK {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        child.wait().unwrap();
        assert!(begin.elapsed() < crate::support::STUCK, "nsenter does not start a process");
        None
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// A stream-in is stalled until every number belongs to a stranger; then its container is destroyed.
#[tokio::test]
async fn a_destroy_kills_no_stranger() {
    needs!(PidMax);
    let mut server = Server::start().await;
    server.terminate().await;
    let inside = Inside::new();
    let theirs = server.command();
    let mut command = inside.command(&WARDIAN);
    command.args(theirs.get_args()).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(std::fs::File::create(server.base().join("inside.log")).unwrap());
    server.restart_as(command).await;
    let client = server.create("c").await;
    let mut stalled = server.connect();
    let head = "PUT /containers/c/files?destination=%2Ftmp&user= HTTP/1.1\r\nHost: api\r\nContent-Length: 1000000\r\n\r\n";
    stalled.write_all(head.as_bytes()).unwrap();
    // Its first stage has ended when the helper is at work.
    let begin = Instant::now();
    let id = server.id("c").await;
    while crate::support::members(&id).len() < 2 {
        assert!(begin.elapsed() < crate::support::STUCK, "no helper");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut strangers = Vec::new();
    while let Some(sleeper) = inside.sleeper() {
        strangers.push(sleeper);
        assert!(strangers.len() < 2 * NUMBERS as usize, "the numbers do not come to an end");
    }
    assert!(strangers.len() > (NUMBERS - FIRST) as usize / 2, "{}", strangers.len());
    client.destroy("c").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ended: Vec<_> = strangers.iter_mut().filter_map(|child| child.try_wait().unwrap()).collect();
    assert!(ended.is_empty(), "{} of {}: {ended:?}", ended.len(), strangers.len());
    // nsenter ends with what it has started.
    drop(inside);
    strangers.iter_mut().for_each(|child| drop(child.wait()));
    server.ended().await;
    server.restart().await;
    server.finish().await;
}
