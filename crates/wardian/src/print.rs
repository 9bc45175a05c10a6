//! What commands print: tables, JSON, sizes and ages.
//!
//! Names, errors and paths are what others made of them. So everything but the output of processes is printed here, and
//! nothing that a terminal would obey, or that nobody could see, leaves it as it is: see [`wardian_sys::text`].

use crate::watch;
use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use unicode_width::UnicodeWidthStr as _;
use wardian_sys::text::{clip, tame_json, tame_lines};

/// Lines, to standard output. A reader that has seen enough (`| head`) is no failure.
pub fn text(text: &str) -> Result<()> {
    raw(&tame_lines(text))
}

/// The same with what a terminal is to obey. What others wrote in it must have been tamed.
pub fn raw(text: &str) -> Result<()> {
    written(text.as_bytes()).map(drop)
}

/// A line that is wanted at once. `false`: the reader has seen enough.
pub fn line(line: &str) -> Result<bool> {
    written(format!("{}\n", tame_lines(line)).as_bytes())
}

/// What a pipe that says it has room takes without waiting.
const PIPE_BUF: usize = 4096;

/// Bytes as they are, to standard output. `false`: the reader has seen enough.
pub fn written(bytes: &[u8]) -> Result<bool> {
    let stdout = rustix::stdio::stdout();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let waits =
        bytes.len() > PIPE_BUF || poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], Some(&now)) == Ok(0);
    let _wait = waits.then(watch::heed);
    let mut out = std::io::stdout().lock();
    // What is left in a buffer at the end would be lost without a word.
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("write to standard output"),
    }
}

/// What the parser of the command line says: help, to standard output, or what is wrong, to standard error.
pub fn parser(said: &clap::Error) -> Result<ExitCode> {
    match said.print() {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe && !said.use_stderr() => {
            return Err(error).context("write to standard output");
        }
        _ => {}
    }
    if !said.use_stderr() {
        written(b"")?;
    }
    Ok(ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(crate::exit::WRONG)))
}

/// Why something went wrong, to standard error.
pub fn failure(error: &anyhow::Error) {
    let mut last = error.to_string();
    note(&last);
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors have told their cause already.
        if !last.contains(&cause) {
            say(&format!("  because: {}", clip(&cause, MESSAGE)));
        }
        last = cause;
    }
}

/// What one should know, to standard error.
pub fn note(text: &str) {
    say(&format!("wardian: {}", clip(text, MESSAGE)));
}

/// Bytes of a message: what others have written in it may be long.
const MESSAGE: usize = 16 << 10;

/// A line as it is for people, to standard error. That it cannot be written ends nothing: see [`wardian_sys::stderr`].
pub fn say(text: &str) {
    let _wait = (!wardian_sys::stderr::is_free()).then(watch::heed);
    wardian_sys::stderr::line(&tame_lines(text));
}

/// Indented JSON, to standard output.
pub fn json(value: &impl Serialize) -> Result<()> {
    text(&tame_json(&(serde_json::to_string_pretty(value)? + "\n")))
}

/// JSON on a line that is wanted at once. `false`: the reader has seen enough.
pub fn json_line(value: &impl Serialize) -> Result<bool> {
    line(&tame_json(&serde_json::to_string(value)?))
}

/// Bytes of a cell: handles and names of images are shorter.
const CELL: usize = 1024;

/// Columns as wide as their widest cell is on a terminal.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned))
        .chain(rows.iter().map(|row| std::array::from_fn(|n| tame(&clip(&row[n], CELL)))))
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // A formatter pads by letters, some of which take two columns and some none.
            let _ = write!(line, "{cell}{:1$}  ", "", width - cell.width());
        }
        table += line.trim_end();
        table.push('\n');
    }
    table
}

/// Bytes, in decimal units.
pub fn bytes(n: u64) -> String {
    wardian_lab::report::bytes(n)
}

/// How long ago that was; milliseconds since 1970.
pub fn age(ms: u64) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    let seconds = then.elapsed().unwrap_or_default().as_secs();
    let (n, unit) = match seconds {
        s if s < 120 => (s, "second"),
        s if s < 2 * 3600 => (s / 60, "minute"),
        s if s < 2 * 86400 => (s / 3600, "hour"),
        s => (s / 86400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

/// A point in time, as `2026-11-24T12:47:13.250Z`.
pub fn clock(then: SystemTime) -> String {
    // What a server may say of time, and nobody can mean, is cut to what there is a name for.
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(then.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

/// The first 12 characters of an id.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// `1 layer`, `2 layers`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Text that others wrote, on one line and without what a terminal would obey.
pub fn tame(text: &str) -> String {
    wardian_sys::text::tame(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_007, "2000-02-29T00:00:00.007Z"),
            (1_795_420_033_999, "2026-11-23T07:47:13.999Z"),
        ] {
            assert_eq!(clock(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = table(["NAME", "SIZE"], &[row("a", "1"), row("longer", "")]);
        assert_eq!(text, "NAME    SIZE\na       1\nlonger\n");
    }

    #[test]
    fn columns_are_counted_as_a_terminal_shows_them() {
        let row = |a: &str| [a.to_owned(), "|".to_owned()];
        let text = table(["N", ""], &[row("漢字"), row("e\u{301}"), row("\u{202e}\n")]);
        let column = |line: &str| line.trim_end_matches('|').width();
        let columns: Vec<usize> = text.lines().skip(1).map(column).collect();
        assert_eq!(columns, [12; 3], "{text:?}");
        assert!(text.contains("\\u{202e}\\n"), "{text:?}");
    }

    #[test]
    fn what_others_wrote_is_tamed() {
        assert_eq!(tame("a\x1b[2J\nä"), "a\\u{1b}[2J\\nä");
        assert_eq!((short("0123456789abcdef"), short("ab")), ("0123456789ab", "ab"));
        assert_eq!((count(1, "layer"), count(0, "layer")), ("1 layer".into(), "0 layers".into()));
    }
}
