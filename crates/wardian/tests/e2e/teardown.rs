//! `wardian lab teardown`: each switch, what nobody should ask of it, and an end at any moment.

use crate::cli::Said;
use crate::support::{STUCK, WARDIAN, base, ended_within, mounts, names, signal};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use wardian_needs::needs;

/// Settings of the kernel are everybody's: one test at a time changes them.
static SETTINGS: Mutex<()> = Mutex::new(());
const MB: u64 = 1 << 20;
/// A small experiment.
const SMALL: [&str; 4] = ["--mounts", "4", "--mb", "8"];

/// A file system of a test's own: nobody else syncs it.
struct Disk {
    base: tempfile::TempDir,
    at: PathBuf,
}

impl Disk {
    fn ext4() -> Self {
        let disk = Self::unmounted();
        let file = disk.base.path().join("disk");
        fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
        succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file));
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&disk.at));
        disk
    }

    fn tmpfs(options: &str) -> Self {
        let disk = Self::unmounted();
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&disk.at));
        disk
    }

    fn unmounted() -> Self {
        let base = base();
        let at = base.path().join("fs");
        fs::create_dir(&at).unwrap();
        Self { base, at }
    }

    fn report(&self) -> PathBuf {
        self.base.path().join("report")
    }

    fn start(&self, args: &[&str]) -> Child {
        let mut command = Command::new(WARDIAN);
        command.args(["lab", "teardown", "--fs"]).arg(&self.at).arg("--json").arg(self.report()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Whatever became of it, nothing of it may be left.
    fn run(&self, args: &[&str]) -> (Said, Value) {
        let child = self.start(args);
        let pid = child.id();
        let said: Said = child.wait_with_output().unwrap().into();
        self.nothing_is_left(pid);
        (said, self.json())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&fs::read(self.report()).unwrap_or_default()).unwrap_or_default()
    }

    /// It must succeed. The figures.
    fn good(&self, args: &[&str]) -> Value {
        let (said, report) = self.run(&[&SMALL, args].concat());
        assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
        assert_eq!(report["complete"], true, "{report:#}");
        assert!(report["error"].is_null(), "{report:#}");
        for phase in phases(&report) {
            assert!(said.out.contains(phase), "{args:?}: {said:?}");
        }
        report
    }

    /// It must fail, with these words.
    fn bad(&self, args: &[&str], words: &str) -> Value {
        let _ = fs::remove_file(self.report());
        let (said, report) = self.run(args);
        assert!(said.code == Some(1) && said.err.contains(words), "{args:?}: {said:?}");
        report
    }

    fn nothing_is_left(&self, pid: u32) {
        let left: Vec<String> =
            names(&self.at).into_iter().filter(|name| !name.ends_with("lost+found")).collect();
        assert_eq!(left, Vec::<String>::new());
        let below = mounts(&[&self.at.join("wardian-lab-")]);
        assert_eq!(below, Vec::<String>::new());
        assert!(!Path::new(&format!("/run/wardian-lab/{pid}.json")).exists());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).stderr(Stdio::null()).status();
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn phases(round: &Value) -> Vec<&str> {
    round["phases"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect()
}

fn phase<'a>(round: &'a Value, name: &str) -> &'a Value {
    let all = round["phases"].as_array().unwrap();
    all.iter().find(|phase| phase["name"] == name).unwrap_or_else(|| panic!("no {name}: {round:#}"))
}

fn each(round: &Value, name: &str) -> Vec<f64> {
    phase(round, name)["each_ms"].as_array().unwrap().iter().map(|ms| ms.as_f64().unwrap()).collect()
}

/// What wrote most, by its diagnosis, and how many bytes.
fn cause(round: &Value) -> (&str, u64) {
    let first = &round["diagnosis"]["causes"][0];
    (first["cause"].as_str().unwrap_or("none"), first["bytes"].as_u64().unwrap_or(0))
}

/// Whose data that was.
fn owners(round: &Value) -> Vec<&str> {
    let owners = round["diagnosis"]["causes"][0]["data_of"].as_array().unwrap();
    owners.iter().map(|owner| owner["name"].as_str().unwrap()).collect()
}

/// Known behaviours that were recognised.
fn recognised(round: &Value) -> Vec<&str> {
    let all = round["diagnosis"]["fingerprints"].as_array().unwrap();
    all.iter().map(|fingerprint| fingerprint["id"].as_str().unwrap()).collect()
}

/// Bytes that this machine wrote in a phase: at least those of the experiment.
fn written(round: &Value, phase: &str) -> u64 {
    round["written_bytes"][phase].as_u64().unwrap_or_else(|| panic!("{phase}: {round:#}"))
}

fn dirty(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/vm/dirty_{name}")).unwrap().trim().to_owned()
}

#[test]
fn unmounts_of_durable_overlays_write_everything() {
    needs!(Loop);
    let disk = Disk::ext4();
    let report = disk.good(&["--durable"]);
    assert_eq!(phases(&report), ["mount", "write", "unmount", "remove"]);
    for name in phases(&report) {
        let phase = phase(&report, name);
        let each = each(&report, name);
        assert_eq!(each.len(), 4, "{phase}");
        let max = each.iter().copied().fold(0.0, f64::max);
        assert!(phase["max_ms"] == max && phase["wall_ms"].as_f64().unwrap() >= max, "{phase}");
    }
    assert_eq!(report["options"]["target"], "durable");
    assert!(report["dirty_at_unmount_bytes"].as_u64().unwrap() >= 30 * MB, "{report:#}");
    assert!(written(&report, "unmount") >= 30 * MB, "{report:#}");
    assert!(!report["samples"].as_array().unwrap().is_empty());
    let (why, bytes) = cause(&report);
    assert!(why == "sync" && bytes >= 30 * MB, "{report:#}");
    assert!((0..4).all(|n| owners(&report).contains(&format!("mount {n}").as_str())), "{report:#}");
    assert!(recognised(&report).contains(&"sync-at-unmount"), "{report:#}");
    assert!(!report["host"]["kernel"].as_str().unwrap().is_empty());
    assert_eq!(report["host"]["filesystem"], "ext4");
}

#[test]
fn the_first_of_a_row_pays_for_all() {
    needs!(Loop);
    let disk = Disk::ext4();
    let report = disk.good(&["--unmount", "serial"]);
    let each = each(&report, "unmount");
    assert!(each[1..].iter().all(|rest| *rest < each[0]), "{each:?}");
    // The recorder knows when an unmount was over that it has seen waiting: when its thread went on.
    let waits = report["diagnosis"]["waited"].as_array().unwrap();
    let longest = waits.iter().find(|wait| wait["task"]["syscall"] == "umount");
    if let Some(wait) = longest.filter(|wait| wait["samples"].as_u64() >= Some(2)) {
        let ms = wait["ms"].as_f64().unwrap();
        assert!((ms - each[0]).abs() < 20.0, "{} ms: {wait}", each[0]);
    }
}

#[test]
fn unmounts_of_volatile_overlays_write_nothing() {
    needs!(Loop);
    let disk = Disk::ext4();
    let durable = disk.good(&["--neighbour-mb", "64"]);
    let volatile = disk.good(&["--neighbour-mb", "64", "--volatile"]);
    assert_eq!(volatile["options"]["target"], "volatile");
    let fastest = |report: &Value| each(report, "unmount").into_iter().fold(f64::MAX, f64::min);
    assert!(fastest(&volatile) < fastest(&durable), "{volatile:#}\n{durable:#}");
    assert!(owners(&durable).contains(&"neighbour"), "{durable:#}");
    assert!(!recognised(&volatile).contains(&"sync-at-unmount"), "{volatile:#}");
    assert!(cause(&volatile).1 < MB, "{volatile:#}");
    assert!(written(&durable, "unmount") >= 90 * MB, "{durable:#}");
}

#[test]
fn plain_directories_have_nothing_to_unmount() {
    needs!(Loop);
    let disk = Disk::ext4();
    let report = disk.good(&["--durable", "--no-overlay", "--source", "urandom"]);
    assert_eq!(phases(&report), ["write", "remove"]);
    assert_eq!(report["options"]["target"], "plain");
    assert_eq!(report["options"]["source"], "urandom");
    assert!(cause(&report).1 < MB, "{report:#}");
}

#[test]
fn a_second_round_writes_while_it_truncates() {
    needs!(Loop);
    let disk = Disk::ext4();
    // A volatile overlay cannot be mounted twice on one work directory.
    for how in ["--durable", "--volatile"] {
        let report = disk.good(&["--again", "--files", "3", how]);
        assert_eq!(phases(&report["first_round"]), ["mount", "write", "unmount"]);
        assert_eq!(phases(&report), ["mount", "write", "unmount", "remove"]);
        // The flush is waited for by nobody: much of it may end while the next phase is on.
        assert!(written(&report, "write") >= MB, "{report:#}");
        let (why, bytes) = cause(&report);
        assert!(why == "flush_at_close" && bytes >= 16 * MB, "{report:#}");
    }
}

#[test]
fn a_second_round_in_place_writes_when_it_unmounts() {
    needs!(Loop);
    let disk = Disk::ext4();
    let report = disk.good(&["--again=overwrite", "--age", "1"]);
    assert_eq!(phases(&report["first_round"]), ["mount", "write", "age", "unmount"]);
    assert_eq!(phases(&report), ["mount", "write", "unmount", "remove"]);
    assert!(phase(&report["first_round"], "age")["wall_ms"].as_f64().unwrap() >= 1000.0);
    assert_eq!(cause(&report).0, "sync", "{report:#}");
    assert!(written(&report, "unmount") >= 30 * MB, "{report:#}");
}

#[test]
fn who_syncs_while_writing_has_less_to_write_at_the_end() {
    needs!(Loop);
    let disk = Disk::ext4();
    // Random bytes take their time: zeros may all be written before the first sync.
    let report = disk.good(&["--trickle-sync", "1", "--files", "8", "--source", "urandom"]);
    assert_eq!(report["options"]["trickle_sync_ms"], 1);
    assert!(written(&report, "write") >= MB, "{report:#}");
    assert_eq!(cause(&report).0, "sync", "{report:#}");
}

#[test]
fn settings_are_changed_for_the_time_of_the_experiment() {
    needs!(Loop);
    let _alone = SETTINGS.lock();
    let (disk, before) = (Disk::ext4(), dirty("writeback_centisecs"));
    let set = ["--sysctl", "vm.dirty_writeback_centisecs=501", "--age", "60"];
    for how in [Signal::INT, Signal::KILL] {
        let mut child = disk.start(&[&SMALL[..], &set].concat());
        until_said(&mut child, "grows old");
        assert_eq!(dirty("writeback_centisecs"), "501");
        signal(child.id(), how);
        child.wait().unwrap();
        if how == Signal::KILL {
            let record = fs::read_to_string(format!("/run/wardian-lab/{}.json", child.id()));
            // Another test's lab may have set it right already.
            assert!(record.is_err() || record.unwrap().contains("dirty_writeback_centisecs"));
            disk.good(&["--volatile"]);
        }
        disk.nothing_is_left(child.id());
        assert_eq!(dirty("writeback_centisecs"), before);
    }
    let report = disk.good(&["--sysctl", "vm.dirty_writeback_centisecs=502"]);
    assert_eq!(report["options"]["sysctl"][0]["value"], 502);
    assert_eq!(dirty("writeback_centisecs"), before);
    for (setting, words) in
        [("vm.dirty_bytes=1", "refuses vm.dirty_bytes=1"), ("vm.dirty_nonsense=1", "no vm.dirty_nonsense")]
    {
        let set = ["--sysctl", "vm.dirty_writeback_centisecs=503", "--sysctl", setting];
        disk.bad(&[&SMALL[..], &set].concat(), words);
    }
    assert_eq!(dirty("writeback_centisecs"), before);
}

#[test]
fn what_is_no_experiment() {
    let disk = Disk::tmpfs("size=64m");
    for (args, words) in [
        (["--mounts", "0"], "--mounts must be between 1 and"),
        (["--mounts", "1001"], "--mounts must be between 1 and"),
        (["--mb", "99999999999"], "--mb must be between 0 and"),
        (["--files", "0"], "--files must be between 1 and"),
        (["--files", "100001"], "--files must be between 1 and"),
        (["--age", "99999999"], "--age must be between 0 and"),
        (["--trickle-sync", "0"], "--trickle-sync must be between 1 and"),
        (["--mb", "100"], "free: smaller --mounts or --mb"),
        (["--mb", "4"], "say --yes if it is meant"),
        (["--neighbour-mb", "40"], "free: smaller --mounts or --mb"),
    ] {
        let args = if args[0] == "--neighbour-mb" { &["--mb", "4", args[0], args[1]][..] } else { &args };
        assert!(disk.bad(args, words).is_null(), "{args:?}");
    }
    disk.good(&["--yes"]);
    for args in [
        ["--sysctl", "kernel.panic=1"],
        ["--sysctl", "vm.dirty_ratio=many"],
        ["--volatile", "--no-overlay"],
        ["--again=never", "--yes"],
    ] {
        let (said, _) = disk.run(&args);
        assert_eq!(said.code, Some(2), "{said:?}");
    }
}

#[test]
fn file_systems_that_cannot_be_written() {
    let full = Disk::tmpfs("size=64m,nr_inodes=40");
    let report = full.bad(&["--mounts", "4", "--mb", "1", "--files", "20"], "No space left on device");
    assert_eq!(report["complete"], false);
    assert!(report["error"].as_str().unwrap().contains("No space left"), "{report:#}");
    let read_only = Disk::tmpfs("ro");
    let report = read_only.bad(&SMALL, "Read-only file system");
    assert_eq!(report["complete"], false);
    let nowhere = Disk::unmounted();
    fs::remove_dir(&nowhere.at).unwrap();
    nowhere.bad(&SMALL, "--fs: look at");
}

#[test]
fn much_is_asked_for_first() {
    let disk = Disk::tmpfs("size=64m");
    for (answer, code) in [("y", 0), ("n", 1)] {
        // A terminal of its own.
        let mut script = Command::new("script");
        let lab = format!("{WARDIAN} lab teardown --mounts 4 --mb 8 --fs {}", disk.at.display());
        script.args(["-qec", &lab, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{answer}").unwrap();
        let said: Said = child.wait_with_output().unwrap().into();
        assert!(said.code == Some(code) && said.out.contains("Go on? [y/N]"), "{said:?}");
        assert_eq!(said.out.contains("nothing was done"), answer == "n", "{said:?}");
        assert_eq!(names(&disk.at), Vec::<String>::new());
    }
}

#[test]
fn without_tracefs_it_says_what_it_cannot_know() {
    needs!(Loop);
    let disk = Disk::ext4();
    let mut blind = Command::new("unshare");
    // Nothing can be made in what lies there.
    let script = "mount -t tmpfs none /sys/kernel/tracing && mkdir /sys/kernel/tracing/instances && \
                  mount -o remount,ro /sys/kernel/tracing && exec \"$@\"";
    blind.args(["-m", "sh", "-c", script, "sh", &WARDIAN, "lab", "teardown"]).args(SMALL);
    let said: Said =
        blind.arg("--fs").arg(&disk.at).arg("--json").arg(disk.report()).output().unwrap().into();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!disk.json()["diagnosis"]["limits"].as_array().unwrap().is_empty(), "{said:?}");
}

#[test]
fn only_root_can_do_it() {
    let disk = Disk::tmpfs("size=64m");
    let program = disk.at.join("wardian");
    crate::support::copy_program(WARDIAN, &program);
    for path in [disk.base.path(), &program] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(["lab", "teardown"]);
    let said: Said = nobody.output().unwrap().into();
    assert!(said.code == Some(1) && said.err.contains("only root can mount"), "{said:?}");
}

#[test]
fn interrupted_while_the_data_grows_old() {
    needs!(Loop);
    let disk = Disk::ext4();
    for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut child = disk.start(&[&SMALL[..], &["--age", "60"]].concat());
        until_said(&mut child, "grows old");
        assert_eq!(mounts(&[&disk.at.join("wardian-lab-")]).len(), 0, "only its own namespace has them");
        signal(child.id(), sent);
        assert_eq!(end(&mut child).code(), Some(code));
        disk.nothing_is_left(child.id());
        let report = disk.json();
        assert_eq!(report["complete"], false, "{report:#}");
        assert_eq!(each(&report, "write").len(), 4, "{report:#}");
        assert!(report["error"].as_str().unwrap().contains("interrupted"), "{report:#}");
    }
}

#[test]
fn interrupted_at_any_moment() {
    needs!(Loop);
    let disk = Disk::ext4();
    let mut interrupted = 0;
    for n in 0..24 {
        let _ = fs::remove_file(disk.report());
        let mut child = disk.start(&["--mounts", "6", "--mb", "24", "--again", "--files", "4"]);
        std::thread::sleep(Duration::from_millis(1 + n * n));
        signal(child.id(), Signal::INT);
        let status = end(&mut child);
        disk.nothing_is_left(child.id());
        match status.code() {
            // Before it listens for signals it has made nothing.
            None => assert_eq!(status.signal(), Some(2)),
            Some(0) => assert_eq!(disk.json()["complete"], true),
            code => {
                assert_eq!((code, &disk.json()["complete"]), (Some(130), &Value::from(false)));
                interrupted += 1;
            }
        }
    }
    assert!(interrupted > 0, "every signal came too early or too late");
}

/// Wait until it has said this on standard error.
fn until_said(child: &mut Child, words: &str) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(words)), "it never says {words}");
    // Whoever writes to a pipe without a reader fails.
    std::thread::spawn(move || lines.for_each(drop));
}

fn end(child: &mut Child) -> ExitStatus {
    ended_within(child, STUCK).expect("it does not end")
}
