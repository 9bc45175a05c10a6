//! A Garden server as a source. It tells most of a wardian; of another server it tells what the Garden API has.

use super::host::Looker;
use super::usage::{Memory, clip, now_ms, of_bulk, of_handles};
use super::{Happening, Host, Live, News, Seen, Server, Store};
use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};
use wardian_garden::wire::{Container, Event, History, Operation, ServerInfo, Usage};
use wardian_garden::{Client, Error};

/// The time from one look to the next, …
const PERIOD: Duration = Duration::from_secs(1);
/// … and the least, if something happens meanwhile.
const LEAST: Duration = Duration::from_millis(500);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the server is asked for what changes seldom: its version, its store.
const SELDOM: Duration = Duration::from_secs(3);
/// How often all containers are asked for if nothing happens.
const LIST: Duration = Duration::from_secs(5);
/// The time from one attempt to hear of events to the next.
const RETRY: Duration = Duration::from_secs(2);
/// Phases that are asked for at a time; events above this number are told without.
const DETAILS: usize = 8;
/// Handles of a bulk request.
const BULK: usize = 100;
/// Phases of one operation that are told.
const PHASES: usize = 32;

/// A Garden server.
#[derive(Debug)]
pub struct Garden {
    client: Arc<Client>,
    address: String,
    is_here: bool,
}

impl Garden {
    /// The server of this client. `is_here`: it is on this host, whose figures are shown beside it.
    pub fn new(client: Client, address: String, is_here: bool) -> Self {
        Self { client: Arc::new(client), address, is_here }
    }
}

impl Live for Garden {
    fn tell<'a>(&'a self, to: mpsc::Sender<News>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let happened = Notify::new();
            let looks = Looks {
                garden: self,
                memory: Memory::default(),
                host: self.is_here.then(Looker::new),
                info: None,
                containers: None,
                is_wardian: true,
            };
            tokio::select! {
                () = looks.look_on(&to, &happened) => {}
                () = self.hear_on(&to, &happened) => {}
            }
        })
    }
}

/// Why a look failed, as the page tells it.
type Failure = String;

async fn within<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<Result<T, Error>, Failure> {
    timeout(PATIENCE, answer).await.map_err(|_| format!("no answer for {} s", PATIENCE.as_secs()))
}

/// Whether a server does not know a request that is wardian's own.
fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Status { .. })
}

/// One listener's looks at the server.
struct Looks<'a> {
    garden: &'a Garden,
    memory: Memory,
    host: Option<Looker>,
    info: Option<(Instant, ServerInfo)>,
    containers: Option<(Instant, Vec<Container>)>,
    is_wardian: bool,
}

impl Looks<'_> {
    /// Looks once a second, and soon after something has happened.
    async fn look_on(mut self, to: &mpsc::Sender<News>, happened: &Notify) {
        loop {
            let begun = Instant::now();
            let seen = self.look().await;
            if to.send(News::Seen(Box::new(seen))).await.is_err() {
                return;
            }
            let soon = async {
                happened.notified().await;
                sleep(LEAST.saturating_sub(begun.elapsed())).await;
            };
            tokio::select! {
                () = soon => self.containers = None,
                () = sleep(PERIOD.saturating_sub(begun.elapsed())) => {}
            }
        }
    }

    async fn look(&mut self) -> Seen {
        let host: Option<Host> = self.host.as_mut().map(Looker::look);
        let looked = self.rows().await;
        let at_ms = now_ms();
        match looked {
            Ok((containers, usages)) => {
                let rows = self.memory.rows(&containers, usages, at_ms);
                self.containers.get_or_insert((Instant::now(), containers));
                Seen { at_ms, server: Some(self.server()), down: None, host, rows }
            }
            Err(reason) => {
                (self.info, self.containers, self.is_wardian) = (None, None, true);
                Seen { at_ms, server: None, down: Some(clip(&reason)), host, rows: Vec::new() }
            }
        }
    }

    /// Returns the containers and what they use.
    async fn rows(&mut self) -> Result<(Vec<Container>, Vec<Usage>), Failure> {
        let client = &self.garden.client;
        if self.info.as_ref().is_none_or(|(when, _)| when.elapsed() >= SELDOM) {
            self.info = match within(client.info_of_server()).await? {
                Ok(info) => Some((Instant::now(), info)),
                Err(error) if is_unknown(&error) => None,
                Err(error) => return Err(error.to_string()),
            };
        }
        if self.is_wardian {
            match within(client.usages()).await? {
                Ok(usages) => {
                    let listed = self.listed(&usages).await?;
                    return Ok((listed, usages));
                }
                Err(error) if is_unknown(&error) => self.is_wardian = false,
                Err(error) => return Err(error.to_string()),
            }
        }
        let handles = within(client.list(&BTreeMap::new())).await?.map_err(|error| error.to_string())?;
        let mut usages = Vec::new();
        // Handles are separated by commas.
        let plain: Vec<&str> =
            handles.iter().map(String::as_str).filter(|handle| !handle.contains(',')).collect();
        for some in plain.chunks(BULK) {
            let bulk = within(client.bulk_metrics(some)).await?.map_err(|error| error.to_string())?;
            usages.extend(of_bulk(&bulk));
        }
        Ok((of_handles(&handles), usages))
    }

    /// Returns all containers: those of the look before, unless others are in use now.
    async fn listed(&mut self, usages: &[Usage]) -> Result<Vec<Container>, Failure> {
        if let Some((when, known)) = self.containers.take() {
            let ids: HashSet<&str> = known.iter().map(|container| container.id.as_str()).collect();
            if when.elapsed() < LIST && usages.iter().all(|usage| ids.contains(usage.id.as_str())) {
                self.containers = Some((when, known.clone()));
                return Ok(known);
            }
        }
        within(self.garden.client.containers(&BTreeMap::new())).await?.map_err(|error| error.to_string())
    }

    fn server(&self) -> Server {
        let address = self.garden.address.clone();
        let Some((_, info)) = &self.info else { return Server { address, ..Server::default() } };
        let store = &info.store;
        // Earlier versions have not told the number of layers.
        let tells = self.is_wardian && (store.layers > 0 || store.layers_bytes == 0);
        Server {
            address,
            version: clip(&info.version),
            kernel: clip(&info.kernel),
            cgroups: clip(&info.cgroups),
            disk_driver: clip(&info.disk_driver),
            store: Some(Store {
                images: store.images,
                layers: tells.then_some(store.layers),
                layers_bytes: store.layers_bytes,
                fragile: tells.then_some(store.fragile_layers),
                suspect: tells.then_some(store.suspect_layers),
                trash: tells.then_some(store.trash),
                available_bytes: store.available_bytes,
            }),
        }
    }
}

impl Garden {
    /// Tells events, and tries again when they end.
    async fn hear_on(&self, to: &mpsc::Sender<News>, happened: &Notify) {
        let details = Arc::new(Semaphore::new(DETAILS));
        loop {
            if let Ok(Ok(mut events)) = within(self.client.events(None, None, None)).await {
                while let Ok(Some(event)) = events.next().await {
                    happened.notify_one();
                    if self.pass_on(event, to, &details).await.is_err() {
                        return;
                    }
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Tells an event; that of a create or destroy once its phases are known.
    async fn pass_on(
        &self,
        event: Event,
        to: &mpsc::Sender<News>,
        details: &Arc<Semaphore>,
    ) -> Result<(), mpsc::error::SendError<News>> {
        let happening = happening(&event);
        let is_operation = matches!(event.event.as_str(), "create" | "destroy");
        let turn = is_operation.then(|| details.clone().try_acquire_owned().ok()).flatten();
        let Some(turn) = turn else { return to.send(News::Happened(happening)).await };
        let (client, to) = (self.client.clone(), to.clone());
        tokio::spawn(async move {
            let _turn = turn;
            let history = within(client.history(&event.handle)).await;
            let mut happening = happening;
            if let Ok(Ok(history)) = history {
                describe(&mut happening, &history);
            }
            // Fails if nobody listens any more.
            let _ = to.send(News::Happened(happening)).await;
        });
        Ok(())
    }
}

fn happening(event: &Event) -> Happening {
    Happening {
        at_ms: if event.time_ms > 0 { event.time_ms } else { now_ms() },
        what: clip(&event.event),
        handle: clip(&event.handle),
        id: event.id.clone(),
        process: event.process.as_deref().map(clip),
        status: event.status,
        reason: event.reason.as_deref().map(clip),
        lost: event.lost,
        ..Happening::default()
    }
}

/// Adds the durations of a create or destroy, if the history is that of the same container.
fn describe(happening: &mut Happening, history: &History) {
    let operation: Option<&Operation> = match happening.what.as_str() {
        "create" => history.create.as_ref(),
        _ => history.destroy.as_ref(),
    };
    let Some(operation) = operation.filter(|operation| operation.id == happening.id) else { return };
    happening.ms = Some(operation.ms);
    let steps = operation.steps.iter().take(PHASES);
    happening.phases = steps.map(|step| (clip(&step.name), step.ms)).collect();
}
