//! `wardian lab`.

mod bisect;
mod compare;
mod files;
mod history;
pub mod kept;
mod repeat;
mod scale;
mod teardown;
mod webhook;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use clap::builder::{PathBufValueParser, TypedValueParser};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;
use wardian_lab::leftovers::Records;
use wardian_lab::{Interrupted, bench, record, runs};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Scale an app from one instance to many, with a health check beside each, and back to none
    Scale(scale::Args),
    Compare(compare::Args),
    /// Measure what wardian promises: containers that come and go, the calls of the Garden API, or the network
    Bench(Bench),
    /// Write into overlay mounts, unmount them all, and tell what the unmounts waited for
    Teardown(teardown::Args),
    /// Run an experiment on several kernels, in virtual machines, and name the kernel that changed a figure
    Bisect(Box<bisect::Args>),
    /// Run a command and tell who wrote to the disk meanwhile, why, and who waited
    Record(Record),
    /// List the runs of experiments, compare them, and find the steps in their figures
    History(history::Args),
    /// Run an experiment again and again, and tell when its figures change: for a host that watches
    Run(repeat::Args),
    /// The init of the namespaces in which `compare` runs other engines
    #[command(hide = true)]
    Hold,
}

/// What to measure.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Subject {
    /// Create, run, destroy, and the memory they take
    Containers,
    /// Run and attach, output, stream-in, 250 containers at once, a restart
    Api,
    /// What a network adds to creates and destroys, egress rules, TCP through NAT, in network namespaces of its own
    Network,
}

#[derive(Debug, clap::Args)]
pub struct Bench {
    /// What to measure
    #[arg(default_value = "containers")]
    subject: Subject,
    /// Where the temporary store is made; its file system is the one under test [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Of the network: time creates beside so many containers; 0: not [default: 1000]
    #[arg(long, value_name = "N")]
    crowd: Option<usize>,
    #[command(flatten)]
    results: files::Files,
    #[command(flatten)]
    kept: kept::Args,
}

#[derive(Debug, clap::Args)]
pub struct Record {
    #[command(flatten)]
    results: files::Files,
    /// A directory on the file system of interest [default: the working directory]
    #[arg(long, value_name = "PATH")]
    fs: Option<PathBuf>,
    /// Also who wrote and who waited, the kernel's stacks and settings
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    kept: kept::Args,
    /// The command, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Parses the path of a file for the figures. It cannot be standard output, which carries a table or the output of a
/// command.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str().as_encoded_bytes() {
        b"-" => Err("a file is needed, and - is none; ./- would be a file of that name"),
        _ => Ok(path),
    })
}

/// Run an experiment and print what it found.
pub fn run(command: Command) -> Result<ExitCode> {
    if let Command::Hold = command {
        return wardian_lab::compare::init().map(|()| ExitCode::SUCCESS);
    }
    let program = std::env::current_exe().context("find this program")?;
    for line in Records::usual().restore(&program) {
        crate::print::say(&crate::print::tame(&line));
    }
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    match command {
        Command::Scale(args) => args.run(&runtime, program)?,
        Command::Compare(args) => return args.run(&runtime, program),
        Command::Hold => {}
        Command::Bench(args) => {
            let root = args.root.as_deref();
            let is_network = matches!(args.subject, Subject::Network);
            ensure!(args.crowd.is_none() || is_network, "--crowd is for: lab bench network");
            let files = args.results.check()?;
            let mut keeper = args.kept.open()?;
            let subject = match args.subject {
                Subject::Containers => "containers",
                Subject::Api => "api",
                Subject::Network => "network",
            };
            let mut run = runs::bench_begun(subject, root, SystemTime::now());
            if let Some(crowd) = args.crowd {
                run.parameters.insert("crowd".to_owned(), crowd.to_string());
            }
            let mut figures = bench::Figures::default();
            let to = &mut figures;
            let measured = runtime.block_on(async {
                match args.subject {
                    Subject::Containers => bench::containers(&program, root, to).await,
                    Subject::Api => bench::api(&program, root, to).await,
                    Subject::Network => {
                        bench::network(&program, root, args.crowd.unwrap_or(bench::CROWD), to).await
                    }
                }
            });
            figures.ended(&measured);
            keeper.keep(match &measured {
                Ok(()) => runs::of_bench(run, &figures),
                Err(error) => runs::broken(run, error),
            });
            // Half a table would look like a whole one; the files say that it is half.
            if measured.is_ok() {
                crate::print::text(&format!("\n{}", figures.table()))?;
            }
            let written =
                if measured.is_ok() || !figures.figures.is_empty() { files.write(&figures) } else { Ok(()) };
            keeper.beside(measured)?;
            written?;
            keeper.done()?;
        }
        Command::Teardown(args) => args.run(&runtime)?,
        Command::Bisect(args) => args.run(&runtime, &program)?,
        Command::Record(args) => {
            let files = args.results.check()?;
            let (mut keeper, begun) = (args.kept.open()?, SystemTime::now());
            let report = runtime.block_on(record::command(&args.command, args.fs))?;
            keeper.keep(runs::of_record(&report, begun));
            // Standard output belongs to the command.
            crate::print::say(format!("\n{}", report.diagnosis.text(args.verbose)).trim_end());
            let written = files.write(&report);
            // The exit code is the command's.
            if let Err(error) = keeper.done() {
                crate::print::failure(&error);
            }
            written?;
            if let Some(signal) = report.interrupted {
                return Err(Interrupted(signal).into());
            }
            let code = report.exit_code.and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        Command::History(args) => return history::run(args),
        Command::Run(args) => return repeat::run(args, &runtime, &program),
    }
    Ok(ExitCode::SUCCESS)
}
