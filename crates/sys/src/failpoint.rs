//! Failpoints: named places at which a test ends the process as `kill -9` would, or delays a thread as a slow disk
//! would.
//!
//! `WARDIAN_FAILPOINT=name` ends the process when it reaches the point for the first time, `name:3` for the third
//! time; with `=wait` after it, the thread waits there for a minute instead. A server passes the variable to the
//! keepers that it starts; each process counts for itself. Where the variable is not set a point costs one load.
//!
//! Each crate declares the points that it reaches with [`failpoints!`](crate::failpoints). Only the program knows all
//! of them, and has the variable checked.

use rustix::process::{Signal, getpid, kill_process};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The environment variable.
pub const VARIABLE: &str = "WARDIAN_FAILPOINT";

/// How long a thread waits at a point with `=wait`.
const WAIT: Duration = Duration::from_secs(60);

/// Declares the failpoints of a crate, each with its name and what is true at its place: an enum `Point` for
/// [`reach`](crate::failpoint::reach), and the list `NAMES` for [`check`](crate::failpoint::check).
#[macro_export]
macro_rules! failpoints {
    ($($point:ident $name:literal $place:literal;)*) => {
        /// A failpoint of this crate.
        #[derive(Debug, Clone, Copy)]
        pub enum Point {
            $(#[doc = $place] $point,)*
        }

        /// The names of all failpoints of this crate, in the order of [`Point`].
        pub const NAMES: &[&str] = &[$($name,)*];

        impl From<Point> for &'static str {
            fn from(point: Point) -> Self {
                NAMES[point as usize]
            }
        }
    };
}

/// The variable's value names no failpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE}={value}: no failpoint of this name; expected NAME or NAME:TIMES, =wait after it to wait there"
)]
pub struct Unknown {
    value: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    name: &'a str,
    /// The how many-th time counts.
    times: u64,
    wait: bool,
}

fn parse(value: &str) -> Option<Asked<'_>> {
    let (point, wait) = value.strip_suffix("=wait").map_or((value, false), |point| (point, true));
    let (name, times) = point.split_once(':').unwrap_or((point, "1"));
    let times = times.parse().ok().filter(|times| *times > 0)?;
    Some(Asked { name, times, wait })
}

fn check_value(value: &str, known: &[&[&str]]) -> Result<(), Unknown> {
    let is_known = |asked: Asked<'_>| known.iter().any(|names| names.contains(&asked.name));
    if parse(value).is_some_and(is_known) { Ok(()) } else { Err(Unknown { value: value.to_owned() }) }
}

/// Checks the variable against the lists of points that there are.
///
/// # Errors
/// The name of no failpoint: a test with a typing error would wait for ever.
pub fn check(known: &[&[&str]]) -> Result<(), Unknown> {
    std::env::var(VARIABLE).map_or(Ok(()), |value| check_value(&value, known))
}

/// The variable as an environment entry for a keeper, if it is set.
pub fn inherited() -> Option<String> {
    std::env::var(VARIABLE).ok().map(|value| format!("{VARIABLE}={value}"))
}

#[derive(Debug)]
struct Wanted {
    name: String,
    /// How many more times the point is reached, up to and including the one that counts.
    left: AtomicU64,
    wait: bool,
}

fn wanted() -> Option<Wanted> {
    let value = std::env::var(VARIABLE).ok()?;
    let asked = parse(&value)?;
    Some(Wanted { name: asked.name.to_owned(), left: AtomicU64::new(asked.times), wait: asked.wait })
}

/// Ends the process, or delays the thread, here if the variable asks for it.
pub fn reach(point: impl Into<&'static str>) {
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    let Some(wanted) = WANTED.get_or_init(wanted) else { return };
    if wanted.name != point.into() || wanted.left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    if wanted.wait {
        std::thread::sleep(WAIT);
    } else {
        // SIGKILL cannot be caught, so this does not return.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::failpoints! {
        Begun "it.begun" "Nothing is done.";
        Done "it.done" "All is.";
    }

    #[test]
    fn values() {
        let asked = |name, times, wait| Some(Asked { name, times, wait });
        assert_eq!(parse("it.done"), asked("it.done", 1, false));
        assert_eq!(parse("it.done:7"), asked("it.done", 7, false));
        assert_eq!(parse("it.done=wait"), asked("it.done", 1, true));
        assert_eq!(parse("it.done:2=wait"), asked("it.done", 2, true));
        for bad in ["it.done:", "it.done:0", "it.done:x", ":1=", ":0"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_known_names_are_accepted() {
        assert_eq!(NAMES, [<&str>::from(Point::Begun), Point::Done.into()]);
        let known = [&["other"][..], NAMES];
        for good in ["it.begun", "it.done:3", "it.done=wait", "other"] {
            assert_eq!(check_value(good, &known), Ok(()), "{good:?}");
        }
        for bad in
            ["", "it", "it.doned", "it.done=", "it.done=waits", "it.done=wait:2", "it.done:0", ":1", "=wait"]
        {
            assert!(check_value(bad, &known).is_err(), "{bad:?}");
        }
    }
}
