//! Escapes text from untrusted sources for a terminal or a log.
//!
//! A name may hold characters that a terminal obeys (controls), that reorder the text after them (bidirectional
//! formatting, U+202A to U+202E and U+2066 to U+2069), that end a line, or that are invisible. All of them are
//! written as escapes, in this one place.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Whether a character is visible and has no other effect: no control, format, private or unassigned character, no
/// line separator, no white space but a blank, and none that is displayed as nothing (`Default_Ignorable_Code_Point`
/// of Unicode).
pub fn is_plain(c: char) -> bool {
    if c.is_ascii() {
        return c == ' ' || c.is_ascii_graphic();
    }
    // After a letter, the standard library escapes exactly what is not printable, and does not escape combining
    // marks.
    let mut letters = [0; 5];
    letters[0] = b'a';
    let end = 1 + c.encode_utf8(&mut letters[1..]).len();
    let shown = std::str::from_utf8(&letters[..end]).is_ok_and(|text| text.escape_debug().nth(1) == Some(c));
    shown && !is_invisible(c)
}

/// Letters and marks that Unicode displays as nothing; no class of their own contains them
/// (`DerivedCoreProperties.txt`, without those that are format characters anyway).
fn is_invisible(c: char) -> bool {
    matches!(u32::from(c),
        0x034F | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x2800 | 0x3164 | 0xFE00..=0xFE0F
        | 0xFFA0 | 0xE0000..=0xE0FFF)
}

/// Returns the text on one line, with escapes (`\n`, `\u{202e}`) for everything that is not [plain](is_plain).
pub fn tame(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut tamed = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => tamed.push_str("\\n"),
            '\t' => tamed.push_str("\\t"),
            '\r' => tamed.push_str("\\r"),
            c if is_plain(c) => tamed.push(c),
            c => tamed.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(tamed)
}

/// Like [`tame`], for text of several lines: line ends and tabs stay.
pub fn tame_lines(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| matches!(c, '\n' | '\t') || is_plain(c)) {
        return Cow::Borrowed(text);
    }
    let mut tamed = String::with_capacity(text.len() + 16);
    for part in text.split_inclusive(['\n', '\t']) {
        let body = part.trim_end_matches(['\n', '\t']);
        tamed.push_str(&tame(body));
        tamed.push_str(&part[body.len()..]);
    }
    Cow::Owned(tamed)
}

/// Returns equivalent JSON with `\uXXXX` for everything that is not [plain](is_plain). In JSON such characters can
/// only be inside strings, except for the white space between tokens, which stays.
pub fn tame_json(json: &str) -> Cow<'_, str> {
    if json.chars().all(|c| c == '\n' || is_plain(c)) {
        return Cow::Borrowed(json);
    }
    let mut tamed = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if matches!(c, '\n' | '\t' | '\r') || is_plain(c) {
            tamed.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(tamed, "\\u{unit:04x}");
            }
        }
    }
    Cow::Owned(tamed)
}

/// An error with its causes, in one line. A cause that the error's own text repeats is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

/// The last character boundary at or before this byte.
pub fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The first `limit` bytes of a text at most; if it is longer, its length is added.
pub fn clip(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}… ({} bytes)", &text[..boundary(text, limit)], text.len()))
}

/// A buffer that keeps at most `limit` bytes of what is written to it, so that a long value is not built only to be
/// cut.
#[derive(Debug)]
pub struct Clipped {
    text: String,
    limit: usize,
    length: usize,
}

impl Clipped {
    /// An empty buffer.
    pub fn new(limit: usize) -> Self {
        Self { text: String::new(), limit, length: 0 }
    }

    /// The text, cut as by [`clip`].
    pub fn finish(self) -> String {
        if self.length > self.text.len() {
            format!("{}… ({} bytes)", self.text, self.length)
        } else {
            self.text
        }
    }
}

impl fmt::Write for Clipped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Text after a cut is dropped, however short it is.
        if self.length == self.text.len() {
            let room = self.limit - self.text.len();
            self.text.push_str(&text[..boundary(text, room)]);
        }
        self.length += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_or_nobody_sees_is_not_plain() {
        for plain in ['a', ' ', '~', 'ä', 'ß', '漢', '\u{301}', 'ा', '😀', '…', '№'] {
            assert!(is_plain(plain), "{plain:?}");
        }
        for c in [
            '\0',
            '\n',
            '\t',
            '\x1b',
            '\x7f',
            '\u{85}',
            '\u{9b}',
            '\u{a0}',
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{206f}',
            '\u{2800}',
            '\u{3000}',
            '\u{3164}',
            '\u{feff}',
            '\u{fe0f}',
            '\u{fff9}',
            '\u{378}',
            '\u{e000}',
            '\u{ffff}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{e0100}',
            '\u{f0000}',
            '\u{10ffff}',
        ] {
            assert!(!is_plain(c), "{c:?}");
        }
    }

    #[test]
    fn text_of_others_is_tamed() {
        assert_eq!(tame("a\x1b[2J\nä\tb\r\u{202e}"), "a\\u{1b}[2J\\nä\\tb\\r\\u{202e}");
        assert!(matches!(tame("plain \\ \"text\""), Cow::Borrowed(_)));
        assert_eq!(tame_lines("a\tb\n\n\x07c\r\n\u{2029}"), "a\tb\n\n\\u{7}c\\r\n\\u{2029}");
        assert!(matches!(tame_lines("a\nb\n"), Cow::Borrowed(_)));
        assert_eq!(
            tame_json("{\n  \"a\u{202e}\": \"\u{e0041}ä\x7f\"\n}"),
            "{\n  \"a\\u202e\": \"\\udb40\\udc41ä\\u007f\"\n}"
        );
    }

    #[test]
    fn a_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Outer(&'static str, #[source] std::io::Error);
        let inner = || std::io::Error::other("no room");
        assert_eq!(chain(&Outer("cannot write", inner())), "cannot write: no room");
        assert_eq!(chain(&Outer("cannot write: no room", inner())), "cannot write: no room");
    }

    #[test]
    fn long_text_is_cut_at_a_letter() {
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("aäb", 2), "a… (4 bytes)");
        let mut clipped = Clipped::new(4);
        ["abc", "äö", "x"].iter().for_each(|part| clipped.write_str(part).unwrap());
        assert_eq!(clipped.finish(), "abc… (8 bytes)");
        let mut whole = Clipped::new(4);
        whole.write_str("abcd").unwrap();
        assert_eq!(whole.finish(), "abcd");
    }
}
