//! An interpreter runs the programs here for every number. The results are compared with what the object says, and
//! with what Garden's own profile answered when it was loaded there.

use super::*;
use serde_json::json;
use std::collections::BTreeSet;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const X32: u32 = 0x4000_0000;

/// Numbers and names of an ABI.
type Calls = Vec<(u32, &'static str)>;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL_PROCESS: u32 = 0x8000_0000;

/// Checks and interprets a filter as the kernel does (`seccomp_check_filter`, `bpf_check_classic`).
fn execute(program: &Program, audit: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [0u32; 16];
    (data[0], data[1]) = (number, audit);
    for (index, arg) in args.into_iter().enumerate() {
        (data[4 + 2 * index], data[5 + 2 * index]) = (arg as u32, (arg >> 32) as u32);
    }
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let instruction = program.instructions[at];
        at += 1;
        let mut skip = |yes: bool| at += usize::from(if yes { instruction.jt } else { instruction.jf });
        match instruction.code {
            0x20 => {
                assert!(instruction.k < 64 && instruction.k.is_multiple_of(4));
                accumulator = data[instruction.k as usize / 4];
            }
            0x54 => accumulator &= instruction.k,
            0x05 => at += instruction.k as usize,
            0x15 => skip(accumulator == instruction.k),
            0x25 => skip(accumulator > instruction.k),
            0x35 => skip(accumulator >= instruction.k),
            0x06 => return instruction.k,
            other => panic!("operation {other:#x}"),
        }
    }
}

fn matches(comparison: &Comparison, args: [u64; 6]) -> bool {
    let (arg, value) = (args[usize::from(comparison.index)], comparison.value);
    match comparison.operator {
        Operator::Ne => arg != value,
        Operator::Lt => arg < value,
        Operator::Le => arg <= value,
        Operator::Eq => arg == value,
        Operator::Ge => arg >= value,
        Operator::Gt => arg > value,
        Operator::MaskedEq(mask) => arg & mask == value,
    }
}

/// A naive reading of the object: its verdict on one call of an ABI.
struct Expected<'a> {
    profile: &'a Profile<'a>,
    rules: Vec<&'a Rule<'a>>,
    newer: bool,
}

impl<'a> Expected<'a> {
    fn of(profile: &'a Profile<'a>, calls: &[(u32, &str)], number: u32) -> Self {
        let name = calls.iter().find(|call| call.0 == number).map_or("", |call| call.1);
        let named: BTreeSet<&str> =
            profile.rules.iter().flat_map(|rule| rule.names.iter().copied()).collect();
        let last = calls.iter().filter(|call| named.contains(call.1)).map(|call| call.0).max();
        let permissive = matches!(profile.default, Action::Allow | Action::Log);
        Self {
            profile,
            rules: profile.rules.iter().filter(|rule| rule.names.contains(&name)).collect(),
            newer: last.is_some_and(|last| number > last) && !permissive,
        }
    }

    fn answer(&self, args: [u64; 6]) -> u32 {
        for rule in &self.rules {
            let mut met = rule.conditions.iter().map(|condition| matches(condition, args));
            let indices: BTreeSet<u8> = rule.conditions.iter().map(|condition| condition.index).collect();
            let all = indices.len() == rule.conditions.len();
            if if all { met.all(|met| met) } else { met.any(|met| met) } {
                return rule.action.code();
            }
        }
        if self.newer { ENOSYS } else { self.profile.default.code() }
    }
}

/// Values at which the result of a comparison can change.
fn interesting(profile: &Profile<'_>) -> Vec<u64> {
    let mut values: Vec<u64> = vec![0, 1, 40, 0xffff_ffff, 1 << 32, (1 << 32) + 40, u64::MAX];
    for condition in profile.rules.iter().flat_map(|rule| &rule.conditions) {
        let v = condition.value;
        values.extend([
            v,
            v.wrapping_add(1),
            v.wrapping_sub(1),
            v ^ (1 << 32),
            v ^ (1 << 63),
            v >> 32,
            v << 32,
        ]);
        if let Operator::MaskedEq(mask) = condition.operator {
            values.extend([mask, !mask, mask | v, v & mask, v | !mask]);
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

fn object(value: &Value) -> Seccomp {
    serde_json::from_value(value.clone()).unwrap()
}

fn compile(value: &Value) -> Result<Program, Error> {
    Profile::read(&object(value))?.compile()
}

fn check(value: &Value) -> Program {
    let object = object(value);
    let profile = Profile::read(&object).unwrap();
    let program = profile.compile().unwrap();
    let values = interesting(&profile);
    let with_x32 = profile.architectures.contains(&Architecture::X32);
    let tables: [(u32, u32, Calls); 3] = [
        (X86_64, 0, calls::x86_64().collect()),
        (X86_64, X32, calls::x32(&calls::x86_64().collect::<Vec<_>>())),
        (I386, 0, calls::x86().collect()),
    ];
    for (audit, bit, table) in &tables {
        for number in (0..1024).chain([0x3fff_ffff]).map(|number| number | bit) {
            let says = Expected::of(&profile, table, number);
            for index in 0..6 {
                for value in &values {
                    let mut args = [0; 6];
                    args[index] = *value;
                    args[(index + 1) % 6] = values[(number as usize + index) % values.len()];
                    let expected = match (*bit, *audit) {
                        (X32, _) if !with_x32 => ENOSYS,
                        (_, I386) if !profile.architectures.contains(&Architecture::X86) => KILL_PROCESS,
                        _ => says.answer(args),
                    };
                    let found = execute(&program, *audit, number, args);
                    assert_eq!(found, expected, "{audit:#x} {number:#x} {args:x?}");
                }
            }
        }
    }
    program
}

#[test]
fn the_garden_profile_is_done_as_it_is_written() {
    let program = check(&garden());
    assert_eq!(program.unknown, 0);
    assert!(program.instructions.len() < 1024, "{}", program.instructions.len());
    assert_eq!(execute(&program, AARCH64, 0, [0; 6]), KILL_PROCESS);
    assert_eq!(execute(&program, X86_64, u32::MAX, [0; 6]), ENOSYS);
    assert_eq!(execute(&program, X86_64, 1 << 31, [0; 6]), ENOSYS);
}

#[test]
fn every_comparison_on_values_of_64_bits() {
    let ops = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    for value in [0, 1, 40, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0028, u64::MAX - 1, u64::MAX] {
        let rule = |(at, op): (usize, &&str)| {
            let mask: u64 = [0, 0xffff_ffff, u64::MAX, 0xffff_ffff_0000_0000][at % 4];
            let arg = match *op {
                "MASKED_EQ" => {
                    json!({"index": at % 6, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"})
                }
                op => json!({"index": at % 6, "value": value, "op": format!("SCMP_CMP_{op}")}),
            };
            let name = ["read", "write", "open", "close", "stat", "fstat", "dup"][at];
            json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [arg]})
        };
        let rules: Vec<Value> = ops.iter().enumerate().map(rule).collect();
        check(
            &json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "syscalls": rules}),
        );
    }
}

#[test]
fn rules_on_one_call_are_tried_in_order_and_conditions_meet() {
    let arg =
        |index, value, op: &str| json!({"index": index, "value": value, "op": format!("SCMP_CMP_{op}")});
    check(&json!({
        "defaultAction": "SCMP_ACT_LOG",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": [arg(0, 7, "EQ"), arg(1, 9, "GT")]},
            {"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [arg(0, 7, "EQ"), arg(0, 8, "EQ")]},
            {"names": ["read", "ptrace"], "action": "SCMP_ACT_KILL"},
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        ],
    }));
}

/// A program with jumps that exceed their 8 bits.
#[test]
fn far_jumps() {
    let names: Vec<&str> = calls::x86_64().map(|call| call.1).collect();
    let rules: Vec<Value> = (0u64..)
        .zip(names.iter().step_by(2))
        .map(|(at, name)| {
            let arg = json!({"index": at % 6, "value": at << 20, "op": "SCMP_CMP_GT"});
            json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [arg, {"index": (at + 1) % 6, "value": at, "op": "SCMP_CMP_NE"}]})
        })
        .collect();
    let program = check(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
    assert!(program.instructions.iter().any(|instruction| instruction.code == 0x05));
    let too_many: Vec<Value> = (0..1000)
        .map(|at| json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": at, "op": "SCMP_CMP_GT"}]}))
        .collect();
    let object = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": too_many});
    assert!(matches!(compile(&object), Err(Error::TooLong(n)) if n > 4096));
}

#[test]
fn a_profile_that_knows_nothing_and_one_that_allows_all() {
    for default in ["SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS"] {
        check(&json!({"defaultAction": default}));
    }
    // With x32 not among the architectures, its numbers do not bypass a rule.
    let object = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace", "nope"], "action": "SCMP_ACT_ERRNO"}]});
    let program = check(&object);
    assert_eq!(program.unknown, 1);
    assert_eq!(execute(&program, X86_64, 101, [0; 6]), EPERM);
    assert_eq!(execute(&program, X86_64, 101 | X32, [0; 6]), ENOSYS);
    assert_eq!(execute(&program, X86_64, 1000, [0; 6]), ALLOW);
}

#[test]
fn what_is_not_implemented_is_refused_with_its_place() {
    for (object, place) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction \"SCMP_ACT_NOTIFY\""),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}), "linux.seccomp.listenerPath"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "linux.seccomp.defaultErrnoRet"),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}),
            "linux.seccomp.defaultErrnoRet",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390"]}),
            "linux.seccomp.architectures[0]",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
            "linux.seccomp.flags[1]",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}]}),
            "linux.seccomp.syscalls[0].names",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 1}]}),
            "linux.seccomp.syscalls[0].action \"SCMP_ACT_TRACE\"",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}),
            "linux.seccomp.syscalls[0].args[0].index",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "="}]}]}),
            "linux.seccomp.syscalls[0].args[0].op",
        ),
    ] {
        let error = compile(&object).unwrap_err().to_string();
        assert!(error.starts_with(place), "{error}");
    }
    let flags = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]});
    assert_eq!(compile(&flags).unwrap().flags, 6);
}

/// ABI, bit, `AUDIT_ARCH`, the calls.
fn abis() -> [(&'static str, u32, u32, Calls); 3] {
    [
        ("x86_64", 0, X86_64, calls::x86_64().collect()),
        ("x86", 0, I386, calls::x86().collect()),
        ("x32", X32, X86_64, calls::x32(&calls::x86_64().collect::<Vec<_>>())),
    ]
}

/// The deviations of the profile from Garden's on an ABI: `name(first argument)`, `*` for all tested values, and the
/// result here.
fn deviations(abi: &str) -> Vec<String> {
    let mut all = Vec::new();
    for call in ["close_range", "membarrier", "pidfd_open", "pidfd_send_signal", "rseq"] {
        all.push(format!("{call}(*): EPERM -> allow"));
    }
    for family in [
        "0x8",
        "0xb",
        "0x26",
        "0x28",
        "0x20000",
        "0x2000000",
        "0x4000000",
        "0x8000000",
        "0x10000000",
        "0x20000000",
        "0x40000000",
        "0xffffffff",
    ] {
        all.push(format!("socket({family}): allow -> EPERM"));
        all.push(format!("socketpair({family}): allow -> EPERM"));
    }
    all.push("clone(0x2000000): allow -> EPERM".to_owned());
    all.push("syslog(*): allow -> EPERM".to_owned());
    match abi {
        "x86" => all.extend(TIME64.map(|call| format!("{call}(*): EPERM -> allow"))),
        _ => {
            for (call, value) in [
                ("socket", "0x100000028"),
                ("socketpair", "0x100000028"),
                ("socket", "0x110000000"),
                ("socketpair", "0x110000000"),
            ] {
                all.push(format!("{call}({value}): allow -> EPERM"));
            }
        }
    }
    if abi == "x32" {
        all.push("personality(0x100000000): allow -> EPERM".to_owned());
    }
    all
}

const TIME64: [&str; 17] = [
    "clock_getres_time64",
    "clock_gettime64",
    "clock_nanosleep_time64",
    "futex_time64",
    "mq_timedreceive_time64",
    "mq_timedsend_time64",
    "ppoll_time64",
    "pselect6_time64",
    "recvmmsg_time64",
    "rt_sigtimedwait_time64",
    "sched_rr_get_interval_time64",
    "semtimedop_time64",
    "timer_gettime64",
    "timer_settime64",
    "timerfd_gettime64",
    "timerfd_settime64",
    "utimensat_time64",
];

fn word(code: u32) -> &'static str {
    match code {
        ALLOW => "allow",
        EPERM => "EPERM",
        ENOSYS => "ENOSYS",
        _ => "another",
    }
}

#[test]
fn the_answers_are_those_of_gardens_profile_but_for_the_deviations() {
    let program = compile(&garden()).unwrap();
    let values =
        [0, 1, 2, 8, 10, 11, 16, 17, 38, 40, 0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000];
    let wide = [0x2000_0000, 0x4000_0000, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0028, 0x1_1000_0000];
    for (abi, bit, audit, table) in abis() {
        let (mut found, mut numbers) = (BTreeSet::new(), 0);
        for line in
            include_str!("recorded.txt").lines().filter_map(|line| line.strip_prefix(&format!("{abi} ")))
        {
            let (range, answer) = line.split_once(' ').unwrap();
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            for number in first.parse::<u32>().unwrap()..=last.parse().unwrap() {
                numbers += 1;
                let name = table.iter().find(|call| call.0 == number | bit).map_or("-", |call| call.1);
                let mut differences = Vec::new();
                // A 32-bit program has no wider registers.
                let tried: Vec<u64> =
                    values.iter().chain(&wide).copied().filter(|v| abi != "x86" || *v < 1 << 32).collect();
                for value in &tried {
                    let recorded =
                        answer.split(',').find_map(|pair| pair.strip_prefix(&format!("{value:#x}=")));
                    let recorded = recorded.unwrap_or(answer);
                    let here = word(execute(&program, audit, number | bit, [*value, 0, 0, 0, 0, 0]));
                    if here != recorded {
                        differences.push((format!("{value:#x}"), format!("{recorded} -> {here}")));
                    }
                }
                let whole = differences.len() == tried.len();
                for (value, change) in differences {
                    let value = if whole { "*" } else { &value };
                    found.insert(format!("{name}({value}): {change}"));
                }
            }
        }
        assert_eq!(numbers, 1024);
        let expected: BTreeSet<String> = deviations(abi).into_iter().collect();
        let extra: Vec<_> = found.difference(&expected).collect();
        let missing: Vec<_> = expected.difference(&found).collect();
        assert!(extra.is_empty() && missing.is_empty(), "{abi}: found {extra:#?}, not found {missing:#?}");
    }
}

/// Calls that reach the host, or much of the kernel, and must be denied.
#[test]
fn what_a_container_must_not_call() {
    let program = compile(&garden()).unwrap();
    let denied = [
        "unshare",
        "setns",
        "mount",
        "umount2",
        "pivot_root",
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "keyctl",
        "add_key",
        "request_key",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "userfaultfd",
        "open_by_handle_at",
        "name_to_handle_at",
        "kcmp",
        "quotactl",
        "quotactl_fd",
        "bpf",
        "perf_event_open",
        "fanotify_init",
        "clone3",
        "syslog",
        "init_module",
        "finit_module",
        "delete_module",
        "kexec_load",
        "kexec_file_load",
        "reboot",
        "swapon",
        "swapoff",
        "acct",
        "settimeofday",
        "clock_settime",
        "sethostname",
        "setdomainname",
        "ioperm",
        "iopl",
        "process_vm_readv",
        "process_vm_writev",
        "lookup_dcookie",
        "nfsservctl",
        "move_pages",
        "mbind",
        "pidfd_getfd",
        "process_madvise",
        "memfd_secret",
        "statmount",
        "listmount",
        "lsm_set_self_attr",
        "open_tree_attr",
        "vhangup",
        "uselib",
        "ustat",
        "sysfs",
        "_sysctl",
    ];
    for (abi, _, audit, table) in abis() {
        for name in denied {
            for (number, _) in table.iter().filter(|call| call.1 == name) {
                let answer = execute(&program, audit, *number, [0; 6]);
                assert!([EPERM, ENOSYS].contains(&answer), "{abi} {name}: {answer:#x}");
            }
        }
        // Attributes of files: set through an overlay, they take a file out of its project, and so past a disk limit.
        // The kernel looks at the lower half of the request.
        let ioctl = table.iter().find(|call| call.1 == "ioctl").unwrap().0;
        for request in [0x4008_6602, 0x4004_6602, 0x401c_5820, 0xffff_ffff_4008_6602, 0x1_401c_5820] {
            assert_eq!(
                execute(&program, audit, ioctl, [0, request, 0, 0, 0, 0]),
                EPERM,
                "{abi} {request:#x}"
            );
        }
        // TCGETS, FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR, FICLONE.
        for request in [0x5401, 0x8008_6601, 0x801c_581f, 0x4004_9409] {
            assert_eq!(
                execute(&program, audit, ioctl, [0, request, 0, 0, 0, 0]),
                ALLOW,
                "{abi} {request:#x}"
            );
        }
        let call = |name: &str, arg: u64| {
            let number = table.iter().find(|call| call.1 == name).unwrap_or_else(|| panic!("{abi} {name}")).0;
            execute(&program, audit, number, [arg, 0, 0, 0, 0, 0])
        };
        for name in ["unshare", "io_uring_setup", "fsopen", "userfaultfd", "keyctl", "bpf", "kcmp", "setns"] {
            assert_eq!(call(name, 0), EPERM, "{abi} {name}");
        }
        for name in ["clone3", "quotactl_fd", "faccessat2", "fchmodat2", "futex_waitv", "mseal"] {
            assert_eq!(
                call(name, 0),
                if abi == "x32" && name != "clone3" { EPERM } else { ENOSYS },
                "{abi} {name}"
            );
        }
        for (name, arg) in [
            ("clone", 0x1000_0000),
            ("clone", 0x7e02_0011),
            ("clone", 0x8011),
            ("socket", 40),
            ("socket", 38),
            ("personality", 0x4_0000),
        ] {
            assert_eq!(call(name, arg), EPERM, "{abi} {name} {arg:#x}");
        }
        // A new thread, a fork, a vfork.
        for flags in [0x3d_0f00, 0x120_0011, 0x4111] {
            assert_eq!(call("clone", flags), ALLOW);
        }
        for (name, arg) in [
            ("socket", 1),
            ("socket", 2),
            ("socket", 10),
            ("socket", 16),
            ("socket", 17),
            ("personality", 0xffff_ffff),
            ("execve", 0),
            ("ptrace", 0),
        ] {
            assert_eq!(call(name, arg), ALLOW, "{abi} {name} {arg:#x}");
        }
    }
}

/// The calls of the keeper's children between the filter's installation and their program's first instruction, and
/// those of pid 1.
#[test]
fn the_way_to_the_exec_is_open() {
    let program = compile(&garden()).unwrap();
    for (number, name) in calls::x86_64() {
        if [
            "setgroups",
            "setresgid",
            "setresuid",
            "capget",
            "capset",
            "prctl",
            "chdir",
            "getcwd",
            "umask",
            "close_range",
            "rt_sigaction",
            "rt_sigprocmask",
            "stat",
            "newfstatat",
            "statx",
            "execve",
            "execveat",
            "write",
            "exit",
            "exit_group",
            "brk",
            "mmap",
            "munmap",
            "pause",
            "poll",
            "sigaltstack",
            "arch_prctl",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "getrandom",
            "futex",
            "splice",
            "fsetxattr",
            "utimensat",
            "mkdirat",
            "unlinkat",
            "linkat",
            "symlinkat",
            "mknodat",
            "fchmod",
            "fchmodat",
            "chown",
            "lchown",
            "fchownat",
            "getdents64",
            "openat",
            "openat2",
            "copy_file_range",
            "sched_getaffinity",
            "prlimit64",
        ]
        .contains(&name)
        {
            assert_eq!(execute(&program, X86_64, number, [0; 6]), ALLOW, "{name}");
        }
    }
}
