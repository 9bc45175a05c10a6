//! The output of commands: tables, JSON, sizes and ages.
//!
//! Names, errors and paths are untrusted. So everything but the output of processes is printed here, with control
//! sequences and invisible characters escaped: see [`wardian_sys::text`].

use crate::watch;
use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr as _};
use wardian_sys::text::{clip, tame_json, tame_lines};

/// Prints lines to standard output. A reader that closes the pipe (`| head`) is no failure.
pub fn text(text: &str) -> Result<()> {
    raw(&tame_lines(text))
}

/// As [`text`], but with control sequences. Untrusted parts must be escaped already.
pub fn raw(text: &str) -> Result<()> {
    written(text.as_bytes()).map(drop)
}

/// Prints and flushes a line; false if the reader has closed the pipe.
pub fn line(line: &str) -> Result<bool> {
    written(format!("{}\n", tame_lines(line)).as_bytes())
}

/// How many bytes a writable pipe takes without blocking (pipe(7)).
const PIPE_BUF: usize = 4096;

/// Writes bytes unchanged to standard output; false if the reader has closed the pipe.
pub fn written(bytes: &[u8]) -> Result<bool> {
    let stdout = rustix::stdio::stdout();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let waits =
        bytes.len() > PIPE_BUF || poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], Some(&now)) == Ok(0);
    let _wait = waits.then(watch::heed);
    let mut out = std::io::stdout().lock();
    // Data left in the buffer at the exit would be lost silently.
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("write to standard output"),
    }
}

/// Ready when nobody can read standard output any more, because the other end of its pipe is closed. A command that waits and
/// prints nothing meanwhile would not notice.
pub async fn abandoned() {
    let stdout = rustix::stdio::stdout();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        tokio::time::sleep(LOOK).await;
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        if poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::ERR) {
            return;
        }
    }
}

/// How often the reader of standard output is looked for.
const LOOK: Duration = Duration::from_millis(250);

/// Commands that take something away, which nobody is to run by a slip of the keyboard.
const DESTROYING: [&str; 5] = ["rm", "reset", "stop", "delete", "kill"];

/// Prints the parser's message: help to standard output, an error to standard error.
pub fn parser(mut said: clap::Error) -> Result<ExitCode> {
    use clap::error::{ContextKind, ContextValue};
    if let Some(ContextValue::Strings(words)) = said.get(ContextKind::SuggestedSubcommand) {
        let words: Vec<_> =
            words.iter().filter(|word| !DESTROYING.contains(&word.as_str())).cloned().collect();
        said.remove(ContextKind::SuggestedSubcommand);
        if !words.is_empty() {
            said.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(words));
        }
    }
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

/// Whether standard output is a terminal that is to have colours (https://no-color.org).
pub fn has_colour() -> bool {
    std::io::stdout().is_terminal() && wants_colour()
}

/// Whether the user has nothing against colours where they are possible.
pub fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Breaks lines that are too long for the terminal at standard output. What goes elsewhere is left as it is.
pub fn wrapped(text: &str) -> String {
    wrap(text, width_of(rustix::stdio::stdout()))
}

/// The columns of the terminal that standard output is; `None`: it is none.
pub fn columns() -> Option<usize> {
    width_of(rustix::stdio::stdout())
}

/// The columns of a terminal; `None`: it is none, or does not say.
fn width_of(fd: BorrowedFd<'_>) -> Option<usize> {
    rustix::termios::tcgetwinsize(fd).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Narrower terminals are treated as if they had this many columns.
const NARROWEST: usize = 20;

/// Breaks lines at spaces. What follows is indented by two columns more than its line, so that each entry's begin stands
/// out. A line with columns, that is with several spaces between words, is a table's and stays whole.
fn wrap(text: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return text.to_owned() };
    let columns = columns.max(NARROWEST);
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        let words = line.trim_start_matches(' ');
        let indent = line.len() - words.len();
        if shown_width(line) <= columns || words.contains("  ") {
            out.push_str(line);
        } else {
            let hanging = (indent + 2).min(columns / 2);
            let mut at = indent;
            out.push_str(&line[..indent]);
            for (index, word) in words.split(' ').enumerate() {
                let width = shown_width(word);
                if index > 0 && at + 1 + width > columns {
                    out.push('\n');
                    out.push_str(&" ".repeat(hanging));
                    at = hanging;
                } else if index > 0 {
                    out.push(' ');
                    at += 1;
                }
                out.push_str(word);
                at += width;
            }
        }
        out.push_str(end);
    }
    out
}

/// Breaks a text into lines of at most `columns`.
pub fn folded(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last().map_or(0, |line| line.width());
        if last > 0 && last + 1 + word.width() > columns {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// The columns that a text takes, its colours left out.
fn shown_width(text: &str) -> usize {
    let mut width = 0;
    for (index, part) in text.split("\x1b[").enumerate() {
        let shown = if index == 0 { part } else { part.split_once('m').map_or("", |(_, shown)| shown) };
        width += shown.width();
    }
    width
}

/// Prints an error and its causes to standard error.
pub fn failure(error: &anyhow::Error) {
    let mut last = error.to_string();
    note(&last);
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors contain the text of their cause.
        if !last.contains(&cause) {
            say(&format!("  because: {}", clip(&cause, MESSAGE)));
        }
        last = cause;
    }
}

/// Prints a note to standard error.
pub fn note(text: &str) {
    say(&format!("wardian: {}", clip(text, MESSAGE)));
}

/// The maximum size of a message in bytes, because untrusted parts may be long.
const MESSAGE: usize = 16 << 10;

/// Prints a line to standard error. A failed write is ignored: see [`wardian_sys::stderr`].
pub fn say(text: &str) {
    let _wait = (!wardian_sys::stderr::is_free()).then(watch::heed);
    wardian_sys::stderr::line(&wrap(&tame_lines(text), width_of(rustix::stdio::stderr())));
}

/// Prints indented JSON to standard output.
pub fn json(value: &impl Serialize) -> Result<()> {
    text(&tame_json(&(serde_json::to_string_pretty(value)? + "\n")))
}

/// Prints and flushes JSON on one line; false if the reader has closed the pipe.
pub fn json_line(value: &impl Serialize) -> Result<bool> {
    line(&tame_json(&serde_json::to_string(value)?))
}

/// The maximum size of a cell in bytes: handles and names of images are shorter.
const CELL: usize = 1024;

/// Formats a table, with columns as wide as their widest cell on a terminal.
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
            // Formatters pad by characters, some of which take two columns or none.
            let _ = write!(line, "{cell}{:1$}  ", "", width - cell.width());
        }
        table += line.trim_end();
        table.push('\n');
    }
    table
}

/// Formats a size in decimal units.
pub fn bytes(n: u64) -> String {
    wardian_lab::report::bytes(n)
}

/// Formats the time since `ms`, in milliseconds since 1970: `2 minutes ago`.
pub fn age(ms: u64) -> String {
    duration(ms) + " ago"
}

/// Formats the time since `ms`, in milliseconds since 1970: `2 minutes`.
pub fn duration(ms: u64) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    let seconds = then.elapsed().unwrap_or_default().as_secs();
    let (n, unit) = match seconds {
        s if s < 120 => (s, "second"),
        s if s < 2 * 3600 => (s / 60, "minute"),
        s if s < 2 * 86400 => (s / 3600, "hour"),
        s => (s / 86400, "day"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

/// Formats a point in time, as `2026-11-24T12:47:13.250Z`.
pub fn clock(then: SystemTime) -> String {
    // Absurd times from a server are clamped to those that can be formatted.
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(then.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

/// Returns the first 12 characters of an id.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Cuts text to at most `most` columns of a terminal; what is cut ends in an ellipsis.
pub fn ellipsis(text: &str, most: usize) -> String {
    let text = tame(text);
    if text.width() <= most {
        return text;
    }
    let mut cut = String::new();
    for c in text.chars() {
        if cut.width() + UnicodeWidthChar::width(c).unwrap_or_default() >= most {
            break;
        }
        cut.push(c);
    }
    cut + "…"
}

/// `1 layer`, `2 layers`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Escapes untrusted text: one line, without control sequences.
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
    fn long_lines_are_broken_with_hanging_indents() {
        let wrapped = |text: &str| wrap(text, Some(20));
        assert_eq!(wrapped("short\n"), "short\n");
        assert_eq!(wrapped("! one two three four five six\nx"), "! one two three four\n  five six\nx");
        assert_eq!(wrapped("  → one two three four five"), "  → one two three\n    four five");
        // Colours take no columns, wide characters two, and what has no space is not torn.
        assert_eq!(wrapped("\x1b[33m!\x1b[0m one two three four"), "\x1b[33m!\x1b[0m one two three four");
        assert_eq!(wrapped("漢字漢字漢字 漢字漢字漢字"), "漢字漢字漢字\n  漢字漢字漢字");
        assert_eq!(wrapped("x /a/path/that/is/longer/than/all"), "x\n  /a/path/that/is/longer/than/all");
        let table = "NAME          IMAGE          STATUS";
        assert_eq!((wrapped(table), wrap("a b c", None)), (table.to_owned(), "a b c".to_owned()));
        for text in ["a b c d e f g h i j k l m n o p q r s t u v", "  ! 漢字 漢字 漢字 漢字 漢字 漢字 漢字"]
        {
            assert!(wrapped(text).lines().all(|line| line.width() <= 20), "{:?}", wrapped(text));
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
