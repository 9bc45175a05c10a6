//! `process`.

use serde::{Deserialize, Serialize};

object! {
    /// The program that a container starts, and its rights.
    Process {
        /// Working directory, absolute.
        cwd: String,
        ;
        /// It has a terminal.
        terminal: bool,
        /// Of this size.
        console_size: ConsoleSize,
        /// As whom it runs; the specification requires it, and leaves open what is meant where it is missing.
        user: User,
        /// Program and arguments.
        args: Vec<String>,
        /// `K=V`.
        env: Vec<String>,
        /// capabilities(7).
        capabilities: Capabilities,
        /// getrlimit(2).
        rlimits: Vec<Rlimit>,
        /// `PR_SET_NO_NEW_PRIVS`, prctl(2).
        no_new_privileges: bool,
        /// AppArmor.
        apparmor_profile: String,
        /// -1000 to 1000, proc(5).
        oom_score_adj: i64,
        /// sched_setattr(2).
        scheduler: Scheduler,
        /// SELinux.
        selinux_label: String,
        /// ioprio_set(2).
        io_priority: IoPriority,
        /// Processors of programs that are executed later; not of the container's process.
        #[serde(rename = "execCPUAffinity")]
        exec_cpu_affinity: ExecCpuAffinity,
    }
}

object! {
    /// Of a terminal, in characters.
    ConsoleSize {
        /// Rows.
        height: u64,
        /// Columns.
        width: u64,
    }
}

object! {
    /// As whom a process runs, by ids inside.
    User {
        /// User.
        uid: u32,
        /// Group.
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
        /// What the process and its children can ever have.
        bounding: Vec<String>,
        /// What is checked.
        effective: Vec<String>,
        /// What files may give.
        inheritable: Vec<String>,
        /// What may become effective.
        permitted: Vec<String>,
        /// What stays over an exec.
        ambient: Vec<String>,
    }
}

object! {
    /// A limit of the process.
    Rlimit {
        /// As `RLIMIT_NOFILE`.
        #[serde(rename = "type")]
        kind: String,
        /// What it may raise the other one to.
        hard: u64,
        /// What is enforced.
        soft: u64,
    }
}

object! {
    /// Scheduling (sched_setattr(2)).
    Scheduler {
        /// Class.
        policy: SchedulerPolicy,
        ;
        /// Of classes without priority.
        nice: i32,
        /// Of real-time classes.
        priority: i32,
        /// Flags.
        flags: Vec<SchedulerFlag>,
        /// Nanoseconds in each period.
        runtime: u64,
        /// Nanoseconds.
        deadline: u64,
        /// Nanoseconds.
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
    /// I/O scheduling.
    IoPriority {
        /// Class.
        class: IoPriorityClass,
        ;
        /// 0, the highest, to 7.
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
    /// Lists of processors, as `0-3,7`.
    ExecCpuAffinity {
        ;
        /// Until the program is executed.
        initial: String,
        /// From then on.
        #[serde(rename = "final")]
        last: String,
    }
}
