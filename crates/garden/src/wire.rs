//! The wire types, with Garden's field names.
//!
//! Fields that Go omits when they are zero are omitted here too; nested objects are always sent.

mod containers;
mod info;
mod metrics;
mod usage;

pub use containers::{Container, Details, Handle, MAIN, Mount, OutputNote, ProcessState};
pub use info::{Counts, RegistryInfo, ServerInfo, StoreInfo};
pub use metrics::{BulkInfo, BulkMetrics, CPUStat, DiskStat, MemoryStat, Metrics, NetworkStat, PidStat};
pub use usage::Usage;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

fn zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Header of a request to run or attach, and of its reply: input that is not UTF-8 may be sent in this
/// encoding. It is wardian's own; Garden's servers do not reply with it.
pub const INPUT_HEADER: (&str, &str) = ("Wardian-Input", "base64");

/// Header of a request for a process: the client reads these of its streams to their ends, however slowly,
/// and the process is held up meanwhile, as by a full pipe. Wardian's own: other servers drop what is not
/// taken in time.
pub const WAIT_HEADER: &str = "Wardian-Wait-For";
/// The names of the streams in that header, separated by commas.
pub const WAIT_STREAMS: [&str; 2] = ["stdout", "stderr"];

macro_rules! wire {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name { $($(#[$field_meta])* pub $field: $kind),* }
    };
}
use wire;

wire!(/// An image that the server brings into its store; wardian's own.
ImageUnderWay {
    /// Its address as a client gave it, without secrets.
    image: String,
    /// Its layers, bottom first; empty as long as they are not known.
    layers: Vec<LayerUnderWay>,
});

wire!(/// A layer of such an image.
LayerUnderWay {
    /// The layer's chain id.
    chain_id: String,
    /// Bytes of its blob.
    size: u64,
    /// Bytes that have been read of it.
    read: u64,
    /// `waiting`, `unpacking`, `present` if the store had it before, `done`.
    state: String,
});

wire!(/// A request for a container.
ContainerSpec {
    /// Empty: the server makes one up.
    #[serde(skip_serializing_if = "zero")] handle: String,
    /// Nanoseconds without a call after which the container is destroyed.
    #[serde(skip_serializing_if = "zero")] grace_time: i64,
    /// The older spelling of `image.uri`.
    #[serde(skip_serializing_if = "zero")] rootfs: String,
    /// The image of its root file system.
    image: ImageRef,
    /// Host paths shown inside.
    #[serde(skip_serializing_if = "zero")] bind_mounts: Vec<BindMount>,
    /// Subnet or address.
    #[serde(skip_serializing_if = "zero")] network: String,
    /// Free key-value pairs.
    #[serde(skip_serializing_if = "zero")] properties: BTreeMap<String, String>,
    /// `K=V` for every process.
    #[serde(skip_serializing_if = "zero")] env: Vec<String>,
    /// Container root is host root.
    #[serde(skip_serializing_if = "zero")] privileged: bool,
    /// Resource limits.
    limits: Limits,
    /// Outgoing traffic rules.
    #[serde(skip_serializing_if = "zero")] netout_rules: Vec<NetOutRule>,
    /// Port mappings.
    #[serde(skip_serializing_if = "zero")] netin: Vec<NetIn>,
    /// Named volumes shown inside. Wardian's own.
    #[serde(skip_serializing_if = "zero")] volumes: Vec<VolumeMount>,
    /// File systems in memory. Wardian's own.
    #[serde(skip_serializing_if = "zero")] tmpfs: Vec<Tmpfs>,
    /// Errors and warnings about mounts name the flags of the command line. Wardian's own.
    #[serde(skip_serializing_if = "zero")] by_flags: bool,
    /// The signal that a stop begins with, by name or number; `image`: the image's; empty: TERM. Wardian's own.
    #[serde(skip_serializing_if = "zero")] stop_signal: String,
});

wire!(/// An image and the credentials to fetch it.
ImageRef {
    /// Path or URI.
    #[serde(skip_serializing_if = "zero")] uri: String,
    /// Registry user.
    #[serde(skip_serializing_if = "zero")] username: String,
    /// Registry password.
    #[serde(skip_serializing_if = "zero")] password: String,
    /// When a registry is asked: missing, newer, always or never. Wardian's own.
    #[serde(skip_serializing_if = "zero")] pull: String,
});

wire!(/// Resource limits of a container; zero is none.
Limits {
    /// Network bandwidth.
    bandwidth_limits: BandwidthLimits,
    /// Processor time.
    cpu_limits: CpuLimits,
    /// Space and files.
    disk_limits: DiskLimits,
    /// Memory.
    memory_limits: MemoryLimits,
    /// Processes.
    pid_limits: PidLimits,
});

wire!(/// Network bandwidth.
BandwidthLimits {
    /// Bytes per second.
    #[serde(skip_serializing_if = "zero")] rate: u64,
    /// Bytes of burst.
    #[serde(skip_serializing_if = "zero")] burst: u64,
});

wire!(/// Processor time.
CpuLimits {
    /// Relative weight, in shares.
    #[serde(skip_serializing_if = "zero")] weight: u64,
    /// The older spelling of `weight`.
    #[serde(skip_serializing_if = "zero")] limit_in_shares: u64,
});

wire!(/// Space and files.
DiskLimits {
    /// Files, soft.
    #[serde(skip_serializing_if = "zero")] inode_soft: u64,
    /// Files, hard.
    #[serde(skip_serializing_if = "zero")] inode_hard: u64,
    /// Bytes, soft.
    #[serde(skip_serializing_if = "zero")] byte_soft: u64,
    /// Bytes, hard.
    #[serde(skip_serializing_if = "zero")] byte_hard: u64,
    /// 0: image and changes; 1: changes only.
    #[serde(skip_serializing_if = "zero")] scope: u8,
});

impl DiskLimits {
    /// The names of its fields.
    pub const FIELDS: [&str; 5] = ["inode_soft", "inode_hard", "byte_soft", "byte_hard", "scope"];
}

wire!(/// Memory.
MemoryLimits {
    /// Bytes, swap included.
    #[serde(skip_serializing_if = "zero")] limit_in_bytes: u64,
});

wire!(/// Processes.
PidLimits {
    /// The most processes at a time.
    #[serde(skip_serializing_if = "zero")] max: u64,
});

wire!(/// A host path shown inside.
BindMount {
    /// On the host.
    #[serde(skip_serializing_if = "zero")] src_path: String,
    /// In the container.
    #[serde(skip_serializing_if = "zero")] dst_path: String,
    /// 0: read-only; 1: read-write.
    #[serde(skip_serializing_if = "zero")] mode: u8,
    /// 0: the source is on the host; 1: in the container.
    #[serde(skip_serializing_if = "zero")] origin: u8,
    /// Files have the owners inside that they have on the host, root among them. Wardian's own; not for peas.
    #[serde(skip_serializing_if = "zero")] idmap: bool,
});

wire!(/// A named volume shown inside; it is made at its first use. Wardian's own.
VolumeMount {
    /// Its name.
    #[serde(skip_serializing_if = "zero")] name: String,
    /// In the container.
    #[serde(skip_serializing_if = "zero")] dst_path: String,
    /// Whether the container may only read it.
    #[serde(skip_serializing_if = "zero")] read_only: bool,
});

wire!(/// A file system in memory. Wardian's own.
Tmpfs {
    /// In the container.
    #[serde(skip_serializing_if = "zero")] dst_path: String,
    /// The most bytes of its files; 0: the server's default.
    #[serde(skip_serializing_if = "zero")] size: u64,
    /// The permission bits of its root directory; without it those of /tmp, 1777.
    #[serde(skip_serializing_if = "zero")] mode: Option<u32>,
    /// Whether programs in it can be executed.
    #[serde(skip_serializing_if = "zero")] exec: bool,
});

wire!(/// A request for a named volume. Wardian's own.
VolumeSpec {
    /// Its name.
    name: String,
});

wire!(/// A named volume. Wardian's own.
Volume {
    /// Its name.
    name: String,
    /// When it was made, in milliseconds since 1970; 0 if that is not known.
    created_ms: u64,
    /// Its directory on the host.
    path: String,
    /// The handles of the containers that use it.
    used_by: Vec<String>,
});

wire!(/// A port mapping.
NetIn {
    /// On the host; 0: a port of the server's pool.
    host_port: u32,
    /// In the container; 0: the same as on the host.
    container_port: u32,
    /// `tcp` or `udp`; empty: TCP, the only one that Garden servers map. Wardian's own.
    #[serde(skip_serializing_if = "zero")] protocol: String,
});

wire!(/// A rule for outgoing traffic.
NetOutRule {
    /// 0 all, 1 TCP, 2 UDP, 3 ICMP, 4 ICMPv6.
    #[serde(skip_serializing_if = "zero")] protocol: u8,
    /// Destination addresses; empty: any.
    #[serde(skip_serializing_if = "zero")] networks: Vec<IpRange>,
    /// Destination ports; empty: all.
    #[serde(skip_serializing_if = "zero")] ports: Vec<PortRange>,
    /// Which ICMP messages.
    #[serde(skip_serializing_if = "Option::is_none")] icmps: Option<IcmpControl>,
    /// Log matching packets.
    #[serde(skip_serializing_if = "zero")] log: bool,
});

wire!(/// Addresses, both ends included; an end may be missing.
IpRange {
    /// First.
    #[serde(skip_serializing_if = "zero")] start: String,
    /// Last.
    #[serde(skip_serializing_if = "zero")] end: String,
});

wire!(/// Ports, both ends included.
PortRange {
    /// First.
    #[serde(skip_serializing_if = "zero")] start: u16,
    /// Last.
    #[serde(skip_serializing_if = "zero")] end: u16,
});

wire!(/// ICMP messages.
IcmpControl {
    /// Message type.
    #[serde(rename = "type", skip_serializing_if = "zero")] kind: u8,
    /// Message code; none: any.
    #[serde(skip_serializing_if = "Option::is_none")] code: Option<u8>,
});

wire!(/// A request for a process, or with an image for a pea.
ProcessSpec {
    /// Empty: the server makes one up.
    #[serde(skip_serializing_if = "zero")] id: String,
    /// Program.
    #[serde(skip_serializing_if = "zero")] path: String,
    /// Arguments without the program.
    #[serde(skip_serializing_if = "zero")] args: Vec<String>,
    /// `K=V`.
    #[serde(skip_serializing_if = "zero")] env: Vec<String>,
    /// What the image of the container adds to it: `place`: the user and the working directory, if none are given here;
    /// `command`: these, and the entrypoint before `path` and `args`, or the image's own command if they are empty.
    /// Wardian's own.
    #[serde(skip_serializing_if = "zero")] of_image: String,
    /// Working directory.
    #[serde(skip_serializing_if = "zero")] dir: String,
    /// Name, uid, `uid:gid`.
    #[serde(skip_serializing_if = "zero")] user: String,
    /// Resource limits of the process.
    rlimits: ResourceLimits,
    /// A pea's own limits, beside the container's.
    #[serde(skip_serializing_if = "Option::is_none")] limits: Option<ProcessLimits>,
    /// Give it a terminal.
    #[serde(skip_serializing_if = "Option::is_none")] tty: Option<Tty>,
    /// Its own root file system: makes it a pea.
    image: ImageRef,
    /// Host paths shown inside; only for a pea.
    #[serde(skip_serializing_if = "zero")] bind_mounts: Vec<BindMount>,
    /// Bytes of the newest output that are kept for those who ask for it later; zero: none. Wardian's own.
    #[serde(skip_serializing_if = "zero")] keep_output: u64,
    /// Destroy the container when the process has ended. Wardian's own.
    #[serde(skip_serializing_if = "zero")] remove_container: bool,
    /// Keep its standard input open although no client holds it open. Wardian's own.
    #[serde(skip_serializing_if = "zero")] hold_input: bool,
});

wire!(/// Limits of a pea.
ProcessLimits {
    /// Processor time.
    cpu_limits: CpuLimits,
    /// Memory.
    memory_limits: MemoryLimits,
    /// Space of its root file system; wardian's own.
    #[serde(skip_serializing_if = "zero")] disk_limits: DiskLimits,
});

wire!(/// A terminal.
Tty {
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")] window_size: Option<WindowSize>,
});

wire!(/// Size of a terminal.
WindowSize {
    /// Width.
    #[serde(skip_serializing_if = "zero")] columns: u16,
    /// Height.
    #[serde(skip_serializing_if = "zero")] rows: u16,
});

macro_rules! resource_limits {
    ($($field:ident $name:literal),*) => {
        /// Resource limits of a process; soft and hard are the same. The names are the kernel's.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        #[allow(missing_docs)]
        pub struct ResourceLimits {
            $(#[serde(rename = $name, skip_serializing_if = "Option::is_none")] pub $field: Option<u64>),*
        }
        impl ResourceLimits {
            /// Returns the limits that are set, by name.
            pub fn given(&self) -> Vec<(&'static str, u64)> {
                [$(($name, self.$field)),*].into_iter().filter_map(|(name, v)| Some((name, v?))).collect()
            }
        }
    };
}

resource_limits!(address_space "as", core "core", cpu "cpu", data "data", fsize "fsize", locks "locks",
    memlock "memlock", msgqueue "msgqueue", nice "nice", nofile "nofile", nproc "nproc", rss "rss",
    rtprio "rtprio", sigpending "sigpending", stack "stack");

wire!(/// The capacity of the host.
Capacity {
    /// Memory.
    #[serde(skip_serializing_if = "zero")] memory_in_bytes: u64,
    /// Disk.
    #[serde(skip_serializing_if = "zero")] disk_in_bytes: u64,
    /// Disk that containers may be promised.
    #[serde(skip_serializing_if = "zero")] schedulable_disk_in_bytes: u64,
    /// The most containers.
    #[serde(skip_serializing_if = "zero")] max_containers: u64,
});

/// Information about a container. `P` is the type of its properties, or a reference to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", bound(deserialize = "P: Deserialize<'de> + Default"))]
pub struct ContainerInfo<P = BTreeMap<String, String>> {
    /// `active` or `stopped`.
    pub state: String,
    /// Conditions that clients should know of, such as out of memory.
    pub events: Option<Vec<String>>,
    /// The host's address in the container's network.
    #[serde(rename = "HostIP")]
    pub host_ip: String,
    /// The container's address.
    #[serde(rename = "ContainerIP")]
    pub container_ip: String,
    /// The container's IPv6 address.
    #[serde(rename = "ContainerIPv6")]
    pub container_ipv6: String,
    /// The host's address.
    #[serde(rename = "ExternalIP")]
    pub external_ip: String,
    /// The container's directory on the host.
    pub container_path: String,
    /// Never filled.
    #[serde(rename = "ProcessIDs")]
    pub process_ids: Option<Vec<String>>,
    /// Its properties.
    pub properties: Option<P>,
    /// Its port mappings.
    pub mapped_ports: Option<Vec<PortMapping>>,
    /// Its processes are frozen. Wardian's own.
    #[serde(skip_serializing_if = "zero")]
    pub paused: bool,
}

/// A port mapping in [`ContainerInfo`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortMapping {
    /// On the host.
    pub host_port: u32,
    /// In the container.
    pub container_port: u32,
    /// `udp`; empty: TCP. Wardian's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
}

wire!(/// A container's name; the reply to create.
Created {
    /// The handle.
    #[serde(rename = "Handle", alias = "handle")] handle: String,
    /// Warnings for the client, in sentences. Wardian's own.
    #[serde(skip_serializing_if = "Vec::is_empty")] warnings: Vec<String>,
});

wire!(/// The reply to list.
HandleList {
    /// Handles.
    #[serde(rename = "Handles", alias = "handles")] handles: Vec<String>,
});

wire!(/// The request to stop.
Stop {
    /// Kill the processes at once, without a TERM before.
    kill: bool,
    /// The first signal, by name or number; empty: the container's own. Wardian's own.
    #[serde(skip_serializing_if = "zero")] signal: String,
    /// Milliseconds between it and KILL; none: 10,000. Wardian's own.
    #[serde(skip_serializing_if = "Option::is_none")] grace_ms: Option<u64>,
});

wire!(/// A signal for a process; wardian's own.
Signal {
    /// By name or number.
    signal: String,
});

wire!(/// A process as the host sees it; wardian's own.
TopProcess {
    /// Its number in the container.
    pid: i32,
    /// Its parent's number there; 0: it has none there.
    parent: i32,
    /// Its number on the host.
    host_pid: i32,
    /// Its user's number in the container.
    user: u32,
    /// R, S, D, T, Z … as in proc_pid_stat(5).
    state: String,
    /// Nanoseconds of processor time.
    cpu_ns: u64,
    /// Program and arguments; in brackets the name alone.
    command: String,
});

wire!(/// The processes of a container; wardian's own.
Top {
    /// By their numbers in the container.
    processes: Vec<TopProcess>,
    /// There are more than are told.
    cut: bool,
});

wire!(/// A path that a container has changed; wardian's own.
Change {
    /// `A`: added, `C`: changed, `D`: deleted.
    kind: String,
    /// The path.
    path: String,
});

wire!(/// What a container has changed in its root file system; wardian's own.
Changes {
    /// The changes; a directory comes before what is in it.
    changes: Vec<Change>,
    /// There are more than are told.
    cut: bool,
});

wire!(/// The value of a property.
PropertyValue {
    /// The value.
    value: String,
});

wire!(/// A message on a process's control connection, in both directions.
Payload {
    /// The process's id.
    #[serde(skip_serializing_if = "zero")] process_id: String,
    /// The id of its output streams; only in the server's first payload.
    #[serde(skip_serializing_if = "zero")] stream_id: String,
    /// 0: standard input.
    #[serde(skip_serializing_if = "Option::is_none")] source: Option<i64>,
    /// With `source`: input; `source` without it: end of input.
    #[serde(skip_serializing_if = "Option::is_none")] data: Option<String>,
    /// With `source`: input that is not UTF-8. Wardian's own; a server that accepts it says so with
    /// [`INPUT_HEADER`].
    #[serde(skip_serializing_if = "Option::is_none")] base64: Option<String>,
    /// The process has ended with this status.
    #[serde(skip_serializing_if = "Option::is_none")] exit_status: Option<i64>,
    /// The program has ended with this status, and a descendant still holds its output open: `exit_status`
    /// comes when the output ends. Wardian's own, for clients that send [`WAIT_HEADER`].
    #[serde(skip_serializing_if = "Option::is_none")] ended: Option<i64>,
    /// Bytes of output that were lost because this client was too slow. Wardian's own.
    #[serde(skip_serializing_if = "zero")] lost: u64,
    /// The process's exit status is not known, for this reason.
    #[serde(skip_serializing_if = "Option::is_none")] error: Option<String>,
    /// New terminal size.
    #[serde(skip_serializing_if = "Option::is_none")] tty: Option<Tty>,
    /// 0: terminate; 1: kill.
    #[serde(skip_serializing_if = "Option::is_none")] signal: Option<i64>,
});

wire!(/// One phase of an operation.
Step {
    /// What was done in it.
    name: String,
    /// Milliseconds since the operation began.
    begin_ms: f64,
    /// How long it took, in milliseconds.
    ms: f64,
});

wire!(/// A create, a destroy, or the end of a pea.
Operation {
    /// `create`, `destroy` or `pea`.
    kind: String,
    /// The container's handle.
    handle: String,
    /// The container's id: ids are never reused, handles are.
    id: String,
    /// Of the end of a pea: the id of the pea's process.
    #[serde(skip_serializing_if = "Option::is_none")] process: Option<String>,
    /// When it began, in milliseconds since 1970.
    began_ms: f64,
    /// How long it took, in milliseconds.
    ms: f64,
    /// Its phases. Those of a create or destroy follow each other; a pea is unmounted while the server does the rest.
    steps: Vec<Step>,
    /// Why it failed.
    error: Option<String>,
    /// What the kernel did during a slow operation.
    diagnosis: Option<serde_json::Value>,
});

wire!(/// The last create and destroy of a handle, and the last ends of peas in it; wardian's own.
History {
    /// The create, if it is known.
    create: Option<Operation>,
    /// The destroy, if there was one and it is known.
    destroy: Option<Operation>,
    /// The last ends of peas in it, the newest last; nothing from a server of an earlier version.
    peas: Vec<Operation>,
});

wire!(/// An event; wardian's own.
Event {
    /// `create`, `destroy`, `stop`, `pause`, `unpause`, `oom`, `broken`, `process-start`, `process-exit`; `lost`: this
    /// listener was too slow; `forgotten`: earlier events that it asked for are not remembered.
    event: String,
    /// Milliseconds since 1970.
    #[serde(skip_serializing_if = "zero")] time_ms: u64,
    /// The container's handle.
    #[serde(skip_serializing_if = "zero")] handle: String,
    /// The container's id: ids are never reused, handles are.
    #[serde(skip_serializing_if = "zero")] id: String,
    /// The process's id.
    #[serde(skip_serializing_if = "Option::is_none")] process: Option<String>,
    /// The process's exit status.
    #[serde(skip_serializing_if = "Option::is_none")] status: Option<i32>,
    /// Why the container is broken.
    #[serde(skip_serializing_if = "Option::is_none")] reason: Option<String>,
    /// How many events were lost.
    #[serde(skip_serializing_if = "Option::is_none")] lost: Option<u64>,
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, encode};

    fn text<T: Serialize>(value: &T) -> String {
        String::from_utf8(encode(value)).unwrap()
    }

    #[test]
    fn specs_look_like_those_of_the_go_client() {
        let empty = ContainerSpec::default();
        assert_eq!(
            text(&empty),
            "{\"image\":{},\"limits\":{\"bandwidth_limits\":{},\"cpu_limits\":{},\"disk_limits\":{},\
             \"memory_limits\":{},\"pid_limits\":{}}}\n"
        );
        let process = ProcessSpec { path: "sleep".into(), args: vec!["1".into()], ..Default::default() };
        assert_eq!(text(&process), "{\"path\":\"sleep\",\"args\":[\"1\"],\"rlimits\":{},\"image\":{}}\n");
    }

    #[test]
    fn rlimits_are_named_as_the_kernel_names_them() {
        let spec: ProcessSpec =
            decode(br#"{"rlimits":{"as":1,"nofile":2,"stack":null,"odd":3},"limits":{}}"#).unwrap();
        assert_eq!(spec.rlimits.given(), [("as", 1), ("nofile", 2)]);
        assert_eq!(spec.limits, Some(ProcessLimits::default()));
        assert!(decode::<ProcessSpec>(br#"{"rlimits":{"nofile":-1}}"#).is_err());
    }

    #[test]
    fn payloads_tell_no_data_from_empty_data() {
        let first: Payload = decode(br#"{"source":0}"#).unwrap();
        assert_eq!((first.source, first.data), (Some(0), None));
        let second: Payload = decode(br#"{"source":0,"data":""}"#).unwrap();
        assert_eq!(second.data.as_deref(), Some(""));
        let last = Payload { process_id: "p".into(), exit_status: Some(0), ..Default::default() };
        assert_eq!(text(&last), "{\"process_id\":\"p\",\"exit_status\":0}\n");
    }

    #[test]
    fn info_has_go_names() {
        let info: ContainerInfo = ContainerInfo { mapped_ports: Some(Vec::new()), ..Default::default() };
        assert_eq!(
            text(&info),
            "{\"State\":\"\",\"Events\":null,\"HostIP\":\"\",\"ContainerIP\":\"\",\"ContainerIPv6\":\"\",\
             \"ExternalIP\":\"\",\"ContainerPath\":\"\",\"ProcessIDs\":null,\"Properties\":null,\"MappedPorts\":[]}\n"
        );
    }
}
