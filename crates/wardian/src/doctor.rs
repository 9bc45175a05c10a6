//! `wardian doctor`: what this host can do, and what was left behind on it.

mod clean;

use crate::{context, print};
use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use ipnet::Ipv4Net;
use std::path::PathBuf;
use std::process::ExitCode;
use wardian_lab::doctor::hazards::Severity;
use wardian_lab::{doctor, leaks};

/// Exit code when something was left behind.
const LEAKS: u8 = 3;
/// Exit code when containers cannot run here.
const ERRORS: u8 = 4;
/// Exit code with --strict if there are warnings.
const WARNINGS: u8 = 5;

const AFTER: &str = "\
Exit codes:
  0  containers run here; there may be warnings
  1  this could not be found out
  2  the command line is wrong
  3  with --leaks: something was left behind; with --clean: something still is
  4  containers cannot run here: there is an error among the hazards
  5  with --strict: there is a warning among them";

/// What to look at.
#[derive(Debug, ClapArgs)]
#[command(after_help = AFTER)]
pub struct Args {
    /// List what belongs to no live container: keepers, mounts, cgroups, directories, records. Exit code 3 if there is any
    #[arg(long)]
    leaks: bool,
    /// Remove what was left behind and belongs to nobody: instances without a server and without records, directories and
    /// settings of experiments that were killed. Asks before
    #[arg(long, conflicts_with_all = ["leaks", "json"])]
    clean: bool,
    /// With --clean: do not ask
    #[arg(long, requires = "clean")]
    yes: bool,
    /// Everything that was looked at; with --leaks: all that an instance has left, one by one
    #[arg(long, conflicts_with = "clean")]
    verbose: bool,
    /// Live state of a server to look at, beside that in /run/wardian, of running servers, and what is found on a tmpfs; may be
    /// given more than once
    #[arg(long, value_name = "DIR", env = "WARDIAN_RUN")]
    run: Vec<PathBuf>,
    /// The store, or where one would be: its file system is looked at [default: $WARDIAN_ROOT, or /var/lib/wardian]
    // The variable is not read by clap: it must not conflict with other flags, as --root does.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["leaks", "clean"])]
    root: Option<PathBuf>,
    /// The pool of subnets for containers: networks of the host that have addresses of it are told
    #[arg(long, value_name = "CIDR", env = "WARDIAN_NETWORK_POOL", default_value = "10.254.0.0/22")]
    network_pool: Ipv4Net,
    /// Do not write for a second to see how fast the disk is
    #[arg(long, conflicts_with_all = ["leaks", "clean"])]
    no_measure: bool,
    /// Exit code 5 if there is a warning
    #[arg(long, conflicts_with_all = ["leaks", "clean"])]
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
    if args.clean {
        return clean::run(&args.run, args.yes);
    }
    let root = args.root.unwrap_or_else(|| context::place(context::file(), context::ROOT).value.into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let options =
        doctor::Options { root, runs: args.run, pool: args.network_pool, measure: !args.no_measure };
    let report = runtime.context("start the runtime")?.block_on(doctor::run(options))?;
    if args.json {
        print::json(&report)?;
    } else {
        print::raw(&print::wrapped(&report.text(args.verbose, print::has_colour())))?;
    }
    Ok(match report.worst() {
        Some(Severity::Error) => ExitCode::from(ERRORS),
        Some(Severity::Warning) if args.strict => ExitCode::from(WARNINGS),
        _ => ExitCode::SUCCESS,
    })
}

fn find_leaks(args: &Args) -> Result<ExitCode> {
    let found = leaks::survey(&args.run)?;
    if args.json {
        print::json(&found.leaks)?;
    } else if found.leaks.is_empty() {
        print::text("nothing is left behind\n")?;
    } else {
        print::text(&clean::text(&found, args.verbose))?;
    }
    Ok(if found.leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(LEAKS) })
}
