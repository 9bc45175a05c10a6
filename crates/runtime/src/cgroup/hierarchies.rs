//! Which cgroup hierarchies a host has.

use std::path::PathBuf;
use wardian_sys::procfs;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Controllers as the mount names them: `cpu`, `cpu,cpuacct`, `name=systemd`; empty for v2.
    pub name: String,
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Hierarchy {
    /// Whether this v1 hierarchy has a controller.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.name.split(',').any(|name| name == controller)
    }
}

/// The cgroup hierarchies of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// The v1 hierarchies.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy.
    pub v2: Option<Hierarchy>,
}

impl Hierarchies {
    /// Finds the hierarchies in the text of a `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// The text is no mountinfo.
    pub fn parse(mountinfo: impl AsRef<[u8]>) -> Result<Self, procfs::Error> {
        let mut found = Self::default();
        for mount in procfs::mountinfo(mountinfo)? {
            match mount.fs_type.as_str() {
                "cgroup" => {
                    let known = |o: &&String| {
                        !matches!(o.as_str(), "rw" | "ro" | "xattr" | "clone_children" | "noprefix")
                    };
                    let name: Vec<String> = mount.super_options.iter().filter(known).cloned().collect();
                    let name = name.join(",");
                    if !found.v1.iter().any(|h| h.name == name) {
                        found.v1.push(Hierarchy { name, path: mount.mount_point });
                    }
                }
                "cgroup2" if found.v2.is_none() => {
                    found.v2 = Some(Hierarchy { name: String::new(), path: mount.mount_point });
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Whether the host has cgroup v2 only. On a hybrid host the v2 hierarchy has no controllers.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    /// The v1 hierarchy of a controller.
    pub(super) fn v1_of(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.has(controller))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.v1.iter().chain(&self.v2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn hierarchies_of_a_hybrid_host() {
        let text = "\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
22 27 0:21 / /proc rw,relatime - proc proc rw";
        let found = Hierarchies::parse(text).unwrap();
        let names: Vec<&str> = found.v1.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["cpu", "name=systemd"]);
        assert_eq!(found.v2.unwrap().path, Path::new("/sys/fs/cgroup/unified"));
    }
}
