//! What somebody who begins with wardian tries first, and what is told then.

use crate::cli::Said;
use crate::commands::command;
use crate::support::{Server, WARDIAN, message, say};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use wardian_garden::wire::ContainerSpec;

fn wardian(server: &Server, args: &[&str]) -> Said {
    command(server, args).output().unwrap().into()
}

fn ok(server: &Server, args: &[&str]) {
    let said = wardian(server, args);
    assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_tar_in_gzip_is_named_whatever_its_length() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let long = gzip(&crate::support::noise(5000));
    let short = gzip(b"short");
    assert!(short.len() < 512 && long.len() > 512);
    for body in [short, long] {
        let told = message(client.stream_in("c", "", "/srv", std::io::Cursor::new(body), None).await);
        assert!(told.contains("it is compressed with gzip; send a plain tar"), "{told}");
        assert!(told.contains("This does not look like a tar archive"), "{told}");
    }
    // What is no gzip is told as before.
    let told = message(client.stream_in("c", "", "/srv", std::io::Cursor::new(vec![b'x'; 5000]), None).await);
    assert!(told.contains("not a tar header"), "{told}");
    server.finish().await;
}

#[tokio::test]
async fn a_device_or_a_socket_alone_is_not_copied_without_a_word() {
    let server = Server::start().await;
    let shared = server.base().join("shared");
    fs::create_dir(&shared).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(shared.join("socket")).unwrap();
    let volume = format!("{}:/shared", shared.display());
    ok(&server, &["create", "--name", "c", "--privileged", "-v", &volume]);
    let base = server.base().join("out");
    fs::create_dir(&base).unwrap();
    let at = |name: &str| base.join(name).to_str().unwrap().to_owned();
    ok(
        &server,
        &["exec", "c", "sh", "-c", "mkdir /d && mkfifo /d/fifo && mknod /d/null c 1 3 && echo x >/d/file"],
    );
    for from in ["c:/dev/null", "c:/d/null", "c:/shared/socket"] {
        let said = wardian(&server, &["cp", from, &at("nn")]);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains(from) && said.err.contains("is a device or a socket"), "{said:?}");
        assert!(!base.join("nn").exists());
        // Into a directory it is no different.
        assert_eq!(wardian(&server, &["cp", from, &at("")]).code, Some(1));
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
        // A tar may have it.
        let tar = command(&server, &["cp", from, "-"]).output().unwrap();
        assert_eq!((tar.status.code(), tar.stderr.as_slice()), (Some(0), &b""[..]));
        // A device of characters; no tar has a socket.
        assert_eq!(tar.stdout[156], if from.ends_with("null") { b'3' } else { 0 });
    }
    // In a directory it is left out, and a fifo is one here, too.
    let said = wardian(&server, &["cp", "c:/d", &at("d")]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("left out: 1 device or socket"), "{said:?}");
    let mut names: Vec<_> = fs::read_dir(base.join("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["fifo", "file"]);
    for from in ["c:/d/fifo", "c:/d/file"] {
        assert_eq!(wardian(&server, &["cp", from, &at("")]).code, Some(0), "{from}");
    }
    server.finish().await;
}

#[tokio::test]
async fn what_the_log_s_table_names_is_found_in_text_too() {
    let mut server = Server::start().await;
    server.terminate().await;
    server.args.extend(["--log-format".to_owned(), "text".to_owned()]);
    server.restart().await;
    let spec = ContainerSpec { handle: "a/b".into(), ..Default::default() };
    message(server.client().create(&spec).await);
    assert!(server.log().contains("server.request-failed"), "{}", server.log());
    server.finish().await;
}

/// The mode of each entry below `/to`, in the order of the names.
async fn modes(server: &Server, handle: &str, to: &str) -> String {
    say(&server.client(), handle, &format!("cd {to} && stat -c '%n %a' * | sort")).await
}

#[tokio::test]
async fn modes_on_the_way_in_are_less_the_usual_umask() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let entries = [("d", 0o3777), ("file", 0o6777), ("plain", 0o666), ("private", 0o600), ("sticky", 0o1777)];
    let expected = "d 3755\nfile 755\nplain 644\nprivate 600\nsticky 755";
    let mut tar = tar::Builder::new(Vec::new());
    let base = server.base().join("modes");
    fs::create_dir(&base).unwrap();
    for (name, mode) in entries {
        let mut header = crate::support::header(0);
        header.set_mode(mode);
        if name == "d" {
            header.set_entry_type(tar::EntryType::Directory);
            fs::create_dir(base.join(name)).unwrap();
        } else {
            fs::write(base.join(name), "").unwrap();
        }
        tar.append_data(&mut header, name, &[][..]).unwrap();
        fs::set_permissions(base.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    client.stream_in("c", "", "/sent", std::io::Cursor::new(tar), None).await.unwrap();
    assert_eq!(modes(&server, "c", "/sent").await, expected);
    // A command's own umask changes nothing.
    let from = format!("{}/.", base.display());
    for umask in ["000", "077"] {
        let to = format!("c:/copied{umask}");
        let script = format!("umask {umask}; exec {WARDIAN} cp {from} {to}");
        let said = std::process::Command::new("sh")
            .args(["-c", &script])
            .env("WARDIAN_SOCKET", server.socket())
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
        assert_eq!(modes(&server, "c", &format!("/copied{umask}")).await, expected);
    }
    server.finish().await;
}

#[test]
fn reset_s_help_says_what_stays() {
    for args in [&["--help"][..], &["reset", "--help"]] {
        let said = std::process::Command::new(WARDIAN).args(args).output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("images only with --images, volumes only with --volumes"), "{text}");
    }
}
