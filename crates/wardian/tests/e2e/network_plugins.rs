//! Networks that other programs make: a plugin as Garden has it, a script of these tests, and Debian's CNI plugins
//! (containernetworking-plugins).

use crate::network_reach::{ask, serve, spec};
use crate::support::{Server, WARDIAN, end, init, listen, message, names, pea, say};
use crate::world::{HOST, INTERNET, net_in, post};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wardian_garden::wire::{BandwidthLimits, ContainerSpec, Limits, NetIn, NetOutRule, PortRange};
use wardian_needs::needs;

/// A network plugin that notes how it is called, and does and says what the files beside it say.
struct Plugin(PathBuf);

/// One call of the plugin.
#[derive(Debug)]
struct Call {
    args: String,
    input: Value,
    env: String,
    descriptors: String,
}

const PLUGIN: &str = r#"#!/bin/sh
here=$(dirname "$0")
for word; do [ "$last" = --action ] && action=$word; last=$word; done
call=$here/calls/$(ls "$here/calls" | wc -l | xargs printf %03d)-$action
mkdir "$call"
echo "$*" > "$call/args"
cat > "$call/input"
env | grep -v ^PWD= | sort | tr '\n' ' ' > "$call/env"
ls /proc/self/fd | tr '\n' ' ' > "$call/descriptors"
echo "called for $action" >&2
[ ! -e "$here/do-$action" ] || . "$here/do-$action"
[ ! -e "$here/say-$action" ] || cat "$here/say-$action"
"#;

impl Plugin {
    fn new(server: &Server) -> Self {
        let dir = server.base().join("plugin");
        fs::create_dir_all(dir.join("calls")).unwrap();
        fs::write(dir.join("plugin"), PLUGIN).unwrap();
        fs::set_permissions(dir.join("plugin"), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    /// What it says from now on.
    fn says(&self, action: &str, text: &(impl ToString + ?Sized)) {
        fs::write(self.0.join(format!("say-{action}")), text.to_string()).unwrap();
    }

    /// What it does from now on: shell commands.
    fn does(&self, action: &str, commands: &str) {
        fs::write(self.0.join(format!("do-{action}")), commands).unwrap();
    }

    /// The actions since the last question.
    fn calls(&self, action: &str) -> Vec<Call> {
        let calls = self.0.join("calls");
        let mut found = names(&calls);
        found.sort();
        found.retain(|dir| dir.ends_with(&format!("-{action}")));
        found.iter().map(|dir| Call::read(Path::new(dir))).collect()
    }

    fn actions(&self) -> Vec<String> {
        let mut found = names(&self.0.join("calls"));
        found.sort();
        let action = |dir: &String| dir.rsplit('/').next().unwrap()[4..].to_owned();
        found.iter().map(action).collect()
    }

    fn forget(&self) {
        fs::remove_dir_all(self.0.join("calls")).unwrap();
        fs::create_dir(self.0.join("calls")).unwrap();
    }
}

impl Call {
    fn read(dir: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap().trim_end().to_owned();
        let input = serde_json::from_str(&text("input")).unwrap();
        Self { args: text("args"), input, env: text("env"), descriptors: text("descriptors") }
    }
}

/// A server with a plugin.
async fn with_plugin(args: &[&str]) -> (Server, Plugin) {
    let mut server = Server::networked(&[]).await;
    server.terminate().await;
    let plugin = Plugin::new(&server);
    server.args = vec!["--network".to_owned(), format!("plugin:{}", plugin.0.join("plugin").display())];
    server.args.extend(args.iter().map(|arg| (*arg).to_owned()));
    server.env.push(("WARDIAN_LOG".to_owned(), "info,wardian_network=debug".to_owned()));
    server.restart().await;
    (server, plugin)
}

#[tokio::test]
async fn a_plugin_makes_the_network() {
    let extra = ["--network-plugin-extra-arg", "--config", "--network-plugin-extra-arg", "a b"];
    let (mut server, plugin) = with_plugin(&extra).await;
    let client = server.client();
    plugin.says(
        "up",
        &json!({
            "properties": {
                "garden.network.container-ip": "10.255.3.2",
                "garden.network.container-ipv6": "fd00::3:2",
                "garden.network.host-ip": "10.255.3.1",
                "garden.network.mapped-ports": r#"[{"HostPort":60001,"ContainerPort":80}]"#,
                "some.property": "kept",
            },
            "dns_servers": ["9.9.9.9", "1.1.1.1"],
            "search_domains": ["apps.internal", "x.y"],
        }),
    );
    // The pid is that of a process in the container's network.
    plugin.does("up", "nsenter --net=/proc/$(sed 's/.*\"Pid\":\\([0-9]*\\).*/\\1/' $call/input)/ns/net ip addr add 10.255.3.2/32 dev lo");
    let properties = [("network.app", "x"), ("network.", "y"), ("log_config", "lc"), ("other", "z")];
    let rule =
        NetOutRule { protocol: 1, ports: vec![PortRange { start: 80, end: 81 }], ..Default::default() };
    let wanted = ContainerSpec {
        properties: properties.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        netin: vec![NetIn { host_port: 0, container_port: 80, ..Default::default() }],
        netout_rules: vec![rule],
        ..spec("a", "")
    };
    client.create(&wanted).await.unwrap();
    let ups = plugin.calls("up");
    let [up] = &ups[..] else { panic!("{ups:?}") };
    assert_eq!(up.args, "--config a b --action up --handle a");
    assert_eq!(up.env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    assert_eq!(up.descriptors, "0 1 2 3");
    let pid = init(&server, "a").await;
    let told = json!({
        "Pid": pid,
        "Properties": {"app": "x", "": "y", "log_config": "lc"},
        "netin": [{"host_port": 0, "container_port": 80}],
        "netout_rules": [{"protocol": 1, "ports": [{"start": 80, "end": 81}]}],
    });
    assert_eq!(up.input, told);
    assert!(server.log().contains("called for up"));

    let hosts = "127.0.0.1 localhost\n::1 localhost\n10.255.3.2 a\nfd00::3:2 a";
    let resolv = "nameserver 9.9.9.9\nnameserver 1.1.1.1\nsearch apps.internal x.y";
    let image = server.image();
    for round in 0..2 {
        let info = client.info("a").await.unwrap();
        let addresses = [&info.container_ip, &info.container_ipv6, &info.host_ip, &info.external_ip];
        assert_eq!(addresses, ["10.255.3.2", "fd00::3:2", "10.255.3.1", HOST]);
        let properties = info.properties.unwrap();
        assert_eq!(
            (&*properties["some.property"], &*properties["garden.network.external-ip"]),
            ("kept", HOST)
        );
        let ports: Vec<_> =
            info.mapped_ports.unwrap().iter().map(|port| (port.host_port, port.container_port)).collect();
        assert_eq!(ports, [(60001, 80)]);
        assert_eq!(say(&client, "a", "cat /etc/hosts").await.trim_end(), hosts);
        assert_eq!(say(&client, "a", "cat /etc/resolv.conf").await.trim_end(), resolv);
        let files = pea(image.to_str().unwrap(), "cat /etc/hosts /etc/resolv.conf");
        let files = end(client.run("a", &files, listen()).await.unwrap()).await;
        assert_eq!(files.out.trim_end(), format!("{hosts}\n{resolv}"));
        assert!(say(&client, "a", "ip addr show lo").await.contains("10.255.3.2"));
        if round == 0 {
            server.kill9();
            server.restart().await;
        }
    }
    let file = |name: &str| fs::read_to_string(server.run().join("containers").join(name)).unwrap();
    let id = server.id("a").await;
    assert_eq!(file(&format!("{id}/hosts")).trim_end(), hosts);

    plugin.says("net-in", r#"{"host_port": 60002, "container_port": 8080}"#);
    assert_eq!(net_in(&server, "a", 0, 8080).unwrap(), (60002, 8080));
    let asked = json!({"HostIP": HOST, "HostPort": 0, "ContainerIP": "10.255.3.2", "ContainerPort": 8080});
    assert_eq!(plugin.calls("net-in")[0].input, asked);
    let mapped = r#"[{"HostPort":60001,"ContainerPort":80},{"HostPort":60002,"ContainerPort":8080}]"#;
    assert_eq!(client.property("a", "garden.network.mapped-ports").await.unwrap(), mapped);
    let rule = r#"{"protocol":3,"icmps":{"type":8},"log":true}"#;
    post(&server, "a/net/out", rule).unwrap();
    let rule: Value = serde_json::from_str(rule).unwrap();
    assert_eq!(plugin.calls("net-out")[0].input, json!({"container_ip": "10.255.3.2", "netout_rule": rule}));
    post(&server, "a/net/out/bulk", &format!("[{rule}]")).unwrap();
    assert_eq!(
        plugin.calls("bulk-net-out")[0].input,
        json!({"container_ip": "10.255.3.2", "netout_rules": [rule]})
    );

    plugin.does("net-in", "exit 1");
    plugin.does("net-out", "exit 2");
    let error = net_in(&server, "a", 0, 1).unwrap_err();
    assert_eq!(error, "external networker encountered an error running 'net-in' action: exit status 1");
    let error = post(&server, "a/net/out", "{}").unwrap_err();
    assert_eq!(error, "external networker encountered an error running 'net-out' action: exit status 2");

    client.destroy("a").await.unwrap();
    let downs = plugin.calls("down");
    let [down] = &downs[..] else { panic!("{downs:?}") };
    assert_eq!((&*down.args, &down.input), ("--config a b --action down --handle a", &Value::Null));
    server.finish().await;
}

#[tokio::test]
async fn a_plugin_may_do_nothing_or_fail() {
    let (mut server, plugin) = with_plugin(&["--network-plugin-timeout", "1s"]).await;
    let client = server.client();
    // One that says nothing.
    client.create(&spec("quiet", "")).await.unwrap();
    let info = client.info("quiet").await.unwrap();
    assert_eq!((&*info.container_ip, &*info.external_ip), ("", HOST));
    assert!(say(&client, "quiet", "cat /etc/hosts").await.starts_with("127.0.0.1 localhost\n"));
    client.destroy("quiet").await.unwrap();
    assert_eq!(plugin.actions(), ["up", "down"]);

    // A create that fails is undone, also in the plugin.
    let external = "external networker encountered an error running 'up' action: ";
    let slow =
        format!("{external}{} has not ended within 1 s and was killed", plugin.0.join("plugin").display());
    for (does, says, error) in [
        ("exit 7", "", format!("{external}exit status 7")),
        ("kill -9 $$", "", format!("{external}signal 9 (SIGKILL)")),
        ("sleep 1000 & sleep 1000", "", slow),
        (
            "yes",
            "",
            format!(
                "{external}{} has written more than 1048576 bytes and was killed",
                plugin.0.join("plugin").display()
            ),
        ),
        (
            "",
            "{\"a",
            "unmarshaling result from external networker: EOF while parsing a string at line 1 column 3"
                .to_owned(),
        ),
        ("", r#"{"properties":{"garden.network.container-ip":"x"}}"#, "\"x\" is no IP address".to_owned()),
        (
            "",
            r#"{"search_domains":["a b"]}"#,
            "search domain \"a b\" is empty or contains white space".to_owned(),
        ),
    ] {
        plugin.forget();
        plugin.does("up", does);
        plugin.says("up", says);
        let begin = Instant::now();
        let said = message(client.create(&spec("failed", "")).await);
        assert!(said.contains(&error), "{does} {says}: {said}");
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert_eq!(plugin.actions(), ["up", "down"]);
        assert!(
            client
                .list(&std::iter::once(("garden.state".into(), "all".into())).collect())
                .await
                .unwrap()
                .is_empty()
        );
    }
    plugin.does("up", "");
    plugin.says("up", "");

    // What cannot be asked of it.
    for (wanted, says) in [
        (spec("x", "10.9.0.0/24"), "network: a network plugin chooses the addresses itself"),
        (
            ContainerSpec {
                netin: vec![NetIn { protocol: "udp".into(), ..Default::default() }],
                ..spec("x", "")
            },
            "port mapping: a network plugin maps TCP ports only",
        ),
        (
            ContainerSpec {
                limits: Limits {
                    bandwidth_limits: BandwidthLimits { rate: 9, burst: 9 },
                    ..Default::default()
                },
                ..spec("x", "")
            },
            "bandwidth limit: a network plugin is not told of one",
        ),
    ] {
        assert_eq!(message(client.create(&wanted).await), says);
    }

    // A destroy whose `down` fails can be tried again, and says why it must be.
    client.create(&spec("stays", "")).await.unwrap();
    plugin.does("down", "exit 1");
    let error = "external networker encountered an error running 'down' action: exit status 1";
    assert_eq!(message(client.destroy("stays").await), error);
    let info = client.info("stays").await.unwrap();
    assert_eq!(info.events.unwrap(), [format!("broken: {error}")]);
    server.kill9();
    server.restart().await;
    assert_eq!(message(client.destroy("stays").await), error);
    // The third time it works, at a start.
    plugin.forget();
    plugin.does("down", "[ $(ls $here/calls | wc -l) -ge 3 ] || exit 1");
    server.terminate().await;
    server.args.push("--destroy-containers-on-startup".to_owned());
    server.restart().await;
    assert_eq!(plugin.actions(), ["down", "down", "down"]);
    assert!(client.info("stays").await.is_err());
    server.finish().await;
}

#[tokio::test]
async fn what_a_killed_server_was_making_is_undone_in_the_plugin() {
    let (mut server, plugin) = with_plugin(&[]).await;
    for point in
        ["create.recorded", "create.connected", "create.rootfs", "create.answered", "destroy.answered"]
    {
        plugin.forget();
        server.terminate().await;
        server.env = vec![("WARDIAN_FAILPOINT".to_owned(), point.to_owned())];
        server.restart().await;
        let client = server.client();
        let created = client.create(&spec("half", "")).await;
        assert_eq!(created.is_ok(), point.starts_with("destroy"), "{point}");
        if created.is_ok() {
            assert!(client.destroy("half").await.is_err());
        }
        server.ended().await;
        server.env.clear();
        server.restart().await;
        if client.info("half").await.is_ok() {
            client.destroy("half").await.unwrap();
        }
        assert_eq!(plugin.calls("down").len(), 1, "{point}: {:?}", plugin.actions());
    }
    // A server with another driver, and a reset, have it undone as well.
    let client = server.client();
    for handle in ["other", "reset"] {
        client.create(&spec(handle, "")).await.unwrap();
    }
    plugin.forget();
    server.terminate().await;
    let args = std::mem::replace(&mut server.args, vec!["--network".to_owned(), "none".to_owned()]);
    server.restart().await;
    let error = net_in(&server, "other", 0, 80).unwrap_err();
    assert!(error.contains("start the server without --network none"), "{error}");
    client.destroy("other").await.unwrap();
    assert_eq!(plugin.actions(), ["down"]);
    server.terminate().await;
    plugin.forget();
    let mut reset = Command::new(WARDIAN);
    reset.arg("reset").arg("--yes").arg("--root").arg(server.root()).arg("--run").arg(server.run());
    let output = reset.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(plugin.actions(), ["down"]);
    server.args = args;
    server.restart().await;
    server.finish().await;
}

#[tokio::test]
async fn a_plugin_that_others_could_change_is_not_run() {
    let (mut server, plugin) = with_plugin(&[]).await;
    server.terminate().await;
    fs::set_permissions(plugin.0.join("plugin"), fs::Permissions::from_mode(0o777)).unwrap();
    let output = server.command().stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("network plugin"), "{said}");
    fs::set_permissions(plugin.0.join("plugin"), fs::Permissions::from_mode(0o755)).unwrap();
    for (args, says) in [
        (&["--network", "cni:/nonexistent"][..], "CNI: read /nonexistent: No such file"),
        (&["--network", "plugin:relative"], "must be absolute"),
        (&["--network", "other"], "bridge, none, plugin:/PATH or cni:/PATH"),
        (&["--network-plugin-extra-arg", "x"], "there is no network plugin"),
        (&["--network-plugin", "/bin/true", "--mtu", "1400"], "mtu: with a network plugin"),
    ] {
        server.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let output = server.command().stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{args:?}: {said}");
    }
    server.args = vec!["--network-plugin".to_owned(), plugin.0.join("plugin").display().to_string()];
    server.restart().await;
    server.finish().await;
}

/// A server with CNI plugins of this list, and the directory in which host-local notes addresses.
async fn with_cni(plugins: &Value) -> (Server, PathBuf) {
    let mut server = Server::networked(&[]).await;
    server.terminate().await;
    let dir = server.base().join("cni");
    fs::create_dir(&dir).unwrap();
    let text = plugins.to_string().replace("DATA", dir.join("data").to_str().unwrap());
    let list = json!({"cniVersion": "1.0.0", "name": "apps", "plugins": serde_json::from_str::<Value>(&text).unwrap()});
    fs::write(dir.join("apps.conflist"), list.to_string()).unwrap();
    fs::write(dir.join("00-other.conf"), r#"{"cniVersion": "0.4.0", "name": "other", "type": "loopback"}"#)
        .unwrap();
    server.args =
        ["--network", &format!("cni:{}", dir.display()), "--cni-network", "apps"].map(str::to_owned).into();
    server.restart().await;
    (server, dir.join("data/apps"))
}

fn reserved(data: &Path) -> Vec<String> {
    let names = names(data).into_iter().map(|path| path.rsplit('/').next().unwrap().to_owned());
    names.filter(|name| name.starts_with("10.")).collect()
}

#[tokio::test]
async fn cni_plugins_make_the_network() {
    needs!(Root, Cni, TrafficControl);
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "DATA",
    });
    let bridge = json!({
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "ipMasq": true,
        "capabilities": {"ips": true},
        "ipam": ipam,
        "dns": {"nameservers": ["9.9.9.9"], "search": ["x.y"], "options": ["ndots:2"]},
    });
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let (mut server, data) = with_cni(&json!([bridge, portmap, bandwidth])).await;
    let client = server.client();
    let limits =
        Limits { bandwidth_limits: BandwidthLimits { rate: 1 << 20, burst: 1 << 20 }, ..Default::default() };
    let wanted = ContainerSpec {
        netin: vec![
            NetIn { host_port: 7001, container_port: 80, ..Default::default() },
            NetIn { container_port: 81, ..Default::default() },
        ],
        limits,
        ..spec("a", "10.88.0.7/24")
    };
    client.create(&wanted).await.unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
    client.create(&ContainerSpec { privileged: true, ..spec("b", "") }).await.unwrap();
    for round in 0..2 {
        let info = client.info("a").await.unwrap();
        let addresses = [&info.container_ip, &info.host_ip, &info.external_ip];
        assert_eq!(addresses, ["10.88.0.7", "10.88.0.1", HOST]);
        assert!(info.container_ipv6.starts_with("fd88::"), "{info:?}");
        let ports: Vec<_> =
            info.mapped_ports.unwrap().iter().map(|port| (port.host_port, port.container_port)).collect();
        assert_eq!(ports, [(7001, 80), (61001, 81)]);
        assert!(say(&client, "a", "ip addr show eth0").await.contains("10.88.0.7/24"));
        assert_eq!(
            say(&client, "a", "cat /etc/resolv.conf").await.trim_end(),
            "nameserver 9.9.9.9\nsearch x.y\noptions ndots:2"
        );
        assert!(say(&client, "a", "cat /etc/hosts").await.contains("10.88.0.7 a\n"));
        assert!(ask(&client, "a", "tcp", INTERNET, 80).await.starts_with("ok from"), "{round}");
        if round == 0 {
            for port in [80, 81] {
                serve(&client, "a", port).await;
            }
        }
        for port in ["7001", "61001"] {
            let answer = server.world().internet(&["tcp", HOST, port]);
            assert!(answer.starts_with("ok a"), "{port}: {answer}");
        }
        assert!(ask(&client, "b", "tcp", "10.88.0.7", 80).await.starts_with("ok a"));
        let moved = client.metrics("a").await.unwrap().network_stat.unwrap();
        assert!(moved.rx_bytes > 0 && moved.tx_bytes > 0, "{moved:?}");
        if round == 0 {
            server.kill9();
            server.restart().await;
        }
    }
    assert!(server.world().sh("tc qdisc").contains("tbf"));
    // Ports of containers of an earlier server are not given out again.
    let again = ContainerSpec {
        netin: vec![NetIn { host_port: 7001, container_port: 80, ..Default::default() }],
        ..spec("c", "")
    };
    let error = message(client.create(&again).await);
    assert!(error.contains("TCP port 7001 of the host is already mapped"), "{error}");
    // What comes too late, and what no plugin does.
    let error = net_in(&server, "a", 0, 80).unwrap_err();
    assert!(error.contains("with CNI, ports are mapped when the container is created"), "{error}");
    let error = post(&server, "a/net/out", "{}").unwrap_err();
    assert_eq!(error, "egress rules: CNI has none");
    let error = message(client.create(&spec("c", "10.88.0.7/24")).await);
    assert!(error.starts_with("CNI: plugin bridge: ADD: "), "{error}");
    assert_eq!(reserved(&data).len(), 2);

    client.destroy("a").await.unwrap();
    let rules = server.world().sh("iptables-save -t nat");
    assert!(!rules.contains("7001") && !rules.contains("10.88.0.7/32"), "{rules}");
    assert_eq!(reserved(&data).len(), 1);
    // The address is free again; and what a killed server was making is undone.
    for point in ["create.recorded", "create.connected", "create.answered", "destroy.answered"] {
        server.terminate().await;
        server.env = vec![("WARDIAN_FAILPOINT".to_owned(), point.to_owned())];
        server.restart().await;
        let created = client.create(&spec("a", "10.88.0.7")).await;
        assert_eq!(created.is_ok(), point.starts_with("destroy"), "{point}");
        if created.is_ok() {
            assert!(client.destroy("a").await.is_err());
        }
        server.ended().await;
        server.env.clear();
        server.restart().await;
        if client.info("a").await.is_ok() {
            client.destroy("a").await.unwrap();
        }
        assert_eq!(reserved(&data).len(), 1, "{point}");
    }
    client.destroy("b").await.unwrap();
    assert!(reserved(&data).is_empty());
    // Rules of addresses are left where the namespace was gone: this version of the plugin looks for them in there.
    let world = server.world();
    let links: Vec<String> = world.links().into_iter().filter(|name| name != "cni0").collect();
    assert!(links.is_empty(), "{links:?}");
    world.sh("ip link del cni0; nft flush ruleset; nft list tables | while read t; do nft delete $t; done");
    server.finish().await;
}

#[tokio::test]
async fn cni_plugins_must_be_there_and_know_the_version() {
    needs!(Root, Cni);
    let (mut server, data) = with_cni(&json!([{"type": "bridge", "ipam": {"type": "host-local", "dataDir": "DATA", "subnet": "10.88.0.0/30"}}])).await;
    let client = server.client();
    let mapped =
        ContainerSpec { netin: vec![NetIn { container_port: 80, ..Default::default() }], ..spec("a", "") };
    let error = message(client.create(&mapped).await);
    assert_eq!(
        error,
        "CNI: the network apps gives no port mapping: no plugin of its list has the capability portMappings"
    );
    client.create(&spec("a", "")).await.unwrap();
    // Of four addresses three are taken: the network's, the gateway's and the container's.
    let error = message(client.create(&spec("b", "")).await);
    assert!(
        error.starts_with(
            "CNI: plugin bridge: ADD: failed to allocate for range 0: no IP addresses available"
        ),
        "{error}"
    );
    server.terminate().await;
    server.args = ["--network", "none"].map(str::to_owned).into();
    server.restart().await;
    client.destroy("a").await.unwrap();
    assert!(reserved(&data).is_empty());
    server.terminate().await;
    let lists = server.base().join("cni");
    for (list, says) in [
        (r#"{"cniVersion": "1.0.0", "name": "a", "type": "nonexistent"}"#, "there is no plugin nonexistent"),
        (
            r#"{"cniVersion": "1.1.0", "name": "a", "type": "bridge"}"#,
            "bridge does not support version 1.1.0 of the specification, but 0.1.0",
        ),
        (r#"{"cniVersion": "1.0.0", "name": "a b", "type": "bridge"}"#, "has other characters"),
    ] {
        let file = lists.join("bad.conflist");
        fs::write(&file, list).unwrap();
        server.args = vec!["--network".to_owned(), format!("cni:{}", file.display())];
        let output = server.command().stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{list}: {said}");
    }
    server.world().sh("ip link del cni0");
    server.args = ["--network", "none"].map(str::to_owned).into();
    server.restart().await;
    server.finish().await;
}
