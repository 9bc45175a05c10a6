//! The commands as they are shown: in help that fits a terminal, with options in groups.

use crate::{Cli, completion};
use clap::{Command, CommandFactory as _};
use std::io::IsTerminal as _;

/// The columns of help that goes to a file or another program.
const COLUMNS: usize = 80;
/// Longer lines are hard to read, however wide the terminal is.
const MOST_COLUMNS: usize = 100;

/// A heading, and the flags below it.
type Heading = (&'static str, &'static [&'static str]);

/// The headings of options, by the commands that have them.
const HEADINGS: [(&[&str], &[Heading]); 3] = [
    (
        &["run", "create", "exec"],
        &[
            ("Image", &["pull", "app", "app-digest"]),
            (
                "Process",
                &[
                    "entrypoint",
                    "env",
                    "env-file",
                    "workdir",
                    "user",
                    "interactive",
                    "tty",
                    "detach",
                    "keep-output",
                    "stop-signal",
                ],
            ),
            ("Limits", &["memory", "cpu-shares", "pids", "disk", "inodes", "disk-scope", "bandwidth"]),
            ("Network", &["publish", "allow", "allow-log", "network", "dns"]),
            ("Volumes", &["volume", "tmpfs"]),
        ],
    ),
    (
        &["serve"],
        &[
            (
                "Listening",
                &[
                    "listen",
                    "socket-mode",
                    "insecure-listen",
                    "tls-cert",
                    "tls-key",
                    "tls-client-ca",
                    "host-name",
                    "max-connections",
                    "read-header-timeout",
                    "transfer-patience",
                    "debug-listen",
                ],
            ),
            (
                "Containers",
                &[
                    "default-rootfs",
                    "default-grace-time",
                    "max-containers",
                    "max-concurrent-creates",
                    "max-queued-creates",
                    "disable-privileged-containers",
                    "id-ranges",
                    "default-pids-limit",
                    "no-new-privileges",
                    "shm-size",
                    "kept-output",
                    "output-files",
                    "cpu-entitlement-per-share",
                    "destroy-containers-on-startup",
                ],
            ),
            (
                "Store and images",
                &[
                    "disk-driver",
                    "ready-rootfs",
                    "gc-threshold",
                    "pull",
                    "insecure-registry",
                    "layer-hosts",
                    "layer-certificates",
                    "layer-patience",
                    "max-layer-bytes",
                    "max-image-bytes",
                    "max-image-entries",
                    "max-image-ratio",
                ],
            ),
        ],
    ),
    (&[], &[("Server", &["socket", "tls-ca", "tls-cert", "tls-key"])]),
];

/// Returns the parser of the whole command line.
pub fn command() -> Command {
    let command = completion::with_names(grouped(Cli::command())).max_term_width(MOST_COLUMNS);
    if std::io::stdout().is_terminal() { command } else { command.term_width(COLUMNS) }
}

/// Puts the options of a command and of those below it under their headings.
fn grouped(command: Command) -> Command {
    let name = command.get_name().to_owned();
    // Only clients have --socket; the TLS flags of `serve` are other ones.
    let is_client = command.get_arguments().any(|arg| arg.get_long() == Some("socket"));
    let mut found = Vec::new();
    for (commands, headings) in HEADINGS {
        if commands.contains(&name.as_str()) || (commands.is_empty() && is_client) {
            for (heading, flags) in headings {
                let is_one = |arg: &&clap::Arg| arg.get_long().is_some_and(|long| flags.contains(&long));
                let ids = command.get_arguments().filter(is_one).map(|arg| arg.get_id().clone());
                found.extend(ids.map(|id| (*heading, id)));
            }
        }
    }
    let command = found
        .into_iter()
        .fold(command, |command, (heading, id)| command.mut_arg(id, |arg| arg.help_heading(heading)));
    let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, grouped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_width::UnicodeWidthStr as _;

    /// Calls `work` with the words and the help texts of every command.
    fn each(command: &mut Command, words: &str, work: &mut dyn FnMut(&str, &str)) {
        let words = format!("{words}{} ", command.get_name());
        for help in [command.render_help(), command.render_long_help()] {
            work(words.trim_end(), &help.to_string());
        }
        for sub in command.get_subcommands_mut() {
            each(sub, &words, work);
        }
    }

    fn all(work: &mut dyn FnMut(&str, &str)) {
        let mut command = command().term_width(COLUMNS);
        command.build();
        each(&mut command, "", work);
    }

    #[test]
    fn help_fits_eighty_columns() {
        let mut wide = Vec::new();
        all(&mut |words, help| {
            let long = help.lines().filter(|line| line.width() > COLUMNS);
            wide.extend(long.map(|line| format!("{words}: {line}")));
        });
        wide.sort();
        wide.dedup();
        assert!(wide.is_empty(), "{}", wide.join("\n"));
    }

    /// Help speaks of a thing by one name: see docs/words.md.
    #[test]
    fn one_name_for_one_thing() {
        let docs = include_str!("../../../docs/words.md");
        let rows = docs.lines().filter_map(|line| line.strip_prefix("| **")?.strip_suffix(" |"));
        let mut words = Vec::new();
        for row in rows {
            let cells: Vec<&str> = row.split(" | ").collect();
            let [name, _, others] = cells[..] else { panic!("{row}") };
            let name = name.trim_end_matches("**");
            words.extend(others.split(", ").filter(|other| *other != "–").map(|other| (name, other)));
        }
        assert!(words.len() > 12, "{words:?}");
        // A command is called by its own name.
        let wardian = command();
        words.retain(|(_, other)| wardian.find_subcommand(other).is_none());
        let mut second = Vec::new();
        all(&mut |command, help| {
            let help = help.to_lowercase().replace('\n', " ");
            let has = |word: &str| {
                let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || "-_/.".contains(c));
                help.match_indices(word).any(|(at, _)| {
                    let (before, after) =
                        (help[..at].chars().next_back(), help[at + word.len()..].chars().next());
                    !is_part(before) && !is_part(after.filter(|c| *c != '.'))
                })
            };
            second.extend(
                words
                    .iter()
                    .filter(|(_, other)| has(other))
                    .map(|(name, other)| format!("{command}: {other} is called {name}")),
            );
        });
        second.dedup();
        assert!(second.is_empty(), "{}", second.join("\n"));
    }

    #[test]
    fn options_have_headings() {
        let command = command();
        for (name, headings) in [
            ("run", &["Image", "Process", "Limits", "Network", "Volumes", "Server"][..]),
            ("serve", &["Listening", "Containers", "Store and images", "Network of containers"]),
        ] {
            let command = command.find_subcommand(name).unwrap();
            for heading in headings {
                let has = |arg: &clap::Arg| arg.get_help_heading() == Some(heading);
                assert!(command.get_arguments().any(has), "{name}: {heading}");
            }
        }
        for (commands, headings) in HEADINGS {
            for flag in headings.iter().flat_map(|(_, flags)| *flags) {
                let has = |name: &&str| {
                    let found = command.find_subcommand(name).unwrap();
                    found.get_arguments().any(|arg| arg.get_long() == Some(flag))
                };
                // A heading for flags to come holds nothing up, but is not left behind either.
                assert!(commands.is_empty() || commands.iter().any(has) || *flag == "tmpfs", "{flag}");
            }
        }
    }
}
