//! Benchmarks of the Garden API: single calls, and calls with many containers.

use super::floor::Overlays;
use super::{Figures, keepers_of, memory, rss};
use crate::code::{Code, MEGABYTE, fill, hex};
use crate::drive::Instance;
use crate::host::{Host, ms};
use crate::local::LocalServer;
use crate::progress::Progress;
use crate::report::{median, percentile};
use crate::{Interrupted, image, interrupted};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use wardian_garden::wire::ProcessSpec;
use wardian_garden::{Client, Io, OutputReader};

/// Number of runs that are timed back to back.
const RUNS: usize = 500;
/// Number of runs on an idle host; between two of them there is a pause.
const IDLE_RUNS: usize = 40;
const PAUSE: Duration = Duration::from_millis(200);
/// Number of attaches that are timed.
const ATTACHES: usize = 100;
/// Number of files of one megabyte, and how often they are printed: together 1 GiB.
const FILES: usize = 128;
const PRINTS: usize = 8;
/// Number of containers that get a tar at once, the tar's megabytes, and the number of rounds.
const RECEIVERS: usize = 9;
const TAR_MB: usize = 100;
const ROUNDS: usize = 5;
/// Number of idle containers in the crowd.
const CROWD: usize = 250;
/// Number of creates with and without the crowd, alternating.
const TURNS: usize = 60;

/// Measures the API. `figures` receives what was measured, also until an error.
///
/// # Errors
/// [`Interrupted`] by a signal, or the first error.
pub async fn run(program: &Path, location: Option<&Path>, figures: &mut Figures) -> Result<()> {
    let progress = Progress::new();
    let mut busy = LocalServer::start(program, location).await?;
    let quiet = match LocalServer::start(program, location).await {
        Ok(quiet) => quiet,
        Err(error) => {
            busy.stop().await?;
            return Err(error);
        }
    };
    figures.host = Host::probe(Some(&busy.root()));
    let measured = tokio::select! {
        measured = measure(&mut busy, &quiet, figures, &progress) => measured,
        signal = interrupted() => Err(Interrupted(signal?).into()),
    };
    if measured.is_err() {
        progress.say("cleaning up");
    }
    let complaints = busy.complaints();
    let stopped = (busy.stop().await, quiet.stop().await);
    match measured {
        Err(error) => {
            if !error.is::<Interrupted>() {
                progress.say(&complaints);
            }
            Err(error)
        }
        Ok(()) => stopped.0.and(stopped.1),
    }
}

async fn measure(
    busy: &mut LocalServer,
    quiet: &LocalServer,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    let tar = busy.dir().join("image.tar");
    image::build(&tar)?;
    let image = tar.display().to_string();
    for server in [&*busy, quiet] {
        // The first create imports the image.
        Instance::create(server.client()?, "bench-warm".into(), image.clone()).await?.destroy().await?;
    }
    let client = busy.client()?;
    runs(&client, &image, figures, progress).await?;
    output(&client, &image, figures, progress).await?;
    stream_in(busy, &client, &image, figures, progress).await?;
    crowd(busy, quiet, &image, figures, progress).await
}

async fn timed(work: impl Future<Output = Result<()>>) -> Result<f64> {
    let begin = Instant::now();
    work.await?;
    Ok(ms(begin.elapsed()))
}

async fn runs(client: &Client, image: &str, figures: &mut Figures, progress: &Progress) -> Result<()> {
    progress.say("run and attach");
    let instance = Instance::create(client.clone(), "bench-run".into(), image.to_owned()).await?;
    let one = || async {
        let ended = instance.run("true", &[], "", false).await?;
        ensure!(ended.status == 0, "true ended with status {}", ended.status);
        Ok(())
    };
    let mut times = Vec::new();
    for _ in 0..RUNS {
        times.push(timed(one()).await?);
    }
    figures.put("run true, back to back, p50 of 500", "ms", 2.0, 54.0, median(&times));
    figures.put("the same, p99", "ms", 10.0, None, percentile(&times, 99.0));
    times.clear();
    for _ in 0..IDLE_RUNS {
        tokio::time::sleep(PAUSE).await;
        times.push(timed(one()).await?);
    }
    figures.put("run true, one every 200 ms, p50", "ms", 4.0, None, median(&times));

    // `cat` echoes its input at once. The time is measured from the call until the echo of the first byte.
    let spec = ProcessSpec { path: "cat".into(), ..Default::default() };
    let (_keyboard, theirs) = tokio::io::duplex(64);
    let first = Io { stdin: Some(Box::new(theirs)), ..Io::default() };
    let process = client.run(&instance.handle, &spec, first).await?;
    times.clear();
    for _ in 0..ATTACHES {
        let begin = Instant::now();
        let (mut keyboard, theirs) = tokio::io::duplex(64);
        let io = Io { stdin: Some(Box::new(theirs)), stdout: true, ..Io::default() };
        keyboard.write_all(b"x").await.context("type")?;
        let mut attached = client.attach(&instance.handle, process.id(), io).await?;
        let mut stdout = attached.take_stdout().context("no output")?;
        ensure!(stdout.read(&mut [0; 1]).await.context("read the echo")? == 1, "cat has ended");
        times.push(ms(begin.elapsed()));
    }
    figures.put("attach until the first byte, p50", "ms", 1.0, None, median(&times));
    process.signal(true).await?;
    process.wait().await?;
    instance.destroy().await
}

async fn digest(mut from: OutputReader) -> Result<String> {
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match from.read(&mut buffer).await.context("read output")? {
            0 => return Ok(hex(&digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}

/// A process prints 1 GiB, to one reader and to three, each of which computes the digest.
async fn output(client: &Client, image: &str, figures: &mut Figures, progress: &Progress) -> Result<()> {
    progress.say("1 GiB of output");
    let code = tokio::task::spawn_blocking(|| Code::generate(FILES)).await??;
    let expected = tokio::task::spawn_blocking(|| {
        let (mut digest, mut block) = (Sha256::new(), vec![0; MEGABYTE]);
        for n in (0..PRINTS).flat_map(|_| 1..=FILES as u64) {
            fill(&mut block, n);
            digest.update(&block);
        }
        hex(&digest.finalize())
    })
    .await?;
    let instance = Instance::create(client.clone(), "bench-print".into(), image.to_owned()).await?;
    instance.stream_in(&code).await?;
    let print = format!("read go; for n in $(seq {PRINTS}); do cat /home/vcap/app/code-*.bin; done");
    for (readers, name, goal) in
        [(1, "1 GiB of output to one reader", 1000.0), (3, "1 GiB of output to three readers, each", 300.0)]
    {
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let spec = ProcessSpec {
                path: "sh".into(),
                args: vec!["-c".into(), print.clone()],
                ..Default::default()
            };
            let (mut go, theirs) = tokio::io::duplex(64);
            let io = Io { stdin: Some(Box::new(theirs)), stdout: true, ..Io::default() };
            let mut process = client.run(&instance.handle, &spec, io).await?;
            let mut outputs = vec![process.take_stdout().context("no output")?];
            let mut others = Vec::new();
            for _ in 1..readers {
                let io = Io { stdout: true, ..Io::default() };
                let mut other = client.attach(&instance.handle, process.id(), io).await?;
                outputs.push(other.take_stdout().context("no output")?);
                others.push(other);
            }
            let begin = Instant::now();
            go.write_all(b"go\n").await.context("start the printing")?;
            let mut reading = JoinSet::new();
            for output in outputs {
                reading.spawn(digest(output));
            }
            while let Some(found) = reading.join_next().await {
                ensure!(found.context("a reader panicked")?? == expected, "a reader got something else");
            }
            rates.push((FILES * PRINTS * MEGABYTE) as f64 / 1e6 / begin.elapsed().as_secs_f64());
            ensure!(process.wait().await? == 0, "the printing failed");
        }
        figures.put_at_least(name, "MB/s", goal, median(&rates));
    }
    instance.destroy().await
}

/// Streams a tar into each of several containers at once, alternating with `tar x` onto as many overlays.
async fn stream_in(
    server: &LocalServer,
    client: &Client,
    image: &str,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    progress.say("100 MB into each of 9 containers at once");
    let code = tokio::task::spawn_blocking(|| Code::generate(TAR_MB)).await??;
    let archive = server.dir().join("code.tar");
    std::fs::write(&archive, &code.tar).context("write the archive for tar")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut instances = Vec::new();
        for n in 0..RECEIVERS {
            let handle = format!("bench-receive-{n}");
            instances.push(Instance::create(client.clone(), handle, image.to_owned()).await?);
        }
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for instance in instances {
            let code = code.clone();
            tasks.spawn(async move { instance.stream_in(&code).await.map(|()| instance) });
        }
        let instances: Vec<Result<Instance>> = tasks.join_all().await;
        ours.push(ms(begin.elapsed()));
        for instance in instances {
            instance?.destroy().await?;
        }
        server.trash_empty().await?;
        let (dir, archive) = (server.dir().join("floor"), archive.clone());
        let floor = tokio::task::spawn_blocking(move || Overlays::mount(&dir, RECEIVERS)?.untar(&archive));
        theirs.push(ms(floor.await??));
    }
    std::fs::remove_file(&archive).context("remove the archive")?;
    let (ours, theirs) = (median(&ours), median(&theirs));
    figures.put("stream-in of 100 MB into each of 9 at once", "ms", None, 1215.0, ours);
    figures.put("the same, of what nine tar x onto overlays take", "ratio", 1.3, None, ours / theirs);
    Ok(())
}

async fn crowd(
    busy: &mut LocalServer,
    quiet: &LocalServer,
    image: &str,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    progress.say("250 containers");
    let client = busy.client()?;
    let sleep = ProcessSpec { path: "sleep".into(), args: vec!["100000".into()], ..Default::default() };
    let mut handles = Vec::new();
    for n in 0..CROWD {
        let instance = Instance::create(client.clone(), format!("bench-crowd-{n}"), image.to_owned()).await?;
        client.run(&instance.handle, &sleep, Io::default()).await?;
        handles.push(instance.handle);
    }
    let pid = busy.pid().context("the server has died")?;
    figures.put("server, RSS with 250 containers", "MB", 25.0, None, rss(pid)?);
    let mut keepers = 0.0;
    for keeper in keepers_of(pid)? {
        keepers += memory(keeper, &["Pss"])?;
    }
    figures.put("all keepers, PSS", "MB", 150.0, None, keepers);

    let (mut lists, mut infos, mut bulks) = (Vec::new(), Vec::new(), Vec::new());
    let names: Vec<&str> = handles.iter().map(String::as_str).collect();
    for n in 0..100 {
        let call = async { Ok(client.list(&BTreeMap::new()).await.map(drop)?) };
        lists.push(timed(call).await?);
        let call = async { Ok(client.info(names[n * 2]).await.map(drop)?) };
        infos.push(timed(call).await?);
        let call = async {
            let all = client.bulk_metrics(&names).await?;
            ensure!(all.len() == CROWD, "metrics of {} containers", all.len());
            Ok(())
        };
        bulks.push(timed(call).await?);
    }
    figures.put("list 250 containers, p50", "ms", 1.0, None, median(&lists));
    figures.put("info, p50", "ms", 0.2, None, median(&infos));
    figures.put("metrics of 250 containers at once, p50", "ms", 20.0, None, median(&bulks));

    progress.say("create with 0 and with 250 containers, by turns");
    let alone = quiet.client()?;
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for n in 0..TURNS {
        for (client, times) in [(&alone, &mut few), (&client, &mut many)] {
            let begin = Instant::now();
            let instance =
                Instance::create(client.clone(), format!("bench-turn-{n}"), image.to_owned()).await?;
            times.push(ms(begin.elapsed()));
            instance.destroy().await?;
        }
    }
    let interval = |times: &[f64]| (percentile(times, 25.0), percentile(times, 75.0));
    let ((a, b), (c, d)) = (interval(&few), interval(&many));
    figures.notes.push(format!(
        "Creates by turns, p50 (the middle half): with none {:.2} ms ({a:.2} to {b:.2}), with 250 {:.2} ms ({c:.2} to {d:.2}).",
        median(&few),
        median(&many)
    ));
    figures.put(
        "create with 250 containers, of what it takes with none",
        "ratio",
        1.1,
        None,
        median(&many) / median(&few),
    );

    progress.say("restart with 250 containers");
    let mut restarts = Vec::new();
    for _ in 0..3 {
        restarts.push(ms(busy.restart().await?));
    }
    let client = busy.client()?;
    let found = client.list(&BTreeMap::new()).await?.len();
    ensure!(found == CROWD, "{found} containers after a restart");
    figures.put("restart with 250 containers, until it answers", "ms", 500.0, None, median(&restarts));
    progress.say("destroying them");
    let mut tasks = JoinSet::new();
    for handle in handles {
        let client = client.clone();
        tasks.spawn(async move { client.destroy(&handle).await });
    }
    for destroyed in tasks.join_all().await {
        destroyed?;
    }
    Ok(())
}
