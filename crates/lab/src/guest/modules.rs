//! Finds the modules that a guest needs, and what they depend on, in the order in which they are loaded.
//!
//! A package of a kernel has no modules.dep, which depmod makes when it is installed. So the dependencies are read from
//! the modules themselves: the section `.modinfo` (MODULE_INFO of the kernel's include/linux/module.h).

use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSection as _};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What every guest needs: the bus, the disk, the console, and what is under test.
const ALWAYS: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "overlay"];
/// Limit of a module's size in bytes, when it is decompressed.
const MOST: u64 = 64 << 20;
/// Limit of all modules that a guest loads, in bytes: they are in its memory too, and all of them in this program's.
const MOST_TOGETHER: u64 = 256 << 20;
/// Limit of the modules that a guest loads.
const MOST_MODULES: usize = 500;
/// Limit of the files below a directory of modules, and of its depth.
const MOST_FILES: usize = 200_000;
const MOST_DEEP: usize = 16;
/// Implementations of an algorithm that file systems request by its name, and that nothing depends on.
const BY_NAME: [(&str, &[&str]); 1] = [("crc32c", &["crc32c_generic", "crc32c_intel", "crc32c_cryptoapi"])];

/// A module to load.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Its name, with underscores.
    pub(super) name: String,
    /// The module, decompressed.
    pub(super) bytes: Vec<u8>,
}

/// The name of a module, from the name of its file: `crc32c-intel.ko.xz` is `crc32c_intel`.
pub(super) fn name_of(file: &str) -> Option<String> {
    let stem =
        file.strip_suffix(".xz").or(file.strip_suffix(".zst")).or(file.strip_suffix(".gz")).unwrap_or(file);
    let name = stem.strip_suffix(".ko")?;
    (!name.is_empty() && name.len() <= 64).then(|| name.replace('-', "_"))
}

/// The modules to load, each after those that it needs. A name without a file is a part of the kernel itself, or is
/// missed by the guest, which says so. `dir` is `lib/modules/RELEASE`.
///
/// # Errors
/// A module cannot be read.
pub(super) fn closure(dir: &Path, wanted: &[String]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(dir, MOST_DEEP, &mut files)?;
    let mut found = Found { files, seen: BTreeSet::new(), left: MOST_TOGETHER, loaded: Vec::new() };
    for name in ALWAYS.into_iter().chain(wanted.iter().map(String::as_str)) {
        found.add(&name.replace('-', "_"), 0)?;
    }
    Ok(found.loaded)
}

struct Found {
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    /// Bytes that further modules may have.
    left: u64,
    loaded: Vec<Module>,
}

impl Found {
    fn add(&mut self, name: &str, depth: usize) -> Result<()> {
        for (_, implementations) in BY_NAME.iter().filter(|(algorithm, _)| *algorithm == name) {
            for one in *implementations {
                self.add(one, depth + 1)?;
            }
        }
        let Some(path) = self.files.get(name).cloned() else { return Ok(()) };
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        ensure!(self.seen.len() <= MOST_MODULES && depth < 64, "{name} depends on too many modules");
        let bytes = read(&path, self.left).with_context(|| format!("read {}", path.display()))?;
        self.left -= bytes.len() as u64;
        for needed in needs(&bytes).with_context(|| format!("read {}", path.display()))? {
            self.add(&needed, depth + 1)?;
        }
        self.loaded.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

fn collect(dir: &Path, deep: usize, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        // `build` and `source` are symbolic links to a kernel's source code.
        let kind = entry.file_type()?;
        if kind.is_dir() && deep > 0 {
            collect(&entry.path(), deep - 1, files)?;
        } else if kind.is_file()
            && let Some(name) = entry.file_name().to_str().and_then(name_of)
        {
            files.insert(name, entry.path());
            ensure!(files.len() <= MOST_FILES, "{} has more than {MOST_FILES} modules", dir.display());
        }
    }
    Ok(())
}

/// Reads a module, of at most so many bytes.
fn read(path: &Path, left: u64) -> Result<Vec<u8>> {
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    let mut bytes = Vec::new();
    let reader: Box<dyn Read> = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, 256 << 10)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    };
    let most = MOST.min(left);
    reader.take(most + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MOST, "it is larger than {MOST} bytes");
    ensure!(bytes.len() as u64 <= most, "all modules together are larger than {MOST_TOGETHER} bytes");
    Ok(bytes)
}

/// Names of the modules that must be loaded before.
fn needs(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("it is no module")?;
    let Some(section) = file.section_by_name(".modinfo") else { return Ok(Vec::new()) };
    let info = section.data().context("its section .modinfo")?;
    let mut names = Vec::new();
    for entry in info.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()) {
        if let Some(list) = entry.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")));
        } else if let Some(list) = entry.strip_prefix("softdep=") {
            // `pre: a b post: c`: those after `post:` are loaded by nobody here.
            let words = list.split_whitespace().skip_while(|word| *word != "pre:").skip(1);
            names.extend(words.take_while(|word| !word.ends_with(':')).map(|name| name.replace('-', "_")));
        }
    }
    Ok(names)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ELF file with this text as its section `.modinfo`, and that of its section names.
    pub(crate) fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64_usize, 64 + info.len());
        let sections_at = (names_at + names.len()).next_multiple_of(8);
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        // Type REL, machine x86-64, version 1.
        out.extend(1_u16.to_le_bytes());
        out.extend(62_u16.to_le_bytes());
        out.extend(1_u32.to_le_bytes());
        for field in [0, 0, sections_at as u64] {
            out.extend(field.to_le_bytes());
        }
        out.extend(0_u32.to_le_bytes());
        for field in [64_u16, 0, 0, 64, 3, 2] {
            out.extend(field.to_le_bytes());
        }
        out.extend(info);
        out.extend(names);
        out.resize(sections_at + 64, 0);
        for (name, kind, at, size) in [(1_u32, 1_u32, info_at, info.len()), (10, 3, names_at, names.len())] {
            out.extend(name.to_le_bytes());
            out.extend(kind.to_le_bytes());
            for field in [0, 0, at as u64, size as u64, 0, 1, 0] {
                out.extend(field.to_le_bytes());
            }
        }
        out
    }

    #[test]
    fn names() {
        for (file, name) in [
            ("ext4.ko", Some("ext4")),
            ("crc32c-intel.ko.xz", Some("crc32c_intel")),
            ("a.ko.zst", Some("a")),
            ("a.ko.gz", Some("a")),
            ("modules.dep", None),
            (".ko", None),
            ("ext4.ko.bak", None),
        ] {
            assert_eq!(name_of(file).as_deref(), name, "{file}");
        }
    }

    #[test]
    fn each_module_comes_after_those_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, info: &[u8]| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, module(info)).unwrap();
        };
        write("kernel/fs/ext4.ko", b"license=GPL\0softdep=pre: crc32c post: late\0depends=jbd2,mb-cache\0");
        write("kernel/fs/jbd2.ko", b"depends=\0");
        write("kernel/fs/mb-cache.ko", b"depends=ext4\0");
        write("kernel/crypto/crc32c_generic.ko", b"");
        write("kernel/late.ko", b"");
        write("kernel/drivers/virtio_blk.ko", b"depends=not_there\0");
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            let modules = closure(dir.path(), &wanted).unwrap();
            modules.into_iter().map(|module| module.name).collect::<Vec<_>>()
        };
        // The circle of ext4 and mb_cache ends nothing.
        assert_eq!(names(&["ext4"]), ["virtio_blk", "crc32c_generic", "jbd2", "mb_cache", "ext4"]);
        assert_eq!(names(&["late", "xfs"]), ["virtio_blk", "late"]);
    }

    #[test]
    fn compressed_modules_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let plain = module(b"depends=\0");
        std::fs::write(dir.path().join("a.ko.zst"), zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &plain).unwrap();
        std::fs::write(dir.path().join("b.ko.gz"), gz.finish().unwrap()).unwrap();
        let found = closure(dir.path(), &["a".to_owned(), "b".to_owned()]).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|module| module.bytes == plain));
    }

    #[test]
    fn all_modules_together_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        // Each is a few KB as a file.
        let padded = [module(b""), vec![0; 60 << 20]].concat();
        let padded = zstd::encode_all(&padded[..], 1).unwrap();
        let names: Vec<String> = (0..5).map(|n| format!("m{n}")).collect();
        for name in &names {
            std::fs::write(dir.path().join(format!("{name}.ko.zst")), &padded).unwrap();
        }
        assert_eq!(closure(dir.path(), &names[..4]).unwrap().len(), 4);
        let error = format!("{:#}", closure(dir.path(), &names).unwrap_err());
        assert!(error.contains("all modules together"), "{error}");
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for content in [&b"no module"[..], &module(b"depends=\0")[..90]] {
            std::fs::write(dir.path().join("ext4.ko"), content).unwrap();
            let error = format!("{:#}", closure(dir.path(), &["ext4".to_owned()]).unwrap_err());
            assert!(error.contains("ext4.ko"), "{error}");
        }
        std::fs::write(dir.path().join("ext4.ko.xz"), "no xz").unwrap();
        std::fs::remove_file(dir.path().join("ext4.ko")).unwrap();
        assert!(closure(dir.path(), &["ext4".to_owned()]).is_err());
    }
}
