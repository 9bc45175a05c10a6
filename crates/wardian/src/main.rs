//! wardian: a container engine for many containers that live briefly.

#![forbid(unsafe_code)]
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod completion;
mod container;
mod context;
mod doctor;
mod exit;
mod flags;
mod gdn;
mod grootfs;
mod help;
mod image;
mod info;
mod lab;
mod log;
mod monitor;
mod package;
mod print;
mod reset;
mod rootfs;
mod serve;
mod store;
mod systemd;
mod watch;
mod why;
mod words;

use clap::{FromArgMatches as _, Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "wardian", version, about = "A container engine for many containers that live briefly")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Settings, in TOML [default: /etc/wardian/wardian.toml] [env: WARDIAN_CONFIG]
    // The variable is not read by clap, which refuses an empty one: that stands for no file.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Settings")]
    #[allow(dead_code, reason = "it is read by `context` before the commands are")]
    config: Option<std::path::PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the Garden API, in the foreground
    Serve(Box<serve::Args>),
    /// Make a container and run a command in it
    Run(container::run::Args),
    /// Make a container; `exec` runs commands in it
    Create(container::create::Args),
    /// Run a command in a container
    Exec(container::exec::Args),
    /// Attach to a process that runs in a container
    Attach(container::attach::Args),
    /// List containers
    Ps(container::ps::Args),
    /// Print all that is known of containers as JSON
    Inspect(container::inspect::Args),
    /// Print what containers use
    Stats(container::stats::Args),
    /// Print the output of what was started
    Logs(container::logs::Logs),
    /// Wait for the end of what was started, and print its exit status
    Wait(container::logs::Wait),
    /// Copy files into a container, or out of one
    Cp(container::cp::Args),
    /// List the ports of the host that lead to a container
    Port(container::network::Port),
    /// Make ports of the host lead to a container
    Map(container::network::Map),
    /// Let a container reach what the server denies it
    Allow(container::network::Allow),
    /// Change how much of the disk a container may take
    Limit(container::manage::Limit),
    /// End the processes of containers, which stay
    Stop(container::manage::Stop),
    /// Freeze the processes of containers
    Pause(container::pause::Args),
    /// Let the processes of paused containers go on
    Unpause(container::pause::Args),
    /// Signal a process of containers, or end all their processes at once
    Kill(container::signal::Kill),
    /// List the processes in a container
    Top(container::top::Args),
    /// List what a container has changed in its root file system
    Diff(container::diff::Args),
    /// Write the root file system of a container as a tar
    Export(container::export::Args),
    /// Destroy containers, with everything in them
    Rm(container::manage::Rm),
    /// Print what happens to containers, as it happens
    Events(container::events::Args),
    /// Manage volumes, which keep data beyond the life of containers
    #[command(subcommand)]
    Volume(container::volume::Command),
    /// Manage images: pull, push, import, export, list, tag, remove; log in to registries
    Image(image::Args),
    /// Root file systems for scripts: make them from an image, attached, and throw them away
    Rootfs(rootfs::Args),
    /// The store's space: what takes it, and how to have it back
    Store(store::Args),
    /// Experiments that show what waits for the disk
    #[command(subcommand)]
    Lab(lab::Command),
    /// Serve a web page that shows the lab's runs over time, and containers as they live
    Monitor(monitor::Args),
    /// Print what the server is set to and has, and where this program's own settings are from
    Info(info::Args),
    /// Print the versions of this program and of the server
    Version(info::Args),
    /// Explain what made a container slow to come or go, or what a process waits for
    Why(why::Args),
    /// Tell what this host can do, and what was left behind on it
    Doctor(doctor::Args),
    /// End all containers and remove what was made on this host; images only with --images, volumes only with --volumes
    Reset(reset::Args),
    /// Print a completion script for a shell: `source <(wardian completion bash)`
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages, completions and a settings file with every setting commented
    #[command(hide = true)]
    PackageFiles(package::Args),
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next();
    if grootfs::is_meant(name.as_ref()) {
        return grootfs::run(args);
    }
    if completion::answer() {
        return ExitCode::SUCCESS;
    }
    let done = if gdn::is_meant(name.as_ref()) { gdn::run(args, &help::command()) } else { wardian() };
    done.unwrap_or_else(|error| {
        print::failure(&error);
        exit::of(&error).map_or(ExitCode::FAILURE, ExitCode::from)
    })
}

/// Runs the command line of wardian's own.
fn wardian() -> anyhow::Result<ExitCode> {
    match words::meant(std::env::args_os().collect()) {
        words::Meant::Ours(args) => match parse(&args) {
            Ok(command) => run(command),
            Err(error) => error.downcast().map_or_else(Err, |said| match flags::answer(&args, &said) {
                Some(text) => Err(exit::mistake(anyhow::anyhow!(text))),
                None => print::parser(said),
            }),
        },
        words::Meant::Answer(text) => Err(exit::mistake(anyhow::anyhow!(text))),
    }
}

fn parse(args: &[std::ffi::OsString]) -> anyhow::Result<Command> {
    let matches = context::parse(&help::command(), args)?;
    Ok(Cli::from_arg_matches(&matches)?.command)
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(*args, || {}),
        Command::Run(args) => container::run::run(args),
        Command::Create(args) => container::create::run(args),
        Command::Exec(args) => container::exec::run(args),
        Command::Attach(args) => container::attach::run(args),
        Command::Ps(args) => container::ps::run(args),
        Command::Inspect(args) => container::inspect::run(args),
        Command::Stats(args) => container::stats::run(args),
        Command::Logs(args) => container::logs::logs(&args),
        Command::Wait(args) => container::logs::wait(args),
        Command::Cp(args) => container::cp::run(args),
        Command::Port(args) => container::network::port(args),
        Command::Map(args) => container::network::map(args),
        Command::Allow(args) => container::network::allow(args),
        Command::Limit(args) => container::manage::limit(args),
        Command::Stop(args) => container::manage::stop(args),
        Command::Pause(args) => container::pause::pause(&args),
        Command::Unpause(args) => container::pause::unpause(&args),
        Command::Kill(args) => container::signal::kill(args),
        Command::Top(args) => container::top::run(args),
        Command::Diff(args) => container::diff::run(args),
        Command::Export(args) => container::export::run(args),
        Command::Rm(args) => container::manage::rm(args),
        Command::Events(args) => container::events::run(args),
        Command::Volume(command) => container::volume::run(command),
        Command::Image(args) => image::run(args),
        Command::Rootfs(args) => rootfs::run(args),
        Command::Store(args) => store::run(args),
        Command::Lab(command) => lab::run(command),
        Command::Monitor(args) => monitor::run(args),
        Command::Info(args) => info::info(&args),
        Command::Version(args) => info::version(&args),
        Command::Why(args) => why::run(&args),
        Command::Doctor(args) => doctor::run(args),
        Command::Reset(args) => reset::run(&args),
        Command::Completion { shell } => completion::script(shell),
        Command::PackageFiles(args) => package::files(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        help::command().debug_assert();
    }

    /// As fingers have learned it from docker.
    #[test]
    fn flags_come_in_any_order() {
        for typed in [
            "exec -it -w /x -u 0 -e A=1 web sh",
            "exec -u 0 -e A=1 -ti -w /x web -- sh -c true",
            "exec -w/x -itu0 web ls -l",
            "run --rm -it busybox",
            "run -it --rm busybox sh",
            "run -ti --name x -m 64M -c 512 -l a=b -l c=d --rm busybox",
            "stop -t 3 a b c",
            "stop -t3 a",
            "kill -s HUP a",
            "rm -f a b",
            "events --since 10m --until 5m -f event=oom --filter container=a",
            "stats --no-stream",
            "image load -qi x.tar",
            "image save -o x.tar a b",
            "image import - name",
        ] {
            let parsed = Cli::try_parse_from(std::iter::once("wardian").chain(typed.split(' ')));
            assert!(parsed.is_ok(), "{typed}: {}", parsed.unwrap_err());
        }
    }

    /// The flags that errors advise exist in these commands, and in their help.
    #[test]
    fn limits_are_settings_of_the_stores_commands_too() {
        let wardian = Cli::command();
        for name in ["serve", "image", "rootfs", "store"] {
            let command = wardian.find_subcommand(name).unwrap();
            for flag in [
                "max-layer-bytes",
                "max-image-bytes",
                "max-image-entries",
                "max-image-ratio",
                "layer-hosts",
                "layer-certificates",
            ] {
                let found = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
                let found = found.unwrap_or_else(|| panic!("{name} --{flag}"));
                assert!(!found.is_hide_set() && found.get_help().is_some(), "{name} --{flag}");
            }
        }
        for good in
            [["--gc-threshold", "10G"], ["--max-image-bytes", "1T"], ["--host-name", "cell-1.example.com"]]
        {
            Cli::try_parse_from([&["wardian", "serve"], &good[..]].concat()).unwrap();
        }
        for bad in
            [["--gc-threshold", "10X"], ["--host-name", "http://x"], ["--host-name", "a,*.example.com"]]
        {
            Cli::try_parse_from([&["wardian", "serve"], &bad[..]].concat()).unwrap_err();
        }
    }
}
