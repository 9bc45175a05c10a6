//! What containers leave charged to their memory cgroups: page cache keeps a removed cgroup in the kernel's memory.

use crate::support::{Server, cgroups, sh};
use std::path::Path;
use std::time::{Duration, Instant};

/// More than a flusher needs: what is dirty is written after 30 s, by one that looks every 5 s.
const WRITTEN: Duration = Duration::from_secs(90);

/// How many dead cgroups there may be below this server's own: v2 counts them; v1 tells how many pages of page cache are charged to the
/// top cgroup, in which no process is, less those of the living below it, and each page can keep one. Those of other servers
/// count in neither.
pub fn dead(server: &Server) -> u64 {
    let ends = |dir: &&String| dir.ends_with(&server.group());
    let found = cgroups(&server.group());
    let controls = |dir: &&String| Path::new(dir).join("memory.stat").exists();
    let top = found.iter().filter(ends).find(controls).expect("no memory controller");
    let number = |dir: &Path, file: &str, names: &[&str]| -> u64 {
        let text = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(name, _)| names.contains(name)).map(|(_, value)| value.parse::<u64>().unwrap()).sum()
    };
    let top = Path::new(top);
    if top.join("cgroup.stat").exists() {
        return number(top, "cgroup.stat", &["nr_dying_descendants"]);
    }
    let pages = |dir: &Path| number(dir, "memory.stat", &["total_active_file", "total_inactive_file"]) / 4096;
    let living = found.iter().map(Path::new).filter(|dir| dir.parent() == Some(top));
    pages(top).saturating_sub(living.map(pages).sum())
}

/// Wait until no cgroup is kept for its page cache any more.
pub async fn until_dropped(server: &Server) {
    let kept = || {
        let mode = |dir: &String| {
            let found = std::fs::metadata(dir);
            found.map_or(0, |found| std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o077)
        };
        cgroups(&server.group()).iter().filter(|dir| Path::new(dir).exists() && mode(dir) == 0).count()
    };
    let started = Instant::now();
    while kept() > 0 {
        assert!(started.elapsed() < WRITTEN, "{} cgroups are kept\n{}", kept(), server.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // The kernel brings its figures up to date every two seconds.
    tokio::time::sleep(Duration::from_millis(2500)).await;
}

/// Each container makes directories, whose blocks are in the page cache of the disk and stay there.
#[tokio::test]
async fn a_hundred_containers_leave_no_dead_cgroups() {
    let server = Server::start().await;
    let before = dead(&server);
    for round in 0..100 {
        let handle = format!("cached{round}");
        let client = server.create(&handle).await;
        let script = "for n in 1 2 3 4; do mkdir -p /new$n/deep; echo x > /new$n/deep/file; done; exit 3";
        assert_eq!(sh(&client, &handle, script).await.code, 3);
        client.destroy(&handle).await.unwrap();
    }
    until_dropped(&server).await;
    // The kernel's figures are older where the processors are busy. What is really kept stays.
    let started = Instant::now();
    while dead(&server) > before + 20 && started.elapsed() < WRITTEN {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let after = dead(&server);
    println!("dead memory cgroups: {before} before, {after} after 100 rounds");
    assert!(
        after <= before + 20,
        "what keeps dead memory cgroups: {before} before, {after} after 100 rounds"
    );
    server.finish().await;
}
