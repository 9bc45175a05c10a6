//! Layers of servers that fail, and the parts that are kept for the next try.

use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::*;

const MIB: usize = 1 << 20;

/// A server of an image whose layer is answered by `reply`.
fn serve(made: &Made, reply: Reply) -> Server {
    let mut files = Files::with(made);
    files.set(&blob(&made.blob), reply);
    files.serve()
}

fn requests_of<'a>(requests: &'a [String], made: &Made) -> Vec<&'a String> {
    let path = blob(&made.blob);
    requests.iter().filter(|request| request.contains(&path)).collect()
}

#[test]
fn hostile() {
    let made = Made::new("a", 3 * MIB, OCI);
    let whole = || Reply { ranges: true, ..Reply::of(&made.blob) };
    let size = made.blob.len();
    let mut other = made.blob.clone();
    other[size - 100] ^= 1;
    let longer = [&made.blob[..], b"x"].concat();
    let wrong = Made::new("other", 3 * MIB, OCI).blob;
    let (connect, patience) = (Duration::from_secs(1), Duration::from_millis(500));
    for (reply, parts) in [
        (whole().hang(0), ["fetching blob", "the server hangs"]),
        (whole().hang(1000), ["fetching blob", "the server hangs"]),
        (Reply { silent: true, ..whole() }, ["fetching blob", "no answer in"]),
        (Reply { drip: true, ..whole() }, ["fetching blob", "the server hangs"]),
        (Reply { reset: true, ..whole() }, ["fetching blob", "127.0.0.1"]),
        (Reply { ranges: false, ..whole() }.cut(1000), ["fetching blob", "is truncated"]),
        (Reply::of(&longer), ["fetching blob", &format!("got {}", size + 1)]),
        (Reply::of(&made.blob[..size - 1]), ["fetching blob", &format!("got {}", size - 1)]),
        (Reply { no_length: true, ..Reply::of(&longer) }, ["expected", &format!("got {}", size + 1)]),
        (Reply { no_length: true, ..Reply::of(&made.blob[..99]) }, ["fetching blob", "got 99"]),
        (Reply { endless: true, ..whole() }, ["expected", &format!("got {}", size + 1)]),
        (Reply { endless: true, ..Reply::of(b"garbage") }, ["no tar", "layer"]),
        // An archive that is cut, and complete as a blob.
        (Reply { no_length: true, ..Reply::of(&other[..size - 200]) }, ["fetching blob", "got"]),
        (Reply::of(&other), ["layer", "sha256:"]),
        (Reply { no_length: true, ..Reply::of(&wrong) }, ["layer", ""]),
        (Reply::status(404), ["fetching blob", "blob unknown to registry"]),
        (Reply::status(410), ["fetching blob", "the registry answered 410"]),
        (Reply { status: 416, ..whole() }, ["fetching blob", "the registry answered 416"]),
        (Reply::status(302).with("Location", "ftp://127.0.0.1/SECRET"), ["fetching blob", ""]),
    ] {
        let server = serve(&made, reply);
        let client = Client::with(Settings { connect, patience, tries: 2, ..settings() });
        failed(&client, client.pull(&server), &parts);
        assert!(server.sent() < 32 << 20, "{} bytes were sent", server.sent());
    }
}

/// The limit of a layer is that of other layers, whatever the manifest and the server say.
#[test]
fn too_large() {
    let made = Made::new("a", 3 * MIB, OCI);
    for reply in [
        Reply::of(&made.blob),
        Reply { no_length: true, ..Reply::of(&made.blob) },
        Reply { endless: true, ..Reply::of(&made.blob) },
    ] {
        let mut client = Client::new();
        client.limits.max_bytes = 2 * MIB as u64;
        let server = serve(&made, reply);
        failed(&client, client.pull(&server), &["`--max-layer-bytes` allows more"]);
    }
}

/// The bytes before a lost connection are not sent again, within one pull and from one to the next.
#[test]
fn continued() {
    let made = Made::new("a", 4 * MIB, OCI);
    let whole = || Reply { ranges: true, ..Reply::of(&made.blob) };
    let half = 2 * MIB + 7;
    let (server, good) = (serve(&made, whole().cut(half)), serve(&made, whole()));
    // A server that breaks off behind the same number of bytes each time gets on, and one that ends there does not.
    let client = Client::new();
    client.pull(&server).unwrap();
    let ranges = requests_of(&server.requests(), &made).len();
    assert_eq!((ranges, client.kept()), (3, vec![]));
    let files = Files::with(&made);
    let path = blob(&made.blob);
    let cut = {
        let (files, path, first) = (files.clone(), path.clone(), whole().cut(half));
        move |requests: &[String]| {
            let request = requests.last().unwrap();
            match request.contains(&path) {
                true if request.contains("range: ") => Reply::status(500),
                true => first.clone(),
                false => files.get(request),
            }
        }
    };
    let broken = Server::by(cut.clone(), None);
    let client = Client::new();
    let error = client.pull(&broken).unwrap_err();
    assert!(all_text(&error).contains("the registry answered 500"), "{error}");
    assert_eq!(client.kept(), [half as u64]);
    // The next pull may be from another server, and by another client.
    let watch = Watch::default();
    let image = client.open(name(&good.host()), vec![(endpoint(&good), None)]).unwrap();
    let unpacked = client.unpack(&image, &watch).unwrap();
    assert_eq!((client.cage.text("a").as_str(), client.kept()), ("content", vec![]));
    assert_eq!(
        (watch.bytes_read(), unpacked.packed.stored),
        (made.blob.len() as u64, made.blob.len() as u64)
    );
    let requests = good.requests();
    let requests = requests_of(&requests, &made);
    assert!(
        requests.len() == 1 && requests[0].contains(&format!("range: bytes={half}-\r\n")),
        "{requests:?}"
    );
    // One that does not know ranges sends it again, and the part is skipped.
    for ranges in [true, false] {
        let client = Client::new();
        client.pull(&Server::by(cut.clone(), None)).unwrap_err();
        client.pull(&serve(&made, Reply { ranges, ..whole() })).unwrap();
        assert_eq!((client.cage.text("a").as_str(), client.kept()), ("content", vec![]));
    }
    // All of it is there: the registry is asked for nothing but the documents.
    let client = Client::new();
    write_part(client.parts.path(), &made.blob, &made.blob);
    let server = files.serve();
    client.pull(&server).unwrap();
    assert_eq!((requests_of(&server.requests(), &made).len(), client.kept()), (0, vec![]));
}

/// After a crash, or because of a server, a part may be of anything: then the blob is fetched as a whole, once more.
#[test]
fn continued_from_something_else() {
    let made = Made::new("a", 4 * MIB, OCI);
    let mut flipped = made.blob[..2 * MIB].to_vec();
    flipped[MIB] ^= 1;
    for part in [vec![0; 2 * MIB], flipped, vec![7; made.blob.len()], vec![7; made.blob.len() + 1]] {
        let client = Client::new();
        write_part(client.parts.path(), &made.blob, &part);
        let server = Files::with(&made).serve();
        client.pull(&server).unwrap();
        assert_eq!((client.cage.text("a").as_str(), client.kept()), ("content", vec![]));
        let requests = server.requests();
        let last = requests_of(&requests, &made).pop().unwrap();
        assert!(!last.contains("range: "), "{last}");
    }
    // A server whose bytes are never the right ones.
    let client = Client::new();
    write_part(client.parts.path(), &made.blob, &made.blob[..2 * MIB]);
    let mut other = made.blob.clone();
    other[3 * MIB] ^= 1;
    let server = serve(&made, Reply { ranges: true, ..Reply::of(&other) });
    failed(&client, client.pull(&server), &["layer", "sha256:"]);
    assert_eq!(requests_of(&server.requests(), &made).len(), 2);
}

/// What is not a part of the blob is left alone, and not followed.
#[test]
fn where_parts_are() {
    let made = Made::new("a", 2 * MIB, OCI);
    let server = Files::with(&made).serve();
    let file = format!("sha256-{}", Digest::of(&made.blob).as_hex());
    // Another pull has it.
    let client = Client::new();
    write_part(client.parts.path(), &made.blob, b"part");
    let held = File::open(client.parts.path().join(&file)).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    client.pull(&server).unwrap();
    assert_eq!((client.cage.text("a").as_str(), client.kept()), ("content", vec![4]));
    // A link, and a directory.
    let client = Client::new();
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(outside.path(), client.parts.path().join(&file)).unwrap();
    client.pull(&server).unwrap();
    assert_eq!(outside.as_file().metadata().unwrap().len(), 0);
    assert!(client.parts.path().join(&file).is_symlink());
    let client = Client::new();
    std::fs::create_dir(client.parts.path().join(&file)).unwrap();
    client.pull(&server).unwrap();
    // A blob of less than a MiB is not kept, and one without a directory neither.
    let small = Made::new("a", MIB / 2, OCI);
    let cut = |made: &Made| {
        let (files, path) = (Files::with(made), blob(&made.blob));
        let first = Reply::of(&made.blob).cut(made.blob.len() - 1000);
        let seen = move |requests: &[String]| match requests.last().unwrap() {
            request if !request.contains(&path) => files.get(request),
            request if request.contains("range: ") => Reply::status(500),
            _ => first.clone(),
        };
        Server::by(seen, None)
    };
    let client = Client::new();
    failed(&client, client.pull(&cut(&small)), &["fetching blob"]);
    let server = cut(&made);
    let image = Source::of_registry(name(&server.host())).open(&client.remote).unwrap();
    failed(&client, client.unpack(&image, &Watch::default()), &["fetching blob"]);
}

/// A pull that is cancelled leaves what can be continued.
#[test]
fn cancelled() {
    let made = Made::new("a", 4 * MIB, OCI);
    let hour = Duration::from_secs(3600);
    let client = Client::with(Settings { patience: hour, ..settings() });
    let server = serve(&made, Reply::of(&made.blob).hang(3 * MIB));
    let image = client.open(name(&server.host()), vec![(endpoint(&server), None)]).unwrap();
    let watch = Watch::default();
    let result = std::thread::scope(|scope| {
        let unpack = scope.spawn(|| client.unpack(&image, &watch));
        while watch.bytes_read() < 2 * MIB as u64 {
            std::thread::sleep(Duration::from_millis(2));
        }
        watch.cancel();
        unpack.join().unwrap()
    });
    assert!(matches!(result, Err(Error::Cancelled { .. })), "{result:?}");
    let kept = client.kept();
    assert!(kept.len() == 1 && kept[0] >= 2 * MIB as u64, "{kept:?}");
    client.pull(&Files::with(&made).serve()).unwrap();
    assert_eq!(client.kept(), [0; 0]);
    // While the manifest is waited for, too.
    let server = Server::new(vec![Reply::of(b"{}"), Reply { silent: true, ..Reply::default() }]);
    let asked = || server.requests().len() > 1;
    let opening = Opening { cancelled: &asked, ..Opening::default() };
    let result = Source::of_registry(name(&server.host())).open_in(&client.remote, &opening);
    assert!(matches!(result, Err(Error::Cancelled { .. })), "{result:?}");
}
