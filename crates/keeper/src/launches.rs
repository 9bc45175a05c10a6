//! Children between clone and exec, and which child may be reaped when.
//!
//! The keeper knows its children by pid. A pid is safe to signal as long as its child is not reaped; afterwards the
//! kernel may reuse it for another process, so the rules are these:
//!
//! - No child is reaped unless it is known whose pid it has. While a launch has not reported its process's pid yet, an
//!   unknown child may be that process: it stays a zombie, which keeps its pid reserved.
//! - The process of a launch is not reaped before the launch is settled, except for a transfer: its exit status is the
//!   result.
//! - A reaped pid is removed from all tables in the same step.

use crate::inside::Devices;
use crate::report::{Tag, take_frames};
use rustix::process::{Pid, Signal, kill_process};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use wardian_runtime::bundle::Plan;
use wardian_runtime::wire::Failure;
use wardian_sys::children;

/// Time for a process to reach its exec, after which it is killed.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// A failure as the client gets it.
pub type Fail = (Failure, String);

/// Makes a failure of no particular kind.
pub fn other(text: impl std::fmt::Display) -> Fail {
    (Failure::Other, text.to_string())
}

/// The purpose of a launch.
#[derive(Debug)]
pub enum Kind {
    /// The container's pid 1, with the container's root file system, devices and bundle.
    Create(Box<(OwnedFd, Devices, Plan)>),
    /// The process or pea with this id.
    Run(String),
    /// A helper that packs or unpacks a tar.
    Transfer,
}

/// A child between its clone and its exec, or a transfer at work.
#[derive(Debug)]
pub struct Launch {
    /// The purpose of the launch.
    pub kind: Kind,
    /// The sequence number of the request.
    pub seq: u64,
    /// The connection that the request came from.
    pub connection: u64,
    /// The read end of the report pipe; `None` once its end of file has been read.
    pub pipe: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// Pid of the process; `None` before it is reported and after it is reaped.
    pub pid: Option<Pid>,
    /// Pid of the first stage, which is outside the container's pid namespace; `None` after it is reaped.
    pub stage: Option<Pid>,
    /// Whether the process has reported that only the exec is left.
    pub ready: bool,
    /// Warnings about what could not be set as requested.
    pub warnings: Vec<String>,
    /// The reason of the failure.
    pub failure: Option<Fail>,
    /// A transfer's exit status.
    pub status: Option<i32>,
    deadline: Option<Instant>,
}

impl Launch {
    /// A launch that has just been cloned. `hurry`: it must reach its exec within [`HANDSHAKE`].
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

    /// When the launch is killed, if it is not settled by then.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Reads what the child reports. Returns the process's pid if it was reported by now.
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
                // Only the clone path writes frames, but the pid is checked all the same before it is used.
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

    /// Whether the outcome is known: the report pipe has ended, and a transfer has exited as well.
    pub fn is_settled(&self) -> bool {
        let waits = matches!(self.kind, Kind::Transfer) && self.pid.is_some();
        self.pipe.is_none() && !waits
    }

    /// Kills the launch if its deadline has passed.
    pub fn expire(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.failure = Some(other("the process did not start in time"));
            self.kill();
        }
    }

    /// Kills those of its processes that are not reaped yet.
    pub fn kill(&self) {
        for pid in [self.stage, self.pid].into_iter().flatten() {
            // The process may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Forgets the pid of a child that is about to be reaped. Returns whether the child belonged to this launch.
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

/// Whether a child that has ended may be reaped (see the module). `known`: it is pid 1 or a started process.
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
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (Launch::new(kind, 0, 1, reader, stage, true), Report(writer))
    }

    #[test]
    fn a_number_is_kept_while_a_launch_may_tell_it() {
        let ((mut one, stage), (mut two, process)) = (child(), child());
        let (mut launch, report) = launch(Kind::Run("p".into()), stage);
        // The second child is unknown: it may be the process of the launch.
        assert!(may_reap(std::slice::from_ref(&launch), stage, false));
        assert!(!may_reap(std::slice::from_ref(&launch), process, false));
        report.send(Tag::Pid, &process.as_raw_nonzero().to_string());
        assert_eq!(launch.hear(), Some(process));
        assert_eq!(launch.hear(), None);
        // The process is known now, and stays a zombie until its launch is settled.
        assert!(!may_reap(std::slice::from_ref(&launch), process, false) && !launch.is_settled());
        assert!(launch.reaped(stage, 0) && launch.stage.is_none());
        assert!(may_reap(std::slice::from_ref(&launch), stage, false));
        drop(report);
        // A child that another test has cloned meanwhile has a copy of the pipe until its exec.
        let begun = Instant::now();
        while !launch.is_settled() && begun.elapsed() < HANDSHAKE {
            launch.hear();
        }
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
