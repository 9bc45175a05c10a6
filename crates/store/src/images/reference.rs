//! References to images, parsed once where they come in.

use std::fmt;

use wardian_image::registry::{ImageName, Login};
use wardian_image::{App, Source, Way};

use super::image;
use super::terms::{Pull, Terms};
use crate::error::{Error, Result, image_error};

/// A reference to an image: its name in the store, or the address of a source as [`Source::parse`] understands it;
/// with an app on top as in [`App`].
///
/// An address may be parsed by what is on the disk (`oci://`), so a reference is good for one request; what is kept
/// longer is its text. `Debug` shows no secrets.
#[derive(Clone)]
pub struct Reference {
    text: String,
    pub(crate) below: Below,
    pub(crate) app: Option<App>,
    pub(crate) terms: Terms,
}

/// The image below the app, or the whole image.
#[derive(Clone)]
pub(crate) enum Below {
    /// Its name in the store.
    Name(String),
    /// Where it comes from, as it was written and parsed.
    Source(String, Source),
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reference").field(&self.shown()).finish()
    }
}

impl Below {
    fn parse(text: &str) -> Result<Self> {
        if image::check(text).is_ok() {
            return Ok(Self::Name(text.to_owned()));
        }
        let source = Source::parse(text).map_err(|error| image_error(text, error))?;
        Ok(Self::Source(text.to_owned(), source))
    }
}

impl Reference {
    /// Parses a reference. An address of OCI layouts is compared with the directories that exist; nothing else is
    /// read.
    ///
    /// # Errors
    /// It is neither a valid name nor a valid address, or its app is invalid.
    pub fn parse(text: &str) -> Result<Self> {
        let (below, app) = match App::parse(text).map_err(|error| image_error(text, error))? {
            Some((base, app)) => (Below::parse(&base)?, Some(app)),
            None => (Below::parse(text)?, None),
        };
        Ok(Self { text: text.to_owned(), below, app, terms: Terms::default() })
    }

    /// Says when a registry is asked for the image. Without it a name is one in the store, and an address of a registry
    /// is asked for each time.
    #[must_use]
    pub fn pulled(mut self, pull: Pull) -> Self {
        self.terms.pull = Some(pull);
        self
    }

    /// Says that an image from a registry gets no name in the store: its layers are collected once no root file system
    /// uses them.
    #[must_use]
    pub fn unnamed(mut self) -> Self {
        self.terms.unnamed = true;
        self
    }

    /// Says as whom the image's registry is asked. The image gets no name in the store then, under which others could
    /// have it.
    ///
    /// # Errors
    /// [`Error::NoRegistry`]: no registry will be asked, so the login has no meaning.
    pub fn with_login(mut self, login: Login) -> Result<Self> {
        if !self.is_pulled() {
            return Err(Error::NoRegistry { uri: self.shown() });
        }
        self.terms.login = Some(login);
        Ok(self)
    }

    /// Whether the image, or the one below its app, may have to be pulled from a registry.
    pub fn is_pulled(&self) -> bool {
        match &self.below {
            Below::Source(_, source) => source.image_name().is_some(),
            Below::Name(_) => self.terms.pull.is_some(),
        }
    }

    /// Returns the text that was parsed, which may contain credentials.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the reference without possible secrets, for messages.
    pub fn shown(&self) -> String {
        self.app.as_ref().map_or_else(|| wardian_image::shown(&self.text), ToString::to_string)
    }

    /// Whether it has an app on top.
    pub fn has_app(&self) -> bool {
        self.app.is_some()
    }

    /// Returns what [opening](crate::Store::open_image) the image, without its app, will take; `None` for a name in the
    /// store, which needs no separate opening. The call is cheap.
    pub fn way(&self) -> Option<Way> {
        match &self.below {
            Below::Name(_) => self.is_pulled().then_some(Way::Registry),
            Below::Source(_, source) => Some(source.way()),
        }
    }

    /// Returns the registry that may be asked for the image, as far as its text says: a short name is one of Docker Hub.
    pub fn registry(&self) -> Option<String> {
        let name = match &self.below {
            Below::Source(_, source) => source.image_name().cloned(),
            Below::Name(name) => ImageName::parse(name).ok().filter(|_| self.is_pulled()),
        };
        name.map(|name| name.registry().to_owned())
    }

    /// Whether the image, without its app, is a compressed file that must be decompressed as a whole to be opened.
    /// Reads the beginning of the file.
    pub fn is_packed(&self) -> bool {
        match &self.below {
            Below::Name(_) => false,
            Below::Source(_, source) => source.is_packed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_consists_of() {
        let parse = |text: &str| Reference::parse(text).unwrap();
        let below = |text: &str| match parse(text).below {
            Below::Name(name) => format!("name {name}"),
            Below::Source(address, source) => format!("{address} {source}"),
        };
        for (text, expected, app) in [
            ("busybox:1", "name busybox:1", false),
            ("busybox?app=/a.tar&app_path=/srv", "name busybox", true),
            ("file:///a.tar", "file:///a.tar /a.tar", false),
            ("tar:///a.tar", "tar:///a.tar tar:///a.tar", false),
            ("tar:///a.tar?app=/a.tar&app_path=/srv", "tar:///a.tar tar:///a.tar", true),
        ] {
            assert_eq!((below(text).as_str(), parse(text).has_app()), (expected, app), "{text}");
            assert_eq!(parse(text).text(), text);
        }
        let secret = parse("busybox?app=https://user:pass@host/a.tar%3fkey=hidden&app_path=/srv");
        assert_eq!(format!("{secret:?}"), format!("Reference({:?})", secret.shown()));
        assert_eq!(secret.shown(), "busybox?app=https://host/a.tar&app_path=/srv");
        for bad in ["", "ftp://x", "a b", "?app=/a.tar&app_path=/srv", "busybox?app=/a.tar", "a?layer=b"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
