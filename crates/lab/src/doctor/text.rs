//! The report as readable text.

use super::features::State;
use super::hazards::Severity;
use super::{Report, plural};
use crate::report::bytes;
use std::fmt::Write as _;
use wardian_sys::text::tame;

/// Marks, and their colours on a terminal (ECMA-48).
const YES: (&str, u8) = ("✓", 32);
const NO: (&str, u8) = ("✗", 31);
const UNKNOWN: (&str, u8) = ("?", 33);
const CAREFUL: (&str, u8) = ("!", 33);
const NOTE: (&str, u8) = ("·", 36);
const WITHOUT: (&str, u8) = ("-", 0);
/// Column at which the text after a name begins.
const WIDTH: usize = 30;

struct Text {
    out: String,
    colour: bool,
}

impl Text {
    fn head(&mut self, head: &str) {
        let space = if self.out.is_empty() { "" } else { "\n" };
        let _ = if self.colour {
            writeln!(self.out, "{space}\x1b[1m{head}\x1b[0m")
        } else {
            writeln!(self.out, "{space}{head}")
        };
    }

    fn mark(&self, (mark, colour): (&str, u8)) -> String {
        if self.colour && colour != 0 { format!("\x1b[{colour}m{mark}\x1b[0m") } else { mark.to_owned() }
    }

    fn line(&mut self, name: &str, what: impl AsRef<str>) {
        let line = format!("    {name:<WIDTH$}{}", tame(what.as_ref()));
        let _ = writeln!(self.out, "{}", line.trim_end());
    }

    fn marked(&mut self, mark: (&str, u8), name: &str, what: &str) {
        let line = format!("  {} {name:<WIDTH$}{}", self.mark(mark), tame(what));
        let _ = writeln!(self.out, "{}", line.trim_end());
    }
}

impl Report {
    /// The verdict, then each problem with its remedy. With `verbose` also everything that was looked at, in groups
    /// and columns. `colour`: for a terminal.
    pub fn text(&self, verbose: bool, colour: bool) -> String {
        let mut text = Text { out: String::new(), colour };
        text.out += &self.verdict(verbose);
        self.hazards_text(&mut text);
        if !verbose {
            return text.out;
        }
        self.host_text(&mut text);
        self.features_text(&mut text);
        self.store_text(&mut text);
        self.dirty_text(&mut text);
        self.network_text(&mut text);
        self.limits_text(&mut text);
        text.out
    }

    fn host_text(&self, text: &mut Text) {
        let facts = &self.facts;
        text.head("Host");
        text.line("kernel", &facts.host.kernel);
        text.line("processors", format!("{}, load {}", facts.host.cpus, facts.host.load));
        text.line("memory", bytes(facts.host.memory_bytes));
        let missing: Vec<&str> = facts.missing_capabilities.iter().map(|missing| missing.name).collect();
        let privileges = match (facts.root, missing.as_slice()) {
            (false, _) => "not root: less can be found out".to_owned(),
            (true, []) => "root".to_owned(),
            (true, missing) => format!("root without {}", missing.join(", ")),
        };
        text.line("privileges", privileges);
        let version = facts.cgroups.version;
        text.line("cgroups", version);
        for (name, controllers) in [("  v1", &facts.cgroups.v1), ("  v2", &facts.cgroups.v2)] {
            if version == "hybrid" || (version == name.trim_start()) {
                let none = if controllers.is_empty() { "no controllers" } else { "" };
                text.line(name, format!("{none}{}", controllers.join(" ")));
            }
        }
        text.line("/run", &facts.run_filesystem);
    }

    fn features_text(&self, text: &mut Text) {
        text.head("Features, each tried");
        for feature in &self.facts.features.0 {
            let mark = match (feature.state, feature.needed) {
                (State::Yes, _) => YES,
                (State::No, true) => NO,
                (State::No, false) => WITHOUT,
                (State::Unknown, _) => UNKNOWN,
            };
            text.marked(mark, &feature.name.replace('_', " "), &feature.detail);
        }
    }

    fn store_text(&self, text: &mut Text) {
        let fs = &self.facts.filesystem;
        text.head(&format!("Store at {}", tame(&fs.root.display().to_string())));
        if fs.looked_at != fs.root {
            text.line(
                "looked at",
                format!("{}: there is no store yet, or it cannot be reached", fs.looked_at.display()),
            );
        }
        text.line("file system", format!("{} at {}", fs.kind, fs.mount_point.display()));
        text.line("options", fs.options.join(","));
        let disks = fs.disks.iter().map(String::as_str).collect::<Vec<_>>().join(" on ");
        let turns = if fs.rotational == Some(true) { ", rotational" } else { "" };
        text.line(
            "device",
            format!(
                "{} ({}){turns}",
                fs.source.display(),
                if disks.is_empty() { &fs.device } else { &disks }
            ),
        );
        if let Some(file) = &fs.loop_file {
            let (allocated, size) = (bytes(file.allocated_bytes), bytes(file.size_bytes));
            text.line("in the file", format!("{}, {allocated} of {size} written", file.path.display()));
        }
        for pool in &fs.thin_pools {
            text.line("in the thin pool", format!("{}, {} free", pool.name, bytes(pool.free_bytes)));
        }
        text.line("free", format!("{} of {}", bytes(fs.available_bytes), bytes(fs.total_bytes)));
        let inodes = match fs.inodes {
            0 => "as many as are wanted".to_owned(),
            inodes => format!("{} of {inodes}", fs.available_inodes),
        };
        text.line("free inodes", inodes);
        text.line("journal", fs.journal.map_or("not known", |journal| if journal { "yes" } else { "no" }));
        text.head(
            "Drivers of limits on what a container writes (the first that works, or serve --disk-driver)",
        );
        for driver in &self.facts.limit_drivers {
            let mark = match driver.state {
                State::Unknown => UNKNOWN,
                State::Yes => YES,
                State::No => WITHOUT,
            };
            let chosen = driver.name == self.facts.limit_driver;
            let why = if chosen { format!("this one: {}", driver.why) } else { driver.why.clone() };
            text.marked(mark, driver.name, &why);
        }
    }

    fn dirty_text(&self, text: &mut Text) {
        let dirty = &self.facts.dirty;
        text.head("Waiting for the disk");
        let limit = |ratio: u64, bytes_: u64| match bytes_ {
            0 => format!("{ratio} % of what may be dirty"),
            n => format!("{n} bytes"),
        };
        let threshold = bytes(dirty.threshold_bytes);
        text.line("dirty at most", format!("{threshold} ({})", limit(dirty.ratio, dirty.bytes)));
        let background = limit(dirty.background_ratio, dirty.background_bytes);
        text.line("written back from", format!("{} ({background})", bytes(dirty.background_threshold_bytes)));
        let expire = dirty.expire_centisecs / 100;
        text.line("or after", format!("{expire} s (looked at every {} s)", dirty.writeback_centisecs / 100));
        text.line("dirty now", bytes(dirty.now_bytes));
        if let Some(why) = &dirty.not_measured {
            text.line("speed of writing", format!("not measured: {why}"));
        }
        if let Some(disk) = &dirty.disk {
            let flush = if disk.flushed { "and flushed" } else { "and not flushed, for much is dirty" };
            let (n, took) = (bytes(disk.bytes), disk.write_ms);
            text.line(
                "speed of writing",
                format!("{}/s ({n} written {flush} in {took:.0} ms)", bytes(disk.bytes_per_s)),
            );
            text.line("deleting that took", format!("{:.0} ms", disk.delete_ms));
        }
        if let (Some(worst), Some(now)) = (dirty.sync_worst_s, dirty.sync_now_s) {
            text.line("a sync", format!("may take ~{worst} s here, and ~{now} s now"));
        }
    }

    fn network_text(&self, text: &mut Text) {
        let network = &self.facts.network;
        text.head("Network");
        text.line("addresses of containers", format!("{} (--network-pool)", network.pool));
        let forwarding = match (network.forwarding, network.in_use) {
            (Some(true), _) => "on",
            (Some(false), true) => "off",
            (Some(false), false) => "off; a server with a network turns it on",
            (None, _) => "not known",
        };
        text.line("forwarding", forwarding);
        text.line("in use", if network.in_use { "by a server, or a container" } else { "by no server" });
    }

    fn limits_text(&self, text: &mut Text) {
        text.head("Limits of the kernel");
        for limit in &self.facts.limits {
            let value =
                if limit.value >= i64::MAX as u64 { "none".to_owned() } else { limit.value.to_string() };
            let mark = if limit.is_small() { CAREFUL } else { YES };
            text.marked(mark, limit.name, &value);
        }
    }

    /// One sentence, and how many problems there are.
    fn verdict(&self, verbose: bool) -> String {
        let count = |severity| self.hazards.iter().filter(|hazard| hazard.severity == severity).count();
        let kinds = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")];
        let counts: Vec<String> = kinds
            .iter()
            .map(|(severity, name)| (count(*severity), name))
            .filter(|(n, _)| *n > 0)
            .map(|(n, name)| plural(n, name))
            .collect();
        let mut text = match (count(Severity::Error), self.facts.root) {
            (0, true) => "Containers run here.",
            (0, false) => "Nothing speaks against containers here, as far as can be seen without root.",
            _ => "Containers cannot run here.",
        }
        .to_owned();
        if !counts.is_empty() {
            let _ = write!(text, " {}.", counts.join(", "));
        }
        if !verbose {
            let facts = &self.facts;
            let checks = facts.features.0.len() + facts.limit_drivers.len() + facts.limits.len();
            let _ = write!(text, " (all {checks} checks: --verbose)");
        }
        text.push('\n');
        text
    }

    /// Errors and warnings with their remedies on lines of their own, notes shortly.
    fn hazards_text(&self, text: &mut Text) {
        for hazard in &self.hazards {
            let mark = match hazard.severity {
                Severity::Error => NO,
                Severity::Warning => CAREFUL,
                Severity::Note => NOTE,
            };
            let first =
                self.hazards.iter().find(|first| (first.severity == Severity::Note) == (mark == NOTE));
            let space = if first == Some(hazard) { "\n" } else { "" };
            let (mark, what) = (text.mark(mark), format!("{}: {}", hazard.id, tame(&hazard.evidence)));
            let remedy = tame(&hazard.remedy);
            let _ = match hazard.severity {
                Severity::Note => writeln!(text.out, "{space}{mark} {what}: {remedy}"),
                _ => writeln!(text.out, "{space}{mark} {what}\n  → {remedy}"),
            };
        }
    }
}
