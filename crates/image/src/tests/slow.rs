//! Unpacks share a memory budget, and one that waits for its server does not block the others.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::remote::hasty;
use super::{Tar, gzip};
use crate::bounds::room::Room;
use crate::bounds::stop::Stop;
use crate::remote::{Fetch, NamedBy, Terms};
use crate::unpack::pipeline::{Input, run};
use crate::{Digest, Error, Location, Watch};

fn zstd(data: &[u8], log: u32) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Returns incompressible bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Sends two thirds of the body to the client, and the rest on request.
fn halting(listener: &TcpListener, body: &[u8], go_on: &Receiver<()>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let (first, rest) = body.split_at(body.len() / 3 * 2);
    write!(stream, "HTTP/1.1 200 x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(first).unwrap();
    let _ = go_on.recv();
    // The client may have given up.
    let _ = stream.write_all(rest);
}

fn unpack(input: Input<'_>) -> Result<Digest, Error> {
    let read = |mut pieces: crate::unpack::pipeline::Pieces<'_>| {
        std::io::copy(&mut pieces, &mut std::io::sink()).unwrap();
        Ok(())
    };
    run(input, read).map(|((), digests)| digests.plain)
}

#[test]
fn a_server_that_halts_holds_nobody_up() {
    let tar = Tar::default().file("a", &noise(6 << 20)).end();
    let dir = tempfile::tempdir().unwrap();
    let dir = File::open(dir.path()).unwrap();
    for (what, blob) in [
        ("plain", tar.clone()),
        ("gzip", gzip(&tar)),
        ("zstd", zstd(&tar, 23)),
        ("zstd with a large window", zstd(&tar, 25)),
    ] {
        // Room for one unpack.
        let room = Room::new(8 << 20);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let location = Location::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let (slow_watch, fast_watch, remote) = (Watch::default(), Watch::default(), hasty());
        let (go_on, told) = channel();
        thread::scope(|scope| {
            let (blob, room, dir) = (&blob, &room, &dir);
            scope.spawn(move || halting(&listener, blob, &told));
            let slow = scope.spawn(|| {
                let stop = Stop::within(room, &slow_watch);
                let fetch = Fetch {
                    remote: &remote,
                    locations: std::slice::from_ref(&location).into(),
                    by: NamedBy::Caller,
                    mirrors_of: None,
                    digest: true,
                    size: None,
                    limit: u64::MAX,
                    validator: None,
                    stop: &stop,
                    terms: Terms::default(),
                };
                unpack(Input {
                    seen: false,
                    whole: None,
                    reader: Box::new(fetch.start()),
                    what: "slow",
                    size: None,
                    digest: true,
                    only_gzip: false,
                    budget: None,
                    keep_in: Some(dir.as_fd()),
                    stop: &stop,
                })
            });
            while slow_watch.bytes_read() < 3 << 20 {
                thread::sleep(Duration::from_millis(1));
            }
            // Memory taken by a zstd decoder could not be returned.
            let holds = room.free() < 8 << 20;
            let fast = scope.spawn(|| {
                unpack(Input {
                    seen: false,
                    whole: None,
                    reader: Box::new(&blob[..]),
                    what: "fast",
                    size: None,
                    digest: true,
                    only_gzip: false,
                    budget: None,
                    keep_in: None,
                    stop: &Stop::within(room, &fast_watch),
                })
            });
            let started = Instant::now();
            while !fast.is_finished() && started.elapsed() < Duration::from_secs(20) {
                thread::sleep(Duration::from_millis(5));
            }
            fast_watch.cancel();
            let fast = fast.join().unwrap();
            go_on.send(()).unwrap();
            let slow = slow.join().unwrap();
            assert_eq!(fast.unwrap(), Digest::of(&tar), "{what}");
            assert_eq!(slow.unwrap(), Digest::of(&tar), "{what}");
            assert_eq!(holds, !what.starts_with("zstd"), "{what}");
        });
        assert_eq!(slow_watch.bytes_read(), blob.len() as u64, "{what}");
        assert!(!room.is_wanted());
    }
}
