//! A host with a network of its own, for a server: a network namespace with an uplink to another one, the internet.
//! Nothing in it reaches a real network, and all of it is gone with the test.

use crate::support::Server;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use wardian_garden::Client;
use wardian_garden::wire::ContainerSpec;
use wardian_sys::namespace::in_network;

/// The host's addresses at its uplink.
pub const HOST: &str = "10.77.0.2";
pub const HOST_V6: &str = "fd77::2";
/// The host's neighbour at the uplink: packets of the internet's own come from here.
pub const NEIGHBOUR: &str = "10.77.0.1";
/// Addresses that answer on the internet.
pub const INTERNET: &str = "8.8.8.8";
pub const INTERNET_2: &str = "9.9.9.9";
pub const INTERNET_V6: &str = "2001:db8::8";
/// The TCP and UDP ports that answer there with the address that they were asked from. Port 53 answers in UDP to
/// questions for names: every name's address is [`INTERNET_2`].
pub const PORTS: [u16; 3] = [80, 443, 7000];
const NAMES: u16 = 53;
/// Where the program of `net.c` lies in images of a server in a world.
const PROBE: &str = "bin/net";
/// How often a service looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

const SETUP: &str = "
    internet=$2
    ip link set lo up
    ip link add uplink type veth peer name net0 netns $1
    ip addr add 10.77.0.2/24 dev uplink; ip addr add fd77::2/64 dev uplink nodad
    ip link set uplink up
    inet() { nsenter --net=$internet \"$@\"; }
    inet ip link set lo up
    inet ip addr add 10.77.0.1/24 dev net0; inet ip addr add fd77::1/64 dev net0 nodad
    inet ip link set net0 up
    inet ip addr add 8.8.8.8/32 dev lo; inet ip addr add 9.9.9.9/32 dev lo
    inet ip addr add 2001:db8::8/128 dev lo nodad
    ip route add default via 10.77.0.1; ip -6 route add default via fd77::1
";

/// See the module's text.
pub struct World {
    host: File,
    internet: File,
    probe: PathBuf,
    ends: Arc<AtomicBool>,
    /// What has come to the UDP services.
    heard: Arc<Mutex<Vec<String>>>,
    services: Vec<std::thread::JoinHandle<()>>,
    /// Programs that listen on the host.
    listeners: Vec<Child>,
}

/// A namespace, which lives as long as its descriptor, or a process in it.
pub fn namespace() -> File {
    let mut command = Command::new("unshare");
    // It ends with the pipe, and so with the test.
    command.args(["-n", "sh", "-c", "echo ready; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let file = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    file
}

/// A path to a descriptor of this process, for others.
pub fn path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

impl World {
    /// Make one. Files that it needs are put into `dir`.
    pub fn new(dir: &Path) -> Self {
        let (host, internet) = (namespace(), namespace());
        let probe = dir.join("net");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/net.c");
        let built = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&probe).arg(source).status();
        assert!(built.expect("a C compiler is needed (build-essential)").success());
        // `ip` takes a process or a name for a namespace; the shell's own is the host's.
        let mut holder = Command::new("nsenter");
        holder.arg(format!("--net={}", path(&internet))).args(["sh", "-c", "echo; exec cat"]);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let mut world = Self {
            host,
            internet,
            probe,
            ends: Arc::default(),
            heard: Arc::default(),
            services: Vec::new(),
            listeners: Vec::new(),
        };
        world.sh(&format!("set -- {} {}\n{SETUP}", holder.id(), path(&world.internet)));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        world.serve();
        world
    }

    /// Start what answers on the internet.
    fn serve(&mut self) {
        let addresses = [INTERNET, INTERNET_2, NEIGHBOUR, INTERNET_V6];
        let mut services = Vec::new();
        let bind = || {
            for address in addresses {
                let ip: IpAddr = address.parse().unwrap();
                services.extend(PORTS.map(|port| Service::Tcp(TcpListener::bind((ip, port)).unwrap())));
                let ports = PORTS.into_iter().chain([NAMES]);
                services.extend(ports.map(|port| Service::Udp(UdpSocket::bind((ip, port)).unwrap())));
            }
            Ok(())
        };
        in_network(self.internet.as_fd(), bind).unwrap();
        self.services = services
            .into_iter()
            .map(|service| {
                let (ends, heard) = (self.ends.clone(), self.heard.clone());
                std::thread::spawn(move || service.run(&ends, &heard))
            })
            .collect();
    }

    /// The path of the host's namespace.
    pub fn path(&self) -> String {
        path(&self.host)
    }

    /// The path of the internet's namespace.
    pub fn internet_path(&self) -> String {
        path(&self.internet)
    }

    /// The program for [`World::ask`].
    pub fn probe(&self) -> &Path {
        &self.probe
    }

    /// Run a script on the host; what it says. It must succeed.
    pub fn sh(&self, script: &str) -> String {
        let mut command = Command::new("nsenter");
        let output =
            command.arg(format!("--net={}", self.path())).args(["sh", "-ec", script]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    fn ask(from: &File, probe: &Path, question: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        let output = command.arg(format!("--net={}", path(from))).arg(probe).args(question).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Ask from the host: see `net.c`.
    pub fn host(&self, question: &[&str]) -> String {
        Self::ask(&self.host, &self.probe, question)
    }

    /// Ask from the internet.
    pub fn internet(&self, question: &[&str]) -> String {
        Self::ask(&self.internet, &self.probe, question)
    }

    /// Answer on all addresses of the host, as `host`.
    pub fn listen(&mut self, port: u16) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).args(["setpriv", "--pdeathsig", "KILL"]);
        command.arg(&self.probe).args(["serve", "host", &port.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.listeners.push(child);
        assert_eq!(line, "ready\n");
    }

    /// The texts that have come to UDP services on the internet, with their senders.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The links of the host but for its own.
    pub fn links(&self) -> Vec<String> {
        let all = self.sh("ip -o link");
        let name =
            |line: &str| line.split(": ").nth(1).map(|name| name.split('@').next().unwrap().to_owned());
        all.lines().filter_map(name).filter(|name| name != "lo" && name != "uplink").collect()
    }

    /// The links, tables and routes that are not the host's own.
    pub fn left(&self) -> Vec<String> {
        let mut left = self.links();
        left.extend(self.sh("nft list tables").lines().map(str::to_owned));
        left.extend(self.sh("ip route").lines().map(str::to_owned));
        left.retain(|line| !line.contains("dev uplink"));
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for listener in &mut self.listeners {
            let _ = listener.kill();
            let _ = listener.wait();
        }
        for service in self.services.drain(..) {
            let _ = service.join();
        }
    }
}

enum Service {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Service {
    fn run(self, ends: &AtomicBool, heard: &Mutex<Vec<String>>) {
        match &self {
            Self::Tcp(listener) => listener.set_nonblocking(true).unwrap(),
            Self::Udp(socket) => socket.set_read_timeout(Some(LOOK)).unwrap(),
        }
        while !ends.load(Ordering::Relaxed) {
            match &self {
                Self::Tcp(listener) => match listener.accept() {
                    Ok((mut stream, from)) => {
                        let _ = stream.write_all(format!("from {}", from.ip()).as_bytes());
                    }
                    Err(_) => std::thread::sleep(LOOK / 5),
                },
                Self::Udp(socket) => {
                    let mut text = [0; 512];
                    let Ok((size, from)) = socket.recv_from(&mut text) else { continue };
                    let text = &text[..size];
                    if let Ok(mut heard) = heard.lock() {
                        heard.push(format!("{} from {}", String::from_utf8_lossy(text), from.ip()));
                    }
                    let names = socket.local_addr().is_ok_and(|address| address.port() == NAMES);
                    let answer =
                        if names { resolve(text) } else { Some(format!("from {}", from.ip()).into()) };
                    if let Some(answer) = answer {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            }
        }
    }
}

/// Answers a question for a name (RFC 1035): an IPv4 address, and nothing else.
fn resolve(question: &[u8]) -> Option<Vec<u8>> {
    let labels = question.get(12..)?;
    let end = 12 + labels.iter().position(|byte| *byte == 0)? + 5;
    let mut answer = question.get(..end)?.to_vec();
    let is_v4 = answer[end - 4..end - 2] == [0, 1];
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, u8::from(is_v4), 0, 0, 0, 0]);
    if is_v4 {
        let IpAddr::V4(ip) = INTERNET_2.parse().ok()? else { return None };
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ip.octets());
    }
    Some(answer)
}

/// The default image with the program of `net.c`.
pub fn image(plain: &Path, probe: &Path, to: &Path) {
    let mut builder = tar::Builder::new(File::create(to).unwrap());
    let mut archive = tar::Archive::new(File::open(plain).unwrap());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        builder.append(&entry.header().clone(), entry).unwrap();
    }
    let program = std::fs::read(probe).unwrap();
    let mut header = crate::support::header(program.len());
    header.set_mode(0o755);
    builder.append_data(&mut header, PROBE, &program[..]).unwrap();
    builder.into_inner().unwrap();
}

/// A container with this spec; its address.
pub async fn container(server: &Server, spec: ContainerSpec) -> IpAddr {
    let handle = spec.handle.clone();
    let client = server.client();
    client.create(&spec).await.unwrap_or_else(|error| panic!("create {handle}: {error}\n{}", server.log()));
    address(&client, &handle).await
}

/// The IPv4 address of a container.
pub async fn address(client: &Client, handle: &str) -> IpAddr {
    client.info(handle).await.unwrap().container_ip.parse().unwrap()
}

/// A request in JSON to a path below a container's: the reply, or the message of an error.
pub fn post(server: &Server, path: &str, body: &str) -> Result<serde_json::Value, String> {
    let reply = server.http(&format!("POST /containers/{path}"), "Content-Type: application/json\r\n", body);
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    let value: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    if head.starts_with("HTTP/1.1 200") {
        Ok(value)
    } else {
        Err(value["Message"].as_str().unwrap_or(&reply).to_owned())
    }
}

/// Map a port: the host's and the container's.
pub fn net_in(server: &Server, handle: &str, host: u16, container: u16) -> Result<(u16, u16), String> {
    let body = format!(r#"{{"handle":"{handle}","host_port":{host},"container_port":{container}}}"#);
    let reply = post(server, &format!("{handle}/net/in"), &body)?;
    let port = |name: &str| u16::try_from(reply[name].as_u64().unwrap()).unwrap();
    Ok((port("host_port"), port("container_port")))
}

/// The address of a service, in the words of `net.c`.
pub fn at(address: &(impl ToString + ?Sized), port: u16) -> [String; 2] {
    [address.to_string(), port.to_string()]
}
