//! Diagnosis of slow creates, destroys and ends of peas: writeback and waiting threads are recorded while the operation
//! lasts.
//!
//! Nothing is recorded before an operation is slow: other operations cost one timer.

use crate::history::Kind;
use crate::{Engine, Shared};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::time::timeout;
use wardian_recorder::{Diagnosis, Options, Recorder, Watch, unnamed};

/// From this duration on an operation is slow: on a healthy host none takes so long.
const SLOW: Duration = Duration::from_millis(100);
/// The least time between two trims of the heap: a trim delays other threads that allocate.
const TRIM: Duration = Duration::from_secs(10);
/// The longest recording: a cause that has not shown by then is not looked for any longer.
const LONGEST: Duration = Duration::from_secs(10);

impl Engine {
    /// Records this operation if it becomes slow, until the returned sender is dropped. `process` is that of the pea
    /// which ends, if one does. The recording covers the threads of `keeper` and its descendants; for `None`, those of
    /// this server.
    pub(crate) fn look_if_slow(
        &self,
        kind: Kind,
        id: &str,
        process: Option<&str>,
        keeper: Option<i32>,
    ) -> oneshot::Sender<()> {
        let (end, mut ended) = oneshot::channel::<()>();
        let of = Of { kind, id: id.to_owned(), process: process.map(str::to_owned) };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if timeout(SLOW, &mut ended).await.is_ok() {
                return;
            }
            // One recording at a time. An operation that is still slow when its turn comes is recorded from
            // then on.
            let _looking = tokio::select! {
                looking = shared.looking.clone().lock_owned() => looking,
                _ = &mut ended => return,
            };
            if let Err(error) = look(&shared, &of, keeper, ended).await {
                tracing::warn!(id = of.id, %error, "slow.not-recorded");
            }
        });
        end
    }
}

/// The operation that is looked at.
struct Of {
    kind: Kind,
    id: String,
    process: Option<String>,
}

async fn look(
    shared: &Arc<Shared>,
    of: &Of,
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
    let Of { kind, id, process } = of;
    tracing::warn!(id, ?kind, process, verdict = diagnosis.verdict, "slow");
    shared.history.explain(*kind, id, process.as_deref(), diagnosis);
    Ok(())
}

/// Gives memory back to the kernel: a recording takes megabytes, from a different arena of the allocator each
/// time.
fn give_back() {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock();
    if last.is_none_or(|then| then.elapsed() >= TRIM) {
        wardian_sys::heap::trim();
        *last = Some(Instant::now());
    }
}
