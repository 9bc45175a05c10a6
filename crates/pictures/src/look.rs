//! How a picture looks: its width, its colours, its fonts.

use crate::palette;
use std::fmt::Write as _;
use std::sync::LazyLock;

/// Limits of a picture's width in px.
const WIDTHS: std::ops::RangeInclusive<f64> = 280.0..=2400.0;

/// How a picture is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    width: f64,
    alone: bool,
    title: Option<String>,
}

impl Look {
    /// A file of its own, this many px wide: it has its style sheet and a background.
    pub fn new(width: u32) -> Self {
        Self { width: f64::from(width).clamp(*WIDTHS.start(), *WIDTHS.end()), alone: true, title: None }
    }

    /// A width for screens and paper.
    pub fn wide() -> Self {
        Self::new(960)
    }

    /// A width for phones.
    pub fn narrow() -> Self {
        Self::new(400)
    }

    /// For a page that has [`css()`]: without a style sheet, without a background and without a margin.
    pub fn inline(self) -> Self {
        Self { alone: false, ..self }
    }

    /// With a title above the picture, which also names it for screen readers.
    pub fn titled(self, title: impl Into<String>) -> Self {
        Self { title: Some(title.into()), ..self }
    }

    pub(crate) fn width(&self) -> f64 {
        self.width
    }

    pub(crate) fn is_narrow(&self) -> bool {
        self.width < 560.0
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    pub(crate) fn title(&self) -> Option<&str> {
        self.title.as_deref()
    }

    /// Space around the picture in px.
    pub(crate) fn padding(&self) -> f64 {
        match (self.alone, self.is_narrow()) {
            (false, _) => 1.0,
            (true, true) => 12.0,
            (true, false) => 20.0,
        }
    }
}

/// The style sheet of all pictures. All of its rules begin with `.wp`, the class of a picture. The colours are
/// variables named `--wp-…`: dark ones where the reader prefers a dark scheme, or below an element with
/// `data-theme="dark"`; `data-theme="light"` keeps the light ones.
pub fn css() -> &'static str {
    static CSS: LazyLock<String> = LazyLock::new(|| {
        let light = format!("{LIGHT}{}", palette::variables(palette::Theme::Light));
        let dark = format!("{DARK}{}", palette::variables(palette::Theme::Dark));
        let mut css = format!(".wp{{{light}}}\n");
        let _ = writeln!(css, "@media screen and (prefers-color-scheme:dark){{.wp{{{dark}}}}}");
        let _ = writeln!(css, "[data-theme=dark] .wp,.wp[data-theme=dark]{{{dark}}}");
        let _ = writeln!(css, "[data-theme=light] .wp,.wp[data-theme=light]{{{light}}}");
        css + RULES + &palette::rules()
    });
    &CSS
}

const LIGHT: &str = "--wp-bg:#fff;--wp-ink:#1c2127;--wp-soft:#57606a;--wp-line:#c9d0d8;--wp-grid:#eaedf0;\
                     --wp-dirty:#6a51a3;--wp-wback:#0b7285;--wp-hatch:#16191d;--wp-bare:#d3d9df;";
const DARK: &str = "--wp-bg:#14171b;--wp-ink:#e7eaee;--wp-soft:#9da7b3;--wp-line:#414a54;--wp-grid:#252a30;\
                    --wp-dirty:#b3a2ee;--wp-wback:#56cfe1;--wp-hatch:#0b0d10;--wp-bare:#7c8792;";
const RULES: &str = "\
.wp{display:block;max-width:100%;height:auto;font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Noto Sans',\
'Liberation Sans',sans-serif;font-variant-numeric:tabular-nums;color:var(--wp-ink)}
.wp text{font-size:12px;fill:var(--wp-ink)}
.wp .wp-bg{fill:var(--wp-bg)}
.wp .wp-head{font-size:15px;font-weight:600}
.wp .wp-soft{fill:var(--wp-soft)}
.wp .wp-small{font-size:11px}
.wp .wp-strong{font-weight:600}
.wp .wp-end{text-anchor:end}
.wp .wp-mid{text-anchor:middle}
.wp .wp-grid{stroke:var(--wp-grid);fill:none;stroke-width:1}
.wp .wp-axis{stroke:var(--wp-line);fill:none;stroke-width:1}
.wp .wp-mark{stroke:var(--wp-soft);fill:none;stroke-width:1;stroke-dasharray:3 3}
.wp .wp-in{font-size:11px;font-weight:500}
.wp .wp-hatch{stroke:var(--wp-hatch);stroke-width:1.1;fill:none;opacity:.5}
.wp .wp-wait{stroke:var(--wp-hatch);stroke-width:1;stroke-opacity:.75}
.wp .wp-wait-thin{fill:var(--wp-hatch);opacity:.55}
.wp .wp-bare{fill:var(--wp-bare)}
.wp .wp-dirty{stroke:var(--wp-dirty);stroke-width:1.6;fill:none;stroke-linejoin:round}
.wp .wp-dirty-area{fill:var(--wp-dirty);opacity:.18}
.wp .wp-wback{stroke:var(--wp-wback);stroke-width:1.6;fill:none;stroke-dasharray:5 2.5;stroke-linejoin:round}
.wp .wp-wback-area{fill:var(--wp-wback);opacity:.22}
.wp .wp-dirty-dot{fill:var(--wp-dirty)}
.wp .wp-wback-dot{fill:var(--wp-wback)}
.wp .wp-median{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.wp .wp-dot{opacity:.6}
.wp .wp-dot:hover,.wp .wp-dot:focus{opacity:1;stroke:var(--wp-ink);stroke-width:1.5}
.wp .wp-step{stroke:var(--wp-ink);stroke-width:1.2;stroke-dasharray:4 3}
.wp .wp-flag{fill:var(--wp-ink)}
.wp .wp-flag-text{fill:var(--wp-bg);font-weight:600;font-size:11px}
.wp .wp-hit{fill:transparent}
.wp [data-step]{cursor:pointer}
.wp .wp-run{stroke:var(--wp-ink);fill:var(--wp-bg);stroke-width:1.2}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_style_sheet_is_about_pictures_alone() {
        for line in css().lines() {
            let starts = [".wp", "@media screen and (prefers-color-scheme:dark){.wp{", "[data-theme="];
            assert!(starts.iter().any(|start| line.starts_with(start)), "{line}");
        }
        assert!(!css().contains("url(") && !css().contains("@import") && !css().contains('<'));
    }

    #[test]
    fn widths_have_limits() {
        assert!(
            (Look::new(1).width() - 280.0).abs() < 1e-9 && (Look::new(90_000).width() - 2400.0).abs() < 1e-9
        );
        assert!(Look::narrow().is_narrow() && !Look::wide().is_narrow());
    }
}
