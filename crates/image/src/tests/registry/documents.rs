//! Manifests and indexes, good and bad.

use std::time::Duration;

use super::*;
use crate::RegistryError;
use crate::format::manifest::host_architecture;

fn never() -> bool {
    false
}

#[test]
fn of_both_kinds() {
    for media_type in [OCI, DOCKER] {
        let made = Made::new("a", 1000, media_type);
        let (client, server) = (Client::new(), Files::with(&made).serve());
        let image = client.pull(&server).unwrap();
        assert_eq!(client.cage.text("a"), "content");
        assert_eq!(image.config.env, ["A=b"]);
        assert_eq!(image.id, Digest::of(&made.config).as_hex());
        assert_eq!(image.digest, Some(made.digest()));
        assert_eq!(image.manifest.as_ref(), Some(&made.manifest));
        assert_eq!(image.names, [format!("{}/r:latest", server.host())]);
        let requests = server.requests();
        let paths: Vec<_> = requests.iter().map(|request| path_of(request)).collect();
        let (config, layer) =
            (format!("/v2/r/{}", blob(&made.config)), format!("/v2/r/{}", blob(&made.blob)));
        // The first one asks whether the registry is there, because a loopback one may have no TLS.
        assert_eq!(paths, ["/v2/", "/v2/r/manifests/latest", &config, &layer]);
        for part in [OCI, OCI_INDEX, DOCKER, DOCKER_LIST, "accept-encoding: identity"] {
            assert!(requests[1].contains(part), "{part}: {}", requests[1]);
        }
        assert!(!requests.iter().any(|request| request.contains("authorization")));
    }
}

#[test]
fn by_digest_and_by_tag() {
    let (first, second) = (Made::new("first", 9, OCI), Made::new("second", 9, OCI));
    let mut files = Files::with(&first);
    files.image(&second);
    files.manifest("v2", &second.manifest, OCI);
    let server = files.clone().serve();
    for (tag, digest, file) in [
        (None, None, "first"),
        (Some("v2"), None, "second"),
        (None, Some(second.digest()), "second"),
        // The digest decides.
        (Some("latest"), Some(second.digest()), "second"),
    ] {
        let client = Client::new();
        let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        let name = ImageName::parse(&format!("{}/r{tag}{digest}", server.host())).unwrap();
        let image = client.open(name.clone(), vec![(endpoint(&server), None)]).unwrap();
        client.unpack(&image, &Watch::default()).unwrap();
        assert_eq!(client.cage.text(file), "content");
        let puller = Puller::new(&client.remote, name, vec![(endpoint(&server), None)]).unwrap();
        assert_eq!(Some(puller.find(&never).unwrap().digest), image.digest);
    }
    // A manifest of another digest.
    files
        .set(&format!("manifests/{}", first.digest()), Reply::of(&second.manifest).with("Content-Type", OCI));
    let server = files.serve();
    let client = Client::new();
    let wrong = ImageName::parse(&format!("{}/r@{}", server.host(), first.digest())).unwrap();
    let result = client.open(wrong, vec![(endpoint(&server), None)]);
    failed(&client, result, &["fetching image reference", "expected", first.digest().as_hex()]);
}

/// Whether an image has changed is one request, once the registry is known.
#[test]
fn what_a_tag_stands_for() {
    let made = Made::new("a", 9, OCI);
    let (client, server) = (Client::new(), Files::with(&made).serve());
    let puller = client.puller(&server);
    for count in [2, 3] {
        let found = puller.find(&never).unwrap();
        assert_eq!((found.digest, found.host), (made.digest(), server.host()));
        assert_eq!(server.requests().len(), count);
        assert!(server.requests()[count - 1].starts_with("HEAD /v2/r/manifests/latest "));
    }
    // Some proxies do not know HEAD, and some registries give no digest.
    let mut files = Files::with(&made);
    let get = Reply::of(&made.manifest).with("Content-Type", OCI);
    for head in [Some(405), Some(501), Some(404), Some(403), Some(406), Some(503), Some(401), None] {
        files.set("manifests/latest", Reply { head, ..get.clone() });
        let server = files.clone().serve();
        assert_eq!(client.puller(&server).find(&never).unwrap().digest, made.digest());
        assert_eq!(server.requests().len(), 3, "{head:?}");
    }
    // A login that is missing is so for GET too.
    let challenge = |_: &[String]| Reply::status(401).with("WWW-Authenticate", "Basic realm=\"r\"");
    let closed = Server::by(challenge, None);
    failed(&client, client.puller(&closed).find(&never), &["answered 401", "image login"]);
    assert_eq!(closed.requests().len(), 2);
    let missing = Files::default().serve();
    failed(&client, client.puller(&missing).find(&never), &["manifest unknown", &missing.host()]);
}

fn index(entries: &[String]) -> Vec<u8> {
    let entries = entries.join(",");
    format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entries}]}}"#).into_bytes()
}

fn entry(bytes: &[u8], media_type: &str, platform: &str) -> String {
    let (digest, size) = (Digest::of(bytes), bytes.len());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size},"platform":{{{platform}}}}}"#)
}

fn platform(os: &str, architecture: &str, variant: &str) -> String {
    format!(r#""os":"{os}","architecture":"{architecture}","variant":"{variant}""#)
}

#[test]
fn for_this_host() {
    let (ours, other) = (Made::new("ours", 9, OCI), Made::new("other", 9, OCI));
    let host = platform("linux", host_architecture(), "");
    let variant = platform("linux", host_architecture(), "v9");
    let of = |made: &Made, platform: &str| entry(&made.manifest, OCI, platform);
    let attests = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#;
    let bare = |made: &Made, more: &str| {
        let (digest, size) = (made.digest(), made.manifest.len());
        format!(r#"{{"mediaType":"{OCI}","digest":"{digest}","size":{size}{more}}}"#)
    };
    let inner = index(&[of(&other, &variant), of(&ours, &host)]);
    let middle = index(&[entry(&inner, OCI_INDEX, &host)]);
    for (entries, found) in [
        (vec![of(&other, r#""os":"linux","architecture":"pdp11""#), of(&ours, &host)], true),
        (vec![of(&other, &platform("windows", host_architecture(), "")), of(&ours, &host)], true),
        (vec![of(&other, &variant), of(&ours, &host)], true),
        (vec![of(&ours, &variant), of(&other, r#""os":"unknown","architecture":"unknown""#)], true),
        (vec![of(&ours, &host), of(&other, &host)], true),
        (vec![entry(&inner, OCI_INDEX, &host)], true),
        (vec![entry(&middle, OCI_INDEX, &host)], true),
        // An entry that does not say what it is for, if there is none that does.
        (vec![bare(&ours, ""), of(&other, r#""os":"unknown","architecture":"unknown""#)], true),
        (vec![bare(&ours, ""), bare(&other, "")], true),
        (vec![bare(&other, ""), of(&ours, &host)], true),
        (vec![bare(&other, attests), bare(&ours, "")], true),
        (vec![bare(&ours, attests)], false),
        (vec![of(&ours, r#""os":"unknown","architecture":"unknown""#)], false),
        (vec![of(&ours, &platform("linux", "pdp11", "")), of(&ours, &platform("plan9", "mips", ""))], false),
        (vec![], false),
    ] {
        let top = index(&entries);
        let mut files = Files::default();
        files.manifest("latest", &top, OCI_INDEX);
        files.image(&ours);
        files.image(&other);
        for index in [&inner, &middle] {
            files.manifest(&Digest::of(index).to_string(), index, OCI_INDEX);
        }
        let (client, server) = (Client::new(), files.serve());
        let result = client.pull(&server);
        if found {
            assert_eq!(result.unwrap().digest, Some(Digest::of(&top)));
            assert_eq!(client.cage.text("ours"), "content");
        } else {
            let error = failed(&client, result, &["fetching image reference", "there "]).to_string();
            assert!(!error.contains("unknown/unknown"), "{error}");
            assert_eq!(error.contains("there is no image in it"), entries.len() < 2, "{error}");
        }
    }
}

/// As in docker, where some images have layers without a byte (moby, issue 18170).
#[test]
fn layers_without_a_byte() {
    let (config, layer) =
        ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar");
    let nothing = Digest::of(b"");
    for (blob, diff_id, part) in [
        (vec![], &nothing, None),
        (gzip(b""), &nothing, None),
        (vec![], &Digest::of(&Tar::default().end()), Some("expected sha256:")),
        (gzip(b"x"), &nothing, Some("no tar archive")),
    ] {
        let made = Made::of(blob, diff_id, OCI, config, layer);
        let (client, server) = (Client::new(), Files::with(&made).serve());
        match part {
            None => assert_eq!(client.pull(&server).unwrap().layers.len(), 1),
            Some(part) => drop(failed(&client, client.pull(&server), &[part])),
        }
        assert_eq!(std::fs::read_dir(client.cage.root()).unwrap().count(), 0);
    }
}

/// Indexes that lead to indexes, and indexes of very many manifests.
#[test]
fn endless_indexes() {
    let made = Made::new("a", 9, OCI);
    let host = platform("linux", host_architecture(), "");
    let mut files = Files::with(&made);
    let mut top = made.manifest.clone();
    for nesting in 1..=5 {
        let media_type = if nesting == 1 { OCI } else { OCI_INDEX };
        top = index(&[entry(&top, media_type, &host)]);
        files.manifest(&Digest::of(&top).to_string(), &top, OCI_INDEX);
        files.manifest("latest", &top, OCI_INDEX);
        let (client, server) = (Client::new(), files.clone().serve());
        if nesting <= 3 {
            client.pull(&server).unwrap();
        } else {
            failed(&client, client.pull(&server), &["nesting of indexes", "exceeds the limit of 3"]);
            assert_eq!(server.requests().len(), 1 + 4);
        }
    }
    // An index that names itself is another one than it says.
    let itself = index(&[entry(&top, OCI_INDEX, &host)]);
    files.set(&format!("manifests/{}", Digest::of(&top)), Reply::of(&itself).with("Content-Type", OCI_INDEX));
    files.set("manifests/latest", Reply::of(&itself).with("Content-Type", OCI_INDEX));
    let (client, server) = (Client::new(), files.clone().serve());
    failed(&client, client.pull(&server), &["expected sha256:"]);
    for (count, fits) in [(1000, true), (1001, false), (10_000, false)] {
        let many = index(&vec![entry(&made.manifest, OCI, &host); count]);
        files.manifest("latest", &many, OCI_INDEX);
        let (client, server) = (Client::new(), files.clone().serve());
        if fits {
            client.pull(&server).unwrap();
        } else {
            let parts = ["the number of manifests", "exceeds the limit of 1000"];
            failed(&client, client.pull(&server), &parts);
            assert_eq!(server.requests().len(), 2);
        }
    }
}

#[test]
fn refused() {
    let made = Made::new("a", 1000, OCI);
    let text = String::from_utf8(made.manifest.clone()).unwrap();
    let manifest = |text: &str, media_type: &str| {
        let mut files = Files::with(&made);
        files.manifest("latest", text.as_bytes(), media_type);
        files
    };
    let schema_1 = r#"{"schemaVersion":1,"name":"r","tag":"latest","fsLayers":[],"history":[]}"#;
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let foreign = text.replace("image.layer.v1", "image.layer.nondistributable.v1");
    let docker = text.replace(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    );
    let chart = text.replace("image.config.v1", "chart.config.v1");
    let both = text.replacen('{', r#"{"manifests":[],"#, 1);
    for (files, parts) in [
        (manifest(schema_1, signed), &["converting V1 schema failed", "skopeo copy"][..]),
        (manifest(schema_1, "application/json"), &["converting V1 schema failed"]),
        (manifest(&text, signed), &["converting V1 schema failed"]),
        (manifest(&foreign, OCI), &["is a foreign layer", "refused"]),
        (manifest(&docker.replace(OCI, DOCKER), DOCKER), &["is a foreign layer"]),
        (manifest(&chart, OCI), &["is an artifact"]),
        (manifest(&both, OCI), &["an index and a manifest at once"]),
        (manifest(&text, OCI_INDEX), &["its media type is not that of its content"]),
        (
            manifest("<html>SECRET", "text/html; charset=utf-8"),
            &["fetching image reference", "the answer is no manifest: it is text/html"],
        ),
        (manifest("<html>SECRET", OCI), &["fetching image reference", "cannot parse"]),
        // What another server gives, to which the registry redirects, is told to nobody.
        (manifest(r#""SECRET""#, OCI), &["cannot parse", "at line 1 column 8"]),
        (manifest(r#"{"config":"SECRET","layers":[]}"#, OCI), &["cannot parse", "expected"]),
        (manifest(r#"{"mediaType":["x"],"schemaVersion":"SECRET"}"#, OCI), &["cannot parse", "expected"]),
        (manifest(&text.replacen("sha256:", "SECRET:", 1), OCI), &["cannot parse", "a bad value at line 1"]),
        (manifest("{}", OCI), &["neither an index nor a manifest"]),
        (manifest(&text.replace(r#""layers":["#, r#""layers":[1"#), OCI), &["cannot parse"]),
    ] {
        let (client, server) = (Client::new(), files.serve());
        let error = failed(&client, client.pull(&server), parts);
        assert!(error.to_string().contains(&server.host()), "{error}");
        assert!(server.requests().iter().all(|request| !request.contains(&blob(&made.blob))));
    }
    let config = |reply: Reply| {
        let mut files = Files::with(&made);
        files.set(&blob(&made.config), reply);
        files
    };
    let mut other = made.config.clone();
    other[0] ^= 1;
    for (files, parts) in [
        (config(Reply::of(&other)), ["fetching image configuration", "expected sha256:"]),
        (config(Reply::of(b"{}")), ["fetching image configuration", "got 2"]),
        (config(Reply::status(404)), ["fetching image configuration", "blob unknown to registry"]),
    ] {
        let (client, server) = (Client::new(), files.serve());
        failed(&client, client.pull(&server), &parts);
    }
}

/// What a registry sends as a manifest, or as an error, takes little memory and little time.
#[test]
fn bounded() {
    let made = Made::new("a", 1000, OCI);
    let with = |reply: Reply| {
        let mut files = Files::with(&made);
        files.set("manifests/latest", reply);
        files.serve()
    };
    let (connect, patience) = (Duration::from_secs(1), Duration::from_millis(500));
    let client = Client::with(Settings { connect, patience, tries: 2, ..settings() });
    let spaces = vec![b' '; 64 << 10];
    let endless = || Reply { endless: true, ..Reply::of(&spaces) };
    let large = Reply::of(&vec![b' '; (4 << 20) + 1]);
    let encoded = Reply::of(&gzip(&vec![b' '; 100 << 20])).with("Content-Encoding", "gzip");
    for (reply, part) in [
        (endless(), "exceeds the limit of 4194304"),
        (large, "exceeds the limit of 4194304"),
        (encoded, "\"gzip\", which was not asked for"),
        (Reply { silent: true, ..endless() }, "no answer in"),
        (Reply { reset: true, ..endless() }, "fetching image reference"),
        (Reply::of(&made.manifest).hang(5), "the server hangs"),
        (Reply { drip: true, ..Reply::of(&made.manifest) }, "the server hangs"),
        (Reply::of(&made.manifest).cut(5), "is truncated"),
        (Reply { status: 500, ..endless() }, "the registry answered 500"),
        (Reply { status: 404, ..endless() }, "manifest unknown"),
        (Reply { status: 403, ..endless() }, "requested access to the resource is denied"),
        (Reply::status(302).with("Location", "/v2/r/manifests/latest"), "too many redirects"),
        (
            Reply::of(&made.manifest).with("Docker-Content-Digest", &Digest::of(b"x").to_string()),
            "header Docker-Content-Digest",
        ),
    ] {
        let server = with(reply);
        failed(&client, client.pull(&server), &[part, &server.host()]);
        // What is sent beyond what is read is in the buffers of the sockets.
        assert!(server.sent() < 32 << 20, "{} bytes were sent", server.sent());
    }
}

#[test]
fn missing() {
    let made = Made::new("a", 1000, OCI);
    let client = Client::new();
    let server = Files::default().serve();
    let parts = ["fetching image reference", "manifest unknown: UNKNOWN: there is none", "/r"];
    failed(&client, client.pull(&server), &parts);
    let mut files = Files::with(&made);
    files.set(&blob(&made.blob), Reply::status(404));
    let server = files.serve();
    let error = failed(&client, client.pull(&server), &["fetching blob", "blob unknown to registry"]);
    assert!(matches!(error, Error::Registry { .. }));
    // Nobody listens.
    let gone = name(&server.host());
    drop(server);
    let client = Client::new();
    let result = client.open(gone.clone(), vec![(Endpoint::of(&gone), None)]);
    failed(&client, result, &["pinging container registry 127.0.0.1:", "refused"]);
}

/// Whether a registry speaks TLS is found out again after a failure that may be because it does now.
#[test]
fn tls_of_late() {
    let made = Made::new("a", 1000, OCI);
    for failure in [Reply::status(400), Reply { reset: true, ..Reply::default() }] {
        let mut files = Files::with(&made);
        files.set("manifests/latest", failure);
        let (client, server) = (Client::with(Settings { tries: 1, ..settings() }), files.serve());
        for pulls in 1..=2 {
            failed(&client, client.pull(&server), &["fetching image reference"]);
            let requests = server.requests();
            assert_eq!(requests.iter().filter(|request| path_of(request) == "/v2/").count(), pulls);
            // A client is not forgotten twice in a second.
            std::thread::sleep(Duration::from_millis(1100));
        }
    }
}

#[test]
fn busy() {
    let made = Made::new("a", 1000, OCI);
    let later = |seconds: &str| Reply::status(429).with("Retry-After", seconds);
    for busy in [later("0"), Reply::status(503), Reply::status(500), later("1")] {
        let files = Files::with(&made);
        let server = Server::by(
            move |requests| {
                let request = requests.last().unwrap();
                let again = requests.iter().filter(|other| *other == request).count().is_multiple_of(2);
                if again || path_of(request) == "/v2/" { files.get(request) } else { busy.clone() }
            },
            None,
        );
        Client::new().pull(&server).unwrap();
    }
    let mut files = Files::with(&made);
    let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your limit"}]}"#;
    let limited = Reply { status: 429, ..Reply::of(body) }
        .with("Ratelimit-Limit", "100;w=21600")
        .with("Ratelimit-Remaining", "0;w=21600");
    files.set("manifests/latest", limited);
    let (client, server) = (Client::new(), files.serve());
    let parts = [
        "the limit is reached (429)",
        "ratelimit-limit 100;w=21600, ratelimit-remaining 0;w=21600",
        "You have reached your limit",
        "wardian image login 127.0.0.1:",
    ];
    failed(&client, client.pull(&server), &parts);
    assert_eq!(server.requests().len(), 1 + 3);
}

#[test]
fn tags() {
    let page = |tags: &str| Reply::of(format!(r#"{{"name":"r","tags":{tags}}}"#).as_bytes());
    let client = Client::new();
    let list = |reply: Reply| {
        let mut files = Files::default();
        files.set("tags/list", reply);
        files.serve()
    };
    let server = list(page(r#"["b","a"]"#));
    assert_eq!(client.puller(&server).tags(&never).unwrap(), ["b", "a"]);
    assert!(server.requests()[1].starts_with("GET /v2/r/tags/list?n=1000 "));
    assert_eq!(client.puller(&list(page("null"))).tags(&never).unwrap(), [""; 0]);
    // Pages: the second is at an address that the registry gives.
    let server = Server::by(
        move |requests| match path_of(requests.last().unwrap()) {
            "/v2/r/tags/list?n=1000" => {
                page(r#"["a"]"#).with("Link", "</v2/r/tags/list?n=1&last=a>; rel=\"next\"")
            }
            "/v2/r/tags/list?n=1&last=a" => page(r#"["b"]"#),
            _ => Reply::of(b"{}"),
        },
        None,
    );
    assert_eq!(client.puller(&server).tags(&never).unwrap(), ["a", "b"]);
    let many = format!("[{}\"a\"]", "\"a\",".repeat(100_000));
    for (reply, part) in [
        (page("[]").with("Link", "</v2/r/tags/list?n=1000>; rel=next"), "one that was there before"),
        (page(&format!("[\"{}\"]", "t".repeat(129))), "longer than 128 bytes"),
        (page(r#""SECRET""#), "cannot parse"),
        (page("[]").with("Link", "<http://[>; rel=next"), "no valid address"),
        (page(&many), "exceeds the limit of 100000"),
        (page("7"), "cannot parse"),
        (Reply { endless: true, ..Reply::of(&[b' '; 4096]) }, "exceeds the limit of 4194304"),
        (Reply::status(404), "has no repository r"),
    ] {
        failed(&client, client.puller(&list(reply)).tags(&never), &[part]);
    }
    // A registry that knows itself by the address that it has behind a proxy.
    let stranger = Server::new(vec![page(r#"["SECRET"]"#)]);
    let next = format!("<{}>; rel=next", stranger.url("/v2/r/tags/list?last=a"));
    let server = Server::by(
        move |requests| match path_of(requests.last().unwrap()) {
            "/v2/r/tags/list?last=a" => page(r#"["b"]"#),
            _ => page(r#"["a"]"#).with("Link", &next),
        },
        None,
    );
    assert_eq!(client.puller(&server).tags(&never).unwrap(), ["a", "b"]);
    assert_eq!(stranger.requests().len(), 0);
    // Pages by turns, and one that begins where it did before.
    for steps in [
        ["/v2/r/tags/list?b", "/v2/r/tags/list?n=1000"],
        ["/v2/r/tags/list?last=a", "/v2/r/tags/list?last=a&x"],
    ] {
        let server = Server::by(
            move |requests| {
                let pages = requests.iter().filter(|request| path_of(request).contains("tags")).count();
                page("[]").with("Link", &format!("<{}>; rel=next", steps[pages.saturating_sub(1) % 2]))
            },
            None,
        );
        failed(&client, client.puller(&server).tags(&never), &["one that was there before"]);
        assert!(server.requests().len() <= 3);
    }
    // Large pages, of which there is no end.
    let large = format!("{}[]", " ".repeat(4_000_000));
    let server = Server::by(
        move |requests| {
            page(&large).with("Link", &format!("</v2/r/tags/list?p={}>; rel=next", requests.len()))
        },
        None,
    );
    failed(
        &client,
        client.puller(&server).tags(&never),
        &["the size of all pages of tags", "limit of 16777216"],
    );
    assert_eq!(server.requests().len(), 1 + 5);
    // Each page leads to another one.
    let server = Server::by(
        move |requests| {
            let link = format!("</v2/r/tags/list?p={}>; rel=next", requests.len());
            page("[]").with("Link", &link)
        },
        None,
    );
    failed(&client, client.puller(&server).tags(&never), &["the number of pages of tags", "limit of 1000"]);
}

#[test]
fn endpoints() {
    let remote = Remote::default();
    let make = |host: &str, repository: &str| {
        let endpoint = Endpoint { host: host.into(), repository: repository.into(), insecure: false };
        Puller::new(&remote, name("h:5000"), vec![(endpoint, None)])
    };
    assert!(make("h:5000", "r").is_ok());
    for (host, repository) in [
        ("h/x", "r"),
        ("..", "r"),
        ("u@h", "r"),
        ("", "r"),
        ("h", ""),
        ("h", "../r"),
        ("h", "a//b"),
        ("h", "a?b"),
        ("h", "a%2fb"),
        ("h", "r\u{202e}"),
    ] {
        let error = make(host, repository).unwrap_err();
        let Error::Registry { source } = &error else { panic!("{error:?}") };
        assert!(matches!(**source, RegistryError::Name { .. }) && !error.to_string().contains('\u{202e}'));
    }
    let hub = ImageName::parse("docker.io/r:3").unwrap();
    assert_eq!(
        (Endpoint::of(&hub).host.as_str(), hub.to_string().as_str()),
        ("registry-1.docker.io", "docker.io/library/r:3")
    );
    let source = Source::of_registry(hub.clone());
    assert_eq!((source.to_uri(), source.image_name()), ("docker://docker.io/library/r:3".into(), Some(&hub)));
    source.reach().unwrap();
    assert!(source.state().is_none() && !source.is_packed());
}
