//! A bisection's runs, as the history keeps them.

use super::report::Report;
use crate::runs::{begun, broken, machine as host};
use crate::timelines;
use std::collections::BTreeMap;
use wardian_history::{Machine, Run};

/// The runs of a bisection: one for each run on each kernel, and one without figures for each kernel that could not be
/// measured. What ended it early is a run `bisect` without figures.
pub fn runs(report: &Report) -> Vec<Run> {
    let options = &report.options;
    let machine = |release: &Option<String>| Machine {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        kernel: release.clone().unwrap_or_default(),
        cpus: options.cpus,
        memory_bytes: options.memory_mib << 20,
        filesystem: options.fs.name().to_owned(),
        mount_options: String::new(),
        cgroups: "none".to_owned(),
        load: 0.0,
    };
    let speed = options.disk_bps.map_or("unlimited".to_owned(), |bps| bps.to_string());
    let parameters: BTreeMap<String, String> = [
        ("experiment".to_owned(), options.experiment.words().join(" ")),
        ("fs".to_owned(), options.fs.name().to_owned()),
        ("disk-bps".to_owned(), speed),
        ("memory".to_owned(), options.memory_mib.to_string()),
        ("cpus".to_owned(), options.cpus.to_string()),
        ("accel".to_owned(), options.acceleration.name().to_owned()),
    ]
    .into();
    let mut all = Vec::new();
    for kernel in &report.kernels {
        let blank = Run {
            experiment: format!("bisect {}", options.experiment.name()),
            mode: "guest".to_owned(),
            engine: "kernel".to_owned(),
            version: if kernel.source.is_empty() { kernel.kernel.clone() } else { kernel.source.clone() },
            parameters: parameters.clone(),
            machine: machine(&kernel.release),
            headline: options.figure.clone(),
            ..Run::default()
        };
        all.extend(kernel.runs.iter().map(|run| Run {
            begun_ms: run.begun_ms,
            figures: run.figures.clone(),
            complete: true,
            timeline: timelines::of_guest(&run.report),
            ..blank.clone()
        }));
        if let Some(reason) = &kernel.skipped {
            let begun_ms = kernel.runs.last().map_or(report.begun_ms, |run| run.begun_ms);
            all.push(broken(Run { begun_ms, ..blank }, &anyhow::anyhow!("{reason}")));
        }
    }
    all.extend(report.error.as_ref().map(|error| {
        let cut = begun("bisect", report.begun_ms);
        let cut = Run { machine: host(&report.host), parameters: parameters.clone(), ..cut };
        broken(cut, &anyhow::anyhow!("{error}"))
    }));
    all
}
