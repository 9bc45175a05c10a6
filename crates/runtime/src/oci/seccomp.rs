//! `linux.seccomp`. Actions, architectures, flags and operators are the names that libseccomp and the kernel give them:
//! [`crate::seccomp::Profile`] says which of them are done.

object! {
    /// A filter of system calls.
    Seccomp {
        /// For calls that no rule matches.
        default_action: String,
        ;
        /// Of the default action.
        default_errno_ret: u64,
        /// Besides the machine's own.
        architectures: Vec<String>,
        /// For seccomp(2).
        flags: Vec<String>,
        /// Socket of whoever decides about calls.
        listener_path: String,
        /// What is told to him.
        listener_metadata: String,
        /// Rules.
        syscalls: Vec<Syscall>,
    }
}

object! {
    /// A rule.
    Syscall {
        /// Of system calls, at least one.
        names: Vec<String>,
        /// What happens to them.
        action: String,
        ;
        /// Of the action.
        errno_ret: u64,
        /// All must match.
        args: Vec<Argument>,
    }
}

object! {
    /// A condition on an argument.
    Argument {
        /// 0 to 5.
        index: u64,
        /// With what it is compared.
        value: u64,
        /// How.
        op: String,
        ;
        /// Of a comparison under a mask, which is the other one.
        value_two: u64,
    }
}
