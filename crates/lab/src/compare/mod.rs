//! The scaling of an app and the teardown of containers, by several engines side by side.
//!
//! In each round every engine does every experiment once, in an order that a seed determines, each time from nothing: a
//! store of its own, a server of its own where it has one. Between two turns everything that the last one made is removed
//! and the file system synced, so that no engine pays for another's data. See `docs/lab.md` for how the figures are
//! read.

mod cli;
mod containerd;
mod engines;
mod garden;
mod goods;
mod hold;
mod options;
pub(crate) mod place;
mod report;
mod run;
mod runs;
mod stats;
mod turn;

pub use engines::{Engine, Found, Missing};
pub use hold::init;
pub use options::{Options, Series};
pub use report::{Comparison, Failure, Report, Row};
pub use runs::runs;
pub use stats::{FEWEST, Interval, Ratio, WIDEST};
pub use turn::Turn;

use crate::leftovers::{PREFIX, Record, Records};
use crate::progress::Progress;
use crate::{Interrupted, ground, host::Host, image, interruption};
use anyhow::{Context as _, Result, ensure};
use goods::Goods;
use run::Silent;
use std::path::Path;
use std::pin::Pin;
use std::time::SystemTime;
use turn::Ground;

/// A signal that is waited for.
type Signal = Pin<Box<dyn Future<Output = i32>>>;

/// Compares, and cleans up, however it ends. The report of a comparison that failed or was interrupted, which is marked
/// as such, comes with its error.
///
/// An engine that fails or does not answer is no error: [`Report::failures`] has it.
///
/// # Errors
/// The comparison could not begin: there is nothing to compare, or the host's.
pub async fn measure(options: Options) -> Result<(Report, Result<()>)> {
    ensure!(rustix::process::geteuid().is_root(), "containers can only be made by root: try sudo");
    options.check()?;
    let mut signal: Signal = Box::pin(interruption().context("listen for signals")?);
    let (found, missing) = tokio::select! {
        found = find(&options) => found?,
        signal = &mut signal => return Err(Interrupted(signal).into()),
    };
    let mut report = Report::new(options, found, missing);
    let done = match Records::usual().begin() {
        Ok(mut record) => {
            let done = with_record(&mut record, &mut report, &mut signal).await;
            // The first error is reported.
            done.and(record.end())
        }
        Err(error) => Err(error),
    };
    report.host = Host::probe(Some(&report.options.fs));
    report.complete = done.is_ok();
    report.error = done.as_ref().err().map(|error| format!("{error:#}"));
    report.compare();
    Ok((report, done))
}

/// Looks for the engines.
async fn find(options: &Options) -> Result<(Vec<Found>, Vec<Missing>)> {
    let mut wanted: Vec<(Engine, String)> = match &options.engines {
        Some(engines) => engines.clone(),
        None => Engine::USUAL.into(),
    }
    .into_iter()
    .map(|engine| (engine.clone(), engine.name().to_owned()))
    .collect();
    for (n, address) in options.gardens.iter().enumerate() {
        let name = if options.gardens.len() == 1 { "garden".to_owned() } else { format!("garden {}", n + 1) };
        wanted.push((Engine::Garden(address.clone()), name));
    }
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (engine, name) in wanted {
        match engine.find(name, options.timeout).await {
            Ok(engine) => found.push(engine),
            Err(engine) => missing.push(engine),
        }
    }
    let absent: Vec<String> =
        missing.iter().map(|missing| format!("{}: {}", missing.name, missing.why)).collect();
    ensure!(!found.is_empty(), "no engine is left to compare: {}", absent.join("; "));
    Ok((found, missing))
}

async fn with_record(record: &mut Record, report: &mut Report, signal: &mut Signal) -> Result<()> {
    let fs = report.options.fs.display();
    let dir = ground::dir_in(&report.options.fs, PREFIX)
        .with_context(|| format!("make a directory in {fs}: name another file system with --fs"))?;
    record.dir(dir.path())?;
    // Mapped users of the servers' containers must reach their root file systems.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(dir.path(), mode).context("open up the experiment's directory")?;
    let group = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    record.group(&group)?;
    let done = rounds(record, report, signal, dir.path(), &group).await;
    let path = dir.path().to_owned();
    let closed = tokio::task::spawn_blocking(|| dir.close()).await?;
    done.and(closed.with_context(|| format!("remove {}", path.display())))
}

async fn rounds(
    record: &mut Record,
    report: &mut Report,
    signal: &mut Signal,
    dir: &Path,
    group: &str,
) -> Result<()> {
    let (options, progress) = (report.options.clone(), Progress::new());
    let ground = Ground {
        options: &options,
        dir,
        image: dir.join("image.tar"),
        archive: dir.join("base.tar"),
        group: group.to_owned(),
        progress: &progress,
    };
    image::build(&ground.image)?;
    goods::base_archive(&ground.archive, &ground.image)?;
    for Missing { name, why } in &report.missing {
        progress.say(&format!("not compared: {name}: {why}"));
    }
    let mut random = fastrand::Rng::with_seed(options.seed);
    let layer = options.series.contains(&Series::Layer);
    let mut goods: Option<Goods> = None;
    for round in 1..=options.runs {
        if goods.is_none() || !options.gardens.is_empty() {
            progress.say(&format!("making {} MB of code", options.code_mb));
            // Code of its own for each round, where a server may still have that of the last one.
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let salt = u64::try_from(since.as_nanos()).unwrap_or_default();
            goods = Some(Goods::make(dir, &ground.image, options.code_mb, salt, layer).await?);
        }
        let Some(goods) = &goods else { continue };
        let mut turns: Vec<(usize, Series)> = (0..report.engines.len())
            .flat_map(|n| options.series.iter().map(move |series| (n, *series)))
            .collect();
        random.shuffle(&mut turns);
        for (n, series) in turns {
            let found = report.engines[n].clone();
            if report.has_failed(&found.name, series) {
                continue;
            }
            let what = format!("{} {}", series.experiment(), series.mode());
            progress.say(&format!("\nround {round} of {}: {}, {what}", options.runs, found.name));
            let stop = async { anyhow::Error::new(Interrupted(signal.as_mut().await)) };
            let ended = turn::take(&ground, (round, series, &found), goods, record, stop).await;
            match ended.turn {
                Ok(turn) => report.turns.push(turn),
                Err(error) if error.is::<Interrupted>() => {
                    progress.say("interrupted: everything that was made is removed");
                    return ended.cleared.and(Err(error));
                }
                Err(error) => {
                    let silent = error.chain().any(<dyn std::error::Error>::is::<Silent>);
                    progress.say(&format!("{} failed: {error:#}", found.name));
                    report.fail(&found.name, series, round, &error, silent);
                }
            }
            ended.cleared?;
        }
    }
    Ok(())
}
