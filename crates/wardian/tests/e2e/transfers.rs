//! Tars in and out: what was told to be done is done.

use crate::support::{STUCK, Server, header, members, noise, run, say, script, sh, tar_of};
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

/// The helper of a transfer, as the host sees it: the member of the container's cgroups that is neither pid 1 nor a
/// process that was there before. Its first stage, which only makes it, is not in the container's pid namespace.
async fn helper(server: &Server, before: &std::collections::BTreeSet<u32>) -> u32 {
    let id = server.id("c").await;
    let begin = Instant::now();
    loop {
        let is_inside = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // A number for each pid namespace (proc(5)).
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1)
        };
        let new: Vec<u32> = members(&id).difference(before).copied().filter(is_inside).collect();
        if let [one] = new[..] {
            return one;
        }
        assert!(begin.elapsed() < STUCK, "{new:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn upload(server: &Server, length: usize) -> std::os::unix::net::UnixStream {
    let mut stream = server.connect();
    let line = "PUT /containers/c/files?destination=%2Ftmp%2Fin&user= HTTP/1.1\r\nHost: api";
    stream.write_all(format!("{line}\r\nContent-Length: {length}\r\n\r\n").as_bytes()).unwrap();
    stream
}

/// A helper that is killed has not done its work, whatever it has unpacked so far.
#[tokio::test]
async fn half_a_tar_is_never_called_whole() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let before = members(&server.id("c").await);
    let data = noise(1 << 20);
    let names: Vec<String> = (0..8).map(|n| format!("f{n}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), data.as_slice())).collect();
    let tar = tar_of(&files);
    let mut stream = upload(&server, tar.len());
    stream.write_all(&tar[..tar.len() / 2]).unwrap();
    let begin = Instant::now();
    while sh(&client, "c", "test -e /tmp/in/f2").await.code != 0 {
        assert!(begin.elapsed() < STUCK);
    }
    // Now that it unpacks: before, its first stage may be there alone.
    let helper = helper(&server, &before).await;
    crate::support::signal(helper, rustix::process::Signal::KILL);
    let _ = stream.write_all(&tar[tar.len() / 2..]);
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    assert!(reply.starts_with("HTTP/1.1 500"), "{reply}");
    assert!(reply.contains("killed by signal 9"), "{reply}");
    server.finish().await;
}

/// An archive that stops between two files has lost what came after, and only its end can tell.
#[tokio::test]
async fn an_archive_without_its_end_is_refused() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let tar = tar_of(&[("a", b"x"), ("b", b"y")]);
    // A header and a block for each file; then the end.
    for length in [512, 1024, 1536, 2048] {
        let cut = std::io::Cursor::new(tar[..length].to_vec());
        let error = client.stream_in("c", "", "/tmp/cut", cut, Some(length as u64)).await;
        let error = crate::support::message(error);
        assert!(error.to_lowercase().contains("unexpected eof"), "{length}: {error}");
    }
    let whole = std::io::Cursor::new(tar[..2048 + 512].to_vec());
    client.stream_in("c", "", "/tmp/whole", whole, None).await.unwrap();
    assert_eq!(say(&client, "c", "cat /tmp/whole/a /tmp/whole/b").await, "xy");
    server.finish().await;
}

/// A client sees whether all has come: the last chunk of a stream-out comes only after the helper's good end.
#[tokio::test]
async fn a_broken_stream_out_has_no_last_chunk() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let before = members(&server.id("c").await);
    say(&client, "c", "dd if=/dev/zero of=/tmp/big bs=1M count=64 2>/dev/null").await;
    let told = "TE: trailers\r\nWardian-Failure: trailer\r\n";
    for (kill, header) in [(true, ""), (false, ""), (true, told), (false, told), (true, &told[14..])] {
        let mut stream = server.connect();
        let line = format!(
            "GET /containers/c/files?source=%2Ftmp%2Fbig&user= HTTP/1.1\r\nHost: api\r\n{header}Connection: close\r\n\r\n"
        );
        stream.write_all(line.as_bytes()).unwrap();
        let mut reply = vec![0; 1 << 16];
        stream.read_exact(&mut reply).unwrap();
        if kill {
            let helper = helper(&server, &before).await;
            crate::support::signal(helper, rustix::process::Signal::KILL);
        }
        let _ = stream.read_to_end(&mut reply);
        assert_eq!(reply.ends_with(b"\r\n0\r\n\r\n"), !kill, "{} bytes", reply.len());
        assert_eq!(reply.len() > 64 << 20, !kill);
        // Who asks for it reads there why, and nobody else.
        let end = String::from_utf8_lossy(&reply[reply.len() - 300..]).into_owned();
        let why = end.rsplit_once("\r\n0\r\nWardian-Failure: \"stream-out: ");
        assert_eq!(why.is_some_and(|(_, why)| why.ends_with("\"\r\n\r\n")), kill && header == told, "{end}");
    }
    server.finish().await;
}

/// Container root can stop its helper. It ends with the client that wanted it.
#[tokio::test]
async fn a_stopped_helper_ends_with_its_client() {
    let server = Server::start().await;
    server.create("c").await;
    let before = members(&server.id("c").await);
    for route in [0, 1] {
        let mut stream = if route == 0 {
            upload(&server, 1 << 20)
        } else {
            let mut stream = server.connect();
            let line = "PUT /containers/c/files?destination=%2Ftmp%2Fin&user= HTTP/1.1\r\nHost: api";
            let head = format!("{line}\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream
        };
        // The head of a file, whose contents the helper then waits for.
        stream.write_all(&tar_of(&[("f", &noise(1 << 19))])[..512]).unwrap();
        let helper = helper(&server, &before).await;
        crate::support::signal(helper, rustix::process::Signal::STOP);
        drop(stream);
        let begin = Instant::now();
        while members(&server.id("c").await) != before {
            assert!(begin.elapsed() < STUCK, "it is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    server.finish().await;
}

/// A user of the container cannot lead a tar of root's elsewhere by a link, as GNU tar would not be led.
#[tokio::test]
async fn a_users_links_do_not_lead_roots_tar() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let vcap = |text: &str| wardian_garden::wire::ProcessSpec { user: "vcap".into(), ..script(text) };
    let plant = "ln -s /root /home/vcap/app; ln -s /root /home/vcap/other";
    assert_eq!(run(&client, "c", &vcap(plant)).await.code, 0);
    let mut tar = tar::Builder::new(Vec::new());
    let mut head = header(0);
    head.set_entry_type(tar::EntryType::Directory);
    head.set_mode(0o755);
    tar.append_data(&mut head, "app/", &b""[..]).unwrap();
    tar.append_data(&mut header(1), "app/f", &b"x"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    client.stream_in("c", "", "/home/vcap", std::io::Cursor::new(tar), None).await.unwrap();
    assert_eq!(say(&client, "c", "ls -A /root; stat -c %a /root; cat /home/vcap/app/f").await, "700\nx");
    // Without an entry for the directory there is nothing to replace the link by.
    let tar = std::io::Cursor::new(tar_of(&[("other/f", b"x")]));
    let error = crate::support::message(client.stream_in("c", "", "/home/vcap", tar, None).await);
    assert!(error.contains("a symbolic link of another user"), "{error}");
    assert_eq!(say(&client, "c", "ls -A /root").await, "");
    // Links of root's lead on, as images with a merged /usr have them, and the user's own lead the user.
    say(&client, "c", "mkdir /real; ln -s real /link").await;
    let tar = || std::io::Cursor::new(tar_of(&[("link/f", b"x")]));
    client.stream_in("c", "", "/", tar(), None).await.unwrap();
    assert_eq!(say(&client, "c", "cat /real/f").await, "x");
    assert_eq!(run(&client, "c", &vcap("mkdir ~/real; ln -s real ~/link")).await.code, 0);
    client.stream_in("c", "vcap", "/home/vcap", tar(), None).await.unwrap();
    assert_eq!(say(&client, "c", "cat /home/vcap/real/f").await, "x");
    server.finish().await;
}

/// Whose a link is does not tell who has put it where it is: a user can rename one of root's wherever he may write, also to
/// a sticky directory, and the directory that it lies in as well.
#[tokio::test]
async fn a_user_who_moves_roots_links_does_not_lead_roots_tar() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let by_user =
        |user: &str, text: &str| wardian_garden::wire::ProcessSpec { user: user.into(), ..script(text) };
    let entries = |name: &str, directory: bool| {
        let mut tar = tar::Builder::new(Vec::new());
        if directory {
            let mut head = header(0);
            head.set_entry_type(tar::EntryType::Directory);
            head.set_mode(0o700);
            tar.append_data(&mut head, name, &b""[..]).unwrap();
        }
        tar.append_data(&mut header(1), format!("{name}/led"), &b"x"[..]).unwrap();
        std::io::Cursor::new(tar.into_inner().unwrap())
    };
    // Links that root has left in directories that users may write to; 4000 is in no passwd, so its group is 0.
    say(
        &client,
        "c",
        "mkdir -m 777 /spool; mkdir -m 775 /shared; mkdir /home/vcap/deps; \
         for d in /spool /shared /home/vcap /home/vcap/deps; do ln -s /etc $d/lib; done; mkdir -m 1777 /var/in",
    )
    .await;
    for (user, attack, to, name) in [
        ("vcap", "mv /spool/lib /home/vcap/app", "/home/vcap", "app"),
        ("vcap", "mv /home/vcap/lib /var/in/app", "/var/in", "app"),
        ("vcap", "mv /home/vcap/deps /home/vcap/new", "/home/vcap", "new/lib"),
        ("4000", "mv /shared/lib /shared/app", "/shared", "app"),
    ] {
        assert_eq!(run(&client, "c", &by_user(user, attack)).await.code, 0, "{attack}");
        let error = crate::support::message(client.stream_in("c", "", to, entries(name, false), None).await);
        assert!(error.contains("another user could have put there"), "{attack}: {error}");
        client.stream_in("c", "", to, entries(name, true), None).await.unwrap();
        let look =
            format!("stat -c %a /etc; ls /etc | grep led; stat -c '%F %a' {to}/{name}; ls {to}/{name}");
        assert_eq!(say(&client, "c", &look).await, "755\ndirectory 700\nled", "{attack}");
    }
    // Nor does it lead root when he makes a directory for the user, which would be the user's.
    say(&client, "c", "ln -s /etc /spool/again").await;
    assert_eq!(run(&client, "c", &by_user("vcap", "mv /spool/again /home/vcap/")).await.code, 0);
    for dir in ["/home/vcap/again/made", "/home/vcap/again/made/x"] {
        let spec = wardian_garden::wire::ProcessSpec { dir: dir.into(), ..by_user("vcap", "true") };
        assert!(client.run("c", &spec, crate::support::listen()).await.is_err(), "{dir}");
        let tar = entries("f", false);
        assert!(client.stream_in("c", "vcap", dir, tar, None).await.is_err(), "{dir}");
    }
    assert_eq!(say(&client, "c", "test -e /etc/made || echo none").await, "none");
    // What a tar has made leads on in it, also in a user's directory; and what nobody else can move.
    let mut tar = tar::Builder::new(Vec::new());
    let mut head = header(0);
    head.set_entry_type(tar::EntryType::Symlink);
    tar.append_link(&mut head, "n", "d").unwrap();
    tar.append_data(&mut header(1), "n/f", &b"x"[..]).unwrap();
    let tar = std::io::Cursor::new(tar.into_inner().unwrap());
    client.stream_in("c", "", "/home/vcap", tar, None).await.unwrap();
    say(&client, "c", "cat /home/vcap/d/f; mkdir -p /var/in/roots/real; ln -s real /var/in/roots/l").await;
    client.stream_in("c", "", "/var/in", entries("roots/l", true), None).await.unwrap();
    assert_eq!(say(&client, "c", "cat /var/in/roots/real/led").await, "x");
    server.finish().await;
}

#[tokio::test]
async fn a_tar_is_moved_with_the_users_rights() {
    let server = Server::start().await;
    let client = server.create("c").await;
    say(
        &client,
        "c",
        "mkdir /root/pub /root/drop; echo secret >/root/pub/f; chmod 755 /root/pub; chmod 777 /root/drop",
    )
    .await;
    say(&client, "c", "ln -s /root/pub /home/vcap/l; ln -s /root/drop /home/vcap/d").await;
    for source in ["/root/pub/", "/root/pub/f", "/home/vcap/l/"] {
        if let Ok(mut out) = client.stream_out("c", "vcap", source).await {
            let mut bytes = Vec::new();
            drop(tokio::io::AsyncReadExt::read_to_end(&mut out, &mut bytes).await);
            assert!(!String::from_utf8_lossy(&bytes).contains("secret"), "{source}");
        }
    }
    for destination in ["/root/drop", "/home/vcap/d"] {
        let tar = std::io::Cursor::new(tar_of(&[("f", b"x")]));
        assert!(client.stream_in("c", "vcap", destination, tar, None).await.is_err(), "{destination}");
    }
    assert_eq!(say(&client, "c", "ls -A /root/drop").await, "");
    server.finish().await;
}

/// A GNU header for a sparse file of `size` bytes without any data, or for a name of so many bytes.
fn claim(kind: u8, size: u64) -> Vec<u8> {
    let mut head = tar::Header::new_gnu();
    head.set_path("claim").unwrap();
    head.set_mode(0o644);
    head.set_entry_type(tar::EntryType::new(kind));
    head.set_size(0);
    if kind == b'S' {
        let gnu = head.as_gnu_mut().unwrap();
        gnu.set_real_size(size);
        // Its only piece of data is an empty one, at the end.
        gnu.sparse[0].offset[..11].copy_from_slice(format!("{size:011o}").as_bytes());
        gnu.sparse[0].numbytes[..11].copy_from_slice(b"00000000000");
    } else {
        head.set_size(size);
    }
    head.set_cksum();
    head.as_bytes().to_vec()
}

#[tokio::test]
async fn an_archive_costs_what_it_holds() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let mut sparse = claim(b'S', 4 << 30);
    sparse.extend([0; 1024]);
    client.stream_in("c", "", "/tmp", std::io::Cursor::new(sparse), None).await.unwrap();
    assert_eq!(say(&client, "c", "stat -c %s /tmp/claim").await, (4_u64 << 30).to_string());
    let blocks: u64 = say(&client, "c", "stat -c %b /tmp/claim").await.parse().unwrap();
    assert!(blocks < 100, "{blocks} blocks");
    // The name of an entry: more than the helper may hold.
    let mut stream = upload(&server, 1 << 30);
    stream.write_all(&claim(b'L', 1 << 29)).unwrap();
    let (mut written, piece) = (0_u64, vec![b'x'; 1 << 20]);
    while written < 1 << 29 && stream.write_all(&piece).is_ok() {
        written += piece.len() as u64;
    }
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    assert!(!reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(written < 1 << 29, "{written}");
    server.finish().await;
}
