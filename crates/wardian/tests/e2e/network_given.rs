//! Containers in network namespaces that the operator has made, and containers with loopback alone.

use crate::commands::{fails, ok};
use crate::network_pools::refused;
use crate::network_reach::{ask, privileged, serve, spec};
use crate::support::{Server, end, init, listen, message, pea, say, sh};
use crate::world::{self, HOST, INTERNET, container, net_in, post};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use wardian_garden::wire::{BandwidthLimits, ContainerSpec, Limits, NetIn, NetOutRule};

const PROPERTY: &str = "wardian.network.namespace";
/// An address in the operator's namespace.
const INSIDE: &str = "192.0.2.7";

/// The operator's directory with the namespace `a`. What is mounted in it is unmounted at last.
struct Directory {
    path: PathBuf,
    a: File,
}

impl Directory {
    fn new(server: &Server) -> Self {
        let path = server.base().join("netns");
        fs::create_dir(&path).unwrap();
        let new = Self { path, a: world::namespace() };
        new.bind("a", &world::path(&new.a));
        new.sh(&format!("ip link set lo up; ip link add outer type bridge; ip addr add {INSIDE}/24 dev outer; ip link set outer up"));
        new
    }

    /// Makes a file a namespace, as `ip netns add` does.
    fn bind(&self, name: &str, namespace: &str) {
        fs::write(self.path.join(name), "").unwrap();
        let status = Command::new("mount").args(["--bind", namespace]).arg(self.path.join(name)).status();
        assert!(status.unwrap().success(), "{namespace}");
    }

    /// Runs a script in the namespace.
    fn sh(&self, script: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", world::path(&self.a))).args(["sh", "-ec", script]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn at(&self, name: &str) -> String {
        self.path.join(name).to_str().unwrap().to_owned()
    }

    /// That the namespace is as the operator has made it.
    fn is_untouched(&self) {
        assert_eq!(self.a.metadata().unwrap().ino(), fs::metadata(self.at("a")).unwrap().ino());
        let links = self.sh("ip -o link");
        assert_eq!(links.lines().count(), 2, "{links}");
        assert!(self.sh("ip addr show outer").contains(INSIDE));
        assert_eq!(self.sh("nft list ruleset"), "");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn given(handle: &str, path: impl AsRef<Path>) -> ContainerSpec {
    let path = path.as_ref().to_str().unwrap().to_owned();
    ContainerSpec { properties: [(PROPERTY.to_owned(), path)].into(), ..spec(handle, "") }
}

/// A server that takes namespaces from a directory.
async fn with_directory(args: &[&str]) -> (Server, Directory) {
    let mut server = Server::networked(&[]).await;
    server.terminate().await;
    let directory = Directory::new(&server);
    server.args = vec!["--network-namespaces".to_owned(), directory.at("")];
    server.args.extend(args.iter().map(|arg| (*arg).to_owned()));
    server.restart().await;
    (server, directory)
}

#[tokio::test]
async fn containers_share_a_namespace_of_the_operators() {
    let (mut server, directory) = with_directory(&[]).await;
    let client = server.client();
    let name = ok(&server, &["create", "--name", "a", "--network", &format!("ns:{}", directory.at("a"))]);
    assert_eq!(name, "a\n");
    client.create(&given("b", directory.at("a"))).await.unwrap();
    let root = ContainerSpec { privileged: true, ..given("root", directory.at("a")) };
    client.create(&root).await.unwrap();
    container(&server, spec("own", "")).await;
    serve(&client, "a", 8080).await;
    let image = server.image().display().to_string();
    for round in 0..2 {
        let wanted = format!("net:[{}]", directory.a.metadata().unwrap().ino());
        for handle in ["a", "b", "root"] {
            assert_eq!(say(&client, handle, "readlink /proc/self/ns/net").await, wanted);
            assert!(say(&client, handle, "ls /sys/class/net").await.contains("outer"), "its own sysfs");
            let hosts = say(&client, handle, "cat /etc/hosts").await;
            assert!(hosts.lines().any(|line| line == format!("{INSIDE} {handle}")), "{hosts}");
            let text = "readlink /proc/self/ns/net; ls /sys/class/net";
            let said = end(client.run(handle, &pea(&image, text), listen()).await.unwrap()).await;
            assert!(said.code == 0 && said.out.contains(&wanted) && said.out.contains("outer"), "{said:?}");
        }
        // What is on one address is there for all in the namespace, and for nobody else.
        assert!(ask(&client, "b", "tcp", INSIDE, 8080).await.starts_with("ok a"));
        assert!(ask(&client, "b", "tcp", "127.0.0.1", 8080).await.starts_with("ok a"));
        assert!(!ask(&client, "own", "tcp", INSIDE, 8080).await.starts_with("ok"));
        assert!(!ask(&client, "a", "tcp", INTERNET, 80).await.starts_with("ok"));
        assert!(ask(&client, "own", "tcp", INTERNET, 80).await.starts_with("ok"));

        // Root of an unprivileged container has no rights over what is not its own.
        let denied = sh(&client, "a", "ip link set outer down").await;
        assert!(denied.code != 0 && denied.err.contains("permitted"), "{denied:?}");
        assert_ne!(sh(&client, "a", "echo 1 > /proc/sys/net/ipv4/ip_forward").await.code, 0);
        assert_ne!(sh(&client, "a", "net serve a 80").await.code, 0, "a privileged port");
        directory.is_untouched();

        // The server says what it knows, and does nothing that it cannot.
        let info = client.info("a").await.unwrap();
        assert_eq!((&*info.container_ip, &*info.external_ip, &*info.host_ip), (INSIDE, "", ""));
        assert_eq!(info.properties.unwrap()[PROPERTY], directory.at("a"));
        assert!(client.metrics("a").await.unwrap().network_stat.is_none());
        for error in [net_in(&server, "a", 0, 80).unwrap_err(), post(&server, "a/net/out", "{}").unwrap_err()]
        {
            assert!(error.contains("a network namespace of the operator's"), "{error}");
        }
        assert!(message(client.set_property("a", PROPERTY, "/").await).contains("to a create only"));
        if round == 0 {
            server.kill9();
            server.restart().await;
        }
    }
    // The namespace's settings are the operator's.
    directory.sh("sysctl -qw net.ipv4.ip_unprivileged_port_start=80");
    serve(&client, "b", 80).await;
    assert!(ask(&client, "a", "tcp", INSIDE, 80).await.starts_with("ok b"));

    let pid = init(&server, "root").await;
    client.destroy("a").await.unwrap();
    assert!(ask(&client, "b", "tcp", INSIDE, 80).await.starts_with("ok b"));
    client.destroy("b").await.unwrap();
    client.destroy("root").await.unwrap();
    client.destroy("own").await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}/ns/net")).exists());
    directory.is_untouched();
    // A server whose containers have loopback alone takes the namespace all the same.
    server.terminate().await;
    server.args.extend(["--network", "none"].map(str::to_owned));
    server.restart().await;
    client.create(&given("c", directory.at("a"))).await.unwrap();
    assert!(say(&client, "c", "ls /sys/class/net").await.contains("outer"));
    assert!(post(&server, "c/net/out", "{}").unwrap_err().contains("of the operator's"));
    client.destroy("c").await.unwrap();
    directory.is_untouched();
    drop(directory);
    server.finish().await;
}

#[tokio::test]
async fn namespaces_that_are_refused() {
    let (mut server, directory) = with_directory(&[]).await;
    let (at, world) = (|name: &str| directory.at(name), server.world().path());
    directory.bind("world", &world);
    directory.bind("host", "/proc/self/ns/net");
    directory.bind("uts", "/proc/self/ns/uts");
    directory.bind("user", "/proc/self/ns/user");
    fs::write(at("plain"), "").unwrap();
    fs::create_dir(at("sub")).unwrap();
    std::os::unix::fs::symlink("a", at("link")).unwrap();
    std::os::unix::fs::symlink("/proc/1/ns/net", at("away")).unwrap();
    std::os::unix::fs::symlink(".", at("here")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let long = format!("{}/{}", at("a"), "x".repeat(8000));
    let elsewhere = "is not the absolute path of a file in a directory of the server's --network-namespaces";
    for (path, says) in [
        ("", elsewhere),
        ("a", elsewhere),
        ("/proc/self/ns/net", elsewhere),
        ("/proc/1/ns/net", elsewhere),
        (&at(""), elsewhere),
        (&at("."), elsewhere),
        (&at(".."), elsewhere),
        (&at("../netns/a"), elsewhere),
        (&at("sub/../a"), elsewhere),
        (&at("./a"), elsewhere),
        (&format!("{}//a", directory.path.display()), elsewhere),
        (&format!("{}x/a", directory.path.display()), elsewhere),
        (&at("link"), "symbolic link"),
        (&at("away"), "symbolic link"),
        (&at("here/a"), "symbolic link"),
        (&at("missing"), "No such file"),
        (&at("a/b"), "Not a directory"),
        (&long, "File name too long"),
        (&at("plain"), "is no network namespace"),
        (&at("sub"), "is no network namespace"),
        (&at("fifo"), "is no network namespace"),
        (&at("uts"), "is no network namespace"),
        (&at("user"), "is no network namespace"),
        (&at("world"), "of the host itself, or of the server"),
        (&at("host"), "of the host itself, or of the server"),
        (&at("a\0"), "\\0"),
    ] {
        let error = refused(&mut server, given("x", path)).await;
        assert!(error.contains(says) && error.len() < 500, "{path}: {error}");
    }
    // What a driver would have to do.
    let bandwidth_limits = BandwidthLimits { rate: 1000, burst: 1000 };
    for (wanted, what) in [
        (ContainerSpec { network: "10.9.0.0/24".into(), ..given("x", at("a")) }, "an address: "),
        (ContainerSpec { netin: vec![NetIn::default()], ..given("x", at("a")) }, "a port mapping: "),
        (
            ContainerSpec { netout_rules: vec![NetOutRule::default()], ..given("x", at("a")) },
            "an egress rule: ",
        ),
        (
            ContainerSpec { limits: Limits { bandwidth_limits, ..Limits::default() }, ..given("x", at("a")) },
            "a bandwidth limit: ",
        ),
    ] {
        let error = refused(&mut server, wanted).await;
        assert!(error.contains(what) && error.contains("of the operator's"), "{error}");
    }
    // Where others may write, they could put a namespace.
    fs::set_permissions(&directory.path, fs::Permissions::from_mode(0o777)).unwrap();
    let error = refused(&mut server, given("x", at("a"))).await;
    assert!(error.contains("may be written to by other users"), "{error}");
    fs::set_permissions(&directory.path, fs::Permissions::from_mode(0o755)).unwrap();
    directory.is_untouched();

    // A create that fails after the container was in its namespace.
    let mut wanted = given("x", at("a"));
    wanted.bind_mounts = vec![wardian_garden::wire::BindMount {
        src_path: "/var/empty-of-no-host".into(),
        dst_path: "/x".into(),
        ..Default::default()
    }];
    refused(&mut server, wanted).await;
    directory.is_untouched();

    server.terminate().await;
    server.args.clear();
    server.restart().await;
    let error = refused(&mut server, given("x", at("a"))).await;
    assert!(error.contains("--network-namespaces DIR"), "{error}");
    drop(directory);
    server.finish().await;
}

#[tokio::test]
async fn a_container_may_have_loopback_alone() {
    let mut server = Server::networked(&[]).await;
    let client = server.client();
    assert_eq!(ok(&server, &["create", "--name", "alone", "--network", "none"]), "alone\n");
    client.create(&privileged("root", "none")).await.unwrap();
    container(&server, spec("other", "")).await;
    for round in 0..2 {
        for handle in ["alone", "root"] {
            assert_eq!(say(&client, handle, "ip -o link | wc -l").await, "1");
            serve(&client, handle, 8080 + round).await;
            let answer = ask(&client, handle, "tcp", "127.0.0.1", 8080 + round).await;
            assert!(answer.starts_with(&format!("ok {handle}")), "{answer}");
            let info = client.info(handle).await.unwrap();
            assert_eq!((&*info.container_ip, &*info.external_ip), ("", ""));
            assert!(net_in(&server, handle, 0, 80).unwrap_err().contains("its own or its server's"));
        }
        assert_eq!(ask(&client, "other", "tcp", INTERNET, 80).await, format!("ok from {HOST}"));
        if round == 0 {
            server.kill9();
            server.restart().await;
        }
    }
    for flags in [["-p", "80"], ["--allow", "10.0.0.0/8"], ["--bandwidth", "1M"], ["--dns", "10.0.0.53"]] {
        let error = fails(&server, 1, &[&["create", "--network", "none"], &flags[..]].concat());
        assert!(error.contains("is to have loopback alone"), "{error}");
    }
    assert!(refused(&mut server, spec("x", "none ")).await.contains("invalid CIDR address"));
    server.finish().await;
}
