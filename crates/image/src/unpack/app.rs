//! Fetches or opens, unpacks and verifies the layer of an app.

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use super::entries::{Rules, Unpacked, unpack};
use super::pipeline::{self, Input};
use crate::bounds::stop::Stop;
use crate::bounds::watch::Watch;
use crate::digest::same;
use crate::disk::file::{Identity, open_tar};
use crate::disk::section::Section;
use crate::disk::stored::{self, Whole};
use crate::error::Error;
use crate::remote::{Fetch, NamedBy, Terms};
use crate::source::app::{Droplet, Origin};

impl Droplet {
    /// As [`Layer::unpack`](crate::Layer::unpack).
    pub(crate) fn unpack(
        &self,
        into: BorrowedFd<'_>,
        rules: &Rules<'_>,
        watch: &Watch,
    ) -> Result<Unpacked, Error> {
        let unpacked = match &self.origin {
            Origin::Url { location, state } => {
                let stop = Stop::new(watch);
                let fetch = Fetch {
                    remote: &self.remote,
                    locations: std::slice::from_ref(location).into(),
                    by: NamedBy::Caller,
                    mirrors_of: None,
                    digest: self.app.digest.is_some(),
                    size: None,
                    limit: rules.limits.max_bytes,
                    validator: state.as_ref().map(|(validator, _)| validator),
                    stop: &stop,
                    terms: Terms::default(),
                };
                let what = location.to_string();
                self.unpack_from(Box::new(fetch.start()), None, &what, &stop, into, rules)
            }
            Origin::File { path, state } => {
                self.unpack_file(path, state.as_ref(), into, rules, &Stop::new(watch))
            }
        };
        unpacked.map_err(|error| self.app.blame(error))
    }

    fn unpack_file(
        &self,
        path: &Path,
        state: Option<&Identity>,
        into: BorrowedFd<'_>,
        rules: &Rules<'_>,
        stop: &Stop<'_>,
    ) -> Result<Unpacked, Error> {
        let what = path.display().to_string();
        let file = Arc::new(open_tar(path)?.0);
        let now = || {
            let meta = file.metadata();
            meta.map_err(|source| Error::Io { op: "stat", path: what.clone(), source })
                .map(|m| Identity::of(&m))
        };
        let before = now()?;
        let unchanged = |now: &Identity| match state {
            Some(state) if state != now => Err(Error::Changed { path: what.clone() }),
            _ => Ok(()),
        };
        unchanged(&before)?;
        let limit = rules.limits.max_bytes;
        if before.size > limit {
            return Err(Error::layer_bytes(format!("the size of {what}"), limit));
        }
        let section = Section::new(Arc::clone(&file), 0, before.size);
        let whole = Some(stored::of(&file, path)?);
        let unpacked = self.unpack_from(Box::new(section), whole, &what, stop, into, rules)?;
        unchanged(&now()?)?;
        Ok(unpacked)
    }

    fn unpack_from(
        &self,
        reader: Box<dyn Read + Send + '_>,
        whole: Option<Whole>,
        what: &str,
        stop: &Stop<'_>,
        into: BorrowedFd<'_>,
        rules: &Rules<'_>,
    ) -> Result<Unpacked, Error> {
        let digest = self.app.digest.as_ref();
        let only_gzip = self.app.spelling.only_gzip;
        let budget = Some(&**rules.budget);
        let (size, digested) = (None, digest.is_some());
        let keep_in = matches!(self.origin, Origin::Url { .. }).then_some(into);
        let seen = false;
        let input =
            Input { reader, what, size, digest: digested, only_gzip, budget, keep_in, stop, whole, seen };
        // Without a digest only the end marker shows that the archive is complete.
        let rules = Rules { strict: digest.is_none(), ..*rules };
        let (counts, digests) = pipeline::run(input, |pieces| unpack(pieces, into, &rules))?;
        if let Some(digest) = digest {
            same(what, digest, digests.blob.as_ref().unwrap_or(&digests.plain))?;
        }
        Ok(counts.with(digests))
    }
}
