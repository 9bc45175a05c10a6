//! A root file system with its bundle and bind mounts: what a container and a pea are launched from.

use crate::error::Whose;
use crate::spec::{BindMount, Limits};
use crate::{Error, Result, Shared};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;
use wardian_runtime::bundle::{self, Settings};
use wardian_runtime::cgroup;
use wardian_runtime::cgroup::devices::{Devices, Type};
use wardian_runtime::wire::{Boxed, Placement};
use wardian_store::RootfsSpec;
use wardian_sys::{memfd, mount};

/// What the keeper gets besides the pair of namespaces.
pub struct Parts {
    pub boxed: Boxed<OwnedFd>,
    pub place: Placement<OwnedFd>,
}

impl From<Limits> for cgroup::Limits {
    fn from(limits: Limits) -> Self {
        Self { memory_bytes: limits.memory_bytes, cpu_shares: limits.cpu_shares, pids: limits.pids }
    }
}

/// Returns the bind mounts of a container's hosts and resolv.conf, which its peas share.
pub fn network_files(dir: &Path) -> [BindMount; 2] {
    ["hosts", "resolv.conf"].map(|name| BindMount {
        source: dir.join(name),
        destination: Path::new("/etc").join(name),
        writable: true,
    })
}

/// Returns the size of /dev/shm. Its contents are memory: with a memory limit the cgroup charges them, and
/// the OOM killer cannot free them. So a sixteenth of the limit is left over, in which a process can still be
/// started to delete files there. Without a limit the server's bound applies.
pub fn shm_bytes(server: u64, memory: u64) -> u64 {
    if memory > 0 && server > 0 { (memory - memory / 16).max(4096) } else { server }
}

/// Prepares a root file system with its bundle and bind mounts, for a container or a pea. `files` are the
/// container's hosts and resolv.conf; with true their contents are handed over, otherwise the keeper has them
/// already.
#[allow(clippy::too_many_arguments)]
pub fn assemble(
    shared: &Shared,
    (rootfs_id, whose): (&str, Whose),
    spec: &RootfsSpec<'_>,
    mut settings: Settings,
    binds: &[BindMount],
    (files, give): (&[BindMount], bool),
    v1_mounts: Vec<OwnedFd>,
    place: Placement<OwnedFd>,
    config_path: &Path,
) -> Result<Parts> {
    let step = Error::system("bundle");
    let text = |p: &Path| p.to_string_lossy().into_owned();
    let binds = &from_above(binds);
    let mut clones = Vec::new();
    for bind in binds {
        clones.push((text(&bind.destination), clone_bind(bind, settings.privileged.into())?));
    }
    let mut contents = Vec::new();
    for file in files.iter().filter(|_| give) {
        contents.push((text(&file.destination), std::fs::File::open(&file.source).map_err(step)?.into()));
    }
    for bind in binds.iter().chain(files) {
        settings.binds.push((text(&bind.source), text(&bind.destination), bind.writable));
    }
    let rootfs = shared.store.create_rootfs(rootfs_id, spec);
    let rootfs = rootfs.map_err(Error::writable("root file system", whose))?;
    settings.rootfs = rootfs.dir.to_string_lossy().into_owned();
    let config = bundle::text(&settings);
    std::fs::write(config_path, &config).map_err(step)?;
    let config = memfd::sealed("config.json", config.as_bytes(), 0o400).map_err(|e| step(e.into()))?;
    let boxed = Boxed {
        config,
        rootfs: rootfs.mount,
        binds: clones,
        files: contents,
        v1_hierarchies: shared.cgroups.v1_names(),
        v1_mounts,
    };
    Ok(Parts { boxed, place })
}

/// Returns the bind mounts in the order in which they are mounted: a mount above another one comes before it,
/// since it would hide the other. All others stay in the client's order, also those on the same destination,
/// of which the last one is visible.
fn from_above(binds: &[BindMount]) -> Vec<BindMount> {
    let mut ordered: Vec<BindMount> = Vec::with_capacity(binds.len());
    for bind in binds {
        let is_below = |other: &BindMount| {
            other.destination != bind.destination && other.destination.starts_with(&bind.destination)
        };
        let place = ordered.iter().position(is_below).unwrap_or(ordered.len());
        ordered.insert(place, bind.clone());
    }
    ordered
}

/// Clones the mount of a bind source. Device nodes below a directory have no effect (`nodev`). A device node
/// that is itself the source works, if the container may open the device; the device rules of its cgroup
/// apply as to any other node.
fn clone_bind(bind: &BindMount, devices: Devices) -> Result<OwnedFd> {
    let name = bind.source.display().to_string();
    let fail = |e: mount::Error| Error::BindMount { path: name.clone(), source: e.into() };
    if !bind.source.is_absolute() || !bind.destination.is_absolute() {
        return Err(Error::Invalid(format!("bind mount {name}: both paths must be absolute")));
    }
    let clone = match mount::open_tree_clone(rustix::fs::CWD, &name, false) {
        Err(error) if error.errno() == Errno::NOENT => {
            return Err(Error::Invalid(format!("bind mount: {name}: the source does not exist")));
        }
        clone => clone.map_err(fail)?,
    };
    // Without it a mount that a privileged container makes below would appear on the host, and the host's in it.
    mount::set_private(&clone).map_err(fail)?;
    if !bind.writable {
        mount::set_readonly(&clone, false).map_err(fail)?;
    }
    let stat =
        rustix::fs::fstat(&clone).map_err(|e| Error::BindMount { path: name.clone(), source: e.into() })?;
    let node = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mount::set_nodev(&clone).map_err(fail)?;
            None
        }
        FileType::CharacterDevice => Some(("character", Type::Char)),
        FileType::BlockDevice => Some(("block", Type::Block)),
        _ => None,
    };
    if let Some((word, kind)) = node {
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        if !devices.may_open(kind, major, minor) {
            let message = format!(
                "bind mount {name}: the container may not open the {word} device {major}:{minor} that it is"
            );
            return Err(Error::Invalid(message));
        }
    }
    Ok(clone)
}

#[cfg(test)]
mod tests {
    use super::{from_above, shm_bytes};
    use crate::spec::BindMount;

    #[test]
    fn what_is_above_is_mounted_before() {
        let order = |destinations: &[&str]| -> Vec<String> {
            let bind = |(n, destination): (usize, &&str)| BindMount {
                source: format!("{n}").into(),
                destination: destination.into(),
                writable: false,
            };
            let binds: Vec<_> = destinations.iter().enumerate().map(bind).collect();
            from_above(&binds).iter().map(|bind| bind.source.display().to_string()).collect()
        };
        assert_eq!(order(&["/x/y", "/x"]), ["1", "0"]);
        assert_eq!(order(&["/x/y/z", "/a", "/x/y/", "/b", "//x"]), ["4", "2", "0", "1", "3"]);
        // Unrelated destinations stay in their order, and so do equal ones.
        assert_eq!(order(&["/b/c", "/a", "/bc", "/b/c", "/b/cd"]), ["0", "1", "2", "3", "4"]);
        assert_eq!(order(&["/x", "/x/y", "/x"]), ["0", "2", "1"]);
    }

    #[test]
    fn shared_memory_is_bounded_by_the_limit_or_by_the_server() {
        assert_eq!(shm_bytes(64 << 20, 0), 64 << 20);
        assert_eq!(shm_bytes(64 << 20, 1 << 30), 15 << 26);
        assert_eq!(shm_bytes(64 << 20, 1), 4096);
        assert_eq!(shm_bytes(0, 0), 0);
        assert_eq!(shm_bytes(0, 1 << 20), 0);
    }
}
