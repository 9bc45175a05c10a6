//! What commands print: tables, JSON, sizes and ages.

use anyhow::{Context as _, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

/// To standard output. A reader that has seen enough (`| head`) is no failure.
pub fn text(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

/// A line that is wanted at once. `false`: the reader has seen enough.
pub fn line(line: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).context("write to standard output"),
    }
}

/// Why something went wrong, to standard error.
pub fn failure(error: &anyhow::Error) {
    let mut last = error.to_string();
    eprintln!("wardian: {}", tame_lines(&last));
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors have told their cause already.
        if !last.contains(&cause) {
            eprintln!("  because: {}", tame_lines(&cause));
        }
        last = cause;
    }
}

/// The same, as indented JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    text(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Columns as wide as their widest cell.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut table = String::new();
    for row in std::iter::once(&head.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
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
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// The same for text that may have several lines.
fn tame_lines(text: &str) -> String {
    text.lines().map(tame).collect::<Vec<_>>().join("\n")
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
    fn what_others_wrote_is_tamed() {
        assert_eq!(tame("a\x1b[2J\nä"), "a\\u{1b}[2J\\nä");
        assert_eq!((short("0123456789abcdef"), short("ab")), ("0123456789ab", "ab"));
        assert_eq!((count(1, "layer"), count(0, "layer")), ("1 layer".into(), "0 layers".into()));
    }
}
