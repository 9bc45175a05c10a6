//! Hostile and ordinary archives, built here and unpacked as root into a temporary directory.

mod app;
mod archives;
mod base;
mod bounds;
mod chains;
mod decoded;
mod export;
mod holes;
mod hostile;
mod identity;
mod image;
mod kinds;
mod led;
mod mirrors;
mod odd;
mod ordinary;
mod proxies;
mod registry;
mod remote;
mod server;
mod slow;
mod sparse;
mod streams;
mod tls;
mod told;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tar::{EntryType, Header};
use tempfile::TempDir;

use crate::{Error, Limits, Unpacked, unpack_tar};

/// Builds a tar without the checks of the tar crate.
#[derive(Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    pub(super) fn raw(
        mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        data: &[u8],
        f: impl Fn(&mut Header),
    ) -> Self {
        let mut header = Header::new_ustar();
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        f(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(EntryType::Regular, name, "", data, |_| {})
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.raw(EntryType::Directory, name, "", b"", |h| h.set_mode(0o755))
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, name, target, b"", |_| {})
    }

    pub(super) fn link(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Link, name, target, b"", |_| {})
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(EntryType::XHeader, "pax", "", &data, |_| {})
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory with `root/` to unpack into and `secret` beside it, which nothing may touch.
pub(super) struct Cage(pub(super) TempDir);

impl Cage {
    pub(super) fn new() -> Self {
        Self::in_dir(tempfile::tempdir().unwrap())
    }

    pub(super) fn in_dir(dir: TempDir) -> Self {
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        Self(dir)
    }

    pub(super) fn root(&self) -> std::path::PathBuf {
        self.0.path().join("root")
    }

    pub(super) fn unpack_with(&self, tar: &[u8], limits: &Limits) -> Result<Unpacked, Error> {
        let result = unpack_tar(tar, File::open(self.root()).unwrap().as_fd(), limits);
        let secret = self.0.path().join("secret");
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        assert_eq!(secret.metadata().unwrap().nlink(), 1, "the file outside was linked");
        assert_eq!(std::fs::read_dir(self.0.path()).unwrap().count(), 2, "something was made outside");
        result
    }

    pub(super) fn unpack(&self, tar: &[u8]) -> Result<Unpacked, Error> {
        self.unpack_with(tar, &Limits::default())
    }

    pub(super) fn stat(&self, name: &str) -> std::fs::Metadata {
        self.root().join(name).symlink_metadata().unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(super) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(super) fn is_whiteout(&self, name: &str) -> bool {
        let stat = self.stat(name);
        stat.mode() & 0o170_000 == 0o020_000 && stat.rdev() == 0
    }

    pub(super) fn xattr(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        let mut buf = [0; 256];
        let n = rustix::fs::lgetxattr(self.root().join(name), key, &mut buf).ok()?;
        Some(buf[..n].to_vec())
    }

    pub(super) fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

pub(super) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn write(path: &Path, data: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, data).unwrap();
}

/// Whether a server refused what a URL names.
pub(super) fn is_refused(error: &Error) -> bool {
    match error {
        Error::Refused { .. } => true,
        Error::App { source, .. } | Error::Urls { source, .. } => is_refused(source),
        _ => false,
    }
}
