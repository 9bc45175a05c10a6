//! The command line of GrootFS, Cloud Foundry's image plugin, for the store of wardian: this program, started under
//! the name `grootfs`. docs/grootfs.md says what differs from GrootFS, and why.
//!
//! * `flags`, `usage`: the grammar, the commands with their flags, and the help;
//! * `config`: the configuration file, and the flags that win over it;
//! * `error`, `log`, `metrics`: messages, the log and the metrics as GrootFS writes them;
//! * `namespace`, `place`: the store's id mappings, and the store itself;
//! * `init`, `create`, `delete`, `report`, `clean`: the commands;
//! * `plugin`: what Guardian tells its image plugin, for the server that has taken the place of both.

mod clean;
mod config;
mod create;
mod delete;
mod error;
mod flags;
mod init;
mod log;
mod metrics;
mod namespace;
mod place;
mod plugin;
mod report;
mod usage;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use config::Config;
use error::Error;
use flags::Parsed;
use log::Log;
pub use plugin::{Plugin, has_store};

use crate::print;

/// The name under which this program is GrootFS.
pub const NAME: &str = "grootfs";
/// The exit code for an unknown command.
const NO_COMMAND: u8 = 3;

/// Whether the program was started as GrootFS.
pub fn is_meant(name: Option<&OsString>) -> bool {
    name.and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == NAME)
}

/// Runs the command line. What went wrong is said on standard output, because standard error is the log.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Result<Vec<String>, _> = args.map(OsString::into_string).collect();
    let done = args.map_err(Error::Text).and_then(|args| whole(&args));
    done.unwrap_or_else(|error| {
        say(&format!("{error}\n"));
        ExitCode::FAILURE
    })
}

fn say(text: &str) {
    // A caller who cannot be told has the exit code.
    let _ = print::text(text);
}

fn whole(args: &[String]) -> Result<ExitCode, Error> {
    let global = match flags::parse(&usage::GLOBAL, args) {
        Ok(global) => global,
        Err(wrong) => {
            say(&format!("Incorrect Usage: {wrong}\n\n{}", usage::whole()));
            return Ok(ExitCode::FAILURE);
        }
    };
    let command = global.rest.first().map(String::as_str);
    if global.bool("version") {
        say(&format!("grootfs version {}\n", usage::VERSION));
        return Ok(ExitCode::SUCCESS);
    }
    let named = match command {
        _ if global.bool("help") => None,
        Some("help" | "h") => global.rest.get(1).map(|name| (name.as_str(), true)),
        Some(name) => Some((name, false)),
        None => None,
    };
    let Some((name, only_help)) = named else {
        say(&usage::whole());
        return Ok(ExitCode::SUCCESS);
    };
    let Some(command) = usage::find(name) else {
        say(&format!("No help topic for '{name}'\n"));
        return Ok(ExitCode::from(NO_COMMAND));
    };
    if only_help {
        say(&usage::of(command, false));
        return Ok(ExitCode::SUCCESS);
    }
    let flags = match flags::parse(command.flags, &global.rest[1..]) {
        Ok(flags) => flags,
        Err(wrong) => {
            say(&format!("Incorrect Usage: {wrong}\n\n{}", usage::of(command, true)));
            return Ok(ExitCode::FAILURE);
        }
    };
    if flags.bool("help") {
        say(&usage::of(command, false));
        return Ok(ExitCode::SUCCESS);
    }
    command_of(command.name, &global, &flags)
}

fn command_of(name: &str, global: &Parsed, flags: &Parsed) -> Result<ExitCode, Error> {
    let config = Config::new(global).and_then(|config| {
        match name {
            "create" => config.with_create(flags),
            "clean" => config.with_clean(flags),
            "init-store" => config.with_init(flags),
            _ => config,
        }
        .check()
    });
    // GrootFS says what is wrong with the flags of a clean on standard error, too.
    let config = config.inspect_err(|error| {
        if name == "clean" && flags.is_set("threshold-bytes") {
            print::say(&format!("config-builder-failed: {error}"));
        }
    })?;
    let log = Log::start(&config, name)?;
    let event = if name == "init-store" { name.to_owned() } else { format!("{name}-config") };
    let shown = serde_json::to_value(&config).unwrap_or_default();
    if !matches!(name, "list" | "capacity" | "delete-store") {
        log.debug(&event, &[("currentConfig", shown)]);
    }
    if !rustix::process::geteuid().is_root() && !matches!(name, "capacity" | "init-store") {
        return Err(Error::NotRoot(place::path(&config)));
    }
    let done = match name {
        "init-store" => init::run(&config, flags, &log),
        "delete-store" => delete::store(&config),
        "create" => create::run(&config, flags, &log),
        "delete" => delete::run(&config, flags, &log),
        "stats" => report::stats(&config, flags, &log),
        "list" => report::list(&config, &log),
        "clean" => match clean::run(&config, &log) {
            // A store that does not exist has nothing to clean.
            Err(error @ Error::NoStore(_)) => {
                print::say(&error.to_string());
                say(&format!("{error}\n"));
                Ok(())
            }
            done => done,
        },
        "capacity" => report::capacity(&config),
        _ => match init::sizes(&config) {
            Err(Error::NoStore(_)) => return Ok(ExitCode::FAILURE),
            done => done,
        },
    };
    done.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        let meant = |name: &str| is_meant(Some(&OsString::from(name)));
        assert!(meant("grootfs") && meant("/usr/local/bin/grootfs"));
        assert!(!meant("wardian") && !meant("/grootfs/wardian") && !meant("") && !is_meant(None));
    }
}
