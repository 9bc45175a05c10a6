//! Builds a root file system and its mounts from inside: what pid 1 of a container, or a pea, does before its program
//! runs.

use crate::child::{Outcome, Stop, failed};
use crate::mount_points::{self, INSIDE, Places};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use wardian_runtime::bundle::{self, Mount, Plan};
use wardian_sys::mount;

/// The device file systems, made by the keeper as host root because an unprivileged container may not make nodes.
#[derive(Debug)]
pub struct Devices {
    /// The tmpfs for /dev.
    pub dev: OwnedFd,
    /// A devpts instance of its own.
    pub pts: OwnedFd,
    /// The /dev/null of that tmpfs, opened before anything could be mounted over it: a bind mount may have it as its
    /// destination.
    null: OwnedFd,
    /// The files of [`own_files`], shown in the container and its peas.
    pub own: Option<OwnFiles>,
}

/// Files that a container may write but that are not in its root file system (hosts, resolv.conf), in a small tmpfs
/// of their own: its size is bounded, and none of the files lies in a directory of the host.
#[derive(Debug)]
pub struct OwnFiles {
    fs: OwnedFd,
    /// The path of each file in the container; the file's name in the tmpfs is its index.
    destinations: Vec<String>,
    /// A detached bind mount of each file, still to be attached; empty where the kernel cannot clone a file of a
    /// detached mount (before 6.15).
    shown: Vec<OwnedFd>,
}

/// Bytes that the container may add to its own files.
const OWN_ROOM: usize = 256 << 10;

/// Makes these files, owned by container root. `None` if `contents` is empty.
///
/// # Errors
/// The failed step, as text.
pub fn own_files(plan: &Plan, contents: &[(&str, Vec<u8>)]) -> Result<Option<OwnFiles>, String> {
    if contents.is_empty() {
        return Ok(None);
    }
    let size = OWN_ROOM + contents.iter().map(|(_, bytes)| bytes.len().next_multiple_of(4096)).sum::<usize>();
    let (size, inodes) = (size.to_string(), (contents.len() + 2).to_string());
    let options = [("mode", "755"), ("size", &*size), ("nr_inodes", &*inodes)];
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let fs = mount::fs_mount("tmpfs", &options, &[], attrs).map_err(|e| e.to_string())?;
    let owner = (rustix::fs::Uid::from_raw(plan.root_ids.0), rustix::fs::Gid::from_raw(plan.root_ids.1));
    for (index, (destination, bytes)) in contents.iter().enumerate() {
        let make = || -> std::io::Result<()> {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&fs, index.to_string(), flags, Mode::from_raw_mode(0o644))?;
            rustix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
            std::io::Write::write_all(&mut std::fs::File::from(file), bytes)
        };
        make().map_err(|error| format!("{destination}: {error}"))?;
    }
    let destinations = contents.iter().map(|(path, _)| (*path).to_owned()).collect();
    // The clones are kept, not made as a mere probe: dropping a mount that was never attached waits for an RCU grace
    // period.
    let shown = OwnFiles::show(&fs, contents.len()).unwrap_or_default();
    Ok(Some(OwnFiles { fs, destinations, shown }))
}

impl OwnFiles {
    /// Copies the files, with their present contents, into another tmpfs.
    fn copy(&self, plan: &Plan) -> Result<Option<Self>, String> {
        let mut contents = Vec::new();
        for (index, destination) in self.destinations.iter().enumerate() {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.fs, index.to_string(), flags, Mode::empty());
            let mut bytes = Vec::new();
            file.map_err(std::io::Error::from)
                .and_then(|file| std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes))
                .map_err(|error| format!("{destination}: {error}"))?;
            contents.push((destination.as_str(), bytes));
        }
        own_files(plan, &contents)
    }

    fn show(fs: &OwnedFd, count: usize) -> Result<Vec<OwnedFd>, mount::Error> {
        (0..count).map(|index| mount::open_tree_clone(fs, &index.to_string(), false)).collect()
    }

    /// Returns the files for a pea: shared, or a copy where the kernel cannot clone them.
    ///
    /// # Errors
    /// The failed step, as text.
    pub fn for_pea(&self, plan: &Plan) -> Result<Option<Self>, String> {
        let Ok(shown) = Self::show(&self.fs, self.destinations.len()) else { return self.copy(plan) };
        let fs = self.fs.try_clone().map_err(|error| error.to_string())?;
        Ok(Some(Self { fs, destinations: self.destinations.clone(), shown }))
    }

    /// Replaces the contents of the files, in their order.
    ///
    /// # Errors
    /// The failed step, as text.
    pub fn rewrite(&self, contents: &[Vec<u8>]) -> Result<(), String> {
        if contents.len() != self.destinations.len() {
            return Err(format!(
                "there are {} files of the container's own, not {}",
                self.destinations.len(),
                contents.len()
            ));
        }
        for (index, (destination, bytes)) in self.destinations.iter().zip(contents).enumerate() {
            let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
            rustix::fs::openat(&self.fs, index.to_string(), flags, Mode::empty())
                .map_err(std::io::Error::from)
                .and_then(|file| std::io::Write::write_all(&mut std::fs::File::from(file), bytes))
                .map_err(|error| format!("{destination}: {error}"))?;
        }
        Ok(())
    }

    /// Closes the descriptors of the mounts that a launch has attached.
    pub fn attached(&mut self) {
        self.shown.clear();
    }
}

/// What [`enter`] builds the mount tree from.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The plan of the mounts and masks.
    pub plan: &'a Plan,
    /// The root file system, a detached mount.
    pub rootfs: BorrowedFd<'a>,
    /// /dev, /dev/pts and the container's own files.
    pub devices: &'a Devices,
    /// Detached bind mounts with their destinations.
    pub binds: &'a [(String, OwnedFd)],
    /// The cgroup v1 hierarchies to be mounted.
    pub hierarchies: &'a [String],
    /// Their detached mounts, or none: then they are made here.
    pub v1_mounts: &'a [OwnedFd],
    /// The sysfs of the container's network namespace, a detached mount, unless it is made here.
    pub sysfs: Option<&'a OwnedFd>,
}

impl Parts<'_> {
    /// The descriptors that [`enter`] needs.
    pub fn numbers(&self) -> Vec<RawFd> {
        let devices = [&self.devices.dev, &self.devices.pts, &self.devices.null].into_iter();
        let own = self.devices.own.iter().flat_map(|own| std::iter::once(&own.fs).chain(&own.shown));
        let owned = devices.chain(own).chain(self.binds.iter().map(|(_, bind)| bind));
        let owned = owned.chain(self.v1_mounts).chain(self.sysfs);
        owned.map(AsRawFd::as_raw_fd).chain([self.rootfs.as_raw_fd()]).collect()
    }
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

/// Makes the file systems for /dev and /dev/pts, owned by container root.
///
/// # Errors
/// The failed step, as text.
pub fn devices(plan: &Plan, own: Option<OwnFiles>) -> Result<Devices, String> {
    let (uid, gid) = plan.root_ids;
    let (uid_text, gid_text) = (uid.to_string(), gid.to_string());
    fn say(what: &str) -> impl FnOnce(rustix::io::Errno) -> String + '_ {
        move |error| format!("/dev/{what}: {error}")
    }
    let owner = (Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)));
    let options = [("mode", "755"), ("size", "65536k"), ("uid", &*uid_text), ("gid", &*gid_text)];
    let attrs = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    let dev = mount::fs_mount("tmpfs", &options, &[], attrs).map_err(|e| e.to_string())?;
    let default = NODES.iter().map(|(name, major, minor)| (*name, false, *major, *minor, 0o666));
    let extra = plan.nodes.iter().map(|node| (&*node.name, node.block, node.major, node.minor, node.mode));
    for (name, block, major, minor, mode) in default.chain(extra) {
        let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::mknodat(&dev, name, kind, mode, device).map_err(say(name))?;
        rustix::fs::chmodat(&dev, name, mode, rustix::fs::AtFlags::empty()).map_err(say(name))?;
        rustix::fs::chownat(&dev, name, owner.0, owner.1, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
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
    // Gid 5 (tty) of the container: with Garden's mapping it is the host's gid 5 as well.
    let tty = plan.tty_gid.to_string();
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", &*tty), ("max", "1024")];
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = mount::fs_mount("devpts", &options, &["newinstance"], attrs).map_err(|e| e.to_string())?;
    for name in [".", "ptmx"] {
        rustix::fs::chownat(&pts, name, owner.0, owner.1, rustix::fs::AtFlags::empty()).map_err(say(name))?;
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let null = rustix::fs::openat(&dev, "null", flags, Mode::empty()).map_err(say("null"))?;
    Ok(Devices { dev, pts, null, own })
}

/// Attaches the mounts in the copy of the nursery and pivots to the new root. Runs as root of the container's user
/// namespace.
pub fn enter(parts: &Parts<'_>) -> Outcome<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed("make mounts private"))?;
    let stage = open_path("/r").map_err(failed("open /r"))?;
    let late = show_late(parts, &stage)?;
    let own: Vec<(&String, &OwnedFd)> = match &parts.devices.own {
        Some(own) => own.destinations.iter().zip(if late.is_empty() { &own.shown } else { &late }).collect(),
        None => Vec::new(),
    };
    mount::attach(parts.rootfs, &stage).map_err(failed("attach the root file system"))?;
    let root = open_path("/r").map_err(failed("open the root file system"))?;
    let mut binds = parts.binds.iter();
    let mut places = Places::default();
    places.own.push(mount_points::mount_id(&root).map_err(failed("look at the root file system"))?);
    let mut directories = Some(&parts.plan.directories);
    for step in &parts.plan.mounts {
        // Before the first mount of the request, which may show files of the host.
        if is_requested(step)
            && let Some(all) = directories.take()
        {
            make_directories(&root, all, &places)?;
        }
        if step.kind == "bind" {
            // The bind mounts of the request come first, then the container's own files.
            let bind = match binds.next() {
                Some((_, bind)) => bind,
                None => own
                    .iter()
                    .find_map(|(destination, file)| (**destination == step.destination).then_some(*file))
                    .ok_or_else(|| Stop::from("a bind mount is missing".to_owned()))?,
            };
            protect(step, bind.as_fd())?;
            attach_at(bind.as_fd(), &root, &step.destination, Some(&places))?;
            if mount_points::is_in_dev(&step.destination) {
                let id = mount_points::mount_id(bind);
                places.devices.push(id.map_err(failed(format!("look at {}", step.destination)))?);
            }
        } else {
            let made = make(step, parts)?;
            let mount = made.as_ref().map_or(made_ahead(step, parts), AsFd::as_fd);
            let look = |error| failed(format!("look at {}", step.destination))(error);
            let id = mount_points::mount_id(mount).map_err(look)?;
            match step.kind.as_str() {
                "proc" | "sysfs" | "cgroup" => {
                    places.kernels.push(rustix::fs::fstat(mount).map_err(look)?.st_dev);
                }
                "tmpfs" if !mount_points::is_in_dev(&step.destination) => places.own.push(id),
                _ => places.devices.push(id),
            }
            // A tmpfs of the request follows links of the image, and goes nowhere else than a bind mount.
            attach_at(mount, &root, &step.destination, is_requested(step).then_some(&places))?;
            if step.kind == "cgroup" {
                places.kernels.extend(cgroup_v1(step, parts, &root)?);
            }
        }
    }
    if let Some(all) = directories {
        make_directories(&root, all, &places)?;
    }
    for path in &parts.plan.masked {
        mask(&root, path, parts, &places.kernels)?;
    }
    rustix::process::fchdir(&root).map_err(failed("enter the root file system"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("let the old root go"))?;
    rustix::process::chdir("/").map_err(failed("chdir /"))?;
    if parts.plan.mounts.iter().any(|step| step.kind == "proc") {
        procfs_is_at_its_place()?;
    }
    if let Some(name) = &parts.plan.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(failed("set the host name"))?;
    }
    Ok(())
}

/// Whether a mount is not one of those that every container has.
fn is_requested(step: &Mount) -> bool {
    step.kind == "bind" || (step.kind == "tmpfs" && !matches!(&*step.destination, "/dev" | "/dev/shm"))
}

/// Makes the directories that the image names for data, where they are missing.
fn make_directories(root: &OwnedFd, all: &[String], places: &Places) -> Outcome<()> {
    all.iter().try_for_each(|path| {
        let found = mount_points::find(root, path, true, Some(places));
        found.map(drop).map_err(|stop| Stop::from(format!("the image's volume {path}: {}", stop.text)))
    })
}

/// Clones the container's own files where [`own_files`] could not: their tmpfs has to be attached first, which is
/// done below the root file system's mount point. That mount is unmounted with the old root.
fn show_late(parts: &Parts<'_>, stage: &OwnedFd) -> Outcome<Vec<OwnedFd>> {
    match &parts.devices.own {
        Some(own) if own.shown.is_empty() => {
            mount::attach(&own.fs, stage).map_err(failed("attach the container's own files"))?;
            OwnFiles::show(&own.fs, own.destinations.len()).map_err(failed("show the container's own files"))
        }
        _ => Ok(Vec::new()),
    }
}

/// Replaces standard input, output and error by the container's own null device: the keeper's are the host's.
pub fn no_stdio(parts: &Parts<'_>) -> Outcome<()> {
    (0..3).try_for_each(|target| crate::child::stdio(parts.devices.null.as_fd(), target))
}

fn open_path(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The mount of a step for which [`make`] has made none.
fn made_ahead<'a>(step: &Mount, parts: &'a Parts<'_>) -> BorrowedFd<'a> {
    match (step.kind.as_str(), parts.sysfs) {
        ("devpts", _) => parts.devices.pts.as_fd(),
        ("sysfs", Some(sysfs)) => sysfs.as_fd(),
        _ => parts.devices.dev.as_fd(),
    }
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

/// Applies the attributes that the bundle has for a bind mount, whichever it had before.
fn protect(step: &Mount, bind: BorrowedFd<'_>) -> Outcome<()> {
    if step.readonly {
        mount::set_readonly(bind, false).map_err(failed(format!("make {} read-only", step.destination)))?;
    }
    Ok(())
}

/// Creates a file system of the plan; `None` for /dev and /dev/pts, which the keeper has created, and for a sysfs that
/// the server has.
fn make(step: &Mount, parts: &Parts<'_>) -> Outcome<Option<OwnedFd>> {
    let data: Vec<(&str, &str)> = step.data.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let made = match step.kind.as_str() {
        "devpts" => return Ok(None),
        "tmpfs" if step.destination == "/dev" => return Ok(None),
        "sysfs" if parts.sysfs.is_some() => {
            let protect = |sysfs| mount::set_alone(sysfs, attributes(step));
            parts.sysfs.map_or(Ok(()), protect).map_err(failed(format!("protect {}", step.destination)))?;
            return Ok(None);
        }
        "cgroup" if parts.hierarchies.is_empty() => mount::fs_mount("cgroup2", &[], &[], attributes(step)),
        // The v1 hierarchies are read-only, the tmpfs that holds them is not (as recorded from the Go server).
        "cgroup" => {
            let writable = attributes(step) - MountAttrFlags::MOUNT_ATTR_RDONLY;
            // Container root may make directories in it, whose memory only these options bound.
            let bounds = [("mode", "755"), ("size", "64k"), ("nr_inodes", "64")];
            mount::fs_mount("tmpfs", &bounds, &[], writable)
        }
        kind => mount::fs_mount(kind, &data, &[], attributes(step)),
    };
    made.map(Some).map_err(failed(format!("mount {}", step.destination)))
}

/// Shows each v1 hierarchy below `/sys/fs/cgroup`, from the container's own cgroup down. Returns their device numbers.
fn cgroup_v1(step: &Mount, parts: &Parts<'_>, root: &OwnedFd) -> Outcome<Vec<u64>> {
    let mut devices = Vec::new();
    for (index, name) in parts.hierarchies.iter().enumerate() {
        let directory = name.strip_prefix("name=").unwrap_or(name);
        let target = format!("{}/{directory}", step.destination);
        let made;
        let hierarchy = match parts.v1_mounts.get(index) {
            Some(cloned) => cloned,
            None => {
                made = mount_v1(step, name).map_err(failed(format!("mount {target}")))?;
                &made
            }
        };
        mount::set_alone(hierarchy, attributes(step)).map_err(failed(format!("protect {target}")))?;
        devices.push(rustix::fs::fstat(hierarchy).map_err(failed(format!("look at {target}")))?.st_dev);
        attach_at(hierarchy.as_fd(), root, &target, None)?;
    }
    Ok(devices)
}

/// Mounts a v1 hierarchy in the cgroup namespace of this process, whose root is the container's own cgroup. For each
/// such mount the kernel walks all cgroups of the default hierarchy (`cgroup_lock_and_drain_offline` in
/// kernel/cgroup/cgroup.c), so a server hands over mounts that it has cloned.
fn mount_v1(step: &Mount, name: &str) -> Result<OwnedFd, mount::Error> {
    match name.strip_prefix("name=") {
        Some(named) => mount::fs_mount("cgroup", &[("name", named)], &["none"], attributes(step)),
        None => {
            let controllers: Vec<&str> = name.split(',').collect();
            mount::fs_mount("cgroup", &[], &controllers, attributes(step))
        }
    }
}

/// Files of procfs that a bind mount may cover, as in runc: statistics that programs such as lxcfs provide.
const OVER_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Attaches a mount at its destination. `places`: the mount is a bind mount, which may not cover a file system of the
/// kernel.
fn attach_at(
    mount: BorrowedFd<'_>,
    root: &OwnedFd,
    destination: &str,
    places: Option<&Places>,
) -> Outcome<()> {
    let directory = rustix::fs::fstat(mount)
        .map(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
        .map_err(failed(format!("look at the mount for {destination}")))?;
    // Bind mounts follow the image's own links, the kernel's file systems do not: with a /proc that is a link to
    // elsewhere the masks would have no effect.
    let target = mount_points::find(root, destination, directory, places)?;
    let stat = rustix::fs::fstat(&target).map_err(failed(format!("look at {destination}")))?;
    let top = rustix::fs::fstat(root).map_err(failed("look at the root file system"))?;
    if (stat.st_dev, stat.st_ino) == (top.st_dev, top.st_ino) {
        return Err(Stop::from(format!(
            "a mount over {destination} is not allowed: it is, or a link of the image leads to, the root of the container"
        )));
    }
    if (FileType::from_raw_mode(stat.st_mode) == FileType::Directory) != directory {
        return Err(Stop::from(bundle::misplaced(destination, directory)));
    }
    if let Some(places) = places {
        if places.kernels.contains(&stat.st_dev) && !OVER_PROC.contains(&destination) {
            return Err(mount_points::in_kernel(destination));
        }
        // Checked on the result, because a link may also lead on from a directory that was just made.
        let id = mount_points::mount_id(&target).map_err(failed(format!("look at {destination}")))?;
        if places.devices.contains(&id) && !mount_points::is_in_dev(destination) {
            return Err(mount_points::in_dev(destination));
        }
    }
    mount::attach(mount, &target).map_err(failed(format!("attach {destination}")))
}

/// Fails unless procfs is mounted at /proc, whatever was mounted after it: programs trust what they read there, and
/// write to it.
fn procfs_is_at_its_place() -> Outcome<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).map_err(failed("open /proc"))?;
    let stat = rustix::fs::fstatfs(&proc).map_err(failed("look at /proc"))?;
    if stat.f_type == rustix::fs::PROC_SUPER_MAGIC {
        Ok(())
    } else {
        Err(Stop::from("another file system than procfs is mounted at /proc".to_owned()))
    }
}

/// Hides a path of the kernel's file systems (devices `kernels`): a file behind /dev/null, a directory behind an
/// empty read-only tmpfs. A path that does not exist is skipped.
fn mask(root: &OwnedFd, path: &str, parts: &Parts<'_>, kernels: &[u64]) -> Outcome<()> {
    let target = match mount_points::open(root, path, OFlags::PATH, INSIDE) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.map_err(failed(format!("mask {path}")))?,
    };
    let stat = rustix::fs::fstat(&target).map_err(failed(format!("mask {path}")))?;
    // A mask somewhere else would leave the kernel's file visible.
    if !kernels.contains(&stat.st_dev) {
        return Err(Stop::from(format!("mask {path}: it does not lead to what the kernel shows there")));
    }
    let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        mount::fs_mount(
            "tmpfs",
            &[("size", "4k"), ("nr_inodes", "2")],
            &[],
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        )
    } else {
        mount::open_tree_clone(&parts.devices.null, "", false)
    };
    let cover = cover.map_err(failed(format!("mask {path}")))?;
    mount::attach(&cover, &target).map_err(failed(format!("mask {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::StatVfsMountFlags;

    #[test]
    fn a_bind_mount_is_read_only_if_its_bundle_says_so() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for readonly in [true, false] {
            let bind = mount::fs_mount("tmpfs", &[], &[], MountAttrFlags::empty()).unwrap();
            protect(&Mount { readonly, ..Mount::default() }, bind.as_fd()).unwrap();
            let flags = rustix::fs::fstatvfs(&bind).unwrap().f_flag;
            assert_eq!(flags.contains(StatVfsMountFlags::RDONLY), readonly);
        }
    }
}
