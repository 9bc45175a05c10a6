//! IPv6 beyond plain ways out: mapped ports of an external address that is IPv6, and what containers may forge.

use crate::network_reach::{REFUSED_V6, ask, pings, privileged, serve, spec};
use crate::support::{STUCK, Server, end, init, listen, message, pea, say, sh};
use crate::world::{HOST, HOST_V6, INTERNET_V6, container, net_in, post};
use std::process::Command;
use std::time::{Duration, Instant};
use wardian_garden::Client;
use wardian_garden::wire::{ContainerSpec, NetIn};

const PORT: u16 = 8080;
/// The host's neighbour at the uplink.
const NEIGHBOUR_V6: &str = "fd77::1";
const POOL: [&str; 2] = ["--network-pool-v6", "fd00:1::/96"];

/// With an external address that is IPv6, mapped ports are of IPv6, and work from everywhere as those of IPv4 do.
#[tokio::test]
async fn a_mapped_port_of_ipv6_is_reached_from_everywhere() {
    let deny = ["--external-ip", HOST_V6, "--deny-network", "fd00:1::a08:0/112"];
    let mut server = Server::networked(&[&POOL[..], &deny].concat()).await;
    let client = server.client();
    let netin = vec![NetIn { host_port: 5000, container_port: PORT.into(), protocol: String::new() }];
    container(&server, ContainerSpec { netin, ..spec("alice", "10.9.0.0/24") }).await;
    container(&server, privileged("bob", "10.9.0.0/24")).await;
    container(&server, spec("carol", "")).await;
    container(&server, spec("denied", "10.8.0.5/24")).await;
    let all = ["alice", "bob", "carol", "denied"];
    for handle in all {
        serve(&client, handle, PORT).await;
    }
    let udp = r#"{"handle":"bob","host_port":5001,"container_port":8080,"protocol":"udp"}"#;
    post(&server, "bob/net/in", udp).unwrap();
    assert_eq!(net_in(&server, "denied", 5002, PORT), Ok((5002, PORT)));
    assert_eq!(client.info("alice").await.unwrap().external_ip, HOST_V6);
    for (how, port, answers) in [("tcp", "5000", "alice"), ("udp", "5001", "bob"), ("tcp", "5002", "denied")]
    {
        let ok = format!("ok {answers} from ");
        let question = [how, HOST_V6, port];
        assert_eq!(server.world().internet(&question), format!("{ok}{NEIGHBOUR_V6}"), "{port}");
        let answer = server.world().host(&question);
        assert!(answer.starts_with(&ok), "{port}: {answer}");
        for handle in all {
            let question = async || ask(&client, handle, how, HOST_V6, port.parse().unwrap()).await;
            let mut answer = question().await;
            // An error may be missed: the kernel limits their rate, and a new address sends none (RFC 4443, RFC 4862).
            if answer == "timeout" {
                answer = question().await;
            }
            // The policy goes by the address behind the mapping, and a subnet is open within itself.
            let open = answers != "denied" || handle == "denied";
            let expected = if open { &*ok } else { REFUSED_V6 };
            assert!(answer.starts_with(expected), "{handle} {how} {port}: {answer}");
        }
        let image = server.image().to_str().unwrap().to_owned();
        let asks = pea(&image, &format!("net {how} {HOST_V6} {port}"));
        let said = end(client.run(answers, &asks, listen()).await.unwrap()).await;
        assert!(said.out.starts_with(&ok), "{port}: {said:?}");
    }
    // Neither the other protocol, nor the host's other address, nor the gateway's.
    assert_eq!(server.world().internet(&["udp", HOST_V6, "5000"]), "ECONNREFUSED");
    assert_eq!(server.world().internet(&["tcp", HOST, "5000"]), "ECONNREFUSED");
    assert_eq!(ask(&client, "bob", "tcp", "fd00:1::a09:1", 5000).await, REFUSED_V6);
    client.destroy("alice").await.unwrap();
    assert_eq!(server.world().internet(&["tcp", HOST_V6, "5000"]), "ECONNREFUSED");
    assert_eq!(ask(&client, "bob", "tcp", HOST_V6, 5000).await, REFUSED_V6);
    server.finish().await;
}

/// The links of containers, and what others on a link believe: no address has another MAC address than before.
struct Neighbours {
    client: Client,
    handles: Vec<String>,
}

impl Neighbours {
    async fn link(&self, handle: &str) -> String {
        self.client.property(handle, "kawasaki.container-interface").await.unwrap()
    }

    async fn mac(&self, handle: &str) -> String {
        let link = self.link(handle).await;
        say(&self.client, handle, &format!("cat /sys/class/net/{link}/address")).await
    }

    /// Which address is at which MAC address, for a container or the host.
    fn table(shown: &str) -> Vec<String> {
        let words = |line: &str| -> Option<String> {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mac = words.iter().position(|word| *word == "lladdr").map(|at| words[at + 1])?;
            Some(format!("{} {mac}", words[0]))
        };
        let mut all: Vec<String> = shown.lines().filter_map(words).collect();
        all.sort();
        all
    }

    /// What somebody believes that the forger has claimed of others' addresses.
    async fn deceived(&self, server: &mut Server, forger: &str, own: &[String]) -> Vec<String> {
        let mac = self.mac(forger).await;
        let mut shown = server.world().sh("ip -6 neigh");
        for handle in self.handles.iter().filter(|handle| *handle != forger) {
            shown += &format!("\n{}", say(&self.client, handle, "ip -6 neigh").await);
        }
        let all = Self::table(&shown).into_iter();
        all.filter(|line| line.ends_with(&mac) && !own.iter().any(|own| line.starts_with(&format!("{own} "))))
            .collect()
    }

    /// Addresses and routes of all but the forger.
    async fn settings(&self, forger: &str) -> Vec<String> {
        let mut all = Vec::new();
        for handle in self.handles.iter().filter(|handle| *handle != forger) {
            let look = "ip -6 addr | grep inet6; ip -6 route | sed 's/ expires.*//'";
            all.push(say(&self.client, handle, look).await);
        }
        all
    }
}

#[tokio::test]
async fn forged_packets_of_ipv6_disturb_nobody() {
    let mut server = Server::networked(&POOL).await;
    let client = server.client();
    let shared = "10.9.0.0/24";
    let specs = [spec("alice", shared), spec("bob", shared), privileged("carol", shared), spec("dave", "")];
    let mut all = Vec::new();
    for spec in specs {
        let handle = spec.handle.clone();
        container(&server, spec).await;
        let address = client.info(&handle).await.unwrap().container_ipv6;
        serve(&client, &handle, PORT).await;
        all.push((handle, address));
    }
    let net = Neighbours {
        client: client.clone(),
        handles: all.iter().map(|(handle, _)| handle.clone()).collect(),
    };
    let gateway = "fd00:1::a09:1";

    // Sources: the container's own is heard, no other one is.
    for (forger, own) in &all {
        let send = |source: &str| format!("net spoof {source} {INTERNET_V6} 80");
        let before = server.world().heard().len();
        assert_eq!(say(&client, forger, &send(own)).await, "ok sent");
        let started = Instant::now();
        while server.world().heard().len() < before + 5 {
            assert!(started.elapsed() < STUCK, "{:?}", server.world().heard());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = server.world().heard().len();
        let others = all.iter().map(|(_, ip)| ip.clone()).filter(|ip| ip != own);
        let foreign = ["2001:db8::77", HOST_V6, gateway, "fd00:1::a09:77", "fe80::1", "::ffff:1.2.3.4"];
        for source in others.chain(foreign.map(str::to_owned)) {
            // Some the kernel refuses to send, too.
            sh(&client, forger, &send(&source)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(server.world().heard()[before..], Vec::<String>::new()[..], "{forger}");
    }

    // Everybody knows everybody, and the host knows all.
    for (handle, _) in &all {
        for (_, ip) in &all {
            assert!(pings(&client, handle, ip).await, "{handle} {ip}");
        }
        assert!(pings(&client, handle, INTERNET_V6).await);
    }
    // Neighbour discovery: an unprivileged forger, then one that is root on its link.
    for forger in ["bob", "carol"] {
        let link = net.link(forger).await;
        let shown = say(&client, forger, &format!("ip -6 addr show {link}")).await;
        let own: Vec<String> = shown
            .lines()
            .filter_map(|line| line.trim().strip_prefix("inet6 ")?.split('/').next())
            .map(str::to_owned)
            .collect();
        assert_eq!(own.len(), 2, "{shown}");
        let before = net.settings(forger).await;
        let victims = all.iter().filter(|(handle, _)| handle != forger).map(|(_, ip)| ip.as_str());
        let targets: Vec<&str> = victims.chain([gateway, "fe80::1"]).collect();
        for target in &targets {
            for source in [own[0].as_str(), own[1].as_str(), target] {
                for kind in ["na", "ns", "redirect"] {
                    let claim = format!("net nd {link} {kind} {source} {target}");
                    assert_eq!(say(&client, forger, &claim).await, "ok sent");
                }
            }
        }
        for source in ["fe80::1", own[0].as_str(), own[1].as_str()] {
            let claim = format!("net nd {link} ra {source} 2001:db8:bad::");
            assert_eq!(say(&client, forger, &claim).await, "ok sent");
        }
        assert_eq!(net.deceived(&mut server, forger, &own).await, Vec::<String>::new(), "{forger}");
        assert_eq!(net.settings(forger).await, before, "{forger}");
        for (handle, ip) in &all {
            assert_eq!(ask(&client, handle, "tcp", INTERNET_V6, 80).await, format!("ok from {HOST_V6}"));
            for asks in ["alice", "dave"] {
                let answer = ask(&client, asks, "tcp", ip, PORT).await;
                assert!(answer.starts_with(&format!("ok {handle} from ")), "{asks} {handle}: {answer}");
            }
        }
    }
    // Without the bridge's table the same claims are believed: it is the table that stops them.
    let victim = all[0].1.clone();
    let link = net.link("bob").await;
    let bob = init(&server, "bob").await;
    let dave_asks = init(&server, "carol").await;
    let neighbours = |pid: u32| {
        let shown = Command::new("nsenter")
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .args(["ip", "-6", "neigh"])
            .output();
        Neighbours::table(&String::from_utf8_lossy(&shown.unwrap().stdout))
    };
    let mac = net.mac("bob").await;
    let claimed = format!("{victim} {mac}");
    assert!(!neighbours(dave_asks).contains(&claimed));
    let table = server.group();
    // The server would make it anew.
    crate::support::signal(server.pid(), rustix::process::Signal::STOP);
    server.world().sh(&format!("nft delete table bridge {table}"));
    let forged = Command::new("nsenter")
        .arg(format!("--net=/proc/{bob}/ns/net"))
        .arg(server.world().probe())
        .args(["nd", &link, "na", &victim, &victim])
        .output()
        .unwrap();
    assert!(forged.status.success(), "{forged:?}");
    let believed = neighbours(dave_asks);
    crate::support::signal(server.pid(), rustix::process::Signal::CONT);
    assert!(believed.contains(&claimed), "{believed:?}");
    server.finish().await;
}

/// A mapping that could lead nowhere is refused.
#[tokio::test]
async fn an_external_address_of_ipv6_needs_ipv6() {
    let server = Server::networked(&["--external-ip", HOST_V6]).await;
    let netin = vec![NetIn { host_port: 5000, container_port: PORT.into(), protocol: String::new() }];
    let said = message(server.client().create(&ContainerSpec { netin, ..spec("a", "") }).await);
    assert!(said.contains("--network-pool-v6"), "{said}");
    server.finish().await;
}
