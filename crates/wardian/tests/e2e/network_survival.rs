//! Networks and the server's end: restarts in good order and without, settings that change, kills in the middle of a
//! create.

use crate::network_pools::rules;
use crate::network_reach::{REFUSED, ask, pings, serve, spec};
use crate::support::{STUCK, Server, names, sh};
use crate::world::{HOST, INTERNET, INTERNET_2, container, net_in, post};
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};
use wardian_garden::wire::{ContainerInfo, ContainerSpec, IpRange, NetIn, NetOutRule};
use wardian_sys::failpoint;

fn everything(handle: &str, network: &str, port: u32) -> ContainerSpec {
    let networks = vec![IpRange { start: INTERNET.into(), end: INTERNET.into() }];
    ContainerSpec {
        netin: vec![NetIn { host_port: port, container_port: 8080, ..NetIn::default() }],
        netout_rules: vec![NetOutRule { protocol: 1, networks, ..Default::default() }],
        ..spec(handle, network)
    }
}

async fn infos(server: &Server, handles: &[&str]) -> Vec<ContainerInfo> {
    let mut all = Vec::new();
    for handle in handles {
        all.push(server.client().info(handle).await.unwrap());
    }
    all
}

/// The network of both containers, as they were made.
async fn works(server: &mut Server, port: u16, what: &str) {
    let client = server.client();
    for handle in ["dynamic", "static"] {
        assert_eq!(
            ask(&client, handle, "tcp", INTERNET, 80).await,
            format!("ok from {HOST}"),
            "{what} {handle}"
        );
        assert_eq!(ask(&client, handle, "udp", INTERNET, 80).await, REFUSED, "{what} {handle}");
        assert_eq!(ask(&client, handle, "tcp", INTERNET_2, 80).await, REFUSED, "{what} {handle}");
        assert_eq!(ask(&client, handle, "tcp", HOST, 9999).await, REFUSED, "{what} {handle}");
    }
    for (port, handle) in [(61001, "dynamic"), (port, "static")] {
        let answer = server.world().internet(&["tcp", HOST, &port.to_string()]);
        assert!(answer.starts_with(&format!("ok {handle}")), "{what} {port}: {answer}");
    }
}

#[tokio::test]
async fn networks_survive_the_server() {
    let deny = ["--deny-network", "0.0.0.0/0"];
    let mut server = Server::networked(&deny).await;
    let client = server.client();
    container(&server, everything("dynamic", "", 0)).await;
    container(&server, everything("static", "10.9.0.5/24", 5000)).await;
    let handles = ["dynamic", "static"];
    for handle in handles {
        serve(&client, handle, 8080).await;
    }
    net_in(&server, "static", 0, 8080).unwrap();
    let known = infos(&server, &handles).await;
    for kill in [false, true, false, true] {
        let what = if kill { "killed" } else { "ended" };
        if kill {
            server.kill9();
        } else {
            assert!(server.terminate().await.success());
        }
        // Also while there is none.
        let answer = server.world().internet(&["tcp", HOST, "5000"]);
        assert!(answer.starts_with("ok static"), "{what}: {answer}");
        server.restart().await;
        assert_eq!(infos(&server, &handles).await, known, "{what}");
        works(&mut server, 5000, what).await;
        // Nothing that they have is given to somebody else.
        let taken = client.create(&spec("x", "10.9.0.5/24")).await.unwrap_err().to_string();
        assert!(taken.contains("the requested IP is already allocated"), "{taken}");
        let ip = container(&server, spec("new", "")).await;
        assert_ne!(ip.to_string(), known[0].container_ip);
        assert!(net_in(&server, "new", 5000, 8080).is_err() && net_in(&server, "new", 61001, 8080).is_err());
        let (port, _) = net_in(&server, "new", 0, 8080).unwrap();
        assert!(port > 61002, "{port}");
        client.destroy("new").await.unwrap();
    }
    // Other settings count for those that are there.
    for (args, opened, host) in [
        (vec![], "ok", "EHOSTUNREACH"),
        (vec!["--deny-network", "9.9.0.0/16", "--allow-host-access"], REFUSED, "ok"),
        (deny.to_vec(), REFUSED, "EHOSTUNREACH"),
    ] {
        server.kill9();
        server.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        server.restart().await;
        let answer = ask(&client, "static", "tcp", INTERNET_2, 80).await;
        assert!(answer.starts_with(opened), "{args:?}: {answer}");
        let gateway = pings(&client, "static", "10.9.0.1").await;
        assert_eq!(gateway, host == "ok", "{args:?}");
    }
    // What was destroyed before a kill is free afterwards.
    client.destroy("static").await.unwrap();
    server.kill9();
    server.restart().await;
    container(&server, everything("static", "10.9.0.5/24", 5000)).await;
    serve(&client, "static", 8080).await;
    works(&mut server, 5000, "again").await;
    server.finish().await;
}

#[tokio::test]
async fn a_server_that_is_to_destroy_all_removes_their_networks() {
    for kill in [false, true] {
        let mut server = Server::networked(&[]).await;
        container(&server, everything("dynamic", "", 0)).await;
        container(&server, everything("static", "10.9.0.5/24", 5000)).await;
        if kill {
            server.kill9();
        } else {
            assert!(server.terminate().await.success());
        }
        server.args = vec!["--destroy-containers-on-startup".into()];
        server.restart().await;
        let client = server.client();
        let started = Instant::now();
        while !client.list(&Default::default()).await.unwrap().is_empty() {
            assert!(started.elapsed() < STUCK);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let rules = rules(&mut server).join("\n");
        assert!(!rules.contains("10.9.0.5") && !rules.contains("10.254.0.2"), "{rules}");
        while server.world().links().contains(&"wbrdg-0a090000".to_owned()) {
            assert!(started.elapsed() < STUCK, "{:?}", server.world().links());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        container(&server, everything("static", "10.9.0.5/24", 5000)).await;
        container(&server, everything("dynamic", "", 0)).await;
        server.finish().await;
    }
}

/// Kill the server at each point of a create.
#[tokio::test]
async fn a_create_that_is_cut_off_leaves_no_network() {
    let mut server = Server::networked(&["--deny-network", "0.0.0.0/0"]).await;
    container(&server, everything("static", "10.8.0.5/24", 5001)).await;
    container(&server, everything("dynamic", "", 0)).await;
    for handle in ["dynamic", "static"] {
        serve(&server.client(), handle, 8080).await;
    }
    let veths = |server: &mut Server| {
        server.world().sh("ip -o link show type veth | grep -c ' master ' || true").trim().to_owned()
    };
    let before = rules(&mut server);
    let all = [wardian_engine::FAILPOINTS, wardian_server::FAILPOINTS].concat();
    let points: Vec<&str> = all.into_iter().filter(|name| name.starts_with("create.")).collect();
    assert!(points.contains(&"create.connected"));
    for point in points {
        server.kill9();
        server.env = vec![(failpoint::VARIABLE.to_owned(), point.to_owned())];
        server.restart().await;
        server.client().create(&everything("victim", "10.9.0.5/24", 5000)).await.unwrap_err();
        let status = server.ended().await;
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        server.env.clear();
        server.restart().await;
        let client = server.client();
        let listed = client.list(&Default::default()).await.unwrap().contains(&"victim".to_owned());
        assert_eq!(listed, matches!(point, "create.committed" | "create.replying"), "{point}");
        if listed {
            // Whole, though nobody has been told.
            serve(&client, "victim", 8080).await;
            assert!(server.world().internet(&["tcp", HOST, "5000"]).starts_with("ok victim"), "{point}");
            assert_eq!(
                ask(&client, "victim", "tcp", INTERNET, 80).await,
                format!("ok from {HOST}"),
                "{point}"
            );
            client.destroy("victim").await.unwrap();
        }
        let started = Instant::now();
        loop {
            let links = server.world().links();
            let left = (
                rules(&mut server) != before,
                veths(&mut server) != "2",
                links.contains(&"wbrdg-0a090000".into()),
            );
            if left == (false, false, false) {
                break;
            }
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{point}: {left:?} {links:?}\n{:#?}\n{before:#?}",
                rules(&mut server)
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(names(&server.run().join("containers")).len(), 2, "{point}");
        // Nothing of it is in the way of another one.
        container(&server, everything("victim", "10.9.0.5/24", 5000)).await;
        assert_eq!(ask(&client, "victim", "tcp", INTERNET, 80).await, format!("ok from {HOST}"), "{point}");
        client.destroy("victim").await.unwrap();
        works(&mut server, 5001, point).await;
    }
    server.finish().await;
}

/// A reset removes what a server has left that was killed.
#[tokio::test]
async fn a_reset_removes_the_network() {
    let mut server = Server::networked(&[]).await;
    container(&server, everything("static", "10.9.0.5/24", 5000)).await;
    container(&server, everything("dynamic", "", 0)).await;
    post(&server, "static/net/out", "{}").unwrap();
    assert_eq!(sh(&server.client(), "static", "true").await.code, 0);
    server.kill9();
    assert!(!server.world().left().is_empty());
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", server.world().path())).arg(crate::support::WARDIAN);
    command.args(["reset", "--yes", "--root"]).arg(server.root()).arg("--run").arg(server.run());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let started = Instant::now();
    while !server.world().left().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", server.world().left());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.restart().await;
    server.finish().await;
}
