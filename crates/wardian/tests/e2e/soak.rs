//! Fifty ordinary containers beside everything that attacks: `./dev test --long`.

use crate::attacks;
use crate::support::{Server, end, header, listen, message, noise, say, script, tar_of};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wardian_garden::wire::{
    BindMount, ContainerSpec, CpuLimits, ImageRef, Limits, MemoryLimits, PidLimits, ProcessSpec,
};
use wardian_garden::{Client, Io};

const ORDINARY: usize = 50;
/// How long is measured without attacks, and with them.
const CALM: Duration = Duration::from_secs(30);
const SIEGE: Duration = Duration::from_secs(180);

/// As an operator bounds what strangers run.
fn limits() -> Limits {
    Limits {
        memory_limits: MemoryLimits { limit_in_bytes: 48 << 20 },
        pid_limits: PidLimits { max: 64 },
        cpu_limits: CpuLimits { limit_in_shares: 10, ..Default::default() },
        ..Default::default()
    }
}

/// Latencies of `run true`, sorted: in one ordinary container after the other, one at a time.
async fn measure(client: &Client, time: Duration) -> Vec<Duration> {
    let (begin, mut took) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        let handle = format!("ordinary{}", took.len() % ORDINARY);
        let started = Instant::now();
        let spec = ProcessSpec { path: "true".into(), ..Default::default() };
        let process = client.run(&handle, &spec, Io::default()).await.expect("an ordinary container");
        assert_eq!(process.wait().await.expect("its status"), 0);
        took.push(started.elapsed());
        // What is measured is how long it takes, not how many there can be.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took.sort_unstable();
    took
}

fn percentile(took: &[Duration], of: f64) -> f64 {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = ((took.len() - 1) as f64 * of) as usize;
    took[at].as_secs_f64() * 1e3
}

/// What the attackers share.
#[derive(Clone)]
struct Siege {
    ended: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    socket: PathBuf,
    client: String,
}

impl Siege {
    fn client(&self) -> Client {
        Client::new(&self.client).unwrap()
    }

    fn connect(&self) -> Option<UnixStream> {
        let stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.set_write_timeout(Some(Duration::from_secs(1))).ok()?;
        Some(stream)
    }

    /// A thread of its own that does this again and again.
    fn attack<F: Future<Output = ()>>(
        &self,
        round: impl Fn(Self, u64) -> F + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let siege = self.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut number = 0;
            while !siege.ended.load(Ordering::Relaxed) {
                let one = round(siege.clone(), number);
                let bounded = async { tokio::time::timeout(Duration::from_secs(20), one).await };
                // A round that takes longer is left alone by the next one.
                let _ = runtime.block_on(bounded);
                siege.rounds.fetch_add(1, Ordering::Relaxed);
                number += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    }
}

/// A file that says that it is as large as a disk, and a link that leads away.
fn hostile_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut head = header(0);
    head.set_entry_type(tar::EntryType::Symlink);
    tar.append_link(&mut head, "out", "/proc/1/root").unwrap();
    let mut head = header(4);
    tar.append_data(&mut head, "out/file", &b"data"[..]).unwrap();
    let mut head = header(3 << 20);
    tar.append_data(&mut head, "noise", noise(3 << 20).as_slice()).unwrap();
    let whole = tar.into_inner().unwrap();
    whole[..whole.len() - 1024].to_vec()
}

/// All attackers.
fn attackers(siege: &Siege, images: Vec<String>) -> Vec<std::thread::JoinHandle<()>> {
    let mut all = Vec::new();
    let requests = attacks::requests();
    all.push(siege.attack(move |siege, n| {
        let request = requests[usize::try_from(n).unwrap() % requests.len()].clone();
        async move {
            let Some(mut stream) = siege.connect() else { return };
            let _ = stream.write_all(&request);
            let _ = stream.read(&mut [0; 4096]);
        }
    }));
    let halves = attacks::halves();
    all.push(siege.attack(move |siege, n| {
        let halves = halves.clone();
        async move {
            // More than there are places for, of one kind after the other.
            let half = &halves[usize::try_from(n).unwrap() % halves.len()];
            let mut held = Vec::new();
            for _ in 0..300 {
                let Some(stream) = siege.connect() else { continue };
                stream.set_nonblocking(true).unwrap();
                let _ = (&stream).write(half);
                held.push(stream);
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }));
    all.push(siege.attack(move |siege, n| {
        let uri = images[usize::try_from(n).unwrap() % images.len()].clone();
        async move {
            let image = ImageRef { uri, ..Default::default() };
            let spec = ContainerSpec { image: image.clone(), limits: limits(), ..Default::default() };
            if let Ok(handle) = siege.client().create(&spec).await {
                let _ = siege.client().destroy(&handle).await;
            }
            let pea = ProcessSpec { image, ..script("true") };
            let _ = siege.client().run("c", &pea, Io::default()).await;
        }
    }));
    // Programs and those who look at them, or do not.
    all.push(siege.attack(|siege, n| async move {
        let handle = format!("hostile-{n}");
        let spec = ContainerSpec { handle: handle.clone(), limits: limits(), ..Default::default() };
        let client = siege.client();
        if client.create(&spec).await.is_err() {
            return;
        }
        let mut held = Vec::new();
        for (id, text) in attacks::SCRIPTS {
            let spec = ProcessSpec { id: id.into(), ..script(text) };
            held.extend(client.run(&handle, &spec, listen()).await.ok());
        }
        for (id, _) in attacks::SCRIPTS {
            held.extend(client.attach(&handle, id, listen()).await.ok());
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        drop(held);
        client.destroy(&handle).await.unwrap();
    }));
    // Files in and out of where everything changes all the time.
    all.push(siege.attack(|siege, n| async move {
        let client = siege.client();
        let tar = hostile_tar();
        let length = (n % 2 == 0).then_some(tar.len() as u64);
        let _ = client.stream_in("c", "", "/t/d", std::io::Cursor::new(tar), length).await;
        let small = tar_of(&[("f", b"x")]);
        let _ = client.stream_in("c", "1000", "/t/d/e", std::io::Cursor::new(small), None).await;
        let Some(mut stream) = siege.connect() else { return };
        let ask = "GET /containers/c/files?user=&source=%2Ft HTTP/1.1\r\nHost: api\r\n\r\n";
        let _ = stream.write_all(ask.as_bytes());
        let _ = stream.read(&mut [0; 100]);
    }));
    // Mounts, users and directories that are not to be.
    all.push(siege.attack(|siege, n| async move {
        let client = siege.client();
        let over = ["/proc", "/sys/fs/cgroup", "/proc/self/fd", "/"][usize::try_from(n % 4).unwrap()];
        let mount = BindMount { src_path: "/tmp".into(), dst_path: over.into(), ..Default::default() };
        let spec = ContainerSpec { bind_mounts: vec![mount], limits: limits(), ..Default::default() };
        if let Ok(handle) = client.create(&spec).await {
            let _ = client.destroy(&handle).await;
        }
        for (dir, user) in [("/proc/self/fd/3", "root"), ("/t/d/x", "vcap"), ("/", "4294967295")] {
            let spec = ProcessSpec { dir: dir.into(), user: user.into(), ..script("ls -l /proc/self/fd") };
            if let Ok(process) = client.run("c", &spec, listen()).await {
                drop(end(process).await);
            }
        }
        // Another process's streams by guessing.
        for id in 1..20 {
            let Some(mut stream) = siege.connect() else { return };
            let ask =
                format!("GET /containers/c/processes/p/attaches/{id}/stdout HTTP/1.1\r\nHost: api\r\n\r\n");
            let _ = stream.write_all(ask.as_bytes());
        }
    }));
    all
}

#[tokio::test]
#[ignore = "long"]
async fn ordinary_containers_notice_no_attack() {
    crate::watchdog::allow(Duration::from_secs(3 * 3600));
    let args = ["--default-pids-limit", "64", "--transfer-patience", "5s", "--max-connections", "200"];
    let server = Server::start_with(&args).await;
    let client = server.client();
    for n in 0..ORDINARY {
        let spec = ContainerSpec { handle: format!("ordinary{n}"), ..Default::default() };
        client.create(&spec).await.unwrap();
        say(&client, &format!("ordinary{n}"), &format!("echo {n} >/mine")).await;
    }
    let spec = ContainerSpec { handle: "c".into(), limits: limits(), ..Default::default() };
    client.create(&spec).await.unwrap();
    let (_, links) = attacks::SCRIPTS.into_iter().find(|(name, _)| *name == "links").unwrap();
    let spec = ProcessSpec { id: "p".into(), ..script(links) };
    client.run("c", &spec, Io::default()).await.unwrap();
    // In memory: the disk has enough to do.
    let dir = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
    let images = attacks::images(dir.path());

    let calm = measure(&client, CALM).await;
    let siege = Siege {
        ended: Arc::default(),
        rounds: Arc::default(),
        socket: server.socket(),
        client: format!("unix:{}", server.socket().display()),
    };
    // Once around, so that what is only made once is there before memory is compared.
    let (before, open) = (server.memory("RssAnon"), server.descriptors());
    let all = attackers(&siege, images);
    let besieged = measure(&client, SIEGE).await;
    let most = server.memory("RssAnon");
    siege.ended.store(true, Ordering::Relaxed);
    for attacker in all {
        tokio::task::spawn_blocking(move || attacker.join().expect("an attacker")).await.unwrap();
    }
    for handle in client.list(&std::collections::BTreeMap::new()).await.unwrap() {
        // What they have left running holds its output open.
        if handle.starts_with("hostile") || handle == "c" {
            let _ = client.destroy(&handle).await;
        }
    }
    // The output of what has ended can be asked for, for a minute.
    tokio::time::sleep(Duration::from_secs(65)).await;
    let (after, still_open) = (server.memory("RssAnon"), server.descriptors());
    for (what, took) in [("without attacks", &calm), ("with attacks", &besieged)] {
        println!(
            "run true {what}: {} times, p50 {:.2} ms, p99 {:.2} ms, slowest {:.1} ms",
            took.len(),
            percentile(took, 0.5),
            percentile(took, 0.99),
            percentile(took, 1.0)
        );
    }
    println!(
        "p99 ratio {:.2} (goal 3); {} rounds of attacks; the server's memory {before} KiB before, {most} KiB at the end of \
         the attacks, {after} KiB after; descriptors {open} and {still_open}",
        percentile(&besieged, 0.99) / percentile(&calm, 0.99),
        siege.rounds.load(Ordering::Relaxed)
    );
    for n in 0..ORDINARY {
        assert_eq!(say(&client, &format!("ordinary{n}"), "cat /mine").await, n.to_string());
    }
    assert!(message(client.info("none").await).contains("none"));
    assert!(after < before + (16 << 10), "{before} KiB before, {after} KiB after");
    assert!(still_open <= open + 20, "{open} descriptors before, {still_open} after");
    server.finish().await;
}
