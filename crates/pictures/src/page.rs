//! A report: one HTML file that needs nothing else.

use crate::look::{Look, css};
use crate::text::{self, command_line, escape};
use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// Limits of a table. Beyond, the data in the file have the rest.
const ROWS_MAX: usize = 2_000;
const CELLS_MAX: usize = 24;

/// What a report says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Its title: the experiment.
    pub title: String,
    /// The result, in one or two sentences.
    pub verdict: String,
    /// What to do, one sentence each.
    pub advice: Vec<String>,
    /// Why the run did not end as planned, if it did not. The report is marked as incomplete.
    pub incomplete: Option<String>,
    /// When it was made and by which version of what: a sentence.
    pub made: String,
    /// The command that repeats it, as words.
    pub command: Vec<String>,
    /// Properties of the machine, by name.
    pub machine: Vec<(String, String)>,
    /// Settings of the experiment and of the kernel, by name.
    pub settings: Vec<(String, String)>,
    /// The parts, in order.
    pub sections: Vec<Section>,
    /// The data, as JSON. It becomes the element `data` of the file.
    pub data: String,
}

/// A part of a report with a heading.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    /// The heading.
    pub heading: String,
    /// What it contains, in order.
    pub parts: Vec<Part>,
}

/// A piece of a section.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// A paragraph.
    Text(String),
    /// Lines of a fixed width.
    Lines(String),
    /// A table.
    Table(Table),
    /// A picture; see [`Part::picture`].
    Picture(Drawn),
}

/// A table. Columns of numbers stand right.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// A picture for screens and paper, and the same for phones.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    wide: String,
    narrow: String,
}

impl Part {
    /// A picture, from a function that draws it with a given look: see [`crate::timeline()`], [`crate::series()`],
    /// [`crate::comparison()`].
    pub fn picture(draw: impl Fn(&Look) -> String) -> Self {
        Self::Picture(Drawn { wide: draw(&Look::new(928).inline()), narrow: draw(&Look::new(348).inline()) })
    }
}

/// The report as HTML. It needs no script and nothing from outside, and its Content-Security-Policy forbids both.
pub fn page(of: &Page) -> String {
    let style = format!("{}{RULES}", css());
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(&style));
    let mut out = String::with_capacity(of.data.len() + 65_536);
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{hash}'; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>{}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n",
        text::name(&of.title)
    );
    let _ = write!(
        out,
        "<header>\n<p class=\"kicker\">{}</p>\n<h1>{}</h1>\n",
        text::name(&of.title),
        escape(&of.verdict)
    );
    if let Some(why) = &of.incomplete {
        let _ = writeln!(
            out,
            "<p class=\"incomplete\" role=\"note\"><strong>Incomplete.</strong> {}</p>",
            escape(why)
        );
    }
    for advice in &of.advice {
        let _ = writeln!(out, "<p class=\"advice\">{}</p>", escape(advice));
    }
    out.push_str("</header>\n");
    for section in &of.sections {
        let _ = writeln!(out, "<section>\n<h2>{}</h2>", escape(&section.heading));
        section.parts.iter().for_each(|part| put(&mut out, part));
        out.push_str("</section>\n");
    }
    out.push_str("<section class=\"facts\">\n");
    for (heading, facts) in [("The machine", &of.machine), ("Settings", &of.settings)] {
        if !facts.is_empty() {
            let _ = writeln!(out, "<div>\n<h2>{heading}</h2>\n<dl>");
            for (name, value) in facts {
                let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", text::name(name), text::name(value));
            }
            out.push_str("</dl>\n</div>\n");
        }
    }
    out.push_str("</section>\n");
    if !of.command.is_empty() {
        let command = command_line(&of.command);
        let _ = write!(
            out,
            "<section>\n<h2>Reproduce</h2>\n<pre class=\"command\"><code>{}</code></pre>\n</section>\n",
            escape(&command)
        );
    }
    let _ = write!(
        out,
        "<footer>{} The data of the run are in this file, as JSON in the element <code>data</code>.</footer>\n</main>\n\
         <script type=\"application/json\" id=\"data\">{}</script>\n</body>\n</html>\n",
        escape(&of.made),
        data(&of.data)
    );
    out
}

/// JSON that no HTML parser takes for markup. The characters occur in strings only, where their escapes mean the same.
fn data(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

fn put(out: &mut String, part: &Part) {
    let _ = match part {
        Part::Text(text) => writeln!(out, "<p>{}</p>", escape(text)),
        Part::Lines(lines) => writeln!(out, "<pre>{}</pre>", escape(lines)),
        Part::Picture(Drawn { wide, narrow }) => {
            writeln!(
                out,
                "<figure class=\"wide\">\n{wide}</figure>\n<figure class=\"narrow\">\n{narrow}</figure>"
            )
        }
        Part::Table(table) => {
            put_table(out, table);
            Ok(())
        }
    };
}

fn put_table(out: &mut String, table: &Table) {
    let numeric: Vec<bool> = (0..CELLS_MAX).map(|column| is_numeric(table, column)).collect();
    let class = |column: usize| if numeric[column] { " class=\"n\"" } else { "" };
    out.push_str("<div class=\"table\"><table>\n");
    if !table.head.is_empty() {
        out.push_str("<thead><tr>");
        for (n, cell) in table.head.iter().take(CELLS_MAX).enumerate() {
            let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(n), text::name(cell));
        }
        out.push_str("</tr></thead>\n");
    }
    out.push_str("<tbody>\n");
    for row in table.rows.iter().take(ROWS_MAX) {
        out.push_str("<tr>");
        for (n, cell) in row.iter().take(CELLS_MAX).enumerate() {
            let _ = write!(out, "<td{}>{}</td>", class(n), text::name(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    if table.rows.len() > ROWS_MAX {
        let _ = writeln!(out, "<p>{} more rows are in the data.</p>", table.rows.len() - ROWS_MAX);
    }
}

/// Whether a column has numbers, maybe with units, and nothing else but marks that there is none.
fn is_numeric(table: &Table, column: usize) -> bool {
    let cells = || table.rows.iter().take(ROWS_MAX).filter_map(|row| row.get(column)).map(String::as_str);
    let none = |cell: &str| cell.is_empty() || cell == "–";
    let number = |cell: &str| {
        let cell = cell.trim_start_matches(['-', '+', '×', '≤', '≥', '<', ' ']);
        cell.starts_with(|c: char| c.is_ascii_digit()) && cell.len() <= 40
    };
    cells().all(|cell| none(cell) || number(cell)) && cells().any(number)
}

/// The page around the pictures. It takes over their colours.
const RULES: &str = "\
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1c2127;--soft:#57606a;--line:#dfe3e8;--warn:#8a3b00;--warn-bg:#fff1e5;\
--code:#f0f2f5}
@media screen and (prefers-color-scheme:dark){:root{--page:#0e1114;--card:#14171b;--ink:#e7eaee;--soft:#9da7b3;--line:#2b3138;\
--warn:#ffc48a;--warn-bg:#33210f;--code:#1c2127}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',\
'Noto Sans','Liberation Sans',sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1000px;margin:0 auto;padding:40px 18px 56px}
.kicker{margin:0 0 6px;color:var(--soft);font-size:13px;letter-spacing:.04em;text-transform:uppercase}
h1{font-size:24px;line-height:1.35;font-weight:650;margin:0 0 14px;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:16px;font-weight:650;margin:0 0 12px}
header{margin:0 0 22px}
.advice{margin:6px 0;padding-left:22px;position:relative;overflow-wrap:anywhere}
.advice::before{content:'→';position:absolute;left:0;color:var(--soft)}
.incomplete{background:var(--warn-bg);color:var(--warn);padding:10px 14px;border-radius:8px;margin:0 0 12px;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 22px;margin:0 0 18px}
section p{margin:0 0 12px;max-width:76ch;overflow-wrap:anywhere}
figure{margin:0}
figure+figure,p+figure,figure+p,.table+figure,.table+.table,figure+.table,.table+p{margin-top:14px}
.narrow{display:none}
.table{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;font-weight:600;color:var(--soft);font-size:13px}
th,td{padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
tbody tr:last-child td{border-bottom:0}
.n{text-align:right;white-space:nowrap}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:24px 40px}
.facts:empty{display:none}
dl{display:grid;grid-template-columns:minmax(90px,max-content) 1fr;gap:4px 18px;margin:0;font-size:14px}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
pre{margin:0;padding:12px 14px;background:var(--code);border-radius:8px;overflow-x:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,\
Consolas,'Liberation Mono',monospace}
.command{white-space:pre-wrap;overflow-wrap:anywhere}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace;font-size:.92em}
footer{color:var(--soft);font-size:13px;margin-top:24px;overflow-wrap:anywhere}
@media screen and (max-width:760px){main{padding:22px 10px 40px}h1{font-size:20px}section{padding:16px 14px}}
@media screen and (max-width:620px){.wide{display:none}.narrow{display:block}.narrow .wp{width:100%}}
@media print{body{background:none;font-size:11pt}main{max-width:none;padding:0}section{border:0;padding:0;margin:0 0 16pt;\
break-inside:auto}h2{break-after:avoid}figure,tr{break-inside:avoid}pre{white-space:pre-wrap}.wide .wp{width:100%}}
";

#[cfg(test)]
mod tests;
