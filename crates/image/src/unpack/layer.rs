//! Opens, unpacks and verifies the blob of a layer.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::directory;
use super::entries::{Rules, Unpacked, unpack};
use super::pipeline::{self, Input};
use crate::bounds::budget::Budget;
use crate::bounds::limits::Limits;
use crate::bounds::stop::Stop;
use crate::bounds::watch::Watch;
use crate::digest::{Digest, same};
use crate::disk::file::{Identity, open_tar};
use crate::disk::rootfs;
use crate::disk::section::Section;
use crate::disk::stored;
use crate::error::Error;
use crate::registry::{LEAST, Partial, RemoteBlob};
use crate::remote::{Fetch, NamedBy, Terms};
use crate::source::layer::{Blob, Layer};

impl Layer {
    /// Unpacks the layer into the empty directory `into`. Digest and size of the blob and the diff id of its content
    /// are verified during the unpack, over every byte. After an error the caller must discard the directory.
    ///
    /// `below` are the unpacked layers that this one lies on, topmost first. They are used only for a layer with a
    /// base directory (annotation `org.cloudfoundry.experimental.image.base-directory`, or an app's), which takes
    /// that directory's mode, owner and time from there.
    ///
    /// A blob that a layout lacks is fetched from those of its URLs that [`Settings::layer_hosts`] allows, tried one
    /// after the other, and an app from its own URL, which the caller has named.
    ///
    /// The unpacked data counts for the limits of the image too, however many of its layers are unpacked in parallel.
    ///
    /// A blob at a registry is fetched from the image's endpoints, one after the other. If the image was opened with a
    /// directory for parts of blobs, what was received before an error of a server remains there for the next try.
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
                        let (size, limit) = (*size, limits.max_bytes);
                        let mirrors_of = Some(what.as_str());
                        let fetch = Fetch {
                            remote,
                            locations: (&allowed).into(),
                            by: NamedBy::Image,
                            mirrors_of,
                            digest: true,
                            size,
                            limit,
                            validator: None,
                            stop: &stop,
                            terms: Terms::default(),
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
                    size: *size,
                    digest: true,
                    only_gzip: false,
                    budget: counted,
                    keep_in,
                    stop: &stop,
                    whole,
                    seen: false,
                };
                let (counts, digests) = pipeline::run(input, |pieces| unpack(pieces, into, &rules))?;
                same(&what, digest, digests.blob.as_ref().unwrap_or(&digests.plain))?;
                if let Some(diff_id) = diff_id {
                    same(&format!("content of {what}"), diff_id, &digests.plain)?;
                }
                Ok(counts.with(digests))
            }
            Blob::Member { section, diff_id, .. } => {
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
                let (file, _) = open_tar(path)?;
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
                let (counts, digests) = directory::stream(root, |reader| {
                    let (size, digest, only_gzip, budget) = (None, false, false, counted);
                    let (keep_in, whole, stop, seen) = (None, None, &stop, false);
                    let what = &*what;
                    let input =
                        Input { reader, what, size, digest, only_gzip, budget, keep_in, stop, whole, seen };
                    let rules = Rules { strict: true, ..rules };
                    pipeline::run(input, |pieces| unpack(pieces, into, &rules))
                })?;
                unchanged()?;
                Ok(counts.with(digests))
            }
            Blob::App(droplet) => droplet.unpack(into, &rules, watch),
            Blob::Registry { blob, diff_id } => {
                let mut partial = blob.partial();
                let unpacked = registry(blob, diff_id, partial.as_mut(), into, &rules, counted, &stop);
                if let Some(mut partial) = partial {
                    // A part of something else would be no help.
                    let goes_on = unpacked.as_ref().is_err_and(Error::can_continue);
                    if !goes_on || partial.length < LEAST || partial.write().is_err() {
                        partial.remove();
                    }
                }
                unpacked
            }
        }
    }
}

/// Unpacks a blob while it is received from a registry. If a part of it is there, the rest is received first, and the
/// whole is verified before it is unpacked.
fn registry(
    blob: &RemoteBlob,
    diff_id: &Digest,
    mut partial: Option<&mut Partial>,
    into: BorrowedFd<'_>,
    rules: &Rules<'_>,
    budget: Option<&Budget>,
    stop: &Stop<'_>,
) -> Result<Unpacked, Error> {
    let what = format!("layer {}", blob.digest);
    let error = |source| Error::Io { op: "use what was received of", path: what.clone(), source };
    let limit = rules.limits.max_bytes;
    let mut complete = None;
    if let Some(partial) = partial.as_mut().filter(|partial| partial.length > 0) {
        if blob.complete(partial, stop, limit)? {
            complete = Some(partial.reader().map_err(error)?);
        } else {
            partial.clear().map_err(error)?;
        }
    }
    let (keep_in, seen) = (complete.is_none().then_some(into), complete.is_some());
    let reader: Box<dyn Read + Send + '_> = match complete {
        Some(file) => Box::new(file),
        None => Box::new(blob.receive(stop, limit, partial)),
    };
    let (size, digest, only_gzip, whole) = (Some(blob.size), true, false, None);
    let input = Input { reader, what: &what, size, digest, only_gzip, budget, keep_in, stop, whole, seen };
    let (counts, digests) = pipeline::run(input, |pieces| unpack(pieces, into, rules))?;
    same(&what, &blob.digest, digests.blob.as_ref().unwrap_or(&digests.plain))?;
    same(&format!("content of {what}"), diff_id, &digests.plain)?;
    Ok(counts.with(digests))
}

/// Returns the input for a local blob without an expected digest of its stored bytes.
fn local<'a>(section: Section, what: &'a str, budget: Option<&'a Budget>, stop: &'a Stop<'a>) -> Input<'a> {
    let (whole, reader) = (section.whole(), Box::new(section));
    let (size, digest, only_gzip, keep_in, seen) = (None, false, false, None, false);
    Input { reader, what, size, digest, only_gzip, budget, keep_in, stop, whole, seen }
}
