//! Merges waits that were sampled with system calls that were traced.

use crate::attribution::Call;
use crate::recording::Wait;

/// Returns one list, ordered by beginning. A wait within a traced call begins and ends with the call. Only an unmount
/// ends later, with its samples: it waits in task work at the return from the call, after the trace's exit event.
pub(crate) fn merge(mut waits: Vec<Wait>, calls: &[Call], period_ms: f64) -> Vec<Wait> {
    for call in calls {
        let name = call.task.syscall.as_deref();
        // It may take several samples until a new process is found.
        let after = if name == Some("umount") { 6.0 } else { 1.5 };
        let belongs = |wait: &Wait| {
            let same = wait.task.syscall.as_deref() == name
                || name == Some("umount") && wait.task.syscall.as_deref() == Some("task_work");
            wait.task.pid == call.task.pid
                && same
                && wait.begin_ms + wait.ms >= call.begin_ms
                && wait.begin_ms <= call.end_ms + period_ms * after
        };
        let seen = waits.iter().position(belongs);
        let Some(first) = seen else {
            waits.push(Wait {
                pid: call.task.pid,
                task: call.task.clone(),
                begin_ms: call.begin_ms,
                ms: call.end_ms - call.begin_ms,
                ..Wait::default()
            });
            continue;
        };
        // Several waits within one call become one.
        let mut end = call.end_ms;
        let mut samples = 0;
        let mut longest = first;
        for (index, wait) in waits.iter().enumerate().filter(|(_, wait)| belongs(wait)) {
            if name == Some("umount") {
                end = end.max(wait.begin_ms + wait.ms);
            }
            samples += wait.samples;
            if wait.samples > waits[longest].samples {
                longest = index;
            }
        }
        let mut whole = waits[longest].clone();
        waits.retain(|wait| !belongs(wait));
        whole.begin_ms = call.begin_ms;
        whole.ms = end - call.begin_ms;
        whole.samples = samples;
        whole.task.syscall = call.task.syscall.clone();
        waits.push(whole);
    }
    waits.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
    waits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Task;

    fn task(pid: u32, call: &str) -> Task {
        Task { pid, comm: "x".into(), syscall: Some(call.into()) }
    }

    fn wait(pid: u32, call: &str, begin_ms: f64, ms: f64) -> Wait {
        Wait { pid, task: task(pid, call), begin_ms, ms, samples: 2, ..Wait::default() }
    }

    #[test]
    fn what_an_unmount_does_on_its_way_out_belongs_to_it() {
        let call = Call { task: task(7, "umount"), begin_ms: 100.0, end_ms: 100.1 };
        let merged = merge(vec![wait(7, "task_work", 110.0, 500.0)], &[call], 20.0);
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].begin_ms, merged[0].ms), (100.0, 510.0));
        assert_eq!(merged[0].task.syscall.as_deref(), Some("umount"));
    }

    #[test]
    fn others_are_left_alone() {
        let call = Call { task: task(7, "fsync"), begin_ms: 100.0, end_ms: 150.0 };
        let waits =
            vec![wait(8, "fsync", 100.0, 50.0), wait(7, "write", 110.0, 10.0), wait(7, "fsync", 900.0, 9.0)];
        let merged = merge(waits, std::slice::from_ref(&call), 20.0);
        assert_eq!(merged.len(), 4);
        assert!(merged.iter().any(|w| w.samples == 0 && w.ms == 50.0));
        // The trace knows better than the samples when a call ended.
        let merged = merge(vec![wait(7, "fsync", 115.0, 60.0)], &[call], 20.0);
        assert_eq!((merged[0].begin_ms, merged[0].ms, merged[0].samples), (100.0, 50.0, 2));
    }

    #[test]
    fn several_within_one_call_are_one() {
        let call = Call { task: task(7, "fsync"), begin_ms: 100.0, end_ms: 400.0 };
        let merged = merge(vec![wait(7, "fsync", 110.0, 50.0), wait(7, "fsync", 300.0, 90.0)], &[call], 20.0);
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].ms, merged[0].samples), (300.0, 4));
    }
}
