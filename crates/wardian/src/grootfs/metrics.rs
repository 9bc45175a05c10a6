//! Metrics for Metron, Cloud Foundry's agent: value metrics of dropsonde
//! (<https://github.com/cloudfoundry/dropsonde-protocol>, events/envelope.proto and events/metric.proto), each a protobuf
//! message in a UDP packet of its own.
//!
//! Nothing depends on them: one that cannot be sent is a line in the log.

use std::cell::OnceCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message as _;
use wardian_store::{Garbage, Store};

use super::config::Config;
use super::error::chain;
use super::log::Log;
use super::place;

/// What the metrics are said to come from.
const ORIGIN: &str = "grootfs";
/// The type of an envelope with a value metric (`Envelope.EventType`).
const VALUE_METRIC: i32 = 6;

/// The parts of `events.Envelope` that a value metric has.
#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(string, required, tag = "1")]
    origin: String,
    #[prost(int32, required, tag = "2")]
    event_type: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, optional, tag = "6")]
    timestamp: Option<i64>,
    #[prost(message, optional, tag = "9")]
    value_metric: Option<ValueMetric>,
}

/// `events.ValueMetric`.
#[derive(Clone, PartialEq, prost::Message)]
struct ValueMetric {
    #[prost(string, required, tag = "1")]
    name: String,
    #[prost(double, required, tag = "2")]
    value: f64,
    #[prost(string, required, tag = "3")]
    unit: String,
}

/// Why a metric was not sent.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Only the system's resolver could find it, which a static program does not have.
    #[error("the metron endpoint {0:?} is neither ADDRESS:PORT nor localhost:PORT")]
    Endpoint(String),
    #[error(transparent)]
    Socket(#[from] std::io::Error),
}

fn address(endpoint: &str) -> Result<SocketAddr, Error> {
    let local = endpoint.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let local = local.map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    endpoint.parse().ok().or(local).ok_or_else(|| Error::Endpoint(endpoint.to_owned()))
}

fn connect(endpoint: &str) -> Result<UdpSocket, Error> {
    let to = address(endpoint)?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    // A full queue loses a metric; the command does not wait.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Where the metrics of a command go.
pub struct Metrics<'a> {
    /// Without an endpoint in it they go nowhere.
    config: &'a Config,
    log: &'a Log,
    /// `None` if it cannot be made, which is logged once.
    socket: OnceCell<Option<UdpSocket>>,
    started: Instant,
}

impl<'a> Metrics<'a> {
    /// The metrics of a command that begins now.
    pub fn new(config: &'a Config, log: &'a Log) -> Self {
        Self { config, log, socket: OnceCell::new(), started: Instant::now() }
    }

    /// Whether somebody wants them: some take time to find.
    fn are_wanted(&self) -> bool {
        !self.config.metron_endpoint.is_empty()
    }

    fn send(&self, name: &str, value: f64, unit: &str) {
        if !self.are_wanted() {
            return;
        }
        let failed = |error: &dyn std::fmt::Display| self.log.error("failed-to-emit-metric", error);
        let connected = || connect(&self.config.metron_endpoint).inspect_err(|error| failed(error)).ok();
        let socket = self.socket.get_or_init(connected);
        let Some(socket) = socket else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let envelope = Envelope {
            origin: ORIGIN.to_owned(),
            event_type: VALUE_METRIC,
            timestamp: i64::try_from(now.as_nanos()).ok(),
            value_metric: Some(ValueMetric { name: name.to_owned(), value, unit: unit.to_owned() }),
        };
        // The kernel reports here that nobody has received an earlier one (ECONNREFUSED).
        if let Err(error) = socket.send(&envelope.encode_to_vec()) {
            failed(&error);
        }
    }

    /// Sends a duration.
    pub fn duration(&self, name: &str, duration: Duration) {
        self.send(name, duration.as_nanos() as f64, "nanos");
    }

    /// Sends how long the command has taken until now.
    pub fn whole(&self, name: &str) {
        self.duration(name, self.started.elapsed());
    }

    fn bytes(&self, name: &str, bytes: u64) {
        self.send(name, bytes as f64, "bytes");
    }

    /// Sends the bytes of the layers that nobody uses, and of those that somebody does.
    pub fn layers(&self, store: &Store) {
        if !self.are_wanted() {
            return;
        }
        match store.find_garbage(Garbage::Unnamed) {
            Ok(found) => {
                self.bytes("UnusedLayersSize", found.freed_bytes);
                self.bytes("UsedLayersSize", found.kept_bytes);
            }
            Err(error) => self.log.error("failed-to-emit-metric", &chain(&error)),
        }
    }

    /// Sends what the whole store takes and has promised.
    pub fn store(&self, store: &Store) {
        if !self.are_wanted() {
            return;
        }
        let all = store.find_garbage(Garbage::Unnamed).and_then(|found| Ok((found, store.published()?)));
        match all {
            Ok((found, records)) => {
                self.bytes("DownloadedLayersSizeInBytes", found.freed_bytes + found.kept_bytes);
                let promised = records.iter().filter_map(|record| record.bound.bytes).sum();
                self.bytes("CommittedQuotaInBytes", promised);
            }
            Err(error) => self.log.error("failed-to-emit-metric", &chain(&error)),
        }
        match rustix::fs::statvfs(place::path(self.config)) {
            Ok(fs) => {
                let used = fs.f_blocks.saturating_sub(fs.f_bfree).saturating_mul(fs.f_frsize);
                self.bytes("UsedBackingStoreInBytes", used);
            }
            Err(error) => self.log.error("failed-to-emit-metric", &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What protoc makes of the same message.
    #[test]
    fn an_envelope_is_dropsondes() {
        let metric = ValueMetric { name: "N".into(), value: 1.0, unit: "b".into() };
        let envelope = Envelope {
            origin: "g".into(),
            event_type: VALUE_METRIC,
            timestamp: Some(1),
            value_metric: Some(metric),
        };
        let mut expected = vec![0x0a, 1, b'g', 0x10, 6, 0x30, 1, 0x4a, 15, 0x0a, 1, b'N', 0x11];
        expected.extend(1.0_f64.to_le_bytes());
        expected.extend([0x1a, 1, b'b']);
        assert_eq!(envelope.encode_to_vec(), expected);
    }

    #[test]
    fn endpoints_are_addresses() {
        for (text, address_of) in
            [("127.0.0.1:3457", "127.0.0.1:3457"), ("[::1]:1", "[::1]:1"), ("localhost:9", "127.0.0.1:9")]
        {
            assert_eq!(address(text).unwrap().to_string(), address_of);
        }
        for bad in ["", "metron", "metron.example:3457", "127.0.0.1", "127.0.0.1:99999", "localhost:"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
