//! The list of runs, and one run.

use super::select::Select;
use super::words;
use crate::lab::kept::{self, Place};
use crate::print;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;

/// Columns that a list takes besides the parameters, and the fewest that they get.
const OTHERS: usize = 100;
const LEAST: usize = 12;

/// How the runs are listed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    select: Select,
    /// The newest N
    #[arg(short = 'n', long = "newest", value_name = "N", default_value_t = 50, help_heading = "Which runs")]
    newest: u32,
    /// Print JSON, with all figures
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Which run.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Its number in the list
    id: i64,
    /// Print JSON, with its timeline
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// What is told of the series.
#[derive(Debug, clap::Args)]
pub struct Series {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// List runs.
pub fn run(args: &Args) -> Result<()> {
    let store = kept::readable(&args.place)?;
    let runs = args.select.runs(&store, false, Some(args.newest as usize))?;
    if args.json {
        return print::json(&runs);
    }
    // What a program or a pager reads is not cut.
    let columns = print::columns();
    let cut = |text: &str, most: usize| {
        if columns.is_some() { print::ellipsis(text, most) } else { text.to_owned() }
    };
    // The parameters get what the other columns leave.
    let rest = columns.map_or(0, |columns| columns.saturating_sub(OTHERS).max(LEAST));
    let rows: Vec<[String; 7]> = runs
        .iter()
        .map(|run| {
            let (value, figure) = match (run.complete, run.value()) {
                (false, _) => ("failed".to_owned(), String::new()),
                (true, Some(value)) => (words::value(&run.headline, value), words::figure(&run.headline)),
                (true, None) => ("-".to_owned(), String::new()),
            };
            let parameters: Vec<String> =
                run.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
            [
                run.id.to_string(),
                words::minute(run.begun_ms),
                cut(&words::short(&run.experiment, &run.mode), 21),
                cut(&run.engine, 10),
                cut(&run.machine.kernel, 14),
                format!("{value} {figure}").trim_end().to_owned(),
                cut(&parameters.join(" "), rest),
            ]
        })
        .collect();
    let head = ["ID", "BEGUN (UTC)", "EXPERIMENT", "ENGINE", "KERNEL", "VALUE", "PARAMETERS"];
    print::text(&print::table(head, &rows))
}

/// List the series.
pub fn series(args: &Series) -> Result<()> {
    let store = kept::readable(&args.place)?;
    let all = store.series()?;
    if args.json {
        return print::json(&all);
    }
    let rows: Vec<[String; 4]> = all
        .iter()
        .map(|series| {
            let runs = format!("{} of {}", series.complete, series.runs);
            [runs, words::minute(series.newest_ms), words::figure(&series.headline), series.name.clone()]
        })
        .collect();
    let head = ["COMPLETE", "NEWEST (UTC)", "FIGURE", "HOST|EXPERIMENT|ENGINE|MODE|PARAMETERS"];
    print::text(&print::table(head, &rows))
}

/// Print one run.
pub fn show(args: &Show) -> Result<()> {
    let store = kept::readable(&args.place)?;
    let run = store.run(args.id)?.with_context(|| format!("there is no run {}", args.id))?;
    if args.json {
        return print::json(&run);
    }
    let mut out = String::new();
    let value = run.value().map(|value| words::value(&run.headline, value)).unwrap_or_default();
    let state = if run.complete { value } else { "not complete".to_owned() };
    let _ = writeln!(out, "Run {}: {}, {state}", run.id, words::short(&run.experiment, &run.mode));
    if let Some(error) = &run.error {
        let _ = writeln!(out, "because: {}", print::tame(error));
    }
    let machine = &run.machine;
    let parameters: Vec<String> =
        run.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let memory = print::bytes(machine.memory_bytes);
    let version = [Some(run.version.as_str()).filter(|version| !version.is_empty()), run.revision.as_deref()];
    let version = version.into_iter().flatten().collect::<Vec<_>>().join(" ");
    for (name, text) in [
        ("begun", words::minute(run.begun_ms) + " UTC"),
        ("engine", format!("{} {version}", run.engine).trim_end().to_owned()),
        ("kernel", machine.kernel.clone()),
        ("host", format!("{}: {} processors, {memory}, load {}", machine.host, machine.cpus, machine.load)),
        (
            "file system",
            format!("{} ({}), cgroups {}", machine.filesystem, machine.mount_options, machine.cgroups),
        ),
        ("parameters", parameters.join(" ")),
        ("command", wardian_pictures::command_line(&run.command)),
        ("timeline", if run.timeline.is_some() { "yes (--json)" } else { "none" }.to_owned()),
    ] {
        let _ = writeln!(out, "{}", print::wrapped(&format!("{name}: {}", print::tame(&text))));
    }
    let rows: Vec<[String; 2]> =
        run.figures.iter().map(|(name, value)| [name.clone(), words::value(name, *value)]).collect();
    if !rows.is_empty() {
        let _ = write!(out, "\n{}", print::table(["FIGURE", "VALUE"], &rows));
    }
    print::text(&out)
}
