//! Completion for shells: of commands and flags, and of the names of containers, processes and images.
//!
//! The script for a shell calls this program with `WARDIAN_COMPLETE` in its environment. A server or store that does not answer
//! at once gives no names: nobody waits at a prompt, and nothing is printed there but candidates.

use crate::container::client_for;
use crate::store::Place;
use crate::{context, help, print};
use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;
use wardian_garden::Client;

/// The variable with which the scripts call this program.
const VARIABLE: &str = "WARDIAN_COMPLETE";
/// How long names may take.
const PATIENCE: Duration = Duration::from_millis(300);
/// The most names that are offered.
const MOST: usize = 1000;

/// Answers a shell's script, if one has called.
pub fn answer() -> bool {
    if std::env::var_os(VARIABLE).is_none_or(|shell| shell.is_empty()) {
        return false;
    }
    let env = CompleteEnv::with_factory(help::command).var(VARIABLE).bin("wardian").completer("wardian");
    let current = std::env::current_dir().ok();
    // Whatever is wrong: a message would be in the middle of a command line.
    let _ = env.try_complete(std::env::args_os(), current.as_deref());
    true
}

/// Prints the script for a shell.
pub fn script(shell: Shell) -> Result<ExitCode> {
    print::written(&script_for(shell)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the script for a shell.
pub fn script_for(shell: Shell) -> Result<Vec<u8>> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let shell = shells.completer(&name).with_context(|| format!("no completion for {name}"))?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "wardian", "wardian", "wardian", &mut script)?;
    Ok(script)
}

/// Lets arguments that are names be completed, in a command and those below it.
pub fn with_names(command: Command) -> Command {
    named(command, "")
}

/// Whether the value of an argument is the path of a file.
fn is_path(arg: &clap::Arg) -> bool {
    use clap::ValueHint as Hint;
    arg.get_action().takes_values()
        && matches!(
            arg.get_value_hint(),
            Hint::AnyPath | Hint::FilePath | Hint::DirPath | Hint::ExecutablePath
        )
}

fn nothing(_begun: &OsStr) -> Vec<CompletionCandidate> {
    Vec::new()
}

/// `group`: the command above it.
fn named(command: Command, group: &str) -> Command {
    let of = |arg: &clap::Arg| -> Option<fn(&OsStr) -> Vec<CompletionCandidate>> {
        let is_positional = arg.is_positional();
        match arg.get_id().as_str() {
            "handle" | "handles" => Some(containers),
            "process" if is_positional => Some(processes),
            "from" | "to" if is_positional && command.get_name() == "cp" => Some(files),
            "image" if is_positional => Some(images),
            "name" | "names" if is_positional && group == "image" => Some(images),
            "name" | "names" if is_positional && group == "volume" => Some(volumes),
            // The shell completes them, and quotes names that would be commands to it.
            _ if is_path(arg) => Some(nothing),
            _ => None,
        }
    };
    // An argument that is changed becomes the last one, so all that have places are changed, in their order.
    let args = command.get_arguments().map(|arg| (arg, of(arg)));
    let changed = args.filter(|(arg, of)| arg.is_positional() || of.is_some());
    let changed: Vec<_> = changed.map(|(arg, of)| (arg.get_id().clone(), of)).collect();
    let group = command.get_name().to_owned();
    let command = changed.into_iter().fold(command, |command, (id, of)| {
        command.mut_arg(id, |arg| of.map_or(arg.clone(), |of| arg.add(ArgValueCompleter::new(of))))
    });
    let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| named(sub, &group)))
}

fn containers(begun: &OsStr) -> Vec<CompletionCandidate> {
    candidates(begun, "", handles())
}

/// Containers as `cp` names them. Without any, the shell completes files.
fn files(begun: &OsStr) -> Vec<CompletionCandidate> {
    candidates(begun, ":", handles())
}

fn handles() -> Option<Vec<String>> {
    ask(async |client| client.list(&BTreeMap::new()).await.ok())
}

/// The processes of the container that is named before.
fn processes(begun: &OsStr) -> Vec<CompletionCandidate> {
    let words = typed();
    let at = std::env::var("_CLAP_COMPLETE_INDEX").ok().and_then(|index| index.parse().ok());
    let before = at.unwrap_or(words.len().saturating_sub(1)).checked_sub(1).and_then(|at| words.get(at));
    let Some(handle) = before.and_then(|word| word.to_str()) else { return Vec::new() };
    let ids = ask(async |client| {
        let container = client.container(handle, false).await.ok()?;
        Some(container.processes.into_iter().map(|process| process.id).collect())
    });
    candidates(begun, "", ids)
}

fn volumes(begun: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(async |client| {
        Some(client.volumes().await.ok()?.into_iter().map(|volume| volume.name).collect())
    });
    candidates(begun, "", names)
}

fn images(begun: &OsStr) -> Vec<CompletionCandidate> {
    let (send, names) = mpsc::channel();
    // The store may be locked or on a disk that does not answer.
    std::thread::spawn(move || {
        let file = context::file_for(&typed());
        let place = |of| context::place(file.as_ref(), of).value.into();
        let names = Place::at(place(context::ROOT), place(context::RUN)).names();
        let _ = send.send(names.unwrap_or_default());
    });
    candidates(begun, "", names.recv_timeout(PATIENCE).ok())
}

/// The command line that is being completed, the program first.
fn typed() -> Vec<OsString> {
    std::env::args_os().skip_while(|arg| arg != "--").skip(1).collect()
}

/// Asks the server that the command line means.
fn ask<T>(work: impl AsyncFnOnce(Client) -> Option<T>) -> Option<T> {
    let client = client_for(&typed())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, work(client)).await });
    runtime.shutdown_background();
    answer.ok().flatten()
}

/// Those that begin like the word. A name with other characters could be a command to the shell.
fn candidates(begun: &OsStr, end: &str, names: Option<Vec<String>>) -> Vec<CompletionCandidate> {
    let Some(begun) = begun.to_str() else { return Vec::new() };
    let is_plain = |name: &String| {
        !name.starts_with('-') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-:/@+".contains(c))
    };
    let mut names = names.unwrap_or_default();
    names.retain(|name| name.starts_with(begun) && is_plain(name));
    names.sort_unstable();
    names.dedup();
    names.truncate(MOST);
    names.into_iter().map(|name| CompletionCandidate::new(format!("{name}{end}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_shell_would_read_are_not_offered() {
        let names = ["web", "worker", "w;reboot", "w\n", "w$(x)", "-w", "other"].map(str::to_owned).to_vec();
        let offered = candidates(OsStr::new("w"), ":", Some(names));
        let offered: Vec<_> =
            offered.iter().map(|one| one.get_value().to_str().unwrap().to_owned()).collect();
        assert_eq!(offered, ["web:", "worker:"]);
        assert!(candidates(OsStr::new(""), "", None).is_empty());
    }

    /// Arguments keep their places.
    #[test]
    fn nothing_else_is_changed() {
        let order = |command: &Command| -> Vec<String> {
            let places = command.get_arguments().filter(|arg| arg.is_positional());
            places.map(|arg| arg.get_id().to_string()).collect()
        };
        let (before, after) = (<crate::Cli as clap::CommandFactory>::command(), help::command());
        for sub in before.get_subcommands() {
            let same = after.find_subcommand(sub.get_name()).unwrap();
            assert_eq!(order(sub), order(same), "{}", sub.get_name());
            for below in sub.get_subcommands() {
                let same = same.find_subcommand(below.get_name()).unwrap();
                assert_eq!(order(below), order(same), "{}", below.get_name());
            }
        }
    }

    /// What names a container or an image is completed, wherever it is.
    #[test]
    fn arguments_are_completed() {
        let command = help::command();
        let has = |words: &[&str], id: &str| {
            let found = words.iter().fold(&command, |at, word| at.find_subcommand(word).unwrap());
            let arg = found.get_arguments().find(|arg| arg.get_id() == id);
            arg.unwrap_or_else(|| panic!("{words:?} {id}")).get::<ArgValueCompleter>().is_some()
        };
        for (words, id) in [
            (&["exec"][..], "handle"),
            (&["rm"], "handles"),
            (&["attach"], "process"),
            (&["cp"], "from"),
            (&["run"], "image"),
            (&["image", "rm"], "names"),
            (&["image", "inspect"], "name"),
            (&["volume", "rm"], "names"),
            (&["events"], "handle"),
            (&["export"], "output"),
            (&["rootfs", "create"], "image"),
        ] {
            assert!(has(words, id), "{words:?} {id}");
        }
    }
}
