//! Exports an image or its root file system.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, mkdirat, openat};

use super::layout::{self, Layout, Whole};
use super::tarball::{self, BUFFER, END, Named, Tarball};
use super::target::{Compression, Exported, ExportedImage, Format, LeftOut, ROOTFS, Target};
use super::temporary::{DIR, Temporary};
use super::tree::Directory;
use super::walk::{self, Meter};
use crate::bounds::watch::Watch;
use crate::error::Error;

/// Writes the image that consists of `layers`, bottom first: directories made by [`crate::Layer::unpack`], which must
/// not change meanwhile. The diff ids in `config` (an OCI image config) are replaced; without it, a minimal config
/// for this host is made. `names` are `name[:tag]`, with the default tag `latest`. A root file system
/// ([`Format::Tar`], [`Format::Dir`]) has neither config nor names. `watch` counts the bytes of files read. Nothing
/// is synced to the disk.
///
/// # Errors
/// A target that exists or cannot be written, a layer that cannot be read or that the format cannot express,
/// [`Error::Cancelled`]. Nothing is left behind in any case.
pub fn export(
    layers: &[BorrowedFd<'_>],
    config: Option<&[u8]>,
    names: &[String],
    to: &Target,
    watch: &Watch,
) -> Result<Exported, Error> {
    export_all(&[Whole { layers, config, names }], to, watch)
}

/// As [`export()`], of several images into one archive or layout.
///
/// # Errors
/// As [`export()`]; several root file systems.
pub fn export_all(images: &[Whole<'_>], to: &Target, watch: &Watch) -> Result<Exported, Error> {
    let shown = to.path.display().to_string();
    let mut meter = Meter::new(watch, &shown);
    meter.check()?;
    let layers = layers_of(images, to.format)?;
    let mut temporary = Temporary::new(to, &shown)?;
    let mut left_out = LeftOut::default();
    let parts = Parts { images, compression: to.compression };
    let image = match to.format {
        Format::Dir => {
            let target = temporary.make_dir()?;
            mkdirat(&target, ROOTFS, Mode::RWXU).map_err(temporary.error("make a directory in"))?;
            let root = openat(&target, ROOTFS, DIR, Mode::empty()).map_err(temporary.error("open"))?;
            let mut tree = Directory::new(root, &shown, to.keep_privileges);
            walk::merged(layers, &mut tree, &mut meter)?;
            left_out = tree.left_out();
            None
        }
        Format::Oci => {
            let mut layout = Layout::in_directory(temporary.make_dir()?, &shown)?;
            parts.write(&mut layout, Some(to.compression), &mut meter)?
        }
        format => parts.archive(format, temporary.make_file()?, &shown, &mut meter)?,
    };
    meter.check()?;
    temporary.commit()?;
    Ok(exported(&meter, left_out, image))
}

/// Returns the layers of the one image of which the root file system is exported; of images, nothing.
fn layers_of<'a>(images: &[Whole<'a>], format: Format) -> Result<&'a [BorrowedFd<'a>], Error> {
    match (images, format) {
        ([image], _) => Ok(image.layers),
        (_, Format::Tar | Format::Dir) => {
            Err(Error::Unsupported { what: format!("several root file systems in the format {format}") })
        }
        _ => Ok(&[]),
    }
}

/// As [`export_all`], into an open file, which may be partly written after an error. `shown` names it in errors. An
/// archive of an image needs an empty file that can be read and seeked; [`Format::Tar`] is written sequentially.
///
/// # Errors
/// As [`export()`]; a format that makes a directory.
pub fn export_into(
    images: &[Whole<'_>],
    format: Format,
    file: File,
    shown: &str,
    watch: &Watch,
) -> Result<Exported, Error> {
    if format.is_directory() {
        return Err(Error::Unsupported { what: format!("the format {format}, a directory, in a stream") });
    }
    let mut meter = Meter::new(watch, shown);
    meter.check()?;
    layers_of(images, format)?;
    let parts = Parts { images, compression: Compression::default() };
    let image = parts.archive(format, file, shown, &mut meter)?;
    meter.check()?;
    Ok(exported(&meter, LeftOut::default(), image))
}

fn exported(meter: &Meter<'_>, left_out: LeftOut, image: Option<ExportedImage>) -> Exported {
    let &Meter { entries, bytes, skipped_xattrs, skipped_sockets, .. } = meter;
    Exported { entries, bytes, skipped_xattrs, skipped_sockets, left_out, image }
}

/// What is exported, and how it is compressed.
struct Parts<'a> {
    images: &'a [Whole<'a>],
    compression: Compression,
}

impl Parts<'_> {
    fn archive(
        &self,
        format: Format,
        file: File,
        shown: &str,
        meter: &mut Meter<'_>,
    ) -> Result<Option<ExportedImage>, Error> {
        if format == Format::Tar {
            let inner = BufWriter::with_capacity(BUFFER, file);
            let mut tarball = Tarball::new(Named { inner, path: shown });
            walk::merged(layers_of(self.images, format)?, &mut tarball, meter)?;
            tarball.to.put(&END)?;
            tarball.to.inner.flush().map_err(|e| tarball::failed(shown, e))?;
            return Ok(None);
        }
        let compression = (format != Format::DockerArchive).then_some(self.compression);
        self.write(&mut Layout::in_archive(file, shown), compression, meter)
    }

    fn write(
        &self,
        layout: &mut Layout<'_>,
        compression: Option<Compression>,
        meter: &mut Meter<'_>,
    ) -> Result<Option<ExportedImage>, Error> {
        let mut written = layout::write(layout, self.images, compression, meter)?;
        Ok(if written.len() == 1 { written.pop() } else { None })
    }
}

/// Writes a directory as a tar that keeps holes, without crossing mount points; `shown` names it in errors.
pub(crate) fn tree(dir: BorrowedFd<'_>, to: impl Write, shown: &str, watch: &Watch) -> Result<(), Error> {
    let mut meter = Meter::new(watch, shown);
    let mut tarball = Tarball::sparse(Named { inner: to, path: shown });
    walk::directory(dir, &mut tarball, &mut meter)?;
    tarball.to.put(&END)
}
