//! After a start: find the containers that live, undo what was half made.

use crate::container::Container;
use crate::container::lifecycle;
use crate::container::record::{Phase, Record};
use crate::keeper::{self, Keeper};
use crate::process::Process;
use crate::{Engine, destroy, sweeper};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use wardian_runtime::wire::{self, Feature, Hello};
use wardian_sys::packet;

type Events = tokio::sync::mpsc::UnboundedReceiver<keeper::Event>;
/// A keeper that has answered: its events, the container's pid 1, its processes.
type Greeted = (Keeper, Events, Option<i32>, Vec<wire::ProcessState>);

/// A keeper that does not say hello by then is taken for dead.
const HELLO: Duration = Duration::from_secs(5);

impl Engine {
    /// Take up every container on record; end the rest.
    pub(crate) async fn restore(&self, found: Vec<(String, Option<Record>)>) {
        // All at the same time: a keeper that does not answer holds up nobody else.
        let mut tasks = tokio::task::JoinSet::new();
        for (id, record) in found {
            let engine = self.clone();
            tasks.spawn(async move {
                match record {
                    Some(record) => engine.take_up(record).await,
                    None => {
                        engine.sweep_unknown(id).await;
                        None
                    }
                }
            });
        }
        let containers: Vec<Option<Arc<Container>>> = tasks.join_all().await;
        self.sweep_cgroups_of_peas();
        // Nothing waits for what their programs print, and there may be much of it.
        containers.iter().flatten().for_each(|container| container.read_ahead());
    }

    /// A container without a record.
    async fn sweep_unknown(&self, id: String) {
        if let Ok((keeper, _)) = self.keeper_of(&id) {
            drop(tokio::time::timeout(HELLO, keeper.destroy()).await);
        }
        let shared = self.shared.clone();
        let sweep = move || {
            destroy::end_by_force(&shared, &id);
            sweeper::sweep(&shared, &id);
        };
        drop(tokio::task::spawn_blocking(sweep).await);
    }

    /// Its keeper, or why there is none.
    fn keeper_of(&self, id: &str) -> Result<(Keeper, Events), String> {
        let dir = self.shared.records.container(id).map_err(|e| e.to_string())?;
        match packet::connect_at(dir.as_fd(), "keeper.sock") {
            Ok(socket) => Keeper::new(socket).map_err(|e| e.to_string()),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Err("its keeper has ended".to_owned()),
            Err(Errno::AGAIN) => Err("its keeper does not answer".to_owned()),
            Err(error) => Err(format!("its keeper cannot be reached: {error}")),
        }
    }

    async fn greet(&self, container: &Container) -> Result<Greeted, String> {
        let (keeper, events) = self.keeper_of(&container.id)?;
        let answer = tokio::time::timeout(HELLO, keeper.hello()).await;
        match answer {
            Ok(Ok(Hello { version, pid, .. })) if version > wire::VERSION => {
                container.kept_by(pid);
                Err(format!(
                    "its keeper speaks version {version}, this server understands up to {}: start a later one",
                    wire::VERSION
                ))
            }
            Ok(Ok(Hello { init, pid, processes, .. })) => {
                container.kept_by(pid);
                let list = std::io::BufReader::new(std::fs::File::from(processes));
                let processes = serde_json::from_reader(list)
                    .map_err(|e| format!("its keeper does not say which processes it has: {e}"))?;
                Ok((keeper, events, init, processes))
            }
            Ok(Err(keeper::Error::Gone)) => Err("its keeper has ended".to_owned()),
            Ok(Err(error)) => Err(format!("its keeper: {error}")),
            Err(_) => Err("its keeper does not answer".to_owned()),
        }
    }

    async fn take_up(&self, record: Record) -> Option<Arc<Container>> {
        let container = Arc::new(Container::new(record.clone()));
        container.has_ids(self.shared.ids.kept(record.owner, record.range));
        let hello = self.greet(&container).await;
        if record.phase == Phase::Creating {
            if let Ok((keeper, ..)) = hello {
                drop(container.happens(lifecycle::Event::Launched(keeper)));
            }
            // What does not end now can be destroyed later, by its handle, unless a whole container has that.
            self.shared.lock().entry(record.handle).or_insert_with(|| container.clone());
            self.undo(&container).await;
            return None;
        }
        if let Some(made) = &record.made {
            self.shared.history.add(made.clone());
        }
        self.shared.lock().insert(record.handle.clone(), container.clone());
        self.renew_device_rules(&record).await;
        let (keeper, events, init, processes) = match hello {
            Ok(hello) => hello,
            Err(reason) => {
                container.lost(None, &reason);
                return None;
            }
        };
        match init {
            Some(init) => {
                container.launched(init);
                drop(container.happens(lifecycle::Event::Answered(keeper.clone())));
            }
            None => drop(container.lost(Some(keeper.clone()), "its init has ended")),
        }
        if !keeper.has(Feature::Confinement) {
            let text = "it was made by an earlier version: no seccomp filter, and what else is new, until it is made anew";
            tracing::warn!(handle = record.handle, id = record.id, text, "restore.earlier-keeper");
        }
        for state in processes {
            let process = Process::new(state.id.clone(), keeper.clone());
            if let Ok(started) = keeper.attach(&state.id).await
                && let Err(error) = process.connect(started.stdio).await
            {
                tracing::warn!(handle = record.handle, process = state.id, %error, "restore.process-without-io");
            }
            drop(container.add_process(&process));
            if let Some(status) = state.status {
                drop(container.process_ended(&state.id, status));
            }
            container.tell_start(&self.shared.events, &process, true);
        }
        self.restore_peas(&container);
        self.watch(&container, events);
        tracing::info!(handle = record.handle, id = record.id, "restore.found");
        Some(container)
    }

    /// A server that knew no device rules may have made it.
    async fn renew_device_rules(&self, record: &Record) {
        let (shared, id, devices) = (self.shared.clone(), record.id.clone(), record.privileged.into());
        let renewed = tokio::task::spawn_blocking(move || shared.cgroups.renew(&id, devices)).await;
        // It runs, and whoever relies on it shall not lose it; but this must be seen.
        if let Ok(Err(error)) = renewed {
            tracing::error!(handle = record.handle, id = record.id, %error, "restore.device-rules");
        }
    }
}
