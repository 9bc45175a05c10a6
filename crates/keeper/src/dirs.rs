//! Creates directories for a user inside a container: a working directory, the destination of a tar.
//!
//! Every component of the path is under the container's control, and may be renamed or replaced by a link at any
//! moment. So the path is walked by descriptors, and a new directory is created as its user (`setfsuid(2)`): there is
//! no chown that could be redirected to another file.

use crate::child::{self, Outcome, Stop, failed};
use crate::users::User;
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use wardian_sys::directory::names_of;

/// The kernel's own limit (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// The uid that stands for ids which a user namespace does not map (user_namespaces(7),
/// /proc/sys/kernel/overflowuid); the same for groups.
const NOBODY: u32 = 65534;
/// More than a path can name: reached only if another process keeps removing the new directories.
const MAX_MADE: u32 = 4096;

/// Makes a directory and its missing parents, the new ones owned by the user, with mode 0755.
///
/// The walk is tried with the user's own rights first. Where these do not suffice it is repeated with root's, as in
/// Garden, but then the user must not control any component: only what [`Trust::ROOT`] allows is followed. Returns
/// the directory if root made it: the user may lack the right to reach it by its path.
pub fn make(path: &Path, owner: &User) -> Outcome<Option<OwnedFd>> {
    match rustix::fs::stat(path) {
        Ok(_) => return Ok(None),
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR) => return Err(not_a_directory(path)),
        Err(error) => return Err(failed(path.display())(error)),
    }
    let say = |blocked: Blocked| {
        let why = blocked.errno.map_or(blocked.text, |errno| errno.to_string());
        Stop::from(format!("mkdir {}: {why}", path.display()))
    };
    if owner.uid != 0 {
        child::file_ids(owner.uid, owner.gid, false)?;
        let made = walk(CWD, path, Trust::ROOT, &mkdir, &|_| Ok(()));
        child::file_ids(0, 0, false)?;
        match made {
            Err(Blocked { errno: Some(Errno::ACCESS | Errno::PERM), .. }) => {}
            other => return other.map(|_| None).map_err(say),
        }
    }
    let made = Cell::new(false);
    let missing = |parent: &OwnedFd, name: &OsStr| {
        child::file_ids(owner.uid, owner.gid, true)
            .map_err(|stop| Blocked { errno: None, text: stop.text })?;
        let result = rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755));
        child::file_ids(0, 0, false).map_err(|stop| Blocked { errno: None, text: stop.text })?;
        made.set(result.is_ok());
        if result == Err(Errno::EXIST) { Ok(()) } else { result.map_err(blocked(name)) }
    };
    let follow = |turn: &Turn<'_>| {
        made.set(false);
        if owner.uid == 0 || turn.trusted { Ok(()) } else { Err(blocked("its way")(Errno::ACCESS)) }
    };
    let found = walk(CWD, path, Trust::ROOT, &missing, &follow).map_err(say)?.dir;
    let stat = rustix::fs::fstat(&found).map_err(failed(path.display()))?;
    Ok((owner.uid != 0 && made.get() && stat.st_uid == owner.uid).then_some(found))
}

/// Error that names the first component of a path that is not a directory.
fn not_a_directory(path: &Path) -> Stop {
    let is_other = |above: &&Path| {
        rustix::fs::stat(*above)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
    };
    match path.ancestors().skip(1).find(is_other) {
        Some(above) => Stop::from(format!("{}: {} is not a directory", path.display(), above.display())),
        None => failed(path.display())(Errno::NOTDIR),
    }
}

fn mkdir(parent: &OwnedFd, name: &OsStr) -> Result<(), Blocked> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        // Another process has created it meanwhile.
        Err(Errno::EXIST) => Ok(()),
        other => other.map_err(blocked(name)),
    }
}

/// Why a walk stops.
#[derive(Debug)]
pub struct Blocked {
    errno: Option<Errno>,
    /// The error text.
    pub text: String,
}

impl Blocked {
    /// Error for a name that the kernel refused.
    pub fn by(name: &OsStr, errno: Errno) -> Self {
        blocked(name)(errno)
    }

    /// Whether the path itself is at fault: it does not lead to a directory, or only to one that cannot be reached.
    /// Any other error is a failure of the walk.
    pub fn is_of_the_way(&self) -> bool {
        matches!(self.errno, None | Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS))
    }

    /// Error of this code's own rules, without an errno.
    pub fn because(text: &str) -> Self {
        Self { errno: None, text: text.to_owned() }
    }
}

fn blocked(name: impl AsRef<OsStr>) -> impl FnOnce(Errno) -> Blocked {
    move |errno| {
        let text = format!("{}: {errno}", name.as_ref().to_string_lossy());
        Blocked { errno: Some(errno), text }
    }
}

/// Whose links and directories a walk on behalf of a user may follow: the user's own and root's.
///
/// The owner of a symlink does not tell who placed it: whoever may write to two directories can rename root's link
/// from one to the other, and so choose which of root's links stands where a name is looked up. So a link is trusted
/// only if no other user may write to its directory, nor to any directory above it on the walk, in which its
/// directory could have been exchanged.
///
/// The sticky bit keeps root's files from being renamed or removed, but not from being moved in from a directory
/// without that bit. So a link in a sticky directory is not trusted. A directory in one is, if others may not write
/// to it: moving a directory to another parent changes its `..` and so needs write permission for the directory
/// itself.
#[derive(Debug, Clone, Copy)]
pub struct Trust {
    /// The user's uid.
    pub uid: u32,
    /// The user's gid: with many a umask the group may write to the user's directories. Group 0 is no user's own
    /// group: every user that the container's passwd does not list has it.
    pub gid: u32,
}

impl Trust {
    /// Trust in root alone.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };

    /// Whether the owner is the user or root. In a user namespace all ids of the host that it does not map look like
    /// [`NOBODY`]; for a directory of that owner [`Step::owned`] checks further.
    pub fn owns(self, stat: &Stat) -> bool {
        stat.st_uid == 0 || stat.st_uid == self.uid
    }

    /// Like [`Trust::owns`], for a directory, also where the owner's id is [`NOBODY`].
    fn owns_directory(self, dir: &OwnedFd, stat: &Stat) -> bool {
        self.owns(stat) && (stat.st_uid != NOBODY || is_own(dir))
    }

    /// Whether nobody but the owners (the user and root) can create, rename or remove entries in this directory.
    fn writes_alone(self, dir: &OwnedFd, stat: &Stat) -> bool {
        if stat.st_mode & 0o002 != 0 {
            return false;
        }
        let groups = [0, NOBODY];
        let own_group = self.uid != 0 && !groups.contains(&self.gid) && stat.st_gid == self.gid;
        stat.st_mode & 0o020 == 0 || own_group && has_no_acl(dir)
    }
}

/// Whether this process owns a directory, by the host's ids: the kernel allows `O_NOATIME` to the owner alone
/// (open(2)). False for a directory that cannot be read.
fn is_own(dir: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::empty()).is_ok()
}

/// Whether the group permission bits of a directory apply to its group alone. With an access control list they are a
/// mask for all users and groups in the list (acl(5)). False for a directory that cannot be read.
fn has_no_acl(dir: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::openat(dir, ".", flags, Mode::empty()) else { return false };
    let list = rustix::fs::fgetxattr(&dir, "system.posix_acl_access", &mut [0_u8; 0][..]);
    matches!(list, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

/// A directory on a walk.
struct Step {
    dir: OwnedFd,
    stat: Stat,
    /// See [`Trust::owns_directory`].
    owned: bool,
    /// See [`Trust::writes_alone`].
    alone: bool,
}

impl Step {
    fn new(dir: OwnedFd, stat: Stat, trust: Trust) -> Self {
        let owned = trust.owns_directory(&dir, &stat);
        let alone = owned && trust.writes_alone(&dir, &stat);
        Self { dir, stat, owned, alone }
    }

    /// Whether nobody else can have moved this directory to where it is in `above`.
    fn is_placed_in(&self, above: &Self) -> bool {
        let sticky = above.owned && above.stat.st_mode & libc::S_ISVTX != 0;
        above.alone || sticky && self.alone
    }
}

/// A component of a walk that is not a plain directory name: a symlink, or `..`.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The link's stat and target; `None` for `..`.
    pub link: Option<(&'a Stat, &'a OsStr)>,
    /// Whether only those in the walk's [`Trust`] can have determined where it leads.
    pub trusted: bool,
}

/// Called for a directory that is missing in another one.
pub type Missing<'a> = &'a dyn Fn(&OwnedFd, &OsStr) -> Result<(), Blocked>;
/// Decides whether a turn is followed.
pub type Follow<'a> = &'a dyn Fn(&Turn<'_>) -> Result<(), Blocked>;

/// The directory at the end of a walk.
#[derive(Debug)]
pub struct Place {
    /// The directory (`O_PATH`).
    pub dir: OwnedFd,
    /// Whether a link in it can be trusted, provided that its owner is trusted.
    pub alone: bool,
}

/// Opens the directory at `path`, relative to `start` (an absolute path starts at the root), component by component,
/// so that every link on the way is judged before it is followed, also links that other links lead to. A link's owner
/// and target are read through one descriptor: what is judged is what is followed, even if it is renamed meanwhile.
pub fn walk(
    start: impl AsFd,
    path: &Path,
    trust: Trust,
    missing: Missing<'_>,
    follow: Follow<'_>,
) -> Result<Place, Blocked> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = |at: BorrowedFd<'_>, name: &str| {
        let dir = rustix::fs::openat(at, name, flags | OFlags::DIRECTORY, Mode::empty());
        let dir = dir.map_err(blocked(name))?;
        let stat = rustix::fs::fstat(&dir).map_err(blocked(name))?;
        Ok(Step::new(dir, stat, trust))
    };
    let mut here = directory(start.as_fd(), if path.is_absolute() { "/" } else { "." })?;
    let mut placed = true;
    let mut todo: VecDeque<OsString> = names_of(path).collect();
    let (mut links, mut made) = (0, 0);
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            let above = directory(here.dir.as_fd(), "..")?;
            // Whoever may write to a directory and to its parent can move it to another parent.
            let stays = here.alone || above.alone;
            follow(&Turn { link: None, trusted: here.owned && stays })?;
            here = above;
            continue;
        }
        let found = match rustix::fs::openat(&here.dir, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                made += 1;
                if made > MAX_MADE {
                    return Err(blocked(&name)(Errno::LOOP));
                }
                missing(&here.dir, &name)?;
                todo.push_front(name);
                continue;
            }
            other => other.map_err(blocked(&name))?,
        };
        let found_stat = rustix::fs::fstat(&found).map_err(blocked(&name))?;
        match FileType::from_raw_mode(found_stat.st_mode) {
            FileType::Directory => {
                let next = Step::new(found, found_stat, trust);
                placed &= next.is_placed_in(&here);
                here = next;
            }
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(blocked(&name)(Errno::LOOP));
                }
                // The target as text, also of a magic link of /proc, which would lead to an object instead.
                let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(blocked(&name))?;
                let target = OsString::from_vec(target.into_bytes());
                let alone = placed && here.alone;
                follow(&Turn {
                    link: Some((&found_stat, &target)),
                    trusted: alone && trust.owns(&found_stat),
                })?;
                if Path::new(&target).is_absolute() {
                    here = directory(here.dir.as_fd(), "/")?;
                }
                for part in names_of(Path::new(&target)).rev() {
                    todo.push_front(part);
                }
            }
            _ => return Err(blocked(&name)(Errno::NOTDIR)),
        }
    }
    Ok(Place { alone: placed && here.alone, dir: here.dir })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use wardian_needs::needs;

    fn alice() -> User {
        User { uid: 1001, gid: 1010, groups: vec![], home: "/".into() }
    }

    /// A directory that only root may write to, with a directory of the user's in it.
    fn place(name: &str) -> tempfile::TempDir {
        let dir = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(dir.path().join("hers")).unwrap();
        chown(dir.path().join("hers"), Some(1001), Some(1010)).unwrap();
        dir
    }

    fn owner(path: &Path) -> (u32, u32) {
        let stat = std::fs::metadata(path).unwrap();
        (stat.uid(), stat.gid())
    }

    #[test]
    fn new_directories_belong_to_the_user_and_old_ones_stay() {
        needs!(Root);
        let dir = place("dirs-new");
        for path in ["hers/a/b", "roots/c", "hers/a/../d"] {
            assert!(make(&dir.path().join(path), &alice()).is_ok(), "{path}");
            assert_eq!(owner(&dir.path().join(path)), (1001, 1010), "{path}");
        }
        assert_eq!(owner(dir.path()), (0, 0));
        assert_eq!(owner(&dir.path().join("roots")), (1001, 1010));
        // Files that the thread makes afterwards belong to root again.
        std::fs::write(dir.path().join("after"), "").unwrap();
        assert_eq!(owner(&dir.path().join("after")), (0, 0));
    }

    #[test]
    fn a_users_link_does_not_lead_root() {
        needs!(Root);
        let dir = place("dirs-link");
        let (roots, hers) = (dir.path().join("roots"), dir.path().join("hers"));
        std::fs::create_dir(&roots).unwrap();
        symlink(&roots, hers.join("link")).unwrap();
        std::os::unix::fs::lchown(hers.join("link"), Some(1001), Some(1010)).unwrap();
        assert!(make(&hers.join("link/x"), &alice()).is_err());
        assert!(!roots.join("x").exists());
        // A link of root's is followed, and the user's own link leads to where the user may write.
        symlink(&roots, dir.path().join("link")).unwrap();
        assert!(make(&dir.path().join("link/y"), &alice()).is_ok() && roots.join("y").exists());
        symlink("../hers", hers.join("self")).unwrap();
        std::os::unix::fs::lchown(hers.join("self"), Some(1001), Some(1010)).unwrap();
        assert!(make(&hers.join("self/z"), &alice()).is_ok() && hers.join("z").exists());
    }

    #[test]
    fn what_a_user_may_not_enter_is_not_reached_by_his_link() {
        needs!(Root);
        let dir = place("dirs-closed");
        let (closed, hers) = (dir.path().join("closed"), dir.path().join("hers"));
        std::fs::create_dir_all(closed.join("open")).unwrap();
        std::fs::set_permissions(closed.join("open"), PermissionsExt::from_mode(0o777)).unwrap();
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
        symlink(closed.join("open/new"), hers.join("up")).unwrap();
        std::os::unix::fs::lchown(hers.join("up"), Some(1001), Some(1010)).unwrap();
        assert!(make(&hers.join("up"), &alice()).is_err());
        // Neither is `..` out of a directory that she may move.
        std::fs::create_dir(hers.join("app")).unwrap();
        chown(hers.join("app"), Some(1001), Some(1010)).unwrap();
        assert!(make(&hers.join("app/../../new"), &alice()).is_err());
        assert!(!closed.join("open/new").exists() && !dir.path().join("new").exists());
        // A directory that the request itself names is made, and can be entered by the returned descriptor.
        let made = make(&closed.join("named"), &alice());
        assert!(made.is_ok_and(|made| made.is_some()) && owner(&closed.join("named")) == (1001, 1010));
    }

    /// Runs `act` with the file access rights of the user.
    fn by_alice<T>(act: impl FnOnce() -> std::io::Result<T>) -> T {
        child::file_ids(1001, 1010, false).unwrap();
        let done = act();
        child::file_ids(0, 0, false).unwrap();
        done.unwrap()
    }

    fn new_dir(path: &Path, owner: (u32, u32), mode: u32) {
        std::fs::create_dir(path).unwrap();
        chown(path, Some(owner.0), Some(owner.1)).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    /// Whoever may write to a directory can rename root's entries in it to any other directory that he may write to.
    #[test]
    fn a_link_of_roots_that_a_user_has_moved_does_not_lead_root() {
        needs!(Root);
        let dir = place("dirs-moved");
        let at = |name: &str| dir.path().join(name);
        for (name, mode) in [("roots", 0o755), ("open", 0o777), ("sticky", 0o1777), ("hers/closed", 0o755)] {
            new_dir(&at(name), (0, 0), mode);
        }
        for name in ["open/l", "hers/closed/l"] {
            symlink(at("roots"), at(name)).unwrap();
        }
        for (from, to) in [("open/l", "hers/l"), ("hers/l", "sticky/l"), ("hers/closed", "hers/swapped")] {
            by_alice(|| std::fs::rename(at(from), at(to)));
            let through = if to == "hers/swapped" { "hers/swapped/l/x" } else { &format!("{to}/x") };
            assert!(make(&at(through), &alice()).is_err(), "{through}");
        }
        // Neither does `..` out of a directory that she has moved.
        new_dir(&at("open/d"), (0, 0), 0o777);
        by_alice(|| std::fs::rename(at("open/d"), at("sticky/d")));
        assert!(make(&at("sticky/d/../../x"), &alice()).is_err());
        assert!(!at("x").exists() && !at("roots/x").exists());
    }

    #[test]
    fn a_link_is_trusted_where_no_other_user_may_put_one() {
        needs!(Root);
        let dir = place("dirs-trust");
        let (root, user, numbered) =
            (Trust::ROOT, Trust { uid: 1001, gid: 1010 }, Trust { uid: 1001, gid: 0 });
        let nothing = |_: &OwnedFd, name: &OsStr| Err(blocked(name)(Errno::NOENT));
        for (n, (owner, mode, [by_root, by_user, by_numbered])) in [
            ((0, 0), 0o755, [true, true, true]),
            ((0, 0), 0o2755, [true, true, true]),
            ((0, 0), 0o775, [false, false, false]),
            ((0, 0), 0o777, [false, false, false]),
            ((0, 0), 0o1777, [false, false, false]),
            ((0, 1010), 0o775, [false, true, false]),
            ((0, 50), 0o2775, [false, false, false]),
            ((1001, 1010), 0o755, [false, true, true]),
            ((1001, 1010), 0o775, [false, true, false]),
            ((1001, 1010), 0o700, [false, true, true]),
            ((1002, 1010), 0o755, [false, false, false]),
            ((1001, 0), 0o775, [false, false, false]),
        ]
        .into_iter()
        .enumerate()
        {
            let outer = dir.path().join(format!("{n}"));
            let inner = outer.join("in");
            new_dir(&outer, owner, mode);
            new_dir(&inner, (0, 0), 0o755);
            for place in [&outer, &inner] {
                symlink("/", place.join("l")).unwrap();
            }
            for (trust, wanted) in [(root, by_root), (user, by_user), (numbered, by_numbered)] {
                let trusted = |path: &Path| {
                    let seen = Cell::new(false);
                    let follow = |turn: &Turn<'_>| {
                        seen.set(turn.trusted);
                        Ok(())
                    };
                    walk(CWD, path, trust, &nothing, &follow).unwrap();
                    seen.get()
                };
                assert_eq!(trusted(&outer.join("l")), wanted, "{owner:?} {mode:o} {trust:?}");
                assert_eq!(walk(CWD, &outer, trust, &nothing, &|_| Ok(())).unwrap().alone, wanted);
                // Directories in a sticky directory stay where they are, if nobody else may write to them.
                let wanted = wanted || mode == 0o1777;
                assert_eq!(trusted(&inner.join("l")), wanted, "below {owner:?} {mode:o} {trust:?}");
            }
            std::os::unix::fs::lchown(inner.join("l"), Some(1002), None).unwrap();
            let refuse = |turn: &Turn<'_>| if turn.trusted { Ok(()) } else { Err(Blocked::because("")) };
            for trust in [root, user] {
                assert!(walk(CWD, &inner.join("l"), trust, &nothing, &refuse).is_err());
            }
        }
    }

    /// With an access control list the group's bits are a bound for others as well.
    #[test]
    fn the_own_group_is_not_trusted_beside_others() {
        needs!(Root);
        let dir = place("dirs-acl");
        let trust = Trust { uid: 1001, gid: 1010 };
        let alone = |name: &str| {
            let nothing = |_: &OwnedFd, name: &OsStr| Err(blocked(name)(Errno::NOENT));
            walk(CWD, &dir.path().join(name), trust, &nothing, &|_| Ok(())).unwrap().alone
        };
        // Version 2; the owner, the user 4000, the group, the mask and the others, each with rights and an id (posix_acl_xattr.h).
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, rights, id) in
            [(1_u16, 7_u16, u32::MAX), (2, 7, 4000), (4, 7, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
        {
            list.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
        }
        for name in ["plain", "shared", "shared/in"] {
            new_dir(&dir.path().join(name), (1001, 1010), 0o775);
            assert!(alone(name), "{name}");
        }
        let flags = rustix::fs::XattrFlags::empty();
        match rustix::fs::setxattr(dir.path().join("shared"), "system.posix_acl_access", &list, flags) {
            Err(Errno::OPNOTSUPP) => return,
            other => other.unwrap(),
        }
        assert_eq!([alone("plain"), alone("shared"), alone("shared/in")], [true, false, false]);
    }

    #[test]
    fn loops_and_files_are_errors() {
        needs!(Root);
        let dir = place("dirs-loop");
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for path in ["a/x", "file/x"] {
            assert!(make(&dir.path().join(path), &alice()).is_err(), "{path}");
        }
        // A dangling link is followed to where it points.
        symlink("new", dir.path().join("dangling")).unwrap();
        assert!(make(&dir.path().join("dangling/x"), &alice()).is_ok());
        assert!(dir.path().join("new/x").is_dir());
    }

    #[test]
    fn a_user_that_renames_gains_no_file() {
        needs!(Root);
        let dir = place("dirs-race");
        let hers = dir.path().join("hers");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "root's").unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = std::fs::rename(hers.join("w"), hers.join("old"));
                    let _ = symlink(&secret, hers.join("w"));
                    let _ = std::fs::remove_file(hers.join("w"));
                    let _ = std::fs::remove_dir_all(hers.join("old"));
                }
            });
            for _ in 0..2000 {
                let _ = make(&hers.join("w/x"), &alice());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(owner(&secret), (0, 0));
        assert_eq!(owner(dir.path()), (0, 0));
    }
}
