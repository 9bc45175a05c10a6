//! The processes of wardian on this host, judged by more than their names.

use anyhow::Result;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A keeper's process name as the kernel keeps it: 15 bytes.
pub(crate) const KEEPER: &str = "wardian-keeper";
/// The memory file that a keeper is executed from, as in the link /proc/PID/exe.
const KEEPER_FILE: &str = "/memfd:wardian-keeper";
/// Name of the keepers' cgroup, below the instance's.
pub(crate) const KEEPERS: &str = "keepers";

pub(crate) const RECORD: &str = "instance.json";

/// A process of wardian.
#[derive(Debug, Default)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) comm: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) mountinfo: Vec<u8>,
    /// Tag of the instance whose keepers' cgroup it is in.
    pub(crate) tag: String,
    /// Ids of the containers that it keeps.
    pub(crate) containers: BTreeSet<String>,
    /// Whether it has children, that is, a live container.
    pub(crate) parent: bool,
    /// Whether it is a keeper, by more than its name.
    pub(crate) keeper: bool,
    /// Whether it is a server, judged by its program.
    pub(crate) server: bool,
}

/// Lists the processes of wardian.
pub(crate) fn list() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // The process may end while it is examined.
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        // Any user may give a process any name, but processes of wardian are root's.
        if !is_roots(&read("status")) {
            continue;
        }
        let comm = read("comm").trim().to_owned();
        let arguments: Vec<String> = read("cmdline").split('\0').map(str::to_owned).collect();
        let cgroup = read("cgroup");
        let place = instance_and_group(&cgroup);
        let exe = std::fs::read_link(entry.path().join("exe")).ok();
        let keeper = is_keeper(&comm, exe.as_deref(), place.map(|(_, group)| group));
        let is_server = arguments.get(1).is_some_and(|command| command == "serve");
        // Processes of a privileged container are root's as well.
        let inside = place.is_some_and(|(_, group)| group != KEEPERS);
        if inside || !keeper && !is_server && !comm.starts_with("wardian") {
            continue;
        }
        let tag = place.map(|(tag, _)| tag.to_owned()).unwrap_or_default();
        // A keeper has its container's id as an argument. With cgroup v1 its second thread is in the container's
        // cgroups, too; for a keeper without the argument that is the only hint.
        let told = arguments.get(1).filter(|id| keeper && !id.is_empty());
        let mut containers: BTreeSet<String> = told.cloned().into_iter().collect();
        let mut parent = false;
        for task in std::fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten() {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            parent |= !read("children").trim().is_empty();
            let groups = read("cgroup");
            if let Some((_, id)) = instance_and_group(&groups).filter(|(_, id)| *id != KEEPERS) {
                containers.insert(id.to_owned());
            }
        }
        let mountinfo = std::fs::read(entry.path().join("mountinfo")).unwrap_or_default();
        let named =
            |exe: PathBuf| exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("wardian"));
        let server = is_server && (comm.starts_with("wardian") || exe.is_some_and(named));
        found.push(Process { pid, comm, arguments, mountinfo, tag, containers, parent, keeper, server });
    }
    Ok(found)
}

/// Whether a process has root's ids only, from the text of its status: real, effective, saved and file system uid.
fn is_roots(status: &str) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    users.split_whitespace().count() == 4 && users.split_whitespace().all(|uid| uid == "0")
}

/// Whether a process of root's is a keeper: a server puts keepers into a cgroup of their own and executes them from a
/// memory file. Where /proc/PID/exe cannot be read the name decides.
fn is_keeper(comm: &str, exe: Option<&Path>, group: Option<&str>) -> bool {
    let ours = exe.map_or(comm == KEEPER, |exe| exe.to_string_lossy().starts_with(KEEPER_FILE));
    ours && group == Some(KEEPERS)
}

/// The instance's tag and the cgroup below the instance's, from the text of /proc/PID/cgroup.
pub(crate) fn instance_and_group(cgroup: &str) -> Option<(&str, &str)> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').nth(2)?.split('/').skip_while(|part| !is_instance(part));
        Some((parts.next()?.strip_prefix("wardian-")?, parts.next()?))
    })
}

/// Whether this is the name of an instance's top cgroup.
pub(crate) fn is_instance(name: &str) -> bool {
    // An earlier version used eight digits.
    name.strip_prefix("wardian-")
        .is_some_and(|tag| [8, 32].contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The run directories whose lock files a process has open.
pub(crate) fn locks(pid: u32) -> BTreeSet<PathBuf> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let dirs = links.filter(|path| path.is_absolute() && path.ends_with("lock"));
    dirs.filter_map(|path| Some(path.parent()?.to_owned())).filter(|dir| dir.join(RECORD).exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_makes_no_keeper() {
        let memory = Some(Path::new("/memfd:wardian-keeper (deleted)"));
        let other = Some(Path::new("/home/user/wardian-keeper"));
        assert!(is_keeper(KEEPER, memory, Some("keepers")) && is_keeper("renamed", memory, Some("keepers")));
        assert!(!is_keeper(KEEPER, other, Some("keepers")) && !is_keeper(KEEPER, memory, None));
        // A process of a container, and what a user other than root sees.
        assert!(!is_keeper(KEEPER, memory, Some("0123456789abcdef0123456789abcdef")));
        assert!(is_keeper(KEEPER, None, Some("keepers")) && !is_keeper("sleep", None, Some("keepers")));
        assert!(is_roots("Name:\tx\nUid:\t0\t0\t0\t0\n"));
        assert!(!is_roots("Uid:\t1000\t0\t0\t0\n") && !is_roots("Uid:\t0\t0\t0\t1\n") && !is_roots(""));
    }

    #[test]
    fn instance_names() {
        assert!(is_instance("wardian-0a1b2c3d"));
        assert!(is_instance("wardian-b00e6bf5bba5e51e1eabb1d373af14c7"));
        assert!(!is_instance("wardian-keeper") && !is_instance("wardian-12345") && !is_instance("wardian"));
    }

    #[test]
    fn a_process_is_traced_to_its_container() {
        let v1 = "9:name=systemd:/wardian-0a1b2c3d/keepers\n8:pids:/wardian-0a1b2c3d/keepers\n";
        assert_eq!(instance_and_group(v1), Some(("0a1b2c3d", "keepers")));
        assert_eq!(instance_and_group("0::/a.slice/wardian-0a1b2c3d/abc\n"), Some(("0a1b2c3d", "abc")));
        assert_eq!(instance_and_group("0::/user.slice\n"), None);
    }
}
