//! Rows of containers, made of two looks at what they use.

use super::host::percent;
use super::{Pressure, Row};
use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};
use wardian_garden::wire::{BulkMetrics, Container, Metrics, Usage};

/// The most bytes of a text that is shown of a container.
const TEXT: usize = 200;

/// The present, in ms since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the beginning of a text.
pub(super) fn clip(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    let end = wardian_sys::text::boundary(text, TEXT);
    format!("{}…", &text[..end])
}

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    usages: HashMap<String, Usage>,
    /// States, and since when they have been seen.
    states: HashMap<String, (String, u64)>,
}

/// Returns the usage that a server of the Garden API tells, which has no limits but that of processes.
pub(super) fn of_garden(handle: &str, metrics: &Metrics) -> Usage {
    Usage {
        handle: handle.to_owned(),
        id: handle.to_owned(),
        age_ms: metrics.age as f64 / 1e6,
        memory_bytes: metrics.memory_stat.total_usage_toward_limit,
        cpu_ns: metrics.cpu_stat.usage,
        pids: metrics.pid_stat.current,
        pids_limit: metrics.pid_stat.max,
        rx_bytes: metrics.network_stat.map(|network| network.rx_bytes),
        tx_bytes: metrics.network_stat.map(|network| network.tx_bytes),
        disk_bytes: metrics.disk_stat.exclusive_bytes_used,
        ..Usage::default()
    }
}

/// Returns the usages of a bulk reply, without those that failed.
pub(super) fn of_bulk(bulk: &BTreeMap<String, BulkMetrics>) -> Vec<Usage> {
    let known = bulk.iter().filter(|(_, entry)| entry.err.is_none());
    known.map(|(handle, entry)| of_garden(handle, &entry.metrics)).collect()
}

/// Returns containers as far as a server of the Garden API tells of them.
pub(super) fn of_handles(handles: &[String]) -> Vec<Container> {
    let container = |handle: &String| Container {
        handle: handle.clone(),
        id: handle.clone(),
        state: "active".to_owned(),
        ..Container::default()
    };
    handles.iter().map(container).collect()
}

impl Memory {
    /// Makes the rows of these containers, whose usage is that of now.
    pub(super) fn rows(&mut self, containers: &[Container], usages: Vec<Usage>, now_ms: u64) -> Vec<Row> {
        let before = std::mem::take(&mut self.usages);
        self.usages = usages.into_iter().map(|usage| (usage.id.clone(), usage)).collect();
        let mut states = HashMap::with_capacity(containers.len());
        let rows = containers.iter().map(|container| {
            let state = container.state_word();
            let since_ms = match self.states.remove(&container.id) {
                Some((then, since)) if then == state => since,
                // It was in another one at the look before.
                Some(_) => now_ms,
                None => entered(container, state),
            };
            states.insert(container.id.clone(), (state.to_owned(), since_ms));
            let row = Row {
                id: container.id.clone(),
                handle: clip(&container.handle),
                image: clip(&container.image),
                state: clip(state),
                reason: clip(&container.reason),
                since_ms,
                command: clip(
                    &container.main.as_ref().map(|main| main.command.join(" ")).unwrap_or_default(),
                ),
                address: clip(&container.address),
                ..Row::default()
            };
            match self.usages.get(&container.id) {
                Some(now) => with_usage(row, before.get(&container.id), now),
                None => row,
            }
        });
        let rows = rows.collect();
        self.states = states;
        rows
    }
}

/// Returns since when a container that is seen for the first time has been in its state, as far as it is known.
fn entered(container: &Container, state: &str) -> u64 {
    let main = container.main.as_ref();
    match state {
        "running" => main.map_or(container.created_ms, |main| main.started_ms),
        "exited" => main.and_then(|main| main.exited_ms).unwrap_or(0),
        "idle" => container.created_ms,
        _ => 0,
    }
}

fn with_usage(row: Row, before: Option<&Usage>, now: &Usage) -> Row {
    // A handle of the Garden API may be that of another container by now: it is younger.
    let before = before.filter(|before| before.age_ms < now.age_ms);
    let elapsed_us = before.map_or(0.0, |before| (now.age_ms - before.age_ms) * 1e3);
    let rate = |then: Option<u64>, now: Option<u64>| {
        let grown = now?.checked_sub(then?)?;
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = (grown as f64 / elapsed_us.max(1.0) * 1e6).round() as u64;
        Some(rate)
    };
    let share = |total: fn(&Usage) -> Option<u64>| percent(before.and_then(total), total(now), elapsed_us);
    #[allow(clippy::cast_precision_loss, reason = "a share is shown with three digits")]
    let cpu = before.map(|before| {
        let used = now.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e3;
        (used / elapsed_us.max(1.0) * 1000.0).round() / 10.0
    });
    Row {
        memory: now.memory_bytes,
        memory_limit: now.memory_limit,
        dirty: now.dirty_bytes,
        writeback: now.writeback_bytes,
        cpu,
        cpu_shares: now.cpu_shares,
        rx: rate(before.and_then(|before| before.rx_bytes), now.rx_bytes),
        tx: rate(before.and_then(|before| before.tx_bytes), now.tx_bytes),
        disk: now.disk_bytes,
        disk_limit: now.disk_limit,
        pids: now.pids,
        pids_limit: now.pids_limit,
        pressure: Pressure {
            io: share(|usage| usage.io_stalled_us),
            memory: share(|usage| usage.memory_stalled_us),
            cpu: share(|usage| usage.cpu_stalled_us),
        },
        ..row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, state: &str, running: usize) -> Container {
        Container { id: id.into(), state: state.into(), running, created_ms: 7, ..Container::default() }
    }

    fn usage(id: &str, age: i64, cpu: u64, rx: u64) -> Usage {
        Usage {
            id: id.into(),
            age_ms: age as f64 / 1e6,
            cpu_ns: cpu,
            rx_bytes: Some(rx),
            io_stalled_us: Some(cpu / 1000),
            ..Usage::default()
        }
    }

    #[test]
    fn rates_are_between_two_looks_at_the_same_container() {
        let mut memory = Memory::default();
        let containers = [container("a", "active", 1), container("b", "creating", 0)];
        let second = 1_000_000_000;
        let rows = memory.rows(&containers, vec![usage("a", second, 5, 10)], 100);
        assert_eq!((rows[0].cpu, rows[0].rx, rows[1].memory), (None, None, 0));
        let now = usage("a", 2 * second, 5 + second as u64 / 2, 1010);
        let rows = memory.rows(&containers, vec![now], 1100);
        assert_eq!((rows[0].cpu, rows[0].rx, rows[0].tx), (Some(50.0), Some(1000), None));
        assert_eq!(rows[0].pressure.io, Some(50.0));
        // It was made anew.
        let rows = memory.rows(&containers, vec![usage("a", 1, 5, 10)], 2100);
        assert_eq!((rows[0].cpu, rows[0].rx), (None, None));
    }

    #[test]
    fn a_state_lasts_since_it_was_first_seen() {
        let mut memory = Memory::default();
        assert_eq!(memory.rows(&[container("a", "creating", 0)], vec![], 100)[0].since_ms, 0);
        assert_eq!(memory.rows(&[container("a", "active", 0)], vec![], 200)[0].since_ms, 200);
        assert_eq!(memory.rows(&[container("a", "active", 0)], vec![], 300)[0].since_ms, 200);
        assert_eq!(memory.rows(&[container("b", "active", 0)], vec![], 400)[0].since_ms, 7);
        assert!(memory.states.contains_key("b") && !memory.states.contains_key("a"));
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(clip("kurz"), "kurz");
        let long = "ä".repeat(TEXT);
        assert!(clip(&long).len() <= TEXT + 3 && clip(&long).ends_with('…'));
    }
}
