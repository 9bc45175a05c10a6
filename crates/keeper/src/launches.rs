//! Children on their way to their exec, and which child may be reaped when.
//!
//! The keeper knows its children by number. A number is safe to signal as long as its child is not reaped, and the
//! kernel gives it to a stranger afterwards, so the rules are these:
//!
//! - Nothing is reaped unless it is known whose number it is. While a launch has not told its process's number yet, a
//!   child that nobody knows may be that process: it stays a zombie, and its number with it.
//! - The process of a launch is not reaped before the launch is settled, except for a transfer: its exit status is the result.
//! - Whoever is reaped is forgotten in the same step.

use crate::inside::Devices;
use crate::report::{Tag, take_frames};
use rustix::process::{Pid, Signal, kill_process};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use wardian_runtime::bundle::Plan;
use wardian_runtime::wire::Failure;
use wardian_sys::children;

/// A process that has not reached its exec after this long is killed.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a client gets of a failure.
pub type Fail = (Failure, String);

/// A failure without a kind of its own.
pub fn other(text: impl std::fmt::Display) -> Fail {
    (Failure::Other, text.to_string())
}

/// What a launch is for.
#[derive(Debug)]
pub enum Kind {
    /// The container's pid 1, with the container's root file system, devices and bundle.
    Create(Box<(OwnedFd, Devices, Plan)>),
    /// A process or pea of this id.
    Run(String),
    /// A helper that packs or unpacks a tar.
    Transfer,
}

/// A child on its way to its exec, or a transfer at work.
#[derive(Debug)]
pub struct Launch {
    /// What it is for.
    pub kind: Kind,
    /// Of the request.
    pub seq: u64,
    /// From which the request came.
    pub connection: u64,
    /// Where the child reports; `None` once its end has been read.
    pub pipe: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// The process, until it is reaped.
    pub pid: Option<Pid>,
    /// The first stage, which is not inside the container's pid namespace; until it is reaped.
    pub stage: Option<Pid>,
    /// Its process has come as far as its exec.
    pub ready: bool,
    /// What went less well than asked.
    pub warnings: Vec<String>,
    /// Why it fails.
    pub failure: Option<Fail>,
    /// A transfer's exit status.
    pub status: Option<i32>,
    deadline: Option<Instant>,
}

impl Launch {
    /// One that has just been cloned. `hurry`: it must reach its exec within [`HANDSHAKE`].
    pub fn new(kind: Kind, connection: u64, seq: u64, pipe: OwnedFd, stage: Pid, hurry: bool) -> Self {
        Self {
            kind,
            seq,
            connection,
            pipe: Some(pipe),
            buffer: Vec::new(),
            pid: None,
            stage: Some(stage),
            ready: false,
            warnings: Vec::new(),
            failure: None,
            status: None,
            deadline: hurry.then(|| Instant::now() + HANDSHAKE),
        }
    }

    /// When it is to be killed.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Reads what the child reports. Returns the number of its process if that has been told now.
    pub fn hear(&mut self) -> Option<Pid> {
        let before = self.pid;
        let mut bytes = [0; 4096];
        while let Some(pipe) = &self.pipe {
            match rustix::io::read(pipe, &mut bytes) {
                Ok(n) if n > 0 => self.buffer.extend_from_slice(&bytes[..n]),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                _ => self.pipe = None,
            }
        }
        for (tag, text) in take_frames(&mut self.buffer) {
            match tag {
                // Only the clone path writes here; a number is checked all the same before anything is done with it.
                Tag::Pid => {
                    let child = |pid: &Pid| children::is_child(pid.as_raw_nonzero().get());
                    self.pid = text.parse().ok().and_then(Pid::from_raw).filter(child);
                }
                Tag::Ready => self.ready = true,
                Tag::Warning => self.warnings.push(text),
                Tag::NotFound => self.failure = Some((Failure::ExecutableNotFound, text)),
                Tag::Error => self.failure = Some((Failure::Other, text)),
            }
        }
        self.pid.filter(|_| before.is_none())
    }

    /// Whether its outcome is known: the report has ended, and a transfer has exited as well.
    pub fn is_settled(&self) -> bool {
        let waits = matches!(self.kind, Kind::Transfer) && self.pid.is_some();
        self.pipe.is_none() && !waits
    }

    /// Kills it if its time is up.
    pub fn expire(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.failure = Some(other("the process did not start in time"));
            self.kill();
        }
    }

    /// Kills what of it is not reaped.
    pub fn kill(&self) {
        for pid in [self.stage, self.pid].into_iter().flatten() {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Takes note of a child that is about to be reaped. Returns whether it was this launch's.
    pub fn reaped(&mut self, pid: Pid, status: i32) -> bool {
        if self.stage == Some(pid) {
            self.stage = None;
            return true;
        }
        let ours = self.pid == Some(pid);
        if ours {
            (self.pid, self.status) = (None, Some(status));
        }
        ours
    }
}

/// Whether a child that has ended may be reaped, see the module. `known`: it is a process or the init.
pub fn may_reap(launches: &[Launch], pid: Pid, known: bool) -> bool {
    if launches.iter().any(|launch| launch.stage == Some(pid)) {
        return true;
    }
    if let Some(launch) = launches.iter().find(|launch| launch.pid == Some(pid)) {
        return matches!(launch.kind, Kind::Transfer);
    }
    known || launches.iter().all(|launch| launch.pid.is_some() || launch.status.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use std::process::{Child, Command};

    fn child() -> (Child, Pid) {
        let child = Command::new("/bin/true").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        (child, pid)
    }

    fn launch(kind: Kind, stage: Pid) -> (Launch, Report) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (Launch::new(kind, 0, 1, reader, stage, true), Report(writer))
    }

    #[test]
    fn a_number_is_kept_while_a_launch_may_tell_it() {
        let ((mut one, stage), (mut two, process)) = (child(), child());
        let (mut launch, report) = launch(Kind::Run("p".into()), stage);
        // Nobody knows the second child: it may be the process of the launch.
        assert!(may_reap(std::slice::from_ref(&launch), stage, false));
        assert!(!may_reap(std::slice::from_ref(&launch), process, false));
        report.send(Tag::Pid, &process.as_raw_nonzero().to_string());
        assert_eq!(launch.hear(), Some(process));
        assert_eq!(launch.hear(), None);
        // It is known now, and stays until its launch is settled.
        assert!(!may_reap(std::slice::from_ref(&launch), process, false) && !launch.is_settled());
        assert!(launch.reaped(stage, 0) && launch.stage.is_none());
        assert!(may_reap(std::slice::from_ref(&launch), stage, false));
        drop(report);
        launch.hear();
        assert!(launch.is_settled());
        one.wait().unwrap();
        two.wait().unwrap();
    }

    #[test]
    fn a_number_that_is_no_childs_is_not_taken() {
        let (mut one, stage) = child();
        let (mut launch, report) = launch(Kind::Run("p".into()), stage);
        report.send(Tag::Pid, "1");
        assert_eq!(launch.hear(), None);
        one.wait().unwrap();
    }

    #[test]
    fn a_transfer_is_settled_when_it_has_exited() {
        let ((mut one, stage), (mut two, process)) = (child(), child());
        let (mut launch, report) = launch(Kind::Transfer, stage);
        report.send(Tag::Pid, &process.as_raw_nonzero().to_string());
        drop(report);
        launch.hear();
        assert!(!launch.is_settled() && may_reap(std::slice::from_ref(&launch), process, false));
        assert!(launch.reaped(process, 137));
        assert!(launch.is_settled() && launch.status == Some(137) && launch.pid.is_none());
        one.wait().unwrap();
        two.wait().unwrap();
    }
}
