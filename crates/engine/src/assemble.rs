//! A root file system with its bundle and bind mounts: what a container and a pea are launched from.

use crate::error::Whose;
use crate::mounts::{Misplaced, Mount, Of};
use crate::spec::{BindMount, Limits};
use crate::{Error, Result, Shared};
use std::os::fd::OwnedFd;
use std::path::Path;
use wardian_runtime::bundle::{self, Extra, Settings};
use wardian_runtime::cgroup;
use wardian_runtime::wire::{Boxed, Placement};
use wardian_store::RootfsSpec;
use wardian_sys::memfd;
use wardian_sys::namespace::IdMap;

/// What the keeper gets besides the pair of namespaces.
pub struct Parts {
    pub boxed: Boxed<OwnedFd>,
    pub place: Placement<OwnedFd>,
    /// What the client should know of its mounts.
    pub advice: Vec<String>,
    /// How failures of the mounts are told.
    pub misplaced: Vec<Misplaced>,
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
        idmap: false,
    })
}

/// Returns the size of /dev/shm. Its contents are memory: with a memory limit the cgroup charges them, and
/// the OOM killer cannot free them. So a sixteenth of the limit is left over, in which a process can still be
/// started to delete files there. Without a limit the server's bound applies.
pub fn shm_bytes(server: u64, memory: u64) -> u64 {
    if memory > 0 && server > 0 { (memory - memory / 16).max(4096) } else { server }
}

/// Prepares a root file system with its bundle and mounts, for a container or a pea with these ids. `files` are the
/// container's hosts and resolv.conf; with true their contents are handed over, otherwise the keeper has them
/// already.
#[allow(clippy::too_many_arguments)]
pub fn assemble(
    shared: &Shared,
    (rootfs_id, whose): (&str, Whose),
    spec: &RootfsSpec<'_>,
    mut settings: Settings,
    (mounts, maps): (&[Mount], &[IdMap]),
    (files, give): (&[BindMount], bool),
    v1_mounts: Vec<OwnedFd>,
    place: Placement<OwnedFd>,
    config_path: &Path,
) -> Result<Parts> {
    let step = Error::system("bundle");
    let text = |p: &Path| p.to_string_lossy().into_owned();
    let (mut clones, mut advice, mut misplaced) = (Vec::new(), Vec::new(), Vec::new());
    let of = Of { owner: spec.owner.as_ref(), maps, memory: settings.memory_bytes };
    for mount in mounts {
        let opened = mount.open(shared, of)?;
        if let (Extra::Bind { destination, .. }, Some(clone)) = (&opened.extra, opened.mount) {
            clones.push((destination.clone(), clone));
        }
        settings.extra.push(opened.extra);
        advice.extend(opened.advice);
        misplaced.push(opened.misplaced);
    }
    let mut contents = Vec::new();
    for file in files.iter().filter(|_| give) {
        contents.push((text(&file.destination), std::fs::File::open(&file.source).map_err(step)?.into()));
    }
    settings.extra.extend(files.iter().map(|file| Extra::Bind {
        source: text(&file.source),
        destination: text(&file.destination),
        writable: file.writable,
    }));
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
    Ok(Parts { boxed, place, advice, misplaced })
}

#[cfg(test)]
mod tests {
    use super::shm_bytes;

    #[test]
    fn shared_memory_is_bounded_by_the_limit_or_by_the_server() {
        assert_eq!(shm_bytes(64 << 20, 0), 64 << 20);
        assert_eq!(shm_bytes(64 << 20, 1 << 30), 15 << 26);
        assert_eq!(shm_bytes(64 << 20, 1), 4096);
        assert_eq!(shm_bytes(0, 0), 0);
        assert_eq!(shm_bytes(0, 1 << 20), 0);
    }
}
