//! Proxies, which refuse, or are not there.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::app::all_text;
use super::remote::settings;
use super::server::{Reply, Server};
use super::tls::{authority, config};
use crate::registry::{Endpoint, ImageName, Login};
use crate::remote::Proxies;
use crate::{Error, Image, Opening, Remote, Settings, Source};

/// All requests go by way of the proxy at `host`.
fn by(host: &str) -> Remote {
    let url = format!("http://u:SECRET@{host}");
    let proxies = Proxies::of(|name| (name == "HTTP_PROXY" || name == "HTTPS_PROXY").then(|| url.clone()));
    Remote::new(Settings { proxies, ..settings() }).unwrap()
}

fn pull(remote: &Remote, host: &str, insecure: bool) -> Result<Image, Error> {
    let name = ImageName::parse(&format!("{host}/r")).unwrap();
    let login = Login::Basic { user: "u".into(), password: "SECRET".into() };
    let endpoint = Endpoint { insecure, ..Endpoint::of(&name) };
    Source::of_registry(name).pulled_from(vec![(endpoint, Some(login))]).open_in(remote, &Opening::default())
}

/// Returns the text of a failure, which has no secret.
#[track_caller]
fn failure<T>(result: Result<T, Error>) -> String {
    let error = result.err().expect("it was pulled");
    assert!(!all_text(&error).contains("SECRET"), "{error:?}");
    error.to_string()
}

/// A proxy that connects all tunnels to one server, whatever they are for; it ends with the test.
fn tunnels_to(server: &Server) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, to) = (listener.local_addr().unwrap(), server.host());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut client, mut server) = (stream.unwrap(), TcpStream::connect(&to).unwrap());
            let mut head = BufReader::new(client.try_clone().unwrap()).lines();
            while head.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            client.write_all(b"HTTP/1.1 200 x\r\n\r\n").unwrap();
            let (mut from, mut into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut into));
            thread::spawn(move || std::io::copy(&mut server, &mut client));
        }
    });
    address.to_string()
}

/// The password of a registry on this host does not leave it.
#[test]
fn loopback() {
    let proxy = Server::new(vec![Reply::status(403)]);
    let registry = Server::new(vec![Reply::status(404)]);
    for host in [registry.host(), registry.host().replace("127.0.0.1", "localhost")] {
        let text = failure(pull(&by(&proxy.host()), &host, false));
        assert!(text.contains("manifest unknown"), "{text}");
    }
    assert!(proxy.requests().is_empty() && !registry.requests().is_empty());
}

#[test]
fn that_refuse() {
    for (status, meaning, asked_again) in
        [(403, "", false), (407, ", it wants a user and a password", false), (502, "", true)]
    {
        for insecure in [false, true] {
            let proxy = Server::new(vec![Reply::status(status)]);
            let text = failure(pull(&by(&proxy.host()), "registry.invalid:5000", insecure));
            let host = proxy.host();
            for part in [
                format!("cannot reach registry.invalid:5000 by way of the proxy {host} (HTTPS_PROXY)"),
                format!("the proxy answered {status}{meaning}"),
                "NO_PROXY".to_owned(),
            ] {
                assert!(text.contains(&part), "no {part:?} in {text}");
            }
            // An insecure registry is not asked without TLS because of a proxy.
            let requests = proxy.requests();
            let tunnel = "CONNECT registry.invalid:5000 HTTP/1.1\r\n";
            assert!(requests.iter().all(|request| request.starts_with(tunnel)), "{requests:?}");
            assert!(
                requests.iter().all(|request| request.to_ascii_lowercase().contains("proxy-authorization: "))
            );
            assert_eq!(requests.len() > 2, asked_again, "{requests:?}");
        }
    }
}

#[test]
fn that_are_not_there() {
    // A port of its own could be another test's meanwhile.
    let host = "127.0.0.1:1".to_owned();
    for insecure in [false, true] {
        let text = failure(pull(&by(&host), "registry.invalid", insecure));
        assert!(
            text.contains(&format!("registry.invalid:443 by way of the proxy {host} (HTTPS_PROXY): ")),
            "{text}"
        );
        assert!(text.contains("Connection refused"), "{text}");
    }
    let text = failure(pull(&by("proxy.invalid:3128"), "registry.invalid", false));
    assert!(text.contains("proxy.invalid:3128 (HTTPS_PROXY)") && !text.contains("Query {"), "{text}");
    let remote = |url: &'static str| {
        let proxies = Proxies::of(|name| (name == "ALL_PROXY").then(|| url.to_owned()));
        Remote::new(Settings { proxies, backoff: Duration::from_secs(3600), ..settings() }).unwrap()
    };
    let text = failure(pull(&remote("socks5://u:SECRET@127.0.0.1:1080"), "registry.invalid", false));
    assert!(text.contains("the proxy of ALL_PROXY: it cannot be used"), "{text}");
}

/// What is wrong with a server behind a tunnel is not told as the proxy's.
#[test]
fn tunnels() {
    let server = Server::start(vec![Reply::status(404)], Some(config(&authority("a"), None)));
    let proxy = tunnels_to(&server);
    let text = failure(pull(&by(&proxy), "registry.invalid", false));
    assert!(text.contains("the certificate of registry.invalid is not trusted"), "{text}");
    let text = failure(pull(&by(&proxy), "registry.invalid", true));
    assert!(text.contains("registry.invalid has no r:latest: manifest unknown"), "{text}");
}

/// Without TLS the answers of a proxy and of the registry look the same, so the proxy is named.
#[test]
fn without_tls() {
    for (status, part) in [
        (503, "the registry, asked by way of the proxy HOST (HTTP_PROXY), answered 503"),
        (
            407,
            "cannot reach registry.invalid:5000 by way of the proxy HOST (HTTP_PROXY): the proxy answered 407",
        ),
    ] {
        let proxy = Server::new(vec![Reply::status(status)]);
        let proxies = Proxies::of(|name| (name == "HTTP_PROXY").then(|| proxy.url("")));
        let remote = Remote::new(Settings { proxies, ..settings() }).unwrap();
        let text = failure(pull(&remote, "registry.invalid:5000", true));
        assert!(text.contains(&part.replace("HOST", &proxy.host())), "{text}");
    }
}
