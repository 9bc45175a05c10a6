//! `linux.resources`: limits of the cgroup.

use super::DeviceType;
use std::collections::BTreeMap;

object! {
    /// Limits, by controller.
    Resources {
        ;
        /// Device rules, in order.
        devices: Vec<DeviceRule>,
        /// Memory.
        memory: Memory,
        /// CPU.
        cpu: Cpu,
        /// Number of processes.
        pids: Pids,
        /// Block devices.
        #[serde(rename = "blockIO")]
        block_io: BlockIo,
        /// Huge pages.
        hugepage_limits: Vec<HugepageLimit>,
        /// Network packets.
        network: Network,
        /// RDMA limits, by device.
        rdma: BTreeMap<String, Rdma>,
        /// Files of cgroup v2 and the values written to them.
        unified: BTreeMap<String, String>,
    }
}

object! {
    /// A device rule.
    DeviceRule {
        /// Allow (`true`) or deny.
        allow: bool,
        ;
        /// Type of device; all if missing.
        #[serde(rename = "type")]
        kind: DeviceType,
        /// Major number; -1 or missing: any.
        major: i64,
        /// Minor number; -1 or missing: any.
        minor: i64,
        /// Kinds of access, some of `rwm`.
        access: String,
    }
}

object! {
    /// Memory limits in bytes; -1: no limit.
    Memory {
        ;
        /// Limit of memory.
        limit: i64,
        /// Soft limit.
        reservation: i64,
        /// Limit of memory and swap together.
        swap: i64,
        /// Limit of kernel memory; deprecated by the specification.
        kernel: i64,
        /// Limit of TCP buffer memory.
        #[serde(rename = "kernelTCP")]
        kernel_tcp: i64,
        /// Swappiness, 0 to 100.
        swappiness: u64,
        /// Whether processes wait for memory instead of being killed.
        #[serde(rename = "disableOOMKiller")]
        disable_oom_killer: bool,
        /// Whether child cgroups count as well.
        use_hierarchy: bool,
        /// Whether a limit below the current usage is refused.
        check_before_update: bool,
    }
}

object! {
    /// CPU limits; times in microseconds.
    Cpu {
        ;
        /// CPU shares as of v1.
        shares: u64,
        /// CPU time per period; negative: no limit.
        quota: i64,
        /// Unused quota that may accumulate.
        burst: u64,
        /// Length of a period.
        period: u64,
        /// CPU time of real-time processes per period.
        realtime_runtime: i64,
        /// Length of a period for real-time processes.
        realtime_period: u64,
        /// Processors, such as `0-3,7`.
        cpus: String,
        /// Memory nodes.
        mems: String,
        /// 1: the cgroup runs only when no other does.
        idle: i64,
    }
}

object! {
    /// Limit of processes.
    Pids {
        /// Number of processes; negative: no limit.
        limit: i64,
    }
}

object! {
    /// I/O limits of block devices.
    BlockIo {
        ;
        /// Weight, 10 to 1000.
        weight: u16,
        /// Weight in competition with child cgroups.
        leaf_weight: u16,
        /// Weights by device.
        weight_device: Vec<Weight>,
        /// Bytes read per second, by device.
        throttle_read_bps_device: Vec<Throttle>,
        /// Bytes written per second, by device.
        throttle_write_bps_device: Vec<Throttle>,
        /// Read operations per second, by device.
        #[serde(rename = "throttleReadIOPSDevice")]
        throttle_read_iops_device: Vec<Throttle>,
        /// Write operations per second, by device.
        #[serde(rename = "throttleWriteIOPSDevice")]
        throttle_write_iops_device: Vec<Throttle>,
    }
}

object! {
    /// A weight for a device.
    Weight {
        /// Major number.
        major: i64,
        /// Minor number.
        minor: i64,
        ;
        /// Weight, 10 to 1000.
        weight: u16,
        /// Weight in competition with child cgroups.
        leaf_weight: u16,
    }
}

object! {
    /// A rate limit for a device.
    Throttle {
        /// Major number.
        major: i64,
        /// Minor number.
        minor: i64,
        /// Bytes or operations per second.
        rate: u64,
    }
}

object! {
    /// A limit for huge pages of one size.
    HugepageLimit {
        /// Page size, such as `2MB`.
        page_size: String,
        /// Limit in bytes.
        limit: u64,
    }
}

object! {
    /// Settings for network packets.
    Network {
        ;
        /// Class identifier of the packets.
        #[serde(rename = "classID")]
        class_id: u32,
        /// Priorities by interface.
        priorities: Vec<InterfacePriority>,
    }
}

object! {
    /// Priority of packets on an interface.
    InterfacePriority {
        /// Name of the interface.
        name: String,
        /// Priority.
        priority: u32,
    }
}

object! {
    /// Limits for an RDMA device.
    Rdma {
        ;
        /// Number of handles that can be opened.
        hca_handles: u32,
        /// Number of objects that can be created.
        hca_objects: u32,
    }
}
