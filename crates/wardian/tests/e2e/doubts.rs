//! What other users mount, and what that must not do to a doctor of root's, or to a server.

use crate::cleaned::CLEANING;
use crate::support::{Server, WARDIAN, ended_within, init, script};
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use wardian_garden::Io;

/// `nobody`.
const USER: u32 = 65534;

/// Shows a record of root's at many places of a namespace of its own, and exchanges each with a FIFO without end.
const EXCHANGE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char name[64];
    if (argc < 3 || chdir(argv[1])) return 1;
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS)) { puts("refused"); return 0; }
    mkdir("x", 0755);
    mkdir("y", 0755);
    for (int i = 0; i < 200; i++) {
        sprintf(name, "x/m%d", i);
        mkdir(name, 0755);
        if (mount(name, name, "", MS_BIND, 0)) { perror("mount"); return 1; }
        sprintf(name, "x/m%d/instance.json", i);
        close(open(name, O_CREAT | O_WRONLY, 0644));
        if (mount(argv[2], name, "", MS_BIND, 0)) { perror("mount the record"); return 1; }
        sprintf(name, "y/m%d", i);
        mkdir(name, 0755);
        sprintf(name, "y/m%d/instance.json", i);
        mkfifo(name, 0644);
    }
    puts("ready");
    fflush(stdout);
    for (;;) syscall(SYS_renameat2, AT_FDCWD, "x", AT_FDCWD, "y", 2);
}
"#;

/// A process that ends with the test.
struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command says, if it ends in time.
fn in_time(command: &mut Command) -> Option<String> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let file = || out.reopen().unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(file()).stderr(file()).spawn().unwrap();
    ended_within(&mut child, Duration::from_secs(60))?;
    Some(String::from_utf8_lossy(&std::fs::read(out.path()).unwrap()).into_owned())
}

#[tokio::test]
async fn a_user_who_exchanges_mounts_holds_no_doctor_up() {
    let _alone = CLEANING.lock().await;
    let server = Server::start().await;
    let open = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    // As /run/wardian is.
    open(&server.run(), 0o711);
    let base = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
    open(base.path(), 0o755);
    let (source, program) = (base.path().join("exchange.c"), base.path().join("exchange"));
    std::fs::write(&source, EXCHANGE).unwrap();
    assert!(Command::new("cc").args(["-static", "-o"]).args([&program, &source]).status().unwrap().success());
    // /dev/shm may forbid programs.
    let elsewhere = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/tmp").unwrap();
    open(elsewhere.path(), 0o755);
    let there = elsewhere.path().join("exchange");
    crate::support::copy_program(&program, &there);
    let hers = base.path().join("hers");
    std::fs::create_dir(&hers).unwrap();
    chown(&hers, Some(USER), Some(USER)).unwrap();
    let mut command = Command::new(&there);
    command.arg(&hers).arg(server.run().join("instance.json")).uid(USER).gid(USER);
    let mut attacker = Attacker(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    BufReader::new(attacker.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert!(["ready\n", "refused\n"].contains(&&*said), "{said:?}");
    for flag in ["--leaks", "--leaks", "--leaks", "--no-measure"] {
        let said = in_time(Command::new(WARDIAN).args(["doctor", flag]));
        assert!(said.is_some(), "doctor {flag} waits");
        assert!(!said.unwrap().contains(server.group().trim_start_matches("wardian-")), "{flag}");
    }
    drop(attacker);
    server.finish().await;
}

/// A command in a mount namespace of its own, where somebody has mounted something on a name that is no text.
fn beside_an_odd_mount(at: &Path, command: &Command) -> Command {
    let mut odd = Command::new("unshare");
    odd.args(["-m", "sh", "-c", "mount -t ramfs none \"$0\" && exec \"$@\""]).arg(at);
    odd.arg(command.get_program()).args(command.get_args());
    odd
}

#[tokio::test]
async fn a_mount_point_that_is_no_text_misleads_nobody() {
    let _alone = CLEANING.lock().await;
    let mut server = Server::start().await;
    let client = server.create("c").await;
    client.run("c", &script("exec sleep 1000"), Io::default()).await.unwrap();
    let pid = init(&server, "c").await;
    let tag = server.group().trim_start_matches("wardian-").to_owned();
    let odd = server.base().join(std::ffi::OsStr::from_bytes(b"bad\xff"));
    std::fs::create_dir(&odd).unwrap();
    server.kill9();
    let mut leaks = Command::new(WARDIAN);
    leaks.args(["doctor", "--leaks"]);
    let said = in_time(&mut beside_an_odd_mount(&odd, &leaks)).unwrap();
    let about: Vec<_> = said.lines().filter(|line| line.contains(&tag)).collect();
    assert!(about.len() == 1 && about[0].contains("which has no server"), "{said}");
    let mut clean = Command::new(WARDIAN);
    clean.args(["doctor", "--clean", "--yes"]);
    let said = in_time(&mut beside_an_odd_mount(&odd, &clean)).unwrap();
    assert!(Path::new("/proc").join(pid.to_string()).exists(), "{said}");

    // Its server starts all the same, and recovers what lives.
    let mut command = beside_an_odd_mount(&odd, &server.command());
    let log = std::fs::OpenOptions::new().append(true).open(server.base().join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    server.restart_as(command).await;
    assert_eq!(init(&server, "c").await, pid);
    server.client().destroy("c").await.unwrap();
    server.terminate().await;
    // So does a reset.
    let mut reset = Command::new(WARDIAN);
    reset.args(["reset", "--yes", "--root"]).arg(server.root()).arg("--run").arg(server.run());
    let said = in_time(&mut beside_an_odd_mount(&odd, &reset)).unwrap();
    assert!(!said.contains("UTF-8") && !said.to_lowercase().contains("error"), "{said}");
    server.restart().await;
    server.finish().await;
}
