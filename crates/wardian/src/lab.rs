//! `wardian lab`.

mod files;
mod scale;
mod teardown;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use clap::builder::{PathBufValueParser, TypedValueParser};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use wardian_lab::leftovers::Records;
use wardian_lab::{Interrupted, bench, record};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Scale an app from one instance to many, with a health check beside each, and back to none
    Scale(scale::Args),
    /// Measure what wardian promises: containers that come and go, the calls of the Garden API, or the network
    Bench(Bench),
    /// Write into overlay mounts, unmount them all, and tell what the unmounts waited for
    Teardown(teardown::Args),
    /// Run a command and tell who wrote to the disk meanwhile, why, and who waited
    Record(Record),
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
    let program = std::env::current_exe().context("find this program")?;
    for line in Records::usual().restore() {
        crate::print::say(&crate::print::tame(&line));
    }
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    match command {
        Command::Scale(args) => args.run(&runtime, program)?,
        Command::Bench(args) => {
            let root = args.root.as_deref();
            let is_network = matches!(args.subject, Subject::Network);
            ensure!(args.crowd.is_none() || is_network, "--crowd is for: lab bench network");
            let files = args.results.check()?;
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
            // Half a table would look like a whole one; the files say that it is half.
            if measured.is_ok() {
                crate::print::text(&format!("\n{}", figures.table()))?;
            }
            let written =
                if measured.is_ok() || !figures.figures.is_empty() { files.write(&figures) } else { Ok(()) };
            measured.and(written)?;
        }
        Command::Teardown(args) => args.run(&runtime)?,
        Command::Record(args) => {
            let files = args.results.check()?;
            let report = runtime.block_on(record::command(&args.command, args.fs))?;
            // Standard output belongs to the command.
            crate::print::say(format!("\n{}", report.diagnosis.text(args.verbose)).trim_end());
            files.write(&report)?;
            if let Some(signal) = report.interrupted {
                return Err(Interrupted(signal).into());
            }
            let code = report.exit_code.and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
    }
    Ok(ExitCode::SUCCESS)
}
