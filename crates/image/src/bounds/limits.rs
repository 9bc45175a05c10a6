//! Limits for opening and unpacking images.

/// What one layer, and one image of several, may use of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the files of one layer, holes included. The whole stream may have 4 KiB more for each allowed entry.
    pub max_bytes: u64,
    /// Number of entries of one layer; as many directories may be made implicitly in addition.
    pub max_entries: u64,
    /// Bytes of one path or link target.
    pub max_name: usize,
    /// Components of one path.
    pub max_depth: usize,
    /// Bytes of the files of all layers of an image, holes included.
    pub max_image_bytes: u64,
    /// Number of entries of all layers of an image, including directories made implicitly.
    pub max_image_entries: u64,
    /// The ratio limit: the tar streams of an image may have 256 MiB plus this many bytes for each byte that its
    /// blobs take on the disk; 0: no limit. A blob that several layers share counts once.
    pub max_ratio: u64,
}

impl Limits {
    /// A layer of 64 GiB and 4 Mi entries, an image of 128 GiB and 8 Mi entries that is 200 times as large as its blobs,
    /// names of 4096 bytes (PATH_MAX), 256 components: far beyond any real image. Programs and texts compress to a half or a
    /// tenth; gzip reaches 1:1000 and zstd 1:10 000 with zeros.
    pub const DEFAULT: Self = Self {
        max_bytes: 64 << 30,
        max_entries: 4 << 20,
        max_name: 4096,
        max_depth: 256,
        max_image_bytes: 128 << 30,
        max_image_entries: 8 << 20,
        max_ratio: 200,
    };

    /// The maximum size of the headers in a layer's stream, in bytes.
    pub(crate) fn headers(&self) -> u64 {
        self.max_entries.saturating_mul(4096).saturating_add(64 << 10)
    }
}

impl Default for Limits {
    /// [`Limits::DEFAULT`].
    fn default() -> Self {
        Self::DEFAULT
    }
}
