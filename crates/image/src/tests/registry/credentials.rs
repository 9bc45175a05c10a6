//! Credentials: who is given them, and who is not.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::tls::{authority, config};
use super::*;

pub(super) fn basic() -> Option<Login> {
    Some(Login::Basic { user: "us er".into(), password: "SECRET-p&w".into() })
}

pub(super) fn identity() -> Option<Login> {
    Some(Login::Identity("SECRET-identity".into()))
}

pub(super) fn field<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    let fields = request.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

pub(super) fn unauthorized(challenge: &str) -> Reply {
    let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    Reply { status: 401, ..Reply::of(body) }.with("WWW-Authenticate", challenge)
}

/// A registry whose files need a token of `realm`; each token is good for `uses` requests.
fn of_tokens(made: &Made, realm: &str, uses: usize) -> Server {
    of_tokens_by(made, realm, uses, None)
}

fn of_tokens_by(made: &Made, realm: &str, uses: usize, tls: Option<Arc<ServerConfig>>) -> Server {
    let challenge = format!(r#"Bearer realm="{realm}",service="the service",scope="repository:r:pull""#);
    let files = Files::with(made);
    Server::by(
        move |requests| {
            let request = requests.last().unwrap();
            let token = field(request, "authorization");
            let same = requests.iter().filter(|other| field(other, "authorization") == token).count();
            match token {
                _ if path_of(request) == "/v2/" => Reply::of(b"{}"),
                Some(token) if token.starts_with("Bearer SECRET-token") && same <= uses => files.get(request),
                _ => unauthorized(&challenge),
            }
        },
        tls,
    )
}

/// A token server, which gives another token each time.
pub(super) fn tokens() -> Server {
    tokens_by(None)
}

fn tokens_by(tls: Option<Arc<ServerConfig>>) -> Server {
    let count = AtomicUsize::new(0);
    Server::by(
        move |_| {
            let n = count.fetch_add(1, Ordering::Relaxed);
            let key = if n.is_multiple_of(2) { "token" } else { "access_token" };
            Reply::of(format!(r#"{{"{key}":"SECRET-token{n}","expires_in":300}}"#).as_bytes())
        },
        tls,
    )
}

#[test]
fn a_token() {
    let made = Made::new("a", 1000, OCI);
    for (login, method, parts, authorization) in [
        (None, "GET /t?x=y&service=the+service&scope=repository%3Ar%3Apull HTTP", &[][..], None),
        (
            basic(),
            "GET /t?x=y&service=the+service&scope=repository%3Ar%3Apull&account=us+er HTTP",
            &[],
            Some("Basic dXMgZXI6U0VDUkVULXAmdw=="),
        ),
        (
            identity(),
            "POST /t?x=y HTTP",
            &[
                "content-type: application/x-www-form-urlencoded",
                "grant_type=refresh_token&service=the+service&scope=repository%3Ar%3Apull&client_id=wardian&\
                 refresh_token=SECRET-identity",
            ],
            None,
        ),
    ] {
        let (tokens, client) = (tokens(), Client::new());
        let server = of_tokens(&made, &tokens.url("/t?x=y"), usize::MAX);
        client.pull_as(&server, login.clone()).unwrap();
        let requests = tokens.requests();
        assert!(requests.len() == 1 && requests[0].starts_with(method), "{requests:?}");
        for part in parts {
            assert!(requests[0].contains(part), "{requests:?}");
        }
        assert_eq!(field(&requests[0], "authorization"), authorization);
        // Only the first request is refused, and the registry itself is shown nothing but the token.
        let requests = server.requests();
        assert_eq!(requests.len(), 1 + 1 + 3);
        let shown: Vec<_> = requests.iter().map(|request| field(request, "authorization")).collect();
        assert_eq!(shown[..2], [None, None]);
        assert!(shown[2..].iter().all(|shown| *shown == Some("Bearer SECRET-token0")), "{shown:?}");
    }
}

/// A token that is refused in the middle is renewed once; in the middle of a layer, too.
#[test]
fn a_token_that_is_refused() {
    let made = Made::new("a", 1000, OCI);
    let (tokens_, client) = (tokens(), Client::new());
    client.pull(&of_tokens(&made, &tokens_.url("/"), 1)).unwrap();
    assert_eq!(tokens_.requests().len(), 3, "one for the manifest, the config and the layer each");
    let (tokens_, client) = (tokens(), Client::new());
    let server = of_tokens(&made, &tokens_.url("/"), 0);
    let parts = [
        "does not exist or you do not have permissions to see it",
        "requested access to the resource is denied: UNAUTHORIZED: authentication required",
        &format!("`wardian image login {}`", server.host()),
    ];
    failed(&client, client.pull(&server), &parts);
    assert_eq!((tokens_.requests().len(), server.requests().len()), (1, 1 + 2));
    // The layer breaks off, and the next token is needed for the rest.
    let (files, path, tokens_) = (Files::with(&made), blob(&made.blob), tokens());
    let challenge = format!(r#"Bearer realm="{}""#, tokens_.url("/"));
    let cut = Reply::of(&made.blob).cut(500);
    let server = Server::by(
        move |requests| {
            let request = requests.last().unwrap();
            match field(request, "authorization") {
                _ if path_of(request) == "/v2/" => Reply::of(b"{}"),
                None => unauthorized(&challenge),
                Some(token) if !request.contains("\r\nrange: ") => match token {
                    _ if request.contains(&path) => cut.clone(),
                    _ => files.get(request),
                },
                Some("Bearer SECRET-token0") => unauthorized(&challenge),
                Some(_) => files.get(request),
            }
        },
        None,
    );
    let client = Client::new();
    client.pull(&server).unwrap();
    assert_eq!((client.cage.text("a").as_str(), tokens_.requests().len()), ("content", 2));
}

/// Layers are fetched side by side, and need one token.
#[test]
fn a_token_for_many() {
    let made = Made::new("a", 1000, OCI);
    let (tokens, client) = (tokens(), Client::new());
    let server = of_tokens(&made, &tokens.url("/"), usize::MAX);
    let puller = client.puller(&server);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(puller.find(&|| false).unwrap().digest, made.digest()));
        }
    });
    puller.open(&Opening::default()).unwrap();
    assert_eq!(tokens.requests().len(), 1);
}

#[test]
fn a_password() {
    let made = Made::new("a", 1000, OCI);
    let serve = |good: bool| {
        let files = Files::with(&made);
        Server::by(
            move |requests| {
                let request = requests.last().unwrap();
                match field(request, "authorization") {
                    _ if path_of(request) == "/v2/" => Reply::of(b"{}"),
                    Some("Basic dXMgZXI6U0VDUkVULXAmdw==") if good => files.get(request),
                    _ => unauthorized("Basic realm=\"r\""),
                }
            },
            None,
        )
    };
    let server = serve(true);
    Client::new().pull_as(&server, basic()).unwrap();
    assert_eq!(server.requests().len(), 1 + 1 + 3);
    let client = Client::new();
    let wrong = serve(false);
    let parts = ["fetching image reference", "requested access to the resource is denied", "another account"];
    failed(&client, client.pull_as(&wrong, basic()), &parts);
    assert_eq!(wrong.requests().len(), 1 + 2);
    failed(&client, client.pull(&wrong), &["answered 401: requested access to the resource is denied"]);
    failed(&client, client.pull_as(&wrong, identity()), &["only an identity token"]);
    let login = Some(Login::Basic { user: "a:b".into(), password: "SECRET".into() });
    failed(&client, client.pull_as(&wrong, login), &["a user with a colon"]);
}

#[test]
fn bad_token_servers() {
    let made = Made::new("a", 1000, OCI);
    let spaces = vec![b' '; 64 << 10];
    let page = Reply { status: 400, ..Reply::of(b"<html>an internal page SECRET") };
    let denied = br#"{"details":"incorrect username or password"}"#;
    let elsewhere = tokens();
    let see = |status| Reply::status(status).with("Location", &elsewhere.url("/SECRET"));
    for (reply, login, parts) in [
        (Reply::of(b"SECRET"), None, ["unable to retrieve auth token", "its answer is no token"]),
        (Reply::of(b"{}"), None, ["unable to retrieve auth token", "has no token"]),
        (Reply::of(br#"{"token":"a\nSECRET"}"#), None, ["unable to retrieve auth token", "has no token"]),
        (Reply::of(br#"{"token":""}"#), None, ["unable to retrieve auth token", "has no token"]),
        (Reply { endless: true, ..Reply::of(&spaces) }, None, ["the size of the answer", "limit of 65536"]),
        (page, None, ["unable to retrieve auth token", "the server answered 400"]),
        (Reply::status(503), basic(), ["the server answered 503", "cannot fetch"]),
        (
            Reply { status: 401, ..Reply::of(denied) },
            basic(),
            ["unable to retrieve auth token: invalid username/password", "incorrect username or password"],
        ),
        (Reply::status(400), identity(), ["invalid username/password", "`wardian image login 127.0.0.1:"]),
        (Reply::status(401), None, ["requested access to the resource is denied", "image login"]),
        (see(302), basic(), ["the server answered 302", "not followed"]),
        (see(307), identity(), ["the server answered 307", "not followed"]),
    ] {
        let (tokens, client) = (Server::new(vec![reply]), Client::new());
        let server = of_tokens(&made, &tokens.url("/t"), usize::MAX);
        failed(&client, client.pull_as(&server, login), &parts);
        assert!(tokens.sent() < 32 << 20);
    }
    assert_eq!(elsewhere.requests().len(), 0);
    let (connect, patience) = (std::time::Duration::from_secs(1), std::time::Duration::from_millis(300));
    let client = Client::with(Settings { connect, patience, tries: 2, ..settings() });
    let whole = || Reply::of(br#"{"token":"SECRET"}"#);
    for reply in [Reply { silent: true, ..whole() }, whole().hang(3), Reply { reset: true, ..whole() }] {
        let tokens = Server::new(vec![reply]);
        let server = of_tokens(&made, &tokens.url("/t"), usize::MAX);
        failed(&client, client.pull(&server), &["cannot fetch", &tokens.url("/t")]);
        assert_eq!(tokens.requests().len(), 2);
    }
    for (challenge, part) in [
        ("Bearer realm=\"ftp://127.0.0.1/\"", "token server is bad"),
        ("Bearer realm=\"file:///etc/passwd\"", "does not use TLS"),
        ("Bearer realm=\"http://u:SECRET@127.0.0.1/\"", "has a user or a password"),
        ("Bearer realm=\"not a URL\"", "token server is bad"),
        ("Digest realm=\"x\"", "neither for a password nor for a token"),
        ("", "neither for a password nor for a token"),
    ] {
        let challenge = challenge.to_owned();
        let answer = move |requests: &[String]| match path_of(requests.last().unwrap()) {
            "/v2/" => Reply::of(b"{}"),
            _ => unauthorized(&challenge),
        };
        let (client, server) = (Client::new(), Server::by(answer, None));
        failed(&client, client.pull_as(&server, basic()), &["asks for credentials", part]);
    }
}

/// Nothing of the registry's is shown to a server that it redirects to, and that cannot ask for it either.
#[test]
fn redirected() {
    let made = Made::new("a", 1000, OCI);
    let tokens_ = tokens();
    for refuses in [false, true] {
        let (bytes, path) = (made.blob.clone(), blob(&made.blob));
        let challenge = format!(r#"Bearer realm="{}""#, tokens_.url("/evil"));
        let elsewhere =
            Server::by(move |_| if refuses { unauthorized(&challenge) } else { Reply::of(&bytes) }, None);
        let to = elsewhere.url("/SECRET?signature=SECRET");
        let (files, challenge) = (Files::with(&made), format!(r#"Bearer realm="{}""#, tokens_.url("/")));
        let server = Server::by(
            move |requests| {
                let request = requests.last().unwrap();
                match field(request, "authorization") {
                    _ if path_of(request) == "/v2/" => Reply::of(b"{}"),
                    None => unauthorized(&challenge),
                    Some(_) if request.contains(&path) => Reply::status(307).with("Location", &to),
                    Some(_) => files.get(request),
                }
            },
            None,
        );
        let client = Client::new();
        let result = client.pull_as(&server, basic());
        if refuses {
            let who = format!("{}, where it redirects to, answered 401", elsewhere.url(""));
            failed(&client, result, &["fetching blob", &who]);
        } else {
            result.unwrap();
        }
        let requests = elsewhere.requests();
        assert!(requests.len() == 1 && field(&requests[0], "authorization").is_none(), "{requests:?}");
        assert!(!requests[0].contains("token0") && field(&requests[0], "referer").is_none());
    }
    assert!(tokens_.requests().iter().all(|request| !request.contains("/evil")));
}

#[test]
fn trust() {
    let made = Made::new("a", 1000, OCI);
    let (known, stranger) = (authority("known"), authority("stranger"));
    let server = Files::with(&made).serve_by(Some(config(&known, None)));
    let (trusting, _certificates) = Client::trusting(&known, &[&server.host()], settings());
    trusting.pull(&server).unwrap();
    // The registry of another port is another one.
    let (other, _certificates) = Client::trusting(&known, &["127.0.0.1", "127.0.0.1:1"], settings());
    let parts = ["is not trusted"];
    failed(&other, other.pull(&server), &parts);
    assert_eq!(server.requests().iter().filter(|request| path_of(request) == "/v2/").count(), 1);
    // An insecure one is not verified, but the server that it redirects to is.
    let insecure = |server: &Server| vec![(Endpoint { insecure: true, ..endpoint(server) }, None)];
    let client = Client::new();
    let image = client.open(name(&server.host()), insecure(&server)).unwrap();
    client.unpack(&image, &Watch::default()).unwrap();
    let elsewhere = Server::start(vec![Reply::of(&made.blob)], Some(config(&stranger, None)));
    let mut files = Files::with(&made);
    let to = elsewhere.url("/x").replace("127.0.0.1", "localhost");
    files.set(&blob(&made.blob), Reply::status(302).with("Location", &to));
    let server = files.serve_by(Some(config(&known, None)));
    let image = client.open(name(&server.host()), insecure(&server)).unwrap();
    failed(&client, client.unpack(&image, &Watch::default()), &["is not trusted"]);
    assert_eq!(elsewhere.requests().len(), 0);
    // One that is insecure may be without TLS; its address is a loopback one here anyway, so this is the same.
    let plain = Files::with(&made).serve();
    client.open(name(&plain.host()), insecure(&plain)).unwrap();
    // One that asks for a client certificate.
    let asking = Files::with(&made).serve_by(Some(config(&known, Some(&stranger))));
    let (client, certificates) = Client::trusting(&known, &[&asking.host()], settings());
    assert!(client.pull(&asking).is_err());
    let (certificate, key) = super::super::tls::issue(&stranger);
    let dir = certificates.path().join(asking.host());
    write(&dir.join("client.cert"), certificate.as_bytes());
    write(&dir.join("client.key"), key.as_bytes());
    let client =
        Client::with(Settings { registry_certificates: vec![certificates.path().to_owned()], ..settings() });
    client.pull(&asking).unwrap();
}

/// A registry with TLS cannot have credentials sent without it.
#[test]
fn token_servers_without_tls() {
    let made = Made::new("a", 1000, OCI);
    let known = authority("known");
    let (plain, tls) = (tokens(), tokens_by(Some(config(&known, None))));
    // Another host, which the password must not be sent to without TLS, whatever is allowed for the registry.
    let other = plain.url("/t").replace("127.0.0.1", "localhost");
    for (realm, at, insecure, fits) in [
        (&plain, plain.url("/t"), false, false),
        (&plain, plain.url("/t"), true, true),
        (&plain, other, true, false),
        (&tls, tls.url("/t"), false, true),
    ] {
        let server = of_tokens_by(&made, &at, usize::MAX, Some(config(&known, None)));
        let (client, _certificates) = Client::trusting(&known, &[&server.host(), &tls.host()], settings());
        let endpoint = Endpoint { insecure, ..endpoint(&server) };
        let before = realm.requests().len();
        let result = client.open(name(&server.host()), vec![(endpoint, basic())]);
        if fits {
            result.unwrap();
            assert_eq!(realm.requests().len(), before + 1);
        } else {
            failed(&client, result, &["its token server, http://", "does not use TLS"]);
            assert_eq!(realm.requests().len(), before);
        }
    }
}
