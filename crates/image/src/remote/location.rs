//! Addresses of blobs.

use std::fmt;
use std::path::{Path, PathBuf};

use reqwest::Url;

use crate::error::Error;

/// The maximum length of a path in messages, in bytes.
const SHOWN: usize = 256;

/// A URL of a blob: `http://`, `https://` or `file:///absolute/path`.
///
/// It may be signed, and then gives access to anyone who has it. `Display` and `Debug` both omit possible secrets
/// (user, password, query and fragment) and cut long paths.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Location(Url);

impl Location {
    /// # Errors
    /// [`Error::Url`], without the text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Err(Error::Url { why: why.to_owned() });
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(e) => return invalid(&e.to_string()),
        };
        match url.scheme() {
            "http" | "https" => {}
            "file" if text.get(5..6) != Some("/") || url.host().is_some() => {
                return invalid("the path of a file must be absolute, without a host");
            }
            "file" if url.query().is_some() || url.fragment().is_some() => {
                return invalid("a file has neither a query nor a fragment; ? is %3f there, and # is %23");
            }
            "file" => {}
            _ => return invalid("unknown scheme; known are http, https and file"),
        }
        let location = Self(url);
        if location.file().is_some_and(|path| path.as_os_str().as_encoded_bytes().contains(&0)) {
            return invalid("it contains a NUL byte");
        }
        Ok(location)
    }

    /// Returns a file's URL; `None` if its path is not absolute.
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        Url::from_file_path(path).ok().map(Self)
    }

    /// Returns the path of a `file://` URL, percent-decoded.
    pub fn file(&self) -> Option<PathBuf> {
        if self.0.scheme() == "file" { self.0.to_file_path().ok() } else { None }
    }

    /// Whether it is fetched without TLS.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// Wraps an http or https URL.
    pub(crate) fn of_url(url: Url) -> Self {
        Self(url)
    }

    /// Whether a URL is of the same server: scheme, host and port are equal.
    pub(crate) fn has_origin_of(&self, url: &Url) -> bool {
        self.0.origin() == url.origin()
    }

    /// Returns `HOST[:PORT]`, without the scheme's port.
    pub(crate) fn authority(&self) -> String {
        let port = self.0.port().map_or_else(String::new, |port| format!(":{port}"));
        format!("{}{port}", self.0.host_str().unwrap_or_default())
    }

    /// Returns the whole URL, secrets included.
    pub(crate) fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        // The parser's path is ASCII without control characters.
        let path = self.0.path();
        match path.get(..SHOWN) {
            Some(cut) if cut.len() < path.len() => write!(f, "{cut}…"),
            _ => f.write_str(path),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}
