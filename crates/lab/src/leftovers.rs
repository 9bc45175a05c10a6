//! What an experiment leaves when it is killed by SIGKILL, and how the next one restores it.
//!
//! A record on disk lists what was made and changed: directories with files, settings of the kernel, cgroups, and
//! servers that outlive the experiment. Mounts need no record: they are in a mount namespace of the experiment and end
//! with it.

use crate::cgroups::{groups, members, remove_group};
use crate::ground::json;
use crate::teardown::sysctl::{self, Setting, Values};
use anyhow::{Context, Result, bail, ensure};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use wardian_sys::directory::Directory;

/// Directory of the records.
const RECORDS: &str = "/run/wardian-lab";
/// The store of a server, below its directory, and its run directory, below that of its live state.
pub(crate) const ROOT: &str = "root";
pub(crate) const RUN: &str = "run";
/// Prefix of the names of experiments' directories.
pub const PREFIX: &str = "wardian-lab-";
/// Prefix of the names of all cgroups that experiments and their servers make.
const GROUPS: &str = "wardian-";
/// Number of records that this process has begun.
static BEGUN: AtomicU32 = AtomicU32::new(0);
/// How long killed processes may take to leave their cgroups.
const DYING: Duration = Duration::from_secs(10);

/// What one experiment has made and changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Left {
    pid: u32,
    /// Start time of the process in ticks since the boot: a process id alone may be reused.
    started: u64,
    boot: String,
    /// The directory with the experiment's files.
    pub dir: Option<PathBuf>,
    /// Settings that were changed.
    pub changed: Vec<Setting>,
    /// All settings before the change.
    before: Values,
    /// Names of cgroups, below the root of each hierarchy.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Processes that do not end with the experiment, each with its start time in ticks since the boot.
    #[serde(default)]
    processes: Vec<(u32, u64)>,
    /// The directory of a server's live state. Its store is below `dir`.
    #[serde(default)]
    live: Option<PathBuf>,
}

/// A directory of records.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
}

/// The record of a running experiment. An experiment that ends regularly calls [`Record::end`].
#[derive(Debug)]
pub struct Record {
    folder: Directory,
    name: String,
    left: Left,
    lock_path: PathBuf,
    /// Held while settings are changed: only one experiment at a time may do that.
    lock: Option<File>,
}

impl Records {
    /// The records of this machine.
    pub fn usual() -> Self {
        Self { folder: RECORDS.into() }
    }

    /// Begins a record of this process.
    pub fn begin(&self) -> Result<Record> {
        let (folder, _) = Directory::make(&self.folder, 0o700).context("make the directory of records")?;
        let pid = std::process::id();
        let started = started(pid).context("find out when this process was started")?;
        let left = Left {
            pid,
            started,
            boot: boot(),
            dir: None,
            changed: Vec::new(),
            before: Values::new(),
            groups: Vec::new(),
            processes: Vec::new(),
            live: None,
        };
        Ok(Record {
            lock_path: self.folder.join("lock"),
            folder,
            // An experiment may have several, one for each of its servers.
            name: format!("{pid}-{}.json", BEGUN.fetch_add(1, Ordering::Relaxed)),
            left,
            lock: None,
        })
    }

    /// The records of experiments whose process has ended.
    pub fn find(&self) -> Vec<Left> {
        let folder = Directory::open(&self.folder).ok();
        folder.map(|folder| dead(&folder)).unwrap_or_default().into_iter().map(|(_, left)| left).collect()
    }

    /// Restores what ended experiments have left. `program` has the command `reset`. Returns what was done, and what could
    /// not be, as text.
    pub fn restore(&self, program: &Path) -> Vec<String> {
        let mut told = Vec::new();
        let Ok(folder) = Directory::open(&self.folder) else { return told };
        let mut failed = Vec::new();
        for (name, left) in dead(&folder) {
            // A server that could not be reset needs its store, which may be in a directory of the same experiment.
            if failed.contains(&left.pid) {
                continue;
            }
            match self.restore_one(&left, program) {
                Ok(()) => {
                    let things = left.things().into_iter();
                    told.extend(things.map(|(kind, what)| {
                        format!("left by an experiment that was killed, and set right: {kind} {what}")
                    }));
                    let _ = folder.remove(name);
                }
                Err(error) => {
                    failed.push(left.pid);
                    told.push(format!("left by an experiment that was killed: {error:#}"));
                }
            }
        }
        told
    }

    fn restore_one(&self, left: &Left, program: &Path) -> Result<()> {
        if !left.changed.is_empty() && left.boot == boot() {
            let _lock = lock(&self.folder.join("lock"))?;
            sysctl::restore(&left.before, &left.changed)?;
        }
        if left.boot == boot() {
            left.kill()?;
            if let (Some(dir), Some(live)) = (&left.dir, &left.live) {
                reset(program, dir, live)?;
                // A server whose run directory is on a disk has mounted a tmpfs there.
                let _ = rustix::mount::unmount(live.join(RUN), UnmountFlags::DETACH);
            }
        }
        left.live.iter().chain(&left.dir).try_for_each(|dir| remove(dir))
    }
}

/// Removes what a server has made that was killed: containers, cgroups, networks. `live` has its instance.
fn reset(program: &Path, dir: &Path, live: &Path) -> Result<()> {
    if !live.join(RUN).join("instance.json").exists() {
        return Ok(());
    }
    let mut command = std::process::Command::new(program);
    command
        .args(["reset", "--yes", "--images", "--root"])
        .arg(dir.join(ROOT))
        .arg("--run")
        .arg(live.join(RUN));
    let said = command.stdin(std::process::Stdio::null()).output().context("run wardian reset")?;
    let words = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "reset what a server has made: {}", wardian_sys::text::tame(words.trim()));
    Ok(())
}

/// Removes an experiment's directory.
fn remove(dir: &Path) -> Result<()> {
    // Only root writes records; still, only a directory with our prefix is deleted.
    let ours = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    ensure!(ours, "{} is no experiment's directory", dir.display());
    let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(()) };
    match Directory::open_shared(above).and_then(|above| above.remove(name)) {
        Err(error) if !error.is_missing() => Err(error).with_context(|| format!("remove {}", dir.display())),
        _ => Ok(()),
    }
}

/// The records of experiments whose process has ended, with their names.
fn dead(folder: &Directory) -> Vec<(String, Left)> {
    let names = folder.names().unwrap_or_default().into_iter().filter_map(|name| name.into_string().ok());
    let mut dead: Vec<(String, Left)> = names
        .filter(|name| name.ends_with(".json"))
        .filter_map(|name| {
            let left: Left = serde_json::from_value(json(folder, &name)).ok()?;
            let lives = left.boot == boot() && started(left.pid) == Some(left.started);
            (!lives).then_some((name, left))
        })
        .collect();
    // A server's directory may be in that of an experiment, which is recorded before it.
    dead.sort_by_key(|(name, _)| std::cmp::Reverse(number(name)));
    dead
}

/// Number of a record of its process.
fn number(name: &str) -> Option<u32> {
    name.strip_suffix(".json")?.split_once('-')?.1.parse().ok()
}

impl Left {
    /// Each leftover with its kind: a `directory`, or a `sysctl` and its former value.
    pub fn things(&self) -> Vec<(&'static str, String)> {
        let dir = self.dir.iter().map(|dir| ("directory", dir.display().to_string()));
        let settings = self.changed.iter().filter(|_| self.boot == boot()).map(|Setting { name, .. }| {
            ("sysctl", format!("vm.{name} (before: {})", self.before.get(name).copied().unwrap_or_default()))
        });
        let groups = self.groups.iter().filter(|name| self.boot == boot() && !groups(name).is_empty());
        dir.chain(settings).chain(groups.map(|name| ("cgroup", name.clone()))).collect()
    }

    /// Kills the processes, and removes the cgroups with those that are in them.
    fn kill(&self) -> Result<()> {
        for (pid, start) in &self.processes {
            kill_if_started(*pid, *start);
        }
        let until = Instant::now() + DYING;
        for name in &self.groups {
            ensure!(name.starts_with(GROUPS) && !name.contains('/'), "{name:?} is no experiment's cgroup");
            while let Some(dir) = groups(name).into_iter().next() {
                for dir in groups(name) {
                    members(&dir).into_iter().for_each(kill);
                    remove_group(&dir);
                }
                if dir.is_dir() && Instant::now() > until {
                    bail!("the cgroup {} cannot be removed: processes in it do not end", dir.display());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

/// Kills a process that was started then. The number of one that has ended may be another process's, and may become it at
/// any moment: the signal goes to what was looked at.
fn kill_if_started(pid: u32, start: u64) {
    let Some(number) = Pid::from_raw(pid.cast_signed()) else { return };
    if let Ok(process) = pidfd_open(number, PidfdFlags::empty())
        && started(pid) == Some(start)
    {
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
}

fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

impl Record {
    /// Records the directory that is about to be filled.
    pub fn dir(&mut self, dir: &Path) -> Result<()> {
        self.left.dir = Some(dir.to_owned());
        self.save()
    }

    /// Records the cgroup that is about to be made.
    pub fn group(&mut self, name: &str) -> Result<()> {
        self.left.groups.push(name.to_owned());
        self.save()
    }

    /// Records a process that was started.
    pub(crate) fn process(&mut self, pid: u32) -> Result<()> {
        // One that has ended needs no record.
        self.left.processes.extend(started(pid).map(|started| (pid, started)));
        self.save()
    }

    /// Records a server that is about to be started: its directory, and that of its live state.
    pub(crate) fn server(&mut self, dir: &Path, live: &Path) -> Result<()> {
        (self.left.dir, self.left.live) = (Some(dir.to_owned()), Some(live.to_owned()));
        self.save()
    }

    /// Drops the processes from the record: they have ended.
    pub(crate) fn processes_ended(&mut self) -> Result<()> {
        self.left.processes.clear();
        self.save()
    }

    /// Changes settings of the kernel, until [`Record::end`].
    pub fn change(&mut self, settings: &[Setting]) -> Result<()> {
        if settings.is_empty() {
            return Ok(());
        }
        self.lock = Some(lock(&self.lock_path)?);
        self.left.before = sysctl::read()?;
        sysctl::check(settings, &self.left.before)?;
        self.left.changed = settings.to_vec();
        self.save()?;
        sysctl::write(settings)
    }

    /// Restores the settings. If that fails, or the directory still exists, the record stays, for the next experiment
    /// to retry.
    pub fn end(self) -> Result<()> {
        sysctl::restore(&self.left.before, &self.left.changed)?;
        let is_left = |dir: &PathBuf| dir.exists();
        if self.left.dir.iter().chain(&self.left.live).any(is_left) || !self.left.processes.is_empty() {
            return Ok(());
        }
        Ok(self.folder.remove(&self.name)?)
    }

    fn save(&self) -> Result<()> {
        Ok(self.folder.write(&self.name, &serde_json::to_vec_pretty(&self.left)?)?)
    }
}

/// Takes the lock: only one process at a time changes or restores settings.
fn lock(path: &Path) -> Result<File> {
    let open = File::options().create(true).write(true).truncate(false).mode(0o600).open(path);
    let file = open.with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("another experiment has changed vm.dirty_* and not ended yet: wait for it")
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Start time of a live process, in ticks since the boot.
fn started(pid: u32) -> Option<u64> {
    start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 in the text of `/proc/<pid>/stat`; `None` for a zombie.
fn start_time(stat: &str) -> Option<u64> {
    // The name, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_needs::needs;

    #[test]
    fn the_start_of_a_process() {
        let stat = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 5163 9 1\n")
        };
        assert_eq!(start_time(&stat("a", "S")), Some(5163));
        assert_eq!(start_time(&stat("a) Z 1 (", "S")), Some(5163));
        assert_eq!(start_time(&stat("a", "Z")), None);
        assert_eq!(start_time("7 (a"), None);
        assert!(started(std::process::id()).is_some());
    }

    #[test]
    fn only_the_process_that_was_recorded_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let start = started(child.id()).unwrap();
        kill_if_started(child.id(), start + 1);
        assert!(child.try_wait().unwrap().is_none());
        kill_if_started(child.id(), start);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    }

    #[test]
    fn what_a_killed_experiment_has_left_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let records = Records { folder: base.path().join("records") };
        let dir = base.path().join("wardian-lab-x");
        std::fs::create_dir_all(dir.join("deep")).unwrap();
        let mut record = records.begin().unwrap();
        record.dir(&dir).unwrap();
        assert!(records.find().is_empty() && records.restore(Path::new("/bin/false")).is_empty(), "it lives");
        // The same pid with another start time: another process.
        record.left.started += 1;
        record.save().unwrap();
        assert_eq!(records.find()[0].dir.as_deref(), Some(dir.as_path()));
        let told = records.restore(Path::new("/bin/false"));
        assert!(told[0].ends_with(&format!("set right: directory {}", dir.display())), "{told:?}");
        assert!(!dir.exists() && records.find().is_empty());
        record.end().unwrap();
    }

    /// The server that an experiment had started is reset before its directories are removed.
    #[test]
    fn what_a_server_has_made_is_removed_before_its_store() {
        let base = tempfile::tempdir().unwrap();
        let records = Records { folder: base.path().join("records") };
        let (outer, live) = (base.path().join("wardian-lab-x"), base.path().join("wardian-lab-live"));
        let dir = outer.join("wardian-lab-server");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::create_dir_all(live.join(RUN)).unwrap();
        std::fs::write(live.join(RUN).join("instance.json"), "{}").unwrap();
        let mut first = records.begin().unwrap();
        first.dir(&outer).unwrap();
        let mut second = records.begin().unwrap();
        second.server(&dir, &live).unwrap();
        for record in [&mut first, &mut second] {
            record.left.started += 1;
            record.save().unwrap();
        }
        let told = records.restore(Path::new("/bin/false"));
        assert!(told[0].contains("reset what a server has made"), "{told:?}");
        assert!(told.len() == 1 && live.exists() && dir.exists(), "it is tried again: {told:?}");
        let program = base.path().join("program");
        std::fs::write(
            &program,
            format!("#!/bin/sh\necho \"$@\" > {}/said\nls {}", base.path().display(), dir.display()),
        )
        .unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let told = records.restore(&program);
        assert!(told.iter().all(|line| line.contains("set right: directory")), "{told:?}");
        let said = std::fs::read_to_string(base.path().join("said")).unwrap();
        let expected =
            format!("reset --yes --images --root {}/root --run {}/run\n", dir.display(), live.display());
        assert_eq!(said, expected);
        assert!(!live.exists() && !outer.exists() && records.find().is_empty());
    }

    #[test]
    fn only_directories_of_ours_are_removed() {
        let base = tempfile::tempdir().unwrap();
        let records = Records { folder: base.path().join("records") };
        let precious = base.path().join("precious");
        std::fs::create_dir(&precious).unwrap();
        let mut record = records.begin().unwrap();
        record.left.started += 1;
        record.dir(&precious).unwrap();
        let told = records.restore(Path::new("/bin/false"));
        assert!(told[0].contains("no experiment's directory"), "{told:?}");
        assert!(precious.exists());
    }

    #[test]
    fn a_setting_is_restored_after_a_kill() {
        needs!(Root);
        let base = tempfile::tempdir().unwrap();
        let records = Records { folder: base.path().into() };
        let mut record = records.begin().unwrap();
        let before = sysctl::read().unwrap();
        // The value that it has already: other tests must not be affected.
        let same = Setting { name: "dirty_ratio".into(), value: before["dirty_ratio"] };
        record.change(std::slice::from_ref(&same)).unwrap();
        let error = records.begin().unwrap().change(&[same]).unwrap_err();
        assert!(error.to_string().contains("wait for it"), "{error}");
        record.left.started += 1;
        record.save().unwrap();
        assert!(records.restore(Path::new("/bin/false"))[0].contains("wait for it"), "its lock is held");
        record.lock = None;
        assert!(records.restore(Path::new("/bin/false"))[0].contains("set right: sysctl vm.dirty_ratio"));
        assert_eq!(sysctl::read().unwrap(), before);
    }
}
