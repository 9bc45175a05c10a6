//! The JSON of the protocol. It contains only the number of a message's descriptors, which travel in the order that
//! each comment gives.

use super::Window;
use serde::{Deserialize, Serialize};

/// A request. `seq` is repeated in the answer; it is unique among the open requests of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub seq: u64,
    pub op: Op,
}

/// The `seq` of any request, also one of a later version.
#[derive(Debug, Deserialize)]
pub struct Numbered {
    pub seq: u64,
}

/// The `cgroup.procs` files of cgroup v1, then the directory of a v2 cgroup.
#[derive(Debug, Serialize, Deserialize)]
pub struct Placement {
    pub v1_procs: usize,
    pub v2_dir: bool,
}

/// config.json, root file system, one for each of `binds`, one for each of `files`, `v1_mounts` cgroup mounts.
#[derive(Debug, Serialize, Deserialize)]
pub struct Boxed {
    pub binds: Vec<String>,
    #[serde(default)]
    pub files: Vec<String>,
    pub v1_hierarchies: Vec<String>,
    #[serde(default)]
    pub v1_mounts: usize,
}

/// See [`super::Op`].
#[derive(Debug, Serialize, Deserialize)]
pub enum Op {
    Hello,
    /// `tasks` files.
    Prepare,
    /// Init program, network namespace, user namespace if `user`, sysfs if `sysfs`, [`Boxed`], [`Placement`].
    Create {
        user: bool,
        #[serde(default)]
        sysfs: bool,
        boxed: Boxed,
        place: Placement,
    },
    /// Process JSON, [`Boxed`] if given, [`Placement`].
    Run {
        id: String,
        boxed: Option<Boxed>,
        place: Placement,
    },
    /// The tar's pipe, [`Placement`].
    Transfer {
        inward: bool,
        user: String,
        path: String,
        place: Placement,
    },
    Cancel {
        transfer: u64,
    },
    Attach {
        id: String,
    },
    CloseStdin {
        id: String,
    },
    Resize {
        id: String,
        window: Window,
    },
    Signal {
        id: String,
        signal: i32,
    },
    Release {
        id: String,
    },
    Unmounted {
        id: String,
    },
    /// `count` files.
    Rewrite {
        count: usize,
    },
    Destroy,
}

/// See [`super::Message`].
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    Reply { seq: u64, reply: Reply },
    Exited { id: String, status: i32 },
    Gone { status: i32 },
}

/// See [`super::Reply`].
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The list of processes.
    Hello {
        version: u32,
        pid: i32,
        init: Option<i32>,
    },
    /// [`super::Reply::Made`]: pid 1's pidfd, the only descriptor. [`super::Reply::Started`]: stdin if `stdin`, then output
    /// and error unless they are released; the master of a terminal if `tty`, which keepers of version 1 never say.
    Started {
        warnings: Vec<String>,
        stdin: bool,
        pid: i32,
        #[serde(default)]
        tty: bool,
    },
    Done,
    Destroyed {
        killed_us: u64,
        unmounted_us: u64,
    },
    Unmounted {
        us: u64,
    },
    Failed {
        kind: Failure,
        message: String,
    },
}

/// Kinds of failure that mean something to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The program does not exist.
    ExecutableNotFound,
    /// There is no such process.
    UnknownProcess,
    /// The keeper does not know the operation.
    Unsupported,
    /// Anything else, also the kinds that only later keepers know.
    #[serde(other)]
    Other,
}
