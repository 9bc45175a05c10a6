//! Fetching blobs from servers, with threads that wait and without a file in between.

mod body;
mod client;
mod location;
mod names;
mod try_again;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use self::location::Location;

pub(crate) use self::body::Fetch;
pub(crate) use self::try_again::Validator;

use self::client::Client;
use crate::error::Error;
use crate::watch::Watch;

/// How often who waits looks whether it is to go on waiting.
const LOOK: Duration = Duration::from_millis(20);

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
    /// Tries in a row without a new byte.
    pub tries: u32,
    /// The pause after the first failure; each further one takes twice as long, at most 8 s.
    pub backoff: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            certificates: None,
            connect: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            tries: 5,
            backoff: Duration::from_millis(250),
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
    /// Made when first needed. One that could not connect is not kept: the next reads `/etc/resolv.conf`, the trusted
    /// roots and the certificates anew.
    client: Mutex<Option<Arc<Client>>>,
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
        Ok(Self(Arc::new(Inner { settings, client: Mutex::new(None) })))
    }

    fn settings(&self) -> &Settings {
        &self.0.settings
    }

    fn client(&self) -> Result<Arc<Client>, Error> {
        let mut kept = self.0.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*kept {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Client::new(&self.0.settings)?);
        *kept = Some(Arc::clone(&client));
        Ok(client)
    }

    fn forget(&self, client: &Arc<Client>) {
        let mut kept = self.0.client.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take_if(|kept| Arc::ptr_eq(kept, client));
    }
}

/// What ends a fetch early: whoever watches it, or a writer that takes no more.
#[derive(Debug)]
pub(crate) struct Stop<'a> {
    pub(crate) watch: &'a Watch,
    given_up: AtomicBool,
}

impl<'a> Stop<'a> {
    pub(crate) fn new(watch: &'a Watch) -> Self {
        Self { watch, given_up: AtomicBool::new(false) }
    }

    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.watch.is_cancelled() || self.given_up.load(Ordering::Relaxed)
    }

    async fn asked_for(&self) {
        while !self.is_set() {
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
