//! Two runs, or groups of runs, side by side.

use super::select::Select;
use super::words;
use crate::lab::kept::{self, Place};
use crate::print;
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use wardian_history::{Run, Store, median, ratio};

/// An interval whose ends differ by a larger factor tells nothing.
const WIDEST: f64 = 2.0;

/// What is compared.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Two numbers of runs; or values of --by, the first of which the others are compared with [default: all values]
    #[arg(value_name = "ID|VALUE")]
    things: Vec<String>,
    /// What the groups differ in
    #[arg(long, value_enum, default_value_t = By::Kernel)]
    by: By,
    /// The figure [default: that which stands for the run, as in the list]
    #[arg(long, value_name = "NAME")]
    figure: Option<String>,
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// The kernel's release
    Kernel,
    /// The engine's version
    Version,
    /// The git revision of wardian
    Revision,
    /// The engine
    Engine,
    /// The mode
    Mode,
    /// The host
    Host,
}

impl By {
    fn of(self, run: &Run) -> String {
        match self {
            Self::Kernel => run.machine.kernel.clone(),
            Self::Version => run.version.clone(),
            Self::Revision => run.revision.clone().unwrap_or_default(),
            Self::Engine => run.engine.clone(),
            Self::Mode => run.mode.clone(),
            Self::Host => run.machine.host.clone(),
        }
    }

    /// What the runs of all groups have in common, as far as a reader wants to know.
    fn common(self, run: &Run) -> String {
        let mode = if self == Self::Mode { "" } else { &run.mode };
        let engine = if self == Self::Engine { String::new() } else { format!(" by {}", run.engine) };
        words::short(&run.experiment, mode) + &engine
    }

    /// What the runs of all groups must have in common.
    fn rest(self, run: &Run) -> String {
        let mut alike = run.clone();
        match self {
            Self::Kernel | Self::Version | Self::Revision => {}
            Self::Engine => alike.engine.clear(),
            Self::Mode => alike.mode.clear(),
            Self::Host => alike.machine.host.clear(),
        }
        alike.series()
    }
}

/// Compare them.
pub fn run(args: &Args) -> Result<()> {
    let store = kept::readable(&args.place)?;
    let ids: Option<Vec<i64>> = args.things.iter().map(|thing| thing.parse().ok()).collect();
    match ids {
        Some(ids) if !ids.is_empty() => {
            ensure!(ids.len() == 2, "give two numbers of runs, not {}", ids.len());
            two(&store, ids[0], ids[1])
        }
        _ => groups(&store, args),
    }
}

/// All figures of two runs. A ratio of single runs has no confidence, and is none.
fn two(store: &Store, before: i64, after: i64) -> Result<()> {
    let run = |id| store.run(id)?.with_context(|| format!("there is no run {id}"));
    let (before, after) = (run(before)?, run(after)?);
    let mut out = String::new();
    if before.series() != after.series() {
        let _ = writeln!(
            out,
            "They are of different series:\n  {}\n  {}",
            print::tame(&before.series()),
            print::tame(&after.series())
        );
    }
    let _ = writeln!(out, "Two single runs: what differs may be chance. Groups have ratios: --by kernel\n");
    let [old, new] = [&before, &after].map(|run| {
        let note = if run.complete { "" } else { " (failed)" };
        format!("RUN {}{note}", run.id)
    });
    let names: std::collections::BTreeSet<&String> =
        before.figures.keys().chain(after.figures.keys()).collect();
    let cell = |run: &Run, name: &String| {
        run.figures.get(name).map_or_else(|| "-".to_owned(), |value| words::value(name, *value))
    };
    let rows: Vec<[String; 3]> =
        names.into_iter().map(|name| [name.clone(), cell(&before, name), cell(&after, name)]).collect();
    out += &print::table(["FIGURE", &old, &new], &rows);
    print::text(&out)
}

/// A group: the time of its first run, and the values.
type Group = (i64, Vec<f64>);

fn groups(store: &Store, args: &Args) -> Result<()> {
    let runs = args.select.runs(store, true, None)?;
    // What is comparable, in it the groups.
    let mut all: BTreeMap<String, (Run, BTreeMap<String, Group>)> = BTreeMap::new();
    for run in runs {
        let (rest, group) = (args.by.rest(&run), args.by.of(&run));
        let name = args.figure.as_ref().unwrap_or(&run.headline);
        let Some(value) = run.figures.get(name).copied().filter(|value| *value > 0.0) else { continue };
        let begun = run.begun_ms;
        let (_, groups) = all.entry(rest).or_insert_with(|| (run, BTreeMap::new()));
        groups.entry(group).or_insert_with(|| (begun, Vec::new())).1.push(value);
    }
    let (mut out, mut compared, mut refused) = (String::new(), 0, Vec::new());
    for (example, groups) in all.values() {
        let mut names: Vec<&String> = groups.keys().collect();
        names.sort_by_key(|name| groups[*name].0);
        if !args.things.is_empty() {
            names = args
                .things
                .iter()
                .filter_map(|thing| groups.get_key_value(thing))
                .map(|(name, _)| name)
                .collect();
        }
        let [first, others @ ..] = &names[..] else { continue };
        let name = args.figure.as_ref().unwrap_or(&example.headline);
        let what = args.by.common(example);
        for other in others {
            let (before, after) = (&groups[*first].1, &groups[*other].1);
            let title = print::tame(&format!("{what}, {name}: {} against {}", shown(other), shown(first)));
            match ratio(before, after, 1) {
                Ok(found) if found.high / found.low > WIDEST => {
                    let (low, high) = (found.low, found.high);
                    refused
                        .push(format!("{title}: they scatter too much for a ratio ({low:.2} to {high:.2})"));
                }
                Ok(found) => {
                    compared += 1;
                    let verdict =
                        if found.low <= 1.0 && found.high >= 1.0 { "no difference" } else { "differs" };
                    let [old, new] = [before, after].map(|values| {
                        format!(
                            "{} in {}",
                            words::value(name, median(values)),
                            print::count(values.len(), "run")
                        )
                    });
                    let (value, low, high) = (found.value, found.low, found.high);
                    let line = format!(
                        "{title}: {verdict}, {value:.2} × ({low:.2}–{high:.2}); {new} against {old}\n"
                    );
                    out += &print::wrapped(&line);
                }
                Err(few) => refused.push(format!("{title}: {few}")),
            }
        }
    }
    for line in &refused {
        let _ = write!(out, "{}", print::wrapped(&format!("{line}\n")));
    }
    print::text(&out)?;
    if compared == 0 {
        let by = args.by.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        match refused.len() {
            0 => bail!("there are no complete runs that differ in their {by} alone"),
            _ => bail!("nothing could be compared: run the experiment more often on both sides"),
        }
    }
    Ok(())
}

fn shown(name: &str) -> &str {
    if name.is_empty() { "none" } else { name }
}
