//! `wardian lab record` and `wardian why`: each cause of writing is told from the others, on file systems of our own.

use crate::support::{WARDIAN, base};
use rustix::mount::MountAttrFlags;
use serde_json::Value;
use std::any::Any;
use std::os::fd::IntoRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;
use wardian_needs::needs;

const EXT4: &[&str] = &["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"];

/// A file system in a file, mounted; gone when dropped.
struct Disk {
    dir: tempfile::TempDir,
    device: String,
    /// Of [`CALM`], for as long as this is used.
    _calm: Box<dyn Any>,
}

/// When memory is short anywhere, the kernel starts every flusher: meanwhile no other test may record.
pub static CALM: RwLock<()> = RwLock::new(());

impl Disk {
    fn new(mkfs: &[&str], options: &str) -> Self {
        Self::made(mkfs, options, Box::new(CALM.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn made(mkfs: &[&str], options: &str, _calm: Box<dyn Any>) -> Self {
        let dir = base();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        assert!(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output().unwrap().status.success());
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let disk = Self { dir, device, _calm };
        std::fs::create_dir(disk.path()).unwrap();
        let mount = ["-o", options, &disk.device, disk.path().to_str().unwrap()].map(str::to_owned);
        assert!(Command::new("mount").args(mount).status().unwrap().success());
        disk
    }

    fn ext4(options: &str) -> Self {
        Self::new(EXT4, options)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn record(&self, script: &str) -> Value {
        let json = self.dir.path().join("out.json");
        let output = self.start(script, &json).wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
    }

    /// Begin to record a shell script that runs on the disk.
    fn start(&self, script: &str, json: &Path) -> std::process::Child {
        Command::new(WARDIAN)
            .args(["lab", "record", "--json"])
            .arg(json)
            .args(["--", "sh", "-ec", script])
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// The share of the cause that wrote most.
fn first<'a>(report: &'a Value, cause: &str) -> &'a Value {
    let first = &report["diagnosis"]["causes"][0];
    assert_eq!(first["cause"], cause, "{}", report["diagnosis"]);
    assert!(first["share"].as_f64().unwrap() > 0.8, "{}", report["diagnosis"]);
    assert_eq!(report["recording"]["lost_events"], 0);
    first
}

/// Where trace instances are, whether tracefs is mounted or not.
fn instances_dir() -> PathBuf {
    static OURS: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let mounted = PathBuf::from("/sys/kernel/tracing/instances");
        if mounted.is_dir() {
            return mounted;
        }
        let tracefs = wardian_sys::mount::fs_mount("tracefs", &[], &[], MountAttrFlags::empty()).unwrap();
        PathBuf::from(format!("/proc/self/fd/{}/instances", tracefs.into_raw_fd()))
    };
    OURS.get_or_init(find).clone()
}

/// Trace instances, of whomever.
fn instances() -> impl Iterator<Item = String> {
    let dir = std::fs::read_dir(instances_dir()).unwrap();
    dir.flatten().filter_map(|entry| entry.file_name().into_string().ok())
}

fn megabytes(value: &Value) -> u64 {
    value.as_u64().unwrap() >> 20
}

#[test]
fn a_sync() {
    needs!(Loop, Tracefs);
    let disk = Disk::ext4("commit=300");
    let report = disk.record("dd if=/dev/zero of=a bs=1M count=60; sync -f a");
    let sync = first(&report, "sync");
    assert!((59..=66).contains(&megabytes(&sync["bytes"])), "{sync}");
    assert_eq!(sync["asked_by"]["comm"], "sync");
    assert_eq!(sync["asked_by"]["syscall"], "syncfs");
    // The tracer knows a name since the last switch to its task: that of before the exec, if there was none since.
    let writer = &sync["data_of"][0]["task"]["comm"];
    assert!(writer == "dd" || writer == "sh", "{writer}");
    let waited = report["diagnosis"]["waited"].as_array().unwrap();
    assert!(waited.iter().any(|wait| wait["task"]["syscall"] == "syncfs"), "{waited:?}");
}

#[test]
fn the_unmount_of_an_overlay_syncs() {
    needs!(Loop, Tracefs);
    let disk = Disk::ext4("commit=300");
    let report = disk.record(
        "mkdir l u w o; dd if=/dev/zero of=neighbour bs=1M count=150
         mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w o
         echo x > o/x; umount o",
    );
    let sync = first(&report, "sync");
    assert_eq!(sync["asked_by"]["comm"], "umount");
    assert_eq!(sync["asked_by"]["syscall"], "umount");
    // Whose data it was is not who asked for it.
    assert_eq!(sync["data_of"][0]["task"]["comm"], "dd");
    assert_eq!(report["diagnosis"]["fingerprints"][0]["id"], "sync-at-unmount");
    let waited = &report["diagnosis"]["waited"][0];
    assert_eq!(waited["task"]["comm"], "umount");
}

#[test]
fn a_flush_at_close() {
    needs!(Loop, Tracefs);
    for (kind, mkfs, options) in [("ext4", EXT4, "commit=300"), ("xfs", &["mkfs.xfs", "-q"], "defaults")] {
        let disk = Disk::new(mkfs, options);
        // Truncated and written again: ext4 and XFS write it when it is closed.
        let report = disk.record("for i in 1 2 3 4; do dd if=/dev/zero of=a bs=1M count=10; done");
        let close = first(&report, "flush_at_close");
        assert!((29..=42).contains(&megabytes(&close["bytes"])), "{kind}: {close}");
        assert_eq!(close["asked_by"]["comm"], "dd", "{kind}");
        assert_eq!(close["data_of"][0]["task"]["comm"], "dd", "{kind}");
        assert_eq!(report["recording"]["fs_type"], kind);
    }
}

#[test]
fn a_commit_of_the_journal() {
    needs!(Loop, Tracefs);
    // Without delayed allocation each commit writes the data of the files that have grown.
    let disk = Disk::ext4("commit=1,nodelalloc");
    let report = disk.record("for i in 1 2 3 4 5 6 7 8; do head -c 1000000 /dev/zero >> a; sleep 0.3; done");
    let commit = first(&report, "journal_commit");
    assert!(megabytes(&commit["bytes"]) >= 2, "{commit}");
    assert_eq!(commit["asked_by"], Value::Null);
}

#[test]
fn age() {
    needs!(Loop, Tracefs);
    let read = |name: &str| -> u64 {
        std::fs::read_to_string(format!("/proc/sys/vm/{name}")).unwrap().trim().parse().unwrap()
    };
    let due = (read("dirty_expire_centisecs") + 2 * read("dirty_writeback_centisecs")) / 100 + 2;
    let disk = Disk::ext4("commit=300");
    // A file that is written anew would be flushed when it is closed.
    let record = || disk.record(&format!("rm -f a; dd if=/dev/zero of=a bs=1M count=20; sleep {due}"));
    // When memory is short for anybody on this host meanwhile, the data is written before its time.
    let in_time = |report: &Value| report["diagnosis"]["causes"][0]["cause"] != "memory_pressure";
    let report = std::iter::repeat_with(record).take(3).find(in_time).expect("memory is short all the time");
    let age = first(&report, "age");
    assert!(megabytes(&age["bytes"]) >= 20, "{age}");
    assert_eq!(age["asked_by"], Value::Null);
    assert_eq!(age["data_of"][0]["task"]["comm"], "dd");
    assert!(age["begin_ms"].as_f64().unwrap() > read("dirty_expire_centisecs") as f64 * 5.0, "{age}");
    // Half a minute is long enough for a figure; other tests keep the machine busy.
    let cost = report["recording"]["cost"]["share"].as_f64().unwrap();
    assert!(cost < 0.03, "{cost}");
}

#[test]
fn direct_io() {
    needs!(Loop, Tracefs);
    let disk = Disk::ext4("commit=300");
    let report = disk.record("dd if=/dev/zero of=a bs=1M count=20 oflag=direct");
    let direct = first(&report, "direct");
    assert!((19..=22).contains(&megabytes(&direct["bytes"])), "{direct}");
    assert_eq!(direct["asked_by"]["syscall"], "write");
}

#[test]
fn discards() {
    needs!(Loop, Tracefs);
    // Without a journal the task that deletes a file discards its blocks, with one it is the journal's.
    for (mkfs, journal) in [([EXT4, &["-O", "^has_journal"]].concat(), false), (EXT4.to_vec(), true)] {
        let disk = Disk::new(&mkfs, if journal { "discard,commit=1" } else { "discard" });
        let write = ["if=/dev/zero", "of=a", "bs=1M", "count=30", "conv=fsync"];
        let written = Command::new("dd").args(write).current_dir(disk.path()).output().unwrap();
        assert!(written.status.success(), "{written:?}");
        let report = disk.record("rm a; sync -f .; sleep 1");
        let discard = &report["diagnosis"]["discards"][0];
        assert_eq!(discard["cause"], "deletion", "{}", report["diagnosis"]);
        // With a journal a worker discards the whole free range that the blocks are in.
        let bytes = megabytes(&discard["bytes"]);
        assert!(bytes >= 29 && (journal || bytes <= 31), "{discard}");
        let counted = report["recording"]["samples"].as_array().unwrap().last().unwrap();
        assert_eq!(counted["io"]["discarded_bytes"], discard["bytes"], "{report}");
        assert_eq!(discard["asked_by"]["comm"] == "rm", !journal, "{discard}");
        let verdict = report["diagnosis"]["verdict"].as_str().unwrap();
        assert!(
            journal || verdict.contains("were discarded because of the deletion of files by rm["),
            "{verdict}"
        );
        // What was discarded was not written.
        assert!(megabytes(&report["diagnosis"]["written_bytes"]) < 20, "{}", report["diagnosis"]);
        let report = disk.record(&format!("fstrim {}", disk.path().display()));
        let trim = &report["diagnosis"]["discards"][0];
        assert_eq!((&trim["cause"], &trim["asked_by"]["comm"]), (&"trim".into(), &"fstrim".into()), "{trim}");
        assert!(megabytes(&trim["bytes"]) > 100, "{trim}");
    }
}

#[test]
fn btrfs_on_two_disks() {
    needs!(Loop, Tracefs);
    // Other workers submit what the flusher writes, for its checksums.
    let disk = Disk::new(&["mkfs.btrfs", "-q"], "defaults");
    let report = disk.record("dd if=/dev/zero of=a bs=1M count=40; sync -f a");
    let sync = first(&report, "sync");
    assert!((39..=50).contains(&megabytes(&sync["bytes"])), "{sync}");
    assert_eq!(report["recording"]["fs_type"], "btrfs");
    assert_eq!(
        report["recording"]["devices"].as_array().map(Vec::len),
        Some(1),
        "{}",
        report["recording"]["devices"]
    );

    let second = disk.dir.path().join("second");
    std::fs::File::create(&second).unwrap().set_len(512 << 20).unwrap();
    let add = format!(
        "d=$(losetup --find --show {second}); trap 'losetup -d $d' EXIT; btrfs device add -f $d {path} >&2
         btrfs balance start --full-balance -dconvert=raid1 -mconvert=raid1 {path} >&2",
        second = second.display(),
        path = disk.path().display()
    );
    let added = Command::new("sh").args(["-ec", &add]).output().unwrap();
    assert!(added.status.success(), "{added:?}");
    let report = disk.record("dd if=/dev/zero of=b bs=1M count=20; sync -f b");
    assert_eq!(
        report["recording"]["devices"].as_array().map(Vec::len),
        Some(2),
        "{}",
        report["recording"]["devices"]
    );
    let sync = first(&report, "sync");
    assert!(megabytes(&sync["bytes"]) >= 39, "each disk has a copy: {sync}");
}

/// Less memory than is written, for one shell and its children.
struct Tight(PathBuf);

impl Tight {
    fn new() -> Self {
        let name = format!("wardian-record-{}", std::process::id());
        for (top, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let dir = Path::new(top).join(&name);
            if Path::new(top).join("cgroup.procs").exists() && std::fs::create_dir(&dir).is_ok() {
                let tight = Self(dir);
                if std::fs::write(tight.0.join(limit), "40M").is_ok() {
                    return tight;
                }
            }
        }
        panic!("no cgroup with a limit of memory can be made");
    }
}

impl Drop for Tight {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn memory_pressure() {
    needs!(CgroupMemory, Loop, Tracefs);
    let tight = Tight::new();
    let disk = Disk::made(EXT4, "commit=300", Box::new(CALM.write().unwrap_or_else(PoisonError::into_inner)));
    let procs = tight.0.join("cgroup.procs");
    let report = disk.record(&format!("echo $$ > {}; dd if=/dev/zero of=a bs=1M count=200", procs.display()));
    let pressure = first(&report, "memory_pressure");
    assert!(megabytes(&pressure["bytes"]) >= 100, "{pressure}");
    assert_eq!(pressure["asked_by"], Value::Null);
    assert_eq!(pressure["data_of"][0]["task"]["comm"], "dd");
}

#[test]
fn what_a_killed_recorder_left_is_removed() {
    needs!(Tracefs);
    // No process ever has this number: it is the limit of pid_max.
    let planted = instances_dir().join("wardian-4194304-0");
    std::fs::create_dir(&planted).unwrap();
    let output = Command::new(WARDIAN).args(["lab", "record", "--", "true"]).output().unwrap();
    let there = planted.exists();
    let _ = std::fs::remove_dir(&planted);
    assert!(output.status.success(), "{output:?}");
    assert!(!there);
}

/// Records `dd` with these programs before it, where nobody has mounted tracefs.
fn record_alone(disk: &Disk, with: &str) -> Value {
    let json = disk.dir.path().join("out.json");
    let script = format!(
        "umount /sys/kernel/debug/tracing /sys/kernel/debug 2>/dev/null; umount /sys/kernel/tracing 2>/dev/null; \
         exec {with} \"$0\" lab record --json \"$1\" -- dd if=/dev/zero of=a bs=1M count=60 conv=fsync"
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", &script, &WARDIAN]).arg(&json).current_dir(disk.path());
    let output = unshare.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

#[test]
fn tracefs_need_not_be_mounted() {
    needs!(Loop, Tracefs);
    let disk = Disk::ext4("commit=300");
    let report = record_alone(&disk, "");
    assert_eq!(first(&report, "sync")["asked_by"]["comm"], "dd");
}

#[test]
fn without_tracefs_it_says_what_it_cannot_know() {
    needs!(Loop);
    let disk = Disk::ext4("commit=300");
    let report = record_alone(&disk, "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin");
    let first = first(&report, "unknown");
    assert!((59..=66).contains(&megabytes(&first["bytes"])), "{first}");
    let limits = report["diagnosis"]["limits"].to_string();
    assert!(limits.contains("no tracefs"), "{limits}");
    assert_eq!(report["diagnosis"]["waited"][0]["task"]["comm"], "dd", "{report}");
}

#[test]
fn the_commands_exit_code_is_handed_on() {
    let run = |args: &[&str]| -> Output {
        Command::new(WARDIAN).args(["lab", "record"]).args(args).stdin(Stdio::null()).output().unwrap()
    };
    assert_eq!(run(&["--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    let missing = run(&["--", "/no/such/program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/program"));
    let nowhere = run(&["--fs", "/no/such/dir", "--", "true"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/no/such/dir"));
}

#[test]
fn a_signal_ends_command_and_recording() {
    needs!(Loop, Tracefs);
    let disk = Disk::ext4("defaults");
    let json = disk.dir.path().join("half.json");
    let child = disk.start("echo begun > begun; sleep 1000; true", &json);
    while !disk.path().join("begun").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let recorder = child.id();
    assert!(instances().any(|name| name.starts_with(&format!("wardian-{recorder}-"))));
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{output:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["recording"]["interrupted"], true);
    assert!(!instances().any(|name| name.starts_with(&format!("wardian-{recorder}-"))));
}

#[test]
fn somebody_elses_process() {
    needs!(Loop, Tracefs);
    let disk = Disk::ext4("commit=300");
    let mut other = Command::new("sh")
        .args(["-c", "sleep 1; dd if=/dev/zero of=a bs=1M count=40; sync -f a"])
        .current_dir(disk.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = other.id().to_string();
    let why =
        Command::new(WARDIAN).args(["why", "--json", "--seconds", "3", "--pid", &pid]).output().unwrap();
    other.wait().unwrap();
    assert!(why.status.success(), "{why:?}");
    let report = serde_json::from_slice(&why.stdout).unwrap();
    assert_eq!(first(&report, "sync")["asked_by"]["comm"], "sync");

    let why = Command::new(WARDIAN).args(["why", "--pid", "4194304"]).output().unwrap();
    assert_eq!(why.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&why.stderr).contains("no process"));
}
