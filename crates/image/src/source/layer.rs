//! One layer: opening its blob, unpacking and verifying it.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use crate::bounds::budget::{Budget, Extent};
use crate::bounds::watch::Watch;
use crate::digest::Digest;
use crate::disk::rootfs;
use crate::disk::stored;
use crate::error::Error;
use crate::format::archive::Section;
use crate::format::oci::Layout;
use crate::overlay::base::Base;
use crate::remote::{Fetch, Location, NamedBy, Remote, Stop};
use crate::source::app::Droplet;
use crate::unpack::entries::{Limits, Rules, Unpacked, unpack};
use crate::unpack::pipeline::{self, Input};

/// One layer of an image. Cheap to keep: the data is read when it is unpacked.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Hex name of this layer on top of those below it, safe as a file name. For OCI the chain id (OCI image spec,
    /// "Layer ChainID"); for a tar file a hash of its path and state: device, inode, size, and the
    /// times of its last modification and of its inode's last change.
    ///
    /// With a base directory the same blob makes another tree, so its id, and those of the layers above, differ: it is
    /// the sha256 of `<chain id as above> base-directory:<directory>` (no diff id looks like that), the directory
    /// without what means nothing in it (`/home/./x/` is `home/x`).
    pub chain_id: String,
    pub(crate) blob: Blob,
    pub(crate) base: Option<Base>,
    /// A layer below it has the same blob, or one of the same content.
    again: bool,
    /// What the layers of its image share.
    budget: Arc<Budget>,
}

/// Where the bytes of a layer are, and what they must be.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    Oci {
        layout: Arc<Layout>,
        digest: Digest,
        size: u64,
        diff_id: Digest,
        /// Where it is if the layout lacks it; none if nobody said.
        locations: Option<Arc<[Location]>>,
        remote: Remote,
    },
    /// A file in an archive, which only its content vouches for.
    Member {
        section: Section,
        diff_id: Digest,
    },
    File {
        path: PathBuf,
        identity: Identity,
    },
    /// A directory that is a root file system.
    Tree {
        root: Arc<rootfs::Root>,
        seen: rootfs::Seen,
    },
    App(Arc<Droplet>),
}

/// Tells one state of a file from another, without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub(crate) size: u64,
    mtime: (i64, i64),
    /// Nobody can set it, as the modification time can be set.
    ctime: (i64, i64),
    device: u64,
    inode: u64,
}

/// How old the last change must be for the next one to get another time: file systems take the kernel's time of the last
/// tick, and those are at most 10 ms apart (`CONFIG_HZ`); the clock that is asked here is ahead of that.
const TICK: Duration = Duration::from_millis(25);
/// The same where times are whole seconds; on FAT every other one.
const COARSE_TICK: Duration = Duration::from_millis(2050);

impl Identity {
    pub(crate) fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            device: meta.dev(),
            inode: meta.ino(),
        }
    }

    /// How long it takes until a change of the file cannot have the time of the last one; none if that is so now.
    pub(crate) fn settles_in(meta: &std::fs::Metadata) -> Option<Duration> {
        Self::settles(meta.ctime(), meta.ctime_nsec())
    }

    /// The same by the time of the last change, in seconds and nanoseconds.
    pub(crate) fn settles(seconds: i64, nanoseconds: i64) -> Option<Duration> {
        let tick = if nanoseconds == 0 { COARSE_TICK } else { TICK };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(
            u64::try_from(seconds).unwrap_or_default(),
            u32::try_from(nanoseconds).unwrap_or_default(),
        );
        // A time that is yet to come is from before the clock was set: the next change gets an earlier one.
        let age = now.checked_sub(changed)?;
        tick.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// What tells the file of that name in this state from others.
    pub(crate) fn of_path(&self, path: &Path) -> Digest {
        let mut hasher = Sha256::new();
        // The path ends with a NUL, which no path contains; the rest has a fixed width.
        hasher.update(path.as_os_str().as_bytes());
        hasher.update([0]);
        hasher.update(self.size.to_le_bytes());
        hasher.update(self.mtime.0.to_le_bytes());
        hasher.update(self.mtime.1.to_le_bytes());
        hasher.update(self.inode.to_le_bytes());
        hasher.update(self.ctime.0.to_le_bytes());
        hasher.update(self.ctime.1.to_le_bytes());
        hasher.update(self.device.to_le_bytes());
        Digest::finish(hasher)
    }
}

impl Layer {
    /// A layer of an image whose layers share `budget`; `again` if a layer below it has the same blob, or one of the
    /// same content.
    pub(crate) fn new(
        chain_id: String,
        blob: Blob,
        base: Option<Base>,
        again: bool,
        budget: &Arc<Budget>,
    ) -> Self {
        Self { chain_id, blob, base, again, budget: Arc::clone(budget) }
    }

    /// A layer that is alone, or on an image that is there.
    pub(crate) fn alone(chain_id: String, blob: Blob, base: Option<Base>) -> Self {
        Self::new(chain_id, blob, base, false, &Arc::default())
    }

    /// Forgets what was counted for the limits of the layer's image, and counts what of it is in its place already. Not
    /// while one of its layers is being unpacked.
    pub fn count<'a>(&self, present: impl IntoIterator<Item = (&'a Self, Extent)>) {
        self.budget.clear();
        for (layer, extent) in present {
            self.budget.add(extent, layer.again);
        }
    }

    /// Refuses the layer's image if what was counted of it is too much together.
    ///
    /// # Errors
    /// [`Error::Allowance`], [`Error::Ratio`].
    pub fn check_sum(&self, limits: &Limits) -> Result<(), Error> {
        self.budget.check(limits)
    }

    /// Counts, for the limits of its image, what it lies on: entries, and bytes of files.
    pub fn count_below(&self, entries: u64, bytes: u64) {
        self.budget.clear();
        self.budget.add(Extent { entries, bytes, packed: None }, false);
    }

    /// Bytes of the blob as stored (compressed, if it is); 0 if that is not known, as of an app on a server.
    pub fn size(&self) -> u64 {
        match &self.blob {
            Blob::Oci { size, .. } => *size,
            Blob::Member { section, .. } => section.size(),
            Blob::File { identity, .. } => identity.size,
            Blob::Tree { seen, .. } => seen.bytes,
            Blob::App(droplet) => droplet.size().unwrap_or(0),
        }
    }

    /// The promised digest of the uncompressed bytes; none for a tar file and for an app.
    pub fn diff_id(&self) -> Option<&Digest> {
        match &self.blob {
            Blob::Oci { diff_id, .. } | Blob::Member { diff_id, .. } => Some(diff_id),
            Blob::File { .. } | Blob::Tree { .. } | Blob::App(_) => None,
        }
    }

    /// Whether unpacking it looks at the layers below, which must be there then: it has a base directory.
    pub fn needs_layers_below(&self) -> bool {
        self.base.is_some()
    }

    /// Unpacks the layer into the empty directory `into`. Digest and size of the blob and the diff id of its content
    /// are verified on the way, over every byte. After an error the caller throws the directory away.
    ///
    /// `below` are the unpacked layers that this one lies on, topmost first. They are only looked at for a layer with a
    /// base directory (annotation `org.cloudfoundry.experimental.image.base-directory`, or an app's), which takes that
    /// directory's mode, owner and time from there.
    ///
    /// A blob that a layout lacks is fetched from those of its URLs that [`Settings::layer_hosts`] allows, tried one after
    /// the other, and an app from its own, which whoever asks for it has named.
    ///
    /// What is unpacked counts for the limits of the image too, however many of its layers are unpacked side by side.
    ///
    /// [`Settings::layer_hosts`]: crate::Settings::layer_hosts
    ///
    /// # Errors
    /// A blob that is missing, damaged or not what was promised; whatever [`crate::unpack_tar`] refuses; a base
    /// directory that no layer below has; a server that does not give the blob; [`Error::Cancelled`].
    pub fn unpack(
        &self,
        into: BorrowedFd<'_>,
        below: &[BorrowedFd<'_>],
        limits: &Limits,
        watch: &Watch,
    ) -> Result<Unpacked, Error> {
        let base = self.base.as_ref().map(|base| (base, below));
        let rules = Rules { base, limits, budget: &self.budget, watch, strict: false };
        let counted = (!self.again).then_some(&*self.budget);
        let stop = Stop::new(watch);
        match &self.blob {
            Blob::Oci { layout, digest, size, diff_id, locations, remote } => {
                let what = format!("layer {digest}");
                let allowed;
                let (mut keep_in, mut whole) = (None, None);
                let reader: Box<dyn Read + Send + '_> = match locations {
                    Some(locations) if !layout.has(digest) => {
                        if locations.is_empty() {
                            return Err(Error::NoUrl { what });
                        }
                        allowed = remote.allowed(&what, locations)?;
                        keep_in = Some(into);
                        let (size, limit) = (Some(*size), limits.max_bytes);
                        let mirrors_of = Some(what.as_str());
                        let fetch = Fetch {
                            remote,
                            locations: &allowed,
                            by: NamedBy::Image,
                            mirrors_of,
                            digest: true,
                            size,
                            limit,
                            validator: None,
                            stop: &stop,
                        };
                        Box::new(fetch.start())
                    }
                    _ => {
                        let section = layout.blob(digest, *size)?;
                        whole = section.whole();
                        Box::new(section)
                    }
                };
                let input = Input {
                    reader,
                    what: &what,
                    size: Some(*size),
                    digest: true,
                    only_gzip: false,
                    budget: counted,
                    keep_in,
                    stop: &stop,
                    whole,
                };
                let (counts, digests) = pipeline::run(input, |pieces| unpack(pieces, into, &rules))?;
                same(&what, digest, digests.blob.as_ref().unwrap_or(&digests.plain))?;
                same(&format!("content of {what}"), diff_id, &digests.plain)?;
                Ok(counts.with(digests))
            }
            Blob::Member { section, diff_id } => {
                let what = format!("layer with the diff id {diff_id}");
                let input = local(section.clone(), &what, counted, &stop);
                let (counts, digests) = pipeline::run(input, |pieces| unpack(pieces, into, &rules))?;
                same(&what, diff_id, &digests.plain)?;
                Ok(counts.with(digests))
            }
            Blob::File { path, identity } => {
                let what = path.display().to_string();
                let error = |op| {
                    let path = what.clone();
                    move |source| Error::Io { op, path, source }
                };
                let (file, _) = crate::source::address::open_tar(path)?;
                let file = Arc::new(file);
                let reader = Section::new(Arc::clone(&file), 0, identity.size);
                let reader = reader.stored_as(stored::of(&file, path)?);
                let unchanged = |file: &File| {
                    if Identity::of(&file.metadata().map_err(error("stat"))?) == *identity {
                        Ok(())
                    } else {
                        Err(Error::Changed { path: what.clone() })
                    }
                };
                unchanged(&file)?;
                let input = local(reader, &what, counted, &stop);
                let rules = Rules { strict: true, ..rules };
                let (counts, digests) = pipeline::run(input, |pieces| unpack(pieces, into, &rules))?;
                unchanged(&file)?;
                Ok(counts.with(digests))
            }
            Blob::Tree { root, seen } => {
                let what = root.shown();
                let cancelled = || watch.is_cancelled();
                let _room = rootfs::room(&what, &cancelled)?;
                let unchanged = || match rootfs::look(root, limits, Some(into), &cancelled)? {
                    now if now == *seen => Ok(()),
                    _ => Err(Error::Changed { path: what.clone() }),
                };
                unchanged()?;
                let (counts, digests) = rootfs::stream(root, |reader| {
                    let (size, digest, only_gzip, budget) = (None, false, false, counted);
                    let (keep_in, whole, stop) = (None, None, &stop);
                    let what = &*what;
                    let input = Input { reader, what, size, digest, only_gzip, budget, keep_in, stop, whole };
                    let rules = Rules { strict: true, ..rules };
                    pipeline::run(input, |pieces| unpack(pieces, into, &rules))
                })?;
                unchanged()?;
                Ok(counts.with(digests))
            }
            Blob::App(droplet) => droplet.unpack(into, &rules, watch),
        }
    }
}

/// A blob whose own digest nobody promised.
fn local<'a>(section: Section, what: &'a str, budget: Option<&'a Budget>, stop: &'a Stop<'a>) -> Input<'a> {
    let (whole, reader) = (section.whole(), Box::new(section));
    Input { reader, what, size: None, digest: false, only_gzip: false, budget, keep_in: None, stop, whole }
}

pub(crate) fn same(what: &str, expected: &Digest, actual: &Digest) -> Result<(), Error> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::DigestMismatch {
        what: what.into(),
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}
