//! Writes SVG.

use crate::look::{Look, css};
use crate::text;
use sha2::{Digest as _, Sha256};
use std::fmt::{self, Write as _};

/// A coordinate, with one decimal place at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct N(pub f64);

impl fmt::Display for N {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Coordinates of hostile data stay within what every renderer can do.
        let value = if self.0.is_finite() { self.0.clamp(-1e5, 1e5) } else { 0.0 };
        let tenths = (value * 10.0).round() as i64;
        match (tenths / 10, tenths % 10) {
            (whole, 0) => write!(f, "{whole}"),
            (0, part) if tenths < 0 => write!(f, "-.{}", part.abs()),
            (0, part) => write!(f, ".{part}"),
            (whole, part) => write!(f, "{whole}.{}", part.abs()),
        }
    }
}

/// The elements of a picture, from top to bottom.
#[derive(Debug, Default)]
pub(crate) struct Canvas {
    body: String,
}

impl Canvas {
    /// Adds an element as it is: every part of it that comes from outside must be escaped.
    pub(crate) fn put(&mut self, element: fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    /// Adds text with its baseline at `y`.
    pub(crate) fn text(&mut self, x: f64, y: f64, class: &str, what: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.put(format_args!("<text x=\"{}\" y=\"{}\"{class}>{}</text>", N(x), N(y), text::name(what)));
    }

    /// Adds lines: `d` of a path.
    pub(crate) fn path(&mut self, class: &str, d: &str) {
        if !d.is_empty() {
            self.put(format_args!("<path class=\"{class}\" d=\"{d}\"/>"));
        }
    }

    /// Writes the title, if there is to be one. Returns where the rest begins.
    pub(crate) fn head(&mut self, look: &Look) -> f64 {
        let pad = look.padding();
        let Some(title) = look.title() else { return pad };
        self.text(pad, pad + 14.0, "wp-head", &text::fit(title, 15.0, look.width() - 2.0 * pad));
        pad + 28.0
    }

    /// Adds the elements of another picture.
    pub(crate) fn append(&mut self, other: &Self) {
        self.body.push_str(&other.body);
    }

    /// A name for the ids of a picture, which differ from those of other pictures on its page.
    pub(crate) fn id(&self, salt: &str) -> String {
        let digest = Sha256::new().chain_update(&self.body).chain_update(salt).finalize();
        digest.iter().take(5).fold("wp".to_owned(), |mut id, byte| {
            let _ = write!(id, "{byte:02x}");
            id
        })
    }

    /// The picture. `title` and `about` are for screen readers; `defs` are what the elements refer to.
    pub(crate) fn finish(self, look: &Look, height: f64, title: &str, about: &str, defs: &str) -> String {
        let (w, h) = (N(look.width().ceil()), N(height.ceil()));
        let mut out = String::with_capacity(self.body.len() + 8192);
        let _ = write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"wp\" role=\"img\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" \
             height=\"{h}\">\n<title>{}</title>\n<desc>{}</desc>\n",
            text::name(title),
            text::escape(&text::clip(about, 4 * text::NAME_MAX))
        );
        if look.is_alone() {
            let _ = write!(
                out,
                "<style>{}</style>\n<rect class=\"wp-bg\" width=\"{w}\" height=\"{h}\" rx=\"8\"/>\n",
                css()
            );
        }
        out.push_str(defs);
        out.push_str(&self.body);
        out.push_str("</svg>\n");
        out
    }
}

/// The path through these points.
pub(crate) fn line(points: &[(f64, f64)]) -> String {
    let mut d = String::new();
    for (n, (x, y)) in points.iter().enumerate() {
        let _ = write!(d, "{}{} {}", if n == 0 { "M" } else { "L" }, N(*x), N(*y));
    }
    d
}

/// The area between these points and `base`.
pub(crate) fn area(points: &[(f64, f64)], base: f64) -> String {
    points.first().map_or_else(String::new, |first| format!("{}V{}H{}Z", line(points), N(base), N(first.0)))
}

/// An entry of a legend.
pub(crate) struct Key {
    /// Elements in a box of 14 × 10 px whose top left corner is 0, 0.
    pub(crate) sign: String,
    /// Its name.
    pub(crate) name: String,
}

/// Draws a legend from `x`, in as many lines as it needs. Returns the y below it.
pub(crate) fn legend(canvas: &mut Canvas, keys: &[Key], x: f64, y: f64, right: f64) -> f64 {
    const LINE: f64 = 19.0;
    let (mut at, mut top) = (x, y);
    for key in keys {
        let name = text::fit(&key.name, 12.0, right - x - 22.0);
        let width = 20.0 + text::width(&name, 12.0);
        if at > x && at + width > right {
            (at, top) = (x, top + LINE);
        }
        canvas.put(format_args!("<g transform=\"translate({} {})\">{}</g>", N(at), N(top + 3.0), key.sign));
        canvas.text(at + 19.0, top + 12.0, "", &name);
        at += width + 16.0;
    }
    if keys.is_empty() { y } else { top + LINE }
}

/// A picture that only says why it is empty.
pub(crate) fn empty(look: &Look, title: &str, why: &str) -> String {
    let mut canvas = Canvas::default();
    let y = canvas.head(look);
    let (w, h) = (look.width() - 2.0 * look.padding(), 96.0);
    canvas.put(format_args!(
        "<rect class=\"wp-axis\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"6\" stroke-dasharray=\"4 4\"/>",
        N(look.padding()),
        N(y),
        N(w),
        N(h)
    ));
    canvas.text(look.width() / 2.0, y + h / 2.0 + 4.0, "wp-mid wp-soft", why);
    canvas.finish(look, y + h + look.padding(), title, why, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (1.25, "1.3"),
            (-0.5, "-.5"),
            (0.04, "0"),
            (0.5, ".5"),
            (-3.5, "-3.5"),
            (f64::NAN, "0"),
            (1e300, "100000"),
            (f64::NEG_INFINITY, "0"),
        ] {
            assert_eq!(N(value).to_string(), text);
        }
        assert_eq!(line(&[(0.0, 1.0), (2.5, -3.0)]), "M0 1L2.5 -3");
        assert_eq!(area(&[(0.0, 1.0), (2.0, 3.0)], 9.0), "M0 1L2 3V9H0Z");
        assert_eq!(area(&[], 9.0), "");
    }
}
