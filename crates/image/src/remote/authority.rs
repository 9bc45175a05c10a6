//! What a registry adds to its requests, and makes of its answers.

use std::fmt;

use reqwest::header::{HeaderMap, HeaderValue};

use super::answer::Refusal;
use super::location::Location;
use super::try_again::{Failure, Tries};
use crate::error::Error;

/// A registry as the authority over the requests that are sent to it. Nothing of it is sent to another server, where
/// a redirect may lead.
pub(crate) trait Authority: fmt::Debug + Send + Sync {
    /// Its host, as in URLs: `HOST[:PORT]`.
    fn host(&self) -> &str;

    /// Whether its certificate is not verified. Those of other servers, where it redirects to, are.
    fn is_insecure(&self) -> bool;

    /// Adds the Authorization header to a request, if the registry has asked for one before.
    ///
    /// # Errors
    /// A token has expired, and no new one is given.
    fn authorize(&self, tries: &Tries<'_>, headers: &mut HeaderMap) -> Result<(), Failure>;

    /// Takes the challenge of an answer with the status 401. `sent` is the Authorization of the refused request. After
    /// this the request is sent once more.
    ///
    /// # Errors
    /// There is nothing else to send.
    fn renew(&self, tries: &Tries<'_>, answer: &HeaderMap, sent: Option<&HeaderValue>)
    -> Result<(), Failure>;

    /// Returns the error for a refused request.
    fn refused(&self, refusal: Refusal<'_>) -> Error;

    /// Returns the error for a server whose certificate is not trusted.
    fn untrusted(&self, location: &Location, why: String) -> Error;
}
