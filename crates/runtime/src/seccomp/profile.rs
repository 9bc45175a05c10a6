//! The `linux.seccomp` object (OCI runtime spec, config-linux.md, "Seccomp"), read strictly.

use super::Error;
use serde_json::{Map, Value};
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

/// An object with no keys but these.
fn object<'a>(value: &'a Value, path: &str, known: &[&str]) -> Result<&'a Map<String, Value>, Error> {
    let map = value.as_object().ok_or_else(|| shape(path, "an object is expected"))?;
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(Error::Unsupported { path: format!("{path}.{key}") }),
        None => Ok(map),
    }
}

fn list<'a>(value: Option<&'a Value>, path: &str) -> Result<&'a [Value], Error> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(shape(path, "a list is expected")),
    }
}

fn text<'a>(value: Option<&'a Value>, path: &str) -> Result<&'a str, Error> {
    value.and_then(Value::as_str).ok_or_else(|| shape(path, "a string is expected"))
}

fn number(value: Option<&Value>, path: &str) -> Result<Option<u64>, Error> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            value.as_u64().map(Some).ok_or_else(|| shape(path, "a number from 0 to 2^64-1 is expected"))
        }
    }
}

/// `name` and `errno` are what the keys of the action and of its errno hold.
fn action(
    name: Option<&Value>,
    errno: Option<&Value>,
    path: &str,
    [name_key, errno_key]: [&str; 2],
) -> Result<Action, Error> {
    let errno_path = format!("{path}.{errno_key}");
    let errno = number(errno, &errno_path)?;
    let path = format!("{path}.{name_key}");
    let action = match text(name, &path)? {
        "SCMP_ACT_ERRNO" => {
            return match errno.unwrap_or(u64::from(EPERM)) {
                errno @ 0..=MAX_ERRNO => Ok(Action::Errno(errno as u16)),
                _ => Err(shape(&errno_path, format!("the kernel's limit is {MAX_ERRNO}"))),
            };
        }
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        // SCMP_ACT_TRACE and SCMP_ACT_NOTIFY want somebody who listens.
        other => return Err(unsupported(&path, other)),
    };
    match errno {
        Some(_) => Err(shape(&errno_path, "this action has no errno")),
        None => Ok(action),
    }
}

fn architecture(name: &Value, path: &str) -> Result<Architecture, Error> {
    match text(Some(name), path)? {
        "SCMP_ARCH_X86_64" => Ok(Architecture::X86_64),
        "SCMP_ARCH_X32" => Ok(Architecture::X32),
        "SCMP_ARCH_X86" => Ok(Architecture::X86),
        "SCMP_ARCH_AARCH64" => Ok(Architecture::Aarch64),
        other => Err(unsupported(path, other)),
    }
}

fn flag(name: &Value, path: &str) -> Result<u32, Error> {
    match text(Some(name), path)? {
        // All threads of the process: there is one when the filter is installed.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(0),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(FLAG_SPEC_ALLOW),
        other => Err(unsupported(path, other)),
    }
}

fn comparison(value: &Value, path: &str) -> Result<Comparison, Error> {
    let map = object(value, path, &["index", "value", "valueTwo", "op"])?;
    let get = |key: &str| number(map.get(key), &format!("{path}.{key}"));
    let missing = |key: &str| shape(&format!("{path}.{key}"), "it is missing");
    let index = get("index")?.ok_or_else(|| missing("index"))?;
    let index = u8::try_from(index).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| shape(&format!("{path}.index"), "a system call has 6 arguments"))?;
    let (value, two) = (get("value")?.ok_or_else(|| missing("value"))?, get("valueTwo")?.unwrap_or(0));
    let op = format!("{path}.op");
    let operator = match text(map.get("op"), &op)? {
        "SCMP_CMP_NE" => Operator::Ne,
        "SCMP_CMP_LT" => Operator::Lt,
        "SCMP_CMP_LE" => Operator::Le,
        "SCMP_CMP_EQ" => Operator::Eq,
        "SCMP_CMP_GE" => Operator::Ge,
        "SCMP_CMP_GT" => Operator::Gt,
        // Here the first value is the mask.
        "SCMP_CMP_MASKED_EQ" => {
            return Ok(Comparison { index, operator: Operator::MaskedEq(value), value: two });
        }
        other => return Err(unsupported(&op, other)),
    };
    Ok(Comparison { index, operator, value })
}

fn rule<'a>(value: &'a Value, path: &str) -> Result<Rule<'a>, Error> {
    let map = object(value, path, &["names", "action", "errnoRet", "args"])?;
    let (names_path, args_path) = (format!("{path}.names"), format!("{path}.args"));
    let names = list(map.get("names"), &names_path)?;
    if names.is_empty() {
        return Err(shape(&names_path, "at least one name is expected"));
    }
    let names = names.iter().map(|name| text(Some(name), &names_path)).collect::<Result<_, _>>()?;
    let mut conditions = Vec::new();
    for (at, arg) in list(map.get("args"), &args_path)?.iter().enumerate() {
        conditions.push(comparison(arg, &format!("{args_path}[{at}]"))?);
    }
    let action = action(map.get("action"), map.get("errnoRet"), path, ["action", "errnoRet"])?;
    Ok(Rule { names, action, conditions })
}

impl<'a> Profile<'a> {
    /// Read the object.
    ///
    /// # Errors
    /// When it is malformed, or asks for something that is not implemented; with its place in the bundle.
    pub fn read(value: &'a Value) -> Result<Self, Error> {
        let known = ["defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls"];
        let map = object(value, ROOT, &known)?;
        let default = action(
            map.get("defaultAction"),
            map.get("defaultErrnoRet"),
            ROOT,
            ["defaultAction", "defaultErrnoRet"],
        )?;
        let mut architectures = Vec::new();
        for (at, name) in list(map.get("architectures"), "linux.seccomp.architectures")?.iter().enumerate() {
            architectures.push(architecture(name, &format!("{ROOT}.architectures[{at}]"))?);
        }
        let mut flags = 0;
        for (at, name) in list(map.get("flags"), "linux.seccomp.flags")?.iter().enumerate() {
            flags |= flag(name, &format!("{ROOT}.flags[{at}]"))?;
        }
        let mut rules = Vec::new();
        for (at, value) in list(map.get("syscalls"), "linux.seccomp.syscalls")?.iter().enumerate() {
            rules.push(rule(value, &format!("{ROOT}.syscalls[{at}]"))?);
        }
        Ok(Self { default, architectures, flags, rules })
    }
}
