//! Logins that are tried before they are kept.

use super::super::tls::authority;
use super::credentials::{basic, field, identity, unauthorized};
use super::real::{Registry, never};
use super::*;
use crate::RegistryError;
use crate::registry::{Credentials, Known};
use wardian_needs::needs;

fn try_login(server: &str, login: &Login) -> Result<bool, Error> {
    let known = Known::of(None, Credentials::default());
    known.try_login(&Remote::new(settings()).unwrap(), server, login, &never)
}

#[track_caller]
fn is_refused(result: Result<bool, Error>, parts: &[&str]) {
    let error = result.expect_err("it was accepted");
    let is_login =
        matches!(&error, Error::Registry { source } if matches!(**source, RegistryError::Login { .. }));
    let text = all_text(&error);
    assert!(is_login && parts.iter().all(|part| text.contains(part)) && !text.contains("SECRET"), "{text}");
}

fn wrong() -> Login {
    Login::Basic { user: "us er".into(), password: "SECRET".into() }
}

#[test]
fn with_passwords() {
    let server = Server::by(
        |requests| match field(requests.last().unwrap(), "authorization") {
            Some("Basic dXMgZXI6U0VDUkVULXAmdw==") => Reply::of(b"{}"),
            _ => unauthorized("Basic realm=\"r\""),
        },
        None,
    );
    assert!(try_login(&server.host(), &basic().unwrap()).unwrap());
    let before = server.requests().len();
    is_refused(try_login(&server.host(), &wrong()), &["invalid username/password", &server.host()]);
    // The search for the scheme, and then one request without the login and one with it.
    assert_eq!(server.requests().len(), before + 3);
    let error = try_login(&server.host(), &identity().unwrap()).unwrap_err();
    assert!(all_text(&error).contains("only an identity token"), "{error}");
}

#[test]
fn with_tokens() {
    let tokens = Server::by(
        |requests| {
            let request = requests.last().unwrap();
            let good = request.contains("refresh_token=SECRET-identity")
                || field(request, "authorization") == Some("Basic dXMgZXI6U0VDUkVULXAmdw==");
            match good {
                true => Reply::of(br#"{"token":"SECRET-token"}"#),
                false => {
                    let body = br#"{"details":"incorrect username or password"}"#;
                    Reply { status: 401, ..Reply::of(body) }
                }
            }
        },
        None,
    );
    let challenge = format!(r#"Bearer realm="{}",service="s""#, tokens.url("/t"));
    let server = Server::by(
        move |requests| match field(requests.last().unwrap(), "authorization") {
            Some("Bearer SECRET-token") => Reply::of(b"{}"),
            _ => unauthorized(&challenge),
        },
        None,
    );
    assert!(try_login(&server.host(), &basic().unwrap()).unwrap());
    assert!(try_login(&server.host(), &identity().unwrap()).unwrap());
    let requests = tokens.requests();
    assert!(requests[0].starts_with("GET /t?service=s&account=us+er HTTP"), "{requests:?}");
    is_refused(try_login(&server.host(), &wrong()), &["incorrect username or password", "image login"]);
    // A token that the registry refuses all the same.
    let challenge = format!(r#"Bearer realm="{}",service="s""#, tokens.url("/t"));
    let server = Server::by(move |_| unauthorized(&challenge), None);
    is_refused(try_login(&server.host(), &basic().unwrap()), &["authentication required"]);
}

#[test]
fn with_neither() {
    let server = Server::new(vec![Reply::of(b"{}")]);
    assert!(!try_login(&server.host(), &basic().unwrap()).unwrap());
    assert!(server.requests().iter().all(|request| field(request, "authorization").is_none()));
    for (reply, part) in [
        (Reply::status(403), "does not let you log in: it answered 403"),
        (Reply::status(404), "is no registry: it answers 404"),
        (Reply::of(b"<html>SECRET").with("Content-Type", "text/html"), "is no registry: what it gives at"),
        (Reply::status(500), "the registry answered 500"),
    ] {
        let server = Server::new(vec![reply]);
        let error = all_text(&try_login(&server.host(), &basic().unwrap()).unwrap_err());
        assert!(error.contains(part) && error.contains(&server.host()), "{error}");
        assert!(!error.contains("SECRET") && !error.contains("does not exist"), "{error}");
    }
    for reply in [
        Reply::of(b""),
        Reply::of(b"<html>").with("Docker-Distribution-Api-Version", "registry/2.0"),
        Reply::of(b"true"),
    ] {
        let server = Server::new(vec![reply]);
        assert!(!try_login(&server.host(), &basic().unwrap()).unwrap());
    }
    for bad in ["", "a/b", "u:p@h", "a b", "127.1:5000"] {
        assert!(matches!(try_login(bad, &basic().unwrap()), Err(Error::Login(_))), "{bad}");
    }
}

/// A host without a dot is no user of Docker Hub.
#[test]
fn whose_password() {
    let registries = Known::default().with_insecure(&["registry".into()]).unwrap().registries().unwrap();
    let endpoint = registries.bare_endpoint("registry").unwrap();
    assert_eq!((endpoint.host.as_str(), endpoint.insecure), ("registry", true));
    assert_eq!(registries.bare_endpoint("docker.io").unwrap().host, "registry-1.docker.io");
    // Where its images are pulled from instead is another registry.
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    write(
        &conf,
        b"[[registry]]\nlocation = \"elsewhere.example\"\nprefix = \"a.example\"\ninsecure = true\n",
    );
    let registries = Known::of(Some(conf), Credentials::default()).registries().unwrap();
    let endpoint = registries.bare_endpoint("a.example").unwrap();
    assert_eq!((endpoint.host.as_str(), endpoint.insecure), ("a.example", false));
    let conf = dir.path().join("insecure.conf");
    write(&conf, b"[[registry]]\nlocation = \"b.example\"\ninsecure = true\n");
    let insecure = Known::of(Some(conf), Credentials::default()).registries().unwrap();
    assert!(insecure.bare_endpoint("b.example").unwrap().insecure);
    assert!(insecure.own_endpoint(&ImageName::parse("b.example/r").unwrap()).unwrap().insecure);
    // Nobody is asked for a password at a registry that nothing is pulled from.
    let (blocked, server) = (dir.path().join("blocked.conf"), Server::new(vec![Reply::of(b"{}")]));
    write(&blocked, format!("[[registry]]\nlocation = \"{}\"\nblocked = true\n", server.host()).as_bytes());
    let known = Known::of(Some(blocked), Credentials::default());
    let remote = Remote::new(settings()).unwrap();
    let error = known.try_login(&remote, &server.host(), &basic().unwrap(), &never).unwrap_err();
    assert!(error.to_string().contains("is not logged in to: `blocked = true`"), "{error}");
    assert_eq!(server.requests().len(), 0);
    let name = ImageName::parse("a.example/r").unwrap();
    let own = registries.own_endpoint(&name).unwrap();
    assert_eq!((own.host.as_str(), own.insecure), ("a.example", false));
}

#[test]
fn at_a_real_one() {
    needs!(Registry);
    let known = authority("known");
    let login = |password: &str| Login::Basic { user: "user".into(), password: password.into() };
    for passwords in [true, false] {
        let registry = Registry::start(Some(&known), passwords);
        let (client, _certificates) = Client::trusting(&known, &[&registry.host], settings());
        let try_login = |password: &str| {
            let known = Known::of(None, Credentials::default());
            known.try_login(&client.remote, &registry.host, &login(password), &never)
        };
        assert_eq!(try_login("pass word").unwrap(), passwords);
        match passwords {
            true => is_refused(try_login("SECRET"), &["UNAUTHORIZED"]),
            false => assert!(!try_login("SECRET").unwrap()),
        }
    }
}
