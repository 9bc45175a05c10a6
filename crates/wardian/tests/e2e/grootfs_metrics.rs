//! The metrics that the program under the name `grootfs` sends to Metron.

use crate::grootfs::World;
use crate::grootfs_images::tar;
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the receiver knows of dropsonde's envelope.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(string, required, tag = "1")]
    origin: String,
    #[prost(int32, required, tag = "2")]
    event_type: i32,
    #[prost(int64, optional, tag = "6")]
    timestamp: Option<i64>,
    #[prost(message, optional, tag = "9")]
    metric: Option<Metric>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, required, tag = "1")]
    name: String,
    #[prost(double, required, tag = "2")]
    value: f64,
    #[prost(string, required, tag = "3")]
    unit: String,
}

struct Metron(UdpSocket);

impl Metron {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    fn endpoint(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// What has come since the last call: a command that has ended has sent all.
    fn received(&self) -> BTreeMap<String, f64> {
        let mut all = BTreeMap::new();
        let mut buffer = [0; 2048];
        while let Ok(length) = self.0.recv(&mut buffer) {
            let envelope = Envelope::decode(&buffer[..length]).unwrap();
            assert_eq!((envelope.origin.as_str(), envelope.event_type), ("grootfs", 6));
            let sent = Duration::from_nanos(envelope.timestamp.unwrap().try_into().unwrap());
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            assert!(now.abs_diff(sent) < Duration::from_secs(60), "{envelope:?}");
            let Metric { name, value, unit } = envelope.metric.unwrap();
            let is_time = name.ends_with("Time");
            assert_eq!(unit, if is_time { "nanos" } else { "bytes" }, "{name}");
            assert!(if is_time { value > 0.0 } else { value >= 0.0 }, "{name}: {value}");
            all.insert(name, value);
        }
        all
    }
}

fn names(metrics: &BTreeMap<String, f64>) -> Vec<&str> {
    metrics.keys().map(String::as_str).collect()
}

#[test]
fn metrics_go_to_the_endpoint() {
    let (world, metron) = (World::new(), Metron::new());
    world.say("init-store");
    let image = |name: &str| {
        let path = world.path(&format!("{name}.tar"));
        fs::write(&path, tar(&[(name, b"0123456789")])).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let flag = format!("--metron-endpoint {}", metron.endpoint());
    let run = |args: &str| world.say(&format!("{flag} {args}"));

    let a = image("a");
    run(&format!("create {a} one"));
    let sent = metron.received();
    let of_create = [
        "CommittedQuotaInBytes",
        "DownloadedLayersSizeInBytes",
        "ImageCreationTime",
        "UnpackTime",
        "UnusedLayersSize",
        "UsedBackingStoreInBytes",
        "UsedLayersSize",
    ];
    assert_eq!(names(&sent), of_create);
    // What a layer takes is up to the file system.
    let layer = sent["UsedLayersSize"];
    assert!(layer >= 10.0 && sent["DownloadedLayersSizeInBytes"] == layer, "{sent:?}");
    assert_eq!((sent["UnusedLayersSize"], sent["CommittedQuotaInBytes"]), (0.0, 0.0));
    assert!(sent["UsedBackingStoreInBytes"] > 0.0);
    // Nothing is unpacked a second time.
    run(&format!("create {a} two"));
    assert!(!metron.received().contains_key("UnpackTime"));

    run("delete one");
    run("delete two");
    let sent = metron.received();
    assert_eq!(names(&sent), ["ImageDeletionTime", "UnusedLayersSize", "UsedLayersSize"]);
    assert_eq!((sent["UnusedLayersSize"], sent["UsedLayersSize"]), (layer, 0.0));

    // What fails is told, too, but not what a store has that was not changed.
    world.fail(&format!("{flag} create {} bad", world.path("none.tar").display()));
    assert_eq!(names(&metron.received()), ["ImageCreationTime", "UnusedLayersSize", "UsedLayersSize"]);
    run("clean --threshold-bytes 1000000");
    let sent = metron.received();
    assert_eq!(
        (names(&sent), sent["UnusedLayersSize"]),
        (vec!["ImageCleanTime", "UnusedLayersSize", "UsedLayersSize"], layer)
    );

    // By the configuration; the clean that follows a create tells of the layers, and it is told where to.
    let file = format!("store: {}\nmetron_endpoint: {}\n", world.path("st").display(), metron.endpoint());
    fs::write(world.path("c.yml"), file).unwrap();
    let made = world.shell(&format!("grootfs --config c.yml create --with-clean {} three", image("b")));
    assert_eq!(made.code, Some(0), "{made:?}");
    let mut all = metron.received();
    let started = std::time::Instant::now();
    while !all.contains_key("UsedLayersSize") {
        assert!(started.elapsed() < crate::grootfs::SOON, "{all:?}");
        std::thread::sleep(Duration::from_millis(5));
        all.extend(metron.received());
    }
    assert!(all.contains_key("ImageCreationTime") && all.contains_key("ImageCleanTime"), "{all:?}");
    assert_eq!((all["UnusedLayersSize"], all["UsedLayersSize"]), (0.0, layer));
    world.say("delete three");
    world.until_clean();
    world.finish();
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_a_line_in_the_log() {
    let world = World::new();
    world.say("init-store");
    let image = world.path("a.tar");
    fs::write(&image, tar(&[("a", b"x")])).unwrap();
    for (n, endpoint) in ["metron.example:3457", "nonsense", "127.0.0.1:99999"].iter().enumerate() {
        let create = format!("--metron-endpoint {endpoint} create {} i{n}", image.display());
        let said = world.grootfs(&format!("--log-level error {create}"));
        assert_eq!(said.code, Some(0), "{said:?}");
        let lines: Vec<_> = said.err.lines().collect();
        assert!(
            lines.len() == 1 && lines[0].contains("failed-to-emit-metric") && lines[0].contains(endpoint),
            "{said:?}"
        );
        // Nobody listens, or nobody is asked: the command does not care.
        world.say(&format!("--metron-endpoint {endpoint} delete i{n}"));
    }
    world.until_clean();
    world.finish();
}
