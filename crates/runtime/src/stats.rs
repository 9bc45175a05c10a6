//! Usage of a cgroup, v1 and v2. The paths of the files are determined once per cgroup; each reading opens them
//! again.

use crate::cgroup::Cgroups;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// The file of a cgroup's memory statistics, which has the same name in both versions.
const MEMORY_STAT: &str = "memory.stat";
/// Buffer size, larger than any of these files: v2's `memory.stat` has some 60 lines.
const LONGEST: usize = 16 << 10;

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Total CPU time.
    pub usage: u64,
    /// CPU time in user space; v1 counts it in ticks of 10 ms.
    pub user: u64,
    /// CPU time in the kernel, with the same precision.
    pub system: u64,
}

/// The text of a `memory.stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory(String);

impl Memory {
    /// Takes the text of the file.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The lines, as names and values.
    pub fn values(&self) -> impl Iterator<Item = (&str, u64)> {
        flat(&self.0)
    }

    /// The bytes that count towards the limit, as Garden counts them: without the page cache that can be dropped at
    /// once.
    pub fn towards_limit(&self) -> u64 {
        let (mut plus, mut minus) = (0_u64, 0);
        let v1 = self.values().any(|(name, _)| name == "total_rss");
        for (name, value) in self.values() {
            match (v1, name) {
                (true, "total_rss" | "total_cache" | "total_swap")
                | (false, "file" | "anon" | "swapcached") => {
                    plus = plus.saturating_add(value);
                }
                (true, "total_inactive_file") | (false, "inactive_file") => minus = value,
                _ => {}
            }
        }
        plus.saturating_sub(minus)
    }
}

impl Memory {
    /// The bytes of files that wait for writeback, and those under it; `None`: the kernel does not tell.
    pub fn unwritten(&self) -> (Option<u64>, Option<u64>) {
        let find =
            |names: [&str; 2]| self.values().find(|(name, _)| names.contains(name)).map(|(_, value)| value);
        (find(["total_dirty", "file_dirty"]), find(["total_writeback", "file_writeback"]))
    }
}

/// One reading of a cgroup's usage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory.
    pub memory: Memory,
    /// CPU time.
    pub cpu: Cpu,
    /// Number of processes and threads in the cgroup and below.
    pub pids: u64,
}

/// Microseconds since the cgroup was made in which some of its tasks waited for a resource; `None`: unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    /// For a disk.
    pub io: Option<u64>,
    /// For memory.
    pub memory: Option<u64>,
    /// For a processor.
    pub cpu: Option<u64>,
}

/// Paths of a cgroup's statistics. A file that does not exist belongs to a missing controller: its values are zero.
#[derive(Debug, Clone, Default)]
pub struct Files {
    memory: Option<PathBuf>,
    oom: Option<PathBuf>,
    /// v1: `cpuacct.usage` and `cpuacct.stat`; v2: `cpu.stat` alone.
    cpu: Vec<PathBuf>,
    pids: Option<PathBuf>,
    /// v2: the directory, which has the files of pressure.
    pressure: Option<PathBuf>,
    /// Number of our own threads in the cgroup, which are not reported.
    own: u64,
}

impl Files {
    /// The files of the cgroup `id`. `keeper`: a keeper's second thread is in its v1 part, as in a container's.
    pub fn new(cgroups: &Cgroups, id: &str, keeper: bool) -> Self {
        let file = |controller, v1: &str, v2: &str| {
            let (dir, is_v1) = cgroups.place(controller, id)?;
            Some((dir.join(if is_v1 { v1 } else { v2 }), is_v1))
        };
        let path = |found: Option<(PathBuf, bool)>| found.map(|(path, _)| path);
        let pids = file("pids", "pids.current", "pids.current");
        Self {
            memory: path(file("memory", MEMORY_STAT, MEMORY_STAT)),
            oom: path(file("memory", "memory.oom_control", "memory.events")),
            cpu: match file("cpuacct", "cpuacct.usage", "cpu.stat") {
                Some((usage, true)) => vec![usage.clone(), usage.with_file_name("cpuacct.stat")],
                Some((stat, false)) => vec![stat],
                None => Vec::new(),
            },
            own: u64::from(keeper && pids.as_ref().is_some_and(|(_, v1)| *v1)),
            pressure: match file("cpu", "", "cpu.pressure") {
                Some((path, false)) => path.parent().map(Path::to_owned),
                _ => None,
            },
            pids: path(pids),
        }
    }

    /// Returns how long some of its tasks have waited; all is unknown with cgroup v1, and on a kernel that does not count.
    pub fn stalls(&self) -> Stalls {
        let total = |name: &str| {
            let text = read(&self.pressure.as_ref()?.join(name)).ok()??;
            wardian_sys::pressure::parse_psi(&text).map(|psi| psi.some.total_us)
        };
        Stalls { io: total("io.pressure"), memory: total("memory.pressure"), cpu: total("cpu.pressure") }
    }

    /// Reads all statistics.
    ///
    /// # Errors
    /// The system's; `NotFound` when the cgroup is gone.
    pub fn read(&self) -> io::Result<Stats> {
        let text = |path: Option<&PathBuf>| path.map_or(Ok(None), |path| read(path));
        let pids = text(self.pids.as_ref())?;
        let memory = text(self.memory.as_ref())?;
        let cpu = [text(self.cpu.first())?, text(self.cpu.get(1))?];
        if pids.is_none() && memory.is_none() && cpu[0].is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let ticks = rustix::param::clock_ticks_per_second();
        Ok(Stats {
            memory: Memory(memory.unwrap_or_default()),
            cpu: match cpu {
                [Some(usage), Some(stat)] => cpu_v1(&usage, &stat, ticks),
                [Some(stat), None] => cpu_v2(&stat),
                _ => Cpu::default(),
            },
            pids: pids.and_then(|text| number(&text)).unwrap_or(0).saturating_sub(self.own),
        })
    }

    /// How many of its processes the OOM killer has killed: v2 includes the cgroups below, v1 does not.
    pub fn oom_kills(&self) -> u64 {
        let text = self.oom.as_ref().and_then(|path| read(path).ok().flatten());
        text.map_or(0, |text| oom_kills(&text))
    }
}

/// Reads a file; `None` if it does not exist. A cgroup that is being removed returns ENODEV for an open file. The
/// kernel returns the whole of each of these files in one read, if the buffer is large enough.
fn read(path: &Path) -> io::Result<Option<String>> {
    let mut buffer = [0; LONGEST];
    let read = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::read(file, &mut buffer));
    match read {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&buffer[..length]).into_owned())),
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Parses lines of a name and a number; other lines are skipped.
fn flat(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name, number(value)?))
    })
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn find(text: &str, wanted: &str) -> u64 {
    flat(text).find(|(name, _)| *name == wanted).map_or(0, |(_, value)| value)
}

/// Parses `cpuacct.usage` and `cpuacct.stat`.
fn cpu_v1(usage: &str, stat: &str, ticks_per_second: u64) -> Cpu {
    let tick = 1_000_000_000 / ticks_per_second.max(1);
    Cpu {
        usage: number(usage).unwrap_or(0),
        user: find(stat, "user").saturating_mul(tick),
        system: find(stat, "system").saturating_mul(tick),
    }
}

/// Parses `cpu.stat`, which is in microseconds.
fn cpu_v2(stat: &str) -> Cpu {
    let nanoseconds = |name| find(stat, name).saturating_mul(1000);
    Cpu {
        usage: nanoseconds("usage_usec"),
        user: nanoseconds("user_usec"),
        system: nanoseconds("system_usec"),
    }
}

/// Parses `memory.oom_control` or `memory.events`.
fn oom_kills(text: &str) -> u64 {
    find(text, "oom_kill")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_v1() {
        let text = "cache 100\nrss 7\ninactive_file 3\ntotal_cache 1000\ntotal_rss 500\ntotal_swap 20\n\
                    total_inactive_file 300\nhierarchical_memory_limit 9223372036854771712\n";
        let memory = Memory::new(text.into());
        assert_eq!(memory.towards_limit(), 1220);
        assert_eq!(memory.values().next(), Some(("cache", 100)));
        assert_eq!(memory.values().last(), Some(("hierarchical_memory_limit", 9_223_372_036_854_771_712)));
    }

    #[test]
    fn memory_of_v2() {
        let text = "anon 4096\nfile 8192\nkernel 99\nswapcached 10\ninactive_anon 1\ninactive_file 8000\n";
        assert_eq!(Memory::new(text.into()).towards_limit(), 4298);
        let dirty = Memory::new("dirty 1\ntotal_dirty 4096\ntotal_writeback 8192\n".into()).unwritten();
        assert_eq!(dirty, (Some(4096), Some(8192)));
        let dirty = Memory::new("file 9\nfile_dirty 4096\nfile_writeback 0\n".into()).unwritten();
        assert_eq!((dirty, Memory::default().unwritten()), ((Some(4096), Some(0)), (None, None)));
        // The counters are not read at one instant.
        assert_eq!(Memory::new("anon 1\ninactive_file 5\n".into()).towards_limit(), 0);
        assert_eq!(Memory::default().towards_limit(), 0);
    }

    #[test]
    fn processor_time() {
        let v1 = cpu_v1("31718883\n", "user 1\nsystem 2\n", 100);
        assert_eq!(v1, Cpu { usage: 31_718_883, user: 10_000_000, system: 20_000_000 });
        let v2 = cpu_v2("usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 0\n");
        assert_eq!(v2, Cpu { usage: 1_500_000, user: 1_000_000, system: 500_000 });
        assert_eq!(cpu_v1("x", "user\n", 0), Cpu::default());
    }

    #[test]
    fn kills_for_want_of_memory() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 8\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\n"), 0);
    }
}
