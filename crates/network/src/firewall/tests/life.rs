//! What is left after changes, faults and other programs.

use super::world::{
    HOST4, OUTSIDE4, Outcome, SERVICE, TABLE, TAG, World, connect, from, log_v4, member, net, policy, tcp,
};
use crate::egress::{Boxes, Step, TransportBox};
use crate::firewall::program::{Member, Policy};
use crate::firewall::{Error, Firewall, Health};
use crate::testing::{Namespace, sh};
use std::net::Ipv4Addr;
use wardian_needs::needs;

fn box4(last: u8) -> TransportBox<Ipv4Addr> {
    let address = Ipv4Addr::new(10, 0, 0, last);
    TransportBox { addresses: (address, address), protocols: (6, 6), ports: (80, 90) }
}

/// A container with everything.
fn full(number: u32) -> Member {
    let mut member = member(number, "wbrdg-0afe0000");
    member.mappings = vec![tcp(u16::try_from(number).unwrap() + 1000, 80)];
    let boxes = Boxes { v4: vec![box4(1), box4(2)], ..Boxes::default() };
    member.egress = vec![Step::Log(log_v4(box4(3))), Step::Allow(boxes)];
    member
}

#[test]
fn a_flushed_ruleset_is_noticed_and_made_again() {
    needs!(Nftables);
    let world = World::new();
    let firewall = world.firewall(&policy());
    let a = &world.containers[0].ns;
    firewall.add(&full(4)).unwrap();
    assert_eq!(firewall.check().unwrap(), Health::Intact);
    let before = sh("nft list ruleset");

    let damages = [
        "nft flush ruleset".to_owned(),
        format!("nft delete table bridge {TABLE}"),
        format!("nft flush chain inet {TABLE} host"),
        format!("nft insert rule inet {TABLE} sent accept"),
        format!("nft flush chain inet {TABLE} c-t4"),
        format!("nft flush set bridge {TABLE} ports4"),
        format!("nft flush map inet {TABLE} mapped4"),
        format!("nft delete element inet {TABLE} members4 '{{ 10.254.0.2 }}'"),
        format!("nft chain inet {TABLE} forward '{{ policy drop; }}'"),
    ];
    for damage in damages {
        sh(&damage);
        let health = firewall.check().unwrap();
        assert!(matches!(health, Health::Damaged(_)), "{damage}");
        firewall.repair().unwrap();
        assert_eq!(firewall.check().unwrap(), Health::Intact, "{damage}");
        assert_eq!(sorted(&sh("nft list ruleset")), sorted(&before), "{damage}");
    }
    assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
    assert_eq!(connect(a, HOST4, SERVICE), Outcome::Rejected);

    // Others' tables are none of ours.
    sh("nft add table ip others");
    assert_eq!(firewall.check().unwrap(), Health::Intact);
    // Our own changes are not looked at again, but a change of others in between is.
    firewall.remove("t4").unwrap();
    sh(&format!("nft flush chain inet {TABLE} host"));
    firewall.add(&full(4)).unwrap();
    assert!(matches!(firewall.check().unwrap(), Health::Damaged(_)));
    // What has been flushed can still be removed.
    sh("nft flush ruleset");
    firewall.remove("t4").unwrap();
    assert!(matches!(firewall.check().unwrap(), Health::Damaged(_)));
    firewall.repair().unwrap();
    assert_eq!(firewall.strays(&[]).unwrap(), ["wt10-0", "wt2-0", "wt3-0"]);
}

/// The lines of a ruleset, whatever their order.
fn sorted(text: &str) -> Vec<String> {
    let mut all: Vec<String> = text
        .split([',', '{', '}', '\n'])
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    all.sort();
    all
}

#[test]
fn opened_again_it_keeps_what_is_there_until_all_is_replaced() {
    needs!(Nftables);
    let own = Namespace::new();
    own.enter();
    let firewall = Firewall::open(TAG, &policy()).unwrap();
    let all = [full(1), full(2), full(3)];
    firewall.replace_all(&all).unwrap();
    let before = sh("nft list ruleset");
    assert!(before.matches("comment \"handle-2\"").count() > 15, "{before}");

    let deny = vec![net("10.0.0.0/8"), net("fd00::/8")];
    let again = Firewall::open(TAG, &Policy { deny, ..policy() }).unwrap();
    let now = sh("nft list ruleset");
    assert!(now.contains("elements = { 10.0.0.0/8 }") && now.contains("elements = { fd00::/8 }"), "{now}");
    assert_eq!(now.matches("handle-2").count(), before.matches("handle-2").count());
    assert!(matches!(again.check().unwrap(), Health::Damaged(_)));
    assert_eq!(again.strays(&[("t1", "wt1-0"), ("t3", "wt3-0")]).unwrap(), ["t2", "wt2-0"]);
    again.replace_all(&[all[0].clone(), member(9, "b")]).unwrap();
    assert_eq!(again.check().unwrap(), Health::Intact);
    assert_eq!(again.strays(&[("t1", "wt1-0"), ("t9", "wt9-0")]).unwrap(), [""; 0]);
    assert!(!sh("nft list ruleset").contains("handle-2"));

    // A skeleton of another version is deleted first.
    sh(&format!(
        "nft 'delete table inet {TABLE}; table inet {TABLE} {{ comment \"old\"; set deny4 {{ type ipv6_addr; }}; }}'"
    ));
    let new = Firewall::open(TAG, &policy()).unwrap();
    new.replace_all(&all).unwrap();
    assert_eq!(sorted(&sh("nft list ruleset")), sorted(&before));

    new.remove_tables().unwrap();
    assert_eq!(sh("nft list ruleset"), "");
    new.remove_tables().unwrap();
}

#[test]
fn what_is_refused_changes_nothing() {
    needs!(Nftables);
    let own = Namespace::new();
    own.enter();
    assert!(matches!(Firewall::open("a b", &policy()), Err(Error::Tag { .. })));
    assert!(matches!(Firewall::open(TAG, &Policy { group: 0, ..policy() }), Err(Error::Group)));

    let firewall = Firewall::open(TAG, &policy()).unwrap();
    firewall.add(&full(1)).unwrap();
    let before = sh("nft list ruleset");
    assert!(matches!(firewall.add(&full(1)), Err(Error::Known { .. })));
    assert!(matches!(firewall.remove("t2"), Err(Error::Unknown { .. })));
    let hostile: [fn(&mut Member); 5] = [
        |member| member.id = "t 1; flush ruleset".into(),
        |member| member.id = "C".into(),
        |member| member.bridge = "sixteen-letters-".into(),
        |member| member.port = String::new(),
        |member| member.mappings = vec![tcp(1, 0)],
    ];
    for change in hostile {
        let mut member = full(2);
        change(&mut member);
        assert!(matches!(firewall.add(&member), Err(Error::Member { .. })), "{member:?}");
    }
    // The same address twice; overlapping boxes; a range that ends before it begins.
    let twice = Member { v4: full(1).v4, ..full(2) };
    let mut overlap = full(2);
    overlap.egress = vec![Step::Allow(Boxes { v4: vec![box4(1), box4(1)], ..Boxes::default() })];
    let mut reversed = full(2);
    let backwards = TransportBox { ports: (90, 80), ..box4(1) };
    reversed.egress = vec![Step::Allow(Boxes { v4: vec![backwards], ..Boxes::default() })];
    for member in [twice, overlap, reversed] {
        let error = firewall.add(&member).unwrap_err();
        assert!(matches!(error, Error::Tables { .. }), "{error}");
    }
    assert_eq!(sh("nft list ruleset"), before);
    assert_eq!(firewall.check().unwrap(), Health::Intact);

    // A handle cannot end its comment.
    let mut member = full(2);
    member.handle = format!("a\" drop; #\n\u{fc}{}", "x".repeat(500));
    firewall.add(&member).unwrap();
    let listed = sh("nft list ruleset");
    assert!(listed.contains("comment \"a_ drop; #__xxx"), "{listed}");
    assert!(listed.contains("prefix \"a_ drop; #__xxxxxxxxxxxxxxxx \""), "{listed}");
    // What nft lists it can load again.
    sh("nft list ruleset > /dev/null; nft list ruleset | (sleep 0.1; nft -c -f -)");
    firewall.remove("t2").unwrap();
    assert_eq!(sh("nft list ruleset"), before);
}

#[test]
fn many_at_once_beside_changes_of_others() {
    needs!(Nftables);
    let own = Namespace::new();
    own.enter();
    let firewall = Firewall::open(TAG, &policy()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let firewall = &firewall;
            scope.spawn(move || {
                for number in 0..50 {
                    let member = full(thread * 1000 + number);
                    firewall.add(&member).unwrap();
                    firewall.set_egress(&member.id, &[]).unwrap();
                    firewall.set_egress(&member.id, &member.egress).unwrap();
                    if number % 2 == 0 {
                        firewall.remove(&member.id).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            own.enter();
            for _ in 0..20 {
                sh("nft 'add table ip others; add chain ip others c; delete table ip others'");
                assert_eq!(firewall.check().unwrap(), Health::Intact);
            }
        });
    });
    assert_eq!(firewall.check().unwrap(), Health::Intact);
    sh("nft add table ip others");
    assert_eq!(firewall.check().unwrap(), Health::Intact);
    // Both the port and the chain of each of the hundred that are left.
    assert_eq!(firewall.strays(&[]).unwrap().len(), 2 * 100);
    firewall.replace_all(&[]).unwrap();
    assert_eq!(firewall.strays(&[]).unwrap().len(), 0);
}
