//! How images are brought in: whose files root is led to, and what becomes of it when nobody waits any more.

use crate::attacks;
use crate::cli::{Alone, saved};
use crate::hostile_images::create;
use crate::support::{Server, ended_within, signal, tar_of};
use rustix::process::Signal;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const NOBODY: u32 = 65534;
/// Longer than anything honest takes here, and a small part of what the attacks would take if they were let.
const SOON: Duration = Duration::from_secs(30);

/// A user of the host links his directory to root's.
#[test]
fn a_users_link_leads_root_to_no_image() {
    let alone = Alone::new();
    let base = crate::support::base();
    fs::set_permissions(base.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let (theirs, secret) = (base.path().join("theirs"), base.path().join("secret"));
    fs::create_dir(&theirs).unwrap();
    for name in ["root/bin", "root/etc"] {
        fs::create_dir_all(secret.join(name)).unwrap();
    }
    fs::write(secret.join("root/etc/secret"), "SECRET").unwrap();
    fs::write(secret.join("a.tar"), tar_of(&[("etc/secret", b"SECRET")])).unwrap();
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).unwrap();
    symlink(&secret, theirs.join("q")).unwrap();
    chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
    lchown(theirs.join("q"), Some(NOBODY), Some(NOBODY)).unwrap();
    for name in ["q/root", "q/a.tar"] {
        let path = theirs.join(name).display().to_string();
        for command in [&["image", "import", &path, "-t", "led"][..], &["image", "prefetch", &path]] {
            let text = alone.place.fail(command);
            assert!(text.contains("belongs to user 65534"), "{command:?}: {text}");
        }
    }
    assert!(alone.place.names("layers").is_empty());
    alone.finish();
}

/// A request for a container of this image, whose client waits.
fn ask(server: &Server, uri: &str) -> UnixStream {
    let body = format!("{{\"image\":{{\"uri\":\"{uri}\"}}}}");
    let length = body.len();
    let mut stream = server.connect();
    let head = format!("POST /containers HTTP/1.1\r\nHost: api\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    stream
}

/// Archives that take minutes to decompress and are none in the end hold up nobody who wants something else, and their turn
/// is over when their clients have gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_is_given_up() {
    let mut server = Server::start_with(&["--max-image-ratio", "0"]).await;
    let zeros = server.base().join("zeros");
    attacks::unpacks_to(&zeros, 120);
    let plain = server.image_with("plain.tar", "plain");
    let honest = server.base().join("honest.tar.gz");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&saved(Some("it"), &[&tar_of(&[("bin/x", b"x")])])).unwrap();
    fs::write(&honest, gzip.finish().unwrap()).unwrap();
    let asked: Vec<_> =
        (0..80).map(|n| ask(&server, &format!("docker-archive://{}:n{n}", zeros.display()))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let client = server.client();
    let made = tokio::time::timeout(SOON, create(&client, "plain", &plain)).await;
    made.expect("those that decompress hold up those that do not").unwrap();
    drop(asked);
    let made = tokio::time::timeout(SOON, create(&client, "honest", honest.to_str().unwrap())).await;
    made.expect("what nobody waits for goes on").unwrap();
    for handle in ["plain", "honest"] {
        client.destroy(handle).await.unwrap();
    }
    // Nor does it hold up the end of the server, even if its client waits.
    let _asked = ask(&server, &format!("docker-archive://{}", zeros.display()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    tokio::time::timeout(SOON, server.terminate()).await.expect("the server does not end");
    server.restart().await;
    server.finish().await;
}

/// To compare what an archive has twice takes no longer than what it has on the disk, however many ask for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_holes_holds_nobody_up() {
    let server = Server::start().await;
    let twice = server.base().join("twice.tar");
    attacks::twice(&twice, 100);
    let plain = server.image_with("plain.tar", "plain");
    let asked: Vec<_> =
        (0..20).map(|n| ask(&server, &format!("docker-archive://{}:n{n}", twice.display()))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let client = server.client();
    let made = tokio::time::timeout(SOON, create(&client, "plain", &plain)).await;
    made.expect("those that compare hold up others").unwrap();
    client.destroy("plain").await.unwrap();
    for mut stream in asked {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.contains("cp --sparse=never"), "{answer}");
    }
    server.finish().await;
}

/// What is decompressed by a command ends with it.
#[test]
fn an_import_that_is_interrupted_ends() {
    let alone = Alone::new();
    let zeros = alone.write("zeros", b"");
    attacks::unpacks_to(zeros.as_ref(), 120);
    for source in [format!("docker-archive://{zeros}"), zeros.clone()] {
        let mut import =
            alone.place.spawn(&["image", "import", "-t", "x", "--max-image-ratio", "0", &source]);
        std::thread::sleep(Duration::from_secs(1));
        signal(import.id(), Signal::INT);
        ended_within(&mut import, SOON).expect("it does not end");
    }
    alone.finish();
}
