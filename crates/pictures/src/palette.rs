//! Colours of phases and lines. They are those of Okabe and Ito, which people with any kind of colour blindness can
//! tell apart, lightened for dark backgrounds. A name has the same colour in every picture.

use std::fmt::Write as _;

/// A colour by its number; see [`COLOURS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Colour(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Theme {
    Light,
    Dark,
}

/// Each colour on a light and on a dark background, and whether text on it is white in the light theme. Text on a
/// colour in the dark theme is black.
const COLOURS: [(&str, &str, bool); 9] = [
    ("#0072b2", "#4ea6e0", true),
    ("#e69f00", "#efb544", false),
    ("#009e73", "#33c199", false),
    ("#cc79a7", "#dd9bc0", false),
    ("#d55e00", "#f2854a", false),
    ("#56b4e9", "#86cbf2", false),
    ("#d6c216", "#f0e442", false),
    ("#8c959f", "#8b949e", false),
    ("#4d5a9e", "#9aa6ea", true),
];

/// Names whose colour is fixed: phases of scale, teardown and of other engines, lines of graphs.
const NAMED: [(&str, usize); 32] = [
    ("create", 0),
    ("stream_in", 1),
    ("start_app", 2),
    ("pea", 3),
    ("destroy", 4),
    ("mount", 5),
    ("write", 1),
    ("age", 7),
    ("unmount", 4),
    ("remove", 8),
    ("neighbour", 7),
    ("pull", 6),
    ("start", 2),
    ("run", 2),
    ("stop", 3),
    ("kill", 3),
    ("delete", 4),
    ("stream", 1),
    ("oci", 0),
    ("durable", 4),
    ("volatile", 2),
    ("plain", 7),
    ("wardian", 0),
    ("containerd", 1),
    ("podman", 3),
    ("docker", 5),
    ("guardian", 2),
    ("kernel", 7),
    ("a sync", 4),
    ("age of data", 7),
    ("a commit of the journal", 6),
    ("flush at close", 3),
];

impl Colour {
    /// The colour of a name: the fixed one, or one determined by its characters.
    pub(crate) fn of(name: &str) -> Self {
        let fixed = NAMED.iter().find(|(known, _)| *known == name).map(|(_, colour)| *colour);
        // FNV-1a: stable between versions of the program and of the library.
        let hash = || name.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Self(fixed.unwrap_or_else(|| hash() as usize % COLOURS.len()))
    }

    /// Colours of the lines of one picture, all different as far as there are enough: a later line yields.
    pub(crate) fn of_all<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Self> {
        let mut taken: Vec<Self> = Vec::new();
        for name in names {
            let first = Self::of(name).0;
            let all = (0..COLOURS.len()).map(|n| Self((first + n) % COLOURS.len()));
            let free = all.into_iter().find(|colour| !taken.contains(colour));
            taken.push(free.unwrap_or(Self(first)));
        }
        taken
    }

    /// Number, for class names: `wp-f0` fills, `wp-s0` strokes, `wp-t0` is text on it.
    pub(crate) fn number(self) -> usize {
        self.0
    }
}

/// The colours as variables.
pub(crate) fn variables(theme: Theme) -> String {
    let mut out = String::new();
    for (n, (light, dark, white)) in COLOURS.iter().enumerate() {
        let (colour, on) = match theme {
            Theme::Light => (light, if *white { "#fff" } else { "#14171b" }),
            Theme::Dark => (dark, "#0b0d10"),
        };
        let _ = write!(out, "--wp-{n}:{colour};--wp-on{n}:{on};");
    }
    out
}

/// The classes that use them.
pub(crate) fn rules() -> String {
    let mut out = String::new();
    for n in 0..COLOURS.len() {
        let _ = writeln!(out, ".wp .wp-f{n}{{fill:var(--wp-{n})}}");
        let _ = writeln!(out, ".wp .wp-s{n}{{stroke:var(--wp-{n})}}");
        let _ = writeln!(out, ".wp .wp-t{n}{{fill:var(--wp-on{n})}}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance (WCAG 2.2).
    fn luminance(hex: &str) -> f64 {
        let long = |hex: &str| match hex.len() {
            4 => hex[1..].chars().flat_map(|c| [c, c]).collect::<String>(),
            _ => hex[1..].to_owned(),
        };
        let hex = long(hex);
        let channel = |n: usize| {
            let value = f64::from(u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()) / 255.0;
            if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(0) + 0.7152 * channel(1) + 0.0722 * channel(2)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn text_on_colours_is_readable() {
        for (light, dark, white) in COLOURS {
            let on = if white { "#fff" } else { "#14171b" };
            assert!(contrast(light, on) >= 4.5, "{light}: {}", contrast(light, on));
            assert!(contrast(dark, "#0b0d10") >= 4.5, "{dark}");
            // A bar against the background. Its neighbours and labels help where the yellows cannot do better.
            assert!(contrast(light, "#fff") >= 1.7 && contrast(dark, "#14171b") >= 3.0, "{light} {dark}");
        }
    }

    #[test]
    fn a_name_keeps_its_colour() {
        assert_eq!(Colour::of("unmount"), Colour::of("destroy"));
        assert_eq!(Colour::of("some phase"), Colour::of("some phase"));
        for (n, (name, colour)) in NAMED.iter().enumerate() {
            assert!(*colour < COLOURS.len() && NAMED[..n].iter().all(|(other, _)| other != name), "{name}");
        }
        // All phases of one experiment differ.
        for phases in [
            &["create", "stream_in", "start_app", "pea", "destroy"][..],
            &["mount", "write", "age", "unmount", "remove"],
        ] {
            let colours: std::collections::HashSet<_> = phases.iter().map(|name| Colour::of(name)).collect();
            assert_eq!(colours.len(), phases.len());
        }
    }

    #[test]
    fn lines_of_one_picture_differ() {
        let names: Vec<String> = (0..COLOURS.len()).map(|n| format!("line {n}")).collect();
        let colours = Colour::of_all(names.iter().map(String::as_str));
        let different: std::collections::HashSet<_> = colours.iter().collect();
        assert_eq!(different.len(), COLOURS.len());
        assert_eq!(Colour::of_all(["a", "a"].repeat(20).into_iter()).len(), 40);
    }
}
