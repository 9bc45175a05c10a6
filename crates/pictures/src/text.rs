//! Text in pictures and pages: escaped, shortened, and of an estimated width.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Limit of characters of a name in a `<title>` or a table.
pub(crate) const NAME_MAX: usize = 400;
/// Width of an ordinary character by the font size. Fonts differ: this is one of the widest common ones, DejaVu Sans.
const ADVANCE: f64 = 0.62;

/// Escapes text for XML and HTML, in elements and in attributes of either quote. Characters that XML 1.0 forbids, and
/// those that reorder or hide the text around them, become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if is_deceptive(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// At most this many characters, the last one an ellipsis if some are missing.
pub(crate) fn clip(text: &str, most: usize) -> Cow<'_, str> {
    if text.chars().nth(most).is_none() {
        return text.into();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short.into()
}

/// A name, escaped and bounded.
pub(crate) fn name(text: &str) -> String {
    escape(&clip(text, NAME_MAX))
}

/// Estimated width in px of text in this font size: of DejaVu Sans, whose characters are wider than those of most fonts.
/// Characters of East Asian scripts are as wide as the font is high.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let one = |c: char| match c {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' => 0.32,
        'f' | 't' | 'r' | 'I' | '(' | ')' | '[' | ']' | '-' | '/' => 0.4,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.95,
        'A'..='Z' => 0.72,
        '\u{2000}'..='\u{2bff}' => 0.85,
        c if c >= '\u{1100}' => 1.0,
        _ => ADVANCE,
    };
    text.chars().map(one).sum::<f64>() * size
}

/// Shortens text to this estimated width; empty if not even two characters fit.
pub(crate) fn fit(text: &str, size: f64, most: f64) -> Cow<'_, str> {
    if width(text, size) <= most {
        return text.into();
    }
    let (mut fits, mut used) = (0, width("…", size));
    for c in text.chars() {
        used += width(c.encode_utf8(&mut [0; 4]), size);
        if used > most {
            break;
        }
        fits += 1;
    }
    if fits < 2 { "".into() } else { clip(text, fits + 1) }
}

/// Words as a line that a POSIX shell splits into the same words.
pub fn command_line(words: &[String]) -> String {
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            line.push_str(word);
        } else {
            let _ = write!(line, "'{}'", word.replace('\'', r"'\''"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_element() {
        assert_eq!(escape("<a b='c' d=\"e\">&"), "&lt;a b=&#39;c&#39; d=&quot;e&quot;&gt;&amp;");
        assert_eq!(escape("a\u{202e}b\u{1b}[0m\u{0}c\u{ffff}"), "a\u{fffd}b\u{fffd}[0m\u{fffd}c\u{fffd}");
        assert_eq!(escape("größer\n"), "größer\n");
        assert_eq!(name(&"<".repeat(1000)).matches("&lt;").count(), NAME_MAX - 1);
    }

    #[test]
    fn text_is_shortened_to_what_fits() {
        assert_eq!(fit("mount 7", 10.0, 100.0), "mount 7");
        let short = fit("mount 7", 10.0, 30.0);
        assert!(short.starts_with("mo") && short.ends_with('…') && width(&short, 10.0) <= 30.0, "{short}");
        assert_eq!(fit("mount 7", 10.0, 12.0), "");
        assert!(width("漢字", 10.0) > width("ab", 10.0));
    }

    #[test]
    fn a_shell_reads_the_words_again() {
        let words = ["wardian", "lab", "record", "--", "sh", "-c", "echo 'a b' $HOME", ""].map(str::to_owned);
        assert_eq!(command_line(&words), r"wardian lab record -- sh -c 'echo '\''a b'\'' $HOME' ''");
    }
}
