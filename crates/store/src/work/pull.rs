//! Images from registries: when a registry is asked, and what of its answer is in the store already.
//!
//! An image that was pulled has a name in the store, the short form of its full name, and the record's source is the
//! full name with the digest that it stood for. So one request tells whether the tag stands for another image now, and
//! layers that were collected are fetched by the digest again.

use wardian_image::reference::short;
use wardian_image::registry::ImageName;
use wardian_image::{Digest, Source};

use super::fetch::{Opened, ToFetch};
use crate::error::{Error, Result, image_error};
use crate::images::image::{self, Wish};
use crate::images::opened::Image;
use crate::images::progress::Progress;
use crate::images::reference::{Below, Reference};
use crate::images::terms::Pull;
use crate::store::Inner;

/// An image in the store that was pulled, or has the name of one.
struct Kept {
    image: Image,
    /// What the name stood for when it was pulled.
    digest: Option<Digest>,
}

/// How many digits of an image's id are printed, at least and at most.
const IDS: std::ops::RangeInclusive<usize> = 12..=64;

impl Reference {
    fn pull(&self) -> Pull {
        self.terms.pull.unwrap_or(Pull::Always)
    }
}

impl Inner {
    /// Opens an image at a registry.
    pub(crate) fn open_pulled(&self, reference: &Reference, progress: &Progress) -> Result<Opened> {
        if let Some(image) = self.pulled_at_hand(reference)? {
            return Ok(Opened::Here(Box::new(image)));
        }
        // A name that an import has given says where its layers are had from once more.
        if let Below::Name(name) = &reference.below
            && reference.pull().is_content()
            && image::find(&self.layout, name).is_ok_and(|named| ImageName::of_uri(&named.source).is_err())
        {
            return Ok(Opened::Here(Box::new(self.image_below(&Reference::parse(name)?, progress)?)));
        }
        let names = match self.candidates(reference) {
            Ok(names) => names,
            Err(source) => {
                return match self.kept_of(reference)? {
                    Some(kept) if reference.pull() == Pull::Newer => Ok(not_asked(reference, kept, &source)),
                    Some(_) => Err(image_error(&reference.shown(), source)),
                    None => Err(Error::NotAsked { name: reference.shown(), source }),
                };
            }
        };
        let mut failures = Vec::new();
        for name in names {
            match self.open_at(&name, reference, progress) {
                Err(error) if error.is_cancelled() || progress.is_cancelled() => return Err(error),
                Err(error) => failures.push((name, error)),
                opened => return opened,
            }
        }
        if reference.pull() == Pull::Newer
            && let Some((_, error)) = failures.first()
            && let Some(kept) = self.kept_of(reference)?
        {
            return Ok(not_asked(reference, kept, error));
        }
        match failures.len() {
            0 | 1 => Err(failures.pop().map_or(Error::Closed, |(_, error)| error)),
            _ => Err(Error::Nowhere { name: reference.shown(), failures }),
        }
    }

    /// Returns the image if no registry is to be asked for it.
    ///
    /// # Errors
    /// [`Error::NotHere`] if none may be asked.
    pub(crate) fn pulled_at_hand(&self, reference: &Reference) -> Result<Option<Image>> {
        let pull = reference.pull();
        // Whoever brings a login gets what a registry gives for that, and not what others have pulled.
        if reference.terms.login.is_some() && pull != Pull::Never {
            return Ok(None);
        }
        let kept = self.kept_of(reference)?;
        let pinned = match &reference.below {
            Below::Source(_, source) => source.image_name().and_then(ImageName::digest),
            Below::Name(_) => None,
        };
        match kept {
            Some(kept) if pull.is_content() || pinned.is_some() && kept.digest.as_ref() == pinned => {
                Ok(Some(kept.image))
            }
            None if pull == Pull::Never => Err(Error::NotHere { name: reference.shown() }),
            _ => Ok(None),
        }
    }

    /// The full names that the reference may mean.
    fn candidates(&self, reference: &Reference) -> std::result::Result<Vec<ImageName>, wardian_image::Error> {
        match &reference.below {
            Below::Source(_, source) => Ok(source.image_name().cloned().into_iter().collect()),
            Below::Name(name) => Ok(self.registries.registries()?.candidates(name)?),
        }
    }

    /// Returns the store's image of the reference, if all its layers are there.
    fn kept_of(&self, reference: &Reference) -> Result<Option<Kept>> {
        if let Below::Name(name) = &reference.below
            && let Some(kept) = self.kept(name)?
        {
            return Ok(Some(kept));
        }
        for name in self.candidates(reference).unwrap_or_default() {
            if let Some(kept) = self.kept(&name.to_string())? {
                return Ok(Some(kept));
            }
        }
        match &reference.below {
            Below::Name(id) => self.kept_by_id(id),
            Below::Source(..) => Ok(None),
        }
    }

    /// Returns the image whose id begins so, if the text is as long as ids are printed, and no other image's does.
    fn kept_by_id(&self, id: &str) -> Result<Option<Kept>> {
        let is_id =
            IDS.contains(&id.len()) && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let all = if is_id { image::all(&self.layout)? } else { Vec::new() };
        let mut found = all.into_iter().filter(|image| image.id.starts_with(id));
        let Some(first) = found.next() else { return Ok(None) };
        // One image may have several names.
        if found.all(|other| other.id == first.id) { self.kept(&first.name) } else { Ok(None) }
    }

    fn kept(&self, name: &str) -> Result<Option<Kept>> {
        let (named, documents) = match image::read_whole(&self.layout, name) {
            Err(image::Error::Unknown { .. } | image::Error::Invalid { .. }) => return Ok(None),
            read => read?,
        };
        let digest = ImageName::of_uri(&named.source).ok().and_then(|name| name.digest().cloned());
        Ok(self.named(&named, &documents)?.map(|image| Kept { image, digest }))
    }

    fn open_at(&self, name: &ImageName, reference: &Reference, progress: &Progress) -> Result<Opened> {
        let cancelled = || progress.is_cancelled();
        let (uri, source) = (name.uri(), self.source_at(name, reference)?);
        let failed = |error| image_error(&uri, error);
        let is_named = reference.terms.is_named();
        if is_named && let Some(Kept { image, digest: Some(digest) }) = self.kept(&name.to_string())? {
            let found = source.find(&self.remote, &cancelled).map_err(failed)?;
            if found.is_some_and(|found| found.digest == digest) {
                return Ok(Opened::Here(Box::new(image)));
            }
        }
        let image = self.read(&uri, &source, &cancelled)?;
        self.check_layers(&uri, image.layers.len())?;
        let name = is_named.then(|| name.clone());
        Ok(Opened::ToFetch(Box::new(ToFetch { uri, identity: None, image, pulled: name })))
    }

    /// Returns the image's source, with the endpoints that it is fetched from.
    pub(crate) fn source_at(&self, name: &ImageName, reference: &Reference) -> Result<Source> {
        let endpoints = self.registries.endpoints(name, reference.terms.login.as_ref());
        let endpoints = endpoints.map_err(|error| image_error(&name.uri(), error))?;
        Ok(Source::of_registry(name.clone()).pulled_from(endpoints))
    }

    /// Names an image that was pulled; false if layers were collected meanwhile. Does not wait for the disk: a record
    /// that is lost costs one more pull.
    pub(crate) fn name_pulled(
        &self,
        name: &ImageName,
        digest: &Digest,
        image: &Image,
        progress: &Progress,
    ) -> Result<bool> {
        let full = name.to_string();
        let kept = match name.digest() {
            Some(_) => full.clone(),
            None => format!("{full}@{digest}"),
        };
        progress.has_replaced(self.name(
            short(&full),
            &format!("docker://{kept}"),
            None,
            image,
            Wish::Pulled,
        )?);
        // A garbage collection that did not see the name may have collected a layer.
        Ok(self.is_whole(image))
    }
}

/// Returns the store's image, because no registry has told whether there is another one.
fn not_asked(reference: &Reference, kept: Kept, why: &dyn std::error::Error) -> Opened {
    let why = wardian_sys::text::chain(why);
    tracing::warn!(image = reference.shown(), why, "image.registry-unreachable");
    Opened::Here(Box::new(Image { unasked: Some(why), ..kept.image }))
}
