//! Tars into and out of containers.

use crate::support::{Server, digest, message, noise, run, say, script, sh, tar_of};
use std::io::{Read as _, Write as _};
use tokio::io::AsyncReadExt as _;
use wardian_garden::wire::ProcessSpec;
use wardian_garden::{Client, ErrorKind};

async fn put(client: &Client, user: &str, to: &str, tar: &[u8]) -> wardian_garden::Result<()> {
    client.stream_in("s", user, to, std::io::Cursor::new(tar.to_vec()), Some(tar.len() as u64)).await
}

async fn get(client: &Client, user: &str, from: &str) -> Vec<(String, Vec<u8>)> {
    let mut tar = Vec::new();
    client.stream_out("s", user, from).await.unwrap().read_to_end(&mut tar).await.unwrap();
    let mut files = Vec::new();
    for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        files.push((entry.path().unwrap().display().to_string(), data));
    }
    files
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    let server = Server::start().await;
    let client = server.create("s").await;
    let data = noise(5_000_001);
    let tar = tar_of(&[("dir/file", &data), ("small", b"s")]);
    put(&client, "", "/in/here", &tar).await.unwrap();
    assert_eq!(
        say(&client, "s", "sha256sum </in/here/dir/file").await.split(' ').next().unwrap(),
        digest(&data)
    );
    assert_eq!(say(&client, "s", "stat -c %u:%a /in/here/small").await, "0:644");
    assert_eq!(get(&client, "", "/in/here/dir/file").await, [("file".to_owned(), data.clone())]);
    let names: Vec<String> = get(&client, "root", "/in/here/").await.into_iter().map(|f| f.0).collect();
    assert!(
        names.iter().any(|n| n.ends_with("dir/file")) && names.iter().any(|n| n.ends_with("small")),
        "{names:?}"
    );

    // In pieces, as a user, to a path in his home.
    client.stream_in("s", "vcap", "app", std::io::Cursor::new(tar), None).await.unwrap();
    assert_eq!(say(&client, "s", "stat -c %U /home/vcap/app /home/vcap/app/small").await, "vcap\nvcap");
    assert_eq!(get(&client, "vcap", "app/dir/file").await, [("file".to_owned(), data)]);
    server.until_idle("s").await;
    server.finish().await;
}

#[tokio::test]
async fn many_streams_at_once() {
    let server = Server::start().await;
    let client = server.create("s").await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let client = client.clone();
        tasks.spawn(async move {
            let data = noise(300_000 + n);
            put(&client, "", &format!("/many/{n}"), &tar_of(&[("f", &data)])).await.unwrap();
            assert_eq!(get(&client, "", &format!("/many/{n}/f")).await, [("f".to_owned(), data)]);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    server.finish().await;
}

#[tokio::test]
async fn the_container_cannot_lead_a_tar_out_of_itself() {
    let server = Server::start().await;
    let client = server.create("s").await;
    let marker = server.group();
    let hostname = std::fs::read("/proc/sys/kernel/hostname").unwrap();
    let tar = tar_of(&[(marker.as_str(), b"out"), ("hostname", b"hacked\n")]);
    say(&client, "s", "ln -s /proc/sys/kernel /k; ln -s /sys /y; ln -s /dev /d; ln -s /proc/1/root /r").await;
    for to in ["/k", "/y", "/d", "/r", "/r/../../../..", "/proc/self/cwd", "/../../.."] {
        // Whether it may is the container's matter; the host must not notice.
        let _ = put(&client, "", to, &tar).await;
    }
    for on_host in ["", "proc/sys/kernel", "sys", "dev", "etc", "root", "var", "tmp"] {
        let path = std::path::Path::new("/").join(on_host).join(&marker);
        assert!(!path.exists(), "{} is on the host", path.display());
    }
    assert!(!std::path::Path::new("/hostname").exists());
    assert_eq!(std::fs::read("/proc/sys/kernel/hostname").unwrap(), hostname);
    assert!(!message(put(&client, "", "/k", &tar).await).is_empty());
    assert_eq!(say(&client, "s", "hostname").await, "s");
    // A symlink in the tar, then a file through it: stays inside.
    let mut builder = tar::Builder::new(Vec::new());
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_mode(0o777);
    link.set_size(0);
    builder.append_link(&mut link, "l", "/").unwrap();
    let path = format!("l/{marker}-through");
    builder.append_data(&mut crate::support::header(1), &path, &b"x"[..]).unwrap();
    let _ = put(&client, "", "/tmp/links", &builder.into_inner().unwrap()).await;
    assert!(!std::path::Path::new(&format!("/{marker}-through")).exists());
    assert_eq!(sh(&client, "s", "true").await.code, 0);
    server.finish().await;
}

#[tokio::test]
async fn bad_tars() {
    let server = Server::start().await;
    let client = server.create("s").await;
    let refused = message(put(&client, "", "/t", &tar_of(&[("../evil", b"x")])).await);
    assert!(refused.contains("Member name contains '..'"), "{refused}");
    assert_eq!(sh(&client, "s", "test -e /evil").await.code, 1);
    let whole = tar_of(&[("f", &noise(100_000))]);
    let truncated = message(put(&client, "", "/t", &whole[..50_000]).await);
    assert!(truncated.contains("EOF"), "{truncated}");
    for bad in [&b"this is not a tar"[..], &noise(4096), b""] {
        let error = put(&client, "", "/t", bad).await.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::Other), "{error}");
    }
    let nobody = message(put(&client, "nope", "/t", &whole).await);
    assert!(nobody.contains("unable to find user nope"), "{nobody}");
    // An absolute path in the tar is below the destination.
    put(&client, "", "/t", &tar_of(&[("/abs", b"x")])).await.unwrap();
    say(&client, "s", "test -f /t/abs && test ! -e /abs").await;
    // A user can write only where he may.
    put(&client, "vcap", "/etc", &tar_of(&[("passwd", b"x")])).await.unwrap_err();
    assert!(say(&client, "s", "cat /etc/passwd").await.contains("vcap"));
    server.until_idle("s").await;
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_of_its_tar() {
    let server = Server::start().await;
    let client = server.create("s").await;
    let tar = tar_of(&[("a", &noise(400_000)), ("b", &noise(400_000))]);
    let line = "PUT /containers/s/files?user=&destination=%2Fhalf HTTP/1.1\r\nHost: api\r\n";
    for chunked in [false, true] {
        let mut stream = server.connect();
        if chunked {
            write!(stream, "{line}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", tar.len()).unwrap();
        } else {
            write!(stream, "{line}Content-Length: {}\r\n\r\n", tar.len()).unwrap();
        }
        stream.write_all(&tar[..tar.len() / 2 + 1000]).unwrap();
        drop(stream);
        server.until_idle("s").await;
        assert_eq!(sh(&client, "s", "true").await.code, 0);
    }
    // At the border of two files, or even after both: an end that was not said is none.
    let mut stream = server.connect();
    write!(stream, "{line}Content-Length: {}\r\n\r\n", tar.len() + 512).unwrap();
    stream.write_all(&tar).unwrap();
    drop(stream);
    server.until_idle("s").await;
    put(&client, "", "/half", &tar).await.unwrap();
    assert_eq!(
        say(&client, "s", "cat /half/b | sha256sum").await.split(' ').next().unwrap(),
        digest(&noise(400_000))
    );
    server.finish().await;
}

/// Whether a whole tar comes: an error may come before it or in the middle of it.
async fn arrives(client: &Client, user: &str, path: &str) -> bool {
    match client.stream_out("s", user, path).await {
        Ok(mut reader) => reader.read_to_end(&mut Vec::new()).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn stream_out_of_what_is_not_there() {
    let server = Server::start().await;
    let client = server.create("s").await;
    for path in ["/nope", "nope/", "/etc/passwd/x"] {
        assert!(!arrives(&client, "", path).await, "{path}");
    }
    // A user gets only what he may read.
    assert!(!arrives(&client, "vcap", "/etc/shadow").await);
    assert!(arrives(&client, "", "/etc/shadow").await);
    server.until_idle("s").await;
    server.finish().await;
}

#[tokio::test]
async fn a_missing_source_is_named() {
    let server = Server::start().await;
    let client = server.create("s").await;
    for path in ["/nope", "/etc/passwd/x", "nope/"] {
        let error = client.stream_out("s", "", path).await.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::Other), "{path}: {error}");
        assert!(error.to_string().contains(path.trim_matches('/')), "{path}: {error}");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_of_a_big_file() {
    let server = Server::start().await;
    let client = server.create("s").await;
    let spec =
        ProcessSpec { dir: "/".into(), ..script("dd if=/dev/zero of=/big bs=1M count=50 2>/dev/null") };
    assert_eq!(run(&client, "s", &spec).await.code, 0);
    let mut stream = server.connect();
    write!(stream, "GET /containers/s/files?source=%2Fbig&user= HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
    let mut some = vec![0; 100_000];
    stream.read_exact(&mut some).unwrap();
    assert!(some.starts_with(b"HTTP/1.1 200 OK\r\n"));
    drop(stream);
    server.until_idle("s").await;
    let all = get(&client, "", "/big").await;
    assert_eq!((all.len(), all[0].1.len()), (1, 50 << 20));
    server.finish().await;
}
