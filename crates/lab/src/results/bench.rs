//! Results of `wardian lab bench` as files.

use super::Results;
use crate::bench::{Figure, Figures};
use anyhow::{Context, Result};
use wardian_pictures::{Comparison, Entry, Look, Page, Part, Section, Table, Unit, comparison};

impl Results for Figures {
    fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("encode the figures")
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let rows = self.figures.iter().map(|figure| {
            vec![
                figure.name.to_owned(),
                figure.unit.to_owned(),
                number(figure.goal),
                figure.at_least.to_string(),
                number(figure.guardian),
                number(figure.measured),
            ]
        });
        super::csv(&["name", "unit", "goal", "at_least", "guardian", "measured"], rows)
    }

    fn svg(&self) -> String {
        comparison(&self.against_goals(), &Look::wide().titled(HEADING))
    }

    fn page(&self) -> Page {
        let drawn = self.against_goals();
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
        let rows = self.figures.iter().map(|figure| {
            let goal = figure.goal.map(|goal| format!("{} {goal}", if figure.at_least { "≥" } else { "≤" }));
            vec![
                figure.name.to_owned(),
                figure.unit.to_owned(),
                goal.unwrap_or_else(|| "–".to_owned()),
                number(figure.guardian),
                number(figure.measured),
                if figure.missed() { "missed".to_owned() } else { String::new() },
            ]
        });
        let head = ["figure", "unit", "goal", "guardian", "measured", ""].map(str::to_owned).into();
        let mut parts = vec![Part::Table(Table { head, rows: rows.collect() })];
        parts.extend(self.notes.iter().map(|note| Part::Text(note.clone())));
        let missed = self.figures.iter().filter(|figure| figure.missed()).count();
        let goals =
            self.figures.iter().filter(|figure| figure.goal.is_some() && figure.measured.is_some()).count();
        Page {
            title: "wardian lab bench".to_owned(),
            verdict: format!("{} of {goals} goals are met.", goals - missed),
            incomplete: self.error.clone(),
            machine: super::machine(&self.host),
            sections: vec![
                Section {
                    heading: HEADING.to_owned(),
                    parts: vec![
                        Part::Text(EXPLAINED.to_owned()),
                        Part::picture(|look| comparison(&drawn, look)),
                    ],
                },
                Section { heading: "Figures".to_owned(), parts },
            ],
            ..Page::default()
        }
    }
}

const HEADING: &str = "Figures by their goals";
const EXPLAINED: &str = "A bar as long as 1 is the goal, and shorter is better: of a figure that should be large, such as \
                         MB/s, it is the goal by the figure.";

impl Figures {
    fn against_goals(&self) -> Comparison {
        let entry = |figure: &Figure| {
            let (goal, measured) = (figure.goal?, figure.measured?);
            let share = if figure.at_least { goal / measured } else { measured / goal };
            let bound = if figure.at_least { "≥" } else { "≤" };
            Some(Entry {
                name: figure.name.to_owned(),
                kind: if figure.missed() { "missed" } else { "met" }.to_owned(),
                runs: vec![share],
                ratio: format!("{} {} ({bound} {goal})", Unit::Number.show(measured), figure.unit),
                note: String::new(),
            })
        };
        Comparison {
            unit: Unit::Number,
            entries: self.figures.iter().filter_map(entry).collect(),
            bound: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &'static str, goal: f64, at_least: bool, measured: f64) -> Figure {
        Figure { name, unit: "ms", goal: Some(goal), at_least, guardian: None, measured: Some(measured) }
    }

    #[test]
    fn goals_that_were_missed_are_seen() {
        let unmeasured = Figure { measured: None, ..figure("skipped", 1.0, false, 0.0) };
        let all = vec![figure("good", 2.0, false, 1.0), figure("slow", 2.0, true, 1.0), unmeasured];
        let mut figures = Figures { figures: all, notes: vec!["a <note>".into()], ..Figures::default() };
        figures.ended(&Err(anyhow::anyhow!("interrupted")));
        let page = figures.page();
        assert_eq!((page.incomplete.as_deref(), figures.complete), (Some("interrupted"), false));
        assert_eq!(page.verdict, "1 of 2 goals are met.");
        let html = wardian_pictures::page(&page);
        assert!(html.contains("<td>missed</td>") && html.contains("a &lt;note&gt;"));
        let runs: Vec<f64> = figures.against_goals().entries.iter().map(|entry| entry.runs[0]).collect();
        assert_eq!(runs, [0.5, 2.0]);
        let csv = String::from_utf8(figures.csv().unwrap()).unwrap();
        assert!(csv.contains("slow,ms,2,true,,1\n") && csv.contains("skipped,ms,1,false,,\n"), "{csv}");
    }
}
