//! What the targets share: a place to unpack into, and what must hold after every unpack.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{EntryType, GnuExtSparseHeader, Header};
use tempfile::TempDir;
use wardian_image::{Error, Limits, Unpacked, unpack_tar};

/// Small, so that limits are met often and each run is short.
pub const LIMITS: Limits =
    Limits { max_bytes: 1 << 20, max_entries: 200, max_name: 300, max_depth: 12, ..Limits::DEFAULT };

/// Bytes of a tar's header, and of what its data is filled up to.
pub const BLOCK: usize = 512;

/// Makes the checksum of every header right: hardly any mutation would get beyond them otherwise.
pub fn fix_checksums(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|b| *b == 0) {
            continue;
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or_default();
        let kind = header.entry_type();
        let mut more = kind == EntryType::GNUSparse && header.as_gnu().is_some_and(|gnu| gnu.is_extended());
        while more && let Some(block) = tar.get(at..at + BLOCK) {
            let mut extension = GnuExtSparseHeader::new();
            extension.as_mut_bytes().copy_from_slice(block);
            more = extension.is_extended();
            at += BLOCK;
        }
        let data = !matches!(kind.as_byte(), b'1'..=b'6');
        if data && size < tar.len() as u64 {
            at += (size as usize).next_multiple_of(BLOCK);
        }
    }
}

/// A directory with `root/` to unpack into and `secret` beside it.
pub struct Cage(TempDir);

impl Default for Cage {
    fn default() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("root")).expect("a root");
        fs::write(dir.path().join("secret"), "secret").expect("a secret");
        Self(dir)
    }
}

impl Cage {
    pub fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    /// Unpacks and checks what must hold for every archive, refused or not. `devices` are those the archive asks for.
    pub fn unpack(&self, tar: &[u8], devices: &HashSet<u64>) -> Result<Unpacked, Error> {
        let before = self.outside();
        let root = File::open(self.root()).expect("the root");
        let result = unpack_tar(tar, root.as_fd(), &LIMITS);
        assert_eq!(self.outside(), before, "something outside of the root changed");
        let mut seen = Seen { devices, entries: 0 };
        seen.check(&self.root());
        // Each entry makes one name, and as many directories may be missing.
        assert!(seen.entries <= 2 * LIMITS.max_entries, "{} names", seen.entries);
        if let Ok(unpacked) = &result {
            assert!(unpacked.entries <= LIMITS.max_entries && unpacked.bytes <= LIMITS.max_bytes);
        }
        result
    }

    /// All that is beside the root.
    pub fn outside(&self) -> (Vec<u8>, u64, u32, u32, i64, usize) {
        let secret = self.0.path().join("secret");
        let stat = secret.symlink_metadata().expect("the secret");
        let beside = fs::read_dir(self.0.path()).expect("the cage").count();
        let text = fs::read(secret).expect("the secret");
        (text, stat.nlink(), stat.mode(), stat.uid(), stat.mtime_nsec(), beside)
    }
}

struct Seen<'a> {
    devices: &'a HashSet<u64>,
    entries: u64,
}

impl Seen<'_> {
    fn check(&mut self, path: &Path) {
        let stat = path.symlink_metadata().expect("an entry");
        let kind = stat.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            let whiteout = kind.is_char_device() && stat.rdev() == 0;
            assert!(whiteout || self.devices.contains(&stat.rdev()), "device {:x} at {path:?}", stat.rdev());
        }
        let mut names = [0; 64 << 10];
        let length = rustix::fs::llistxattr(path, &mut names).expect("the xattrs");
        for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            let own = name == b"trusted.overlay.opaque" && kind.is_dir();
            let caps = name == b"security.capability" && kind.is_file();
            assert!(user || own || caps, "xattr {:?} at {path:?}", OsStr::from_bytes(name));
        }
        if kind.is_dir() {
            for entry in fs::read_dir(path).expect("a directory") {
                self.entries += 1;
                self.check(&entry.expect("an entry").path());
            }
        }
    }
}
