//! Apps as layers.

use std::sync::Arc;

use super::app::{App, Droplet, Origin, Place};
use super::layer::{Blob, Layer};
use crate::bounds::stop::Stop;
use crate::bounds::watch::Watch;
use crate::digest::Digest;
use crate::disk::file::state_of;
use crate::error::Error;
use crate::remote::{Remote, Validator};

impl App {
    fn by_digest(&self, digest: &Digest) -> String {
        format!("blob:{digest} {}", self.directory())
    }

    fn by_file(&self, state: &Digest) -> String {
        format!("file:{state} {}", self.directory())
    }

    fn directory(&self) -> String {
        format!("base-directory:{}", self.base.as_ref().map(ToString::to_string).unwrap_or_default())
    }

    /// Returns the app as a layer on top of the layer with the chain id `below` (hex). A server is asked only if
    /// there is no digest, for a validator of the file's state.
    ///
    /// Its own chain id is the sha256 of one line: `below`, a blank, and
    ///
    /// * with a digest `blob:<digest> base-directory:<directory>`: neither the URL, which may expire, nor the form of
    ///   the address makes a difference to the tree;
    /// * for a file `file:<digest of its path and state> base-directory:<directory>`;
    /// * for a URL `url:<digest of the URL> <validator> base-directory:<directory>`, where the validator is `etag:`
    ///   or `modified:` with a digest of what the server said.
    ///
    /// The directory comes last and all before it has a fixed width, so no two apps have the same line. The inputs of
    /// other chain ids begin with `sha256:` (OCI, and layers with a base directory) or with `/` (a tar file's path),
    /// this one with a hex digit. And a diff id, which is the chain id of the lowest layer, is the digest of a tar
    /// stream, which no such line can be.
    ///
    /// The call blocks, at worst as long as a fetch (see [`Remote`]); cancelling `watch` ends it.
    ///
    /// # Errors
    /// [`Error::App`] around whatever is wrong with the file or the server; [`Error::Cancelled`].
    pub fn layer(&self, below: &str, remote: &Remote, watch: &Watch) -> Result<Layer, Error> {
        let named = |source| self.blame(source);
        let (what, origin) = match (&self.place, &self.digest) {
            (Place::Url(location), Some(digest)) => {
                (self.by_digest(digest), Origin::Url { location: location.clone(), state: None })
            }
            (Place::File(path), Some(digest)) => {
                (self.by_digest(digest), Origin::File { path: path.clone(), state: None })
            }
            (Place::File(path), None) => {
                let (path, state) = state_of(path).map_err(named)?;
                (self.by_file(&state.of_path(&path)), Origin::File { path, state: Some(state) })
            }
            (Place::Url(location), None) => {
                let state = remote.validator(location, &Stop::new(watch)).map_err(named)?;
                let url = Digest::of(location.url().as_str().as_bytes());
                let validator = match &state.0 {
                    Validator::Etag(etag) => format!("etag:{}", Digest::of(etag.as_bytes())),
                    Validator::Modified { date, length } => {
                        format!(
                            "modified:{}",
                            Digest::of(format!("{} {date}", length.unwrap_or_default()).as_bytes())
                        )
                    }
                };
                let what = format!("url:{url} {validator} {}", self.directory());
                (what, Origin::Url { location: location.clone(), state: Some(state) })
            }
        };
        let chain_id = Digest::of(format!("{below} {what}").as_bytes()).as_hex().to_owned();
        let droplet = Droplet { app: self.clone(), origin, remote: remote.clone() };
        Ok(Layer::alone(chain_id, Blob::App(Arc::new(droplet)), self.base.clone()))
    }
}
