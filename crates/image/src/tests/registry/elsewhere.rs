//! Servers that registries name or redirect to, and what they are not given.

use std::sync::OnceLock;
use std::time::Duration;

use super::super::tls::{authority, config, issue};
use super::credentials::{basic, field, unauthorized};
use super::*;

/// A registry with the image, whose layer is at another address.
fn leading_to(made: &Made, to: &str, tls: Option<Arc<ServerConfig>>) -> Server {
    let mut files = Files::with(made);
    files.set(&blob(&made.blob), Reply::status(307).with("Location", to));
    files.serve_by(tls)
}

/// A client's certificate, an authority and the leave to do without are for the host and the port that they are named for.
#[test]
fn certificates() {
    let made = Made::new("a", 1000, OCI);
    let (known, clients) = (authority("known"), authority("clients"));
    let inner = || Server::start(vec![Reply::of(&made.blob)], Some(config(&known, Some(&clients))));
    let cdn = Server::start(vec![Reply::of(&made.blob)], Some(config(&known, None)));
    let pair = |dir: &Path| {
        let (certificate, key) = issue(&clients);
        write(&dir.join("client.cert"), certificate.as_bytes());
        write(&dir.join("client.key"), key.as_bytes());
    };
    let asking = inner();
    for (to, insecure, trusted, given) in [
        // The authority is the registry's alone.
        (&cdn, false, false, false),
        (&cdn, true, false, false),
        // The operator trusts it at the other server too.
        (&cdn, false, true, true),
        // The other one would let in whoever has the pair, which is there for both.
        (&asking, false, true, false),
    ] {
        let server = leading_to(&made, &to.url("/x?SECRET"), Some(config(&known, None)));
        let (client, dir) = Client::trusting(&known, &[&server.host()], settings());
        pair(&dir.path().join(server.host()));
        if trusted {
            write(&dir.path().join(to.host()).join("ca.crt"), known.pem().as_bytes());
            pair(&dir.path().join(to.host()));
        }
        let endpoint = Endpoint { insecure, ..endpoint(&server) };
        let image = client.open(name(&server.host()), vec![(endpoint, None)]).unwrap();
        let result = client.unpack(&image, &Watch::default());
        match given {
            true => drop(result.unwrap()),
            false if trusted => drop(failed(&client, result, &[&to.url("")])),
            false => {
                let (host, registry) = (to.host(), server.host());
                let parts = [
                    format!("the certificate of {host}, where {registry} leads to, is not trusted"),
                    format!("/etc/containers/certs.d/{host}/"),
                ];
                failed(&client, result, &[&parts[0], &parts[1]]);
            }
        }
        assert_eq!(!to.requests().is_empty(), given, "{:?}", to.requests());
    }
    // Neither are they for a token server.
    let tokens = Server::start(vec![Reply::of(br#"{"token":"x"}"#)], Some(config(&known, None)));
    let challenge = format!(r#"Bearer realm="{}""#, tokens.url("/t"));
    let server = Server::start(vec![unauthorized(&challenge)], Some(config(&known, None)));
    let (client, _dir) = Client::trusting(&known, &[&server.host()], settings());
    for insecure in [false, true] {
        let endpoint = Endpoint { insecure, ..endpoint(&server) };
        let result = client.open(name(&server.host()), vec![(endpoint, basic())]);
        failed(&client, result, &[&format!("the certificate of {}, where", tokens.host())]);
    }
    assert_eq!(tokens.requests().len(), 0);
}

/// The errors name the server that has failed.
#[test]
fn failures() {
    let made = Made::new("a", 1000, OCI);
    let refusing = Server::new(vec![Reply::status(403)]);
    let limiting = Server::new(vec![Reply::status(429)]);
    let hanging = Server::new(vec![Reply::of(&made.blob).hang(10)]);
    // A port of its own could be another test's meanwhile.
    let gone = "127.0.0.1:1".to_owned();
    let patience = Duration::from_millis(300);
    for (host, why) in [
        (refusing.host(), "answered 403"),
        (limiting.host(), "the limit is reached (429)"),
        (hanging.host(), "the server hangs"),
        (gone, "Connection refused"),
    ] {
        let server = leading_to(&made, &format!("http://u:SECRET@{host}/SECRET?SECRET"), None);
        let client = Client::with(Settings { patience, ..settings() });
        let image = client.open(name(&server.host()), vec![(endpoint(&server), None)]).unwrap();
        let error = client.unpack(&image, &Watch::default()).unwrap_err();
        let text = all_text(&error);
        assert!(text.contains(&host) && text.contains(why) && !text.contains("SECRET"), "{text}");
    }
    for (to, why) in [("ftp://127.0.0.1/x", "ftp, which is neither"), ("http://[", "cannot be parsed")] {
        let server = leading_to(&made, to, None);
        let client = Client::new();
        let image = client.open(name(&server.host()), vec![(endpoint(&server), None)]).unwrap();
        let before = server.requests().len();
        failed(&client, client.unpack(&image, &Watch::default()), &["a redirect to an address", why]);
        assert_eq!(server.requests().len(), before + 1, "it is final");
    }
}

/// A layer goes on where it was cut off, by way of the registry, which may lead to another address then.
#[test]
fn resumed() {
    let made = Made::new("a", 100_000, OCI);
    let whole = Reply { ranges: true, ..Reply::of(&made.blob) };
    let cdn = Server::new(vec![whole.clone().cut(70_000), whole]);
    let server = leading_to(&made, &cdn.url("/x"), None);
    Client::new().pull(&server).unwrap();
    let requests = cdn.requests();
    assert!(requests.len() == 2 && requests[1].contains("range: bytes=70000-\r\n"), "{requests:?}");
}

/// Another server does not choose what the registry is asked for with its credentials.
#[test]
fn there_and_back() {
    let made = Made::new("a", 1000, OCI);
    let back = Arc::new(OnceLock::<String>::new());
    let other = Server::by(
        {
            let back = Arc::clone(&back);
            move |_| Reply::status(307).with("Location", back.get().unwrap())
        },
        None,
    );
    let (files, path, to) = (Files::with(&made), blob(&made.blob), other.url("/"));
    let server = Server::by(
        move |requests| {
            let request = requests.last().unwrap();
            match field(request, "authorization") {
                _ if path_of(request) == "/v2/" => Reply::of(b"{}"),
                None => unauthorized("Basic realm=\"r\""),
                Some(_) if request.contains(&path) => Reply::status(307).with("Location", &to),
                Some(_) => files.get(request),
            }
        },
        None,
    );
    back.set(server.url("/v2/r/secret")).unwrap();
    let client = Client::new();
    failed(&client, client.pull_as(&server, basic()), &["answered 401"]);
    let requests = server.requests();
    let came_back: Vec<_> = requests.iter().filter(|request| path_of(request) == "/v2/r/secret").collect();
    assert!(came_back.len() == 1 && field(came_back[0], "authorization").is_none(), "{requests:?}");
}
