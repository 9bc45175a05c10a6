//! The cache of unpacked kernels: a directory for each, with a lock file beside it.
//!
//! A kernel is unpacked into a new directory, which gets its name in one step when it is complete. Whoever uses a kernel
//! holds its lock shared; whoever makes or removes it holds the lock alone.

use super::deb;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use wardian_sys::directory::Directory;

/// Where unpacked kernels are kept by default.
pub const USUAL: &str = "/var/cache/wardian/kernels";
/// Size limit in bytes; the kernels that were not used for the longest time are removed first.
const MOST: u64 = 4 << 30;
/// Prefix of directories in the making.
const NEW: &str = ".new-";
/// Name of the file in a kernel's directory with the name of the package that it is from.
const SOURCE: &str = "source";
/// How often a lock that is held by another process is tried.
const AGAIN: Duration = Duration::from_millis(200);

/// A kernel in the cache, which nobody removes while this exists.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// File name of its package, which has the version.
    pub(super) source: String,
    _lock: OwnedFd,
}

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    dir: Directory,
}

impl Cache {
    /// Opens the cache; the directory is made if it is missing.
    ///
    /// # Errors
    /// Other users may write to the directory; or the system's.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let path = std::path::absolute(path).with_context(|| format!("--cache {shown}"))?;
        let (dir, _) = Directory::make(&path, 0o700)
            .with_context(|| format!("the cache of kernels {shown} (another one: --cache DIR)"))?;
        Ok(Self { dir })
    }

    /// The names of the kernels in it.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> =
            self.dir.names()?.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| !name.starts_with('.') && self.path(name).join("vmlinuz").is_file());
        names.sort_by(|a, b| super::apt::natural(a, b));
        Ok(names)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns a kernel of this name. If it is missing, `fetch` puts its package into the directory that it is given, and
    /// the package is unpacked.
    ///
    /// # Errors
    /// The package cannot be fetched or unpacked. Nothing is left of it then.
    pub(super) async fn get<F>(&self, name: &str, tell: &(dyn Fn(&str) + Sync), fetch: F) -> Result<Entry>
    where
        F: AsyncFnOnce(&Path) -> Result<PathBuf>,
    {
        let dir = self.path(name);
        let lock = self.lock(name, FlockOperation::NonBlockingLockShared, tell).await?;
        if let Some(entry) = Self::entry(&dir, lock) {
            return Ok(entry);
        }
        let alone = self.lock(name, FlockOperation::NonBlockingLockExclusive, tell).await?;
        if !dir.join("vmlinuz").is_file() {
            self.make(&dir, fetch).await.with_context(|| {
                format!("unpack a kernel into {} (another place: --cache DIR)", self.dir.path().display())
            })?;
        }
        flock(&alone, FlockOperation::NonBlockingLockShared).context("lock the kernel")?;
        self.shrink();
        Self::entry(&dir, alone).context("the kernel was removed from the cache meanwhile: try again")
    }

    async fn make<F>(&self, dir: &Path, fetch: F) -> Result<()>
    where
        F: AsyncFnOnce(&Path) -> Result<PathBuf>,
    {
        let new = || {
            let made = tempfile::Builder::new().prefix(NEW).tempdir_in(self.dir.path());
            made.with_context(|| format!("make a directory in {}", self.dir.path().display()))
        };
        let fetched = new()?;
        let package = fetch(fetched.path()).await?;
        let unpacked = deb::unpack(&package, new()?).await?;
        let source = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        std::fs::write(unpacked.path().join(SOURCE), source).context("write the kernel's source")?;
        // After a power loss a complete name with incomplete files would be taken for a kernel.
        let sync = rustix::fs::open(unpacked.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        sync.and_then(rustix::fs::syncfs).context("write the kernel to the disk")?;
        std::fs::rename(unpacked.path(), dir).with_context(|| format!("rename to {}", dir.display()))?;
        let _ = unpacked.keep();
        Ok(())
    }

    fn entry(dir: &Path, lock: OwnedFd) -> Option<Entry> {
        if !dir.join("vmlinuz").is_file() {
            return None;
        }
        let source = std::fs::read_to_string(dir.join(SOURCE)).unwrap_or_default();
        // Written anew: the time of its last use.
        let _ = std::fs::write(dir.join(SOURCE), &source);
        Some(Entry { dir: dir.to_owned(), source, _lock: lock })
    }

    async fn lock(&self, name: &str, how: FlockOperation, tell: &(dyn Fn(&str) + Sync)) -> Result<OwnedFd> {
        let (file, path) = self.lock_file(name)?;
        let mut quiet = true;
        loop {
            match flock(&file, how) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
            }
            if std::mem::take(&mut quiet) {
                tell(&format!("waiting for another program that unpacks or uses {name}"));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn lock_file(&self, name: &str) -> Result<(OwnedFd, PathBuf)> {
        let path = self.path(&format!(".{name}.lock"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        Ok((file, path))
    }

    /// Removes kernels that nobody uses, while the cache is too large, and what a killed program has left.
    fn shrink(&self) {
        let mut kernels: Vec<(SystemTime, String, u64)> = Vec::new();
        for name in
            self.dir.names().unwrap_or_default().into_iter().filter_map(|name| name.into_string().ok())
        {
            let path = self.path(&name);
            let used = path.join(SOURCE).metadata().and_then(|meta| meta.modified());
            if name.starts_with(NEW) {
                let age = path
                    .metadata()
                    .and_then(|meta| meta.modified())
                    .ok()
                    .and_then(|made| made.elapsed().ok());
                if age.is_some_and(|age| age > Duration::from_secs(86_400)) {
                    let _ = std::fs::remove_dir_all(&path);
                }
            } else if let Ok(used) = used {
                kernels.push((used, name, size(&path)));
            }
        }
        let mut total: u64 = kernels.iter().map(|(_, _, size)| size).sum();
        kernels.sort();
        for (_, name, size) in kernels {
            if total <= MOST {
                break;
            }
            let Ok((lock, _)) = self.lock_file(&name) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && std::fs::remove_dir_all(self.path(&name)).is_ok()
            {
                total -= size;
            }
        }
    }
}

/// Bytes of the files below a directory.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn cache() -> (tempfile::TempDir, Cache) {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::open(&base.path().join("kernels")).unwrap();
        (base, cache)
    }

    fn quiet(_: &str) {}

    fn put(cache: &Cache, name: &str) {
        std::fs::create_dir(cache.path(name)).unwrap();
        for file in ["vmlinuz", SOURCE] {
            std::fs::write(cache.path(name).join(file), "x").unwrap();
        }
    }

    #[tokio::test]
    async fn a_failed_kernel_leaves_nothing() {
        let (_base, cache) = cache();
        let failed = cache.get("k", &quiet, async |_: &Path| anyhow::bail!("no network")).await.unwrap_err();
        assert!(format!("{failed:#}").contains("no network"), "{failed:#}");
        let damaged = async |dir: &Path| {
            let path = dir.join("x.deb");
            std::fs::write(&path, "x")?;
            Ok(path)
        };
        assert!(cache.get("k", &quiet, damaged).await.is_err());
        let left: Vec<_> = cache.dir.names().unwrap().into_iter().filter(|name| name != ".k.lock").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn a_kernel_that_is_there_is_not_fetched_and_not_removed_in_use() {
        let (_base, cache) = cache();
        put(&cache, "k");
        let entry = cache.get("k", &quiet, async |_: &Path| panic!("fetched")).await.unwrap();
        assert_eq!((entry.source.as_str(), cache.names().unwrap()), ("x", vec!["k".to_owned()]));
        // Sparse: as large as the limit.
        let large = std::fs::File::create(cache.path("k").join("large")).unwrap();
        large.set_len(MOST + 1).unwrap();
        cache.shrink();
        assert!(entry.dir.join("vmlinuz").exists());
        drop(entry);
        put(&cache, "other");
        cache.shrink();
        assert_eq!(cache.names().unwrap(), ["other"]);
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = format!("{:#}", Cache::open(base.path()).unwrap_err());
        assert!(error.contains("--cache"), "{error}");
    }
}
