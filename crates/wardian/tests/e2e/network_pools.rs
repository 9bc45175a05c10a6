//! Addresses and ports: who gets which, what is refused and in which words, and that nothing of a refused create stays.

use crate::network_reach::{ask, pings, serve, spec};
use crate::support::{STUCK, Server, names};
use crate::world::{HOST, container, net_in, post};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use wardian_garden::wire::{ContainerSpec, NetIn};

/// What the firewall knows of containers: the elements of its sets, without counters of anything.
pub fn rules(server: &mut Server) -> Vec<String> {
    let text = server.world().sh("nft -s list ruleset");
    let mut words: Vec<String> =
        text.split(['\n', ',', '{', '}']).map(|word| word.trim().to_owned()).collect();
    // Flows are counted until the kernel has forgotten them.
    words.retain(|word| !word.is_empty() && !word.contains("ct count over") && word != "elements =");
    // Sets have no order.
    words.sort_unstable();
    words
}

/// Bridges of subnets that no container has, which are kept for the next ones, are left out.
fn bridges(server: &mut Server) -> BTreeSet<String> {
    let links = server.world().links();
    links.into_iter().filter(|link| link.starts_with("wbrdg-") && !link.starts_with("wbrdg-0afe")).collect()
}

/// Why a create fails, of which nothing may stay.
pub async fn refused(server: &mut Server, spec: ContainerSpec) -> String {
    let (rules_before, bridges_before) = (rules(server), bridges(server));
    let containers = names(&server.run().join("containers")).len();
    let made = server.client().create(&spec).await;
    let error = made.err().unwrap_or_else(|| panic!("it must fail: {spec:?}")).to_string();
    // What is left of it is removed behind the answer.
    let started = Instant::now();
    loop {
        let clean = rules(server) == rules_before
            && bridges(server) == bridges_before
            // What an earlier one has left may go meanwhile.
            && names(&server.run().join("containers")).len() <= containers;
        if clean {
            return error;
        }
        assert!(started.elapsed() < Duration::from_secs(3), "{spec:?}: something is left\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn addresses_that_cannot_be_given() {
    let mut server = Server::networked(&["--network-pool", "10.254.0.0/29"]).await;
    let client = server.client();
    assert_eq!(client.capacity().await.unwrap().max_containers, 2);
    assert_eq!(container(&server, spec("a", "")).await.to_string(), "10.254.0.2");
    assert_eq!(container(&server, spec("b", "")).await.to_string(), "10.254.0.6");
    assert_eq!(container(&server, spec("c", "10.9.0.0/30")).await.to_string(), "10.9.0.2");
    assert_eq!(container(&server, spec("d", "10.9.1.77/24")).await.to_string(), "10.9.1.77");
    assert_eq!(container(&server, spec("e", "10.9.2.6")).await.to_string(), "10.9.2.6");
    for (network, says) in [
        ("", "insufficient subnets remaining in the pool"),
        ("10.9.0.0/30", "insufficient IPs remaining in the pool"),
        ("10.9.1.77/24", "the requested IP is already allocated"),
        ("10.9.2.6", "the requested IP is already allocated"),
        ("10.9.1.1/24", "a container IP must not equal the gateway IP"),
        ("10.9.1.255/24", "a container IP must not equal the broadcast IP"),
        ("10.9.0.0/24", "the requested subnet (10.9.0.0/24) overlaps an existing subnet (10.9.0.0/30)"),
        ("10.9.1.0/25", "the requested subnet (10.9.1.0/25) overlaps an existing subnet (10.9.1.0/24)"),
        (
            "10.254.0.0/24",
            "the requested subnet (10.254.0.0/24) overlaps the dynamic allocation range (10.254.0.0/29)",
        ),
        (
            "10.254.0.2",
            "the requested subnet (10.254.0.0/30) overlaps the dynamic allocation range (10.254.0.0/29)",
        ),
        ("10.9.0.0/33", "invalid CIDR address: 10.9.0.0/33"),
        ("not-a-network", "invalid CIDR address: not-a-network"),
        ("10.9.0.300", "invalid CIDR address: 10.9.0.300"),
        ("fd00::1/64", "the requested network (fd00::1/64) is IPv6"),
        ("127.0.0.1/8", "127.0.0.0/8"),
        (
            "10.77.0.0/24",
            "the requested subnet (10.77.0.0/24) overlaps a network of the host (10.77.0.0/24 on uplink)",
        ),
        (
            "10.77.0.4/30",
            "the requested subnet (10.77.0.4/30) overlaps a network of the host (10.77.0.0/24 on uplink)",
        ),
        (
            "10.77.0.2/16",
            "the requested subnet (10.77.0.0/16) overlaps a network of the host (10.77.0.0/24 on uplink)",
        ),
    ] {
        let error = refused(&mut server, spec("x", network)).await;
        assert!(error.contains(says), "{network}: {error}");
    }
    // Whoever goes makes room, at once.
    for round in 0..5 {
        client.destroy("a").await.unwrap();
        assert_eq!(container(&server, spec("a", "")).await.to_string(), "10.254.0.2", "{round}");
        client.destroy("d").await.unwrap();
        assert_eq!(container(&server, spec("d", "10.9.1.77/24")).await.to_string(), "10.9.1.77", "{round}");
        client.destroy("c").await.unwrap();
        let network = if round % 2 == 0 { "10.9.0.0/24" } else { "10.9.0.0/30" };
        container(&server, spec("c", network)).await;
        for handle in ["a", "c", "d"] {
            assert_eq!(ask(&client, handle, "tcp", "8.8.8.8", 80).await, format!("ok from {HOST}"));
        }
    }
    server.finish().await;
}

#[tokio::test]
async fn ports_that_cannot_be_given() {
    let args = ["--port-pool-start", "6000", "--port-pool-size", "3"];
    let mut server = Server::networked(&args).await;
    let client = server.client();
    let port = |host_port| NetIn { host_port, container_port: 8080, protocol: String::new() };
    let with = |handle: &str, ports: &[u32]| ContainerSpec {
        netin: ports.iter().map(|host| port(*host)).collect(),
        ..spec(handle, "")
    };
    container(&server, with("a", &[0])).await;
    container(&server, with("b", &[])).await;
    serve(&client, "b", 8080).await;
    assert_eq!(net_in(&server, "b", 0, 8080), Ok((6001, 8080)));
    for ports in [&[6000][..], &[7777, 6001], &[0, 0], &[0, 6000]] {
        let error = refused(&mut server, with("x", ports)).await;
        assert!(
            error.contains("6000") || error.contains("6001") || error.contains("port pool is exhausted"),
            "{error}"
        );
    }
    assert_eq!(net_in(&server, "b", 0, 8080), Ok((6002, 8080)));
    assert!(net_in(&server, "b", 0, 8080).unwrap_err().contains("port pool is exhausted"));
    assert!(refused(&mut server, with("x", &[0])).await.contains("port pool is exhausted"));
    assert!(net_in(&server, "b", 6000, 8080).is_err());
    for body in [r#"{"host_port":70000,"container_port":1}"#, r#"{"host_port":1,"container_port":65536}"#] {
        let error = post(&server, "b/net/in", body).unwrap_err();
        assert!(error.contains("70000") || error.contains("65536"), "{error}");
    }
    // A port that goes comes back last.
    client.destroy("a").await.unwrap();
    assert_eq!(net_in(&server, "b", 0, 8080), Ok((6000, 8080)));
    assert!(server.world().internet(&["tcp", HOST, "6000"]).starts_with("ok b"));
    assert!(net_in(&server, "b", 0, 8080).is_err());
    assert!(server.terminate().await.success());
    server.args = ["--port-pool-start", "65000", "--port-pool-size", "600"].map(str::to_owned).to_vec();
    let output = server.command().stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("port"), "{said}");
    server.args = args.map(str::to_owned).to_vec();
    server.restart().await;
    server.finish().await;
}

/// Neighbours come and go, and whoever stays does not notice.
#[tokio::test]
async fn a_shared_subnet_lives_as_long_as_somebody_is_in_it() {
    let mut server = Server::networked(&[]).await;
    let client = server.client();
    container(&server, spec("stays", "10.9.0.0/24")).await;
    serve(&client, "stays", 8080).await;
    for round in 0..5 {
        let handle = format!("n{round}");
        let ip = container(&server, spec(&handle, "10.9.0.0/24")).await;
        assert!(ask(&client, &handle, "tcp", "10.9.0.2", 8080).await.ends_with(&ip.to_string()));
        client.destroy(&handle).await.unwrap();
        assert_eq!(ask(&client, "stays", "tcp", "8.8.8.8", 80).await, format!("ok from {HOST}"));
    }
    client.destroy("stays").await.unwrap();
    let started = Instant::now();
    while !bridges(&mut server).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", bridges(&mut server));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    container(&server, spec("again", "10.9.0.0/16")).await;
    assert!(pings(&client, "again", "8.8.8.8").await);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_share_no_subnet() {
    const MANY: usize = 30;
    let mut server = Server::networked(&[]).await;
    let before = rules(&mut server);
    for round in 0..2 {
        let mut creates = tokio::task::JoinSet::new();
        for n in 0..MANY {
            let client = server.client();
            creates.spawn(async move {
                let netin = vec![NetIn { container_port: 8080, ..NetIn::default() }];
                client.create(&ContainerSpec { netin, ..spec(&format!("c{n}"), "") }).await.unwrap();
                let info = client.info(&format!("c{n}")).await.unwrap();
                (info.container_ip, info.host_ip, info.mapped_ports.unwrap()[0].host_port)
            });
        }
        let given = creates.join_all().await;
        for number in 0..3 {
            let distinct: BTreeSet<String> = given
                .iter()
                .map(|(ip, host, port)| [ip.clone(), host.clone(), port.to_string()][number].clone())
                .collect();
            assert_eq!(distinct.len(), MANY, "{round}: {given:?}");
        }
        let client = server.client();
        for n in [0, MANY / 2, MANY - 1] {
            assert_eq!(ask(&client, &format!("c{n}"), "tcp", "8.8.8.8", 80).await, format!("ok from {HOST}"));
        }
        let mut destroys = tokio::task::JoinSet::new();
        for n in 0..MANY {
            let client = server.client();
            destroys.spawn(async move { client.destroy(&format!("c{n}")).await.unwrap() });
        }
        destroys.join_all().await;
        assert_eq!(rules(&mut server), before);
        // The kernel removes their links by itself.
        let veths =
            |server: &mut Server| server.world().sh("ip -o link show type veth | grep ' master ' || true");
        let started = Instant::now();
        while !veths(&mut server).is_empty() {
            assert!(started.elapsed() < STUCK.min(Duration::from_secs(10)), "{}", veths(&mut server));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    server.finish().await;
}
