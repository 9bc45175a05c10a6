//! A create or destroy that takes long is looked at while it lasts: what is written back, and who waits where.
//!
//! Nothing is recorded before an operation is slow, so the others pay one timer for it.

use crate::history::Kind;
use crate::{Engine, Shared};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::time::timeout;
use wardian_recorder::{Diagnosis, Options, Recorder, Watch, unnamed};

/// Nobody waits so long for a container on a healthy host.
const SLOW: Duration = Duration::from_millis(100);
/// Between two times that the allocator is asked to give memory back: that holds up others who allocate.
const TRIM: Duration = Duration::from_secs(10);
/// What has not shown within this time is not looked for any longer.
const LONGEST: Duration = Duration::from_secs(10);

impl Engine {
    /// Look at this operation if it is slow, until what is returned is dropped: at the threads of `keeper` and of what is
    /// below it; `None`: at our own.
    pub(crate) fn look_if_slow(&self, kind: Kind, id: &str, keeper: Option<i32>) -> oneshot::Sender<()> {
        let (end, mut ended) = oneshot::channel::<()>();
        let (shared, id) = (self.shared.clone(), id.to_owned());
        tokio::spawn(async move {
            if timeout(SLOW, &mut ended).await.is_ok() {
                return;
            }
            // One at a time. Whoever is still slow when its turn comes is looked at from then on.
            let _looking = tokio::select! {
                looking = shared.looking.clone().lock_owned() => looking,
                _ = &mut ended => return,
            };
            if let Err(error) = look(&shared, kind, &id, keeper, ended).await {
                tracing::warn!(id, %error, "slow.not-recorded");
            }
        });
        end
    }
}

async fn look(
    shared: &Arc<Shared>,
    kind: Kind,
    id: &str,
    keeper: Option<i32>,
    ended: oneshot::Receiver<()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let watch = keeper.and_then(|pid| u32::try_from(pid).ok()).map_or(Watch::Own, Watch::Tree);
    let options = Options { watch, ..Options::new(&shared.config.root) };
    let recorder = tokio::task::spawn_blocking(move || Recorder::start(options)).await??;
    drop(timeout(LONGEST, ended).await);
    let diagnose = move || {
        let diagnosis = Diagnosis::of(&recorder.finish(), &unnamed);
        give_back();
        diagnosis
    };
    let diagnosis = tokio::task::spawn_blocking(diagnose).await?;
    tracing::warn!(id, ?kind, verdict = diagnosis.verdict, "slow");
    shared.history.explain(kind, id, diagnosis);
    Ok(())
}

/// A recording takes megabytes, and from a different one of the allocator's arenas each time.
fn give_back() {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock();
    if last.is_none_or(|then| then.elapsed() >= TRIM) {
        wardian_sys::heap::trim();
        *last = Some(Instant::now());
    }
}
