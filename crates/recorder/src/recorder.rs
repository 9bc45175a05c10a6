//! The recorder: one thread that samples the host once per period.

use crate::attribution::Attribution;
use crate::host::{self, Host, Target};
use crate::recording::{Mark, Recording, Source};
use crate::sampling::Sampler;
use crate::trace::Parser;
use crate::tracefs::Instance;
use crate::waits;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Limit of samples; when it is reached, every second one is dropped.
const SAMPLES_MAX: usize = 20_000;
/// The trace is read once per this many samples.
const TRACE_EVERY: u64 = 5;
/// Summing up all of /proc/vmstat takes the kernel longer than all other files: it is read once per this
/// many samples.
const COUNTERS_EVERY: u64 = 5;
/// CPU share of the recorder beyond which the threads are sampled less often.
const BUDGET: f64 = 0.009;
/// CPU share for reading the trace beyond which writes are not traced for a while. The rest is for the samples.
const TRACE_BUDGET: f64 = 0.005;
/// Below this part of it they are traced again.
const AGAIN: f64 = 0.9;
/// At the beginning the trace may cost as much as it may in this time, in ms: a short recording must show who writes.
const TRACE_START_MS: f64 = 20_000.0;
/// Writes are not traced for this long at least, in ms: each change takes the kernel a while.
const PAUSE_MS: f64 = 1000.0;
/// Beyond it, the threads are still sampled once per this many samples, and the host as often.
const LOOK_LEAST: u64 = 5;
/// With so many bytes of text at a time the trace is read at each sample.
const MUCH: usize = 16 << 10;
/// Samples that are taken in any case: the cost of the start is not representative.
const FREE_LOOKS: u64 = 25;

/// Why a recording could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Only root can see kernel stacks and traces.
    #[error("recording needs root: kernel stacks and traces are shown to nobody else")]
    NotRoot,
    /// The period is not between 1 ms and 10 s.
    #[error("a period of {} ms cannot be kept: give one between 1 ms and 10 s", .0.as_millis())]
    Period(Duration),
    /// The directory whose file system is to be watched cannot be accessed.
    #[error("look at {}: {source}", path.display())]
    Path {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The process to watch does not exist.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// The recorder's thread could not be started.
    #[error("start the recorder's thread: {0}")]
    Thread(std::io::Error),
}

/// The threads that are sampled, once per period, for waits in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// All threads of this process.
    Own,
    /// All threads of this process's children and further descendants.
    Children,
    /// All threads of a process and its descendants.
    Tree(u32),
}

/// Options of a recording.
#[derive(Debug, Clone)]
pub struct Options {
    /// Sampling period; [`Options::new`] sets 20 ms.
    pub period: Duration,
    /// The watched threads.
    pub watch: Watch,
    /// Any directory on the file system of interest; writes to its device are counted.
    pub path: PathBuf,
}

impl Options {
    /// A period of 20 ms, and this process's own threads.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { period: Duration::from_millis(20), watch: Watch::Own, path: path.into() }
    }
}

/// A recording in progress. Dropping it ends the recording and removes its trace instance.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Recording>>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    marks: Mutex<Vec<Mark>>,
    stop: Mutex<bool>,
    stopped: Condvar,
}

impl Recorder {
    /// Starts recording. Missing sources are noted in [`Recording::sources`] and are no error. Several recorders may
    /// run at a time.
    ///
    /// # Errors
    /// This process lacks the privilege, or there is nothing to watch.
    pub fn start(options: Options) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        if options.period < Duration::from_millis(1) || options.period > Duration::from_secs(10) {
            return Err(Error::Period(options.period));
        }
        if let Watch::Tree(pid) = options.watch
            && !std::path::Path::new(&format!("/proc/{pid}")).exists()
        {
            return Err(Error::NoProcess(pid));
        }
        let target =
            Target::of(&options.path).map_err(|source| Error::Path { path: options.path.clone(), source })?;
        let mut recording = Recording {
            period_ms: options.period.as_secs_f64() * 1000.0,
            path: options.path,
            fs_type: target.fs_type.clone(),
            devices: target.filter.devices.iter().map(|(major, minor)| format!("{major}:{minor}")).collect(),
            tunables: host::tunables(),
            ..Recording::default()
        };
        let sources = &mut recording.sources;
        sources.extend(target.note.as_ref().map(|note| host::missing("device", note)));
        let instance = Instance::start(&target.filter, sources);
        let shared = Arc::new(Shared {
            start: Instant::now(),
            marks: Mutex::default(),
            stop: Mutex::default(),
            stopped: Condvar::new(),
        });
        let watching = Watching {
            // The trace uses the same clock.
            attribution: Attribution::since(monotonic(), target.fs_type == "btrfs"),
            parser: Parser::default(),
            instance,
            host: Host::open(&target, sources),
            text: Vec::new(),
            recording,
            watch: options.watch,
            period: options.period,
            followed: BTreeSet::new(),
            untraced: None,
        };
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("recorder".into()).spawn(move || watching.run(&shared))
        };
        Ok(Self { shared, thread: Some(thread.map_err(Error::Thread)?) })
    }

    /// Marks the begin of a phase.
    pub fn mark(&self, name: &str) {
        let t_ms = self.shared.elapsed_ms();
        self.shared.marks.lock().push(Mark { t_ms, name: name.to_owned() });
    }

    /// Ends the recording.
    pub fn finish(mut self) -> Recording {
        self.end().unwrap_or_default()
    }

    fn end(&mut self) -> Option<Recording> {
        *self.shared.stop.lock() = true;
        self.shared.stopped.notify_all();
        self.thread.take()?.join().ok()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn elapsed_ms(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * 1000.0
    }

    /// Waits for the next sample. Returns whether to stop instead.
    fn stops_before(&self, next: Instant) -> bool {
        let wait = next.saturating_duration_since(Instant::now());
        let mut stop = self.stop.lock();
        self.stopped.wait_while_for(&mut stop, |stop| !*stop, wait);
        *stop
    }
}

/// CLOCK_MONOTONIC in seconds.
fn monotonic() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// CPU time of this thread in ms.
fn cpu_ms() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.tv_sec as f64 * 1e3 + used.tv_nsec as f64 / 1e6
}

/// State of the recorder's thread.
#[derive(Debug)]
struct Watching {
    recording: Recording,
    instance: Option<Instance>,
    parser: Parser,
    attribution: Attribution,
    host: Host,
    watch: Watch,
    period: Duration,
    text: Vec<u8>,
    /// The threads whose next system call is traced.
    followed: BTreeSet<u32>,
    /// While writes are not traced: since when, in ms, and the bytes that the device had counted then beyond those
    /// that were traced.
    untraced: Option<(f64, u64)>,
}

impl Watching {
    fn run(mut self, shared: &Shared) -> Recording {
        let own = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let mut sampler = Sampler::new(self.watch, own);
        let before = cpu_ms();
        // Every how many samples one is kept: 1, later 2, 4, …
        let mut keep = 1;
        let mut next = Instant::now();
        let mut tick = 0_u64;
        // The trace has much to read.
        let mut full = false;
        loop {
            let t_ms = shared.elapsed_ms();
            // Sampling a tree of a thousand threads would exceed the recorder's CPU budget.
            let over = tick >= FREE_LOOKS && cpu_ms() - before > t_ms * BUDGET;
            let whole = tick.is_multiple_of(COUNTERS_EVERY);
            if tick.is_multiple_of(keep) && (whole || !over && self.is_busy()) {
                self.recording.samples.push(self.host.sample(t_ms, whole));
            }
            if self.recording.samples.len() >= SAMPLES_MAX {
                let mut index = 0;
                self.recording.samples.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                keep *= 2;
            }
            if !over || tick.is_multiple_of(LOOK_LEAST) {
                sampler.look(t_ms);
                self.follow(sampler.unmounting());
            } else {
                self.recording.cost.skipped_looks += 1;
            }
            if full || !self.followed.is_empty() || tick < TRACE_EVERY || tick.is_multiple_of(TRACE_EVERY) {
                let before = cpu_ms();
                full = self.read_trace();
                sampler.went_on(&self.attribution.moments);
                self.thin(shared.elapsed_ms());
                self.recording.cost.trace_ms += cpu_ms() - before;
            }
            tick += 1;
            next = (next + self.period).max(Instant::now());
            if shared.stops_before(next) {
                break;
            }
        }
        self.finish(shared, sampler, before)
    }

    fn finish(mut self, shared: &Shared, sampler: Sampler, before: f64) -> Recording {
        if let Some(instance) = &self.instance {
            instance.stop();
        }
        self.read_trace();
        self.traces_again(shared.elapsed_ms());
        if let Some(event) = self.parser.finish() {
            self.attribution.feed(event);
        }
        let length_ms = shared.elapsed_ms();
        self.recording.samples.push(self.host.sample(length_ms, true));
        self.attribution.finish(length_ms);
        let period_ms = self.recording.period_ms;
        // System calls are traced for all threads, on all file systems: those of threads that are not watched are
        // dropped.
        self.attribution.calls.retain(|call| sampler.watches(call.task.pid));
        let forks = |source: &Source| source.available && source.name == "sched:sched_process_fork";
        if self.parser.lost == 0 && self.watch != Watch::Own && self.recording.sources.iter().any(forks) {
            self.recording.watched = self.attribution.family(&sampler.ancestors());
        }
        let waits = sampler.finish(&self.attribution.moments, period_ms);
        let attribution = &self.attribution;
        self.recording.waits = waits::merge(waits, &attribution.calls, &attribution.moments, period_ms);
        self.recording.discarded = std::mem::take(&mut self.attribution.discarded);
        self.recording.written = std::mem::take(&mut self.attribution.written);
        self.recording.marks = std::mem::take(&mut shared.marks.lock());
        self.recording.length_ms = length_ms;
        self.recording.lost_events = self.parser.lost;
        if self.parser.strange > 0 {
            let note = format!("{} lines of the trace could not be understood", self.parser.strange);
            self.recording.sources.push(host::missing("trace", &note));
        }
        let cost = &mut self.recording.cost;
        cost.cpu_ms = cpu_ms() - before;
        cost.share = cost.cpu_ms / length_ms.max(1.0);
        self.recording
    }

    /// Has the next system call of these threads traced.
    fn follow(&mut self, threads: BTreeSet<u32>) {
        if threads != self.followed
            && let Some(instance) = &self.instance
        {
            instance.follow(&threads);
            self.followed = threads;
        }
    }

    /// Keeps the cost of the trace within its budget.
    fn thin(&mut self, t_ms: f64) {
        let share = self.recording.cost.trace_ms / t_ms.max(TRACE_START_MS);
        match &self.instance {
            Some(instance) if self.untraced.is_none() && share > TRACE_BUDGET => {
                instance.writes(false);
                self.untraced = Some((t_ms, self.beyond(t_ms)));
            }
            Some(instance)
                if self.untraced.is_some_and(|(since, _)| t_ms >= since + PAUSE_MS)
                    && share < TRACE_BUDGET * AGAIN =>
            {
                instance.writes(true);
                self.traces_again(t_ms);
            }
            _ => {}
        }
    }

    /// Bytes that the device has counted beyond those that were traced.
    fn beyond(&mut self, t_ms: f64) -> u64 {
        let counted = self.host.sample(t_ms, false).io.map_or(0, |io| io.written_bytes);
        counted.saturating_sub(self.attribution.traced)
    }

    /// Estimates who has written while writes were not traced.
    fn traces_again(&mut self, t_ms: f64) {
        let Some((since, before)) = self.untraced.take() else { return };
        self.attribution.settle_all();
        let bytes = self.beyond(t_ms).saturating_sub(before);
        let added = self.attribution.estimate(bytes, t_ms);
        // They count as traced from now on.
        self.attribution.traced += added;
        self.recording.estimated_bytes += added;
        self.recording.cost.untraced_ms += t_ms - since;
        self.attribution.sees_writes();
    }

    /// Whether I/O to the device is under way, as the last two samples show. Else few samples tell as much as many.
    fn is_busy(&self) -> bool {
        let samples = &self.recording.samples;
        let io = |back: usize| samples.len().checked_sub(back).and_then(|at| samples.get(at)?.io);
        io(1).is_none_or(|now| now.in_flight > 0 || Some(now) != io(2))
    }

    /// Reads what was traced. Returns whether that was much.
    fn read_trace(&mut self) -> bool {
        self.read_events();
        self.text.len() >= MUCH
    }

    fn read_events(&mut self) {
        self.text.clear();
        let Some(instance) = &mut self.instance else { return };
        // Text that was read before an error is still valid.
        let _ = instance.read(&mut self.text);
        for mut event in self.parser.feed(&String::from_utf8_lossy(&self.text)) {
            if event.comm.is_empty() {
                event.comm = host::comm(event.pid);
            }
            self.attribution.feed(event);
        }
    }
}
