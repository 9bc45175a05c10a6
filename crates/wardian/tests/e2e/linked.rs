//! Hard links of tars, in directories that another user of the container may write to.

use crate::support::{STUCK, Server, header, run, say, script, sh};
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};
use wardian_garden::wire::ProcessSpec;

fn by_user(user: &str, text: &str) -> ProcessSpec {
    ProcessSpec { user: user.into(), ..script(text) }
}

fn link(tar: &mut tar::Builder<Vec<u8>>, name: &str, to: &str) {
    let mut head = header(0);
    head.set_entry_type(tar::EntryType::Link);
    tar.append_link(&mut head, name, to).unwrap();
}

/// Root's file does not become a name of a user's file, which he puts in the place of one of the archive's while it comes.
#[tokio::test]
async fn a_file_that_a_user_exchanges_gets_no_second_name() {
    let server = Server::start().await;
    let client = server.create("c").await;
    say(&client, "c", "mkdir -p /srv/m /srv/kept; chown 4000:4000 /srv/m; mkdir -p /w; echo old >/w/was")
        .await;
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header(4), "srv/m/x", &b"conf"[..]).unwrap();
    tar.append_data(&mut header(4), "srv/m/kept", &b"conf"[..]).unwrap();
    let at = tar.get_ref().len();
    tar.append_data(&mut header(3 << 20), "srv/kept/padding", &vec![0; 3 << 20][..]).unwrap();
    link(&mut tar, "w/conf", "srv/m/x");
    link(&mut tar, "w/was", "srv/m/x");
    link(&mut tar, "w/kept", "srv/m/kept");
    let tar = tar.into_inner().unwrap();
    let mut stream = server.connect();
    let line = "PUT /containers/c/files?destination=%2F&user= HTTP/1.1\r\nHost: api";
    stream.write_all(format!("{line}\r\nContent-Length: {}\r\n\r\n", tar.len()).as_bytes()).unwrap();
    stream.write_all(&tar[..at + (1 << 20)]).unwrap();
    let begin = Instant::now();
    while sh(&client, "c", "test -s /srv/kept/padding").await.code != 0 {
        assert!(begin.elapsed() < STUCK);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let attack = "cd /srv/m && rm -f x && echo evil >x && chmod 666 x";
    assert_eq!(run(&client, "c", &by_user("4000", attack)).await.code, 0);
    stream.write_all(&tar[at + (1 << 20)..]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    assert!(reply.starts_with("HTTP/1.1 500"), "{reply}");
    assert!(reply.contains("w/conf: the file that it is a hard link to is another user's"), "{reply}");
    // What was there stays, and the archive's own file has its second name.
    let look =
        "test -e /w/conf || echo none; cat /w/was /w/kept; stat -c '%h %U' /w/kept; stat -c %h /srv/m/x";
    assert_eq!(say(&client, "c", look).await, "none\nold\nconf2 root\n1");
    server.finish().await;
}

/// Where an entry fails, whatever has its name is another file than the one that a link means.
#[tokio::test]
async fn a_link_to_what_has_failed_fails_too() {
    let server = Server::start().await;
    let client = server.create("c").await;
    // In a sticky directory nobody but the owner removes it.
    let plant = "echo evil >/tmp/tool && chmod 666 /tmp/tool && echo evil >/tmp/own && chmod 644 /tmp/own";
    assert_eq!(run(&client, "c", &by_user("4000", plant)).await.code, 0);
    say(&client, "c", "mkdir /closed; echo old >/closed/f; echo lent >/closed/lent").await;
    let tar = |entries: &[&str], links: &[(&str, &str)]| {
        let mut tar = tar::Builder::new(Vec::new());
        for name in entries {
            tar.append_data(&mut header(3), name, &b"new"[..]).unwrap();
        }
        for (name, to) in links {
            link(&mut tar, name, to);
        }
        std::io::Cursor::new(tar.into_inner().unwrap())
    };
    let attack = tar(
        &["tmp/tool", "tmp/own", "home/vcap/a", "closed/f"],
        &[
            ("home/vcap/tool", "tmp/tool"),
            ("home/vcap/own", "tmp/own"),
            ("home/vcap/b", "home/vcap/a"),
            ("home/vcap/f", "closed/f"),
        ],
    );
    let error = crate::support::message(client.stream_in("c", "vcap", "/", attack, None).await);
    for name in ["home/vcap/tool: ", "home/vcap/own: ", "home/vcap/f: ", "tmp/tool: ", "tmp/own: "] {
        assert!(error.contains(name), "{name}: {error}");
    }
    assert!(!error.contains("home/vcap/b: "), "{error}");
    assert_eq!(say(&client, "c", "cd /home/vcap; ls; cat a b; stat -c %h b").await, "a\nb\nnewnew2");
    // Nor is it linked to where no entry has failed; a file that nobody else could have put there is, as it always was.
    let error = tar(&[], &[("home/vcap/tool", "tmp/tool")]);
    let error = crate::support::message(client.stream_in("c", "vcap", "/", error, None).await);
    assert!(error.contains("is another user's, or others may write to it"), "{error}");
    client.stream_in("c", "", "/", tar(&[], &[("closed/g", "closed/f")]), None).await.unwrap();
    assert_eq!(say(&client, "c", "cat /closed/g; stat -c %h /closed/g").await, "old\n2");
    // One that a user has moved is not, though it is root's.
    say(&client, "c", "mkdir -m 777 /spool; echo roots >/spool/f").await;
    assert_eq!(run(&client, "c", &by_user("4000", "mv /spool/f /spool/x")).await.code, 0);
    let moved = tar(&[], &[("closed/x", "spool/x")]);
    let error = crate::support::message(client.stream_in("c", "", "/", moved, None).await);
    assert!(error.contains("another user could have put it there"), "{error}");
    server.finish().await;
}
