//! Gives a process its rights, whatever it is: pid 1, a program, a pea, a tar helper.
//!
//! This happens in two steps, because some rights are needed to drop others. [`bound`] sets the limits before the
//! process enters the user namespace: raising a hard limit takes CAP_SYS_RESOURCE on the host. [`take`] does
//! everything else, once no step is left that needs the rights of the container's root.

use crate::child::{self, Outcome, Stop, failed};
use crate::report::Report;
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use rustix::thread::{CapabilitySet, CapabilitySets};
use wardian_runtime::rights::Rights;

/// Sets the resource limits. One that the host does not allow is lowered to what it allows, with a warning.
pub fn bound(rights: &Rights, report: &Report) -> Outcome<()> {
    rights.limits.iter().try_for_each(|limit| child::set_rlimit(limit.resource, limit.value, report))
}

/// Sets umask, bounding set, seccomp filter, groups, ids, capability sets and finally no_new_privs.
pub fn take(rights: &Rights) -> Outcome<()> {
    let Rights {
        uid,
        gid,
        groups,
        capabilities,
        no_new_privileges,
        // See `bound`.
        limits: _,
        umask,
        seccomp,
    } = rights;
    if [uid, gid].into_iter().chain(groups).any(|id| *id == u32::MAX) {
        // setresuid(2) takes this id for "leave unchanged", which is root.
        return Err(Stop::from(format!("{} is no id", u32::MAX)));
    }
    rustix::process::umask(Mode::from_raw_mode(*umask));
    for number in (0..64).filter(|number| capabilities & 1 << number == 0) {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // The kernel has no such capability: all existing ones are done.
            Err(Errno::INVAL) => break,
            other => other.map_err(failed("drop bounding set"))?,
        }
    }
    // Installed while CAP_SYS_ADMIN is still held (the bounding set does not affect it); without it the install would
    // require no_new_privs. From here to the exec no system call may be made that the profile denies.
    if let Some(filter) = seccomp {
        filter.install().map_err(failed("install the filter of system calls"))?;
    }
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).map_err(failed("setgroups"))?;
    let group = Gid::from_raw(*gid);
    rustix::thread::set_thread_res_gid(group, group, group).map_err(failed("setresgid"))?;
    // The permitted set is kept over the change of ids and narrowed afterwards: with fs.suid_dumpable=1 the change
    // makes this process dumpable, and until that is undone the user's processes could trace it. They may not trace a
    // process whose permitted set is not a subset of theirs (`cap_ptrace_access_check`).
    rustix::thread::set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    let user = Uid::from_raw(*uid);
    rustix::thread::set_thread_res_uid(user, user, user).map_err(failed("setresuid"))?;
    child::undumpable();
    rustix::thread::set_keep_capabilities(false).map_err(failed("keep capabilities"))?;
    // Narrowing a set does not make the process dumpable. No capability can be added that the namespace's root does
    // not hold (on a host that lacks some itself).
    let held = rustix::thread::capabilities(None).map_err(failed("capget"))?.permitted;
    let wanted = CapabilitySet::from_bits_retain(*capabilities) & held;
    let permitted = if *uid == 0 { wanted } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: wanted };
    rustix::thread::set_capabilities(None, sets).map_err(failed("capset"))?;
    if *no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(failed("no_new_privs"))?;
    }
    child::undumpable();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::tests::in_child;
    use wardian_runtime::rights::Limit;

    /// A field of this process's /proc/self/status, by its name in proc(5).
    fn status(name: &str) -> String {
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Checks, in a child, that a process with these rights has these fields in its status.
    fn looks(rights: &Rights, wanted: &[(&str, &str)]) {
        let code = in_child(|| {
            if let Err(stop) = take(rights) {
                eprintln!("{}", stop.text);
                return 1;
            }
            let wrong = wanted.iter().filter(|(name, wanted)| status(name) != *wanted);
            2 * wrong.inspect(|(name, _)| eprintln!("{name}: {}", status(name))).count() as i32
        });
        assert_eq!(code, 0);
    }

    #[test]
    fn a_process_has_the_rights_that_it_was_given() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        /// CAP_KILL.
        const KILL: u64 = 1 << 5;
        let root = Rights { capabilities: KILL, umask: 0o077, ..Rights::default() };
        let (kill, none) = ("0000000000000020", "0000000000000000");
        looks(
            &root,
            &[
                ("Uid", "0 0 0 0"),
                ("Groups", ""),
                ("Umask", "0077"),
                ("CapBnd", kill),
                ("CapInh", kill),
                ("CapPrm", kill),
                ("CapEff", kill),
                ("CapAmb", none),
                ("NoNewPrivs", "0"),
                ("Seccomp", "0"),
            ],
        );
        let filter = wardian_runtime::seccomp::compiled().unwrap();
        let user = Rights {
            uid: 7,
            gid: 8,
            groups: vec![9, 10],
            capabilities: KILL,
            no_new_privileges: true,
            seccomp: Some(filter),
            ..Rights::default()
        };
        looks(
            &user,
            &[
                ("Uid", "7 7 7 7"),
                ("Gid", "8 8 8 8"),
                ("Groups", "9 10"),
                ("Umask", "0022"),
                ("CapBnd", kill),
                ("CapInh", kill),
                ("CapPrm", none),
                ("CapEff", none),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
            ],
        );
    }

    #[test]
    fn an_id_that_means_no_change_is_refused_before_anything_is_done() {
        let none = u32::MAX;
        for rights in [
            Rights { uid: none, ..Rights::default() },
            Rights { gid: none, ..Rights::default() },
            Rights { groups: vec![1, none], ..Rights::default() },
        ] {
            assert_eq!(in_child(|| i32::from(take(&rights).is_ok())), 0);
        }
    }

    #[test]
    fn limits_are_set() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let report = Report(writer);
        let limit = |value| Limit { resource: libc::RLIMIT_CORE, value };
        let rights = Rights { limits: vec![limit(4096)], ..Rights::default() };
        let code = in_child(|| {
            let set = bound(&rights, &report).is_ok();
            let now = rustix::process::getrlimit(rustix::process::Resource::Core);
            i32::from(!set || now.current != Some(4096) || now.maximum != Some(4096))
        });
        drop(reader);
        assert_eq!(code, 0);
    }
}
