//! What creates and destroys were made of.

use crate::support::{STUCK, Server, WARDIAN, init, message, parent, signal};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use wardian_garden::wire::{ContainerSpec, ImageRef, Operation};

fn names(operation: &Operation) -> Vec<&str> {
    operation.steps.iter().map(|step| step.name.as_str()).collect()
}

/// Phases follow each other and are not longer than the whole.
fn adds_up(operation: &Operation) {
    let mut end = 0.0;
    for step in &operation.steps {
        assert!((step.begin_ms - end).abs() < 1e-6 && step.ms >= 0.0, "{operation:?}");
        end = step.begin_ms + step.ms;
    }
    assert!(end <= operation.ms, "{operation:?}");
}

#[tokio::test]
async fn the_phases_of_a_life_are_known() {
    let mut server = Server::start().await;
    let client = server.create("w").await;
    let id = server.id("w").await;
    let create = client.history("w").await.unwrap().create.unwrap();
    assert_eq!((create.kind.as_str(), &create.id, &create.error), ("create", &id, &None));
    let phases = ["image", "keeper", "namespaces", "record", "files", "cgroup", "root-file-system", "launch"];
    assert_eq!(names(&create), phases);
    adds_up(&create);

    // The next server knows how a living container was made.
    server.kill9();
    server.restart().await;
    let life = client.history("w").await.unwrap();
    assert_eq!((life.create.unwrap().steps, life.destroy), (create.steps, None));

    client.destroy("w").await.unwrap();
    let life = client.history("w").await.unwrap();
    let destroy = life.destroy.unwrap();
    assert_eq!((destroy.kind.as_str(), &destroy.id, &destroy.error), ("destroy", &id, &None));
    assert_eq!(names(&destroy), ["kill", "unmount", "forget", "release"]);
    adds_up(&destroy);

    // The handle's next life takes the place of the last one, each kind for itself.
    server.create("w").await;
    let life = client.history("w").await.unwrap();
    assert_ne!(life.create.unwrap().id, id);
    assert_eq!(life.destroy.unwrap().id, id);
    server.finish().await;
}

#[tokio::test]
async fn a_create_that_failed_says_where() {
    let server = Server::start().await;
    let client = server.client();
    let image = ImageRef { uri: "/nowhere.tar".into(), ..Default::default() };
    let spec = ContainerSpec { handle: "f".into(), image, ..Default::default() };
    let error = message(client.create(&spec).await);
    let create = client.history("f").await.unwrap().create.unwrap();
    assert_eq!(create.error.as_ref(), Some(&error));
    assert_eq!(names(&create), ["image"]);
    assert_eq!(message(client.history("nobody").await), "unknown handle: nobody");
    server.finish().await;
}

#[tokio::test]
async fn a_slow_destroy_is_explained() {
    let server = Server::start().await;
    let client = server.create("s").await;
    // A keeper that is stopped for a while makes it slow, and no disk has to do with it.
    let keeper = parent(init(&server, "s").await).unwrap();
    signal(keeper, Signal::STOP);
    let destroying = tokio::spawn(async move { client.destroy("s").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    signal(keeper, Signal::CONT);
    destroying.await.unwrap().unwrap();
    let started = Instant::now();
    let destroy = loop {
        let destroy = server.client().history("s").await.unwrap().destroy.unwrap();
        if destroy.diagnosis.is_some() {
            break destroy;
        }
        assert!(started.elapsed() < STUCK, "no diagnosis\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(
        destroy.ms >= 400.0 && destroy.steps[0].name == "kill" && destroy.steps[0].ms >= 400.0,
        "{destroy:?}"
    );
    let diagnosis = destroy.diagnosis.unwrap();
    // Nobody waited for a disk, and it is not said of anybody.
    assert_eq!(diagnosis["fingerprints"].as_array().map(Vec::len), Some(0), "{diagnosis}");
    assert!(diagnosis["verdict"].as_str().is_some_and(|verdict| !verdict.is_empty()), "{diagnosis}");
    assert!(diagnosis["tunables"].is_object(), "{diagnosis}");

    let address = format!("unix:{}", server.socket().display());
    let why = std::process::Command::new(WARDIAN).args(["why", "s", "--addr", &address]).output().unwrap();
    let text = String::from_utf8(why.stdout).unwrap();
    assert!(
        why.status.success() && text.contains("destroy of s") && text.contains("it was slow, and meanwhile:"),
        "{text}"
    );
    let why =
        std::process::Command::new(WARDIAN).args(["why", "nobody", "--addr", &address]).output().unwrap();
    assert!(!why.status.success() && String::from_utf8_lossy(&why.stderr).contains("unknown handle: nobody"));
    server.finish().await;
}
