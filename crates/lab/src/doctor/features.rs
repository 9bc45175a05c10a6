//! Kernel features, each determined by trying it and not from the kernel's version.

use super::cgroups::Cgroups;
use super::filesystem::FileSystem;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Serialize, Serializer};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use wardian_network::host::{self, Need};
use wardian_sys::bpf::{DeviceProgram, Insn, Reg};
use wardian_sys::layer_ns::LayerNamespace;
use wardian_sys::mount::{self, Overlay, UpperPair};
use wardian_sys::namespace::{self, IdMap};
use wardian_sys::{pressure, probe, procfs::MountInfo};

/// Result of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The feature works.
    Yes,
    /// The feature does not work.
    No,
    /// The feature could not be tried.
    Unknown,
}

impl From<bool> for State {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// A feature of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Name of the feature.
    #[serde(skip)]
    pub name: &'static str,
    /// Result of the trial.
    pub state: State,
    /// Whether containers cannot run without it.
    pub needed: bool,
    /// How it was determined, or what to do.
    pub detail: String,
}

/// All features, in the order of display; in JSON an object with their names as keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features(pub Vec<Feature>);

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|feature| (feature.name, feature)))
    }
}

/// Result of all trials.
#[derive(Debug, Default)]
pub struct Found {
    /// The features.
    pub features: Features,
    /// The store's file system has lost a write whose error has not been reported yet: no volatile overlay can be
    /// mounted.
    pub unseen_error: bool,
}

/// All features in the order of display, and whether containers need them.
const ALL: [(&str, bool); 23] = [
    ("mount_api", true),
    ("overlay", true),
    ("overlay_volatile", true),
    ("overlay_detached_layers", false),
    ("idmapped_mounts", false),
    ("overlay_idmapped_layers", false),
    ("user_namespaces", false),
    ("pidfd", true),
    ("openat2", true),
    ("clone_into_cgroup", false),
    ("cgroup_kill", false),
    ("device_rules", true),
    ("erofs", false),
    ("reflink", false),
    ("fs_verity", false),
    // Without these two servers start with --network none.
    ("network_links", false),
    ("firewall", false),
    ("bandwidth_limits", false),
    ("connection_deletes", false),
    ("seccomp", true),
    ("apparmor", false),
    ("tracefs", false),
    ("psi", false),
];

impl Found {
    fn add(&mut self, name: &'static str, state: State, detail: impl Into<String>) {
        let needed = ALL.contains(&(name, true));
        self.features.0.push(Feature { name, state, needed, detail: detail.into() });
    }

    /// Adds the features that were not tried, because they depend on a missing one.
    fn complete(mut self) -> Self {
        for (name, _) in ALL {
            if !self.features.0.iter().any(|feature| feature.name == name) {
                self.add(name, State::Unknown, "not tried: something that it needs is missing");
            }
        }
        self.features.0.sort_by_key(|feature| ALL.iter().position(|(name, _)| *name == feature.name));
        self
    }

    fn said(&mut self, name: &'static str, yes: bool, detail: impl Into<String>) {
        self.add(name, yes.into(), detail);
    }

    fn failed(&mut self, name: &'static str, error: Errno, what: impl std::fmt::Display) {
        let denied = matches!(error, Errno::PERM | Errno::ACCESS);
        let (state, detail) = match (denied, rustix::process::geteuid().is_root()) {
            (true, false) => (State::Unknown, "only root can try".to_owned()),
            (true, true) => (State::No, format!("{what}: not permitted, a capability is missing")),
            // These errors say nothing about the kernel.
            (false, _) if matches!(error, Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO) => {
                (State::Unknown, format!("{what}: {error}"))
            }
            (false, _) => (State::No, format!("{what}: {error}")),
        };
        self.add(name, state, detail);
    }
}

/// Tries all features. Directories are made in the store's directory and removed afterwards; mounts are never
/// attached.
pub fn probe(fs: &FileSystem, cgroups: &Cgroups, mounts: &[MountInfo]) -> Found {
    let mut found = Found::default();
    mount_api(&mut found, fs);
    let user = namespace::user(&[], &[]);
    overlays(&mut found, fs);
    match user {
        Ok(_) => found.said("user_namespaces", true, user_limit()),
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            let hint = match errno {
                Errno::NOSPC => "the limit is reached: sysctl user.max_user_namespaces",
                Errno::PERM | Errno::ACCESS => {
                    "forbidden: sysctl kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
                }
                _ => "not in this kernel",
            };
            // An operation that is denied to other users may be allowed to root.
            let root = rustix::process::geteuid().is_root();
            let denied = matches!(errno, Errno::PERM | Errno::ACCESS);
            let state = if denied && !root { State::Unknown } else { State::No };
            found.add("user_namespaces", state, format!("{hint} ({errno})"));
        }
    }
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
    match pidfd {
        Ok(_) => found.said("pidfd", true, ""),
        Err(error) => found.failed("pidfd", error, "pidfd_open"),
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Ok(_) => found.said("openat2", true, ""),
        Err(error) => found.failed("openat2", error, "openat2"),
    }
    groups(&mut found, cgroups);
    device_rules(&mut found, cgroups);
    match mount::has_filesystem("erofs") {
        Ok(yes) => found.said("erofs", yes, if yes { "" } else { "not in this kernel" }),
        Err(error) => found.failed("erofs", error.errno(), "fsopen"),
    }
    files(&mut found, &fs.looked_at);
    network(&mut found);
    security(&mut found);
    recorder(&mut found, mounts);
    found.complete()
}

fn user_limit() -> String {
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    format!("at most {}", limit.trim())
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn mount_api(found: &mut Found, fs: &FileSystem) {
    let tried = open_dir(&fs.looked_at)
        .map_err(|source| mount::Error::OpenTree { path: String::new(), source })
        .and_then(|dir| mount::open_tree_clone(&dir, "", false))
        .and_then(|clone| mount::set_readonly(&clone, false));
    match tried {
        Ok(()) => found.said("mount_api", true, "open_tree and mount_setattr"),
        Err(error) => found.failed("mount_api", error.errno(), error),
    }
}

/// Mounts overlays over one empty layer, like a container's, on the store's file system. They are volatile: the
/// unmount of any other would sync the whole file system.
fn overlays(found: &mut Found, fs: &FileSystem) {
    let detached = match mount::overlay_takes_detached_layers() {
        Ok(detached) => detached,
        Err(error) if error.errno() == Errno::NODEV => {
            found.said("overlay", false, "not in this kernel, or its module is missing: modprobe overlay");
            return;
        }
        Err(error) => {
            found.failed("overlay", error.errno(), error);
            return;
        }
    };
    let why = if detached { "" } else { "layers are attached in a private mount namespace instead" };
    let detached_layers = (detached, why);
    let place = match Place::make(&fs.looked_at, detached) {
        Ok(place) => place,
        Err(error) => {
            let detail = format!("in the kernel; not tried on {}: {error}", fs.looked_at.display());
            found.add("overlay", State::Unknown, detail);
            found.said("overlay_detached_layers", detached_layers.0, detached_layers.1);
            return;
        }
    };
    let on = fs.looked_at.display().to_string();
    match place.overlay("plain", None) {
        Ok(()) => {
            found.said("overlay", true, format!("mounted over a directory of {on}"));
            found.said("overlay_volatile", true, "");
        }
        // `ovl_fill_super`: "Cannot mount volatile when upperdir has an unseen error".
        Err(mount::Error::Create { source: Errno::IO, .. }) => {
            found.unseen_error = true;
            found.said("overlay", true, "in the kernel");
            found.add(
                "overlay_volatile",
                State::Unknown,
                "refused: a write was lost and nobody has asked yet",
            );
        }
        Err(error @ mount::Error::Option { .. }) if error.to_string().contains("volatile") => {
            found.said("overlay", true, "in the kernel");
            found.said("overlay_volatile", false, error.to_string());
        }
        Err(error) => found.failed("overlay", error.errno(), format!("not on {on}: {error}")),
    }
    found.said("overlay_detached_layers", detached_layers.0, detached_layers.1);
    idmapped(found, &place);
}

/// Tests what unprivileged containers need: layers that are idmapped to their ids.
fn idmapped(found: &mut Found, place: &Place) {
    // Any id range will do.
    let map = [IdMap { inside: 0, outside: 100_000, size: 65_536 }];
    let user = match namespace::user(&map, &map) {
        Ok(user) => user,
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            found.failed("idmapped_mounts", errno, "make a user namespace");
            return;
        }
    };
    let mapped = open_dir(&place.path())
        .map_err(|source| mount::Error::OpenTree { path: String::new(), source })
        .and_then(|dir| mount::open_tree_clone(&dir, "", false))
        .and_then(|clone| mount::set_idmap_readonly(&clone, &user));
    if let Err(error) = mapped {
        let what = format!("this file system cannot: {error}");
        found.failed("idmapped_mounts", error.errno(), what);
        return;
    }
    found.said("idmapped_mounts", true, "");
    match place.overlay("idmapped", Some(&user)) {
        Ok(()) => found.said("overlay_idmapped_layers", true, ""),
        Err(mount::Error::Create { source: Errno::IO, .. }) => {
            found.add("overlay_idmapped_layers", State::Unknown, "not tried: a write was lost");
        }
        Err(error) => found.failed("overlay_idmapped_layers", error.errno(), error),
    }
}

/// A directory on the store's file system in which overlays are mounted. Removed when dropped.
struct Place {
    dir: tempfile::TempDir,
    /// Set on kernels whose overlay refuses detached layers.
    namespace: Option<LayerNamespace>,
}

impl Place {
    fn make(on: &Path, detached: bool) -> anyhow::Result<Self> {
        let dir = crate::ground::dir_in(on, ".wardian-doctor-")?;
        let namespace = if detached { None } else { Some(LayerNamespace::start()?) };
        Ok(Self { dir, namespace })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Mounts an overlay and drops it.
    fn overlay(&self, name: &str, user: Option<&OwnedFd>) -> Result<(), mount::Error> {
        let dir = self.dir.path().join(name);
        let failed = |source: std::io::Error| mount::Error::Pair {
            name: "upper",
            source: Errno::from_io_error(&source).unwrap_or(Errno::IO),
        };
        for part in ["upper", "work", "lower"] {
            std::fs::create_dir_all(dir.join(part)).map_err(failed)?;
        }
        let lower = open_dir(&dir.join("lower")).map_err(|error| failed(error.into()))?;
        let lower = mount::open_tree_clone(&lower, "", false)?;
        if let Some(user) = user {
            mount::set_idmap_readonly(&lower, user)?;
        }
        let pair = open_dir(&dir).map_err(|error| failed(error.into()))?;
        let pair = UpperPair::open(&pair)?;
        match &self.namespace {
            None => Overlay::new(vec![lower.as_fd()], &pair).mount().map(drop),
            Some(namespace) => {
                let layer = namespace.attach(lower.as_fd())?;
                namespace.overlay(&[&layer], &pair, true).map(drop)
            }
        }
    }
}

/// A cgroup that was created because the process's own has no child to look at.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Tests the features of cgroup v2, in the cgroup of this process.
fn groups(found: &mut Found, cgroups: &Cgroups) {
    let Some(top) = &cgroups.unified else {
        for name in ["clone_into_cgroup", "cgroup_kill"] {
            found.said(name, false, "no cgroup v2 is mounted");
        }
        return;
    };
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let own = top.join(own);
    let cloned = File::open(&own).and_then(probe::clone_into_cgroup);
    match cloned.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
        Ok(()) => found.said("clone_into_cgroup", true, ""),
        Err(error) => found.failed("clone_into_cgroup", error, "clone3"),
    }
    // The root cgroup has no such file.
    let children = std::fs::read_dir(&own).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut groups = std::iter::once(own.clone()).chain(children.filter(|path| path.is_dir()));
    let yes = match groups.find(|group| group != top) {
        Some(group) => Ok(group.join("cgroup.kill").exists()),
        None => {
            let group = own.join(format!("wardian-doctor-{}", std::process::id()));
            std::fs::create_dir(&group).map(|()| Group(group).0.join("cgroup.kill").exists())
        }
    };
    match yes {
        Ok(yes) => found.said("cgroup_kill", yes, if yes { "" } else { "not in this kernel" }),
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            found.failed("cgroup_kill", errno, "make a cgroup to look");
        }
    }
}

/// Tests what can enforce device rules: a program on version 2 where version 1 does not. The program of the test
/// allows nothing, and is attached to nothing.
fn device_rules(found: &mut Found, cgroups: &Cgroups) {
    let name = "device_rules";
    if cgroups.v1.iter().any(|controller| controller == "devices") {
        found.said(name, true, "by the devices controller of cgroup v1");
    } else if cgroups.unified.is_none() {
        found.said(name, false, "neither the devices controller of cgroup v1 nor cgroup v2 is mounted");
    } else {
        match DeviceProgram::load("wardian_doctor", &[Insn::mov(Reg::R0, 0), Insn::exit()]) {
            Ok(_) => found.said(name, true, "by a program on cgroup v2"),
            Err(error) => found.failed(name, error.errno(), error),
        }
    }
}

/// Tests features of the store's file system, with files that have no name.
fn files(found: &mut Found, dir: &Path) {
    let file = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)
    };
    let pair = file().and_then(|a| Ok((a, file()?)));
    let (from, to) = match pair {
        Ok(pair) => pair,
        Err(error) => {
            for name in ["reflink", "fs_verity"] {
                found.add(name, State::Unknown, format!("no file can be made in {}: {error}", dir.display()));
            }
            return;
        }
    };
    let written = rustix::io::pwrite(&from, &[0x5a; 4096], 0);
    match written.and_then(|_| rustix::fs::ioctl_ficlone(&to, &from)) {
        Ok(()) => found.said("reflink", true, ""),
        Err(error @ (Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL)) => {
            found.said("reflink", false, format!("not on this file system ({error})"));
        }
        Err(error) => found.add("reflink", State::Unknown, error.to_string()),
    }
    match probe::has_verity(&from) {
        Ok(true) => found.said("fs_verity", true, ""),
        Ok(false) => found.said("fs_verity", false, "not on this file system, or switched off"),
        Err(error) => found.add("fs_verity", State::Unknown, error.to_string()),
    }
}

/// Tries links and a firewall in a network namespace that is made for it.
fn network(found: &mut Found) {
    let tried = match host::try_kernel() {
        Ok(tried) => tried,
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            for name in ["network_links", "firewall", "bandwidth_limits", "connection_deletes"] {
                found.failed(name, errno, "a network namespace");
            }
            return;
        }
    };
    for (need, failure) in tried {
        let (name, works) = match need {
            Need::Links => ("network_links", "a bridge and a veth pair"),
            Need::Firewall => ("firewall", "nf_tables, and the program nft"),
            Need::Bandwidth => ("bandwidth_limits", "tbf, ifb, mirred"),
            Need::Conntrack => ("connection_deletes", "nf_conntrack_netlink"),
        };
        found.said(name, failure.is_none(), failure.as_deref().unwrap_or(works));
    }
}

fn security(found: &mut Found) {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    found.said("seccomp", actions.is_ok(), if actions.is_ok() { "" } else { "not in this kernel" });
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let enabled = enabled.trim() == "Y";
    found.said("apparmor", enabled, if enabled { "" } else { "not in this kernel, or switched off" });
}

/// Tests the interfaces that `wardian lab record` uses.
fn recorder(found: &mut Found, mounts: &[MountInfo]) {
    match mounts.iter().find(|mount| mount.fs_type == "tracefs") {
        Some(mount) => {
            let point = &mount.mount_point;
            let events = match std::fs::metadata(point.join("events/writeback")) {
                Ok(_) => Some(true),
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => None,
                Err(_) => Some(false),
            };
            let at = point.display();
            match events {
                Some(true) => found.said("tracefs", true, format!("{at}, with the events of writeback")),
                Some(false) => found.said("tracefs", false, format!("{at}, without the events of writeback")),
                None => found.add("tracefs", State::Unknown, format!("{at}: only root can look")),
            }
        }
        // A recorder mounts tracefs by itself.
        None => match mount::has_filesystem("tracefs") {
            Ok(true) => found.said("tracefs", true, "mounted by nobody yet"),
            Ok(false) => found.said("tracefs", false, "not in this kernel"),
            Err(error) => found.add("tracefs", State::Unknown, error.to_string()),
        },
    }
    match pressure::io() {
        Ok(Some(_)) => found.said("psi", true, ""),
        Ok(None) => {
            found.said("psi", false, "not in this kernel, or switched off: psi=1 on its command line");
        }
        Err(error) => found.add("psi", State::Unknown, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_names() {
        let mut found = Found::default();
        found.said("overlay", true, "tried");
        found.failed("erofs", Errno::NOSYS, "fsopen");
        found.failed("overlay_volatile", Errno::NOSPC, "a full disk");
        let json = serde_json::to_value(&found.features).unwrap();
        assert_eq!(json["overlay"], serde_json::json!({"state": "yes", "needed": true, "detail": "tried"}));
        assert_eq!((&json["erofs"]["state"], &json["erofs"]["needed"]), (&"no".into(), &false.into()));
        assert_eq!(json["overlay_volatile"]["state"], "unknown");
        let names: Vec<_> = found.complete().features.0.iter().map(|feature| feature.name).collect();
        assert_eq!(names, ALL.map(|(name, _)| name));
    }
}
