//! Evaluates a recording: causes, waits, a verdict, advice.

use crate::causes::Cause;
use crate::fingerprint::{self, Fingerprint};
use crate::recording::{Recording, Task, Tunables, Wait, Written};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A cause and its share of the writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CauseShare {
    /// The cause.
    pub cause: Cause,
    /// Bytes it wrote.
    pub bytes: u64,
    /// Their share of all bytes written, from 0 to 1.
    pub share: f64,
    /// When the first write was submitted, in ms since the start of the recording.
    pub begin_ms: f64,
    /// When the last write was submitted.
    pub end_ms: f64,
    /// The task that asked for most of it.
    pub asked_by: Option<Task>,
    /// The owners of the data, the largest first.
    pub data_of: Vec<Owner>,
}

/// An owner of written data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The caller's name for it, or `comm[pid]`, or `unknown`.
    pub name: String,
    /// The thread that had made it dirty; `None` if that was before the recording began, or was not seen.
    pub task: Option<Task>,
    /// Number of inodes.
    pub inodes: u64,
    /// Bytes; metadata has no owner.
    pub bytes: u64,
}

/// A subject that the caller may know a better name for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// An inode of the watched file system, by its number.
    Inode(u64),
    /// A thread.
    Task(&'a Task),
}

/// Has no names: for callers without better ones.
pub fn unnamed(_: Subject<'_>) -> Option<String> {
    None
}

/// The evaluation of a recording.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The causes of the writes, the largest first.
    pub causes: Vec<CauseShare>,
    /// Bytes written to the watched devices while recording.
    pub written_bytes: u64,
    /// The causes of discards, the largest first; their shares are of all bytes discarded.
    #[serde(default)]
    pub discards: Vec<CauseShare>,
    /// The waits, the longest first.
    pub waited: Vec<Wait>,
    /// The settings in force.
    pub tunables: Tunables,
    /// Known kernel behaviours that were recognised.
    pub fingerprints: Vec<Fingerprint>,
    /// The verdict, in one sentence.
    pub verdict: String,
    /// Recommendations.
    pub advice: Vec<String>,
    /// What could not be determined, and why.
    pub limits: Vec<String>,
}

impl Diagnosis {
    /// Evaluates a recording. `name` may give owners and tasks better names; [`unnamed`] gives none.
    pub fn of(recording: &Recording, name: &dyn Fn(Subject<'_>) -> Option<String>) -> Self {
        let mut causes = shares(&recording.written, name);
        let mut written_bytes: u64 = causes.iter().map(|cause| cause.bytes).sum();
        let traced = recording.traced();
        if !traced && let Some(bytes) = recording.device_bytes().filter(|bytes| *bytes > 0) {
            written_bytes = bytes;
            causes = vec![CauseShare::unknown(bytes, recording.length_ms)];
        }
        for cause in &mut causes {
            cause.share = cause.bytes as f64 / written_bytes.max(1) as f64;
        }
        let mut discards = shares(&recording.discarded, name);
        let discarded: u64 = discards.iter().map(|share| share.bytes).sum();
        for share in &mut discards {
            share.share = share.bytes as f64 / discarded.max(1) as f64;
            // A discard has no data that could be somebody's.
            share.data_of.clear();
        }
        let mut waited = recording.waits.clone();
        waited.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        let fingerprints = fingerprint::of(recording);
        // Other processes' writes lead to advice only if a watched thread waited for them.
        let ours = concerned(recording);
        let others = ours.as_ref().is_some_and(BTreeSet::is_empty) && !somebody_waited(recording, &waited);
        let concerned = |cause: &&CauseShare| ours.as_ref().is_none_or(|ours| ours.contains(&cause.cause));
        let first = if others { None } else { causes.iter().find(concerned).or(causes.first()) };
        let verdict = verdict(recording, first, &causes, &discards, &waited, written_bytes, name);
        let mut advice: Vec<String> = fingerprints.iter().map(|f| f.advice.clone()).collect();
        if let Some(first) = first.filter(|_| advice.is_empty()) {
            advice.push(advice_for(first.cause).to_owned());
        }
        Self {
            causes,
            written_bytes,
            discards,
            waited,
            tunables: recording.tunables.clone(),
            fingerprints,
            verdict,
            advice,
            limits: limits(recording, traced),
        }
    }

    /// Keeps the longest waits and the largest owners alone, so many of each; [`Diagnosis::limits`] says so. For
    /// callers that keep many diagnoses.
    pub fn cut(&mut self, most: usize) {
        if self.waited.len() > most {
            self.limits.push(format!("of {} waits the {most} longest were kept", self.waited.len()));
            self.waited.truncate(most);
        }
        for cause in &mut self.causes {
            if cause.data_of.len() > most {
                let all = cause.data_of.len();
                self.limits.push(format!("{}: of {all} owners the {most} largest were kept", cause.cause));
                cause.data_of.truncate(most);
            }
        }
    }

    /// The share of a cause, if it wrote anything.
    pub fn cause(&self, cause: Cause) -> Option<&CauseShare> {
        self.causes.iter().find(|share| share.cause == cause)
    }
}

impl CauseShare {
    fn unknown(bytes: u64, end_ms: f64) -> Self {
        Self {
            cause: Cause::Unknown,
            bytes,
            share: 1.0,
            begin_ms: 0.0,
            end_ms,
            asked_by: None,
            data_of: vec![],
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comm = if self.comm.is_empty() { "?" } else { &self.comm };
        write!(f, "{comm}[{}]", self.pid)
    }
}

/// The sum of one cause's writes.
#[derive(Default)]
struct Sum {
    bytes: u64,
    begin_ms: f64,
    end_ms: f64,
    askers: BTreeMap<Task, u64>,
    owners: BTreeMap<String, (Option<Task>, BTreeSet<u64>, u64)>,
}

fn shares(written: &[Written], name: &dyn Fn(Subject<'_>) -> Option<String>) -> Vec<CauseShare> {
    let mut sums: BTreeMap<Cause, Sum> = BTreeMap::new();
    for burst in written {
        let sum =
            sums.entry(burst.cause).or_insert_with(|| Sum { begin_ms: burst.begin_ms, ..Sum::default() });
        sum.bytes += burst.bytes;
        sum.begin_ms = sum.begin_ms.min(burst.begin_ms);
        sum.end_ms = sum.end_ms.max(burst.end_ms);
        if let Some(asker) = &burst.asked_by {
            *sum.askers.entry(asker.clone()).or_default() += burst.bytes;
        }
        let mut own = |inode: Option<u64>, task: Option<&Task>, bytes: u64| {
            let named = inode.and_then(|inode| name(Subject::Inode(inode)));
            let named = named.or_else(|| task.map(|task| task_name(task, name)));
            let owner = sum.owners.entry(named.unwrap_or_else(|| "unknown".into())).or_default();
            owner.0 = owner.0.take().or_else(|| task.cloned());
            owner.1.extend(inode);
            owner.2 += bytes;
        };
        for (inode, bytes) in &burst.inodes {
            own(Some(*inode), burst.dirtied_by.get(inode), *bytes);
        }
        // The trace does not report the inodes of data that its writer flushes itself, by closing or syncing the
        // file.
        let data = burst.bytes.saturating_sub(burst.metadata_bytes);
        let rest = data.saturating_sub(burst.inodes.values().sum());
        let itself = burst.asked_by.as_ref().is_some_and(|asker| asker.pid == burst.by.pid);
        if rest > 0 {
            own(None, itself.then_some(&burst.by), rest);
        }
    }
    let mut shares: Vec<CauseShare> = sums.into_iter().map(|(cause, sum)| sum.share(cause)).collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

impl Sum {
    fn share(self, cause: Cause) -> CauseShare {
        let mut data_of: Vec<Owner> = self
            .owners
            .into_iter()
            .map(|(name, (task, inodes, bytes))| Owner { name, task, inodes: inodes.len() as u64, bytes })
            .collect();
        data_of.sort_by_key(|owner| std::cmp::Reverse(owner.bytes));
        CauseShare {
            cause,
            bytes: self.bytes,
            share: 0.0,
            begin_ms: self.begin_ms,
            end_ms: self.end_ms,
            asked_by: self.askers.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(task, _)| task),
            data_of,
        }
    }
}

fn task_name(task: &Task, name: &dyn Fn(Subject<'_>) -> Option<String>) -> String {
    name(Subject::Task(task)).unwrap_or_else(|| task.to_string())
}

/// Causes of writes that the watched threads took part in; `None` if that is unknown.
fn concerned(recording: &Recording) -> Option<BTreeSet<Cause>> {
    let watched = recording.watched.as_ref().filter(|_| recording.traced())?;
    let ours = recording.written.iter().filter(|burst| burst.concerns(watched));
    Some(ours.map(|burst| burst.cause).collect())
}

/// Whether a wait was longer than the sampling period; shorter ones are not reported.
fn somebody_waited(recording: &Recording, waited: &[Wait]) -> bool {
    waited.first().is_some_and(|wait| wait.ms >= recording.period_ms)
}

/// The verdict. `first`: the most important cause; `None` if the watched threads have no part in any write.
fn verdict(
    recording: &Recording,
    first: Option<&CauseShare>,
    causes: &[CauseShare],
    discards: &[CauseShare],
    waited: &[Wait],
    bytes: u64,
    name: &dyn Fn(Subject<'_>) -> Option<String>,
) -> String {
    let mut text = match first {
        None if bytes > 0 && !causes.is_empty() => {
            format!("what was watched has written nothing; others wrote {}", size(bytes))
        }
        Some(first) => {
            let asked = first.asked_by.as_ref().map_or(String::new(), |task| {
                let call = task.syscall.as_ref().map_or(String::new(), |call| format!(" in {call}"));
                format!(", asked for by {}{call}", task_name(task, name))
            });
            let of = format!("{:.0} % of {} were written because of", first.share * 100.0, size(bytes));
            format!("{of} {}{asked}", first.cause)
        }
        None if recording.traced() || recording.device_bytes() == Some(0) => "nothing was written".to_owned(),
        None => "what was written could not be told".to_owned(),
    };
    text += &discarded(recording, discards, name);
    match waited.first().filter(|_| somebody_waited(recording, waited)) {
        Some(wait) => {
            let call = wait.task.syscall.as_ref().map_or(String::new(), |call| format!(" in {call}"));
            let function = wait.kernel_function.as_ref().map_or(String::new(), |f| format!(" ({f})"));
            text += &format!(
                "; {} waited the longest: {:.0} ms{call}{function}",
                task_name(&wait.task, name),
                wait.ms
            );
        }
        None => text += "; nobody that was watched waited",
    }
    text
}

/// What the verdict says of discards; nothing if the watched threads have no part in any.
fn discarded(
    recording: &Recording,
    discards: &[CauseShare],
    name: &dyn Fn(Subject<'_>) -> Option<String>,
) -> String {
    let bytes: u64 = discards.iter().map(|share| share.bytes).sum();
    let ours = recording
        .watched
        .as_ref()
        .is_none_or(|watched| recording.discarded.iter().any(|burst| burst.concerns(watched)));
    match discards.first() {
        Some(first) if ours && bytes > 0 => {
            let by = first.asked_by.as_ref().map_or(String::new(), |t| format!(" by {}", task_name(t, name)));
            format!("; {} were discarded because of {}{by}", size(bytes), first.cause)
        }
        _ => String::new(),
    }
}

/// A readable size.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

fn advice_for(cause: Cause) -> &'static str {
    match cause {
        Cause::MemoryPressure => {
            "write less at a time, or give it more memory; raising vm.dirty_background_ratio puts the writing off and makes the next sync longer"
        }
        Cause::Age => {
            "nothing is wrong: data this old is due; vm.dirty_expire_centisecs says how old, and what is deleted before that is never written"
        }
        Cause::Sync => {
            "see who asked for it: a sync of a whole file system waits for everybody's data; fsync of single files, or none for what may be lost, waits for less"
        }
        Cause::FlushAtClose => {
            "the writer truncates or replaces files that it then closes; write to new names, or mount ext4 with noauto_da_alloc if losing them at a crash is no harm"
        }
        Cause::JournalCommit => {
            "ext4 in its ordered mode writes data with each commit; mount with data=writeback, or a longer commit=, if that is no harm after a crash"
        }
        Cause::Direct => "the writer asked to go past memory (O_DIRECT): its own settings decide",
        Cause::LittleSpace => {
            "free space on the file system: ext4 writes early once what is dirty takes a large part of what is free"
        }
        Cause::Deletion | Cause::Trim => "mount without `discard`, and run fstrim while nobody waits",
        Cause::Unknown => "look at the limits of this diagnosis: more of the kernel's tracing would tell",
    }
}

fn limits(recording: &Recording, traced: bool) -> Vec<String> {
    let mut limits = Vec::new();
    if !traced {
        limits.push(
            "without the kernel's trace nobody can tell why data was written, or whose it was".to_owned(),
        );
    }
    for source in recording.sources.iter().filter(|source| !source.available) {
        limits.push(format!("no {}: {}", source.name, source.note.as_deref().unwrap_or("not there")));
    }
    if recording.lost_events > 0 {
        limits.push(format!(
            "the kernel threw away {} events: the figures are too small",
            recording.lost_events
        ));
    }
    if recording.estimated_bytes > 0 {
        limits.push(format!(
            "{} of what was written are an estimate from the device's own counter: tracing every write would have cost too much",
            size(recording.estimated_bytes)
        ));
    } else if recording.cost.untraced_ms > 0.0 {
        limits.push(format!(
            "for {:.0} ms of {:.0} writes were not traced, because that would have cost too much",
            recording.cost.untraced_ms, recording.length_ms
        ));
    }
    if recording.interrupted {
        limits.push("it was interrupted: this is half of the story".to_owned());
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::{Io, Sample, Source};

    fn task(pid: u32, comm: &str) -> Task {
        Task { pid, comm: comm.into(), syscall: None }
    }

    fn burst(cause: Cause, bytes: u64) -> Written {
        Written {
            begin_ms: 10.0,
            end_ms: 20.0,
            cause,
            how: "x".into(),
            bytes,
            metadata_bytes: 0,
            writes: 1,
            by: task(9, "kworker/u8:1"),
            asked_by: None,
            stack: Vec::new(),
            inodes: BTreeMap::new(),
            dirtied_by: BTreeMap::new(),
        }
    }

    fn traced() -> Recording {
        let source = Source { name: "block:block_bio_queue".into(), available: true, note: None };
        Recording { sources: vec![source], period_ms: 20.0, length_ms: 1000.0, ..Recording::default() }
    }

    #[test]
    fn causes_by_their_bytes() {
        let mut recording = traced();
        let umount = Task { syscall: Some("umount".into()), ..task(7, "umount") };
        let mut sync = burst(Cause::Sync, 3_000_000);
        sync.asked_by = Some(umount.clone());
        sync.inodes = BTreeMap::from([(13, 2_000_000), (14, 900_000)]);
        sync.dirtied_by = BTreeMap::from([(13, task(5, "dd"))]);
        sync.metadata_bytes = 100_000;
        let late = Written { begin_ms: 500.0, end_ms: 600.0, ..burst(Cause::Age, 600_000) };
        recording.written = vec![late, sync, burst(Cause::Age, 400_000)];
        let diagnosis = Diagnosis::of(&recording, &unnamed);
        assert_eq!(diagnosis.written_bytes, 4_000_000);
        let [sync, age] = &diagnosis.causes[..] else { panic!("{diagnosis:?}") };
        assert_eq!((sync.cause, sync.bytes, sync.share), (Cause::Sync, 3_000_000, 0.75));
        assert_eq!(sync.asked_by, Some(umount));
        let owners: Vec<_> = sync.data_of.iter().map(|o| (o.name.as_str(), o.bytes, o.inodes)).collect();
        assert_eq!(owners, [("dd[5]", 2_000_000, 1), ("unknown", 900_000, 1)]);
        assert_eq!((age.cause, age.begin_ms, age.end_ms), (Cause::Age, 10.0, 600.0));
        assert!(diagnosis.verdict.contains("75 %") && diagnosis.verdict.contains("umount[7]"));
        assert_eq!(diagnosis.limits, Vec::<String>::new());

        let named = |subject: Subject<'_>| match subject {
            Subject::Inode(14) => Some("mount 3".to_owned()),
            _ => None,
        };
        let diagnosis = Diagnosis::of(&recording, &named);
        assert_eq!(diagnosis.causes[0].data_of[1].name, "mount 3");
    }

    #[test]
    fn what_others_write_is_no_fault_of_who_was_watched() {
        let written =
            |pid| Written { by: task(pid, "x"), asked_by: Some(task(pid, "x")), ..burst(Cause::Sync, 4_096) };
        let mut recording = Recording { watched: Some([5, 6].into()), written: vec![written(7)], ..traced() };
        let diagnosis = Diagnosis::of(&recording, &unnamed);
        assert!(diagnosis.verdict.contains("others wrote 4.1 kB"), "{}", diagnosis.verdict);
        assert_eq!((diagnosis.advice.len(), diagnosis.causes.len()), (0, 1));
        // If a watched thread waits for other processes' writes, those are reported.
        recording.waits = vec![Wait { task: task(5, "x"), ms: 100.0, ..Wait::default() }];
        assert!(
            Diagnosis::of(&recording, &unnamed)
                .verdict
                .contains("100 % of 4.1 kB were written because of a sync")
        );
        recording.waits.clear();
        // A write of its own counts, however small it is.
        let own = Written { cause: Cause::Direct, bytes: 512, ..written(6) };
        recording.written.push(own);
        let diagnosis = Diagnosis::of(&recording, &unnamed);
        assert!(diagnosis.verdict.contains("direct I/O, asked for by x[6]"), "{}", diagnosis.verdict);
        assert!(diagnosis.advice[0].contains("O_DIRECT"));
        // It is not known which threads belong to the watched ones.
        recording.watched = None;
        assert!(Diagnosis::of(&recording, &unnamed).verdict.contains("a sync, asked for by x[7]"));
    }

    #[test]
    fn the_unknown_is_said_to_be_unknown() {
        let source = Source { name: "tracefs".into(), available: false, note: Some("not mounted".into()) };
        let io = Io { written_bytes: 5_000, ..Io::default() };
        let sample = Sample { io: Some(io), ..Sample::default() };
        let recording = Recording {
            sources: vec![source],
            samples: vec![sample],
            lost_events: 3,
            ..Recording::default()
        };
        let diagnosis = Diagnosis::of(&recording, &unnamed);
        assert_eq!(diagnosis.causes.len(), 1);
        assert_eq!((diagnosis.causes[0].cause, diagnosis.causes[0].bytes), (Cause::Unknown, 5_000));
        assert_eq!(diagnosis.limits.len(), 3, "{:?}", diagnosis.limits);
        let nothing = Diagnosis::of(&Recording::default(), &unnamed);
        assert!(nothing.causes.is_empty() && nothing.verdict.contains("could not be told"));
        assert!(Diagnosis::of(&traced(), &unnamed).verdict.contains("nothing was written"));
    }

    #[test]
    fn discards_are_told_beside_the_writes() {
        let discard = |pid: u32, cause, bytes| {
            let by = task(pid, "rm");
            Written { asked_by: Some(by.clone()), by, ..burst(cause, bytes) }
        };
        let discarded = vec![discard(5, Cause::Deletion, 3_000_000), discard(6, Cause::Trim, 1_000_000)];
        let mut recording = Recording { discarded, ..traced() };
        let diagnosis = Diagnosis::of(&recording, &unnamed);
        let shares: Vec<_> = diagnosis.discards.iter().map(|d| (d.cause, d.bytes, d.share)).collect();
        assert_eq!(shares, [(Cause::Deletion, 3_000_000, 0.75), (Cause::Trim, 1_000_000, 0.25)]);
        assert_eq!((diagnosis.written_bytes, diagnosis.causes.len()), (0, 0));
        let told = "nothing was written; 4.0 MB were discarded because of the deletion of files by rm[5]";
        assert!(diagnosis.verdict.starts_with(told), "{}", diagnosis.verdict);
        assert!(diagnosis.text(true).contains("what was discarded"), "{}", diagnosis.text(true));
        // Those of others are listed, but not blamed on what was watched.
        recording.watched = Some(BTreeSet::from([99]));
        let diagnosis = Diagnosis::of(&recording, &unnamed);
        assert!(!diagnosis.verdict.contains("discarded") && diagnosis.discards.len() == 2);
    }

    #[test]
    fn of_many_waits_the_longest_are_kept() {
        let wait = |ms| Wait { task: task(3, "umount"), ms, ..Wait::default() };
        let waits = (0..50).map(|n| wait(f64::from(n))).collect();
        let mut diagnosis = Diagnosis::of(&Recording { waits, ..traced() }, &unnamed);
        diagnosis.cut(30);
        assert_eq!((diagnosis.waited.len(), diagnosis.waited[29].ms), (30, 20.0));
        assert!(diagnosis.limits.iter().any(|limit| limit.contains("of 50 waits the 30 longest")));
        let whole = diagnosis.clone();
        diagnosis.cut(30);
        assert_eq!(diagnosis, whole);
    }

    #[test]
    fn what_was_estimated_is_said() {
        let recording = Recording { estimated_bytes: 2_000_000, ..traced() };
        assert!(Diagnosis::of(&recording, &unnamed).limits[0].starts_with("2.0 MB of what was written"));
    }

    #[test]
    fn the_longest_wait_comes_first() {
        let wait = |ms| Wait { task: task(3, "umount"), ms, ..Wait::default() };
        let recording = Recording { waits: vec![wait(30.0), wait(900.0)], ..traced() };
        let diagnosis = Diagnosis::of(&recording, &unnamed);
        assert_eq!(diagnosis.waited[0].ms, 900.0);
        assert!(diagnosis.verdict.contains("900 ms"), "{}", diagnosis.verdict);
    }
}
