//! Enforces device rules by BPF programs on cgroup v2.

use super::{ALL, Allow, Type};
use crate::cgroup::files::{Error, at};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::path::Path;
use wardian_sys::bpf::{DeviceProgram, Insn, Reg};

/// `BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR` (linux/bpf.h).
const fn number(kind: Type) -> i32 {
    match kind {
        Type::Block => 1,
        Type::Char => 2,
    }
}

/// Compiles a program that allows what the rules allow and denies everything else.
///
/// Its context is `struct bpf_cgroup_dev_ctx`: access and type in the halves of one word, then the major and the
/// minor number. Each rule that matches the device removes its kinds of access from those that are requested; when
/// none is left, the access is allowed. So two rules together may allow an open for reading and writing, as with
/// cgroup v1.
pub fn compile(rules: &[Allow]) -> Vec<Insn> {
    let (kind, left, major, minor) = (Reg::R2, Reg::R3, Reg::R4, Reg::R5);
    let mut program = vec![
        Insn::load_word(kind, Reg::R1, 0),
        Insn::mov_reg(left, kind),
        Insn::and(kind, 0xffff),
        Insn::shift_right(left, 16),
        Insn::load_word(major, Reg::R1, 4),
        Insn::load_word(minor, Reg::R1, 8),
    ];
    for rule in rules {
        let grant = [
            Insn::and(left, !i32::from(rule.access & ALL)),
            Insn::jump_unless(left, 0, 2),
            Insn::mov(Reg::R0, 1),
            Insn::exit(),
        ];
        let asked = [
            Some((kind, number(rule.kind))),
            // At most 20 bits, see `devices::read`.
            rule.major.map(|n| (major, n.cast_signed())),
            rule.minor.map(|n| (minor, n.cast_signed())),
        ];
        let asked: Vec<(Reg, i32)> = asked.into_iter().flatten().collect();
        for (index, (register, value)) in asked.iter().enumerate() {
            // Over the remaining comparisons and the grant, which are less than ten instructions.
            let skip = asked.len() - 1 - index + grant.len();
            program.push(Insn::jump_unless(*register, *value, skip as i16));
        }
        program.extend(grant);
    }
    program.extend([Insn::mov(Reg::R0, 0), Insn::exit()]);
    program
}

/// Attaches the program to a v2 cgroup, and replaces programs of ours with other rules.
pub(super) fn attach(dir: &Path, program: &DeviceProgram) -> Result<(), Error> {
    let failed = |e: wardian_sys::bpf::Error| at("enforce device rules in", dir)(io::Error::other(e));
    let cgroup = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| at("open", dir)(e.into()))?;
    let mut ours = DeviceProgram::attached(&cgroup).map_err(failed)?;
    ours.retain(|attached| attached.identity().name == program.identity().name);
    let Some(kept) = ours.iter().position(|attached| attached.identity() == program.identity()) else {
        // First attached, then detached: all attached programs must allow an access, so nothing extra is allowed
        // meanwhile.
        let first = if ours.is_empty() { None } else { Some(ours.remove(0)) };
        program.attach(&cgroup, first.as_ref()).map_err(failed)?;
        return ours.iter().try_for_each(|other| other.detach(&cgroup)).map_err(failed);
    };
    ours.remove(kept);
    ours.iter().try_for_each(|other| other.detach(&cgroup)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::{self, Devices, MKNOD, READ, WRITE, may};
    use wardian_sys::bpf;

    /// Interprets a program as the kernel would: one instruction after the other, as their standard describes them.
    fn run(program: &[Insn], context: [u32; 3]) -> bool {
        let mut registers = [0_u64; 11];
        let mut next = 0_usize;
        // Without loops no instruction is executed twice.
        for _ in 0..=program.len() {
            let insn = program[next];
            next += 1;
            let (to, from) = (usize::from(insn.registers & 15), usize::from(insn.registers >> 4));
            let value = i64::from(insn.immediate).cast_unsigned();
            match insn.code {
                bpf::LOAD_WORD => {
                    assert_eq!(from, 1, "the context is in R1");
                    registers[to] = u64::from(context[usize::try_from(insn.offset).unwrap() / 4]);
                }
                bpf::MOV => registers[to] = value,
                bpf::MOV_REG => registers[to] = registers[from],
                bpf::AND => registers[to] &= value,
                bpf::SHIFT_RIGHT => registers[to] >>= value,
                bpf::JUMP_UNLESS if registers[to] != value => next += usize::try_from(insn.offset).unwrap(),
                bpf::JUMP_UNLESS => {}
                bpf::EXIT => return registers[0] != 0,
                other => panic!("an instruction of code {other:#x}"),
            }
        }
        panic!("it does not end");
    }

    fn agree(rules: &[Allow]) {
        let program = compile(rules);
        for kind in [Type::Char, Type::Block] {
            for major in [0, 1, 2, 5, 7, 8, 10, 136, 137, 4095] {
                for minor in [0, 1, 2, 3, 5, 7, 8, 9, 11, 200, 229, 1_048_575] {
                    for access in 0..=ALL {
                        let context = [(u32::from(access) << 16) | number(kind) as u32, major, minor];
                        let expected = may(rules, kind, major, minor, access);
                        let what = format!("{kind:?} {major}:{minor} {access:03b} by {rules:?}");
                        assert_eq!(run(&program, context), expected, "{what}");
                    }
                }
            }
        }
        // No rule matches a type that does not exist.
        assert!(!run(&program, [(2 << 16) | 3, 1, 3]));
    }

    #[test]
    fn a_program_says_what_the_rules_say() {
        for kind in [Devices::Privileged, Devices::Unprivileged] {
            agree(&kind.rules());
        }
        agree(&[]);
        let rule = |kind, major, minor, access| Allow { kind, major, minor, access };
        // Two rules that together allow what neither allows alone.
        agree(&[rule(Type::Block, Some(8), Some(0), READ), rule(Type::Block, Some(8), None, WRITE)]);
        agree(&[rule(Type::Char, None, Some(3), READ | MKNOD), rule(Type::Char, None, None, WRITE)]);
        agree(&[rule(Type::Block, Some(4095), Some(1_048_575), ALL)]);
        let numbers = [None, Some(1), Some(3), Some(8)];
        let mut all = Vec::new();
        for (index, major) in numbers.iter().enumerate() {
            for (other, minor) in numbers.iter().enumerate() {
                let kind = if (index + other) % 2 == 0 { Type::Char } else { Type::Block };
                all.push(rule(kind, *major, *minor, (1 + (index * 4 + other) % 7) as u8));
            }
        }
        for length in 1..=all.len() {
            agree(&all[all.len() - length..]);
        }
    }

    #[test]
    fn the_kernel_takes_the_longest_program() {
        let rule = Allow { kind: Type::Block, major: Some(4095), minor: Some(1_048_575), access: READ };
        let program = compile(&vec![rule; devices::MAX_RULES]);
        assert!(program.len() <= 4096);
        // The kernel's verifier is asked where the process may do so.
        if DeviceProgram::load("wardian_test", &compile(&[])).is_ok() {
            DeviceProgram::load("wardian_test", &program).unwrap();
        }
    }
}
