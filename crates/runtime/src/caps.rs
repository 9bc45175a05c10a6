//! Capability sets by name (capabilities(7)) and as Garden gives them.

/// Names in the order of their numbers.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The 14 capabilities of an unprivileged container (Garden server, bundle template).
pub const UNPRIVILEGED: u64 = 0xa804_25fb;
/// Capabilities 0 to 37, the set of a privileged container.
pub const PRIVILEGED: u64 = 0x3f_ffff_ffff;
/// The set that a process with a gid other than 0 keeps at most: the 14 and CAP_SYS_ADMIN.
pub const NON_ROOT: u64 = 0xa824_25fb;

/// The mask of these names; `Err` with the first unknown one.
pub fn mask<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<u64, String> {
    names.into_iter().try_fold(0, |mask, name| {
        let name = name.as_ref();
        let bit = NAMES.iter().position(|n| *n == name).ok_or_else(|| name.to_owned())?;
        Ok(mask | 1 << bit)
    })
}

/// The names of the bits in a mask.
pub fn names(mask: u64) -> Vec<&'static str> {
    NAMES.iter().enumerate().filter(|(bit, _)| mask & 1 << bit != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garden_sets_have_the_recorded_names() {
        assert_eq!(names(UNPRIVILEGED).len(), 14);
        assert_eq!(names(PRIVILEGED).len(), 38);
        assert_eq!(names(NON_ROOT & !UNPRIVILEGED), ["CAP_SYS_ADMIN"]);
        assert_eq!(mask(names(PRIVILEGED)), Ok(PRIVILEGED));
        assert_eq!(mask(["CAP_CHOWN", "CAP_NOPE"]), Err("CAP_NOPE".to_owned()));
    }
}
