//! Whether and where runs of experiments are kept.

use crate::print;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use wardian_history::{PATH, Run, Store};

/// The variable with the path of the history; empty: none is kept.
const VARIABLE: &str = "WARDIAN_LAB_HISTORY";
/// The git revision, where the program's builder names it (`./dev package` does).
const REVISION: Option<&str> = option_env!("WARDIAN_REVISION");

/// The file of the history.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// The history of runs [default: /var/lib/wardian/lab/history.sqlite] [env: WARDIAN_LAB_HISTORY]
    // The variable is not read by clap, which refuses an empty one: that stands for no history.
    #[arg(long, value_name = "FILE", help_heading = "History")]
    history: Option<PathBuf>,
}

/// Returns the path that is used unless a flag names one; `None` if the environment wants no history.
pub fn usual() -> Option<PathBuf> {
    match std::env::var_os(VARIABLE) {
        Some(path) if path.is_empty() => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(PathBuf::from(PATH)),
    }
}

impl Place {
    /// Returns the path; `None` if the environment wants no history.
    pub fn path(&self) -> Option<PathBuf> {
        self.history.clone().or_else(usual)
    }

    /// Returns the path that the flag names.
    pub fn flag(&self) -> Option<PathBuf> {
        self.history.clone()
    }

    /// Whether the user has named a file.
    fn is_named(&self) -> bool {
        self.history.is_some() || std::env::var_os(VARIABLE).is_some()
    }
}

/// Whether the run is kept, and where.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Do not keep this run in the history
    #[arg(long, conflicts_with = "history", help_heading = "History")]
    no_history: bool,
}

impl Args {
    /// Looks before the experiment whether the history can be written: an error afterwards would cost its time.
    pub fn open(&self) -> Result<Keeper> {
        let path = if self.no_history { None } else { self.place.path() };
        if path.is_some() && !self.place.is_named() && !rustix::process::geteuid().is_root() {
            print::note(
                "this run is not kept: the history is root's, and --history FILE names one of your own",
            );
            return Ok(Keeper { path: None, failed: None });
        }
        if let Some(path) = &path {
            Store::open(path).context("this run could not be kept (--no-history runs without)")?;
        }
        Ok(Keeper { path, failed: None })
    }
}

/// Keeps runs. An error is told at the end, when what was found has been printed.
#[derive(Debug)]
pub struct Keeper {
    path: Option<PathBuf>,
    failed: Option<wardian_history::Error>,
}

impl Keeper {
    /// Appends a run.
    pub fn keep(&mut self, mut run: Run) {
        let Some(path) = &self.path else { return };
        run.revision = REVISION.filter(|revision| !revision.is_empty()).map(str::to_owned);
        if run.command.is_empty() {
            let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
            run.command = ["wardian".to_owned()].into_iter().chain(words).collect();
        }
        if let Err(error) = Store::open(path).and_then(|mut store| store.append(&run)) {
            self.failed.get_or_insert(error);
        }
    }

    /// Passes a result on. If it is an error, one of the history is told beside it.
    pub fn beside<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err()
            && let Some(failed) = self.failed.take()
        {
            print::note(&failed.to_string());
        }
        result
    }

    /// Returns the first error.
    pub fn done(self) -> Result<()> {
        self.failed.map_or(Ok(()), |error| Err(error).context("what is printed above is not in the history"))
    }
}

/// Opens a history that is to exist.
pub fn existing(place: &Place) -> Result<Store> {
    there(place, Store::existing)
}

/// The same, for reading alone.
pub fn readable(place: &Place) -> Result<Store> {
    there(place, Store::readable)
}

fn there(place: &Place, open: fn(&Path) -> wardian_history::Result<Option<Store>>) -> Result<Store> {
    let path = named(place)?;
    open(&path)?.with_context(|| {
        let path = path.display();
        format!("there is no history {path} yet: the first `wardian lab scale` or `wardian lab teardown` begins it")
    })
}

/// Opens a history, and creates it.
pub fn open(place: &Place) -> Result<Store> {
    Ok(Store::open(&named(place)?)?)
}

/// The path, where a history is wanted.
pub fn named(place: &Place) -> Result<PathBuf> {
    place.path().with_context(|| format!("{VARIABLE} is empty, for no history: name one with --history FILE"))
}
