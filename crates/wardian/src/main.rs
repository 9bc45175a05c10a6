//! wardian: a container engine for many containers that live briefly.

#![forbid(unsafe_code)]

mod doctor;
mod lab;
mod serve;

use clap::{CommandFactory as _, Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "wardian", version, about = "A container engine for many containers that live briefly")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the Garden API, in the foreground
    Serve(serve::Args),
    /// Experiments that show what waits for the disk
    #[command(subcommand)]
    Lab(lab::Command),
    /// Tell what this host can do, and what was left behind on it
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Lab(command) => lab::run(command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "wardian", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("wardian: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("  because: {cause}");
        }
        // As a shell tells of a process that a signal has ended.
        match error.downcast_ref::<wardian_lab::Interrupted>() {
            Some(wardian_lab::Interrupted(signal)) => {
                ExitCode::from(u8::try_from(128 + signal).unwrap_or(130))
            }
            None => ExitCode::FAILURE,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
