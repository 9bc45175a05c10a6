use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use wardian_needs::needs;
use wardian_network::link;
use wardian_network::tc::{self, LEAST_BURST, Limit};

use crate::world::{Container, GROUP, Subnet, on_a_host, run};

const MB: u64 = 1_000_000;

/// Sends `bytes` over TCP from one container to another and returns the rate in bytes a second.
fn rate(from: &Container, to: &Container, bytes: u64) -> f64 {
    let listener = to.within(|| TcpListener::bind((to.v4, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let mut sender = from.within(|| TcpStream::connect(address).unwrap());
    let mut receiver = listener.accept().unwrap().0;
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..bytes / 10_000 {
                sender.write_all(&[0; 10_000]).unwrap();
            }
        });
        let mut buffer = vec![0; 1 << 16];
        while receiver.read(&mut buffer).unwrap() > 0 {}
    });
    bytes as f64 / start.elapsed().as_secs_f64()
}

fn about(rate: f64, limit: u64) -> bool {
    let limit = limit as f64;
    rate < limit * 1.15 && rate > limit * 0.7
}

#[test]
fn bandwidth_is_limited_in_the_direction_that_was_asked_for() {
    needs!(Nftables, TrafficControl);
    on_a_host(|route| {
        let subnet = Subnet::new(route, 1);
        let (a, b) = (Container::new(route, &subnet, 2), Container::new(route, &subnet, 3));
        assert!(rate(&a, &b, 20 * MB) > 50e6);
        assert_eq!(tc::read(route, a.host_index).unwrap(), Limit::NONE);
        // There is nothing to remove.
        tc::limit_towards(route, a.host_index, Limit::NONE).unwrap();
        tc::remove_from(route, a.host_index, "ifb").unwrap();

        let slow = Limit { rate: 5 * MB, burst: 64_000 };
        tc::limit_towards(route, a.host_index, slow).unwrap();
        assert_eq!(tc::read(route, a.host_index).unwrap(), slow);
        let (towards, from) = (rate(&b, &a, 5 * MB), rate(&a, &b, 20 * MB));
        assert!(about(towards, 5 * MB) && from > 20e6, "{towards} {from}");
        // Changed while it is there.
        tc::limit_towards(route, a.host_index, Limit { rate: 10 * MB, burst: 0 }).unwrap();
        let read = tc::read(route, a.host_index).unwrap();
        assert_eq!((read.rate, read.burst), (10 * MB, LEAST_BURST));
        let towards = rate(&b, &a, 10 * MB);
        assert!(about(towards, 10 * MB), "{towards}");
        tc::limit_towards(route, a.host_index, Limit::NONE).unwrap();

        let device = tc::limit_from(route, a.host_index, slow, "wifb", GROUP).unwrap();
        assert_eq!(tc::read(route, device).unwrap(), slow);
        let (towards, from) = (rate(&b, &a, 20 * MB), rate(&a, &b, 5 * MB));
        assert!(about(from, 5 * MB) && towards > 20e6, "{towards} {from}");
        let faster = Limit { rate: 10 * MB, ..slow };
        assert_eq!(tc::limit_from(route, a.host_index, faster, "wifb", GROUP).unwrap(), device);
        let from = rate(&a, &b, 10 * MB);
        assert!(about(from, 10 * MB), "{from}");
        // The device was deleted by somebody else.
        run("ip link delete wifb");
        tc::limit_from(route, a.host_index, slow, "wifb", GROUP).unwrap();
        let from = rate(&a, &b, 5 * MB);
        assert!(about(from, 5 * MB), "{from}");
        let shown = run(&format!("tc filter show dev {} ingress", a.host));
        assert_eq!(shown.matches("Egress Redirect to device wifb").count(), 1, "{shown}");
        tc::remove_from(route, a.host_index, "wifb").unwrap();
        assert!(rate(&a, &b, 20 * MB) > 50e6);
        assert_eq!(run(&format!("tc qdisc show dev {} ingress", a.host)), "");
        assert_eq!(link::find_by_name(route, "wifb").unwrap(), None);
    });
}

#[test]
fn limits_at_the_ends_of_their_ranges() {
    needs!(Nftables, TrafficControl);
    on_a_host(|route| {
        let subnet = Subnet::new(route, 1);
        let a = Container::new(route, &subnet, 2);
        for rate in
            [1, 1000, u64::from(u32::MAX) - 1, u32::MAX.into(), 1 << 32, 1 << 40, u64::MAX / 8, u64::MAX]
        {
            for burst in [0, LEAST_BURST + 1, 1 << 20, u32::MAX] {
                match tc::limit_towards(route, a.host_index, Limit { rate, burst }) {
                    Ok(()) => assert_eq!(tc::read(route, a.host_index).unwrap().rate, rate, "{burst}"),
                    Err(error) => panic!("{rate} {burst}: {error:?}"),
                }
            }
        }
        let error = tc::limit_from(route, a.host_index, Limit::NONE, "wifb", GROUP).unwrap_err();
        assert!(matches!(error, tc::Error::Set { direction: "from", .. }), "{error:?}");
        assert_eq!(link::find_by_name(route, "wifb").unwrap(), None);
        // A name of somebody else's.
        run("ip link add theirs type ifb");
        let limit = Limit { rate: 1000, burst: 0 };
        let error = tc::limit_from(route, a.host_index, limit, "theirs", GROUP).unwrap_err();
        assert!(matches!(error, tc::Error::Device { .. }), "{error:?}");
        assert!(tc::limit_towards(route, 9999, limit).is_err());
        assert!(tc::limit_from(route, 9999, limit, "wifb", GROUP).is_err());
        tc::remove_from(route, 9999, "wifb").unwrap();
        assert_eq!(link::of_group(route, GROUP).unwrap().len(), 2);
    });
}
