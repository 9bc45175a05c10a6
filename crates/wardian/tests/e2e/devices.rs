//! Which devices of the host a container reaches: the attacks, what must work all the same, and that both stay so.

use crate::support::{Out, STUCK, Server, end, header, init, listen, message, pea, run, say, script, sh};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wardian_garden::Client;
use wardian_garden::wire::{
    BindMount, ContainerSpec, MemoryLimits, ProcessLimits, ProcessSpec, Tty, WindowSize,
};
use wardian_needs::needs;
use wardian_runtime::wire;

/// A loop device, a disk, memory, the kernel's log, the console, what makes loop devices, the host's cpuid.
const FORBIDDEN: [&str; 8] = ["b 7 0", "b 8 0", "b 254 0", "c 1 1", "c 1 11", "c 5 1", "c 10 237", "c 203 0"];

/// Makes each node and opens it twice; nothing is written, should one be opened.
fn attack() -> String {
    let each = FORBIDDEN.map(|node| format!("'{node}'")).join(" ");
    format!(
        "for n in {each}; do rm -f /dev/x; mknod /dev/x $n || exit 3
         (: </dev/x) 2>&1 && echo opened $n; (: >>/dev/x) 2>&1 && echo opened $n; done; rm /dev/x"
    )
}

fn is_denied(done: &Out) {
    let denied = done.out.lines().filter(|line| line.ends_with("/dev/x: Operation not permitted")).count();
    assert_eq!((denied, done.out.lines().count(), done.code), (2 * FORBIDDEN.len(), denied, 0), "{done:?}");
}

/// Everything that a privileged container may open. Whether the host has a driver for it is another question.
const ALLOWED: &str = "
    mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
    for n in null zero full random urandom tty ptmx pts/ptmx fuse net/tun; do (: <>/dev/$n) 2>&1; done
    head -c3 /dev/zero | wc -c; echo lost >/dev/null; head -c4 /dev/urandom | wc -c";

fn is_allowed(done: &Out) {
    assert!(
        done.code == 0 && !done.out.contains("not permitted") && done.out.ends_with("3\n4\n"),
        "{done:?}"
    );
}

fn privileged(handle: &str) -> ContainerSpec {
    ContainerSpec { handle: handle.into(), privileged: true, ..Default::default() }
}

fn with_limits(spec: ProcessSpec) -> ProcessSpec {
    let memory_limits = MemoryLimits { limit_in_bytes: 64 << 20 };
    ProcessSpec { limits: Some(ProcessLimits { memory_limits, ..Default::default() }), ..spec }
}

/// In a process of the container and in peas of both kinds.
async fn everywhere(server: &Server, client: &Client, text: &str) -> [Out; 3] {
    let image = server.image().to_str().unwrap().to_owned();
    [
        sh(client, "c", text).await,
        run(client, "c", &pea(&image, text)).await,
        run(client, "c", &with_limits(pea(&image, text))).await,
    ]
}

#[tokio::test]
async fn a_privileged_container_reaches_no_device_of_the_host() {
    let server = Server::start().await;
    let client = server.client();
    client.create(&privileged("c")).await.unwrap();
    everywhere(&server, &client, &attack()).await.iter().for_each(is_denied);
    everywhere(&server, &client, ALLOWED).await.iter().for_each(is_allowed);
    // A file system on a device is mounted by who may open the device.
    let mount = "rm -f /dev/x; mknod /dev/x b 7 0; mount -t ext2 /dev/x /mnt 2>&1; rm /dev/x";
    assert!(sh(&client, "c", mount).await.out.contains("permission denied"));
    server.finish().await;
}

/// Root of a privileged container may mount cgroups: its own, in its namespace.
#[tokio::test]
async fn a_privileged_container_cannot_change_its_rules() {
    let server = Server::start().await;
    let client = server.client();
    client.create(&privileged("c")).await.unwrap();
    let change = "mkdir -p /mnt/g && mount -t cgroup -o devices none /mnt/g || exit 0
        cd /mnt/g; mkdir below
        for f in devices.allow below/devices.allow; do for line in a 'b 7:0 rwm' 'c *:* rwm'; do
        (echo $line >$f) 2>/dev/null && echo changed by $line; done; done
        echo 0 >below/cgroup.procs; cd /; umount -l /mnt/g";
    let changed = sh(&client, "c", change).await;
    assert_eq!((changed.code, changed.out.as_str()), (0, ""), "{changed:?}");
    everywhere(&server, &client, &attack()).await.iter().for_each(is_denied);
    server.finish().await;
}

#[tokio::test]
async fn rules_of_an_unprivileged_container() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let nodes = "for n in null zero full random urandom tty ptmx pts/ptmx; do (: <>/dev/$n) 2>&1; done; true";
    for done in everywhere(&server, &client, nodes).await {
        assert!(!done.out.contains("not permitted"), "{done:?}");
    }
    let terminal = ProcessSpec {
        tty: Some(Tty { window_size: Some(WindowSize { columns: 80, rows: 24 }) }),
        ..script("stty size </dev/tty && : <$(tty) && echo good")
    };
    let done = run(&client, "c", &terminal).await;
    assert!(done.out.contains("24 80") && done.out.contains("good"), "{done:?}");
    let id = server.id("c").await;
    let bundle = fs::read(server.run().join("containers").join(&id).join("config.json")).unwrap();
    let bundle: serde_json::Value = serde_json::from_slice(&bundle).unwrap();
    let rules = bundle["linux"]["resources"]["devices"].as_array().unwrap();
    assert_eq!((rules.len(), &rules[0]["allow"]), (12, &false.into()));
    assert!(!rules.iter().any(|rule| rule["minor"] == 229), "{rules:?}");
    if let Some(group) = v1_group(&server) {
        let list = fs::read_to_string(group.join(&id).join("devices.list")).unwrap();
        assert_eq!(list.lines().count(), 11, "{list}");
        assert!(list.contains("c 1:3 rwm\n") && !list.contains(":229") && !list.contains("a *"), "{list}");
    }
    server.finish().await;
}

#[tokio::test]
async fn rules_outlive_the_server() {
    let mut server = Server::start().await;
    let client = server.client();
    client.create(&privileged("c")).await.unwrap();
    server.kill9();
    server.restart().await;
    let client = server.client();
    everywhere(&server, &client, &attack()).await.iter().for_each(is_denied);
    everywhere(&server, &client, ALLOWED).await.iter().for_each(is_allowed);
    assert!(!server.log().contains("device-rules"), "{}", server.log());
    server.finish().await;
}

/// Where this instance's rules stand, if they stand in a cgroup v1.
fn v1_group(server: &Server) -> Option<PathBuf> {
    let group = Path::new("/sys/fs/cgroup/devices").join(server.group());
    group.exists().then_some(group)
}

fn tasks(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("tasks")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// All cgroups below one, the deepest first.
fn below(dir: &Path, found: &mut Vec<(PathBuf, Vec<String>)>) {
    for entry in fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        below(&entry.path(), found);
    }
    found.push((dir.to_owned(), tasks(dir)));
}

/// Leave the cgroups as a server without device rules would have: new ones, with those of the host.
fn forget_rules(group: &Path) {
    let host = group.parent().unwrap().join("tasks");
    let mut all = Vec::new();
    below(group, &mut all);
    let started = Instant::now();
    for (dir, _) in &all {
        while fs::remove_dir(dir).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "{}", dir.display());
            for task in tasks(dir) {
                let _ = fs::write(&host, task);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    for (dir, tasks) in all.iter().rev() {
        fs::create_dir(dir).unwrap();
        for task in tasks {
            // Who has ended since is missed by nobody.
            let _ = fs::write(dir.join("tasks"), task);
        }
    }
}

#[tokio::test]
async fn a_container_of_an_earlier_server_gets_rules() {
    // Only a cgroup v1 can be left without rules.
    needs!(CgroupV1);
    let mut server = Server::start().await;
    let group = v1_group(&server).unwrap();
    let client = server.client();
    client.create(&privileged("c")).await.unwrap();
    client.create(&ContainerSpec { handle: "u".into(), ..Default::default() }).await.unwrap();
    let image = server.image().to_str().unwrap().to_owned();
    // They wait for a signal, and then they try.
    let waits = format!("trap go=1 TERM; while [ -z \"$go\" ]; do sleep 0.02; done\n{}", attack());
    for (id, spec) in [
        ("process", script(&waits)),
        ("pea", pea(&image, &waits)),
        ("pea-with-limits", with_limits(pea(&image, &waits))),
    ] {
        client.run("c", &ProcessSpec { id: id.into(), ..spec }, listen()).await.unwrap();
    }
    // This one tries while there are no rules.
    let unguarded = format!("while [ ! -e /go ]; do sleep 0.02; done\n{}; echo >/over", attack());
    let unguarded = ProcessSpec { id: "unguarded".into(), ..script(&unguarded) };
    client.run("c", &unguarded, listen()).await.unwrap();
    let root = PathBuf::from(format!("/proc/{}/root", init(&server, "c").await));
    server.kill9();
    forget_rules(&group);
    fs::write(root.join("go"), "").unwrap();
    let started = Instant::now();
    while !root.join("over").exists() {
        assert!(started.elapsed() < STUCK, "it does not try");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.restart().await;
    let client = server.client();
    let tried = end(client.attach("c", "unguarded", listen()).await.unwrap()).await;
    // Which of them the host has is another question, and who may read its memory too.
    assert!(tried.out.contains("opened"), "{tried:?}");
    everywhere(&server, &client, &attack()).await.iter().for_each(is_denied);
    everywhere(&server, &client, ALLOWED).await.iter().for_each(is_allowed);
    for id in ["process", "pea", "pea-with-limits"] {
        let process = client.attach("c", id, listen()).await.unwrap();
        process.signal(false).await.unwrap();
        is_denied(&end(process).await);
    }
    let list = |id: &str| fs::read_to_string(group.join(id).join("devices.list")).unwrap();
    assert_eq!(list("").lines().count(), 12);
    assert_eq!(list(&server.id("c").await).lines().count(), 12);
    assert_eq!(list(&server.id("u").await).lines().count(), 11);
    assert_eq!(list("keepers").lines().count(), 12);
    // Every keeper is where it was.
    assert!(tasks(&group).is_empty() && !tasks(&group.join("keepers")).is_empty());
    assert_eq!(say(&client, "u", "cat /proc/1/comm").await, "garden-init");
    assert!(!server.log().contains("device-rules"), "{}", server.log());
    server.finish().await;
}

/// Its keeper refuses what it does not know in a pea's bundle.
#[tokio::test]
async fn an_earlier_keeper_hears_nothing_of_devices() {
    let mut server = Server::start().await;
    server.kill9();
    server.env = vec![(wire::SPEAKS.to_owned(), "1".to_owned())];
    server.restart().await;
    server.client().create(&privileged("c")).await.unwrap();
    server.kill9();
    server.env.clear();
    server.restart().await;
    let client = server.client();
    let image = server.image().to_str().unwrap().to_owned();
    let waits = ProcessSpec { id: "p".into(), ..pea(&image, "sleep 1000") };
    client.run("c", &waits, listen()).await.unwrap();
    let peas = server.run().join("containers").join(server.id("c").await).join("peas");
    let bundles = fs::read_dir(peas).unwrap().flatten().map(|entry| entry.path());
    let bundles: Vec<_> = bundles.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    assert_eq!(bundles.len(), 1);
    assert!(!fs::read_to_string(&bundles[0]).unwrap().contains("\"devices\""));
    everywhere(&server, &client, &attack()).await.iter().for_each(is_denied);
    server.finish().await;
}

fn node(path: &Path, kind: rustix::fs::FileType, major: u32, minor: u32) {
    let (mode, device) = (rustix::fs::Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor));
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, device).unwrap();
    rustix::fs::chmod(path, mode).unwrap();
}

fn bind(from: &Path, to: &str) -> BindMount {
    BindMount {
        src_path: from.to_str().unwrap().into(),
        dst_path: to.into(),
        mode: 1,
        origin: 0,
        idmap: false,
    }
}

#[tokio::test]
async fn device_nodes_in_bind_mounts() {
    use rustix::fs::FileType::{BlockDevice, CharacterDevice};
    let server = Server::start().await;
    let client = server.client();
    let dir = server.base().join("nodes");
    fs::create_dir(&dir).unwrap();
    for (name, kind, major, minor) in [
        ("null", CharacterDevice, 1, 3),
        ("log", CharacterDevice, 1, 11),
        ("fuse", CharacterDevice, 10, 229),
        ("loop", BlockDevice, 7, 0),
    ] {
        node(&dir.join(name), kind, major, minor);
    }
    for privileged in [true, false] {
        let with = |bind_mounts: Vec<BindMount>| ContainerSpec {
            handle: "c".into(),
            privileged,
            bind_mounts,
            ..Default::default()
        };
        // Below a directory they have no effect, also such as the container may open elsewhere.
        client.create(&with(vec![bind(&dir, "/nodes"), bind(&dir.join("null"), "/own")])).await.unwrap();
        let open = "for n in null log fuse loop; do (: </nodes/$n) 2>&1; done; echo x >/own && echo good";
        let done = sh(&client, "c", open).await;
        let denied = done.out.matches("Permission denied").count();
        assert!(denied == 4 && done.out.ends_with("good\n"), "{done:?}");
        let image = server.image().to_str().unwrap().to_owned();
        let beside = ProcessSpec { bind_mounts: vec![bind(&dir, "/nodes")], ..pea(&image, ": </nodes/null") };
        assert!(run(&client, "c", &beside).await.err.contains("Permission denied"));
        for (name, what) in [("log", "character device 1:11"), ("loop", "block device 7:0")] {
            let beside =
                ProcessSpec { bind_mounts: vec![bind(&dir.join(name), "/x")], ..pea(&image, "true") };
            let refused = message(client.run("c", &beside, listen()).await);
            assert!(refused.contains(what) && refused.contains("may not open"), "{refused}");
        }
        client.destroy("c").await.unwrap();
        for (name, fine) in [("log", false), ("loop", false), ("fuse", privileged)] {
            let created = client.create(&with(vec![bind(&dir.join(name), "/x")])).await;
            assert_eq!(created.is_ok(), fine, "{name}: {created:?}");
            if fine {
                let done = sh(&client, "c", "(: <>/x) 2>&1").await;
                assert!(!done.out.contains("not permitted"), "{done:?}");
                client.destroy("c").await.unwrap();
            }
        }
    }
    server.finish().await;
}

/// Nodes have an effect in /dev alone, which is made anew for each container.
#[tokio::test]
async fn mounts_without_device_nodes() {
    let server = Server::start().await;
    let client = server.client();
    let image = server.image_with("dev/of-the-image", "x");
    for privileged in [false, true] {
        let bind_mounts = vec![bind(server.base(), "/bound")];
        let spec = ContainerSpec { handle: "c".into(), privileged, bind_mounts, ..Default::default() };
        let rootfs = wardian_garden::wire::ImageRef { uri: image.clone(), ..Default::default() };
        client.create(&ContainerSpec { image: rootfs, ..spec }).await.unwrap();
        assert_ne!(sh(&client, "c", "test -e /dev/of-the-image").await.code, 0);
        let mounts = say(&client, "c", "cat /proc/self/mountinfo").await;
        let mounts: BTreeMap<&str, &str> = mounts
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                (fields[4], fields[5])
            })
            .collect();
        for (at, options) in &mounts {
            let has = |option: &str| options.split(',').any(|o| o == option);
            // A file holds no nodes, nor does the empty tmpfs that hides a directory and is read-only, as recorded.
            let holds_none = has("ro") || sh(&client, "c", &format!("test -d {at}")).await.code != 0;
            let expected = !matches!(*at, "/dev" | "/dev/pts");
            assert!(holds_none || has("nodev") == expected, "{at}: {options}");
        }
        assert!(mounts.contains_key("/bound") && mounts.contains_key("/dev/shm"), "{mounts:?}");
        client.destroy("c").await.unwrap();
    }
    server.finish().await;
}

#[tokio::test]
async fn a_tar_brings_no_device_node() {
    let server = Server::start().await;
    let client = server.client();
    client.create(&privileged("c")).await.unwrap();
    for kind in [tar::EntryType::Block, tar::EntryType::Char] {
        let mut header = header(0);
        header.set_entry_type(kind);
        header.set_device_major(7).unwrap();
        header.set_device_minor(0).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_data(&mut header, "lo", std::io::empty()).unwrap();
        let tar = tar.into_inner().unwrap();
        let length = Some(tar.len() as u64);
        let refused = message(client.stream_in("c", "", "/dev", std::io::Cursor::new(tar), length).await);
        assert!(refused.contains("cannot unpack an entry of type"), "{refused}");
        assert_ne!(sh(&client, "c", "test -e /dev/lo").await.code, 0);
    }
    server.finish().await;
}
