//! Kernel limits that many containers run into.

use serde::Serialize;

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Its name as a sysctl, or `RLIMIT_NOFILE`.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// The value that a thousand containers need.
    pub wanted: u64,
    /// What fails when it is reached.
    pub reached: &'static str,
}

impl Limit {
    /// Whether a thousand containers may exceed it.
    pub fn is_small(&self) -> bool {
        self.value < self.wanted
    }
}

/// Needs of a thousand containers with some ten processes each: a keeper, an init, an app and a health check are
/// four. A container has one namespace of each kind, and some thirty mounts in its own. Systemd inside uses several
/// inotify instances, and all containers with the same mapping share their users' allowance; so they do with
/// keyrings, of which runc and crun make one for each container.
const WANTED: [(&str, u64, &str); 12] = [
    ("kernel.pid_max", 32_768, "no process can be started on the host"),
    ("kernel.threads-max", 32_768, "no process can be started on the host"),
    ("user.max_user_namespaces", 2_000, "no unprivileged container can be created"),
    ("user.max_mnt_namespaces", 2_000, "no container can be created"),
    ("user.max_net_namespaces", 2_000, "no container can be created"),
    ("user.max_pid_namespaces", 2_000, "no container can be created"),
    ("fs.mount-max", 10_000, "nothing can be mounted"),
    ("fs.file-max", 100_000, "no file can be opened on the host"),
    ("fs.inotify.max_user_instances", 1_024, "programs in containers cannot watch files"),
    ("fs.inotify.max_user_watches", 65_536, "programs in containers cannot watch files"),
    ("kernel.keys.maxkeys", 2_000, "runc and crun cannot create containers of this user"),
    ("kernel.keys.root_maxkeys", 2_000, "runc and crun cannot create privileged containers"),
];
const FILES: Limit =
    Limit { name: "RLIMIT_NOFILE", value: u64::MAX, wanted: 16_384, reached: "a server cannot open files" };

/// The limits that this kernel has.
pub fn probe() -> Vec<Limit> {
    let mut limits: Vec<Limit> = WANTED
        .into_iter()
        .filter_map(|(name, wanted, reached)| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            let value = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
            Some(Limit { name, value, wanted, reached })
        })
        .collect();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    limits.push(Limit { value: files.unwrap_or(u64::MAX), ..FILES });
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_just_enough() {
        assert!(!Limit { value: 16_384, ..FILES }.is_small());
        assert!(Limit { value: 16_383, ..FILES }.is_small());
    }

    #[test]
    fn this_kernels_limits() {
        let limits = probe();
        assert!(limits.iter().any(|limit| limit.name == "kernel.pid_max"), "{limits:?}");
    }
}
