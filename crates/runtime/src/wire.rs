//! What server and keeper say to each other: one JSON object a packet, descriptors beside it.
//!
//! WHEN CHANGING THIS: a new server talks to keepers that were started by an old one. Add optional fields;
//! never change the meaning of an old one; raise [`VERSION`] when a server must know.

use serde::{Deserialize, Serialize};

/// Version of this protocol, told in [`Reply::Hello`]. 2: terminals. 3: the container's own files, cancelled transfers.
pub const VERSION: u32 = 3;
/// The first version whose keepers give terminals: an earlier one would start the program without.
pub const TERMINALS: u32 = 2;
/// The first version whose keepers keep the container's own files ([`Boxed::files`]) and show them to its peas.
pub const OWN_FILES: u32 = 3;
/// The first version whose keepers know [`Op::Cancel`]: an earlier one would end the connection.
pub const CANCEL: u32 = 3;

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

/// A question to the keeper. `seq` comes back in the answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the asker, unique among its open questions.
    pub seq: u64,
    /// What to do.
    pub op: Op,
}

/// How a process is placed: the descriptors that come with it, in this order, after those of the operation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Placement {
    /// So many cgroup v1 `cgroup.procs` files, open for writing; none: where the prepared thread stands.
    pub v1_procs: usize,
    /// Then one directory of a v2 cgroup.
    pub v2_dir: bool,
}

/// A root file system and what is mounted in it: descriptors in this order, before those of [`Placement`]:
/// config.json, root file system, detached mounts for `binds`, files for `files`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Boxed {
    /// Destinations of the bind mounts, in the order of their descriptors.
    pub binds: Vec<String>,
    /// Of a container: destinations of files whose contents it gets in a file system of its own, kept by the keeper and shown
    /// to peas as well. In the bundle they are the last bind mounts.
    #[serde(default)]
    pub files: Vec<String>,
    /// Names of the mounted v1 hierarchies (`cpu`, `name=systemd`), for `/sys/fs/cgroup` inside.
    pub v1_hierarchies: Vec<String>,
}

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Op {
    /// Who are you? Answer: [`Reply::Hello`], with a file that holds the processes as a JSON list of
    /// [`ProcessState`], oldest first: a long-lived container has more than one message can hold.
    Hello,
    /// Stand a thread in these cgroups, to clone from there. Descriptors: `tasks` files of cgroup v1. Sent ahead,
    /// before there is a container. Answer: [`Reply::Done`].
    Prepare,
    /// Make the container. Descriptors: init program, network namespace, user namespace if `user`, then
    /// [`Boxed`], then [`Placement`]. Answer: [`Reply::Started`] with pid 1's pidfd.
    Create {
        /// A user namespace comes along.
        user: bool,
        /// Root file system.
        boxed: Boxed,
        /// Where it runs.
        place: Placement,
    },
    /// Run a program in the container; with `boxed` as a pea. Descriptors: process JSON ([`Exec`]), then
    /// [`Boxed`] if given, then [`Placement`]. Answer: [`Reply::Started`] with stdin, stdout, stderr, or with its
    /// terminal alone.
    Run {
        /// Its id.
        id: String,
        /// A root file system of its own.
        boxed: Option<Boxed>,
        /// Where it runs.
        place: Placement,
    },
    /// Pack or unpack a tar inside. Descriptors: the tar's pipe, then [`Placement`]. Answer: [`Reply::Done`]
    /// when it has ended and says by its exit status that all of it is done.
    Transfer {
        /// Unpack?
        inward: bool,
        /// As whom: a name in the container's passwd; empty: root.
        user: String,
        /// Destination directory or source path.
        path: String,
        /// Where it runs.
        place: Placement,
    },
    /// End a transfer that this connection has asked for, however it is held up. Answer: [`Reply::Done`]; the transfer's own
    /// answer says that it has failed.
    Cancel {
        /// The `seq` of its request.
        transfer: u64,
    },
    /// The stdio of a process. Answer: [`Reply::Started`] with stdin (while open), stdout, stderr, or with its terminal
    /// alone.
    Attach {
        /// Its id.
        id: String,
    },
    /// End of file on a process's stdin.
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
    /// Signal a process.
    Signal {
        /// Its id.
        id: String,
        /// Number.
        signal: i32,
    },
    /// The output of an ended process has been read: let its descriptors go.
    Release {
        /// Its id.
        id: String,
    },
    /// End everything: kill pid 1, reap, close the root file system, answer ([`Reply::Destroyed`]; older keepers:
    /// [`Reply::Done`]), exit.
    Destroy,
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
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The answer to a question.
    Reply {
        /// Of the question.
        seq: u64,
        /// The answer.
        reply: Reply,
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

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Who the keeper is.
    Hello {
        /// Its protocol.
        version: u32,
        /// Its own pid as the host sees it.
        pid: i32,
        /// Pid 1 of the container as the host sees it, while it lives.
        init: Option<i32>,
    },
    /// Descriptors come along.
    Started {
        /// Things that went less well than asked.
        warnings: Vec<String>,
        /// Is stdin among the descriptors?
        stdin: bool,
        /// The process as the host sees it; 0 once it has ended.
        pid: i32,
        /// The one descriptor is the master of its terminal (absent from earlier keepers: they give none).
        #[serde(default)]
        tty: bool,
    },
    /// It is done.
    Done,
    /// Everything has ended.
    Destroyed {
        /// From the question until every process was reaped, in microseconds.
        killed_us: u64,
        /// Closing the root file system, which unmounts it, in microseconds.
        unmounted_us: u64,
    },
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

/// Kinds of failure that mean something to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The program is not there.
    ExecutableNotFound,
    /// No such process.
    UnknownProcess,
    /// Anything else.
    Other,
}
