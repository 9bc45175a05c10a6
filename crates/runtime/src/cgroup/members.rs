//! The processes in cgroups: who they are, and signals to them.

use super::Cgroups;
use super::hierarchies::Hierarchy;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

impl Cgroups {
    /// Kills the members of `id`, in a bounded number of rounds, since they may fork. `false` if one is still alive.
    pub fn kill(&self, id: &str) -> bool {
        self.kill_v2(id);
        for _ in 0..20 {
            if self.signal(id, &[], rustix::process::Signal::KILL) == 0 {
                return true;
            }
            self.let_die(id);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        false
    }

    /// Signals the members of `id` and below except those in `except`. Returns their number. Each is signalled by a
    /// pidfd, and only if its pid is still a member after the pidfd was opened.
    pub fn signal(&self, id: &str, except: &[i32], signal: rustix::process::Signal) -> usize {
        self.signal_where(id, |pid| !except.contains(&pid), signal)
    }

    /// Kills the keeper of the container `id`, found by its command line. `false` if it is still alive.
    pub fn kill_keeper(&self, id: &str) -> bool {
        let line = format!("wardian-keeper\0{id}\0");
        let is_its_keeper =
            |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|read| read == line.as_bytes());
        for _ in 0..20 {
            if self.signal_where("keepers", is_its_keeper, rustix::process::Signal::KILL) == 0 {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        false
    }

    /// Kills everything in all cgroups of this instance, keepers first. Returns the pids that are still alive.
    pub fn kill_all(&self) -> Vec<i32> {
        self.kill("keepers");
        self.kill("");
        self.members("")
    }

    fn signal_where(&self, id: &str, wanted: impl Fn(i32) -> bool, signal: rustix::process::Signal) -> usize {
        let members: Vec<i32> = self.members(id).into_iter().filter(|pid| wanted(*pid)).collect();
        let open = |raw: &i32| {
            let pid = rustix::process::Pid::from_raw(*raw)?;
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok().map(|fd| (*raw, fd))
        };
        let opened: Vec<(i32, OwnedFd)> = members.iter().filter_map(open).collect();
        let still = self.members(id);
        for (_, fd) in opened.iter().filter(|(pid, _)| still.contains(pid) && wanted(*pid)) {
            // The process may have ended by itself meanwhile.
            let _ = rustix::process::pidfd_send_signal(fd, signal);
        }
        members.len()
    }

    /// A hierarchy in which every process of ours is a member of its cgroup.
    pub(super) fn one_with_members(&self) -> Option<&Hierarchy> {
        self.hierarchies.v1_of("pids").or(self.hierarchies.all().next())
    }

    /// Pids of the members of `id` and below.
    pub fn members(&self, id: &str) -> Vec<i32> {
        let Some(hierarchy) = self.one_with_members() else { return Vec::new() };
        let mut found = Vec::new();
        collect_members(&self.dir(hierarchy, id), &mut found);
        found
    }
}

fn collect_members(dir: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_members(&entry.path(), found);
        }
    }
}
