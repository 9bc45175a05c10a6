//! What a container sees of its network: links, files, limits of what it may change.

use crate::network_reach::{REFUSED, ask, pings, privileged, serve, spec};
use crate::support::{Server, message, run, say, script, sh};
use crate::world::{HOST, INTERNET, INTERNET_2, container};
use wardian_garden::wire::{BandwidthLimits, ContainerSpec, Limits};

#[tokio::test]
async fn an_unprivileged_container_owns_its_network_and_no_more() {
    let mut server = Server::networked(&[]).await;
    let client = server.client();
    container(&server, spec("c", "")).await;
    let properties = client.properties("c").await.unwrap();
    let inside = properties["kawasaki.container-interface"].clone();
    let outside = properties["kawasaki.host-interface"].clone();
    let bridge = properties["kawasaki.bridge-interface"].clone();
    assert_eq!(bridge, "wbrdg-0afe0000");
    assert!(
        inside.strip_suffix("-1") == outside.strip_suffix("-0") && inside.len() == 14,
        "{inside} {outside}"
    );
    let links = server.world().links();
    assert!(links.contains(&outside) && links.contains(&bridge) && !links.contains(&inside), "{links:?}");
    assert_eq!(say(&client, "c", "ls /sys/class/net").await, format!("lo\n{inside}"));
    assert_eq!(
        say(&client, "c", "ip route").await.lines().next().unwrap(),
        format!("default via 10.254.0.1 dev {inside} ")
    );
    assert_eq!(say(&client, "c", &format!("ip -o addr show {inside} | wc -l")).await, "1");

    // A port below 1024.
    serve(&client, "c", 80).await;
    assert_eq!(ask(&client, "c", "tcp", "10.254.0.2", 80).await, "ok c from 10.254.0.2");
    assert!(pings(&client, "c", INTERNET).await);

    for forbidden in [
        &format!("echo 1280 > /sys/class/net/{inside}/mtu"),
        "mkdir /sys/class/net/x",
        "echo 99 > /proc/sys/net/ipv4/ip_default_ttl",
        "echo 1 > /proc/sys/net/ipv4/conf/all/accept_redirects",
        &format!("ip link set {inside} down"),
        &format!("ip link set {inside} mtu 1280"),
        &format!("ip addr add 10.254.0.9/30 dev {inside}"),
        "ip route add 1.2.3.0/24 via 10.254.0.1",
        "ip link add x type bridge",
    ] {
        let done = sh(&client, "c", forbidden).await;
        assert_ne!(done.code, 0, "{forbidden}: {done:?}");
    }
    assert_eq!(server.world().sh("cat /proc/sys/net/ipv4/ip_default_ttl").trim(), "64");
    assert_eq!(server.world().sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert_eq!(ask(&client, "c", "tcp", INTERNET, 80).await, format!("ok from {HOST}"));
    server.finish().await;
}

#[tokio::test]
async fn hosts_and_resolv_conf() {
    let args = [
        "--dns-server=8.8.8.8",
        "--dns-server=9.9.9.9",
        "--additional-dns-server=1.2.3.4",
        "--additional-host-entry=10.0.0.5 cell",
        "--additional-host-entry=10.0.0.6 other  # as it is",
    ];
    let server = Server::networked(&args).await;
    let client = server.client();
    let handle = "a-handle-of-more-than-the-forty-nine-characters-that-a-line-has";
    let short = &handle[handle.len() - 49..];
    for spec in [spec(handle, ""), privileged("p", "")] {
        let handle = spec.handle.clone();
        let ip = container(&server, spec).await;
        let name = if handle == "p" { "p" } else { short };
        let hosts = say(&client, &handle, "cat /etc/hosts").await;
        assert_eq!(
            hosts,
            format!("127.0.0.1 localhost\n{ip} {name}\n10.0.0.5 cell\n10.0.0.6 other  # as it is")
        );
        let resolv = say(&client, &handle, "cat /etc/resolv.conf").await;
        assert_eq!(resolv, "nameserver 8.8.8.8\nnameserver 9.9.9.9\nnameserver 1.2.3.4");
        assert!(pings(&client, &handle, name).await);
        let found = say(&client, &handle, "nslookup garden.example").await;
        assert!(found.contains(INTERNET_2), "{found}");
        for file in ["/etc/hosts", "/etc/resolv.conf"] {
            let mut write = script(&format!("echo mine >> {file}"));
            write.user = "vcap".into();
            let done = run(&client, &handle, &write).await;
            assert!(done.code == 1 && done.err.contains("Permission denied"), "{done:?}");
            let mine = say(&client, &handle, &format!("echo 8.8.8.8 mine > {file}; cat {file}")).await;
            assert_eq!(mine, "8.8.8.8 mine");
        }
        assert!(pings(&client, &handle, "mine").await);
    }
    server.finish().await;
}

#[tokio::test]
async fn names_may_be_asked_of_the_host() {
    let mut server = Server::networked(&["--dns-server", HOST, "--deny-network", "0.0.0.0/0"]).await;
    for port in [53, 54] {
        server.world().listen(port);
    }
    let client = server.client();
    let ip = container(&server, spec("c", "")).await;
    for how in ["tcp", "udp"] {
        assert_eq!(ask(&client, "c", how, HOST, 53).await, format!("ok host from {ip}"));
        assert_eq!(ask(&client, "c", how, HOST, 54).await, REFUSED);
    }
    server.finish().await;
}

#[tokio::test]
async fn the_largest_packet() {
    let mut server = Server::networked(&[]).await;
    let client = server.client();
    for (mtu, args, expected) in [
        ("1500", vec![], "1500"),
        ("1450", vec![], "1450"),
        ("1450", vec!["--mtu", "1300"], "1300"),
        ("9000", vec![], "1500"),
    ] {
        server.world().sh(&format!("ip link set uplink mtu {mtu}"));
        assert!(server.terminate().await.success());
        server.args = args.into_iter().map(str::to_owned).collect();
        server.restart().await;
        container(&server, spec("c", "")).await;
        let properties = client.properties("c").await.unwrap();
        assert_eq!(properties["kawasaki.mtu"], expected);
        let inside = format!("cat /sys/class/net/{}/mtu", properties["kawasaki.container-interface"]);
        assert_eq!(say(&client, "c", &inside).await, expected);
        for link in ["kawasaki.host-interface", "kawasaki.bridge-interface"] {
            let shown = server.world().sh(&format!("ip -o link show {}", properties[link]));
            assert!(shown.contains(&format!(" mtu {expected} ")), "{shown}");
        }
        client.destroy("c").await.unwrap();
    }
    server.finish().await;
}

#[tokio::test]
async fn bandwidth_is_bounded_and_told() {
    let server = Server::networked(&[]).await;
    let client = server.client();
    let bandwidth = BandwidthLimits { rate: 100_000, burst: 20_000 };
    let limits = Limits { bandwidth_limits: bandwidth.clone(), ..Default::default() };
    container(&server, ContainerSpec { limits, ..spec("slow", "") }).await;
    container(&server, spec("fast", "")).await;
    assert_eq!(client.bandwidth_limits("slow").await.unwrap(), bandwidth);
    assert_eq!(client.bandwidth_limits("fast").await.unwrap(), BandwidthLimits::default());
    for handle in ["slow", "fast"] {
        let served =
            "mkdir /tmp/www; dd if=/dev/zero of=/tmp/www/f bs=1000 count=300; httpd -p 9000 -h /tmp/www";
        assert_eq!(sh(&client, handle, served).await.code, 0);
    }
    // 300 KB at 100 KB/s, both ways.
    for (from, to) in [("slow", "10.254.0.6"), ("fast", "10.254.0.2")] {
        let started = std::time::Instant::now();
        let got = format!("wget -q -O - http://{to}:9000/f | wc -c");
        assert_eq!(say(&client, from, &got).await, "300000");
        let took = started.elapsed().as_secs_f64();
        assert!((2.3..12.0).contains(&took), "{from}: {took} s");
    }
    let moved = client.metrics("slow").await.unwrap().network_stat.unwrap();
    assert!(moved.rx_bytes > 300_000 && moved.tx_bytes > 300_000, "{moved:?}");
    client.destroy("slow").await.unwrap();
    let error = ContainerSpec {
        limits: Limits { bandwidth_limits: BandwidthLimits { rate: 0, burst: 1 }, ..Default::default() },
        ..spec("x", "")
    };
    assert!(message(client.create(&error).await).contains("needs a rate"));
    server.finish().await;
}
