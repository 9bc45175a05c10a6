use super::rule::{Load, Rule, Verdict};
use super::set::{Element, Fields, KeyType, Table, Value};
use super::{Batch, Connection, Family, Operation};
use crate::testing::{Namespace, sh};
use std::net::IpAddr;
use wardian_needs::needs;

const T: Table<'static> = Table { family: Family::Inet, name: "t" };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A table with what nft can declare better.
fn prepared() -> (Namespace, Connection) {
    let own = Namespace::new();
    own.enter();
    sh("nft 'table inet t { comment \"hello\"; chain end { }; \
        set links { type ifname . ether_addr . ipv4_addr; }; \
        map verdicts { type ifname . ipv4_addr : verdict; }; \
        map ports { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }; }'");
    (own, Connection::open().unwrap())
}

#[test]
fn what_is_encoded_is_what_nft_lists() {
    needs!(Nftables);
    let (_own, connection) = prepared();
    let mut batch = Batch::new();
    batch.add_chain(T, "c-1", "the chain");
    batch.add_set(T, "c-1-0", &[KeyType::Ipv4, KeyType::Protocol, KeyType::Port], 2, "the set");
    let boxes = |first: &str, last: &str, protocols: (u8, u8), ports: (u16, u16)| Element {
        key: Fields::new().ip(ip(first)).protocol(protocols.0).port(ports.0),
        last: Some(Fields::new().ip(ip(last)).protocol(protocols.1).port(ports.1)),
        value: Value::None,
    };
    let elements =
        [boxes("1.0.0.0", "1.0.0.9", (6, 17), (80, 90)), boxes("1.0.0.10", "1.0.0.10", (6, 6), (0, 65535))];
    batch.add_elements(T, "c-1-0", elements.iter().map(|element| (element, Some("the \"box"))));
    let destination = Load::Network { offset: 16, length: 4 };
    let port = Load::Transport { offset: 2, length: 2 };
    let v4 = || Rule::new().within(Load::NetworkProtocol, &[2], &[2]);
    let lookup = v4().lookup(&[destination, Load::TransportProtocol, port], "c-1-0");
    batch.add_rule(T, "c-1", &lookup.verdict(&Verdict::Accept), "looks up");
    let range = v4()
        .within(destination, &[1, 2, 3, 4], &[1, 2, 3, 9])
        .within(Load::TransportProtocol, &[6], &[6])
        .within(port, &80_u16.to_be_bytes(), &90_u16.to_be_bytes());
    batch.add_rule(T, "c-1", &range.verdict(&Verdict::Goto("end".into())), "compares");
    batch.add_rule(T, "c-1", &Rule::new().state(0x49).log(5, "hand "), "logs");
    let link = Element::key(Fields::new().link("eth0").bytes(&[2, 0, 0, 0, 0, 1]).ip(ip("10.0.0.1")));
    batch.add_elements(T, "links", [(&link, Some("a link"))]);
    let verdict = Element {
        key: Fields::new().link("br0").ip(ip("10.0.0.1")),
        last: None,
        value: Value::Verdict(Verdict::Goto("c-1".into())),
    };
    batch.add_elements(T, "verdicts", [(&verdict, Some("a verdict"))]);
    let mapped = Element {
        key: Fields::new().ip(ip("10.0.0.1")).protocol(17).port(53),
        last: None,
        value: Value::Fields(Fields::new().ip(ip("10.0.0.2")).port(5353)),
    };
    batch.add_elements(T, "ports", [(&mapped, None)]);
    let before = connection.generation().unwrap();
    connection.commit(batch).unwrap();
    assert_eq!(connection.generation().unwrap(), before + 1);

    let listed = sh("nft list ruleset");
    for line in [
        "comment \"the chain\"",
        "comment \"the set\"",
        "type ipv4_addr . inet_proto . inet_service",
        "flags interval",
        "1.0.0.0-1.0.0.9 . 6-17 . 80-90 comment \"the \"box\"",
        "1.0.0.10 . tcp . 0-65535",
        "ip daddr . meta l4proto . th dport @c-1-0 accept comment \"looks up\"",
        "ip daddr 1.2.3.4-1.2.3.9 tcp dport 80-90 goto end comment \"compares\"",
        "ct state invalid,new,untracked log prefix \"hand \" group 5 comment \"logs\"",
        "elements = { \"eth0\" . 02:00:00:00:00:01 . 10.0.0.1 comment \"a link\" }",
        "elements = { \"br0\" . 10.0.0.1 comment \"a verdict\" : goto c-1 }",
        "elements = { 10.0.0.1 . udp . 53 : 10.0.0.2 . 5353 }",
    ] {
        assert!(listed.contains(line), "{line} is not in\n{listed}");
    }

    // And read again.
    assert_eq!(connection.table_comment(T).unwrap().as_deref(), Some("hello"));
    assert_eq!(connection.table_comment(Table { name: "u", ..T }).unwrap(), None);
    let names: Vec<_> =
        connection.chains(Family::Inet).unwrap().into_iter().map(|chain| chain.name).collect();
    assert_eq!(names, ["end", "c-1"]);
    assert_eq!(connection.rules(T).unwrap().unwrap().len(), 3);
    let mut sets = connection.sets(T).unwrap().unwrap();
    sets.sort();
    assert_eq!(sets, ["c-1-0", "links", "ports", "verdicts"]);
    let keys = connection.keys(T, "links").unwrap().unwrap();
    assert_eq!(keys, [b"eth0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\x01\0\0\x0a\0\0\x01".to_vec()]);
    assert_eq!(connection.keys(T, "nothing").unwrap(), None);

    // Everything can be taken away in one batch, and be there again in the same one.
    let mut batch = Batch::new();
    batch.delete_elements(T, "verdicts", [&verdict]);
    batch.delete_elements(T, "links", [&link]);
    batch.flush_set(T, "ports");
    batch.flush_chain(T, "c-1");
    batch.delete_chain(T, "c-1");
    batch.delete_set(T, "c-1-0");
    batch.add_chain(T, "c-1", "again");
    batch.add_elements(T, "verdicts", [(&verdict, None)]);
    connection.commit(batch).unwrap();
    assert_eq!(connection.rules(T).unwrap().unwrap().len(), 0);
    let mut batch = Batch::new();
    batch.delete_table(Family::Inet, "t");
    connection.commit(batch).unwrap();
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn an_error_names_the_operation_and_undoes_the_batch() {
    needs!(Nftables);
    let (_own, connection) = prepared();
    let before = sh("nft list ruleset");
    let element = Element::key(Fields::new().link("eth0").bytes(&[2, 0, 0, 0, 0, 1]).ip(ip("10.0.0.1")));
    let mut batch = Batch::new();
    batch.add_chain(T, "one", "");
    batch.delete_elements(T, "links", [&element]);
    batch.add_chain(T, "two", "");
    batch.delete_chain(T, "three");
    let error = connection.commit(batch).unwrap_err();
    assert_eq!(error.to_string(), "nf_tables refused: delete elements from set links");
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert_eq!(sh("nft list ruleset"), before);

    // What is used cannot go; the kernel has its own word for some faults.
    let mut batch = Batch::new();
    let verdict = Element {
        key: Fields::new().link("br0").ip(ip("10.0.0.1")),
        last: None,
        value: Value::Verdict(Verdict::Goto("end".into())),
    };
    batch.add_elements(T, "verdicts", [(&verdict, None)]);
    batch.delete_chain(T, "end");
    let error = connection.commit(batch).unwrap_err();
    assert_eq!(
        (error.to_string(), error.errno()),
        ("nf_tables refused: delete chain end".into(), Some(libc::EBUSY))
    );

    // An element that is there already.
    for expected in [None, Some(libc::EEXIST)] {
        let mut batch = Batch::new();
        batch.add_elements(T, "links", [(&element, None)]);
        assert_eq!(connection.commit(batch).err().and_then(|error| error.errno()), expected);
    }

    // Thousands of errors at once.
    let mut batch = Batch::new();
    for _ in 0..5_000 {
        batch.delete_chain(T, "nothing");
    }
    let error = connection.commit(batch).unwrap_err();
    assert_eq!(error.to_string(), "nf_tables refused: delete chain nothing");
    // The connection still works after that.
    assert_eq!(connection.table_comment(T).unwrap().as_deref(), Some("hello"));
}

#[test]
fn overlapping_ranges_are_refused() {
    needs!(Nftables);
    let (_own, connection) = prepared();
    let mut batch = Batch::new();
    batch.add_set(T, "s", &[KeyType::Ipv4, KeyType::Port], 2, "");
    let range = |first: &str, last: &str| Element {
        key: Fields::new().ip(ip(first)).port(1),
        last: Some(Fields::new().ip(ip(last)).port(9)),
        value: Value::None,
    };
    let both = [range("1.0.0.0", "1.0.0.9"), range("1.0.0.8", "1.0.0.20")];
    batch.add_elements(T, "s", both.iter().map(|element| (element, None)));
    let error = connection.commit(batch).unwrap_err();
    assert!(matches!(error, super::Error::Refused { operation: Operation::NewSetElem, .. }), "{error}");
}

#[test]
fn a_batch_and_a_dump_may_be_large() {
    needs!(Nftables);
    let (_own, connection) = prepared();
    let all: Vec<Element> = (0..100_000_u32)
        .map(|number| {
            Element::key(Fields::new().link("eth0").bytes(&[2; 6]).ip(IpAddr::from(number.to_be_bytes())))
        })
        .collect();
    let mut batch = Batch::new();
    batch.add_elements(T, "links", all.iter().map(|element| (element, Some("one of many"))));
    assert!(batch.size() > 5 << 20);
    connection.commit(batch).unwrap();
    assert_eq!(connection.keys(T, "links").unwrap().unwrap().len(), all.len());
}
