//! `process`: the program of a container and its rights.

use serde::{Deserialize, Serialize};

object! {
    /// The program that a container starts, and its rights.
    Process {
        /// Working directory, absolute.
        cwd: String,
        ;
        /// Whether it has a terminal.
        terminal: bool,
        /// Size of the terminal.
        console_size: ConsoleSize,
        /// The user that it runs as; the specification requires it, and does not define what its absence means.
        user: User,
        /// Program and arguments.
        args: Vec<String>,
        /// Environment, `K=V`.
        env: Vec<String>,
        /// Capability sets (capabilities(7)).
        capabilities: Capabilities,
        /// Resource limits (getrlimit(2)).
        rlimits: Vec<Rlimit>,
        /// `PR_SET_NO_NEW_PRIVS`, prctl(2).
        no_new_privileges: bool,
        /// AppArmor profile.
        apparmor_profile: String,
        /// Score adjustment for the OOM killer, -1000 to 1000 (proc(5)).
        oom_score_adj: i64,
        /// CPU scheduling (sched_setattr(2)).
        scheduler: Scheduler,
        /// SELinux label.
        selinux_label: String,
        /// I/O priority (ioprio_set(2)).
        io_priority: IoPriority,
        /// CPU affinity of programs that are executed later; not of the container's process.
        #[serde(rename = "execCPUAffinity")]
        exec_cpu_affinity: ExecCpuAffinity,
    }
}

object! {
    /// Size of a terminal in characters.
    ConsoleSize {
        /// Rows.
        height: u64,
        /// Columns.
        width: u64,
    }
}

object! {
    /// The ids that a process runs as, inside.
    User {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        ;
        /// umask(2).
        umask: u32,
        /// Supplementary groups.
        additional_gids: Vec<u32>,
    }
}

object! {
    /// Capability sets by name, as `CAP_CHOWN`.
    Capabilities {
        ;
        /// Upper bound of what the process and its children can ever have.
        bounding: Vec<String>,
        /// The set that the kernel checks.
        effective: Vec<String>,
        /// Capabilities that a file's inheritable set may grant.
        inheritable: Vec<String>,
        /// Capabilities that may become effective.
        permitted: Vec<String>,
        /// Capabilities that are kept over an exec.
        ambient: Vec<String>,
    }
}

object! {
    /// A resource limit.
    Rlimit {
        /// Name of the resource, such as `RLIMIT_NOFILE`.
        #[serde(rename = "type")]
        kind: String,
        /// Up to which the process may raise the soft limit.
        hard: u64,
        /// The limit that is enforced.
        soft: u64,
    }
}

object! {
    /// Scheduling (sched_setattr(2)).
    Scheduler {
        /// Scheduling class.
        policy: SchedulerPolicy,
        ;
        /// Nice value, for classes without real-time priority.
        nice: i32,
        /// Priority, for real-time classes.
        priority: i32,
        /// Flags.
        flags: Vec<SchedulerFlag>,
        /// Run time in nanoseconds per period.
        runtime: u64,
        /// Deadline in nanoseconds.
        deadline: u64,
        /// Period in nanoseconds.
        period: u64,
    }
}

/// A scheduling class by the kernel's name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum SchedulerPolicy {
    #[default]
    SchedOther,
    SchedFifo,
    SchedRr,
    SchedBatch,
    SchedIso,
    SchedIdle,
    SchedDeadline,
}

/// A flag by the kernel's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum SchedulerFlag {
    SchedFlagResetOnFork,
    SchedFlagReclaim,
    SchedFlagDlOverrun,
    SchedFlagKeepPolicy,
    SchedFlagKeepParams,
    SchedFlagUtilClampMin,
    SchedFlagUtilClampMax,
}

object! {
    /// I/O priority.
    IoPriority {
        /// I/O scheduling class.
        class: IoPriorityClass,
        ;
        /// Priority, 0 (the highest) to 7.
        priority: i32,
    }
}

/// An I/O scheduling class by the kernel's name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[allow(missing_docs)]
pub enum IoPriorityClass {
    #[serde(rename = "IOPRIO_CLASS_RT")]
    RealTime,
    #[default]
    #[serde(rename = "IOPRIO_CLASS_BE")]
    BestEffort,
    #[serde(rename = "IOPRIO_CLASS_IDLE")]
    Idle,
}

object! {
    /// Lists of processors, such as `0-3,7`.
    ExecCpuAffinity {
        ;
        /// Until the exec of the program.
        initial: String,
        /// From the exec on.
        #[serde(rename = "final")]
        last: String,
    }
}
