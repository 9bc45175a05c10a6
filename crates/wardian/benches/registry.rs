//! How long an image takes from a registry on the loopback interface until it can be run, by turns with skopeo and umoci, and
//! with podman, as whole processes. Needs root and `docker-registry`; leaves nothing.
//!
//! `./dev bench registry`, or `cargo bench --package wardian --bench registry -- [--rounds N] [--dir DIR]`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints figures, and what it does")]

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const LAYERS: u64 = 10;
/// Bytes of files in one layer; compressed by gzip it has about half of them, so that the image has 400 MB.
const LAYER: usize = 75_000_000;
/// Of so many words the files are made, the first of them more often than the last.
const WORDS: usize = 4096;
/// How often a process is started that takes milliseconds.
const SHORT: usize = 100;
const MEMORY: f64 = 64.0;

/// Files of pseudo-random words (xorshift64*), the same at each run.
struct Files {
    state: u64,
    words: Vec<Vec<u8>>,
}

impl Files {
    fn new(seed: u64) -> Self {
        let mut files = Self { state: 0x9e37_79b9_7f4a_7c15 ^ (seed + 1), words: Vec::new() };
        files.words = (0..WORDS)
            .map(|_| {
                let (length, bytes) = (2 + files.below(9), files.next().to_le_bytes());
                bytes.into_iter().cycle().take(length).collect()
            })
            .collect();
        files
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: usize) -> usize {
        // The upper bits are the better ones.
        (self.next() >> 33) as usize % most
    }

    /// One file of 1 to 64 KiB.
    fn file(&mut self) -> Vec<u8> {
        let size = 1024 + self.below(63 << 10);
        let mut bytes = Vec::with_capacity(size + 16);
        while bytes.len() < size {
            let most = 1 + self.below(WORDS);
            let word = self.below(most);
            bytes.extend(&self.words[word]);
        }
        bytes
    }
}

fn layer(seed: u64) -> Result<Vec<u8>> {
    let mut files = Files::new(seed);
    let mut tar = tar::Builder::new(Vec::with_capacity(LAYER + (LAYER >> 3)));
    let (mut size, mut count) = (0, 0);
    while size < LAYER {
        let file = files.file();
        let mut header = tar::Header::new_ustar();
        header.set_size(file.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("usr/share/{seed}/{}/{count}", count % 50), &file[..])?;
        (size, count) = (size + file.len(), count + 1);
    }
    Ok(tar.into_inner()?)
}

/// A root file system with a shell, as small as one can be.
fn small() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let busybox = fs::read("/bin/busybox")?;
    let mut header = tar::Header::new_ustar();
    header.set_size(busybox.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/busybox", &busybox[..])?;
    for (path, to) in [("bin/sh", "busybox"), ("bin/true", "busybox")] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, path, to)?;
    }
    Ok(tar.into_inner()?)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Compression {
    Gzip,
    Zstd,
}

/// Writes an OCI layout of an image with these layers; returns the bytes of its blobs.
fn write_layout(dir: &Path, tars: &[Vec<u8>], compression: Compression) -> Result<u64> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut sum = 0;
    let mut blob = |media_type: &str, bytes: &[u8]| -> Result<Value> {
        sum += bytes.len() as u64;
        let hex = digest(bytes);
        fs::write(blobs.join(&hex), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()}))
    };
    let (mut layers, mut ids) = (Vec::new(), Vec::new());
    for tar in tars {
        ids.push(format!("sha256:{}", digest(tar)));
        layers.push(match compression {
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                gzip.write_all(tar)?;
                blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip.finish()?)?
            }
            Compression::Zstd => {
                blob("application/vnd.oci.image.layer.v1.tar+zstd", &zstd::encode_all(&tar[..], 3)?)?
            }
        });
    }
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let mut manifest = blob(media_type, manifest.to_string().as_bytes())?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "i"});
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    Ok(sum)
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        let _ = self.0.wait();
    }
}

struct Registry {
    _process: Running,
    host: String,
    /// A line for each request.
    log: PathBuf,
}

impl Registry {
    fn start(dir: &Path) -> Result<Self> {
        let host = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (config, log) = (dir.join("registry.yml"), dir.join("registry.log"));
        let data = dir.join("registry");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '{host}'}}\n",
                data.display()
            ),
        )?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .stdout(File::create(&log)?)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("docker-registry cannot be started: {error}"))?;
        let process = Running(process);
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&host).is_err() {
            if Instant::now() > until {
                return Err("docker-registry does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _process: process, host, log })
    }

    fn requests(&self) -> Result<usize> {
        // The line of a request is written after its answer.
        std::thread::sleep(Duration::from_millis(200));
        Ok(fs::read_to_string(&self.log)?.lines().filter(|line| line.contains("HTTP/1.")).count())
    }
}

/// What one process took.
struct Took {
    time: Duration,
    /// The most of its memory that was resident, in MB.
    memory: f64,
}

struct Bench {
    dir: PathBuf,
    registry: Registry,
}

impl Bench {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("CONTAINERS_REGISTRIES_CONF", self.dir.join("registries.conf"))
            .env("REGISTRY_AUTH_FILE", self.dir.join("auth.json"))
            .env("WARDIAN_ROOT", self.dir.join("store"))
            .env("WARDIAN_RUN", self.dir.join("run"))
            .env("WARDIAN_NETWORK", "none")
            .stdout(Stdio::null())
            .stderr(File::create(self.dir.join("stderr")).map_or_else(|_| Stdio::null(), Stdio::from));
        command
    }

    fn run<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Result<Took> {
        let started = Instant::now();
        let mut child =
            self.command(program).args(args).spawn().map_err(|error| format!("{program}: {error}"))?;
        // The high-water mark only grows, and is gone with the process: the last look is the one that counts.
        let status = format!("/proc/{}/status", child.id());
        let (mut memory, mut looked) = (0.0_f64, Instant::now());
        let ended = loop {
            if let Some(ended) = child.try_wait()? {
                break ended;
            }
            if looked.elapsed() > Duration::from_millis(5) {
                looked = Instant::now();
                let peak = fs::read_to_string(&status).ok().and_then(|text| {
                    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
                    line.trim().trim_end_matches(" kB").parse::<f64>().ok()
                });
                memory = memory.max(peak.unwrap_or_default() / 1e3);
            }
            std::thread::sleep(Duration::from_micros(if started.elapsed().as_millis() < 50 {
                50
            } else {
                1000
            }));
        };
        let took = Took { time: started.elapsed(), memory };
        if !ended.success() {
            let said = fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
            let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
            return Err(format!("{program} {}: {ended}: {said}", args.join(" ")).into());
        }
        Ok(took)
    }

    fn wardian<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Took> {
        self.run(env!("CARGO_BIN_EXE_wardian"), args)
    }

    fn name(&self, image: &str) -> String {
        format!("{}/{image}:latest", self.registry.host)
    }

    /// Removes what a pull made, so that the next one begins with nothing, and waits for the disk.
    fn clear(&self) -> Result<()> {
        for name in ["store", "run", "layout", "bundle"] {
            let path = self.dir.join(name);
            if path.exists() {
                fs::remove_dir_all(path)?;
            }
        }
        rustix::fs::sync();
        Ok(())
    }

    fn pull(&self, by: Peer, image: &str) -> Result<Took> {
        self.clear()?;
        let name = self.name(image);
        let path = |name: &str| self.dir.join(name).display().to_string();
        let took = match by {
            Peer::Wardian => self.wardian(&["image", "pull", "--quiet", &name])?,
            Peer::Umoci => {
                let layout = path("layout");
                let (from, to) = (format!("docker://{name}"), format!("oci:{layout}:i"));
                let copied =
                    self.run("skopeo", &["copy", "--quiet", "--src-tls-verify=false", &from, &to])?;
                let unpacked =
                    self.run("umoci", &["unpack", "--image", &format!("{layout}:i"), &path("bundle")])?;
                Took { time: copied.time + unpacked.time, memory: copied.memory.max(unpacked.memory) }
            }
            Peer::Podman => {
                let (root, run) = (path("podman"), path("podman-run"));
                let place = ["--root", &root, "--runroot", &run, "--storage-driver", "overlay"];
                let with = |args: &[&'static str], name: Option<&str>| {
                    let all = place.iter().copied().chain(args.iter().copied()).chain(name);
                    all.map(str::to_owned).collect::<Vec<_>>()
                };
                let took =
                    self.run("podman", &with(&["pull", "--quiet", "--tls-verify=false"], Some(&name)))?;
                self.run("podman", &with(&["rmi", "--all", "--force"], None))?;
                took
            }
        };
        Ok(took)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Peer {
    Wardian,
    Umoci,
    Podman,
}

impl Peer {
    fn missing(self) -> Option<&'static str> {
        let programs: &[&str] = match self {
            Self::Wardian => &[],
            Self::Umoci => &["skopeo", "umoci"],
            Self::Podman => &["podman"],
        };
        let found = |program: &&&str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            !std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
        };
        programs.iter().find(found).copied()
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn milliseconds(all: &[Duration]) -> (f64, f64) {
    let mut all: Vec<_> = all.iter().map(|took| took.as_secs_f64() * 1e3).collect();
    all.sort_unstable_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() * 95 / 100])
}

fn verdict(held: bool) -> &'static str {
    if held { "held" } else { "MISSED" }
}

/// Pulls the large image in rounds, each of them with all peers, and prints the medians of the rounds.
fn cold(bench: &Bench, rounds: usize) -> Result<()> {
    let all = [
        ("wardian, gzip", Peer::Wardian, "gzip", None),
        ("skopeo copy + umoci unpack, gzip", Peer::Umoci, "gzip", Some(0.5)),
        ("podman pull, gzip", Peer::Podman, "gzip", Some(0.6)),
        ("wardian, zstd", Peer::Wardian, "zstd", None),
    ];
    let mut took: [Vec<Took>; 4] = Default::default();
    for round in 0..rounds {
        for (at, (name, peer, image, _)) in all.iter().enumerate() {
            if let Some(missing) = peer.missing() {
                if round == 0 {
                    println!("{name}: not measured, {missing} is not installed");
                }
                continue;
            }
            took[at].push(bench.pull(*peer, image)?);
            eprintln!("round {} of {rounds}: {name}: {:.2} s", round + 1, took[at][round].time.as_secs_f64());
        }
    }
    let seconds = |at: usize| took[at].iter().map(|took| took.time.as_secs_f64()).collect::<Vec<_>>();
    let ratio =
        |of: usize, to: usize| median(seconds(of).iter().zip(seconds(to)).map(|(of, to)| of / to).collect());
    for (at, (name, ..)) in all.iter().enumerate().filter(|(at, _)| !took[*at].is_empty()) {
        let memory = took[at].iter().map(|took| took.memory).fold(0.0, f64::max);
        println!("{name:34} p50 {:5.2} s   most memory {memory:5.0} MB", median(seconds(at)));
    }
    for (at, (name, _, _, goal)) in all.iter().enumerate().filter(|(at, _)| !took[*at].is_empty()) {
        if let Some(goal) = goal {
            let ratio = ratio(0, at);
            println!("wardian / {name}: {ratio:.2} (goal {goal}: {})", verdict(ratio <= *goal));
        }
    }
    let zstd = ratio(3, 0);
    println!("wardian, zstd / gzip: {zstd:.2} (goal 0.7: {})", verdict(zstd <= 0.7));
    let memory = took[0].iter().chain(&took[3]).map(|took| took.memory).fold(0.0, f64::max);
    println!("memory of wardian: {memory:.0} MB (goal {MEMORY}: {})", verdict(memory <= MEMORY));
    Ok(())
}

/// Pulls what is there, and runs it.
fn warm(bench: &Bench) -> Result<()> {
    bench.clear()?;
    let name = bench.name("small");
    bench.wardian(&["image", "pull", "--quiet", &name])?;
    let before = bench.registry.requests()?;
    let mut times = Vec::new();
    for _ in 0..SHORT {
        times.push(bench.wardian(&["image", "pull", "--quiet", &name])?.time);
    }
    let asked = bench.registry.requests()?.saturating_sub(before);
    let (p50, p95) = milliseconds(&times);
    println!(
        "pull of what is there: p50 {p50:.1} ms, p95 {p95:.1} ms (goal 10: {}), {:.1} requests (goal 1)",
        verdict(p50 <= 10.0),
        asked as f64 / SHORT as f64
    );
    let server = bench.command(env!("CARGO_BIN_EXE_wardian")).arg("serve").spawn()?;
    let server = Running(server);
    let socket = bench.dir.join("run/garden.sock");
    let until = Instant::now() + Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        if Instant::now() > until {
            let said = fs::read_to_string(bench.dir.join("stderr"))?;
            return Err(format!("wardian serve does not answer: {said}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut times = Vec::new();
    for _ in 0..SHORT {
        times.push(bench.wardian(&["run", "--rm", &name, "true"])?.time);
    }
    drop(server);
    let (p50, p95) = milliseconds(&times);
    println!(
        "wardian run --rm IMAGE true: p50 {p50:.1} ms, p95 {p95:.1} ms (goal 20: {})",
        verdict(p50 <= 20.0)
    );
    Ok(())
}

fn measure(rounds: usize, parent: &Path) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("wardian-bench-").tempdir_in(parent)?;
    let path = |name: &str| dir.path().join(name);
    fs::write(path("registries.conf"), "unqualified-search-registries = []\n")?;
    fs::write(path("auth.json"), "{}")?;
    let bench = Bench { dir: dir.path().to_owned(), registry: Registry::start(dir.path())? };
    eprintln!("making {LAYERS} layers of {} MB", LAYER / 1_000_000);
    let layers = (0..LAYERS).map(layer).collect::<Result<Vec<_>>>()?;
    let mut sizes = Vec::new();
    for (name, tars, compression) in [
        ("gzip", &layers, Compression::Gzip),
        ("zstd", &layers, Compression::Zstd),
        ("small", &vec![small()?], Compression::Gzip),
    ] {
        let layout = path(&format!("{name}.layout"));
        sizes.push(write_layout(&layout, tars, compression)?);
        let to = bench.name(name);
        bench.wardian(&["image", "import", "--tag", &to, &format!("oci://{}", layout.display())])?;
        bench.wardian(&["image", "push", "--quiet", &to])?;
        bench.clear()?;
        fs::remove_dir_all(layout)?;
    }
    drop(layers);
    println!(
        "the image: {LAYERS} layers, {} MB by gzip, {} MB by zstd",
        sizes[0] / 1_000_000,
        sizes[1] / 1_000_000
    );
    cold(&bench, rounds)?;
    warm(&bench)?;
    // What the server and podman left mounted must not keep the directory.
    let reset = ["reset", "--yes", "--images"];
    bench.wardian(&reset)?;
    Ok(())
}

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: registry: needs root");
        return ExitCode::SUCCESS;
    }
    let (mut rounds, mut dir) = (5, PathBuf::from("/var/tmp"));
    let mut args = std::env::args().skip(1);
    // Cargo adds --bench.
    while let Some(arg) = args.find(|arg| arg != "--bench") {
        match (arg.as_str(), args.next()) {
            ("--rounds", Some(value)) if value.parse().is_ok_and(|n: usize| n > 0) => {
                rounds = value.parse().unwrap_or(rounds);
            }
            ("--dir", Some(value)) => dir = value.into(),
            _ => {
                eprintln!("usage: [--rounds N] [--dir DIR]");
                return ExitCode::from(2);
            }
        }
    }
    match measure(rounds, &dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
