//! The network on the command line: flags, `port`, `map`, `allow`, `ps`, `inspect`; what `doctor` and `reset` do about it.

use crate::cleaned::CLEANING;
use crate::cli::Said;
use crate::commands::{fails, ok};
use crate::network_reach::{REFUSED, ask, spec};
use crate::support::{Server, WARDIAN, sh};
use crate::world::{HOST, INTERNET, INTERNET_2, container};
use serde_json::Value;
use std::process::{Command, Stdio};
use wardian_needs::needs;

#[tokio::test]
async fn flags_and_commands_make_and_show_a_network() {
    needs!(Nftables, TrafficControl);
    let mut server = Server::networked(&["--deny-network", "0.0.0.0/0"]).await;
    let client = server.client();
    let flags = ["--network", "10.9.0.5/24", "--bandwidth", "10M", "--dns", "10.0.0.53", "-p", "5000:80"];
    let rules = ["--allow", "8.8.8.8:80", "--allow", "8.8.8.0/24/icmp"];
    let made = [&["create", "--name", "web"], &flags[..], &rules[..]].concat();
    assert_eq!(ok(&server, &made), "web\n");
    assert_eq!(sh(&client, "web", "cat /etc/resolv.conf").await.out, "nameserver 10.0.0.53\n");
    assert!(ask(&client, "web", "tcp", INTERNET, 80).await.starts_with("ok"));
    assert_eq!(ask(&client, "web", "tcp", INTERNET, 443).await, REFUSED);
    assert_eq!(ask(&client, "web", "udp", INTERNET, 80).await, REFUSED);

    assert_eq!(ok(&server, &["allow", "web", "9.9.9.9:80,443", "9.9.9.9:80/udp"]), "");
    assert!(ask(&client, "web", "tcp", INTERNET_2, 443).await.starts_with("ok"));
    assert!(ask(&client, "web", "udp", INTERNET_2, 80).await.starts_with("ok"));
    assert!(fails(&server, 2, &["allow", "web", "9.9.9.9:443/icmp"]).contains("icmp has no ports"));
    assert!(fails(&server, 1, &["allow", "web", "fd00::1"]).contains("IPv6"));

    assert_eq!(ok(&server, &["port", "web"]), format!("80/tcp -> {HOST}:5000\n"));
    let more = ok(&server, &["map", "web", "53:5353/udp", "90"]);
    let lines: Vec<&str> = more.lines().collect();
    assert_eq!(lines[0], format!("5353/udp -> {HOST}:53"));
    assert!(lines.len() == 2 && lines[1].starts_with(&format!("90/tcp -> {HOST}:61")), "{more}");
    assert_eq!(ok(&server, &["port", "web", "5353/udp"]), format!("{HOST}:53\n"));
    assert!(fails(&server, 1, &["port", "web", "5353"]).contains("`wardian map web 5353` makes one"));
    assert!(fails(&server, 2, &["port", "web", "5000:80"]).contains("name one port"));
    // Neither is mapped: of two targets the second would have no effect.
    let error = fails(&server, 1, &["map", "web", "7000:70", "5000:81"]);
    assert!(error.contains("port 5000/tcp of the host leads to port 80 of web already"), "{error}");
    assert_eq!(ok(&server, &["port", "web"]).lines().count(), 3);
    container(&server, spec("other", "")).await;
    assert!(fails(&server, 1, &["map", "other", "5000:80"]).contains("already mapped to another container"));
    for _ in 0..2 {
        assert_eq!(ok(&server, &["map", "other", "5001:80"]), format!("80/tcp -> {HOST}:5001\n"));
    }

    let table = ok(&server, &["ps"]);
    let row = table.lines().find(|line| line.ends_with(" web")).unwrap();
    assert!(row.contains("5000->80/tcp, 53->5353/udp"), "{table}");
    let listed: Value = serde_json::from_str(&ok(&server, &["ps", "--json"])).unwrap();
    let web = listed.as_array().unwrap().iter().find(|one| one["handle"] == "web").unwrap();
    assert_eq!((&web["address"], &web["external_address"]), (&"10.9.0.5".into(), &HOST.into()));
    assert_eq!(web["ipv6_address"], Value::Null);
    assert_eq!(web["ports"][1], serde_json::json!({"host": 53, "container": 5353, "protocol": "udp"}));
    let inspected: Value = serde_json::from_str(&ok(&server, &["inspect", "web"])).unwrap();
    assert_eq!(inspected["limits"]["bandwidth"]["rate"], 10 << 20);
    assert_eq!(inspected["info"]["Properties"]["wardian.network.dns"], "10.0.0.53");
    assert_eq!(inspected["info"]["MappedPorts"][0]["HostPort"], 5000, "{inspected}");
    let rules = inspected["egress_rules"].as_array().unwrap();
    let to = |ip: &str| serde_json::json!([{"start": ip, "end": ip}]);
    assert_eq!((rules.len(), &rules[0]["networks"]), (4, &to(INTERNET)));
    assert_eq!(rules[0]["ports"], serde_json::json!([{"start": 80, "end": 80}]));
    assert_eq!((&rules[3]["protocol"], &rules[3]["networks"]), (&2.into(), &to(INTERNET_2)));
    assert!(fails(&server, 1, &["create", "--network", "bridge"]).contains("is a driver"));

    // The name servers stay through a restart, and nobody changes what the property says.
    let error = client.set_property("web", "wardian.network.dns", "1.1.1.1").await.unwrap_err().to_string();
    assert!(error.contains("can be given to a create only"), "{error}");
    server.kill9();
    server.restart().await;
    assert_eq!(ok(&server, &["port", "web", "80"]), format!("{HOST}:5000\n"));
    let inspected: Value = serde_json::from_str(&ok(&server, &["inspect", "web"])).unwrap();
    assert_eq!(inspected["egress_rules"].as_array().unwrap(), rules);
    server.finish().await;
}

#[tokio::test]
async fn a_server_without_a_network_says_so() {
    let server = Server::start_with(&["--network", "none"]).await;
    for (flags, what) in [
        (["-p", "80"], "a port mapping"),
        (["--allow", "10.0.0.0/8"], "an egress rule"),
        (["--network", "10.9.0.0/24"], "an address"),
        (["--bandwidth", "1M"], "a bandwidth limit"),
        (["--dns", "10.0.0.53"], "a name server"),
    ] {
        let error = fails(&server, 1, &[&["create"], &flags[..]].concat());
        assert!(error.contains(what) && error.contains("without --network none"), "{error}");
    }
    server.finish().await;
}

/// Networks of the host within the pool, such as those of another server's bridges, are told in one line.
#[tokio::test]
async fn a_start_among_many_networks_says_so_once() {
    let mut server = Server::networked(&[]).await;
    server.terminate().await;
    server.world().sh("for n in 0 4 8; do ip link add other$n type bridge; ip addr add 10.254.0.$((n + 1))/30 dev other$n; done");
    server.restart().await;
    let log = server.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("network.not-from-pool")).collect();
    let [line] = told[..] else { panic!("{told:?}") };
    let data = serde_json::from_str::<Value>(line).unwrap()["data"].take();
    assert_eq!(
        (&data["networks"], &data["first"], &data["link"]),
        (&3.into(), &"10.254.0.0/30".into(), &"other0".into()),
        "{line}"
    );
    assert_eq!(container(&server, spec("a", "")).await.to_string(), "10.254.0.14");
    server.world().sh("for n in 0 4 8; do ip link delete other$n; done");
    server.finish().await;
}

/// What `wardian` says in the world of a server.
pub fn in_world(server: &mut Server, args: &[&str]) -> Said {
    let path = server.world().path();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={path}")).arg(WARDIAN).args(args).env_remove("WARDIAN_LOG");
    command.stdin(Stdio::null()).output().unwrap().into()
}

#[tokio::test]
async fn doctor_tells_what_is_in_the_networks_way() {
    needs!(Nftables);
    let mut server = Server::networked(&[]).await;
    let run = server.run().display().to_string();
    let args = ["doctor", "--json", "--no-measure", "--run", &run];
    let hazards = |server: &mut Server| {
        let said = in_world(server, &args);
        let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
        for feature in ["network_links", "firewall"] {
            assert_eq!(report["features"][feature]["state"], "yes", "{report}");
        }
        let ids = ["no-network", "no-forwarding", "foreign-firewall", "address-collision", "network-unknown"];
        let all = report["hazards"].as_array().unwrap().clone();
        let ours = all.into_iter().filter(|hazard| ids.iter().any(|id| hazard["id"] == *id));
        ours.collect::<Vec<Value>>()
    };
    assert_eq!(hazards(&mut server), Vec::<Value>::new());
    server.world().sh("sysctl -qw net.ipv4.ip_forward=0
         ip link add br0 type bridge; ip addr add 10.254.1.1/24 dev br0; ip link set br0 up
         nft 'table inet fw { chain forward { type filter hook forward priority 0; policy drop; }; }'");
    let found = hazards(&mut server);
    let ids: Vec<&str> = found.iter().map(|hazard| hazard["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["no-forwarding", "foreign-firewall", "address-collision"], "{found:?}");
    assert!(found.iter().all(|hazard| hazard["severity"] == "warning"), "{found:?}");
    assert!(found[2]["evidence"].as_str().unwrap().starts_with("10.254.1.0/24 (br0)"), "{found:?}");
    // The remedy lets this server's containers through.
    let client = server.client();
    container(&server, spec("a", "")).await;
    server.world().sh("sysctl -qw net.ipv4.ip_forward=1");
    assert!(!ask(&client, "a", "tcp", INTERNET, 80).await.starts_with("ok"));
    let remedy = found[1]["remedy"].as_str().unwrap();
    let commands = &remedy[remedy.find("nft insert").unwrap_or_else(|| panic!("{remedy}"))..];
    server.world().sh(commands);
    assert!(ask(&client, "a", "tcp", INTERNET, 80).await.starts_with("ok"), "{remedy}");
    let found = hazards(&mut server);
    assert!(found.iter().all(|hazard| hazard["id"] == "address-collision"), "{found:?}");
    server.world().sh("nft delete table inet fw; ip link delete br0");
    server.finish().await;
}

#[tokio::test]
async fn links_and_firewalls_are_an_instances_leaks_and_go_by_a_reset() {
    needs!(Nftables);
    let _alone = CLEANING.lock().await;
    let mut server = Server::networked(&[]).await;
    let (run, root) = (server.run().display().to_string(), server.root().display().to_string());
    container(&server, spec("a", "10.9.0.0/24")).await;
    let tag = server.group();
    let leaks = |server: &mut Server| -> Vec<String> {
        let said = in_world(server, &["doctor", "--leaks", "--json", "--run", &run]);
        let all: Vec<Value> = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
        let ours = all.iter().filter(|leak| leak["kind"] == "link" || leak["kind"] == "firewall");
        let mut what: Vec<String> = ours.map(|leak| leak["what"].as_str().unwrap().to_owned()).collect();
        what.sort();
        what
    };
    assert_eq!(leaks(&mut server), Vec::<String>::new());
    // Without its server, what its container uses is no leak; bridges that were made ahead are.
    server.kill9();
    let left = leaks(&mut server);
    assert!(!left.is_empty() && left.iter().all(|link| link.starts_with("wbrdg-0afe")), "{left:?}");
    assert!(server.world().links().iter().any(|link| link == "wbrdg-0a090000"));
    // Links that are named as ours: of an instance that nobody knows, and of other programs.
    server.world().sh("ip link add wbrdg-0a080000 type bridge; ip link set wbrdg-0a080000 group 1173741824
         ip link add wbrdg-0a070000 type bridge; ip link add wbrdg-0a060000 type bridge
         ip link set wbrdg-0a060000 group 7");
    let mut all = left;
    all.insert(0, "wbrdg-0a080000".to_owned());
    assert_eq!(leaks(&mut server), all);

    let said = in_world(&mut server, &["reset", "--root", &root, "--run", &run, "--yes"]);
    assert!(said.out.contains("network links\n") && said.out.contains("the firewall"), "{said:?}");
    let rest = server.world().sh("nft list tables; ip -o link");
    assert!(!rest.contains(&tag) && !rest.contains("wbrdg-0afe") && !rest.contains("-0@"), "{rest}");
    for stranger in ["wbrdg-0a080000", "wbrdg-0a070000", "wbrdg-0a060000"] {
        assert!(rest.contains(stranger), "{rest}");
    }
}
