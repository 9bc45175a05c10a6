//! What a second name leads to, and what a user's directory hands down, while root's tars come: with real users of a container.

use crate::support::{STUCK, Server, header, message, run, say, script, sh};
use rustix::fs::{Mode, XattrFlags};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{chown, symlink};
use std::time::{Duration, Instant};
use tar::EntryType::{Directory, Link, Regular};
use wardian_garden::wire::{BindMount, ContainerSpec, ProcessSpec};

fn by_user(user: &str, text: &str) -> ProcessSpec {
    ProcessSpec { user: user.into(), ..script(text) }
}

/// A tar of entries with a type, a name, a mode and what a link leads to; files are empty.
fn entries(entries: &[(tar::EntryType, &str, u32, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, mode, to) in entries {
        let mut head = header(0);
        head.set_entry_type(*kind);
        head.set_mode(*mode);
        match *kind {
            Link => tar.append_link(&mut head, name, to).unwrap(),
            _ => tar.append_data(&mut head, name, &b""[..]).unwrap(),
        }
    }
    tar.into_inner().unwrap()
}

/// A container with a directory of this host, and where that is.
async fn with_mount(server: &Server) -> (wardian_garden::Client, tempfile::TempDir) {
    let shared = crate::host_files::place();
    let src_path = shared.path().to_str().unwrap().into();
    let mount = BindMount { src_path, dst_path: "/srv".into(), mode: 1, origin: 0, idmap: false };
    let spec = ContainerSpec { handle: "c".into(), bind_mounts: vec![mount], ..Default::default() };
    let client = server.client();
    client.create(&spec).await.unwrap();
    (client, shared)
}

/// Under a default access control list the kernel leaves the umask out.
#[tokio::test]
async fn a_users_access_list_does_not_open_a_file_in_roots_directory() {
    let server = Server::start().await;
    let (client, shared) = with_mount(&server).await;
    let hers = shared.path().join("m");
    std::fs::create_dir(&hers).unwrap();
    chown(&hers, Some(4000), Some(4000)).unwrap();
    // Version 2; the owner, the user 4000, the group, the mask and the others, each with rights and an id (posix_acl_xattr.h).
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in
        [(1_u16, 7_u16, u32::MAX), (2, 7, 4000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
    {
        list.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
    }
    rustix::fs::setxattr(&hers, "system.posix_acl_default", &list, XattrFlags::empty()).unwrap();
    rustix::fs::chmod(shared.path(), Mode::from_raw_mode(0o777)).unwrap();
    assert_eq!(say(&client, "c", "mkdir /srv/w; stat -c %u /srv/w /srv/m").await, "0\n4000");
    let tar = entries(&[
        (Regular, "srv/m/x", 0o664, ""),
        (Directory, "srv/m/d", 0o775, ""),
        (Regular, "srv/m/implied/y", 0o664, ""),
        (Link, "srv/w/conf", 0o664, "srv/m/x"),
        (Link, "srv/w/second", 0o664, "srv/m/implied/y"),
    ]);
    client.stream_in("c", "", "/", std::io::Cursor::new(tar), None).await.unwrap();
    for attack in
        ["echo EVIL >>/srv/w/conf", "echo EVIL >>/srv/w/second", "touch /srv/m/d/x", "rm /srv/m/implied/y"]
    {
        assert_ne!(run(&client, "c", &by_user("4000", attack)).await.code, 0, "{attack}");
    }
    assert_eq!(say(&client, "c", "cd /srv/w; stat -c '%h %s' conf second").await, "2 0\n2 0");
    server.finish().await;
}

#[tokio::test]
async fn a_tar_does_not_leave_its_destination_by_an_old_link() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let old =
        "mkdir -p /opt/shared /opt/dst/lib/deep /opt/dst/lib/shared; ln -s ../shared /opt/dst/lib/deep/link";
    say(&client, "c", old).await;
    let tar = |through| entries(&[(Link, "esc", 0o777, "lib/deep/link"), (Regular, through, 0o644, "")]);
    let attack = std::io::Cursor::new(tar("esc/evil"));
    let error = message(client.stream_in("c", "", "/opt/dst", attack, None).await);
    assert!(
        error.contains("esc: a symbolic link of the archive that leads out of the destination"),
        "{error}"
    );
    assert_eq!(
        say(&client, "c", "ls /opt/shared /opt/dst/lib/shared").await,
        "/opt/dst/lib/shared:\n\n/opt/shared:"
    );
    server.finish().await;
}

/// A kilobyte of a tar stands for a file that is larger than the memory.
#[tokio::test]
async fn a_hole_is_no_hole_in_memory_where_a_link_becomes_a_copy() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let mut tar = tar::Builder::new(Vec::new());
    let pairs = [("GNU.sparse.size", &b"1000000000000"[..]), ("GNU.sparse.map", b"1048576,3")];
    tar.append_pax_extensions(pairs).unwrap();
    tar.append_data(&mut header(3), "tmp/x", &b"abc"[..]).unwrap();
    let mut head = header(0);
    head.set_entry_type(Link);
    tar.append_link(&mut head, "dev/shm/x", "tmp/x").unwrap();
    let tar = std::io::Cursor::new(tar.into_inner().unwrap());
    client.stream_in("c", "", "/", tar, None).await.unwrap();
    let look =
        "cd /dev/shm; stat -c '%h %s' x; test $(stat -c %b x) -lt 64 && tail -c +1048577 x | head -c 3";
    assert_eq!(say(&client, "c", look).await, "1 1000000000000\nabc");
    server.finish().await;
}

/// A user moves what the tar has closed to him to where it opens the next one.
#[tokio::test]
async fn a_private_directory_is_not_opened_by_who_renames_it() {
    let server = Server::start().await;
    let client = server.create("c").await;
    say(&client, "c", "mkdir -p /home/u /srv; chown 4000:4000 /home/u").await;
    let first = entries(&[
        (Directory, "home/u/private/", 0o700, ""),
        (Regular, "home/u/private/key", 0o644, ""),
        (Regular, "srv/here", 0o644, ""),
    ]);
    let rest = entries(&[
        (Directory, "home/u/app/", 0o755, ""),
        (Regular, "home/u/app/f", 0o644, ""),
        (Regular, "home/u/private/second", 0o644, ""),
    ]);
    // Without the end of the first part.
    let first = &first[..first.len() - 1024];
    let mut stream = server.connect();
    let line = "PUT /containers/c/files?destination=%2F&user= HTTP/1.1\r\nHost: api";
    let length = first.len() + rest.len();
    stream.write_all(format!("{line}\r\nContent-Length: {length}\r\n\r\n").as_bytes()).unwrap();
    stream.write_all(first).unwrap();
    let begin = Instant::now();
    while sh(&client, "c", "test -e /srv/here").await.code != 0 {
        assert!(begin.elapsed() < STUCK);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(run(&client, "c", &by_user("4000", "cd /home/u && mv private app")).await.code, 0);
    stream.write_all(&rest).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    assert!(reply.contains("home/u/private: somebody has put something else in its place"), "{reply}");
    assert_ne!(run(&client, "c", &by_user("4000", "cat /home/u/app/key")).await.code, 0);
    assert_eq!(say(&client, "c", "cd /home/u; stat -c %a app; ls app; ls private").await, "700\nf\nkey");
    server.finish().await;
}

/// All ids of the host that a container leaves out look like 65534 in it. They are not that user.
#[tokio::test]
async fn an_id_that_the_container_leaves_out_is_nobodys() {
    let server = Server::start().await;
    let (client, shared) = with_mount(&server).await;
    std::fs::create_dir(shared.path().join("hosts")).unwrap();
    symlink("/home/n", shared.path().join("hosts/l")).unwrap();
    let look = "mkdir /home/n; ln -s /home/n /home/n/l; chown -h 65534:65534 /home/n /home/n/l; stat -c %u /srv/hosts /home/n";
    assert_eq!(say(&client, "c", look).await, "65534\n65534");
    let tar = || std::io::Cursor::new(entries(&[(Regular, "l/f", 0o644, "")]));
    let error = message(client.stream_in("c", "65534", "/srv/hosts", tar(), None).await);
    assert!(error.contains("a symbolic link of another user"), "{error}");
    // His own leads him on.
    client.stream_in("c", "65534", "/home/n", tar(), None).await.unwrap();
    assert_eq!(say(&client, "c", "ls /home/n").await, "f\nl");
    server.finish().await;
}
