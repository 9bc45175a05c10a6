//! The command line on a terminal.

use crate::commands::command;
use crate::support::{STUCK, Server, ended_within, signal};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A terminal with a program on it.
struct Terminal {
    /// None: it was closed.
    keyboard: Option<File>,
    /// Ours, to look at its mode.
    slave: File,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
    before: Termios,
}

impl Terminal {
    fn start(server: &Server, args: &[&str]) -> Self {
        Self::start_by(server, &[], args)
    }

    /// The same, started by another program, which is given the command line.
    fn start_by(server: &Server, program: &[&str], args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = OpenOptions::new();
        let open = || {
            use std::os::unix::fs::OpenOptionsExt as _;
            // Without it the terminal would become ours.
            let noctty = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
            slave.clone().read(true).write(true).custom_flags(noctty).open(name.to_str().unwrap()).unwrap()
        };
        let ours = open();
        let before = tcgetattr(&ours).unwrap();
        resize(&ours, 101, 41);
        let wardian = command(server, args);
        // The terminal must be its controlling one for changes of size and hang-ups to reach it.
        let mut setsid = Command::new("setsid");
        setsid.arg("--ctty").args(program).arg(wardian.get_program()).args(wardian.get_args());
        setsid.env("WARDIAN_SOCKET", server.socket()).env("TERM", "vt220");
        let child = setsid.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
        drop(setsid);
        let master = File::from(master);
        let (mut reader, shown) = (master.try_clone().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let all = shown.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = reader.read(&mut buffer) {
                if n == 0 {
                    return;
                }
                all.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { keyboard: Some(master), slave: ours, shown, child, before }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until this is shown, and forgets what was shown up to it.
    fn until(&self, text: &str) {
        let begun = Instant::now();
        loop {
            let mut shown = self.shown.lock().unwrap();
            let all = String::from_utf8_lossy(&shown).into_owned();
            if let Some(at) = all.find(text) {
                shown.drain(..at + text.len());
                return;
            }
            drop(shown);
            assert!(begun.elapsed() < STUCK, "{text:?} is not shown, but {all:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn kind(&self, text: &str) {
        self.keyboard.as_ref().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Waits until the keys go through.
    fn until_raw(&self) {
        let begun = Instant::now();
        while !self.is_raw() {
            assert!(begun.elapsed() < STUCK, "{}", self.text());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&mut self) -> ExitStatus {
        let ended = ended_within(&mut self.child, STUCK);
        ended.unwrap_or_else(|| panic!("it does not end: {}", self.text()))
    }

    /// The terminal is as it was.
    fn is_as_before(&self) {
        let now = tcgetattr(&self.slave).unwrap();
        assert_eq!(
            (now.local_modes, now.input_modes, now.output_modes),
            (self.before.local_modes, self.before.input_modes, self.before.output_modes)
        );
    }
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

pub fn handles(server: &Server) -> String {
    String::from_utf8(command(server, &["ps", "-aq"]).output().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn a_shell_on_a_terminal() {
    let server = Server::start().await;
    let mut terminal = Terminal::start(&server, &["run", "--rm", "-it", "--", "sh"]);
    terminal.until_raw();
    terminal.kind("stty size; echo term $TERM; tty\n");
    terminal.until("41 101\r\n");
    terminal.until("term vt220\r\n");
    terminal.until("/dev/pts/0\r\n");
    // Ctrl-C ends what the shell has in the foreground, and the shell lives on.
    terminal.kind("sh -c 'echo sl''eeps; exec sleep 1000'\n");
    terminal.until("sleeps\r\n");
    terminal.kind("\x03");
    terminal.kind("echo al''ive; exit 4\n");
    terminal.until("alive\r\n");
    assert_eq!(terminal.end().code(), Some(4), "{}", terminal.text());
    terminal.is_as_before();
    assert_eq!(handles(&server), "");
    server.finish().await;
}

/// As timeout(1) starts it: nobody brings it to the foreground.
#[tokio::test]
async fn in_the_background_it_is_stopped_and_hears_signals() {
    let server = Server::start().await;
    server.create("c").await;
    let script = "timeout 1 \"$0\" \"$@\"; echo ended $?";
    let mut terminal =
        Terminal::start_by(&server, &["sh", "-c", script], &["exec", "-it", "c", "sleep", "1000"]);
    terminal.until("ended 124\r\n");
    assert_eq!(terminal.end().code(), Some(0));
    // It has begun nothing that would have to be ended.
    let processes = server.client().info("c").await.unwrap().process_ids;
    assert!(processes.is_none_or(|ids| ids.is_empty()));
    // Whoever brings it to the foreground goes on.
    let script = "set -m; \"$0\" \"$@\" & sleep 0.5; fg; echo ended $?";
    let mut terminal =
        Terminal::start_by(&server, &["sh", "-c", script], &["exec", "-it", "c", "sh", "-c", "exit 7"]);
    terminal.until("ended 7\r\n");
    assert_eq!(terminal.end().code(), Some(0));
    server.finish().await;
}

#[tokio::test]
async fn a_change_of_size_arrives() {
    let server = Server::start().await;
    let script = "trap 'stty size; exit 2' WINCH; stty size; while :; do sleep 0.02; done";
    let mut terminal = Terminal::start(&server, &["run", "--rm", "-it", "--", "sh", "-c", script]);
    terminal.until("41 101\r\n");
    resize(&terminal.slave, 77, 33);
    terminal.until("33 77\r\n");
    assert_eq!(terminal.end().code(), Some(2));
    server.finish().await;
}

#[tokio::test]
async fn leaving_a_shell_alone_and_coming_back() {
    let server = Server::start().await;
    let mut terminal = Terminal::start(&server, &["run", "--name", "t", "-it", "--", "sh"]);
    terminal.until_raw();
    terminal.kind("x=kept; echo rea''dy\n");
    terminal.until("ready\r\n");
    terminal.kind("\x10\x11");
    assert_eq!(terminal.end().code(), Some(0));
    terminal.until("detached; `wardian attach -it t` comes back");
    terminal.is_as_before();
    assert_eq!(handles(&server), "t\n");

    let mut terminal = Terminal::start(&server, &["attach", "-it", "t"]);
    terminal.until_raw();
    terminal.kind("echo $x; exit 3\n");
    terminal.until("kept\r\n");
    assert_eq!(terminal.end().code(), Some(3), "{}", terminal.text());
    terminal.is_as_before();

    let mut terminal = Terminal::start(&server, &["exec", "-it", "t", "sh"]);
    terminal.until_raw();
    // Ctrl-P alone is a key like others: the shell's last line.
    terminal.kind("echo on''ce\n");
    terminal.until("once\r\n");
    terminal.kind("exit 8\n");
    assert_eq!(terminal.end().code(), Some(8));
    server.finish().await;
}

#[tokio::test]
async fn a_terminal_is_put_back_whatever_ends_us() {
    let server = Server::start().await;
    for number in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut terminal = Terminal::start(
            &server,
            &[
                "run",
                "--rm",
                "-it",
                "--",
                "sh",
                "-c",
                "trap 'exit 5' TERM; echo up; while :; do sleep 0.02; done",
            ],
        );
        terminal.until("up\r\n");
        assert!(terminal.is_raw());
        signal(terminal.child.id(), number);
        assert_eq!(terminal.end().code(), Some(5), "{number:?}");
        terminal.is_as_before();
        assert_eq!(handles(&server), "", "{number:?}");
    }
    // One that is kept goes on without a terminal, and so does its process.
    let mut terminal = Terminal::start(&server, &["run", "--name", "k", "-it", "--", "sh"]);
    terminal.until_raw();
    terminal.kind("x=kept; echo rea''dy\n");
    terminal.until("ready\r\n");
    signal(terminal.child.id(), Signal::HUP);
    assert_eq!(terminal.end().code(), Some(129));
    terminal.is_as_before();
    let mut terminal = Terminal::start(&server, &["attach", "-it", "k"]);
    terminal.until_raw();
    terminal.kind("echo $x; exit\n");
    terminal.until("kept\r\n");
    assert_eq!(terminal.end().code(), Some(0));
    server.finish().await;
}

#[tokio::test]
async fn ctrl_c_on_a_terminal_without_t() {
    let server = Server::start().await;
    let mut terminal = Terminal::start(
        &server,
        &["run", "--rm", "--", "sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done"],
    );
    terminal.until("up");
    assert!(!terminal.is_raw());
    terminal.kind("\x03");
    assert_eq!(terminal.end().code(), Some(6));
    assert_eq!(handles(&server), "");
    // A tar on a terminal helps nobody.
    let mut terminal = Terminal::start(&server, &["cp", "x:/", "-"]);
    assert_eq!(terminal.end().code(), Some(2));
    terminal.until("a tar on a terminal helps nobody");
    server.finish().await;
}
