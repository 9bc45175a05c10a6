//! Signals by name and by number (signal(7)).

use rustix::process::Signal;

/// Names without SIG, and their numbers on x86-64 and arm64. The first of two names is the one that is printed.
const NAMES: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The first and the last real-time signal for programs: the C library keeps 32 and 33 for itself.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The text names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no signal: a name such as TERM, SIGUSR1 or RTMIN+3, or a number from 1 to 64")]
pub struct Unknown(String);

/// Returns the number of the signal that a text names: `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`, `RTMAX-1`.
///
/// # Errors
/// There is no such signal.
pub fn parse(text: &str) -> Result<i32, Unknown> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let relative = |from: &str, plus: char| -> Option<i32> {
        let rest = name.strip_prefix(from)?;
        if rest.is_empty() { Some(0) } else { digits(rest.strip_prefix(plus)?) }
    };
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = named
        .or_else(|| digits(text))
        .or_else(|| relative("RTMIN", '+').map(|above| REAL_TIME.start() + above))
        .or_else(|| relative("RTMAX", '-').map(|below| REAL_TIME.end() - below));
    let is_relative = name.starts_with("RTM");
    let is_one =
        |number: &i32| named.is_some() || (!is_relative && *number <= 31) || REAL_TIME.contains(number);
    let unknown = || Unknown(crate::text::clip(text, 40).to_string());
    number.filter(|number| *number > 0 && is_one(number)).ok_or_else(unknown)
}

/// Parses up to three digits: no sign, and no overflow.
fn digits(text: &str) -> Option<i32> {
    let is_short = (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_short.then(|| text.parse().ok()).flatten()
}

/// Returns a signal's name without SIG; of a real-time signal its number.
pub fn name(number: i32) -> String {
    let known = NAMES.iter().find(|(_, known)| *known == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// Returns the signal with this number, unless there is none that programs use.
pub fn from_number(number: i32) -> Option<Signal> {
    if REAL_TIME.contains(&number) {
        // SAFETY: it is the number of a signal (1 to 64), and the C library does not use it for itself.
        return Some(unsafe { Signal::from_raw_unchecked(number) });
    }
    Signal::from_named_raw(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("9", 9),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("RTMAX-1", 63),
            ("40", 40),
            ("IOT", 6),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
            assert_eq!(from_number(number).map(Signal::as_raw), Some(number), "{text}");
        }
        for bad in [
            "", "0", "32", "33", "65", "-9", "+9", "SIG", "SIGNOPE", "RTMIN-1", "RTMIN+31", "RTMAX-31",
            "RTMIN+", "9 ", "1000",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!((name(6).as_str(), name(9).as_str(), name(40).as_str()), ("ABRT", "KILL", "40"));
        assert!([0, 32, 33, 65, -1].into_iter().all(|number| from_number(number).is_none()));
    }

    #[test]
    fn each_name_is_of_the_signal_that_the_library_knows() {
        for (name, number) in NAMES {
            assert_eq!((parse(name), from_number(number).map(Signal::as_raw)), (Ok(number), Some(number)));
        }
    }
}
