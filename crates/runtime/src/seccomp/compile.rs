//! Compiles a profile to a classic BPF program.
//!
//! A program first checks the architecture, then finds the range of numbers that the call is in by bisection:
//! adjacent numbers mostly have the same verdict, and a range takes one comparison. The program is written from its
//! end to its beginning, because jumps only go forward: the target of a jump is always written before the jump.

use super::calls::{self, X32_BIT};
use super::profile::{Action, Architecture, Comparison, Operator, Profile, Rule};
use super::{Error, Program};
use std::collections::HashMap;
use wardian_sys::seccomp::{Instruction, MAX_INSTRUCTIONS};

/// Operation codes (`<linux/bpf_common.h>`).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_*` of `<linux/audit.h>`.
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_I386: u32 = 0x4000_0003;
const AUDIT_AARCH64: u32 = 0xc000_00b7;

/// The kernel's result for an unknown system call number.
const ENOSYS: Action = Action::Errno(38);

/// The conditions of a rule, and its action.
type Case = (Vec<Comparison>, Action);

/// The verdict on a range of numbers: the first case that matches decides, else the action `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Verdict {
    cases: Vec<usize>,
    otherwise: Action,
}

fn plain(action: Action) -> Verdict {
    Verdict { cases: Vec::new(), otherwise: action }
}

/// A position in the program, counted from its end.
type Label = usize;

/// The program, its last instruction first.
#[derive(Default)]
struct Writer {
    reversed: Vec<Instruction>,
}

impl Writer {
    fn put(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.reversed.len() - 1
    }

    fn back(&mut self, action: Action) -> Label {
        self.put(RETURN, 0, 0, action.code())
    }

    /// How many instructions the next one would have to skip to reach this position.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - to - 1
    }

    /// A new instruction nearby that leads to this position.
    fn near(&mut self, to: Label) -> Label {
        let target = self.reversed[to];
        match target.code {
            RETURN => self.put(RETURN, 0, 0, target.k),
            _ => self.put(JUMP, 0, 0, self.distance(to) as u32),
        }
    }

    /// A conditional jump. Its offsets have 8 bits: targets farther away are reached through another jump.
    fn branch(&mut self, code: u16, k: u32, mut yes: Label, mut no: Label) -> Label {
        // One less than the maximum: the detour for `no` may be inserted in between.
        if self.distance(yes) > 254 {
            yes = self.near(yes);
        }
        if self.distance(no) > 255 {
            no = self.near(no);
        }
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.put(code, jt, jf, k)
    }

    /// A comparison of an argument, by its two 32-bit halves; all supported architectures are little-endian.
    fn compare(&mut self, comparison: &Comparison, yes: Label, no: Label) -> Label {
        let low_at = ARGUMENTS + 8 * u32::from(comparison.index);
        let high_at = low_at + 4;
        let (low, high) = (comparison.value as u32, (comparison.value >> 32) as u32);
        let (code, yes, no) = match comparison.operator {
            Operator::MaskedEq(mask) => {
                let low_half = self.masked(low_at, mask as u32, low, yes, no);
                // The comparison does not depend on the high half, so that is not loaded.
                if mask >> 32 == 0 && high == 0 {
                    return low_half;
                }
                return self.masked(high_at, (mask >> 32) as u32, high, low_half, no);
            }
            Operator::Eq => (EQUAL, yes, no),
            Operator::Ne => (EQUAL, no, yes),
            Operator::Gt => (GREATER, yes, no),
            Operator::Le => (GREATER, no, yes),
            Operator::Ge => (GREATER_OR_EQUAL, yes, no),
            Operator::Lt => (GREATER_OR_EQUAL, no, yes),
        };
        self.branch(code, low, yes, no);
        let low_half = self.put(LOAD, 0, 0, low_at);
        let equal = self.branch(EQUAL, high, low_half, no);
        if code != EQUAL {
            self.branch(GREATER, high, yes, equal);
        }
        self.put(LOAD, 0, 0, high_at)
    }

    fn masked(&mut self, at: u32, mask: u32, value: u32, yes: Label, no: Label) -> Label {
        self.branch(EQUAL, value, yes, no);
        if mask != u32::MAX {
            self.put(AND, 0, 0, mask);
        }
        self.put(LOAD, 0, 0, at)
    }

    /// Cases in order; if none matches, the action.
    fn verdict(&mut self, verdict: &Verdict, cases: &[Case]) -> Label {
        let mut next = self.back(verdict.otherwise);
        for case in verdict.cases.iter().rev() {
            let (conditions, action) = &cases[*case];
            let mut yes = self.back(*action);
            for comparison in conditions.iter().rev() {
                yes = self.compare(comparison, yes, next);
            }
            next = yes;
        }
        next
    }

    /// Finds the last range that begins at or below the number.
    fn bisect(&mut self, ranges: &[(u32, Label)]) -> Label {
        if let [(_, label)] = ranges {
            return *label;
        }
        let (below, from) = ranges.split_at(ranges.len() / 2);
        let above = self.bisect(from);
        let below = self.bisect(below);
        self.branch(GREATER_OR_EQUAL, from[0].0, above, below)
    }
}

/// The verdicts that a profile's rules amount to, by name.
struct Rules<'a> {
    cases: Vec<Case>,
    /// Each name with its index and the index of its verdict: there are hundreds of names and few verdicts.
    names: HashMap<&'a str, (usize, usize)>,
    /// The verdicts, without duplicates.
    verdicts: Vec<Verdict>,
    /// Index of the verdict on calls that no rule names.
    unnamed: usize,
    /// Index of the verdict on calls that are newer than the profile.
    newer: usize,
}

impl<'a> Rules<'a> {
    fn new(profile: &Profile<'a>) -> Self {
        let mut cases: Vec<Case> = Vec::new();
        let count = profile.rules.iter().map(|rule| rule.names.len()).sum();
        let mut names: HashMap<&str, (usize, usize)> = HashMap::with_capacity(count);
        // The flag: a rule without conditions was found, so later rules are never tried.
        let mut verdicts: Vec<(Verdict, bool)> = Vec::new();
        for rule in &profile.rules {
            let first = cases.len();
            add_cases(rule, &mut cases);
            let extended = |(mut verdict, mut closed): (Verdict, bool)| {
                if !closed && rule.conditions.is_empty() {
                    (verdict.otherwise, closed) = (rule.action, true);
                } else if !closed {
                    verdict.cases.extend(first..cases.len());
                }
                (verdict, closed)
            };
            // The verdict on names that no earlier rule has.
            let fresh = verdicts.len();
            verdicts.push(extended((plain(profile.default), false)));
            for name in &rule.names {
                let id = names.len();
                let (_, verdict) = names.entry(name).or_insert((id, fresh));
                if *verdict < fresh {
                    verdicts.push(extended(verdicts[*verdict].clone()));
                    *verdict = verdicts.len() - 1;
                }
            }
        }
        let mut numbers = HashMap::new();
        let mut number = |verdict| {
            let next = numbers.len();
            *numbers.entry(verdict).or_insert(next)
        };
        let unnamed = number(plain(profile.default));
        let newer = number(plain(ENOSYS));
        let renumbered: Vec<usize> = verdicts.into_iter().map(|(verdict, _)| number(verdict)).collect();
        names.values_mut().for_each(|(_, verdict)| *verdict = renumbered[*verdict]);
        let mut verdicts: Vec<(Verdict, usize)> = numbers.into_iter().collect();
        verdicts.sort_unstable_by_key(|(_, number)| *number);
        let verdicts = verdicts.into_iter().map(|(verdict, _)| verdict).collect();
        Self { cases, names, verdicts, unnamed, newer }
    }

    /// The calls of an architecture that the profile names, with their verdicts.
    fn named(
        &self,
        calls: impl Iterator<Item = (u32, &'static str)>,
        known: &mut [bool],
    ) -> Vec<(u32, usize)> {
        let look = |(number, name)| {
            let (id, verdict) = self.names.get(name)?;
            known[*id] = true;
            Some((number, *verdict))
        };
        calls.filter_map(look).collect()
    }

    /// The ranges of an architecture's numbers, from `first` on, each with its verdict.
    fn ranges(&self, named: &[(u32, usize)], first: u32) -> Vec<(u32, usize)> {
        let mut ranges: Vec<(u32, usize)> = Vec::new();
        let mut add = |at: u32, verdict: usize| {
            if ranges.last().is_none_or(|(_, last)| *last != verdict) {
                ranges.push((at, verdict));
            }
        };
        let mut next = first;
        for (number, verdict) in named {
            if *number > next {
                add(next, self.unnamed);
            }
            add(*number, *verdict);
            next = number + 1;
        }
        // A profile that allows unnamed calls also allows newer ones. A profile that names no call of this
        // architecture gives no bound above which a call would be newer.
        let permissive = matches!(self.verdicts[self.unnamed].otherwise, Action::Allow | Action::Log);
        add(next, if permissive || next == first { self.unnamed } else { self.newer });
        ranges
    }
}

/// Appends the cases in which a rule matches.
fn add_cases(rule: &Rule<'_>, cases: &mut Vec<Case>) {
    let mut seen = 0u8;
    let twice = rule.conditions.iter().any(|condition| {
        let bit = 1 << condition.index;
        let twice = seen & bit != 0;
        seen |= bit;
        twice
    });
    if twice {
        cases.extend(rule.conditions.iter().map(|condition| (vec![*condition], rule.action)));
    } else if !rule.conditions.is_empty() {
        cases.push((rule.conditions.clone(), rule.action));
    }
}

fn native() -> Architecture {
    if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 }
}

impl Profile<'_> {
    /// Compiles the program.
    ///
    /// # Errors
    /// The program would be longer than the kernel allows.
    pub fn compile(&self) -> Result<Program, Error> {
        let has = |architecture| self.architectures.contains(&architecture) || native() == architecture;
        let rules = Rules::new(self);
        let mut known = vec![false; rules.names.len()];
        let mut tables = Vec::new();
        if has(Architecture::X86_64) || has(Architecture::X32) {
            // The kernel has one audit architecture for both and distinguishes them by a bit of the number.
            let named = rules.named(calls::x86_64(), &mut known);
            let none = |first| vec![(first, rules.newer)];
            let mut all = match has(Architecture::X86_64) {
                true => rules.ranges(&named, 0),
                false => none(0),
            };
            all.extend(match has(Architecture::X32) {
                true => rules.ranges(&calls::x32(&named), X32_BIT),
                // Otherwise x32 calls would bypass a profile that allows unnamed calls.
                false => none(X32_BIT),
            });
            tables.push((AUDIT_X86_64, all));
        }
        if has(Architecture::X86) {
            let named = rules.named(calls::x86(), &mut known);
            tables.push((AUDIT_I386, rules.ranges(&named, 0)));
        }
        if has(Architecture::Aarch64) {
            let named = rules.named(calls::aarch64(), &mut known);
            tables.push((AUDIT_AARCH64, rules.ranges(&named, 0)));
        }
        let mut writer = Writer::default();
        let mut next = writer.back(Action::KillProcess);
        // The first architecture's table is written last and so checked first.
        for (audit, ranges) in tables.iter().rev() {
            let mut labels: Vec<Option<Label>> = vec![None; rules.verdicts.len()];
            let ranges: Vec<(u32, Label)> = ranges
                .iter()
                .map(|(first, verdict)| {
                    let label = labels[*verdict]
                        .get_or_insert_with(|| writer.verdict(&rules.verdicts[*verdict], &rules.cases));
                    (*first, *label)
                })
                .collect();
            let first = writer.bisect(&ranges);
            if writer.distance(first) > 0 {
                writer.near(first);
            }
            let root = writer.put(LOAD, 0, 0, NUMBER);
            next = writer.branch(EQUAL, *audit, root, next);
        }
        writer.put(LOAD, 0, 0, ARCHITECTURE);
        let mut instructions = writer.reversed;
        instructions.reverse();
        if instructions.len() > MAX_INSTRUCTIONS {
            return Err(Error::TooLong(instructions.len()));
        }
        let unknown = known.iter().filter(|known| !**known).count();
        Ok(Program { instructions, flags: self.flags, unknown })
    }
}
