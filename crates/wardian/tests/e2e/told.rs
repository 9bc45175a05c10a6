//! docs/garden.md tells every difference that the tests know: the tables between its marks are made here.
//! `WARDIAN_WRITE_DOCS=1` writes them.

use crate::inside::DIFFERENCES;
use crate::wire::{ACCEPTED, SKIPPED};
use std::fmt::Write as _;
use std::path::Path;

fn code(text: &str) -> String {
    if text.is_empty() {
        return "nothing".to_owned();
    }
    format!("`{}`", text.replace('\r', "\\r").replace('\n', "\\n").replace('|', "\\|").replace('`', "'"))
}

/// What a recording is about: its first line.
fn title(place: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire");
    let number = &place[..3];
    let file = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(number))
        .unwrap_or_else(|| panic!("no recording {number}"));
    let text = std::fs::read_to_string(file.path()).unwrap();
    text.lines().next().unwrap().trim_start_matches("# ").replace('|', "\\|")
}

fn recordings() -> String {
    let mut text =
        String::from("| recording | connection | recorded | here | why |\n|---|---|---|---|---|\n");
    let mut rows: Vec<(String, String)> = Vec::new();
    for row in ACCEPTED {
        let connection = row.place.split_once('/').map_or("all", |(_, connection)| connection);
        let (recorded, here) = (code(row.recorded), code(row.here));
        let (recording, title) = (&row.place[..3], title(row.place));
        rows.push((
            row.place.to_owned(),
            format!("| {recording} {title} | {connection} | {recorded} | {here} | {} |", row.why),
        ));
    }
    for row in SKIPPED {
        let list: Vec<String> = row.connections.iter().map(ToString::to_string).collect();
        let title = title(row.scenario);
        rows.push((
            format!("{}~", row.scenario),
            format!("| {} {title} | {} | not played | | {} |", row.scenario, list.join(", "), row.why),
        ));
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    for (_, row) in rows {
        let _ = writeln!(text, "{row}");
    }
    text
}

fn inside() -> String {
    let mut text = String::from("| in | recorded (-) or here (+) | why |\n|---|---|---|\n");
    for (place, line, why) in DIFFERENCES {
        let place = if place.is_empty() { "all" } else { place };
        let _ = writeln!(text, "| {place} | {} | {why} |", code(line));
    }
    text
}

#[test]
fn the_documentation_tells_every_difference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/garden.md");
    let docs = std::fs::read_to_string(&path).unwrap();
    let mut right = docs.clone();
    for (name, table) in [("recordings", recordings()), ("inside", inside())] {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
        let (before, rest) = right.split_once(&begin).expect("the mark of a table");
        let (_, after) = rest.split_once(&end).expect("the mark of a table's end");
        right = format!("{before}{begin}{table}{end}{after}");
    }
    if std::env::var_os("WARDIAN_WRITE_DOCS").is_some() {
        std::fs::write(&path, &right).unwrap();
    } else {
        assert!(docs == right, "docs/garden.md is behind: run this test with WARDIAN_WRITE_DOCS=1");
    }
}
