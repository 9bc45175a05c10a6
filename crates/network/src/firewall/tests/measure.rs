//! What changes cost. Run with `--ignored --nocapture`.

use super::world::{TAG, log_v4, member, policy, tcp};
use crate::egress::{Boxes, Step, TransportBox};
use crate::firewall::program::Member;
use crate::firewall::{Firewall, Health};
use crate::testing::{Namespace, sh};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use wardian_needs::needs;

fn micros(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: median {:.1} µs, worst {:.1} µs", micro(median), micro(worst));
}

fn micro(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn timed<T>(act: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

fn boxes(count: u32) -> Vec<Step> {
    let v4 = (0..count).map(|number| TransportBox {
        addresses: (Ipv4Addr::from(number * 16), Ipv4Addr::from(number * 16 + 9)),
        protocols: (6, 6),
        ports: (80, 90),
    });
    vec![Step::Allow(Boxes { v4: v4.collect(), ..Boxes::default() })]
}

#[test]
#[ignore = "it measures"]
fn costs() {
    needs!(Nftables);
    let own = Namespace::new();
    own.enter();
    println!("open: {:.1} µs", micro(timed(|| Firewall::open(TAG, &policy()).unwrap())));
    let firewall = Firewall::open(TAG, &policy()).unwrap();
    let with_egress = |number| Member { egress: boxes(3), ..member(number, "wbrdg-0afe0000") };
    for (others, egress) in [(0, false), (1_000, false), (10_000, false), (1_000, true)] {
        let all: Vec<Member> = (0..others)
            .map(|number| if egress { with_egress(number) } else { member(number, "wbrdg-0afe0000") })
            .collect();
        let what = format!("{others} members{}", if egress { " with egress rules" } else { "" });
        println!("replace_all, {what}: {:.1} µs", micro(timed(|| firewall.replace_all(&all).unwrap())));
        sh("nft add table ip others; nft delete table ip others");
        println!(
            "check in full: {:.1} µs",
            micro(timed(|| assert_eq!(firewall.check().unwrap(), Health::Intact)))
        );
        println!("check, unchanged: {:.1} µs", micro(timed(|| firewall.check().unwrap())));
        for kind in ["IPv4", "IPv4, IPv6 and 2 ports", "and 3 egress rules"] {
            let (mut add, mut remove) = (Vec::new(), Vec::new());
            for number in 20_000..20_200 {
                let mut one = with_egress(number);
                if kind == "IPv4" {
                    one.v6 = None;
                } else {
                    one.mappings = vec![tcp(1, 1), tcp(2, 2)];
                }
                if !kind.contains("egress") {
                    one.egress = Vec::new();
                }
                add.push(timed(|| firewall.add(&one).unwrap()));
                remove.push(timed(|| firewall.remove(&one.id).unwrap()));
            }
            micros(&format!("{what}: add, {kind}"), add);
            micros(&format!("{what}: remove, {kind}"), remove);
        }
    }
}

#[test]
#[ignore = "it measures"]
fn costs_of_egress_rules() {
    needs!(Nftables);
    let own = Namespace::new();
    own.enter();
    let firewall = Firewall::open(TAG, &policy()).unwrap();
    firewall.add(&member(50_000, "b")).unwrap();
    for count in [3, 100, 3_000] {
        let egress = boxes(count);
        let times = (0..10).map(|_| timed(|| firewall.set_egress("t50000", &egress).unwrap())).collect();
        micros(&format!("set_egress, {count} boxes"), times);
    }
    let steps = boxes(3_000);
    let Step::Allow(all) = &steps[0] else { return };
    let logged: Vec<Step> = all.v4.iter().map(|one| Step::Log(log_v4(*one))).collect();
    let times = (0..5).map(|_| timed(|| firewall.set_egress("t50000", &logged).unwrap())).collect();
    micros("set_egress, 3000 logged rules", times);
}
