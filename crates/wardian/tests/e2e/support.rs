//! A server for a test, and what tests do with it.

use crate::watchdog;
use crate::world::{self, World};
use sha2::Digest as _;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use wardian_garden::wire::{ContainerSpec, ImageRef, ProcessSpec};
use wardian_garden::{Client, Io, Process};

/// The program under test. Whoever names it, to start it, has a deadline.
pub const WARDIAN: Program = Program;
const PROGRAM: &str = env!("CARGO_BIN_EXE_wardian");

/// See [`WARDIAN`].
#[derive(Debug, Clone, Copy)]
pub struct Program;

impl std::ops::Deref for Program {
    type Target = str;
    fn deref(&self) -> &str {
        watchdog::begin();
        PROGRAM
    }
}

impl AsRef<std::ffi::OsStr> for Program {
    fn as_ref(&self) -> &std::ffi::OsStr {
        (**self).as_ref()
    }
}

impl AsRef<Path> for Program {
    fn as_ref(&self) -> &Path {
        Path::new(&**self)
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(self)
    }
}

/// Copies a program that the test will execute. Another process does it: a child that another thread starts at that
/// moment would inherit a descriptor that is open for writing, and until the child has executed its own program nobody
/// could execute the copy (ETXTBSY, execve(2)).
pub fn copy_program(from: impl AsRef<std::ffi::OsStr>, to: impl AsRef<Path>) {
    assert!(Command::new("cp").arg(from).arg(to.as_ref()).status().unwrap().success());
}

/// The variable that says which network containers have. Servers outside a world are told `none`: no test touches the
/// network of the host.
pub const NETWORK: &str = "WARDIAN_NETWORK";

/// What a program of a test is to know of registries: none of the internet, and no login of this host.
pub const REGISTRIES: [(&str, &str); 2] = [
    ("CONTAINERS_REGISTRIES_CONF", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/registries.conf")),
    ("REGISTRY_AUTH_FILE", "/nowhere/auth.json"),
];

/// After this a test is stuck. Nothing is measured with it.
pub const STUCK: Duration = Duration::from_secs(60);

/// A server of its own, with a busybox image as its default.
pub struct Server {
    base: tempfile::TempDir,
    run: tempfile::TempDir,
    child: Option<Child>,
    tag: String,
    /// Where it runs, if its containers have a network.
    world: Option<World>,
    /// For the next start.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// What a process said, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Out {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A directory of a test's own. Whatever makes containers and mounts begins with it, so it is here that all tests demand
/// root.
pub fn base() -> tempfile::TempDir {
    wardian_needs::demand(&[wardian_needs::Need::Root]);
    tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/var/tmp").unwrap()
}

impl Server {
    /// One that has not been started. Its containers have loopback alone, so that it leaves the host's network as it is.
    fn new(args: &[&str]) -> Self {
        let base = base();
        let run = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
        wardian_lab::image::build(&base.path().join("image.tar")).unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { base, run, child: None, tag: String::new(), world: None, args, env: Vec::new() }
    }

    /// Start one and wait until it answers.
    pub async fn start() -> Self {
        let mut server = Self::new(&[]);
        server.restart().await;
        server
    }

    /// The same in a world of its own, where containers have a network, with these flags. The image has the program of
    /// `net.c`.
    pub async fn networked(args: &[&str]) -> Self {
        let mut server = Self::new(args);
        let world = World::new(server.base.path());
        let plain = server.base.path().join("plain.tar");
        fs::rename(server.image(), &plain).unwrap();
        world::image(&plain, world.probe(), &server.image());
        server.world = Some(world);
        server.restart().await;
        server
    }

    /// Its world.
    pub fn world(&mut self) -> &mut World {
        self.world.as_mut().expect("a server of Server::networked")
    }

    /// The same with these flags.
    pub async fn start_with(args: &[&str]) -> Self {
        let mut server = Self::start().await;
        server.terminate().await;
        server.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        server.restart().await;
        server
    }

    /// Start the server again after [`Server::kill9`].
    pub async fn restart(&mut self) {
        let command = self.command();
        self.restart_as(command).await;
    }

    /// The same by another command.
    pub async fn restart_as(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "it runs already");
        watchdog::step("the server's answer");
        watchdog::log(&self.base.path().join("log"));
        // Whatever the command is: without a world its network would be the host's.
        if self.world.is_none() {
            command.env(NETWORK, "none");
        }
        self.child = Some(command.spawn().unwrap());
        let client = self.client();
        let started = Instant::now();
        let ping = || async {
            match tokio::time::timeout(Duration::from_secs(2), client.ping()).await {
                Ok(Err(error)) => Some(error.to_string()),
                Ok(Ok(())) => None,
                Err(_) => Some("a connection that nobody serves".to_owned()),
            }
        };
        while let Some(error) = ping().await {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            assert!(started.elapsed() < STUCK, "no answer: {error}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let instance = fs::read(self.run.path().join("instance.json")).unwrap();
        let instance: serde_json::Value = serde_json::from_slice(&instance).unwrap();
        self.tag = instance["tag"].as_str().unwrap().to_owned();
    }

    /// The command that serves on this server's directories.
    pub fn command(&self) -> Command {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.base.path().join("log")).unwrap();
        let mut command = match &self.world {
            Some(world) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", world.path())).arg(WARDIAN).env(NETWORK, "bridge");
                command
            }
            None => {
                let mut command = Command::new(WARDIAN);
                command.env(NETWORK, "none");
                command
            }
        };
        command.arg("serve").arg("--root").arg(self.root()).arg("--run").arg(self.run());
        command.arg("--listen").arg(format!("unix:{}", self.socket().display()));
        command.arg("--default-rootfs").arg(self.image());
        // The settings of this host are not those of a test.
        command.envs(REGISTRIES).env("WARDIAN_CONFIG", "");
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.base.path().join("log")).unwrap_or_default()
    }

    /// A directory for the test's files, on the store's file system.
    pub fn base(&self) -> &Path {
        self.base.path()
    }

    pub fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    pub fn run(&self) -> PathBuf {
        self.run.path().to_owned()
    }

    pub fn socket(&self) -> PathBuf {
        self.run.path().join("garden.sock")
    }

    pub fn image(&self) -> PathBuf {
        self.base.path().join("image.tar")
    }

    /// An image with one more file in it.
    pub fn image_with(&self, name: &str, text: &str) -> String {
        let to = self.base.path().join(format!("{}.tar", name.replace('/', "-")));
        let mut builder = tar::Builder::new(fs::File::create(&to).unwrap());
        let mut archive = tar::Archive::new(fs::File::open(self.image()).unwrap());
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            builder.append(&entry.header().clone(), entry).unwrap();
        }
        builder.append_data(&mut header(text.len()), name, text.as_bytes()).unwrap();
        builder.into_inner().unwrap();
        to.to_str().unwrap().to_owned()
    }

    pub fn client(&self) -> Client {
        Client::new(&format!("unix:{}", self.socket().display())).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Its descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Those that are not of layers and root file systems, which a store keeps open for the next ones: a bounded number.
    pub fn descriptors_beside_the_stores(&self) -> usize {
        let (layers, rootfs) = (self.root().join("layers"), self.root().join("rootfs"));
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        // A mount that is attached nowhere has its own root for a name.
        let is_the_stores =
            |path: &Path| path == Path::new("/") || path.starts_with(&layers) || path.starts_with(&rootfs);
        targets.filter(|target| !is_the_stores(target)).count()
    }

    /// Its descriptors, once what it makes ahead is made.
    pub async fn settled_descriptors(&self) -> usize {
        let (mut last, mut same) = (self.descriptors(), 0);
        let started = Instant::now();
        while same < 25 {
            assert!(started.elapsed() < STUCK, "it opens more and more\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.descriptors();
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    /// A field of its /proc/PID/status, such as `VmHWM`, in KiB.
    pub fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Kill it without a word; containers stay. Its clones, which hold namespaces for a moment, are killed too: see
    /// `survival::what_a_server_was_making_ends_with_it`.
    pub fn kill9(&mut self) {
        self.kill9_alone();
        self.until_clones_end();
    }

    /// Kill nothing but the server itself.
    pub fn kill9_alone(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Wait until it has ended by itself; how.
    pub async fn ended(&mut self) -> ExitStatus {
        watchdog::step("the end of the server");
        let mut child = self.child.take().unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > STUCK {
                self.child = Some(child);
                panic!("the server does not end");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        self.until_clones_end();
        status
    }

    /// Ended children of the server that it has not asked about.
    pub async fn no_zombies(&self) {
        let server = self.pid();
        let is_zombie = |pid: &u32| parent(*pid) == Some(server) && stat(*pid, 0).as_deref() == Some("Z");
        self.until_empty("zombies", || pids().iter().filter(|pid| is_zombie(pid)).map(describe).collect())
            .await;
    }

    fn until_clones_end(&self) {
        let started = Instant::now();
        while started.elapsed() < STUCK {
            let clones = self.clones();
            // One that is ending has no command line any more, but still the lock.
            let free =
                || fs::File::open(self.run.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
            if clones.is_empty() && free() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Processes that were started with this server's command line.
    pub fn clones(&self) -> Vec<u32> {
        let run = self.run.path().to_str().unwrap();
        let is_clone = |pid: &u32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(run) && *pid != std::process::id()
        };
        pids().into_iter().filter(is_clone).collect()
    }

    /// A container of the default image.
    pub async fn create(&self, handle: &str) -> Client {
        watchdog::step(&format!("create {handle}, or what came after it"));
        let client = self.client();
        let spec = ContainerSpec { handle: handle.into(), ..Default::default() };
        assert_eq!(client.create(&spec).await.unwrap(), handle);
        client
    }

    /// The id that a container's kernel objects have.
    pub async fn id(&self, handle: &str) -> String {
        let path = self.client().info(handle).await.unwrap().container_path;
        path.rsplit('/').next().unwrap().to_owned()
    }

    /// Destroy everything, stop, and look whether anything is left. Panics if so.
    pub async fn finish(mut self) {
        watchdog::step("the destruction of all containers");
        let client = self.client();
        for handle in
            client.list(&std::iter::once(("garden.state".into(), "all".into())).collect()).await.unwrap()
        {
            client.destroy(&handle).await.unwrap_or_else(|e| panic!("destroy {handle}: {e}\n{}", self.log()));
        }
        let directories = [
            self.root().join("rootfs"),
            self.root().join("trash"),
            self.root().join("staging"),
            self.run().join("containers"),
        ];
        // What may be removed at leisure is waited for.
        let left = || self.rootfs().into_iter().chain(directories[1..].iter().flat_map(|dir| names(dir)));
        self.until_empty("directories", || left().collect()).await;
        // What a server has not deleted when it ends, such as the empty pairs of one that was killed, the next one finds.
        for round in 0.. {
            let status = self.terminate().await;
            assert!(status.success(), "the server ended with {status}\n{}", self.log());
            // Up to 25 s, for a host on which everything runs at once.
            if round == 8 || directories.iter().all(|dir| names(dir).is_empty()) {
                break;
            }
            self.restart().await;
            tokio::time::sleep(Duration::from_millis(100 << round)).await;
        }
        assert_eq!(directories.iter().flat_map(|dir| names(dir)).collect::<Vec<_>>(), Vec::<String>::new());
        self.until_empty("processes", || {
            members(&self.group()).into_iter().chain(self.clones()).map(|pid| describe(&pid)).collect()
        })
        .await;
        self.until_empty("cgroups", || cgroups(&self.group())).await;
        self.until_empty("mounts", || mounts(&[self.base.path(), self.run.path()])).await;
        if let Some(world) = &self.world {
            self.until_empty("links, tables or routes", || world.left()).await;
        }
    }

    /// The directories of root file systems that live or wait to be deleted. What the store has made ahead is left out:
    /// no record names it, and nobody has written to it. Of an image that cannot be told.
    pub fn rootfs(&self) -> Vec<String> {
        // In this order: a record is written before its directory is made.
        let all = names(&self.root().join("rootfs"));
        let records: Vec<String> = names(&self.run().join("rootfs"))
            .iter()
            .filter_map(|record| {
                let record: serde_json::Value = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
                record["dir"].as_str().map(str::to_owned)
            })
            .collect();
        let spare = |dir: &str| {
            let dir = Path::new(dir);
            !records.iter().any(|name| dir.ends_with(name))
                && (dir.join("image").exists()
                    || fs::read_dir(dir.join("upper"))
                        .or_else(|_| fs::read_dir(dir))
                        .is_ok_and(|mut all| all.next().is_none()))
        };
        all.into_iter().filter(|dir| !spare(dir)).collect()
    }

    pub async fn until_empty(&self, what: &str, look: impl Fn() -> Vec<String>) {
        watchdog::step(&format!("the end of {what}"));
        let started = Instant::now();
        loop {
            let left = look();
            if left.is_empty() {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(15), "{what} left: {left:#?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM, and how it ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        watchdog::step("the end of the server after SIGTERM");
        let mut child = self.child.take().unwrap();
        signal(child.id(), rustix::process::Signal::TERM);
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if started.elapsed() > STUCK {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it does not stop\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The name of this instance's cgroups.
    pub fn group(&self) -> String {
        format!("wardian-{}", self.tag)
    }

    /// A request as it is on the wire; the whole reply.
    pub fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        // It may answer before it has read everything.
        let _ = stream.write_all(request.as_ref());
        let mut reply = Vec::new();
        // It may reset the connection after an answer to a request that was not read to its end.
        let _ = stream.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    }

    /// A request of one line, headers and a body.
    pub fn http(&self, line: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        self.raw(format!(
            "{line} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(STUCK)).unwrap();
        stream
    }

    /// Wait until nothing but pid 1 is in a container.
    pub async fn until_idle(&self, handle: &str) {
        let id = self.id(handle).await;
        self.until_empty("processes in the container", || {
            members(&id).iter().map(describe).filter(|p| !p.contains("garden-init")).collect()
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            // More would hide what failed.
            let last = lines.len().saturating_sub(60);
            eprintln!("--- log of the server\n{}\n---", lines[last..].join("\n"));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.tag.is_empty() {
            return;
        }
        for _ in 0..100 {
            let left: Vec<u32> = members(&self.group()).into_iter().chain(self.clones()).collect();
            for pid in &left {
                signal(*pid, rustix::process::Signal::KILL);
            }
            for dir in cgroups(&self.group()) {
                let _ = fs::remove_dir(dir);
            }
            if left.is_empty() && cgroups(&self.group()).is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// How a child has ended, if it does so in this time; else it is killed.
pub fn ended_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if started.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Send a signal; whoever is gone is gone.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn pids() -> Vec<u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// A field of /proc/PID/stat after the name: 0 is the state, 1 the parent.
fn stat(pid: u32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(field).map(str::to_owned)
}

pub fn parent(pid: u32) -> Option<u32> {
    stat(pid, 1)?.parse().ok()
}

/// Processes in cgroups whose path contains this; zombies are nobody.
pub fn members(group: &str) -> BTreeSet<u32> {
    let within = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(group))
            && stat(*pid, 0).is_some_and(|state| state != "Z" && state != "X")
    };
    pids().into_iter().filter(within).collect()
}

/// A process's id and command line.
pub fn describe(pid: &u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{pid} {} {}", comm.trim(), String::from_utf8_lossy(&command).replace('\0', " "))
}

/// Directories of a name, and what is below them, in all hierarchies; the deepest first.
pub fn cgroups(name: &str) -> Vec<String> {
    fn walk(dir: &Path, name: &str, within: bool, depth: usize, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) || depth == 0 {
                continue;
            }
            let within = within || entry.file_name() == name;
            walk(&entry.path(), name, within, depth - 1, found);
            if within {
                found.push(entry.path().to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), name, false, 6, &mut found);
    found
}

/// Lines in the mount tables of all processes that mention one of these.
pub fn mounts(paths: &[&Path]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for pid in pids() {
        for line in fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default().lines() {
            if paths.iter().any(|path| line.contains(path.to_str().unwrap())) {
                found.insert(format!("{}: {line}", describe(&pid)));
            }
        }
    }
    found.into_iter().collect()
}

/// What is in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path().to_string_lossy().into_owned()).collect()
}

/// A tar header for a plain file.
pub fn header(size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_500_000_000);
    header
}

/// A tar of plain files. Names are written as they are.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = header(data.len());
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Bytes that do not compress, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn digest(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A process that runs a script in the container's shell.
pub fn script(text: &str) -> ProcessSpec {
    ProcessSpec { path: "/bin/sh".into(), args: vec!["-c".into(), text.into()], ..Default::default() }
}

/// The same, in an image of its own.
pub fn pea(image: &str, text: &str) -> ProcessSpec {
    ProcessSpec { image: ImageRef { uri: image.into(), ..Default::default() }, ..script(text) }
}

/// Both outputs, no input.
pub fn listen() -> Io {
    Io { stdout: true, stderr: true, ..Io::default() }
}

/// Read a process to its end.
pub async fn end(mut process: Process) -> Out {
    let (stdout, stderr) = (process.take_stdout(), process.take_stderr());
    let read = |stream: Option<wardian_garden::OutputReader>| async move {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            stream.read_to_end(&mut bytes).await.unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let all = async { tokio::join!(read(stdout), read(stderr), process.wait()) };
    let (out, err, code) = tokio::time::timeout(STUCK, all).await.expect("the process does not end");
    Out { code: code.unwrap(), out, err }
}

/// Run to the end.
pub async fn run(client: &Client, handle: &str, spec: &ProcessSpec) -> Out {
    let arguments = spec.args.join(" ");
    watchdog::step(&format!("{} {:.300} in {handle}, or what came after it", spec.path, arguments));
    let started =
        tokio::time::timeout(STUCK, client.run(handle, spec, listen())).await.expect("run is stuck");
    end(started.unwrap_or_else(|e| panic!("run {:?} {:?}: {e}", spec.path, spec.args))).await
}

/// Run a script as root.
pub async fn sh(client: &Client, handle: &str, text: &str) -> Out {
    run(client, handle, &script(text)).await
}

/// What a script of root says on its standard output, without the last line's end. It must succeed.
pub async fn say(client: &Client, handle: &str, text: &str) -> String {
    let done = sh(client, handle, text).await;
    assert_eq!(done.code, 0, "{text}: {done:?}");
    done.out.trim_end().to_owned()
}

/// The message of a request that must fail.
pub fn message<T>(result: wardian_garden::Result<T>) -> String {
    result.err().expect("it must fail").to_string()
}

/// Pid 1 of a container, as the host sees it.
pub async fn init(server: &Server, handle: &str) -> u32 {
    let id = server.id(handle).await;
    let is_init = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "garden-init")
    };
    let started = Instant::now();
    let mut inits: Vec<u32> = Vec::new();
    // It names itself a moment after it has been started.
    while inits.len() != 1 {
        assert!(started.elapsed() < STUCK, "{inits:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
        inits = members(&id).into_iter().filter(is_init).collect();
    }
    inits[0]
}
