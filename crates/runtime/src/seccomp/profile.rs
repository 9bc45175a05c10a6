//! Parses the `linux.seccomp` object (OCI runtime spec, config-linux.md, "Seccomp").

use super::Error;
use crate::oci::{Argument, Seccomp, Syscall};
use wardian_sys::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW};

/// Path of the object in a bundle: error texts begin with it.
const ROOT: &str = "linux.seccomp";
const EPERM: u16 = 1;
/// The largest errno that the kernel returns to a program (`MAX_ERRNO`).
const MAX_ERRNO: u64 = 4095;

/// The action for a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The call is executed.
    Allow,
    /// The call is executed and logged.
    Log,
    /// The call fails with this errno.
    Errno(u16),
    /// The thread gets SIGSYS.
    Trap,
    /// The thread is killed.
    KillThread,
    /// The process is killed.
    KillProcess,
}

impl Action {
    /// The filter's return value for this action (`<linux/seccomp.h>`).
    pub fn code(self) -> u32 {
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Log => 0x7ffc_0000,
            Self::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Self::Trap => 0x0003_0000,
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
        }
    }
}

/// The ABI of a system call. The machine's own is always filtered, whether or not a profile names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit x86 with 32-bit pointers: its numbers have an additional bit.
    X32,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
}

/// The comparison of an argument; arguments are unsigned 64-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Equal.
    Eq,
    /// Greater or equal.
    Ge,
    /// Greater.
    Gt,
    /// The argument's bits in this mask equal the value.
    MaskedEq(u64),
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// Which argument, 0 to 5.
    pub index: u8,
    /// The operator.
    pub operator: Operator,
    /// The value to compare with.
    pub value: u64,
}

/// An action for system calls of these names. All conditions must hold; but when two of them are on the same
/// argument, each is a rule of its own (runc's reading of the OCI runtime spec).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule<'a> {
    /// Names from the kernel's tables.
    pub names: Vec<&'a str>,
    /// The action.
    pub action: Action,
    /// The conditions; empty: the rule always matches.
    pub conditions: Vec<Comparison>,
}

/// A profile. The first rule that matches a system call decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile<'a> {
    /// Action for calls that no rule matches, unless they are newer than the profile; see the module.
    pub default: Action,
    /// The filtered architectures; a call of any other one kills the process.
    pub architectures: Vec<Architecture>,
    /// Flags for seccomp(2).
    pub flags: u32,
    /// The rules, in order.
    pub rules: Vec<Rule<'a>>,
}

fn shape(path: &str, what: impl Into<String>) -> Error {
    Error::Shape { path: path.to_owned(), what: what.into() }
}

fn unsupported(path: &str, what: &str) -> Error {
    Error::Unsupported { path: format!("{path} {what:?}") }
}

/// Reads an action; `at` has the paths of its name and of its errno.
fn action(name: &str, errno: Option<u64>, at: [&str; 2]) -> Result<Action, Error> {
    let [at, errno_at] = at;
    let action = match name {
        "SCMP_ACT_ERRNO" => {
            return match errno.unwrap_or(u64::from(EPERM)) {
                errno @ 0..=MAX_ERRNO => Ok(Action::Errno(errno as u16)),
                _ => Err(shape(errno_at, format!("the kernel's limit is {MAX_ERRNO}"))),
            };
        }
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        // SCMP_ACT_TRACE and SCMP_ACT_NOTIFY need a tracer or an agent.
        other => return Err(unsupported(at, other)),
    };
    match errno {
        Some(_) => Err(shape(errno_at, "this action has no errno")),
        None => Ok(action),
    }
}

fn architecture(name: &str, at: &str) -> Result<Architecture, Error> {
    match name {
        "SCMP_ARCH_X86_64" => Ok(Architecture::X86_64),
        "SCMP_ARCH_X32" => Ok(Architecture::X32),
        "SCMP_ARCH_X86" => Ok(Architecture::X86),
        "SCMP_ARCH_AARCH64" => Ok(Architecture::Aarch64),
        other => Err(unsupported(at, other)),
    }
}

fn flag(name: &str, at: &str) -> Result<u32, Error> {
    match name {
        // Ignored: when the filter is installed the process has one thread.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(0),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(FLAG_SPEC_ALLOW),
        other => Err(unsupported(at, other)),
    }
}

fn comparison(argument: &Argument, at: &str) -> Result<Comparison, Error> {
    let Argument { index, value, op, value_two } = argument;
    let index = u8::try_from(*index).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| shape(&format!("{at}.index"), "a system call has 6 arguments"))?;
    let operator = match op.as_str() {
        "SCMP_CMP_NE" => Operator::Ne,
        "SCMP_CMP_LT" => Operator::Lt,
        "SCMP_CMP_LE" => Operator::Le,
        "SCMP_CMP_EQ" => Operator::Eq,
        "SCMP_CMP_GE" => Operator::Ge,
        "SCMP_CMP_GT" => Operator::Gt,
        // Here the first value is the mask.
        "SCMP_CMP_MASKED_EQ" => {
            let operator = Operator::MaskedEq(*value);
            return Ok(Comparison { index, operator, value: value_two.unwrap_or(0) });
        }
        other => return Err(unsupported(&format!("{at}.op"), other)),
    };
    // Profiles have a zero where there is no second value.
    match value_two {
        None | Some(0) => Ok(Comparison { index, operator, value: *value }),
        Some(_) => Err(shape(&format!("{at}.valueTwo"), "this operator has no second value")),
    }
}

fn rule<'a>(rule: &'a Syscall, at: &str) -> Result<Rule<'a>, Error> {
    let Syscall { names, action: name, errno_ret, args } = rule;
    if names.is_empty() {
        return Err(shape(&format!("{at}.names"), "at least one name is expected"));
    }
    let mut conditions = Vec::new();
    for (index, argument) in args.iter().flatten().enumerate() {
        conditions.push(comparison(argument, &format!("{at}.args[{index}]"))?);
    }
    let action = action(name, *errno_ret, [&format!("{at}.action"), &format!("{at}.errnoRet")])?;
    Ok(Rule { names: names.iter().map(String::as_str).collect(), action, conditions })
}

impl<'a> Profile<'a> {
    /// Reads the object.
    ///
    /// # Errors
    /// It is contradictory, or asks for something that is not implemented; the error has the path in the bundle.
    pub fn read(object: &'a Seccomp) -> Result<Self, Error> {
        let Seccomp {
            default_action,
            default_errno_ret,
            architectures: names,
            flags: flag_names,
            listener_path,
            listener_metadata,
            syscalls,
        } = object;
        for (key, given) in
            [("listenerPath", listener_path.is_some()), ("listenerMetadata", listener_metadata.is_some())]
        {
            if given {
                return Err(Error::Unsupported { path: format!("{ROOT}.{key}") });
            }
        }
        let at = [&*format!("{ROOT}.defaultAction"), &*format!("{ROOT}.defaultErrnoRet")];
        let default = action(default_action, *default_errno_ret, at)?;
        let mut architectures = Vec::new();
        for (index, name) in names.iter().flatten().enumerate() {
            architectures.push(architecture(name, &format!("{ROOT}.architectures[{index}]"))?);
        }
        let mut flags = 0;
        for (index, name) in flag_names.iter().flatten().enumerate() {
            flags |= flag(name, &format!("{ROOT}.flags[{index}]"))?;
        }
        let mut rules = Vec::new();
        for (index, syscall) in syscalls.iter().flatten().enumerate() {
            rules.push(rule(syscall, &format!("{ROOT}.syscalls[{index}]"))?);
        }
        Ok(Self { default, architectures, flags, rules })
    }
}
