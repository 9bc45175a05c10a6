//! Samples, once per period, where the watched threads wait in the kernel.

use crate::causes;
use crate::proc;
use crate::recorder::Watch;
use crate::recording::{Task, Wait};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

/// A wait is over once its thread was not seen in it in this many samples.
const MISSED_LOOKS: u64 = 3;
/// The same of an unmount, which is expected to end with a traced event. Between its waits it needs the processor, which
/// it may have to wait for.
const MISSED_UNMOUNTING: u64 = 25;
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
    /// When its thread was looked at next, and not seen waiting.
    unseen_ms: Option<f64>,
    /// When its thread was looked at last. Until then the next system call of a thread that unmounts was traced.
    looked_ms: f64,
    missed: u64,
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
    over: Vec<Open>,
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
            over: Vec::new(),
        }
    }

    pub(crate) fn look(&mut self, t_ms: f64) {
        if self.processes.len() <= FEW || self.looks.is_multiple_of(TREE_EVERY) {
            self.find();
        }
        self.looks += 1;
        let mut threads = std::mem::take(&mut self.threads);
        threads.retain(|tid, (pid, stat)| self.look_at(*pid, *tid, stat.as_ref(), t_ms));
        self.threads = threads;
        for open in self.open.values_mut().filter(|open| open.seen_ms < t_ms) {
            open.unseen_ms.get_or_insert(t_ms);
            open.looked_ms = t_ms;
            open.missed += 1;
        }
        let is_over =
            |open: &Open| open.missed >= if open.unmounts() { MISSED_UNMOUNTING } else { MISSED_LOOKS };
        self.over.extend(self.open.extract_if(|_, open| is_over(open)).map(|(_, open)| open));
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
    fn look_at(&mut self, pid: u32, tid: u32, stat: Option<&File>, t_ms: f64) -> bool {
        let mut buffer = [0; 512];
        let read = match stat {
            Some(file) => file.read_at(&mut buffer, 0),
            None => File::open(stat_of(pid, tid)).and_then(|file| file.read_at(&mut buffer, 0)),
        };
        let Ok(length) = read else { return false };
        let stat = String::from_utf8_lossy(&buffer[..length]);
        if let Some((comm, 'D')) = proc::task_stat(&stat) {
            self.waits_now(pid, tid, comm, t_ms);
        }
        true
    }

    fn waits_now(&mut self, pid: u32, tid: u32, comm: &str, t_ms: f64) {
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
        if !same && let Some(mut open) = self.open.remove(&tid) {
            open.unseen_ms.get_or_insert(t_ms);
            self.over.push(open);
        }
        let open = self.open.entry(tid).or_insert_with(|| Open {
            pid,
            task: Task { pid: tid, comm: comm.to_owned(), syscall },
            begin_ms: t_ms,
            seen_ms: t_ms,
            unseen_ms: None,
            looked_ms: t_ms,
            missed: 0,
            samples: 0,
            stacks: HashMap::new(),
        });
        (open.seen_ms, open.unseen_ms, open.missed) = (t_ms, None, 0);
        open.samples += 1;
        *open.stacks.entry(stack).or_default() += 1;
    }

    /// Ends the unmounts whose threads went on (`moments`, in their order).
    pub(crate) fn went_on(&mut self, moments: &VecDeque<(u32, f64)>) {
        let Some(first) = self.open.values().map(|open| open.seen_ms).reduce(f64::min) else { return };
        for (tid, t_ms) in moments.iter().rev().take_while(|(_, t_ms)| *t_ms > first) {
            if self.open.get(tid).is_some_and(|open| open.unmounts() && *t_ms > open.seen_ms)
                && let Some(mut open) = self.open.remove(tid)
            {
                open.looked_ms = open.looked_ms.max(*t_ms);
                self.over.push(open);
            }
        }
    }

    /// The threads that unmount: they have returned from the call, and wait in task work.
    pub(crate) fn unmounting(&self) -> BTreeSet<u32> {
        self.open.iter().filter(|(_, open)| open.unmounts()).map(|(tid, _)| *tid).collect()
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

    /// Returns the waits. They end when their thread went on (`moments`, in their order), where that is known.
    pub(crate) fn finish(self, moments: &VecDeque<(u32, f64)>, period_ms: f64) -> Vec<Wait> {
        let mut of: HashMap<u32, Vec<f64>> = HashMap::new();
        for (tid, t_ms) in moments {
            of.entry(*tid).or_default().push(*t_ms);
        }
        let none = Vec::new();
        let all = self.over.into_iter().chain(self.open.into_values());
        let done = |open: Open| {
            let moments = of.get(&open.task.pid).unwrap_or(&none);
            open.done(moments, period_ms)
        };
        all.map(done).collect()
    }
}

impl Open {
    fn unmounts(&self) -> bool {
        self.stacks.keys().any(|stack| stack.iter().any(|function| function == "cleanup_mnt"))
    }

    /// Makes a wait of the samples. It began half a period, on average, before the first one. It ended when its thread
    /// went on between the last one and that in which the thread was not seen waiting, or, if that is not known, midway.
    fn done(self, moments: &[f64], period_ms: f64) -> Wait {
        let begin_ms = (self.begin_ms - period_ms / 2.0).max(0.0);
        let unseen_ms = self.unseen_ms.unwrap_or(self.seen_ms + period_ms);
        let until = if self.unmounts() { self.looked_ms.max(unseen_ms) } else { unseen_ms };
        let went_on = moments.iter().copied().find(|t_ms| *t_ms > self.seen_ms && *t_ms <= until);
        let end_ms = went_on.unwrap_or(f64::midpoint(self.seen_ms, unseen_ms));
        let stack = self.stacks.into_iter().max_by_key(|(_, count)| *count).unwrap_or_default().0;
        Wait {
            pid: self.pid,
            begin_ms,
            ms: end_ms - begin_ms,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(sampler: &mut Sampler, function: &str, t_ms: f64) {
        sampler.open.entry(7).or_insert_with(|| Open {
            pid: 7,
            task: Task { pid: 7, comm: "x".into(), syscall: None },
            begin_ms: t_ms,
            seen_ms: t_ms,
            unseen_ms: None,
            looked_ms: t_ms,
            missed: 0,
            samples: 0,
            stacks: HashMap::from([(vec![function.to_owned()], 1)]),
        });
        if let Some(open) = sampler.open.get_mut(&7) {
            (open.seen_ms, open.unseen_ms, open.missed) = (t_ms, None, 0);
            open.samples += 1;
        }
    }

    /// Begin and duration of what was seen at 100, 120 and 600 ms, when the thread went on at these moments.
    fn waited(function: &str, moments: &[f64], told: bool) -> Vec<(f64, f64)> {
        // There is no such process: nobody is found to look at.
        let mut sampler = Sampler::new(Watch::Tree(u32::MAX), 0);
        for t_ms in [100.0, 120.0] {
            seen(&mut sampler, function, t_ms);
            sampler.look(t_ms);
        }
        // The looks between were skipped, so that nothing is known of an end.
        seen(&mut sampler, function, 600.0);
        let unmounts = function == "cleanup_mnt";
        assert_eq!(sampler.unmounting().contains(&7), unmounts);
        [640.0, 660.0].into_iter().for_each(|t_ms| sampler.look(t_ms));
        assert_eq!(sampler.unmounting().contains(&7), unmounts);
        let moments: VecDeque<(u32, f64)> =
            [(8, 601.0)].into_iter().chain(moments.iter().map(|t_ms| (7, *t_ms))).collect();
        if told {
            sampler.went_on(&moments);
            assert!(sampler.unmounting().is_empty());
        }
        (0..30).for_each(|n| sampler.look(680.0 + 20.0 * f64::from(n)));
        assert!(sampler.unmounting().is_empty());
        sampler.finish(&moments, 20.0).iter().map(|wait| (wait.begin_ms, wait.ms)).collect()
    }

    #[test]
    fn a_wait_ends_when_its_thread_goes_on() {
        for function in ["cleanup_mnt", "fsync"] {
            assert_eq!(waited(function, &[50.0, 617.5, 630.0], function == "cleanup_mnt"), [(90.0, 527.5)]);
            assert_eq!(waited(function, &[99.0], false), [(90.0, 530.0)]);
        }
        // An unmount that waits for the processor goes on later; of another wait nothing is known then.
        for told in [true, false] {
            assert_eq!(waited("cleanup_mnt", &[99.0, 700.0], told), [(90.0, 610.0)]);
        }
        assert_eq!(waited("fsync", &[99.0, 700.0], false), [(90.0, 530.0)]);
    }
}
