//! Merges waits that were sampled with system calls that were traced.

use crate::attribution::{Call, SHORT_MS};
use crate::recording::{Task, Wait};
use std::collections::{HashMap, VecDeque};

/// Returns one list, ordered by beginning. A wait within a traced call begins and ends with the call. Only an unmount
/// ends later: it waits in task work at the return from the call, after the trace's exit event, until its thread goes on
/// (`moments`, in their order), if that is known.
pub(crate) fn merge(
    mut waits: Vec<Wait>,
    calls: &[Call],
    moments: &VecDeque<(u32, f64)>,
    period_ms: f64,
) -> Vec<Wait> {
    let mut of: HashMap<u32, Vec<f64>> = HashMap::new();
    for (pid, t_ms) in moments {
        of.entry(*pid).or_default().push(*t_ms);
    }
    let mut whole = Vec::new();
    let mut merged = vec![false; waits.len()];
    for call in calls {
        let name = call.task.syscall.as_deref();
        let unmounts = name == Some("umount");
        let moments = of.get(&call.task.pid).into_iter().flatten();
        let goes_on = moments.copied().find(|t_ms| *t_ms > call.end_ms).filter(|_| unmounts);
        // It may take several samples until a new process is found.
        let until = goes_on.unwrap_or(call.end_ms + period_ms * if unmounts { 6.0 } else { 1.5 });
        let belongs = |wait: &Wait| {
            let same = wait.task.syscall.as_deref() == name
                || unmounts && wait.task.syscall.as_deref() == Some("task_work");
            // The samples may have seen the end of the unmount before it late.
            let common = (wait.begin_ms + wait.ms).min(until) - call.begin_ms;
            let begins = !unmounts || wait.begin_ms >= call.begin_ms || common >= period_ms / 2.0;
            wait.task.pid == call.task.pid
                && same
                && begins
                && wait.begin_ms + wait.ms >= call.begin_ms
                && wait.begin_ms <= until
        };
        // Several waits within one call become one.
        let (mut end, mut samples) = (call.end_ms, 0);
        let mut longest: Option<&Wait> = None;
        for (wait, merged) in waits.iter().zip(&mut merged).filter(|(wait, _)| belongs(wait)) {
            *merged = true;
            if unmounts {
                end = end.max((wait.begin_ms + wait.ms).min(goes_on.unwrap_or(f64::INFINITY)));
            }
            samples += wait.samples;
            longest = longest.filter(|longest| longest.samples >= wait.samples).or(Some(wait));
        }
        if longest.is_some() || call.end_ms - call.begin_ms >= SHORT_MS {
            whole.push(Wait {
                pid: longest.map_or(call.task.pid, |wait| wait.pid),
                task: Task {
                    comm: longest.map_or(&call.task.comm, |wait| &wait.task.comm).clone(),
                    ..call.task.clone()
                },
                begin_ms: call.begin_ms,
                ms: end - call.begin_ms,
                samples,
                ..longest.cloned().unwrap_or_default()
            });
        }
    }
    let mut merged = merged.into_iter();
    waits.retain(|_| !merged.next().unwrap_or_default());
    waits.append(&mut whole);
    waits.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: u32, call: &str) -> Task {
        Task { pid, comm: "x".into(), syscall: Some(call.into()) }
    }

    fn wait(pid: u32, call: &str, begin_ms: f64, ms: f64) -> Wait {
        Wait { pid, task: task(pid, call), begin_ms, ms, samples: 2, ..Wait::default() }
    }

    #[test]
    fn what_an_unmount_does_on_its_way_out_belongs_to_it() {
        let call = Call { task: task(7, "umount"), begin_ms: 100.0, end_ms: 100.1 };
        let merged = merge(vec![wait(7, "task_work", 110.0, 500.0)], &[call], &VecDeque::new(), 20.0);
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].begin_ms, merged[0].ms), (100.0, 510.0));
        assert_eq!(merged[0].task.syscall.as_deref(), Some("umount"));
    }

    #[test]
    fn unmounts_in_a_row_are_told_apart() {
        // The first and the third one wait; the samples have not seen the end of the first one.
        let call = |begin_ms: f64| Call { task: task(7, "umount"), begin_ms, end_ms: begin_ms + 0.1 };
        let calls = [call(100.0), call(600.0), call(601.0)];
        let moments = [(7, 100.0), (8, 300.0), (7, 600.0), (7, 601.0), (7, 800.0)].into_iter().collect();
        let waits = vec![wait(7, "task_work", 110.0, 495.0), wait(7, "task_work", 620.0, 185.0)];
        let merged = merge(waits, &calls, &moments, 20.0);
        let found: Vec<_> = merged.iter().map(|wait| (wait.begin_ms, wait.ms)).collect();
        assert_eq!(found, [(100.0, 500.0), (601.0, 199.0)]);
    }

    #[test]
    fn others_are_left_alone() {
        let call = Call { task: task(7, "fsync"), begin_ms: 100.0, end_ms: 150.0 };
        let waits =
            vec![wait(8, "fsync", 100.0, 50.0), wait(7, "write", 110.0, 10.0), wait(7, "fsync", 900.0, 9.0)];
        let merged = merge(waits, std::slice::from_ref(&call), &VecDeque::new(), 20.0);
        assert_eq!(merged.len(), 4);
        assert!(merged.iter().any(|w| w.samples == 0 && w.ms == 50.0));
        // The trace knows better than the samples when a call ended.
        let merged = merge(vec![wait(7, "fsync", 115.0, 60.0)], &[call], &VecDeque::new(), 20.0);
        assert_eq!((merged[0].begin_ms, merged[0].ms, merged[0].samples), (100.0, 50.0, 2));
    }

    #[test]
    fn several_within_one_call_are_one() {
        let call = Call { task: task(7, "fsync"), begin_ms: 100.0, end_ms: 400.0 };
        let merged = merge(
            vec![wait(7, "fsync", 110.0, 50.0), wait(7, "fsync", 300.0, 90.0)],
            &[call],
            &VecDeque::new(),
            20.0,
        );
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].ms, merged[0].samples), (300.0, 4));
    }
}
