//! The protocol between server and keeper: each message is a packet of a `SOCK_SEQPACKET` socket, with its
//! descriptors attached.
//!
//! Messages hold their descriptors in named fields: an [`Op<F>`] and a [`Reply<F>`] have them as `BorrowedFd` on the
//! sending side and as `OwnedFd` on the receiving side. Only [`encode`] and [`decode`] ([`encode_reply`],
//! [`decode_reply`]) know the JSON and the order of the descriptors in a packet, see `words`.
//!
//! WHEN CHANGING THIS: a new server talks to keepers that were started by an old one. Add optional fields; never
//! change the meaning of an existing one; when a server must know of a change, raise [`VERSION`] and add a
//! [`Feature`].

mod pack;
#[cfg(test)]
mod tests;
mod words;

pub use pack::{Refused, Unheard, decode, decode_reply, encode, encode_reply};
pub use words::Failure;

use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Version of this protocol, sent in [`Reply::Hello`].
pub const VERSION: u32 = 5;

/// A feature that keepers of earlier versions lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Terminals ([`Exec::tty`], [`Op::Resize`]). Earlier keepers start the program without one.
    Terminals,
    /// The container's own files ([`Boxed::files`]), which its peas see too; device nodes, device rules and seccomp
    /// filters in a bundle; [`Op::Cancel`]. Earlier keepers refuse such bundles.
    Confinement,
    /// Mounts of the kernel's file systems that are made ahead ([`Boxed::v1_mounts`], [`Create::sysfs`]). Earlier keepers refuse the
    /// descriptors; they make such mounts during the launch.
    Mounts,
    /// The duration of a pea's unmount ([`Op::Unmounted`]). Earlier keepers do not measure it.
    PeaEnds,
}

impl Feature {
    /// The first version of the protocol that has the feature.
    pub const fn since(self) -> u32 {
        match self {
            Self::Terminals => 2,
            Self::Confinement => 3,
            Self::Mounts => 4,
            Self::PeaEnds => 5,
        }
    }
}

/// Environment variable of a keeper, for tests of a server with keepers of other versions: the keeper reports this
/// version, and with version 1 also behaves as the first keepers did.
pub const SPEAKS: &str = "WARDIAN_KEEPER_SPEAKS";

/// How many ended processes of a container its keeper and the server remember, the newest ones: a container that
/// starts one every second must not exhaust either's memory.
pub const ENDED_KEPT: usize = 1000;

/// Descriptor number of the listening socket that a keeper starts with.
pub const LISTENER_FD: i32 = 3;
/// Descriptor number of the first connection.
pub const CONNECTION_FD: i32 = 4;
/// Descriptor number of the mount namespace that a keeper enters first.
pub const NURSERY_FD: i32 = 5;

/// The cgroups of a new process.
#[derive(Debug)]
pub struct Placement<F> {
    /// cgroup v1 `cgroup.procs` files, open for writing; empty: the process is cloned by the parked thread, in its
    /// cgroups.
    pub v1_procs: Vec<F>,
    /// The directory of a v2 cgroup.
    pub v2_dir: Option<F>,
}

impl Placement<OwnedFd> {
    /// Borrows the descriptors, for sending.
    pub fn as_fds(&self) -> Placement<BorrowedFd<'_>> {
        Placement {
            v1_procs: self.v1_procs.iter().map(AsFd::as_fd).collect(),
            v2_dir: self.v2_dir.as_ref().map(AsFd::as_fd),
        }
    }
}

/// A root file system with its bundle and mounts.
#[derive(Debug)]
pub struct Boxed<F> {
    /// `config.json`, a memory file.
    pub config: F,
    /// The root file system, a detached mount.
    pub rootfs: F,
    /// Bind mounts, detached, with their destinations. In the bundle they are the first bind mounts.
    pub binds: Vec<(String, F)>,
    /// Of a container: files whose contents it gets in a file system of its own, with their destinations. The keeper
    /// keeps them and shows them in peas as well. In the bundle they are the last bind mounts.
    pub files: Vec<(String, F)>,
    /// Names of the mounted v1 hierarchies (`cpu`, `name=systemd`), for `/sys/fs/cgroup` inside.
    pub v1_hierarchies: Vec<String>,
    /// A detached mount of the container's own cgroup in each of `v1_hierarchies`, in that order. Empty: the keeper
    /// mounts them, for which the kernel looks at every cgroup of the host.
    pub v1_mounts: Vec<F>,
}

impl Boxed<OwnedFd> {
    /// Borrows the descriptors, for sending.
    pub fn as_fds(&self) -> Boxed<BorrowedFd<'_>> {
        fn named(list: &[(String, OwnedFd)]) -> Vec<(String, BorrowedFd<'_>)> {
            list.iter().map(|(name, fd)| (name.clone(), fd.as_fd())).collect()
        }
        Boxed {
            config: self.config.as_fd(),
            rootfs: self.rootfs.as_fd(),
            binds: named(&self.binds),
            files: named(&self.files),
            v1_hierarchies: self.v1_hierarchies.clone(),
            v1_mounts: self.v1_mounts.iter().map(AsFd::as_fd).collect(),
        }
    }
}

/// The request for a container.
#[derive(Debug)]
pub struct Create<F> {
    /// The program of pid 1.
    pub init: F,
    /// Network namespace.
    pub network: F,
    /// User namespace.
    pub user: Option<F>,
    /// The sysfs of the network namespace, a detached mount. Without it the keeper mounts one.
    pub sysfs: Option<F>,
    /// Root file system and bundle.
    pub boxed: Boxed<F>,
    /// The cgroups of pid 1.
    pub place: Placement<F>,
}

/// A program to run in a container.
#[derive(Debug)]
pub struct Run<F> {
    /// Id of the process.
    pub id: String,
    /// A memory file with an [`Exec`] as JSON, which may be longer than a message.
    pub exec: F,
    /// Of a pea: its own root file system and bundle.
    pub pea: Option<Boxed<F>>,
    /// The cgroups of the process.
    pub place: Placement<F>,
}

/// A tar to be packed or unpacked inside.
#[derive(Debug)]
pub struct Transfer<F> {
    /// Whether to unpack (`true`) or to pack.
    pub inward: bool,
    /// User: a name in the container's passwd; empty: root.
    pub user: String,
    /// Destination directory or source path.
    pub path: String,
    /// The keeper's end of the tar's pipe.
    pub tar: F,
    /// The cgroups of the helper.
    pub place: Placement<F>,
}

/// A request to the keeper.
#[derive(Debug)]
pub enum Op<F> {
    /// Asks for the keeper's identity and processes. Answer: [`Reply::Hello`].
    Hello,
    /// Starts a thread in these cgroups (`tasks` files of cgroup v1), which clones from there. Sent ahead, before
    /// there is a container. Answer: [`Reply::Done`].
    Prepare {
        /// `tasks` files of cgroup v1, open for writing.
        tasks: Vec<F>,
    },
    /// Creates the container. Answer: [`Reply::Made`].
    Create(Create<F>),
    /// Runs a program in the container. Answer: [`Reply::Started`].
    Run(Run<F>),
    /// Packs or unpacks a tar inside. Answer: [`Reply::Done`] once the helper has exited with status 0, that is, has
    /// done all of it.
    Transfer(Transfer<F>),
    /// Kills a transfer of this connection, even if it is blocked. Answer: [`Reply::Done`]; the transfer's own answer
    /// is a failure.
    Cancel {
        /// The `seq` of the transfer's request.
        transfer: u64,
    },
    /// Asks for the stdio of a process. Answer: [`Reply::Started`].
    Attach {
        /// The process's id.
        id: String,
    },
    /// Closes a process's stdin. Answer: [`Reply::Done`].
    CloseStdin {
        /// The process's id.
        id: String,
    },
    /// Sets the size of a process's terminal. Answer: [`Reply::Done`], or a failure when it has no terminal.
    Resize {
        /// The process's id.
        id: String,
        /// The new size.
        window: Window,
    },
    /// Signals a process. Answer: [`Reply::Done`].
    Signal {
        /// The process's id.
        id: String,
        /// The signal's number.
        signal: i32,
    },
    /// Closes the output descriptors of an ended process, whose output has been read. Answer: [`Reply::Done`].
    Release {
        /// The process's id.
        id: String,
    },
    /// Replaces the contents of the container's own files ([`Boxed::files`]) by those of these files, in their order.
    /// Only its creator does so, before anything but pid 1 runs in it. Answer: [`Reply::Done`].
    Rewrite {
        /// Files with the new contents.
        files: Vec<F>,
    },
    /// Asks how long closing the root file system of an ended pea took. The keeper has one thread, so that its answer
    /// comes once the root file system is closed. Answer: [`Reply::Unmounted`].
    Unmounted {
        /// The id of the pea's process.
        id: String,
    },
    /// Destroys the container: the keeper kills pid 1, reaps, closes the root file system, answers
    /// ([`Reply::Destroyed`]; the first keepers: [`Reply::Done`]), and exits.
    Destroy,
}

impl<F> Op<F> {
    /// The feature that a keeper needs for this request. A keeper that does not know an operation answers
    /// [`Failure::Unsupported`]; those of versions 1 and 2 close the connection.
    pub fn needs(&self) -> Option<Feature> {
        match self {
            Self::Resize { .. } => Some(Feature::Terminals),
            Self::Cancel { .. } => Some(Feature::Confinement),
            Self::Unmounted { .. } => Some(Feature::PeaEnds),
            Self::Hello
            | Self::Prepare { .. }
            | Self::Create(_)
            | Self::Run(_)
            | Self::Transfer(_)
            | Self::Attach { .. }
            | Self::CloseStdin { .. }
            | Self::Signal { .. }
            | Self::Release { .. }
            | Self::Rewrite { .. }
            | Self::Destroy => None,
        }
    }
}

/// A program to run: like an OCI process object, except that the user is a name that is looked up inside.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `K=V`; PATH, USER and HOME are added inside when missing.
    pub env: Vec<String>,
    /// Working directory; empty: the user's home.
    pub dir: String,
    /// Whether to create a missing working directory (a pea's is not created, but replaced by `/`).
    pub make_dir: bool,
    /// The user as requested; empty: root.
    pub user: String,
    /// `(RLIMIT number, value)`.
    pub rlimits: Vec<(u32, u64)>,
    /// Bounding set as a mask.
    pub capabilities: u64,
    /// Bounding set for processes with a gid other than 0 (Garden's rule depends on the gid).
    pub capabilities_non_root: u64,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Size of the terminal to give it.
    #[serde(default)]
    pub tty: Option<Window>,
    /// Garden's rules for the user of a pea: no supplementary groups, and `USER` is `uid:gid`.
    #[serde(default)]
    pub pea: bool,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

/// A message from the keeper.
#[derive(Debug)]
pub enum Message<F> {
    /// The answer to a question.
    Reply {
        /// The `seq` of the request.
        seq: u64,
        /// The answer.
        reply: Reply<F>,
    },
    /// A process has ended.
    Exited {
        /// The process's id.
        id: String,
        /// Exit status; 128 + signal when killed.
        status: i32,
    },
    /// Pid 1 has ended without a request: everything inside is dead.
    Gone {
        /// Exit status of pid 1.
        status: i32,
    },
}

/// The server's ends of a process's stdio.
#[derive(Debug)]
pub enum Stdio<F> {
    /// Pipes.
    Pipes {
        /// Standard input, until it is closed.
        stdin: Option<F>,
        /// Standard output and error, until they are released.
        output: Option<(F, F)>,
    },
    /// The master of a terminal, until it is released.
    Terminal(Option<F>),
}

/// A process that has been started.
#[derive(Debug)]
pub struct Started<F> {
    /// Pid on the host; 0 once it has ended.
    pub pid: i32,
    /// Warnings about what could not be set as requested.
    pub warnings: Vec<String>,
    /// Its stdio.
    pub stdio: Stdio<F>,
}

/// Identity and state of a keeper.
#[derive(Debug)]
pub struct Hello<F> {
    /// Version of its protocol.
    pub version: u32,
    /// The keeper's own pid on the host.
    pub pid: i32,
    /// Pid on the host of the container's pid 1, while it lives.
    pub init: Option<i32>,
    /// A memory file with its processes as a JSON list of [`ProcessState`], oldest first: the list of a long-lived
    /// container does not fit into one message.
    pub processes: F,
}

/// Durations of a destroy, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destroyed {
    /// Time from the request until every process was reaped.
    pub killed_us: u64,
    /// Time for closing (unmounting) the root file system.
    pub unmounted_us: u64,
}

/// An answer.
#[derive(Debug)]
pub enum Reply<F> {
    /// Identity and state of the keeper.
    Hello(Hello<F>),
    /// The container has been created.
    Made {
        /// Pid on the host of pid 1.
        pid: i32,
        /// Pidfd of pid 1.
        init: F,
    },
    /// The process runs, or has run.
    Started(Started<F>),
    /// The request is done.
    Done,
    /// The container has been destroyed.
    Destroyed(Destroyed),
    /// The root file system of an ended pea is closed.
    Unmounted {
        /// Time for closing (unmounting) it, in microseconds.
        us: u64,
    },
    /// The request has failed.
    Failed {
        /// The kind of failure.
        kind: Failure,
        /// The error text.
        message: String,
    },
}

/// A process as the keeper knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessState {
    /// Its id.
    pub id: String,
    /// Exit status; `None` while it runs.
    pub status: Option<i32>,
    /// Whether it is a pea, with a root file system of its own.
    pub pea: bool,
}
