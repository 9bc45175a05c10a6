//! What benchmarks unpack: one layer of 392 MB and 31,000 entries, like that of a distribution's image.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tar::{EntryType, Header};
use wardian_image::Digest;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DIRS: u64 = 2_600;
const FILES: u64 = 26_200;
const SYMLINKS: u64 = 2_200;
/// Sum of the files.
const BYTES: u64 = 376 << 20;

/// What everybody does without us; it verifies nothing.
pub fn pipe(layout: &Path, tool: &str, into: &Path) -> Result<Duration> {
    let blob = layout.join(tool);
    let start = Instant::now();
    let mut decoder =
        Command::new(tool).arg("-dc").stdin(File::open(blob)?).stdout(Stdio::piped()).spawn()?;
    let stream = decoder.stdout.take().ok_or("no pipe")?;
    let tar = Command::new("tar").arg("x").arg("-C").arg(into).stdin(stream).status()?;
    if !decoder.wait()?.success() || !tar.success() {
        return Err(format!("{tool} | tar failed").into());
    }
    Ok(start.elapsed())
}

/// An OCI layout that is being made.
pub struct Layout {
    dir: PathBuf,
    manifests: Vec<String>,
}

/// A layer in a layout.
#[derive(Clone)]
pub struct Layer {
    pub diff_id: Digest,
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
}

impl Layout {
    pub fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        Ok(Self { dir, manifests: Vec::new() })
    }

    fn path(&self, blob: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(blob.as_hex())
    }

    /// Adds a blob; its descriptor, without the closing brace.
    pub fn blob(&self, data: &[u8]) -> Result<String> {
        let digest = Digest::of(data);
        fs::write(self.path(&digest), data)?;
        Ok(format!(r#"{{"digest":"{digest}","size":{}"#, data.len()))
    }

    /// Adds an image of these layers, bottom first.
    pub fn image(&mut self, tag: &str, layers: &[Layer]) -> Result<()> {
        let list = |part: &dyn Fn(&Layer) -> String| layers.iter().map(part).collect::<Vec<_>>().join(",");
        let diff_ids = list(&|layer| format!(r#""{}""#, layer.diff_id));
        let config = self.blob(format!(r#"{{"rootfs":{{"diff_ids":[{diff_ids}]}}}}"#).as_bytes())?;
        let layers = list(&|layer| format!(r#"{{"digest":"{}","size":{}}}"#, layer.blob, layer.size));
        let manifest = self.blob(format!(r#"{{"config":{config}}},"layers":[{layers}]}}"#).as_bytes())?;
        let name = format!(r#""annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#);
        self.manifests.push(format!("{manifest},{name}}}"));
        Ok(())
    }

    /// Where it is.
    pub fn finish(self) -> Result<PathBuf> {
        let index = format!(r#"{{"manifests":[{}]}}"#, self.manifests.join(","));
        fs::write(self.dir.join("index.json"), index)?;
        Ok(self.dir)
    }
}

/// An OCI layout with the layer in both compressions, tagged `zstd` and `gzip`, and four times in one image, tagged
/// `zstd-4` and `gzip-4`; the blobs are also linked by the compressions' names.
pub fn layout(dir: &Path) -> Result<PathBuf> {
    let mut layout = Layout::new(dir.join("layout"))?;
    let plain = dir.join("layer.tar");
    generate(&plain)?;
    let diff_id = digest(&plain)?;
    let compress = |(tool, level)| -> Result<_> {
        let path = layout.dir.join(tool);
        let (plain, blob) = (File::open(&plain)?, File::create(&path)?);
        let child = Command::new(tool).args(["-c", level]).stdin(plain).stdout(blob).spawn()?;
        Ok((tool, path, child))
    };
    let running = [("zstd", "-3"), ("gzip", "-6")].map(compress);
    for running in running {
        let (tool, path, mut child) = running?;
        if !child.wait()?.success() {
            return Err(format!("{tool} failed").into());
        }
        let (blob, size) = (digest(&path)?, path.metadata()?.len());
        fs::hard_link(&path, layout.path(&blob))?;
        let layer = Layer { diff_id: diff_id.clone(), blob, size };
        layout.image(tool, std::slice::from_ref(&layer))?;
        // Chain ids differ by what is below, and so these are four layers.
        layout.image(&format!("{tool}-4"), &vec![layer; 4])?;
    }
    fs::remove_file(&plain)?;
    layout.finish()
}

fn digest(path: &Path) -> Result<Digest> {
    Ok(Digest::of(&fs::read(path)?))
}

/// Files of many sizes as in a distribution's image (half of them below 2 KiB, a few of some MiB), whose data compresses
/// to about a third.
fn generate(path: &Path) -> Result<()> {
    let mut out = io::BufWriter::new(File::create(path)?);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    // Sizes of a Pareto distribution, then scaled to the sum.
    let raw: Vec<f64> = (0..FILES)
        .map(|_| {
            let u = (next() >> 11) as f64 / (1u64 << 53) as f64;
            (700.0 / (1.0 - u).powf(1.0 / 0.95)).min(12e6)
        })
        .collect();
    let scale = BYTES as f64 / raw.iter().sum::<f64>();
    let words: Vec<Vec<u8>> = (0..4096)
        .map(|_| (0..3 + next() % 10).map(|_| b'a' + (next() % 26) as u8).chain([b' ']).collect())
        .collect();
    let mut data = Vec::new();
    let mut file = 0;
    for dir in 0..DIRS {
        let name = format!("usr/share/{}/{dir}", dir / 50);
        entry(&mut out, EntryType::Directory, &format!("{name}/"), "", &[])?;
        while file * DIRS < (dir + 1) * FILES && file < FILES {
            let size = (raw[file as usize] * scale) as usize;
            data.clear();
            while data.len() < size {
                // Words, and noise that does not compress.
                if next() % 16 == 0 {
                    data.extend_from_slice(&next().to_le_bytes());
                } else {
                    data.extend_from_slice(&words[(next() % 4096) as usize]);
                }
            }
            data.truncate(size);
            entry(&mut out, EntryType::Regular, &format!("{name}/file-{file}"), "", &data)?;
            file += 1;
        }
        if dir < SYMLINKS {
            entry(&mut out, EntryType::Symlink, &format!("{name}/link"), "../target", &[])?;
        }
    }
    out.write_all(&[0; 1024])?;
    out.flush()?;
    Ok(())
}

/// Adds an entry of root's to a tar.
pub fn entry(out: &mut impl Write, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    if !link.is_empty() {
        header.set_link_name(link)?;
    }
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(if kind == EntryType::Regular { 0o644 } else { 0o755 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    out.write_all(data)?;
    out.write_all(&[0; 512][..(512 - data.len() % 512) % 512])?;
    Ok(())
}
