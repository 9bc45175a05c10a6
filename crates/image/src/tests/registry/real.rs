//! Debian's `docker-registry`, with and without TLS and passwords.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use wardian_needs::needs;

use super::super::tls::{authority, issue};
use super::*;
use crate::format::manifest::host_architecture;

/// The user `user` with the password `pass word`, by bcrypt.
const HTPASSWD: &str = "user:$2y$05$fyAnQzbF9XvW3llNUegoeeYd324SzrS4HA5hb5L3/Fs36f5sOHWDG\n";
const AUTHORIZATION: &str = "Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n";

/// A registry of this test alone; it ends with it.
pub(super) struct Registry {
    child: Child,
    reader: Option<JoinHandle<()>>,
    pub(super) host: String,
    tls: Option<Arc<ClientConfig>>,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Registry {
    pub(super) fn start(authority: Option<&Authority>, passwords: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n  \
             secret: x\n",
            path("data")
        );
        if let Some(authority) = authority {
            let (certificate, key) = issue(authority);
            std::fs::write(path("tls.crt"), certificate).unwrap();
            std::fs::write(path("tls.key"), key).unwrap();
            config += &format!("  tls: {{certificate: {}, key: {}}}\n", path("tls.crt"), path("tls.key"));
        }
        if passwords {
            std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd"));
        }
        std::fs::write(path("config.yml"), config).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        let host = loop {
            let start = text.len();
            assert!(log.read_line(&mut text).unwrap() > 0, "docker-registry has ended: {text}");
            let line = &text[start..];
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split([',', '"']).next().unwrap().to_owned();
            }
        };
        // It would wait for whoever reads its log.
        let reader = std::thread::spawn(move || drop(std::io::copy(&mut log, &mut std::io::sink())));
        let tls = authority.map(|authority| {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der().clone()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth())
        });
        Self { child, reader: Some(reader), host, tls, _dir: dir }
    }

    /// Sends a request, and returns the status and the head of the answer.
    fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> (u16, String) {
        let stream = TcpStream::connect(&self.host).unwrap();
        let (host, length) = (&self.host, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {media_type}\r\n\
             {AUTHORIZATION}Content-Length: {length}\r\n\r\n"
        );
        let mut answer = Vec::new();
        let mut talk = |stream: &mut dyn ReadWrite| {
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
            stream.flush().unwrap();
            // A connection may end without its last message.
            let _ = stream.read_to_end(&mut answer);
        };
        match &self.tls {
            None => talk(&mut { stream }),
            Some(config) => {
                let name = ServerName::try_from("127.0.0.1").unwrap();
                let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
                talk(&mut StreamOwned::new(connection, stream));
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer}")).parse().unwrap();
        (status, answer)
    }

    fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let (status, head) = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
        assert_eq!(status, 202, "{head}");
        let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
        let path = &location[location.find("/v2/").unwrap()..];
        let path = format!("{path}&digest={}", Digest::of(bytes));
        let (status, head) = self.send("PUT", &path, "application/octet-stream", bytes);
        assert_eq!(status, 201, "{head}");
    }

    fn push_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let (status, head) = self.send("PUT", &path, media_type, bytes);
        assert_eq!(status, 201, "{head}");
    }

    pub(super) fn push(&self, repository: &str, tag: &str, made: &Made) {
        self.push_blob(repository, &made.config);
        self.push_blob(repository, &made.blob);
        self.push_manifest(repository, tag, made.media_type, &made.manifest);
    }

    pub(super) fn name(&self, repository: &str, tag: &str) -> ImageName {
        ImageName::parse(&format!("{}/{repository}:{tag}", self.host)).unwrap()
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

fn zstd(data: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(data, 3).unwrap()
}

/// Pulls an image, and returns the text of its file `a`.
pub(super) fn pull(client: &Client, name: ImageName, login: Option<Login>) -> Result<(Image, String), Error> {
    let endpoints = vec![(Endpoint::of(&name), login)];
    let image = client.open(name, endpoints)?;
    client.unpack(&image, &Watch::default())?;
    Ok((image, client.cage.text("a")))
}

pub(super) fn never() -> bool {
    false
}

#[test]
fn images() {
    needs!(Registry);
    let registry = Registry::start(None, false);
    let docker = Made::new("a", 3 << 20, DOCKER);
    let oci = Made::new("a", 100_000, OCI);
    let zstd = Made::packed("a", 200_000, OCI, zstd);
    registry.push("some/where/r", "docker", &docker);
    registry.push("some/where/r", "oci", &oci);
    registry.push("some/where/r", "zstd", &zstd);
    for (made, (index, of_index)) in [(&docker, ("list", DOCKER_LIST)), (&oci, ("index", OCI_INDEX))] {
        let (digest, size, kind) = (made.digest(), made.manifest.len(), made.media_type);
        let host = host_architecture();
        let entry = |architecture: &str| {
            format!(
                r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#
            )
        };
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{of_index}","manifests":[{},{}]}}"#,
            entry("pdp11"),
            entry(host)
        );
        registry.push_manifest("some/where/r", index, of_index, text.as_bytes());
        let (image, text) = pull(&Client::new(), registry.name("some/where/r", index), None).unwrap();
        assert_eq!((image.manifest.as_ref(), text.as_str()), (Some(&made.manifest), "content"));
        assert_ne!(image.digest, Some(made.digest()));
    }
    for (tag, made) in [("docker", &docker), ("oci", &oci), ("zstd", &zstd)] {
        let client = Client::new();
        let name = registry.name("some/where/r", tag);
        let (image, text) = pull(&client, name.clone(), None).unwrap();
        assert_eq!((image.digest, text.as_str()), (Some(made.digest()), "content"));
        let endpoints = || vec![(Endpoint::of(&name), None)];
        let puller = Puller::new(&client.remote, name.clone(), endpoints()).unwrap();
        assert_eq!(puller.find(&never).unwrap().digest, made.digest());
        let mut tags = puller.tags(&never).unwrap();
        tags.sort();
        assert_eq!(tags, ["docker", "index", "list", "oci", "zstd"]);
        let by_digest = ImageName::parse(&format!("{}@{}", name.without_tag(), made.digest())).unwrap();
        pull(&Client::new(), by_digest, None).unwrap();
    }
    // A part of a blob that is there.
    let client = Client::new();
    write_part(client.parts.path(), &docker.blob, &docker.blob[..2 << 20]);
    pull(&client, registry.name("some/where/r", "docker"), None).unwrap();
    assert_eq!(client.kept(), [0; 0]);
    let client = Client::new();
    failed(&client, pull(&client, registry.name("some/where/r", "none"), None), &["manifest unknown"]);
    failed(&client, pull(&client, registry.name("none", "oci"), None), &["/none:oci", "manifest unknown"]);
}

#[test]
fn passwords_and_tls() {
    needs!(Registry);
    let made = Made::new("a", 100_000, OCI);
    let known = authority("known");
    for tls in [None, Some(&known)] {
        let registry = Registry::start(tls, true);
        registry.push("r", "latest", &made);
        let client = match tls {
            None => (Client::new(), None),
            Some(authority) => {
                let (client, dir) = Client::trusting(authority, &[&registry.host], settings());
                (client, Some(dir))
            }
        };
        let login = |password: &str| Some(Login::Basic { user: "user".into(), password: password.into() });
        let name = registry.name("r", "latest");
        assert_eq!(pull(&client.0, name.clone(), login("pass word")).unwrap().1, "content");
        let parts = ["requested access to the resource is denied", "UNAUTHORIZED", "image login"];
        failed(&client.0, pull(&client.0, name.clone(), login("SECRET")), &parts);
        let parts = ["answered 401: requested access to the resource is denied", "image login"];
        failed(&client.0, pull(&client.0, name.clone(), None), &parts);
        if tls.is_some() {
            let stranger = Client::new();
            let result = pull(&stranger, name.clone(), login("pass word"));
            failed(&stranger, result, &["is not trusted"]);
            let endpoint = Endpoint { insecure: true, ..Endpoint::of(&name) };
            stranger.open(name, vec![(endpoint, login("pass word"))]).unwrap();
        }
    }
}
