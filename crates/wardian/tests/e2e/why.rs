//! What creates and destroys were made of.

use crate::support::{STUCK, Server, WARDIAN, init, listen, message, parent, pea, run, signal};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use wardian_garden::wire::{ContainerSpec, History, ImageRef, Operation, ProcessSpec};
use wardian_runtime::wire;

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

/// Waits until the server's history of a handle is as it should be: the journal is written, and the end of a pea told,
/// a moment after the answer.
async fn history_where(server: &Server, handle: &str, good: impl Fn(&History) -> bool) -> History {
    let started = Instant::now();
    loop {
        let life = server.client().history(handle).await;
        if let Ok(life) = &life
            && good(life)
        {
            return life.clone();
        }
        assert!(started.elapsed() < STUCK, "{life:?}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_end_of_a_pea_is_told() {
    let server = Server::start().await;
    let client = server.create("p").await;
    let image = server.image_with("marker", "x");
    for name in ["first", "second"] {
        let spec = ProcessSpec { id: name.into(), ..pea(&image, "echo x >/file") };
        assert_eq!(run(&client, "p", &spec).await.code, 0);
        history_where(&server, "p", |life| life.peas.iter().any(|p| p.process.as_deref() == Some(name)))
            .await;
    }
    let peas = client.history("p").await.unwrap().peas;
    let told: Vec<_> = peas.iter().map(|pea| (pea.kind.as_str(), pea.process.as_deref().unwrap())).collect();
    assert_eq!(told, [("pea", "first"), ("pea", "second")]);
    let id = server.id("p").await;
    for pea in &peas {
        assert_eq!((&pea.id, &pea.error), (&id, &None));
        assert_eq!(names(pea), ["kill", "forget", "release", "unmount"], "{pea:?}");
        // The keeper unmounts meanwhile.
        assert!(pea.steps[3].begin_ms == 0.0 && pea.steps[3].ms > 0.0, "{pea:?}");
        assert!(pea.steps.iter().all(|step| step.begin_ms + step.ms <= pea.ms), "{pea:?}");
    }
    let address = format!("unix:{}", server.socket().display());
    let why = std::process::Command::new(WARDIAN).args(["why", "p", "--addr", &address]).output().unwrap();
    let text = String::from_utf8(why.stdout).unwrap();
    assert!(why.status.success() && text.contains("end of pea second of p ("), "{text}");
    // Its destroy is told as well if the container's ends it.
    let spec = ProcessSpec { id: "last".into(), ..pea(&image, "exec sleep 1000") };
    let process = client.run("p", &spec, listen()).await.unwrap();
    client.destroy("p").await.unwrap();
    drop(process);
    let life = history_where(&server, "p", |life| life.peas.len() == 3).await;
    assert_eq!(life.peas[2].process.as_deref(), Some("last"));
    server.finish().await;
}

#[tokio::test]
async fn a_keeper_of_an_earlier_version_does_not_tell_of_the_unmount_of_a_pea() {
    let mut server = Server::start().await;
    server.kill9();
    server.env = vec![(wire::SPEAKS.to_owned(), (wire::Feature::PeaEnds.since() - 1).to_string())];
    server.restart().await;
    server.create("p").await;
    // The next server asks for the version of a keeper that it has not started.
    server.kill9();
    server.env.clear();
    server.restart().await;
    let client = server.client();
    let image = server.image_with("marker", "x");
    assert_eq!(run(&client, "p", &pea(&image, "true")).await.code, 0);
    let life = history_where(&server, "p", |life| !life.peas.is_empty()).await;
    assert_eq!(names(&life.peas[0]), ["kill", "forget", "release"]);
    server.finish().await;
}

#[tokio::test]
async fn the_next_server_knows_the_last_hour() {
    let mut server = Server::start().await;
    let client = server.create("gone").await;
    let image = server.image_with("marker", "x");
    assert_eq!(run(&client, "gone", &pea(&image, "true")).await.code, 0);
    history_where(&server, "gone", |life| life.peas.len() == 1).await;
    client.destroy("gone").await.unwrap();
    server.create("lives").await;
    let before = [client.history("gone").await.unwrap(), client.history("lives").await.unwrap()];
    // It may be killed while it writes: whatever comes last in the journal may be missing, and no more than that.
    let journal = server.run().join("history");
    let lines = || {
        let text = std::fs::read_to_string(journal.join("0.jsonl")).unwrap_or_default();
        text.lines().filter(|line| line.ends_with('}')).count()
    };
    let started = Instant::now();
    while lines() < 5 {
        assert!(started.elapsed() < STUCK, "{}", lines());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.kill9();
    server.restart().await;
    let client = server.client();
    let after = [client.history("gone").await.unwrap(), client.history("lives").await.unwrap()];
    assert_eq!(after, before);
    assert!(after[0].create.is_some() && after[0].destroy.is_some() && after[0].peas.len() == 1);

    // What is damaged, or of another boot, is ignored; an operation is added to none of it.
    server.kill9();
    let text = std::fs::read_to_string(journal.join("0.jsonl")).unwrap();
    std::fs::write(journal.join("0.jsonl"), &text[..text.len() - 20]).unwrap();
    let other = text.replacen(&text[..text.find('\n').unwrap()], r#"{"version":1,"boot_id":"other"}"#, 1);
    std::fs::write(journal.join("1.jsonl"), other.replace("gone", "other")).unwrap();
    server.restart().await;
    let client = server.client();
    let after = client.history("gone").await.unwrap();
    assert_eq!(after, before[0]);
    // The create of a living container is in its record.
    let (made, known) =
        (client.history("lives").await.unwrap().create.unwrap(), before[1].create.clone().unwrap());
    assert_eq!((&made.id, &made.steps, made.began_ms), (&known.id, &known.steps, known.began_ms));
    assert_eq!(message(client.history("other").await), "unknown handle: other");
    assert!(!journal.join("1.jsonl").exists());
    server.create("stays").await;
    client.destroy("lives").await.unwrap();
    assert!(server.terminate().await.success());
    server.restart().await;
    assert!(server.client().history("lives").await.is_ok_and(|life| life.destroy.is_some()));
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
