//! The story: an app scaled from one instance to many, each with a health-check sidecar, and back to none.
//!
//! The end of a pea (`slowest_pea_destroy_ms`) is what a client sees of it: from the last byte of the pea's
//! output until its exit status has come. A Garden server sends the status only when the pea's root file
//! system is gone, so a server that waits for the disk there shows it here.

use crate::code::Code;
use crate::drive::Instance;
use crate::host::{Dirty, Host, Sampler, ms, written};
use crate::local::LocalServer;
use crate::progress::Progress;
use crate::report::{Phase, Report};
use crate::{Interrupted, image, interrupted};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::{JoinSet, LocalSet};
use wardian_garden::{Client, ErrorKind};

/// How long the machine is watched while it idles before the story; a longer story is made up for after it.
const IDLE: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Instances that run before the scaling.
    pub from: usize,
    /// Instances that run after it.
    pub to: usize,
    /// Megabytes of code in each.
    pub code_mb: usize,
    /// Run a health check beside each.
    pub pea: bool,
    /// The image; none: one built on the spot.
    pub image: Option<String>,
    /// The server; none: one of our own.
    pub address: Option<String>,
    /// Where the store of our own server is made.
    pub location: Option<PathBuf>,
    /// The program that has a `serve` command.
    pub program: PathBuf,
}

impl Options {
    /// The default story on a server that `program serve` starts.
    pub fn new(program: PathBuf) -> Self {
        Self { from: 1, to: 10, code_mb: 100, pea: true, image: None, address: None, location: None, program }
    }
}

/// Containers that were made and not yet destroyed.
type Made = Arc<Mutex<Vec<String>>>;

/// Tell the story and measure it. On errors and on Ctrl-C all that was made is destroyed.
pub async fn run(options: &Options) -> Result<Report> {
    ensure!(options.from < options.to, "--to must be greater than --from");
    ensure!(options.to <= 1000, "more than 1000 instances are not a story any more");
    let progress = Progress::new();
    let local = match &options.address {
        Some(_) => None,
        None => {
            progress.say("starting a server");
            Some(LocalServer::start(&options.program, options.location.as_deref()).await?)
        }
    };
    let client = match (&local, &options.address) {
        (Some(local), _) => local.client()?,
        (None, address) => Client::new(address.as_deref().unwrap_or_default()).context("--addr")?,
    };
    let made = Made::default();
    let told = tokio::select! {
        told = tell(options, &client, local.as_ref(), &made, &progress) => told,
        signal = interrupted() => Err(Interrupted(signal?).into()),
    };
    if let Err(error) = &told {
        progress.say(if error.is::<Interrupted>() {
            "interrupted: cleaning up"
        } else {
            "failed: cleaning up"
        });
    }
    let complaints = local.as_ref().map(LocalServer::complaints).unwrap_or_default();
    let cleaned = match local {
        // It destroys what is left, and starts a new server for it if it must.
        Some(local) => local.stop().await,
        None => clear(&client, &made, told.is_err()).await,
    };
    match (told, cleaned) {
        (Ok(report), cleaned) => cleaned.map(|()| report),
        (Err(error), cleaned) => {
            if let Err(also) = cleaned {
                progress.say(&format!("cleaning up failed too: {also:#}"));
            }
            if !error.is::<Interrupted>() && !complaints.is_empty() {
                progress.say(&complaints);
            }
            Err(error)
        }
    }
}

/// Destroy what was made on a server that is not ours.
async fn clear(client: &Client, made: &Made, cut_off: bool) -> Result<()> {
    if cut_off {
        // A request that was cut off may still be under way in the server.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let left = made.lock().map(|m| m.clone()).unwrap_or_default();
    let mut cleared = Ok(());
    for handle in left {
        if let Err(error) = client.destroy(&handle).await
            && error.kind() != Some(ErrorKind::ContainerNotFound)
        {
            cleared = Err(error).with_context(|| format!("destroy what is left of {handle}"));
        }
    }
    cleared
}

async fn tell(
    options: &Options,
    client: &Client,
    local: Option<&LocalServer>,
    made: &Made,
    progress: &Progress,
) -> Result<Report> {
    client.ping().await.context("the server does not answer")?;
    // On a server elsewhere the image is a file in a directory of our own.
    let scratch = tempfile::Builder::new().prefix("wardian-lab-").tempdir().context("make a directory")?;
    let image = match &options.image {
        Some(image) => image.clone(),
        None => {
            let path = local.map_or(scratch.path(), LocalServer::dir).join("image.tar");
            progress.say("building an image from busybox");
            image::build(&path)?;
            path.display().to_string()
        }
    };
    progress.say(&format!("making {} MB of code", options.code_mb));
    let megabytes = options.code_mb;
    let code = Arc::new(tokio::task::spawn_blocking(move || Code::generate(megabytes)).await??);
    let host = Host::probe(local.map(LocalServer::root).as_deref());
    let mut idle = Idle::watch(progress).await?;

    let story = Story { client: client.clone(), image, code, made: made.clone(), progress, pea: options.pea };
    let (begin, written_before) = (Instant::now(), written()?);
    let mut instances = if options.from > 0 {
        progress.say(&format!("bringing up {} to begin with", options.from));
        story.bring_up(0, options.from).await?.instances
    } else {
        Vec::new()
    };

    let sampler = Sampler::start();
    progress.say(&format!("scaling from {} to {}", options.from, options.to));
    let scaled = story.bring_up(options.from, options.to).await?;
    instances.extend(scaled.instances);
    let mut phases = scaled.phases;

    progress.say("reading a file back in each");
    for instance in &instances {
        instance.verify(&story.code).await?;
    }
    let dirty_at_destroy_bytes = Dirty::now()?.dirty_bytes;
    let gone = story.phase("destroy", instances, |instance, made| async move {
        instance.destroy().await?;
        if let Ok(mut made) = made.lock() {
            made.retain(|handle| *handle != instance.handle);
        }
        Ok(instance)
    });
    let destroy = gone.await?.phase;
    match local {
        Some(local) => local.trash_empty().await?,
        None => tokio::time::sleep(Duration::from_secs(1)).await,
    }
    let written_bytes = written()?.saturating_sub(written_before);
    let length = begin.elapsed();
    let samples = sampler.finish();
    let idle_written_bytes = idle.written_in(length, progress).await?;

    let waiting_ms = ms(scaled.wall);
    let (story_ms, slowest_destroy_ms) = (waiting_ms + destroy.wall_ms, destroy.max_ms);
    phases.push(destroy);
    Ok(Report {
        waiting_ms,
        story_ms,
        slowest_destroy_ms,
        slowest_pea_destroy_ms: ms(scaled.slowest_pea_end),
        dirty_at_destroy_bytes,
        written_bytes,
        idle_written_bytes,
        phases,
        samples,
        host,
    })
}

struct Story<'a> {
    client: Client,
    image: String,
    code: Arc<Code>,
    made: Made,
    progress: &'a Progress,
    pea: bool,
}

/// Instances after a phase.
struct Done<T> {
    instances: Vec<T>,
    phase: Phase,
}

/// Instances that are up.
struct Scaled {
    instances: Vec<Instance>,
    phases: Vec<Phase>,
    wall: Duration,
    slowest_pea_end: Duration,
}

impl Story<'_> {
    /// Create, stream in, start and check the instances with these numbers; one phase after the other, all
    /// instances of a phase at once.
    async fn bring_up(&self, from: usize, to: usize) -> Result<Scaled> {
        let begin = Instant::now();
        let (client, image) = (self.client.clone(), self.image.clone());
        // The process id keeps two labs on one server apart.
        let handles = (from..to).map(|n| format!("lab-{}-{n}", std::process::id())).collect();
        let created = self.phase("create", handles, move |handle: String, made| {
            let (client, image) = (client.clone(), image.clone());
            async move {
                // Noted first: a create that is cut off may have made it all the same.
                if let Ok(mut made) = made.lock() {
                    made.push(handle.clone());
                }
                Instance::create(client, handle, image).await
            }
        });
        let Done { instances, phase } = created.await?;
        let mut phases = vec![phase];

        let code = self.code.clone();
        let streamed = self.phase("stream_in", instances, move |instance, _| {
            let code = code.clone();
            async move {
                instance.stream_in(&code).await?;
                Ok(instance)
            }
        });
        let Done { instances, phase } = streamed.await?;
        phases.push(phase);

        let started = self.phase("start_app", instances, |instance: Instance, _| async move {
            instance.start().await?;
            Ok(instance)
        });
        let Done { mut instances, phase } = started.await?;
        phases.push(phase);

        let mut slowest_pea_end = Duration::ZERO;
        if self.pea {
            let checked = self.phase("pea", instances, |instance: Instance, _| async move {
                let ended = instance.pea().await?;
                Ok((instance, ended.ending))
            });
            let Done { instances: checked, phase } = checked.await?;
            phases.push(phase);
            slowest_pea_end = checked.iter().map(|(_, ending)| *ending).max().unwrap_or_default();
            instances = checked.into_iter().map(|(instance, _)| instance).collect();
        }
        Ok(Scaled { instances, phases, wall: begin.elapsed(), slowest_pea_end })
    }

    /// Do one step for all at once. The first failure ends the story.
    async fn phase<T, U, F, D>(&self, name: &'static str, all: Vec<T>, step: D) -> Result<Done<U>>
    where
        D: Fn(T, Made) -> F,
        F: Future<Output = Result<U>> + 'static,
        U: 'static,
    {
        let bar = self.progress.phase(name, all.len());
        let begin = Instant::now();
        // On this thread: a process cannot be waited for from another one. The connections' own work is
        // done by tasks of the client, on all threads.
        let local = LocalSet::new();
        let mut tasks = JoinSet::new();
        for (n, one) in all.into_iter().enumerate() {
            let step = step(one, self.made.clone());
            let timed = async move {
                let begin = Instant::now();
                let done = step.await?;
                anyhow::Ok((n, done, begin.elapsed()))
            };
            tasks.spawn_local_on(timed, &local);
        }
        let collect = async {
            let mut done = Vec::new();
            while let Some(ended) = tasks.join_next().await {
                done.push(ended.context("a step of the story panicked")??);
                bar.step();
            }
            anyhow::Ok(done)
        };
        let mut done = local.run_until(collect).await?;
        let wall = begin.elapsed();
        done.sort_by_key(|(n, ..)| *n);
        let each: Vec<Duration> = done.iter().map(|(_, _, took)| *took).collect();
        let phase = Phase::new(name, wall, &each);
        bar.finish(&phase);
        Ok(Done { instances: done.into_iter().map(|(_, one, _)| one).collect(), phase })
    }
}

/// Bytes that the machine writes when nothing is asked of it.
struct Idle {
    /// Bytes written, by time since the begin.
    seen: Vec<(Duration, u64)>,
}

impl Idle {
    async fn watch(progress: &Progress) -> Result<Self> {
        progress.say(&format!("watching the idle machine for {} s", IDLE.as_secs()));
        let begin = Instant::now();
        let mut seen = vec![(Duration::ZERO, written()?)];
        while begin.elapsed() < IDLE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            seen.push((begin.elapsed(), written()?));
        }
        Ok(Self { seen })
    }

    /// Bytes written in an idle interval of this length: the last part of what was seen before the story,
    /// and if the story was longer, the rest after it.
    async fn written_in(&mut self, length: Duration, progress: &Progress) -> Result<u64> {
        let before = last(&self.seen, length);
        let Some(rest) = length.checked_sub(IDLE).filter(|rest| !rest.is_zero()) else { return Ok(before) };
        progress.say(&format!("watching the idle machine for another {:.1} s", rest.as_secs_f64()));
        let begin = written()?;
        tokio::time::sleep(rest).await;
        Ok(before + written()?.saturating_sub(begin))
    }
}

/// Growth of a counter over the last `length` of what was seen of it.
fn last(seen: &[(Duration, u64)], length: Duration) -> u64 {
    let Some((end, total)) = seen.last() else { return 0 };
    let since = end.saturating_sub(length);
    let begin = seen.iter().rev().find(|(at, _)| *at <= since).or(seen.first());
    begin.map_or(0, |(_, value)| total.saturating_sub(*value))
}

/// Write the report as JSON.
pub fn save(report: &Report, to: &Path) -> Result<()> {
    let json = serde_json::to_vec_pretty(report).context("encode the report")?;
    std::fs::write(to, json).with_context(|| format!("write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_an_idle_interval_counts() {
        let at = |s: u64, v: u64| (Duration::from_secs(s), v);
        let seen = [at(0, 0), at(1, 10), at(2, 30), at(3, 60)];
        assert_eq!(last(&seen, Duration::from_secs(1)), 30);
        assert_eq!(last(&seen, Duration::from_millis(1500)), 50);
        assert_eq!(last(&seen, Duration::from_secs(10)), 60);
        assert_eq!(last(&[], Duration::from_secs(1)), 0);
    }
}
