//! The settings file, which ranks below flags and environment, for every command alike.
//!
//! Its keys are named as the flags of `wardian serve`. A flag of another command has the file's value if it is the same
//! setting, that is if it has the same name and the same variable. Besides there is `socket`, the server that commands
//! speak to.

use anyhow::{Context as _, Result, anyhow};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use wardian_sys::directory;

/// The default path of the settings file.
pub const PATH: &str = "/etc/wardian/wardian.toml";
/// The variable with the path of the settings file; empty: none is read.
const VARIABLE: &str = "WARDIAN_CONFIG";
/// The maximum size of a settings file in bytes.
const MOST: u64 = 1 << 20;
/// Variable, key and default of the store, for [`place`].
pub const ROOT: [&str; 3] = ["WARDIAN_ROOT", "root", crate::store::ROOT];
/// Those of the run directory.
pub const RUN: [&str; 3] = ["WARDIAN_RUN", "run", crate::store::RUN];
/// The key that no flag of `serve` has.
const SOCKET: &str = "socket";
/// Commands that depend on no setting: they also work beside a damaged file.
const WITHOUT: [&str; 2] = ["completion", "package-files"];

/// A setting of the file.
#[derive(Debug, Clone)]
struct Setting {
    key: String,
    line: usize,
    /// One word, or several if it is a list.
    words: Vec<String>,
    is_list: bool,
}

/// What is known of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was read.
    Read,
    /// There is none at the default place.
    Missing,
    /// It is at the default place, and this user may not read it.
    Unreadable,
    /// The user wants none.
    Off,
}

/// The settings file.
#[derive(Debug, Clone)]
pub struct File {
    pub path: PathBuf,
    pub status: Status,
    settings: Vec<Setting>,
}

/// The file of this process.
static FILE: OnceLock<File> = OnceLock::new();
/// Where the parser has the value of --socket from.
static SOCKET_FROM: OnceLock<ValueSource> = OnceLock::new();

/// A value and where it is from: a variable, `FILE:LINE`, or `default`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Sourced {
    pub value: String,
    pub source: String,
}

/// Returns the file of this process; `None` before it is read.
pub fn file() -> Option<&'static File> {
    FILE.get()
}

/// Returns the file of a command line that is not complete yet; `None` if it cannot be read.
pub fn file_for(words: &[OsString]) -> Option<File> {
    File::read(word_of(words, "--config").or_else(|| std::env::var_os(VARIABLE)).as_deref()).ok()
}

/// Returns the value of a flag in a command line that is not complete yet.
pub fn word_of(words: &[OsString], flag: &str) -> Option<OsString> {
    let words: Vec<_> = words.iter().take_while(|word| *word != "--").collect();
    let joined =
        |word: &OsString| Some(OsString::from(word.to_str()?.strip_prefix(flag)?.strip_prefix('=')?));
    let at = words.iter().position(|word| *word == flag || joined(word).is_some())?;
    joined(words[at]).or_else(|| words.get(at + 1).map(|word| (*word).clone()))
}

/// Parses a command line (the program first), with the values of the settings file as defaults.
///
/// # Errors
/// [`clap::Error`] for the command line, and for help; others for the file, with its path and line.
pub fn parse(wardian: &Command, args: &[OsString]) -> Result<ArgMatches> {
    let (matches, file) = parse_with(wardian, args, named(wardian, args).as_deref())?;
    let mut deepest = &matches;
    while let Some((_, below)) = deepest.subcommand() {
        deepest = below;
    }
    if let Ok(true) = deepest.try_contains_id(SOCKET) {
        let _ = SOCKET_FROM.set(deepest.value_source(SOCKET).unwrap_or(ValueSource::DefaultValue));
    }
    if let Some(file) = file {
        let _ = FILE.set(file);
    }
    Ok(matches)
}

/// Returns where the address of the server is from.
pub fn source_of_socket() -> String {
    match SOCKET_FROM.get() {
        Some(ValueSource::CommandLine) => "--socket".to_owned(),
        Some(ValueSource::EnvVariable) => "WARDIAN_SOCKET".to_owned(),
        _ => address(file(), own).source,
    }
}

/// Returns the path that a flag or the environment names.
fn named(wardian: &Command, args: &[OsString]) -> Option<OsString> {
    let is_flag = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"--config");
    // Only a parse can tell the flag from an argument of a container's command.
    let flag = || {
        let matches = wardian.clone().try_get_matches_from(args).ok()?;
        matches.get_one::<PathBuf>("config").map(|path| path.clone().into_os_string())
    };
    let flag = if args.iter().any(is_flag) { flag() } else { None };
    flag.or_else(|| std::env::var_os(VARIABLE))
}

fn parse_with(
    wardian: &Command,
    args: &[OsString],
    named: Option<&OsStr>,
) -> Result<(ArgMatches, Option<File>)> {
    let plain = || wardian.clone().try_get_matches_from(args);
    let file = match File::read(named).and_then(|file| file.known_by(wardian)) {
        Ok(file) => file,
        // The command line's own mistakes, and help, come first.
        Err(damaged) => {
            let matches = plain()?;
            return match matches.subcommand_name() {
                Some(name) if WITHOUT.contains(&name) => Ok((matches, None)),
                _ => Err(damaged),
            };
        }
    };
    let with = |settings: &[Setting]| file.fill(wardian, settings).try_get_matches_from(args);
    let failed = match with(&file.settings) {
        Ok(matches) => return Ok((matches, Some(file))),
        Err(failed) => failed,
    };
    // Help shows the file's values; what is refused without them is the command line's mistake.
    if !failed.use_stderr() {
        return Err(failed.into());
    }
    plain()?;
    for setting in &file.settings {
        if let Err(refused) = with(std::slice::from_ref(setting)) {
            let text = refused.to_string();
            let text = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            return Err(anyhow!("{}: {text}", file.place(setting)));
        }
    }
    Err(failed.into())
}

impl File {
    /// Reads the file. The settings name, among others, the keeper that root runs and the server that commands speak
    /// to, so no other user may be able to write it.
    fn read(named: Option<&OsStr>) -> Result<Self> {
        let path = PathBuf::from(named.unwrap_or(PATH.as_ref()));
        let empty = |status| Ok(Self { path: path.clone(), status, settings: Vec::new() });
        if path.as_os_str().is_empty() {
            return empty(Status::Off);
        }
        let text = match directory::read(&path, MOST) {
            Err(error) if named.is_none() && error.is_missing() => return empty(Status::Missing),
            // A user whom the administrator does not show the settings has the defaults.
            Err(directory::Error::System { source, .. })
                if named.is_none() && source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                return empty(Status::Unreadable);
            }
            text => text.with_context(|| format!("read the settings in {}", path.display()))?,
        };
        Self::of(path, &text)
    }

    /// Parses the text of a file.
    fn of(path: PathBuf, text: &[u8]) -> Result<Self> {
        let at = |line: usize, what: &str| anyhow!("{}:{line}: {what}", path.display());
        let line = |text: &[u8], offset: usize| {
            1 + text[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
        };
        let utf8 = std::str::from_utf8(text)
            .map_err(|error| at(line(text, error.valid_up_to()), "this is not UTF-8 text"))?;
        let table = toml::de::DeTable::parse(utf8).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            at(line(text, offset), &format!("this is not TOML: {}", error.message().replace('\n', ": ")))
        })?;
        let mut settings = Vec::new();
        for (key, value) in table.get_ref() {
            let line = line(text, key.span().start);
            let (words, is_list) =
                words(value.get_ref()).ok_or_else(|| at(line, &format!("{}: {TEXT}", key.get_ref())))?;
            settings.push(Setting { key: key.get_ref().to_string(), line, words, is_list });
        }
        settings.sort_by_key(|setting| setting.line);
        Ok(Self { path, status: Status::Read, settings })
    }

    fn place(&self, setting: &Setting) -> String {
        format!("{}:{}: {}", self.path.display(), setting.line, setting.key)
    }

    /// Checks that every key is a setting, and that lists are where lists may be.
    fn known_by(self, wardian: &Command) -> Result<Self> {
        for setting in &self.settings {
            let is_list = match serve(wardian, &setting.key) {
                Some(arg) => matches!(arg.get_action(), clap::ArgAction::Append),
                None if setting.key == SOCKET => false,
                None => {
                    let (path, line, key) = (self.path.display(), setting.line, &setting.key);
                    return Err(anyhow!(
                        "{path}:{line}: unknown key {key}: keys are named as the flags in `wardian serve --help`"
                    ));
                }
            };
            anyhow::ensure!(is_list || !setting.is_list, "{}: {TEXT}", self.place(setting));
        }
        Ok(self)
    }

    /// Returns the commands with these settings as the defaults of their flags.
    fn fill(&self, wardian: &Command, settings: &[Setting]) -> Command {
        if settings.is_empty() {
            return wardian.clone();
        }
        let variable = |key: &str| Some(serve(wardian, key)?.get_env()?.to_owned());
        let variables: Vec<_> = settings.iter().map(|setting| variable(&setting.key)).collect();
        let socket = address(Some(&Self { settings: settings.to_vec(), ..self.clone() }), own).value;
        filled(wardian.clone(), &|arg| {
            if arg.get_id() == SOCKET {
                return Some(vec![socket.clone()]);
            }
            let found = settings.iter().zip(&variables).find(|(setting, variable)| {
                arg.get_long() == Some(&setting.key) && arg.get_env() == variable.as_deref()
            });
            found.map(|(setting, _)| setting.words.clone())
        })
    }

    fn get(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key == key)
    }

    fn sourced(&self, setting: &Setting, value: String) -> Sourced {
        Sourced { value, source: format!("{}:{}", self.path.display(), setting.line) }
    }
}

/// A value that is neither one word nor a list of words.
const TEXT: &str = "it must be a text, a number, true or false, or an array of them where a flag may be given more than once";

/// Returns the flag of `serve` with this name. The file does not name the file.
fn serve<'a>(wardian: &'a Command, key: &str) -> Option<&'a clap::Arg> {
    let serve = wardian.find_subcommand("serve")?;
    serve.get_arguments().find(|arg| arg.get_long() == Some(key) && key != "config")
}

fn filled(command: Command, value: &dyn Fn(&clap::Arg) -> Option<Vec<String>>) -> Command {
    let found: Vec<_> =
        command.get_arguments().filter_map(|arg| Some((arg.get_id().clone(), value(arg)?))).collect();
    let mut command = command;
    for (id, words) in found {
        command = command.mut_arg(id, |arg| arg.default_values(words));
    }
    let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| filled(sub, value)))
}

/// Converts a value of the file to words of a command line; whether it is a list.
fn words(value: &toml::de::DeValue<'_>) -> Option<(Vec<String>, bool)> {
    use toml::de::DeValue;
    let word = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    };
    match value {
        DeValue::Array(values) => {
            Some((values.iter().map(|value| word(value.get_ref())).collect::<Option<_>>()?, true))
        }
        value => Some((vec![word(value)?], false)),
    }
}

/// Returns a variable of this process's environment, if it is not empty.
pub fn own(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Returns the address of the server that commands speak to, if neither --socket nor WARDIAN_SOCKET names one.
pub fn address(file: Option<&File>, variable: impl Fn(&str) -> Option<OsString>) -> Sourced {
    let in_run = |run: &Path| {
        let run = std::path::absolute(run).unwrap_or_else(|_| run.to_owned());
        format!("unix:{}", run.join("garden.sock").display())
    };
    if let Some(run) = variable("WARDIAN_RUN") {
        return Sourced { value: in_run(Path::new(&run)), source: "WARDIAN_RUN".to_owned() };
    }
    let found = file.and_then(|file| {
        let first = |key, fits: &dyn Fn(&str) -> bool| {
            let setting = file.get(key)?;
            Some((setting, setting.words.iter().find(|word| fits(word))?.clone()))
        };
        // On a TCP address the server would want certificates, which this file does not name.
        let found = first(SOCKET, &|_| true)
            .or_else(|| first("listen", &|word| word.starts_with("unix:")))
            .or_else(|| first("run", &|_| true).map(|(setting, run)| (setting, in_run(Path::new(&run)))));
        found.map(|(setting, value)| file.sourced(setting, value))
    });
    found.unwrap_or_else(|| Sourced {
        value: in_run(Path::new(crate::store::RUN)),
        source: "default".to_owned(),
    })
}

/// Returns the directory that the variable, or the key of the file, names; else the default one.
pub fn place(file: Option<&File>, [name, key, usual]: [&str; 3]) -> Sourced {
    if let Some(dir) = own(name) {
        return Sourced { value: dir.to_string_lossy().into_owned(), source: name.to_owned() };
    }
    let found = file.and_then(|file| {
        let setting = file.get(key)?;
        Some(file.sourced(setting, setting.words.first()?.clone()))
    });
    found.unwrap_or_else(|| Sourced { value: usual.to_owned(), source: "default".to_owned() })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use clap::CommandFactory as _;

    /// Parses a command line with the text of a file.
    pub fn parse(text: &str, args: &[OsString]) -> Result<ArgMatches> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wardian.toml");
        std::fs::write(&path, text).unwrap();
        parse_with(&crate::Cli::command(), args, Some(path.as_os_str())).map(|(matches, _)| matches)
    }

    fn said(text: &str, line: &str) -> String {
        let args: Vec<_> = line.split(' ').map(OsString::from).collect();
        format!("{:#}", parse(text, &args).unwrap_err())
    }

    fn file(text: &str) -> File {
        File::of("/f.toml".into(), text.as_bytes()).unwrap()
    }

    #[test]
    fn one_setting_is_every_commands() {
        let text =
            "root = \"/a\"\nrun = \"/b\"\nmax-layer-bytes = 7\n\ninsecure-registry = [\"h:1\", \"h:2\"]\n";
        for line in ["serve", "reset --yes", "image ls", "store usage", "rootfs list"] {
            let args: Vec<_> = ["wardian"].into_iter().chain(line.split(' ')).map(OsString::from).collect();
            let matches = parse(text, &args).unwrap();
            let (_, matches) = matches.subcommand().unwrap();
            for (name, value) in [("root", "/a"), ("run", "/b")] {
                assert_eq!(matches.get_one::<PathBuf>(name).unwrap(), Path::new(value), "{line}");
            }
            if line.starts_with("image") || line == "serve" {
                assert_eq!(matches.get_one::<u64>("max_layer_bytes"), Some(&7), "{line}");
                let hosts: Vec<_> = matches.get_many::<String>("insecure_registry").unwrap().collect();
                assert_eq!(hosts, ["h:1", "h:2"], "{line}");
            }
        }
        let line = ["wardian", "image", "ls", "--root", "/c"].map(OsString::from);
        let matches = parse(text, &line).unwrap();
        let root = matches.subcommand().unwrap().1.get_one::<PathBuf>("root").unwrap();
        assert_eq!(root, Path::new("/c"));
    }

    #[test]
    fn the_environment_beats_the_file() {
        // PATH is set everywhere; clap takes the flag's value from it.
        let path = std::env::var("PATH").unwrap();
        let env = |command: Command| command.mut_arg("root", |arg| arg.env("PATH"));
        let wardian = crate::Cli::command().mut_subcommand("serve", env);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "root = \"/a\"").unwrap();
        let args = ["wardian", "serve"].map(OsString::from);
        let (matches, _) = parse_with(&wardian, &args, Some(file.as_os_str())).unwrap();
        let root = matches.subcommand().unwrap().1.get_one::<PathBuf>("root").unwrap();
        assert_eq!(root, Path::new(&path));
    }

    #[test]
    fn what_is_damaged_is_named_with_its_line() {
        for (text, line, why) in [
            ("\nroot = ", "wardian ps", ":2: this is not TOML"),
            ("# a\n\nrot = 1", "wardian ps", ":3: unknown key rot: keys are named as"),
            ("config = \"/a\"", "wardian ps", ":1: unknown key config"),
            ("socket_mode = 1", "wardian serve", ":1: unknown key socket_mode"),
            ("\nmax-containers = \"x\"", "wardian serve", ":2: max-containers: invalid value 'x'"),
            ("root = [\"/a\", \"/b\"]", "wardian ps", ":1: root: it must be a text"),
            ("root = { a = 1 }", "wardian ps", ":1: root: it must be a text"),
            ("run = \"/a\"\nsocket = \"x\"", "wardian ps", ":2: socket: invalid value 'x'"),
        ] {
            let said = said(text, line);
            assert!(said.contains(why) && said.contains("wardian.toml:"), "{text}: {said}");
        }
        // What the command has nothing to do with does not hold it up, nor does the file hold up help and mistakes.
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(parse("max-containers = \"x\"", &args("wardian ps")).is_ok());
        assert!(parse("root = ", &args("wardian completion bash")).is_ok());
        for (line, kind) in [
            ("wardian ps --help", clap::error::ErrorKind::DisplayHelp),
            ("wardian ps --nonsense", clap::error::ErrorKind::UnknownArgument),
        ] {
            let error = parse("root = ", &args(line)).unwrap_err();
            assert_eq!(error.downcast::<clap::Error>().unwrap().kind(), kind, "{line}");
        }
    }

    #[test]
    fn which_server() {
        let none = |_: &str| None;
        for (text, value, line) in [
            ("", "unix:/run/wardian/garden.sock", None),
            ("run = \"/b\"", "unix:/b/garden.sock", Some(1)),
            ("run = \"/b\"\nlisten = [\"tcp:h:1\", \"unix:/c\"]", "unix:/c", Some(2)),
            ("listen = [\"tcp:h:1\"]", "unix:/run/wardian/garden.sock", None),
            ("run = \"/b\"\nlisten = \"unix:/c\"\nsocket = \"tcp:h:1\"", "tcp:h:1", Some(3)),
        ] {
            let source = line.map_or("default".to_owned(), |line| format!("/f.toml:{line}"));
            let expected = Sourced { value: value.to_owned(), source };
            assert_eq!(address(Some(&file(text)), none), expected, "{text}");
        }
        let run = |name: &str| (name == "WARDIAN_RUN").then(|| OsString::from("/r"));
        let found = address(Some(&file("socket = \"/s\"")), run);
        assert_eq!((found.value.as_str(), found.source.as_str()), ("unix:/r/garden.sock", "WARDIAN_RUN"));
    }

    #[test]
    fn which_file() {
        let wardian = crate::Cli::command();
        let named = |line: &str| named(&wardian, &line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["wardian --config /a ps", "wardian ps --config=/a", "wardian image ls --config /a"] {
            assert_eq!(named(line).as_deref(), Some(OsStr::new("/a")), "{line}");
        }
        assert_eq!(named("wardian run busybox ls --config /a"), std::env::var_os(VARIABLE));
        let missing = File::read(Some(OsStr::new("/nowhere/f"))).unwrap_err();
        assert!(format!("{missing:#}").contains("/nowhere/f"), "{missing:#}");
        assert_eq!(File::read(Some(OsStr::new(""))).unwrap().status, Status::Off);
    }
}
