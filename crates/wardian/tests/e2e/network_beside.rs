//! Beside Docker's rules: chains of iptables in both of its forms, with the policy that drops what they do not know, the
//! remedy that `doctor` names, and flushes by others.

use crate::network_commands::in_world;
use crate::network_reach::{ask, pings, serve, spec};
use crate::support::Server;
use crate::world::{HOST, INTERNET, NEIGHBOUR, container, net_in};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wardian_needs::needs;

/// A container of Docker's on its bridge, as a namespace `$1` with an address that answers as `docker`.
const DOCKER0: &str = "
    ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up
    ip link add vethd type veth peer name eth0 netns $1; ip link set vethd master docker0; ip link set vethd up
    pid=$1; inside() { nsenter --net=/proc/$pid/ns/net \"$@\"; }
    inside ip link set lo up; inside ip addr add 172.17.0.2/16 dev eth0; inside ip link set eth0 up
    inside ip route add default via 172.17.0.1
";
/// What dockerd sets up (moby, daemon/libnetwork/drivers/bridge/setup_ip_tables_linux.go), with port 8081 mapped.
const RULES: &str = "
    IPT -N DOCKER; IPT -N DOCKER-ISOLATION-STAGE-1; IPT -N DOCKER-ISOLATION-STAGE-2; IPT -N DOCKER-USER
    IPT -A DOCKER-USER -j RETURN
    IPT -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
    IPT -A DOCKER-ISOLATION-STAGE-1 -j RETURN
    IPT -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP; IPT -A DOCKER-ISOLATION-STAGE-2 -j RETURN
    IPT -A FORWARD -j DOCKER-USER; IPT -A FORWARD -j DOCKER-ISOLATION-STAGE-1
    IPT -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    IPT -A FORWARD -o docker0 -j DOCKER
    IPT -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; IPT -A FORWARD -i docker0 -o docker0 -j ACCEPT
    IPT -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
    IPT -P FORWARD DROP
    IPT -t nat -N DOCKER
    IPT -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
    IPT -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
    IPT -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
    IPT -t nat -A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
    IPT -t nat -A DOCKER -i docker0 -j RETURN
    IPT -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.17.0.2:80
";
const WITHOUT_RULES: &str = "
    IPT -P FORWARD ACCEPT; IPT -F; IPT -X; IPT -t nat -F; IPT -t nat -X
";

/// Something that runs as long as the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The namespace of Docker's container, and what answers in it.
fn docker(server: &mut Server) -> [Running; 2] {
    let holder =
        Command::new("unshare").args(["-n", "setpriv", "--pdeathsig", "KILL", "sleep", "1000"]).spawn();
    let holder = Running(holder.unwrap());
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let inside = format!("/proc/{}/ns/net", holder.0.id());
    while std::fs::read_link(&inside).unwrap() == own {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.world().sh(&format!("set -- {}\n{DOCKER0}", holder.0.id()));
    let mut serves = Command::new("nsenter");
    serves
        .arg(format!("--net={inside}"))
        .args(["setpriv", "--pdeathsig", "KILL"])
        .arg(server.world().probe());
    let serves = serves.args(["serve", "docker", "80"]).stdout(Stdio::null()).spawn().unwrap();
    [holder, Running(serves)]
}

/// What works of the network of a container of ours, `web`, whose port 5000 is mapped: the way out in TCP, UDP and by
/// ping, and the mapped port from outside and from a container of another subnet.
async fn ours(server: &mut Server) -> [bool; 5] {
    let client = server.client();
    let out = format!("ok from {HOST}");
    // At the same time: what gets no answer takes seconds.
    let (tcp, udp, ping, other) = tokio::join!(
        ask(&client, "web", "tcp", INTERNET, 80),
        ask(&client, "web", "udp", INTERNET, 80),
        pings(&client, "web", INTERNET),
        ask(&client, "other", "tcp", HOST, 5000),
    );
    let outside = server.world().internet(&["tcp", HOST, "5000"]);
    [tcp == out, udp == out, ping, outside == format!("ok web from {NEIGHBOUR}"), other.starts_with("ok web")]
}

/// The same of Docker's: its way out, its mapped port from outside.
fn dockers(server: &mut Server, container: &Running) -> [bool; 2] {
    let mut ask = Command::new("nsenter");
    ask.arg(format!("--net=/proc/{}/ns/net", container.0.id())).arg(server.world().probe());
    let said = ask.args(["tcp", INTERNET, "80"]).output().unwrap().stdout;
    [
        String::from_utf8_lossy(&said).trim_end() == format!("ok from {HOST}"),
        server.world().internet(&["tcp", HOST, "8081"]) == format!("ok docker from {NEIGHBOUR}"),
    ]
}

/// The chains that `doctor` warns of, with their remedies.
fn warned(server: &mut Server) -> Vec<(String, String)> {
    let run = server.run().display().to_string();
    let said = in_world(server, &["doctor", "--json", "--no-measure", "--run", &run]);
    let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    let text = |hazard: &Value, key: &str| hazard[key].as_str().unwrap().to_owned();
    let all = report["hazards"].as_array().unwrap().iter();
    let foreign = all.filter(|hazard| hazard["id"] == "foreign-firewall");
    foreign.map(|hazard| (text(hazard, "evidence"), text(hazard, "remedy"))).collect()
}

/// Applies what `doctor` says.
fn remedy(server: &mut Server, program: &str) {
    let all = warned(server);
    let [(evidence, remedy)] = &all[..] else { panic!("{program}: {all:?}") };
    assert!(evidence.contains("FORWARD"), "{evidence}");
    let commands = &remedy[remedy.find("iptables").unwrap_or_else(|| panic!("{remedy}"))..];
    server.world().sh(commands);
    assert_eq!(warned(server), [], "{program}");
}

async fn until_ours_works(server: &mut Server, what: &str) {
    let started = Instant::now();
    loop {
        let state = ours(server).await;
        if state == [true; 5] {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{what}: {state:?}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn containers_are_reached_beside_dockers_rules() {
    needs!(Nftables, Cni);
    for program in ["iptables-nft", "iptables-legacy"] {
        let mut server = Server::networked(&[]).await;
        let lists = server.world().sh(&format!("{program} -w -L -n >/dev/null 2>&1 && echo yes || echo no"));
        if lists.trim() == "no" {
            assert_eq!(program, "iptables-legacy", "its package has both");
            eprintln!("{program}: not in this kernel");
            server.finish().await;
            continue;
        }
        let client = server.client();
        container(&server, spec("web", "")).await;
        container(&server, spec("other", "10.9.0.0/24")).await;
        serve(&client, "web", 8080).await;
        net_in(&server, "web", 5000, 8080).unwrap();
        assert_eq!(ours(&mut server).await, [true; 5], "{program}");
        let [inside, serves] = docker(&mut server);
        let rules = |text: &str| text.replace("IPT", &format!("{program} -w"));
        server.world().sh(&rules(RULES));
        assert_eq!(dockers(&mut server, &inside), [true; 2], "{program}");
        // What it does not know is dropped, by its policy.
        assert_eq!(ours(&mut server).await, [false; 5], "{program}");
        remedy(&mut server, program);
        assert_eq!(ours(&mut server).await, [true; 5], "{program}");
        assert_eq!(dockers(&mut server, &inside), [true; 2], "{program}");
        // Docker's mapped port, from a container of ours.
        assert!(ask(&client, "web", "tcp", HOST, 8081).await.starts_with("ok docker"), "{program}");

        // A server that ends and starts again changes nothing of it.
        server.kill9();
        server.restart().await;
        assert_eq!(ours(&mut server).await, [true; 5], "{program}");
        assert_eq!(dockers(&mut server, &inside), [true; 2], "{program}");

        // Who flushes the chains leaves the policy, and takes the remedy with them: doctor names it again.
        server.world().sh(&rules("IPT -F"));
        assert_eq!(ours(&mut server).await, [false; 5], "{program}");
        remedy(&mut server, program);
        assert_eq!(ours(&mut server).await, [true; 5], "{program}");
        // Neither the flush of their addresses nor that of all their chains touches ours.
        server.world().sh(&rules("IPT -t nat -F; IPT -t nat -X; IPT -P FORWARD ACCEPT; IPT -F; IPT -X"));
        assert_eq!(ours(&mut server).await, [true; 5], "{program}");
        assert_eq!(warned(&mut server), [], "{program}");

        // `nft flush ruleset` takes all tables of nft: ours come back, and what is legacy has stayed.
        server.world().sh(&rules(RULES));
        remedy(&mut server, program);
        server.world().sh("nft flush ruleset");
        until_ours_works(&mut server, program).await;
        assert!(server.log().contains("network.firewall-restored"), "{program}");
        let stays = program == "iptables-legacy";
        assert_eq!(dockers(&mut server, &inside)[1], stays, "{program}");
        // Docker starts again and makes its chains anew, the remedy is missing.
        if stays {
            server.world().sh(&rules(WITHOUT_RULES));
        }
        server.world().sh(&rules(RULES));
        assert_eq!(ours(&mut server).await, [false; 5], "{program}");
        remedy(&mut server, program);
        assert_eq!(ours(&mut server).await, [true; 5], "{program}");
        assert_eq!(dockers(&mut server, &inside), [true; 2], "{program}");

        server.world().sh(&rules(WITHOUT_RULES));
        drop(serves);
        server.world().sh("ip link delete docker0; for t in filter nat; do nft delete table ip $t 2>/dev/null || true; done");
        drop(inside);
        server.finish().await;
    }
}
