//! Several endpoints of one image.

use std::time::{Duration, Instant};

use super::*;

/// Endpoints in this order, the last one the registry itself.
fn all(servers: &[&Server]) -> Vec<(Endpoint, Option<Login>)> {
    servers.iter().map(|server| (endpoint(server), None)).collect()
}

#[test]
fn one_after_the_other() {
    let made = Made::new("a", 1000, OCI);
    let bad = |reply: Reply| {
        let mut files = Files::with(&made);
        files.set("manifests/latest", reply);
        files.serve()
    };
    let gone = Files::default().serve().host();
    let good = Files::with(&made).serve();
    let (connect, patience) = (Duration::from_secs(1), Duration::from_millis(500));
    let limited = Client::with(Settings { connect, patience, tries: 5, ..settings() });
    for mirror in [
        bad(Reply::status(404)),
        bad(Reply::status(401)),
        bad(Reply::status(500)),
        bad(Reply::of(b"garbage")),
        bad(Reply { silent: true, ..Reply::default() }),
        bad(Reply::status(429).with("Retry-After", "0")),
    ] {
        let image = limited.open(name("registry.invalid"), all(&[&mirror, &good])).unwrap();
        assert_eq!(image.names, ["registry.invalid/r:latest"]);
        assert!(mirror.requests().len() <= 3, "a mirror is not tried for long: {:?}", mirror.requests());
    }
    let mut endpoints = all(&[&good]);
    endpoints.insert(0, (Endpoint { host: gone, ..endpoint(&good) }, None));
    limited.open(name("registry.invalid"), endpoints).unwrap();
    // One that has the manifest is asked for the blobs first.
    let first = bad(Reply::status(404));
    let client = Client::new();
    let image = client.open(name("registry.invalid"), all(&[&first, &good])).unwrap();
    client.unpack(&image, &Watch::default()).unwrap();
    assert_eq!(first.requests().len(), 2);
    // None has it: the error tells of each.
    let (one, two) = (bad(Reply::status(404)), bad(Reply::status(403)));
    let client = Client::new();
    let result = client.open(name("registry.invalid"), all(&[&one, &two]));
    let parts = [
        "fetching image reference: registry.invalid/r:latest: ",
        &format!("from {}: ", one.host()),
        "manifest unknown",
        &format!("from {}: ", two.host()),
        "requested access to the resource is denied",
    ];
    failed(&client, result, &parts);
}

/// An endpoint that is silent is tried after the others for a while, and only once before.
#[test]
fn silent() {
    let made = Made::new("a", 1000, OCI);
    let good = Files::with(&made).serve();
    let silent = Server::new(vec![Reply { silent: true, ..Reply::default() }]);
    let (connect, patience) = (Duration::from_secs(1), Duration::from_millis(500));
    let client = Client::with(Settings { connect, patience, tries: 5, ..settings() });
    let (events, _) = told(|| {
        for _ in 0..3 {
            let image = client.open(name("registry.invalid"), all(&[&silent, &good])).unwrap();
            client.unpack(&image, &Watch::default()).unwrap();
        }
    });
    assert_eq!(silent.requests().len(), 1);
    let [event] = &events[..] else { panic!("{events:?}") };
    assert!(event.contains("registry.endpoint-failed") && event.contains(&silent.host()), "{event}");
    assert!(event.contains("no answer in 1.5s"), "{event}");
    // It is tried all the same if no other one has the image.
    let empty = Files::default().serve();
    failed(
        &client,
        client.open(name("registry.invalid"), all(&[&silent, &empty])),
        &["no answer in", "unknown"],
    );
    assert_eq!(silent.requests().len(), 2);
}

/// Whoever waits for an image is not held up by a server that asks for more than it is worth.
#[test]
fn waits() {
    let made = Made::new("a", 1000, OCI);
    let good = Files::with(&made).serve();
    let later = |status: u16, seconds: &str| {
        let mut files = Files::with(&made);
        files.set("manifests/latest", Reply::status(status).with("Retry-After", seconds));
        files.serve()
    };
    let asked = |server: &Server| {
        server.requests().iter().filter(|request| path_of(request).contains("manifests/latest")).count()
    };
    let start = Instant::now();
    for (status, parts) in [
        (429, ["the limit is reached (429)", "to be tried again in 3600 s"]),
        (503, ["the registry answered 503", "to be tried again in 3600 s"]),
    ] {
        let (server, client) = (later(status, "3600"), Client::new());
        failed(&client, client.pull(&server), &parts);
        assert_eq!(asked(&server), 1);
    }
    let client = Client::new();
    let mirror = later(429, "20");
    let (events, _) = told(|| client.open(name("registry.invalid"), all(&[&mirror, &good])).unwrap());
    assert_eq!(asked(&mirror), 1);
    assert!(events.len() == 1 && events[0].contains("to be tried again in 20 s"), "{events:?}");
    assert!(start.elapsed() < Duration::from_secs(15));
    // A short one is waited for.
    let brief = later(429, "1");
    client.open(name("registry.invalid"), all(&[&brief, &good])).unwrap();
    assert_eq!(asked(&brief), 2);
    // The registry itself is waited for, and the log says so.
    let registry = later(429, "3");
    let two = Client::with(Settings { tries: 2, ..settings() });
    let (events, result) = told(|| two.pull(&registry));
    assert!(result.is_err() && asked(&registry) == 2);
    let [event] = &events[..] else { panic!("{events:?}") };
    for part in ["registry.waits", "seconds=3", &registry.host(), "the limit is reached"] {
        assert!(event.contains(part), "no {part:?} in {event}");
    }
}

/// A name that does not exist is not looked up again and again.
#[test]
fn of_no_host() {
    let client = Client::with(Settings { backoff: Duration::from_secs(3600), ..settings() });
    for insecure in [false, true] {
        let nowhere = name("registry.invalid");
        let endpoints = vec![(Endpoint { insecure, ..Endpoint::of(&nowhere) }, None)];
        let start = Instant::now();
        let result = client.open(nowhere, endpoints);
        failed(&client, result, &["there is no host of the name registry.invalid"]);
        assert!(start.elapsed() < Duration::from_secs(7));
    }
}

/// The second endpoint continues with a layer where the first one stopped.
#[test]
fn in_the_middle_of_a_layer() {
    let made = Made::new("a", 100_000, OCI);
    let (files, path) = (Files::with(&made), blob(&made.blob));
    let cut = Reply::of(&made.blob).cut(70_000);
    let first = Server::by(
        move |requests| match requests.last().unwrap() {
            request if !request.contains(&path) => files.get(request),
            request if request.contains("range: ") => Reply::status(404),
            _ => cut.clone(),
        },
        None,
    );
    let second = Files::with(&made).serve();
    let client = Client::new();
    let image = client.open(name("registry.invalid"), all(&[&first, &second])).unwrap();
    client.unpack(&image, &Watch::default()).unwrap();
    assert_eq!(client.cage.text("a"), "content");
    let requests = second.requests();
    assert!(requests.last().unwrap().contains("range: bytes=70000-\r\n"), "{requests:?}");
    // The other way round: the registry itself gave the manifest, and a mirror gives the layer.
    let mut files = Files::with(&made);
    files.set(&blob(&made.blob), Reply::status(404));
    let registry = files.serve();
    let mut files = Files::with(&made);
    files.set("manifests/latest", Reply::status(404));
    let mirror = files.serve();
    let client = Client::new();
    let image = client.open(name("registry.invalid"), all(&[&mirror, &registry])).unwrap();
    client.unpack(&image, &Watch::default()).unwrap();
}

/// A repository of a mirror is another one than that of the name.
#[test]
fn of_another_name() {
    let made = Made::new("a", 1000, OCI);
    let server = Files::with(&made).serve();
    let client = Client::new();
    let hub = ImageName::parse("docker.io/x").unwrap();
    let image = client.open(hub, all(&[&server])).unwrap();
    client.unpack(&image, &Watch::default()).unwrap();
    assert_eq!(image.names, ["docker.io/library/x:latest"]);
}
