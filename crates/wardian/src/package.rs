//! What a package has besides the programs: manual pages, completions, and a settings file with every setting commented.
//! All of it is made from the definitions of the commands.

use crate::{completion, help, print};
use anyhow::{Context as _, Result};
use clap::Command;
use clap::builder::ArgAction;
use clap_complete::Shell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `wardian package-files`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write them
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// What a setting without a default may look like.
const EXAMPLES: [(&str, &str); 27] = [
    ("kept-output", "\"256M\""),
    ("listen", "[\"unix:/run/wardian/garden.sock\", \"tcp:10.0.0.5:7777\"]"),
    ("default-rootfs", "\"busybox\""),
    ("tls-cert", "\"/etc/wardian/tls/server.pem\""),
    ("tls-key", "\"/etc/wardian/tls/server.key\""),
    ("tls-client-ca", "\"/etc/wardian/tls/clients.pem\""),
    ("host-name", "[\"cell-1.example.com\"]"),
    ("max-connections", "8192"),
    ("debug-listen", "\"unix:/run/wardian/debug.sock\""),
    ("gc-threshold", "\"10G\""),
    ("layer-certificates", "\"/etc/wardian/certificates\""),
    ("max-layer-bytes", "\"64G\""),
    ("max-image-bytes", "\"128G\""),
    ("max-image-entries", "8388608"),
    ("max-image-ratio", "200"),
    ("layer-hosts", "[\"blobs.example.com\", \"10.0.0.7:8080\"]"),
    ("insecure-registry", "[\"registry.example.com:5000\"]"),
    ("disk-driver", "\"project-quota\""),
    ("id-ranges", "\"100000:65536\""),
    ("cpu-entitlement-per-share", "0.1"),
    ("keeper", "\"/usr/lib/wardian/wardian-keeper\""),
    ("network-plugin", "\"/usr/lib/network-plugin\""),
    ("network-plugin-extra-arg", "[\"--verbose\"]"),
    ("cni-network", "\"containers\""),
    ("network-namespaces", "[\"/run/netns\"]"),
    ("network-pool-v6", "\"fd00::/96\""),
    ("external-ip", "\"10.0.0.5\""),
];
/// The same by the name of the value.
const KINDS: [(&str, &str); 8] = [
    ("CIDR|IP", "10.0.0.0/8"),
    ("CIDR", "10.0.0.0/8"),
    ("IP", "10.0.0.53"),
    ("LINE", "10.0.0.5 name"),
    ("BYTES", "1400"),
    ("N", "1"),
    ("DIR", "/srv"),
    ("PATH", "/srv"),
];

/// The beginning of the file.
const HEAD: &str = "\
# Settings of wardian: of the server, and of all commands as far as they have the same flags.
# A flag beats the environment, which beats this file; `wardian info` shows which one holds.
# Sizes are integers in bytes or texts (\"10G\"); times and modes are texts (\"60s\", \"0660\");
# what may be given more than once is an array. The values are the defaults, or examples of
# settings that have none. The server reads the file when it starts.

# The server that commands speak to, if it is not the one that this file describes.
#socket = \"unix:/run/wardian/garden.sock\"
";

/// Writes the files.
pub fn files(args: &Args) -> Result<ExitCode> {
    let mut command = help::command();
    command.build();
    let man = directory(&args.dir.join("man1"))?;
    pages(&command, &man)?;
    let completions = directory(&args.dir.join("completions"))?;
    for (shell, name) in [(Shell::Bash, "wardian"), (Shell::Zsh, "_wardian"), (Shell::Fish, "wardian.fish")] {
        write(&completions.join(name), &completion::script_for(shell)?)?;
    }
    write(&args.dir.join("wardian.toml"), settings(&command)?.as_bytes())?;
    print::text(&format!("{}\n", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn directory(path: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    Ok(path.to_owned())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// Writes the manual page of a command, and of those below it.
fn pages(command: &Command, dir: &Path) -> Result<()> {
    let page = clap_mangen::Man::new(command.clone()).manual("wardian").date("");
    let mut text = Vec::new();
    page.render(&mut text).context("make a manual page")?;
    write(&dir.join(page.get_filename()), &text)?;
    // `help` has a command for each command again.
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    shown.into_iter().try_for_each(|sub| pages(sub, dir))
}

/// Returns the settings file, with every setting commented.
fn settings(wardian: &Command) -> Result<String> {
    let serve = wardian.find_subcommand("serve").context("no such command")?;
    let mut text = HEAD.to_owned();
    // As in the help: those without a heading first, then by heading, in the order of the definitions.
    let is_setting =
        |arg: &&clap::Arg| arg.get_long().is_some_and(|long| !["config", "help"].contains(&long));
    let all: Vec<_> = serve.get_arguments().filter(is_setting).collect();
    let mut headings = vec![None];
    for heading in all.iter().map(|arg| arg.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        if let Some(heading) = heading {
            let _ = write!(text, "\n## {heading}\n");
        }
        for arg in all.iter().filter(|arg| arg.get_help_heading() == heading) {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            text.push('\n');
            for line in print::folded(&help, 98) {
                let _ = writeln!(text, "# {line}");
            }
            let long = arg.get_long().unwrap_or_default();
            let _ = writeln!(text, "#{long} = {}", value(arg, long)?);
        }
    }
    Ok(text)
}

/// Returns the default of a setting as TOML, or an example.
fn value(arg: &clap::Arg, long: &str) -> Result<String> {
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    let quoted = |word: &str| match word {
        "true" | "false" => word.to_owned(),
        word if word.parse::<i64>().is_ok() && !word.starts_with('0') || word == "0" => word.to_owned(),
        word => toml::Value::from(word).to_string(),
    };
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|word| quoted(&word.to_string_lossy())).collect();
    if !defaults.is_empty() {
        return Ok(if is_list { format!("[{}]", defaults.join(", ")) } else { defaults.concat() });
    }
    if let Some((_, example)) = EXAMPLES.iter().find(|(name, _)| *name == long) {
        return Ok((*example).to_owned());
    }
    let name = arg.get_value_names().and_then(|names| names.first()).map(clap::builder::Str::as_str);
    let kind = KINDS.iter().find(|(kind, _)| Some(*kind) == name);
    let (_, example) = kind.with_context(|| format!("there is no example for {long}"))?;
    Ok(if is_list { format!("[{}]", quoted(example)) } else { quoted(example) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    #[test]
    fn every_setting_is_in_the_file_and_may_be_used() {
        let mut wardian = help::command();
        wardian.build();
        let text = settings(&wardian).unwrap();
        let args = ["wardian", "serve"].map(OsString::from);
        crate::context::tests::parse(&text, &args).unwrap();
        let settings: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
            .collect();
        for setting in &settings {
            crate::context::tests::parse(setting, &args)
                .unwrap_or_else(|error| panic!("{setting}: {error:#}"));
        }
        let serve = wardian.find_subcommand("serve").unwrap();
        for long in serve.get_arguments().filter_map(clap::Arg::get_long) {
            let found = settings.iter().filter(|line| line.split(" = ").next() == Some(long)).count();
            assert_eq!(found, usize::from(!["config", "help"].contains(&long)), "{long}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 124), "{text}");
    }

    #[test]
    fn each_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        files(&Args { dir: dir.path().to_owned() }).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join("man1").join(name)).unwrap();
        for name in ["wardian.1", "wardian-run.1", "wardian-image-ls.1", "wardian-lab-scale.1"] {
            assert!(page(name).contains(".TH wardian"), "{name}");
        }
        assert!(page("wardian-run.1").contains("\\-\\-entrypoint"));
        let completion = std::fs::read_to_string(dir.path().join("completions/wardian")).unwrap();
        assert!(completion.contains("WARDIAN_COMPLETE=\"bash\""), "{completion}");
    }
}
