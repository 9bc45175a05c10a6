//! What a root file system holds beside its image: a walk over its `upper`, from the host's side.
//!
//! The container writes there while the walk is under way, and may be hostile: every name is opened relative to a
//! descriptor of its directory, no symlink is followed, nothing but directories is opened, and depth, number, bytes
//! and time are bounded.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// The most changes that are told.
const CHANGES: usize = 100_000;
/// The most bytes of their paths in JSON, where a control character has six.
const BYTES: usize = 16 << 20;
/// The most bytes of the names of one directory.
const NAMES: usize = 64 << 20;
/// The most entries that are looked at, those included that are no changes.
const ENTRIES: usize = 1_000_000;
/// The deepest directory that is entered.
const DEPTH: usize = 200;
/// The most directories that are open at once: each one is while what is in it is walked, and so are those of the
/// layers below it, of which a hostile image has many.
const OPEN: usize = 2_000;
/// The longest that a walk takes.
const TIME: Duration = Duration::from_secs(10);

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What has become of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The image has it not.
    Added,
    /// The image has it, and something of it was changed, or it was replaced.
    Changed,
    /// The image has it, and it was removed.
    Deleted,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What has become of it.
    pub kind: Kind,
    /// The path from the root, with a leading slash.
    pub path: Vec<u8>,
}

/// The changes to a root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The changes; a directory comes before what is in it.
    pub changes: Vec<Change>,
    /// There are more than a walk is allowed to find.
    pub cut: bool,
}

/// A directory that is being walked.
struct Frame {
    dir: OwnedFd,
    /// The same directory in the layers below, topmost first, as overlayfs merges them.
    lower: Vec<OwnedFd>,
    names: Vec<CString>,
    /// The length of the path of the directory above.
    above: usize,
    /// The directory itself, if nothing is to be told of it but what is in it: it is told before the first change in it.
    untold: Option<Change>,
}

struct Walk<'a> {
    found: Changes,
    path: Vec<u8>,
    stack: Vec<Frame>,
    bytes: usize,
    entries: usize,
    started: Instant,
    /// Who the container's root is on the host.
    root: (u32, u32),
    /// Paths that the container's creation has made, and that are left out while they are empty.
    own: &'a [&'a str],
}

/// Lists what `upper` holds beside the layers, which are given topmost first. Empty files and directories at the paths
/// `own` (without a leading slash) are left out.
///
/// # Errors
/// A directory cannot be read.
pub(crate) fn changes(upper: OwnedFd, layers: Vec<OwnedFd>, own: &[&str]) -> rustix::io::Result<Changes> {
    let root = rustix::fs::fstat(&upper)?;
    let mut walk = Walk {
        found: Changes::default(),
        path: Vec::new(),
        stack: Vec::new(),
        bytes: 0,
        entries: 0,
        started: Instant::now(),
        root: (root.st_uid, root.st_gid),
        own,
    };
    walk.enter(upper, layers, 0, None)?;
    while let Some(frame) = walk.stack.last_mut() {
        if walk.found.cut || walk.started.elapsed() > TIME {
            walk.found.cut = true;
            break;
        }
        let Some(name) = frame.names.pop() else {
            let above = frame.above;
            walk.stack.pop();
            walk.path.truncate(above);
            continue;
        };
        walk.visit(&name)?;
    }
    Ok(walk.found)
}

impl Walk<'_> {
    fn enter(
        &mut self,
        dir: OwnedFd,
        lower: Vec<OwnedFd>,
        above: usize,
        untold: Option<Change>,
    ) -> rustix::io::Result<()> {
        let (mut names, mut length) = (Vec::new(), 0);
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            length += entry.file_name().count_bytes();
            if self.entries > ENTRIES || length > NAMES || self.started.elapsed() > TIME {
                self.found.cut = true;
                break;
            }
            names.push(entry.file_name().to_owned());
        }
        // They are taken from the end.
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.stack.push(Frame { dir, lower, names, above, untold });
        Ok(())
    }

    fn visit(&mut self, name: &CString) -> rustix::io::Result<()> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let above = self.path.len();
        self.path.push(b'/');
        self.path.extend_from_slice(name.to_bytes());
        let stat = match rustix::fs::statat(&frame.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            // The container has removed it meanwhile.
            Err(Errno::NOENT) => {
                self.path.truncate(above);
                return Ok(());
            }
            stat => stat?,
        };
        let below = in_layers(&frame.lower, name)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_whiteout(&stat) {
            if below.is_some() {
                self.tell(Kind::Deleted);
            }
        } else if is_directory {
            match rustix::fs::openat(&frame.dir, name, DIRECTORY, Mode::empty()) {
                // Replaced or removed meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                dir => return self.directory(name, dir?, &stat, below.as_ref(), above),
            }
        } else if !(self.is_own() && stat.st_size == 0) {
            self.tell(if below.is_some() { Kind::Changed } else { Kind::Added });
        }
        self.path.truncate(above);
        Ok(())
    }

    fn directory(
        &mut self,
        name: &CString,
        dir: OwnedFd,
        stat: &Stat,
        below: Option<&Stat>,
        above: usize,
    ) -> rustix::io::Result<()> {
        let opaque = is_opaque(&dir);
        let is_merged =
            |below: &&Stat| FileType::from_raw_mode(below.st_mode) == FileType::Directory && !opaque;
        let (uid, gid) = self.root;
        let is_same = |below: &&Stat| {
            below.st_mode == stat.st_mode
                && is_same_id(below.st_uid, stat.st_uid, uid)
                && is_same_id(below.st_gid, stat.st_gid, gid)
        };
        let lower = match (below.filter(is_merged), self.stack.last()) {
            (Some(_), Some(frame)) => merged(&frame.lower, name)?,
            _ => Vec::new(),
        };
        let mut untold = None;
        match below {
            // It is in `upper` for what is in it.
            Some(_) if below.filter(is_merged).filter(is_same).is_some() => {
                untold = Some(Change { kind: Kind::Changed, path: self.path.clone() });
            }
            None if self.is_own() => untold = Some(Change { kind: Kind::Added, path: self.path.clone() }),
            Some(_) => self.tell(Kind::Changed),
            None => self.tell(Kind::Added),
        }
        let open = self.stack.iter().map(|frame| 1 + frame.lower.len()).sum::<usize>();
        if self.stack.len() >= DEPTH || open + lower.len() >= OPEN {
            self.found.cut = true;
            self.path.truncate(above);
            return Ok(());
        }
        self.enter(dir, lower, above, untold)
    }

    fn is_own(&self) -> bool {
        self.own.iter().any(|own| self.path.get(1..) == Some(own.as_bytes()))
    }

    /// Tells what has become of the present path, after the directories above it.
    fn tell(&mut self, kind: Kind) {
        let untold: Vec<Change> = self.stack.iter_mut().filter_map(|frame| frame.untold.take()).collect();
        for change in untold.into_iter().chain([Change { kind, path: self.path.clone() }]) {
            self.bytes += in_json(&change.path);
            if self.found.changes.len() >= CHANGES || self.bytes > BYTES {
                self.found.cut = true;
                return;
            }
            self.found.changes.push(change);
        }
    }
}

/// The most bytes that a path takes in JSON.
fn in_json(path: &[u8]) -> usize {
    let of = |byte: &u8| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        // A byte that is not UTF-8 becomes a character of three.
        0x80.. => 3,
        _ => 1,
    };
    path.iter().map(of).sum()
}

/// Whether an id of a layer is this one in `upper`, where the container's ids are those of the host: only root has
/// another one, or each has one that is as far from root's.
fn is_same_id(layer: u32, upper: u32, root: u32) -> bool {
    layer == upper || (layer == 0 && upper == root) || root.checked_add(layer) == Some(upper)
}

/// What the layers have at a name, as overlayfs merges them.
fn in_layers(lower: &[OwnedFd], name: &CString) -> rustix::io::Result<Option<Stat>> {
    for dir in lower {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
            Ok(stat) => return Ok(Some(stat).filter(|stat| !is_whiteout(stat))),
        }
    }
    Ok(None)
}

/// Opens a directory in the layers that have it, as far as overlayfs merges them.
fn merged(lower: &[OwnedFd], name: &CString) -> rustix::io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for dir in lower {
        match rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()) {
            Ok(dir) => {
                let opaque = is_opaque(&dir);
                found.push(dir);
                if opaque {
                    break;
                }
            }
            Err(Errno::NOENT) => {}
            // A whiteout or another file hides what is below.
            Err(Errno::NOTDIR | Errno::LOOP) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// True for a whiteout of overlayfs: a character device with the number 0/0.
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(dir: impl AsFd) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::fgetxattr(dir, c"trusted.overlay.opaque", &mut value).is_ok_and(|n| value[..n] == *b"y")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap()
    }

    fn told(upper: &Path, layers: &[&Path], own: &[&str]) -> Vec<String> {
        let found = changes(open(upper), layers.iter().map(|path| open(path)).collect(), own).unwrap();
        assert!(!found.cut);
        let letter = |kind| match kind {
            Kind::Added => 'A',
            Kind::Changed => 'C',
            Kind::Deleted => 'D',
        };
        let line =
            |change: &Change| format!("{} {}", letter(change.kind), String::from_utf8_lossy(&change.path));
        found.changes.iter().map(line).collect()
    }

    #[test]
    fn added_changed_and_what_only_leads_there() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, top, base) = (dir.path().join("u"), dir.path().join("t"), dir.path().join("b"));
        for path in [
            "u/etc/new",
            "u/only/leads",
            "u/proc",
            "u/var",
            "t/etc",
            "b/etc",
            "b/only/leads",
            "b/var",
            "b/kept",
        ] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::write(upper.join("etc/hosts"), "").unwrap();
        fs::write(upper.join("etc/passwd"), "x").unwrap();
        fs::write(upper.join("etc/new/file"), "x").unwrap();
        fs::write(base.join("etc/passwd"), "y").unwrap();
        symlink("/etc/shadow", upper.join("var/link")).unwrap();
        symlink("/", upper.join("out")).unwrap();
        fs::set_permissions(upper.join("only"), PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(
            told(&upper, &[&top, &base], &["proc", "etc/hosts"]),
            [
                "C /etc",
                "A /etc/new",
                "A /etc/new/file",
                "C /etc/passwd",
                "C /only",
                "A /out",
                "C /var",
                "A /var/link"
            ]
        );
        // A program's own hosts are no mount point.
        fs::write(upper.join("etc/hosts"), "x").unwrap();
        assert!(told(&upper, &[&top, &base], &["proc", "etc/hosts"]).contains(&"A /etc/hosts".to_owned()));
    }

    #[test]
    fn what_is_too_deep_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..DEPTH + 5 {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        let found = changes(open(dir.path()), Vec::new(), &[]).unwrap();
        assert!(found.cut);
        assert_eq!(found.changes.len(), DEPTH);
    }

    #[test]
    fn many_deep_layers_do_not_open_all_that_they_have() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, layer) = (dir.path().join("u"), dir.path().join("l"));
        let deep = "d/".repeat(DEPTH / 2);
        for path in [&upper, &layer] {
            fs::create_dir_all(path.join(&deep)).unwrap();
        }
        fs::write(upper.join(&deep).join("file"), "x").unwrap();
        let found =
            |layers: usize| changes(open(&upper), (0..layers).map(|_| open(&layer)).collect(), &[]).unwrap();
        assert!(!found(5).cut);
        assert_eq!(found(5).changes.len(), DEPTH / 2 + 1);
        assert!(found(OPEN / 50).cut);
    }
}
