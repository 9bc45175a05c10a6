//! A further hard link to an open file, in a directory tree that other users may write to.
//!
//! A hard link by name can lead to another file than the one that was checked: whoever may write to the directory can
//! exchange the name in between. Here the file is given by a descriptor, and that file gets the new name.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, seek};
use rustix::io::Errno;
use rustix::path::Arg;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

/// Gives `file` the name `new` as well; `old` is the name by which it was opened.
///
/// Before Linux 6.10 a link by descriptor takes `CAP_DAC_READ_SEARCH` (linkat(2), `AT_EMPTY_PATH`). Without it the
/// descriptor's link in /proc is used. Only where /proc is missing the link is made by `old`, and removed again if
/// `old` named another file by then.
///
/// # Errors
/// The kernel's, among them `EXDEV`, `EPERM`, `EMLINK` and `EOPNOTSUPP` where a hard link is impossible; an error
/// without an errno if the name was exchanged.
pub fn link(
    file: &OwnedFd,
    old: (BorrowedFd<'_>, impl Arg + Copy),
    new: (BorrowedFd<'_>, impl Arg + Copy),
) -> io::Result<()> {
    match rustix::fs::linkat(file, "", new.0, new.1, AtFlags::EMPTY_PATH) {
        // The file's last name is gone: `old` names another file by now, which must not get the new name even for a
        // moment.
        Err(Errno::NOENT) if rustix::fs::fstat(file)?.st_nlink == 0 => Err(exchanged()),
        Err(Errno::NOENT) => match own_descriptors() {
            Some(all) => link_in_proc(&all, file, new),
            None => link_by_name(file, old, new),
        },
        other => Ok(other?),
    }
}

/// Opens the directory of this thread's descriptors (proc_pid_fd(5)); `None` where /proc is not procfs.
fn own_descriptors() -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let all = rustix::fs::open("/proc/thread-self/fd", flags, Mode::empty()).ok()?;
    (rustix::fs::fstatfs(&all).ok()?.f_type == rustix::fs::PROC_SUPER_MAGIC).then_some(all)
}

fn link_in_proc(all: &OwnedFd, file: &OwnedFd, new: (BorrowedFd<'_>, impl Arg + Copy)) -> io::Result<()> {
    let number = file.as_raw_fd().to_string();
    Ok(rustix::fs::linkat(all, number, new.0, new.1, AtFlags::SYMLINK_FOLLOW)?)
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

/// Copies `file`, which `old` names, where a hard link is impossible: content, modification time and permission bits.
/// Holes stay holes. `create` makes the new file with these bits.
///
/// # Errors
/// `why`, the reason against a hard link, if it is no regular file; an error without an errno if the name was
/// exchanged; the kernel's.
pub fn copy(
    file: &OwnedFd,
    old: (BorrowedFd<'_>, impl Arg),
    why: Errno,
    create: impl FnOnce(u32) -> io::Result<File>,
) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let source = File::from(rustix::fs::openat(old.0, old.1, flags, Mode::empty())?);
    let stat = rustix::fs::fstat(&source)?;
    if !is(file, &stat)? {
        return Err(exchanged());
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(why.into());
    }
    let copy = create(stat.st_mode & 0o777)?;
    copy_data(&source, &copy)?;
    copy.set_modified(source.metadata()?.modified()?)?;
    Ok(copy)
}

/// Copies the data and keeps holes: a hole of any size is free for its maker, but copied as zeros it would fill a
/// disk.
fn copy_data(source: &File, copy: &File) -> io::Result<()> {
    let size = source.metadata()?.len();
    let mut at = 0;
    while at < size {
        let data = match seek(source, SeekFrom::Data(at)) {
            // No data follows.
            Err(Errno::NXIO) => break,
            other => other?,
        };
        at = seek(source, SeekFrom::Hole(data))?.min(size);
        seek(source, SeekFrom::Start(data))?;
        seek(copy, SeekFrom::Start(data))?;
        io::copy(&mut source.take(at.saturating_sub(data)), &mut &*copy)?;
    }
    copy.set_len(size)
}

/// Whether an open file is the one of this stat. The open file's numbers are read anew: an overlay may change them on
/// copy-up.
///
/// # Errors
/// The kernel's, from `fstat(2)`.
pub fn is(file: impl AsFd, stat: &Stat) -> rustix::io::Result<bool> {
    let file = rustix::fs::fstat(file)?;
    Ok((file.st_dev, file.st_ino) == (stat.st_dev, stat.st_ino))
}

/// The reason against a hard link, if that is why a link was refused: a copy can take its place.
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

    /// The fallbacks for older kernels and other file systems, tested on any.
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

    /// Even a short-lived name can be opened by a process that watches the directory.
    #[test]
    fn what_takes_the_place_of_a_file_without_a_name_gets_none_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("to")).unwrap();
        std::fs::write(at("a"), "judged").unwrap();
        std::fs::write(at("b"), "exchanged").unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let open = |name: &str| rustix::fs::open(at(name), flags, Mode::empty()).unwrap();
        let (here, to, file) = (open(""), open("to"), open("a"));
        std::fs::rename(at("b"), at("a")).unwrap();
        let before = std::time::SystemTime::UNIX_EPOCH;
        File::open(at("to")).unwrap().set_modified(before).unwrap();
        let error = link(&file, (here.as_fd(), "a"), (to.as_fd(), "new")).unwrap_err();
        assert!(error.to_string().contains("exchanged"), "{error}");
        // Nothing was created in it, nor removed.
        assert_eq!(at("to").metadata().unwrap().modified().unwrap(), before);
    }

    /// The fallback for kernels before 6.10.
    #[test]
    fn a_descriptor_is_linked_by_its_link_in_proc() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "judged").unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |name: &str| rustix::fs::open(at(name), flags, Mode::empty()).unwrap();
        let (here, all) = (open(""), own_descriptors().unwrap());
        for (name, new) in [("a", "second"), ("link", "another")] {
            let file = open(name);
            link_in_proc(&all, &file, (here.as_fd(), new)).unwrap();
            let there = rustix::fs::statat(&here, new, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert!(is(&file, &there).unwrap(), "{name}");
            std::fs::remove_file(at(name)).unwrap();
            std::fs::write(at(name), "exchanged").unwrap();
            std::fs::remove_file(at(new)).unwrap();
            let error = link_in_proc(&all, &file, (here.as_fd(), new)).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::NOENT), "{name}");
            assert!(!at(new).exists(), "{name}");
        }
    }

    #[test]
    fn holes_of_a_copy_stay_holes() {
        use std::os::unix::fs::{FileExt as _, MetadataExt as _};
        const SIZE: u64 = 1 << 30;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let here = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        for places in [&[][..], &[0], &[123_456, SIZE / 2 + 1], &[SIZE - 5]] {
            let source = File::create(at("a")).unwrap();
            source.set_len(SIZE).unwrap();
            places.iter().for_each(|place| source.write_all_at(b"piece", *place).unwrap());
            let file = rustix::fs::openat(&here, "a", flags, Mode::empty()).unwrap();
            copy(&file, (here.as_fd(), "a"), Errno::XDEV, |_| File::create(at("copy"))).unwrap();
            let copied = File::open(at("copy")).unwrap();
            let stat = copied.metadata().unwrap();
            assert!(stat.len() == SIZE && stat.blocks() * 512 < 1 << 20, "{places:?} {}", stat.blocks());
            for place in places {
                let mut piece = [0; 5];
                copied.read_exact_at(&mut piece, *place).unwrap();
                assert_eq!(&piece, b"piece", "{places:?}");
            }
        }
    }
}
