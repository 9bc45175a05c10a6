//! The guest's root: an initramfs with busybox, this program, modules, and the script that is pid 1.

use super::modules::Module;
use anyhow::{Context, Result, ensure};
use cpio::newc::{Builder, trailer};
use object::Object as _;
use object::read::elf::FileHeader as _;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write};
use std::path::Path;

/// The script that is pid 1.
const INIT: &[u8] = include_bytes!("init.sh");
/// Directories that are mount points, or used by programs.
const DIRECTORIES: [&str; 12] =
    ["bin", "dev", "etc", "files", "mnt", "modules", "proc", "root", "run", "sys", "tmp", "var/tmp"];
/// Limit of a file's size in bytes.
const MOST_FILE: u64 = 512 << 20;
const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Numbers of /dev/console (Documentation/admin-guide/devices.txt of the kernel).
const CONSOLE: (u32, u32) = (5, 1);

/// A file of the host that is copied into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copied<'a> {
    pub(super) host: &'a Path,
    /// Its path in the guest, without a leading slash.
    pub(super) name: String,
}

/// Writes an initramfs. The kernel unpacks it as it is, without compression.
///
/// # Errors
/// A file cannot be read, or the disk is full.
pub(super) fn write(to: File, copied: &[Copied<'_>], modules: &[Module]) -> Result<()> {
    let mut archive = Archive { out: BufWriter::new(to), made: BTreeSet::new(), inode: 0 };
    for name in DIRECTORIES {
        archive.directory(name)?;
    }
    archive.entry("dev/console", CHARACTER_DEVICE, Some(CONSOLE), &[])?;
    archive.entry("init", REGULAR | 0o755, None, INIT)?;
    for (number, module) in modules.iter().enumerate() {
        // The order of names is that of the shell's `*`.
        archive.entry(
            &format!("modules/{number:04}-{}.ko", module.name),
            REGULAR | 0o644,
            None,
            &module.bytes,
        )?;
    }
    for file in copied {
        let shown = file.host.display();
        let opened = File::open(file.host).with_context(|| format!("open {shown}"))?;
        let meta = opened.metadata().with_context(|| format!("look at {shown}"))?;
        ensure!(meta.is_file(), "{shown} is no file");
        ensure!(meta.len() <= MOST_FILE, "{shown} is larger than 512 MiB");
        let mut content = Vec::new();
        opened.take(MOST_FILE).read_to_end(&mut content).with_context(|| format!("read {shown}"))?;
        archive.entry(&file.name, REGULAR | 0o755, None, &content)?;
    }
    let mut out = trailer(archive.out).context("write the initramfs")?;
    out.flush().context("write the initramfs")
}

/// Checks that a program runs where there is no dynamic linker.
///
/// # Errors
/// It needs a dynamic linker, or is no program.
pub(super) fn check_static(program: &Path) -> Result<()> {
    let shown = program.display();
    let bytes = std::fs::read(program).with_context(|| format!("read {shown}"))?;
    let file = object::File::parse(&bytes[..]).with_context(|| format!("{shown} is no program"))?;
    let object::File::Elf64(elf) = &file else {
        anyhow::bail!("{shown} is no 64-bit program");
    };
    ensure!(file.architecture() == object::Architecture::X86_64, "{shown} is no program for x86-64");
    let headers = elf.elf_header().program_headers(elf.endian(), &bytes[..]);
    let headers = headers.with_context(|| format!("{shown} is damaged"))?;
    let interpreted = headers.iter().any(|header| {
        object::read::elf::ProgramHeader::p_type(header, elf.endian()) == object::elf::PT_INTERP
    });
    ensure!(
        !interpreted,
        "{shown} is linked dynamically, and a guest has no libraries: a statically linked one is needed, as `./dev package` builds it"
    );
    Ok(())
}

struct Archive {
    out: BufWriter<File>,
    made: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) -> Result<()> {
        if let Some((above, _)) = name.rsplit_once('/') {
            self.directory(above)?;
        }
        if self.made.insert(name.to_owned()) { self.entry(name, DIRECTORY, None, &[]) } else { Ok(()) }
    }

    fn entry(&mut self, name: &str, mode: u32, device: Option<(u32, u32)>, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let mut entry = Builder::new(name).ino(self.inode).mode(mode).nlink(1);
        if let Some((major, minor)) = device {
            entry = entry.rdev_major(major).rdev_minor(minor);
        }
        let size = u32::try_from(content.len()).context("a file is too large for an initramfs")?;
        let mut writer = entry.write(&mut self.out, size);
        let written = writer.write_all(content).and_then(|()| writer.finish().map(drop));
        written.context("write the initramfs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_archive_is_what_cpio_reads() {
        let Ok(busybox) = super::super::children::find("busybox", "busybox-static") else { return };
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("initrd"), dir.path().join("f"));
        std::fs::write(&file, b"odd").unwrap();
        let modules = [Module { name: "ext4".into(), bytes: vec![7; 4097] }];
        let copied = [Copied { host: &file, name: "files/f".into() }];
        write(File::create(&path).unwrap(), &copied, &modules).unwrap();
        let to = dir.path().join("out");
        std::fs::create_dir(&to).unwrap();
        let cpio = |how: &str| {
            let mut command = Command::new(&busybox);
            command.args(["cpio", how]).current_dir(&to).stdin(Stdio::from(File::open(&path).unwrap()));
            let output = command.output().unwrap();
            (output.status.success(), String::from_utf8(output.stdout).unwrap())
        };
        let (good, list) = cpio("-t");
        assert!(good, "{list}");
        let names: BTreeSet<&str> = list.lines().collect();
        for name in ["init", "bin", "var", "var/tmp", "dev/console", "modules/0000-ext4.ko", "files/f"] {
            assert!(names.contains(name), "{name}: {list}");
        }
        assert_eq!(names.len(), list.lines().count(), "{list}");
        // Nobody but root makes devices.
        if rustix::process::geteuid().is_root() {
            assert!(cpio("-i").0);
            assert_eq!(std::fs::read(to.join("files/f")).unwrap(), b"odd");
            assert_eq!(std::fs::read(to.join("modules/0000-ext4.ko")).unwrap(), vec![7; 4097]);
            assert_eq!(std::fs::read(to.join("init")).unwrap(), INIT);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let copied = [Copied { host: &missing, name: "files/missing".into() }];
        let to = File::create(dir.path().join("initrd")).unwrap();
        assert!(write(to, &copied, &[]).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn a_program_must_be_static() {
        check_static(&std::env::current_exe().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(check_static(&path).unwrap_err().to_string().contains("no program"));
        if Path::new("/bin/ls").exists() {
            let error = check_static(Path::new("/bin/ls")).unwrap_err().to_string();
            assert!(error.contains("dynamically"), "{error}");
        }
    }
}
