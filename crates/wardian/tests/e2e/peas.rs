//! Processes with an image of their own, in the namespaces of a container.

use crate::support::{Server, end, listen, message, pea, run, say, sh};
use wardian_garden::wire::{ContainerSpec, ProcessSpec};
use wardian_garden::{Client, ErrorKind};

/// Root file systems that there are, once those that are to go have gone.
async fn until_rootfs(server: &Server, count: usize) {
    let started = std::time::Instant::now();
    while server.rootfs().len() != count {
        assert!(started.elapsed().as_secs() < 15, "{:?}", server.rootfs());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn namespaces(client: &Client, spec: &ProcessSpec) -> Vec<String> {
    run(client, "p", spec).await.out.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn own_files_shared_namespaces() {
    let server = Server::start().await;
    let client = server.create("p").await;
    let image = server.image_with("marker", "of the pea");
    let done = run(&client, "p", &pea(&image, "cat /marker; echo made >/made; exit 6")).await;
    assert_eq!((done.code, done.out.as_str()), (6, "of the pea"), "{done:?}");
    assert_eq!(sh(&client, "p", "test -e /marker -o -e /made").await.code, 1);
    // The next one does not see what the last one has written.
    assert_eq!(run(&client, "p", &pea(&image, "test -e /made")).await.code, 1);

    let links = "cd /proc/$$/ns; for n in net ipc uts pid user mnt; do readlink $n; done";
    let inside = namespaces(&client, &crate::support::script(links)).await;
    let beside = namespaces(&client, &pea(&image, links)).await;
    assert_eq!(inside[..5], beside[..5]);
    assert_ne!(inside[5], beside[5]);

    say(&client, "p", "mkdir /www; echo page >/www/f; httpd -p 127.0.0.1:80 -h /www").await;
    let done =
        run(&client, "p", &pea(&image, "wget -qO- http://127.0.0.1/f; hostname; cat /proc/1/comm")).await;
    assert_eq!((done.code, done.out.as_str()), (0, "page\np\ngarden-init\n"), "{done:?}");
    let done = run(&client, "p", &pea(&image, "grep CapEff /proc/self/status; cat /proc/self/uid_map")).await;
    assert!(done.out.contains("00000000a80425fb") && done.out.contains("4294967294"), "{done:?}");
    until_rootfs(&server, 1).await;
    server.finish().await;
}

#[tokio::test]
async fn what_a_pea_leaves_running_is_ended() {
    let server = Server::start().await;
    let client = server.create("p").await;
    let image = server.image_with("marker", "x");
    let done = run(&client, "p", &pea(&image, "sleep 4321 & echo started")).await;
    assert_eq!((done.code, done.out.as_str()), (0, "started\n"));
    until_rootfs(&server, 1).await;
    server.until_idle("p").await;
    assert!(!say(&client, "p", "ps -o args").await.contains("4321"));
    server.finish().await;
}

#[tokio::test]
async fn many_peas_at_once() {
    let server = Server::start().await;
    let client = server.create("p").await;
    let image = server.image_with("marker", "x");
    let local = tokio::task::LocalSet::new();
    let ended = std::rc::Rc::new(std::cell::Cell::new(0));
    for n in 0..10 {
        let ended = ended.clone();
        let (client, image) = (client.clone(), image.clone());
        local.spawn_local(async move {
            let done = run(&client, "p", &pea(&image, &format!("echo {n}; exit {n}"))).await;
            assert_eq!((done.code, done.out), (n, format!("{n}\n")));
            ended.set(ended.get() + 1);
        });
    }
    local.await;
    assert_eq!(ended.get(), 10);
    until_rootfs(&server, 1).await;
    server.finish().await;
}

#[tokio::test]
async fn destroy_ends_peas() {
    let server = Server::start().await;
    let client = server.create("p").await;
    let image = server.image_with("marker", "x");
    let process = client.run("p", &pea(&image, "exec sleep 1000"), listen()).await.unwrap();
    client.destroy("p").await.unwrap();
    // As any process whose container goes.
    let _ = tokio::time::timeout(crate::support::STUCK, process.wait()).await.expect("wait is stuck");
    server.finish().await;
}

#[tokio::test]
async fn peas_that_do_not_start() {
    let server = Server::start().await;
    let client = server.create("p").await;
    let image = server.image_with("marker", "x");
    let missing = ProcessSpec { path: "/bin/nope".into(), ..pea(&image, "") };
    let error = client.run("p", &missing, listen()).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ExecutableNotFound), "{error}");
    for user in ["a:b", "1:b", "a:1"] {
        let spec = ProcessSpec { user: user.into(), ..pea(&image, "true") };
        let error = message(client.run("p", &spec, listen()).await);
        assert!(error.contains(&format!("'{user}' is not a valid uid:gid")), "{error}");
    }
    let unknown = ProcessSpec { user: "nope".into(), ..pea(&image, "true") };
    let error = message(client.run("p", &unknown, listen()).await);
    assert!(error.contains("nope"), "{error}");
    let error = message(client.run("p", &pea("/nowhere.tar", "true"), listen()).await);
    assert!(error.contains("/nowhere.tar"), "{error}");
    until_rootfs(&server, 1).await;
    server.until_idle("p").await;

    let user = ProcessSpec { user: "1000:1001".into(), ..pea(&image, "id -u; id -g; pwd") };
    assert_eq!(run(&client, "p", &user).await.out, "1000\n1001\n/\n");
    let user = ProcessSpec { user: "vcap".into(), ..pea(&image, "id -u") };
    assert_eq!(run(&client, "p", &user).await.out, "2000\n");
    server.finish().await;
}

#[tokio::test]
async fn in_a_privileged_container() {
    let server = Server::start().await;
    let client = server.client();
    let spec = ContainerSpec { handle: "p".into(), privileged: true, ..Default::default() };
    client.create(&spec).await.unwrap();
    let image = server.image_with("marker", "x");
    let process = client.run("p", &pea(&image, "cat /proc/self/uid_map"), listen()).await.unwrap();
    assert!(end(process).await.out.contains("4294967295"));
    until_rootfs(&server, 1).await;
    server.finish().await;
}
