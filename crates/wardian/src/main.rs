//! wardian: a container engine for many containers that live briefly.

#![forbid(unsafe_code)]

mod doctor;
mod image;
mod lab;
mod log;
mod print;
mod reset;
mod rootfs;
mod serve;
mod store;
mod systemd;
mod watch;
mod why;

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
    /// Images in the store: bring them in, list, pin, export and remove them
    Image(image::Args),
    /// Root file systems for scripts: make them from an image, attached, and throw them away
    Rootfs(rootfs::Args),
    /// The store's space: what takes it, and how to have it back
    Store(store::Args),
    /// Experiments that show what waits for the disk
    #[command(subcommand)]
    Lab(lab::Command),
    /// Explain what made a container slow to come or go, or what a process waits for
    Why(why::Args),
    /// Tell what this host can do, and what was left behind on it
    Doctor(doctor::Args),
    /// End all containers and remove everything that was made on this host
    Reset(reset::Args),
    /// Print a completion script for a shell
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Image(args) => image::run(args),
        Command::Rootfs(args) => rootfs::run(args),
        Command::Store(args) => store::run(args),
        Command::Lab(command) => lab::run(command),
        Command::Why(args) => why::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Reset(args) => reset::run(&args),
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
