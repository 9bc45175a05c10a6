//! The processes of a container as their keeper knows them: stdio, exit status, and the resources that they hold.

use crate::inside::Devices;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use wardian_runtime::wire::{ENDED_KEPT, ProcessState, Stdio, Window};

/// The keeper's ends of a process's stdio.
#[derive(Debug)]
pub enum Io {
    /// Three pipes.
    Pipes {
        /// The write end of stdin, until it is closed.
        stdin: Option<OwnedFd>,
        /// The read ends of stdout and stderr, until they are released.
        output: Option<(OwnedFd, OwnedFd)>,
    },
    /// The master of a terminal, until it is released.
    Terminal(Option<OwnedFd>),
}

/// The process's own ends of its stdio.
#[derive(Debug)]
pub enum TheirIo {
    /// Standard input, output, error.
    Pipes([OwnedFd; 3]),
    /// The slave of a terminal.
    Terminal(OwnedFd),
}

/// Makes three pipes. They belong to container root, who can chown them to the user: otherwise `/dev/stdout` could
/// not be opened.
pub fn pipes(root: u32) -> rustix::io::Result<(Io, TheirIo)> {
    let pipe = || {
        let ends = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::fs::fchown(&ends.0, Some(Uid::from_raw(root)), Some(Gid::from_raw(root)))?;
        Ok::<_, rustix::io::Errno>(ends)
    };
    let ((stdin, to_stdin), (stdout, from_stdout), (stderr, from_stderr)) = (pipe()?, pipe()?, pipe()?);
    let ours = Io::Pipes { stdin: Some(to_stdin), output: Some((stdout, stderr)) };
    Ok((ours, TheirIo::Pipes([stdin, from_stdout, from_stderr])))
}

/// Opens a terminal of the container's devpts, without opening a path of the container (TIOCGPTPEER, ioctl_tty(2)).
/// Its slave belongs to container root, who can chown it to the user.
pub fn terminal(devices: &Devices, root: u32, window: Window) -> rustix::io::Result<(Io, TheirIo)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::openat(&devices.pts, "ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(root)), None)?;
    resize(&master, window)?;
    Ok((Io::Terminal(Some(master)), TheirIo::Terminal(slave)))
}

fn resize(master: &OwnedFd, window: Window) -> rustix::io::Result<()> {
    let size =
        rustix::termios::Winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)
}

impl Io {
    /// The descriptors to be sent to the server.
    pub fn handed(&self) -> Stdio<BorrowedFd<'_>> {
        match self {
            Self::Pipes { stdin, output } => Stdio::Pipes {
                stdin: stdin.as_ref().map(AsFd::as_fd),
                output: output.as_ref().map(|(stdout, stderr)| (stdout.as_fd(), stderr.as_fd())),
            },
            Self::Terminal(master) => Stdio::Terminal(master.as_ref().map(AsFd::as_fd)),
        }
    }

    /// Closes stdin. A terminal cannot be closed for input: its end of file is a character in the input.
    pub fn close_stdin(&mut self) {
        if let Self::Pipes { stdin, .. } = self {
            *stdin = None;
        }
    }

    /// Closes the output once all of it has been read.
    pub fn release(&mut self) {
        match self {
            Self::Pipes { output, .. } => *output = None,
            Self::Terminal(master) => *master = None,
        }
    }

    /// Sets the window size; the kernel signals the processes (SIGWINCH).
    pub fn resize(&self, window: Window) -> Result<(), String> {
        match self {
            Self::Terminal(Some(master)) => resize(master, window).map_err(|e| format!("resize: {e}")),
            Self::Terminal(None) => Ok(()),
            Self::Pipes { .. } => Err("it has no terminal".to_owned()),
        }
    }
}

/// The resources of a pea that it does not share with its container.
#[derive(Debug)]
pub struct PeaBox {
    /// Its mount namespace, held open. Otherwise the last process to leave the namespace would unmount everything in
    /// it during its exit, and whoever waits for that process would wait for the kernel's mount lock.
    pub namespace: Option<OwnedFd>,
    _rootfs: OwnedFd,
    _devices: Devices,
}

impl PeaBox {
    /// The resources of a pea that has not been cloned yet; its namespace is set later.
    pub fn new(rootfs: OwnedFd, devices: Devices) -> Self {
        Self { namespace: None, _rootfs: rootfs, _devices: devices }
    }
}

/// A process, running or ended.
#[derive(Debug)]
pub struct Process {
    /// Its pid on the host; `None` before its start is known and after its end.
    pub pid: Option<Pid>,
    /// Its exit status, once it has ended.
    pub status: Option<i32>,
    /// The keeper's ends of its stdio.
    pub io: Io,
    /// A pea's own resources, while it lives.
    pub boxed: Option<PeaBox>,
    /// How long closing them took, once they are closed.
    pub closed: Option<Duration>,
    /// Whether it is a pea.
    pub pea: bool,
    number: u64,
}

/// All processes of a container.
#[derive(Debug, Default)]
pub struct Processes {
    by_id: HashMap<String, Process>,
    by_pid: HashMap<Pid, String>,
    /// Ids of ended processes, oldest first.
    ended: VecDeque<String>,
    count: u64,
}

impl Processes {
    /// Adds a process that is about to start.
    pub fn insert(&mut self, id: String, io: Io, boxed: Option<PeaBox>) {
        self.count += 1;
        let pea = boxed.is_some();
        let process = Process { pid: None, status: None, io, boxed, closed: None, pea, number: self.count };
        self.by_id.insert(id, process);
    }

    /// Finds a process by its id.
    pub fn get(&self, id: &str) -> Option<&Process> {
        self.by_id.get(id)
    }

    /// Finds a process by its id.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut Process> {
        self.by_id.get_mut(id)
    }

    /// Records the pid of a process that has started.
    pub fn started(&mut self, id: &str, pid: Pid) -> Option<&Process> {
        let process = self.by_id.get_mut(id)?;
        process.pid = Some(pid);
        self.by_pid.insert(pid, id.to_owned());
        Some(process)
    }

    /// Removes a process that never started.
    pub fn remove(&mut self, id: &str) {
        self.by_id.remove(id);
    }

    /// Records the end of a process. Returns its id and the pea's resources to be closed; `None` if the pid is none
    /// of these processes.
    pub fn exited(&mut self, pid: Pid, status: i32) -> Option<(String, Option<PeaBox>)> {
        let id = self.by_pid.remove(&pid)?;
        let process = self.by_id.get_mut(&id)?;
        process.pid = None;
        process.status = Some(status);
        process.io.close_stdin();
        let boxed = process.boxed.take();
        self.ended.push_back(id.clone());
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        Some((id, boxed))
    }

    /// Whether a process has this pid.
    pub fn has(&self, pid: Pid) -> bool {
        self.by_pid.contains_key(&pid)
    }

    /// Pids of the running processes.
    pub fn pids(&self) -> impl Iterator<Item = Pid> {
        self.by_pid.keys().copied()
    }

    /// Whether any process is running.
    pub fn any_alive(&self) -> bool {
        !self.by_pid.is_empty()
    }

    /// Drops all processes, and closes what they hold.
    pub fn clear(&mut self) {
        self.by_id.clear();
    }

    /// The states of all processes, oldest first.
    pub fn states(&self) -> Vec<ProcessState> {
        let mut all: Vec<_> = self.by_id.iter().collect();
        all.sort_unstable_by_key(|(_, process)| process.number);
        let state =
            |(id, p): (&String, &Process)| ProcessState { id: id.clone(), status: p.status, pea: p.pea };
        all.into_iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(n: usize) -> Pid {
        Pid::from_raw(i32::try_from(n).unwrap()).unwrap()
    }

    #[test]
    fn the_oldest_of_many_ended_ones_are_forgotten_and_no_living_one() {
        let mut all = Processes::default();
        let nothing = || Io::Terminal(None);
        all.insert("lives".to_owned(), nothing(), None);
        all.started("lives", pid(1));
        for n in 2..ENDED_KEPT + 12 {
            all.insert(n.to_string(), nothing(), None);
            all.started(&n.to_string(), pid(n));
            assert_eq!(all.exited(pid(n), 3).unwrap().0, n.to_string());
        }
        assert!(all.exited(pid(2), 0).is_none() && all.any_alive());
        assert!(all.get("lives").unwrap().status.is_none());
        assert!(all.get("11").is_none());
        assert_eq!(all.get("12").unwrap().status, Some(3));
        let states = all.states();
        assert_eq!(states.len(), ENDED_KEPT + 1);
        assert_eq!((states[0].id.as_str(), states[1].id.as_str()), ("lives", "12"));
    }

    #[test]
    fn what_is_closed_is_not_handed_out() {
        let (mut io, _theirs) = pipes(0).unwrap();
        assert!(matches!(io.handed(), Stdio::Pipes { stdin: Some(_), output: Some(_) }));
        io.close_stdin();
        assert!(matches!(io.handed(), Stdio::Pipes { stdin: None, output: Some(_) }));
        assert!(io.resize(Window { columns: 1, rows: 1 }).is_err());
        io.release();
        assert!(matches!(io.handed(), Stdio::Pipes { stdin: None, output: None }));
    }
}
