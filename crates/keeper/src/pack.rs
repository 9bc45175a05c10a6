//! Packs a path of the container into a tar, as GNU tar would write it with the user's rights.

use crate::child::{Outcome, Stop, failed};
use rustix::fs::{FileType, Mode, OFlags};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use wardian_archive::Linked;
use wardian_sys::text::{clip, tame};

type Builder = tar::Builder<BufWriter<File>>;

const BUFFER: usize = 256 * 1024;
/// Longer names and link targets get a header entry of their own.
const NAME_FIELD: usize = 100;
/// The kernel's limits for a list of attributes and for one of them.
const ATTRIBUTE: usize = 64 << 10;
/// Limit for a file whose content the kernel generates. It is held in memory as a whole: its length is known only at
/// its end.
const MADE_UP_BYTES: u64 = 16 << 20;

/// File systems whose content the kernel generates: statistics and switches, not users' files. Some of the files can
/// be opened but not read, as /proc/1/auxv by a container's root, and some never end. The numbers are those of
/// linux/magic.h, configfs' that of fs/configfs/mount.c.
const MADE_UP: [u32; 12] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
];

/// Entries that could not be read are named up to this number, and counted beyond it.
const MAX_NAMED: u64 = 20;
/// Bytes of those names with their errors, which must fit into one frame of a report.
const MAX_NAMES: usize = 2500;
/// Bytes of one of those names.
const MAX_NAME: usize = 256;

/// Why an entry is not packed.
enum Fault {
    /// The entry cannot be read, and nothing of it has been written: the other entries can still be packed.
    Unread(io::Error),
    /// The tar cannot be written.
    Pipe(io::Error),
}

impl<E: Into<io::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Unread(error.into())
    }
}

/// The entries that could not be read while the others were packed.
#[derive(Default)]
struct Unread {
    count: u64,
    named: u64,
    names: String,
}

impl Unread {
    fn add(&mut self, path: &Path, why: &impl std::fmt::Display) {
        self.count += 1;
        let line = format!("\n{}: {why}", clip(&tame(&path.to_string_lossy()), MAX_NAME));
        if self.named < MAX_NAMED && self.names.len() + line.len() <= MAX_NAMES {
            self.named += 1;
            self.names.push_str(&line);
        }
    }

    /// Fails if any entry is missing: a tar that lacks a file must not pass for a complete one.
    fn result(self) -> Outcome<()> {
        let Self { count, named, names } = self;
        let more = match count - named {
            0 => String::new(),
            more => format!("\nand {more} more"),
        };
        match count {
            0 => Ok(()),
            _ => {
                let entries = if count == 1 { "entry" } else { "entries" };
                let what = "could not be read, or not to the end; all else is there";
                Err(Stop::from(format!("{count} {entries} {what}{names}{more}")))
            }
        }
    }
}

/// A directory whose entries are to be packed.
struct Opened {
    fd: OwnedFd,
    /// Its device number; `None` for the directory that the walk starts from.
    device: Option<u64>,
}

/// Packs `entry`, or with `None` everything in the working directory.
///
/// The tree is walked by descriptors: a directory that is replaced by a link meanwhile leads nowhere else. Mounts in
/// the tree are packed as well, except the kernel's own file systems ([`MADE_UP`]), which become an empty directory,
/// unless the request names a path in them.
///
/// As with GNU tar, an entry that cannot be read does not end the work: it is left out, or zeros replace the missing
/// rest of its data. The tar is then well-formed, and the result is a failure that names those entries.
pub fn pack(pipe: File, entry: Option<&Path>) -> Outcome<()> {
    let start = entry.unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let here = rustix::fs::open(".", flags, Mode::empty()).map_err(failed("."))?;
    rustix::fs::statat(&here, start, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed(start.display()))?;
    // Dropping a builder writes the end of the archive, which would make a partial one look complete.
    let mut builder = ManuallyDrop::new(tar::Builder::new(BufWriter::with_capacity(BUFFER, pipe)));
    let here = Opened { fd: here, device: None };
    let mut pending = vec![(Rc::new(here), start.as_os_str().to_owned(), start.to_owned())];
    let (mut unread, mut linked) = (Unread::default(), Linked::default());
    while let Some((above, name, path)) = pending.pop() {
        let said = (&mut unread, &mut linked);
        let (dir, mut children) = match append(&mut builder, &above, &name, &path, said) {
            Ok(Some(opened)) => opened,
            Ok(None) => continue,
            Err(Fault::Unread(error)) if path != start => {
                unread.add(&path, &error);
                continue;
            }
            Err(Fault::Unread(error) | Fault::Pipe(error)) => return Err(failed(path.display())(error)),
        };
        children.sort_unstable_by(|a, b| b.cmp(a));
        let dir = Rc::new(dir);
        pending.extend(children.into_iter().map(|name| {
            let path = path.join(&name);
            (dir.clone(), name, path)
        }));
    }
    let written = ManuallyDrop::into_inner(builder).into_inner().and_then(|mut out| out.flush());
    written.map_err(failed("tar"))?;
    unread.result()
}

fn list(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// Packs one entry, and for a directory what is in it. Everything that can fail is read before the header is written.
/// The name is written as it stands, a directory's with a slash at its end: the tar crate would normalise it, and
/// clients look for `./` and `dir/`.
fn append(
    builder: &mut Builder,
    above: &Opened,
    name: &OsStr,
    path: &Path,
    (unread, linked): (&mut Unread, &mut Linked),
) -> Result<Option<(Opened, Vec<OsString>)>, Fault> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let item = File::from(rustix::fs::openat(&above.fd, name, flags, Mode::empty())?);
    let metadata = item.metadata()?;
    let mut header = header_of(&metadata);
    let mut shown = path.as_os_str().as_bytes().to_vec();
    let mut opened = None;
    match FileType::from_raw_mode(metadata.mode()) {
        FileType::Socket => return Ok(None),
        FileType::Directory => {
            shown.push(b'/');
            let device = metadata.dev();
            if above.device.is_none_or(|above| above == device) || !is_made_up(&item)? {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&item, ".", flags, Mode::empty())?;
                let children = list(&fd)?;
                opened = Some((Opened { fd, device: Some(device) }, children));
            }
        }
        FileType::RegularFile => {
            if let Some(first) = linked.first(&metadata) {
                header.set_entry_type(tar::EntryType::Link);
                long(builder, tar::EntryType::GNULongLink, &first)?;
                field(&mut header.as_old_mut().linkname, &first);
                entry(builder, &mut header, &shown, io::empty())?;
                return Ok(None);
            }
            let (read, error) = file(builder, &item, &shown, (&above.fd, name))?;
            if let Some(error) = error {
                unread.add(path, &format_args!("{error}: zeros take the place of what is missing"));
            }
            linked.add(&read, &shown);
            return Ok(None);
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&item, "", Vec::new())?;
            long(builder, tar::EntryType::GNULongLink, target.as_bytes())?;
            field(&mut header.as_old_mut().linkname, target.as_bytes());
        }
        FileType::CharacterDevice | FileType::BlockDevice => device(&mut header, &metadata)?,
        _ => {}
    }
    entry(builder, &mut header, &shown, io::empty())?;
    Ok(opened)
}

fn header_of(metadata: &Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(metadata, tar::HeaderMode::Complete);
    // The header's entry type has the file type, so the mode has the permission bits only.
    header.set_mode(metadata.mode() & 0o7777);
    header.set_size(0);
    header
}

fn is_made_up(file: &File) -> io::Result<bool> {
    // The magic numbers have 32 bits, whatever the width of the field.
    let kind = rustix::fs::fstatfs(file)?.f_type as u32;
    Ok(MADE_UP.contains(&kind))
}

fn device(header: &mut tar::Header, metadata: &Metadata) -> io::Result<()> {
    header.set_device_major(rustix::fs::major(metadata.rdev()))?;
    header.set_device_minor(rustix::fs::minor(metadata.rdev()))
}

/// Packs the regular file behind `item` (`O_PATH`, which cannot be read), reopened by its name. Returns what was
/// read, and the error after which zeros replaced the rest.
fn file(
    builder: &mut Builder,
    item: &File,
    name: &[u8],
    (above, at): (&OwnedFd, &OsStr),
) -> Result<(Metadata, Option<io::Error>), Fault> {
    // NONBLOCK, NOFOLLOW: another kind of file may have taken the name meanwhile.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(above, at, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it has changed its kind").into());
    }
    // `item` is open, so its inode number cannot be reused. Read again here: an overlay changes it on copy-up.
    let expected = item.metadata()?;
    if (metadata.dev(), metadata.ino()) != (expected.dev(), expected.ino()) {
        return Err(io::Error::other("it was exchanged for another file meanwhile").into());
    }
    let mut header = header_of(&metadata);
    let made_up = if is_made_up(&file)? { Some(whole(&file)?) } else { None };
    let attributes = attributes(&file)?;
    let pairs = attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
    builder.append_pax_extensions(pairs).map_err(Fault::Pipe)?;
    let size = made_up.as_ref().map_or(metadata.len(), |content| content.len() as u64);
    header.set_size(size);
    let Some(content) = made_up else {
        let mut data = Padded { file: &file, error: None };
        entry(builder, &mut header, name, (&mut data).take(size))?;
        return Ok((metadata, data.error));
    };
    entry(builder, &mut header, name, content.as_slice())?;
    Ok((metadata, None))
}

/// A reader that pads a file with zeros once it cannot be read any more, as GNU tar does: the header with its length
/// is written already.
struct Padded<'a> {
    file: &'a File,
    /// The error that ended the reading early.
    error: Option<io::Error>,
}

impl Read for Padded<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.error.is_none() {
            match self.file.read(to) {
                Ok(0) if !to.is_empty() => {
                    self.error = Some(io::Error::other("it became shorter while it was read"));
                }
                Err(error) if error.kind() != io::ErrorKind::Interrupted => self.error = Some(error),
                other => return other,
            }
        }
        to.fill(0);
        Ok(to.len())
    }
}

/// Reads the whole content of a generated file. Its `st_size` is 0 in procfs and a page in sysfs, whatever a read
/// returns.
fn whole(file: &File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(MADE_UP_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MADE_UP_BYTES {
        let why = format!(
            "the kernel makes it up, and it has more than {MADE_UP_BYTES} bytes: read it in the container"
        );
        return Err(io::Error::other(why));
    }
    Ok(content)
}

fn entry(builder: &mut Builder, header: &mut tar::Header, name: &[u8], data: impl Read) -> Result<(), Fault> {
    long(builder, tar::EntryType::GNULongName, name)?;
    field(&mut header.as_old_mut().name, name);
    header.set_cksum();
    builder.append(header, data).map_err(Fault::Pipe)
}

/// Writes the extra entry for a name or link target that does not fit into its header field.
fn long(builder: &mut Builder, kind: tar::EntryType, text: &[u8]) -> Result<(), Fault> {
    if text.len() <= NAME_FIELD {
        return Ok(());
    }
    let mut header = tar::Header::new_gnu();
    field(&mut header.as_old_mut().name, b"././@LongLink");
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(text.len() as u64 + 1);
    header.set_cksum();
    builder.append(&header, text.chain(&b"\0"[..])).map_err(Fault::Pipe)
}

fn field(field: &mut [u8; NAME_FIELD], text: &[u8]) {
    let length = text.len().min(NAME_FIELD);
    field[..length].copy_from_slice(&text[..length]);
}

/// File capabilities and `user.` attributes, under their pax names: the same ones that unpacking sets.
fn attributes(file: &File) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut buffer = vec![0; ATTRIBUTE];
    let names = match rustix::fs::flistxattr(file, &mut buffer[..]) {
        Ok(length) => buffer[..length].to_vec(),
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
        if name != "security.capability" && !name.starts_with("user.") {
            continue;
        }
        match rustix::fs::fgetxattr(file, name, &mut buffer[..]) {
            Ok(length) => found.push((format!("SCHILY.xattr.{name}"), buffer[..length].to_vec())),
            Err(rustix::io::Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn what_the_kernel_makes_up_has_the_length_of_its_content() {
        let dir = std::env::temp_dir().join(format!("wardian-made-up-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let up = "../".repeat(std::env::current_dir().unwrap().components().count());
        // The st_size of the first file is 0, that of the second is 4096.
        for path in ["proc/version", "sys/kernel/mm/transparent_hugepage/enabled"] {
            let real = Path::new("/").join(path);
            let Ok(expected) = std::fs::read(&real) else { continue };
            assert_ne!(std::fs::metadata(&real).unwrap().len(), expected.len() as u64, "{path}");
            let tar = File::create(dir.join("tar")).unwrap();
            assert!(pack(tar, Some(Path::new(&format!("{up}{path}")))).is_ok());
            let mut archive = tar::Archive::new(File::open(dir.join("tar")).unwrap());
            let mut found = Vec::new();
            archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut found).unwrap();
            assert_eq!(found, expected, "{path}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
        // A file without an end, as some generated files are.
        assert!(whole(&File::open("/dev/zero").unwrap()).unwrap_err().to_string().contains("more than"));
    }

    /// Packs a directory given by its absolute path. Returns names and contents of the entries, and the error text.
    fn packed(dir: &Path, start: &Path) -> (Vec<(String, Vec<u8>)>, String) {
        let up = "../".repeat(std::env::current_dir().unwrap().components().count());
        let start = PathBuf::from(format!("{up}{}", start.strip_prefix("/").unwrap().display()));
        let result = pack(File::create(dir.join("tar")).unwrap(), Some(&start));
        let mut found = Vec::new();
        for entry in tar::Archive::new(File::open(dir.join("tar")).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.push((name.strip_prefix(start.to_str().unwrap()).unwrap().to_owned(), content));
        }
        (found, result.err().map(|stop| stop.text).unwrap_or_default())
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_named() {
        let dir = tempfile::tempdir().unwrap();
        // Not even root can read the first byte of a process's memory. Another process's: files of this one come and
        // go with other tests.
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        let (found, said) = packed(dir.path(), &process);
        assert!(found.iter().any(|(name, content)| name == "/comm" && !content.is_empty()), "{said}");
        assert!(!found.iter().any(|(name, _)| name == "/mem"), "{said}");
        assert!(said.contains(" could not be read, or not to the end; all else is there\n"), "{said}");
        assert!(said.contains("/mem: "), "{said}");
        assert!(said.len() < 3000, "{said}");
        // A path that the request names is not skipped, so this is an error.
        let (found, said) = packed(dir.path(), &process.join("mem"));
        assert!(found.is_empty() && said.contains("mem") && !said.contains("all else"), "{said}");
        let (found, said) = packed(dir.path(), &process.join("comm"));
        assert!(found.len() == 1 && said.is_empty(), "{said}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_became_shorter_ends_with_zeros_and_is_said() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"some").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let mut data = Padded { file: &file, error: None };
        let mut found = Vec::new();
        (&mut data).take(4).read_to_end(&mut found).unwrap();
        assert!(found == b"some" && data.error.is_none());
        (&mut data).take(3).read_to_end(&mut found).unwrap();
        assert_eq!(found, b"some\0\0\0");
        assert!(data.error.unwrap().to_string().contains("shorter"));
        // Reading a directory fails.
        let mut data = Padded { file: &File::open("/").unwrap(), error: None };
        (&mut data).take(3).read_to_end(&mut found).unwrap();
        assert_eq!((found.len(), data.error.unwrap().raw_os_error()), (10, Some(21)));
    }

    /// Whoever may write to a directory can exchange a file between two look-ups.
    #[test]
    fn what_was_exchanged_is_not_packed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let above = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let item = File::from(rustix::fs::openat(&above, "a", flags, Mode::empty()).unwrap());
        let mut builder = tar::Builder::new(BufWriter::new(tempfile::tempfile().unwrap()));
        assert!(file(&mut builder, &item, b"a", (&above, OsStr::new("a"))).is_ok());
        std::fs::rename(dir.path().join("b"), dir.path().join("a")).unwrap();
        let Err(Fault::Unread(error)) = file(&mut builder, &item, b"a", (&above, OsStr::new("a"))) else {
            panic!("it was packed")
        };
        assert!(error.to_string().contains("exchanged"), "{error}");
    }

    /// A file that gets the inode number of a removed one is not a hard link to it.
    #[test]
    fn a_number_that_is_used_again_makes_no_link() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (at, other) = (|name: &str| dir.path().join("d").join(name), dir.path().join("other"));
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(at("a"), "strange").unwrap();
        std::fs::hard_link(at("a"), &other).unwrap();
        // More than pipe and buffer hold, so that the walk blocks in it.
        std::fs::write(at("b"), vec![0; 4 << 20]).unwrap();
        std::fs::write(at("z"), "").unwrap();
        let number = at("a").metadata().unwrap().ino();
        let (mut read, write) = io::pipe().unwrap();
        let up = "../".repeat(std::env::current_dir().unwrap().components().count());
        let start = PathBuf::from(format!("{up}{}", at("").strip_prefix("/").unwrap().display()));
        let packer = std::thread::spawn(move || {
            let write = File::from(OwnedFd::from(write));
            pack(write, Some(&start)).map_err(|stop| stop.text)
        });
        let mut tar = vec![0; 1 << 20];
        read.read_exact(&mut tar).unwrap();
        std::fs::remove_file(at("a")).unwrap();
        std::fs::remove_file(&other).unwrap();
        // Not every file system reuses an inode number: another file stands for it then.
        let new: Vec<_> = (0..100).map(|n| at(&format!("c{n}"))).collect();
        let again = new.iter().find(|path| {
            std::fs::write(path, "own").unwrap();
            path.metadata().unwrap().ino() == number
        });
        let again = again.unwrap_or(&new[0]);
        std::fs::hard_link(again, &other).unwrap();
        // The directory's names have been read before.
        std::fs::rename(again, at("z")).unwrap();
        read.read_to_end(&mut tar).unwrap();
        packer.join().unwrap().unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        assert!(archive.entries().unwrap().all(|entry| !entry.unwrap().header().entry_type().is_hard_link()));
    }

    #[test]
    fn only_some_are_named() {
        let mut unread = Unread::default();
        let error = io::Error::from_raw_os_error(13);
        (0..50).for_each(|n| unread.add(Path::new(&format!("f{n}\n")), &error));
        let said = unread.result().unwrap_err().text;
        assert!(
            said.starts_with("50 entries could not be read, or not to the end; all else is there\nf0\\n: "),
            "{said}"
        );
        assert!(said.ends_with("\nand 30 more") && said.lines().count() == 22, "{said}");
        let mut unread = Unread::default();
        (0..50).for_each(|_| unread.add(Path::new(&"\u{1b}".repeat(4000)), &error));
        let said = unread.result().unwrap_err().text;
        assert!(said.len() < 3000 && said.ends_with(" more"), "{said}");
        assert!(Unread::default().result().is_ok());
    }

    #[test]
    fn names_are_as_gnu_tar_writes_them() {
        let dir = std::env::temp_dir().join(format!("wardian-pack-{}", std::process::id()));
        let deep = "d".repeat(90);
        std::fs::create_dir_all(dir.join(&deep)).unwrap();
        std::fs::write(dir.join(&deep).join("file-with-a-name"), "x").unwrap();
        std::os::unix::fs::symlink("t".repeat(120), dir.join(&deep).join("link")).unwrap();
        std::fs::write(dir.join("tar"), "").unwrap();
        let out = File::options().write(true).open(dir.join("tar")).unwrap();
        let base = std::env::current_dir().unwrap();
        let up = "../".repeat(base.components().count());
        let start = PathBuf::from(format!("{up}{}", dir.strip_prefix("/").unwrap().display())).join(&deep);
        assert!(pack(out, Some(&start)).is_ok());
        let mut archive = tar::Archive::new(File::open(dir.join("tar")).unwrap());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let link = entry.link_name_bytes().map(|link| link.len());
            seen.push((name.strip_prefix(start.to_str().unwrap()).unwrap().to_owned(), entry.size(), link));
        }
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            seen,
            [
                ("/".to_owned(), 0, None),
                ("/file-with-a-name".to_owned(), 1, None),
                ("/link".to_owned(), 0, Some(120))
            ]
        );
    }
}
