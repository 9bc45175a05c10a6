//! Results of `wardian lab record` as files, and the tables of a diagnosis.

use super::Results;
use crate::host::Host;
use crate::record::Report;
use crate::timelines;
use anyhow::{Context, Result};
use wardian_pictures::{Look, Page, Part, Section, Table, Unit, command_line, timeline};
use wardian_recorder::Diagnosis;

/// Limit of the waits in a table of a report. The data have all of them.
const WAITS_MAX: usize = 50;

impl Results for Report {
    fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("encode the recording")
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let waits = self.recording.waits.iter().map(|wait| {
            let task = &wait.task;
            vec![
                "wait".to_owned(),
                task.to_string(),
                task.syscall.clone().unwrap_or_default(),
                wait.kernel_function.clone().unwrap_or_default(),
                wait.begin_ms.to_string(),
                wait.ms.to_string(),
                String::new(),
            ]
        });
        let written = self.recording.written.iter().map(|burst| {
            let asked = burst.asked_by.as_ref().unwrap_or(&burst.by);
            vec![
                "write".to_owned(),
                asked.to_string(),
                asked.syscall.clone().unwrap_or_default(),
                burst.cause.to_string(),
                burst.begin_ms.to_string(),
                (burst.end_ms - burst.begin_ms).to_string(),
                burst.bytes.to_string(),
            ]
        });
        super::csv(&["what", "thread", "call", "why", "begin_ms", "ms", "bytes"], waits.chain(written))
    }

    fn svg(&self) -> String {
        timeline(&timelines::of_recording(self), &Look::wide().titled(self.heading()))
    }

    fn page(&self) -> Page {
        let drawn = timelines::of_recording(self);
        let mut parts = vec![Part::Text(EXPLAINED.to_owned()), Part::picture(|look| timeline(&drawn, look))];
        parts.extend(tables(&self.diagnosis));
        let mut machine = super::machine(&Host::probe(Some(&self.recording.path)));
        machine.push(("devices".to_owned(), self.recording.devices.join(", ")));
        let vm = &self.diagnosis.tunables.vm;
        let interrupted =
            self.interrupted.map(|signal| format!("Signal {signal} ended the recording early."));
        let failed = self.exit_code.filter(|code| *code != 0);
        let failed = failed.map(|code| format!("The command ended with exit code {code}."));
        Page {
            title: "wardian lab record".to_owned(),
            verdict: format!("{}.", self.diagnosis.verdict),
            advice: self.diagnosis.advice.clone(),
            incomplete: interrupted.or(failed),
            machine,
            settings: vm.iter().map(|(name, value)| (format!("vm.{name}"), value.to_string())).collect(),
            sections: vec![Section { heading: self.heading(), parts }],
            ..Page::default()
        }
    }
}

impl Report {
    fn heading(&self) -> String {
        if self.command.is_empty() { "A recording".to_owned() } else { command_line(&self.command) }
    }
}

const EXPLAINED: &str = "Rows are the causes of writes, and the threads that waited in the kernel: point at a hatched bar \
                         to see for whom, and in which function. Below are the pages of the host that are not on disk \
                         yet, on the same axis.";

/// What was written and why, who waited, and what could not be found out.
pub(super) fn tables(diagnosis: &Diagnosis) -> Vec<Part> {
    let mut parts = Vec::new();
    let text = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    if !diagnosis.causes.is_empty() {
        let rows = diagnosis.causes.iter().map(|cause| {
            let asked = cause.asked_by.as_ref().map(|task| match &task.syscall {
                Some(call) => format!("{task} in {call}"),
                None => task.to_string(),
            });
            vec![
                cause.cause.to_string(),
                Unit::Bytes.show(cause.bytes as f64),
                format!("{:.0} %", cause.share * 100.0),
                Unit::Ms.show(cause.begin_ms),
                Unit::Ms.show(cause.end_ms),
                text(asked),
            ]
        });
        let head = ["what wrote", "bytes", "share", "from", "to", "asked for by"].map(str::to_owned).into();
        parts.push(Part::Table(Table { head, rows: rows.collect() }));
    }
    if !diagnosis.waited.is_empty() {
        let rows = diagnosis.waited.iter().take(WAITS_MAX).map(|wait| {
            vec![
                wait.task.to_string(),
                Unit::Ms.show(wait.begin_ms),
                Unit::Ms.show(wait.ms),
                text(wait.task.syscall.clone()),
                text(wait.kernel_function.clone()),
            ]
        });
        let head = ["who waited", "from", "for", "call", "kernel function"].map(str::to_owned).into();
        parts.push(Part::Table(Table { head, rows: rows.collect() }));
        let more = diagnosis.waited.len().saturating_sub(WAITS_MAX);
        if more > 0 {
            parts.push(Part::Text(format!("And {more} shorter waits.")));
        }
    }
    parts.extend(diagnosis.limits.iter().map(|limit| Part::Text(format!("Not known: {limit}."))));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_recorder::{Recording, Task, Wait};

    #[test]
    fn hostile_names_of_threads_do_no_harm() {
        let task = Task { pid: 7, comm: "=<script>".into(), syscall: Some("fsync".into()) };
        let wait = Wait { task, begin_ms: 5.0, ms: 90.0, ..Wait::default() };
        let report = Report {
            command: vec!["sh".into(), "-c".into(), "<b> & true".into()],
            exit_code: Some(3),
            diagnosis: Diagnosis { waited: vec![wait.clone()], ..Diagnosis::default() },
            recording: Recording { waits: vec![wait], length_ms: 100.0, ..Recording::default() },
            interrupted: None,
        };
        let csv = String::from_utf8(report.csv().unwrap()).unwrap();
        assert!(csv.contains("wait,'=<script>[7],fsync,,5,90,"), "{csv}");
        let html = wardian_pictures::page(&report.page());
        assert!(!html.contains("<script>[") && html.contains("sh -c &#39;&lt;b&gt; &amp; true&#39;"));
        assert!(html.contains("The command ended with exit code 3."));
        assert!(report.svg().contains("data-row=\"=&lt;script&gt;[7]\""));
    }
}
