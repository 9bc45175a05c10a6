//! Images from registries (OCI distribution spec 1.1, docker's registry HTTP API V2).
//!
//! [`ImageName`] is an image's full name, [`conf`] says which endpoints it may be pulled from (mirrors first, then the
//! registry itself), and [`credentials`] finds the logins. A [`Puller`] has all of these. Each endpoint is a
//! `client::Registry`, which sends requests by way of `remote`, and answers the registry's challenges (`challenge`)
//! with credentials or a token (`token`).

mod blob;
mod challenge;
mod client;
pub mod conf;
pub mod credentials;
mod document;
mod files;
#[cfg(fuzzing)]
pub mod fuzzed;
pub mod name;
mod partial;
mod pull;
mod push;
mod token;

pub use self::conf::{Endpoint, Registries};
pub use self::credentials::{Credentials, Login};
pub use self::name::ImageName;
pub use self::pull::{Found, Puller};
pub use self::push::{Pusher, Sent};

use std::path::PathBuf;
use std::time::Instant;

use crate::bounds::stop::Stop;
use crate::bounds::watch::Watch;
use crate::error::Error;
use crate::remote::Remote;

pub(crate) use self::blob::RemoteBlob;
pub(crate) use self::partial::{LEAST, Partial};
pub(crate) use self::pull::Documents;
pub(crate) use self::push::{Content, Outgoing, Upload};

/// What this host knows of registries: its settings and its logins. Files are read when they are needed, so that a
/// server need not be started again after a change.
///
/// The default is a host without files.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The file of settings.
    conf: Option<PathBuf>,
    insecure: Vec<String>,
    credentials: Credentials,
}

impl Known {
    /// The files of this host.
    pub fn of_host() -> Self {
        Self { conf: Some(conf::path()), insecure: Vec::new(), credentials: Credentials::of_host() }
    }

    /// These files; `None`: no settings.
    pub fn of(conf: Option<PathBuf>, credentials: Credentials) -> Self {
        Self { conf, insecure: Vec::new(), credentials }
    }

    /// Adds hosts, `HOST` or `HOST:PORT`, whose certificates are not verified, and which may be asked by plain http.
    ///
    /// # Errors
    /// One of them is no host.
    pub fn with_insecure(mut self, hosts: &[String]) -> Result<Self, Error> {
        self.insecure.extend_from_slice(hosts);
        Registries::default().with_insecure(&self.insecure)?;
        Ok(self)
    }

    /// Returns the file of settings, and the hosts of [`Known::with_insecure`].
    pub fn sources(&self) -> (Option<&PathBuf>, &[String]) {
        (self.conf.as_ref(), &self.insecure)
    }

    /// Reads the settings.
    ///
    /// # Errors
    /// [`Error::Registries`].
    pub fn registries(&self) -> Result<Registries, Error> {
        let read = self.conf.as_deref().map_or_else(|| Ok(Registries::default()), Registries::load);
        Ok(read?.with_insecure(&self.insecure)?)
    }

    /// The logins.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Returns the endpoints of an image, each with its login. A `login` that comes with the request is for the
    /// image's registry alone, and none of this host's is used then: whoever asks as somebody gets what that one gets.
    ///
    /// # Errors
    /// [`Error::Registries`], for instance if it is blocked; [`Error::Login`].
    pub fn endpoints(
        &self,
        name: &ImageName,
        login: Option<&Login>,
    ) -> Result<Vec<(Endpoint, Option<Login>)>, Error> {
        let own = Endpoint::of(name);
        let with_login = |endpoint: Endpoint| {
            let is_own = endpoint.host == own.host;
            let login = match login {
                Some(login) => is_own.then(|| login.clone()),
                None if is_own => self.credentials.find(name.registry(), &endpoint.repository)?,
                None => self.credentials.find(&endpoint.host, &endpoint.repository)?,
            };
            Ok((endpoint, login))
        };
        self.registries()?.endpoints(name)?.into_iter().map(with_login).collect()
    }

    /// Asks a registry whether it accepts a login, and returns whether it asks for one at all: one that does not accepts
    /// any, as far as can be told.
    ///
    /// # Errors
    /// [`RegistryError::Login`] if it does not accept it; it does not answer, or not as a registry; it is blocked;
    /// the text is no registry.
    ///
    /// [`RegistryError::Login`]: crate::RegistryError::Login
    pub fn try_login(
        &self,
        remote: &Remote,
        registry: &str,
        login: &Login,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<bool, Error> {
        // A name such as `host/repository` could be one of Docker Hub, which would be shown the password.
        let registry = &*credentials::checked(registry)?;
        let endpoint = self.registries()?.bare_endpoint(registry)?;
        let watch = Watch::default();
        let stop = Stop::or(&watch, cancelled);
        let work = client::Work { stop: &stop, since: Instant::now() };
        client::Registry::to_greet(remote, endpoint, registry, login.clone())?.greet(work)
    }

    /// Returns what pushes an image to the registry of its name. `from` is an image at a registry that has the same
    /// layers: if that is the same one, it is asked to mount them.
    ///
    /// # Errors
    /// [`Error::Registries`], for instance if it is blocked; [`Error::Login`]; a name with a digest.
    pub fn pusher(
        &self,
        remote: &Remote,
        name: &ImageName,
        from: Option<&ImageName>,
    ) -> Result<Pusher, Error> {
        let registries = self.registries()?;
        let endpoint = registries.own_endpoint(name)?;
        let login = self.credentials.find(name.registry(), &endpoint.repository)?;
        let from = from.filter(|from| from.registry() == name.registry()).map(ImageName::repository);
        Pusher::new(remote, name, endpoint, login, from)
    }

    /// Returns what pulls the image.
    ///
    /// # Errors
    /// As [`Known::endpoints`]; an endpoint is none.
    pub fn puller(&self, remote: &Remote, name: &ImageName, login: Option<&Login>) -> Result<Puller, Error> {
        Puller::new(remote, name.clone(), self.endpoints(name, login)?)
    }
}
