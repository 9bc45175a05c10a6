//! `wardian image export`.

use super::{layers_of, meant};
use crate::print;
use crate::store::Place;
use crate::watch::{self, Interrupts};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use std::io::{IsTerminal as _, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wardian_image::Watch;
use wardian_image::export::{self, Compression, Format, Target};
use wardian_store::image::{Documents, Named};
use wardian_store::{Image, Store};

/// Returns the target of an export.
pub fn target(
    path: PathBuf,
    format: Option<Format>,
    keep_privileges: bool,
    overwrite: bool,
) -> Result<Target> {
    let format = format.map_or_else(|| format_of(&path), Ok)?;
    ensure!(
        !keep_privileges || format == Format::Dir,
        "--keep-privileges is for --format dir: archives and layouts keep everything anyway"
    );
    if is_output(&path) {
        ensure!(
            format_is_file(format),
            "the format {format} makes a directory, and - is standard output: name a directory, or take an archive"
        );
        ensure!(
            !std::io::stdout().is_terminal(),
            "an archive on a terminal helps nobody: send it to a file or a pipe"
        );
    }
    Ok(Target { format, path, compression: Compression::default(), overwrite, keep_privileges })
}

fn is_output(path: &Path) -> bool {
    path == Path::new("-")
}

/// Derives the format from the target's name.
fn format_of(dest: &Path) -> Result<Format> {
    if is_output(dest) {
        return Ok(Format::DockerArchive);
    }
    let extension = dest.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    ensure!(
        !matches!(extension.as_str(), "gz" | "tgz" | "zst" | "xz" | "bz2"),
        "archives are not compressed: name it .tar, or say what to make with --format"
    );
    Ok(if extension == "tar" && !dest.is_dir() { Format::DockerArchive } else { Format::Oci })
}

/// A named image, with all that is written of it elsewhere.
pub struct Whole {
    pub store: Store,
    pub named: Named,
    pub documents: Documents,
    pub image: Image,
    /// The root directories of its layers, bottom first.
    pub dirs: Vec<OwnedFd>,
}

impl Whole {
    pub fn open(place: &Place, name: &str) -> Result<Self> {
        let store = place.open_existing()?;
        let name = &meant(&store, name);
        let (named, documents) = store.read_image(name)?;
        let image = store.image(name)?;
        let dirs = image.layer_dirs().context("open the layers")?;
        Ok(Self { store, named, documents, image, dirs })
    }
}

/// Writes an image to a file, a directory or standard output, with a progress display; Ctrl-C cancels it.
pub fn export(place: &Place, names: &[String], to: &Target) -> Result<()> {
    let format = to.format;
    let output = is_output(&to.path);
    let images = names.iter().map(|name| Whole::open(place, name)).collect::<Result<Vec<_>>>()?;
    let [first, ..] = &images[..] else { bail!("no image is named") };
    let dirs: Vec<Vec<_>> =
        images.iter().map(|image| image.dirs.iter().map(std::os::fd::AsFd::as_fd).collect()).collect();
    let called: Vec<_> = images.iter().map(|image| [image.named.name.clone()]).collect();
    let whole_images: Vec<_> = images
        .iter()
        .zip(&dirs)
        .zip(&called)
        .map(|((image, layers), names)| {
            let config = image.documents.config.as_deref().map(str::as_bytes);
            export::Whole { layers, config, names }
        })
        .collect();
    let watch = Arc::new(Watch::default());
    let cancel = Arc::clone(&watch);
    let interrupts = if output {
        Interrupts::leave("interrupted: what was written is no whole archive")?
    } else {
        Interrupts::catch(move || cancel.cancel())?
    };
    let layers = images.iter().flat_map(|image| layers_of(&image.store, &image.named));
    let bytes = layers.map(|layer| layer.bytes).sum();
    // An archive of an image cannot be written sequentially, so it is completed in a temporary file first.
    let mut whole = match format {
        Format::OciArchive | Format::DockerArchive if output => {
            Some(first.store.scratch().context("make a file for the archive on the store's file system")?)
        }
        _ => None,
    };
    let work = || {
        if !output {
            return export::export_all(&whole_images, to, &watch);
        }
        let file = match &whole {
            Some(whole) => whole.try_clone(),
            None => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)
                .map(Into::into)
                .map_err(Into::into),
        };
        let file =
            file.map_err(|source| wardian_image::Error::Io { op: "open", path: OUTPUT.into(), source })?;
        export::export_into(&whole_images, format, file, OUTPUT, &watch)
    };
    let exported = match watch::bar("exporting", || (watch.bytes_read(), bytes), work) {
        Err(wardian_image::Error::Exists { path }) if format_is_file(format) && !to.overwrite => {
            bail!("{path} exists; --force replaces a file")
        }
        Err(wardian_image::Error::Exists { path }) if !format_is_file(format) => {
            bail!(
                "{path} exists already: name a directory that does not exist or is empty; --force replaces files only"
            )
        }
        // The reader has closed the pipe.
        Err(wardian_image::Error::Io { source, .. })
            if output && source.kind() == std::io::ErrorKind::BrokenPipe =>
        {
            return Ok(());
        }
        Err(error) => {
            interrupts.check("interrupted: nothing stays of what was written")?;
            return Err(error).with_context(|| format!("export {}", names.join(", ")));
        }
        Ok(exported) => exported,
    };
    let in_place = images.iter().all(|image| image.store.is_in_place(&image.image));
    if output {
        ensure!(in_place, "the image was thrown away meanwhile, and its archive may be incomplete");
    }
    if let Some(whole) = &mut whole
        && !pass_on(whole)?
    {
        return Ok(());
    }
    drop(interrupts);
    let made = if format == Format::Dir { to.path.join(export::ROOTFS) } else { to.path.clone() };
    let path = made.display();
    ensure!(in_place, "the image was thrown away meanwhile, and {path} may be incomplete: remove it");
    if exported.skipped_xattrs > 0 || exported.skipped_sockets > 0 {
        print::note(&format!(
            "left out: {} that are not the image's, {}",
            print::count(usize::try_from(exported.skipped_xattrs).unwrap_or(usize::MAX), "attribute"),
            print::count(usize::try_from(exported.skipped_sockets).unwrap_or(usize::MAX), "socket")
        ));
    }
    let left_out = exported.left_out;
    if left_out != export::LeftOut::default() {
        print::note(&without_privileges(left_out));
    }
    if output {
        // Standard output carries the archive, so nothing else is printed there.
        return Ok(());
    }
    if place.json {
        let id = exported.image.as_ref().map(|image| image.config.as_hex());
        let manifest = exported.image.as_ref().map(|image| image.manifest.to_string());
        return print::json(&json!({
            "path": made, "format": format.to_string(), "entries": exported.entries, "bytes": exported.bytes,
            "id": id, "manifest": manifest,
            "left_out": {
                "set_id": left_out.set_id, "capabilities": left_out.capabilities, "devices": left_out.devices,
                "attributes": exported.skipped_xattrs, "sockets": exported.skipped_sockets,
            },
        }));
    }
    print::text(&format!(
        "{path}  ({format}, {} entries, {})\n",
        exported.entries,
        print::bytes(exported.bytes)
    ))
}

/// The name of standard output in errors.
const OUTPUT: &str = "standard output";

/// Copies a file from its beginning to standard output; false if the reader has closed the pipe.
fn pass_on(file: &mut std::fs::File) -> Result<bool> {
    use std::io::Seek as _;
    file.rewind().context("read the archive")?;
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = match file.read(&mut piece) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.context("read the archive")?,
        };
        if !print::written(&piece[..read])? {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
    }
}

/// Returns a text on the privileges that an exported directory lacks.
fn without_privileges(left_out: export::LeftOut) -> String {
    let count = |n: u64, what| print::count(usize::try_from(n).unwrap_or(usize::MAX), what);
    let all = [
        (left_out.set_id, "set-uid or set-gid bit"),
        (left_out.capabilities, "capability attribute"),
        (left_out.devices, "device node"),
    ];
    let all: Vec<_> = all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| count(*n, what)).collect();
    format!("left out, for they give rights on this host: {} (--keep-privileges makes them)", all.join(", "))
}

fn format_is_file(format: Format) -> bool {
    !matches!(format, Format::Oci | Format::Dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_asks_for_a_format() {
        let of = |path: &str| format_of(Path::new(path)).ok();
        assert_eq!(of("/x/a.tar"), Some(Format::DockerArchive));
        assert_eq!(of("a.TAR"), Some(Format::DockerArchive));
        assert_eq!((of("a"), of("/x/a.b/")), (Some(Format::Oci), Some(Format::Oci)));
        assert_eq!((of("a.tar.gz"), of("a.tgz")), (None, None));
    }
}
