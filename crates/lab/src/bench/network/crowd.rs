//! Creates beside many containers, and the memory that these take, with a network and without.

use super::{REFILL, SETTLED, Server, create, medians};
use crate::bench::{Figures, field, rss};
use crate::progress::Progress;
use crate::report::{median, percentile};
use anyhow::{Context, Result};
use tokio::task::JoinSet;
use wardian_garden::wire::Operation;

/// Number of creates on each server.
const TURNS: usize = 60;
/// Number of clients that create and destroy the crowd.
const CLIENTS: usize = 8;

/// Creates, and what they were made of.
#[derive(Default)]
struct Creates {
    times: Vec<f64>,
    operations: Vec<Operation>,
}

impl Creates {
    /// Creates a container and destroys it.
    async fn one(&mut self, server: &Server, handle: &str) -> Result<()> {
        tokio::time::sleep(REFILL).await;
        self.times.push(server.create(handle).await?);
        self.operations.push(server.created(handle).await?);
        server.destroy(handle).await
    }

    fn told(&self) -> String {
        format!(
            "{:.2} ms ({:.2} to {:.2})",
            median(&self.times),
            percentile(&self.times, 25.0),
            percentile(&self.times, 75.0)
        )
    }
}

/// Measures with a network and without; of each pair of servers the first gets the crowd, and the second has no
/// containers.
pub async fn measure(
    pairs: [(&Server, &Server); 2],
    count: usize,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    figures.notes.push(format!("The crowd: {count} containers without processes but their pid 1."));
    let names = [
        [
            "with a network",
            "create beside a crowd, of without, by turns",
            "create without containers, of before the crowd",
            "kernel memory of a container",
            "server memory of a container",
        ],
        [
            "without a network",
            "create beside a crowd, without a network",
            "without containers or a network, of before",
            "kernel memory of a container without a network",
            "server memory of a container without a network",
        ],
    ];
    for ((busy, quiet), [which, ratio, since, kernel, server]) in pairs.into_iter().zip(names) {
        progress.say(&format!("{count} containers, {which}"));
        let (mut before, mut few, mut many) = (Creates::default(), Creates::default(), Creates::default());
        for n in 0..TURNS {
            before.one(quiet, &format!("bench-before-{n}")).await?;
        }
        let pid = busy.server.pid().context("the server has died")?;
        tokio::time::sleep(SETTLED).await;
        let (slab, resident) = (slab()?, rss(pid)?);
        fill(busy, count).await?;
        tokio::time::sleep(SETTLED).await;
        let each = |mb: f64| mb * 1024.0 / count as f64;
        figures.put(kernel, "KiB", None, None, each(self::slab()? - slab));
        figures.put(server, "KiB", None, None, each(rss(pid)? - resident));
        for n in 0..TURNS {
            few.one(quiet, &format!("bench-few-{n}")).await?;
            many.one(busy, &format!("bench-many-{n}")).await?;
        }
        figures.put(ratio, "ratio", 1.1, None, median(&many.times) / median(&few.times));
        // Not by turns, but what slows creates of all servers on the host down shows only here.
        figures.put(since, "ratio", None, None, median(&few.times) / median(&before.times));
        figures.notes.push(format!(
            "Creates {which}, p50 (middle half): {} before there was a crowd; beside it {} on a server without \
             containers and {} on the crowd's.",
            before.told(),
            few.told(),
            many.told()
        ));
        figures.notes.push(format!("Their phases, in ms: {}.", compared(&before, &few, &many)));
        empty(busy, count).await?;
        tokio::time::sleep(SETTLED).await;
    }
    Ok(())
}

/// The medians of each phase in three situations.
fn compared(before: &Creates, few: &Creates, many: &Creates) -> String {
    let [before, few, many] = [before, few, many].map(|creates| medians(&creates.operations));
    let phases = before.iter().zip(few).zip(many);
    let told: Vec<String> = phases
        .map(|(((name, before), (_, few)), (_, many))| format!("{name} {before:.2}, {few:.2}, {many:.2}"))
        .collect();
    told.join("; ")
}

/// The kernel's memory for its own structures, in MB: slab caches, and what each processor has of its own.
fn slab() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    Ok(field(&text, "Slab") + field(&text, "Percpu"))
}

async fn fill(server: &Server, count: usize) -> Result<()> {
    let mut tasks = JoinSet::new();
    for first in 0..CLIENTS {
        let (client, image) = (server.client.clone(), server.image.clone());
        tasks.spawn(async move {
            for n in (first..count).step_by(CLIENTS) {
                create(&client, &image, &format!("bench-crowd-{n}")).await?;
            }
            anyhow::Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

async fn empty(server: &Server, count: usize) -> Result<()> {
    let mut tasks = JoinSet::new();
    for first in 0..CLIENTS {
        let client = server.client.clone();
        tasks.spawn(async move {
            for n in (first..count).step_by(CLIENTS) {
                client.destroy(&format!("bench-crowd-{n}")).await?;
            }
            anyhow::Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_garden::wire::Step;

    #[test]
    fn phases_are_compared() {
        let creates = |ms| Creates {
            times: vec![ms],
            operations: vec![Operation {
                steps: vec![Step { name: "launch".into(), begin_ms: 0.0, ms }],
                ..Operation::default()
            }],
        };
        assert_eq!(compared(&creates(3.0), &creates(3.5), &creates(4.8)), "launch 3.00, 3.50, 4.80");
    }
}
