//! From files to a tar.

use crate::Error;
use crate::error::show;
use rustix::fs::{Mode, OFlags};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

/// What went into a tar.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Sockets and devices, which no container gets this way.
    pub left_out: Vec<PathBuf>,
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { op, path: show(path.as_os_str().as_bytes()), source }
}

/// Counts what is read.
struct Counting<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(to)?;
        self.read += n as u64;
        Ok(n)
    }
}

/// Writes `source` and, of a directory, all that is below it, as a tar in which it is called `name`; with an empty name
/// the tar holds what is in the directory. Symlinks are packed as such.
///
/// # Errors
/// A file that cannot be read, or that changed its size meanwhile. The tar then has no end.
pub fn pack(source: &Path, name: &Path, to: impl Write) -> Result<Packed, Error> {
    // Dropping a builder writes the end of the archive: half a one must not look whole.
    let mut builder = ManuallyDrop::new(tar::Builder::new(to));
    let mut packed = Packed::default();
    let mut pending = vec![(source.to_owned(), name.to_owned())];
    while let Some((path, name)) = pending.pop() {
        let meta = std::fs::symlink_metadata(&path).map_err(failed("find", &path))?;
        let kind = meta.file_type();
        if kind.is_dir() {
            let mut children = Vec::new();
            for child in std::fs::read_dir(&path).map_err(failed("list", &path))? {
                let child = child.map_err(failed("list", &path))?;
                children.push((child.path(), name.join(child.file_name())));
            }
            // The last one is taken first.
            children.sort_unstable_by(|a, b| b.cmp(a));
            pending.extend(children);
        }
        if kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            packed.left_out.push(path);
            continue;
        }
        if name.as_os_str().is_empty() {
            continue;
        }
        packed.entries += 1;
        append(&mut builder, &path, &name, &meta, &mut packed.bytes)?;
    }
    let written = ManuallyDrop::into_inner(builder).into_inner().and_then(|mut to| to.flush());
    written.map_err(failed("pack", source))?;
    Ok(packed)
}

fn append(
    builder: &mut tar::Builder<impl Write>,
    path: &Path,
    name: &Path,
    meta: &Metadata,
    bytes: &mut u64,
) -> Result<(), Error> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(meta);
    let kind = meta.file_type();
    if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(failed("read", path))?;
        header.set_size(0);
        return builder.append_link(&mut header, name, target).map_err(failed("pack", path));
    }
    if !kind.is_file() {
        header.set_size(0);
        return builder.append_data(&mut header, name, io::empty()).map_err(failed("pack", path));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("open", path)(e.into()))?;
    let mut data = Counting { inner: File::from(file).take(meta.len()), read: 0 };
    builder.append_data(&mut header, name, &mut data).map_err(failed("pack", path))?;
    if data.read < meta.len() {
        let shrunk = io::Error::other("it became shorter while it was read");
        return Err(failed("pack", path)(shrunk));
    }
    *bytes += data.read;
    Ok(())
}
