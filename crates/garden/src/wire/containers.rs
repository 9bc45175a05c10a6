//! Containers and processes as an operator sees them. All of it is wardian's own.

use super::{PortMapping, wire, zero};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The id of the process that `wardian run` starts.
pub const MAIN: &str = "main";

wire!(/// A container in a list.
Container {
    /// Its handle.
    handle: String,
    /// Its id, 32 hex digits: ids are never reused, handles are.
    id: String,
    /// The address of its image, without secrets.
    image: String,
    /// The id of its image.
    image_id: String,
    /// `creating`, `active`, `paused`, `stopped`, `broken` or `destroying`.
    state: String,
    /// Why it is broken.
    #[serde(skip_serializing_if = "zero")] reason: String,
    /// When it was created, in milliseconds since 1970; 0: unknown.
    created_ms: u64,
    /// The process called `main`, or else the one that was started first of those that run.
    main: Option<ProcessState>,
    /// How many processes run that clients have started.
    running: usize,
    /// How many have ended, as far as they are remembered.
    ended: usize,
    /// Its address.
    #[serde(skip_serializing_if = "zero")] address: String,
    /// Its IPv6 address.
    #[serde(skip_serializing_if = "zero")] ipv6_address: String,
    /// The host's address, which its ports are mapped at.
    #[serde(skip_serializing_if = "zero")] external_address: String,
    /// The ports of the host that lead to it.
    #[serde(skip_serializing_if = "zero")] ports: Vec<PortMapping>,
    /// Its properties.
    properties: BTreeMap<String, String>,
});

impl Container {
    /// Returns its state in one word for people, who ask what runs in it: `running`, `exited` and `idle` are three kinds
    /// of `active`.
    pub fn state_word(&self) -> &str {
        match (self.state.as_str(), &self.main) {
            ("active", _) if self.running > 0 => "running",
            ("active" | "stopped", Some(main)) if main.exit_status.is_some() => "exited",
            ("active", _) => "idle",
            (other, _) => other,
        }
    }
}

wire!(/// A process.
ProcessState {
    /// Its id.
    id: String,
    /// The program and its arguments; a long one is cut, and ends in an ellipsis. Empty: unknown.
    command: Vec<String>,
    /// Its user as it was given; empty: root.
    #[serde(skip_serializing_if = "zero")] user: String,
    /// It has a terminal.
    #[serde(skip_serializing_if = "zero")] terminal: bool,
    /// It has an image of its own.
    #[serde(skip_serializing_if = "zero")] pea: bool,
    /// When it was started, in milliseconds since 1970; 0: unknown.
    started_ms: u64,
    /// Its exit status, 128 + signal when killed; none: it runs.
    exit_status: Option<i32>,
    /// When it has ended, in milliseconds since 1970; none: it runs, or has ended while no server ran.
    exited_ms: Option<u64>,
    /// The OOM killer has ended it.
    #[serde(skip_serializing_if = "zero")] out_of_memory: bool,
    /// Bytes of its output that are kept; none: its output is not kept.
    output_bytes: Option<u64>,
    /// Bytes of its output that were dropped above the bound.
    #[serde(skip_serializing_if = "zero")] output_dropped: u64,
    /// The file of the host with the newest of it.
    #[serde(skip_serializing_if = "Option::is_none")] output_file: Option<String>,
});

wire!(/// All that is known of a container.
Details {
    /// As in a list.
    #[serde(flatten)] container: Container,
    /// Its processes.
    processes: Vec<ProcessState>,
    /// The variables that all of them have; only if they were asked for: secrets may be among them.
    #[serde(skip_serializing_if = "Option::is_none")] env: Option<Vec<String>>,
    /// How many variables there are.
    env_count: usize,
    /// What the image says of processes: the program and its first arguments, …
    entrypoint: Vec<String>,
    /// … the arguments after it, unless there are others, …
    command: Vec<String>,
    /// … the user, …
    user: String,
    /// … and the working directory.
    working_dir: String,
    /// What else its config says: exposed ports, labels, volumes, the signal for a stop; a health check, which is not run.
    image_says: Option<serde_json::Value>,
    /// Container root is host root.
    privileged: bool,
    /// What of the host is mounted in it.
    mounts: Vec<Mount>,
    /// Its directory below the server's run directory.
    container_path: String,
    /// The directory of its root file system in the store; none: it is being created or destroyed.
    rootfs_path: Option<String>,
});

wire!(/// A file or directory of the host in a container, or a file system in memory.
Mount {
    /// `bind` or `tmpfs`.
    #[serde(rename = "type")] kind: String,
    /// The path on the host.
    source: String,
    /// The path in the container.
    destination: String,
    /// Mount options.
    options: Vec<String>,
});

wire!(/// The handle of a container.
Handle {
    /// The handle.
    handle: String,
});

wire!(/// What stands between pieces of kept output.
OutputNote {
    /// So many bytes of output are missing here.
    #[serde(skip_serializing_if = "zero")] dropped: u64,
    /// What follows was printed after the request.
    #[serde(skip_serializing_if = "zero")] now: bool,
    /// Nothing follows.
    #[serde(skip_serializing_if = "zero")] over: bool,
});
