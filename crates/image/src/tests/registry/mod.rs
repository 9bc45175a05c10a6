//! Images from registries: scripted ones, which misbehave, and a real one.

mod blobs;
mod credentials;
mod documents;
mod elsewhere;
mod login;
mod mirrors;
mod push;
mod real;
mod sending;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;

use super::app::all_text;
use super::remote::settings;
use super::server::{Reply, Server};
use super::tls::Authority;
use super::{Cage, Tar, gzip, write};
use crate::registry::{Endpoint, ImageName, Login, Puller};
use crate::{Digest, Error, Image, Limits, Opening, Remote, Settings, Source, Unpacked, Watch};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// An image of one layer.
#[derive(Clone)]
struct Made {
    manifest: Vec<u8>,
    media_type: &'static str,
    config: Vec<u8>,
    blob: Vec<u8>,
}

fn descriptor(bytes: &[u8], media_type: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
}

impl Made {
    /// Its layer has a file `name`, and a file `noise` of this many bytes.
    fn new(name: &str, noise: usize, media_type: &'static str) -> Self {
        Self::packed(name, noise, media_type, gzip)
    }

    fn packed(name: &str, noise: usize, media_type: &'static str, pack: fn(&[u8]) -> Vec<u8>) -> Self {
        let mut random = fastrand::Rng::with_seed(7);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(noise).collect();
        let tar = Tar::default().file(name, b"content").file("noise", &noise).end();
        let (of_config, of_layer) = match media_type {
            DOCKER => (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
            _ => ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"),
        };
        let blob = pack(&tar);
        Self::of(blob, &Digest::of(&tar), media_type, of_config, of_layer)
    }

    fn of(
        blob: Vec<u8>,
        diff_id: &Digest,
        media_type: &'static str,
        of_config: &str,
        of_layer: &str,
    ) -> Self {
        let architecture = crate::format::manifest::host_architecture();
        let config = format!(
            r#"{{"os":"linux","architecture":"{architecture}","config":{{"Env":["A=b"]}},"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
        );
        let config = config.into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{},"layers":[{}]}}"#,
            descriptor(&config, of_config),
            descriptor(&blob, of_layer)
        );
        Self { manifest: manifest.into_bytes(), media_type, config, blob }
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

/// The answers of a registry by their paths below `/v2/`.
#[derive(Clone, Default)]
struct Files(HashMap<String, Reply>);

impl Files {
    /// Has an image `r:latest`.
    fn with(made: &Made) -> Self {
        let mut files = Self::default();
        files.manifest("latest", &made.manifest, made.media_type);
        files.image(made);
        files
    }

    fn image(&mut self, made: &Made) {
        self.manifest(&made.digest().to_string(), &made.manifest, made.media_type);
        self.blob(&made.config);
        self.blob(&made.blob);
    }

    fn manifest(&mut self, reference: &str, bytes: &[u8], media_type: &str) {
        let reply = Reply::of(bytes).with("Content-Type", media_type);
        let digest = Digest::of(bytes).to_string();
        self.set(&format!("manifests/{reference}"), reply.with("Docker-Content-Digest", &digest));
    }

    fn blob(&mut self, bytes: &[u8]) {
        self.set(&blob(bytes), Reply { ranges: true, ..Reply::of(bytes) });
    }

    fn set(&mut self, path: &str, reply: Reply) {
        self.0.insert(format!("/v2/r/{path}"), reply);
    }

    fn get(&self, request: &str) -> Reply {
        let path = path_of(request);
        let missing = r#"{"errors":[{"code":"UNKNOWN","message":"there is none"}]}"#;
        match self.0.get(path.split('?').next().unwrap()) {
            Some(reply) => reply.clone(),
            None if path == "/v2/" => Reply::of(b"{}"),
            None => Reply { status: 404, ..Reply::of(missing.as_bytes()) },
        }
    }

    fn serve(self) -> Server {
        self.serve_by(None)
    }

    fn serve_by(self, tls: Option<Arc<ServerConfig>>) -> Server {
        Server::by(move |requests| self.get(requests.last().unwrap()), tls)
    }
}

/// The path of a blob below the repository.
fn blob(bytes: &[u8]) -> String {
    format!("blobs/{}", Digest::of(bytes))
}

fn path_of(request: &str) -> &str {
    request.split(' ').nth(1).unwrap()
}

fn name(host: &str) -> ImageName {
    ImageName::parse(&format!("{host}/r")).unwrap()
}

fn endpoint(server: &Server) -> Endpoint {
    Endpoint::of(&name(&server.host()))
}

/// Whoever pulls, and where to.
struct Client {
    remote: Remote,
    cage: Cage,
    /// The directory of what is kept of blobs.
    parts: tempfile::TempDir,
    limits: Limits,
}

impl Client {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let parts = tempfile::tempdir().unwrap();
        let remote = Remote::new(settings).unwrap();
        Self { remote, cage: Cage::new(), parts, limits: Limits::default() }
    }

    /// Trusts the certificates of an authority at these registries.
    fn trusting(authority: &Authority, hosts: &[&str], settings: Settings) -> (Self, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        for host in hosts {
            write(&dir.path().join(host).join("ca.crt"), authority.pem().as_bytes());
        }
        let registry_certificates = vec!["/nowhere".into(), dir.path().to_owned()];
        (Self::with(Settings { registry_certificates, ..settings }), dir)
    }

    fn open(&self, name: ImageName, endpoints: Vec<(Endpoint, Option<Login>)>) -> Result<Image, Error> {
        let parts = File::open(self.parts.path()).unwrap();
        let opening = Opening { partial: Some(parts.as_fd()), ..Opening::default() };
        Source::of_registry(name).pulled_from(endpoints).open_in(&self.remote, &opening)
    }

    fn unpack(&self, image: &Image, watch: &Watch) -> Result<Unpacked, Error> {
        let into = File::open(self.cage.root()).unwrap();
        image.layers[0].unpack(into.as_fd(), &[], &self.limits, watch)
    }

    /// Pulls and unpacks the image `r` of a server.
    fn pull(&self, server: &Server) -> Result<Image, Error> {
        self.pull_as(server, None)
    }

    fn pull_as(&self, server: &Server, login: Option<Login>) -> Result<Image, Error> {
        let image = self.open(name(&server.host()), vec![(endpoint(server), login)])?;
        self.unpack(&image, &Watch::default())?;
        Ok(image)
    }

    fn puller(&self, server: &Server) -> Puller {
        Puller::new(&self.remote, name(&server.host()), vec![(endpoint(server), None)]).unwrap()
    }

    /// The sizes of the files that are kept of blobs.
    fn kept(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(self.parts.path()).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).collect()
    }
}

/// Returns the error of a pull, which must have left nothing for a next try, and must not show a secret.
#[track_caller]
fn failed<T>(client: &Client, result: Result<T, Error>, parts: &[&str]) -> Error {
    let error = result.err().expect("it was pulled");
    let text = all_text(&error);
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("SECRET"), "{text}");
    assert_eq!(client.kept(), [0; 0], "{text}");
    error
}

fn write_part(dir: &Path, blob: &[u8], part: &[u8]) {
    write(&dir.join(format!("sha256-{}", Digest::of(blob).as_hex())), part);
}

/// The events that were logged by this thread, one a line.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Events {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            text += &format!("{field}={value:?} ");
        });
        if event.metadata().target().starts_with("wardian") {
            self.0.lock().unwrap().push(text);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Returns what is logged meanwhile.
fn told<T>(work: impl FnOnce() -> T) -> (Vec<String>, T) {
    let events = Events::default();
    let done = tracing::subscriber::with_default(events.clone(), work);
    let texts = events.0.lock().unwrap().clone();
    (texts, done)
}
