use std::net::IpAddr;

use wardian_needs::needs;
use wardian_network::conntrack::Conntrack;

use crate::world::{Container, Subnet, exchange, on_a_host, run, udp};

/// A rule that tracks connections, a masqueraded way out and a mapped port.
const RULES: &str = "table inet t { \
    chain f { type filter hook forward priority 0; ct state established accept; }; \
    chain i { type filter hook input priority 0; ct state established accept; }; \
    chain p { type nat hook prerouting priority -100; ip daddr 10.9.1.1 udp dport 5000 dnat ip to 10.9.2.2:7; }; \
    chain o { type nat hook postrouting priority 100; ip saddr 10.9.1.2 ip daddr 10.9.3.2 masquerade; }; }";

fn entries() -> String {
    std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap()
}

#[test]
fn all_connections_of_an_address_are_forgotten_and_no_others() {
    needs!(Nftables);
    on_a_host(|route| {
        let output = std::process::Command::new("nft").arg(RULES).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Three bridges: what passes within one is tracked as well where br_netfilter is loaded.
        let [one, two, three] = [1, 2, 3].map(|number| Subnet::new(route, number));
        let [a, b, c] = [&one, &two, &three].map(|subnet| Container::new(route, subnet, 2));
        // From a to c, masqueraded.
        let (sender, receiver) = (a.socket((a.v4, 0).into()), c.socket((c.v4, 0).into()));
        let to = receiver.local_addr().unwrap();
        exchange(&sender, &receiver, to, three.gateway.addr().into()).unwrap();
        // From a to b by a mapped port.
        let receiver = b.socket((b.v4, 7).into());
        let mapped = (IpAddr::from(one.gateway.addr()), 5000).into();
        exchange(&sender, &receiver, mapped, a.v4.into()).unwrap();
        // IPv6, and the host to b.
        assert!(a.reaches(&b, true) && c.reaches(&b, true));
        let host = udp((two.gateway.addr(), 0).into());
        exchange(&host, &receiver, (b.v4, 7).into(), two.gateway.addr().into()).unwrap();
        let before = entries();
        assert_eq!(before.matches("udp").count(), 5, "{before}");

        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.forget(&[b.v4.into()]).unwrap(), 2, "{before}");
        let after = entries();
        assert!(!after.contains("=10.9.2.2 ") && after.matches("udp").count() == 3, "{after}");
        assert_eq!(conntrack.forget(&[b.v4.into()]).unwrap(), 0);
        assert_eq!(conntrack.forget(&[a.v4.into()]).unwrap(), 1);
        assert_eq!(conntrack.forget(&[b.v6]).unwrap(), 2);
        assert_eq!(conntrack.forget(&["10.9.9.9".parse().unwrap()]).unwrap(), 0);
        assert_eq!(entries(), "");
        // Several at once, of both families, and none.
        let receiver = c.socket((c.v4, 0).into());
        let to = receiver.local_addr().unwrap();
        exchange(&sender, &receiver, to, three.gateway.addr().into()).unwrap();
        assert!(b.reaches(&c, false) && a.reaches(&b, true) && c.reaches(&b, true));
        assert_eq!(conntrack.forget(&[]).unwrap(), 0);
        assert_eq!(conntrack.forget(&[a.v4.into(), b.v4.into(), a.v6]).unwrap(), 3, "{}", entries());
        let after = entries();
        assert!(after.matches("udp").count() == 1 && after.contains("0a09:0302"), "{after}");
        run("nft delete table inet t");
    });
}
