//! `wardian doctor`: what this host can do, and what was left behind on it.

use crate::print;
use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use wardian_lab::doctor::hazards::Severity;
use wardian_lab::{doctor, leaks};

/// Exit code when something was left behind.
const LEAKS: u8 = 3;
/// Exit code when containers cannot run here.
const ERRORS: u8 = 4;
/// Exit code when there are warnings and they are to count.
const WARNINGS: u8 = 5;

const AFTER: &str = "\
Exit codes:
  0  containers run here; there may be warnings
  1  this could not be found out
  2  the command line is wrong
  3  with --leaks: something was left behind
  4  containers cannot run here: there is an error among the hazards
  5  with --strict: there is a warning among them";

/// What to look at.
#[derive(Debug, ClapArgs)]
#[command(after_help = AFTER)]
pub struct Args {
    /// List what belongs to no live container: keepers, mounts, cgroups, directories, records. Exit code 3 if there is any
    #[arg(long)]
    leaks: bool,
    /// Live state of a server to look at; may be given more than once [default: /run/wardian and those of running servers]
    #[arg(long, value_name = "DIR", requires = "leaks")]
    run: Vec<PathBuf>,
    /// The store, or where one would be: its file system is looked at
    #[arg(long, value_name = "DIR", default_value = "/var/lib/wardian", conflicts_with = "leaks")]
    root: PathBuf,
    /// Do not write for a second to see how fast the disk is
    #[arg(long, conflicts_with = "leaks")]
    no_measure: bool,
    /// Exit code 5 if there is a warning
    #[arg(long, conflicts_with = "leaks")]
    strict: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print what was found.
pub fn run(args: Args) -> Result<ExitCode> {
    if args.leaks {
        return find_leaks(&args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let options = doctor::Options { root: args.root, measure: !args.no_measure };
    let report = runtime.context("start the runtime")?.block_on(doctor::run(options))?;
    if args.json {
        print::json(&report)?;
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        print::raw(&report.text(colour))?;
    }
    Ok(match report.worst() {
        Some(Severity::Error) => ExitCode::from(ERRORS),
        Some(Severity::Warning) if args.strict => ExitCode::from(WARNINGS),
        _ => ExitCode::SUCCESS,
    })
}

fn find_leaks(args: &Args) -> Result<ExitCode> {
    let leaks = leaks::find(&args.run)?;
    if args.json {
        print::json(&leaks)?;
    } else if leaks.is_empty() {
        print::text("nothing is left behind\n")?;
    } else {
        let line = |leak: &leaks::Leak| format!("{:<10} {}  ({})\n", leak.kind, leak.what, leak.why);
        print::text(&leaks.iter().map(line).collect::<String>())?;
    }
    Ok(if leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(LEAKS) })
}
