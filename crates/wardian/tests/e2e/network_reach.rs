//! Who reaches whom: from real containers and peas, in every direction that must and must not work.

use crate::support::{NETWORK, Server, end, listen, pea, run, script, sh};
use crate::world::{
    HOST, HOST_V6, INTERNET, INTERNET_2, INTERNET_V6, NEIGHBOUR, PORTS, at, container, net_in, post,
};
use std::net::IpAddr;
use wardian_garden::Client;
use wardian_garden::wire::{ContainerSpec, NetIn};

/// Where containers and the host listen.
const PORT: u16 = 8080;
/// What a client hears that the firewall refuses.
pub const REFUSED: &str = "EHOSTUNREACH";
/// The same of IPv6 (icmpv6 administratively prohibited).
pub const REFUSED_V6: &str = "EACCES";

pub fn spec(handle: &str, network: &str) -> ContainerSpec {
    ContainerSpec { handle: handle.into(), network: network.into(), ..Default::default() }
}

pub fn privileged(handle: &str, network: &str) -> ContainerSpec {
    ContainerSpec { privileged: true, ..spec(handle, network) }
}

/// Ask from a container: see `net.c`.
pub async fn ask(client: &Client, handle: &str, how: &str, address: impl ToString, port: u16) -> String {
    let [address, port] = at(&address, port);
    sh(client, handle, &format!("net {how} {address} {port}")).await.out.trim_end().to_owned()
}

/// Answer in a container as `handle`, on TCP and UDP.
pub async fn serve(client: &Client, handle: &str, port: u16) {
    let spec = script(&format!("exec net serve {handle} {port}"));
    drop(client.run(handle, &spec, listen()).await.unwrap());
}

/// Whether an address answers a ping.
pub async fn pings(client: &Client, handle: &str, address: impl ToString) -> bool {
    let done = sh(client, handle, &format!("ping -c 1 -W 2 {}", address.to_string())).await;
    assert!(!done.err.contains("denied") && !done.err.contains("permitted"), "{done:?}");
    done.code == 0
}

#[tokio::test]
async fn from_a_container_to_everywhere() {
    let mut server = Server::networked(&[]).await;
    server.world().listen(PORT);
    let client = server.client();
    let alice = container(&server, spec("alice", "")).await;
    let bob = container(&server, privileged("bob", "")).await;
    let shared = "10.9.0.0/24";
    let carol = container(&server, spec("carol", shared)).await;
    let dave = container(&server, privileged("dave", shared)).await;
    assert_eq!([alice, bob].map(|ip| ip.to_string()), ["10.254.0.2", "10.254.0.6"]);
    assert_eq!([carol, dave].map(|ip| ip.to_string()), ["10.9.0.2", "10.9.0.3"]);
    let all = [("alice", alice), ("bob", bob), ("carol", carol), ("dave", dave)];
    for (handle, _) in all {
        serve(&client, handle, PORT).await;
    }
    for (handle, own) in all {
        let out = format!("ok from {HOST}");
        for address in [INTERNET, INTERNET_2, NEIGHBOUR] {
            assert_eq!(ask(&client, handle, "tcp", address, PORTS[0]).await, out, "{handle} {address}");
            assert_eq!(ask(&client, handle, "udp", address, PORTS[0]).await, out, "{handle} {address}");
            assert!(pings(&client, handle, address).await, "{handle} {address}");
        }
        let info = client.info(handle).await.unwrap();
        for address in [HOST, &info.host_ip, "10.254.0.1", "10.9.0.1"] {
            assert_eq!(ask(&client, handle, "tcp", address, PORT).await, REFUSED, "{handle} {address}");
            assert_eq!(ask(&client, handle, "udp", address, PORT).await, REFUSED, "{handle} {address}");
            assert!(!pings(&client, handle, address).await, "{handle} {address}");
        }
        for (other, address) in all {
            let answer = ask(&client, handle, "tcp", address, PORT).await;
            assert!(answer.starts_with(&format!("ok {other} from ")), "{handle} {other}: {answer}");
            // Neighbours see each other's own addresses.
            let beside = [["carol", "dave"], ["dave", "carol"]].contains(&[handle, other]);
            assert!(!beside || answer.ends_with(&own.to_string()), "{handle} {other}: {answer}");
            let answer = ask(&client, handle, "udp", address, PORT).await;
            assert!(answer.starts_with(&format!("ok {other} from ")), "{handle} {other}: {answer}");
            assert!(pings(&client, handle, address).await, "{handle} {other}");
        }
        let loopback = ask(&client, handle, "tcp", "127.0.0.1", PORT).await;
        assert_eq!(loopback, format!("ok {handle} from 127.0.0.1"));
        assert!(pings(&client, handle, "localhost").await && pings(&client, handle, handle).await);
        // A pea has the container's network.
        let image = server.image().to_str().unwrap().to_owned();
        let ask = format!("net tcp {INTERNET} 80; net tcp {HOST} {PORT}; net tcp 127.0.0.1 {PORT}");
        let said = run(&client, handle, &pea(&image, &ask)).await;
        assert_eq!(said.out, format!("{out}\n{REFUSED}\nok {handle} from 127.0.0.1\n"), "{said:?}");
    }
    // The host reaches containers; the internet has no way to them but mapped ports.
    for (handle, ip) in all {
        let answer = server.world().host(&["tcp", &ip.to_string(), &PORT.to_string()]);
        assert!(answer.starts_with(&format!("ok {handle} from ")), "{answer}");
    }
    server.finish().await;
}

#[tokio::test]
async fn with_host_access_the_host_answers() {
    let mut server = Server::networked(&["--allow-host-access"]).await;
    server.world().listen(PORT);
    let client = server.client();
    for spec in [spec("alice", ""), privileged("bob", "10.9.0.7/24")] {
        let handle = spec.handle.clone();
        let ip = container(&server, spec).await;
        let gateway = client.info(&handle).await.unwrap().host_ip;
        for address in [HOST, &gateway] {
            for how in ["tcp", "udp"] {
                let answer = ask(&client, &handle, how, address, PORT).await;
                assert_eq!(answer, format!("ok host from {ip}"), "{handle} {how} {address}");
            }
            assert!(pings(&client, &handle, address).await);
        }
    }
    server.finish().await;
}

#[tokio::test]
async fn a_mapped_port_is_reached_from_everywhere() {
    let mut server = Server::networked(&[]).await;
    let client = server.client();
    let both = |port| NetIn { host_port: port, container_port: PORT.into(), protocol: String::new() };
    let alice = ContainerSpec { netin: vec![both(0), both(5000)], ..spec("alice", "10.9.0.0/24") };
    container(&server, alice).await;
    container(&server, privileged("bob", "10.9.0.0/24")).await;
    container(&server, spec("carol", "")).await;
    for handle in ["alice", "bob", "carol"] {
        serve(&client, handle, PORT).await;
    }
    let info = client.info("alice").await.unwrap();
    let ports: Vec<u32> = info.mapped_ports.unwrap().iter().map(|port| port.host_port).collect();
    assert_eq!((ports, info.external_ip.as_str()), (vec![61001, 5000], HOST));
    assert_eq!(net_in(&server, "bob", 0, PORT), Ok((61002, PORT)));
    // Wardian's own: UDP, also beside TCP on the same port.
    let udp = format!(r#"{{"handle":"bob","host_port":61002,"container_port":{PORT},"protocol":"udp"}}"#);
    assert_eq!(post(&server, "bob/net/in", &udp).unwrap()["protocol"], "udp");
    // Port 0 inside is the same as outside.
    assert_eq!(net_in(&server, "carol", 7001, 0), Ok((7001, 7001)));
    serve(&client, "carol", 7001).await;
    for (port, how, answers) in [
        (61001, "tcp", "alice"),
        (5000, "tcp", "alice"),
        (61002, "tcp", "bob"),
        (61002, "udp", "bob"),
        (7001, "tcp", "carol"),
    ] {
        let question = [how, HOST, &port.to_string()];
        let ok = format!("ok {answers} from ");
        // Who asks from outside is seen with its own address.
        assert_eq!(server.world().internet(&question), format!("{ok}{NEIGHBOUR}"), "{port}");
        let answer = server.world().host(&question);
        assert!(answer.starts_with(&ok), "{port}: {answer}");
        for handle in ["alice", "bob", "carol"] {
            let answer = ask(&client, handle, how, HOST, port).await;
            assert!(answer.starts_with(&ok), "{handle} {how} {port}: {answer}");
        }
    }
    // Only on the external address, and only the protocol that was asked for.
    assert_eq!(server.world().internet(&["udp", HOST, "61001"]), "ECONNREFUSED");
    let gateway = client.info("bob").await.unwrap().host_ip;
    assert_eq!(ask(&client, "bob", "tcp", &gateway, 61001).await, REFUSED);
    // Whoever reads the ruleset sees whose the mappings are.
    let rules = server.world().sh("nft list ruleset");
    let of_alice =
        rules.lines().filter(|line| line.contains("5000") && line.contains("comment \"alice\"")).count();
    assert_eq!(of_alice, 1, "{rules}");
    // With the container the mapping goes.
    client.destroy("alice").await.unwrap();
    assert_eq!(server.world().internet(&["tcp", HOST, "5000"]), "ECONNREFUSED");
    assert_eq!(ask(&client, "bob", "tcp", HOST, 5000).await, REFUSED);
    assert_eq!(net_in(&server, "bob", 5000, PORT), Ok((5000, PORT)));
    assert!(server.world().internet(&["tcp", HOST, "5000"]).starts_with("ok bob"));
    server.finish().await;
}

#[tokio::test]
async fn ipv6_is_beside_ipv4() {
    let mut server = Server::networked(&["--network-pool-v6", "fd00:1::/96"]).await;
    server.world().listen(PORT);
    let client = server.client();
    container(&server, spec("alice", "")).await;
    container(&server, privileged("bob", "")).await;
    container(&server, spec("carol", "10.9.0.0/24")).await;
    container(&server, spec("dave", "10.9.0.0/24")).await;
    let all = [
        ("alice", "fd00:1::afe:2"),
        ("bob", "fd00:1::afe:6"),
        ("carol", "fd00:1::a09:2"),
        ("dave", "fd00:1::a09:3"),
    ];
    for (handle, ip) in all {
        let info = client.info(handle).await.unwrap();
        let told: IpAddr = info.container_ipv6.parse().unwrap();
        assert_eq!(told, ip.parse::<IpAddr>().unwrap());
        assert_eq!(info.properties.unwrap()["garden.network.container-ipv6"], info.container_ipv6);
        serve(&client, handle, PORT).await;
    }
    for (handle, _) in all {
        for how in ["tcp", "udp"] {
            assert_eq!(ask(&client, handle, how, INTERNET_V6, 80).await, format!("ok from {HOST_V6}"));
            assert_eq!(ask(&client, handle, how, INTERNET, 80).await, format!("ok from {HOST}"));
            assert_eq!(ask(&client, handle, how, HOST_V6, PORT).await, REFUSED_V6, "{handle}");
            for (other, ip) in all {
                let answer = ask(&client, handle, how, ip, PORT).await;
                assert!(answer.starts_with(&format!("ok {other} from ")), "{handle} {how} {other}: {answer}");
            }
        }
        assert!(pings(&client, handle, INTERNET_V6).await);
        let hosts = sh(&client, handle, "cat /etc/hosts").await.out;
        assert!(hosts.contains("::1 localhost\n") && hosts.lines().count() == 4, "{hosts}");
    }
    server.finish().await;
}

#[tokio::test]
async fn without_a_network_nothing_of_it_can_be_had() {
    let mut server = Server::start().await;
    let client = server.create("c").await;
    assert_eq!(sh(&client, "c", "ls /sys/class/net").await.out, "lo\n");
    assert!(pings(&client, "c", "localhost").await && pings(&client, "c", "c").await);
    let none = "containers have no network here; start the server without --network none";
    let asked = [
        (spec("x", "10.9.0.0/24"), "an address"),
        (ContainerSpec { netin: vec![NetIn::default()], ..spec("x", "") }, "a port mapping"),
        (ContainerSpec { netout_rules: vec![Default::default()], ..spec("x", "") }, "an egress rule"),
    ];
    for (spec, what) in asked {
        let error = client.create(&spec).await.unwrap_err().to_string();
        assert!(error.contains(&format!("{what}: {none}")), "{error}");
    }
    for (path, body) in [("net/in", "{}"), ("net/out", "{}"), ("net/out/bulk", "[{}]")] {
        let error = post(&server, &format!("c/{path}"), body).unwrap_err();
        assert!(error.contains("network"), "{path}: {error}");
    }
    let info = client.info("c").await.unwrap();
    assert_eq!((info.container_ip.as_str(), info.host_ip.as_str(), info.external_ip.as_str()), ("", "", ""));
    // The flag is stronger than the environment.
    assert!(server.terminate().await.success());
    server.env = vec![(NETWORK.to_owned(), "bridge".to_owned())];
    server.args = vec!["--network".into(), "none".into()];
    server.restart().await;
    let error = end(client.run("c", &script("ip route"), listen()).await.unwrap()).await;
    assert_eq!(error.out, "");
    server.finish().await;
}
