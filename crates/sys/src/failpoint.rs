//! Failpoints: named places at which a test ends the program as `kill -9` would.
//!
//! `WARDIAN_FAILPOINT=name` ends the program when it reaches the point for the first time, `name:3` for the third
//! time. A server passes the variable to the keepers that it starts; each process counts for itself. Where the
//! variable is not set a point costs one load.

use rustix::process::{Signal, getpid, kill_process};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable.
pub const VARIABLE: &str = "WARDIAN_FAILPOINT";

macro_rules! points {
    ($($point:ident $name:literal $place:literal;)*) => {
        /// A failpoint. Those of the keeper are named `keeper.…`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $(#[doc = $place] $point,)*
        }

        /// All failpoints with their names.
        pub const ALL: &[(&str, Point)] = &[$(($name, Point::$point),)*];
    };
}

points! {
    CreateReserved "create.reserved" "The handle is taken, nothing is written.";
    CreateRecorded "create.recorded" "The record is written, the keeper still listens elsewhere.";
    CreatePaired "create.paired" "The container has its namespaces.";
    CreateCgroup "create.cgroup" "Its limits are set.";
    CreateRootfs "create.rootfs" "Its root file system is made.";
    CreateAnswered "create.answered" "Its init runs.";
    CreateCommitted "create.committed" "The record says created.";
    CreateReplying "create.replying" "Only the reply is left.";
    RunAsking "run.asking" "The keeper does not know of the process.";
    RunAnswered "run.answered" "It runs, the client does not know.";
    PeaRecorded "pea.recorded" "The pea's root file system has a name.";
    PeaCgroup "pea.cgroup" "It has a cgroup.";
    PeaRootfs "pea.rootfs" "Its root file system is made.";
    PeaAsked "pea.asked" "The keeper is starting it.";
    PeaAnswered "pea.answered" "It runs, the client does not know.";
    PeaEnded "pea.ended" "It has ended, everything of it is there.";
    PeaCleaning "pea.cleaning" "Its record is gone, its root file system is not.";
    StreamInBegun "stream-in.begun" "The keeper unpacks, and has got nothing.";
    StreamInMiddle "stream-in.middle" "Some of the tar has gone in.";
    StreamInFinishing "stream-in.finishing" "All of it has, the end is not told.";
    StreamOutBegun "stream-out.begun" "The keeper packs.";
    StreamOutMiddle "stream-out.middle" "Some of the tar has come out.";
    StreamOutFinishing "stream-out.finishing" "All of it has.";
    StopTermed "stop.termed" "The processes have got SIGTERM.";
    StopKilled "stop.killed" "They have got SIGKILL.";
    StopRecording "stop.recording" "The record does not say so.";
    DestroyKilling "destroy.killing" "Nothing is killed.";
    DestroyAnswered "destroy.answered" "Everything is killed, the record is there.";
    DestroyForgotten "destroy.forgotten" "The record is gone.";
    DestroySweeping "destroy.sweeping" "The root file system is trash; directory and cgroup are there.";
    KeeperCreateCloning "keeper.create.cloning" "Before there is a child.";
    KeeperCreateCloned "keeper.create.cloned" "The init is on its way.";
    KeeperCreateReplied "keeper.create.replied" "It runs, and the server has been told.";
    KeeperRunCloning "keeper.run.cloning" "Before there is a child.";
    KeeperRunCloned "keeper.run.cloned" "The program is on its way.";
    KeeperRunReplied "keeper.run.replied" "It runs, and the server has been told.";
    KeeperExited "keeper.exited" "A process has ended, and nobody has been told.";
    KeeperTransferCloned "keeper.transfer.cloned" "A tar is on its way.";
    KeeperDestroyKilled "keeper.destroy.killed" "Pid 1 is killed and not reaped.";
    KeeperDestroyClosing "keeper.destroy.closing" "The root file system is open.";
    KeeperDestroyReplying "keeper.destroy.replying" "It is closed, and the server has not been told.";
}

/// The variable's value names no failpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}={value}: no failpoint of this name; expected NAME or NAME:TIMES")]
pub struct Unknown {
    value: String,
}

#[derive(Debug)]
struct Wanted {
    point: Point,
    /// How many more times the point is reached, up to and including the last.
    left: AtomicU64,
}

fn parse(value: &str) -> Result<(Point, u64), Unknown> {
    let (name, times) = value.split_once(':').unwrap_or((value, "1"));
    let point = ALL.iter().find(|(known, _)| *known == name).map(|(_, point)| *point);
    match (point, times.parse()) {
        (Some(point), Ok(times)) if times > 0 => Ok((point, times)),
        _ => Err(Unknown { value: value.to_owned() }),
    }
}

/// Checks the variable.
///
/// # Errors
/// The name of no failpoint: a test with a typing error would wait for ever.
pub fn check() -> Result<(), Unknown> {
    std::env::var(VARIABLE).map_or(Ok(()), |value| parse(&value).map(drop))
}

/// The variable as an environment entry for a keeper, if it is set.
pub fn inherited() -> Option<String> {
    std::env::var(VARIABLE).ok().map(|value| format!("{VARIABLE}={value}"))
}

/// Ends the process here if the variable asks for it.
pub fn reach(point: Point) {
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let (point, times) = parse(&std::env::var(VARIABLE).ok()?).ok()?;
        Some(Wanted { point, left: AtomicU64::new(times) })
    });
    if let Some(wanted) = wanted
        && wanted.point == point
        && wanted.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        // SIGKILL cannot be caught, so this does not return.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(parse("create.paired"), Ok((Point::CreatePaired, 1)));
        assert_eq!(parse("keeper.exited:7"), Ok((Point::KeeperExited, 7)));
        for bad in ["", "create", "create.paired:", "create.paired:0", "create.paired:x", ":1"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<&str> = ALL.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
