//! The grammar of the command line: that of Go's `flag` package and of urfave/cli on top of it, which GrootFS uses.
//! Flags come before positional arguments, `-x` is `--x`, and only `--x=v` gives a boolean flag a value. None of the
//! usual parsers reads that.

use std::collections::HashMap;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, or `=true` and the like.
    Bool,
    /// Any text.
    Text,
    /// A number of 64 bits with a sign.
    Number,
    /// A text; the flag may be repeated, and a comma separates texts too.
    List,
}

/// A flag of a command.
#[derive(Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its help.
    pub help: &'static str,
}

/// Why a command line cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is no such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// Something that begins as a flag is none.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// The flag's value is missing.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// The flag's value is no number.
    #[error("invalid value {value:?} for flag -{name}: {why}")]
    Number {
        /// The flag.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A boolean flag's value is none.
    #[error("invalid boolean value {value:?} for -{name}: parse error")]
    Bool {
        /// The flag.
        name: String,
        /// Its value.
        value: String,
    },
}

/// A parsed command line.
#[derive(Debug, Default)]
pub struct Parsed {
    values: HashMap<&'static str, Vec<String>>,
    /// The positional arguments.
    pub rest: Vec<String>,
}

impl Parsed {
    /// Whether the flag was given, even with the value `false`.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The last value of the flag; `None` if it was not given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.last().map(String::as_str)
    }

    /// The number that the flag has; `None` if it was not given.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(|text| number(text).ok())
    }

    /// Whether the flag is true.
    pub fn bool(&self, name: &str) -> bool {
        self.text(name).and_then(boolean).unwrap_or(false)
    }

    /// All values of the flag.
    pub fn list(&self, name: &str) -> Vec<String> {
        let values = self.values.get(name).into_iter().flatten();
        values.flat_map(|value| value.split(',')).map(|value| value.trim().to_owned()).collect()
    }
}

/// Parses the arguments up to the first positional one; that and all after it are positional.
///
/// # Errors
/// As [`Wrong`] says.
pub fn parse(flags: &'static [Flag], args: &[String]) -> Result<Parsed, Wrong> {
    let mut parsed = Parsed::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        // A lone dash is a positional argument.
        let Some(flag) = arg.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            parsed.rest.push(arg.clone());
            break;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() {
            break;
        }
        if flag.starts_with(['-', '=']) {
            return Err(Wrong::Syntax(arg.clone()));
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let known = flags.iter().find(|flag| flag.name == name || short(flag.name) == Some(name));
        let Some(Flag { name, kind, .. }) = known else { return Err(Wrong::Unknown(name.to_owned())) };
        let value = match (kind, value) {
            (_, Some(value)) => value,
            (Kind::Bool, None) => "true".to_owned(),
            (_, None) => args.next().cloned().ok_or_else(|| Wrong::NoValue((*name).to_owned()))?,
        };
        check(name, *kind, &value)?;
        parsed.values.entry(name).or_default().push(value);
    }
    parsed.rest.extend(args.cloned());
    Ok(parsed)
}

/// The flags that have a short name too.
fn short(name: &str) -> Option<&'static str> {
    match name {
        "help" => Some("h"),
        "version" => Some("v"),
        _ => None,
    }
}

fn check(name: &str, kind: Kind, value: &str) -> Result<(), Wrong> {
    let (name, value) = (name.to_owned(), value.to_owned());
    match kind {
        Kind::Bool if boolean(&value).is_none() => Err(Wrong::Bool { name, value }),
        Kind::Number => match number(&value) {
            Ok(_) => Ok(()),
            Err(why) => Err(Wrong::Number { name, value, why }),
        },
        _ => Ok(()),
    }
}

/// Go's strconv.ParseBool.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's strconv.ParseInt with base 0: the prefixes `0x`, `0o`, `0b` and `0` tell the base, and underscores may stand
/// between digits.
fn number(text: &str) -> Result<i64, &'static str> {
    const PARSE: &str = "parse error";
    let (minus, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    let digits: String = match (base, digits.contains('_')) {
        (10, true) => return Err(PARSE),
        _ => digits.chars().filter(|digit| *digit != '_').collect(),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return Err(PARSE);
    }
    let magnitude = i128::from_str_radix(&digits, base).unwrap_or(i128::MAX);
    let value = if minus { magnitude.saturating_neg() } else { magnitude };
    i64::try_from(value).map_err(|_| "value out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    static FLAGS: [Flag; 5] = [
        Flag { name: "store", kind: Kind::Text, help: "" },
        Flag { name: "bytes", kind: Kind::Number, help: "" },
        Flag { name: "with-clean", kind: Kind::Bool, help: "" },
        Flag { name: "mapping", kind: Kind::List, help: "" },
        Flag { name: "help", kind: Kind::Bool, help: "" },
    ];

    fn given(line: &str) -> Result<Parsed, Wrong> {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(&FLAGS, &args)
    }

    #[test]
    fn flags_come_before_positional_arguments() {
        let parsed = given("-store /s --bytes=0x10 --with-clean image --store /t -- id").unwrap();
        assert_eq!((parsed.text("store"), parsed.number("bytes")), (Some("/s"), Some(16)));
        assert!(parsed.bool("with-clean") && parsed.is_set("with-clean") && !parsed.is_set("mapping"));
        assert_eq!(parsed.rest, ["image", "--store", "/t", "--", "id"]);
        let parsed = given("--with-clean=false -h -- -x").unwrap();
        assert!(!parsed.bool("with-clean") && parsed.is_set("with-clean") && parsed.bool("help"));
        assert_eq!(parsed.rest, ["-x"]);
        // A value may look like a flag, and a lone dash is no flag.
        let parsed = given("--store --bytes - --with-clean").unwrap();
        assert_eq!((parsed.text("store"), parsed.rest.len()), (Some("--bytes"), 2));
        let parsed = given("--mapping 0:1:1,1:2:3 --mapping 4:5:6").unwrap();
        assert_eq!(parsed.list("mapping"), ["0:1:1", "1:2:3", "4:5:6"]);
    }

    #[test]
    fn what_is_refused() {
        for (line, says) in [
            ("--bogus", "flag provided but not defined: -bogus"),
            ("-bogus=1", "flag provided but not defined: -bogus"),
            ("---store x", "bad flag syntax: ---store"),
            ("--=x", "bad flag syntax: --=x"),
            ("--store", "flag needs an argument: -store"),
            ("--bytes abc", r#"invalid value "abc" for flag -bytes: parse error"#),
            ("--bytes=", r#"invalid value "" for flag -bytes: parse error"#),
            (
                "--bytes 9223372036854775808",
                r#"invalid value "9223372036854775808" for flag -bytes: value out of range"#,
            ),
            ("--with-clean=yes", r#"invalid boolean value "yes" for -with-clean: parse error"#),
        ] {
            assert_eq!(given(line).unwrap_err().to_string(), says, "{line}");
        }
    }

    #[test]
    fn numbers_are_go_literals() {
        for (text, value) in [
            ("0", 0),
            ("-1", -1),
            ("+7", 7),
            ("017", 15),
            ("0o17", 15),
            ("0b11", 3),
            ("0x_f_f", 255),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(number(text), Ok(value), "{text}");
        }
        for text in ["", "-", "0x", "1e3", "1_000", "08", " 1", "9223372036854775808", "٣"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
