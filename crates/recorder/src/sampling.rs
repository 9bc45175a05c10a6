//! Samples, once per period, where the watched threads wait in the kernel.

use crate::causes;
use crate::proc;
use crate::recorder::Watch;
use crate::recording::{Task, Wait};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

/// A wait is over once its thread was not seen in it for more than this many samples.
const MISSED_LOOKS: f64 = 2.0;
/// For more processes than `FEW`, new threads and children are searched for only once per this many samples.
const TREE_EVERY: u64 = 5;
const FEW: usize = 8;
/// Limit of threads whose files are kept open.
const OPEN_MAX: usize = 512;

#[derive(Debug)]
struct Open {
    pid: u32,
    task: Task,
    begin_ms: f64,
    seen_ms: f64,
    samples: u64,
    stacks: HashMap<Vec<String>, u64>,
}

/// Samples the watched threads.
#[derive(Debug)]
pub(crate) struct Sampler {
    watch: Watch,
    /// Thread id of the recorder, which is not sampled.
    own: u32,
    looks: u64,
    processes: Vec<u32>,
    /// By thread: its process, and its `stat` file if it is kept open.
    threads: HashMap<u32, (u32, Option<File>)>,
    /// Every thread that was ever sampled.
    seen: HashSet<u32>,
    open: HashMap<u32, Open>,
    waits: Vec<Wait>,
}

impl Sampler {
    pub(crate) fn new(watch: Watch, own: u32) -> Self {
        Self {
            watch,
            own,
            looks: 0,
            processes: Vec::new(),
            threads: HashMap::new(),
            seen: HashSet::new(),
            open: HashMap::new(),
            waits: Vec::new(),
        }
    }

    pub(crate) fn look(&mut self, t_ms: f64, period_ms: f64) {
        if self.processes.len() <= FEW || self.looks.is_multiple_of(TREE_EVERY) {
            self.find();
        }
        self.looks += 1;
        let mut threads = std::mem::take(&mut self.threads);
        threads.retain(|tid, (pid, stat)| self.look_at(*pid, *tid, stat.as_ref(), t_ms, period_ms));
        self.threads = threads;
        self.close(t_ms - MISSED_LOOKS * period_ms, period_ms);
    }

    /// Updates the lists of processes and threads.
    fn find(&mut self) {
        self.processes = match self.watch {
            Watch::Own => vec![std::process::id()],
            Watch::Tree(pid) => tree(pid),
            Watch::Children => tree(std::process::id()).split_off(1),
        };
        for pid in &self.processes {
            for tid in numbers(&format!("/proc/{pid}/task")) {
                if tid != self.own && !self.threads.contains_key(&tid) {
                    let file = (self.threads.len() < OPEN_MAX).then(|| File::open(stat_of(*pid, tid)).ok());
                    self.seen.insert(tid);
                    self.threads.insert(tid, (*pid, file.flatten()));
                }
            }
        }
    }

    /// Samples one thread. Returns whether it is alive.
    fn look_at(&mut self, pid: u32, tid: u32, stat: Option<&File>, t_ms: f64, period_ms: f64) -> bool {
        let mut buffer = [0; 512];
        let read = match stat {
            Some(file) => file.read_at(&mut buffer, 0),
            None => File::open(stat_of(pid, tid)).and_then(|file| file.read_at(&mut buffer, 0)),
        };
        let Ok(length) = read else { return false };
        let stat = String::from_utf8_lossy(&buffer[..length]);
        if let Some((comm, 'D')) = proc::task_stat(&stat) {
            self.waits_now(pid, tid, comm, t_ms, period_ms);
        }
        true
    }

    fn waits_now(&mut self, pid: u32, tid: u32, comm: &str, t_ms: f64, period_ms: f64) {
        let dir = format!("/proc/{pid}/task/{tid}");
        let mut stack = proc::stack(&fs::read_to_string(format!("{dir}/stack")).unwrap_or_default());
        if stack.is_empty() {
            let wchan = fs::read_to_string(format!("{dir}/wchan")).unwrap_or_default();
            stack.extend(Some(wchan).filter(|function| !function.is_empty() && function != "0"));
        }
        let syscall = causes::call_of(&stack);
        // A parent that waits for its vforked child does not wait for the disk.
        if matches!(syscall.as_deref(), Some("vfork" | "clone" | "clone3")) {
            return;
        }
        let same = self.open.get(&tid).is_some_and(|open| open.task.syscall == syscall);
        if !same && let Some(open) = self.open.remove(&tid) {
            self.waits.push(open.done(period_ms));
        }
        let open = self.open.entry(tid).or_insert_with(|| Open {
            pid,
            task: Task { pid: tid, comm: comm.to_owned(), syscall },
            begin_ms: t_ms,
            seen_ms: t_ms,
            samples: 0,
            stacks: HashMap::new(),
        });
        open.seen_ms = t_ms;
        open.samples += 1;
        *open.stacks.entry(stack).or_default() += 1;
    }

    /// Ends the waits that were last seen before this moment.
    fn close(&mut self, before_ms: f64, period_ms: f64) {
        let over = self.open.extract_if(|_, open| open.seen_ms < before_ms);
        self.waits.extend(over.map(|(_, open)| open.done(period_ms)));
    }

    /// Whether this thread is, or was, watched.
    pub(crate) fn watches(&self, tid: u32) -> bool {
        self.seen.contains(&tid)
    }

    /// The watched threads, and those whose descendants are watched.
    pub(crate) fn ancestors(&self) -> HashSet<u32> {
        let mut all = self.seen.clone();
        if let Watch::Children = self.watch {
            all.extend(numbers("/proc/self/task"));
        }
        all
    }

    pub(crate) fn finish(mut self, period_ms: f64) -> Vec<Wait> {
        self.close(f64::INFINITY, period_ms);
        self.waits
    }
}

impl Open {
    /// Makes a wait of the samples: it began and ended half a period, on average, before the first and after the last
    /// one.
    fn done(self, period_ms: f64) -> Wait {
        let stack = self.stacks.into_iter().max_by_key(|(_, count)| *count).unwrap_or_default().0;
        Wait {
            pid: self.pid,
            begin_ms: (self.begin_ms - period_ms / 2.0).max(0.0),
            ms: self.seen_ms - self.begin_ms + period_ms,
            kernel_function: causes::meaningful(&stack).cloned(),
            task: self.task,
            stack,
            samples: self.samples,
        }
    }
}

/// A process and its descendants, as long as each one's parent is alive.
fn tree(top: u32) -> Vec<u32> {
    let mut found = vec![top];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        for tid in numbers(&format!("/proc/{pid}/task")) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

fn stat_of(pid: u32, tid: u32) -> String {
    format!("/proc/{pid}/task/{tid}/stat")
}

fn numbers(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
