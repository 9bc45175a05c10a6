//! A root file system and its mounts, seen from inside: what pid 1 of a container or a pea does before its
//! program runs.

use crate::child::{Outcome, Stop, failed};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wardian_runtime::bundle::{Mount, Plan};
use wardian_sys::mount;

/// Made by the keeper as host root, because an unprivileged container may not make nodes.
#[derive(Debug)]
pub struct Devices {
    /// A tmpfs for /dev.
    pub dev: OwnedFd,
    /// A devpts of its own.
    pub pts: OwnedFd,
}

/// What is handed in.
#[derive(Debug)]
pub struct Parts<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// Detached.
    pub rootfs: BorrowedFd<'a>,
    /// /dev.
    pub devices: &'a Devices,
    /// Detached bind mounts with their destinations.
    pub binds: &'a [(String, OwnedFd)],
    /// v1 hierarchies.
    pub hierarchies: &'a [String],
}

/// `(name, major, minor)`: the nodes that the OCI spec requires.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Make /dev and /dev/pts, owned by container root.
///
/// # Errors
/// In words.
pub fn devices(plan: &Plan) -> Result<Devices, String> {
    let (uid, gid) = plan.root_ids;
    let (uid_text, gid_text) = (uid.to_string(), gid.to_string());
    fn say(what: &str) -> impl FnOnce(rustix::io::Errno) -> String + '_ {
        move |error| format!("/dev/{what}: {error}")
    }
    let owner = (Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)));
    let options = [("mode", "755"), ("size", "65536k"), ("uid", &*uid_text), ("gid", &*gid_text)];
    let attrs = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    let dev = mount::fs_mount("tmpfs", &options, &[], attrs).map_err(|e| e.to_string())?;
    let privileged_node = [("fuse", 10, 229)];
    let extra: &[_] = if plan.user { &[] } else { &privileged_node };
    for (name, major, minor) in NODES.iter().chain(extra) {
        let device = rustix::fs::makedev(*major, *minor);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(&dev, *name, FileType::CharacterDevice, mode, device).map_err(say(name))?;
        rustix::fs::chmodat(&dev, *name, mode, rustix::fs::AtFlags::empty()).map_err(say(name))?;
        rustix::fs::chownat(&dev, *name, owner.0, owner.1, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(say(name))?;
    }
    for (target, name) in LINKS {
        rustix::fs::symlinkat(target, &dev, name).map_err(say(name))?;
        rustix::fs::chownat(&dev, name, owner.0, owner.1, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(say(name))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).map_err(say(name))?;
        rustix::fs::chownat(&dev, name, owner.0, owner.1, rustix::fs::AtFlags::empty()).map_err(say(name))?;
    }
    // The container's gid 5: with Garden's mapping that is the host's 5 as well.
    let tty = plan.tty_gid.to_string();
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", &*tty), ("max", "1024")];
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = mount::fs_mount("devpts", &options, &["newinstance"], attrs).map_err(|e| e.to_string())?;
    for name in [".", "ptmx"] {
        rustix::fs::chownat(&pts, name, owner.0, owner.1, rustix::fs::AtFlags::empty()).map_err(say(name))?;
    }
    Ok(Devices { dev, pts })
}

/// From the nursery's copy to the new root. Runs as root of the container's user namespace.
pub fn enter(parts: &Parts<'_>) -> Outcome<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed("make mounts private"))?;
    let stage = open_path("/r").map_err(failed("open /r"))?;
    mount::attach(parts.rootfs, &stage).map_err(failed("attach the root file system"))?;
    let root = open_path("/r").map_err(failed("open the root file system"))?;
    let mut binds = parts.binds.iter();
    for step in &parts.plan.mounts {
        if step.kind == "bind" {
            let (_, bind) = binds.next().ok_or_else(|| Stop::from("a bind mount is missing".to_owned()))?;
            attach_at(bind.as_fd(), &root, &step.destination)?;
        } else {
            let made = make(step, parts)?;
            attach_at(made.as_ref().map_or(device(step, parts), AsFd::as_fd), &root, &step.destination)?;
            if step.kind == "cgroup" {
                cgroup_v1(step, parts, &root)?;
            }
        }
    }
    for path in &parts.plan.masked {
        mask(&root, path, parts)?;
    }
    rustix::process::fchdir(&root).map_err(failed("enter the root file system"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("let the old root go"))?;
    rustix::process::chdir("/").map_err(failed("chdir /"))?;
    if let Some(name) = &parts.plan.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(failed("set the host name"))?;
    }
    Ok(())
}

fn open_path(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn device<'a>(step: &Mount, parts: &'a Parts<'_>) -> BorrowedFd<'a> {
    if step.kind == "devpts" { parts.devices.pts.as_fd() } else { parts.devices.dev.as_fd() }
}

fn attributes(step: &Mount) -> MountAttrFlags {
    let mut attrs = MountAttrFlags::empty();
    for (set, flag) in [
        (step.readonly, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (step.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (step.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (step.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
    ] {
        if set {
            attrs |= flag;
        }
    }
    attrs
}

/// A file system that is made inside; `None` for /dev and /dev/pts, which the keeper has made.
fn make(step: &Mount, parts: &Parts<'_>) -> Outcome<Option<OwnedFd>> {
    let data: Vec<(&str, &str)> = step.data.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let made = match step.kind.as_str() {
        "devpts" => return Ok(None),
        "tmpfs" if step.destination == "/dev" => return Ok(None),
        "cgroup" if parts.hierarchies.is_empty() => mount::fs_mount("cgroup2", &[], &[], attributes(step)),
        // The hierarchies below are read-only, not the tmpfs that holds them (as recorded).
        "cgroup" => {
            let writable = attributes(step) - MountAttrFlags::MOUNT_ATTR_RDONLY;
            mount::fs_mount("tmpfs", &[("mode", "755")], &[], writable)
        }
        kind => mount::fs_mount(kind, &data, &[], attributes(step)),
    };
    made.map(Some).map_err(failed(format!("mount {}", step.destination)))
}

/// Each v1 hierarchy below `/sys/fs/cgroup`, showing the container's own part.
fn cgroup_v1(step: &Mount, parts: &Parts<'_>, root: &OwnedFd) -> Outcome<()> {
    for name in parts.hierarchies {
        let directory = name.strip_prefix("name=").unwrap_or(name);
        let target = format!("{}/{directory}", step.destination);
        let made = if let Some(named) = name.strip_prefix("name=") {
            mount::fs_mount("cgroup", &[("name", named)], &["none"], attributes(step))
        } else {
            let flags: Vec<&str> = name.split(',').collect();
            mount::fs_mount("cgroup", &[], &flags, attributes(step))
        };
        attach_at(made.map_err(failed(format!("mount {target}")))?.as_fd(), root, &target)?;
    }
    Ok(())
}

fn attach_at(mount: BorrowedFd<'_>, root: &OwnedFd, destination: &str) -> Outcome<()> {
    let directory = rustix::fs::fstat(mount)
        .map(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
        .map_err(failed(format!("look at the mount for {destination}")))?;
    let target = mount_point(root, destination, directory)?;
    mount::attach(mount, &target).map_err(failed(format!("attach {destination}")))
}

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Open a mount point below the root, made when missing. Symlinks of the image resolve inside it.
fn mount_point(root: &OwnedFd, path: &str, directory: bool) -> Outcome<OwnedFd> {
    let say = || format!("mount point {path}");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE) {
        Err(rustix::io::Errno::NOENT) => {}
        other => return other.map_err(failed(say())),
    }
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    let mut walked = String::from("/");
    for (index, part) in parts.iter().enumerate() {
        let parent = rustix::fs::openat2(root, &walked, flags | OFlags::DIRECTORY, Mode::empty(), INSIDE)
            .map_err(failed(say()))?;
        let made = if directory || index + 1 < parts.len() {
            rustix::fs::mkdirat(&parent, *part, Mode::from_raw_mode(0o755))
        } else {
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            rustix::fs::openat(&parent, *part, create, Mode::from_raw_mode(0o644)).map(drop)
        };
        match made {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed(say())(error)),
        }
        walked.push_str(part);
        walked.push('/');
    }
    rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE).map_err(failed(say()))
}

/// Hide a path: a file behind /dev/null, a directory behind an empty read-only tmpfs. What does not exist
/// needs no hiding.
fn mask(root: &OwnedFd, path: &str, parts: &Parts<'_>) -> Outcome<()> {
    let target = match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), INSIDE)
    {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.map_err(failed(format!("mask {path}")))?,
    };
    let stat = rustix::fs::fstat(&target).map_err(failed(format!("mask {path}")))?;
    let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        mount::fs_mount("tmpfs", &[("size", "0")], &[], MountAttrFlags::MOUNT_ATTR_RDONLY)
    } else {
        mount::open_tree_clone(&parts.devices.dev, "null", false)
    };
    let cover = cover.map_err(failed(format!("mask {path}")))?;
    mount::attach(&cover, &target).map_err(failed(format!("mask {path}")))
}
