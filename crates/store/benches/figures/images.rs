//! The images that root file systems are made from.

use std::path::{Path, PathBuf};

use tar::EntryType;
use wardian_image::Digest;

use crate::sample::{self, Layer, Layout, Result};

/// As many layers as an image may reasonably have; docker allows 127.
pub const DEEP: usize = 60;

/// Addresses of images.
pub struct Images {
    /// A layout with the layer of 392 MB.
    pub large: Option<PathBuf>,
    small: PathBuf,
}

impl Images {
    /// Generates them below the directory; the large one, which takes a while, only if it is wanted.
    pub fn make(dir: &Path, large: bool) -> Result<Self> {
        let mut layout = Layout::new(dir.join("small"))?;
        let layers = (0..DEEP).map(|index| layer(&layout, index)).collect::<Result<Vec<_>>>()?;
        for count in [1, DEEP] {
            layout.image(&count.to_string(), &layers[..count])?;
        }
        let small = layout.finish()?;
        Ok(Self { small, large: large.then(|| sample::layout(dir)).transpose()? })
    }

    /// An image of so many small layers.
    pub fn of_layers(&self, count: usize) -> String {
        format!("oci://{}:{count}", self.small.display())
    }

    /// The large layer in a compression, see [`sample::layout`].
    pub fn large(&self, tag: &str) -> Result<String> {
        Ok(format!("oci://{}:{tag}", self.large.as_ref().ok_or("the large layer was not made")?.display()))
    }
}

fn layer(layout: &Layout, index: usize) -> Result<Layer> {
    let mut tar = Vec::new();
    sample::entry(&mut tar, EntryType::Directory, "etc/", "", &[])?;
    sample::entry(&mut tar, EntryType::Regular, &format!("etc/file-{index}"), "", b"text\n")?;
    tar.resize(tar.len() + 1024, 0);
    layout.blob(&tar)?;
    let digest = Digest::of(&tar);
    Ok(Layer { diff_id: digest.clone(), blob: digest, size: tar.len() as u64 })
}
