//! Layers that a layout only refers to by URLs.

use std::fs::File;
use std::os::fd::AsFd;

use super::image::Layout;
use super::remote::settings;
use super::server::{Reply, Server};
use super::{Cage, Tar, gzip, is_refused};
use crate::{Digest, Error, Limits, Remote, Settings, Source, Unpacked, Watch};

fn tar() -> Vec<u8> {
    let noise: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    Tar::default().file("noise", &noise).file("a", b"a").end()
}

/// An image of one layer whose blob, described as that of `tar`, the layout lacks.
fn layout(blob: &[u8], tar: &[u8], urls: &[String]) -> Layout {
    let layout = Layout::new();
    let urls = serde_json::to_string(urls).unwrap();
    let layer = format!(r#"{},"urls":{urls}"#, layout.blob(blob));
    layout.index(&[layout.manifest_of(&[layer], &[Digest::of(tar)])]);
    std::fs::remove_file(path(&layout, blob)).unwrap();
    layout
}

fn path(layout: &Layout, blob: &[u8]) -> std::path::PathBuf {
    layout.path().join("blobs/sha256").join(Digest::of(blob).as_hex())
}

/// Returns settings that allow all servers named by the layout.
fn allowing(layout: &Layout) -> Settings {
    let mut hosts = Vec::new();
    for entry in std::fs::read_dir(layout.path().join("blobs/sha256")).unwrap() {
        // A link that leads nowhere is one of the cases.
        let Ok(text) = std::fs::read(entry.unwrap().path()) else { continue };
        let text = String::from_utf8_lossy(&text).into_owned();
        for url in text.split("\"http://").skip(1) {
            hosts.push(url.split(['/', '"']).next().unwrap().parse().unwrap());
        }
    }
    Settings { layer_hosts: hosts, ..settings() }
}

fn unpack(layout: &Layout) -> Result<Unpacked, Error> {
    unpack_with(layout, &Remote::new(allowing(layout)).unwrap(), &Cage::new(), &Watch::default())
}

fn unpack_with(layout: &Layout, remote: &Remote, cage: &Cage, watch: &Watch) -> Result<Unpacked, Error> {
    let image = Source::parse(&format!("oci://{}", layout.path().display())).unwrap().open(remote)?;
    let into = File::open(cage.root()).unwrap();
    image.layers[0].unpack(into.as_fd(), &[], &Limits::default(), watch)
}

#[test]
fn in_their_order() {
    let tar = tar();
    for blob in [gzip(&tar), tar.clone()] {
        let good = Server::new(vec![Reply::of(&blob)]);
        let gone = Server::new(vec![Reply::status(404)]);
        let never = Server::new(vec![Reply::status(500)]);
        let urls = ["ftp://h/x".into(), "not a url".into(), gone.url("/x"), good.url("/x"), never.url("/x")];
        let layout = layout(&blob, &tar, &urls);
        let (cage, watch) = (Cage::new(), Watch::default());
        let remote = Remote::new(allowing(&layout)).unwrap();
        assert_eq!(unpack_with(&layout, &remote, &cage, &watch).unwrap().diff_id, Digest::of(&tar));
        assert_eq!((cage.text("a"), watch.bytes_read()), ("a".into(), blob.len() as u64));
        let counts = [&gone, &good, &never].map(|server| server.requests().len());
        assert_eq!(counts, [1, 1, 0]);
        // A local blob is used, and verified all the same.
        super::write(&path(&layout, &blob), &blob);
        unpack(&layout).unwrap();
        let mut damaged = blob.clone();
        damaged[1000] ^= 1;
        super::write(&path(&layout, &blob), &damaged);
        assert!(unpack(&layout).is_err());
        assert_eq!([&gone, &good, &never].map(|server| server.requests().len()), counts);
        // A dangling symlink counts as a missing blob.
        std::fs::remove_file(path(&layout, &blob)).unwrap();
        std::os::unix::fs::symlink("nowhere", path(&layout, &blob)).unwrap();
        unpack(&layout).unwrap();
    }
}

/// The second server continues where the first stopped; the digest covers both parts.
#[test]
fn one_goes_on_where_another_stopped() {
    let (tar, blob) = (tar(), gzip(&tar()));
    for ranges in [true, false] {
        let first = Server::new(vec![Reply::of(&blob).with("ETag", "\"a\"").cut(1000), Reply::status(410)]);
        let second = Server::new(vec![Reply { ranges, ..Reply::of(&blob) }.with("ETag", "\"b\"")]);
        let layout = layout(&blob, &tar, &[first.url("/x"), second.url("/y")]);
        unpack(&layout).unwrap();
        let request = &second.requests()[0];
        assert!(request.contains("range: bytes=1000-\r\n") && !request.contains("if-range"), "{request}");
    }
    // Servers behind one name with different validators.
    for (ranges, then) in [(true, "\"b\""), (false, "\"b\""), (true, "W/\"a\"")] {
        let date = |text| format!("Tue, 15 Nov 1994 12:45:{text} GMT");
        let first = Reply::of(&blob).with("ETag", "\"a\"").with("Last-Modified", &date("26")).cut(1000);
        let then = Reply { ranges, ..Reply::of(&blob) }.with("ETag", then).with("Last-Modified", &date("27"));
        let server = Server::new(vec![first, then]);
        unpack(&layout(&blob, &tar, &[server.url("/x")])).unwrap();
        assert!(!server.requests()[1].contains("if-range"));
    }
    let first = Server::new(vec![Reply::of(&blob).cut(1000), Reply::status(410)]);
    let mut other = blob.clone();
    other[2000] ^= 1;
    let second = Server::new(vec![Reply { ranges: true, ..Reply::of(&other) }]);
    assert!(unpack(&layout(&blob, &tar, &[first.url("/x"), second.url("/y")])).is_err());
}

#[test]
fn none_of_them() {
    let (tar, blob) = (tar(), gzip(&tar()));
    let (refuses, fails) = (Server::new(vec![Reply::status(403)]), Server::new(vec![Reply::status(500)]));
    let longer = Server::new(vec![Reply::of(&[&blob[..], b"x"].concat())]);
    let unsized_ = Reply { no_length: true, ..Reply::of(&[&blob[..], b"x"].concat()) };
    let unsized_ = Server::new(vec![unsized_]);
    for (urls, end, refused) in [
        (vec![refuses.url("/x?SECRET")], "the server answered 403", true),
        (vec![fails.url("/x"), refuses.url("/x")], "the server answered 403", true),
        (vec![refuses.url("/x"), fails.url("/x")], "the server answered 500", false),
        (vec![longer.url("/x")], &format!("expected {} bytes, got {}", blob.len(), blob.len() + 1), false),
    ] {
        let error = unpack(&layout(&blob, &tar, &urls)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("from all urls: ") && text.ends_with(end) && !text.contains("SECRET"),
            "{text}"
        );
        assert_eq!(is_refused(&error), refused);
    }
    let error = unpack(&layout(&blob, &tar, &[unsized_.url("/x")])).unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { .. }), "{error:?}");
    for urls in [vec!["ftp://h/x".to_owned(), "file:///etc/passwd".to_owned()], vec![String::new()]] {
        let error = unpack(&layout(&blob, &tar, &urls)).unwrap_err();
        assert!(matches!(error, Error::NoUrl { .. }) && error.to_string().contains("http"), "{error:?}");
    }
    let many = |count| unpack(&layout(&blob, &tar, &vec!["ftp://h/x".to_owned(); count])).unwrap_err();
    assert!(matches!(many(16), Error::NoUrl { .. }));
    assert!(matches!(many(17), Error::Limit { what, limit: 16 } if what.contains("urls")));
    let nothing = unpack(&layout(&blob, &tar, &[])).unwrap_err();
    assert!(matches!(nothing, Error::Io { .. }), "{nothing:?}");
    // The right size, but other bytes.
    let other = gzip(&tar);
    let served = Server::new(vec![Reply::of(&vec![b'x'; other.len()])]);
    let error = unpack(&layout(&other, &tar, &[served.url("/x")])).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. } | Error::NoTar { .. }), "{error:?}");
}

/// A refused entry ends the fetch at once, though the server would hang for an hour.
#[test]
fn a_writer_that_gives_up() {
    let noise: Vec<u8> = (0..500_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let tar = Tar::default().file("../x", b"").file("noise", &noise).end();
    let patience = std::time::Duration::from_secs(3600);
    let server = Server::new(vec![Reply::of(&tar).hang(1 << 20)]);
    let layout = layout(&tar, &tar, &[server.url("/x")]);
    let remote = Remote::new(Settings { patience, ..allowing(&layout) }).unwrap();
    let result = unpack_with(&layout, &remote, &Cage::new(), &Watch::default());
    assert!(matches!(result, Err(Error::UnsafePath { .. })), "{result:?}");
}

/// The same holds for blobs of a layout in an archive.
#[test]
fn in_an_archive() {
    let (tar, blob) = (tar(), gzip(&tar()));
    let server = Server::new(vec![Reply::of(&blob)]);
    let layout = layout(&blob, &tar, &[server.url("/x")]);
    let mut archive = Tar::default();
    let index = std::fs::read(layout.path().join("index.json")).unwrap();
    archive = archive.file("index.json", &index);
    for entry in std::fs::read_dir(layout.path().join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("blobs/sha256/{}", path.file_name().unwrap().to_str().unwrap());
        archive = archive.file(&name, &std::fs::read(&path).unwrap());
    }
    let file = layout.path().join("archive.tar");
    super::write(&file, &archive.end());
    let image = Source::parse(&format!("oci-archive://{}", file.display())).unwrap();
    let image = image.open(&Remote::new(allowing(&layout)).unwrap()).unwrap();
    let cage = Cage::new();
    let into = File::open(cage.root()).unwrap();
    image.layers[0].unpack(into.as_fd(), &[], &Limits::default(), &Watch::default()).unwrap();
    assert_eq!(cage.text("a"), "a");
}

/// An image does not decide which servers this host contacts.
#[test]
fn only_servers_that_were_allowed() {
    let (tar, blob) = (tar(), gzip(&tar()));
    let [named, other] = [(); 2].map(|()| Server::new(vec![Reply::of(&blob)]));
    let url = |server: &Server| server.url("/x?SECRET");
    let host = |server: &Server| server.url("").strip_prefix("http://").unwrap().to_owned();
    let fetch = |urls: &[String], hosts: &[String]| {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let remote = Remote::new(Settings { layer_hosts: hosts, ..settings() }).unwrap();
        unpack_with(&layout(&blob, &tar, urls), &remote, &Cage::new(), &Watch::default())
    };
    let without_port = host(&named).split(':').next().unwrap().to_owned();
    for hosts in [vec![], vec![host(&other)], vec![without_port]] {
        let error = fetch(&[url(&named)], &hosts).unwrap_err();
        assert!(
            matches!(&error, Error::ForeignHost { host: shown, .. } if *shown == host(&named)),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains(&format!("--layer-hosts {}", host(&named))) && !text.contains("SECRET"),
            "{text}"
        );
    }
    // The error for a URL with a user does not advise allowing its host, which would not help.
    let account = named.url("/x").replacen("://", "://user@", 1);
    for hosts in [vec![], vec![host(&named)]] {
        let error = fetch(std::slice::from_ref(&account), &hosts).unwrap_err();
        assert!(matches!(&error, Error::Account { host: shown, .. } if *shown == host(&named)), "{error:?}");
        assert!(!error.to_string().contains("--layer-hosts"), "{error}");
    }
    let error = fetch(&[account, url(&other)], &[]).unwrap_err();
    assert!(matches!(&error, Error::ForeignHost { host: shown, .. } if *shown == host(&other)), "{error:?}");
    // URLs of hosts that are not allowed are skipped, and so are those with a password.
    let account = named.url("/x").replacen("://", "://user:pass@", 1);
    fetch(&[url(&other), account, url(&named)], &[host(&named)]).unwrap();
    assert_eq!((named.requests().len(), other.requests().len()), (1, 0));
    assert!(!named.requests()[0].contains("authorization"));
    // An allowed server may redirect only to allowed ones.
    let redirect = |to: &Server| Server::new(vec![Reply::status(302).with("Location", &url(to))]);
    let away = redirect(&other);
    let error = fetch(&[url(&away)], &[host(&away)]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&host(&other)) && text.contains("--layer-hosts") && !text.contains("SECRET"),
        "{text}"
    );
    assert_eq!((away.requests().len(), other.requests().len()), (1, 0));
    let account = other.url("/x").replacen("://", "://user@", 1);
    let away = Server::new(vec![Reply::status(302).with("Location", &account)]);
    let error = fetch(&[url(&away)], &[host(&away), host(&other)]).unwrap_err().to_string();
    assert!(error.contains("with a user or a password") && !error.contains("--layer-hosts"), "{error}");
    let away = redirect(&other);
    fetch(&[url(&away)], &[host(&away), host(&other)]).unwrap();
    assert_eq!(other.requests().len(), 1);
}
