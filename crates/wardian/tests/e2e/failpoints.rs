//! A server or a keeper that kills itself at each of its failpoints, and what the next server finds.
//!
//! Beside the victim lives a bystander with everything a container can have, which must never notice.

use crate::equipped::{all, ends_well, equip, is_broken, lives, lives_equipped, quit, spec};
use crate::support::{
    STUCK, Server, describe, end, init, listen, members, noise, parent, pea, script, tar_of,
};
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use wardian_garden::ErrorKind;
use wardian_garden::wire::ProcessSpec;
use wardian_sys::failpoint;

/// The request that comes to the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Create,
    Run,
    Pea,
    /// A pea that ends at once.
    ShortPea,
    StreamIn,
    /// Without a length: another way through the server.
    StreamInPieces,
    StreamOut,
    Stop,
    Destroy,
    /// Nothing is asked: a process ends.
    Exit,
}

/// What becomes of the victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Gone,
    /// With all its processes.
    Lives,
    /// Its processes may have ended.
    LivesStopped,
    Broken,
}

use Ask::{Create, Destroy, Exit, Pea, Run, ShortPea, Stop, StreamIn, StreamInPieces, StreamOut};
use Fate::{Broken, Gone, Lives, LivesStopped};

/// Point (and the time to come there that counts), what is asked, what becomes of the victim, and whether a process that
/// was asked for is known afterwards (`None`: both is right).
const TABLE: &[(&str, Ask, Fate, Option<bool>)] = &[
    ("create.reserved", Create, Gone, None),
    ("create.recorded", Create, Gone, None),
    ("create.paired", Create, Gone, None),
    ("create.cgroup", Create, Gone, None),
    ("create.rootfs", Create, Gone, None),
    ("create.connected", Create, Gone, None),
    ("create.answered", Create, Gone, None),
    // Whole, though nobody has been told.
    ("create.committed", Create, Lives, None),
    ("create.replying", Create, Lives, None),
    ("run.asking", Run, Lives, Some(false)),
    ("run.answered", Run, Lives, Some(true)),
    ("pea.recorded", Pea, Lives, Some(false)),
    ("pea.cgroup", Pea, Lives, Some(false)),
    ("pea.rootfs", Pea, Lives, Some(false)),
    ("pea.asked", Pea, Lives, None),
    ("pea.answered", Pea, Lives, Some(true)),
    ("pea.ended", ShortPea, Lives, Some(true)),
    ("pea.cleaning", ShortPea, Lives, Some(true)),
    ("stream-in.begun", StreamIn, Lives, None),
    ("stream-in.begun", StreamInPieces, Lives, None),
    ("stream-in.middle", StreamIn, Lives, None),
    ("stream-in.middle:3", StreamInPieces, Lives, None),
    ("stream-in.finishing", StreamIn, Lives, None),
    ("stream-in.finishing", StreamInPieces, Lives, None),
    ("stream-out.begun", StreamOut, Lives, None),
    ("stream-out.middle:2", StreamOut, Lives, None),
    ("stream-out.finishing", StreamOut, Lives, None),
    ("stop.termed", Stop, LivesStopped, None),
    ("stop.killed", Stop, LivesStopped, None),
    ("stop.recording", Stop, LivesStopped, None),
    ("destroy.killing", Destroy, Lives, None),
    // Nobody was promised anything yet.
    ("destroy.answered", Destroy, Broken, None),
    ("destroy.forgotten", Destroy, Gone, None),
    ("destroy.sweeping", Destroy, Gone, None),
    ("keeper.create.cloning", Create, Gone, None),
    ("keeper.create.cloned", Create, Gone, None),
    // The server may hear of the end first.
    ("keeper.create.replied", Create, Broken, None),
    ("keeper.run.cloning:4", Run, Broken, None),
    ("keeper.run.cloning:4", Pea, Broken, None),
    ("keeper.run.cloned:4", Run, Broken, None),
    ("keeper.run.cloned:4", Pea, Broken, None),
    ("keeper.run.replied:4", Run, Broken, None),
    ("keeper.run.replied:4", Pea, Broken, None),
    ("keeper.exited", Exit, Broken, None),
    ("keeper.transfer.cloned", StreamIn, Broken, None),
    ("keeper.transfer.cloned", StreamOut, Broken, None),
    ("keeper.destroy.killed", Destroy, Gone, None),
    ("keeper.destroy.closing", Destroy, Gone, None),
    ("keeper.destroy.replying", Destroy, Gone, None),
];

/// How the table is shared out among tests, by the beginnings of names.
const GROUPS: &[&str] =
    &["create.", "run.", "pea.", "stream-", "stop.", "destroy.", "keeper.create.", "keeper.run.", "keeper."];

fn group(point: &str) -> &'static str {
    GROUPS.iter().find(|group| point.starts_with(**group)).unwrap_or_else(|| panic!("{point}: in no group"))
}

fn name(point: &str) -> &str {
    point.split(':').next().unwrap()
}

#[test]
fn every_point_is_in_the_table() {
    // The store tests its own.
    let known =
        [wardian_engine::FAILPOINTS, wardian_engine::KEEPER_FAILPOINTS, wardian_server::FAILPOINTS].concat();
    for known in &known {
        assert!(TABLE.iter().any(|(point, ..)| name(point) == *known), "{known} is not tested");
    }
    for (point, ..) in TABLE {
        assert!(known.contains(&name(point)), "there is no {point}");
        group(point);
    }
    let unique: std::collections::HashSet<_> = known.iter().chain(wardian_store::FAILPOINTS).collect();
    assert_eq!(unique.len(), known.len() + wardian_store::FAILPOINTS.len());
}

#[tokio::test]
async fn a_point_that_does_not_exist_is_refused() {
    let server = Server::start().await;
    let mut command = server.command();
    let output = command.env(failpoint::VARIABLE, "create.reservd").stderr(std::process::Stdio::piped());
    let output = output.output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("WARDIAN_FAILPOINT=create.reservd: no failpoint of this name"), "{said}");
    server.finish().await;
}

macro_rules! groups {
    ($($function:ident $group:literal;)*) => {
        $(#[tokio::test] async fn $function() { play($group).await; })*

        #[test]
        fn every_group_is_played() {
            assert_eq!([$($group),*], GROUPS);
        }
    };
}

groups! {
    creates "create.";
    runs "run.";
    peas "pea.";
    streams "stream-";
    stops "stop.";
    destroys "destroy.";
    keepers_creates "keeper.create.";
    keepers_runs "keeper.run.";
    keepers_rest "keeper.";
}

/// What the victim is asked. A server or keeper that dies on the way fails it, or not.
async fn ask(server: &Server, ask: Ask) -> Result<(), String> {
    let client = server.client();
    let image = server.image_with("marker", "x");
    let new = |text: &str| ProcessSpec { id: "new".into(), ..script(text) };
    let said = |e: wardian_garden::Error| e.to_string();
    let request = async {
        match ask {
            Create => client.create(&spec("victim")).await.map(drop).map_err(said),
            Run => client.run("victim", &new("exec sleep 1000"), listen()).await.map(drop).map_err(said),
            Pea | ShortPea => {
                let text = if ask == Pea { "exec sleep 1000" } else { "exit 7" };
                let spec = ProcessSpec { id: "new".into(), ..pea(&image, text) };
                let process = client.run("victim", &spec, listen()).await.map_err(said)?;
                if ask == ShortPea { process.wait().await.map(drop).map_err(said) } else { Ok(()) }
            }
            StreamIn | StreamInPieces => {
                let tar = tar_of(&[("big", &noise(6 << 20))]);
                let length = (ask == StreamIn).then_some(tar.len() as u64);
                let sent = client.stream_in("victim", "", "/in", std::io::Cursor::new(tar), length).await;
                sent.map_err(said)
            }
            StreamOut => {
                let mut tar = client.stream_out("victim", "", "/bin/busybox").await.map_err(said)?;
                let read = tar.read_to_end(&mut Vec::new()).await;
                read.map(drop).map_err(|e| e.to_string())
            }
            Stop => client.stop("victim", false).await.map_err(said),
            Destroy => client.destroy("victim").await.map_err(said),
            Exit => {
                let cat = quit(&client, "victim").await.map_err(said)?;
                cat.wait().await.map(drop).map_err(said)
            }
        }
    };
    tokio::time::timeout(STUCK, request).await.expect("the request is stuck")
}

async fn play(group_name: &str) {
    // One of these points is behind the making of a network.
    let mut server =
        if group_name == "create." { Server::networked(&[]).await } else { Server::start().await };
    equip(&server, "bystander").await;
    for (n, (point, what, fate, known)) in
        TABLE.iter().filter(|(point, ..)| group(point) == group_name).enumerate()
    {
        let in_keeper = point.starts_with("keeper.");
        // A keeper has the failpoint of the server that started it.
        if *what != Create && !in_keeper {
            equip(&server, "victim").await;
        }
        server.kill9();
        server.env = vec![(failpoint::VARIABLE.to_owned(), (*point).to_owned())];
        server.restart().await;
        if *what != Create && in_keeper {
            equip(&server, "victim").await;
        }
        let keeper = match (*what, in_keeper) {
            (Create, _) | (_, false) => None,
            _ => parent(init(&server, "victim").await),
        };
        eprintln!("{point} {what:?}");
        let asked = ask(&server, *what).await;
        server.env.clear();
        if in_keeper {
            keeper_died(&server, point, *what, *fate, asked, keeper).await;
        } else {
            let status = server.ended().await;
            assert_eq!(status.signal(), Some(9), "{point}: {status}");
            // The whole tar may have been read before the end was told.
            assert!(asked.is_err() || *what == StreamOut || *what == Pea, "{point}: {asked:?}");
            server.restart().await;
        }
        lives_equipped(&server, "bystander", &format!("{point} {n}")).await;
        if in_keeper {
            server.kill9();
            server.restart().await;
            lives_equipped(&server, "bystander", &format!("again {point} {n}")).await;
        }
        victim(&server, point, *what, *fate, *known).await;
        server.no_zombies().await;
    }
    ends_well(&server, "bystander").await;
    server.finish().await;
}

async fn keeper_died(
    server: &Server,
    point: &str,
    what: Ask,
    fate: Fate,
    asked: Result<(), String>,
    keeper: Option<u32>,
) {
    if let Some(keeper) = keeper {
        let started = Instant::now();
        while std::path::Path::new(&format!("/proc/{keeper}")).exists() {
            assert!(started.elapsed() < STUCK, "{point}: the keeper lives");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    match (what, fate) {
        (Create, Gone) => {
            assert!(asked.unwrap_err().contains("keeper"), "{point}");
        }
        (Destroy, _) => asked.unwrap_or_else(|e| panic!("{point}: {e}")),
        (_, Broken) => match server.client().info("victim").await {
            Ok(_) => is_broken(server, "victim").await,
            // Made, and unmade again: the keeper's end was heard before its answer.
            Err(error) => assert!(what == Create && asked.is_err(), "{point}: {error}"),
        },
        _ => {}
    }
    server.no_zombies().await;
}

/// What the next server says of it; it is gone afterwards.
async fn victim(server: &Server, point: &str, what: Ask, fate: Fate, known: Option<bool>) {
    let client = server.client();
    let listed = client.list(&all()).await.unwrap().contains(&"victim".to_owned());
    match fate {
        Gone => assert!(!listed, "{point}: the victim is there"),
        Broken if what == Create && !listed => {}
        Broken => is_broken(server, "victim").await,
        Lives if what == Create => lives(server, "victim").await,
        Lives => {
            lives_equipped(server, "victim", point).await;
            if matches!(what, StreamIn | StreamInPieces | StreamOut) {
                nothing_transfers(server, point).await;
            }
            if matches!(what, Run | Pea | ShortPea) {
                new_process(server, point, what, known).await;
            }
            ends_well(server, "victim").await;
        }
        LivesStopped => {
            lives(server, "victim").await;
            client.stop("victim", false).await.unwrap();
            assert_eq!(client.info("victim").await.unwrap().state, "stopped", "{point}");
            for process in ["cat", "waits", "pea-of-victim"] {
                let code = end(client.attach("victim", process, listen()).await.unwrap()).await.code;
                assert!(matches!(code, 143 | 137), "{point}: {process}: {code}");
            }
        }
    }
    if fate == Gone || !listed {
        // Nothing of it may be in the way of another one.
        client.create(&spec("victim")).await.unwrap();
    }
    client.destroy("victim").await.unwrap();
}

/// The process that was being asked for.
async fn new_process(server: &Server, point: &str, what: Ask, known: Option<bool>) {
    let client = server.client();
    match client.attach("victim", "new", listen()).await {
        Ok(process) => {
            assert_ne!(known, Some(false), "{point}: it is known");
            let code = if what == ShortPea { 7 } else { 137 };
            process.signal(true).await.unwrap();
            assert_eq!(end(process).await.code, code, "{point}");
        }
        Err(error) => {
            assert_ne!(known, Some(true), "{point}: {error}");
            assert_eq!(error.kind(), Some(ErrorKind::ProcessNotFound), "{point}");
        }
    }
    // Of the bystander, its pea, the victim and its pea.
    let started = Instant::now();
    while server.rootfs().len() != 4 {
        assert!(started.elapsed() < STUCK, "{point}: {:?}", server.rootfs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whoever packs or unpacks has ended.
async fn nothing_transfers(server: &Server, point: &str) {
    let id = server.id("victim").await;
    let started = Instant::now();
    // The keeper itself lives in another cgroup.
    let helpers = || -> Vec<String> {
        members(&id).iter().map(describe).filter(|process| process.contains("wardian-keeper")).collect()
    };
    while !helpers().is_empty() {
        assert!(started.elapsed() < STUCK, "{point}: {:?}", helpers());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
