//! The way out: a path in the container becomes a tar, as GNU tar would write it with the user's rights.

use crate::child::{Outcome, failed};
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

type Builder = tar::Builder<BufWriter<File>>;

const BUFFER: usize = 256 * 1024;
/// Names and link targets that are longer have an entry of their own.
const NAME_FIELD: usize = 100;
/// The kernel's limits for a list of attributes and for one of them.
const ATTRIBUTE: usize = 64 << 10;
/// Bytes of a file that the kernel makes up, which is held in memory as a whole: its length is known only at its end.
const MADE_UP_BYTES: u64 = 16 << 20;

/// File systems of which the kernel makes up what is in them: statistics and switches that are nobody's files. Some can be
/// opened and not read, as /proc/1/auxv by a container's root, and some never end. The numbers are those of linux/magic.h,
/// configfs' that of fs/configfs/mount.c.
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

/// A directory whose entries are to be packed.
struct Opened {
    fd: OwnedFd,
    /// Its device; none of the one that the walk starts from.
    device: Option<u64>,
}

/// Pack `entry`, or with `None` all that is in the working directory.
///
/// The tree is walked by descriptors: a directory that is replaced by a link while it is packed leads nowhere else. Mounts in
/// it are packed as well, but for the kernel's own file systems ([`MADE_UP`]), of which there is an empty directory. They can
/// be asked for.
pub fn pack(pipe: File, entry: Option<&Path>) -> Outcome<()> {
    let start = entry.unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let here = rustix::fs::open(".", flags, Mode::empty()).map_err(failed("."))?;
    rustix::fs::statat(&here, start, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed(start.display()))?;
    // Dropping a builder writes the end of the archive: half a one must not look whole.
    let mut builder = ManuallyDrop::new(tar::Builder::new(BufWriter::with_capacity(BUFFER, pipe)));
    let here = Opened { fd: here, device: None };
    let mut pending = vec![(Rc::new(here), start.as_os_str().to_owned(), start.to_owned())];
    while let Some((above, name, path)) = pending.pop() {
        let Some(dir) = append(&mut builder, &above, &name, &path).map_err(failed(path.display()))? else {
            continue;
        };
        let mut children = list(&dir.fd).map_err(failed(path.display()))?;
        children.sort_unstable_by(|a, b| b.cmp(a));
        let dir = Rc::new(dir);
        pending.extend(children.into_iter().map(|name| {
            let path = path.join(&name);
            (dir.clone(), name, path)
        }));
    }
    ManuallyDrop::into_inner(builder).into_inner().and_then(|mut out| out.flush()).map_err(failed("tar"))
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

/// One entry; the directory, if it is one. The name is written as it stands, a directory's with a slash at its end:
/// the tar crate's own way would tidy it up, and clients look for `./` and `dir/`.
fn append(builder: &mut Builder, above: &Opened, name: &OsStr, path: &Path) -> io::Result<Option<Opened>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let item = File::from(rustix::fs::openat(&above.fd, name, flags, Mode::empty())?);
    let metadata = item.metadata()?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(&metadata, tar::HeaderMode::Complete);
    // The kind of file is told by the entry's type alone.
    header.set_mode(metadata.mode() & 0o7777);
    header.set_size(0);
    let mut shown = path.as_os_str().as_bytes().to_vec();
    let kind = FileType::from_raw_mode(metadata.mode());
    match kind {
        FileType::Socket => return Ok(None),
        FileType::Directory => shown.push(b'/'),
        FileType::RegularFile => {
            file(builder, &mut header, &shown, (&above.fd, name))?;
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
    if kind != FileType::Directory {
        return Ok(None);
    }
    let device = metadata.dev();
    if above.device.is_some_and(|above| above != device) && is_made_up(&item)? {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&item, ".", flags, Mode::empty())?;
    Ok(Some(Opened { fd, device: Some(device) }))
}

fn is_made_up(file: &File) -> io::Result<bool> {
    // The numbers have 32 bits, whatever the width of the field.
    let kind = rustix::fs::fstatfs(file)?.f_type as u32;
    Ok(MADE_UP.contains(&kind))
}

fn device(header: &mut tar::Header, metadata: &Metadata) -> io::Result<()> {
    header.set_device_major(rustix::fs::major(metadata.rdev()))?;
    header.set_device_minor(rustix::fs::minor(metadata.rdev()))
}

fn file(
    builder: &mut Builder,
    header: &mut tar::Header,
    name: &[u8],
    (above, at): (&OwnedFd, &OsStr),
) -> io::Result<()> {
    // NONBLOCK, NOFOLLOW: it may have become something else meanwhile.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(above, at, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it has changed its kind"));
    }
    let made_up = if is_made_up(&file)? { Some(whole(&file)?) } else { None };
    let attributes = attributes(&file)?;
    let pairs = attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
    builder.append_pax_extensions(pairs)?;
    let size = made_up.as_ref().map_or(metadata.len(), |content| content.len() as u64);
    header.set_size(size);
    match made_up {
        Some(content) => entry(builder, header, name, content.as_slice()),
        // What is cut off while it is read is made up with zeros, as GNU tar does: the entry has its length already.
        None => entry(builder, header, name, file.chain(io::repeat(0)).take(size)),
    }
}

/// The content of a file that the kernel makes up. Its `st_size` is 0 in procfs and a page in sysfs, whatever a read gives.
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

fn entry(builder: &mut Builder, header: &mut tar::Header, name: &[u8], data: impl Read) -> io::Result<()> {
    long(builder, tar::EntryType::GNULongName, name)?;
    field(&mut header.as_old_mut().name, name);
    header.set_cksum();
    builder.append(header, data)
}

/// The entry that holds what does not fit into the field of a header.
fn long(builder: &mut Builder, kind: tar::EntryType, text: &[u8]) -> io::Result<()> {
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
    builder.append(&header, text.chain(&b"\0"[..]))
}

fn field(field: &mut [u8; NAME_FIELD], text: &[u8]) {
    let length = text.len().min(NAME_FIELD);
    field[..length].copy_from_slice(&text[..length]);
}

/// File capabilities and the user's own attributes, as pax names them: those that unpacking sets.
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
        // The st_size of the first is 0, that of the second 4096.
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
        // It never ends, as some of those do.
        assert!(whole(&File::open("/dev/zero").unwrap()).unwrap_err().to_string().contains("more than"));
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
