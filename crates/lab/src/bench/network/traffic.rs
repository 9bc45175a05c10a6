//! TCP from one network namespace to another. Both ends are threads of this process, whatever the network between them:
//! only that differs between two measurements.

use crate::namespace::Namespace;
use crate::report::{median, percentile};
use rustix::net::Shutdown;
use rustix::net::sockopt::set_socket_linger;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time limit of a step of a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one write or read of a stream.
const BLOCK: usize = 256 << 10;
/// Number of threads that accept short connections, and of threads that make them.
const PARALLEL: usize = 4;

/// What was sent, in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// In a second by the clock.
    pub clock: f64,
    /// In a second of processor time, of both ends and of what the kernel does on their behalf: it depends less on what
    /// else the machine does.
    pub processor: f64,
}

impl Rate {
    fn of(amount: f64, begin: Instant, busy: Duration) -> Self {
        let used = self::busy().saturating_sub(busy).as_secs_f64();
        Self { clock: amount / begin.elapsed().as_secs_f64(), processor: amount / used }
    }
}

/// Returns the processor time that this process has used.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// A server of streams and one of short connections.
#[derive(Debug)]
pub struct Site {
    address: IpAddr,
    streams: Service,
    greetings: Service,
}

impl Site {
    /// Starts both in a namespace that has this address.
    pub fn open(namespace: &Namespace, address: IpAddr) -> io::Result<Self> {
        Ok(Self {
            address,
            streams: Service::start(namespace, 1, sink)?,
            greetings: Service::start(namespace, PARALLEL, greet)?,
        })
    }

    /// Sends one stream for this long, in megabytes, until the last byte was read.
    pub fn throughput(&self, from: &Namespace, time: Duration) -> io::Result<Rate> {
        let to = SocketAddr::new(self.address, self.streams.port);
        from.inside(|| {
            let mut stream = connect(to)?;
            let (block, mut sent) = (vec![0; BLOCK], 0);
            let (begin, busy) = (Instant::now(), busy());
            while begin.elapsed() < time {
                stream.write_all(&block)?;
                sent += block.len();
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_exact(&mut [0; 1])?;
            Ok(Rate::of(sent as f64 / 1e6, begin, busy))
        })
    }

    /// Makes this many connections, some of them at once, each of which ends after one byte.
    pub fn connections(&self, from: &Namespace, count: usize) -> io::Result<Rate> {
        let to = SocketAddr::new(self.address, self.greetings.port);
        from.inside(|| {
            let (begin, busy) = (Instant::now(), busy());
            // These threads begin in the namespace of the one that starts them.
            std::thread::scope(|scope| {
                let clients: Vec<_> = (0..PARALLEL)
                    .map(|_| scope.spawn(move || (0..count / PARALLEL).try_for_each(|_| be_greeted(to))))
                    .collect();
                clients.into_iter().try_for_each(|client| match client.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })?;
            Ok(Rate::of((count / PARALLEL * PARALLEL) as f64, begin, busy))
        })
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads a byte, and resets the connection: neither end remembers it, so that ports do not run out.
fn be_greeted(to: SocketAddr) -> io::Result<()> {
    let mut stream = connect(to)?;
    stream.read_exact(&mut [0; 1])?;
    Ok(set_socket_linger(&stream, Some(Duration::ZERO))?)
}

/// Reads a stream to its end, and answers.
fn sink(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    while stream.read(buffer)? > 0 {}
    stream.write_all(b"x")
}

fn greet(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read(buffer).map(drop)
}

type Serve = fn(&mut TcpStream, &mut [u8]) -> io::Result<()>;

/// Threads that accept connections, until this is dropped.
#[derive(Debug)]
struct Service {
    port: u16,
    listener: TcpListener,
    threads: Vec<JoinHandle<()>>,
}

impl Service {
    fn start(namespace: &Namespace, threads: usize, serve: Serve) -> io::Result<Self> {
        let listener = namespace.inside(|| TcpListener::bind("0.0.0.0:0"))?;
        let port = listener.local_addr()?.port();
        let mut service = Self { port, listener, threads: Vec::new() };
        for _ in 0..threads {
            let listener = service.listener.try_clone()?;
            service.threads.push(std::thread::spawn(move || {
                let mut buffer = vec![0; BLOCK];
                while let Ok((mut stream, _)) = listener.accept() {
                    // A client that is gone learns it by itself.
                    let _ = stream.set_read_timeout(Some(PATIENCE));
                    let _ = serve(&mut stream, &mut buffer);
                }
            }));
        }
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Wakes all threads in accept(2).
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The same measured on two networks, by turns.
#[derive(Debug, Default)]
pub struct Turns {
    /// On that of a container.
    pub ours: Vec<f64>,
    /// On the one that was set up by hand.
    pub by_hand: Vec<f64>,
}

impl Turns {
    /// The ratio of the medians.
    pub fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.by_hand)
    }

    /// Adds what was measured one after the other.
    pub fn add(&mut self, ours: f64, by_hand: f64) {
        self.ours.push(ours);
        self.by_hand.push(by_hand);
    }

    /// Medians, and the middle half of the ratios of pairs that were measured one after the other.
    pub fn told(&self) -> String {
        let pairs: Vec<f64> =
            self.ours.iter().zip(&self.by_hand).map(|(ours, theirs)| ours / theirs).collect();
        format!(
            "{:.0} and {:.0} by hand (medians of {} each); ratios of pairs: middle half {:.2} to {:.2}",
            median(&self.ours),
            median(&self.by_hand),
            pairs.len(),
            percentile(&pairs, 25.0),
            percentile(&pairs, 75.0)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_within_a_namespace() {
        wardian_needs::needs!(Root);
        let namespace = Namespace::new().unwrap();
        let site = Site::open(&namespace, "127.0.0.1".parse().unwrap()).unwrap();
        assert!(site.throughput(&namespace, Duration::from_millis(50)).unwrap().clock > 1.0);
        let rate = site.connections(&namespace, 40).unwrap();
        assert!(rate.clock > 1.0 && rate.processor > 1.0 && rate.processor.is_finite());
        // Nothing listens on the host.
        let elsewhere = Namespace::new().unwrap();
        let refused = site.connections(&elsewhere, 4).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn turns() {
        let mut turns = Turns::default();
        [9.0, 10.0, 11.0].into_iter().for_each(|ours| turns.add(ours, 10.0));
        assert!((turns.ratio() - 1.0).abs() < 1e-9);
        assert_eq!(
            turns.told(),
            "10 and 10 by hand (medians of 3 each); ratios of pairs: middle half 0.90 to 1.10"
        );
    }
}
