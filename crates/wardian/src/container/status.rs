//! The state of a container and of its processes, in words.

use crate::print;
use wardian_garden::wire::{Container, ProcessState};

/// The states of containers, as [`Container::state_word`] has them.
pub const STATES: [&str; 8] =
    ["running", "exited", "idle", "stopped", "paused", "broken", "creating", "destroying"];

/// Returns the state of a container with its times: what runs in it, or how that has ended.
pub fn status(container: &Container) -> String {
    let main = container.main.as_ref();
    let ended = main.filter(|main| main.exit_status.is_some()).map(exited);
    match (container.state_word(), ended) {
        ("running", None) => {
            let up = main.map_or_else(|| "up".to_owned(), up);
            let others = container.running.saturating_sub(1);
            if others > 0 { format!("{up} ({others} more)") } else { up }
        }
        ("running", Some(ended)) => format!("{ended}, {} running", container.running),
        ("exited", Some(ended)) => ended,
        // Signals that end a process need not wait for the freezer.
        ("paused", Some(ended)) => format!("paused, {ended}"),
        (state, _) => state.to_owned(),
    }
}

fn up(process: &ProcessState) -> String {
    match process.started_ms {
        0 => "up".to_owned(),
        started => format!("up {}", print::duration(started)),
    }
}

fn exited(process: &ProcessState) -> String {
    let why = if process.out_of_memory { ", out of memory" } else { "" };
    let when = process.exited_ms.map(|ms| format!(" {}", print::age(ms))).unwrap_or_default();
    format!("exited ({}{why}){when}", process.exit_status.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(exit_status: Option<i32>) -> ProcessState {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let ms = u64::try_from(now.as_millis()).unwrap() - 5_000;
        let exited_ms = exit_status.map(|_| ms);
        ProcessState { started_ms: ms, exit_status, exited_ms, ..ProcessState::default() }
    }

    fn of(state: &str, main: Option<ProcessState>, running: usize) -> String {
        status(&Container { state: state.into(), main, running, ..Container::default() })
    }

    #[test]
    fn what_runs_or_has_ended() {
        assert_eq!(of("active", Some(process(None)), 1), "up 5 seconds");
        assert_eq!(of("active", Some(process(None)), 3), "up 5 seconds (2 more)");
        assert_eq!(of("active", Some(process(Some(4))), 0), "exited (4) 5 seconds ago");
        assert_eq!(of("stopped", Some(process(Some(143))), 0), "exited (143) 5 seconds ago");
        assert_eq!(of("active", Some(process(Some(0))), 1), "exited (0) 5 seconds ago, 1 running");
        let killed = ProcessState { out_of_memory: true, exited_ms: None, ..process(Some(137)) };
        assert_eq!(of("active", Some(killed), 0), "exited (137, out of memory)");
        assert_eq!(of("active", None, 0), "idle");
        assert_eq!(of("active", Some(ProcessState::default()), 1), "up");
        for state in ["paused", "stopped", "broken", "creating"] {
            assert_eq!(of(state, None, 0), state);
        }
    }
}
