//! Metrics of containers, and the entries of bulk replies.

use super::ContainerInfo;
use crate::ErrorBody;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

macro_rules! memory_stat {
    ($($field:ident),* $(,)?) => {
        /// Memory, in bytes; faults and pages in numbers. The names are those of the kernel's `memory.stat`; which of
        /// them are filled depends on the version of cgroups.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        #[allow(missing_docs)]
        pub struct MemoryStat {
            $(pub $field: u64,)*
            /// The bytes that count towards the limit.
            #[serde(rename = "TotalUsageTowardLimit")]
            pub total_usage_toward_limit: u64,
            pub anon: u64,
            pub file: u64,
            pub swapcached: u64,
        }

        impl MemoryStat {
            /// Sets the value of a line of `memory.stat`; a name that Garden does not know is ignored.
            pub fn set(&mut self, name: &str, value: u64) {
                match name {
                    $(stringify!($field) => self.$field = value,)*
                    "anon" => self.anon = value,
                    "file" => self.file = value,
                    "swapcached" => self.swapcached = value,
                    _ => {}
                }
            }
        }
    };
}

// In the order in which Garden writes them.
memory_stat!(
    active_anon,
    active_file,
    cache,
    hierarchical_memory_limit,
    inactive_anon,
    inactive_file,
    mapped_file,
    pgfault,
    pgmajfault,
    pgpgin,
    pgpgout,
    rss,
    total_active_anon,
    total_active_file,
    total_cache,
    total_inactive_anon,
    total_inactive_file,
    total_mapped_file,
    total_pgfault,
    total_pgmajfault,
    total_pgpgin,
    total_pgpgout,
    total_rss,
    total_unevictable,
    unevictable,
    swap,
    hierarchical_memsw_limit,
    total_swap,
);

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CPUStat {
    /// The total.
    pub usage: u64,
    /// In user space.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

/// Disk usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DiskStat {
    /// Bytes of the image and of what the container wrote.
    pub total_bytes_used: u64,
    /// Always 0.
    pub total_inodes_used: u64,
    /// Bytes of what the container wrote.
    pub exclusive_bytes_used: u64,
    /// Inodes of what the container wrote; 0 where they are not counted, and in Garden.
    pub exclusive_inodes_used: u64,
}

/// Bytes through the container's network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkStat {
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_bytes: u64,
}

/// Processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PidStat {
    /// The number of processes.
    pub current: u64,
    /// The limit; 0: none.
    pub max: u64,
}

/// The resource usage of a container or a pea.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Metrics {
    /// Memory.
    pub memory_stat: MemoryStat,
    /// Processor time.
    #[serde(rename = "CPUStat")]
    pub cpu_stat: CPUStat,
    /// Space on the disk.
    pub disk_stat: DiskStat,
    /// Network traffic; `None`: not counted.
    pub network_stat: Option<NetworkStat>,
    /// Processes.
    pub pid_stat: PidStat,
    /// Nanoseconds since it was made.
    pub age: i64,
    /// Nanoseconds of processor time that it is entitled to by its shares and age; 0 for a pea.
    #[serde(rename = "CPUEntitlement")]
    pub cpu_entitlement: u64,
}

/// The info of one of several containers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", bound(deserialize = "P: Deserialize<'de> + Default"))]
pub struct BulkInfo<P = BTreeMap<String, String>> {
    /// Empty if there is an error.
    pub info: ContainerInfo<P>,
    /// Why there is no info. The error has no kind.
    pub err: Option<ErrorBody>,
}

/// The metrics of one of several containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct BulkMetrics {
    /// Zero if there is an error.
    pub metrics: Metrics,
    /// Why there are no metrics. The error has no kind.
    pub err: Option<ErrorBody>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_are_there_in_gardens_order() {
        let mut metrics = Metrics { age: 82_668_703, ..Metrics::default() };
        metrics.memory_stat.set("active_anon", 4096);
        metrics.memory_stat.set("total_swap", 7);
        metrics.memory_stat.set("swapcached", 1);
        metrics.memory_stat.set("slab", 9);
        let text = String::from_utf8(crate::encode(&BulkMetrics { metrics, err: None })).unwrap();
        assert_eq!(
            text,
            "{\"Metrics\":{\"MemoryStat\":{\"active_anon\":4096,\"active_file\":0,\"cache\":0,\
             \"hierarchical_memory_limit\":0,\"inactive_anon\":0,\"inactive_file\":0,\"mapped_file\":0,\"pgfault\":0,\
             \"pgmajfault\":0,\"pgpgin\":0,\"pgpgout\":0,\"rss\":0,\"total_active_anon\":0,\"total_active_file\":0,\
             \"total_cache\":0,\"total_inactive_anon\":0,\"total_inactive_file\":0,\"total_mapped_file\":0,\
             \"total_pgfault\":0,\"total_pgmajfault\":0,\"total_pgpgin\":0,\"total_pgpgout\":0,\"total_rss\":0,\
             \"total_unevictable\":0,\"unevictable\":0,\"swap\":0,\"hierarchical_memsw_limit\":0,\"total_swap\":7,\
             \"TotalUsageTowardLimit\":0,\"anon\":0,\"file\":0,\"swapcached\":1},\
             \"CPUStat\":{\"Usage\":0,\"User\":0,\"System\":0},\
             \"DiskStat\":{\"TotalBytesUsed\":0,\"TotalInodesUsed\":0,\"ExclusiveBytesUsed\":0,\
             \"ExclusiveInodesUsed\":0},\"NetworkStat\":null,\"PidStat\":{\"Current\":0,\"Max\":0},\
             \"Age\":82668703,\"CPUEntitlement\":0},\"Err\":null}\n"
        );
        assert_eq!(serde_json::from_str::<BulkMetrics>(&text).unwrap().metrics, metrics);
    }

    #[test]
    fn an_entry_that_failed_is_empty_and_says_why() {
        let err = ErrorBody::new(crate::ErrorKind::Other, "unknown handle: x");
        let failed: BulkInfo = BulkInfo { err: Some(err), ..BulkInfo::default() };
        let text = crate::encode(&failed);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"Info\":{\"State\":\"\",\"Events\":null,\"HostIP\":\"\",\"ContainerIP\":\"\",\"ContainerIPv6\":\"\",\
             \"ExternalIP\":\"\",\"ContainerPath\":\"\",\"ProcessIDs\":null,\"Properties\":null,\
             \"MappedPorts\":null},\"Err\":{\"Type\":\"\",\"Message\":\"unknown handle: x\",\"Handle\":\"\",\
             \"ProcessID\":\"\",\"Binary\":\"\"}}\n"
        );
    }
}
