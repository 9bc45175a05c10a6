//! Runs one story.

use super::begun::Begun;
use super::idle::Idle;
use super::report::{Report, Step};
use super::{Kind, Made, Mode, Options};
use crate::code::{Code, Sample};
use crate::drive::{Instance, Wish, has_network};
use crate::droplet::{Droplet, DropletServer};
use crate::host::{Counter, Dirty, Host, ms};
use crate::image;
use crate::local::LocalServer;
use crate::progress::Progress;
use crate::report::{Phase, Span};
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::{JoinSet, LocalSet};
use wardian_garden::Client;

/// Runs the story on this server, and measures it. `made` has the containers that were created and not destroyed.
pub(super) async fn tell(
    options: &Options,
    (run, kind): (usize, Kind),
    client: &Client,
    local: Option<&LocalServer>,
    made: &Made,
    progress: &Progress,
    begun: &Begun,
) -> Result<Report> {
    // For a server elsewhere the image is a file in a directory of our own.
    let scratch = crate::ground::dir_in(&std::env::temp_dir(), "wardian-lab-")?;
    let dir = local.map_or(scratch.path(), LocalServer::dir);
    let image = match &options.image {
        Some(image) => image.clone(),
        None => {
            let path = std::path::absolute(dir).context("find the directory of the image")?.join("image.tar");
            progress.say("building an image from busybox");
            image::build(&path)?;
            path.display().to_string()
        }
    };
    let delivery = Delivery::prepare(kind.mode, options.code_mb, progress).await?;
    let host = Host::probe(local.map(LocalServer::root).as_deref());
    progress.say("writing to the disk what is dirty already");
    // Without this sync, existing dirty data would count as written by the story, whose durable layer syncs
    // everything.
    sync(dir).await?;
    let counter = Counter::below(dir)?;
    let mut idle = Idle::watch(counter.clone(), progress).await?;

    let probe = format!("lab-{}-probe", std::process::id());
    if let Ok(mut made) = made.lock() {
        made.push(probe.clone());
    }
    let network = has_network(client, &probe, &image).await?;
    if let Ok(mut made) = made.lock() {
        made.retain(|handle| *handle != probe);
    }
    if network {
        progress.say("containers have a network: each app listens on its own address and on a mapped port");
    }
    let wish = Wish { network, disk_limit_bytes: kind.disk_limit_bytes };
    let story = Story { client, image, delivery: &delivery, made, progress, pea: options.pea, wish, begun };
    let written_before = counter.read()?;
    let since = begun.begin(host.clone());
    let mut instances = Vec::new();
    let begin = if options.from > 0 {
        progress.say(&format!("bringing up {} to begin with", options.from));
        begun.mark(format!("0 → {}", options.from));
        let scaled = story.bring_up(0, options.from).await?;
        instances.extend(scaled.instances);
        begun.came_up(&scaled.step);
        Some(scaled.step)
    } else {
        None
    };

    let (mut steps, mut slowest_pea_end) = (Vec::new(), Duration::ZERO);
    for to in &options.to {
        let from = instances.len();
        progress.say(&format!("scaling from {from} to {to}"));
        begun.mark(format!("{from} → {to}"));
        let scaled = story.bring_up(from, *to).await?;
        instances.extend(scaled.instances);
        begun.scaled(&scaled.step);
        steps.push(scaled.step);
        slowest_pea_end = slowest_pea_end.max(scaled.slowest_pea_end);
    }

    progress.say("reading a file back in each");
    begun.mark("verify");
    let sample = delivery.sample();
    for (n, instance) in instances.iter().enumerate() {
        instance.verify(sample).await?;
        if n == 0 {
            // No other instance may see these changes.
            instance.scribble().await?;
        }
    }
    let dirty_at_destroy_bytes = Dirty::now()?.dirty_bytes;
    begun.mark("destroy");
    let gone = story.phase("destroy", 0, instances, |instance, made| async move {
        instance.destroy().await?;
        if let Ok(mut made) = made.lock() {
            made.retain(|handle| *handle != instance.handle);
        }
        Ok(instance)
    });
    let destroy = gone.await?.phase;
    begun.mark("clean up");
    match local {
        Some(local) => local.trash_empty().await?,
        None => tokio::time::sleep(Duration::from_secs(1)).await,
    }
    // Dirty data that the story leaves belongs to its writes.
    sync(dir).await?;
    let written = counter.read()?.since(written_before);
    let length = since.elapsed();
    let (marks, samples) = begun.seen();
    let idle_written = idle.written_in(length, progress).await?;

    let waiting_ms = steps.iter().map(|step| step.waiting_ms).sum::<f64>();
    let (story_ms, slowest_destroy_ms) = (waiting_ms + destroy.wall_ms, destroy.max_ms);
    let mut phases: Vec<Phase> = steps.iter().flat_map(|step| step.phases.clone()).collect();
    phases.push(destroy);
    let server = delivery.server();
    Ok(Report {
        run,
        kind,
        complete: true,
        error: None,
        length_ms: ms(length),
        waiting_ms,
        story_ms,
        slowest_destroy_ms,
        slowest_pea_destroy_ms: ms(slowest_pea_end),
        dirty_at_destroy_bytes,
        written_bytes: written.bytes,
        idle_written_bytes: idle_written.bytes,
        disk_written_bytes: written.disk,
        idle_disk_written_bytes: idle_written.disk,
        fetches: server.map_or(0, DropletServer::fetches),
        fetched_bytes: server.map_or(0, DropletServer::fetched_bytes),
        droplet_bytes: server.map_or(0, |server| server.droplet().gzip.len() as u64),
        layer_bytes: server.map_or(0, |server| server.droplet().unpacked_bytes),
        begin,
        steps,
        phases,
        marks,
        samples,
        host,
    })
}

/// How the code gets into the instances.
enum Delivery {
    Stream(Arc<Code>),
    Layer(DropletServer),
}

impl Delivery {
    async fn prepare(mode: Mode, megabytes: usize, progress: &Progress) -> Result<Self> {
        progress.say(&format!("making {megabytes} MB of code"));
        // Code that is unique to the story: a running server cannot have any of it yet.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let salt = u64::try_from(since.as_nanos()).unwrap_or_default();
        Ok(match mode {
            Mode::Stream => {
                let code = tokio::task::spawn_blocking(move || Code::salted(megabytes, salt)).await??;
                Self::Stream(Arc::new(code))
            }
            Mode::Oci => {
                let droplet = tokio::task::spawn_blocking(move || Droplet::pack(megabytes, salt)).await??;
                Self::Layer(DropletServer::start(droplet).await?)
            }
        })
    }

    fn sample(&self) -> &Sample {
        match self {
            Self::Stream(code) => &code.sample,
            Self::Layer(server) => &server.droplet().sample,
        }
    }

    fn server(&self) -> Option<&DropletServer> {
        match self {
            Self::Stream(_) => None,
            Self::Layer(server) => Some(server),
        }
    }
}

/// Syncs the file system of a directory.
async fn sync(dir: &std::path::Path) -> Result<()> {
    let dir = std::fs::File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    tokio::task::spawn_blocking(move || rustix::fs::syncfs(dir)).await?.context("sync")
}

struct Story<'a> {
    client: &'a Client,
    image: String,
    delivery: &'a Delivery,
    made: &'a Made,
    progress: &'a Progress,
    pea: bool,
    /// What each instance is to have.
    wish: Wish,
    begun: &'a Begun,
}

/// Instances that have finished a phase.
struct Done<T> {
    instances: Vec<T>,
    phase: Phase,
}

/// Instances that are up.
struct Scaled {
    instances: Vec<Instance>,
    step: Step,
    slowest_pea_end: Duration,
}

impl Story<'_> {
    /// Creates, streams in (unless the code is a layer), starts and checks the instances with these numbers; one
    /// phase after the other, with all instances of a phase at once.
    async fn bring_up(&self, from: usize, to: usize) -> Result<Scaled> {
        // The process id distinguishes two labs on one server.
        let handle = |n| format!("lab-{}-{n}", std::process::id());
        let mut wanted = Vec::new();
        for n in from..to {
            let image = match self.delivery {
                Delivery::Stream(_) => self.image.clone(),
                // A platform signs the URL of the code for each instance.
                Delivery::Layer(server) => server.image(&self.image, &handle(n))?,
            };
            wanted.push((handle(n), image));
        }

        let begin = Instant::now();
        let created = self.phase("create", from, wanted, |(handle, image): (String, String), made| {
            let (client, base, wish) = (self.client.clone(), self.image.clone(), self.wish);
            async move {
                // Recorded first: an interrupted create may still create the container.
                if let Ok(mut made) = made.lock() {
                    made.push(handle.clone());
                }
                Instance::create_on(client, handle, image, base, wish).await
            }
        });
        let Done { mut instances, phase } = created.await?;
        let mut phases = vec![phase];

        if let Delivery::Stream(code) = self.delivery {
            let streamed = self.phase("stream_in", from, instances, |instance: Instance, _| {
                let code = code.clone();
                async move {
                    instance.stream_in(&code).await?;
                    Ok(instance)
                }
            });
            let done = streamed.await?;
            instances = done.instances;
            phases.push(done.phase);
        }

        let started = self.phase("start_app", from, instances, |instance: Instance, _| async move {
            instance.start().await?;
            Ok(instance)
        });
        let Done { mut instances, phase } = started.await?;
        phases.push(phase);

        let mut slowest_pea_end = Duration::ZERO;
        if self.pea {
            let checked = self.phase("pea", from, instances, |instance: Instance, _| async move {
                let ended = instance.pea().await?;
                Ok((instance, ended.ending))
            });
            let Done { instances: checked, phase } = checked.await?;
            phases.push(phase);
            slowest_pea_end = checked.iter().map(|(_, ending)| *ending).max().unwrap_or_default();
            instances = checked.into_iter().map(|(instance, _)| instance).collect();
        }
        Ok(Scaled { instances, step: Step::new(from, to, begin.elapsed(), phases), slowest_pea_end })
    }

    /// Runs one step for all instances at once; `first` is the number of the first one. The first failure ends the
    /// story.
    async fn phase<T, U, F, D>(
        &self,
        name: &'static str,
        first: usize,
        all: Vec<T>,
        step: D,
    ) -> Result<Done<U>>
    where
        D: Fn(T, Made) -> F,
        F: Future<Output = Result<U>> + 'static,
        U: 'static,
    {
        let bar = self.progress.phase(name, all.len());
        self.begun.phase(name);
        // On this thread, because a process cannot be awaited from another one. The connections' own work is done by
        // tasks of the client, on all threads.
        let local = LocalSet::new();
        let mut tasks = JoinSet::new();
        for (n, one) in all.into_iter().enumerate() {
            let step = step(one, self.made.clone());
            let timed = async move {
                let begin = Instant::now();
                let done = step.await?;
                anyhow::Ok((n, done, Span::since(begin)))
            };
            tasks.spawn_local_on(timed, &local);
        }
        let collect = async {
            let mut done = Vec::new();
            while let Some(ended) = tasks.join_next().await {
                let (n, one, span) = ended.context("a step of the story panicked")??;
                self.begun.passed(first + n, span);
                done.push((n, one));
                bar.step();
            }
            anyhow::Ok(done)
        };
        let mut done = local.run_until(collect).await?;
        let phase = self.begun.ended().context("the story has not begun")?;
        done.sort_by_key(|(n, _)| *n);
        bar.finish(&phase);
        Ok(Done { instances: done.into_iter().map(|(_, one)| one).collect(), phase })
    }
}
