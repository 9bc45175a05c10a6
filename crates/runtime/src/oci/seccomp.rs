//! `linux.seccomp`. Actions, architectures, flags and operators have the names that libseccomp and the kernel give
//! them: [`crate::seccomp::Profile`] defines which of them are implemented.

object! {
    /// A seccomp profile.
    Seccomp {
        /// Action for calls that no rule matches.
        default_action: String,
        ;
        /// Errno of the default action.
        default_errno_ret: u64,
        /// Architectures in addition to the machine's own.
        architectures: Vec<String>,
        /// Flags for seccomp(2).
        flags: Vec<String>,
        /// Socket of the agent that decides about calls (SCMP_ACT_NOTIFY).
        listener_path: String,
        /// Data for that agent.
        listener_metadata: String,
        /// Rules.
        syscalls: Vec<Syscall>,
    }
}

object! {
    /// A rule.
    Syscall {
        /// Names of system calls, at least one.
        names: Vec<String>,
        /// Action for these calls.
        action: String,
        ;
        /// Errno of the action.
        errno_ret: u64,
        /// Conditions, all of which must hold.
        args: Vec<Argument>,
    }
}

object! {
    /// A condition on an argument.
    Argument {
        /// Index of the argument, 0 to 5.
        index: u64,
        /// Value that the argument is compared with.
        value: u64,
        /// Operator.
        op: String,
        ;
        /// Second value, for a masked comparison; the first one is the mask then.
        value_two: u64,
    }
}
