//! What nobody should send, and where nobody should run it.

use crate::support::{NETWORK, STUCK, Server, WARDIAN, cgroups, header, listen, message, script, tar_of};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use wardian_garden::ErrorKind;
use wardian_garden::wire::{ContainerSpec, ImageRef, ProcessSpec};

fn image(uri: &str) -> ContainerSpec {
    ContainerSpec { image: ImageRef { uri: uri.into(), ..Default::default() }, ..Default::default() }
}

#[tokio::test]
async fn unknown_handles() {
    let server = Server::start().await;
    let client = server.client();
    let long = "x".repeat(300);
    // What can name nothing is not repeated as it is.
    let cut = format!("{}… (300 bytes)", "x".repeat(64));
    for handle in ["nope", "..", "a/b", "../../etc", "a\0b", "a b", long.as_str()] {
        let shown = if handle == long { cut.clone() } else { handle.replace('\0', "\\u{0}") };
        let tar = || std::io::Cursor::new(tar_of(&[("f", b"x")]));
        let results = [
            client.destroy(handle).await,
            client.info(handle).await.map(drop),
            client.stop(handle, true).await,
            client.set_property(handle, "k", "v").await,
            client.remove_property(handle, "k").await,
            client.run(handle, &script("true"), listen()).await.map(drop),
            client.stream_in(handle, "", "/t", tar(), None).await,
            client.stream_out(handle, "", "/t").await.map(drop),
        ];
        for (n, result) in results.into_iter().enumerate() {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::ContainerNotFound), "{n} {handle:?}: {error}");
            assert_eq!(error.to_string(), format!("unknown handle: {shown}"), "{n}");
        }
        assert!(client.properties(handle).await.unwrap().is_empty());
        assert_eq!(message(client.property(handle, "k").await), "property does not exist: k");
        let error = client.attach(handle, "p", listen()).await.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ProcessNotFound), "{error}");
    }
    server.finish().await;
}

#[tokio::test]
async fn handles_that_are_no_names() {
    let server = Server::start().await;
    let client = server.client();
    let long = "x".repeat(300);
    for handle in ["..", ".", "a/b", "/", "../../etc", "a\0b", "a\nb", "a b", long.as_str()] {
        let error =
            message(client.create(&ContainerSpec { handle: handle.into(), ..Default::default() }).await);
        assert!(error.starts_with("invalid handle"), "{handle:?}: {error}");
    }
    server.create("p").await;
    for id in ["..", "a/b", "a\0b", long.as_str()] {
        let error =
            message(client.run("p", &ProcessSpec { id: id.into(), ..script("true") }, listen()).await);
        assert!(error.starts_with("invalid "), "{id:?}: {error}");
    }
    // Odd but harmless ones work.
    let odd = "ä-%2F.~\u{1f600}";
    let spec = ContainerSpec { handle: odd.into(), ..Default::default() };
    assert_eq!(client.create(&spec).await.unwrap(), odd);
    assert_eq!(crate::support::sh(&client, odd, "true").await.code, 0);
    server.finish().await;
}

#[tokio::test]
async fn bad_images() {
    let server = Server::start().await;
    let client = server.client();
    let write = |name: &str, bytes: &[u8]| {
        let path = server.base().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = std::fs::read(server.image()).unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&good).unwrap();
    let packed = packed.finish().unwrap();
    let mut corrupt = packed.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle..middle + 64].fill(0x55);
    let mut evil = tar::Builder::new(Vec::new());
    let mut link = header(0);
    link.set_entry_type(tar::EntryType::Symlink);
    evil.append_link(&mut link, "out", "/").unwrap();
    let mut hard = header(0);
    hard.set_entry_type(tar::EntryType::Link);
    evil.append_link(&mut hard, "shadow", "/etc/shadow").unwrap();
    for (bad, needle) in [
        (server.base().join("nowhere.tar").to_str().unwrap().to_owned(), "nowhere.tar"),
        (write("noise.tar", &crate::support::noise(5000)), "noise.tar is no image: neither"),
        (write("cut.tar", &good[..good.len() / 2]), ""),
        (write("cut.tar.gz", &packed[..packed.len() / 2]), ""),
        (write("corrupt.tar.gz", &corrupt), ""),
        (write("dots.tar", &tar_of(&[("../../../../etc/wardian-evil", b"x")])), ""),
        (write("hard.tar", &evil.into_inner().unwrap()), ""),
        ("docker:///busybox".to_owned(), "blocked"),
        (server.base().to_str().unwrap().to_owned(), ""),
    ] {
        let Err(error) = client.create(&image(&bad)).await else {
            panic!("{bad} was accepted");
        };
        assert_eq!(error.kind(), Some(ErrorKind::Other), "{bad}: {error}");
        assert!(error.to_string().contains(needle), "{bad}: {error}");
        assert!(!std::path::Path::new("/etc/wardian-evil").exists());
    }
    assert!(
        client
            .list(&std::iter::once(("garden.state".into(), "all".into())).collect())
            .await
            .unwrap()
            .is_empty()
    );
    // What comes after is not hurt; and the good one, compressed, is an image.
    client.create(&image(&write("good.tar.gz", &packed))).await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn bad_requests() {
    let server = Server::start().await;
    let client = server.create("b").await;
    for (line, body, needle) in [
        ("POST /containers", "this is not JSON", "json: "),
        ("POST /containers", "{\"handle\":", "EOF"),
        ("POST /containers", "{\"handle\":7}", "json: "),
        ("POST /containers", "", "EOF"),
        ("POST /containers/b/processes", "{\"path\":[\"x\"]}", "json: "),
        ("POST /containers/b/processes", "{\"path\":\"true\",\"rlimits\":{\"nofile\":\"many\"}}", "json: "),
        ("PUT /containers/b/stop", "nope", "json: "),
        ("PUT /containers/b/properties/k", "{\"value\":{}}", "json: "),
    ] {
        let reply = server.http(line, "Content-Type: application/json\r\n", body);
        assert!(reply.starts_with("HTTP/1.1 500 "), "{line} {body}: {reply}");
        assert!(reply.contains("\"Message\":\"") && reply.contains(needle), "{line} {body}: {reply}");
    }
    let status = |line: &str, headers: &str| server.http(line, headers, "");
    assert!(status("GET /ping", "Origin: http://a.example\r\n").starts_with("HTTP/1.1 403 "));
    assert!(status("GET /nope", "").starts_with("HTTP/1.1 404 "));
    assert!(status("GET /containers/", "").starts_with("HTTP/1.1 404 "));
    let wrong = status("PUT /containers", "");
    assert!(wrong.starts_with("HTTP/1.1 405 ") && wrong.contains("\r\nAllow: POST, GET\r\n"), "{wrong}");
    for line in ["POST /containers/b/net/in", "POST /containers/b/net/out", "POST /containers/b/net/out/bulk"]
    {
        let reply = status(line, "");
        assert!(reply.starts_with("HTTP/1.1 500 ") && reply.contains("EOF"), "{line}: {reply}");
    }
    for nonsense in
        ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET /ping HTTP/9.9\r\n\r\n", "\r\n\r\n\r\n\r\nx\r\n\r\n"]
    {
        let reply = server.raw(nonsense);
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 4"), "{nonsense:?}: {reply}");
    }
    assert_eq!(crate::support::sh(&client, "b", "true").await.code, 0);
    server.finish().await;
}

#[tokio::test]
async fn an_array_is_no_object() {
    let server = Server::start().await;
    let reply = server.http("POST /containers", "", "[]");
    assert!(reply.starts_with("HTTP/1.1 500 ") && reply.contains("json: "), "{reply}");
    server.finish().await;
}

#[tokio::test]
async fn a_body_without_end() {
    let server = Server::start().await;
    for line in ["POST /containers", "POST /containers/b/processes", "PUT /containers/b/stop"] {
        let size = 100 << 20;
        let mut stream = server.connect();
        stream.set_write_timeout(Some(STUCK)).unwrap();
        write!(stream, "{line} HTTP/1.1\r\nHost: api\r\nContent-Length: {size}\r\n\r\n{{\"handle\":\"")
            .unwrap();
        let chunk = vec![b'a'; 1 << 20];
        for _ in 0..100 {
            if stream.write_all(&chunk).is_err() {
                break;
            }
        }
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.contains("request body too large"), "{line}: {reply}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let peak: u64 = peak.split(' ').next().unwrap().parse().unwrap();
    assert!(peak < 64 << 10, "the server has taken {peak} KB");
    server.finish().await;
}

#[tokio::test]
async fn what_is_not_supported_is_named() {
    let server = Server::start().await;
    let client = server.create("n").await;
    for (says, json) in [
        ("no meaning", "{\"image\":{\"uri\":\"/x\",\"username\":\"u\",\"password\":\"secret\"}}"),
        ("image.password: (hidden) needs", "{\"image\":{\"uri\":\"/x\",\"password\":\"secret\"}}"),
        ("image.pull: ", "{\"image\":{\"uri\":\"/x\",\"pull\":\"sometimes\"}}"),
        ("no meaning", "{\"image\":{\"username\":\"u\",\"password\":\"secret\"}}"),
    ] {
        let reply = server.http("POST /containers", "", json);
        assert!(reply.starts_with("HTTP/1.1 500 "), "{says}: {reply}");
        assert!(reply.contains(says) && !reply.contains("secret"), "{says}: {reply}");
    }
    let pea = "{\"path\":\"true\",\"image\":{\"uri\":\"/x\",\"username\":\"u\",\"password\":\"secret\"}}";
    let reply = server.http("POST /containers/n/processes", "", pea);
    assert!(reply.contains("no meaning") && !reply.contains("secret"), "{reply}");
    let limits = "{\"path\":\"true\",\"limits\":{\"memory_limits\":{\"limit_in_bytes\":1}}}";
    let reply = server.http("POST /containers/n/processes", "", limits);
    assert!(reply.contains("\"Message\":\"limits: ") && reply.contains("not supported yet"), "{reply}");
    let binds = "{\"path\":\"true\",\"bind_mounts\":[{\"src_path\":\"/tmp\",\"dst_path\":\"/x\"}]}";
    let reply = server.http("POST /containers/n/processes", "", binds);
    assert!(
        reply.contains("Running a process with bind mounts and no image provided is not allowed"),
        "{reply}"
    );
    assert_eq!(client.list(&std::collections::BTreeMap::new()).await.unwrap(), ["n"]);
    server.finish().await;
}

/// Run a server that must not start. To a file: a clone that outlives it would hold a pipe open.
fn refused(command: &mut Command, log: &Path) -> (Option<i32>, String) {
    let status =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log).unwrap()).status();
    (status.unwrap().code(), std::fs::read_to_string(log).unwrap())
}

/// On a run directory that is no tmpfs, where the server mounts one of its own.
#[tokio::test]
async fn a_start_that_fails_leaves_nothing() {
    let server = Server::start().await;
    let run = server.base().join("run");
    // No program at all, and one that can be read but not run.
    for keeper in ["/nonexistent/keeper", "/etc/passwd"] {
        let mut command = Command::new(WARDIAN);
        command
            .env(NETWORK, "none")
            .arg("serve")
            .arg("--root")
            .arg(server.base().join("r3"))
            .arg("--run")
            .arg(&run);
        let (code, text) = refused(command.args(["--keeper", keeper]), &server.base().join("refused"));
        assert_eq!(code, Some(1), "{keeper}: {text}");
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mountinfo.contains(run.to_str().unwrap()), "{keeper}: {mountinfo}");
        // The tag is of the run directory's path; the file that tells it went with the tmpfs.
        let tag = crate::support::digest(run.to_str().unwrap().as_bytes());
        let tag = tag.trim_start_matches("sha256:");
        assert_eq!(cgroups(&format!("wardian-{}", &tag[..32])), Vec::<String>::new(), "{keeper}");
    }
    server.finish().await;
}

#[tokio::test]
async fn servers_that_must_not_start() {
    let server = Server::start().await;
    let base = server.base();
    // Not root. The program may lie where nobody else can read.
    let program = base.join("wardian");
    crate::support::copy_program(WARDIAN, &program);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o755)).unwrap();
    let log = base.join("refused");
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    nobody.args(["serve", "--root", "/nonexistent/root", "--run", "/nonexistent/run"]);
    let (code, text) = refused(&mut nobody, &log);
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("must run as root"), "{text}");

    let (code, text) = refused(&mut server.command(), &log);
    assert_eq!(code, Some(1));
    assert!(text.contains("another server uses"), "{text}");
    server.client().ping().await.unwrap();

    let config = base.join("wardian.toml");
    std::fs::write(&config, "root = \"/nonexistent\"\nrot = 1\n").unwrap();
    for (config, needle) in [(config.to_str().unwrap(), "rot"), ("/nonexistent.toml", "/nonexistent.toml")] {
        let (code, text) =
            refused(Command::new(WARDIAN).env(NETWORK, "none").args(["serve", "--config", config]), &log);
        assert_eq!(code, Some(1));
        assert!(text.contains(needle), "{text}");
    }
    // Somebody else's lock of the store, which is no server: who it is, and what to do.
    let store = base.join("held");
    std::fs::create_dir(&store).unwrap();
    let lock = std::fs::File::create(store.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut command = Command::new(WARDIAN);
    command
        .env(NETWORK, "none")
        .arg("serve")
        .arg("--root")
        .arg(&store)
        .arg("--run")
        .arg(server.run().join("r3"));
    let (code, text) = refused(&mut command, &log);
    let by = format!("is held by process {}", std::process::id());
    assert!(code == Some(1) && text.contains(&by) && text.contains("use another --root"), "{text}");
    drop(lock);

    for address in ["tcp:0.0.0.0:0", "tcp:127.0.0.1:0", "tcp:[::1]:0", "nonsense", "unix:relative"] {
        // Below this server's: what such a server leaves is ended with it.
        let mut command = Command::new(WARDIAN);
        command
            .env(NETWORK, "none")
            .arg("serve")
            .arg("--root")
            .arg(base.join("r2"))
            .arg("--run")
            .arg(server.run().join("r2"));
        let (code, text) = refused(command.args(["--listen", address]), &log);
        assert_eq!(code, Some(1), "{address}");
        assert!(text.contains(address), "{address}: {text}");
        // That is known before anything is made.
        assert!(!server.run().join("r2").exists() && !base.join("r2").exists(), "{address}");
    }
    server.finish().await;
}
