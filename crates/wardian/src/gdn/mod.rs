//! Guardian's command line: started under the name `gdn`, this program takes the flags and the configuration file with
//! which a Diego cell starts its Garden server, so that the scripts of the cell need no change.
//!
//! * `table`: every flag, and what becomes of it;
//! * `flags`: the grammar of the command line and of the file;
//! * `convert`: from Guardian's flags to those of `wardian serve`.

mod convert;
mod flags;
mod table;

use crate::{context, print, reset, serve};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::FromArgMatches as _;
use convert::{Converted, Host, Note};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// The name under which this program is Guardian.
const NAME: &str = "gdn";
/// The maximum size of a configuration file in bytes. Real ones have two thousand.
const MAX_FILE: u64 = 1 << 20;

const HELP: &str = "\
Guardian's command line, for the scripts of a Diego cell

Usage: gdn [--config FILE] server [FLAG...]   Serve the Garden API
       gdn [--config FILE] cleanup [FLAG...]  End what no server would recover
       gdn setup [FLAG...]                    Nothing: `server` makes what it
                                              needs

The flags are Guardian's; FILE is its INI file. Flags that have a meaning here
become settings of `wardian serve`, those that have none are told in the log,
and those that must not be ignored are refused. Settings that Guardian does not
have come from the environment (WARDIAN_ROOT, WARDIAN_RUN, WARDIAN_SOCKET_MODE
and the others of `wardian serve --help`), or from /etc/wardian/wardian.toml.

  --print-config  With `server`: print the settings as a file for
                  `wardian serve --config`, and do nothing else
  -h, --help      Print this help

Flags of `server`; \"-\" is one without a meaning, \"!\" one that is refused:
";

/// Whether the program was started as Guardian.
pub fn is_meant(name: Option<&OsString>) -> bool {
    name.and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == NAME)
}

/// Runs the command line `args`, which is without the program's name. `wardian` is the parser of wardian's own.
pub fn run(args: impl Iterator<Item = OsString>, wardian: &clap::Command) -> Result<ExitCode> {
    let args: Result<Vec<String>, _> = args.map(OsString::into_string).collect();
    let args = args.map_err(|arg| anyhow!("gdn: {} is not UTF-8", arg.display()))?;
    let line = flags::parse(&args).map_err(|wrong| anyhow!("gdn: {wrong}"))?;
    let command = line.command.as_deref();
    if line.help {
        print::text(&help())?;
        return Ok(ExitCode::SUCCESS);
    }
    if line.print && command != Some("server") {
        bail!("gdn: --print-config is a flag of `gdn server`");
    }
    let Some(command) = command else { bail!("gdn: name a command: server, setup or cleanup") };
    let mut given = line.given;
    match (command, line.config) {
        // The server is told the same file, and heeds it.
        ("setup", _) => return setup(&convert::setup(&given)),
        ("server" | "cleanup", Some(path)) => {
            // The file names, among others, programs that root runs.
            let text = wardian_sys::directory::read(Path::new(&path), MAX_FILE)
                .with_context(|| format!("gdn: read --config {path}"))?;
            let text = String::from_utf8(text).with_context(|| format!("gdn: --config {path}"))?;
            given.below(flags::read(&text).map_err(|wrong| anyhow!("gdn: --config {path}: {wrong}"))?);
        }
        ("server" | "cleanup", None) => {}
        (other, _) => bail!("gdn: unknown command {other:?}: it is server, setup or cleanup"),
    }
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let converted = convert::server(&given, &Host { last_ids: last_ids()?, is_set: &is_set });
    for file in &converted.files {
        wardian_sys::directory::check_file(file).context("gdn: --image-plugin-extra-arg")?;
    }
    if !converted.refused.is_empty() {
        bail!("{}", refusal(&converted.refused));
    }
    if command == "cleanup" {
        return cleanup(&converted, wardian);
    }
    let words = ["wardian", "serve"].map(str::to_owned).into_iter().chain(converted.words());
    let words: Vec<OsString> = words.map(OsString::from).collect();
    let settings = serve::Args::from_arg_matches(&parsed(wardian, "serve", &words)?)?;
    if line.print {
        settings.check()?;
        print::text(&file(&converted))?;
        return Ok(ExitCode::SUCCESS);
    }
    serve::run(settings, || {
        for Note { flag, why } in &converted.ignored {
            tracing::info!(flag, why, "gdn.flag-ignored");
        }
    })
}

/// Parses a command line of wardian's own, with one command. The settings file ranks below it, as for every command.
fn parsed(wardian: &clap::Command, command: &str, words: &[OsString]) -> Result<clap::ArgMatches> {
    let matches = context::parse(wardian, words).map_err(|error| match error.downcast::<clap::Error>() {
        Ok(said) => {
            let text = said.to_string();
            let first = text.lines().next().unwrap_or_default();
            anyhow!("gdn: {}", first.trim_start_matches("error: "))
        }
        Err(error) => error.context("gdn"),
    })?;
    matches.subcommand_matches(command).cloned().context("no such command")
}

/// The highest ids that a user and a group can have here.
fn last_ids() -> Result<[u32; 2]> {
    let last = |kind| {
        let path = format!("/proc/self/{kind}_map");
        let map = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        anyhow::Ok(wardian_engine::highest_id(&map))
    };
    Ok([last("uid")?, last("gid")?])
}

fn refusal(refused: &[Note]) -> String {
    let mut text = "gdn: what these flags ask for is not here, and must not be ignored:".to_owned();
    for Note { flag, why } in refused {
        let _ = write!(text, "\n  --{}: {why}", flag.trim_end());
    }
    text
}

/// Guardian's setup makes cgroups, which the server makes itself.
fn setup(converted: &Converted) -> Result<ExitCode> {
    if !converted.refused.is_empty() {
        bail!("{}", refusal(&converted.refused));
    }
    for Note { flag, why } in &converted.ignored {
        print::note(&format!("gdn: --{flag} is ignored: {why}"));
    }
    print::note("gdn: there is nothing to set up: `gdn server` makes what it needs");
    Ok(ExitCode::SUCCESS)
}

/// Guardian's cleanup destroys what its next server would destroy. Here that is nothing, unless
/// `--destroy-containers-on-startup` is given.
fn cleanup(converted: &Converted, wardian: &clap::Command) -> Result<ExitCode> {
    let of = |name| converted.settings.iter().find(|(ours, _)| *ours == name);
    if of("destroy-containers-on-startup").is_none() {
        print::note(
            "gdn: nothing is cleaned up: the next server recovers the containers, unless it has --destroy-containers-on-startup",
        );
        return Ok(ExitCode::SUCCESS);
    }
    let root = of("root").and_then(|(_, values)| values.last()).map(|root| format!("--root={root}"));
    let words = ["wardian", "reset", "--yes"].map(str::to_owned).into_iter().chain(root);
    let words: Vec<OsString> = words.map(OsString::from).collect();
    reset::run(&reset::Args::from_arg_matches(&parsed(wardian, "reset", &words)?)?)
}

/// Returns the settings as a file.
fn file(converted: &Converted) -> String {
    let mut text = "# Settings of `wardian serve`, from those of `gdn server`.\n".to_owned();
    for (name, values) in &converted.settings {
        let value = |text: &String| match text.parse::<i64>() {
            Ok(number) if number.to_string() == *text => toml::Value::Integer(number),
            _ if text == "true" => toml::Value::Boolean(true),
            _ => toml::Value::String(text.clone()),
        };
        let is_list = table::FLAGS
            .iter()
            .any(|flag| flag.takes == table::Takes::Values && flag.fate == table::Fate::Same(name))
            || values.len() > 1
            || matches!(*name, "listen" | "layer-hosts");
        let value = match values.as_slice() {
            [single] if !is_list => value(single),
            several => toml::Value::Array(several.iter().map(value).collect()),
        };
        let _ = writeln!(text, "{name} = {value}");
    }
    for Note { flag, why } in &converted.ignored {
        let _ = writeln!(text, "# not taken: {}", print::tame(&format!("{flag}: {why}")));
    }
    text
}

fn help() -> String {
    let mut text = HELP.to_owned();
    for flag in table::FLAGS {
        let what = match flag.fate {
            table::Fate::Same(ours) | table::Fate::Becomes(ours) if !ours.is_empty() => format!("--{ours}"),
            table::Fate::Same(_) | table::Fate::Becomes(_) | table::Fate::Nothing => "-".to_owned(),
            table::Fate::Always => "always so".to_owned(),
            table::Fate::Refused => "!".to_owned(),
            table::Fate::Unless(values) => format!("! but for {}", values[0]),
        };
        let _ = writeln!(text, "  {:<39} {what}", format!("--{}", flag.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        let meant = |name: &str| is_meant(Some(&OsString::from(name)));
        assert!(meant("gdn") && meant("/var/vcap/packages/guardian/bin/gdn"));
        assert!(!meant("wardian") && !meant("/gdn/wardian") && !meant("") && !is_meant(None));
    }

    #[test]
    fn the_help_has_every_flag_and_fits_a_terminal() {
        let help = help();
        for flag in table::FLAGS {
            assert!(help.contains(&format!("--{} ", flag.name)), "{}", flag.name);
        }
        let wide: Vec<&str> = help.lines().filter(|line| line.chars().count() > 80).collect();
        assert_eq!(wide, Vec::<&str>::new());
    }
}
