//! The protocol between server and keeper: one message a packet of a `SOCK_SEQPACKET` socket, with its descriptors beside it.
//!
//! A message names its descriptors: an [`Op<F>`] and a [`Reply<F>`] hold them in fields, as `BorrowedFd` where they are sent
//! and as `OwnedFd` where they are received. [`encode`] and [`decode`] ([`encode_reply`], [`decode_reply`]) alone know the
//! JSON and the order in which the descriptors travel, see `words`.
//!
//! WHEN CHANGING THIS: a new server talks to keepers that were started by an old one. Add optional fields; never change the
//! meaning of an old one; when a server must know, raise [`VERSION`] and add a [`Feature`].

mod pack;
#[cfg(test)]
mod tests;
mod words;

pub use pack::{Refused, Unheard, decode, decode_reply, encode, encode_reply};
pub use words::Failure;

use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Version of this protocol, told in [`Reply::Hello`].
pub const VERSION: u32 = 3;

/// What keepers of earlier versions lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Terminals ([`Exec::tty`], [`Op::Resize`]). Earlier keepers start the program without one.
    Terminals,
    /// The container's own files ([`Boxed::files`]), which its peas see too; device nodes, device rules and filters of system
    /// calls in a bundle; [`Op::Cancel`]. Earlier keepers refuse such bundles.
    Confinement,
}

impl Feature {
    /// The first version of the protocol whose keepers have it.
    pub const fn since(self) -> u32 {
        match self {
            Self::Terminals => 2,
            Self::Confinement => 3,
        }
    }
}

/// Environment variable of a keeper, for tests of how a server gets along with keepers of other versions: it says that it
/// speaks this version, and if that is 1, it speaks as the first keepers did.
pub const SPEAKS: &str = "WARDIAN_KEEPER_SPEAKS";

/// So many ended processes of a container are remembered, by its keeper and by the server, the newest: one that is started
/// every second must fill up neither.
pub const ENDED_KEPT: usize = 1000;

/// Descriptor numbers a keeper starts with.
pub const LISTENER_FD: i32 = 3;
/// The first connection.
pub const CONNECTION_FD: i32 = 4;
/// The mount namespace it enters first.
pub const NURSERY_FD: i32 = 5;

/// How a process is placed.
#[derive(Debug)]
pub struct Placement<F> {
    /// cgroup v1 `cgroup.procs` files, open for writing; none: where the prepared thread stands.
    pub v1_procs: Vec<F>,
    /// The directory of a v2 cgroup.
    pub v2_dir: Option<F>,
}

impl Placement<OwnedFd> {
    /// To be sent.
    pub fn as_fds(&self) -> Placement<BorrowedFd<'_>> {
        Placement {
            v1_procs: self.v1_procs.iter().map(AsFd::as_fd).collect(),
            v2_dir: self.v2_dir.as_ref().map(AsFd::as_fd),
        }
    }
}

/// A root file system and what is mounted in it.
#[derive(Debug)]
pub struct Boxed<F> {
    /// `config.json`, a memory file.
    pub config: F,
    /// The root file system, a detached mount.
    pub rootfs: F,
    /// Bind mounts, detached, with their destinations. In the bundle they are the first bind mounts.
    pub binds: Vec<(String, F)>,
    /// Of a container: files whose contents it gets in a file system of its own, with their destinations. The keeper keeps
    /// them and shows them to peas as well. In the bundle they are the last bind mounts.
    pub files: Vec<(String, F)>,
    /// Names of the mounted v1 hierarchies (`cpu`, `name=systemd`), for `/sys/fs/cgroup` inside.
    pub v1_hierarchies: Vec<String>,
}

impl Boxed<OwnedFd> {
    /// To be sent.
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
        }
    }
}

/// What a container is made of.
#[derive(Debug)]
pub struct Create<F> {
    /// The program of pid 1.
    pub init: F,
    /// Network namespace.
    pub network: F,
    /// User namespace.
    pub user: Option<F>,
    /// Root file system.
    pub boxed: Boxed<F>,
    /// Where it runs.
    pub place: Placement<F>,
}

/// A program to run in a container.
#[derive(Debug)]
pub struct Run<F> {
    /// Id of the process.
    pub id: String,
    /// A memory file that holds an [`Exec`] as JSON: it may be longer than a message.
    pub exec: F,
    /// Of a pea: its own root file system.
    pub pea: Option<Boxed<F>>,
    /// Where it runs.
    pub place: Placement<F>,
}

/// A tar to pack or to unpack inside.
#[derive(Debug)]
pub struct Transfer<F> {
    /// Unpack?
    pub inward: bool,
    /// As whom: a name in the container's passwd; empty: root.
    pub user: String,
    /// Destination directory or source path.
    pub path: String,
    /// The keeper's end of the tar's pipe.
    pub tar: F,
    /// Where it runs.
    pub place: Placement<F>,
}

/// A question to the keeper.
#[derive(Debug)]
pub enum Op<F> {
    /// Who are you? Answer: [`Reply::Hello`].
    Hello,
    /// Stand a thread in these cgroups (`tasks` files of cgroup v1), to clone from there. Sent ahead, before there is a
    /// container. Answer: [`Reply::Done`].
    Prepare {
        /// `tasks` files of cgroup v1, open for writing.
        tasks: Vec<F>,
    },
    /// Make the container. Answer: [`Reply::Made`].
    Create(Create<F>),
    /// Run a program in the container. Answer: [`Reply::Started`].
    Run(Run<F>),
    /// Pack or unpack a tar inside. Answer: [`Reply::Done`] when it has ended and says by its exit status that all of it is
    /// done.
    Transfer(Transfer<F>),
    /// End a transfer that this connection has asked for, however it is held up. Answer: [`Reply::Done`]; the transfer's own
    /// answer says that it has failed.
    Cancel {
        /// The `seq` of its request.
        transfer: u64,
    },
    /// The stdio of a process. Answer: [`Reply::Started`].
    Attach {
        /// Its id.
        id: String,
    },
    /// End of file on a process's stdin. Answer: [`Reply::Done`].
    CloseStdin {
        /// Its id.
        id: String,
    },
    /// Change the size of a process's terminal. Answer: [`Reply::Done`], or a failure when it has none.
    Resize {
        /// Its id.
        id: String,
        /// The new size.
        window: Window,
    },
    /// Signal a process. Answer: [`Reply::Done`].
    Signal {
        /// Its id.
        id: String,
        /// Number.
        signal: i32,
    },
    /// The output of an ended process has been read: let its descriptors go. Answer: [`Reply::Done`].
    Release {
        /// Its id.
        id: String,
    },
    /// End everything: kill pid 1, reap, close the root file system, answer ([`Reply::Destroyed`]; the first keepers:
    /// [`Reply::Done`]), exit.
    Destroy,
}

impl<F> Op<F> {
    /// What a keeper must have for it. A keeper that does not know an operation answers [`Failure::Unsupported`]; those of
    /// versions 1 and 2 end the connection.
    pub fn needs(&self) -> Option<Feature> {
        match self {
            Self::Resize { .. } => Some(Feature::Terminals),
            Self::Cancel { .. } => Some(Feature::Confinement),
            Self::Hello
            | Self::Prepare { .. }
            | Self::Create(_)
            | Self::Run(_)
            | Self::Transfer(_)
            | Self::Attach { .. }
            | Self::CloseStdin { .. }
            | Self::Signal { .. }
            | Self::Release { .. }
            | Self::Destroy => None,
        }
    }
}

/// A program to run: what an OCI process object says, but the user is a name that is looked up inside.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `K=V`; PATH, USER and HOME are added inside when missing.
    pub env: Vec<String>,
    /// Working directory; empty: home.
    pub dir: String,
    /// Make the working directory when missing (a pea's is not made, but replaced by `/`).
    pub make_dir: bool,
    /// As asked for; empty: root.
    pub user: String,
    /// `(RLIMIT number, value)`.
    pub rlimits: Vec<(u32, u64)>,
    /// Bounding set as a mask.
    pub capabilities: u64,
    /// Bounding set for processes that do not run as gid 0 (Garden's rule looks at the gid).
    pub capabilities_non_root: u64,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Give it a terminal of this size.
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
        /// Of the question.
        seq: u64,
        /// The answer.
        reply: Reply<F>,
    },
    /// A process ended.
    Exited {
        /// Its id.
        id: String,
        /// 128 + signal when killed.
        status: i32,
    },
    /// Pid 1 ended without having been told to: everything inside is dead.
    Gone {
        /// Its status.
        status: i32,
    },
}

/// The server's ends of a process's stdio.
#[derive(Debug)]
pub enum Stdio<F> {
    /// Pipes.
    Pipes {
        /// Until it is closed.
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
    /// As the host sees it; 0 once it has ended.
    pub pid: i32,
    /// Things that went less well than asked.
    pub warnings: Vec<String>,
    /// Its stdio.
    pub stdio: Stdio<F>,
}

/// Who a keeper is.
#[derive(Debug)]
pub struct Hello<F> {
    /// Its protocol.
    pub version: u32,
    /// Its own pid as the host sees it.
    pub pid: i32,
    /// Pid 1 of the container as the host sees it, while it lives.
    pub init: Option<i32>,
    /// A memory file that holds its processes as a JSON list of [`ProcessState`], oldest first: a long-lived container has
    /// more than one message can hold.
    pub processes: F,
}

/// How long the end of a container took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destroyed {
    /// From the question until every process was reaped.
    pub killed_us: u64,
    /// Closing the root file system, which unmounts it.
    pub unmounted_us: u64,
}

/// An answer.
#[derive(Debug)]
pub enum Reply<F> {
    /// Who the keeper is.
    Hello(Hello<F>),
    /// The container is made.
    Made {
        /// Pid 1 as the host sees it.
        pid: i32,
        /// Its pidfd.
        init: F,
    },
    /// A process runs, or has run.
    Started(Started<F>),
    /// It is done.
    Done,
    /// Everything has ended.
    Destroyed(Destroyed),
    /// It failed.
    Failed {
        /// Why.
        kind: Failure,
        /// In words.
        message: String,
    },
}

/// A process as the keeper knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessState {
    /// Its id.
    pub id: String,
    /// `None` while it runs.
    pub status: Option<i32>,
    /// A root file system of its own.
    pub pea: bool,
}
