//! Attributes single trace events: which task wrote how much, and why.
//!
//! Every write to a device passes `block_bio_queue` in the task that submits it, whatever the file system. The
//! context of that task gives the cause: its kernel stack if there is one, else the reason of its writeback work if
//! it is a flusher, else the system call that it is in.

use crate::causes;
use crate::causes::Cause;
use crate::recording::{Task, Written};
use crate::trace::{Event, What, Work};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// Writes of one cause by one task with a longer gap than this, in ms, form two bursts.
const GAP_MS: f64 = 1000.0;

/// Limit of remembered requests that no flusher has taken up yet.
const QUEUED_MAX: usize = 4096;
/// A system call that took less, in ms, has not waited.
pub(crate) const SHORT_MS: f64 = 1.0;
/// How many bursts of discards are searched for the one that a discard continues.
const DISCARDERS: usize = 64;
/// Limit of remembered forks.
const CHILDREN_MAX: usize = 1 << 20;
/// Limit of remembered moments at which a thread went on.
const MOMENTS_MAX: usize = 1 << 16;
/// Limit of remembered names of threads that have ended.
const NAMES_MAX: usize = 1 << 16;
/// Limit of inodes whose writer is remembered.
const DIRTIED_MAX: usize = 200_000;

/// A system call with its duration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) task: Task,
    pub(crate) begin_ms: f64,
    pub(crate) end_ms: f64,
}

#[derive(Debug, Clone, Default)]
struct Asker {
    task: Task,
    stack: Vec<String>,
}

/// The writeback work that a flusher is processing.
#[derive(Debug, Clone, Default)]
struct Round {
    reason: String,
    asker: Option<Asker>,
    /// The asker is known from the request itself (`writeback_exec`).
    taken: bool,
    active: bool,
}

#[derive(Debug)]
enum Waiting {
    Bio { t_ms: f64, comm: String, flags: String, bytes: u64 },
    Queue(Work),
}

/// The state machine. Events must be fed in order.
#[derive(Debug, Default)]
pub(crate) struct Attribution {
    /// Begin of the recording, in seconds of the trace's clock.
    start: f64,
    pub(crate) written: Vec<Written>,
    /// Discards, in the same form.
    pub(crate) discarded: Vec<Written>,
    /// Moments, in ms, at which a thread had returned from what it waited in before: it entered a system call, or ended.
    pub(crate) moments: VecDeque<(u32, f64)>,
    /// System calls that took at least [`SHORT_MS`], and all unmounts.
    pub(crate) calls: Vec<Call>,
    /// Pairs of parent and child, in the order of the forks.
    children: Vec<(u32, u32)>,
    /// By thread: events whose stack may still follow.
    waiting: HashMap<u32, Waiting>,
    rounds: HashMap<u32, Round>,
    /// Other workers submit what a flusher writes, also after its round: the file system has checksums (btrfs).
    workers: bool,
    /// The round that has written an inode last, and when that, or a worker's write for it, was.
    wrote: Option<(f64, Round)>,
    queued: VecDeque<(Work, Asker)>,
    /// By thread: the system call that it is in.
    current: HashMap<u32, (String, f64)>,
    /// By thread: the last system call that returned.
    last: HashMap<u32, String>,
    dirtied: HashMap<u64, Task>,
    /// By thread: the burst that its last write was counted in.
    bursts: HashMap<u32, usize>,
    /// By cause, tasks and evidence: the last burst.
    kinds: HashMap<(Cause, u32, u32, String), usize>,
    /// By thread: its last name.
    names: HashMap<u32, String>,
    /// By burst: bytes since writes were last traced again.
    recent: HashMap<usize, u64>,
    /// All bytes that were traced.
    pub(crate) traced: u64,
}

impl Attribution {
    /// An attribution for a recording that begins at this second of the trace's clock. `workers`: other workers submit
    /// what a flusher writes.
    pub(crate) fn since(start: f64, workers: bool) -> Self {
        Self { start, workers, ..Self::default() }
    }

    pub(crate) fn feed(&mut self, event: Event) {
        let t_ms = (event.time - self.start) * 1000.0;
        let pid = event.pid;
        if let What::Stack(stack) = event.what {
            self.settle(pid, stack);
            return;
        }
        self.settle(pid, Vec::new());
        match event.what {
            What::Bio { flags, bytes } => {
                if flags.contains(['W', 'D']) && bytes > 0 {
                    self.waiting.insert(pid, Waiting::Bio { t_ms, comm: event.comm, flags, bytes });
                }
            }
            What::Queue(work) => {
                let task = self.task(pid, event.comm, &[]);
                self.queue(work.clone(), Asker { task, stack: Vec::new() });
                self.waiting.insert(pid, Waiting::Queue(work));
            }
            What::Exec(work) => {
                let at = self.queued.iter().position(|(queued, _)| *queued == work);
                let asker = at.and_then(|at| self.queued.remove(at)).map(|(_, asker)| asker);
                self.rounds.insert(pid, Round { reason: work.reason, asker, taken: true, active: true });
            }
            What::Start(work) => self.begin_round(pid, work),
            What::End => {
                if let Some(round) = self.rounds.get_mut(&pid) {
                    round.active = false;
                }
            }
            What::Inode { ino, pages } => self.inode(t_ms, pid, ino, pages),
            What::Dirty { ino } => {
                // A flusher that allocates blocks also marks inodes dirty, but is not the writer.
                if self.dirtied.len() < DIRTIED_MAX && !event.comm.starts_with("kworker/") {
                    self.dirtied.insert(ino, Task { pid, comm: event.comm, syscall: None });
                }
            }
            What::Fork { child } => {
                if self.children.len() < CHILDREN_MAX {
                    self.children.push((pid, child));
                }
            }
            What::Next => self.goes_on(pid, t_ms),
            What::Dies { comm } => {
                self.goes_on(pid, t_ms);
                if self.names.len() < NAMES_MAX {
                    self.names.insert(pid, comm);
                }
                self.current.remove(&pid);
                self.last.remove(&pid);
            }
            What::Enter(call) => {
                self.goes_on(pid, t_ms);
                self.current.insert(pid, (call, t_ms));
            }
            What::Exit(call) => self.exit(pid, event.comm, call, t_ms),
            What::Stack(_) => {}
        }
    }

    /// These threads and all their descendants since the beginning, however short-lived; `None` if forks were
    /// dropped.
    pub(crate) fn family(&self, of: &HashSet<u32>) -> Option<BTreeSet<u32>> {
        let mut family: BTreeSet<u32> = of.iter().copied().collect();
        for (parent, child) in &self.children {
            if family.contains(parent) {
                family.insert(*child);
            }
        }
        (self.children.len() < CHILDREN_MAX).then_some(family)
    }

    /// Ends the attribution: no more stacks will follow.
    pub(crate) fn finish(&mut self, end_ms: f64) {
        self.settle_all();
        for (pid, (call, begin_ms)) in std::mem::take(&mut self.current) {
            let task = Task { pid, comm: String::new(), syscall: Some(call) };
            self.calls.push(Call { task, begin_ms, end_ms });
        }
        let name = |task: &mut Task| {
            if let Some(name) = self.names.get(&task.pid) {
                task.comm.clone_from(name);
            }
        };
        self.calls.iter_mut().for_each(|call| name(&mut call.task));
        for burst in self.written.iter_mut().chain(&mut self.discarded) {
            let tasks = burst.asked_by.iter_mut().chain(burst.dirtied_by.values_mut());
            tasks.chain([&mut burst.by]).for_each(name);
        }
    }

    /// No more stacks of the events so far will follow.
    pub(crate) fn settle_all(&mut self) {
        let pids: Vec<u32> = self.waiting.keys().copied().collect();
        for pid in pids {
            self.settle(pid, Vec::new());
        }
    }

    fn exit(&mut self, pid: u32, comm: String, call: String, end_ms: f64) {
        if let Some((entered, begin_ms)) = self.current.remove(&pid)
            && entered == call
            // An unmount waits after it.
            && (end_ms - begin_ms >= SHORT_MS || call == "umount")
        {
            let task = Task { pid, comm, syscall: Some(call.clone()) };
            self.calls.push(Call { task, begin_ms, end_ms });
        }
        self.last.insert(pid, call);
    }

    fn goes_on(&mut self, pid: u32, t_ms: f64) {
        if self.moments.len() == MOMENTS_MAX {
            self.moments.pop_front();
        }
        self.moments.push_back((pid, t_ms));
    }

    /// Writes are traced again, or for the first time.
    pub(crate) fn sees_writes(&mut self) {
        self.recent.clear();
    }

    /// Adds bytes that the device has counted until `t_ms`, while no writes were traced, to those who wrote before, in
    /// proportion. Returns how many were added: none if nobody was seen writing.
    pub(crate) fn estimate(&mut self, bytes: u64, t_ms: f64) -> u64 {
        let seen: u64 = self.recent.values().sum();
        let mut added = 0;
        for (at, part) in &self.recent {
            let Some(burst) = self.written.get_mut(*at) else { continue };
            let more = u64::try_from(u128::from(bytes) * u128::from(*part) / u128::from(seen.max(1)));
            let more = more.unwrap_or(bytes);
            burst.bytes += more;
            burst.end_ms = burst.end_ms.max(t_ms);
            added += more;
        }
        added
    }

    fn begin_round(&mut self, pid: u32, work: Work) {
        let round = self.rounds.entry(pid).or_default();
        if !(round.taken && round.reason == work.reason) {
            // A kernel without writeback_exec: the last task that queued the same work is assumed. Periodic work has
            // no asker.
            let asker = self.queued.iter().rev().find(|(queued, _)| *queued == work).map(|(_, a)| a.clone());
            *round = Round { asker, reason: work.reason, taken: false, active: true };
        }
        round.active = true;
    }

    fn queue(&mut self, work: Work, asker: Asker) {
        if self.queued.len() == QUEUED_MAX {
            self.queued.pop_front();
        }
        self.queued.push_back((work, asker));
    }

    /// A thread with the system call that it is in, or whose deferred work it does.
    fn task(&self, pid: u32, comm: String, stack: &[String]) -> Task {
        let from_stack = causes::call_of(stack);
        let syscall = match from_stack.as_deref() {
            // The actual unmount is task work, deferred to the return from umount2.
            Some("task_work") => self
                .last
                .get(&pid)
                .filter(|call| *call == "umount" && stack.iter().any(|f| f == "cleanup_mnt"))
                .cloned()
                .or(from_stack),
            Some(_) => from_stack,
            None => self.current.get(&pid).map(|(call, _)| call.clone()),
        };
        Task { pid, comm, syscall }
    }

    /// Completes the thread's waiting event with its stack, or without one.
    fn settle(&mut self, pid: u32, stack: Vec<String>) {
        match self.waiting.remove(&pid) {
            Some(Waiting::Queue(work)) if !stack.is_empty() => {
                let Some(at) = self.queued.iter().rposition(|(w, a)| *w == work && a.task.pid == pid) else {
                    return;
                };
                let comm = self.queued[at].1.task.comm.clone();
                let task = self.task(pid, comm, &stack);
                self.queued[at].1 = Asker { task, stack };
            }
            Some(Waiting::Bio { t_ms, comm, flags, bytes }) => {
                self.bio(t_ms, pid, comm, &flags, bytes, stack);
            }
            _ => {}
        }
    }

    /// A discard. Its cause is known from the stack alone: the task that frees the blocks also writes.
    fn discard(&mut self, t_ms: f64, pid: u32, comm: String, bytes: u64, stack: Vec<String>) {
        let by = self.task(pid, comm, &stack);
        let (cause, function) = causes::of_discard(&stack);
        let how = function.map(str::to_owned).or_else(|| causes::meaningful(&stack).cloned());
        let how = how.unwrap_or_else(|| format!("thread {}", by.comm));
        let own = !by.comm.starts_with("kworker/") && causes::of_thread(&by.comm).is_none();
        let near = |burst: &&mut Written| {
            burst.by.pid == pid && burst.cause == cause && burst.how == how && t_ms - burst.end_ms <= GAP_MS
        };
        match self.discarded.iter_mut().rev().take(DISCARDERS).find(near) {
            Some(burst) => {
                burst.end_ms = burst.end_ms.max(t_ms);
                burst.bytes += bytes;
                burst.writes += 1;
            }
            None => self.discarded.push(Written {
                begin_ms: t_ms,
                end_ms: t_ms,
                cause,
                how,
                bytes,
                metadata_bytes: 0,
                writes: 1,
                asked_by: own.then(|| by.clone()),
                by,
                stack,
                inodes: BTreeMap::new(),
                dirtied_by: BTreeMap::new(),
            }),
        }
    }

    /// The round that a worker writes for: one that was asked for, or else the last that has written something. After a
    /// round that was asked for a flusher looks for old data, which is a round that mostly writes nothing.
    fn worked_for(&mut self, t_ms: f64) -> Option<Round> {
        let asked = self.rounds.values().find(|round| round.active && round.asker.is_some());
        if asked.is_some() {
            return asked.cloned();
        }
        if let Some((last_ms, round)) = &mut self.wrote
            && t_ms - *last_ms <= GAP_MS
        {
            // A slow disk takes what was written for longer.
            *last_ms = t_ms;
            return Some(round.clone());
        }
        self.rounds.values().find(|round| round.active).cloned()
    }

    fn bio(&mut self, t_ms: f64, pid: u32, comm: String, flags: &str, bytes: u64, stack: Vec<String>) {
        if flags.contains('D') {
            return self.discard(t_ms, pid, comm, bytes, stack);
        }
        let own = self.rounds.get(&pid).is_some_and(|round| round.active);
        let is_worker = !own && self.workers && comm.starts_with("kworker/");
        let others = is_worker.then(|| self.worked_for(t_ms)).flatten();
        let round = self.rounds.get(&pid).filter(|round| round.active).or(others.as_ref());
        let by = self.task(pid, comm, &stack);
        let (cause, how, asker) = if let Some((cause, function)) = causes::of_stack(&stack) {
            let asker = (cause != Cause::JournalCommit && !by.comm.starts_with("kworker/"))
                .then(|| Asker { task: by.clone(), stack });
            (cause, function.to_owned(), asker)
        } else if let Some(round) = round {
            (causes::of_reason(&round.reason), format!("flusher: {}", round.reason), round.asker.clone())
        } else if let Some(cause) = causes::of_thread(&by.comm) {
            (cause, format!("thread {}", by.comm), None)
        } else if let Some((call, _)) = self.current.get(&pid)
            && let Some(cause) = causes::of_call(call)
        {
            (cause, format!("in {call}"), Some(Asker { task: by.clone(), stack }))
        } else {
            let how = causes::meaningful(&stack).cloned().unwrap_or_else(|| format!("thread {}", by.comm));
            (Cause::Unknown, how, Some(Asker { task: by.clone(), stack }))
        };
        let kind = (cause, pid, asker.as_ref().map_or(0, |a| a.task.pid), how.clone());
        let near = |at: &usize| self.written.get(*at).is_some_and(|w| t_ms - w.end_ms <= GAP_MS);
        let at = self.kinds.get(&kind).copied().filter(near).unwrap_or_else(|| {
            let Asker { task, stack } = asker.clone().unwrap_or_default();
            self.written.push(Written {
                begin_ms: t_ms,
                end_ms: t_ms,
                cause,
                how,
                bytes: 0,
                metadata_bytes: 0,
                writes: 0,
                by,
                asked_by: asker.is_some().then_some(task),
                stack,
                inodes: BTreeMap::new(),
                dirtied_by: BTreeMap::new(),
            });
            self.written.len() - 1
        });
        self.kinds.insert(kind, at);
        *self.recent.entry(at).or_default() += bytes;
        self.traced += bytes;
        self.bursts.insert(pid, at);
        let burst = &mut self.written[at];
        burst.end_ms = burst.end_ms.max(t_ms);
        burst.bytes += bytes;
        burst.writes += 1;
        if flags.contains('M') {
            burst.metadata_bytes += bytes;
        }
    }

    /// Adds pages of an inode, which the flusher has just submitted, to the thread's last burst.
    fn inode(&mut self, t_ms: f64, pid: u32, ino: u64, pages: u64) {
        if pages == 0 {
            return;
        }
        if self.workers
            && let Some(round) = self.rounds.get(&pid)
        {
            self.wrote = Some((t_ms, round.clone()));
        }
        let writer = self.dirtied.get(&ino).cloned();
        let Some(burst) = self.bursts.get(&pid).and_then(|at| self.written.get_mut(*at)) else { return };
        *burst.inodes.entry(ino).or_default() += pages * rustix::param::page_size() as u64;
        if let Some(writer) = writer {
            burst.dirtied_by.insert(ino, writer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Parser;

    fn written(text: &str) -> Vec<Written> {
        let mut parser = Parser::default();
        let mut attribution = Attribution::since(100.0, false);
        for event in parser.feed(text).into_iter().chain(parser.finish()) {
            attribution.feed(event);
        }
        if let Some(event) = parser.finish() {
            attribution.feed(event);
        }
        assert_eq!(parser.strange, 0);
        attribution.finish(9000.0);
        attribution.written
    }

    fn round(reason: &str) -> String {
        let work = format!("bdi 7:2: sb_dev 7:2 nr_pages=1 sync_mode=0 reason={reason} cgroup_ino=1");
        format!(
            "k-2 [001] ..... 100.2: writeback_start: {work}
k-2 [001] ..... 100.3: block_bio_queue: 7,2 W 8 + 16 [k]
k-2 [001] ..... 100.4: writeback_single_inode: bdi 7:2: ino=14 state= wrote=2 cgroup_ino=1
k-2 [001] ..... 100.5: writeback_written: {work}
"
        )
    }

    #[test]
    fn a_flushers_reason_is_the_cause() {
        for (reason, cause) in [
            ("periodic", Cause::Age),
            ("background", Cause::MemoryPressure),
            ("vmscan", Cause::MemoryPressure),
            ("foreign_flush", Cause::MemoryPressure),
            ("sync", Cause::Sync),
            ("fs_free_space", Cause::LittleSpace),
            ("something_new", Cause::Unknown),
        ] {
            let text = "dd-5 [000] ..... 100.1: writeback_dirty_inode_enqueue: dev 7,2 ino 14 dirtied 1\n"
                .to_owned()
                + &round(reason);
            let written = written(&text);
            assert_eq!(written.len(), 1);
            assert_eq!((written[0].cause, written[0].bytes), (cause, 8192), "{reason}");
            assert_eq!(written[0].inodes, BTreeMap::from([(14, 8192)]));
            assert_eq!(written[0].dirtied_by[&14].pid, 5);
            assert_eq!(written[0].asked_by, None);
        }
    }

    #[test]
    fn after_its_round_a_worker_does_something_else() {
        let text = round("sync") + "k-2 [001] ..... 100.6: block_bio_queue: 7,2 W 8 + 16 [k]\n";
        assert_eq!(written(&text).iter().map(|w| w.cause).collect::<Vec<_>>(), [Cause::Sync, Cause::Unknown]);
    }

    #[test]
    fn other_workers_may_submit_what_a_flusher_writes() {
        // The stack says what a worker does, and not for whom.
        let worker = |time: f64| {
            format!(
                "kworker/u8:1-9 [001] ..... {time}: block_bio_queue: 7,2 W 8 + 16 [k]
kworker/u8:1-9 [001] ..... {time}: <stack trace>
 => submit_bio_noacct
 => btrfs_submit_bio
 => run_one_async_done
 => process_one_work
"
            )
        };
        // After the sync the flusher looks for old data, and finds none.
        let idle = |event: &str, time: f64| {
            format!(
                "kworker/u8:0-2 [001] ..... {time}: {event}: bdi 7:2: sb_dev 7:2 nr_pages=1 sync_mode=0 \
                 reason=periodic cgroup_ino=1\n"
            )
        };
        let (start, end) = (idle("writeback_start", 100.55), idle("writeback_written", 100.8));
        let text =
            round("sync").replace("k-2", "kworker/u8:0-2") + &start + &worker(100.7) + &end + &worker(105.0);
        let causes = |workers: bool| {
            let mut parser = Parser::default();
            let mut attribution = Attribution::since(100.0, workers);
            parser.feed(&text).into_iter().for_each(|event| attribution.feed(event));
            attribution.finish(9000.0);
            attribution.written.iter().map(|w| (w.by.pid, w.cause)).collect::<Vec<_>>()
        };
        assert_eq!(causes(true), [(2, Cause::Sync), (9, Cause::Sync), (9, Cause::Unknown)]);
        assert_eq!(causes(false), [(2, Cause::Sync), (9, Cause::Unknown), (9, Cause::Unknown)]);
    }

    #[test]
    fn who_asked_the_flusher() {
        let work = "bdi 7:2: sb_dev 7:2 nr_pages=1 sync_mode=0 reason=sync cgroup_ino=1";
        let ask = |pid: u32, exec: bool| {
            let exec = if exec {
                format!("k-2 [001] ..... 100.15: writeback_exec: {work}\n")
            } else {
                String::new()
            };
            format!(
                "u-{pid} [000] ..... 100.09: sys_umount(name: 0, flags: 0)
u-{pid} [000] ..... 100.1: sys_umount -> 0x0
u-{pid} [000] ..... 100.11: writeback_queue: {work}
u-{pid} [000] ..... 100.12: <stack trace>
 => sync_filesystem
 => ovl_sync_fs
 => cleanup_mnt
 => task_work_run
{exec}"
            )
        };
        for exec in [true, false] {
            let written = written(&(ask(7, exec) + &round("sync")));
            let asker = written[0].asked_by.as_ref().unwrap();
            assert_eq!((asker.pid, asker.syscall.as_deref()), (7, Some("umount")));
            assert!(written[0].stack.contains(&"ovl_sync_fs".to_owned()));
        }
        // Two requests in a row: each round belongs to the request that was taken up for it.
        let exec = format!("k-2 [001] ..... 100.15: writeback_exec: {work}\n");
        let both = ask(7, false) + &ask(8, false) + &exec + &round("sync") + &exec + &round("sync");
        let askers: Vec<u32> = written(&both).iter().map(|w| w.asked_by.as_ref().unwrap().pid).collect();
        assert_eq!(askers, [7, 8]);
    }

    #[test]
    fn a_stack_decides_over_all_else() {
        let text = "x-5 [000] ..... 100.1: block_bio_queue: 7,2 W 8 + 16 [x]
y-6 [001] ..... 100.1: sys_fsync(fd: 3)
x-5 [000] ..... 100.1: <stack trace>
 => ext4_io_submit
 => ext4_release_file
 => __fput
 => task_work_run
y-6 [001] ..... 100.2: block_bio_queue: 7,2 WS 8 + 16 [y]
jbd2/loop2-8-9 [001] ..... 100.2: block_bio_queue: 7,2 WSM 8 + 2 [jbd2/loop2-8]
z-4 [001] ..... 100.2: block_bio_queue: 7,2 W 8 + 2 [z]
";
        let written = written(text);
        let found = |pid: u32| {
            let burst = written.iter().find(|burst| burst.by.pid == pid).unwrap();
            (burst.cause, burst.by.syscall.as_deref(), burst.metadata_bytes)
        };
        assert_eq!(found(5), (Cause::FlushAtClose, Some("task_work"), 0));
        assert_eq!(found(6), (Cause::Sync, Some("fsync"), 0));
        assert_eq!(found(9), (Cause::JournalCommit, None, 1024));
        assert_eq!(found(4), (Cause::Unknown, None, 0));
    }

    #[test]
    fn discards_are_no_writes() {
        let text = "rm-5 [000] ..... 100.1: block_bio_queue: 7,2 DS 8 + 4096 [rm]
rm-5 [000] ..... 100.1: <stack trace>
 => submit_bio_noacct_nocheck
 => __blkdev_issue_discard
 => ext4_issue_discard
 => ext4_free_blocks
 => __x64_sys_unlinkat
rm-5 [000] ..... 100.2: block_bio_queue: 7,2 DS 4104 + 4096 [rm]
rm-5 [000] ..... 100.2: <stack trace>
 => submit_bio_noacct_nocheck
 => __blkdev_issue_discard
 => ext4_issue_discard
 => ext4_free_blocks
 => __x64_sys_unlinkat
jbd2/loop2-8-9 [001] ..... 100.3: block_bio_queue: 7,2 D 8 + 8 [jbd2/loop2-8]
jbd2/loop2-8-9 [001] ..... 100.3: <stack trace>
 => ext4_process_freed_data
 => jbd2_journal_commit_transaction
";
        let mut parser = Parser::default();
        let mut attribution = Attribution::since(100.0, false);
        for event in parser.feed(text) {
            attribution.feed(event);
        }
        parser.finish().into_iter().for_each(|event| attribution.feed(event));
        attribution.finish(9000.0);
        assert!(attribution.written.is_empty());
        let found: Vec<_> = attribution
            .discarded
            .iter()
            .map(|burst| (burst.cause, burst.bytes, burst.writes, burst.asked_by.as_ref().map(|a| a.pid)))
            .collect();
        assert_eq!(found, [(Cause::Deletion, 8192 * 512, 2, Some(5)), (Cause::Deletion, 4096, 1, None)]);
    }

    #[test]
    fn what_was_not_traced_is_estimated_in_proportion() {
        let line = |pid: u32, time: f64, sectors: u64| {
            format!("jbd2/a-{pid} [001] ..... {time}: block_bio_queue: 7,2 W 8 + {sectors} [a]\n")
        };
        let mut parser = Parser::default();
        let mut attribution = Attribution::since(100.0, false);
        let mut feed = |attribution: &mut Attribution, text: String| {
            parser.feed(&text).into_iter().for_each(|event| attribution.feed(event));
            attribution.settle_all();
        };
        feed(&mut attribution, line(3, 100.1, 1000));
        attribution.sees_writes();
        assert_eq!(attribution.estimate(4096, 200.0), 0, "nobody was seen");
        feed(&mut attribution, line(1, 100.2, 6) + &line(2, 100.2, 2));
        assert_eq!(attribution.estimate(800, 500.0), 800);
        let bytes = |pid: u32| {
            let burst = attribution.written.iter().find(|burst| burst.by.pid == pid).unwrap();
            (burst.bytes, burst.end_ms.round())
        };
        assert_eq!((bytes(1), bytes(2), bytes(3)), ((3672, 500.0), (1224, 500.0), (512_000, 100.0)));
    }

    #[test]
    fn a_thread_is_called_by_its_last_name() {
        let text = "sh-5 [000] ..... 100.1: writeback_dirty_inode_enqueue: dev 7,2 ino 14 dirtied 1\n"
            .to_owned()
            + &round("sync")
            + "sh-5 [000] ..... 100.6: block_bio_queue: 7,2 W 8 + 16 [sh]\n"
            + "sh-5 [000] ..... 100.7: sched_process_exit: comm=dd pid=5 prio=120\n";
        let written = written(&text);
        assert_eq!(written[0].dirtied_by[&14].comm, "dd");
        assert_eq!(
            (written[1].by.comm.as_str(), written[1].asked_by.as_ref().unwrap().comm.as_str()),
            ("dd", "dd")
        );
    }

    #[test]
    fn bursts_end() {
        let text = "jbd2/a-9 [001] ..... 100.2: block_bio_queue: 7,2 W 8 + 2 [a]
jbd2/a-9 [001] ..... 100.9: block_bio_queue: 7,2 W 8 + 2 [a]
jbd2/a-9 [001] ..... 105.0: block_bio_queue: 7,2 W 8 + 2 [a]
";
        let writes: Vec<u64> = written(text).iter().map(|burst| burst.writes).collect();
        assert_eq!(writes, [2, 1]);
    }
}
