//! `wardian lab history`.

mod compare;
mod graph;
mod list;
mod select;
pub mod words;

use super::kept::{self, Place};
use crate::print;
use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use select::Select;
use std::io::{BufReader, IsTerminal as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wardian_history::exchange::{self, Form};
use wardian_history::steps::{self, SHORTEST};
use wardian_history::{Filter, Series, is_database};

/// The exit code when there is a step.
pub const STEP: u8 = 3;

/// Which runs, and what about them.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: list::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List runs, the newest last; what `history` alone does
    List(list::Args),
    /// Print all that is known of a run
    Show(list::Show),
    /// List the series: runs that can be compared with each other
    Series(list::Series),
    /// Compare two runs, or groups of runs: of two kernels, versions, engines
    Compare(compare::Args),
    /// Find the runs from which on the figures are others than before; exit code 3 if there are any
    Steps(Steps),
    /// Write runs to a file, or to standard output
    Export(Export),
    /// Add the runs of a file that was exported; those that are known already are left out
    Import(Import),
    /// Delete old runs
    Prune(Prune),
}

#[derive(Debug, clap::Args)]
struct Steps {
    #[command(flatten)]
    select: Select,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw the series over time there, with their steps: those with the figure of the newest one
    #[arg(long, value_name = "FILE", value_parser = crate::lab::file())]
    svg: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct Export {
    /// Comma-separated values, without timelines
    #[arg(long, conflicts_with = "jsonl")]
    csv: bool,
    /// A JSON object on each line, with timelines (the default)
    #[arg(long)]
    jsonl: bool,
    /// The file [default: standard output]
    file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct Import {
    /// The file; `-`: standard input
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct Prune {
    /// Keep the newest N runs of each series
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    #[command(flatten)]
    place: Place,
}

/// Answer what is asked of the history.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        None => list::run(&args.list)?,
        Some(Command::List(args)) => list::run(&args)?,
        Some(Command::Show(args)) => list::show(&args)?,
        Some(Command::Series(args)) => list::series(&args)?,
        Some(Command::Compare(args)) => compare::run(&args)?,
        Some(Command::Steps(args)) => return find(&args),
        Some(Command::Export(args)) => export(&args)?,
        Some(Command::Import(args)) => import(&args)?,
        Some(Command::Prune(args)) => {
            let mut store = kept::existing(&args.place)?;
            let deleted = store.prune(args.keep as usize)?;
            let left: u64 = store.series()?.iter().map(|series| series.runs).sum();
            print::text(&format!("{} deleted, {left} left\n", print::count(deleted, "run")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A series with its steps, as JSON.
#[derive(serde::Serialize)]
struct Found {
    #[serde(flatten)]
    series: Series,
    /// Whether it has enough complete runs to be looked at.
    enough: bool,
    steps: Vec<steps::Step>,
}

fn find(args: &Steps) -> Result<ExitCode> {
    let store = kept::readable(&args.place)?;
    let (mut all, mut graph) = (Vec::new(), graph::Graph::default());
    for series in args.select.series(&store)? {
        let mut points = store.points(&series.name)?;
        points.retain(|point| args.select.holds(point.begun_ms));
        let count = points.iter().filter(|point| steps::counts(point)).count();
        let steps = steps::find(&points);
        if args.svg.is_some() {
            graph.add(&series, &points, &steps);
        }
        all.push(Found { series, enough: count >= 2 * SHORTEST, steps });
    }
    if let Some(file) = &args.svg {
        let written = created(file)?.write_all(graph.svg().as_bytes());
        written.with_context(|| format!("write {}", file.display()))?;
    }
    let steps: usize = all.iter().map(|found| found.steps.len()).sum();
    if args.json {
        print::json(&all)?;
    } else {
        let mut out = String::new();
        for Found { series, steps, .. } in &all {
            for step in steps {
                out += &print::wrapped(&(words::step(series, step) + "\n"));
                out += &print::wrapped(&(words::details(series, step) + "\n"));
            }
        }
        let looked = all.iter().filter(|found| found.enough).count();
        if steps == 0 {
            out += &format!("No step in {looked} series.\n");
        }
        if looked < all.len() {
            let few = all.len() - looked;
            out += &format!("{few} series not looked at: fewer than {} complete runs.\n", 2 * SHORTEST);
        }
        print::text(&out)?;
    }
    Ok(if steps > 0 { ExitCode::from(STEP) } else { ExitCode::SUCCESS })
}

/// Creates a file for what was read. It must not be a history, such as the one that it was read of.
fn created(file: &Path) -> Result<std::fs::File> {
    ensure!(!is_database(file), "{} is a database: name another file", file.display());
    wardian_sys::directory::create(file).with_context(|| format!("write {}", file.display()))
}

fn export(args: &Export) -> Result<()> {
    let store = kept::readable(&args.place)?;
    let form = if args.csv { Form::Csv } else { Form::Lines };
    let all = Filter::default();
    match args.file.as_deref().filter(|file| *file != Path::new("-")) {
        // A terminal obeys what texts of somebody else's may contain.
        None if std::io::stdout().is_terminal() => {
            let mut text = Vec::new();
            exchange::export(&store, &all, form, &mut text)?;
            print::text(&String::from_utf8_lossy(&text))?;
        }
        None => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            match exchange::export(&store, &all, form, &mut out) {
                Err(wardian_history::Error::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                done => drop(done.context("write to standard output")?),
            }
        }
        Some(file) => {
            let mut to = std::io::BufWriter::new(created(file)?);
            let exported = exchange::export(&store, &all, form, &mut to);
            let runs = exported.with_context(|| format!("write {}", file.display()))?;
            print::note(&format!("{runs} runs are in {}", file.display()));
        }
    }
    Ok(())
}

fn import(args: &Import) -> Result<()> {
    let mut store = kept::open(&args.place)?;
    let name = args.file.display();
    let (mut file, what) = if args.file == Path::new("-") {
        (spooled(std::io::stdin().lock()).context("standard input")?, "standard input".to_owned())
    } else {
        let file = std::fs::File::open(&args.file).with_context(|| format!("read {name}"))?;
        let kind = file.metadata()?;
        ensure!(!kind.is_dir(), "{name} is a directory");
        let file = if kind.is_file() { file } else { spooled(file).with_context(|| name.to_string())? };
        (file, name.to_string())
    };
    let imported = exchange::import(&mut store, &mut BufReader::new(&mut file)).context(what)?;
    let known = match imported.known {
        0 => String::new(),
        known => format!("; {known} were there already"),
    };
    print::text(&format!("{} imported{known}\n", print::count(imported.new as usize, "run")))
}

/// Reads to the end, into a file without a name: an import locks the history, which must not wait for a slow pipe.
fn spooled(mut from: impl std::io::Read) -> Result<std::fs::File> {
    let mut file = tempfile::tempfile().context("make a temporary file")?;
    std::io::copy(&mut from, &mut file)?;
    file.rewind()?;
    Ok(file)
}
