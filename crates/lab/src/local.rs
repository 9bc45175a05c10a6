//! A Garden server of the experiment's own: started on a temporary store, and removed completely afterwards.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wardian_garden::Client;
use wardian_sys::directory::Directory;
use wardian_sys::stderr::line;
use wardian_sys::text::tame_lines;

use crate::ground;
use crate::leftovers::{PREFIX, ROOT, RUN, Record, Records};
use crate::namespace::Namespace;

/// Time limit for a server's first answer to a ping.
const START: Duration = Duration::from_secs(10);
/// Time limit for its drain: after a thousand containers with networks it may delete as many bridges, up to 70 ms each.
const STOP: Duration = Duration::from_secs(90);
/// Time limit for emptying its trash: of a hundred instances it may hold 10 GB, partly on a slow disk by then.
const TRASH: Duration = Duration::from_secs(120);
/// Images for limited root file systems that a store makes ahead; all limits of an experiment have one size.
const IMAGES_AHEAD: usize = 4;

/// What a server is started with, beside its directories.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// More arguments of `serve`.
    pub args: Vec<String>,
    /// The network namespace that is the host's to it; `None`: that of the experiment.
    pub namespace: Option<Arc<Namespace>>,
}

/// A server process with its temporary directories.
#[derive(Debug)]
pub struct LocalServer {
    program: PathBuf,
    extras: Extras,
    child: Child,
    /// The store, the log and other files of the experiment; on the file system under test.
    dir: TempDir,
    /// The run directory; on a tmpfs when there is one.
    live: TempDir,
    /// What the next experiment removes if this process is killed.
    record: Record,
}

impl LocalServer {
    /// Starts `program serve` with its store in a new directory below `location`.
    pub async fn start(program: &Path, location: Option<&Path>) -> Result<Self> {
        Self::start_with(program, location, Extras::default()).await
    }

    /// The same, with more than directories.
    pub async fn start_with(program: &Path, location: Option<&Path>, extras: Extras) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "containers can only be made by root: try sudo");
        // /tmp is a tmpfs on many systems, which has no dirty pages.
        let location = location.unwrap_or(Path::new("/var/tmp"));
        let dir = ground::dir_in(location, PREFIX)
            .with_context(|| format!("make a directory for the store in {}", location.display()))?;
        let mountinfo = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let volatile = ["/run", "/dev/shm"].into_iter().find(|place| {
            crate::host::filesystem_of(&mountinfo, Path::new(place)).is_some_and(|(kind, _)| kind == "tmpfs")
        });
        let live = ground::dir_in(volatile.map_or(dir.path(), Path::new), PREFIX)
            .context("make a directory for live state")?;
        // Mapped users must reach the layers and root file systems too.
        for path in [dir.path(), live.path()] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
            std::fs::set_permissions(path, mode).with_context(|| format!("open up {}", path.display()))?;
        }
        let mut record = Records::usual().begin()?;
        record.server(dir.path(), live.path())?;
        let child = spawn(program, dir.path(), live.path(), &extras)?;
        let mut server = Self { program: program.to_owned(), extras, child, dir, live, record };
        if let Err(error) = server.ready().await {
            let _ = server.child.kill().await;
            drop((server.live, server.dir));
            return Err(server.record.end().err().unwrap_or(error));
        }
        Ok(server)
    }

    /// A directory on the store's file system, for the experiment's files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The store's directory.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join(ROOT)
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The server's address.
    pub fn address(&self) -> String {
        address(self.live.path())
    }

    /// A client of the server.
    pub fn client(&self) -> Result<Client> {
        Client::new(&self.address()).context("address of the server")
    }

    /// Kills the server (`SIGKILL`) and starts it again. Returns the time from the start until it answers. Containers
    /// live on.
    pub async fn restart(&mut self) -> Result<Duration> {
        self.child.kill().await.context("kill the server")?;
        let begin = Instant::now();
        self.child = spawn(&self.program, self.dir.path(), self.live.path(), &self.extras)?;
        self.ready().await?;
        Ok(begin.elapsed())
    }

    /// The last lines of the server's log.
    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(log(self.dir.path())).unwrap_or_default();
        last_lines(log.lines(), 10)
    }

    /// The last warnings and errors in the server's log; empty when there are none.
    pub fn complaints(&self) -> String {
        let log = std::fs::read_to_string(log(self.dir.path())).unwrap_or_default();
        let lines = last_lines(log.lines().filter(|line| !is_ease(line)), 5);
        if lines.is_empty() { lines } else { format!("the server complained:\n{lines}") }
    }

    async fn ready(&mut self) -> Result<()> {
        let client = self.client()?;
        let until = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait().context("look after the server")? {
                bail!("the server ended at once ({status}). Its last words:\n{}", self.log_tail());
            }
            match client.ping().await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => {
                    bail!("the server does not answer: {error}. Its last words:\n{}", self.log_tail());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Waits until the trash is empty.
    pub async fn trash_empty(&self) -> Result<()> {
        let until = Instant::now() + TRASH;
        while self.left() > 0 {
            ensure!(Instant::now() < until, "{} things are still in the trash after {TRASH:?}", self.left());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Destroys every container, stops the server, removes its directories. A server that has died is started once
    /// more for that: containers outlive their server.
    pub async fn stop(mut self) -> Result<()> {
        let emptied = self.empty().await;
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::TERM);
            if tokio::time::timeout(STOP, self.child.wait()).await.is_err() {
                let _ = self.child.kill().await;
                line(&format!("the server did not stop within {STOP:?} and was killed"));
            }
        }
        if let Err(error) = emptied {
            let (dir, live) = (self.dir.keep(), self.live.keep());
            return Err(error.context(format!(
                "containers may be left; until the next experiment removes them, the store is in {}, live state in {}",
                dir.display(),
                live.display()
            )));
        }
        remove_cgroups(self.live.path()).await;
        // A server whose run directory is on a disk has mounted a tmpfs there.
        let run = run(self.live.path());
        let _ = rustix::mount::unmount(&run, rustix::mount::UnmountFlags::DETACH);
        self.live.close().context("remove the directory of live state")?;
        self.dir.close().context("remove the directory of the store")?;
        self.record.end()
    }

    async fn empty(&mut self) -> Result<()> {
        if self.child.try_wait().context("look after the server")?.is_some() {
            line(&format!(
                "the server has died; starting another one to clean up. Its last words:\n{}",
                tame_lines(&self.log_tail())
            ));
            self.child = spawn(&self.program, self.dir.path(), self.live.path(), &self.extras)?;
            self.ready().await?;
        }
        let client = self.client()?;
        let until = Instant::now() + TRASH;
        loop {
            // Repeated, because an interrupted create may still be running in the server.
            let handles = client.list(&BTreeMap::new()).await.context("list the containers that are left")?;
            let mut failed = Ok(());
            for handle in &handles {
                let destroyed = client.destroy(handle).await;
                failed = failed.and(destroyed.with_context(|| format!("destroy what is left of {handle}")));
            }
            if failed.is_ok() && handles.is_empty() && self.left() == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                failed?;
                bail!("{} things are still in the trash after {TRASH:?}", self.left());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Number of directories in the trash, and of root file systems in use.
    fn left(&self) -> usize {
        let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
        // Directories before records, because a record is written before its directory is made.
        let all: Vec<PathBuf> = entries(self.root().join("rootfs")).map(|entry| entry.path()).collect();
        let living: Vec<String> = entries(run(self.live.path()).join("rootfs"))
            .filter_map(|record| {
                let record: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(record.path()).ok()?).ok()?;
                record["dir"].as_str().map(str::to_owned)
            })
            .collect();
        left_of(&all, &living) + entries(self.root().join("trash")).count()
    }
}

/// Number of directories of root file systems that are used, or wait to be deleted: those that the store makes ahead have
/// no record and are empty.
fn left_of(all: &[PathBuf], living: &[String]) -> usize {
    let (used, unused): (Vec<&PathBuf>, Vec<&PathBuf>) =
        all.iter().partition(|dir| living.iter().any(|name| dir.ends_with(name)));
    // What is in an image cannot be seen.
    let (images, plain): (Vec<&PathBuf>, Vec<&PathBuf>) =
        unused.into_iter().partition(|dir| dir.join("image").exists());
    let is_empty = |dir: &&PathBuf| {
        std::fs::read_dir(dir.join("upper"))
            .or_else(|_| std::fs::read_dir(dir))
            .is_ok_and(|mut all| all.next().is_none())
    };
    used.len() + plain.iter().filter(|dir| !is_empty(dir)).count() + images.len().saturating_sub(IMAGES_AHEAD)
}

/// Whether a line of the log is a harmless event. A line that is no event, for example of a panic, counts as a
/// complaint too.
fn is_ease(line: &str) -> bool {
    let event: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    event["level"].as_str().is_some_and(|level| ["info", "debug", "trace"].contains(&level))
}

fn last_lines<'a>(lines: impl Iterator<Item = &'a str>, count: usize) -> String {
    let lines: Vec<&str> = lines.collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Name of the cgroup of the instance with this live state.
fn group(live: &Path) -> Option<String> {
    let run = Directory::open(&run(live)).ok()?;
    let instance = ground::json(&run, "instance.json");
    let is_tag = |tag: &&str| !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_hexdigit());
    instance["tag"].as_str().filter(is_tag).map(|tag| format!("wardian-{tag}"))
}

/// Removes the empty cgroups of an instance that has ended.
async fn remove_cgroups(live: &Path) {
    let Some(name) = group(live) else { return };
    let top = Path::new("/sys/fs/cgroup");
    let directories = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
    };
    let mut groups: Vec<PathBuf> = directories(top).iter().map(|hierarchy| hierarchy.join(&name)).collect();
    groups.push(top.join(&name));
    // Keepers that waited for a container end by themselves, shortly after their server.
    for _ in 0..100 {
        groups.retain(|group| group.is_dir());
        for group in &groups {
            for below in directories(group) {
                let _ = std::fs::remove_dir(below);
            }
            let _ = std::fs::remove_dir(group);
        }
        if groups.iter().all(|group| !group.is_dir()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn run(live: &Path) -> PathBuf {
    live.join(RUN)
}

fn log(dir: &Path) -> PathBuf {
    dir.join("server.log")
}

fn address(live: &Path) -> String {
    format!("unix:{}", live.join("garden.sock").display())
}

fn spawn(program: &Path, dir: &Path, live: &Path, extras: &Extras) -> Result<Child> {
    let log =
        std::fs::File::options().create(true).append(true).open(log(dir)).context("make the server's log")?;
    // nsenter(1) becomes the server, whose process id is therefore the child's.
    let mut command = match &extras.namespace {
        Some(namespace) => namespace.command(program),
        None => std::process::Command::new(program),
    };
    // It ends with this process, whose record has its directories: containers outlive it.
    wardian_sys::tether::tie(&mut command);
    let mut command = Command::from(command);
    // Environment variables for the machine's own server must not reach this one, but for those with which an
    // experiment is controlled.
    const CONTROLS: [&str; 3] = ["WARDIAN_KEEPER", "WARDIAN_LOG", "WARDIAN_NETWORK"];
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("WARDIAN_") && !CONTROLS.contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command
        .args(["serve", "--listen", &address(live), "--root"])
        .arg(dir.join(ROOT))
        .arg("--run")
        .arg(run(live))
        .args(&extras.args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C in the terminal must only reach the lab, which still needs the server to clean up.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {} serve", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_ahead_is_not_left() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let left = |living: &[&str]| {
            let all: Vec<PathBuf> = std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).collect();
            left_of(&all, &living.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        for name in ["empty/upper", "written/upper/file", "used/upper"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        assert_eq!(left(&[]), 1);
        assert_eq!(left(&["used"]), 2);
        for n in 0..IMAGES_AHEAD + 2 {
            std::fs::create_dir(at(&n.to_string())).unwrap();
            std::fs::write(at(&format!("{n}/image")), "").unwrap();
        }
        assert_eq!(left(&["used"]), 4);
        assert_eq!(left(&["used", "0", "1"]), 4);
        assert_eq!(left(&["used", "0", "1", "2"]), 5);
    }

    #[test]
    fn complaints() {
        for (line, ease) in [
            (r#"{"level":"info","message":"wardian.serve.listening","data":{}}"#, true),
            (r#"{"level":"debug","message":"said \"level\":\"error\""}"#, true),
            (r#"{"level":"error","message":"wardian.server.request-failed"}"#, false),
            (r#"{"level":"warn","message":"x","data":{"level":"info"}}"#, false),
            ("thread 'main' panicked at \"level\":\"info\"", false),
            ("", false),
        ] {
            assert_eq!(is_ease(line), ease, "{line}");
        }
    }
}
