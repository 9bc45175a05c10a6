//! Parses the text of a trace (Documentation/trace/ftrace.rst) into events.

/// One event, or one kernel stack that belongs to the event before it of the same thread.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Seconds of the trace's clock.
    pub(crate) time: f64,
    pub(crate) pid: u32,
    pub(crate) comm: String,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// A task asks the flusher to write (`writeback_queue`).
    Queue(Work),
    /// The flusher takes up a request (`writeback_exec`).
    Exec(Work),
    /// The flusher begins a round of writeback, requested or of its own accord.
    Start(Work),
    /// The flusher has ended a round.
    End,
    /// Pages of one inode were submitted.
    Inode { ino: u64, pages: u64 },
    /// A clean inode has become dirty.
    Dirty { ino: u64 },
    /// A request to a block device.
    Bio { flags: String, bytes: u64 },
    /// The thread has a new child, a process or a thread.
    Fork { child: u32 },
    /// The thread has entered a system call.
    Enter(String),
    /// The thread leaves the system call. Its deferred task work is still to come.
    Exit(String),
    /// The thread has entered any system call: what it did before is over.
    Next,
    /// The thread ends. Its name is read from the event: the tracer knows an earlier one, if the thread has executed a
    /// program since the last switch to it.
    Dies { comm: String },
    /// A kernel stack, innermost function first.
    Stack(Vec<String>),
}

/// The writeback work of a flusher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) bdi: String,
    pub(crate) reason: String,
    pub(crate) cgroup: u64,
}

/// Parses the text piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// An incomplete line.
    rest: String,
    /// A stack that may still be incomplete.
    stack: Option<Event>,
    /// Events that the kernel reports as lost.
    pub(crate) lost: u64,
    /// Lines that could not be parsed.
    pub(crate) strange: u64,
}

impl Parser {
    /// Parses a piece. Returns the events that it completes.
    pub(crate) fn feed(&mut self, piece: &str) -> Vec<Event> {
        let mut events = Vec::new();
        let text = std::mem::take(&mut self.rest) + piece;
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        for line in text[..end].lines() {
            self.line(line, &mut events);
        }
        self.rest = text[end..].to_owned();
        events
    }

    /// Returns the pending stack at the end of the trace.
    pub(crate) fn finish(&mut self) -> Option<Event> {
        self.stack.take()
    }

    fn line(&mut self, line: &str, events: &mut Vec<Event>) {
        if let Some(function) = line.strip_prefix(" => ") {
            if let Some(Event { what: What::Stack(functions), .. }) = &mut self.stack {
                functions.push(bare(function).to_owned());
            }
            return;
        }
        events.extend(self.stack.take());
        if line.is_empty() || line.starts_with('#') {
            return;
        }
        if line.starts_with("CPU:") {
            self.lost += lost(line);
            return;
        }
        match event(line) {
            Some(event) if matches!(event.what, What::Stack(_)) => self.stack = Some(event),
            Some(event) => events.push(event),
            None => self.strange += 1,
        }
    }
}

/// Parses `CPU:1 [LOST 22 EVENTS]`.
fn lost(line: &str) -> u64 {
    let count = line.split_once("[LOST ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    count.unwrap_or(1)
}

/// Parses `  comm-PID   [CPU] flags seconds: event: fields`; a comm may contain blanks and hyphens.
fn event(line: &str) -> Option<Event> {
    let cpu = line.match_indices(" [").find(|(at, _)| {
        let inside = &line[at + 2..];
        inside.find("] ").is_some_and(|end| end > 0 && inside[..end].bytes().all(|b| b.is_ascii_digit()))
    })?;
    let (comm, pid) = line[..cpu.0].trim().rsplit_once('-')?;
    let rest = line[cpu.0 + 2..].split_once("] ")?.1.trim_start();
    let (_flags, rest) = rest.split_once(' ')?;
    let (time, rest) = rest.trim_start().split_once(": ")?;
    let what = if rest.starts_with("sys_enter: ") {
        What::Next
    } else if let Some(call) = rest.strip_prefix("sys_") {
        match call.find(['(', ' ']) {
            Some(at) if call[at..].starts_with('(') => What::Enter(call[..at].to_owned()),
            Some(at) => What::Exit(call[..at].to_owned()),
            None => return None,
        }
    } else if rest == "<stack trace>" {
        What::Stack(Vec::new())
    } else {
        let (name, fields) = rest.split_once(": ")?;
        fields_of(name, fields)?
    };
    let comm = if comm == "<...>" { "" } else { comm };
    Some(Event { time: time.parse().ok()?, pid: pid.parse().ok()?, comm: comm.to_owned(), what })
}

fn fields_of(name: &str, fields: &str) -> Option<What> {
    let value = |key: &str| fields.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
    let work = || {
        let bdi = fields.strip_prefix("bdi ")?.split_once(": ")?.0.to_owned();
        let cgroup = value("cgroup_ino").and_then(|ino| ino.parse().ok()).unwrap_or(0);
        Some(Work { bdi, reason: value("reason")?.to_owned(), cgroup })
    };
    Some(match name {
        "writeback_queue" => What::Queue(work()?),
        "writeback_exec" => What::Exec(work()?),
        "writeback_start" => What::Start(work()?),
        "writeback_written" => What::End,
        "writeback_single_inode" => {
            What::Inode { ino: value("ino")?.parse().ok()?, pages: value("wrote")?.parse().ok()? }
        }
        "writeback_dirty_inode_enqueue" => {
            // `dev 7,2 ino 13 dirtied …`
            What::Dirty { ino: fields.split_once(" ino ")?.1.split(' ').next()?.parse().ok()? }
        }
        "sched_process_fork" => {
            // `comm=sh pid=7 child_comm=sh child_pid=8`; a comm may contain anything.
            What::Fork { child: fields.rsplit_once(" child_pid=")?.1.trim().parse().ok()? }
        }
        "sched_process_exit" => {
            What::Dies { comm: fields.strip_prefix("comm=")?.rsplit_once(" pid=")?.0.to_owned() }
        }
        "block_bio_queue" => {
            // `7,2 WFS 2 + 2 [mount]`: device, flags, first sector, sectors of 512 bytes
            let mut words = fields.split(' ');
            let flags = words.nth(1)?.to_owned();
            let sectors: u64 = words.nth(2)?.parse().ok()?;
            What::Bio { flags, bytes: sectors.checked_mul(512)? }
        }
        _ => return None,
    })
}

/// A function's name without offset, module and the compiler's suffix (`ext4_fsync_nojournal.constprop.0`).
pub(crate) fn bare(function: &str) -> &str {
    let end = function.trim().find(['+', ' ', '.']).unwrap_or(function.trim().len());
    &function.trim()[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_names_the_child() {
        let line = "              sh-7    [001] ..... 1.5: sched_process_fork: comm=a child_pid=9 pid=7 child_comm=b child_pid=8";
        let event = event(line).unwrap();
        assert_eq!((event.pid, event.what), (7, What::Fork { child: 8 }));
    }

    #[test]
    fn a_thread_goes_on_or_ends() {
        let what = |rest: &str| event(&format!("    a-7    [001] ..... 1.5: {rest}")).map(|event| event.what);
        assert_eq!(what("sys_enter: NR 166 (7f0, 2, 0, 0, 0, 0)"), Some(What::Next));
        assert_eq!(
            what("sched_process_exit: comm=a pid=7 b pid=7 prio=120"),
            Some(What::Dies { comm: "a pid=7 b".into() })
        );
        assert_eq!(what("sys_umount(name: 7f0, flags: 2)"), Some(What::Enter("umount".into())));
    }

    const CAPTURED: &str = "\
# tracer: nop
#
           mkdir-25915   [001] ..... 19681.029770: writeback_dirty_inode_enqueue: dev 254,0 ino 9986834 dirtied 4299812490 state I_DIRTY_SYNC|I_DIRTY_DATASYNC|I_DIRTY_PAGES|I_NEW|I_CREATING mode 040755
       mkfs.ext4-25914   [000] ..... 19680.997805: sys_fsync(fd: 3)
       mkfs.ext4-25914   [000] ..... 19681.000044: sys_fsync -> 0x0
            sync-25924   [001] ..... 19681.206285: writeback_queue: bdi 7:2: sb_dev 7:2 nr_pages=204873 sync_mode=0 kupdate=0 range_cyclic=0 background=0 reason=sync cgroup_ino=1
    kworker/u8:3-26644   [001] ...1. 19681.206338: writeback_start: bdi 7:2: sb_dev 7:2 nr_pages=204873 sync_mode=0 kupdate=0 range_cyclic=0 background=0 reason=sync cgroup_ino=1
    kworker/u8:3-26644   [001] ..... 19681.206758: block_bio_queue: 7,2 W 28674 + 4096 [kworker/u8:3]
    kworker/u8:3-26644   [001] ..... 19681.207112: writeback_single_inode: bdi 7:2: ino=14 state=I_SYNC|I_SYNC_QUEUED dirtied_when=4299812531 age=0 index=1024 to_write=9223372036854775807 wrote=1024 cgroup_ino=1
    kworker/u8:3-26644   [001] ...1. 19681.207113: writeback_written: bdi 7:2: sb_dev 7:2 nr_pages=203849 sync_mode=0 kupdate=0 range_cyclic=0 background=0 reason=sync cgroup_ino=1
CPU:1 [LOST 22 EVENTS]
    jbd2/loop2-8-25918   [001] ..... 19681.176125: block_bio_queue: 7,2 FWFSM 278552 + 2 [jbd2/loop2-8]
    jbd2/loop2-8-25918   [001] ..... 19681.176127: <stack trace>
 => trace_event_raw_event_block_bio
 => submit_bio_noacct_nocheck
 => ext4_fsync_nojournal.constprop.0
";

    #[test]
    fn captured_text() {
        let mut parser = Parser::default();
        let mut events = parser.feed(CAPTURED);
        assert_eq!(events.len(), 9, "the stack may go on");
        events.extend(parser.finish());
        assert_eq!((parser.lost, parser.strange), (22, 0));
        let work = Work { bdi: "7:2".into(), reason: "sync".into(), cgroup: 1 };
        let stack = ["trace_event_raw_event_block_bio", "submit_bio_noacct_nocheck", "ext4_fsync_nojournal"];
        let what: Vec<What> = events.iter().map(|event| event.what.clone()).collect();
        assert_eq!(
            what,
            [
                What::Dirty { ino: 9_986_834 },
                What::Enter("fsync".into()),
                What::Exit("fsync".into()),
                What::Queue(work.clone()),
                What::Start(work),
                What::Bio { flags: "W".into(), bytes: 4096 * 512 },
                What::Inode { ino: 14, pages: 1024 },
                What::End,
                What::Bio { flags: "FWFSM".into(), bytes: 1024 },
                What::Stack(stack.map(str::to_owned).to_vec()),
            ]
        );
        assert_eq!((events[8].comm.as_str(), events[8].pid), ("jbd2/loop2-8", 25918));
        assert_eq!(events[1].time, 19680.997805);
    }

    #[test]
    fn pieces_may_end_anywhere() {
        let whole = |step: usize| {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for piece in CAPTURED.as_bytes().chunks(step) {
                events.extend(parser.feed(std::str::from_utf8(piece).unwrap()));
            }
            events.extend(parser.finish());
            events
        };
        assert_eq!(whole(7), whole(CAPTURED.len()));
    }

    #[test]
    fn names_of_threads_may_be_anything() {
        let of = |comm: &str| {
            event(&format!("  {comm}-12   [000] ..... 1.000001: sys_syncfs(fd: 3)")).map(|e| (e.comm, e.pid))
        };
        assert_eq!(of("a - b-c [x]"), Some(("a - b-c [x]".into(), 12)));
        assert_eq!(of("<...>"), Some((String::new(), 12)));
        // Four flags, as before kernel 5.18.
        assert!(event("  x-1     [001] .... 1.5: sys_sync()").is_some());
    }

    #[test]
    fn what_is_no_event_is_counted() {
        let mut parser = Parser::default();
        for line in [
            "nonsense",
            "x-1 [000] ..... 1.0: block_bio_queue: 7,2 W",
            "x-1 [000] ..... 1.0: writeback_queue: bdi",
            "x-1 [000] ..... 1.0: unheard_of: a=1",
            "x-many [000] ..... 1.0: sys_sync()",
            " => a function without a stack",
        ] {
            assert_eq!(parser.feed(&format!("{line}\n")), [], "{line}");
        }
        assert_eq!(parser.strange, 5);
    }
}
