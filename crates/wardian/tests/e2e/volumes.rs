//! What is mounted in containers: files of the host with and without idmap, named volumes, file systems in memory.

use crate::cli::Said;
use crate::commands::{command, fails, ok};
use crate::image_command::{layout, uri};
use crate::support::{Server, WARDIAN, message, pea};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use wardian_garden::wire::{BindMount, ContainerSpec, VolumeMount};

fn said(server: &Server, args: &[&str]) -> Said {
    command(server, args).output().unwrap().into()
}

/// Runs a script in a new container with these flags.
fn sh(server: &Server, flags: &[&str], script: &str) -> Said {
    said(server, &[&["run", "--rm"], flags, &["--", "sh", "-c", script]].concat())
}

/// As [`sh`]; it must succeed, and say nothing of its own.
fn prints(server: &Server, flags: &[&str], script: &str) -> String {
    let said = sh(server, flags, script);
    assert!(said.code == Some(0) && said.err.is_empty(), "{flags:?}: {said:?}\n{}", server.log());
    said.out
}

/// A create must fail; returns the message.
fn refused(server: &Server, flags: &[&str]) -> String {
    let said = said(server, &[&["create"], flags].concat());
    assert!(matches!(said.code, Some(1 | 2)) && said.out.is_empty(), "{flags:?}: {said:?}");
    said.err
}

fn dir(server: &Server, name: &str, mode: u32) -> PathBuf {
    let dir = server.base().join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    dir
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = path.symlink_metadata().unwrap();
    (meta.uid(), meta.gid())
}

fn json(server: &Server, args: &[&str]) -> Value {
    serde_json::from_str(&ok(server, args)).unwrap()
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// Lets nobody but root get to the files of the test, or everybody.
fn close(server: &Server, closed: bool) {
    let mode = if closed { 0o700 } else { 0o755 };
    fs::set_permissions(server.base(), fs::Permissions::from_mode(mode)).unwrap();
}

/// The directory of a volume's data on the host.
fn data(server: &Server, name: &str) -> PathBuf {
    server.root().join("volumes").join(name).join("data")
}

#[tokio::test]
async fn root_of_the_host_is_root_inside_with_idmap() {
    let mut server = Server::start().await;
    close(&server, true);
    let source = dir(&server, "srv", 0o755);
    let path = source.display();
    let (plain, mapped) = (format!("{path}:/srv"), format!("{path}:/srv:idmap"));
    // Without it the container's root is a stranger, and whoever asks is told.
    let told = sh(&server, &["-v", &plain], "touch /srv/a");
    assert!(told.code == Some(1) && told.err.contains("Permission denied"), "{told:?}");
    let hint = format!(
        "-v {plain}: the container's root may not write there (owned by root of the host, mode 0755): use -v {mapped}\n"
    );
    assert!(told.err.contains(&hint), "{told:?}");
    for quiet in [&["-v", &*format!("{plain}:ro")][..], &["--privileged", "-v", &plain]] {
        assert_eq!(prints(&server, quiet, "echo ok"), "ok\n");
    }
    let open = dir(&server, "open", 0o777);
    assert_eq!(prints(&server, &["-v", &format!("{}:/o", open.display())], "touch /o/x; echo ok"), "ok\n");
    assert_eq!(owner(&open.join("x")), (u32::MAX - 1, u32::MAX - 1));

    // With it, each has the same id on both sides.
    let script = "echo text >/srv/of-root; mkdir /srv/d; touch /srv/of-user; chown 1000:1001 /srv/of-user
        stat -c '%u:%g' /srv /srv/of-root /srv/of-user";
    assert_eq!(prints(&server, &["-v", &mapped], script), "0:0\n0:0\n1000:1001\n");
    assert_eq!(owner(&source.join("of-root")), (0, 0));
    assert_eq!(owner(&source.join("of-user")), (1000, 1001));
    let read = format!("{path}:/srv:idmap,ro");
    let denied = sh(&server, &["-v", &read], "cat /srv/of-root; touch /srv/b");
    assert!(denied.out == "text\n" && denied.err.contains("Read-only file system"), "{denied:?}");
    // A single file, too.
    let file = format!("{path}/of-root:/etc/one:idmap");
    assert_eq!(prints(&server, &["-v", &file], "echo more >>/etc/one; cat /etc/one"), "text\nmore\n");
    // An id that is the container's root on the host is nobody's inside: no file has two owners.
    chown(source.join("d"), Some(u32::MAX - 1), None).unwrap();
    assert_eq!(prints(&server, &["-v", &mapped], "stat -c %u /srv/d"), "65534\n");

    // It lives as long as the container, whatever becomes of the server and of the directory's name.
    ok(&server, &["create", "--name", "c", "-v", &mapped]);
    assert!(server.terminate().await.success());
    server.restart().await;
    let moved = server.base().join("moved");
    fs::rename(&source, &moved).unwrap();
    dir(&server, "srv", 0o755);
    assert_eq!(
        ok(&server, &["exec", "c", "--", "sh", "-c", "echo late >/srv/late; cat /srv/late"]),
        "late\n"
    );
    assert!(moved.join("late").exists() && names(&server.base().join("srv")).is_empty());

    assert!(
        refused(&server, &["--privileged", "-v", &mapped]).contains("idmap has no meaning with --privileged")
    );
    server.finish().await;
}

/// The server itself refuses what only other clients can ask for, and advises nobody who has no flags.
#[tokio::test]
async fn idmap_for_other_clients() {
    let server = Server::start().await;
    let source = dir(&server, "srv", 0o755);
    let bind = |idmap| BindMount {
        src_path: source.to_str().unwrap().into(),
        dst_path: "/srv".into(),
        mode: 1,
        idmap,
        ..BindMount::default()
    };
    let client = server.client();
    let spec = |privileged, idmap| ContainerSpec {
        privileged,
        bind_mounts: vec![bind(idmap)],
        ..Default::default()
    };
    let error = message(client.create(&spec(true, true)).await);
    assert!(
        error.contains("bind mount: ") && error.contains("no meaning in a privileged container"),
        "{error}"
    );
    assert_eq!(client.create_told(&spec(false, false)).await.unwrap().warnings, Vec::<String>::new());
    let made = client.create(&spec(false, true)).await.unwrap();
    let mut other = pea(server.image().to_str().unwrap(), "true");
    other.bind_mounts = vec![bind(true)];
    let error = message(client.run(&made, &other, crate::support::listen()).await);
    assert!(error.contains("a pea has no idmapped mounts"), "{error}");
    let device = BindMount { src_path: "/dev/null".into(), dst_path: "/n".into(), ..bind(true) };
    let error =
        message(client.create(&ContainerSpec { bind_mounts: vec![device], ..Default::default() }).await);
    assert!(error.contains("character device 1:3"), "{error}");
    for name in ["../layers", "a/b", "", ".new-x"] {
        let volumes = vec![VolumeMount { name: name.into(), dst_path: "/v".into(), read_only: false }];
        let error = message(client.create(&ContainerSpec { volumes, ..Default::default() }).await);
        assert!(error.contains("is no name for a volume"), "{name}: {error}");
        assert!(message(client.remove_volume(name).await).len() > 10);
    }
    server.finish().await;
}

/// What a container leaves in a directory of the host has no power in any container, and the client is told if it would
/// have on the host.
#[tokio::test]
async fn set_uid_programs_and_devices_are_inert() {
    let server = Server::start_with(&["--id-ranges", "2000000:65536"]).await;
    let source = dir(&server, "srv", 0o755);
    close(&server, true);
    let mapped = format!("{}:/srv:idmap", source.display());
    let volume = ["-v", "v:/srv"];
    let (text, who) = (server.base().join("who.c"), dir(&server, "probe", 0o755).join("who"));
    let program = "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"%d %d\\n\", getuid(), geteuid()); }";
    fs::write(&text, program).unwrap();
    assert!(Command::new("cc").arg("-static").arg("-o").args([&who, &text]).status().unwrap().success());
    let probe = format!("{}:/probe:ro", who.parent().unwrap().display());
    for flags in [&["-v", &*mapped][..], &volume] {
        // In the container's own root file system the bits have an effect, which shows that the program tells.
        let script = "cp /probe/who /srv/who; cp /probe/who /who; chmod 6755 /srv/who /who; chmod 755 /
            mknod /srv/node c 1 3 2>/dev/null && echo node; su -s /bin/sh vcap -c '/who; /srv/who'";
        let told = prints(&server, &[flags, &["-v", &probe]].concat(), script);
        assert_eq!(told, "2000 0\n2000 2000\n", "{flags:?}");
    }
    // On the host they are root's, with their bits: whoever gets there could run them.
    for program in [source.join("who"), data(&server, "v").join("who")] {
        let meta = fs::metadata(&program).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o6755), "{}", program.display());
    }
    assert_eq!(fs::metadata(server.root().join("volumes")).unwrap().mode() & 0o777, 0o700);
    // A device that the host has put there.
    assert!(Command::new("mknod").arg(source.join("zero")).args(["c", "1", "5"]).status().unwrap().success());
    let opened = sh(&server, &["-v", &mapped], "head -c 1 /srv/zero");
    assert!(opened.err.contains("Permission denied"), "{opened:?}");
    // Where others of the host do get to, that is told.
    close(&server, false);
    let told = sh(&server, &["-v", &mapped], "true");
    assert!(told.code == Some(0) && told.err.contains("could run set-uid programs"), "{told:?}");
    assert!(sh(&server, &["-v", &format!("{mapped},ro")], "true").err.is_empty());
    server.finish().await;
}

#[tokio::test]
async fn volumes_outlive_containers_and_are_shared_by_all() {
    let mut server = Server::start_with(&["--id-ranges", "2000000:65536"]).await;
    assert_eq!(ok(&server, &["volume", "ls"]), "VOLUME  MADE  USED BY\n");
    assert_eq!(prints(&server, &["-v", "data:/d"], "echo one >/d/f; stat -c %u /d /d/f"), "0\n0\n");
    assert_eq!(owner(&data(&server, "data").join("f")), (0, 0));
    // Containers with other ids, and one whose root is the host's, see the same owners.
    ok(&server, &["create", "--name", "a", "-v", "data:/d"]);
    ok(&server, &["create", "--name", "b", "-v", "data:/other:ro,idmap"]);
    ok(&server, &["create", "--name", "p", "--privileged", "-v", "data:/d", "-v", "more:/d/more"]);
    ok(&server, &["exec", "a", "--", "sh", "-c", "echo two >>/d/f; touch /d/u; chown 7:8 /d/u"]);
    assert_eq!(
        ok(&server, &["exec", "b", "--", "sh", "-c", "cat /other/f; stat -c %u:%g /other/u"]),
        "one\ntwo\n7:8\n"
    );
    assert_eq!(ok(&server, &["exec", "p", "--", "sh", "-c", "stat -c %u:%g /d/u; touch /d/more/x"]), "7:8\n");
    assert_eq!(said(&server, &["exec", "b", "touch", "/other/x"]).code, Some(1));
    assert_eq!(names(&data(&server, "more")), ["x"]);

    // In use after a restart, too.
    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(ok(&server, &["volume", "ls", "-q"]), "data\nmore\n");
    let shown = json(&server, &["volume", "inspect", "data"]);
    assert_eq!(shown["used_by"], json!(["a", "b", "p"]));
    assert_eq!(shown["path"], json!(data(&server, "data").to_str().unwrap()));
    assert_eq!(json(&server, &["volume", "ls", "--json"])[0], shown);
    let error = fails(&server, 1, &["volume", "rm", "data"]);
    assert!(error.contains("the volume data is in use by a, b, p"), "{error}");
    assert_eq!(ok(&server, &["volume", "create", "new", "data"]), "new\ndata\n");
    let error = fails(&server, 1, &["volume", "prune"]);
    assert!(error.contains("prune -f` removes these") && error.trim_end().ends_with(": new"), "{error}");
    assert_eq!(ok(&server, &["volume", "prune", "-f"]), "new\n");
    assert_eq!(ok(&server, &["volume", "prune"]), "");

    // No collection takes it, and neither does the end of its containers.
    let store = |args: &[&str]| {
        let mut command = Command::new(WARDIAN);
        command.args(args).arg("--root").arg(server.root()).arg("--run").arg(server.run());
        let said = Said::from(command.output().unwrap());
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out
    };
    ok(&server, &["rm", "a", "b", "p"]);
    store(&["store", "gc", "--threshold", "0", "--yes"]);
    let usage = store(&["store", "usage"]);
    assert!(usage.contains("2 volumes") && usage.contains("\ndata "), "{usage}");
    assert_eq!(prints(&server, &["-v", "data:/d"], "cat /d/f"), "one\ntwo\n");

    assert_eq!(ok(&server, &["volume", "rm", "data"]), "data\n");
    let error = fails(&server, 1, &["volume", "rm", "data"]);
    assert!(error.contains("there is no volume \"data\""), "{error}");
    assert_eq!(ok(&server, &["volume", "rm", "-f", "data"]), "");
    assert!(fails(&server, 1, &["volume", "inspect", "data"]).contains("no volume"));
    assert!(fails(&server, 1, &["volume", "create", "../x"]).contains("is no name for a volume"));
    assert_eq!(prints(&server, &["-v", "data:/d"], "ls /d"), "");
    server.until_empty("trash", || names(&server.root().join("trash"))).await;
    server.finish().await;
}

#[tokio::test]
async fn a_reset_keeps_volumes_unless_it_is_told() {
    let mut server = Server::start().await;
    prints(&server, &["-v", "kept:/d"], "echo text >/d/f");
    let reset = |server: &Server, flags: &[&str]| {
        let mut command = Command::new(WARDIAN);
        command
            .args(["reset", "--yes", "--root"])
            .arg(server.root())
            .arg("--run")
            .arg(server.run())
            .args(flags);
        let said = Said::from(command.output().unwrap());
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out
    };
    server.kill9();
    for flags in [&[][..], &["--images"]] {
        let text = reset(&server, flags);
        assert!(text.contains("kept: 1 volume; --volumes removes them"), "{text}");
        fs::create_dir_all(server.run()).unwrap();
        server.restart().await;
        assert_eq!(prints(&server, &["-v", "kept:/d"], "cat /d/f"), "text\n");
        server.kill9();
    }
    assert!(reset(&server, &["--images", "--volumes"]).contains("1 volume\n"));
    assert!(!server.root().exists());
    fs::create_dir_all(server.run()).unwrap();
    server.restart().await;
    server.finish().await;
}

/// A removal and a create at the same time: the container has the volume, or another one of its name.
#[tokio::test]
async fn a_removal_never_takes_the_volume_of_a_container() {
    let server = Server::start().await;
    let client = server.client();
    let spec = |n: usize| ContainerSpec {
        handle: format!("c{n}"),
        volumes: vec![VolumeMount { name: "v".into(), dst_path: "/v".into(), read_only: false }],
        ..Default::default()
    };
    for n in 0..20 {
        client.make_volume("v").await.unwrap();
        let spec = spec(n);
        let (made, _) = tokio::join!(client.create(&spec), async {
            tokio::time::sleep(std::time::Duration::from_millis(n as u64 / 2)).await;
            client.remove_volume("v").await
        });
        let handle = made.unwrap();
        crate::support::say(&client, &handle, &format!("echo {n} >/v/f")).await;
        let file = data(&server, "v").join("f");
        assert_eq!(fs::read_to_string(file).unwrap(), format!("{n}\n"), "{n}");
        client.destroy(&handle).await.unwrap();
        client.remove_volume("v").await.unwrap();
    }
    server.finish().await;
}

#[tokio::test]
async fn file_systems_in_memory() {
    let server = Server::start().await;
    let show = "grep ' /t ' /proc/self/mountinfo | cut -d' ' -f6; stat -c %a /t; df -k /t | tail -1 | awk '{print $2}'";
    let flags = |text: &'static str| ["--tmpfs", text];
    assert_eq!(prints(&server, &flags("/t"), show), "rw,nosuid,nodev,noexec,relatime\n1777\n65536\n");
    let given = prints(&server, &flags("/t:size=1M,mode=0700,exec"), show);
    assert_eq!(given, "rw,nosuid,nodev,relatime\n700\n1024\n");
    assert_eq!(
        prints(&server, &["-m", "64M", "--tmpfs", "/t"], show),
        "rw,nosuid,nodev,noexec,relatime\n1777\n32768\n"
    );
    let full =
        sh(&server, &flags("/t:size=1M"), "dd if=/dev/zero of=/t/f bs=64k count=17 2>&1; stat -c %s /t/f");
    assert!(full.out.contains("No space left") && full.out.contains("1048576"), "{full:?}");
    // Empty files are bounded, too.
    let many = sh(&server, &flags("/t:size=1M"), "for n in $(seq 2000); do : >/t/$n || exit 9; done 2>&1");
    assert!(many.code == Some(9) || many.out.contains("No space left"), "{many:?}");
    // What is in it is the container's memory, and is gone with it.
    let killed =
        sh(&server, &["-m", "32M", "--tmpfs", "/t:size=1G"], "dd if=/dev/zero of=/t/f bs=1M count=100");
    assert!(killed.code != Some(0), "{killed:?}");
    let program = "cp /bin/busybox /t/true; /t/true; echo $?";
    assert!(sh(&server, &flags("/t"), program).out.contains("126"));
    assert!(sh(&server, &flags("/t:exec"), program).out.contains('0'));
    assert_eq!(
        prints(&server, &flags("/dev/shm:size=4M"), "df -k /dev/shm | tail -1 | awk '{print $2}'"),
        "4096\n"
    );
    // In a privileged container, and between volumes.
    assert_eq!(prints(&server, &["--privileged", "--tmpfs", "/t:size=1M"], "touch /t/x; ls /t"), "x\n");
    let mixed = ["-v", "v:/t/a/b", "--tmpfs", "/t/a", "-v", "w:/t"];
    assert_eq!(
        prints(&server, &mixed, "touch /t/w /t/a/m /t/a/b/v; ls /t /t/a /t/a/b | tr '\\n' ' '").trim_end(),
        "/t: a w  /t/a: b m  /t/a/b: v"
    );
    assert_eq!(
        (names(&data(&server, "v")), names(&data(&server, "w"))),
        (vec!["v".into()], vec!["a".into(), "w".into()])
    );
    for (flag, says) in [
        ("/t:size=50%", "is no size"),
        ("/t:size=0", "nothing could be written"),
        ("t", "must be absolute"),
        ("/t:uid=7", "is none of"),
        ("/", "every container's own"),
        ("/dev", "every container's own"),
        ("/dev/../proc/x", "every container's own"),
        ("/sys/fs", "every container's own"),
    ] {
        let error = refused(&server, &["--tmpfs", flag]);
        assert!(error.contains("--tmpfs") && error.contains(says), "{flag}: {error}");
    }
    server.finish().await;
}

#[tokio::test]
async fn errors_name_the_flag_and_what_is_which() {
    let server = Server::start().await;
    let source = dir(&server, "srv", 0o755);
    let path = source.to_str().unwrap();
    let file = source.join("file");
    fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    for (flag, says) in [
        (
            "vol:/etc/passwd".to_owned(),
            "-v vol:/etc/passwd: vol is a directory, /etc/passwd a file".to_owned(),
        ),
        (format!("{path}:/etc/passwd:ro"), format!("{path} is a directory, /etc/passwd a file")),
        (format!("{file}:/etc"), format!("{file} is a file, /etc a directory")),
        ("/nope:/x".to_owned(), "-v /nope:/x: there is no /nope on the server's host".to_owned()),
        (
            "/proc/self:/x:idmap".to_owned(),
            "is on proc, of which this kernel makes no idmapped mounts".to_owned(),
        ),
        ("vol:/".to_owned(), "every container's own".to_owned()),
        ("vol:/proc".to_owned(), "every container's own".to_owned()),
        ("vol:/x/../dev".to_owned(), "every container's own".to_owned()),
        (format!("{path}:/"), "a mount over / is not allowed".to_owned()),
        (format!("{path}:/proc"), "which show the kernel".to_owned()),
        (format!("{path}:/sys/kernel:idmap"), "which show the kernel".to_owned()),
        ("_x:/x".to_owned(), "a path has a slash, as in ./_x".to_owned()),
        (format!("{path}:/x:z"), "no SELinux labels".to_owned()),
        ("/data".to_owned(), "A volume without a name is not needed".to_owned()),
    ] {
        let error = refused(&server, &["-v", &flag]);
        assert!(error.contains(&says), "{flag}: {error}");
    }
    let error = refused(&server, &["--tmpfs", "/etc/passwd"]);
    assert!(error.contains("--tmpfs /etc/passwd: it is a directory, /etc/passwd a file"), "{error}");
    // Nothing is left of them but the volume, which is made first.
    assert_eq!(ok(&server, &["ps", "-aq"]), "");
    assert_eq!(ok(&server, &["volume", "ls", "-q"]), "vol\n");
    // A relative path is one of this host, and a server may be on another.
    let mut here = command(&server, &["run", "--rm", "-v", "./srv:/x:ro", "--", "ls", "/x"]);
    assert_eq!(Said::from(here.current_dir(server.base()).output().unwrap()).out, "file\n");
    let far = said(&server, &["create", "--socket", "tcp:127.0.0.1:1", "-v", "./srv:/x"]);
    assert!(far.code == Some(2) && far.err.contains("only an absolute path means something"), "{far:?}");
    server.finish().await;
}

/// Links of an image and of a volume lead nowhere that a container must not get to.
#[tokio::test]
async fn links_lead_nowhere() {
    let server = Server::start().await;
    let link = |name: &str, target: &str| (name.to_owned(), target.to_owned());
    let links = [
        link("to-proc", "/proc"),
        link("to-dev", "/dev"),
        link("to-root", "/"),
        link("up", "../../../../tmp"),
        link("into-volume", "/v/made"),
    ];
    let image = crate::escape::image(&server, "", &links, &[]);
    let create = |flags: &[&str]| said(&server, &[&["create", "--name", "c"], flags, &[&*image]].concat());
    for (place, says) in [
        ("/to-proc", "which show the kernel"),
        ("/to-dev", "leads into /dev"),
        ("/to-root", "the root of the container"),
        ("/to-proc/self", "which show the kernel"),
    ] {
        for flags in [["-v", &*format!("vol:{place}")], ["--tmpfs", place]] {
            let said = create(&flags);
            assert!(said.code == Some(1) && said.err.contains(says), "{flags:?}: {said:?}");
        }
    }
    // A link of the image makes nothing in a volume.
    let said = create(&["-v", "v:/v", "--tmpfs", "/into-volume"]);
    assert!(said.code == Some(1) && said.err.contains("where nothing is made"), "{said:?}");
    assert!(names(&data(&server, "v")).is_empty());
    assert_eq!(create(&["-v", "up:/up/../up"]).code, Some(0));
    assert_eq!(ok(&server, &["exec", "c", "--", "sh", "-c", "touch /tmp/x; ls /tmp"]), "x\n");
    assert_eq!(names(&data(&server, "up")), ["x"]);
    ok(&server, &["rm", "c"]);

    // A volume whose files lead out of it, on the host: they lead there inside, and nobody follows them outside.
    let secret = server.base().join("secret");
    fs::write(&secret, "secret").unwrap();
    symlink(&secret, data(&server, "v").join("link")).unwrap();
    symlink("/etc/shadow", data(&server, "v").join("shadow")).unwrap();
    let script = "cat /v/link; rm /v/shadow; ln -s /../../etc /v/etc; echo mine >/v/etc/mine; cat /etc/mine";
    let said = sh(&server, &["-v", "v:/v"], script);
    assert!(said.out == "mine\n" && said.err.contains("No such file"), "{said:?}");
    assert!(!Path::new("/etc/mine").exists() && Path::new("/etc/passwd").exists());
    ok(&server, &["volume", "rm", "v"]);
    server.until_empty("trash", || names(&server.root().join("trash"))).await;
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    // A directory that was put in the place of a volume's data.
    ok(&server, &["volume", "create", "w"]);
    fs::remove_dir(data(&server, "w")).unwrap();
    symlink("/etc", data(&server, "w")).unwrap();
    let error = refused(&server, &["-v", "w:/w"]);
    assert!(error.contains("-v w:/w: cannot open the volume \"w\""), "{error}");
    ok(&server, &["volume", "rm", "w"]);
    server.finish().await;
}

/// What an image says of volumes: the directories are there, and its files are in them.
#[tokio::test]
async fn volumes_of_an_image_are_directories_of_the_container() {
    let server = Server::start().await;
    let image = |name: &str, volumes: Value| uri(&layout(&server, name, &json!({"Volumes": volumes})));
    let good = image("good", json!({"/var/lib/made/deep": {}, "/etc": {}, "/etc/passwd": {}}));
    let script =
        "stat -c %u:%a /var/lib/made/deep; test -s /etc/passwd && touch /var/lib/made/deep/x && echo ok";
    assert_eq!(ok(&server, &["run", "--rm", &good, "sh", "-c", script]), "0:755\nok\n");
    let covered = ok(&server, &["run", "--rm", "-v", "v:/var/lib", &good, "ls", "/var/lib"]);
    assert_eq!(covered, "");
    assert!(names(&data(&server, "v")).is_empty());
    for (name, volumes, says) in [
        ("relative", json!({"data": {}}), "is no absolute path"),
        ("kernel", json!({"/proc/made": {}}), "the image's volume /proc/made"),
    ] {
        let said = said(&server, &["create", &image(name, volumes)]);
        assert!(said.code == Some(1) && said.err.contains(says), "{said:?}");
    }
    server.finish().await;
}
