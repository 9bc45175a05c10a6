//! Unpacks a kernel package: the image and the modules, and nothing else of it.
//!
//! The package is an input: dpkg-deb decodes it to a tar stream, of which only regular files with the expected names are
//! written, into a new directory, so that no path and no link of the archive leads elsewhere.

use super::children;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::io::{BufReader, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;
use wardian_archive::Stream;

/// Limit of the files that are written, in bytes.
const MOST: u64 = 2 << 30;
/// Limit of the whole archive, in bytes.
const MOST_UNPACKED: u64 = 8 << 30;
/// Limit of the archive's entries.
const MOST_ENTRIES: usize = 200_000;

/// Unpacks a package into an empty directory, which is returned with `vmlinuz` and `lib/modules/RELEASE`. When this is
/// dropped before its end, the directory is removed.
///
/// # Errors
/// The file is no package of a kernel, is damaged or too large; or the disk is full.
pub(super) async fn unpack(deb: &Path, into: TempDir) -> Result<TempDir> {
    let program = children::find("dpkg-deb", "dpkg")?;
    let mut command = std::process::Command::new(program);
    // A path that begins with - would be an option.
    command.arg("--fsys-tarfile").arg(std::path::absolute(deb).context("find the package")?);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    wardian_sys::tether::tie(&mut command);
    let mut child = command.spawn().context("start dpkg-deb")?;
    let (out, said) = (child.stdout.take(), child.stderr.take());
    let mut killer = Killer(child);
    let stop = Arc::new(AtomicBool::new(false));
    // Dropped with this future: the thread below then sees the end of the stream, and removes the directory itself.
    let _stop = Stop(stop.clone());
    let errors = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        said.map(|said| said.take(4096).read_to_end(&mut text));
        text
    });
    let written = tokio::task::spawn_blocking(move || {
        let done = out.map_or(Ok(()), |out| extract(out, into.path(), &stop));
        done.map(|()| into)
    });
    let shown = deb.display();
    let written = written.await.context("unpack the package")?;
    if written.is_err() {
        let _ = killer.0.kill();
    }
    let status = killer.0.wait().context("wait for dpkg-deb")?;
    // If it was not killed, and has failed, its own words say more than the end of the stream.
    if let Some(code) = status.code().filter(|code| *code != 0) {
        let said = errors.await.unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        bail!("{shown} is no Debian package, or damaged: dpkg-deb ended with {code}: {}", said.trim());
    }
    let into = written.with_context(|| format!("unpack {shown}"))?;
    ensure!(
        into.path().join("vmlinuz").is_file(),
        "{shown} is no package of a kernel: it has no boot/vmlinuz-…"
    );
    Ok(into)
}

/// Kills and reaps the program when dropped.
struct Killer(std::process::Child);

impl Drop for Killer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn extract(tar: impl Read, into: &Path, stop: &AtomicBool) -> Result<()> {
    let going = || if stop.load(Ordering::Relaxed) { bail!("interrupted") } else { Ok(()) };
    let mut archive = Stream::new(BufReader::new(tar), MOST_UNPACKED);
    let (mut left, mut entries) = (MOST, 0);
    while let Some(entry) = archive.next(true)? {
        going()?;
        entries += 1;
        ensure!(entries < MOST_ENTRIES, "it has more than {MOST_ENTRIES} files");
        let is_file = entry.kind == tar::EntryType::Regular && entry.sparse.is_none();
        let Some(name) = wanted(Path::new(OsStr::from_bytes(&entry.path))).filter(|_| is_file) else {
            archive.skip(entry.size, &entry.path)?;
            continue;
        };
        ensure!(entry.size <= left, "its files are larger than {MOST} bytes");
        left -= entry.size;
        let path = into.join(name);
        let what = || format!("write {}", path.display());
        path.parent().map_or(Ok(()), std::fs::create_dir_all).with_context(what)?;
        let mut file = std::fs::File::create_new(&path).with_context(what)?;
        archive.copy(entry.size, &entry.path, |piece| {
            going()?;
            file.write_all(piece).with_context(what)
        })?;
        archive.pad(entry.size, &entry.path)?;
    }
    // dpkg-deb writes padding behind the end of the archive.
    archive.drain()?;
    Ok(())
}

/// Where a file of the archive is kept, below the directory; `None` for the many that no guest needs.
fn wanted(path: &Path) -> Option<PathBuf> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    if parts.first() == Some(&"usr") {
        parts.remove(0);
    }
    match parts[..] {
        ["boot", name] if name.starts_with("vmlinuz-") => Some("vmlinuz".into()),
        ["lib", "modules", _, .., name] if parts.len() <= 16 && is_kept(name) => Some(parts.iter().collect()),
        _ => None,
    }
}

fn is_kept(name: &str) -> bool {
    name == "modules.builtin" || super::modules::name_of(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            // `set_path` refuses the paths that are to be tried.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn only_image_and_modules_are_taken() {
        for (path, kept) in [
            ("./boot/vmlinuz-6.1.0-57-cloud-amd64", Some("vmlinuz")),
            ("./lib/modules/6.1/kernel/fs/ext4/ext4.ko", Some("lib/modules/6.1/kernel/fs/ext4/ext4.ko")),
            ("./usr/lib/modules/6.12/kernel/fs/xfs.ko.xz", Some("lib/modules/6.12/kernel/fs/xfs.ko.xz")),
            ("lib/modules/6.1/modules.builtin", Some("lib/modules/6.1/modules.builtin")),
            ("./boot/System.map-6.1", None),
            ("./lib/modules/6.1/../../../../etc/x.ko", None),
            ("/lib/modules/6.1/x.ko", None),
            ("./usr/share/doc/linux/copyright", None),
            ("./lib/modules/x.ko", None),
        ] {
            assert_eq!(wanted(Path::new(path)), kept.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn nothing_is_written_outside() {
        let base = tempfile::tempdir().unwrap();
        let into = base.path().join("a/b");
        std::fs::create_dir_all(&into).unwrap();
        let tar = archive(&[
            ("../../x.ko", b"1"),
            ("lib/modules/6/../../../../x.ko", b"2"),
            ("lib/modules/6/fs/y.ko", b"3"),
            ("boot/vmlinuz-6", b"4"),
        ]);
        extract(&tar[..], &into, &AtomicBool::new(false)).unwrap();
        assert_eq!(std::fs::read(into.join("lib/modules/6/fs/y.ko")).unwrap(), b"3");
        assert_eq!(std::fs::read(into.join("vmlinuz")).unwrap(), b"4");
        let names: Vec<_> = std::fs::read_dir(base.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a"]);
        // Two images, or one file twice: nothing is overwritten.
        let twice = archive(&[("boot/vmlinuz-7", b"5")]);
        assert!(extract(&twice[..], &into, &AtomicBool::new(false)).is_err());
        assert_eq!(std::fs::read(into.join("vmlinuz")).unwrap(), b"4");
        let cut = &archive(&[("lib/modules/6/fs/z.ko", &[0; 2000])])[..1000];
        assert!(extract(cut, &into, &AtomicBool::new(false)).is_err());
        // A name of 2 MB: what a package says of its sizes does not determine the memory.
        let mut long = tar::Header::new_gnu();
        long.set_entry_type(tar::EntryType::GNULongName);
        long.set_size(2 << 20);
        long.set_cksum();
        let long = [&long.as_bytes()[..], &[b'x'; 2 << 20]].concat();
        let error = extract(&long[..], &into, &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(error.contains("extension records"), "{error}");
        let stopped = extract(&twice[..], &into, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(stopped.to_string(), "interrupted");
    }

    #[tokio::test]
    async fn a_file_that_is_no_package_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let deb = base.path().join("-x.deb");
        std::fs::write(&deb, "no package").unwrap();
        let into = tempfile::tempdir_in(base.path()).unwrap();
        let path = into.path().to_owned();
        let error = format!("{:#}", unpack(&deb, into).await.unwrap_err());
        assert!(!path.exists());
        // Without dpkg-deb on the host the error says so.
        assert!(
            error.contains("no Debian package") || error.contains("dpkg-deb is not installed"),
            "{error}"
        );
    }
}
