//! Results of experiments as runs of the history.

use crate::bench::Figures;
use crate::host::{Host, since_1970};
use crate::report::Phase;
use crate::scale::{self, Kind};
use crate::teardown::options::{Again, Order, Source, Target};
use crate::{record, teardown, timelines};
use std::collections::BTreeMap;
use std::time::SystemTime;
use wardian_history::{Machine, Run};

/// A run of this machine and program, begun at this time (ms since 1970), without results. Revision and command are the
/// caller's.
pub(crate) fn begun(experiment: &str, begun_ms: i64) -> Run {
    Run {
        begun_ms,
        experiment: experiment.to_owned(),
        engine: "wardian".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        complete: true,
        ..Run::default()
    }
}

/// Describes the machine, as the history does.
pub fn machine(host: &Host) -> Machine {
    Machine {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        kernel: host.kernel.clone(),
        cpus: host.cpus as u64,
        memory_bytes: host.memory_bytes,
        filesystem: host.filesystem.clone(),
        mount_options: host.mount_options.clone(),
        cgroups: host.cgroups.to_owned(),
        load: host.load,
    }
}

/// Marks a run as one that failed or was interrupted. What it has measured until then stays.
pub fn broken(mut run: Run, error: &anyhow::Error) -> Run {
    run.complete = false;
    // Causes come from servers and commands, and may be of any length.
    run.error = Some(wardian_sys::text::clip(&format!("{error:#}"), 2000).into_owned());
    run
}

fn put(figures: &mut BTreeMap<String, f64>, name: String, value: f64) {
    if value.is_finite() {
        figures.insert(name, value);
    }
}

fn phases(figures: &mut BTreeMap<String, f64>, phases: &[Phase]) {
    for Phase { name, wall_ms, p50_ms, max_ms, .. } in phases {
        for (what, value) in [("", wall_ms), ("_p50", p50_ms), ("_max", max_ms)] {
            put(figures, format!("{name}{what}_ms"), *value);
        }
    }
}

fn parameters<const N: usize>(all: [(&str, Option<String>); N]) -> BTreeMap<String, String> {
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// A story of this kind without results: one that failed. Complete ones are made of it by [`of_scale`].
pub fn scale_begun(options: &scale::Options, kind: Kind, at: SystemTime) -> Run {
    let to = options.to.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut run = begun("scale", since_1970(at));
    // Of a server that was not started by the experiment neither kind nor version are known.
    if options.address.is_some() {
        (run.engine, run.version) = ("garden".to_owned(), String::new());
    }
    Run {
        mode: kind.to_string(),
        parameters: parameters([
            ("from", Some(options.from.to_string())),
            ("to", Some(to)),
            ("code-mb", Some(options.code_mb.to_string())),
            ("no-pea", (!options.pea).then(String::new)),
            ("disk", kind.disk_limit_bytes.map(|bytes| bytes.to_string())),
            ("image", options.image.clone()),
            ("addr", options.address.clone()),
            ("root", options.location.as_ref().map(|root| root.display().to_string())),
        ]),
        machine: machine(&Host::probe(options.location.as_deref())),
        headline: "waiting_ms".to_owned(),
        ..run
    }
}

/// The run of a story.
pub fn of_scale(report: &scale::Report, options: &scale::Options, at: SystemTime) -> Run {
    let mut run = scale_begun(options, report.kind, at);
    run.machine = machine(&report.host);
    run.timeline = Some(timelines::of_scale(report));
    let figures = &mut run.figures;
    phases(figures, &report.phases);
    for (name, value) in [
        ("waiting_ms", report.waiting_ms),
        ("story_ms", report.story_ms),
        ("slowest_destroy_ms", report.slowest_destroy_ms),
        ("slowest_pea_destroy_ms", report.slowest_pea_destroy_ms),
        ("dirty_at_destroy_bytes", report.dirty_at_destroy_bytes as f64),
        ("written_bytes", report.written_bytes as f64),
        ("idle_written_bytes", report.idle_written_bytes as f64),
        ("fetched_bytes", report.fetched_bytes as f64),
    ] {
        put(figures, name.to_owned(), value);
    }
    if let Some(disk) = report.disk_written_bytes {
        put(figures, "disk_written_bytes".to_owned(), disk as f64);
    }
    for step in &report.steps {
        put(figures, format!("waiting_{}_{}_ms", step.from, step.to), step.waiting_ms);
    }
    run
}

/// The run of a teardown, also of one that was not completed.
pub fn of_teardown(report: &teardown::report::Report, at: SystemTime) -> Run {
    let options = &report.options;
    let mut run = begun("teardown", since_1970(at));
    run.engine = "kernel".to_owned();
    // The kernel is what is measured, and the machine has its release.
    run.version = String::new();
    let (mode, headline) = match options.target {
        Target::Durable => ("durable", "unmount_max_ms"),
        Target::Volatile => ("volatile", "unmount_max_ms"),
        Target::Plain => ("plain", "write_ms"),
    };
    (run.mode, run.headline) = (mode.to_owned(), headline.to_owned());
    let some = |number: u64, default: u64| (number != default).then(|| number.to_string());
    let sysctl: Vec<String> =
        options.sysctl.iter().map(|setting| format!("vm.{}={}", setting.name, setting.value)).collect();
    run.parameters = parameters([
        ("mounts", Some(options.mounts.to_string())),
        ("mb", Some(options.mb.to_string())),
        ("files", some(options.files as u64, 1)),
        ("source", (options.source == Source::Urandom).then(|| "urandom".to_owned())),
        ("unmount", (options.unmount == Order::Serial).then(|| "serial".to_owned())),
        (
            "again",
            options.again.map(|how| match how {
                Again::Truncate => "truncate".to_owned(),
                Again::Overwrite => "overwrite".to_owned(),
            }),
        ),
        ("neighbour-mb", some(options.neighbour_mb, 0)),
        ("fs", Some(options.fs.display().to_string())),
        ("age", some(options.age_s, 0)),
        ("trickle-sync", options.trickle_sync_ms.map(|ms| ms.to_string())),
        ("sysctl", (!sysctl.is_empty()).then(|| sysctl.join(" "))),
    ]);
    run.machine = machine(&report.host);
    run.timeline = Some(timelines::of_teardown(report));
    phases(&mut run.figures, &report.round.phases);
    put(&mut run.figures, "dirty_at_unmount_bytes".to_owned(), report.round.dirty_at_unmount_bytes as f64);
    for (phase, bytes) in &report.round.written_bytes {
        put(&mut run.figures, format!("{phase}_written_bytes"), *bytes as f64);
    }
    (run.complete, run.error) = (report.complete, report.error.clone());
    run
}

/// A benchmark without results.
pub fn bench_begun(subject: &str, root: Option<&std::path::Path>, at: SystemTime) -> Run {
    Run {
        parameters: parameters([("root", root.map(|root| root.display().to_string()))]),
        machine: machine(&Host::probe(root)),
        ..begun(&format!("bench {subject}"), since_1970(at))
    }
}

/// The run of a benchmark; `run` is what [`bench_begun`] returned. Its headline is the first figure.
pub fn of_bench(mut run: Run, figures: &Figures) -> Run {
    run.machine = machine(&figures.host);
    for figure in &figures.figures {
        let Some(measured) = figure.measured else { continue };
        let (scale, unit) = match figure.unit {
            "ms" => (1.0, "_ms"),
            "MB" => (1e6, "_bytes"),
            "KiB" => (1024.0, "_bytes"),
            "MB/s" => (1e6, "_bytes_per_s"),
            "/s" => (1.0, "_per_s"),
            _ => (1.0, ""),
        };
        let name = slug(figure.name) + unit;
        if run.headline.is_empty() && measured.is_finite() {
            run.headline.clone_from(&name);
        }
        put(&mut run.figures, name, measured * scale);
    }
    run.complete = !run.headline.is_empty();
    run
}

/// A name as a word: letters and digits, and between them `_`.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("_")
}

/// The run of a recorded command: how long it took and what was written meanwhile.
pub fn of_record(report: &record::Report, at: SystemTime) -> Run {
    let recording = &report.recording;
    let mut run = begun("record", since_1970(at));
    (run.engine, run.version) = ("kernel".to_owned(), String::new());
    run.headline = "length_ms".to_owned();
    run.parameters = parameters([
        ("command", Some(wardian_sys::text::clip(&report.command.join(" "), 2000).into_owned())),
        ("fs", Some(recording.path.display().to_string())),
    ]);
    run.machine = machine(&Host::probe(Some(&recording.path)));
    run.timeline = Some(timelines::of_recording(report));
    put(&mut run.figures, "length_ms".to_owned(), recording.length_ms);
    put(&mut run.figures, "waits".to_owned(), recording.waits.len() as f64);
    let longest = recording.waits.iter().map(|wait| wait.ms).fold(0.0, f64::max);
    put(&mut run.figures, "longest_wait_ms".to_owned(), longest);
    if let Some(bytes) = recording.device_bytes() {
        put(&mut run.figures, "device_written_bytes".to_owned(), bytes as f64);
    }
    if let Some(signal) = report.interrupted {
        (run.complete, run.error) = (false, Some(format!("interrupted by signal {signal}")));
    } else if report.exit_code != Some(0) {
        let code = report.exit_code.map_or_else(|| "unknown".to_owned(), |code| code.to_string());
        (run.complete, run.error) = (false, Some(format!("the command ended with exit status {code}")));
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Figure;
    use crate::scale::Mode;
    use std::time::UNIX_EPOCH;

    #[test]
    fn a_story_is_of_the_series_of_its_options() {
        let mut options = scale::Options::new("wardian".into());
        let kind = Kind { mode: Mode::Oci, disk_limit_bytes: Some(7) };
        let run = scale_begun(&options, kind, UNIX_EPOCH);
        assert_eq!((run.begun_ms, run.mode.as_str(), run.engine.as_str()), (0, "oci, limited", "wardian"));
        let host = &run.machine.host;
        assert_eq!(
            run.series(),
            format!("{host}|scale|wardian|oci, limited|code-mb=100 disk=7 from=1 to=10")
        );
        assert!(!run.machine.kernel.is_empty() && run.machine.cpus > 0);
        (options.address, options.pea) = (Some("unix:/x".into()), false);
        let other = scale_begun(&options, kind, UNIX_EPOCH);
        assert_eq!((other.engine.as_str(), other.version.as_str()), ("garden", ""));
        assert!(other.parameters.contains_key("no-pea") && !run.parameters.contains_key("no-pea"));
    }

    #[test]
    fn figures_of_benchmarks_have_units() {
        let figure = |name, unit, measured| Figure {
            name,
            unit,
            goal: None,
            at_least: false,
            guardian: None,
            measured,
        };
        let figures = Figures {
            figures: vec![
                figure("skipped", "ms", None),
                figure("create, serial p50", "ms", Some(2.5)),
                figure("server, RSS with 20 containers", "MB", Some(3.0)),
                figure("a ratio", "ratio", Some(f64::NAN)),
            ],
            ..Figures::default()
        };
        let run = of_bench(bench_begun("containers", None, UNIX_EPOCH), &figures);
        assert_eq!((run.headline.as_str(), run.value()), ("create_serial_p50_ms", Some(2.5)));
        assert_eq!(run.figures.get("server_rss_with_20_containers_bytes"), Some(&3e6));
        assert_eq!((run.figures.len(), run.complete), (2, true));
        let half = broken(bench_begun("api", None, UNIX_EPOCH), &anyhow::anyhow!("x").context("y"));
        assert_eq!((half.complete, half.error.as_deref()), (false, Some("y: x")));
    }
}
