//! Benchmarks of the network of containers, on servers whose host is a network namespace of the benchmark's own.

mod crowd;
mod traffic;
mod world;

use super::Figures;
use crate::host::{Host, ms};
use crate::local::{Extras, LocalServer};
use crate::namespace::Namespace;
use crate::progress::Progress;
use crate::report::{median, percentile};
use crate::{Interrupted, image, interrupted};
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use traffic::{Rate, Site, Turns};
use wardian_garden::Client;
use wardian_garden::wire::{BulkInfo, ContainerSpec, ImageRef, IpRange, NetOutRule, Operation, PortRange};
use world::{ByHand, Left, World};

/// Number of creates that find everything made ahead, and the pause in which it is made again.
const WARM: usize = 100;
const PAUSE: Duration = Duration::from_millis(100);
/// A burst that is larger than what servers make ahead: 12 of everything, of which they keep at least a third.
const BURST: usize = 64;
const AHEAD: usize = 12;
const BURSTS: usize = 3;
/// Number of pairs of privileged containers.
const PRIVILEGED: usize = 40;
/// Number of creates with and without a network, alternating.
const TURNS: usize = 100;
/// Between two of them, so that they find what is made ahead: servers refill a pool 20 ms after it was last used.
const REFILL: Duration = Duration::from_millis(50);
/// Numbers of containers that are created at once, and how often.
const FEW: usize = 50;
const MANY: usize = 250;
const ROUNDS: usize = 3;
/// What destroyed containers have left is counted after this time.
const SETTLED: Duration = Duration::from_secs(2);
/// Number of egress rules of one call, and of calls.
const RULES: usize = 3000;
const CALLS: usize = 9;
/// Number of streams and of bundles of connections on each network, the length of a stream, and the size of a bundle:
/// short ones, so that both networks meet the same of what else the machine does.
const TRAFFIC: usize = 41;
const STREAM: Duration = Duration::from_millis(250);
const CONNECTIONS: usize = 500;
/// The usual number of containers in the crowd.
pub const CROWD: usize = 1000;
/// The pool of subnets: enough for 4096 containers.
const POOL: &str = "10.254.0.0/18";

/// A server and the namespace that is the host's to it.
struct Server {
    server: LocalServer,
    host: Arc<Namespace>,
    client: Client,
    image: String,
}

/// Where servers are started.
struct Ground<'a> {
    program: &'a Path,
    location: Option<&'a Path>,
    world: World,
}

impl Ground<'_> {
    /// Starts a server on a host of its own.
    async fn start(&self, driver: &str) -> Result<Server> {
        let host = self.world.host()?;
        let args = ["--network", driver, "--network-pool", POOL].map(str::to_owned).to_vec();
        let extras = Extras { args, namespace: Some(host.clone()) };
        let server = LocalServer::start_with(self.program, self.location, extras).await?;
        let client = server.client()?;
        let image = server.dir().join("image.tar").display().to_string();
        Ok(Server { server, host, client, image })
    }
}

impl Server {
    /// Has the server import the image.
    async fn warm(&self) -> Result<()> {
        image::build(Path::new(&self.image))?;
        self.create("bench-warm").await?;
        self.destroy("bench-warm").await
    }

    /// Creates a container. Returns the time that it took, in milliseconds.
    async fn create(&self, handle: &str) -> Result<f64> {
        create(&self.client, &self.image, handle).await
    }

    async fn destroy(&self, handle: &str) -> Result<()> {
        self.client.destroy(handle).await.with_context(|| format!("destroy {handle}"))
    }

    /// Returns the phases of the create of a container.
    async fn created(&self, handle: &str) -> Result<Operation> {
        let history = self.client.history(handle).await?;
        history.create.with_context(|| format!("the create of {handle} has been forgotten"))
    }

    /// Returns the phases of the destroy of a container.
    async fn destroyed(&self, handle: &str) -> Result<Operation> {
        let history = self.client.history(handle).await?;
        history.destroy.with_context(|| format!("the destroy of {handle} has been forgotten"))
    }
}

async fn create(client: &Client, image: &str, handle: &str) -> Result<f64> {
    let image = ImageRef { uri: image.to_owned(), ..Default::default() };
    let spec = ContainerSpec { handle: handle.to_owned(), image, ..Default::default() };
    let begin = Instant::now();
    client.create(&spec).await.with_context(|| format!("create {handle}"))?;
    Ok(ms(begin.elapsed()))
}

/// Returns the milliseconds of an operation that some of its phases took.
fn phases(operation: &Operation, names: &[&str]) -> f64 {
    operation.steps.iter().filter(|step| names.contains(&step.name.as_str())).map(|step| step.ms).sum()
}

/// Returns the median of the duration of each phase, in the order of the first operation's phases.
fn medians(operations: &[Operation]) -> Vec<(String, f64)> {
    let Some(first) = operations.first() else { return Vec::new() };
    let all = |name: &str| operations.iter().map(|one| phases(one, &[name])).collect::<Vec<f64>>();
    first.steps.iter().map(|step| (step.name.clone(), median(&all(&step.name)))).collect()
}

/// The phases of a create in which it gets its address, its link and its rules.
const NETWORK: [&str; 2] = ["address", "network"];
/// The same where nothing has been made ahead: the link is made with the namespaces.
const NETWORK_AND_LINK: [&str; 3] = ["namespaces", "address", "network"];

/// Measures the network. `crowd` is the number of containers beside which creates are timed; 0: that is left out.
pub async fn run(program: &Path, location: Option<&Path>, crowd: usize, figures: &mut Figures) -> Result<()> {
    let progress = Progress::new();
    figures.host = Host::probe(location);
    let ground = Ground { program, location, world: World::new()? };
    let mut servers = Vec::new();
    let measured = tokio::select! {
        measured = measure(&ground, crowd, &mut servers, figures, &progress) => measured,
        signal = interrupted() => Err(Interrupted(signal?).into()),
    };
    if measured.is_err() {
        progress.say("cleaning up");
    }
    let mut stopped = Ok(());
    for server in servers {
        let complaints = server.server.complaints();
        if measured.as_ref().is_err_and(|error| !error.is::<Interrupted>()) {
            progress.say(&complaints);
        }
        let result = server.server.stop().await;
        stopped = stopped.and(result);
    }
    measured?;
    stopped?;
    figures.notes.push(format!("The load was {} at the end.", Host::probe(None).load));
    Ok(())
}

async fn measure(
    ground: &Ground<'_>,
    crowd: usize,
    servers: &mut Vec<Server>,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    for driver in ["bridge", "none"] {
        servers.push(ground.start(driver).await?);
    }
    for server in &*servers {
        server.warm().await?;
    }
    let [bridged, plain] = &servers[..] else { return Err(anyhow!("two servers were started")) };
    figures.host = Host::probe(Some(&bridged.server.root()));
    warm(bridged, figures, progress).await?;
    bursts(bridged, plain, figures, progress).await?;
    whole(bridged, plain, figures, progress).await?;
    at_once(bridged, figures, progress).await?;
    rules(bridged, figures, progress).await?;
    traffic(ground, bridged, figures, progress).await?;
    if crowd == 0 {
        figures.notes.push("Creates beside a crowd of containers, and memory, were left out.".into());
        return Ok(());
    }
    for driver in ["bridge", "none"] {
        servers.push(ground.start(driver).await?);
    }
    let [bridged, plain, crowd_bridged, crowd_plain] = &servers[..] else {
        return Err(anyhow!("four servers were started"));
    };
    for server in [crowd_bridged, crowd_plain] {
        server.warm().await?;
    }
    // New servers get the crowd: the others still have the memory of all the containers before.
    crowd::measure([(crowd_bridged, bridged), (crowd_plain, plain)], crowd, figures, progress).await
}

/// Creates and destroys with pauses, in which the servers make everything ahead.
async fn warm(server: &Server, figures: &mut Figures, progress: &Progress) -> Result<()> {
    progress.say("create and destroy, with pauses");
    let (mut creates, mut destroys) = (Vec::new(), Vec::new());
    for n in 0..WARM {
        let handle = format!("bench-network-{n}");
        tokio::time::sleep(PAUSE).await;
        server.create(&handle).await?;
        creates.push(phases(&server.created(&handle).await?, &NETWORK));
        tokio::time::sleep(PAUSE).await;
        server.destroy(&handle).await?;
        destroys.push(phases(&server.destroyed(&handle).await?, &["network"]));
    }
    figures.put("network part of a create, link made ahead, p50", "ms", 0.5, 50.0, median(&creates));
    figures.put("the same, p99 of 100", "ms", None, None, percentile(&creates, 99.0));
    figures.put("network part of a destroy, p50", "ms", 0.2, None, median(&destroys));
    figures.put("the same, p99", "ms", None, None, percentile(&destroys, 99.0));
    Ok(())
}

/// The phases of creates that came too fast for what is made ahead.
async fn burst(server: &Server) -> Result<Vec<Operation>> {
    let mut tasks = JoinSet::new();
    for n in 0..BURST {
        let (client, image) = (server.client.clone(), server.image.clone());
        tasks.spawn(async move { create(&client, &image, &format!("bench-burst-{n}")).await });
    }
    for created in tasks.join_all().await {
        created?;
    }
    let mut operations = Vec::new();
    for n in 0..BURST {
        let handle = format!("bench-burst-{n}");
        operations.push(server.created(&handle).await?);
        server.destroy(&handle).await?;
    }
    tokio::time::sleep(SETTLED).await;
    // The first may have found something.
    operations.sort_by(|a, b| taken(a).total_cmp(&taken(b)));
    Ok(operations.split_off(AHEAD))
}

/// Returns when a create came to take what is made ahead.
fn taken(operation: &Operation) -> f64 {
    let step = operation.steps.iter().find(|step| step.name == "namespaces");
    operation.began_ms / 1e3 + step.map_or(0.0, |step| step.begin_ms / 1e3)
}

async fn bursts(bridged: &Server, plain: &Server, figures: &mut Figures, progress: &Progress) -> Result<()> {
    progress.say("more creates at once than are prepared");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..BURSTS {
        with.extend(burst(bridged).await?);
        without.extend(burst(plain).await?);
    }
    let of = |operations: &[Operation], names: &[&str]| {
        median(&operations.iter().map(|one| phases(one, names)).collect::<Vec<f64>>())
    };
    let name = "network part of a create, in bursts of 64, p50";
    figures.put(name, "ms", 3.0, 50.0, of(&with, &NETWORK_AND_LINK));
    let parts: Vec<f64> = with.iter().map(|one| phases(one, &NETWORK_AND_LINK)).collect();
    figures.put("the same, p99", "ms", None, None, percentile(&parts, 99.0));
    let name = "the same, privileged, nothing made ahead, p50";
    figures.put(name, "ms", 3.0, 50.0, median(&privileged(bridged).await?));
    figures.notes.push(format!(
        "In bursts of {BURST}, p50: the phase namespaces {:.2} ms ({:.2} without a network), address {:.2}, network {:.2}.",
        of(&with, &["namespaces"]),
        of(&without, &["namespaces"]),
        of(&with, &["address"]),
        of(&with, &["network"])
    ));
    Ok(())
}

/// The network part of creates that find nothing made ahead: of two privileged containers at once only one does. In
/// bursts of others the servers keep up.
async fn privileged(server: &Server) -> Result<Vec<f64>> {
    let handles = ["bench-privileged-0", "bench-privileged-1"];
    let mut parts = Vec::new();
    for _ in 0..PRIVILEGED {
        let both = handles.map(|handle| {
            let image = ImageRef { uri: server.image.clone(), ..Default::default() };
            let spec =
                ContainerSpec { handle: handle.to_owned(), image, privileged: true, ..Default::default() };
            let client = server.client.clone();
            async move { client.create(&spec).await.with_context(|| format!("create {handle}")) }
        });
        let [one, other] = both;
        tokio::try_join!(one, other)?;
        let (one, other) = (server.created(handles[0]).await?, server.created(handles[1]).await?);
        let later = if taken(&one) > taken(&other) { one } else { other };
        parts.push(phases(&later, &NETWORK_AND_LINK));
        for handle in handles {
            server.destroy(handle).await?;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(parts)
}

/// Whole creates with and without a network, by turns.
async fn whole(bridged: &Server, plain: &Server, figures: &mut Figures, progress: &Progress) -> Result<()> {
    progress.say("create with and without a network, by turns");
    let with_pauses = "create with a network, of what it takes without, by turns";
    for (name, pause) in [(with_pauses, REFILL), ("the same, back to back", Duration::ZERO)] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for n in 0..TURNS {
            for (server, times) in [(bridged, &mut with), (plain, &mut without)] {
                let handle = format!("bench-turn-{n}");
                tokio::time::sleep(pause).await;
                times.push(server.create(&handle).await?);
                server.destroy(&handle).await?;
            }
        }
        figures.notes.push(format!(
            "{name}: p50 (middle half) {:.2} ms ({:.2} to {:.2}) with, {:.2} ms ({:.2} to {:.2}) without.",
            median(&with),
            percentile(&with, 25.0),
            percentile(&with, 75.0),
            median(&without),
            percentile(&without, 25.0),
            percentile(&without, 75.0)
        ));
        figures.put(name, "ratio", 1.15, None, median(&with) / median(&without));
    }
    Ok(())
}

/// Returns the name of the host's end of a container's link.
fn link_of(info: BulkInfo) -> Option<String> {
    info.info.properties?.remove("kawasaki.host-interface")
}

/// Many containers at once: errors, cost of each, what they leave.
async fn at_once(server: &Server, figures: &mut Figures, progress: &Progress) -> Result<()> {
    progress.say("50 and 250 containers at once, by turns");
    let before = Left::look(&server.host)?;
    let (mut few, mut many, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let (mut errors, mut links, mut left) = (Vec::new(), HashSet::new(), 0);
    for _ in 0..ROUNDS {
        for (count, times) in [(FEW, &mut few), (MANY, &mut many)] {
            let handles: Vec<String> = (0..count).map(|n| format!("bench-once-{n}")).collect();
            let begin = Instant::now();
            let mut tasks = JoinSet::new();
            for handle in handles.clone() {
                let (client, image) = (server.client.clone(), server.image.clone());
                tasks.spawn(async move { create(&client, &image, &handle).await.map(drop) });
            }
            errors.extend(tasks.join_all().await.into_iter().filter_map(Result::err));
            times.push(ms(begin.elapsed()) / count as f64);
            let names: Vec<&str> = handles.iter().map(String::as_str).collect();
            let infos = server.client.bulk_info(&names).await?;
            links.extend(infos.into_values().filter_map(link_of));
            let begin = Instant::now();
            let mut tasks = JoinSet::new();
            for handle in handles {
                let client = server.client.clone();
                tasks.spawn(async move {
                    client.destroy(&handle).await.with_context(|| format!("destroy {handle}"))
                });
            }
            errors.extend(tasks.join_all().await.into_iter().filter_map(Result::err));
            ends.push(ms(begin.elapsed()) / count as f64);
            tokio::time::sleep(SETTLED).await;
            left = left.max(Left::look(&server.host)?.links.intersection(&links).count());
        }
    }
    let after = Left::look(&server.host)?;
    ensure!(links.len() + errors.len() >= ROUNDS * (FEW + MANY), "only {} links are known", links.len());
    if let Some(first) = errors.first() {
        figures.notes.push(format!("The first of {} errors: {first:#}", errors.len()));
    }
    figures.put("250 containers at once: errors", "", 0.0, None, errors.len() as f64);
    figures.put("create, 250 at once, each", "ms", None, None, median(&many));
    figures.put("the same, of 50 at once", "ratio", 1.1, None, median(&many) / median(&few));
    figures.put("destroy, 50 and 250 at once, each", "ms", None, None, median(&ends));
    figures.put("links left 2 s after 250 containers", "", 0.0, None, left as f64);
    let rules = (after.elements + after.objects).saturating_sub(before.elements + before.objects);
    figures.put("elements, sets, chains and rules left then", "", 0.0, None, rules as f64);
    figures.notes.push(format!(
        "Veth pairs made ahead {} before and {} after; bridges of free subnets, a bounded pool, {} and {}; elements {} and {}.",
        before.links.len(),
        after.links.len(),
        before.bridges,
        after.bridges,
        before.elements,
        after.elements
    ));
    Ok(())
}

/// A platform's rules: each a small network and a range of TCP ports, no two of them alike.
fn egress(count: usize) -> Vec<NetOutRule> {
    let rule = |n: u32| {
        let first = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + n * 64;
        let range =
            IpRange { start: Ipv4Addr::from(first).to_string(), end: Ipv4Addr::from(first + 15).to_string() };
        #[allow(clippy::cast_possible_truncation)]
        let port = 1024 + (n % 1000) as u16;
        NetOutRule {
            protocol: 1,
            networks: vec![range],
            ports: vec![PortRange { start: port, end: port + 10 }],
            ..Default::default()
        }
    };
    #[allow(clippy::cast_possible_truncation)]
    (0..count as u32).map(rule).collect()
}

async fn rules(server: &Server, figures: &mut Figures, progress: &Progress) -> Result<()> {
    progress.say("3,000 egress rules");
    let pid = server.server.pid().context("the server has died")?;
    let (rules, mut times, mut used) = (egress(RULES), Vec::new(), Vec::new());
    for n in 0..CALLS {
        let handle = format!("bench-rules-{n}");
        server.create(&handle).await?;
        tokio::time::sleep(REFILL).await;
        let (begin, before) = (Instant::now(), processor_ms(pid)?);
        server.client.bulk_net_out(&handle, &rules).await.context("set egress rules")?;
        times.push(ms(begin.elapsed()));
        used.push(processor_ms(pid)? - before);
        server.destroy(&handle).await?;
    }
    figures.put("3,000 egress rules by one call, p50 of 9", "ms", 30.0, None, median(&times));
    figures.put("the same, processor time of the server", "ms", None, None, median(&used));
    Ok(())
}

/// Returns the processor time of all threads of a process, in milliseconds.
fn processor_ms(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).context("look at the server's threads")?;
    for thread in threads.flatten() {
        // A thread may have ended meanwhile.
        sum +=
            nanoseconds(&std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default()) / 1e6;
    }
    Ok(sum)
}

/// Returns the time on a processor from the text of schedstat (Documentation/scheduler/sched-stats.rst).
fn nanoseconds(schedstat: &str) -> f64 {
    schedstat.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0.0)
}

/// TCP from a container into the internet, alternating with TCP from a namespace that was connected by hand.
async fn traffic(
    ground: &Ground<'_>,
    server: &Server,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    progress.say("TCP through NAT, by turns with a network set up by hand");
    let handle = "bench-traffic";
    server.create(handle).await?;
    let container = Arc::new(world::of_container(&server.created(handle).await?.id)?);
    let by_hand = Arc::new(ByHand::set_up(ground.world.host()?)?);
    let address = World::SITE.parse().context("the site's address")?;
    let site = Arc::new(Site::open(&ground.world.internet, address).context("open a site")?);
    let [mut streams, mut connections, mut sent, mut connected] = <[Turns; 4]>::default();
    // The first round, in which neighbours are found, does not count.
    for round in 0..=TRAFFIC {
        let (site, container, by_hand) = (site.clone(), container.clone(), by_hand.clone());
        let measured = tokio::task::spawn_blocking(move || {
            // Neither is always the first.
            let by_turns = |measure: &dyn Fn(&Namespace) -> std::io::Result<Rate>| {
                if round % 2 == 0 {
                    let ours = measure(&container)?;
                    std::io::Result::Ok((ours, measure(&by_hand.container)?))
                } else {
                    let theirs = measure(&by_hand.container)?;
                    Ok((measure(&container)?, theirs))
                }
            };
            let rates = by_turns(&|from| site.throughput(from, STREAM))?;
            std::io::Result::Ok((rates, by_turns(&|from| site.connections(from, CONNECTIONS))?))
        });
        let (stream, bundle) = measured.await?.context("send through NAT")?;
        if round > 0 {
            streams.add(stream.0.clock, stream.1.clock);
            sent.add(stream.0.processor, stream.1.processor);
            connections.add(bundle.0.clock, bundle.1.clock);
            connected.add(bundle.0.processor, bundle.1.processor);
        }
    }
    figures.put_at_least("TCP throughput through NAT, of that by hand", "ratio", 0.95, streams.ratio());
    figures.put("the same, per processor time", "ratio", None, None, sent.ratio());
    let name = "TCP connections through NAT, of those by hand";
    figures.put_at_least(name, "ratio", 0.95, connections.ratio());
    figures.put("the same, per processor time", "ratio", None, None, connected.ratio());
    for (what, turns) in [
        ("TCP throughput through NAT in MB/s", streams),
        ("The same in MB per second of processor time", sent),
        ("TCP connections through NAT in a second", connections),
        ("The same in a second of processor time", connected),
    ] {
        figures.notes.push(format!("{what}: {}.", turns.told()));
    }
    server.destroy(handle).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_garden::wire::Step;

    fn operation(began_ms: f64, steps: &[(&str, f64, f64)]) -> Operation {
        let step = |(name, begin_ms, ms): &(&str, f64, f64)| Step {
            name: (*name).to_owned(),
            begin_ms: *begin_ms,
            ms: *ms,
        };
        Operation { began_ms, steps: steps.iter().map(step).collect(), ..Operation::default() }
    }

    #[test]
    fn the_network_part_is_the_sum_of_its_phases() {
        let one = operation(0.0, &[("namespaces", 0.0, 1.0), ("address", 1.0, 0.25), ("network", 2.0, 0.5)]);
        assert!((phases(&one, &NETWORK) - 0.75).abs() < 1e-9);
        assert!((phases(&one, &NETWORK_AND_LINK) - 1.75).abs() < 1e-9);
        assert!(phases(&operation(0.0, &[]), &NETWORK).abs() < 1e-9);
    }

    #[test]
    fn medians_of_phases() {
        let all = [1.0, 2.0, 4.0].map(|ms| operation(0.0, &[("image", 0.0, ms), ("launch", ms, 2.0 * ms)]));
        assert_eq!(medians(&all), [("image".to_owned(), 2.0), ("launch".to_owned(), 4.0)]);
        assert!(medians(&[]).is_empty());
    }

    #[test]
    fn creates_are_in_the_order_in_which_they_took_what_is_ready() {
        let waited = operation(10_000.0, &[("namespaces", 500.0, 1.0)]);
        let later = operation(10_200.0, &[("namespaces", 1.0, 1.0)]);
        assert!(taken(&later) < taken(&waited));
    }

    #[test]
    fn processor_time() {
        assert!((nanoseconds("1500000 20 3\n") - 1.5e6).abs() < 1e-9);
        assert!(nanoseconds("").abs() < 1e-9);
        assert!(processor_ms(std::process::id()).unwrap() > 0.0);
    }

    #[test]
    fn no_two_egress_rules_are_alike() {
        let rules = egress(RULES);
        let networks: HashSet<&str> = rules.iter().map(|rule| rule.networks[0].start.as_str()).collect();
        assert_eq!(networks.len(), RULES);
        assert_eq!(rules[1].networks[0], IpRange { start: "10.0.0.64".into(), end: "10.0.0.79".into() });
    }
}
