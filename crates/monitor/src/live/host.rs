//! The host that this program runs on.

use super::{Host, Pressure};
use std::path::Path;
use std::time::Instant;
use wardian_sys::pressure::parse_psi;
use wardian_sys::procfs::meminfo;

/// Reads the figures of the host; shares of time are of the time since the look before.
#[derive(Debug)]
pub(super) struct Looker {
    name: String,
    before: Option<(Instant, [Option<u64>; 3])>,
}

/// Returns in percent how much of the time a total in microseconds has grown by.
pub(super) fn percent(before: Option<u64>, now: Option<u64>, elapsed_us: f64) -> Option<f64> {
    let grown = now?.checked_sub(before?)?;
    #[allow(clippy::cast_precision_loss, reason = "microseconds of one second")]
    let share = grown as f64 / elapsed_us.max(1.0) * 100.0;
    Some((share.min(100.0) * 10.0).round() / 10.0)
}

impl Looker {
    pub(super) fn new() -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { name, before: None }
    }

    /// Returns the figures; those that cannot be read are zero or unknown.
    pub(super) fn look(&mut self) -> Host {
        let text = |path: &str| std::fs::read_to_string(Path::new("/proc").join(path)).ok();
        let total = |path: &str| Some(parse_psi(&text(path)?)?.some.total_us);
        let totals = ["pressure/io", "pressure/memory", "pressure/cpu"].map(total);
        let now = Instant::now();
        let shares = self.before.map_or([None; 3], |(then, before)| {
            let elapsed = now.duration_since(then).as_secs_f64() * 1e6;
            std::array::from_fn(|at| percent(before[at], totals[at], elapsed))
        });
        self.before = Some((now, totals));
        let memory = text("meminfo").and_then(|text| meminfo(&text).ok()).unwrap_or_default();
        let load = text("loadavg").and_then(|text| text.split(' ').next()?.parse().ok());
        Host {
            name: self.name.clone(),
            dirty: memory.dirty,
            writeback: memory.writeback,
            available: memory.available,
            memory: memory.total,
            pressure: Pressure { io: shares[0], memory: shares[1], cpu: shares[2] },
            load: load.unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_time_are_between_two_looks() {
        assert_eq!(percent(Some(100), Some(250_100), 1e6), Some(25.0));
        assert_eq!((percent(None, Some(1), 1e6), percent(Some(1), None, 1e6)), (None, None));
        assert_eq!((percent(Some(2), Some(1), 1e6), percent(Some(0), Some(9), 0.0)), (None, Some(100.0)));
        let mut looker = Looker::new();
        looker.look();
        let host = looker.look();
        assert!(host.memory > 0 && !host.name.is_empty() && host.cpus > 0, "{host:?}");
    }
}
