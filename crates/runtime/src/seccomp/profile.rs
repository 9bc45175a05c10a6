//! What the `linux.seccomp` object means (OCI runtime spec, config-linux.md, "Seccomp").

use super::Error;
use crate::oci::{Argument, Seccomp, Syscall};
use wardian_sys::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW};

/// Where the object is in a bundle: errors begin with it.
const ROOT: &str = "linux.seccomp";
const EPERM: u16 = 1;
/// The kernel gives no larger one to a program (`MAX_ERRNO`).
const MAX_ERRNO: u64 = 4095;

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is done.
    Allow,
    /// It is done and logged.
    Log,
    /// It fails with this errno.
    Errno(u16),
    /// The thread gets SIGSYS.
    Trap,
    /// The thread ends.
    KillThread,
    /// The process ends.
    KillProcess,
}

impl Action {
    /// What a filter returns for it (`<linux/seccomp.h>`).
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

/// What a system call can be made as. The machine's own is always filtered, whether a profile names it or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit x86 with 32-bit pointers: numbers with a bit more.
    X32,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
}

/// How an argument is compared; all are taken as unsigned numbers of 64 bits.
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
    /// The bits in this mask are equal to the value's, which are all.
    MaskedEq(u64),
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// Which argument, 0 to 5.
    pub index: u8,
    /// How.
    pub operator: Operator,
    /// With what.
    pub value: u64,
}

/// What happens to system calls of these names. All conditions must hold; but when two of them are on the same argument,
/// each is a rule of its own (runc's reading of the OCI runtime spec).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule<'a> {
    /// Names of the kernel's tables.
    pub names: Vec<&'a str>,
    /// What to do.
    pub action: Action,
    /// On these conditions; none: always.
    pub conditions: Vec<Comparison>,
}

/// A profile. The first rule that matches a system call decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile<'a> {
    /// For calls that no rule matches, unless they are newer than the profile; see the module.
    pub default: Action,
    /// Calls of all others end the process.
    pub architectures: Vec<Architecture>,
    /// For seccomp(2).
    pub flags: u32,
    /// In order.
    pub rules: Vec<Rule<'a>>,
}

fn shape(path: &str, what: impl Into<String>) -> Error {
    Error::Shape { path: path.to_owned(), what: what.into() }
}

fn unsupported(path: &str, what: &str) -> Error {
    Error::Unsupported { path: format!("{path} {what:?}") }
}

/// `at` is the place of a name and of its errno.
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
        // SCMP_ACT_TRACE and SCMP_ACT_NOTIFY want somebody who listens.
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
        // All threads of the process: there is one when the filter is installed.
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
    // Profiles are written with a zero where there is none.
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
    /// Read the object.
    ///
    /// # Errors
    /// When it makes no sense, or asks for something that is not implemented; with its place in the bundle.
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
