//! Benchmarks of containers: create, run and destroy latency, and memory use.

use super::{Figure, Figures, keepers_of, memory, rss};
use crate::code::{Code, MEGABYTE, fill};
use crate::crun::Crun;
use crate::drive::Instance;
use crate::host::{Host, ms};
use crate::local::LocalServer;
use crate::progress::Progress;
use crate::report::{Phase, median};
use crate::{Interrupted, image, interrupted, scale};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::task::JoinSet;
use wardian_garden::Client;

/// Number of containers in the teardown measurement.
const TEARDOWN: usize = 9;
/// Megabytes of another program's dirty data.
const FOREIGN_MB: usize = 1000;
/// Number of containers in the memory measurement.
const CROWD: usize = 20;
/// Number of rounds in the comparison with crun.
const ROUNDS: usize = 15;

/// Measures everything. `figures` receives what was measured, also until an error.
///
/// # Errors
/// [`Interrupted`] by a signal, or the first error.
pub async fn run(program: &Path, location: Option<&Path>, figures: &mut Figures) -> Result<()> {
    let progress = Progress::new();
    let server = LocalServer::start(program, location).await?;
    figures.host = Host::probe(Some(&server.root()));
    let measured = tokio::select! {
        measured = measure(&server, figures, &progress) => measured,
        signal = interrupted() => Err(Interrupted(signal?).into()),
    };
    if measured.is_err() {
        progress.say("cleaning up");
    }
    let complaints = server.complaints();
    let stopped = server.stop().await;
    match measured {
        Err(error) => {
            if !error.is::<Interrupted>() {
                progress.say(&complaints);
            }
            return Err(error);
        }
        Ok(()) => stopped?,
    }

    progress.say("the whole story");
    let mut options = scale::Options::new(program.to_owned());
    options.location = location.map(Path::to_owned);
    let stories = match scale::run(&options).await {
        Ok(scale::Stories(stories)) => stories,
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => {
            figures.notes.push(format!("the story failed: {error:#}"));
            return Ok(());
        }
    };
    for story in stories {
        let name = "end of a pea beside 9 × 100 MB dirty, slowest";
        figures.put(name, "ms", 5.0, 8000.0, story.slowest_pea_destroy_ms);
        figures.put("the whole story 1 → 10 → 0", "ms", 1200.0, 4930.0, story.story_ms);
    }
    Ok(())
}

async fn measure(server: &LocalServer, figures: &mut Figures, progress: &Progress) -> Result<()> {
    let tar = server.dir().join("image.tar");
    image::build(&tar)?;
    let image = tar.display().to_string();
    let client = server.client()?;
    // The first create imports the image.
    Instance::create(client.clone(), "bench-warm".into(), image.clone()).await?.destroy().await?;

    progress.say("create and destroy, one after the other");
    let (mut creates, mut destroys) = (Vec::new(), Vec::new());
    for n in 0..20 {
        let begin = Instant::now();
        let instance = Instance::create(client.clone(), format!("bench-serial-{n}"), image.clone()).await?;
        creates.push(ms(begin.elapsed()));
        let begin = Instant::now();
        instance.destroy().await?;
        destroys.push(ms(begin.elapsed()));
    }
    figures.put("create, serial p50", "ms", 6.0, 124.0, median(&creates));
    figures.put("destroy, serial p50", "ms", 2.0, 292.0, median(&destroys));

    progress.say("run");
    let instance = Instance::create(client.clone(), "bench-run".into(), image.clone()).await?;
    let (mut runs, mut peas) = (Vec::new(), Vec::new());
    for n in 0..50 {
        runs.push(timed_true(&instance, false).await?);
        if n < 20 {
            peas.push(timed_true(&instance, true).await?);
        }
    }
    instance.destroy().await?;
    figures.put("run true in a container p50", "ms", 2.5, 54.0, median(&runs));
    figures.put("run true as a pea p50", "ms", 8.0, 175.0, median(&peas));

    progress.say("destroy while everything is dirty");
    let code = tokio::task::spawn_blocking(|| Code::generate(100)).await??;
    let alone = teardown(&client, &image, &code).await?;
    figures.put("9 destroys at once, 100 MB dirty each: slowest", "ms", 15.0, 1230.0, alone.max_ms);
    server.trash_empty().await?;
    let foreign = Foreign::write(server.dir().join("foreign"))?;
    let beside = teardown(&client, &image, &code).await?;
    drop(foreign);
    figures.put("the same beside 1 GB of somebody else's dirty data", "ms", 15.0, None, beside.max_ms);
    server.trash_empty().await?;

    progress.say("memory");
    let mut crowd = Vec::new();
    for n in 0..CROWD {
        crowd.push(Instance::create(client.clone(), format!("bench-crowd-{n}"), image.clone()).await?);
    }
    let pid = server.pid().context("the server has died")?;
    figures.put("server, RSS with 20 containers", "MB", 20.0, 32.0, rss(pid)?);
    let keepers = keepers_of(pid)?;
    if keepers.is_empty() {
        figures.notes.push("No keeper was found: its memory was not measured.".into());
    } else {
        let private: Vec<f64> =
            keepers.iter().filter_map(|pid| memory(*pid, &["Private_Clean", "Private_Dirty"]).ok()).collect();
        figures.put("keeper, private memory p50", "MB", 1.0, 1.1, median(&private));
    }
    for instance in crowd {
        instance.destroy().await?;
    }
    compare(server, figures, progress, &client, &image).await
}

async fn timed_true(instance: &Instance, pea: bool) -> Result<f64> {
    let begin = Instant::now();
    let ended = instance.run("true", &[], "", pea).await?;
    let took = ms(begin.elapsed());
    ensure!(
        ended.status == 0,
        "true ended with status {}: {}",
        ended.status,
        String::from_utf8_lossy(&ended.stderr)
    );
    Ok(took)
}

/// Destroys containers with code in them, all at once.
async fn teardown(client: &Client, image: &str, code: &Code) -> Result<Phase> {
    let mut instances = Vec::new();
    for n in 0..TEARDOWN {
        let instance = Instance::create(client.clone(), format!("bench-dirty-{n}"), image.to_owned()).await?;
        instance.stream_in(code).await?;
        instances.push(instance);
    }
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for instance in instances {
        tasks.spawn(async move {
            let begin = Instant::now();
            instance.destroy().await.map(|()| begin.elapsed())
        });
    }
    let mut each = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        each.push(ended.context("a destroy panicked")??);
    }
    Ok(Phase::new("destroy", begin.elapsed(), &each))
}

/// A file of dirty pages; removed at the end, so that the pages are dropped and not written.
struct Foreign(PathBuf);

impl Foreign {
    fn write(path: PathBuf) -> Result<Self> {
        let mut file = std::fs::File::create_new(&path).context("make a file of foreign data")?;
        let foreign = Self(path);
        let mut block = vec![0; MEGABYTE];
        for n in 0..FOREIGN_MB {
            fill(&mut block, 1_000_000 + n as u64);
            std::io::Write::write_all(&mut file, &block).context("write foreign data")?;
        }
        Ok(foreign)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// create + run `true` + destroy, alternating with `crun run` of `true` on the same root file system.
async fn compare(
    server: &LocalServer,
    figures: &mut Figures,
    progress: &Progress,
    client: &Client,
    image: &str,
) -> Result<()> {
    const NAME: &str = "create + run true + destroy, of what crun run takes";
    let crun = match Crun::prepare(&server.dir().join("bundle"), Path::new(image)).await {
        Ok(crun) => crun,
        Err(error) => {
            figures.notes.push(format!("The comparison with crun was skipped: {error:#}"));
            let goal = Some(0.5);
            figures.figures.push(Figure {
                name: NAME,
                unit: "ratio",
                goal,
                at_least: false,
                guardian: None,
                measured: None,
            });
            return Ok(());
        }
    };
    progress.say("by turns with crun");
    let (mut ours, mut theirs, mut around) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let begin = Instant::now();
        let instance = Instance::create(client.clone(), format!("bench-turn-{n}"), image.to_owned()).await?;
        timed_true(&instance, false).await?;
        instance.destroy().await?;
        ours.push(ms(begin.elapsed()));
        theirs.push(ms(crun.run().await?));
        around.push(ms(crun.nothing().await?));
    }
    let (ours, theirs) = (median(&ours), median(&theirs) - median(&around));
    figures.notes.push(format!(
        "By turns, p50: create + run true + destroy {ours:.1} ms; crun run of true {theirs:.1} ms{}.",
        crun.remark()
    ));
    figures.put(NAME, "ratio", 0.5, None, ours / theirs);
    Ok(())
}
