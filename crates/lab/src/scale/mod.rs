//! The story: an app scaled from one instance to many, each with a health-check sidecar, and back to none.
//!
//! The end of a pea (`slowest_pea_destroy_ms`) is measured at the client: from the last byte of the pea's output
//! until its exit status has arrived. A Garden server sends the status only when the pea's root file system is
//! removed, so a server that waits for the disk there is visible here.

mod begun;
mod idle;
mod report;
mod room;
mod story;

pub use report::{Growth, LimitRatio, Ratio, Report, Row, Spread, Step, Stories, Summary, Whole};

use begun::Begun;

use crate::local::LocalServer;
use crate::progress::Progress;
use crate::{Interrupted, code, droplet, interruption};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use wardian_garden::{Client, ErrorKind};

/// Limits of instances, runs and megabytes of code. The code is kept in memory.
const MOST_INSTANCES: usize = 1000;
const MOST_RUNS: usize = 1000;
const MOST_MB: usize = 4096;

/// How the app's code gets into its instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The code is streamed into each instance.
    Stream,
    /// The code is a layer of the image, which the server fetches.
    Oci,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Stream => "stream",
            Self::Oci => "oci",
        })
    }
}

/// What distinguishes stories of one invocation from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// How the code gets into the instances.
    pub mode: Mode,
    /// The disk limit of each instance in bytes, the image included; `null`: none.
    pub disk_limit_bytes: Option<u64>,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.mode, if self.disk_limit_bytes.is_some() { ", limited" } else { "" })
    }
}

/// Options of the stories.
#[derive(Debug, Clone)]
pub struct Options {
    /// The modes; each has a story of its own.
    pub modes: Vec<Mode>,
    /// Number of instances before the scaling.
    pub from: usize,
    /// Number of instances after each step of the scaling.
    pub to: Vec<usize>,
    /// How often each story is run.
    pub runs: usize,
    /// Megabytes of code in each instance.
    pub code_mb: usize,
    /// A disk limit: each story is told without one, and then with this one, in bytes, for each instance.
    pub disk: Option<u64>,
    /// Whether to run a health check beside each instance.
    pub pea: bool,
    /// The image; `None`: one is built.
    pub image: Option<String>,
    /// The server's address; `None`: a server is started for each story.
    pub address: Option<String>,
    /// Directory for the store of that server.
    pub location: Option<PathBuf>,
    /// The program that has a `serve` command.
    pub program: PathBuf,
}

impl Options {
    /// The default story, on a server that `program serve` starts.
    pub fn new(program: PathBuf) -> Self {
        Self {
            modes: vec![Mode::Stream],
            from: 1,
            to: vec![10],
            runs: 1,
            code_mb: 100,
            disk: None,
            pea: true,
            image: None,
            address: None,
            location: None,
            program,
        }
    }

    /// Number of instances at the end.
    fn most(&self) -> usize {
        self.to.last().copied().unwrap_or_default()
    }

    /// The stories of one run, in order.
    fn kinds(&self) -> Vec<Kind> {
        let limits = || [None].into_iter().chain(self.disk.map(Some));
        let of = |mode: &Mode| {
            let mode = *mode;
            limits().map(move |disk_limit_bytes| Kind { mode, disk_limit_bytes })
        };
        self.modes.iter().flat_map(of).collect()
    }

    /// Bytes of code in each instance.
    fn code_bytes(&self) -> u64 {
        (self.code_mb * code::MEGABYTE) as u64
    }

    /// Checks the options.
    fn check(&self) -> Result<()> {
        ensure!(!self.modes.is_empty(), "--mode names no mode");
        for (n, mode) in self.modes.iter().enumerate() {
            ensure!(!self.modes[..n].contains(mode), "--mode names {mode} twice: --runs tells it more often");
        }
        ensure!(!self.to.is_empty(), "--to names no number");
        ensure!(self.from < self.to[0], "--to must be greater than --from");
        for steps in self.to.windows(2) {
            ensure!(
                steps[0] < steps[1],
                "--to must rise from step to step: {} comes after {}",
                steps[1],
                steps[0]
            );
        }
        ensure!(
            self.most() <= MOST_INSTANCES,
            "--to: more than {MOST_INSTANCES} instances are not a story any more"
        );
        ensure!((1..=MOST_RUNS).contains(&self.runs), "--runs must be between 1 and {MOST_RUNS}");
        ensure!(self.code_mb <= MOST_MB, "--code-mb must be at most {MOST_MB}");
        if let Some(disk) = self.disk {
            // The image comes on top; how large it is the server knows.
            ensure!(
                disk > self.code_bytes(),
                "--disk: {} bytes have no room for the {} MB of code in each instance",
                disk,
                self.code_mb
            );
        }
        if let Some(image) = self.image.as_ref().filter(|_| self.modes.contains(&Mode::Oci)) {
            droplet::check_base(image)?;
        }
        Ok(())
    }
}

/// Handles of containers that were created and not yet destroyed.
type Made = Arc<Mutex<Vec<String>>>;

/// A story that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Its kind.
    pub kind: Kind,
    /// When it began.
    pub begun: SystemTime,
    /// What came of it; an error also when it was interrupted.
    pub result: std::result::Result<&'a Report, &'a anyhow::Error>,
}

/// Runs and measures the stories: all kinds in turn, and that once per run. On errors and on Ctrl-C everything that
/// was made is destroyed.
///
/// # Errors
/// [`Interrupted`] by a signal, or the first error.
pub async fn run(options: &Options) -> Result<Stories> {
    let mut stories = Stories(Vec::new());
    run_into(options, &mut stories, &mut |_| ()).await.map(|()| stories)
}

/// The same, but the stories that were told stay if a later one fails. That one is the last, and marked as incomplete,
/// unless it failed before it began. `tell` is called with each story as soon as it has ended, also with one that failed.
///
/// # Errors
/// As [`run`].
pub async fn run_into(
    options: &Options,
    stories: &mut Stories,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<()> {
    options.check()?;
    if options.address.is_none() {
        for mode in &options.modes {
            room::disk(options, *mode)?;
        }
    }
    room::memory(options)?;
    room::descriptors(options.most())?;
    // Signals are caught from here on, also between two stories.
    let mut interrupted: Pin<Box<dyn Future<Output = i32>>> = Box::pin(interruption()?);
    let progress = Progress::new();
    if let Some(note) = room::note(options)? {
        progress.say(&note);
    }
    let kinds = options.kinds();
    for run in 1..=options.runs {
        for kind in &kinds {
            if options.runs * kinds.len() > 1 {
                progress.say(&format!("\nrun {run} of {}, {kind}", options.runs));
            }
            let (begun, at) = (Begun::default(), SystemTime::now());
            let told = story(options, (run, *kind), &mut interrupted, &progress, &begun).await;
            tell(Told { kind: *kind, begun: at, result: told.as_ref() });
            match told {
                Ok(report) => stories.0.push(report),
                Err(error) => {
                    stories.0.extend(begun.half((run, *kind), &error));
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

async fn story(
    options: &Options,
    which: (usize, Kind),
    interrupted: &mut (impl Future<Output = i32> + Unpin),
    progress: &Progress,
    begun: &Begun,
) -> Result<Report> {
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
    let tell = async {
        client.ping().await.context("the server does not answer")?;
        if local.is_none() {
            room::disk_of(&client, options, which.1.mode).await?;
        }
        story::tell(options, which, &client, local.as_ref(), &made, progress, begun).await
    };
    let told = tokio::select! {
        told = tell => told,
        signal = interrupted => Err(Interrupted(signal).into()),
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
        // Destroys the remaining containers, and starts a new server for that if necessary.
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

/// Destroys the containers that were created on a server that is not ours.
async fn clear(client: &Client, made: &Made, cut_off: bool) -> Result<()> {
    if cut_off {
        // An interrupted request may still be running in the server.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stories_with_a_limit_take_turns_with_those_without() {
        let mut options = Options::new("wardian".into());
        options.modes = vec![Mode::Stream, Mode::Oci];
        let told = |options: &Options| options.kinds().iter().map(Kind::to_string).collect::<Vec<_>>();
        assert_eq!(told(&options), ["stream", "oci"]);
        options.disk = Some(1 << 30);
        assert_eq!(told(&options), ["stream", "stream, limited", "oci", "oci, limited"]);
        assert_eq!(options.kinds()[3].disk_limit_bytes, options.disk);
    }

    #[test]
    fn what_is_no_story_is_refused() {
        let refused = |change: &dyn Fn(&mut Options)| {
            let mut options = Options::new("wardian".into());
            change(&mut options);
            options.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(&|_| ()), "");
        assert_eq!(refused(&|o| (o.from, o.to) = (0, vec![1, 10, 1000])), "");
        assert_eq!(refused(&|o| o.to = vec![1]), "--to must be greater than --from");
        assert_eq!(
            refused(&|o| o.to = vec![10, 100, 50]),
            "--to must rise from step to step: 50 comes after 100"
        );
        for (words, change) in [
            ("--mode names no mode", (&|o: &mut Options| o.modes.clear()) as &dyn Fn(&mut Options)),
            ("--mode names oci twice", &|o| o.modes = vec![Mode::Oci, Mode::Stream, Mode::Oci]),
            ("--to names no number", &|o| o.to.clear()),
            ("--to must rise", &|o| o.to = vec![10, 10]),
            ("1000 instances", &|o| o.to = vec![10, 1001]),
            ("--runs must be", &|o| o.runs = 0),
            ("--runs must be", &|o| o.runs = 1001),
            ("--code-mb must be", &|o| o.code_mb = 4097),
            ("--disk: 104857600 bytes have no room for the 100 MB", &|o| o.disk = Some(100 << 20)),
            ("--image", &|o| (o.modes, o.image) = (vec![Mode::Oci], Some("docker:///busybox".into()))),
        ] {
            let said = refused(change);
            assert!(said.contains(words), "{words}: {said:?}");
        }
        assert_eq!(refused(&|o| o.disk = Some(101 << 20)), "");
        // With streaming any image may be used.
        assert_eq!(refused(&|o| o.image = Some("docker:///busybox".into())), "");
    }
}
