//! Recordings of the original client and server, played again. Where the answer is another one, a row below says
//! what and why; [docs/garden.md](../../../../docs/garden.md) has the same rows.

use crate::docker_registry::{DOCKER, Image, Registry};
use crate::grootfs_images::gzip;
use crate::player::{Accepted, Loose, Player, Rules, Skipped};
use crate::support::{Server, digest, header, init, parent, say, signal};
use rustix::process::Signal;
use std::path::Path;
use std::time::Duration;
use wardian_garden::wire::{BindMount, ContainerSpec, Limits, MemoryLimits, NetIn};
use wardian_needs::needs;

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

const NO_IPTABLES: &str = "there is no iptables to be quoted";
const TRAFFIC: &str = "\"NetworkStat\":{\"RxBytes\":0,\"TxBytes\":0}";
const NO_RUNC: &str = "there is no runc to be quoted";
const NO_TAR: &str = "there is no tar command to be quoted";
const NO_PLUGIN: &str = "there is no image plugin to be quoted";
const OTHER_WORDS: &str = "the decoder's own words; as with Go's, the field is named where it can be";
const BETTER_DIR: &str =
    "a directory on a mount inside the container is made and entered; the original fails or goes to /";
const NO_TIME: &str = "null is no grace time: it would destroy the container at once";
const TIME: &str = "whether it is still there is a question of time";

/// Differences that are meant.
pub const ACCEPTED: &[Accepted] = &[
    differs(
        "004/3",
        "\r\n\r\n{}",
        "\r\n\r\n{\"rate\":1000,\"burst\":2000}",
        "bandwidth limits are enforced, not ignored",
    ),
    differs("004/5", "\r\n\r\n{}", "\r\n\r\n{\"byte_hard\":104857600,\"scope\":1}", "the limits are told"),
    differs("010", "\"NetworkStat\":null", TRAFFIC, "traffic is counted"),
    differs("011/1", "\"NetworkStat\":null", TRAFFIC, "traffic is counted"),
    differs("011/2", "\"NetworkStat\":null", TRAFFIC, "traffic is counted"),
    differs("030/5", "\"iptables: …\",\"Handle\"", "\"…70000…\",\"Handle\"", NO_IPTABLES),
    differs("031", "\"iptables: …\",\"Handle\"", "\"…\",\"Handle\"", NO_IPTABLES),
    differs("032", "\"iptables: …\",\"Handle\"", "\"…\",\"Handle\"", NO_IPTABLES),
    differs(
        "005/2",
        "\"running image plugin create: …\",\"Handle\"",
        "\"image: cannot open the image…missing.tar…\",\"Handle\"",
        NO_PLUGIN,
    ),
    differs(
        "005/11",
        "\"runc run: …\",\"Handle\"",
        "\"bind mount: …data/none…\",\"Handle\"",
        "the source that is missing is named",
    ),
    differs(
        "005/14",
        "\"running image plugin create: …\",\"Handle\"",
        "\"image: cannot open the image…docker.io/cloudfoundry/nope:latest…manifest unknown…\",\"Handle\"",
        NO_PLUGIN,
    ),
    differs(
        "005/15",
        "\"running image plugin create: …\",\"Handle\"",
        "\"invalid handle \\\"fx/slash\\\": …\",\"Handle\"",
        "handles are checked before anything is made",
    ),
    differs(
        "005/16",
        "\"running image plugin create: …\",\"Handle\"",
        "\"image: cannot open the image…unknown scheme…\",\"Handle\"",
        NO_PLUGIN,
    ),
    differs(
        "005/17",
        "\"runc run: …\",\"Handle\"",
        "\"image: cannot open the image…unknown scheme…\",\"Handle\"",
        "raw root file systems are not supported",
    ),
    differs("005/18", "\"runc run: …\",\"Handle\"", "\"create: …\",\"Handle\"", NO_RUNC),
    differs(
        "008",
        ",\"rundmc.state\":\"stopped\"",
        "",
        "that it was stopped is in its state, not in a property",
    ),
    differs(
        "010",
        "runC stats: runc: exit status 1: container does not exist",
        "unknown handle: fx-unknown",
        NO_RUNC,
    ),
    differs("016/5", "/dev/pts/1", "/dev/pts/0", "the process before it has ended"),
    differs("020", "runc exec: exit status 255: exec failed: ", "", NO_RUNC),
    differs("020", "unable to start container process: invalid env", "invalid env", NO_RUNC),
    differs("022", "runc exec: exit status 255: exec failed: ", "", NO_RUNC),
    differs("022", "unable to start container process: chdir", "chdir", NO_RUNC),
    differs(
        "025/1",
        "nstar: error streaming in: …\\n\"",
        "error streaming in: unable to find user nobody-here: no matching entries in passwd file\"",
        "the reason is given",
    ),
    differs("025/3", "nstar: error streaming in: …\\n\"", "error streaming in: …\"", NO_TAR),
    differs("025/4", "nstar: error streaming in: …\\n\"", "error streaming in: …EOF…\"", NO_TAR),
    differs(
        "025/6",
        "nstar: error streaming in: …\\n\"",
        "error streaming in: mkdir /sys/x: Read-only file system…\"",
        NO_TAR,
    ),
    differs(
        "025/7",
        "nstar: error streaming in: …\\n\"",
        "error streaming in: /etc/passwd: Not a directory…\"",
        NO_TAR,
    ),
    differs(
        "025/8",
        "nstar: error streaming in: …\\n\"",
        "error streaming in: This does not look like a tar archive\"",
        NO_TAR,
    ),
    differs(
        "027",
        ",\"rundmc.state\":\"stopped\"",
        "",
        "that it was stopped is in its state, not in a property",
    ),
    differs(
        "040/1",
        "\"creating-volume: …\",\"Handle\"",
        "\"creating-volume: cannot open the image…missing.tar…\",\"Handle\"",
        NO_PLUGIN,
    ),
    differs(
        "040/2",
        "\"creating-volume: …\",\"Handle\"",
        "\"creating-volume: cannot open the image…docker.io/cloudfoundry/nope:latest…manifest unknown…\",\"Handle\"",
        NO_PLUGIN,
    ),
    differs(
        "040/3",
        "\"Type\":\"\",\"Message\":\"1 error occurred:\\n\\t* runc run failed: ",
        "\"Type\":\"ExecutableNotFoundError\",\"Message\":\"exec failed: ",
        "the error keeps its type",
    ),
    differs("040/3", "$PATH\\n\\n\"", "$PATH\"", "there is one error, not a list of one"),
    differs(
        "040/10",
        "1 error occurred:\\n\\t* process ID 'dup' already in use\\n\\n",
        "process ID 'dup' already in use",
        "there is one error, not a list of one",
    ),
    differs(
        "041/4",
        "\"1 error occurred:…\",\"Handle\"",
        "\"bind mount: …data/none…\",\"Handle\"",
        "the source that is missing is named",
    ),
    differs("044/12", "json: …\",\"Handle\"", "json: …\",\"Handle\"", OTHER_WORDS),
    differs("044/20", "json: …\",\"Handle\"", "json: …\",\"Handle\"", OTHER_WORDS),
    differs("044/24", "json: …\",\"Handle\"", "json: …\",\"Handle\"", OTHER_WORDS),
    differs(
        "044/15",
        "500 Internal Server Error\r\n",
        "200 OK\r\n",
        "a form's content type does not swallow the body",
    ),
    differs(
        "044/15",
        "{\"Type\":\"\",\"Message\":\"EOF\",\"Handle\":\"\",\"ProcessID\":\"\",\"Binary\":\"\"}",
        "{}",
        "a form's content type does not swallow the body",
    ),
    differs(
        "044/18",
        "500 Internal Server Error\r\n",
        "404 Not Found\r\n",
        "an empty handle is an unknown handle",
    ),
    differs(
        "044/18",
        "\"Type\":\"\",\"Message\":\"Failed to load bundle: …\",\"Handle\"",
        "\"Type\":\"ContainerNotFoundError\",\"Message\":\"unknown handle: \",\"Handle\"",
        "an empty handle is an unknown handle",
    ),
    differs("044/21", "200 OK\r\n", "500 Internal Server Error\r\n", NO_TIME),
    differs("044/21", "{}\n", "{\"Type\":\"\",\"Message\":\"json: …\",…}\n", NO_TIME),
    differs(
        "044/26",
        "500 Internal Server Error\r\n",
        "200 OK\r\n",
        "without a destination it is the user's home",
    ),
    differs("044/26", "{\"Type\":…}", "{}", "without a destination it is the user's home"),
    differs(
        "044/30",
        "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request",
        "…\r\n\r\n",
        "the status says it all",
    ),
];

/// Connections that are not played.
pub const SKIPPED: &[Skipped] = &[
    skip(
        "013",
        &[3, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21, 22],
        "an unknown handle is a ContainerNotFoundError here, not an error of runc, nor silence",
    ),
    skip(
        "016",
        &[1, 2, 3],
        "a new size counts also after the end of input: the process ends by its own trap, if the signal leaves it time",
    ),
    skip("022", &[7, 8, 10, 13, 24, 27], BETTER_DIR),
    skip("025", &[2], "a user may be given by number"),
    skip(
        "026",
        &[4, 5, 6, 7, 8, 9, 11],
        "what is missing, or may not be read, is an error and not an empty tar; no directory is made for it",
    ),
    skip("033", &[3, 4, 5, 6, 7, 8, 9], TIME),
    skip("034", &[2, 3], TIME),
    skip("035", &[5, 6, 7, 8, 9], TIME),
    skip("040", &[11], "a pea may have the name of a container"),
    skip(
        "043",
        &[4],
        "an output stream is found below its own process only: unknown process, where the original gives it to anybody",
    ),
    skip("044", &[7, 8], "bulk requests without handles are answered: {}; the original hangs up"),
    skip("044", &[28], "a Host header is not asked for"),
    skip(
        "046",
        &[8],
        "how much it wrote while there was no server, and how much of it is kept, is a matter of time",
    ),
    skip("048", &[8], "an unknown handle is a ContainerNotFoundError here"),
    skip("047", &[4, 5, 6, 7, 8, 9], "a server that was killed loses nothing: the container is still there"),
];

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
    ("038", &[7], Loose::Numbers),
    ("042", &[6], Loose::End),
];

/// The users and files of the image that the recordings were made with.
pub fn image(server: &Server) -> String {
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
    network: &'static str,
    /// One of the server's ports leads to this port of the container.
    port: u32,
    /// A directory of the host that is mounted there.
    mount: &'static str,
    /// Run before the recording.
    script: &'static str,
}

const fn scene(handle: &'static str) -> Scene {
    Scene {
        handle,
        properties: &[],
        privileged: false,
        memory: 0,
        network: "",
        port: 0,
        mount: "",
        script: "",
    }
}

/// Recordings with images of Docker Hub.
const REGISTRIES: [&str; 3] = ["005", "006", "040"];

/// Starts what takes the place of Docker Hub for a server, and has its image of busybox. The server reads its settings
/// when it needs them.
fn docker_hub(server: &mut Server, image: &str) -> Registry {
    let registry = Registry::start();
    let busybox = std::fs::read(image).unwrap();
    let ids = [format!("sha256:{}", digest(&busybox))];
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let image = Image::made(DOCKER, vec![gzip(&busybox)], &ids, &serde_json::json!({"Env": [path]}));
    registry.push("library/busybox", "1.37.0", &image);
    let host = registry.door_in(&server.world().path());
    let conf = format!("[[registry]]\nprefix = \"docker.io\"\nlocation = \"{host}\"\n");
    std::fs::write(server.base().join("registries.conf"), conf).unwrap();
    registry
}

async fn scenario(name: &str, scenes: &[Scene]) {
    if REGISTRIES.contains(&&name[..3]) {
        needs!(Registry);
    }
    // The first port of the pool that had not been given to anybody.
    let ports = match &name[..3] {
        "004" => "61002",
        "008" => "61003",
        "030" => "61004",
        "046" => "61006",
        _ => "61001",
    };
    let mut server =
        Server::networked(&["--mtu", "1400", "--port-pool-start", ports, "--port-pool-size", "100"]).await;
    if REGISTRIES.contains(&&name[..3]) {
        assert!(server.terminate().await.success());
        let conf = server.base().join("registries.conf").to_str().unwrap().to_owned();
        server.env.push(("CONTAINERS_REGISTRIES_CONF".to_owned(), conf));
        server.restart().await;
    }
    let flags = server.args.clone();
    let image = image(&server);
    let _registry = REGISTRIES.contains(&&name[..3]).then(|| docker_hub(&mut server, &image));
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
        let port = |port: &u32| NetIn { container_port: *port, ..NetIn::default() };
        let spec = ContainerSpec {
            handle: scene.handle.to_owned(),
            rootfs: image.clone(),
            properties,
            privileged: scene.privileged,
            limits: Limits {
                memory_limits: MemoryLimits { limit_in_bytes: scene.memory },
                ..Default::default()
            },
            network: scene.network.to_owned(),
            netin: [scene.port].iter().filter(|port| **port != 0).map(port).collect(),
            bind_mounts: [scene.mount].iter().filter(|to| !to.is_empty()).map(mount).collect(),
            ..Default::default()
        };
        client.create(&spec).await.unwrap();
        if !scene.script.is_empty() {
            say(&client, scene.handle, scene.script).await;
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire").join(format!("{name}.txt"));
    // So many processes may a user have whom nobody limits: it depends on the host's memory.
    let threads = std::fs::read_to_string("/proc/sys/kernel/threads-max").unwrap();
    let processes = threads.trim().parse::<u64>().unwrap() / 2;
    // The recorded server handed on its own; here it is set, as far as the host lets the server raise it.
    let files = match scenes.first() {
        Some(scene) if name.ends_with("rlimits") => say(&server.client(), scene.handle, "ulimit -H -n").await,
        _ => String::new(),
    };
    let host = vec![
        (format!("{0:<21}{0:<21}files", 20000), format!("{:<21}{files:<21}files", 16384)),
        ("/var/lib/garden/rootfs/garden-rootfs.tar".to_owned(), image.clone()),
        ("/var/lib/garden/rootfs/busybox.tar".to_owned(), image),
        ("/var/lib/garden/data".to_owned(), data),
        (format!("{:<21}", 96365), format!("{processes:<21}")),
    ];
    let rules = Rules { accepted: ACCEPTED, skipped: SKIPPED, loose: LOOSE, host };
    let mut player = Player::new(name, &std::fs::read_to_string(path).unwrap(), server.socket(), rules);
    while let Some(restart) = player.play() {
        server.args = flags.iter().cloned().chain(restart.flags).collect();
        match restart.signal.as_str() {
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
    create_errors "005-create-errors" [Scene { network: "10.253.0.0/30", ..scene("fx-dup") }];
    create_docker "006-create-docker" [];
    list "007-list" [
        Scene { properties: &[("color", "red"), ("n", "1")], ..scene("fx-l1") },
        Scene { properties: &[("color", "red"), ("n", "2")], ..scene("fx-l2") },
    ];
    info "008-info" [Scene { properties: &[("k", "v")], port: 8080, ..scene("fx-info") }];
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
    net_in "030-net-in" [scene("fx-net-in")];
    net_out "031-net-out" [scene("fx-net-out")];
    bulk_net_out "032-bulk-net-out" [scene("fx-bulk-net-out")];
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
    restart "046-restart-graceful" [
        Scene { properties: &[("keep", "me")], port: 8080, ..scene("fx-restart-graceful") },
    ];
    restart_after_kill "047-restart-kill9" [scene("fx-restart-kill9")];
    restart_and_destroy "048-restart-destroy" [scene("fx-restart-destroy")];
}
