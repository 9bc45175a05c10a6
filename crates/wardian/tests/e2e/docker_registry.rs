//! Debian's `docker-registry` on the loopback interface, behind a proxy that notes what is asked for.

use crate::grootfs_images::gzip;
use crate::support::{STUCK, digest};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The user `user` with the password [`PASSWORD`], by bcrypt.
const HTPASSWD: &str = "user:$2y$05$fyAnQzbF9XvW3llNUegoeeYd324SzrS4HA5hb5L3/Fs36f5sOHWDG\n";
pub const PASSWORD: &str = "pass word";
/// No limit of the proxy.
const ALL: u64 = u64::MAX;

/// An image for a registry.
#[derive(Clone)]
pub struct Image {
    media: &'static str,
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
}

impl Image {
    /// One with these tars as its layers, compressed.
    pub fn of(tars: &[&[u8]]) -> Self {
        let ids: Vec<_> = tars.iter().map(|tar| format!("sha256:{}", digest(tar))).collect();
        Self::made(OCI, tars.iter().map(|tar| gzip(tar)).collect(), &ids, &json!({"Env": ["IN_IMAGE=yes"]}))
    }

    /// One with these blobs as its layers, of these diff ids.
    pub fn made(media: &'static str, layers: Vec<Vec<u8>>, ids: &[String], config: &Value) -> Self {
        Self::made_by(media, layers, ids, config, None)
    }

    /// The same, with this history.
    pub fn made_by(
        media: &'static str,
        layers: Vec<Vec<u8>>,
        ids: &[String],
        config: &Value,
        history: Option<&Value>,
    ) -> Self {
        let (of_config, of_layer) = match media {
            DOCKER => (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
            _ => ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"),
        };
        let config = json!({
            "os": "linux", "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
            "config": config, "rootfs": {"type": "layers", "diff_ids": ids}, "history": history,
        });
        let config = config.to_string().into_bytes();
        let describe = |blob: &[u8], media: &str| json!({"mediaType": media, "digest": format!("sha256:{}", digest(blob)), "size": blob.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media, "config": describe(&config, of_config),
            "layers": layers.iter().map(|blob| describe(blob, of_layer)).collect::<Vec<_>>(),
        });
        Self { media, config, layers, manifest: manifest.to_string().into_bytes() }
    }

    pub fn digest(&self) -> String {
        format!("sha256:{}", digest(&self.manifest))
    }
}

/// A registry of a test's own; it ends with it. It is filled by a door without a password, which no program under test
/// is told of.
pub struct Registry {
    dir: tempfile::TempDir,
    doors: Mutex<Vec<Door>>,
    /// `HOST:PORT` where it is filled: the proxy passes no bodies on.
    pub inner: String,
    proxy: Arc<Proxy>,
    /// `HOST:PORT` of the proxy.
    pub host: String,
}

/// What stands before the registry.
struct Proxy {
    to: String,
    asked: Mutex<Vec<String>>,
    /// How many bytes of an answer to a request for a blob are let through before it is held.
    hold_after: AtomicU64,
    /// How long a request for a blob waits, in milliseconds.
    delay: AtomicU64,
    ended: AtomicBool,
}

impl Proxy {
    fn serve(self: Arc<Self>, listener: TcpListener) {
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if self.ended.load(Ordering::Acquire) {
                    return;
                }
                let proxy = Arc::clone(&self);
                std::thread::spawn(move || _ = proxy.pass(&client));
            }
        });
    }

    fn pass(self: &Arc<Self>, client: &TcpStream) -> std::io::Result<()> {
        let mut first = [0];
        // A client that tries TLS is no one's here.
        if client.peek(&mut first)? == 0 || first[0] == 0x16 {
            return Ok(());
        }
        let to = TcpStream::connect(&self.to)?;
        let is_blob = Arc::new(AtomicBool::new(false));
        let (proxy, from, mut back, blob) =
            (Arc::clone(self), to.try_clone()?, client.try_clone()?, Arc::clone(&is_blob));
        std::thread::spawn(move || {
            let _ = proxy.answer(&from, &mut back, &blob);
            let _ = back.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
        let mut requests = BufReader::new(client);
        let done = loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if requests.read_line(&mut head)? == 0 {
                    let _ = to.shutdown(Shutdown::Both);
                    return Ok(());
                }
            }
            let line = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1");
            let range = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("range: ").map(str::to_owned));
            let range = range.map(|range| format!(" {range}")).unwrap_or_default();
            self.asked.lock().unwrap().push(format!("{line}{range}"));
            is_blob.store(line.contains("/blobs/"), Ordering::Release);
            if line.contains("/blobs/") {
                std::thread::sleep(Duration::from_millis(self.delay.load(Ordering::Acquire)));
            }
            if let Err(error) = (&to).write_all(head.as_bytes()) {
                break Err(error);
            }
        };
        let _ = to.shutdown(Shutdown::Both);
        done
    }

    fn answer(
        &self,
        mut from: &TcpStream,
        back: &mut TcpStream,
        is_blob: &AtomicBool,
    ) -> std::io::Result<()> {
        let (mut buffer, mut passed) = ([0; 16 << 10], 0);
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            back.write_all(&buffer[..n])?;
            passed = if is_blob.load(Ordering::Acquire) { passed + n as u64 } else { 0 };
            while passed > self.hold_after.load(Ordering::Acquire) && !self.ended.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(5));
                back.set_nonblocking(true)?;
                let gone = matches!(back.peek(&mut [0]), Ok(0));
                back.set_nonblocking(false)?;
                if gone {
                    return Ok(());
                }
            }
        }
    }
}

/// A process of the registry; it ends with this.
struct Door(Child);

impl Drop for Door {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.proxy.ended.store(true, Ordering::Release);
        let _ = TcpStream::connect(&self.host);
    }
}

impl Registry {
    /// One without a password.
    pub fn start() -> Self {
        Self::new(false)
    }

    /// One that asks for a password.
    pub fn with_password() -> Self {
        Self::new(true)
    }

    fn new(password: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (inner, child) = door(dir.path(), "inner", "");
        let mut doors = vec![child];
        let mut to = inner.clone();
        if password {
            let path = dir.path().join("htpasswd");
            let (address, child) = door(
                dir.path(),
                "outer",
                &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path.display()),
            );
            to = address;
            doors.push(child);
        }
        let proxy = Arc::new(Proxy {
            to,
            asked: Mutex::default(),
            hold_after: AtomicU64::new(ALL),
            delay: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        Arc::clone(&proxy).serve(listener);
        Self { dir, doors: Mutex::new(doors), inner, proxy, host }
    }

    /// Opens a door with TLS, of a certificate that nobody trusts; its `HOST:PORT`.
    pub fn door_with_tls(&self) -> String {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let path = |name: &str| self.dir.path().join(name);
        fs::write(path("tls.crt"), made.cert.pem()).unwrap();
        fs::write(path("tls.key"), made.signing_key.serialize_pem()).unwrap();
        let config = format!(
            "  tls: {{certificate: {}, key: {}}}\n",
            path("tls.crt").display(),
            path("tls.key").display()
        );
        let (host, child) = door(self.dir.path(), "tls", &config);
        self.doors.lock().unwrap().push(child);
        host
    }

    /// Opens a door in another network namespace, on its loopback interface; its `HOST:PORT` there.
    pub fn door_in(&self, namespace: &str) -> String {
        let (host, child) = door_at(self.dir.path(), "namespace", "", Some(namespace));
        self.doors.lock().unwrap().push(child);
        host
    }

    /// The name of an image here.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    /// Sends a request, and returns the status and the head of the answer.
    fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.inner).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media_type}\r\n\
             Content-Length: {}\r\n\r\n",
            self.inner,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer}")).parse().unwrap(), answer)
    }

    pub fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let (status, head) = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
        assert_eq!(status, 202, "{head}");
        let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
        let path = format!("{}&digest=sha256:{}", &location[location.find("/v2/").unwrap()..], digest(bytes));
        let (status, head) = self.send("PUT", &path, "application/octet-stream", bytes);
        assert_eq!(status, 201, "{head}");
    }

    /// Pushes an image; what its name stood for before, it stands for no more.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(repository, blob);
        }
        let (status, head) =
            self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), image.media, &image.manifest);
        assert_eq!(status, 201, "{head}");
    }

    /// Where a blob's bytes are.
    pub fn blob(&self, bytes: &[u8]) -> PathBuf {
        let hex = digest(bytes);
        self.dir.path().join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex).join("data")
    }

    /// What was asked for since the last call, without the question what is there (`GET /v2/`).
    pub fn asked(&self) -> Vec<String> {
        let all = std::mem::take(&mut *self.proxy.asked.lock().unwrap());
        all.into_iter().filter(|line| line != "GET /v2/").collect()
    }

    /// Blobs among them.
    pub fn asked_blobs(&self) -> Vec<String> {
        self.asked().into_iter().filter(|line| line.contains("/blobs/")).collect()
    }

    /// Holds answers with blobs after so many bytes, from now on; `None`: no more.
    pub fn hold(&self, after: Option<u64>) {
        self.proxy.hold_after.store(after.unwrap_or(ALL), Ordering::Release);
    }

    /// Has requests for blobs wait.
    pub fn delay(&self, delay: Duration) {
        self.proxy.delay.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Release);
    }

    /// Ends it: nobody answers any more.
    pub fn stop(&self) {
        self.doors.lock().unwrap().clear();
    }
}

/// Starts a process on the registry's directory; its `HOST:PORT`.
fn door(dir: &Path, name: &str, config: &str) -> (String, Door) {
    door_at(dir, name, config, None)
}

/// The same in a network namespace.
fn door_at(dir: &Path, name: &str, config: &str, namespace: Option<&str>) -> (String, Door) {
    let path = |name: String| dir.join(name);
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n  \
         secret: x\n{config}",
        path("data".into()).display()
    );
    fs::write(path(format!("{name}.yml")), text).unwrap();
    let log = fs::File::create(path(format!("{name}.log"))).unwrap();
    let mut command = match namespace {
        None => Command::new("docker-registry"),
        Some(namespace) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={namespace}")).arg("docker-registry");
            command
        }
    };
    command
        .arg("serve")
        .arg(path(format!("{name}.yml")))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let door = Door(command.spawn().unwrap());
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(path(format!("{name}.log"))).unwrap();
        if let Some((_, rest)) = text.split_once("listening on ")
            && rest.contains('\n')
        {
            return (rest.split([',', '"']).next().unwrap().to_owned(), door);
        }
        assert!(started.elapsed() < STUCK, "docker-registry does not listen: {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
