//! Figures, their goals, and the conditions under which they were taken.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;
use wardian_sys::{pressure, procfs};

use crate::sample::Result;

/// What a figure must keep.
#[derive(Clone, Copy)]
pub enum Goal {
    /// Median at most, 99th percentile at most; in the figure's unit.
    Percentiles(f64, Option<f64>),
    /// The value at most.
    AtMost(f64),
    /// The value at least.
    AtLeast(f64),
}

/// A row of the report.
#[derive(Serialize)]
pub struct Figure {
    name: String,
    fs: String,
    unit: &'static str,
    /// How many samples.
    n: usize,
    min: f64,
    p50: f64,
    p99: f64,
    /// The same, less the time in which the thread was ready and had no processor; none if that was not measured.
    p50_on_cpu: Option<f64>,
    p99_on_cpu: Option<f64>,
    goal: Option<String>,
    holds: Option<bool>,
    #[serde(flatten)]
    conditions: Conditions,
}

/// What else the machine did while a figure was taken.
#[derive(Clone, Copy, Serialize)]
struct Conditions {
    /// Load average over the last minute, at the end.
    load: f64,
    /// Percent of the time in which somebody waited for a processor or for a disk; none on a kernel without PSI.
    cpu_waited: Option<f64>,
    io_waited: Option<f64>,
}

/// The machine.
#[derive(Serialize)]
pub struct Host {
    kernel: String,
    cpus: usize,
    memory_mb: u64,
}

impl Host {
    pub fn probe() -> Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let total =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            memory_mb: total.ok_or("no MemTotal")?.parse::<u64>()? >> 10,
        })
    }
}

#[derive(Serialize)]
pub struct Report {
    host: Host,
    figures: Vec<Figure>,
    /// What a reader of the figures should know.
    notes: Vec<String>,
}

/// Samples that were taken by turns, and so under the same conditions.
pub struct Section<'a> {
    report: &'a mut Report,
    fs: String,
    started: Instant,
    waited: [Option<u64>; 2],
    first: usize,
}

/// Microseconds that somebody has waited since the boot: for a processor, for a disk.
fn waited() -> [Option<u64>; 2] {
    ["cpu", "io"].map(|what| {
        let text = fs::read_to_string(format!("/proc/pressure/{what}")).ok()?;
        Some(pressure::parse_psi(&text)?.some.total_us)
    })
}

/// Bytes that the kernel has still to write, and the machine's whole.
pub fn dirty_bytes() -> Result<u64> {
    let now = procfs::meminfo(&fs::read_to_string("/proc/meminfo")?)?;
    Ok(now.dirty + now.writeback)
}

pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Times in milliseconds, by the clock and less the time that the thread waited for a processor: on a busy machine the
/// second tells what a call costs, and whether it waits for anything else.
#[derive(Clone, Default)]
pub struct Times {
    wall: Vec<f64>,
    own: Vec<f64>,
}

/// Nanoseconds that this thread was ready to run and had no processor (Documentation/scheduler/sched-stats.rst).
fn queued() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

impl Times {
    /// Runs it and takes the time.
    pub fn take<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let before = queued();
        let start = Instant::now();
        let result = run();
        let wall = start.elapsed();
        self.wall.push(ms(wall));
        if let (Some(before), Some(after)) = (before, queued()) {
            self.own.push(ms(wall.saturating_sub(Duration::from_nanos(after - before))));
        }
        result
    }

    /// For comparisons: less the waits for a processor, if they are known.
    pub fn median(&self) -> f64 {
        median(if self.own.is_empty() { &self.wall } else { &self.own })
    }

    pub fn len(&self) -> usize {
        self.wall.len()
    }

    pub fn append(&mut self, mut other: Self) {
        self.wall.append(&mut other.wall);
        self.own.append(&mut other.own);
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Of sorted samples, by nearest rank.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 50)
}

impl Report {
    pub fn new(host: Host) -> Self {
        println!("kernel {}, {} processors, {} MB", host.kernel, host.cpus, host.memory_mb);
        println!(
            "{:56} {:5} {:>4} {:>7} {:>7} {:>7} {:>7} {:>7}  {:25} conditions",
            "figure", "on", "n", "min", "p50", "p99", "p50*", "p99*", "goal"
        );
        Self { host, figures: Vec::new(), notes: Vec::new() }
    }

    /// Samples of one file system.
    pub fn section(&mut self, fs: &str) -> Section<'_> {
        let first = self.figures.len();
        Section { fs: fs.to_owned(), started: Instant::now(), waited: waited(), first, report: self }
    }

    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    pub fn missed(&self) -> usize {
        self.figures.iter().filter(|figure| figure.holds == Some(false)).count()
    }
}

impl Section<'_> {
    /// Adds a figure of several times.
    pub fn times(&mut self, name: &str, times: &Times, goal: Option<Goal>) {
        self.samples(name, "ms", &times.wall, goal);
        if let Some(figure) = self.report.figures.last_mut().filter(|_| !times.own.is_empty()) {
            let mut sorted = times.own.clone();
            sorted.sort_by(f64::total_cmp);
            figure.p50_on_cpu = Some(percentile(&sorted, 50));
            figure.p99_on_cpu = Some(percentile(&sorted, 99));
        }
    }

    /// Adds a figure of several samples.
    pub fn samples(&mut self, name: &str, unit: &'static str, samples: &[f64], goal: Option<Goal>) {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let [min, p50, p99] = [0, 50, 99].map(|percent| percentile(&sorted, percent));
        let holds = goal.map(|goal| match goal {
            Goal::Percentiles(most, tail) => p50 <= most && tail.is_none_or(|tail| p99 <= tail),
            Goal::AtMost(most) => p50 <= most,
            Goal::AtLeast(least) => p50 >= least,
        });
        let goal = goal.map(|goal| match goal {
            Goal::Percentiles(most, None) => format!("p50 ≤ {most} {unit}"),
            Goal::Percentiles(most, Some(tail)) => format!("p50 ≤ {most}, p99 ≤ {tail} {unit}"),
            Goal::AtMost(most) => format!("≤ {most} {unit}"),
            Goal::AtLeast(least) => format!("≥ {least} {unit}"),
        });
        let conditions = Conditions { load: 0.0, cpu_waited: None, io_waited: None };
        let (name, fs, n) = (name.to_owned(), self.fs.clone(), sorted.len());
        let (p50_on_cpu, p99_on_cpu) = (None, None);
        self.report.figures.push(Figure {
            name,
            fs,
            unit,
            n,
            min,
            p50,
            p99,
            p50_on_cpu,
            p99_on_cpu,
            goal,
            holds,
            conditions,
        });
    }

    /// Adds a figure that is one number.
    pub fn value(&mut self, name: &str, unit: &'static str, value: f64, goal: Option<Goal>) {
        self.samples(name, unit, &[value], goal);
    }

    /// Says something to the reader.
    pub fn note(&mut self, text: &str) {
        self.report.notes.push(format!("{}: {text}", self.fs));
    }

    /// Notes the conditions, and prints what was added.
    pub fn finish(self) {
        let elapsed = self.started.elapsed().as_secs_f64() * 1e6;
        let now = waited();
        let share = |index: usize| Some((now[index]? - self.waited[index]?) as f64 / elapsed * 100.0);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN);
        let conditions = Conditions { load, cpu_waited: share(0), io_waited: share(1) };
        for figure in &mut self.report.figures[self.first..] {
            figure.conditions = conditions;
            println!("{}", figure.line());
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        println!("* less the time that the thread was ready to run and had no processor");
        self.notes.iter().for_each(|note| println!("{note}"));
    }
}

impl Figure {
    fn line(&self) -> String {
        let number = |value: f64| match value.abs() {
            large if large >= 100.0 => format!("{value:.0}"),
            _ => format!("{value:.2}"),
        };
        let verdict = match self.holds {
            None => "",
            Some(true) => "✓ ",
            Some(false) => "✗ ",
        };
        let goal = self.goal.as_deref().unwrap_or_default();
        let mut line = format!(
            "{:56} {:5} {:>4} {:>7} {:>7} {:>7} {:>7} {:>7}  {:25} load {:.1}",
            format!("{}, {}", self.name, self.unit),
            self.fs,
            self.n,
            number(self.min),
            number(self.p50),
            number(self.p99),
            self.p50_on_cpu.map(number).unwrap_or_default(),
            self.p99_on_cpu.map(number).unwrap_or_default(),
            format!("{verdict}{goal}"),
            self.conditions.load,
        );
        for (what, waited) in [("cpu", self.conditions.cpu_waited), ("io", self.conditions.io_waited)] {
            if let Some(waited) = waited {
                let _ = write!(line, ", {what} waited {waited:.0} %");
            }
        }
        line
    }
}
