//! Fetching blobs from servers, with threads that wait and without a file in between.

mod body;
mod client;
mod hosts;
mod location;
mod names;
mod try_again;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use self::hosts::Host;
pub use self::location::Location;

pub(crate) use self::body::Fetch;
pub(crate) use self::try_again::Validator;

use self::client::Client;
use crate::bounds::room::{Room, Share};
use crate::bounds::watch::Watch;
use crate::error::Error;

/// How often who waits looks whether it is to go on waiting.
const LOOK: Duration = Duration::from_millis(20);

/// How long a client is kept, whatever fails, after one was given up: a server that is down must not make everybody
/// else connect anew with each try.
const KEEP: Duration = Duration::from_secs(1);

/// How blobs are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A directory of certificates: `*.crt` are trusted besides the system's, a `*.cert` and the `*.key` of the same
    /// stem are shown to servers that ask for one. It may be missing; so may what is in it, by being empty.
    pub certificates: Option<PathBuf>,
    /// How long a connection may take, with TLS.
    pub connect: Duration,
    /// A server that sends fewer than 64 KiB, and not the end, in that time hangs.
    pub patience: Duration,
    /// Tries in a row of which none brings 64 KiB of what is missing, or the end.
    pub tries: u32,
    /// The pause after the first failure; each further one takes twice as long, at most 8 s.
    pub backoff: Duration,
    /// How long one layer may take in all: from all of its URLs, with all tries and pauses, and with the time that its
    /// writer takes, who holds up the server. It ends those that are slow, but never so slow that they hang.
    pub deadline: Duration,
    /// Servers that an image may name for its layers, and that those may redirect to. What whoever asks for an image names
    /// himself, as for an app, needs none of them.
    pub layer_hosts: Vec<Host>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            certificates: None,
            connect: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            tries: 5,
            backoff: Duration::from_millis(250),
            deadline: Duration::from_secs(3600),
            layer_hosts: Vec::new(),
        }
    }
}

/// Fetches blobs by http and https. A copy shares all with the original.
///
/// The proxies of the environment are used (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`), and at most ten
/// redirects are followed, none from https to http.
///
/// A fetch blocks its thread, which must not be one that drives an async runtime.
#[derive(Debug, Clone, Default)]
pub struct Remote(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    settings: Settings,
    /// For what somebody asked for himself, and for what an image names.
    kept: [Mutex<Kept>; 2],
}

/// Who named an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// Whoever asks for the image.
    Caller,
    /// The image itself, which must not make this host ask servers of its choice: those that only this host reaches would
    /// take the request for its own.
    Image,
}

#[derive(Debug, Default)]
struct Kept {
    /// Made when first needed. One that could not connect is not kept: the next reads `/etc/resolv.conf`, the trusted
    /// roots and the certificates anew.
    client: Option<Arc<Client>>,
    /// When one was last given up.
    forgotten: Option<Instant>,
}

impl Remote {
    /// Connects to nobody yet, but reads the certificates to find out what is wrong with them.
    ///
    /// # Errors
    /// [`Error::CertificatePair`], [`Error::Certificate`], [`Error::Io`].
    pub fn new(settings: Settings) -> Result<Self, Error> {
        if settings.certificates.is_some() {
            client::tls(settings.certificates.as_deref())?;
        }
        Ok(Self(Arc::new(Inner { settings, kept: Default::default() })))
    }

    fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Those of the locations that an image may name, in their order.
    ///
    /// # Errors
    /// [`Error::ForeignHost`] or [`Error::Account`] if there are some, but none of these.
    pub(crate) fn allowed(&self, what: &str, locations: &[Location]) -> Result<Vec<Location>, Error> {
        let allowed = |place: &&Location| hosts::allow(&self.0.settings.layer_hosts, place.url());
        let found: Vec<_> = locations.iter().filter(allowed).cloned().collect();
        if !found.is_empty() || locations.is_empty() {
            return Ok(found);
        }
        let what = what.to_owned();
        let host = |place: &Location| Host::of(place.url()).map_or_else(String::new, |host| host.to_string());
        // To allow the server of one with an account would not help.
        match locations.iter().find(|place| !hosts::has_account(place.url())) {
            Some(place) => Err(Error::ForeignHost { what, host: host(place) }),
            None => Err(Error::Account { what, host: host(&locations[0]) }),
        }
    }

    fn client(&self, by: NamedBy) -> Result<Arc<Client>, Error> {
        let mut kept = self.0.kept[by as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &kept.client {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Client::new(&self.0.settings, by)?);
        kept.client = Some(Arc::clone(&client));
        Ok(client)
    }

    fn forget(&self, client: &Arc<Client>, by: NamedBy) {
        let mut kept = self.0.kept[by as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if kept.forgotten.is_none_or(|then| then.elapsed() >= KEEP)
            && kept.client.take_if(|kept| Arc::ptr_eq(kept, client)).is_some()
        {
            kept.forgotten = Some(Instant::now());
        }
    }
}

/// What ends a fetch early: whoever watches it, or a writer that takes no more.
#[derive(Debug)]
pub(crate) struct Stop<'a> {
    pub(crate) watch: &'a Watch,
    given_up: AtomicBool,
    /// What is given back while a fetch waits.
    pub(crate) share: Share<'a>,
}

impl<'a> Stop<'a> {
    pub(crate) fn new(watch: &'a Watch) -> Self {
        Self::within(Room::of_all(), watch)
    }

    /// One whose unpack has its memory from there.
    pub(crate) fn within(room: &'a Room, watch: &'a Watch) -> Self {
        Self { watch, given_up: AtomicBool::new(false), share: Share::of(room) }
    }

    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.watch.is_cancelled() || self.given_up.load(Ordering::Relaxed)
    }

    async fn asked_for(&self) {
        while !self.is_set() {
            self.share.idle();
            tokio::time::sleep(LOOK).await;
        }
    }

    /// False if it was ended early.
    fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.is_set() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            self.share.idle();
            thread::sleep(left.min(LOOK));
        }
        false
    }
}

/// The causes of an error of the client, which only says what it was doing. None of them holds the URL.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let first = std::error::Error::source(&error).unwrap_or(&error);
    let mut text = first.to_string();
    let mut cause = first.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_kept_for_a_while() {
        const BY: NamedBy = NamedBy::Caller;
        let remote = Remote::default();
        let is_kept = |client: &Arc<Client>| Arc::ptr_eq(client, &remote.client(BY).unwrap());
        let forgotten = |at| remote.0.kept[BY as usize].lock().unwrap().forgotten = at;
        let first = remote.client(BY).unwrap();
        remote.forget(&first, BY);
        assert!(!is_kept(&first));
        let second = remote.client(BY).unwrap();
        // Time that is yet to come has not gone by, however slow the host is.
        forgotten(Some(Instant::now() + 3600 * KEEP));
        remote.forget(&second, BY);
        assert!(is_kept(&second));
        forgotten(Instant::now().checked_sub(KEEP));
        remote.forget(&first, BY);
        assert!(is_kept(&second), "another one failed");
        remote.forget(&second, BY);
        assert!(!is_kept(&second));
    }
}
