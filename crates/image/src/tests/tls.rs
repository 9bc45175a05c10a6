//! Servers that speak TLS, and directories of certificates.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::remote::{fetch_by, settings};
use super::server::{Reply, Server};
use super::{app::all_text, write};
use crate::{Error, Remote, Settings};

pub(super) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(super) fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for 127.0.0.1 and its key, both in PEM form.
pub(super) fn issue(authority: &Authority) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

/// A server with a certificate of `own` that wants one of `clients`.
fn server(own: &Authority, clients: Option<&Authority>) -> Server {
    server_with(own, clients, vec![Reply::of(b"blob")])
}

fn server_with(own: &Authority, clients: Option<&Authority>, replies: Vec<Reply>) -> Server {
    Server::start(replies, Some(config(own, clients)))
}

/// A server's certificate of `own`, and the authority of its clients' if it wants one.
pub(super) fn config(own: &Authority, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let (certificate, key) = issue(own);
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = match clients {
        None => builder.unwrap().with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.unwrap().with_client_cert_verifier(verifier.unwrap())
        }
    };
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    Arc::new(builder.with_single_cert(vec![certificate], key).unwrap())
}

fn remote(dir: &Path) -> Result<Remote, Error> {
    Remote::new(Settings { certificates: Some(dir.to_owned()), tries: 1, ..settings() })
}

#[test]
fn trust() {
    let (known, stranger) = (authority("known"), authority("stranger"));
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("a.crt"), known.pem().as_bytes());
    write(&dir.path().join("empty.crt"), b"\n");
    let remote = remote(dir.path()).unwrap();
    assert_eq!(fetch_by(&remote, &server(&known, None)).unwrap(), b"blob");
    let error = fetch_by(&remote, &server(&stranger, None)).unwrap_err();
    assert!(matches!(&error, Error::Fetch { why, .. } if why.contains("certificate")), "{error:?}");
    // A redirect may lead to TLS, but not out of it.
    let plain = Server::new(vec![Reply::of(b"plain")]);
    let down = Reply::status(302).with("Location", &plain.url("/?SECRET"));
    let error = fetch_by(&remote, &server_with(&known, None, vec![down])).unwrap_err();
    assert!(matches!(&error, Error::Fetch { why, .. } if why.contains("https to http")), "{error:?}");
    assert!(plain.requests().is_empty() && !all_text(&error).contains("SECRET"));
    let target = server(&known, None);
    let up = Server::new(vec![Reply::status(302).with("Location", &target.url("/"))]);
    assert_eq!(fetch_by(&remote, &up).unwrap(), b"blob");
}

#[test]
fn shown_to_servers_that_ask() {
    let (own, clients, others) = (authority("servers"), authority("clients"), authority("others"));
    let dir = tempfile::tempdir().unwrap();
    let pair = |name: &str, authority: &Authority| {
        let (certificate, key) = issue(authority);
        write(&dir.path().join(format!("{name}.cert")), certificate.as_bytes());
        write(&dir.path().join(format!("{name}.key")), key.as_bytes());
    };
    write(&dir.path().join("servers.crt"), own.pem().as_bytes());
    write(&dir.path().join("unset.cert"), b"");
    write(&dir.path().join("unset.key"), b"\n");
    // A blank file counts as missing, so it is not half of a pair.
    write(&dir.path().join("half.cert"), b"");
    write(&dir.path().join("other.key"), b" \n");
    let without = remote(dir.path()).unwrap();
    assert!(fetch_by(&without, &server(&own, Some(&clients))).is_err());
    // The one that the server's authority signed is not the first.
    pair("a", &others);
    pair("b", &clients);
    let with = remote(dir.path()).unwrap();
    assert_eq!(fetch_by(&with, &server(&own, Some(&clients))).unwrap(), b"blob");
    assert_eq!(fetch_by(&with, &server(&own, Some(&others))).unwrap(), b"blob");
    assert_eq!(fetch_by(&with, &server(&own, None)).unwrap(), b"blob");
    assert!(fetch_by(&with, &server(&own, Some(&authority("unknown")))).is_err());
}

/// The certificates may be the cause of a failure, so they are read again after one.
#[test]
fn read_again_after_a_failure() {
    let (own, dir) = (authority("own"), tempfile::tempdir().unwrap());
    let (remote, server) = (remote(dir.path()).unwrap(), server(&own, None));
    assert!(fetch_by(&remote, &server).is_err());
    write(&dir.path().join("own.crt"), own.pem().as_bytes());
    assert_eq!(fetch_by(&remote, &server).unwrap(), b"blob");
}

#[test]
fn bad_directories() {
    let (certificate, key) = issue(&authority("x"));
    let other_key = issue(&authority("x")).1;
    let (cert, key) = (certificate.as_bytes(), key.as_bytes());
    let no_pem: &[u8] = b"nonsense";
    let broken: &[u8] = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    type Files<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(Files<'_>, &str); 9] = [
        (&[("a.cert", cert)], "missing DIR/a.key, which belongs to DIR/a.cert"),
        (&[("a.key", key)], "missing DIR/a.cert, which belongs to DIR/a.key"),
        (&[("a.cert", cert), ("b.key", key)], "missing DIR/a.key, which belongs to DIR/a.cert"),
        (&[("a.cert", cert), ("a.key", b" \n")], "missing DIR/a.key, which belongs to DIR/a.cert"),
        (&[("a.cert", b""), ("a.key", key)], "missing DIR/a.cert, which belongs to DIR/a.key"),
        (&[("a.crt", no_pem)], "bad certificate or key DIR/a.crt: "),
        (&[("a.crt", broken)], "bad certificate or key DIR/a.crt: "),
        (&[("a.cert", cert), ("a.key", no_pem)], "bad certificate or key DIR/a.key: "),
        (&[("a.cert", cert), ("a.key", other_key.as_bytes())], "bad certificate or key DIR/a.cert: "),
    ];
    for (files, text) in cases {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            write(&dir.path().join(name), content);
        }
        let error = remote(dir.path()).expect_err(text).to_string();
        assert!(error.replace(&dir.path().display().to_string(), "DIR").starts_with(text), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    remote(&dir.path().join("missing")).unwrap();
    write(&dir.path().join("README"), b"ignored");
    remote(dir.path()).unwrap();
    assert!(matches!(remote(&dir.path().join("README")), Err(Error::Io { .. })));
}
