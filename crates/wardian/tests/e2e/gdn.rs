//! The program under the name `gdn`: Guardian's command line, as a Diego cell starts its Garden server.

use crate::cli::Said;
use crate::support::{NETWORK, REGISTRIES, Server, WARDIAN, base, message, say};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use wardian_garden::wire::ContainerSpec;

/// Guardian's command line, by a link in this directory.
fn gdn(dir: &Path) -> Command {
    let link = dir.join("gdn");
    if !link.exists() {
        symlink(&*WARDIAN, &link).unwrap();
    }
    let mut command = Command::new(link);
    command.env(NETWORK, "none").envs(REGISTRIES).env_remove("WARDIAN_LOG").stdin(Stdio::null());
    command
}

/// The file of a cell, as the job of garden-runc-release writes it, and the one of its image plugin.
fn cell(server: &Server, more: &str) -> String {
    let base = server.base();
    let groot = base.join("grootfs_config.yml");
    let yaml = format!(
        "store: {}\nlog_level: info\ncreate:\n  with_clean: true\n  insecure_registries: []\nclean:\n  threshold_bytes: 10737418240\n",
        server.root().display()
    );
    fs::write(&groot, yaml).unwrap();
    let ini = format!(
        "[server]\n; binaries\n  iptables-bin = /var/vcap/packages/iptables/sbin/iptables\n  \
         init-bin = /var/vcap/data/garden/bin/init\n\n; containers\n  default-grace-time = 0\n  max-containers = 3\n  \
         cleanup-process-dirs-on-wait = true\n\n; image and rootfs\n  default-rootfs = {image}\n  \
         image-plugin = /var/vcap/packages/grootfs/bin/grootfs\n  image-plugin-extra-arg = \"--config\"\n  \
         image-plugin-extra-arg = {groot}\n\n; network\n  mtu = 0\n  additional-host-entry = \"10.1.2.3 cell.internal\"\n\n\
         ; server\n  bind-socket = {socket}\n  log-level = info\n  time-format = rfc3339\n  skip-setup = true\n  \
         depot = /var/vcap/data/garden/depot\n  runtime-plugin=/var/vcap/packages/runc/bin/runc\n  \
         disable-privileged-containers = true\n\n; containerd\n  \
         containerd-socket = /var/vcap/sys/run/containerd/containerd.sock\n{more}",
        image = server.image().display(),
        groot = groot.display(),
        socket = server.socket().display(),
    );
    let path = base.join("config.ini");
    fs::write(&path, ini).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_cell_is_served_by_guardians_flags() {
    let mut server = Server::start().await;
    server.terminate().await;
    let config = cell(&server, "");
    let before = server.log().len();
    let log = fs::File::options().append(true).open(server.base().join("log")).unwrap();
    let mut command = gdn(server.base());
    command.args(["--config", &config, "server", "--uid-map-start=1", "--uid-map-length=4294967293"]);
    command.args(["--gid-map-start=1", "--gid-map-length=4294967293", "--max-containers", "2"]);
    command.env("WARDIAN_RUN", server.run()).stdout(Stdio::null()).stderr(log);
    server.restart_as(command).await;

    // The flags and the file are in force, and the flags win.
    let client = server.create("a").await;
    assert_eq!(say(&client, "a", "id -u").await, "0");
    assert_eq!(client.capacity().await.unwrap().max_containers, 2);
    let privileged = ContainerSpec { handle: "p".into(), privileged: true, ..ContainerSpec::default() };
    assert!(message(client.create(&privileged).await).contains("privileged container creation is disabled"));
    let settings = fs::read_to_string(format!("/proc/{}/cmdline", server.pid())).unwrap();
    assert!(settings.contains("gdn\0--config\0"), "{settings}");

    // What has no meaning is told once.
    let log = server.log()[before..].to_owned();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ignored = lines.iter().filter(|line| line["message"] == "wardian.gdn.flag-ignored");
    let mut flags: Vec<&str> = ignored.map(|line| line["data"]["flag"].as_str().unwrap()).collect();
    flags.sort_unstable();
    let expected = [
        "cleanup-process-dirs-on-wait",
        "containerd-socket",
        "depot",
        "image-plugin",
        "init-bin",
        "iptables-bin",
        "runtime-plugin",
        "skip-setup",
    ];
    assert_eq!(flags, expected);
    assert!(lines.iter().all(|line| line["level"] == "info"), "{log}");
    server.finish().await;
}

#[tokio::test]
async fn the_printed_settings_are_the_same() {
    let mut server = Server::start().await;
    server.terminate().await;
    let config = cell(&server, "");
    let printed = Said::from(
        gdn(server.base()).args(["--config", &config, "server", "--print-config"]).output().unwrap(),
    );
    assert_eq!((printed.code, printed.err.as_str()), (Some(0), ""), "{printed:?}");
    for line in [
        "max-containers = 3",
        "gc-threshold = 10737418240",
        "disable-privileged-containers = true",
        "additional-host-entry = [\"10.1.2.3 cell.internal\"]",
        "# not taken: depot: the state of containers is in the run directory, a tmpfs: `--run` (WARDIAN_RUN)",
    ] {
        assert!(printed.out.lines().any(|found| found == line), "{line}: {}", printed.out);
    }
    let file = server.base().join("wardian.toml");
    fs::write(&file, printed.out).unwrap();
    let log = fs::File::options().append(true).open(server.base().join("log")).unwrap();
    let mut command = Command::new(WARDIAN);
    command.arg("serve").arg("--config").arg(&file).env("WARDIAN_RUN", server.run()).envs(REGISTRIES);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    server.restart_as(command).await;
    let client = server.create("a").await;
    assert_eq!(say(&client, "a", "id -u").await, "0");
    assert_eq!(client.capacity().await.unwrap().max_containers, 3);
    server.finish().await;
}

#[tokio::test]
async fn what_must_not_be_ignored_is_refused_before_anything_is_made() {
    let dir = base();
    let (root, run) = (dir.path().join("root"), dir.path().join("run"));
    let refused = |args: &[&str]| {
        let mut command = gdn(dir.path());
        let said = Said::from(
            command.env("WARDIAN_ROOT", &root).env("WARDIAN_RUN", &run).args(args).output().unwrap(),
        );
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{args:?}: {said:?}");
        assert!(!root.exists() && !run.exists(), "{args:?}");
        said.err
    };
    let both =
        refused(&["server", "--apparmor=garden-default", "--cpu-quota-per-share", "100", "--depot=/d"]);
    assert!(both.contains("--apparmor garden-default: AppArmor profiles are not applied"), "{both}");
    assert!(both.contains("--cpu-quota-per-share 100: ") && !both.contains("--depot"), "{both}");
    assert!(refused(&["server", "--bogus"]).contains("unknown flag `--bogus`"));
    assert!(refused(&["server", "--mtu"]).contains("--mtu: its value is missing"));
    assert!(refused(&["server", "--mtu", "many"]).contains("invalid value 'many' for '--mtu"));
    assert!(refused(&["serve"]).contains("unknown command \"serve\""));
    assert!(refused(&[]).contains("name a command"));
    assert!(refused(&["setup", "--print-config"]).contains("is a flag of `gdn server`"));
    assert!(refused(&["setup", "--enable-cpu-throttling"]).contains("CPU throttling is not here"));
    let tcp = refused(&["server", "--bind-ip=127.0.0.1", "--bind-port=0"]);
    assert!(tcp.contains("whoever connects to it is root on this host"), "{tcp}");
    // The file names programs that root runs, so nobody else may have written it.
    let config = dir.path().join("config.ini");
    fs::write(&config, "[server]\nbogus = 1\n").unwrap();
    let config = config.to_str().unwrap();
    assert!(refused(&["--config", config, "server"]).contains("line 2: unknown flag `--bogus`"));
    std::os::unix::fs::chown(config, Some(1000), None).unwrap();
    assert!(refused(&["--config", config, "server"]).contains("belongs to user 1000"));
    assert!(refused(&["--config", "/no/such/file", "server"]).contains("/no/such/file"));
    let groot = dir.path().join("groot.yml");
    fs::write(&groot, "create: {insecure_registries: [evil.example]}").unwrap();
    std::os::unix::fs::chown(&groot, Some(1000), None).unwrap();
    let plugin = format!("--image-plugin-extra-arg={}", groot.display());
    let foreign = refused(&["server", "--image-plugin-extra-arg=\"--config\"", &plugin]);
    assert!(foreign.contains("groot.yml") && foreign.contains("belongs to user 1000"), "{foreign}");
    // A store of GrootFS is left alone.
    let store = dir.path().join("store");
    for name in ["volumes", "images", "meta"] {
        fs::create_dir_all(store.join(name)).unwrap();
    }
    let before = fs::metadata(&store).unwrap().mtime_nsec();
    let mut command = gdn(dir.path());
    command.arg("server").arg(format!("--image-plugin-extra-arg=--store={}", store.display()));
    let said = Said::from(command.env("WARDIAN_RUN", &run).output().unwrap());
    assert!(said.code == Some(1) && said.err.contains("WARDIAN_ROOT"), "{said:?}");
    assert!(fs::metadata(&store).unwrap().mtime_nsec() == before && !run.exists());
}

#[tokio::test]
async fn setup_and_cleanup_leave_what_a_server_would_leave() {
    let mut server = Server::start().await;
    server.create("a").await;
    server.kill9();
    let config = cell(&server, "");
    let run = |args: &[&str]| {
        let said =
            Said::from(gdn(server.base()).env("WARDIAN_RUN", server.run()).args(args).output().unwrap());
        assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
        said
    };
    assert!(run(&["setup"]).err.contains("there is nothing to set up"));
    assert!(run(&["--config", &config, "cleanup"]).err.contains("the next server recovers the containers"));
    server.restart().await;
    assert_eq!(server.client().list(&crate::equipped::all()).await.unwrap(), ["a"]);
    server.kill9();
    let run = |args: &[&str]| {
        Said::from(gdn(server.base()).env("WARDIAN_RUN", server.run()).args(args).output().unwrap())
    };
    let cleaned = run(&["--config", &config, "cleanup", "--destroy-containers-on-startup"]);
    assert!(cleaned.code == Some(0) && cleaned.out.contains("containers: a"), "{cleaned:?}");
    server.restart().await;
    assert_eq!(server.client().list(&crate::equipped::all()).await.unwrap(), Vec::<String>::new());
    // Not below a server that runs.
    let config = cell(&server, "");
    let busy = Said::from(
        gdn(server.base())
            .env("WARDIAN_RUN", server.run())
            .args(["--config", &config, "cleanup", "--destroy-containers-on-startup"])
            .output()
            .unwrap(),
    );
    assert!(busy.code == Some(1), "{busy:?}");
    server.create("b").await;
    server.finish().await;
}
