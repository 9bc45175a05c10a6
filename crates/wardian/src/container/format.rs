//! `--format`: a template with fields of JSON objects, `{{.handle}}`, or `json`.
//!
//! The fields are those of the JSON that a command prints, joined by dots for what is in an object or an array
//! (`{{.ports.0.host_port}}`), and the names that docker's users type for the same ({{.Names}}). `{{json .field}}` prints the
//! JSON of a field, `{{json .}}` all of it; `\t` and `\n` stand for a tab and the end of a line. After `table ` the rows have a
//! head, and their columns, which tabs separate, are aligned.

use crate::print;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// The JSON of each row on a line.
    Json,
    /// Text and fields.
    Template { parts: Vec<Part>, table: bool },
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    /// The path of a field; empty: the whole object. `json`: its JSON and not its text.
    Field {
        path: Vec<String>,
        json: bool,
    },
}

/// Parses a template.
///
/// # Errors
/// What is between the braces is no field.
pub fn parse(text: &str) -> Result<Format, String> {
    if text == "json" {
        return Ok(Format::Json);
    }
    let (text, table) = text.strip_prefix("table ").map_or((text, false), |rest| (rest, true));
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, after) = after.split_once("}}").ok_or("a {{ without its }}")?;
        parts.push(Part::Text(unescape(before)));
        let inside = inside.trim();
        let (inside, json) = inside.strip_prefix("json ").map_or((inside, false), |rest| (rest.trim(), true));
        let path = inside
            .strip_prefix('.')
            .filter(|path| path.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)))
            .ok_or_else(|| {
                format!("{{{{{inside}}}}} is no field: expected {{{{.NAME}}}} or {{{{json .NAME}}}}")
            })?;
        let path = path.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        parts.push(Part::Field { path, json });
        rest = after;
    }
    parts.push(Part::Text(unescape(rest)));
    parts.retain(|part| *part != Part::Text(String::new()));
    if !parts.iter().any(|part| matches!(part, Part::Field { .. })) {
        return Err("expected json, or a template with a field such as {{.handle}}".to_owned());
    }
    Ok(Format::Template { parts, table })
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// Finds a field by its path.
fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| match value {
        Value::Object(fields) => fields.get(name),
        // Lists differ from row to row.
        Value::Array(values) => Some(values.get(name.parse::<usize>().ok()?).unwrap_or(&Value::Null)),
        Value::Null => Some(value),
        _ => None,
    })
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Format {
    /// Prints the rows.
    ///
    /// # Errors
    /// A field is in no row, or standard output cannot be written.
    pub fn print(&self, rows: &[Value]) -> Result<()> {
        let Self::Template { parts, table } = self else {
            for row in rows {
                if !print::json_line(row)? {
                    break;
                }
            }
            return Ok(());
        };
        let mut lines = Vec::new();
        if *table {
            lines.push(head(parts));
        }
        for row in rows {
            lines.push(fill(parts, row)?);
        }
        if *table {
            return print::text(&aligned(&lines));
        }
        print::text(&lines.iter().map(|line| line.clone() + "\n").collect::<String>())
    }
}

fn fill(parts: &[Part], row: &Value) -> Result<String> {
    let mut line = String::new();
    for part in parts {
        match part {
            Part::Text(text) => line += text,
            Part::Field { path, json } => {
                let Some(value) = find(row, path) else { bail!("{}", unknown(row, path)) };
                // Names and commands are untrusted; line breaks in them would look like rows.
                let text = if *json { serde_json::to_string(value).context("JSON")? } else { shown(value) };
                line += &print::tame(&text);
            }
        }
    }
    Ok(line)
}

/// Says which fields there are where the path leaves them.
fn unknown(row: &Value, path: &[String]) -> String {
    let reached = (0..path.len()).rev().find_map(|length| Some((length, find(row, &path[..length])?)));
    let there = match reached {
        Some((_, Value::Object(fields))) => fields.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        Some((_, Value::Array(values))) => format!("{} values, from 0", values.len()),
        _ => "no fields".to_owned(),
    };
    let place = reached.map_or(0, |(length, _)| length);
    let place = if place == 0 { String::new() } else { format!(" in .{}", path[..place].join(".")) };
    format!("--format: there is no field .{}; there are{place}: {there}", path.join("."))
}

fn head(parts: &[Part]) -> String {
    let of = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Field { path, .. } => path.last().map(|name| name.to_uppercase()).unwrap_or_default(),
    };
    parts.iter().map(of).collect()
}

fn aligned(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| unicode_width::UnicodeWidthStr::width(*cell)).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += cell;
            line += &" ".repeat(width - unicode_width::UnicodeWidthStr::width(*cell) + 2);
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filled(template: &str, row: &Value) -> Result<String, String> {
        match parse(template)? {
            Format::Template { parts, .. } => fill(&parts, row).map_err(|error| error.to_string()),
            Format::Json => Err("json".into()),
        }
    }

    #[test]
    fn fields_are_filled_in() {
        let row = json!({"handle": "web", "ports": [{"host": 80}], "n": 7, "none": null, "odd": "a\nb"});
        let of = |template: &str| filled(template, &row).unwrap();
        assert_eq!(of("{{.handle}}"), "web");
        assert_eq!(of("{{ .handle }}\\t{{.n}}x"), "web\t7x");
        assert_eq!(
            of("{{.ports.0.host}} {{.ports}} {{json .handle}} [{{.none}}]"),
            "80 [{\"host\":80}] \"web\" []"
        );
        assert_eq!(of("{{json .n}}{{json .ports}}"), "7[{\"host\":80}]");
        assert_eq!(of("[{{.ports.7.host}}{{.none.x}}]"), "[]");
        assert_eq!(of("{{.odd}}"), "a\\nb");
        assert!(of("{{json .}}").contains("\"handle\":\"web\""));
        for (bad, says) in [
            ("{{.nope}}", "there are: handle, n, none, odd, ports"),
            ("{{.ports.x}}", "there are in .ports: 1 values"),
            ("{{.handle.x}}", "no fields"),
        ] {
            assert!(filled(bad, &row).unwrap_err().contains(says), "{bad}: {:?}", filled(bad, &row));
        }
        for bad in ["", "handle", "{{handle}}", "{{.handle", "{{range .x}}", "{{len .x}}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("json"), Ok(Format::Json));
    }

    #[test]
    fn tables_are_aligned() {
        let Format::Template { parts, table: true } = parse("table {{.Names}}\\t{{.Status}}").unwrap() else {
            panic!()
        };
        let rows = [json!({"Names": "longer-name", "Status": "up"}), json!({"Names": "a", "Status": "idle"})];
        let lines: Vec<String> =
            std::iter::once(head(&parts)).chain(rows.iter().map(|row| fill(&parts, row).unwrap())).collect();
        assert_eq!(aligned(&lines), "NAMES        STATUS\nlonger-name  up\na            idle\n");
    }
}
