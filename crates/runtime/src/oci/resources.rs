//! `linux.resources`: limits of the cgroup.

use super::DeviceType;
use std::collections::BTreeMap;

object! {
    /// Limits by controller.
    Resources {
        ;
        /// Which devices may be opened, in order.
        devices: Vec<DeviceRule>,
        /// Memory.
        memory: Memory,
        /// Processors.
        cpu: Cpu,
        /// Processes.
        pids: Pids,
        /// Block devices.
        #[serde(rename = "blockIO")]
        block_io: BlockIo,
        /// Huge pages.
        hugepage_limits: Vec<HugepageLimit>,
        /// Packets.
        network: Network,
        /// By device.
        rdma: BTreeMap<String, Rdma>,
        /// Files of cgroup v2 and what is written to them.
        unified: BTreeMap<String, String>,
    }
}

object! {
    /// A rule about devices.
    DeviceRule {
        /// Or deny.
        allow: bool,
        ;
        /// Missing: all.
        #[serde(rename = "type")]
        kind: DeviceType,
        /// -1 or missing: any.
        major: i64,
        /// -1 or missing: any.
        minor: i64,
        /// Some of `rwm`.
        access: String,
    }
}

object! {
    /// Bytes; -1: no limit.
    Memory {
        ;
        /// Memory.
        limit: i64,
        /// Soft limit.
        reservation: i64,
        /// Memory and swap.
        swap: i64,
        /// Of the kernel; deprecated by the specification.
        kernel: i64,
        /// Of TCP buffers.
        #[serde(rename = "kernelTCP")]
        kernel_tcp: i64,
        /// 0 to 100.
        swappiness: u64,
        /// Processes wait instead of being killed.
        #[serde(rename = "disableOOMKiller")]
        disable_oom_killer: bool,
        /// Children count as well.
        use_hierarchy: bool,
        /// A limit below what is used is refused.
        check_before_update: bool,
    }
}

object! {
    /// Times in microseconds.
    Cpu {
        ;
        /// v1 shares.
        shares: u64,
        /// Time in each period; negative: no limit.
        quota: i64,
        /// What may be saved up.
        burst: u64,
        /// Period.
        period: u64,
        /// Of real-time processes.
        realtime_runtime: i64,
        /// Of real-time processes.
        realtime_period: u64,
        /// Processors, as `0-3,7`.
        cpus: String,
        /// Memory nodes.
        mems: String,
        /// 1: run when nothing else does.
        idle: i64,
    }
}

object! {
    /// Processes.
    Pids {
        /// Negative: no limit.
        limit: i64,
    }
}

object! {
    /// Block devices.
    BlockIo {
        ;
        /// 10 to 1000.
        weight: u16,
        /// Against children.
        leaf_weight: u16,
        /// By device.
        weight_device: Vec<Weight>,
        /// Bytes a second.
        throttle_read_bps_device: Vec<Throttle>,
        /// Bytes a second.
        throttle_write_bps_device: Vec<Throttle>,
        /// Operations a second.
        #[serde(rename = "throttleReadIOPSDevice")]
        throttle_read_iops_device: Vec<Throttle>,
        /// Operations a second.
        #[serde(rename = "throttleWriteIOPSDevice")]
        throttle_write_iops_device: Vec<Throttle>,
    }
}

object! {
    /// A weight for a device.
    Weight {
        /// Its number.
        major: i64,
        /// Its number.
        minor: i64,
        ;
        /// 10 to 1000.
        weight: u16,
        /// Against children.
        leaf_weight: u16,
    }
}

object! {
    /// A limit for a device.
    Throttle {
        /// Its number.
        major: i64,
        /// Its number.
        minor: i64,
        /// A second.
        rate: u64,
    }
}

object! {
    /// Huge pages of a size.
    HugepageLimit {
        /// As `2MB`.
        page_size: String,
        /// Bytes.
        limit: u64,
    }
}

object! {
    /// Packets.
    Network {
        ;
        /// Class of packets.
        #[serde(rename = "classID")]
        class_id: u32,
        /// By interface.
        priorities: Vec<InterfacePriority>,
    }
}

object! {
    /// Packets on an interface.
    InterfacePriority {
        /// Its name.
        name: String,
        /// Priority.
        priority: u32,
    }
}

object! {
    /// An RDMA device.
    Rdma {
        ;
        /// Handles that can be opened.
        hca_handles: u32,
        /// Objects that can be made.
        hca_objects: u32,
    }
}
