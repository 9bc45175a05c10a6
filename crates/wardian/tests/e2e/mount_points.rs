//! Mount points that the image's links lead to something that is not there: what is missing is made inside the container.

use crate::support::{Server, header, listen, message, names, run, say, script};
use std::fs::File;
use wardian_garden::wire::{BindMount, ContainerSpec, ImageRef, ProcessSpec};

/// The default image with more links; one with the target `-` is a file instead.
fn image(server: &Server, name: &str, links: &[(&str, &str)]) -> ImageRef {
    let to = server.base().join(format!("{name}.tar"));
    let mut builder = tar::Builder::new(File::create(&to).unwrap());
    let mut archive = tar::Archive::new(File::open(server.image()).unwrap());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        if !links.iter().any(|(name, _)| path.trim_end_matches('/') == *name) {
            builder.append(&entry.header().clone(), entry).unwrap();
        }
    }
    for (name, target) in links {
        let mut head = header(0);
        if *target == "-" {
            builder.append_data(&mut head, name, std::io::empty()).unwrap();
        } else {
            head.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut head, name, target).unwrap();
        }
    }
    builder.into_inner().unwrap();
    ImageRef { uri: to.to_str().unwrap().to_owned(), ..Default::default() }
}

fn bind(src: &std::path::Path, to: &str) -> BindMount {
    let src_path = src.to_str().unwrap().to_owned();
    BindMount { src_path, dst_path: to.to_owned(), mode: 1, origin: 0, idmap: false }
}

fn container(handle: &str, image: &ImageRef, privileged: bool) -> ContainerSpec {
    ContainerSpec { handle: handle.into(), image: image.clone(), privileged, ..Default::default() }
}

const STUB: &str = "../run/systemd/resolve/stub-resolv.conf";

#[tokio::test]
async fn files_of_the_containers_own_are_shown_where_dangling_links_lead() {
    let server = Server::start().await;
    let client = server.client();
    let links =
        [("etc/resolv.conf", STUB), ("etc/hosts", "/var/lib/../a"), ("var/a", "b"), ("var/b", "/c/hosts")];
    let image = image(&server, "resolved", &links);
    let count =
        "grep -c . /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf | cut -d: -f2 | uniq | wc -l";
    for (handle, privileged) in [("c", false), ("p", true)] {
        client.create(&container(handle, &image, privileged)).await.unwrap();
        assert!(say(&client, handle, "cat /etc/hosts /c/hosts").await.contains("localhost"), "{handle}");
        let pea =
            ProcessSpec { image: image.clone(), ..script("cat /c/hosts /etc/hosts; cat /etc/resolv.conf") };
        for done in [run(&client, handle, &pea).await, run(&client, handle, &script("cat /c/hosts")).await] {
            assert!(done.code == 0 && done.out.contains("localhost"), "{handle}: {done:?}");
        }
        assert_eq!(say(&client, handle, count).await, "1", "{handle}");
        // The directories are the container's root's, and the links are as they were.
        let owners =
            "stat -c %u:%g:%a /run /run/systemd /run/systemd/resolve /c | uniq; readlink /etc/resolv.conf";
        assert_eq!(say(&client, handle, owners).await, format!("0:0:755\n{STUB}"), "{handle}");
        say(&client, handle, "echo nameserver 192.0.2.1 >/etc/resolv.conf").await;
    }
    // They are in the container's own layer.
    let layers = server.root().join("layers");
    let find = std::process::Command::new("find").arg(&layers).args(["-name", "systemd"]).output().unwrap();
    assert!(find.status.success() && find.stdout.is_empty(), "{find:?}");
    let again = container("again", &image, false);
    client.create(&again).await.unwrap();
    assert_ne!(say(&client, "again", "cat /etc/resolv.conf").await, "nameserver 192.0.2.1");
    server.finish().await;
}

#[tokio::test]
async fn binds_are_shown_where_dangling_links_lead() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let (source, file) = (server.base().join("source"), server.base().join("source/file"));
    std::fs::create_dir(&source).unwrap();
    std::fs::write(&file, "shown").unwrap();
    let links =
        [("data", "deep/er"), ("up", "../../../x/../y"), ("one", "two"), ("two", "/etc/z"), ("v", "w/")];
    let image = image(&server, "binds", &links);
    let wanted =
        [("/data", "/deep/er"), ("/up", "/y"), ("/one", "/etc/z"), ("/one/1/2", "/etc/z/1/2"), ("/v", "/w")];
    for (dst, real) in wanted {
        for (path, source) in [(dst.to_owned(), &source), (format!("{dst}/file/f"), &file)] {
            let read =
                if source == &file { format!("cat {real}/file/f") } else { format!("cat {real}/file") };
            let bind_mounts = vec![bind(source, &path)];
            let spec = ContainerSpec { bind_mounts: bind_mounts.clone(), ..container("b", &image, false) };
            client.create(&spec).await.unwrap();
            assert_eq!(say(&client, "b", &read).await, "shown", "{path}");
            client.destroy("b").await.unwrap();
            let pea = ProcessSpec { image: image.clone(), bind_mounts, ..script(&read) };
            assert_eq!(run(&client, "c", &pea).await.out, "shown", "{path}");
        }
    }
    assert_eq!(names(&source).len(), 1);
    server.finish().await;
}

/// What a link may not do: lead out, in a circle, to what shows the kernel, to devices, or into what a bind mount shows.
#[tokio::test]
async fn links_that_lead_elsewhere_are_refused() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let source = server.base().join("shown");
    std::fs::create_dir(&source).unwrap();
    let outside = server.base().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let out = format!("../../../../../../../..{}/made", outside.display());
    for (n, (target, why)) in [
        (out.as_str(), ""),
        ("resolv.conf", "in a circle"),
        ("/proc/self/root/made", "in a circle"),
        ("/proc/self/cwd/../made", "in a circle"),
        ("/proc/1/made", "into /proc or /sys"),
        ("/proc/made", "into /proc or /sys"),
        ("/proc/net/pnp", "into /proc or /sys"),
        ("/sys/kernel/made", "into /proc or /sys"),
        ("/sys/fs/cgroup/made", "into /proc or /sys"),
        ("/dev/null", "into /dev"),
        ("/x1/../dev/null", "into /dev"),
        ("../nodir/../dev/urandom", "into /dev"),
        ("/x1/../dev/pts/ptmx", "into /dev"),
        ("/dev/made", "into /dev"),
        ("/dev/shm/made", "into /dev"),
        ("/x1/../dev/shm/x2/made", "into /dev"),
        ("/dev/mqueue/made", "into /dev"),
        ("/dev/fd/made", "into /proc or /sys"),
        ("/shown/made", "another mount"),
        ("/shown/made/../../made", "another mount"),
        ("passwd/made", "no directory"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = image(&server, &format!("i{n}"), &[("etc/resolv.conf", target)]);
        for privileged in [false, true] {
            let bind_mounts = vec![bind(&source, "/shown")];
            let spec =
                ContainerSpec { bind_mounts: bind_mounts.clone(), ..container("x", &image, privileged) };
            if why.is_empty() {
                client.create(&spec).await.unwrap();
                assert_eq!(say(&client, "x", &format!("ls {}", outside.display())).await, "made");
                client.destroy("x").await.unwrap();
            } else {
                let pea = ProcessSpec { image: image.clone(), bind_mounts, ..script("true") };
                let (create, run) = (client.create(&spec).await, client.run("c", &pea, listen()).await);
                for error in [message(create), message(run)] {
                    let named = error.contains("/etc/resolv.conf");
                    assert!(named && error.contains(why), "{target}: {error}");
                }
            }
            assert!(names(&outside).is_empty() && names(&source).is_empty(), "{target}");
        }
    }
    // What is named outright is made where it says, as ever.
    std::fs::write(source.join("file"), "shown").unwrap();
    let bind_mounts = vec![bind(&source, "/dev/shm/source"), bind(&outside, "/dev/shm/source2")];
    for privileged in [false, true] {
        let image = image(&server, "plain", &[]);
        let spec = ContainerSpec { bind_mounts: bind_mounts.clone(), ..container("x", &image, privileged) };
        client.create(&spec).await.unwrap();
        let look = "cat /dev/shm/source/file; ls /dev/shm";
        assert_eq!(say(&client, "x", look).await, "shownsource\nsource2");
        client.destroy("x").await.unwrap();
    }
    server.finish().await;
}

/// Also by directories that are missing on the way; and what somebody mounts over /dev/null outright changes no mask.
#[tokio::test]
async fn no_bind_mount_gets_into_dev_by_a_link_nor_into_the_masks() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let source = server.base().join("source");
    std::fs::create_dir(&source).unwrap();
    let file = source.join("file");
    std::fs::write(&file, "shown").unwrap();
    for (n, (target, path)) in [
        ("/dev", "/data"),
        ("/x1/../dev", "/data"),
        ("/x1/../dev/pts", "/data"),
        ("/x1/../dev", "/dev/../data"),
        ("/dev/shm", "/data"),
        ("/x1/../dev/shm", "/data"),
        ("/dev/shm", "/data/made"),
        ("/dev/mqueue", "/data"),
        ("/dev/shm/source", "/data"),
        ("/dev/shm/source", "/data/made"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = image(&server, &format!("d{n}"), &[("data", target)]);
        let bind_mounts = vec![bind(&source, "/dev/shm/source"), bind(&source, path)];
        let spec = ContainerSpec { bind_mounts: bind_mounts.clone(), ..container("x", &image, false) };
        let pea = ProcessSpec { image, bind_mounts, ..script("true") };
        let (create, run) = (client.create(&spec).await, client.run("c", &pea, listen()).await);
        for error in [message(create), message(run)] {
            assert!(error.contains("into /dev"), "{target} {path}: {error}");
        }
        assert_eq!(names(&source).len(), 1, "{target} {path}");
    }
    for privileged in [false, true] {
        let spec = ContainerSpec {
            bind_mounts: vec![bind(&file, "/dev/null")],
            ..container("x", &image(&server, "plain", &[]), privileged)
        };
        client.create(&spec).await.unwrap();
        let look = "cat /dev/null; for f in /proc/keys /proc/timer_list /proc/1/fd/0; do stat -L -c %F $f; done | uniq";
        let said = say(&client, "x", look).await;
        if privileged {
            assert!(said.starts_with("shown"), "{said}");
        } else {
            assert_eq!(said, "showncharacter special file");
        }
        client.destroy("x").await.unwrap();
    }
    server.finish().await;
}

#[tokio::test]
async fn a_file_in_the_place_of_a_directory_is_named() {
    let server = Server::start().await;
    let client = server.create("c").await;
    for (name, path) in [("dev", "/dev"), ("proc", "/proc"), ("sys", "/sys"), ("etc", "/etc")] {
        let image = image(&server, name, &[(name, "-")]);
        let create = client.create(&container("x", &image, false)).await;
        let error = message(create);
        assert!(error.contains(&format!("mount point {path}")), "{error}");
        // It is the mount point, or on the way to one.
        let says = ["it is a file in the image", "no directory in the image, and must be"];
        assert!(says.iter().any(|text| error.contains(text)), "{error}");
    }
    server.finish().await;
}
