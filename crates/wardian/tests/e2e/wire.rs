//! Recordings of the original client and server, played again. Where the answer is another one, a row below says
//! what and why; [docs/garden.md](../../../../docs/garden.md) has the same rows.

use crate::player::{Accepted, Loose, Player, Rules, Skipped};
use crate::support::{Server, header, init, parent, say, signal};
use rustix::process::Signal;
use std::path::Path;
use std::time::Duration;
use wardian_garden::wire::{BindMount, ContainerSpec, Limits, MemoryLimits};

const fn differs(
    place: &'static str,
    recorded: &'static str,
    here: &'static str,
    why: &'static str,
) -> Accepted {
    Accepted { place, recorded, here, why }
}

const fn skip(scenario: &'static str, connections: &'static [usize], why: &'static str) -> Skipped {
    Skipped { scenario, connections, why }
}

/// Differences that are meant.
const ACCEPTED: &[Accepted] = &[
    differs(
        "027",
        ",\"rundmc.state\":\"stopped\"",
        "",
        "its bookkeeping: that a container is stopped is its state",
    ),
    differs("020", "runc exec: exit status 255: exec failed: ", "", "there is no runc"),
    differs("020", "unable to start container process: invalid env", "invalid env", "there is no runc"),
];

/// Connections that are not played.
const SKIPPED: &[Skipped] = &[skip(
    "013",
    &[10, 11, 13, 14, 15, 16, 21, 22],
    "an unknown handle is a ContainerNotFoundError here, not an error of runc, nor silence",
)];

/// Scenario, connections (none: all), what of them is not compared by the byte.
const LOOSE: &[(&str, &[usize], Loose)] = &[
    ("002", &[], Loose::Numbers),
    ("010", &[], Loose::Numbers),
    ("011", &[], Loose::Numbers),
    ("022", &[], Loose::Files),
    ("024", &[], Loose::Files),
    ("026", &[], Loose::Files),
    ("033", &[10], Loose::Again),
    ("034", &[4], Loose::Again),
    ("035", &[10], Loose::Again),
    ("038", &[4], Loose::Numbers),
    ("042", &[6], Loose::End),
    ("046", &[9], Loose::End),
];

/// The users and files of the image that the recordings were made with.
fn image(server: &Server) -> String {
    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
alice:x:1001:1010:Linux User,,,:/home/alice:/bin/sh
testuser:x:1000:1000:Linux User,,,:/home/testuser:/bin/sh
vcap:x:2000:2000:vcap:/home/vcap:/bin/sh
";
    const GROUP: &str = "root:x:0:
tty:x:5:
operator:x:37:
staff:x:50:
users:x:100:
nogroup:x:65534:
alice:x:1010:alice
alicesgroup:x:1011:alice
wheel:x:10:root
testuser:x:1000:
vcap:x:2000:
";
    let to = server.base().join("recorded.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&to).unwrap());
    let mut archive = tar::Archive::new(std::fs::File::open(server.image()).unwrap());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        if !["etc/passwd", "etc/group"].contains(&&*entry.path().unwrap().to_string_lossy()) {
            builder.append(&entry.header().clone(), entry).unwrap();
        }
    }
    for (name, uid, gid, data) in [
        ("etc/passwd", 0, 0, PASSWD),
        ("etc/group", 0, 0, GROUP),
        ("home/alice/", 1001, 1010, ""),
        ("home/alice/alicesfile", 1001, 1010, "hi\n"),
        ("home/testuser/", 1000, 1000, ""),
    ] {
        let mut header = header(data.len());
        header.set_uid(uid);
        header.set_gid(gid);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
        }
        builder.append_data(&mut header, name, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap();
    to.to_str().unwrap().to_owned()
}

/// What a scenario finds when it begins.
#[derive(Debug, Default)]
struct Scene {
    handle: &'static str,
    properties: &'static [(&'static str, &'static str)],
    privileged: bool,
    memory: u64,
    /// A directory of the host that is mounted there.
    mount: &'static str,
    /// Run before the recording.
    script: &'static str,
}

const fn scene(handle: &'static str) -> Scene {
    Scene { handle, properties: &[], privileged: false, memory: 0, mount: "", script: "" }
}

async fn scenario(name: &str, scenes: &[Scene]) {
    let mut server = Server::start().await;
    let image = image(&server);
    for (dir, mode) in [("ro", 0o755), ("rw", 0o777)] {
        let dir_path = server.base().join("data").join(dir);
        std::fs::create_dir_all(&dir_path).unwrap();
        std::fs::set_permissions(&dir_path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        std::fs::write(dir_path.join("file"), format!("from host {dir}\n")).unwrap();
    }
    let data = server.base().join("data").to_str().unwrap().to_owned();
    for scene in scenes {
        let client = server.client();
        let properties = scene.properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mount = |to: &&str| BindMount {
            src_path: format!("{data}/ro"),
            dst_path: (*to).to_owned(),
            ..Default::default()
        };
        let spec = ContainerSpec {
            handle: scene.handle.to_owned(),
            rootfs: image.clone(),
            properties,
            privileged: scene.privileged,
            limits: Limits {
                memory_limits: MemoryLimits { limit_in_bytes: scene.memory },
                ..Default::default()
            },
            bind_mounts: [scene.mount].iter().filter(|to| !to.is_empty()).map(mount).collect(),
            ..Default::default()
        };
        client.create(&spec).await.unwrap();
        if !scene.script.is_empty() {
            say(&client, scene.handle, scene.script).await;
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire").join(format!("{name}.txt"));
    let paths = vec![
        ("/var/lib/garden/rootfs/garden-rootfs.tar".to_owned(), image.clone()),
        ("/var/lib/garden/rootfs/busybox.tar".to_owned(), image),
        ("/var/lib/garden/data".to_owned(), data),
    ];
    let rules = Rules { accepted: ACCEPTED, skipped: SKIPPED, loose: LOOSE, paths };
    let mut player = Player::new(name, &std::fs::read_to_string(path).unwrap(), server.socket(), rules);
    while let Some(signal) = player.play() {
        match signal.as_str() {
            "SIGKILL" => server.kill9(),
            "SIGTERM" => assert!(server.terminate().await.success()),
            other => panic!("unknown signal {other}"),
        }
        server.restart().await;
    }
    drop(player);
    server.finish().await;
}

/// A destroy here is over before a second one can come, so its keeper rests meanwhile.
#[tokio::test]
async fn destroy_twice() {
    const NAME: &str = "037-destroy-twice-at-once";
    let server = Server::start().await;
    server.create("fx-destroy-twice-at-once").await;
    let keeper = parent(init(&server, "fx-destroy-twice-at-once").await).unwrap();
    signal(keeper, Signal::STOP);
    let waker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        signal(keeper, Signal::CONT);
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire").join(format!("{NAME}.txt"));
    let recording = std::fs::read_to_string(path).unwrap();
    assert_eq!(Player::new(NAME, &recording, server.socket(), Rules::default()).play(), None);
    waker.join().unwrap();
    server.finish().await;
}

macro_rules! scenarios {
    ($($function:ident $name:literal $scenes:expr;)*) => {
        $(#[tokio::test] async fn $function() { scenario($name, &$scenes).await; })*
    };
}

scenarios! {
    ping "001-ping" [];
    capacity "002-capacity" [];
    create_minimal "003-create-minimal" [];
    create_full "004-create-full" [];
    create_errors "005-create-errors" [scene("fx-dup")];
    list "007-list" [
        Scene { properties: &[("color", "red"), ("n", "1")], ..scene("fx-l1") },
        Scene { properties: &[("color", "red"), ("n", "2")], ..scene("fx-l2") },
    ];
    info "008-info" [Scene { properties: &[("k", "v")], ..scene("fx-info") }];
    bulk_info "009-bulk-info" [scene("fx-bulk-info"), scene("fx-b2")];
    bulk_metrics "010-bulk-metrics" [scene("fx-bulk-metrics")];
    metrics "011-metrics" [scene("fx-metrics"), Scene { memory: 64 << 20, ..scene("fx-m2") }];
    properties "012-properties" [Scene { properties: &[("k", "v")], ..scene("fx-properties") }];
    unknown_handle "013-unknown-handle" [];
    run_echo "014-run-echo" [scene("fx-run-echo")];
    run_stdin "015-run-stdin-cat" [scene("fx-run-stdin-cat")];
    tty "016-run-tty-resize" [scene("fx-run-tty-resize")];
    signals "017-signal-term" [scene("fx-signal-term")];
    attach_second "018-attach-second-client" [scene("fx-attach-second-client")];
    attach_unknown "019-attach-unknown" [scene("fx-attach-unknown")];
    missing_executable "020-run-missing-executable" [scene("fx-run-missing-executable")];
    users "021-run-users" [scene("fx-run-users")];
    missing_dir "022-run-missing-dir" [
        scene("fx-run-missing-dir"),
        Scene { privileged: true, ..scene("fx-dir-priv") },
    ];
    rlimits "023-run-rlimits" [scene("fx-run-rlimits")];
    stream_in "024-stream-in" [scene("fx-stream-in")];
    stream_in_errors "025-stream-in-errors" [scene("fx-stream-in-errors")];
    stream_out "026-stream-out" [Scene {
        script: "mkdir -p /srv/d; echo content >/srv/d/f; mkdir /root/secret; touch /root/secret/x",
        ..scene("fx-stream-out")
    }];
    stop_graceful "027-stop-graceful" [scene("fx-stop-graceful")];
    stop_stubborn "028-stop-stubborn" [scene("fx-stop-stubborn")];
    stop_kill "029-stop-kill" [scene("fx-stop-kill")];
    grace_time "033-grace-time" [scene("fx-grace-time")];
    grace_time_zero "034-grace-time-zero" [scene("fx-grace-time-zero")];
    grace_time_during_run "035-grace-time-during-run" [scene("fx-grace-time-during-run")];
    destroy "036-destroy" [scene("fx-destroy")];
    pea "038-pea-echo" [scene("fx-pea-echo")];
    pea_users "039-pea-users" [scene("fx-pea-users")];
    pea_errors "040-pea-errors" [scene("fx-pea-errors")];
    pea_mounts "041-pea-bind-mounts" [Scene { mount: "/sandbox-mnt", ..scene("fx-pea-bind-mounts") }];
    client_leaves "042-client-disconnect-attach" [scene("fx-client-disconnect-attach")];
    late_output "043-late-attach-output" [scene("fx-late-attach-output")];
    raw_http "044-raw-http" [Scene { properties: &[("k", "v")], ..scene("fx-raw-http") }];
    raw_control "045-raw-control" [scene("fx-raw-control")];
    restart "046-restart-graceful" [scene("fx-restart-graceful")];
    restart_after_kill "047-restart-kill9" [scene("fx-restart-kill9")];
}
