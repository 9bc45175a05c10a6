//! Ways out of a container: by a path that names what the launcher holds, by a mount, by an id, by a race.

use crate::support::{STUCK, Server, end, header, init, listen, message, run, say, script, sh, tar_of};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use wardian_garden::Client;
use wardian_garden::wire::{BindMount, ContainerSpec, ImageRef, ProcessSpec};

/// More descriptors than a launch has.
const NUMBERS: std::ops::Range<u32> = 0..64;

/// The default image, with `passwd` put behind its own lines, and more links and programs.
pub fn image(
    server: &Server,
    passwd: &str,
    links: &[(String, String)],
    programs: &[(String, String)],
) -> String {
    let to = server.base().join("hostile.tar");
    let mut builder = tar::Builder::new(File::create(&to).unwrap());
    let mut archive = tar::Archive::new(File::open(server.image()).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut head = entry.header().clone();
        if entry.path().unwrap() == Path::new("etc/passwd") {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            text.push_str(passwd);
            head.set_size(text.len() as u64);
            head.set_cksum();
            builder.append(&head, text.as_bytes()).unwrap();
        } else {
            builder.append(&head, entry).unwrap();
        }
    }
    for (name, target) in links {
        let mut head = header(0);
        head.set_entry_type(tar::EntryType::Symlink);
        builder.append_link(&mut head, name, target).unwrap();
    }
    for (name, text) in programs {
        let mut head = header(text.len());
        head.set_mode(0o755);
        builder.append_data(&mut head, name, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap();
    to.to_str().unwrap().to_owned()
}

/// Below the server's files: a secret that every user of the host may read, a program that every user may run, and a
/// directory that every user may write to.
struct Host {
    dir: tempfile::TempDir,
    /// From any directory of the host to that one.
    up: String,
}

impl Host {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new().prefix("we").tempdir_in("/var/tmp").unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::copy(wardian_lab::image::BUSYBOX, dir.path().join("echo")).unwrap();
        std::fs::create_dir(dir.path().join("open")).unwrap();
        for (path, mode) in [("", 0o755), ("secret", 0o644), ("echo", 0o755), ("open", 0o777)] {
            let path = if path.is_empty() { dir.path().to_owned() } else { dir.path().join(path) };
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        let up = format!("{}{}", "../".repeat(8), dir.path().strip_prefix("/").unwrap().display());
        Self { dir, up }
    }

    fn untouched(&self) {
        let in_open: Vec<PathBuf> =
            std::fs::read_dir(self.dir.path().join("open")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(in_open.is_empty(), "{in_open:?}");
    }
}

/// Whatever it is allowed or refused: it must not print what only the host has.
async fn must_not_reach(client: &Client, handle: &str, spec: &ProcessSpec, how: &str) {
    let Ok(process) = client.run(handle, spec, listen()).await else { return };
    let done = end(process).await;
    assert!(!done.out.contains("secret"), "{how}: {done:?}");
}

fn reading(host: &Host) -> ProcessSpec {
    script(&format!(
        "cat {}/secret; cd {}/open && echo x >made; mkdir {}/open/dir; true",
        host.up, host.up, host.up
    ))
}

/// Every number that a launch may have open, by every path that the client, the image or the container chooses.
#[tokio::test]
async fn no_descriptor_leads_out() {
    let (server, host) = (Server::start().await, Host::new());
    let fd = |n: u32| format!("/proc/self/fd/{n}");
    let passwd: String = NUMBERS.map(|n| format!("u{n}:x:0:0::{}:/bin/sh\n", fd(n))).collect();
    let links: Vec<_> = NUMBERS.map(|n| (format!("link{n}"), fd(n))).collect();
    let programs: Vec<_> =
        NUMBERS.map(|n| (format!("bin/p{n}"), format!("#!{}/{}/echo secret\n", fd(n), host.up))).collect();
    let image = image(&server, &passwd, &links, &programs);
    let client = server.client();
    for (handle, privileged) in [("c", false), ("p", true)] {
        let image = ImageRef { uri: image.clone(), ..Default::default() };
        client
            .create(&ContainerSpec { handle: handle.into(), image, privileged, ..Default::default() })
            .await
            .unwrap();
    }
    for (handle, n) in NUMBERS.flat_map(|n| [("c", n), ("p", n)]) {
        let ways: [(&str, ProcessSpec); 6] = [
            ("directory", ProcessSpec { dir: fd(n), ..reading(&host) }),
            (
                "a directory below",
                ProcessSpec { dir: format!("{}/{}", fd(n), host.up), ..script("cat secret") },
            ),
            ("home", ProcessSpec { user: format!("u{n}"), ..reading(&host) }),
            ("link", ProcessSpec { dir: format!("/link{n}"), ..reading(&host) }),
            (
                "program",
                ProcessSpec {
                    path: format!("{}/{}/echo", fd(n), host.up),
                    args: vec!["secret".into()],
                    ..Default::default()
                },
            ),
            ("interpreter", ProcessSpec { path: format!("/bin/p{n}"), ..Default::default() }),
        ];
        for (way, spec) in ways {
            must_not_reach(&client, handle, &spec, &format!("{handle}: {way} {n}")).await;
            if handle == "c" && n < 24 {
                let image = ImageRef { uri: image.clone(), ..Default::default() };
                let spec = ProcessSpec { image, ..spec };
                must_not_reach(&client, handle, &spec, &format!("pea: {way} {n}")).await;
            }
        }
        for destination in [format!("{}/{}/open", fd(n), host.up), format!("/link{n}/{}/open", host.up)] {
            let tar = std::io::Cursor::new(tar_of(&[("made", b"x")]));
            // Whether it fails depends on what the number is inside.
            drop(client.stream_in(handle, "", &destination, tar, None).await);
            if let Ok(mut out) = client.stream_out(handle, "", &format!("{}/{}/secret", fd(n), host.up)).await
            {
                let mut bytes = Vec::new();
                drop(tokio::io::AsyncReadExt::read_to_end(&mut out, &mut bytes).await);
                assert!(!String::from_utf8_lossy(&bytes).contains("secret"), "{handle}: stream-out {n}");
            }
        }
        host.untouched();
    }
    server.finish().await;
}

/// What a process inherits is its standard input, output and error, and nothing of the launcher's.
#[tokio::test]
async fn a_process_has_three_descriptors() {
    let server = Server::start().await;
    let client = server.create("c").await;
    // The fourth is the shell's own: the directory that it reads.
    let count = "set -- /proc/$$/fd/*; echo $#";
    assert_eq!(say(&client, "c", count).await, "4");
    let done = run(&client, "c", &crate::support::pea(server.image().to_str().unwrap(), count)).await;
    assert_eq!(done.out.trim(), "4", "{done:?}");
    // Pid 1 has the container's null device, not the host's.
    let pid = init(&server, "c").await;
    let null = std::fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 3);
    assert_eq!(null, Path::new("/dev/null"));
    let inside =
        std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(format!("/proc/{pid}/fd/0")).unwrap());
    let host = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata("/dev/null").unwrap());
    assert_ne!(inside, host);
    server.finish().await;
}

#[tokio::test]
async fn an_id_that_means_no_change_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let passwd = "stay:x:4294967295:4294967295::/:/bin/sh\ngroup:x:1:4294967295::/:/bin/sh\n";
    let image = ImageRef { uri: image(&server, passwd, &[], &[]), ..Default::default() };
    client.create(&ContainerSpec { handle: "c".into(), image, ..Default::default() }).await.unwrap();
    for user in ["stay", "group", "4294967295", "4294967295:0", "0:4294967295", "1:4294967295"] {
        let spec = ProcessSpec { user: user.into(), ..script("id") };
        let error = message(client.run("c", &spec, listen()).await);
        assert!(error.contains("range 0-2147483647"), "{user}: {error}");
    }
    for user in ["stay", "group"] {
        let tar = std::io::Cursor::new(tar_of(&[("f", b"x")]));
        let error = message(client.stream_in("c", user, "/tmp", tar, None).await);
        assert!(error.contains("range 0-2147483647"), "{user}: {error}");
    }
    server.finish().await;
}

#[tokio::test]
async fn proc_and_sys_cannot_be_covered() {
    let server = Server::start().await;
    let client = server.client();
    let source = server.base().join("cover");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(server.base().join("cover-file"), "covered").unwrap();
    let links = [("data".to_owned(), "/proc/sys".to_owned())];
    let image = ImageRef { uri: image(&server, "", &links, &[]), ..Default::default() };
    let bind = |path: &str, file: bool| BindMount {
        src_path: server.base().join(if file { "cover-file" } else { "cover" }).to_str().unwrap().to_owned(),
        dst_path: path.to_owned(),
        ..Default::default()
    };
    for (path, file) in [
        ("/proc", false),
        ("/proc/sys", false),
        ("/proc/1", false),
        ("/proc/self/attr/current", true),
        ("/proc/../proc/sys/kernel", false),
        ("/data", false),
        ("/sys", false),
        ("/sys/fs/cgroup", false),
        ("/sys/kernel", false),
    ] {
        for privileged in [false, true] {
            let bind_mounts = vec![bind(path, file)];
            let spec = ContainerSpec {
                handle: "c".into(),
                image: image.clone(),
                bind_mounts,
                privileged,
                ..Default::default()
            };
            let error = message(client.create(&spec).await);
            assert!(error.contains("a mount over") && error.contains("is not allowed"), "{path}: {error}");
        }
    }
    // What shows other statistics than the host's is what such mounts are for.
    let bind_mounts = vec![bind("/proc/meminfo", true)];
    let spec = ContainerSpec { handle: "c".into(), image: image.clone(), bind_mounts, ..Default::default() };
    client.create(&spec).await.unwrap();
    assert_eq!(say(&client, "c", "cat /proc/meminfo").await, "covered");
    let spec = ProcessSpec { image, bind_mounts: vec![bind("/proc/sys", false)], ..script("true") };
    let error = message(client.run("c", &spec, listen()).await);
    assert!(error.contains("a mount over /proc/sys is not allowed"), "{error}");
    server.finish().await;
}

/// An image whose /proc is a link would have its masks lie elsewhere.
/// The default image, in which `name` is a link to `target`, or without a target a file.
fn misplaced(server: &Server, name: &str, target: Option<&str>) -> ImageRef {
    let to = server.base().join(format!("{name}-{}.tar", target.unwrap_or_default().replace('/', "_")));
    let mut builder = tar::Builder::new(File::create(&to).unwrap());
    let mut archive = tar::Archive::new(File::open(server.image()).unwrap());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        if entry.path().unwrap() != Path::new(&format!("{name}/")) {
            builder.append(&entry.header().clone(), entry).unwrap();
        }
    }
    let mut head = header(0);
    match target {
        Some(target) => {
            head.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut head, name, target).unwrap();
        }
        None => builder.append_data(&mut head, name, std::io::empty()).unwrap(),
    }
    builder.into_inner().unwrap();
    ImageRef { uri: to.to_str().unwrap().to_owned(), ..Default::default() }
}

/// Neither in a container nor in a pea.
#[tokio::test]
async fn the_kernels_file_systems_are_mounted_at_their_places_or_not_at_all() {
    let server = Server::start().await;
    let client = server.create("c").await;
    for (name, target) in [
        ("proc", Some("tmp")),
        ("proc", Some("/")),
        ("proc", Some("sys/fs/cgroup")),
        ("proc", None),
        ("sys", Some("/proc")),
        ("sys", None),
        ("dev", Some("tmp")),
        ("dev", Some("sys/fs/cgroup")),
        ("dev", None),
    ] {
        let image = misplaced(&server, name, target);
        let pea = ProcessSpec { image: image.clone(), ..script("cat /proc/keys") };
        for error in [
            message(client.create(&ContainerSpec { image, ..Default::default() }).await),
            message(client.run("c", &pea, listen()).await),
        ] {
            let why = if target.is_some() { "symbolic link" } else { "it is a file in the image" };
            assert!(
                error.contains(&format!("mount point /{name}")) && error.contains(why),
                "{name} {target:?}: {error}"
            );
        }
    }
    let seen = say(&client, "c", "ls -d /proc/1 && grep ' /proc ' /proc/mounts | wc -l").await;
    assert_eq!(seen, "/proc/1\n1");
    client.destroy("c").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn what_tells_of_the_host_is_masked() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let look = "for f in /proc/interrupts /proc/keys /proc/timer_list; do [ ! -e $f ] || head -c1 $f | wc -c; done; \
                for d in /proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap \
                /sys/devices/system/cpu/cpu0/thermal_throttle; do [ ! -e $d ] || ls $d; done";
    let seen = say(&client, "c", look).await;
    assert!(seen.lines().all(|line| line == "0"), "{seen}");
    // A mask is no room for writing.
    assert_ne!(sh(&client, "c", "echo x >/sys/firmware/made").await.code, 0);
    server.finish().await;
}

/// A user who renames what is being made for him gains no file of root's.
#[tokio::test]
async fn a_working_directory_is_made_without_a_race() {
    let server = Server::start().await;
    let client = server.create("c").await;
    say(&client, "c", "echo x >/etc/shadow; chmod 600 /etc/shadow; mkdir /etc/roots").await;
    let swap = "cd /home/vcap; while :; do ln -s /etc/shadow s; mv -T s w; rm -f w; ln -s /etc l; mv -T l w; rm -f w; \
                mkdir w; mv -T w o; rmdir o; done 2>/dev/null";
    let vcap = |text: &str| ProcessSpec { user: "vcap".into(), ..script(text) };
    let swapper = client.run("c", &vcap(swap), listen()).await.unwrap();
    for n in 0..150 {
        let spec = ProcessSpec { dir: format!("/home/vcap/w/d{n}"), ..vcap("true") };
        if let Ok(process) = client.run("c", &spec, listen()).await {
            tokio::time::timeout(STUCK, end(process)).await.expect("it ends");
        }
    }
    swapper.signal(true).await.unwrap();
    assert_eq!(say(&client, "c", "stat -c %u /etc/shadow /etc /etc/roots").await, "0\n0\n0");
    // By a link of the user's nothing is made where only root may.
    assert_eq!(say(&client, "c", "ls -d /etc/d* 2>/dev/null | wc -l").await, "0");
    server.finish().await;
}

/// A user who fills the container's memory does not end the container.
#[tokio::test]
// The guard is for the whole test, which has a thread to itself.
#[allow(clippy::await_holding_lock)]
async fn a_container_without_memory_keeps_its_init() {
    let _nobody_records = crate::record::CALM.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let server = Server::start().await;
    let client = server.client();
    let limits = wardian_garden::wire::Limits {
        memory_limits: wardian_garden::wire::MemoryLimits { limit_in_bytes: 24 << 20 },
        ..Default::default()
    };
    client.create(&ContainerSpec { handle: "c".into(), limits, ..Default::default() }).await.unwrap();
    for _ in 0..3 {
        let fill = script("dd if=/dev/zero of=/dev/shm/f bs=64k count=4000");
        drop(run(&client, "c", &ProcessSpec { user: "vcap".into(), ..fill }).await);
        let fill = script("rm -f /dev/shm/f; tail -c 100000000 /dev/zero");
        drop(run(&client, "c", &ProcessSpec { user: "vcap".into(), ..fill }).await);
    }
    assert_eq!(say(&client, "c", "rm -f /dev/shm/f; cat /proc/1/comm").await, "garden-init");
    server.finish().await;
}

/// A file of users that cannot be read, or is cut, must not make somebody a member of root's group.
#[tokio::test]
async fn users_that_cannot_be_read_are_not_guessed() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let as_number = |text: &str| ProcessSpec { user: "2000".into(), ..script(text) };
    assert_eq!(run(&client, "c", &as_number("id -g")).await.out.trim(), "2000");
    let change =
        "cp /etc/passwd /etc/p; dd if=/dev/zero bs=1M count=2 2>/dev/null | tr '\\0' '#' >>/etc/passwd";
    say(&client, "c", change).await;
    let error = message(client.run("c", &as_number("id -g"), listen()).await);
    assert!(error.contains("/etc/passwd: larger than"), "{error}");
    let streamed =
        client.stream_in("c", "vcap", "/tmp", std::io::Cursor::new(tar_of(&[("f", b"x")])), None).await;
    assert!(message(streamed).contains("/etc/passwd: larger than"));
    server.finish().await;
}

/// Whoever is killed before its exec has not been started.
#[tokio::test]
async fn a_launch_that_is_killed_is_an_error() {
    let server = Server::start().await;
    let client = server.create("c").await;
    // Kills whatever comes, but itself.
    let killer = client.run("c", &script("while :; do kill -9 -1; done"), listen()).await.unwrap();
    let mut refused = 0;
    for _ in 0..300 {
        match client.run("c", &ProcessSpec { path: "true".into(), ..Default::default() }, listen()).await {
            Err(_) => refused += 1,
            Ok(process) => drop(end(process).await),
        }
    }
    assert!(refused > 0);
    drop(killer);
    client.stop("c", true).await.unwrap();
    server.finish().await;
}
