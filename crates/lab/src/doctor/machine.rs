//! The capabilities of this process.

use serde::Serialize;

/// Capabilities that a server uses (linux/capability.h), and what fails without them.
const USED: [(u32, &str, &str); 14] = [
    (0, "CAP_CHOWN", "layers keep no owners"),
    (1, "CAP_DAC_OVERRIDE", "files of other users cannot be written"),
    (3, "CAP_FOWNER", "files of other users cannot be changed"),
    (4, "CAP_FSETID", "layers keep no set-id bits"),
    (5, "CAP_KILL", "processes of containers cannot be stopped"),
    (6, "CAP_SETGID", "processes cannot be started as another group"),
    (7, "CAP_SETUID", "processes cannot be started as another user"),
    (8, "CAP_SETPCAP", "capabilities cannot be taken from containers"),
    (12, "CAP_NET_ADMIN", "networks cannot be set up"),
    (18, "CAP_SYS_CHROOT", "mount namespaces cannot be entered"),
    (19, "CAP_SYS_PTRACE", "processes of containers cannot be looked at"),
    (21, "CAP_SYS_ADMIN", "nothing can be mounted"),
    (
        RESOURCE,
        "CAP_SYS_RESOURCE",
        "raising a resource limit (rlimit) above its hard limit fails, and so does lowering oom_score_adj",
    ),
    (27, "CAP_MKNOD", "layers get no device nodes"),
];
const RESOURCE: u32 = 24;

/// A capability that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Its name.
    pub name: &'static str,
    /// What fails without it.
    pub without: &'static str,
    /// Whether containers run without it.
    pub optional: bool,
}

/// The capabilities that are not effective, from the text of /proc/PID/status.
pub fn missing(status: &str) -> Vec<Missing> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let gone = USED.iter().filter(|(bit, ..)| effective & (1 << bit) == 0);
    gone.map(|&(bit, name, without)| Missing { name, without, optional: bit == RESOURCE }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities() {
        assert_eq!(missing("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"), []);
        let names = |text: &str| missing(text).iter().map(|missing| missing.name).collect::<Vec<_>>();
        assert_eq!(names("CapEff:\t000001fffeffffff\n"), ["CAP_SYS_RESOURCE"]);
        assert_eq!(names("CapEff:\t000001fffedfffff\n"), ["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"]);
        assert_eq!(names("CapEff:\tnone\n").len(), USED.len());
    }
}
