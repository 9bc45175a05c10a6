//! Fetches blobs from servers, with blocking threads and without an intermediate file.

mod answer;
mod body;
mod client;
mod failing;
mod hosts;
mod location;
mod names;
mod proxies;
mod request;
mod settings;
mod state;
mod trust;
mod try_again;
mod upload;

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::client::plain as plain_client;
pub use self::hosts::Host;
pub use self::location::Location;
pub use self::proxies::Proxies;
pub use self::settings::Settings;

pub(crate) use self::answer::{Refusal, said};
pub(crate) use self::body::{Body, Fetch, Terms};
pub(crate) use self::hosts::is_loopback;
pub(crate) use self::request::{Ask, Probe};
pub(crate) use self::state::Validator;
pub(crate) use self::try_again::{Authority, Failure, NamedBy, Tries, failed, retry_after, text, to_wait};
pub(crate) use self::upload::{Put, Rest, Streamed};

use self::client::{Client, Whose};
use self::failing::Failing;
use crate::error::Error;

/// How long a client is kept despite failures after the previous one was dropped: a server that is down must not make
/// all other fetches reconnect at each try.
const KEEP: Duration = Duration::from_secs(1);
/// How many clients are kept; each has a thread.
const MAX_CLIENTS: usize = 16;

/// Fetches blobs by http and https. Clones share the client.
///
/// At most ten redirects are followed, none from https to http.
///
/// A fetch blocks its thread, which must not be one that drives an async runtime.
#[derive(Debug, Clone, Default)]
pub struct Remote(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    settings: Settings,
    /// One for URLs named by the caller, one for URLs named by images ([`NamedBy`]), one for each registry, and those of
    /// the servers that registries name.
    kept: Mutex<HashMap<Whose, Kept>>,
    failing: Failing,
}

#[derive(Debug, Default)]
struct Kept {
    /// Made when it is first needed. One that could not connect is dropped: the next reads `/etc/resolv.conf`, the
    /// trusted roots and the certificates again.
    client: Option<Arc<Client>>,
    /// When a client was last dropped.
    forgotten: Option<Instant>,
    /// When it was last asked for.
    used: Option<Instant>,
}

impl Remote {
    /// Does not connect yet, but reads the certificates to report errors in them.
    ///
    /// # Errors
    /// [`Error::CertificatePair`], [`Error::Certificate`], [`Error::Io`].
    pub fn new(settings: Settings) -> Result<Self, Error> {
        if settings.certificates.is_some() {
            client::tls(settings.certificates.as_deref())?;
        }
        Ok(Self(Arc::new(Inner { settings, kept: Default::default(), failing: Default::default() })))
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Returns the locations that an image may name, in their order.
    ///
    /// # Errors
    /// [`Error::ForeignHost`] or [`Error::Account`] if there are locations, but none is allowed.
    pub(crate) fn allowed(&self, what: &str, locations: &[Location]) -> Result<Vec<Location>, Error> {
        let allowed = |place: &&Location| hosts::allow(&self.0.settings.layer_hosts, place.url());
        let found: Vec<_> = locations.iter().filter(allowed).cloned().collect();
        if !found.is_empty() || locations.is_empty() {
            return Ok(found);
        }
        let what = what.to_owned();
        let host = |place: &Location| Host::of(place.url()).map_or_else(String::new, |host| host.to_string());
        // Allowing the host of a URL with an account would not help.
        match locations.iter().find(|place| !hosts::has_account(place.url())) {
            Some(place) => Err(Error::ForeignHost { what, host: host(place) }),
            None => Err(Error::Account { what, host: host(&locations[0]) }),
        }
    }

    /// The endpoints of images that were silent just now.
    pub(crate) fn failing(&self) -> &Failing {
        &self.0.failing
    }

    pub(crate) fn client(&self, by: NamedBy<'_>) -> Result<Arc<Client>, Error> {
        self.client_of(by.into())
    }

    /// The client for a server that a registry names or redirects to.
    fn client_of_named(&self, location: &Location) -> Result<Arc<Client>, Error> {
        self.client_of(Whose::named(&self.0.settings, location))
    }

    fn client_of(&self, whose: Whose) -> Result<Arc<Client>, Error> {
        let mut all = self.0.kept.lock();
        if all.len() >= MAX_CLIENTS && !all.contains_key(&whose) {
            let oldest = all.iter().min_by_key(|(_, kept)| kept.used).map(|(whose, _)| whose.clone());
            all.retain(|whose, _| Some(whose) != oldest.as_ref());
        }
        let kept = all.entry(whose.clone()).or_default();
        kept.used = Some(Instant::now());
        if let Some(client) = &kept.client {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Client::new(&self.0.settings, whose)?);
        kept.client = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Drops a client that failed, unless another one was dropped just now.
    pub(crate) fn forget(&self, client: &Arc<Client>) {
        let mut all = self.0.kept.lock();
        let kept = all.entry(client.whose.clone()).or_default();
        if kept.forgotten.is_none_or(|then| then.elapsed() >= KEEP)
            && kept.client.take_if(|kept| Arc::ptr_eq(kept, client)).is_some()
        {
            kept.forgotten = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_kept_for_a_while() {
        const BY: NamedBy<'static> = NamedBy::Caller;
        let remote = Remote::default();
        let is_kept = |client: &Arc<Client>| Arc::ptr_eq(client, &remote.client(BY).unwrap());
        let forgotten = |at| remote.0.kept.lock().get_mut(&Whose::Caller).unwrap().forgotten = at;
        let first = remote.client(BY).unwrap();
        remote.forget(&first);
        assert!(!is_kept(&first));
        let second = remote.client(BY).unwrap();
        // A time in the future, so that the test does not depend on the host's speed.
        forgotten(Some(Instant::now() + 3600 * KEEP));
        remote.forget(&second);
        assert!(is_kept(&second));
        forgotten(Instant::now().checked_sub(KEEP));
        remote.forget(&first);
        assert!(is_kept(&second), "another one failed");
        remote.forget(&second);
        assert!(!is_kept(&second));
    }
}
