//! Kernels by name: a package of Debian's, a package file, a directory as `make` leaves it, or an image.

use super::cache::{Cache, Entry};
use super::{apt, image};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// What a kernel was named as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A package that apt fetches.
    Package(String),
    /// The newest kernel of a version, which apt knows: `6.12`.
    Version(String),
    /// A package file.
    Deb(PathBuf),
    /// A directory with an image, and modules unless all that is needed is built in.
    Directory(PathBuf),
    /// An image; its modules are those of its release on this host, if there are any.
    Image(PathBuf),
}

/// A kernel that can be booted.
#[derive(Debug)]
pub struct Kernel {
    /// Its image.
    pub image: PathBuf,
    /// Its modules, `lib/modules/RELEASE`.
    pub modules: Option<PathBuf>,
    /// Its release, as far as the image tells it.
    pub release: Option<String>,
    /// Where it is from: the file name of its package, or a path.
    pub source: String,
    /// Keeps it in the cache.
    _entry: Option<Entry>,
}

impl Name {
    /// Parses a name. A path has a `/` or exists.
    ///
    /// # Errors
    /// There is no such file, and apt can have no such package.
    pub fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        let is_path = text.contains('/');
        if !is_path && apt::is_package(text) {
            return Ok(Self::Package(text.to_owned()));
        }
        let is_version = text.starts_with(|c: char| c.is_ascii_digit())
            && text.len() <= 64
            && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-+~".contains(c));
        if is_version && !is_path && !path.is_dir() {
            return Ok(Self::Version(text.to_owned()));
        }
        let meta = path.metadata().with_context(|| {
            format!("{text:?} is no kernel: give a package (linux-image-…), a version (6.12), a .deb file, or a directory with a kernel image")
        })?;
        if meta.is_dir() {
            Ok(Self::Directory(path.to_owned()))
        } else if path.extension().is_some_and(|extension| extension == "deb") {
            Ok(Self::Deb(path.to_owned()))
        } else {
            ensure!(meta.is_file(), "{text:?} is no kernel: neither a file nor a directory");
            Ok(Self::Image(path.to_owned()))
        }
    }

    /// Whether apt has to be asked.
    pub fn is_apts(&self) -> bool {
        matches!(self, Self::Package(_) | Self::Version(_))
    }

    /// Makes a version the name of its package, and checks that the package or the files exist.
    ///
    /// # Errors
    /// apt offers no such kernel and the cache has none, or a directory has no image.
    pub fn settle(self, offered: &[String], cached: &[String]) -> Result<Self> {
        match self {
            Self::Version(version) => {
                let found = apt::newest(offered, &version).or_else(|| apt::newest(cached, &version));
                let package = found.with_context(|| {
                    format!("apt offers no kernel {version}: see `wardian lab bisect --list`, perhaps after `apt-get update`")
                })?;
                Ok(Self::Package(package.to_owned()))
            }
            Self::Package(package) => {
                ensure!(
                    offered.contains(&package) || cached.contains(&package),
                    "apt offers no package {package}: see `wardian lab bisect --list`, perhaps after `apt-get update`"
                );
                Ok(Self::Package(package))
            }
            Self::Directory(dir) => {
                let image = image_in(&dir)?;
                image::release(&image)?;
                Ok(Self::Directory(dir))
            }
            Self::Image(path) => {
                image::release(&path)?;
                Ok(Self::Image(path))
            }
            deb @ Self::Deb(_) => Ok(deb),
        }
    }

    /// Fetches and unpacks the kernel, unless the cache has it already.
    ///
    /// # Errors
    /// It cannot be fetched, or is damaged.
    pub async fn kernel(&self, cache: &Path, tell: &(dyn Fn(&str) + Sync)) -> Result<Kernel> {
        match self {
            Self::Version(version) => bail!("{version} is not settled"),
            Self::Package(package) => {
                let fetch = async |dir: &Path| {
                    tell(&format!("fetching {package}"));
                    apt::download(package, dir).await
                };
                from_entry(Cache::open(cache)?.get(package, tell, fetch).await?)
            }
            Self::Deb(path) => {
                let digest = digest(path).with_context(|| format!("read {}", path.display()))?;
                let fetch = async |_: &Path| Ok(path.clone());
                let name = format!("deb-{digest}");
                from_entry(Cache::open(cache)?.get(&name, tell, fetch).await?)
            }
            Self::Directory(dir) => {
                let image = image_in(dir)?;
                let release = image::release(&image)?;
                let modules = modules_in(dir, release.as_deref())?;
                Ok(Kernel { image, modules, release, source: dir.display().to_string(), _entry: None })
            }
            Self::Image(path) => {
                let release = image::release(path)?;
                let of_host = release.as_ref().map(|release| Path::new("/lib/modules").join(release));
                let modules = of_host.filter(|dir| dir.is_dir());
                let source = path.display().to_string();
                Ok(Kernel { image: path.clone(), modules, release, source, _entry: None })
            }
        }
    }
}

/// The first half of a file's SHA-256, in hexadecimal digits.
fn digest(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => hash.update(&chunk[..read]),
        }
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// The packages in the cache that apt fetched; none if the cache cannot be opened.
pub fn cached(cache: &Path) -> Vec<String> {
    // A cache is made by those who put something in it.
    let names = cache.is_dir().then(|| Cache::open(cache).and_then(|cache| cache.names()));
    let names = names.and_then(Result::ok).unwrap_or_default();
    names.into_iter().filter(|name| apt::is_package(name)).collect()
}

fn from_entry(entry: Entry) -> Result<Kernel> {
    let image = entry.dir.join("vmlinuz");
    let release = image::release(&image)?;
    let modules = modules_in(&entry.dir, release.as_deref())?;
    Ok(Kernel { image, modules, release, source: entry.source.clone(), _entry: Some(entry) })
}

/// The image in a directory.
fn image_in(dir: &Path) -> Result<PathBuf> {
    for name in ["vmlinuz", "bzImage", "arch/x86/boot/bzImage"] {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let mut found = Vec::new();
    for below in [dir.to_owned(), dir.join("boot")] {
        let entries = std::fs::read_dir(below).into_iter().flatten().flatten();
        let is_image = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
                && path.is_file()
        };
        found.extend(entries.map(|entry| entry.path()).filter(is_image));
    }
    let shown = dir.display();
    ensure!(found.len() < 2, "{shown} has several kernels: name the image itself, as {}", found[0].display());
    found.pop().with_context(|| {
        format!("{shown} has no kernel image: vmlinuz, vmlinuz-VERSION, bzImage or arch/x86/boot/bzImage (`make bzImage`)")
    })
}

/// The modules in a directory: those of the release, or the only ones.
fn modules_in(dir: &Path, release: Option<&str>) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for below in ["lib/modules", "usr/lib/modules"] {
        let entries = std::fs::read_dir(dir.join(below)).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found.sort();
    let has_name = |path: &&PathBuf| path.file_name().and_then(|name| name.to_str()) == release;
    if let Some(exact) = found.iter().find(has_name) {
        return Ok(Some(exact.clone()));
    }
    match (release, &found[..]) {
        (_, []) => Ok(None),
        (None, [only]) => Ok(Some(only.clone())),
        (release, [other, ..]) => bail!(
            "the kernel in {} is {}, and the modules there are of another one: {}",
            dir.display(),
            release.unwrap_or("of an unknown release"),
            other.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Vec<u8> {
        let mut head = vec![0; 0x1000];
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x20e..0x210].copy_from_slice(&0x600_u16.to_le_bytes());
        head[0x800..0x800 + text.len()].copy_from_slice(text.as_bytes());
        head
    }

    #[test]
    fn names_are_parsed() {
        let dir = tempfile::tempdir().unwrap();
        let deb = dir.path().join("k.deb");
        let file = dir.path().join("vmlinuz");
        for path in [&deb, &file] {
            std::fs::write(path, "x").unwrap();
        }
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let package = "linux-image-6.12.117+deb12-cloud-amd64";
        for (given, name) in [
            (package.to_owned(), Name::Package(package.into())),
            ("6.12".to_owned(), Name::Version("6.12".into())),
            ("6.1.0-50".to_owned(), Name::Version("6.1.0-50".into())),
            (text(&deb), Name::Deb(deb.clone())),
            (text(dir.path()), Name::Directory(dir.path().to_owned())),
            (text(&file), Name::Image(file.clone())),
        ] {
            assert_eq!(Name::parse(&given).unwrap(), name);
        }
        for bad in ["", "bash", "--help", "/dev/null", "/no/such/kernel", "linux-image-", "6.1 -o x", "v6.12"]
        {
            let error = Name::parse(bad).unwrap_err().to_string();
            assert!(error.contains("is no kernel"), "{bad}: {error}");
        }
    }

    #[test]
    fn unknown_kernels_are_refused_before_anything_boots() {
        let offered = vec!["linux-image-6.1.0-50-cloud-amd64".to_owned()];
        let settle = |text: &str| Name::parse(text).unwrap().settle(&offered, &[]);
        assert_eq!(settle("6.1").unwrap(), Name::Package(offered[0].clone()));
        for unknown in ["6.12", "linux-image-6.12.1-amd64"] {
            let error = settle(unknown).unwrap_err().to_string();
            assert!(error.contains("--list"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_directory_has_an_image_and_its_modules() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("k");
        std::fs::create_dir_all(dir.join("arch/x86/boot")).unwrap();
        let name = Name::Directory(dir.clone());
        let error = name.clone().settle(&[], &[]).unwrap_err().to_string();
        assert!(error.contains("no kernel image"), "{error}");
        std::fs::write(dir.join("arch/x86/boot/bzImage"), image("6.12.1-small (a@b)")).unwrap();
        let kernel = async || name.kernel(base.path(), &|_| {}).await;
        let built_in = kernel().await.unwrap();
        assert_eq!((built_in.release.as_deref(), built_in.modules), (Some("6.12.1-small"), None));
        std::fs::create_dir_all(dir.join("lib/modules/6.12.1")).unwrap();
        let error = kernel().await.unwrap_err().to_string();
        assert!(error.contains("of another one"), "{error}");
        let modules = dir.join("lib/modules/6.12.1-small");
        std::fs::create_dir_all(&modules).unwrap();
        assert_eq!(kernel().await.unwrap().modules, Some(modules));
        // Random bytes are no image.
        std::fs::write(dir.join("vmlinuz"), [0x5a; 100_000]).unwrap();
        assert!(name.clone().settle(&[], &[]).unwrap_err().to_string().contains("HdrS"));
        std::fs::remove_dir_all(dir.join("arch")).unwrap();
        std::fs::remove_file(dir.join("vmlinuz")).unwrap();
        for version in ["1", "2"] {
            std::fs::write(dir.join(format!("vmlinuz-{version}")), image(version)).unwrap();
        }
        assert!(kernel().await.unwrap_err().to_string().contains("several kernels"));
    }
}
