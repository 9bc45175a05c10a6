//! A deadline for each test: one that hangs says what it waits for, and ends.

use crate::support::{describe, signal};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::SignalKind;

/// Nothing takes so long, also beside all the others and on a slow machine.
const LIMIT: Duration = Duration::from_secs(600);
/// For tests of this: seconds.
const LIMIT_VARIABLE: &str = "WARDIAN_TEST_DEADLINE";
/// Whose children have been killed fails by itself in this time, or everything is aborted.
const GRACE: Duration = Duration::from_secs(60);

/// Tests under way, by the ids of their threads.
static WATCHED: Mutex<BTreeMap<u32, Watched>> = Mutex::new(BTreeMap::new());

struct Watched {
    test: String,
    since: Instant,
    limit: Duration,
    /// What it has begun last.
    step: String,
    /// That of its latest server.
    log: Option<PathBuf>,
    told: bool,
}

/// A thread under watch, until it ends.
struct Watch(u32);

impl Watch {
    fn begin() -> Self {
        // `PID/task/TID`.
        let id = std::fs::read_link("/proc/thread-self").ok();
        let id = id.and_then(|link| link.file_name()?.to_str()?.parse().ok()).unwrap_or_default();
        let seconds = std::env::var(LIMIT_VARIABLE).ok().and_then(|text| text.parse().ok());
        let watched = Watched {
            test: std::thread::current().name().unwrap_or("a test's thread").to_owned(),
            since: Instant::now(),
            limit: seconds.map_or(LIMIT, Duration::from_secs),
            step: "nothing yet".to_owned(),
            log: None,
            told: false,
        };
        all().insert(id, watched);
        Self(id)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        all().remove(&self.0);
    }
}

thread_local!(static WATCH: Watch = Watch::begin());

fn all() -> MutexGuard<'static, BTreeMap<u32, Watched>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes what is known of this thread's test, if it has not ended.
fn note(change: impl FnOnce(&mut Watched)) {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // Not on a thread of a runtime's.
        let _ = std::thread::spawn(heed_signals).join();
        let _ = std::thread::Builder::new().name("watchdog".into()).spawn(watch);
    });
    let _ = WATCH.try_with(|watch| all().get_mut(&watch.0).map(change));
}

/// This thread's test has a deadline from now on.
pub fn begin() {
    note(|_| ());
}

/// What it waits for next.
pub fn step(what: &str) {
    note(|watched| {
        watched.step = what.to_owned();
        // One thread for all tests (`--test-threads=1`): then each step has its deadline.
        if watched.test == "main" {
            watched.since = Instant::now();
        }
    });
}

/// It has a server with this log.
pub fn log(path: &Path) {
    note(|watched| watched.log = Some(path.to_owned()));
}

/// It may take so long.
pub fn allow(limit: Duration) {
    note(|watched| watched.limit = limit);
}

/// Who was started with signals ignored, as by the `&` of a script's shell, hands that on: the programs under test would
/// not hear of the signals that tests send. A handler is not handed on.
fn heed_signals() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();
    for kind in [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()] {
        if wardian_lab::signals::is_ignored(&status, kind.as_raw_value()) {
            drop(tokio::signal::unix::signal(kind));
        }
    }
}

fn watch() {
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let mut all = all();
        for (id, watched) in all.iter_mut() {
            let age = watched.since.elapsed();
            if age > watched.limit && !watched.told {
                watched.told = true;
                say(&watched.report(*id));
                for child in children(*id) {
                    signal(child, rustix::process::Signal::KILL);
                }
            } else if age > watched.limit + GRACE {
                say(&format!("{}: it does not end either now that its children are killed", watched.test));
                std::process::abort();
            }
        }
    }
}

/// Not with `eprintln!`, which keeps it for the end of whichever test has started the watchdog.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "--- watchdog: {text}");
}

/// Processes that a thread of ours has started.
fn children(thread: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

impl Watched {
    fn report(&self, thread: u32) -> String {
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/self/task/{thread}/{file}"))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let children: String = children(thread).iter().map(|pid| format!("\n  {}", describe(pid))).collect();
        let log = self.log.as_ref().map(|path| std::fs::read_to_string(path).unwrap_or_default());
        let log = log.unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "{} has not ended after {} s\nit waited for: {}\nin the kernel: {} (system call {})\nits children, which are killed \
             now:{children}\nlog of its server:\n{}\n---",
            self.test,
            self.since.elapsed().as_secs(),
            self.step,
            read("wchan"),
            read("syscall"),
            lines[lines.len().saturating_sub(60)..].join("\n")
        )
    }
}

/// What is to hang, under another deadline.
#[test]
#[ignore = "hangs; the next test runs it"]
fn a_test_that_hangs() {
    step("a sleeper");
    std::process::Command::new("sleep").arg("1000").status().unwrap();
    panic!("the sleeper has ended");
}

#[test]
fn a_test_that_hangs_says_what_it_waits_for() {
    begin();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "watchdog::a_test_that_hangs", "--ignored"]).env(LIMIT_VARIABLE, "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(101), "{said}");
    for part in ["a_test_that_hangs has not ended after 1 s", "it waited for: a sleeper", "sleep 1000"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn tests_that_were_started_with_signals_ignored_still_end() {
    begin();
    // As `./dev test &` in a script starts them.
    let mut command = std::process::Command::new("setsid");
    command.args(["--wait", "sh", "-c", "trap '' INT HUP QUIT; exec \"$0\" --exact \"$@\""]);
    command.arg(std::env::current_exe().unwrap());
    command.args([
        "commands::whoever_is_told_to_end_ends_in_good_order",
        "teardown::interrupted_while_the_data_grows_old",
    ]);
    let output = command.env(LIMIT_VARIABLE, "120").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let good = output.status.success() && said.contains("2 passed");
    assert!(good, "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
