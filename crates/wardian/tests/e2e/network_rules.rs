//! What containers may send: denied networks and the holes in them, forged packets, a firewall that somebody flushes.

use crate::network_reach::{REFUSED, ask, pings, privileged, serve, spec};
use crate::support::{STUCK, Server, say, sh};
use crate::world::{HOST, INTERNET, INTERNET_2, container, net_in, post};
use std::time::{Duration, Instant};
use wardian_garden::wire::{ContainerSpec, IpRange, NetOutRule, PortRange};

fn net(start: &str, end: &str) -> IpRange {
    IpRange { start: start.into(), end: end.into() }
}

/// A rule for TCP.
fn tcp(address: &str, port: u16) -> NetOutRule {
    let ports = vec![PortRange { start: port, end: port }];
    NetOutRule { protocol: 1, networks: vec![net(address, address)], ports, ..Default::default() }
}

/// What a container hears of port 80 in TCP and UDP, port 443, and whether a ping comes back.
async fn probes(server: &Server, handle: &str, address: &str) -> [String; 4] {
    let client = server.client();
    let ping = if pings(&client, handle, address).await { "ok" } else { "no" };
    let answer = |text: String| text.split(' ').next().unwrap().to_owned();
    [
        answer(ask(&client, handle, "tcp", address, 80).await),
        answer(ask(&client, handle, "tcp", address, 443).await),
        answer(ask(&client, handle, "udp", address, 80).await),
        ping.to_owned(),
    ]
}

#[tokio::test]
async fn denied_networks_have_holes() {
    let args = ["--deny-network", "0.0.0.0/0", "--allow-network", "9.9.9.9/32"];
    let mut server = Server::networked(&args).await;
    let client = server.client();
    let born = ContainerSpec { netout_rules: vec![tcp(INTERNET, 80)], ..spec("born", "10.9.0.0/24") };
    let (born, beside, alone) = (
        container(&server, born).await,
        container(&server, privileged("beside", "10.9.0.0/24")).await,
        container(&server, spec("alone", "")).await,
    );
    for handle in ["born", "beside", "alone"] {
        serve(&client, handle, 80).await;
        assert_eq!(
            probes(&server, handle, INTERNET_2).await,
            ["ok", REFUSED, "ok", "ok"].map(|answer| if answer == REFUSED { "ok" } else { answer })
        );
    }
    assert_eq!(probes(&server, "born", INTERNET).await, ["ok", REFUSED, REFUSED, "no"]);
    assert_eq!(probes(&server, "beside", INTERNET).await, [REFUSED, REFUSED, REFUSED, "no"]);
    assert_eq!(probes(&server, "alone", INTERNET).await, [REFUSED, REFUSED, REFUSED, "no"]);
    // A subnet is open within itself; another one is denied like anything else.
    assert!(ask(&client, "born", "tcp", beside, 80).await.starts_with("ok beside"));
    assert_eq!(ask(&client, "born", "tcp", alone, 80).await, REFUSED);
    assert_eq!(ask(&client, "alone", "udp", born, 80).await, REFUSED);
    // Neither do mapped ports lead around it, but what comes from outside is answered.
    net_in(&server, "beside", 5000, 80).unwrap();
    assert_eq!(ask(&client, "alone", "tcp", HOST, 5000).await, REFUSED);
    assert!(ask(&client, "born", "tcp", HOST, 5000).await.starts_with("ok beside"));
    assert!(server.world().internet(&["tcp", HOST, "5000"]).starts_with("ok beside"));

    // One more hole, and several at once.
    let rule = r#"{"protocol":2,"networks":[{"start":"8.8.8.0","end":"8.8.8.255"}],"ports":[{"start":1,"end":100}]}"#;
    post(&server, "born/net/out", rule).unwrap();
    assert_eq!(probes(&server, "born", INTERNET).await, ["ok", REFUSED, "ok", "no"]);
    let bulk = r#"[{"protocol":3,"icmps":{"type":8,"code":0}},{"protocol":1,"ports":[{"start":443}]}]"#;
    post(&server, "born/net/out/bulk", bulk).unwrap();
    assert_eq!(probes(&server, "born", INTERNET).await, ["ok", "ok", "ok", "ok"]);
    // Nobody else has them.
    assert_eq!(probes(&server, "beside", INTERNET).await, [REFUSED, REFUSED, REFUSED, "no"]);
    post(&server, "beside/net/out/bulk", "[{}]").unwrap();
    assert_eq!(probes(&server, "beside", INTERNET).await, ["ok", "ok", "ok", "ok"]);
    assert!(ask(&client, "beside", "tcp", alone, 80).await.starts_with("ok alone"));
    post(&server, "alone/net/out/bulk", "[]").unwrap();
    assert_eq!(probes(&server, "alone", INTERNET).await, [REFUSED, REFUSED, REFUSED, "no"]);

    for (rule, says) in [
        (r#"{"protocol":0,"ports":[{"start":1,"end":2}]}"#, "Ports cannot be specified for Protocol ALL"),
        (r#"{"protocol":3,"ports":[{"start":1,"end":2}]}"#, "Ports cannot be specified for Protocol ICMP"),
        (r#"{"protocol":9}"#, "invalid protocol: 9"),
        (r#"{"networks":[{"start":"8.8.8"}]}"#, "\"8.8.8\" is no IP address"),
    ] {
        for (path, body) in [("net/out", rule.to_owned()), ("net/out/bulk", format!("[{{}},{rule}]"))] {
            let error = post(&server, &format!("alone/{path}"), &body).unwrap_err();
            assert!(error.contains(says), "{rule}: {error}");
        }
        let body = format!(r#"{{"handle":"x","netout_rules":[{rule}]}}"#);
        let reply = server.http("POST /containers", "Content-Type: application/json\r\n", &body);
        assert!(reply.contains("500 Internal") && reply.contains(&says.replace('"', "\\\"")), "{reply}");
    }
    // A rule beside one that is refused is not there either.
    assert_eq!(probes(&server, "alone", INTERNET).await, [REFUSED, REFUSED, REFUSED, "no"]);
    for handle in ["alone", "beside", "born"] {
        client.destroy(handle).await.unwrap();
    }
    server.finish().await;
}

#[tokio::test]
async fn rules_with_logging_tell_of_connections() {
    let server = Server::networked(&["--deny-network", "0.0.0.0/0", "--nflog-group", "7"]).await;
    let mut server = server;
    let client = server.client();
    container(&server, spec("logged-container-with-a-long-name", "")).await;
    let rule = NetOutRule { log: true, ..tcp(INTERNET, 80) };
    let rule = serde_json::to_string(&rule).unwrap();
    let handle = "logged-container-with-a-long-name";
    post(&server, &format!("{handle}/net/out"), &rule).unwrap();
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", server.world().path())).arg(server.world().probe());
    let mut child = command.args(["log", "7"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    assert_eq!(ask(&client, handle, "tcp", INTERNET, 80).await, format!("ok from {HOST}"));
    assert_eq!(ask(&client, handle, "tcp", INTERNET, 443).await, REFUSED);
    // One line a connection, that begins with the handle's first 28 characters.
    let said = lines.next().unwrap().unwrap();
    assert!(said.starts_with("logged-container-with-a-long"), "{said}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(lines.count(), 0);
    server.finish().await;
}

#[tokio::test]
async fn forged_packets_do_not_get_out() {
    let mut server = Server::networked(&[]).await;
    let client = server.client();
    let (shared, mut all) = ("10.9.0.0/24", Vec::new());
    for spec in [
        spec("alice", shared),
        privileged("bob", shared),
        privileged("carol", shared),
        privileged("dave", ""),
    ] {
        let handle = spec.handle.clone();
        let ip = container(&server, spec).await;
        all.push((handle, ip));
    }
    let link = |handle: &str| {
        let (client, handle) = (client.clone(), handle.to_owned());
        async move { client.property(&handle, "kawasaki.container-interface").await.unwrap() }
    };
    for (forger, own) in &all {
        let before = server.world().heard().len();
        let send = |source: &str| format!("net spoof {source} {INTERNET} 80");
        // Its own address: this is how it would be heard.
        say(&client, forger, &send(&own.to_string())).await;
        let started = Instant::now();
        while server.world().heard().len() == before {
            assert!(started.elapsed() < STUCK);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = server.world().heard().len();
        let others = all.iter().map(|(_, ip)| ip.to_string()).filter(|ip| *ip != own.to_string());
        let foreign = ["1.2.3.4", HOST, INTERNET_2, "127.0.0.1", "10.9.0.1", "10.254.0.1", "10.9.0.77"];
        for source in others.chain(foreign.map(str::to_owned)) {
            // Some the kernel refuses to send, too.
            sh(&client, forger, &send(&source)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(server.world().heard()[before..], Vec::<String>::new()[..], "{forger}");
    }
    // Nobody believes in addresses that are somebody else's.
    for (_, ip) in &all {
        for handle in ["alice", "bob", "carol"] {
            assert!(pings(&client, handle, ip).await);
        }
    }
    let neighbours =
        || async { say(&client, "alice", "sed 1d /proc/net/arp | sort | tr -s ' ' | cut -d' ' -f1,4").await };
    let before = neighbours().await;
    assert!(before.lines().count() >= 2, "{before}");
    let eth = link("bob").await;
    for claimed in ["10.9.0.1", "10.9.0.2", "10.9.0.4"] {
        assert_eq!(say(&client, "bob", &format!("net arp {eth} {claimed}")).await, "ok sent");
    }
    assert_eq!(neighbours().await, before);
    let host = server.world().sh("ip neigh");
    let mac = say(&client, "bob", &format!("cat /sys/class/net/{eth}/address")).await;
    assert!(
        host.lines().filter(|line| line.contains(&mac)).all(|line| line.starts_with("10.9.0.3 ")),
        "{host}"
    );
    // With another address of its own a privileged container gets nowhere.
    let taken = format!("ip addr add 10.9.0.4/24 dev {eth}; ping -c 1 -W 1 -I 10.9.0.4 {INTERNET}");
    assert_ne!(sh(&client, "bob", &taken).await.code, 0);
    let other = format!("ip link set {eth} address 02:00:00:00:00:99; ping -c 1 -W 1 {INTERNET}");
    assert_ne!(sh(&client, "bob", &other).await.code, 0);
    for handle in ["alice", "carol", "dave"] {
        assert_eq!(ask(&client, handle, "tcp", INTERNET, 80).await, format!("ok from {HOST}"));
    }
    assert!(pings(&client, "alice", "10.9.0.4").await);
    server.finish().await;
}

#[tokio::test]
async fn a_firewall_that_somebody_flushes_comes_back() {
    let mut server = Server::networked(&["--deny-network", "8.8.8.8"]).await;
    let client = server.client();
    let hole = ContainerSpec { netout_rules: vec![tcp(INTERNET, 80)], ..spec("hole", "") };
    container(&server, hole).await;
    container(&server, spec("plain", "")).await;
    serve(&client, "plain", 8080).await;
    net_in(&server, "plain", 5000, 8080).unwrap();
    let tables = server.world().sh("nft list tables");
    assert_eq!(tables.lines().count(), 2, "{tables}");
    let inet =
        tables.lines().find(|line| line.contains("inet")).unwrap().trim_start_matches("table ").to_owned();
    for damage in [
        "nft flush ruleset".to_owned(),
        format!("nft flush table {inet}"),
        format!("nft delete table {inet}"),
        format!("nft flush set {inet} members4"),
        format!("nft flush chain {inet} default"),
        format!("nft flush map {inet} mapped4"),
    ] {
        server.world().sh(&damage);
        let started = Instant::now();
        loop {
            let denied = ask(&client, "plain", "tcp", INTERNET, 80).await == REFUSED;
            let open = ask(&client, "hole", "tcp", INTERNET, 80).await == format!("ok from {HOST}");
            let other = ask(&client, "plain", "tcp", INTERNET_2, 80).await == format!("ok from {HOST}");
            let mapped = server.world().internet(&["tcp", HOST, "5000"]).starts_with("ok plain");
            if denied && open && other && mapped {
                break;
            }
            let state = [denied, open, other, mapped];
            assert!(started.elapsed() < Duration::from_secs(10), "{damage}: {state:?}\n{}", server.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    assert!(server.log().contains("network.firewall-restored"));
    // Meanwhile, too, containers come and go.
    server.world().sh("nft flush ruleset");
    client.destroy("hole").await.unwrap();
    container(&server, spec("new", "")).await;
    server.finish().await;
}
