//! A second name for a file that is held open, in a directory tree that other users may write to.
//!
//! A hard link by name can lead to another file than the one that was looked at: whoever may write to the directory can
//! exchange the name in between. Here the file is given by a descriptor, and what gets the name is that file.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Gives `file` the name `new` as well; `old` is the name by which it was opened.
///
/// Before Linux 6.10 a link by descriptor takes `CAP_DAC_READ_SEARCH` (linkat(2), `AT_EMPTY_PATH`). Without it the link is made
/// by `old`, and removed again if that was another file's by then.
///
/// # Errors
/// The kernel's, among them `EXDEV`, `EPERM`, `EMLINK` and `EOPNOTSUPP` where there can be no second name; an error without a
/// number if the name was exchanged.
pub fn link(
    file: &OwnedFd,
    old: (BorrowedFd<'_>, impl Arg + Copy),
    new: (BorrowedFd<'_>, impl Arg + Copy),
) -> io::Result<()> {
    match rustix::fs::linkat(file, "", new.0, new.1, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT) => link_by_name(file, old, new),
        other => Ok(other?),
    }
}

fn link_by_name(
    file: &OwnedFd,
    old: (BorrowedFd<'_>, impl Arg + Copy),
    new: (BorrowedFd<'_>, impl Arg + Copy),
) -> io::Result<()> {
    rustix::fs::linkat(old.0, old.1, new.0, new.1, AtFlags::empty())?;
    if is(file, &rustix::fs::statat(new.0, new.1, AtFlags::SYMLINK_NOFOLLOW)?)? {
        return Ok(());
    }
    rustix::fs::unlinkat(new.0, new.1, AtFlags::empty())?;
    Err(exchanged())
}

/// Copies `file`, which `old` names, where it can have no second name: content, time of change and permission bits. `create`
/// makes the new file with these bits.
///
/// # Errors
/// `why`, the reason against a second name, if it is no regular file; an error without a number if the name was exchanged; the
/// kernel's.
pub fn copy(
    file: &OwnedFd,
    old: (BorrowedFd<'_>, impl Arg),
    why: Errno,
    create: impl FnOnce(u32) -> io::Result<File>,
) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut source = File::from(rustix::fs::openat(old.0, old.1, flags, Mode::empty())?);
    let stat = rustix::fs::fstat(&source)?;
    if !is(file, &stat)? {
        return Err(exchanged());
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(why.into());
    }
    let mut copy = create(stat.st_mode & 0o777)?;
    io::copy(&mut source, &mut copy)?;
    copy.set_modified(source.metadata()?.modified()?)?;
    Ok(copy)
}

/// Whether an open file is the one of this stat. The numbers of the open one are read now: an overlay may change them when it
/// copies a file up.
///
/// # Errors
/// The kernel's, from `fstat(2)`.
pub fn is(file: impl AsFd, stat: &Stat) -> rustix::io::Result<bool> {
    let file = rustix::fs::fstat(file)?;
    Ok((file.st_dev, file.st_ino) == (stat.st_dev, stat.st_ino))
}

/// The reason against a second name, if that is why a link was refused: a copy can take its place.
pub fn impossible(error: &io::Error) -> Option<Errno> {
    let errno = Errno::from_io_error(error)?;
    matches!(errno, Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP).then_some(errno)
}

fn exchanged() -> io::Error {
    io::Error::other("the file that it is a hard link to was exchanged for another one meanwhile")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What older kernels and other file systems need, on any.
    #[test]
    fn what_was_exchanged_gets_no_second_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "judged").unwrap();
        let here = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&here, "a", flags, Mode::empty()).unwrap();
        let here = here.as_fd();
        let link = || link_by_name(&file, (here, "a"), (here, "by-name"));
        let copied = || copy(&file, (here, "a"), Errno::XDEV, |_| File::create_new(at("copy"))).map(drop);
        link().unwrap();
        copied().unwrap();
        for name in ["by-name", "copy"] {
            assert_eq!(std::fs::read(at(name)).unwrap(), b"judged");
            std::fs::remove_file(at(name)).unwrap();
        }
        std::fs::write(at("b"), "exchanged").unwrap();
        std::fs::rename(at("b"), at("a")).unwrap();
        for result in [link(), copied()] {
            assert!(result.unwrap_err().to_string().contains("exchanged"));
        }
        assert!(!at("by-name").exists() && !at("copy").exists());
    }
}
