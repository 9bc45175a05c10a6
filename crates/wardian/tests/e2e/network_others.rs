//! What other programs do to the host's network while a server runs and while there is none: links that they delete or
//! set down, another address of the host, routes from router advertisements, ports that they listen on.

use crate::network_reach::{ask, serve, spec};
use crate::support::{STUCK, Server};
use crate::world::{HOST, INTERNET, INTERNET_V6, address, container, net_in};
use std::time::{Duration, Instant};
use wardian_garden::Client;
use wardian_garden::wire::{ContainerSpec, NetIn};

const SHARED: &str = "10.9.0.0/24";
const PORT: u16 = 8080;

/// Waits until something holds that the server has to bring about.
async fn until(what: &str, server: &Server, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < STUCK, "{what}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The host's end of a container's link.
async fn link(client: &Client, handle: &str) -> String {
    client.info(handle).await.unwrap().properties.unwrap()["kawasaki.host-interface"].clone()
}

async fn reaches(client: &Client, handle: &str) -> bool {
    ask(client, handle, "tcp", INTERNET, 80).await == format!("ok from {HOST}")
}

/// Three containers, two of them neighbours.
async fn three(server: &Server) -> Client {
    for (handle, network) in [("alone", ""), ("one", SHARED), ("two", SHARED)] {
        container(server, spec(handle, network)).await;
        serve(&server.client(), handle, PORT).await;
    }
    server.client()
}

async fn all_works(server: &Server, what: &str) {
    let client = server.client();
    let two = address(&client, "two").await;
    until(what, server, async || {
        let neighbours = ask(&client, "one", "tcp", two, PORT).await.starts_with("ok two");
        neighbours && reaches(&client, "one").await && reaches(&client, "alone").await
    })
    .await;
}

#[tokio::test]
async fn links_that_others_take_away_are_made_again() {
    let mut server = Server::networked(&[]).await;
    let client = three(&server).await;
    let (alone, one) = (link(&client, "alone").await, link(&client, "one").await);
    let told = |server: &Server| server.log().matches("network.link-restored").count();
    for (script, restored) in [
        ("ip link del wbrdg-0a090000".to_owned(), 3),
        ("ip link set wbrdg-0afe0000 down".to_owned(), 1),
        (format!("ip link set {one} nomaster"), 1),
        (format!("ip link set {alone} down"), 1),
        ("ip link del wbrdg-0afe0000; ip link del wbrdg-0a090000".to_owned(), 5),
    ] {
        let before = told(&server);
        server.world().sh(&script);
        until(&script, &server, async || told(&server) >= before + restored).await;
        all_works(&server, &script).await;
        assert_eq!(told(&server), before + restored, "{script}\n{}", server.log());
    }
    // While there is no server. The first packet after its start passes.
    for script in [
        "ip link del wbrdg-0a090000; ip link set wbrdg-0afe0000 down".to_owned(),
        format!("ip link set {one} nomaster"),
    ] {
        server.kill9();
        server.world().sh(&script);
        server.restart().await;
        assert!(
            reaches(&client, "one").await && reaches(&client, "alone").await,
            "{script}\n{}",
            server.log()
        );
        all_works(&server, &script).await;
    }
    // What was made by hand on the way is the server's to remove.
    for handle in ["alone", "one", "two"] {
        client.destroy(handle).await.unwrap();
    }
    let started = Instant::now();
    while server.world().links().contains(&"wbrdg-0a090000".to_owned()) {
        assert!(started.elapsed() < STUCK, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.finish().await;
}

#[tokio::test]
async fn creates_do_not_fail_for_links_that_others_have_deleted() {
    let mut server = Server::networked(&[]).await;
    let client = three(&server).await;
    for round in 0..2 {
        // Pairs and bridges that were made ahead: all but those that containers have.
        server.world().sh(
            "pairs=$(ip -o link show type veth | grep -v master | sed -n 's/^[0-9]*: \\(w[^@]*-0\\)@.*/\\1/p')
             bridges=$(ip -o link show type bridge | sed 's/^[0-9]*: \\([^:]*\\):.*/\\1/' | grep -v -e wbrdg-0afe0000 -e wbrdg-0a090000)
             test -n \"$pairs\" -a -n \"$bridges\"
             for link in $pairs $bridges; do ip link del $link; done",
        );
        for number in 0..3 {
            let handle = format!("new-{round}-{number}");
            container(&server, spec(&handle, "")).await;
            assert!(reaches(&client, &handle).await, "{handle}\n{}", server.log());
        }
    }
    all_works(&server, "those that were there").await;
    server.finish().await;
}

/// A container whose own link is gone cannot be helped, but whoever looks learns why it has no network.
#[tokio::test]
async fn a_container_that_is_cut_off_is_told() {
    let mut server = Server::networked(&[]).await;
    let client = three(&server).await;
    let gone = link(&client, "one").await;
    server.world().sh(&format!("ip link del {gone}"));
    let is_told = async || {
        let events = client.info("one").await.unwrap().events.unwrap_or_default();
        events.iter().any(|event| event.contains("network link is gone"))
    };
    until("info says so", &server, is_told).await;
    until("the log says so", &server, async || server.log().contains("network.cut-off")).await;
    server.kill9();
    server.restart().await;
    assert!(is_told().await);
    let events = client.info("two").await.unwrap().events.unwrap_or_default();
    assert!(events.is_empty(), "{events:?}");
    client.destroy("one").await.unwrap();
    // One that is destroyed as usual, or ends, is not taken for cut off.
    client.destroy("alone").await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(server.log().matches("network.cut-off").count(), 2, "{}", server.log());
    container(&server, spec("one", SHARED)).await;
    assert!(reaches(&client, "one").await);
    server.finish().await;
}

#[tokio::test]
async fn mapped_ports_follow_the_address_of_the_host() {
    let mut server = Server::networked(&[]).await;
    let client = server.client();
    let mapped = ContainerSpec {
        netin: vec![NetIn { host_port: 5000, container_port: PORT.into(), ..NetIn::default() }],
        ..spec("web", "")
    };
    container(&server, mapped).await;
    serve(&client, "web", PORT).await;
    let moves = |from: &str, to: &str| {
        format!(
            "ip addr add {to}/24 dev uplink; ip addr del {from}/24 dev uplink; ip addr add {to}/24 dev uplink 2>/dev/null || true
             ip route replace default via 10.77.0.1 src {to}"
        )
    };
    let known = async |server: &Server| server.client().info("web").await.unwrap().external_ip;
    server.world().sh(&moves(HOST, "10.77.0.9"));
    until("the new address", &server, async || known(&server).await == "10.77.0.9").await;
    assert!(server.world().internet(&["tcp", "10.77.0.9", "5000"]).starts_with("ok web"));
    // A later one is there, too.
    net_in(&server, "web", 5001, PORT).unwrap();
    assert!(server.world().internet(&["tcp", "10.77.0.9", "5001"]).starts_with("ok web"));
    assert!(server.log().contains("network.external-changed"), "{}", server.log());
    // While there is no server, and no default route at its start.
    server.kill9();
    server.world().sh(&moves("10.77.0.9", "10.77.0.10"));
    server.restart().await;
    for port in ["5000", "5001"] {
        assert!(
            server.world().internet(&["tcp", "10.77.0.10", port]).starts_with("ok web"),
            "{}",
            server.log()
        );
    }
    until("the record", &server, async || known(&server).await == "10.77.0.10").await;
    server.kill9();
    server.world().sh("ip route del default");
    server.restart().await;
    assert_eq!(known(&server).await, "10.77.0.10");
    server.world().sh("ip route add default via 10.77.0.1");
    assert!(server.world().internet(&["tcp", "10.77.0.10", "5000"]).starts_with("ok web"));
    server.finish().await;
}

#[tokio::test]
async fn subnets_of_an_earlier_server_get_ipv6_with_the_setting() {
    let mut server = Server::networked(&[]).await;
    three(&server).await;
    // A route that a router has announced.
    let interface = "/proc/sys/net/ipv6/conf/uplink";
    let accepts =
        |server: &mut Server| server.world().sh(&format!("cat {interface}/accept_ra")).trim().to_owned();
    server.world().sh("ip -6 route add default via fd77::1 dev uplink proto ra metric 2000");
    assert_eq!(accepts(&mut server), "1");
    assert!(server.terminate().await.success());
    server.args = ["--network-pool-v6", "fd00:1::/96"].map(str::to_owned).to_vec();
    server.restart().await;
    assert!(server.log().contains("network.accept-ra"), "{}", server.log());
    assert_eq!(accepts(&mut server), "2");
    let client = server.client();
    // A new neighbour of those without IPv6, and one on a bridge that was made ahead by the earlier server.
    for (handle, network) in [("three", SHARED), ("four", "")] {
        container(&server, spec(handle, network)).await;
        let answer = ask(&client, handle, "tcp", INTERNET_V6, 80).await;
        assert!(answer.starts_with("ok from"), "{handle}: {answer}\n{}", server.log());
    }
    all_works(&server, "the earlier ones").await;
    // A bridge loses its IPv6 addresses when it is set down.
    server.world().sh("ip link set wbrdg-0a090000 down");
    until("IPv6 is there again", &server, async || {
        ask(&client, "three", "tcp", INTERNET_V6, 80).await.starts_with("ok from")
    })
    .await;
    server.finish().await;
}

#[tokio::test]
async fn what_will_not_work_is_told() {
    let mut server = Server::networked(&["--external-ip", "198.51.100.7"]).await;
    assert!(server.log().contains("network.external-elsewhere"), "{}", server.log());
    assert!(server.terminate().await.success());
    let before = server.log().len();
    server.args = ["--external-ip", HOST].map(str::to_owned).to_vec();
    server.restart().await;
    let later = |server: &Server| server.log().get(before..).unwrap_or_default().to_owned();
    assert!(!later(&server).contains("network.external-elsewhere"), "{}", later(&server));
    // A port on which a program of the host listens.
    server.world().listen(7777);
    container(&server, spec("web", "")).await;
    serve(&server.client(), "web", PORT).await;
    net_in(&server, "web", 7778, PORT).unwrap();
    assert!(!later(&server).contains("network.port-of-program"), "{}", later(&server));
    net_in(&server, "web", 7777, PORT).unwrap();
    assert!(later(&server).contains("network.port-of-program"), "{}", later(&server));
    assert!(server.world().internet(&["tcp", HOST, "7777"]).starts_with("ok web"));
    // A server that would leave the container without a firewall.
    assert!(server.terminate().await.success());
    let args = std::mem::replace(&mut server.args, ["--network", "none"].map(str::to_owned).to_vec());
    let output = server.command().stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("the container web of an earlier server is on a bridge"),
        "{said}"
    );
    server.args = args;
    server.restart().await;
    assert!(server.world().internet(&["tcp", HOST, "7777"]).starts_with("ok web"));
    server.finish().await;
}
