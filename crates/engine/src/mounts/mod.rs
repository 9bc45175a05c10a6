//! What is mounted in a container or a pea besides the file systems of every one: files and directories of the host,
//! named volumes, and file systems in memory.

mod error;

pub use error::Error;

use crate::shared::Shared;
use crate::spec::{BindMount, ContainerSpec};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use wardian_runtime::bundle::{Extra, misplaced};
use wardian_runtime::cgroup::devices::{Devices, Type};
use wardian_store::Owner;
use wardian_sys::namespace::IdMap;
use wardian_sys::{mount, procfs};

/// The size of a tmpfs that has none of its own, as docker documents it; at most half of the container's memory.
const TMPFS_BYTES: u64 = 64 << 20;

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// A file or directory of the host; `idmap`: with the ids of the container.
    Host { path: PathBuf, idmap: bool },
    /// A named volume, which is made at its first use.
    Volume(String),
    /// A file system in memory.
    Memory { bytes: u64, mode: u32, exec: bool },
}

/// Something to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    source: Source,
    destination: PathBuf,
    writable: bool,
    /// How the client has asked for it, for errors.
    given: String,
    /// Whether the client is told what it should know besides errors.
    advise: bool,
}

/// What a container or a pea gets of a [`Mount`].
#[derive(Debug)]
pub struct Opened {
    /// For the bundle.
    pub extra: Extra,
    /// The detached mount, unless it is made inside.
    pub mount: Option<OwnedFd>,
    /// What the client should know.
    pub advice: Option<String>,
    /// How the launch's failure because of it is told.
    pub misplaced: Misplaced,
}

/// How an error that a mount does not fit its destination is told.
#[derive(Debug)]
pub struct Misplaced {
    given: String,
    source_name: String,
    destination: PathBuf,
    directory: bool,
}

/// Whose the mounts are.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// Who the container's root is on the host; `None`: its root.
    pub owner: Option<&'a Owner<'a>>,
    /// The mapping of its ids.
    pub maps: &'a [IdMap],
    /// Bytes of memory that the container may use; zero: no limit.
    pub memory: u64,
}

/// Returns what a container asks for.
pub fn of_container(spec: &ContainerSpec) -> Vec<Mount> {
    let flags = spec.by_flags;
    let binds = spec.bind_mounts.iter().map(|bind| Mount::of_host(bind, flags));
    let options = |writable: bool, idmap: bool| match (writable, idmap) {
        (true, false) => "",
        (false, false) => ":ro",
        (true, true) => ":idmap",
        (false, true) => ":idmap,ro",
    };
    let volumes = spec.volumes.iter().map(|volume| {
        let place = volume.destination.display();
        let given = format!("-v {}:{place}{}", volume.name, options(volume.writable, false));
        let source = Source::Volume(volume.name.clone());
        Mount {
            source,
            destination: volume.destination.clone(),
            writable: volume.writable,
            given,
            advise: flags,
        }
    });
    let tmpfs = spec.tmpfs.iter().map(|tmpfs| Mount {
        source: Source::Memory { bytes: tmpfs.bytes, mode: tmpfs.mode, exec: tmpfs.exec },
        destination: tmpfs.destination.clone(),
        writable: true,
        given: format!("--tmpfs {}", tmpfs.destination.display()),
        advise: flags,
    });
    let mut all: Vec<Mount> = binds.chain(volumes).chain(tmpfs).collect();
    if flags {
        for (mount, bind) in all.iter_mut().zip(&spec.bind_mounts) {
            let (source, place) = (bind.source.display(), bind.destination.display());
            mount.given = format!("-v {source}:{place}{}", options(bind.writable, bind.idmap));
        }
    }
    from_above(&all)
}

/// Returns what a pea asks for.
pub fn of_pea(binds: &[BindMount]) -> Vec<Mount> {
    from_above(&binds.iter().map(|bind| Mount::of_host(bind, false)).collect::<Vec<_>>())
}

/// Returns the mounts in the order in which they are mounted: a mount above another one comes before it,
/// since it would hide the other. All others stay in the client's order, also those on the same destination,
/// of which the last one is visible.
fn from_above(mounts: &[Mount]) -> Vec<Mount> {
    let mut ordered: Vec<Mount> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let is_below = |other: &Mount| {
            other.destination != mount.destination && other.destination.starts_with(&mount.destination)
        };
        let place = ordered.iter().position(is_below).unwrap_or(ordered.len());
        ordered.insert(place, mount.clone());
    }
    ordered
}

impl Mount {
    fn of_host(bind: &BindMount, advise: bool) -> Self {
        Self {
            source: Source::Host { path: bind.source.clone(), idmap: bind.idmap },
            destination: bind.destination.clone(),
            writable: bind.writable,
            given: format!("bind mount: {}", bind.source.display()),
            advise,
        }
    }

    /// Opens what is mounted, and makes a detached mount of it.
    ///
    /// # Errors
    /// [`crate::Error::Mount`], which says how the client has asked for it.
    pub fn open(&self, shared: &Shared, of: Of<'_>) -> crate::Result<Opened> {
        self.opened(shared, of).map_err(|error| self.failed(error))
    }

    fn failed(&self, source: Error) -> crate::Error {
        crate::Error::Mount { given: self.given.clone(), source: Box::new(source) }
    }

    fn opened(&self, shared: &Shared, of: Of<'_>) -> Result<Opened, Error> {
        if !self.destination.is_absolute() {
            return Err(Error::Relative);
        }
        if !matches!(self.source, Source::Host { .. }) && is_kernels(&self.destination) {
            return Err(Error::Place(self.destination.clone()));
        }
        let destination = self.destination.to_string_lossy().into_owned();
        let bind = |source: &Path| Extra::Bind {
            source: source.to_string_lossy().into_owned(),
            destination: destination.clone(),
            writable: self.writable,
        };
        let misplaced = |source_name: String, directory| Misplaced {
            given: self.given.clone(),
            source_name,
            destination: self.destination.clone(),
            directory,
        };
        match &self.source {
            Source::Host { path, idmap } => {
                let (mount, stat) = self.of_path(path, *idmap, of)?;
                let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let advice = if self.advise && self.writable {
                    self.advice(path, *idmap, &mount, &stat, of)
                } else {
                    None
                };
                let misplaced = misplaced(path.display().to_string(), directory);
                Ok(Opened { extra: bind(path), mount: Some(mount), advice, misplaced })
            }
            Source::Volume(name) => {
                let data = shared.volume(name).map_err(Box::new)?;
                let mount = mount::open_tree_clone(&data, "", false)?;
                mount::set_private(&mount)?;
                self.protect(&mount)?;
                match of.owner {
                    Some(owner) => {
                        let path = shared.store.volume_path(name);
                        inert(&mount, &path, owner)?;
                    }
                    None => {
                        mount::set_nodev(&mount)?;
                        mount::set_nosuid(&mount)?;
                    }
                }
                let extra = bind(&shared.store.volume_path(name));
                Ok(Opened {
                    extra,
                    mount: Some(mount),
                    advice: None,
                    misplaced: misplaced(name.clone(), true),
                })
            }
            Source::Memory { bytes, mode, exec } => {
                let bytes = if *bytes > 0 { *bytes } else { tmpfs_bytes(of.memory) };
                let extra = Extra::Tmpfs { destination, bytes, mode: *mode, exec: *exec };
                Ok(Opened { extra, mount: None, advice: None, misplaced: misplaced("it".to_owned(), true) })
            }
        }
    }

    fn protect(&self, mount: &OwnedFd) -> Result<(), mount::Error> {
        if self.writable { Ok(()) } else { mount::set_readonly(mount, false) }
    }

    /// Clones the mount of a path of the host. Device nodes below a directory have no effect (`nodev`). A device node
    /// that is itself the source works, if the container may open the device; the device rules of its cgroup apply as to
    /// any other node.
    fn of_path(&self, path: &Path, idmap: bool, of: Of<'_>) -> Result<(OwnedFd, Stat), Error> {
        if !path.is_absolute() {
            return Err(Error::Relative);
        }
        let text = path.to_string_lossy();
        let clone = match mount::open_tree_clone(rustix::fs::CWD, &text, false) {
            Err(error) if error.errno() == Errno::NOENT => return Err(Error::Missing(path.to_owned())),
            clone => clone?,
        };
        // Without it a mount that a privileged container makes below would appear on the host, and the host's in it.
        mount::set_private(&clone)?;
        self.protect(&clone)?;
        let stat =
            rustix::fs::fstat(&clone).map_err(|source| Error::Look { path: path.to_owned(), source })?;
        let node = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mount::set_nodev(&clone)?;
                None
            }
            FileType::CharacterDevice => Some(("character", Type::Char)),
            FileType::BlockDevice => Some(("block", Type::Block)),
            _ => None,
        };
        if let Some((word, kind)) = node {
            let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            if idmap || !Devices::from(of.owner.is_none()).may_open(kind, major, minor) {
                return Err(Error::Device { word, major, minor });
            }
        }
        if idmap {
            let owner = of.owner.ok_or(Error::Privileged)?;
            inert(&clone, path, owner)?;
        }
        Ok((clone, stat))
    }

    /// What whoever asks for a writable mount of the host should know: that the container's root cannot write, or that
    /// others could run what it leaves there.
    fn advice(&self, path: &Path, idmap: bool, mount: &OwnedFd, stat: &Stat, of: Of<'_>) -> Option<String> {
        let given = &self.given;
        let owner = of.owner?;
        if idmap {
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            return (is_directory && is_reached_by_others(path)).then(|| {
                format!(
                    "{given}: users of the host can reach {path}, and could run set-uid programs that the container leaves \
                     there as root of the host: keep it below a directory of mode 0700",
                    path = path.display()
                )
            });
        }
        if may_write(stat, of.maps, owner.uid) || has_acl(mount) {
            return None;
        }
        let whose = match stat.st_uid {
            0 => "root of the host".to_owned(),
            uid => format!("the host's user {uid}"),
        };
        let mode = stat.st_mode & 0o7777;
        Some(format!(
            "{given}: the container's root may not write there (owned by {whose}, mode {mode:04o}): use {given}:idmap"
        ))
    }
}

impl Misplaced {
    /// Tells a failed launch in the client's words, if this is its cause.
    pub fn explain(&self, said: &str) -> Option<crate::Error> {
        let Self { given, source_name, destination, directory } = self;
        said.contains(&misplaced(&destination.to_string_lossy(), *directory)).then(|| {
            let source = Error::Kind {
                source_name: source_name.clone(),
                destination: destination.clone(),
                directory: *directory,
            };
            crate::Error::Mount { given: given.clone(), source: Box::new(source) }
        })
    }
}

/// Makes a detached mount one with the container's ids, in which set-uid programs and device nodes have no effect.
fn inert(mount: &OwnedFd, path: &Path, owner: &Owner<'_>) -> Result<(), Error> {
    mount::set_idmap_inert(mount, owner.userns).map_err(|error| match error.errno() {
        Errno::NOSYS => Error::NoIdmaps,
        Errno::INVAL => Error::NoIdmap { path: path.to_owned(), fs: file_system(path), root: owner.uid },
        Errno::PERM => Error::Idmapped(path.to_owned()),
        _ => error.into(),
    })
}

/// Returns the name of a path's file system, for an error.
fn file_system(path: &Path) -> String {
    let find = || {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let id = rustix::fs::statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?.stx_mnt_id;
        let mounts = procfs::mountinfo(std::fs::read("/proc/self/mountinfo").ok()?).ok()?;
        Some(mounts.into_iter().find(|mount| mount.id == id)?.fs_type)
    };
    find().unwrap_or_else(|| "a file system".to_owned())
}

/// Whether the destination itself is the root, /dev, or in a file system of the kernel. Where links of the image lead is
/// looked at inside.
fn is_kernels(destination: &Path) -> bool {
    let mut plain = PathBuf::new();
    for part in destination.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    plain.as_os_str().is_empty()
        || plain == Path::new("dev")
        || plain.starts_with("proc")
        || plain.starts_with("sys")
}

fn tmpfs_bytes(memory: u64) -> u64 {
    if memory > 0 { TMPFS_BYTES.min((memory / 2).max(4096)) } else { TMPFS_BYTES }
}

/// Whether root of an unprivileged container may write to a file of the host: root has CAP_DAC_OVERRIDE over files whose
/// owner and group are both mapped (`capable_wrt_inode_uidgid` in kernel/capability.c), and is a user like others for
/// all other files.
fn may_write(stat: &Stat, maps: &[IdMap], root: u32) -> bool {
    let mapped = |id: u32| maps.iter().any(|map| id.checked_sub(map.outside).is_some_and(|at| at < map.size));
    let bit = if stat.st_uid == root {
        0o200
    } else if stat.st_gid == root {
        0o020
    } else {
        0o002
    };
    mapped(stat.st_uid) && mapped(stat.st_gid) || stat.st_mode & bit != 0
}

/// Whether a file has an access control list (acl(5)), which may grant more than its mode tells.
fn has_acl(file: &OwnedFd) -> bool {
    // The descriptor is one of O_PATH, of which there are no attributes.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let empty: &mut [u8] = &mut [];
    rustix::fs::getxattr(path, c"system.posix_acl_access", empty).is_ok()
}

/// Whether every user of the host may search the directory and all those above it, and run set-uid programs in it.
fn is_reached_by_others(path: &Path) -> bool {
    let is_open = |path: &Path| rustix::fs::stat(path).is_ok_and(|stat| stat.st_mode & 0o001 != 0);
    let is_inert = rustix::fs::statvfs(path).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOSUID));
    // The way by which the kernel sees it, since the path may contain links.
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    !is_inert && real.ancestors().all(is_open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_is_mounted_before() {
        let order = |destinations: &[&str]| -> Vec<String> {
            let bind = |(n, destination): (usize, &&str)| BindMount {
                source: format!("{n}").into(),
                destination: destination.into(),
                ..BindMount::default()
            };
            let binds: Vec<_> = destinations.iter().enumerate().map(bind).collect();
            of_pea(&binds).into_iter().map(|mount| mount.given.replace("bind mount: ", "")).collect()
        };
        assert_eq!(order(&["/x/y", "/x"]), ["1", "0"]);
        assert_eq!(order(&["/x/y/z", "/a", "/x/y/", "/b", "//x"]), ["4", "2", "0", "1", "3"]);
        // Unrelated destinations stay in their order, and so do equal ones.
        assert_eq!(order(&["/b/c", "/a", "/bc", "/b/c", "/b/cd"]), ["0", "1", "2", "3", "4"]);
        assert_eq!(order(&["/x", "/x/y", "/x"]), ["0", "2", "1"]);
    }

    #[test]
    fn all_kinds_are_ordered_together_and_named_as_they_were_given() {
        use crate::spec::{Tmpfs, VolumeMount};
        let bind = |source: &str, destination: &str, writable, idmap| BindMount {
            source: source.into(),
            destination: destination.into(),
            writable,
            idmap,
        };
        let spec = ContainerSpec {
            bind_mounts: vec![bind("/s", "/a/b/c", false, true), bind("/t", "/z", true, false)],
            volumes: vec![VolumeMount { name: "v".into(), destination: "/a".into(), writable: false }],
            tmpfs: vec![Tmpfs { destination: "/a/b".into(), ..Tmpfs::default() }],
            by_flags: true,
            ..ContainerSpec::default()
        };
        let given: Vec<_> = of_container(&spec).into_iter().map(|mount| mount.given).collect();
        assert_eq!(given, ["-v v:/a:ro", "--tmpfs /a/b", "-v /s:/a/b/c:idmap,ro", "-v /t:/z"]);
        let spec = ContainerSpec { by_flags: false, ..spec };
        assert!(of_container(&spec).iter().any(|mount| mount.given == "bind mount: /t" && !mount.advise));
    }

    #[test]
    fn the_kernels_places_are_found_by_whatever_name() {
        for path in ["/", "//", "/x/..", "/dev", "/dev/", "/x/../dev/.", "/proc", "/proc/self", "/../sys/fs"]
        {
            assert!(is_kernels(Path::new(path)), "{path}");
        }
        for path in ["/x", "/dev/shm", "/processes", "/data/proc", "/proc/../x"] {
            assert!(!is_kernels(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn who_may_write() {
        let common = [
            IdMap { inside: 0, outside: u32::MAX - 1, size: 1 },
            IdMap { inside: 1, outside: 1, size: u32::MAX - 2 },
        ];
        let range = [IdMap { inside: 0, outside: 100_000, size: 65_536 }];
        let dir = tempfile::tempdir().unwrap();
        let any = rustix::fs::stat(dir.path()).unwrap();
        let may = |uid, gid, mode, maps: &[IdMap]| {
            let mut stat = any;
            (stat.st_uid, stat.st_gid, stat.st_mode) = (uid, gid, mode);
            may_write(&stat, maps, maps[0].outside)
        };
        for (uid, gid, mode, may_common, may_range) in [
            (0, 0, 0o755, false, false),
            (0, 0, 0o777, true, true),
            (1000, 1000, 0o700, true, false),
            (1000, 0, 0o770, false, false),
            (u32::MAX - 1, 0, 0o755, true, false),
            (0, u32::MAX - 1, 0o775, true, false),
            (100_000, 100_000, 0o000, true, true),
            (100_001, 165_535, 0o000, true, true),
            (165_536, 165_535, 0o000, true, false),
        ] {
            assert_eq!(may(uid, gid, mode, &common), may_common, "{uid} {gid} {mode:o}");
            assert_eq!(may(uid, gid, mode, &range), may_range, "{uid} {gid} {mode:o}");
        }
    }

    #[test]
    fn a_tmpfs_has_a_size() {
        assert_eq!(tmpfs_bytes(0), 64 << 20);
        assert_eq!(tmpfs_bytes(1 << 30), 64 << 20);
        assert_eq!(tmpfs_bytes(32 << 20), 16 << 20);
        assert_eq!(tmpfs_bytes(1), 4096);
    }
}
