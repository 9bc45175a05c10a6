use super::features::{Feature, Features, State};
use super::filesystem::{FileSystem, LoopFile, ThinPool};
use super::*;

/// A host without problems.
fn healthy() -> Facts {
    let filesystem = FileSystem {
        root: "/var/lib/wardian".into(),
        looked_at: "/var/lib".into(),
        mount_point: "/".into(),
        kind: "ext4".into(),
        options: vec!["rw".into()],
        total_bytes: 1000 << 30,
        available_bytes: 500 << 30,
        inodes: 1000,
        available_inodes: 500,
        journal: Some(true),
        ..FileSystem::default()
    };
    let all = || ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
    Facts {
        root: true,
        run_filesystem: "tmpfs".into(),
        cgroups: cgroups::Cgroups { version: "v2", v2: all(), ..Default::default() },
        filesystem,
        ..Facts::default()
    }
}

fn feature(name: &'static str, state: State, needed: bool) -> Feature {
    Feature { name, state, needed, detail: String::new() }
}

fn collision(is_inside: bool) -> network::Collision {
    network::Collision { network: "10.0.0.0/8".into(), link: Some("tun0".into()), is_inside }
}

fn pool(data_percent: u64, mode: &str, free_bytes: u64) -> ThinPool {
    ThinPool { data_percent, mode: mode.into(), free_bytes, ..ThinPool::default() }
}

#[test]
fn nothing_is_wrong_with_a_healthy_host() {
    assert_eq!(Report::new(healthy()).hazards, []);
}

#[test]
fn each_hazard_is_found() {
    type Harm = fn(&mut Facts);
    let cases: [(&str, Severity, Harm); 36] = [
        ("not-probed", Severity::Warning, |f| f.root = false),
        ("missing-feature", Severity::Error, |f| {
            f.features = Features(vec![feature("overlay", State::No, true)]);
        }),
        ("missing-capability", Severity::Error, |f| {
            f.missing_capabilities = machine::missing("CapEff:\t000001ffffdfffff\n");
        }),
        ("missing-capability", Severity::Note, |f| {
            f.missing_capabilities = machine::missing("CapEff:\t000001fffeffffff\n");
        }),
        ("missing-controller", Severity::Warning, |f| f.cgroups.v2 = vec!["cpu".into(), "memory".into()]),
        ("read-only", Severity::Error, |f| f.filesystem.read_only = true),
        ("certificate", Severity::Warning, |f| f.certificates = vec!["/x: it ran out".into()]),
        ("open-store", Severity::Error, |f| {
            f.store_doubt = Some(place::Doubt { evidence: "/x".into(), remedy: "chmod".into() });
        }),
        ("low-space", Severity::Warning, |f| f.filesystem.available_bytes = 99 << 30),
        ("low-space", Severity::Error, |f| f.filesystem.available_bytes = 9 << 30),
        ("low-inodes", Severity::Warning, |f| f.filesystem.available_inodes = 99),
        ("low-inodes", Severity::Error, |f| f.filesystem.available_inodes = 0),
        ("discard", Severity::Warning, |f| f.filesystem.discard = true),
        ("no-journal", Severity::Warning, |f| f.filesystem.journal = Some(false)),
        ("loop-overcommitted", Severity::Warning, |f| {
            let file = LoopFile { size_bytes: 10, allocated_bytes: 4, available_bytes: 5, path: "/f".into() };
            f.filesystem.loop_file = Some(file);
        }),
        ("thin-pool-full", Severity::Warning, |f| f.filesystem.thin_pools = vec![pool(90, "rw", u64::MAX)]),
        ("thin-pool-full", Severity::Error, |f| {
            f.filesystem.thin_pools = vec![pool(5, "out_of_data_space", u64::MAX)];
        }),
        ("thin-pool-overcommitted", Severity::Warning, |f| {
            f.filesystem.thin_pools = vec![pool(5, "rw", 499 << 30)];
        }),
        ("unseen-writeback-error", Severity::Warning, |f| f.unseen_error = true),
        ("lost-writes", Severity::Warning, |f| f.remains.lost_writes = vec!["a".into()]),
        ("limits-overcommitted", Severity::Warning, |f| f.remains.images_may_take = u64::MAX),
        ("volatile-markers", Severity::Warning, |f| f.remains.markers = vec!["/x".into()]),
        ("syncing-overlays", Severity::Warning, |f| f.overlays.syncing = [("docker", 2)].into()),
        ("long-sync", Severity::Note, |f| f.dirty.sync_worst_s = Some(14.0)),
        ("run-on-disk", Severity::Note, |f| f.run_filesystem = "ext4".into()),
        ("small-limit", Severity::Note, |f| {
            f.limits =
                vec![limits::Limit { name: "kernel.pid_max", value: 400, wanted: 4000, reached: "it ends" }];
        }),
        ("leaks", Severity::Warning, |f| f.leaks = 3),
        ("no-network", Severity::Warning, |f| {
            f.features = Features(vec![feature("firewall", State::No, false)]);
        }),
        ("no-forwarding", Severity::Note, |f| f.network.forwarding = Some(false)),
        ("no-forwarding", Severity::Warning, |f| {
            (f.network.forwarding, f.network.in_use) = (Some(false), true);
        }),
        ("foreign-firewall", Severity::Warning, |f| {
            f.network.drops =
                vec![network::Drop { chain: "ip filter FORWARD".into(), remedy: "iptables".into() }];
        }),
        ("address-collision", Severity::Warning, |f| f.network.collisions = vec![collision(true)]),
        ("no-name-server", Severity::Note, |f| f.network.no_name_server = Some("none".to_owned())),
        ("address-collision", Severity::Note, |f| f.network.collisions = vec![collision(false)]),
        ("bridge-filter", Severity::Note, |f| f.network.filters_bridges = true),
        ("network-unknown", Severity::Note, |f| f.network.unknown = vec!["netlink".into()]),
    ];
    for (id, severity, harm) in cases {
        let mut facts = healthy();
        harm(&mut facts);
        let report = Report::new(facts);
        let found: Vec<_> = report.hazards.iter().map(|hazard| (hazard.id, hazard.severity)).collect();
        assert_eq!(found, [(id, severity)]);
        assert!(report.hazards.iter().all(|h| !h.evidence.is_empty() && !h.remedy.is_empty()), "{id}");
        assert_eq!(report.worst(), Some(severity));
        assert!(report.text(false, false).contains(id), "{id}");
        assert!(include_str!("../../../../docs/doctor.md").contains(&format!("`{id}`")), "{id}");
    }
}

#[test]
fn what_is_enough_is_no_hazard() {
    for harm in [
        |f: &mut Facts| f.filesystem.available_bytes = 100 << 30,
        |f: &mut Facts| f.filesystem.inodes = 0,
        |f: &mut Facts| f.filesystem.journal = None,
        |f: &mut Facts| f.filesystem.thin_pools = vec![pool(89, "rw", 500 << 30)],
        |f: &mut Facts| f.dirty.sync_worst_s = Some(4.9),
        |f: &mut Facts| f.features = Features(vec![feature("erofs", State::No, false)]),
        |f: &mut Facts| f.features = Features(vec![feature("bandwidth_limits", State::No, false)]),
        |f: &mut Facts| f.network.forwarding = Some(true),
        |f: &mut Facts| f.features = Features(vec![feature("overlay", State::Unknown, true)]),
        |f: &mut Facts| {
            let file = LoopFile { size_bytes: 10, allocated_bytes: 4, available_bytes: 6, path: "/f".into() };
            f.filesystem.loop_file = Some(file);
        },
    ] {
        let mut facts = healthy();
        harm(&mut facts);
        assert_eq!(Report::new(facts).hazards, []);
    }
}

#[test]
fn the_worst_comes_first_and_many_are_counted() {
    let mut facts = healthy();
    facts.run_filesystem = "ext4".into();
    facts.filesystem.discard = true;
    facts.filesystem.read_only = true;
    facts.remains.lost_writes = (0..5).map(|n| format!("c{n}")).collect();
    let report = Report::new(facts);
    let ids: Vec<_> = report.hazards.iter().map(|hazard| hazard.id).collect();
    assert_eq!(ids, ["read-only", "discard", "lost-writes", "run-on-disk"]);
    assert!(report.hazards[2].evidence.ends_with("c0, c1, c2 and 2 more"), "{:?}", report.hazards[2]);
    let text = report.text(false, false);
    assert!(text.starts_with("Containers cannot run here. 1 error, 2 warnings, 1 note."), "{text}");
}

#[test]
fn the_text_is_plain_unless_asked() {
    let mut facts = healthy();
    facts.filesystem.root = "/srv/a\x1b[2Jb".into();
    facts.features = Features(vec![
        feature("overlay_volatile", State::Yes, true),
        feature("pidfd", State::No, true),
        feature("erofs", State::Unknown, false),
    ]);
    (facts.dirty.sync_worst_s, facts.dirty.sync_now_s) = (Some(14.0), Some(0.0));
    let report = Report::new(facts);
    let text = report.text(true, false);
    assert!(!text.contains('\x1b'), "{text:?}");
    for line in [
        "  ✓ overlay volatile",
        "  ✗ pidfd",
        "  ? erofs",
        "Store at /srv/a\\u{1b}[2Jb",
        "    a sync                        may take ~14 s here, and ~0 s now",
    ] {
        assert!(text.lines().any(|l| l == line.trim_end()), "{line:?} in\n{text}");
    }
    assert!(text.contains("✗ missing-feature: pidfd: \n"), "{text}");
    let colours = report.text(true, true);
    assert!(colours.contains("\x1b[32m✓\x1b[0m overlay"), "{colours:?}");
    assert!(!colours.contains("\x1b[2J"), "{colours:?}");
}
