//! What a process in a container sees and may do.

use crate::support::{Server, run, say, script, sh};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use wardian_garden::Client;
use wardian_garden::wire::{ContainerSpec, CpuLimits, Limits, MemoryLimits, PidLimits, ProcessSpec};

/// Container root on the host.
const ROOT_ID: u32 = 4_294_967_294;

async fn status(client: &Client, user: &str, field: &str) -> String {
    let spec = ProcessSpec { user: user.into(), ..script(&format!("grep ^{field}: /proc/self/status")) };
    let done = run(client, "c", &spec).await;
    done.out.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn ids_and_capabilities() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let map = say(&client, "c", "cat /proc/self/uid_map").await;
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", "4294967294", "1", "1", "1", "4294967293"]);
    assert_eq!(say(&client, "c", "cat /proc/self/gid_map").await.split_whitespace().collect::<Vec<_>>(), map);
    assert_eq!(status(&client, "root", "CapEff").await, "00000000a80425fb");
    assert_eq!(status(&client, "root", "CapBnd").await, "00000000a80425fb");
    assert_eq!(status(&client, "1000", "CapPrm").await, "0000000000000000");
    assert_eq!(status(&client, "1000", "CapEff").await, "0000000000000000");
    assert_eq!(status(&client, "root", "NoNewPrivs").await, "0");

    say(&client, "c", "echo mine >/owned").await;
    let rootfs = server.rootfs().into_iter().find(|dir| Path::new(dir).join("upper/owned").exists()).unwrap();
    let file = std::fs::metadata(format!("{rootfs}/upper/owned")).unwrap();
    assert_eq!((file.uid(), file.gid()), (ROOT_ID, ROOT_ID));
    server.finish().await;
}

#[tokio::test]
async fn inheritable_capabilities_are_those_of_garden() {
    let server = Server::start().await;
    let client = server.create("c").await;
    assert_eq!(status(&client, "root", "CapInh").await, "00000000a80425fb");
    assert_eq!(status(&client, "1000", "CapInh").await, "00000000a80425fb");
    server.finish().await;
}

#[tokio::test]
async fn things_that_must_work() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let web = "mkdir /www; echo page >/www/f; httpd -p 127.0.0.1:80 -h /www; wget -qO- http://127.0.0.1:80/f";
    assert_eq!(say(&client, "c", web).await, "page");
    say(&client, "c", "ping -c1 -W5 127.0.0.1").await;
    assert_eq!(say(&client, "c", "hostname").await, "c");
    assert_eq!(say(&client, "c", "cat /proc/1/comm").await, "garden-init");
    assert_eq!(say(&client, "c", "mkdir /tmp/x && chown 5:6 /tmp/x && stat -c %u:%g /tmp/x").await, "5:6");
    assert_eq!(say(&client, "c", "echo a >/dev/null; head -c4 /dev/urandom | wc -c").await, "4");
    assert_eq!(say(&client, "c", "echo shm >/dev/shm/f; cat /dev/shm/f").await, "shm");
    assert_eq!(
        say(&client, "c", "readlink /dev/fd; readlink /dev/stdin").await,
        "/proc/self/fd\n/proc/self/fd/0"
    );
    server.finish().await;
}

#[tokio::test]
async fn only_its_own_processes() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let processes = say(&client, "c", "ps -o pid,args").await;
    assert!(processes.lines().count() <= 4, "{processes}");
    assert!(!processes.contains("wardian serve") && !processes.contains("wardian-keeper"), "{processes}");
    // Neither files nor descriptors of the host are in reach.
    let files =
        say(&client, "c", "ls /proc/*/root/ 2>/dev/null; ls -l /proc/*/fd /proc/*/exe 2>/dev/null; true")
            .await;
    let base = server.base().to_str().unwrap().to_owned();
    assert!(!files.contains(&base) && !files.contains("wardian-keeper"), "{files}");
    assert!(!say(&client, "c", "cat /proc/self/mountinfo").await.contains("oldroot"));
    server.finish().await;
}

#[tokio::test]
async fn things_that_must_not_work() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let hostname = std::fs::read("/proc/sys/kernel/hostname").unwrap();
    for denied in [
        "mount -t tmpfs none /mnt",
        "mount -t proc none /mnt",
        "mount --bind /etc /mnt",
        "mount -o remount,rw /sys",
        "umount /proc",
        "unshare -m true",
        "unshare -n true",
        "hostname changed",
        "touch /sys/made",
        "echo changed >/proc/sys/kernel/hostname",
        "echo 1 >/proc/sys/kernel/sysrq",
        "echo b >/proc/sysrq-trigger",
        "echo +1 >/proc/sys/vm/drop_caches",
        "mknod /tmp/node b 254 0",
        "chroot / mount -t tmpfs none /mnt",
        "nsenter -t 1 -m true",
    ] {
        let done = sh(&client, "c", denied).await;
        assert_ne!(done.code, 0, "{denied}: {done:?}");
    }
    assert_eq!(std::fs::read("/proc/sys/kernel/hostname").unwrap(), hostname);
    for masked in ["/proc/keys", "/proc/timer_list", "/proc/kcore"] {
        let done = sh(&client, "c", &format!("head -c1 {masked} 2>/dev/null | wc -c")).await;
        assert_eq!(done.out.trim(), "0", "{masked}");
    }
    let mounts = say(&client, "c", "grep ' /sys ' /proc/mounts").await;
    assert!(mounts.split(' ').nth(3).unwrap().split(',').any(|option| option == "ro"), "{mounts}");
    assert_eq!(sh(&client, "c", "true").await.code, 0);
    server.finish().await;
}

#[tokio::test]
async fn privileged() {
    let server = Server::start().await;
    let client = server.client();
    let spec = ContainerSpec { handle: "c".into(), privileged: true, ..Default::default() };
    client.create(&spec).await.unwrap();
    let map = say(&client, "c", "cat /proc/self/uid_map").await;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "0", "4294967295"]);
    let host = std::fs::read_to_string("/proc/self/status").unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
    let expected = u64::from_str_radix(host, 16).unwrap() & 0x3f_ffff_ffff;
    assert_eq!(status(&client, "root", "CapBnd").await, format!("{expected:016x}"));
    assert_eq!(status(&client, "root", "CapEff").await, format!("{expected:016x}"));
    assert_eq!(status(&client, "1000", "CapPrm").await, "0000000000000000");
    say(&client, "c", "mount -t tmpfs none /mnt && echo x >/mnt/x && umount /mnt").await;
    say(&client, "c", "echo mine >/owned").await;
    let rootfs = server.rootfs().into_iter().find(|dir| Path::new(dir).join("upper/owned").exists()).unwrap();
    assert_eq!(std::fs::metadata(format!("{rootfs}/upper/owned")).unwrap().uid(), 0);
    // What it mounts and does not unmount goes with it.
    say(&client, "c", "mount -t tmpfs none /mnt").await;
    server.finish().await;
}

#[tokio::test]
async fn limits_hold_and_can_be_read_inside() {
    const MEMORY: u64 = 32 << 20;
    let server = Server::start().await;
    let client = server.client();
    let limits = Limits {
        memory_limits: MemoryLimits { limit_in_bytes: MEMORY },
        cpu_limits: CpuLimits { limit_in_shares: 512, ..Default::default() },
        pid_limits: PidLimits { max: 10 },
        ..Default::default()
    };
    client.create(&ContainerSpec { handle: "c".into(), limits, ..Default::default() }).await.unwrap();
    // cgroup v2, or a hierarchy of v1: what programs look at to fit themselves in.
    let read = "cd /sys/fs/cgroup; cat memory.max || cat memory/memory.limit_in_bytes";
    assert_eq!(sh(&client, "c", read).await.out.trim(), MEMORY.to_string());
    let change = "cd /sys/fs/cgroup; [ -e memory.max ] || cd memory; mkdir mine";
    assert_ne!(sh(&client, "c", change).await.code, 0);
    say(&client, "c", "dd if=/dev/zero of=/dev/null bs=8M count=1").await;
    let killed = sh(&client, "c", "dd if=/dev/zero of=/dev/null bs=64M count=1").await;
    assert_eq!(killed.code, 137, "{killed:?}");
    let forks =
        sh(&client, "c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 >/dev/null 2>&1 & done").await;
    assert!(forks.err.contains("can't fork"), "{forks:?}");
    server.finish().await;
}
