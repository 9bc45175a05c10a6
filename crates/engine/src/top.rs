//! The processes in a container, from the host's /proc. No path in the container is opened, and what a process says
//! of itself (its name, its arguments) is text of somebody hostile.

use crate::container::Container;
use crate::container::pea::pea_cgroup;
use crate::{Engine, Error, Result, Shared};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;
use wardian_sys::procfs;

/// The most processes that are told.
const PROCESSES: usize = 10_000;
/// The most bytes of a command line.
const COMMAND: usize = 4096;
/// The most bytes of another file.
const FILE: usize = 64 << 10;
/// How long it may take: the kernel reads arguments in the process's memory, which may have to be read from a disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Its number in the container.
    pub pid: i32,
    /// Its parent's number there; 0: it has none there.
    pub parent: i32,
    /// Its number on the host.
    pub host_pid: i32,
    /// Its user in the container, or the host's id where the container has no such user.
    pub user: u32,
    /// As in proc_pid_stat(5): R, S, D, T, Z …
    pub state: char,
    /// Nanoseconds of processor time.
    pub cpu_ns: u64,
    /// Program and arguments; in brackets the name alone, where there are no arguments.
    pub command: String,
}

/// The processes of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Top {
    /// By their numbers in the container.
    pub processes: Vec<Row>,
    /// There are more than are told.
    pub cut: bool,
}

impl Engine {
    /// Returns the processes of a container and its peas.
    ///
    /// # Errors
    /// Unknown or broken container; they are being listed already; or it takes too long.
    pub async fn top(&self, handle: &str) -> Result<Top> {
        let container = self.find(handle)?;
        container.keeper()?;
        let looking = container.look_alone()?;
        let shared = self.shared.clone();
        let list = move || {
            let _looking = looking;
            top(&shared, &container)
        };
        let listed = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(list)).await;
        let late = Error::GivenUp { during: "top", why: "a process keeps the kernel waiting" };
        listed.map_err(|_| late)?.map_err(Error::task("top"))?
    }
}

fn top(shared: &Shared, container: &Container) -> Result<Top> {
    let peas = container.peas().into_iter().map(|(_, pea)| pea_cgroup(&container.id, &pea.rootfs, true));
    let groups: Vec<String> = std::iter::once(container.id.clone()).chain(peas).collect();
    let members = || groups.iter().flat_map(|group| shared.cgroups.members(group)).collect::<BTreeSet<_>>();
    let mut found: Vec<i32> = members().into_iter().collect();
    // One of the keeper's threads may be in the container's cgroups.
    found.retain(|pid| Some(*pid) != container.keeper_pid());
    let cut = found.len() > PROCESSES;
    found.truncate(PROCESSES);
    let init = container.init().map(directory).transpose()?.flatten();
    // The container's own namespace is where its init is 1.
    let depth = init.as_ref().and_then(|init| Some(status(&text(init, "status", FILE)?)?.pids.len()));
    let users = init.as_ref().and_then(|init| text(init, "uid_map", FILE)).unwrap_or_default();
    let mut rows: Vec<Row> = Vec::new();
    // Each is open while its batch is looked at.
    for batch in found.chunks(BATCH) {
        // A directory of /proc is one process's, whoever has its number later.
        let open = |pid: &i32| Ok(directory(*pid)?.map(|dir| (*pid, dir)));
        let opened: Vec<(i32, OwnedFd)> =
            batch.iter().filter_map(|pid| open(pid).transpose()).collect::<Result<_>>()?;
        let still = members();
        let read = |(pid, dir): &(i32, OwnedFd)| row(*pid, dir, depth.unwrap_or(1), &users);
        rows.extend(opened.iter().filter(|(pid, _)| still.contains(pid)).filter_map(read));
    }
    let inside: std::collections::HashMap<i32, i32> =
        rows.iter().map(|row| (row.host_pid, row.pid)).collect();
    for row in &mut rows {
        row.parent = inside.get(&row.parent).copied().unwrap_or(0);
    }
    rows.sort_by_key(|row| row.pid);
    Ok(Top { processes: rows, cut })
}

/// Opens the directory of a process; `None`: it has ended.
fn directory(pid: i32) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(error) => Err(Error::system("top")(error)),
    }
}

/// Processes that are looked at together: descriptors are few.
const BATCH: usize = 256;

/// Reads a file of a process; `None`: it has ended.
fn bytes(dir: &OwnedFd, name: &str, most: usize) -> Option<Vec<u8>> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut all = vec![0; most];
    let mut filled = 0;
    while filled < most {
        match rustix::io::read(&file, &mut all[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    all.truncate(filled);
    Some(all)
}

fn text(dir: &OwnedFd, name: &str, most: usize) -> Option<String> {
    bytes(dir, name, most).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// What is needed of a `/proc/PID/status`. The name in it is escaped by the kernel: it ends no line.
struct Status {
    name: String,
    state: char,
    parent: i32,
    uid: u32,
    /// Its numbers, from the host's namespace to its own.
    pids: Vec<i32>,
}

fn status(text: &str) -> Option<Status> {
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    Some(Status {
        name: field("Name")?.to_owned(),
        state: field("State")?.chars().next()?,
        parent: field("PPid")?.parse().ok()?,
        uid: field("Uid")?.split_whitespace().next()?.parse().ok()?,
        pids: field("NSpid")?.split_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
    })
}

fn row(host_pid: i32, dir: &OwnedFd, depth: usize, users: &str) -> Option<Row> {
    let status = status(&text(dir, "status", FILE)?)?;
    // A process of another namespace has no number in the container's.
    let pid = *status.pids.get(depth.checked_sub(1)?)?;
    let ticks = procfs::processor_ticks(&text(dir, "stat", FILE)?)?;
    let arguments = bytes(dir, "cmdline", COMMAND).unwrap_or_default();
    Some(Row {
        pid,
        parent: status.parent,
        host_pid,
        user: user_inside(users, status.uid),
        state: status.state,
        cpu_ns: ticks.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)),
        command: command(&arguments, &status.name),
    })
}

/// Returns a command line in one line; control characters are escaped where it is printed.
fn command(arguments: &[u8], name: &str) -> String {
    let arguments = String::from_utf8_lossy(arguments);
    let line = arguments.trim_end_matches('\0').replace('\0', " ");
    if line.is_empty() { format!("[{name}]") } else { line }
}

/// Returns the id that a user of the host has in the container (`uid_map`, user_namespaces(7)).
fn user_inside(map: &str, host: u32) -> u32 {
    let range = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        let offset = host.checked_sub(outside).filter(|offset| *offset < count)?;
        inside.checked_add(offset)
    };
    map.lines().find_map(range).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_the_ids_of_the_container() {
        let map = "         0 4294967294          1\n         1          1 4294967293\n";
        assert_eq!((user_inside(map, 4_294_967_294), user_inside(map, 1000)), (0, 1000));
        assert_eq!(user_inside("0 100000 65536\n", 101_000), 1000);
        assert_eq!((user_inside("0 100000 65536\n", 5), user_inside("odd\n", 5)), (5, 5));
    }

    #[test]
    fn a_process_says_of_itself_what_it_likes() {
        let text = "Name:\ta\\nUid:\\t7\nState:\tS (sleeping)\nPPid:\t4\nUid:\t0\t0\t0\t0\nNSpid:\t44\t3\n";
        let status = status(text).unwrap();
        assert_eq!((status.uid, status.state, status.pids.as_slice()), (0, 'S', &[44, 3][..]));
        assert_eq!(command(b"sh\0-c\0sleep 1\0", "sh"), "sh -c sleep 1");
        assert_eq!(command(b"", "kworker"), "[kworker]");
        assert!(super::status("Name:\tx\n").is_none());
    }

    #[test]
    fn this_process_is_a_row() {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let dir = directory(pid).unwrap().unwrap();
        let row = row(pid, &dir, 1, "").unwrap();
        assert_eq!((row.host_pid, row.user), (pid, rustix::process::getuid().as_raw()));
        assert!(row.command.contains("wardian") && "RSD".contains(row.state), "{row:?}");
    }
}
