//! The grammar of Guardian's command line, that of Go's package go-flags: `--flag=value`, `--flag value`, switches without
//! a value, `"quoted"` values, flags before and after the command.

use super::table::{self, Flag, Takes};
use std::collections::BTreeMap;

/// Why a command line or a configuration file cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is no such flag.
    #[error("unknown flag `--{0}`: Guardian has none of this name; `gdn server --help` lists them")]
    Unknown(String),
    /// A flag with one dash, other than `-h`.
    #[error("unknown flag `{0}`: flags begin with two dashes")]
    Short(String),
    /// A switch has a value.
    #[error("--{0}: it takes no value on the command line")]
    NoValue(&'static str),
    /// A flag's value is missing.
    #[error("--{0}: its value is missing")]
    Missing(&'static str),
    /// What follows a flag is another flag.
    #[error(
        "--{0}: its value is missing, {1} follows; a value that begins with a dash is given as --{0}={1}"
    )]
    Dash(&'static str, String),
    /// A value begins with a quotation mark, and is no quoted string.
    #[error("--{0}: {1} is no quoted string")]
    Quoted(&'static str, String),
    /// A switch of the file is neither true nor false.
    #[error("--{0}: {1:?} is neither true nor false")]
    Bool(&'static str, String),
    /// A line of the file.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A second word that is no flag.
    #[error("unexpected argument {0:?}")]
    Argument(String),
}

/// The values of flags.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Given(BTreeMap<&'static str, Vec<String>>);

impl Given {
    /// Adds a value.
    pub fn add(&mut self, flag: &Flag, value: String) {
        self.0.entry(flag.name).or_default().push(value);
    }

    /// Adds the values of flags that are not given here: the command line replaces the file's, lists too.
    pub fn below(&mut self, file: Self) {
        for (name, values) in file.0 {
            self.0.entry(name).or_insert(values);
        }
    }

    /// The last value, unless it is empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.last().map(String::as_str).filter(|text| !text.is_empty())
    }

    /// All values but empty ones.
    pub fn list(&self, name: &str) -> Vec<&str> {
        let values = self.0.get(name).into_iter().flatten();
        values.map(String::as_str).filter(|text| !text.is_empty()).collect()
    }
}

/// A parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The command.
    pub command: Option<String>,
    /// `--config`.
    pub config: Option<String>,
    /// The flags.
    pub given: Given,
    /// `-h` or `--help`.
    pub help: bool,
    /// `--print-config`, wardian's own.
    pub print: bool,
}

/// Parses a command line without the program's name.
///
/// # Errors
/// As [`Wrong`] says.
pub fn parse(args: &[String]) -> Result<Line, Wrong> {
    let mut line = Line::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--") else {
            match arg.as_str() {
                "-h" => line.help = true,
                short if short.len() > 1 && short.starts_with('-') => return Err(Wrong::Short(arg.clone())),
                word if line.command.is_none() => line.command = Some(word.to_owned()),
                word => return Err(Wrong::Argument(word.to_owned())),
            }
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let mut taken = |name| match value {
            Some(value) => unquoted(name, value),
            None => match args.next() {
                None => Err(Wrong::Missing(name)),
                Some(next) if is_flag(next) => Err(Wrong::Dash(name, next.clone())),
                Some(next) => unquoted(name, next),
            },
        };
        match name {
            // Nothing but words may follow, and one word is all there is.
            "" if value.is_none() => {
                if let Some(word) = args.next() {
                    return Err(Wrong::Argument(word.clone()));
                }
            }
            "help" => line.help = true,
            "print-config" => line.print = true,
            "config" => line.config = Some(taken("config")?),
            _ => {
                let flag = table::find(name).ok_or_else(|| Wrong::Unknown(name.to_owned()))?;
                let value = match (flag.takes, value) {
                    (Takes::Nothing, Some(_)) => return Err(Wrong::NoValue(flag.name)),
                    (Takes::Nothing, None) => "true".to_owned(),
                    _ => taken(flag.name)?,
                };
                line.given.add(flag, value);
            }
        }
    }
    Ok(line)
}

/// Whether a word is a flag and not a negative number.
fn is_flag(word: &str) -> bool {
    let rest = word.strip_prefix('-');
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn unquoted(name: &'static str, value: &str) -> Result<String, Wrong> {
    unquote(value).ok_or_else(|| Wrong::Quoted(name, value.to_owned()))
}

/// Reads a file of settings, in the INI format of go-flags: sections, comments after `;` or `#`, `flag = value`.
///
/// # Errors
/// As [`Wrong`] says, with the number of the line.
pub fn read(text: &str) -> Result<Given, Wrong> {
    let mut given = Given::default();
    // Before the first section are the flags of all commands; those of `setup` and `cleanup` are not the server's.
    let mut is_server = true;
    for (number, line) in text.lines().map(str::trim).enumerate() {
        let wrong = |what: String| Wrong::Line { line: number + 1, what };
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            let name = section.strip_suffix(']').map(str::trim).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| wrong("it is no section such as [server]".to_owned()))?;
            let name = name.to_lowercase();
            is_server = match name.split('.').next().unwrap_or_default() {
                "server" | "application options" => true,
                "setup" | "cleanup" => false,
                _ => return Err(wrong(format!("there is no section [{name}]; the server's is [server]"))),
            };
            continue;
        }
        let pair = line.split_once('=');
        let (name, value) = pair.ok_or_else(|| wrong(format!("{line:?} is no line such as flag = value")))?;
        let (name, value) = (name.trim(), value.trim());
        let value = unquote(value).ok_or_else(|| wrong(format!("{value} is no quoted string")))?;
        if name == "config" {
            continue;
        }
        let flag = table::find(name).ok_or_else(|| wrong(Wrong::Unknown(name.to_owned()).to_string()))?;
        let value = match flag.takes {
            Takes::Nothing => {
                let is_on = boolean(&value)
                    .ok_or_else(|| wrong(Wrong::Bool(flag.name, value.clone()).to_string()))?;
                is_on.to_string()
            }
            _ => value,
        };
        if is_server {
            given.add(flag, value);
        }
    }
    Ok(given)
}

/// Go's strconv.ParseBool; nothing is true.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Returns the value of a string that may be in quotation marks, as Go's strconv.Unquote reads them; `None` if it begins
/// with one and is no such string.
fn unquote(text: &str) -> Option<String> {
    let Some(inner) = text.strip_prefix('"') else { return Some(text.to_owned()) };
    let mut bytes = Vec::new();
    let mut chars = inner.strip_suffix('"')?.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            '"' | '\n' => return None,
            '\\' => match chars.next()? {
                'x' => {
                    bytes.push(u8::try_from(number(&mut chars, 2, 16)?).ok()?);
                    continue;
                }
                first @ '0'..='7' => {
                    let value = 64 * first.to_digit(8)? + number(&mut chars, 2, 8)?;
                    bytes.push(u8::try_from(value).ok()?);
                    continue;
                }
                'u' => char::from_u32(number(&mut chars, 4, 16)?)?,
                'U' => char::from_u32(number(&mut chars, 8, 16)?)?,
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                same @ ('\\' | '"') => same,
                _ => return None,
            },
            c => c,
        };
        bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Takes a number of exactly so many digits.
fn number(chars: &mut std::str::Chars<'_>, digits: usize, base: u32) -> Option<u32> {
    let mut value: u32 = 0;
    for _ in 0..digits {
        value = value.checked_mul(base)?.checked_add(chars.next()?.to_digit(base)?)?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Result<Line, Wrong> {
        parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_stand_before_and_after_the_command() {
        let line = given(&[
            "--config",
            "/c.ini",
            "server",
            "--depot=/d",
            "--mtu",
            "-1",
            "--skip-setup",
            "--deny-network=1.0.0.0/8",
            "--deny-network",
            "2.0.0.0/8",
            "--image-plugin-extra-arg=\"--store\"",
            "--image-plugin-extra-arg",
            "\"/a b\"",
            "--tag=",
        ])
        .unwrap();
        assert_eq!((line.command.as_deref(), line.config.as_deref()), (Some("server"), Some("/c.ini")));
        let given = &line.given;
        assert_eq!(
            (given.text("depot"), given.text("mtu"), given.text("tag")),
            (Some("/d"), Some("-1"), None)
        );
        assert!(given.text("skip-setup") == Some("true") && given.text("allow-host-access") != Some("true"));
        assert_eq!(given.list("deny-network"), ["1.0.0.0/8", "2.0.0.0/8"]);
        assert_eq!(given.list("image-plugin-extra-arg"), ["--store", "/a b"]);
        let help = super::tests::given(&["server", "-h"]).unwrap();
        assert!(help.help && !help.print);
        assert!(super::tests::given(&["server", "--print-config", "--"]).unwrap().print);
    }

    #[test]
    fn what_is_refused() {
        for (args, says) in [
            (&["server", "--bogus"][..], "unknown flag `--bogus`"),
            (&["server", "--bogus=1"], "unknown flag `--bogus`"),
            (&["server", "-x"], "unknown flag `-x`"),
            (&["server", "--skip-setup=true"], "--skip-setup: it takes no value"),
            (&["server", "--depot"], "--depot: its value is missing"),
            (&["server", "--depot", "--mtu", "1"], "--depot: its value is missing, --mtu follows"),
            (&["server", "--depot=\"a"], "--depot: \"a is no quoted string"),
            (&["server", "more"], "unexpected argument \"more\""),
            (&["server", "--", "more"], "unexpected argument \"more\""),
            (&["server", "--="], "unknown flag `--`"),
        ] {
            let error = given(args).unwrap_err().to_string();
            assert!(error.starts_with(says), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_file() {
        let text = "; of a cell\n# too\nlog-level = debug\n[server]\n  default-grace-time = 5m\n\
            allow-host-access\t=\ndestroy-containers-on-startup = false\ndns-server = 1.1.1.1\r\n\
            dns-server=8.8.8.8\nadditional-host-entry = \"1.2.3.4 a=b\"\ndefault-rootfs =\n\
            [setup]\ntag = x\n[Server.Limits]\nmax-containers = 250\n";
        let file = read(text).unwrap();
        assert_eq!((file.text("log-level"), file.text("default-grace-time")), (Some("debug"), Some("5m")));
        assert!(
            file.text("allow-host-access") == Some("true")
                && file.text("destroy-containers-on-startup") == Some("false")
        );
        assert_eq!(file.list("dns-server"), ["1.1.1.1", "8.8.8.8"]);
        assert_eq!(file.list("additional-host-entry"), ["1.2.3.4 a=b"]);
        assert_eq!((file.text("default-rootfs"), file.text("tag")), (None, None));
        assert_eq!(file.text("max-containers"), Some("250"));
        // The command line replaces the file's values, also those of a list.
        let mut line = given(&["server", "--dns-server=9.9.9.9", "--log-level", "error"]).unwrap().given;
        line.below(file);
        assert_eq!((line.list("dns-server"), line.text("log-level")), (vec!["9.9.9.9"], Some("error")));
        assert_eq!(line.text("max-containers"), Some("250"));
    }

    #[test]
    fn what_is_refused_in_a_file() {
        for (text, says) in [
            ("[server\n", "line 1: it is no section"),
            ("[]\n", "line 1: it is no section"),
            ("\n[client]\n", "line 2: there is no section [client]"),
            ("[server]\nmtu\n", "line 2: \"mtu\" is no line such as"),
            ("[server]\nmtu = \"1\n", "line 2: \"1 is no quoted string"),
            ("[server]\nbogus = 1\n", "line 2: unknown flag `--bogus`"),
            ("[server]\nskip-setup = maybe\n", "line 2: --skip-setup: \"maybe\" is neither true nor false"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(says), "{text}: {error}");
        }
    }

    #[test]
    fn quoted_strings_are_those_of_go() {
        for (text, value) in [
            ("plain \\n", Some("plain \\n")),
            ("", Some("")),
            (r#""a b""#, Some("a b")),
            (r#""\x41\101\u00e9\U0001f600\t\"\\""#, Some("AA\u{e9}\u{1f600}\t\"\\")),
            (r#""a"b""#, None),
            (r#"""#, None),
            (r#""\'""#, None),
            (r#""\x4""#, None),
            (r#""\400""#, None),
            (r#""\xff""#, None),
            (r#""\ud800""#, None),
            (r#""a\""#, None),
        ] {
            assert_eq!(unquote(text).as_deref(), value, "{text}");
        }
    }
}
