//! Which devices the processes of a container may open.
//!
//! The rules are those that the recorded bundles and runc's states have: everything is denied, then some devices are
//! allowed. No other rules are accepted, because cgroup v1 cannot enforce them: there a denied device does not make
//! an exception from an allowed range of devices.

pub(super) mod guard;
mod v1;
mod v2;

use crate::oci::{DeviceRule, DeviceType};
use std::fmt;

/// The type of device that a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// `BPF_DEVCG_ACC_MKNOD` (linux/bpf.h); cgroup v1 calls it `m`.
pub const MKNOD: u8 = 1;
/// `BPF_DEVCG_ACC_READ`, `r`.
pub const READ: u8 = 2;
/// `BPF_DEVCG_ACC_WRITE`, `w`.
pub const WRITE: u8 = 4;
/// All three kinds of access.
pub const ALL: u8 = MKNOD | READ | WRITE;

/// Major numbers have 12 bits, minor ones 20 (`MAJOR`, `MINOR` in linux/kdev_t.h).
pub const MAX_MAJOR: u32 = (1 << 12) - 1;
/// See [`MAX_MAJOR`].
pub const MAX_MINOR: u32 = (1 << 20) - 1;
/// Keeps the program for the rules under 4096 instructions, the kernel's limit without `CAP_BPF`; a bundle with more rules
/// is refused.
pub const MAX_RULES: usize = 256;

/// A rule: devices that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allow {
    /// The type.
    pub kind: Type,
    /// The major number; `None`: any.
    pub major: Option<u32>,
    /// The minor number; `None`: any.
    pub minor: Option<u32>,
    /// The kinds of access: [`MKNOD`], [`READ`], [`WRITE`].
    pub access: u8,
}

const fn char(major: u32, minor: Option<u32>) -> Allow {
    Allow { kind: Type::Char, major: Some(major), minor, access: ALL }
}

const fn nodes(kind: Type) -> Allow {
    Allow { kind, major: None, minor: None, access: MKNOD }
}

/// The devices that runc 1.1 allows a container whose bundle has no rules, in its order (recorded from the state of
/// one): mknod of any device, null, random, full, tty, zero, urandom, terminals, ptmx, tun.
const UNPRIVILEGED: [Allow; 11] = [
    nodes(Type::Char),
    nodes(Type::Block),
    char(1, Some(3)),
    char(1, Some(8)),
    char(1, Some(7)),
    char(5, Some(0)),
    char(1, Some(5)),
    char(1, Some(9)),
    char(136, None),
    char(5, Some(2)),
    char(10, Some(200)),
];

const FUSE: Allow = char(10, Some(229));

/// The set of rules that a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// For a container whose root is the host's: those of the others, and fuse.
    Privileged,
    /// For all other containers.
    Unprivileged,
}

impl From<bool> for Devices {
    fn from(privileged: bool) -> Self {
        if privileged { Self::Privileged } else { Self::Unprivileged }
    }
}

impl Devices {
    /// The allowed devices, in the order of the recorded bundles; everything else is denied.
    pub fn rules(self) -> Vec<Allow> {
        let fuse = (self == Self::Privileged).then_some(FUSE);
        UNPRIVILEGED.into_iter().chain(fuse).collect()
    }

    /// The value of `linux.resources.devices` in a bundle.
    pub fn bundle(self) -> Vec<DeviceRule> {
        let deny = DeviceRule { allow: false, access: Some("rwm".to_owned()), ..DeviceRule::default() };
        std::iter::once(deny).chain(self.rules().iter().map(Allow::bundle)).collect()
    }

    /// Whether these rules allow opening a device for reading and writing.
    pub fn may_open(self, kind: Type, major: u32, minor: u32) -> bool {
        may(&self.rules(), kind, major, minor, READ | WRITE)
    }
}

/// Whether the rules allow an access to a device. As in cgroup v1, an access with no bits set is allowed if any
/// access is.
pub fn may(rules: &[Allow], kind: Type, major: u32, minor: u32, access: u8) -> bool {
    let about = |rule: &&Allow| {
        rule.kind == kind && rule.major.is_none_or(|m| m == major) && rule.minor.is_none_or(|m| m == minor)
    };
    let mut granted = rules.iter().filter(about).map(|rule| rule.access).peekable();
    granted.peek().is_some() && access & !granted.fold(0, |all, one| all | one) == 0
}

/// The reason why rules cannot be enforced or read, as text.
pub type Problem = String;

impl Allow {
    fn letters(&self) -> String {
        let all = [('r', READ), ('w', WRITE), ('m', MKNOD)];
        all.iter().filter(|(_, bit)| self.access & bit != 0).map(|(letter, _)| letter).collect()
    }

    fn bundle(&self) -> DeviceRule {
        let number = |n: Option<u32>| Some(n.map_or(-1, i64::from));
        DeviceRule {
            allow: true,
            kind: Some(if self.kind == Type::Char { DeviceType::Char } else { DeviceType::Block }),
            major: number(self.major),
            minor: number(self.minor),
            access: Some(self.letters()),
        }
    }

    /// Parses a line of `devices.list` (Documentation/admin-guide/cgroup-v1/devices.rst). `None` if it is invalid, or
    /// allows everything.
    pub fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = match words.next()? {
            "c" => Type::Char,
            "b" => Type::Block,
            _ => return None,
        };
        let (major, minor) = words.next()?.split_once(':')?;
        let number = |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
        let (major, minor) = (number(major)?, number(minor)?);
        let access = access(words.next()?).ok()?;
        words.next().is_none().then_some(Self { kind, major, minor, access })
    }
}

/// The format that cgroup v1 reads and writes.
impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = if self.kind == Type::Char { 'c' } else { 'b' };
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.letters())
    }
}

fn access(letters: &str) -> Result<u8, Problem> {
    let mut access = 0;
    for letter in letters.chars() {
        let bit = match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(format!("the access {letters:?}")),
        };
        if access & bit != 0 {
            return Err(format!("the access {letters:?}"));
        }
        access |= bit;
    }
    if access == 0 { Err("a rule for no access at all".to_owned()) } else { Ok(access) }
}

fn number(given: Option<i64>, max: u32, name: &str) -> Result<Option<u32>, Problem> {
    match given {
        None | Some(-1) => Ok(None),
        Some(n) => match u32::try_from(n) {
            Ok(within) if within <= max => Ok(Some(within)),
            _ => Err(format!("the {name} number {n}")),
        },
    }
}

/// Reads `linux.resources.devices` of an untrusted bundle.
///
/// # Errors
/// The rules do not have the form: first deny everything, then allow some.
pub fn read(rules: &[DeviceRule]) -> Result<Vec<Allow>, Problem> {
    let Some((first, rest)) = rules.split_first() else {
        return Err("an empty list of rules".to_owned());
    };
    let any = |n: Option<i64>| matches!(n, None | Some(-1));
    let letters = |rule: &DeviceRule| access(rule.access.as_deref().unwrap_or_default());
    let everything =
        matches!(first.kind, None | Some(DeviceType::All)) && any(first.major) && any(first.minor);
    if first.allow || !everything || letters(first)? != ALL {
        return Err("a list that does not begin by denying everything".to_owned());
    }
    if rest.len() > MAX_RULES {
        return Err(format!("a list of more than {MAX_RULES} rules"));
    }
    let read = |rule: &DeviceRule| {
        if !rule.allow {
            return Err("a rule that denies after the first".to_owned());
        }
        let kind = match rule.kind {
            Some(DeviceType::Char) => Type::Char,
            Some(DeviceType::Block) => Type::Block,
            other => return Err(format!("a rule of the type {:?}", other.unwrap_or_default().letter())),
        };
        Ok(Allow {
            kind,
            major: number(rule.major, MAX_MAJOR, "major")?,
            minor: number(rule.minor, MAX_MINOR, "minor")?,
            access: letters(rule)?,
        })
    };
    rest.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_is_allowed() {
        let privileged = Devices::Privileged;
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 9), (10, 200)] {
            assert!(privileged.may_open(Type::Char, major, minor), "{major}:{minor}");
            assert!(Devices::Unprivileged.may_open(Type::Char, major, minor), "{major}:{minor}");
        }
        assert!(
            privileged.may_open(Type::Char, 10, 229) && !Devices::Unprivileged.may_open(Type::Char, 10, 229)
        );
        // mem, kmsg, the console and kvm.
        for (major, minor) in [(1, 1), (1, 11), (5, 1), (10, 232)] {
            assert!(!privileged.may_open(Type::Char, major, minor), "{major}:{minor}");
        }
        for (major, minor) in [(7, 0), (8, 0), (1, 3), (136, 0)] {
            assert!(!privileged.may_open(Type::Block, major, minor), "{major}:{minor}");
            assert!(may(&privileged.rules(), Type::Block, major, minor, MKNOD));
        }
    }

    #[test]
    fn lines_are_those_of_the_kernel() {
        let rules = Devices::Privileged.rules();
        let lines: Vec<String> = rules.iter().map(ToString::to_string).collect();
        assert_eq!(lines[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(lines[8], "c 136:* rwm");
        assert_eq!(lines.iter().filter_map(|line| Allow::from_line(line)).collect::<Vec<_>>(), rules);
        for other in ["a *:* rwm", "", "c", "c 1:3", "c 1:x rwm", "c 1:3 rwm x", "c 1 rwm", "c 1:3 "] {
            assert_eq!(Allow::from_line(other), None, "{other:?}");
        }
    }

    fn parsed(rules: &Value) -> Result<Vec<Allow>, Problem> {
        let rules: Vec<DeviceRule> = serde_json::from_value(rules.clone()).map_err(|e| e.to_string())?;
        read(&rules)
    }

    #[test]
    fn what_is_written_can_be_read() {
        for kind in [Devices::Privileged, Devices::Unprivileged] {
            assert_eq!(parsed(&json!(kind.bundle())), Ok(kind.rules()));
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let deny = json!({"allow": false, "access": "rwm"});
        let one = |rule: Value| json!([deny, rule]);
        assert_eq!(parsed(&json!([deny])), Ok(vec![]));
        let all = json!({"allow": false, "type": "a", "major": -1, "minor": -1, "access": "mrw"});
        assert_eq!(parsed(&json!([all])), Ok(vec![]));
        let refused = [
            json!([]),
            json!([{"allow": true, "access": "rwm"}]),
            json!([{"allow": false, "access": "rw"}]),
            json!([{"allow": false}]),
            json!([{"allow": false, "type": "c", "access": "rwm"}]),
            json!([{"allow": false, "major": 1, "access": "rwm"}]),
            one(deny.clone()),
            one(json!({"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm"})),
            one(json!({"allow": true, "access": "rwm"})),
            one(json!({"allow": true, "type": "a", "access": "rwm"})),
            one(json!({"allow": true, "type": "p", "major": 1, "minor": 3, "access": "rwm"})),
            one(json!({"allow": true, "type": "u", "major": 1, "minor": 3, "access": "rwm"})),
            one(json!({"allow": true, "type": "x", "major": 1, "minor": 3, "access": "rwm"})),
            one(json!({"allow": true, "type": "c", "major": 1, "minor": 3})),
            one(json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": ""})),
            one(json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwx"})),
            one(json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rr"})),
            one(json!({"allow": true, "type": "c", "major": -2, "minor": 3, "access": "r"})),
            one(json!({"allow": true, "type": "c", "major": 4096, "minor": 3, "access": "r"})),
            one(json!({"allow": true, "type": "c", "major": 1, "minor": 1 << 20, "access": "r"})),
            one(json!({"allow": true, "type": "c", "major": i64::MAX, "minor": i64::MIN, "access": "r"})),
            one(json!({"allow": true, "type": "c", "major": 1.5, "minor": 3, "access": "r"})),
            one(json!({"allow": true, "type": "c", "major": "1", "minor": 3, "access": "r"})),
        ];
        for rules in refused {
            assert!(parsed(&rules).is_err(), "{rules}");
        }
        let many = std::iter::once(deny).chain((0..=MAX_RULES).map(|_| json!(FUSE.bundle())));
        assert!(parsed(&many.collect()).is_err());
    }

    /// Random combinations of values that a bundle may have in a rule: reading them does not panic, and the results
    /// are within bounds.
    #[test]
    fn hostile_rules() {
        let values = [
            json!(null),
            json!(true),
            json!(false),
            json!(0),
            json!(-1),
            json!(-2),
            json!(7),
            json!(4095),
            json!(4096),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1e300),
            json!(""),
            json!("a"),
            json!("c"),
            json!("b"),
            json!("rwm"),
            json!("m"),
            json!("rw\0m"),
            json!("r".repeat(10_000)),
            json!("\u{202e}rwm"),
            json!([]),
            json!({"allow": true}),
        ];
        let keys = ["allow", "type", "major", "minor", "access"];
        // A fixed sequence (splitmix64), so that a failure can be reproduced.
        let mut state = 7_u64;
        let mut pick = |n: usize| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % n as u64) as usize
        };
        let mut good = 0;
        for _ in 0..50_000 {
            let mut rules = vec![json!({"allow": false, "access": "rwm"})];
            for _ in 0..pick(3) {
                let mut rule = json!(FUSE.bundle());
                for _ in 0..=pick(3) {
                    rule[keys[pick(keys.len())]] = values[pick(values.len())].clone();
                }
                rules.push(rule);
            }
            if pick(4) == 0 {
                rules.remove(0);
            }
            if let Ok(read) = parsed(&Value::Array(rules)) {
                good += 1;
                for rule in read {
                    assert!(rule.access != 0 && rule.access <= ALL);
                    assert!(rule.major.is_none_or(|n| n <= 4095) && rule.minor.is_none_or(|n| n < 1 << 20));
                    assert_eq!(Allow::from_line(&rule.to_string()), Some(rule));
                }
            }
        }
        assert!(good > 1000, "{good}");
    }
}
