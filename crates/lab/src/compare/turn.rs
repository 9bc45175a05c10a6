//! One turn: one engine does one experiment once.

use super::cli::{Cli, Kind};
use super::containerd::Containerd;
use super::engines::{Engine, Found};
use super::garden::Garden;
use super::goods::Goods;
use super::options::{Options, Series};
use super::place::Place;
use super::run::within;
use crate::host::{Counter, Dirty, Sample, Sampler, ms, since_1970};
use crate::leftovers::Record;
use crate::progress::Progress;
use crate::report::{Phase, Span};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Instant, SystemTime};

/// What one engine did in one turn.
#[derive(Debug, Clone, Serialize)]
pub struct Turn {
    /// The round, from 1.
    pub round: usize,
    /// Name of the engine.
    pub engine: String,
    /// The experiment.
    #[serde(flatten)]
    pub series: Series,
    /// When it began, in ms since 1970.
    pub begun_ms: i64,
    /// How long the first instances took, which are not waited for: they bring the image and the layer.
    pub begin_ms: Option<f64>,
    /// From the request to scale until the last instance is found healthy; `null` for a teardown.
    pub waiting_ms: Option<f64>,
    /// The phases, in order, without those of the first instances; their clock begins with the turn.
    pub phases: Vec<Phase>,
    /// The longest destroy.
    pub slowest_destroy_ms: f64,
    /// Dirty bytes on this machine when the destroys began.
    pub dirty_at_destroy_bytes: u64,
    /// Bytes that this machine wrote back from the first create until the rest was synced after the destroys.
    pub written_bytes: u64,
    /// Bytes written to the disk below the directory under test meanwhile; `null` without a disk.
    pub disk_written_bytes: Option<u64>,
    /// One-minute load average before it.
    pub load: f64,
    /// Dirty and writeback bytes, about every 50 ms.
    pub samples: Vec<Sample>,
}

/// What the turns of one run of the lab have in common.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) options: &'a Options,
    pub(super) dir: &'a Path,
    /// Path of the image's tar, and of an archive with it.
    pub(super) image: PathBuf,
    pub(super) archive: PathBuf,
    /// Name of the cgroup.
    pub(super) group: String,
    pub(super) progress: &'a Progress,
}

/// An engine that runs.
#[derive(Debug)]
pub(super) enum Live {
    Garden(Box<Garden>),
    Cli(Cli),
    Containerd(Containerd),
}

impl Live {
    /// Starts an engine, without the image.
    async fn start(ground: &Ground<'_>, engine: &Engine, record: &mut Record) -> Result<Self> {
        let program = &ground.options.program;
        let kind = match engine {
            Engine::Wardian => {
                return Ok(Self::Garden(Box::new(Garden::start(program, ground.dir, &ground.image).await?)));
            }
            Engine::Garden(address) => {
                return Ok(Self::Garden(Box::new(Garden::at(address, &ground.image)?)));
            }
            Engine::Podman => Some(Kind::Podman { rm: false }),
            Engine::PodmanRm => Some(Kind::Podman { rm: true }),
            Engine::Docker => Some(Kind::Docker),
            Engine::Containerd => None,
        };
        let place = Place::make(program, ground.dir, &ground.group).await?;
        record.process(place.hold().init())?;
        Ok(match kind {
            Some(kind) => Self::Cli(Cli::start(kind, place).await?),
            None => Self::Containerd(Containerd::start(place).await?),
        })
    }

    /// Waits until it answers.
    async fn ready(&mut self) -> Result<()> {
        match self {
            Self::Garden(_) => Ok(()),
            Self::Cli(cli) => cli.ready().await,
            Self::Containerd(containerd) => containerd.ready().await,
        }
    }

    /// Loads an archive with an image. A Garden server reads the image itself.
    async fn load(&self, archive: &Path) -> Result<()> {
        match self {
            Self::Garden(_) => Ok(()),
            Self::Cli(cli) => cli.load(archive).await,
            Self::Containerd(containerd) => containerd.load(archive).await,
        }
    }

    async fn create(&self, name: &str, full: Option<&Goods>) -> Result<()> {
        match self {
            Self::Garden(garden) => garden.create(name, full).await,
            Self::Cli(cli) => cli.create(name, full.is_some()).await,
            Self::Containerd(containerd) => containerd.create(name, full.is_some()).await,
        }
    }

    async fn stream_in(&self, name: &str, goods: &Goods) -> Result<()> {
        match self {
            Self::Garden(garden) => garden.stream_in(name, goods).await,
            Self::Cli(cli) => cli.stream_in(name, goods).await,
            Self::Containerd(containerd) => containerd.stream_in(name, goods).await,
        }
    }

    async fn start_app(&self, name: &str) -> Result<()> {
        match self {
            Self::Garden(garden) => garden.start_app(name).await,
            Self::Cli(cli) => cli.start_app(name).await,
            Self::Containerd(containerd) => containerd.start_app(name).await,
        }
    }

    async fn pea(&self, name: &str) -> Result<()> {
        match self {
            Self::Garden(garden) => garden.pea(name).await,
            Self::Cli(cli) => cli.pea(name).await,
            Self::Containerd(containerd) => containerd.pea(name).await,
        }
    }

    async fn verify(&self, name: &str, goods: &Goods) -> Result<()> {
        match self {
            Self::Garden(garden) => garden.verify(name, &goods.sample).await,
            Self::Cli(cli) => cli.verify(name, &goods.sample).await,
            Self::Containerd(containerd) => containerd.verify(name, &goods.sample).await,
        }
    }

    /// Writes megabytes into a new file.
    async fn write(&self, name: &str, megabytes: usize) -> Result<()> {
        let count = format!("count={megabytes}");
        let words = ["/bin/dd", "if=/dev/zero", "of=/var/tmp/dirty", "bs=1M", &count];
        match self {
            Self::Garden(garden) => garden.inside(name, &words).await,
            Self::Cli(cli) => cli.inside(name, &words).await,
            Self::Containerd(containerd) => containerd.inside(name, &words).await,
        }
    }

    async fn destroy(&self, name: &str) -> Result<()> {
        match self {
            Self::Garden(garden) => garden.destroy(name).await,
            Self::Cli(cli) => cli.destroy(name).await,
            Self::Containerd(containerd) => containerd.destroy(name).await,
        }
    }

    async fn settle(&self) -> Result<()> {
        match self {
            Self::Garden(garden) => garden.settle().await,
            // Their commands return when the files are deleted.
            Self::Cli(_) | Self::Containerd(_) => Ok(()),
        }
    }

    /// Removes everything that it has made.
    async fn clear(self, cut_off: bool) -> Result<()> {
        match self {
            Self::Garden(garden) => garden.clear(cut_off).await,
            Self::Cli(cli) => cli.clear().await,
            Self::Containerd(containerd) => containerd.clear().await,
        }
    }
}

/// How a turn ended.
pub(super) struct Ended {
    pub(super) turn: Result<Turn>,
    /// What could not be removed after it.
    pub(super) cleared: Result<()>,
}

/// Has an engine do an experiment, until `stop` is ready. Everything that it made is removed then.
pub(super) async fn take(
    ground: &Ground<'_>,
    (round, series, found): (usize, Series, &Found),
    goods: &Goods,
    record: &mut Record,
    stop: impl Future<Output = anyhow::Error>,
) -> Ended {
    let timeout = ground.options.timeout;
    let work = async {
        // Not cut off by a signal: it takes little time, and what it has made halfway is known to nobody.
        let mut live = match Live::start(ground, &found.engine, record).await {
            Ok(live) => live,
            Err(error) => return (Err(error.context(format!("start {}", found.name))), None),
        };
        let tell = async {
            within(timeout, &format!("the start of {}", found.name), live.ready()).await?;
            Teller { ground, found, goods, live: &live, since: Cell::new(Instant::now()) }
                .tell(round, series)
                .await
        };
        let told = tokio::select! {
            told = tell => told,
            error = stop => Err(error),
        };
        (told, Some(live))
    };
    let (turn, live) = work.await;
    let cleared = match live {
        None => Ok(()),
        Some(live) => {
            live.clear(turn.is_err()).await.with_context(|| format!("clean up after {}", found.name))
        }
    };
    let cleared = cleared.and(record.processes_ended());
    Ended { turn, cleared }
}

/// Runs one experiment.
struct Teller<'a> {
    ground: &'a Ground<'a>,
    found: &'a Found,
    goods: &'a Goods,
    live: &'a Live,
    /// When the measured part began.
    since: Cell<Instant>,
}

impl Teller<'_> {
    async fn tell(&self, round: usize, series: Series) -> Result<Turn> {
        let Options { from, to, code_mb, timeout, .. } = *self.ground.options;
        let dir = self.ground.dir;
        let load = self.live.load(&self.ground.archive);
        within(timeout, "loading the image", load).await.context("load the image")?;
        // What is dirty already is nobody's of the turn.
        sync(dir).await?;
        let begun_ms = since_1970(SystemTime::now());
        let load = crate::host::Host::probe(None).load;
        let (counter, sampler) = (Counter::below(dir)?, Sampler::start());
        let before = counter.read()?;
        self.since.set(Instant::now());

        let mut phases: Vec<Phase> = Vec::new();
        let (mut begin_ms, mut waiting_ms) = (None, None);
        if series == Series::Teardown {
            phases.push(self.create(0, to, series, false).await?);
            let write = |name: String| async move { self.live.write(&name, code_mb).await };
            phases.push(self.phase("write", 0..to, write).await?);
        } else {
            if from > 0 {
                let begin = Instant::now();
                self.bring_up(0, from, series, true).await?;
                begin_ms = Some(ms(begin.elapsed()));
            }
            let begin = Instant::now();
            phases = self.bring_up(from, to, series, from == 0).await?;
            waiting_ms = Some(ms(begin.elapsed()));
            for n in 0..to {
                within(timeout, "reading a file back", self.live.verify(&name(n), self.goods)).await?;
            }
        }
        let dirty_at_destroy_bytes = Dirty::now()?.dirty_bytes;
        let destroy = |name: String| async move { self.live.destroy(&name).await };
        phases.push(self.phase("destroy", 0..to, destroy).await?);
        self.live.settle().await?;
        sync(dir).await?;
        let written = counter.read()?.since(before);
        Ok(Turn {
            round,
            engine: self.found.name.clone(),
            series,
            begun_ms,
            begin_ms,
            waiting_ms,
            slowest_destroy_ms: phases.last().map_or(0.0, |phase| phase.max_ms),
            phases,
            dirty_at_destroy_bytes,
            written_bytes: written.bytes,
            disk_written_bytes: written.disk,
            load,
            samples: sampler.finish(),
        })
    }

    /// Creates instances. The first ones bring the layer, if there is one: that is a part of their create, as it is for
    /// servers that fetch it themselves.
    async fn create(&self, from: usize, to: usize, series: Series, first: bool) -> Result<Phase> {
        let begin = Instant::now();
        let full = series == Series::Layer;
        if full && first {
            let archive = self.goods.archive.as_ref().context("there is no layer")?;
            let load = self.live.load(archive);
            within(self.ground.options.timeout, "loading the image with the code", load).await?;
        }
        let (live, goods) = (self.live, self.goods);
        let mut phase = self
            .phase("create", from..to, |name| async move { live.create(&name, full.then_some(goods)).await })
            .await?;
        phase.wall_ms = ms(begin.elapsed());
        phase.begin_ms = ms(begin.saturating_duration_since(self.since.get()));
        Ok(phase)
    }

    async fn bring_up(&self, from: usize, to: usize, series: Series, first: bool) -> Result<Vec<Phase>> {
        let (live, goods) = (self.live, self.goods);
        let mut phases = vec![self.create(from, to, series, first).await?];
        if series == Series::Stream {
            phases.push(
                self.phase("stream_in", from..to, |name| async move { live.stream_in(&name, goods).await })
                    .await?,
            );
        }
        phases.push(
            self.phase("start_app", from..to, |name| async move { live.start_app(&name).await }).await?,
        );
        if self.ground.options.pea && !self.found.cannot.iter().any(|(phase, _)| *phase == "pea") {
            phases.push(self.phase("pea", from..to, |name| async move { live.pea(&name).await }).await?);
        }
        Ok(phases)
    }

    /// Runs one step for all instances at once. The first failure ends the turn.
    async fn phase<F: Future<Output = Result<()>>>(
        &self,
        phase: &'static str,
        numbers: std::ops::Range<usize>,
        step: impl Fn(String) -> F,
    ) -> Result<Phase> {
        let count = numbers.len();
        let bar = self.ground.progress.phase(phase, count);
        let begin = Instant::now();
        let steps = numbers.map(|n| {
            let work = step(name(n));
            let what = format!("{phase} of instance {n}");
            async move {
                let began = Instant::now();
                within(self.ground.options.timeout, &what, work).await.with_context(|| what.clone())?;
                anyhow::Ok((n, Span::since(began)))
            }
        });
        let done = all(steps, || bar.step()).await?;
        let phase = Phase::timed(phase, self.since.get(), Span::since(begin), &done);
        bar.finish(&phase);
        Ok(phase)
    }
}

/// Awaits all of these at once, until one fails. `done` is called after each.
async fn all<T>(
    steps: impl Iterator<Item = impl Future<Output = Result<T>>>,
    done: impl Fn(),
) -> Result<Vec<T>> {
    let mut steps: Vec<Pin<Box<_>>> = steps.map(Box::pin).collect();
    let mut values: Vec<Option<T>> = steps.iter().map(|_| None).collect();
    let mut left = steps.len();
    std::future::poll_fn(|cx| {
        for (step, value) in steps.iter_mut().zip(&mut values).filter(|(_, value)| value.is_none()) {
            if let Poll::Ready(ended) = step.as_mut().poll(cx) {
                match ended {
                    Ok(ended) => *value = Some(ended),
                    Err(error) => return Poll::Ready(Err(error)),
                }
                left -= 1;
                done();
            }
        }
        if left == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await?;
    Ok(values.into_iter().flatten().collect())
}

/// Name of an instance.
fn name(n: usize) -> String {
    // The process id distinguishes two labs on one server.
    format!("lab-{}-{n}", std::process::id())
}

/// Syncs the file system of a directory.
async fn sync(dir: &Path) -> Result<()> {
    let dir = std::fs::File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    tokio::task::spawn_blocking(move || rustix::fs::syncfs(dir)).await?.context("sync")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn steps_are_done_at_once_and_the_first_failure_ends_them() {
        let step = |n: u64| async move {
            tokio::time::sleep(Duration::from_millis(20 * (4 - n))).await;
            anyhow::ensure!(n != 2, "no {n}");
            Ok(n)
        };
        let count = Cell::new(0);
        let done = || count.set(count.get() + 1);
        assert_eq!(all([1, 0, 3].map(step).into_iter(), done).await.unwrap(), [1, 0, 3]);
        assert_eq!(count.get(), 3);
        assert_eq!(all([0, 2, 1].map(step).into_iter(), || ()).await.unwrap_err().to_string(), "no 2");
        assert!(all(std::iter::empty::<std::future::Ready<Result<()>>>(), || ()).await.unwrap().is_empty());
    }
}
