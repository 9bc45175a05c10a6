//! A container image made on the spot: a root file system of one static busybox.

use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::Command;

/// Where Debian's `busybox-static` installs busybox.
pub const BUSYBOX: &str = "/bin/busybox";

/// The user that runs the app, as in Cloud Foundry's root file systems.
pub const USER: &str = "vcap";
/// The user's uid and gid.
pub const USER_ID: u64 = 2000;
/// The user's home.
pub const HOME: &str = "/home/vcap";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
vcap:x:2000:2000:vcap:/home/vcap:/bin/sh
";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nusers:x:100:\nnogroup:x:65534:\nvcap:x:2000:\n";

/// Directories of the image with their mode and owner.
const DIRECTORIES: &[(&str, u32, u64)] = &[
    ("bin/", 0o755, 0),
    ("sbin/", 0o755, 0),
    ("usr/", 0o755, 0),
    ("usr/bin/", 0o755, 0),
    ("usr/sbin/", 0o755, 0),
    ("usr/local/", 0o755, 0),
    ("usr/local/bin/", 0o755, 0),
    ("etc/", 0o755, 0),
    ("home/", 0o755, 0),
    ("home/vcap/", 0o755, USER_ID),
    ("root/", 0o700, 0),
    ("tmp/", 0o1777, 0),
    ("var/", 0o755, 0),
    ("var/tmp/", 0o1777, 0),
    ("var/run/", 0o755, 0),
    ("dev/", 0o755, 0),
    ("proc/", 0o755, 0),
    ("sys/", 0o755, 0),
    ("mnt/", 0o755, 0),
    ("opt/", 0o755, 0),
];

/// Builds the image from the busybox of this machine and writes it to `to`.
pub fn build(to: &Path) -> Result<()> {
    let install = "install it with: apt-get install busybox-static";
    let busybox = std::fs::read(BUSYBOX)
        .with_context(|| format!("the image is built from {BUSYBOX}, which cannot be read; {install}"))?;
    ensure!(is_static_elf(&busybox), "{BUSYBOX} is not statically linked; {install}");
    let listed =
        Command::new(BUSYBOX).arg("--list").output().with_context(|| format!("run {BUSYBOX} --list"))?;
    ensure!(listed.status.success(), "{BUSYBOX} --list failed: {}", listed.status);
    let listed = String::from_utf8_lossy(&listed.stdout);
    let applets: Vec<&str> = listed.lines().map(str::trim).filter(|a| !a.is_empty()).collect();
    for needed in ["sh", "httpd", "wget", "sha256sum", "sleep", "true"] {
        if !applets.contains(&needed) {
            bail!("{BUSYBOX} has no applet {needed}; {install}");
        }
    }
    let file = std::fs::File::create_new(to).with_context(|| format!("create {}", to.display()))?;
    let writer = write(std::io::BufWriter::new(file), &busybox, &applets)
        .and_then(|w| w.into_inner().map_err(std::io::IntoInnerError::into_error))
        .with_context(|| format!("write the image {}", to.display()))?;
    drop(writer);
    Ok(())
}

/// Writes the image's tar.
fn write<W: std::io::Write>(to: W, busybox: &[u8], applets: &[&str]) -> std::io::Result<W> {
    let mut tar = tar::Builder::new(to);
    for &(name, mode, owner) in DIRECTORIES {
        let mut header = header(tar::EntryType::Directory, mode, owner, 0);
        tar.append_data(&mut header, name, std::io::empty())?;
    }
    for (name, mode, data) in [
        ("bin/busybox", 0o755, busybox),
        ("etc/passwd", 0o644, PASSWD.as_bytes()),
        ("etc/group", 0o644, GROUP.as_bytes()),
        ("etc/shadow", 0o640, b"root:*:::::::\n"),
    ] {
        let mut header = header(tar::EntryType::Regular, mode, 0, data.len() as u64);
        tar.append_data(&mut header, name, data)?;
    }
    for applet in applets.iter().filter(|a| **a != "busybox" && !a.contains('/')) {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    let mut header = header(tar::EntryType::Symlink, 0o777, 0, 0);
    tar.append_link(&mut header, "usr/bin/env", "../../bin/busybox")?;
    tar.into_inner()
}

/// A tar header with the fields that every entry here has.
pub(crate) fn header(kind: tar::EntryType, mode: u32, owner: u64, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(1_500_000_000);
    header.set_size(size);
    header
}

/// Whether these bytes are a 64-bit little-endian ELF program that names no interpreter.
fn is_static_elf(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return false;
    }
    let u16_at = |at: usize| elf.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let (Some(offset), Some(size), Some(count)) = (elf.get(32..40), u16_at(54), u16_at(56)) else {
        return false;
    };
    let Ok(offset) = usize::try_from(u64::from_le_bytes(offset.try_into().unwrap_or_default())) else {
        return false;
    };
    (0..usize::from(count)).all(|n| {
        let at = offset.saturating_add(n * usize::from(size));
        let kind = at.checked_add(4).and_then(|end| elf.get(at..end));
        kind.is_some_and(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) != PT_INTERP)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segments: &[u32]) -> Vec<u8> {
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = u8::try_from(segments.len()).unwrap();
        for kind in segments {
            elf.extend(kind.to_le_bytes());
            elf.extend([0; 52]);
        }
        elf
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert!(is_static_elf(&elf(&[1, 2])));
        assert!(!is_static_elf(&elf(&[1, 3])));
        assert!(!is_static_elf(b"#!/bin/sh\n"));
        assert!(!is_static_elf(&elf(&[1, 2])[..100]));
        let mut far = elf(&[1]);
        far[32..40].fill(0xff);
        assert!(!is_static_elf(&far));
    }

    #[test]
    fn the_image_has_a_shell_and_users() {
        let bytes = write(Vec::new(), b"binary", &["sh", "busybox", "["]).unwrap();
        let mut names = Vec::new();
        let mut archive = tar::Archive::new(&bytes[..]);
        for entry in archive.entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().display().to_string());
        }
        for name in ["bin/busybox", "bin/sh", "bin/[", "etc/passwd", "etc/group", "tmp/", "home/vcap/"] {
            assert!(names.iter().any(|n| n == name), "{name} is missing from {names:?}");
        }
        assert_eq!(names.iter().filter(|n| *n == "bin/busybox").count(), 1);
    }
}
