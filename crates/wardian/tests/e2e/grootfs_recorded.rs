//! The recorded runs of GrootFS, played: each command's exit code and standard output must be as recorded, or the
//! difference is in the table here, with its reason and what is said instead. A difference that does not occur any
//! more fails the test too.
//!
//! The recordings are of GrootFS 0.30.1: `one-store.txt` has runs on one store, in which later ones depend on
//! earlier ones, and `fresh-stores.tsv` has runs with a new store for each image.

use crate::docker_registry::{DOCKER, Image, Registry};
use crate::grootfs::World;
use crate::grootfs_images;
use crate::support::{digest, tar_of};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wardian_needs::needs;

const ONE_STORE: &str = include_str!("../fixtures/grootfs/one-store.txt");
const FRESH_STORES: &str = include_str!("../fixtures/grootfs/fresh-stores.tsv");
/// How many runs they have.
pub const RUNS: (usize, usize) = (183, 78);
/// The directory that the recorded commands ran in.
const RECORDED_IN: &str = "/var/lib/garden";

/// A recorded run.
struct Run {
    command: String,
    note: String,
    code: i32,
    out: String,
    err: String,
}

/// Why a run differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The store is wardian's, with a layout of its own.
    Layout,
    /// GrootFS wants XFS with a size; a store of wardian may be on any file system.
    AnyFileSystem,
    /// The parser of YAML or JSON words its errors in its own way.
    Parser,
    /// GrootFS crashes or fails by accident; docs/grootfs.md has the list of defects.
    Defect,
    /// Archives may be compressed, and incomplete or unsafe ones are refused.
    Archive,
    /// Layers are verified in parallel, and sizes against the operator's limits.
    Verified,
    /// Where a layer is fetched from is for the operator to allow, not for the image.
    Hosts,
    /// There is no tardis, and none is needed.
    Tardis,
    /// Nobody waits for a lock of a garbage collection.
    NoLock,
    /// Whether a limit of the disk can be enforced is up to the host; one that cannot be enforced is refused. Here the
    /// run may be as recorded, or succeed.
    Host,
    /// Depends on the runs above that differ.
    Follows,
}

/// What differs: the numbers of runs, why, the exit code, and what standard output contains instead.
type Difference = (&'static [usize], Why, i32, &'static str);

const OF_ONE_STORE: &[Difference] = &[
    (&[27], Why::AnyFileSystem, 0, ""),
    (&[43], Why::Parser, 1, "invalid config file: yaml: "),
    (&[62], Why::Layout, 0, "parts"),
    (&[65, 67, 175], Why::Host, 1, "a limit on what is written cannot be enforced here"),
    (&[68], Why::Layout, 1, ""),
    (&[72], Why::Defect, 0, "/images/sp1/rootfs"),
    (&[73], Why::Archive, 1, "unexpected EOF"),
    (&[74], Why::Archive, 0, "/images/gz1/rootfs"),
    (&[75], Why::Archive, 1, "archive/tar: invalid tar header"),
    (&[76], Why::Archive, 1, "pulling the image"),
    (&[78], Why::Archive, 1, "../file_outside_root"),
    (&[79], Why::Follows, 0, ""),
    (&[80], Why::Defect, 1, "unknown scheme"),
    (&[82], Why::Defect, 0, "/images/f2/rootfs"),
    (&[88, 108], Why::Host, 1, "layerID digest mismatch"),
    (&[98], Why::Verified, 1, "--max-layer-bytes"),
    (&[112], Why::Verified, 1, "no manifest is tagged \"nope\""),
    (&[119], Why::Host, 1, "a limit on what is written cannot be enforced here"),
    (&[123], Why::Parser, 1, "UPPER/x:latest is not fetched"),
    (&[124], Why::Parser, 1, "creating image source: pinging container registry 127.0.0.1:1: "),
    (&[129, 130], Why::Host, 1, "not found"),
    (&[138, 139], Why::Defect, 1, "not found."),
    (&[140, 141, 167], Why::Follows, 0, "/images/nm3"),
    (&[143], Why::Layout, 0, ""),
    (&[144], Why::Layout, 1, "uid-mappings"),
    (&[145], Why::Layout, 32, ""),
    (&[149], Why::Host, 0, "Image `q1` not found. Skipping delete."),
    (&[161], Why::NoLock, 2, ""),
    (&[162, 163], Why::NoLock, 0, "clean completed"),
    (&[170, 171, 172], Why::Parser, 1, "invalid namespace file: "),
    (&[174], Why::Host, 1, "a limit on what is written cannot be enforced here"),
    (&[176, 177, 178, 179], Why::Tardis, 127, ""),
    (&[183], Why::Layout, 0, "notstore"),
];

const OF_FRESH_STORES: &[Difference] = &[
    (
        &[
            2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48, 50,
            52, 54,
        ],
        Why::Layout,
        0,
        "s3/st/meta/namespace.json",
    ),
    (&[5], Why::Host, 1, "layer size is different from the value in the manifest"),
    (&[13], Why::Hosts, 1, "localhost:12000"),
    (&[23], Why::Verified, 1, "--max-layer-bytes"),
    (&[41, 47], Why::Verified, 1, "pulling the image: uncompressed layer size exceeds quota"),
    (&[43], Why::Host, 1, "a limit on what is written cannot be enforced here"),
    (&[49, 51], Why::Archive, 1, "unexpected EOF"),
    (&[57], Why::Follows, 0, "namespace.json"),
    (&[58], Why::Layout, 2, "/images/p6/rootfs"),
    (&[59], Why::Layout, 0, "image for id `same` already exists"),
    (&[60], Why::Layout, 0, "/images/m2/rootfs"),
    (&[61], Why::Layout, 1, "overlay on"),
    (&[62], Why::Defect, 2, "/images/wc1/rootfs"),
    (&[63], Why::Defect, 2, "/images/wc2/rootfs"),
    (&[67], Why::Layout, 2, "clean completed"),
    (&[69, 70, 71, 72], Why::Layout, 2, ""),
    (&[73], Why::Defect, 0, "/images/u6/rootfs"),
    (&[76], Why::Defect, 1, "This registry is insecure."),
    (&[77], Why::Follows, 0, "reading namespace file: open"),
    (&[78], Why::Defect, 0, "image for id `r8` already exists"),
];

fn runs_of_one_store() -> Vec<Run> {
    let mut runs = Vec::new();
    for text in ONE_STORE.split("=== ").skip(1) {
        let (_, text) = text.split_once("\n$ ").unwrap();
        let (command, text) = text.split_once("\n--- exit ").unwrap();
        let (code, text) = text.split_once(' ').unwrap();
        let (_, text) = text.split_once("--- stdout\n").unwrap();
        let (out, err) = text.split_once("--- stderr\n").unwrap();
        let own = |text: &str| text.to_owned();
        runs.push(Run {
            command: own(command),
            note: own(""),
            code: code.parse().unwrap(),
            out: own(out),
            err: own(err),
        });
    }
    runs
}

fn runs_with_fresh_stores() -> Vec<Run> {
    let plain =
        |text: &str| text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t").replace('\0', "\\");
    let run = |line: &str| {
        let cells: Vec<&str> = line.split('\t').collect();
        let command = cells[1].replace("\\\\", "\\");
        Run {
            command,
            note: plain(cells[2]),
            code: cells[3].parse().unwrap(),
            out: plain(cells[4]),
            err: plain(cells[5]),
        }
    };
    FRESH_STORES.lines().skip(1).map(run).collect()
}

/// Replaces what cannot be the same: digests, the sizes of compressed blobs, and the paths in an overlay's options.
fn normal(text: &str, base: &str) -> String {
    let text = text.replace(base, RECORDED_IN);
    let mut out = String::new();
    let mut hex = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_hexdigit() && !c.is_ascii_uppercase() {
            hex.push(c);
            continue;
        }
        out.push_str(if hex.len() == 64 { "<digest>" } else { &hex });
        hex.clear();
        out.push(c);
    }
    for (before, after, name) in [
        ("exceed disk quota ", "/", "<sum>"),
        ("expected: ", ",", "<promised>"),
        ("actual ", "\n", "<found>"),
        ("lowerdir=", "\"", "<overlay>"),
    ] {
        while let Some(at) = out.find(before) {
            let rest = &out[at + before.len()..];
            let end = rest.find(after).unwrap_or(rest.len());
            out = format!("{}{name}{}", &out[..at], &rest[end..]);
        }
    }
    out.trim_end().to_owned()
}

/// The fields of a line of the log: message, level and session.
fn line(text: &str) -> Option<[String; 3]> {
    let line: serde_json::Value = serde_json::from_str(text).ok()?;
    assert_eq!(line["source"], "grootfs", "{text}");
    let stamp = line["timestamp"].as_str().unwrap();
    assert!(stamp.len() == 30 && stamp.ends_with('Z') && stamp.as_bytes()[19] == b'.', "{text}");
    let session = line["data"]["session"].as_str().unwrap_or_default();
    Some([line["message"].as_str()?, line["level"].as_str()?, session].map(str::to_owned))
}

/// Compares logs: each line of a session of ours is one of GrootFS's, in its order, with the same configuration.
fn compare_logs(command: &str, recorded: &str, ours: &str) {
    let theirs: Vec<_> = recorded.lines().filter_map(line).collect();
    let mut left = theirs.iter();
    let mut count = 0;
    for text in ours.lines() {
        let own = line(text).unwrap_or_else(|| panic!("{command}: {text}"));
        // What the store says has no session.
        if own[2].is_empty() {
            continue;
        }
        count += 1;
        let cut = recorded.trim_end().ends_with('…');
        assert!(left.any(|theirs| *theirs == own) || cut, "{command}: {own:?} is not in\n{theirs:#?}");
    }
    assert!(count > 0, "{command}: nothing is logged");
}

/// A registry with the images of Docker Hub that the recordings name.
fn docker_hub(world: &World) -> Registry {
    let registry = Registry::start();
    let image = |tars: &[&[u8]], env: &[&str]| {
        let ids: Vec<_> = tars.iter().map(|tar| format!("sha256:{}", digest(tar))).collect();
        let blobs = tars.iter().map(|tar| grootfs_images::gzip(tar)).collect();
        Image::made(DOCKER, blobs, &ids, &serde_json::json!({"Env": env}))
    };
    let busybox = std::fs::read(world.path("rootfs/busybox.tar")).unwrap();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    for tag in ["1.37.0", "latest"] {
        registry.push("library/busybox", tag, &image(&[&busybox], &[path]));
    }
    let env = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/bin:/from-dockerfile",
        "TEST=second-test-from-dockerfile:test-from-dockerfile",
    ];
    let layers = [tar_of(&[("one", b"1")]), tar_of(&[("two", b"2")])];
    registry.push("cloudfoundry/garden-rootfs", "latest", &image(&[&layers[0], &layers[1]], &env));
    registry
}

struct Player {
    world: World,
    differences: BTreeMap<usize, (Why, i32, &'static str)>,
    wrong: Vec<String>,
    registry: Registry,
    /// Its door with a certificate that nobody trusts.
    untrusted: String,
}

impl Player {
    fn new(differences: &[Difference]) -> Self {
        let world = World::new();
        grootfs_images::make(world.base());
        let registry = docker_hub(&world);
        let untrusted = registry.door_with_tls();
        let each = differences.iter().flat_map(|(runs, why, code, out)| {
            runs.iter().map(|run| (*run, (*why, *code, *out))).collect::<Vec<_>>()
        });
        Self { world, differences: each.collect(), wrong: Vec::new(), registry, untrusted }
    }

    fn play(&mut self, number: usize, run: &Run) {
        let base = self.world.base().to_str().unwrap().to_owned();
        let command = run.command.replace(RECORDED_IN, &base);
        // The recording has words that only an interactive shell leaves alone.
        let command = command.replace("chmod 755 s2; chown 0 s2;", "true;");
        self.world.docker_hub_is(if run.note.contains("unknown CA") || run.command.contains("unknown CA") {
            &self.untrusted
        } else {
            &self.registry.host
        });
        let command =
            command.replace("docker://registry-1.docker.io", &format!("docker://{}", self.untrusted));
        let command = match command.contains(&self.untrusted) {
            true => command.replace(
                "--insecure-registry registry-1.docker.io",
                &format!("--insecure-registry {}", self.untrusted),
            ),
            false => command,
        };
        let said = self.world.shell(&command);
        let (recorded, ours) = (normal(&run.out, &base), normal(&said.out, &base));
        let recorded = recorded.strip_suffix('…').unwrap_or(&recorded);
        let cut = run.out.trim_end().ends_with('…');
        let same =
            said.code == Some(run.code) && if cut { ours.starts_with(recorded) } else { ours == recorded };
        let text =
            format!("{number}: {}\n  recorded {} {recorded:?}\n  ours {said:?}", run.command, run.code);
        match self.differences.get(&number) {
            None if !same => self.wrong.push(format!("an unknown difference: {text}")),
            Some((why, ..)) if same && *why != Why::Host => {
                self.wrong.push(format!("no difference any more ({why:?}): {text}"));
            }
            // A limit that is enforced.
            Some((Why::Host, ..)) if said.code == Some(0) => {}
            Some((why, code, out)) if !same && (said.code != Some(*code) || !said.out.contains(out)) => {
                self.wrong.push(format!("another difference ({why:?}, {code}, {out:?}): {text}"));
            }
            _ => {}
        }
        if self.differences.contains_key(&number)
            || !run.command.trim_start_matches("bin/").starts_with("grootfs")
        {
            return;
        }
        if run.err.starts_with('{') && run.command.contains("--log-level") {
            compare_logs(&run.command, &run.err, &said.err);
        } else if normal(&said.err, &base) != normal(&run.err, &base) {
            self.wrong.push(format!("another standard error, not {:?}: {text}", run.err));
        }
    }

    fn end(self, runs: usize) {
        let listed: BTreeSet<usize> = self.differences.keys().copied().collect();
        assert!(listed.iter().all(|number| (1..=runs).contains(number)));
        assert!(self.wrong.is_empty(), "{} of {runs}:\n{}", self.wrong.len(), self.wrong.join("\n"));
        self.world.finish();
    }
}

#[test]
fn runs_on_one_store_are_as_recorded() {
    needs!(Registry);
    let runs = runs_of_one_store();
    assert_eq!(runs.len(), RUNS.0);
    let mut player = Player::new(OF_ONE_STORE);
    for (index, run) in runs.iter().enumerate() {
        if index + 1 == 173 {
            // The recording did so between its runs.
            player.world.shell("mv s2/st/meta/ns.bak s2/st/meta/namespace.json");
        }
        player.play(index + 1, run);
    }
    player.end(runs.len());
}

#[test]
fn runs_with_fresh_stores_are_as_recorded() {
    needs!(Registry);
    let runs = runs_with_fresh_stores();
    assert_eq!(runs.len(), RUNS.1);
    let mut player = Player::new(OF_FRESH_STORES);
    for (index, run) in runs.iter().enumerate() {
        let number = index + 1;
        if run.note == "fresh store" || matches!(number, 49 | 51 | 53 | 55 | 58) {
            player.world.fresh("s3/st");
        }
        player.play(number, run);
        if run.command.contains("--with-clean") {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    player.end(runs.len());
}
