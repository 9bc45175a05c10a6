//! Apps on top of images: their addresses, layers and errors.

use std::error::Error as _;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tar::EntryType;

use super::remote::{hasty, settings};
use super::server::{Reply, Server};
use super::{Cage, Tar, gzip, is_refused, write};
use crate::{App, Digest, Error, Layer, Limits, Remote, Unpacked, Watch};

const BELOW: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn app(uri: &str) -> (String, App) {
    App::parse(uri).unwrap_or_else(|e| panic!("{uri}: {e}")).unwrap_or_else(|| panic!("{uri}: ordinary"))
}

/// Returns a droplet on a root file system, with its digest.
fn droplet(url: &str, path: &str, digest: &Digest) -> App {
    app(&format!("preloaded+layer:///r?layer={url}&layer_path={path}&layer_digest={}", digest.as_hex())).1
}

fn layer(app: &App) -> Result<Layer, Error> {
    app.layer(BELOW, &hasty(), &Watch::default())
}

fn chain_id(uri: &str) -> String {
    layer(&app(uri).1).unwrap().chain_id
}

/// Unpacks the app on top of one layer.
fn unpack(app: &App, cage: &Cage, below: &Cage) -> Result<Unpacked, Error> {
    unpack_with(app, cage, below, &Limits::default())
}

fn unpack_with(app: &App, cage: &Cage, below: &Cage, limits: &Limits) -> Result<Unpacked, Error> {
    let below = File::open(below.root()).unwrap();
    let into = File::open(cage.root()).unwrap();
    layer(app)?.unpack(into.as_fd(), &[below.as_fd()], limits, &Watch::default())
}

/// A layer with `/home` (0750, owner 7) and `/home/vcap` (0700, owner 8).
fn rootfs() -> Cage {
    let dir = |tar: Tar, name, mode, uid| {
        tar.raw(EntryType::Directory, name, "", b"", |h| {
            h.set_mode(mode);
            h.set_uid(uid);
        })
    };
    below(dir(dir(Tar::default(), "home", 0o750, 7), "home/vcap", 0o700, 8))
}

fn below(tar: Tar) -> Cage {
    let cage = Cage::new();
    cage.unpack(&tar.end()).unwrap();
    cage
}

fn content() -> Vec<u8> {
    Tar::default().file("app/main", &[b'm'; 300_000]).file("profile", b"p").end()
}

/// Returns the text of an error with its causes, both `Display` and `Debug`.
pub(super) fn all_text(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(" {error} {error:?}");
        cause = error.source();
    }
    text
}

#[test]
fn addresses() {
    let hex = "a".repeat(64);
    let query = format!(
        "layer=https%3A%2F%2Fu%3Apw%40h%3A8%2Fd%3Fsig%3Dx%26y&layer_path=/home/vcap&layer_digest={hex}"
    );
    let shown = format!("?layer=https://h:8/d&layer_path=/home/vcap&layer_digest={hex}");
    for (uri, base, path) in [
        ("preloaded+layer:///r/c.tar", "tar:///r/c.tar", "/r/c.tar"),
        ("preloaded+layer:/r/c.tar", "tar:///r/c.tar", "/r/c.tar"),
        ("Preloaded+Layer:///r%20c+d.tar", "tar:///r c+d.tar", "/r%20c%2Bd.tar"),
    ] {
        let (image, app) = app(&format!("{uri}?{query}"));
        assert_eq!(image, base);
        assert_eq!(app.to_string(), format!("preloaded+layer://{path}{shown}"));
    }
    for (uri, base, shown) in [
        ("busybox?app=/a.tgz&app_path=/", "busybox", "busybox?app=/a.tgz&app_path=/"),
        ("?app=/a&app_path=/x", "", "?app=/a&app_path=/x"),
        ("oci:///l:v1?app_path=/x/&app=/a+b%25", "oci:///l:v1", "oci:///l:v1?app=/a%20b%25&app_path=/x"),
        ("x?app=file:///a%2520b&app_path=/x", "x", "x?app=/a%20b&app_path=/x"),
        ("/r.tar?app=http://h/p?q%26r&app_path=/%C3%A4", "/r.tar", "/r.tar?app=http://h/p&app_path=/%C3%A4"),
    ] {
        let (image, app) = app(uri);
        assert_eq!((image.as_str(), app.to_string().as_str()), (base, shown), "{uri}");
    }
    let (_, file) =
        app(&format!("preloaded+layer:///r?layer=file:///a%2520b&layer_path=.&layer_digest={hex}"));
    let shown = format!("preloaded+layer:///r?layer=file:///a%2520b&layer_path=/&layer_digest={hex}");
    assert_eq!(file.to_string(), shown);
    let (image, app) = app("docker://u:SECRET@h/x?app=/a&app_path=/");
    assert_eq!(
        (image.as_str(), app.to_string().as_str()),
        ("docker://u:SECRET@h/x", "docker://h/x?app=/a&app_path=/")
    );
    assert!(!format!("{app:?}").contains("SECRET"));
    for ordinary in [
        "",
        "busybox",
        "/a?b.tar",
        "oci:///a?x=app",
        "tar:///x?ap=1&x",
        "https://h/?sig=1",
        "/x?apple.tar",
        "/x?app_file=1&layers=2",
    ] {
        assert_eq!(App::parse(ordinary).unwrap(), None, "{ordinary}");
    }
}

#[test]
fn bad_addresses() {
    let hex = "a".repeat(64);
    let good =
        [("layer", "https://h/SECRET?SECRET"), ("layer_path", "/home"), ("layer_digest", hex.as_str())];
    let query = |change: &str, value: Option<&str>, more: &str| {
        let pairs = good.iter().filter_map(|(key, own)| {
            let value = if *key == change { value } else { Some(*own) };
            value.map(|value| format!("{key}={value}"))
        });
        format!("preloaded+layer:///r?{}{more}", pairs.collect::<Vec<_>>().join("&"))
    };
    App::parse(&query("", None, "")).unwrap();
    for key in ["layer", "layer_path", "layer_digest"] {
        let missing = App::parse(&query(key, None, "")).unwrap_err().to_string();
        assert_eq!(missing, format!("no query parameter '{key}' found in URL preloaded+layer:///r"));
        let empty = App::parse(&query(key, Some(""), "")).unwrap_err();
        assert!(matches!(&empty, Error::Parameter { key: named, .. } if named == key), "{empty}");
        let twice = App::parse(&query("", None, &format!("&{key}=x"))).unwrap_err();
        assert!(matches!(&twice, Error::Parameter { key: named, .. } if named == key), "{twice}");
    }
    assert!(matches!(App::parse("preloaded+layer:///r"), Err(Error::NoParameter { key: "layer", .. })));
    let long = "a/".repeat(300);
    for (key, values) in [
        (
            "layer",
            &[
                "/abs",
                "ftp://h/x",
                "h/x",
                "https://",
                "file://h/x",
                "file:x",
                "file:///x%3fy",
                "%zz",
                "%",
                "a%4",
            ][..],
        ),
        ("layer", &["https://h/#x", "https://h/%00%ff", "file:///x%2500"]),
        ("layer_path", &["..", "/a/../b", "a%00b", "/.wh.x", "%ff", &long]),
        (
            "layer_digest",
            &["0", &hex.to_uppercase(), &hex[1..], "sha256%3aaa", &format!("{hex}a"), &"g".repeat(64)],
        ),
    ] {
        for value in values {
            let uri = query(key, Some(value), "");
            let error = App::parse(&uri).expect_err(&uri);
            let named = match &error {
                Error::Parameter { key, .. } => key.as_str(),
                Error::App { key, .. } => key,
                _ => "",
            };
            assert_eq!(named, key, "{uri}: {error}");
        }
    }
    for uri in [
        "preloaded+layer://h/r?",
        "preloaded+layer:r?",
        "preloaded+layer:?",
        "preloaded+layer:///%zz?",
        "preloaded+layer:///a#b?",
        "preloaded+layer:///a%3Fapp=/b%26app_path=/?",
    ] {
        assert!(matches!(App::parse(&format!("{uri}SECRET=1")), Err(Error::Source { .. })), "{uri}");
    }
    // Unknown keys, among them parts of a URL that was not encoded.
    for (more, shown) in [
        ("&layer_x=SECRET", "layer_x"),
        ("&SECRET", "(not shown)"),
        ("&app=SECRET", "app"),
        ("&a$SECRET=1", "(not shown)"),
    ] {
        let error = App::parse(&query("", None, more)).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("query parameter {shown}"))
                || error.to_string().starts_with(&format!("query parameter \"{shown}\"")),
            "{error}"
        );
    }
    for (uri, key) in [
        ("x?app=/a", "app_path"),
        ("x?app_path=/a", "app"),
        ("x?app_digest=aa", "app"),
        ("x?app=/a&app_path=rel", "app_path"),
        ("x?app=rel&app_path=/", "app"),
        ("x?app=/a&app_path=/&app_digest=", "app_digest"),
        ("x?app=/a&app_path=/&app_digest=AA", "app_digest"),
        ("x?app=/a&app_path=/&x=1", "\"x\""),
        ("x?app=/a&app_path=/&apps=1", "\"apps\""),
        ("x?app_file=1&app=/a&app_path=/", "\"app_file\""),
        ("busybox?layer=/a", "layer"),
        ("/r.tar?x=1&layer_path=/a", "layer_path"),
        ("x?app=/a&app_path=/&l%61yer_digest=aa", "layer_digest"),
        ("x?%61pp=/a&app=/b&app_path=/", "app"),
        ("x?app=/%00&app_path=/", "app"),
        ("x?app=ssh://h&app_path=/", "app"),
    ] {
        let error = App::parse(uri).expect_err(uri);
        let named = match &error {
            Error::Parameter { key, .. } => key.as_str(),
            Error::App { key, .. } | Error::NoParameter { key, .. } => key,
            _ => "",
        };
        assert_eq!(named, key, "{uri}: {error}");
    }
    // Whatever is wrong, no secret is shown.
    for key in ["layer", "layer_path", "layer_digest"] {
        for value in [None, Some(""), Some("%zz"), Some("nonsense")] {
            for more in ["", "&x=SECRET", "&SECRET", "&layer=SECRET", "#SECRET"] {
                if let Err(error) = App::parse(&query(key, value, more)) {
                    assert!(!all_text(&error).contains("SECRET"), "{error:?}");
                }
            }
        }
    }
}

#[test]
fn shown_without_secrets() {
    for (uri, text) in [
        ("https://user:pw@h/rootfs.tar?sig=SECRET", "https://h/rootfs.tar"),
        ("HTTPS:\\\\user:pw@h/x#SECRET", "HTTPS:\\\\h/x"),
        (" https:/user:pw@h/x?SECRET", " https:/h/x"),
        ("https:user:pw@h", "https:h"),
        ("https:///user:pw@h/x@y", "https:///h/x@y"),
        ("tar://user:pw@h/x?SECRET", "tar://h/x"),
        ("s3://user:pw@h", "s3://h"),
        ("preloaded+layer:///b@c.tar?layer=SECRET", "preloaded+layer:///b@c.tar"),
        ("busybox?layer=https://h/d?sig=SECRET&layer_path=/x", "busybox"),
        ("/rootfs.tar?layer=https://h/d%3Fsig=SECRET", "/rootfs.tar"),
        ("/rootfs.tar?url=https%3A%2F%2Fh%2F%3FSECRET", "/rootfs.tar"),
        ("oci:///l:v1#app=h/d%3FSECRET", "oci:///l:v1"),
        ("/r?ap%70=SECRET", "/r"),
        (
            "https://user:pw@h/x?app=https://h/y%3Fsig=SECRET&app_path=/x",
            "https://h/x?app=https://h/y&app_path=/x",
        ),
        ("busybox:1@sha256:ab", "busybox:1@sha256:ab"),
        ("user:pw@h/x", "***@h/x"),
        ("docker://user:pw@h/x", "docker://h/x"),
        ("docker:////user:pw@h/x", "***@h/x"),
        ("docker://user:pw@sha256:x@h/x", "docker://h/x"),
        ("docker://h/user:pw@x/y", "***@x/y"),
        ("docker:///busybox@sha256:ab", "docker:///busybox@sha256:ab"),
        ("/a?b#c@d.tar", "/a?b#c@d.tar"),
        ("tar:///a//b@c?d.tar", "tar:///a//b@c?d.tar"),
        ("", ""),
    ] {
        assert_eq!(crate::shown(uri), text, "{uri}");
    }
    assert_eq!(crate::shown(&format!("/{}", "ä".repeat(999))).chars().count(), 300);
}

#[test]
fn identities() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tgz");
    write(&file, &gzip(&content()));
    let file = file.display();
    let hex = "a".repeat(64);
    let ids: Vec<_> = [
        format!("x?app=https://h/1&app_path=/a&app_digest={hex}"),
        format!("x?app=https://h/1&app_path=/b&app_digest={hex}"),
        format!("x?app=https://h/1&app_path=/&app_digest={hex}"),
        format!("x?app=https://h/1&app_path=/a&app_digest={}", "b".repeat(64)),
        format!("x?app={file}&app_path=/a"),
        format!("x?app={file}&app_path=/b"),
    ]
    .map(|uri| chain_id(&uri))
    .into();
    for (index, id) in ids.iter().enumerate() {
        assert_eq!(id.len(), 64);
        assert!(ids[index + 1..].iter().all(|other| other != id), "{index}");
    }
    // Neither another URL nor the other kind of address makes another tree.
    for same in [
        format!("y?app=http://other/2?sig=3&app_path=//a/.&app_digest={hex}"),
        format!("y?app=/not/there&app_path=/a&app_digest={hex}"),
        format!("preloaded+layer:///r?layer=https://h/1&layer_path=a&layer_digest={hex}"),
    ] {
        assert!(!app(&same).1.asks_server());
        assert_eq!(chain_id(&same), ids[0], "{same}");
    }
    let other = app(&format!("x?app=https://h/1&app_path=/a&app_digest={hex}")).1;
    let other = other.layer(&"1".repeat(64), &hasty(), &Watch::default()).unwrap();
    assert_ne!(other.chain_id, ids[0]);
    assert!(app("x?app=https://h/1&app_path=/a").1.asks_server());
    assert!(!app("x?app=/not/there&app_path=/a").1.asks_server());
    let missing = layer(&app("x?app=/not/there&app_path=/a").1).unwrap_err();
    assert!(matches!(&missing, Error::App { key: "app", .. }) && missing.to_string().contains("/not/there"));
}

#[test]
fn a_droplet_on_a_rootfs() {
    let (tar, rootfs) = (content(), rootfs());
    let blob = gzip(&tar);
    let digest = Digest::of(&blob);
    let server = Server::new(vec![Reply::of(&blob)]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("droplet");
    write(&file, &blob);
    for url in [server.url("/d?sig=1"), format!("file://{}", file.display())] {
        let app = droplet(&url.replace('?', "%3f"), "/home/vcap", &digest);
        let cage = Cage::new();
        let unpacked = unpack(&app, &cage, &rootfs).unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&tar));
        assert_eq!(
            (cage.text("home/vcap/profile"), cage.stat("home/vcap/app/main").len()),
            ("p".into(), 300_000)
        );
        let stat = |name| (cage.stat(name).mode() & 0o7777, cage.stat(name).uid());
        assert_eq!((stat("home"), stat("home/vcap")), ((0o750, 7), (0o700, 8)));
        let layer = layer(&app).unwrap();
        assert!(layer.needs_layers_below() && layer.diff_id().is_none());
    }
    assert!(server.requests()[0].starts_with("GET /d?sig=1 "));
    assert_eq!(server.requests().len(), 1);
    let root = app(&format!("x?app={}&app_path=/", server.url("/d"))).1;
    assert!(matches!(layer(&root), Err(Error::App { key: "app", .. })), "there is no validator");
    let root = app(&format!("x?app={}&app_path=/", file.display())).1;
    let cage = Cage::new();
    unpack(&root, &cage, &rootfs).unwrap();
    assert_eq!(cage.text("profile"), "p");
    let layer = layer(&root).unwrap();
    assert!(!layer.needs_layers_below() && layer.size() == blob.len() as u64);
}

#[test]
fn the_base_directory() {
    let blob = gzip(&content());
    let digest = Digest::of(&blob);
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("d"), &blob);
    let file = dir.path().join("d").display().to_string();
    let cases = [
        ("missing", rootfs(), true),
        ("whiteout", below(Tar::default().dir("home").file("home/.wh.app", b"")), true),
        ("file", below(Tar::default().dir("home").file("home/app", b"")), false),
        ("symlink", below(Tar::default().dir("home").symlink("home/app", "/etc")), false),
        ("symlink above", below(Tar::default().dir("etc/app").symlink("home", "etc")), false),
        ("dangling symlink", below(Tar::default().symlink("home", "x")), false),
    ];
    for (what, below, makes) in cases {
        let short = app(&format!("x?app={file}&app_path=/home/app/x")).1;
        let cage = Cage::new();
        let result = unpack(&short, &cage, &below);
        if makes {
            result.unwrap_or_else(|e| panic!("{what}: {e}"));
            for name in ["home/app", "home/app/x"] {
                let stat = cage.stat(name);
                assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o755, 0, 0), "{what}");
            }
            assert_eq!(cage.text("home/app/x/profile"), "p");
        } else {
            let error = result.expect_err(what);
            assert!(error.to_string().starts_with("app_path: the base directory"), "{what}: {error}");
        }
        let error = unpack(&droplet(&format!("file://{file}"), "/home/app/x", &digest), &Cage::new(), &below);
        let error = error.expect_err(what);
        let Error::App { key: "layer_path", source } = &error else { panic!("{what}: {error:?}") };
        assert!(matches!(**source, Error::BaseDirectory { .. }), "{what}: {error:?}");
    }
}

#[test]
fn what_is_no_droplet() {
    let tar = content();
    let blob = gzip(&tar);
    let long: Vec<u8> = gzip(&Tar::default().file("a", &[0; 4 << 20]).end());
    let noise: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let noise = gzip(&Tar::default().file("a", &noise).end());
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
    let small = Limits { max_bytes: 10_000, max_entries: 3, ..Limits::default() };
    let any = Limits::default();
    type Fits = fn(&Error) -> bool;
    let corrupt: Fits = |e| matches!(e, Error::Corrupt { .. });
    let limit: Fits = |e| matches!(e, Error::Limit { .. } | Error::Allowance { .. });
    let cases: [(&str, &[u8], &Limits, &str, Fits); 9] = [
        ("plain", &tar, &any, "layer", corrupt),
        ("zstd", &zstd, &any, "layer", corrupt),
        ("a web page", b"<html>", &any, "layer", corrupt),
        ("nothing", b"", &any, "layer", corrupt),
        ("cut", &blob[..blob.len() - 9], &any, "layer", |e| matches!(e, Error::Truncated { .. })),
        ("garbage behind", &[&blob[..], b"garbage, as long as a header"].concat(), &any, "layer", corrupt),
        ("bomb", &long, &limits, "layer", limit),
        ("too much to fetch", &noise, &small, "layer", limit),
        ("hostile", &gzip(&Tar::default().file("../x", b"").end()), &any, "layer", |e| {
            matches!(e, Error::UnsafePath { .. })
        }),
    ];
    let dir = tempfile::tempdir().unwrap();
    let rootfs = rootfs();
    for (what, blob, limits, key, fits) in cases {
        let file = dir.path().join("d");
        write(&file, blob);
        let sized = Server::new(vec![Reply::of(blob)]);
        let unsized_ = Server::new(vec![Reply { no_length: true, ..Reply::of(blob) }]);
        for url in [sized.url("/d"), unsized_.url("/d"), format!("file://{}", file.display())] {
            let result =
                unpack_with(&droplet(&url, "home", &Digest::of(blob)), &Cage::new(), &rootfs, limits);
            let Err(Error::App { key: named, source }) = &result else { panic!("{what} {url}: {result:?}") };
            assert!(*named == key && fits(source), "{what} {url}: {result:?}");
        }
    }
    // The short form accepts any compression.
    for blob in [&tar, &zstd] {
        write(&dir.path().join("d"), blob);
        let uri = format!("x?app={}&app_path=/a", dir.path().join("d").display());
        let digest = format!("{uri}&app_digest={}", Digest::of(blob).as_hex());
        for uri in [uri, digest] {
            unpack(&app(&uri).1, &Cage::new(), &rootfs).unwrap();
        }
    }
}

#[test]
fn another_digest() {
    let (blob, rootfs, dir) = (gzip(&content()), rootfs(), tempfile::tempdir().unwrap());
    // Additional empty members: the same tree from other bytes.
    let longer = [&blob[..], &gzip(b"")].concat();
    let plain = content();
    for (served, promised) in [(&longer, &blob), (&blob, &longer), (&plain, &blob)] {
        let server = Server::new(vec![Reply::of(served)]);
        write(&dir.path().join("d"), served);
        let hex = Digest::of(promised);
        for place in [server.url("/d"), dir.path().join("d").display().to_string()] {
            let uri = format!("x?app={place}&app_path=/&app_digest={}", hex.as_hex());
            let error = unpack(&app(&uri).1, &Cage::new(), &rootfs).expect_err(&uri);
            let text = error.to_string();
            assert!(
                text.starts_with("app_digest: ") && text.contains(&format!("expected {hex}, got ")),
                "{text}"
            );
        }
        let error = unpack(&droplet(&server.url("/d"), "home", &hex), &Cage::new(), &rootfs).unwrap_err();
        let key = if served == &plain { "layer: " } else { "layer_digest: " };
        assert!(error.to_string().starts_with(key), "{error}");
    }
}

#[test]
fn a_file_that_changes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("d");
    write(&file, &gzip(&content()));
    let uri = format!("x?app={}&app_path=/", file.display());
    let before = layer(&app(&uri).1).unwrap();
    write(&file, &content());
    assert_ne!(chain_id(&uri), before.chain_id);
    let cage = Cage::new();
    let into = File::open(cage.root()).unwrap();
    let result = before.unpack(into.as_fd(), &[], &Limits::default(), &Watch::default());
    let Err(Error::App { key: "app", source }) = &result else { panic!("{result:?}") };
    assert!(matches!(**source, Error::Changed { .. }));
    // Neither a directory nor a FIFO, which would block.
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    for path in [dir.path(), fifo.as_path(), Path::new("/dev/null")] {
        let uri = format!("x?app={}&app_path=/", path.display());
        assert!(matches!(layer(&app(&uri).1), Err(Error::App { key: "app", .. })), "{uri}");
        let with = app(&format!("{uri}&app_digest={}", "a".repeat(64))).1;
        assert!(
            matches!(unpack(&with, &Cage::new(), &rootfs()), Err(Error::App { key: "app", .. })),
            "{uri}"
        );
    }
}

/// Without a digest the server's validator identifies the state of the file.
#[test]
fn validators() {
    let (blob, rootfs) = (gzip(&content()), rootfs());
    let reply = || Reply::of(&blob);
    let date = "Tue, 15 Nov 1994 12:45:26 GMT";
    let uri = |server: &Server| format!("x?app={}&app_path=/", server.url("/d?sig=1").replace('?', "%3f"));
    let mut seen = Vec::new();
    for (what, first, asked) in [
        ("etag", reply().with("ETag", "\"a\""), "HEAD"),
        ("date", reply().with("Last-Modified", date), "HEAD"),
        ("weak etag and date", reply().with("ETag", "W/\"a\"").with("Last-Modified", date), "HEAD"),
        ("no HEAD", Reply { head: Some(405), ..reply().with("ETag", "\"a\"") }, "HEAD GET"),
        ("signed for GET", Reply { head: Some(403), ..reply().with("ETag", "\"a\"") }, "HEAD GET"),
        ("HEAD not implemented", Reply { head: Some(501), ..reply().with("ETag", "\"a\"") }, "HEAD GET"),
        ("HEAD fails", Reply { head: Some(500), ..reply().with("ETag", "\"a\"") }, "HEAD GET"),
        ("HEAD says nothing", Reply { head: Some(200), ..reply().with("ETag", "\"a\"") }, "HEAD GET"),
    ] {
        let server = Server::new(vec![first]);
        let app = app(&uri(&server)).1;
        let layer = layer(&app).unwrap_or_else(|e| panic!("{what}: {e}"));
        let methods: Vec<_> =
            server.requests().iter().map(|r| r.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(methods.join(" "), asked, "{what}");
        assert_eq!(layer.size(), blob.len() as u64, "{what}");
        assert!(!seen.contains(&layer.chain_id), "another URL is another app");
        seen.push(layer.chain_id);
        unpack(&app, &Cage::new(), &rootfs).unwrap();
    }
    // Another state is another app, the same state the same.
    let server = Server::new(vec![
        reply().with("ETag", "\"a\""),
        reply().with("ETag", "\"a\""),
        reply().with("ETag", "\"b\""),
        reply().with("ETag", "\"b\""),
        reply().with("ETag", "\"c\""),
    ]);
    let app = app(&uri(&server)).1;
    let ids: Vec<_> = (0..3).map(|_| layer(&app).unwrap().chain_id).collect();
    assert!(ids[0] == ids[1] && ids[1] != ids[2]);
    let result = unpack(&app, &Cage::new(), &rootfs);
    let Err(Error::App { key: "app", source }) = &result else { panic!("{result:?}") };
    assert!(matches!(**source, Error::Changed { .. }), "{result:?}");
    for nothing in [
        reply(),
        reply().with("ETag", "W/\"a\""),
        reply().with("ETag", "nonsense"),
        Reply { no_length: true, ..reply().with("Last-Modified", date) },
    ] {
        let server = Server::new(vec![nothing]);
        let error = layer(&super::app::app(&uri(&server)).1).unwrap_err();
        assert!(error.to_string().contains("digest") && !error.to_string().contains("sig="), "{error}");
    }
    let refused = Server::new(vec![Reply::status(403)]);
    let error = layer(&super::app::app(&uri(&refused)).1).unwrap_err();
    assert!(is_refused(&error) && error.to_string().starts_with("app: http://127.0.0.1"), "{error}");
    assert!(!all_text(&error).contains("sig="));
}

#[test]
fn cancelled_while_waiting() {
    let blob = gzip(&content());
    let digest = Digest::of(&blob);
    let remote =
        Remote::new(crate::Settings { patience: std::time::Duration::from_secs(3600), ..settings() });
    let remote = remote.unwrap();
    for reply in [Reply::of(&blob).hang(100), Reply { silent: true, ..Reply::of(&blob) }] {
        let server = Server::new(vec![reply]);
        for digest in [Some(&digest), None] {
            let app = match digest {
                Some(digest) => droplet(&server.url("/d"), "/", digest),
                // The server accepts HEAD too, and sends nothing.
                None if server.requests().is_empty() => continue,
                None => app(&format!("x?app={}&app_path=/", server.url("/d"))).1,
            };
            let (watch, before) = (Watch::default(), server.requests().len());
            let result = std::thread::scope(|scope| {
                let fetch = scope.spawn(|| {
                    let cage = Cage::new();
                    let into = File::open(cage.root()).unwrap();
                    let layer = app.layer(BELOW, &remote, &watch)?;
                    layer.unpack(into.as_fd(), &[], &Limits::default(), &watch)
                });
                server.wait_for_requests(before + 1);
                watch.cancel();
                fetch.join().unwrap()
            });
            let ended = matches!(result, Err(Error::Cancelled { .. }))
                // This server answers HEAD before it hangs.
                || digest.is_none() && matches!(result, Err(Error::App { .. }));
            assert!(ended, "{result:?}");
        }
    }
}
