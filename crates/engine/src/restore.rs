//! The start with containers of an earlier server: takes up those that live, and undoes half-made ones.

use crate::container::Container;
use crate::container::lifecycle;
use crate::container::record::{Phase, Record};
use crate::keeper::{self, Keeper};
use crate::process::Process;
use crate::process::about::{About, Ending};
use crate::process::kept::Kept;
use crate::{Engine, Error, destroy, sweeper};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use wardian_runtime::wire::{self, Feature, Hello};
use wardian_sys::packet;

type Events = tokio::sync::mpsc::UnboundedReceiver<keeper::Event>;
/// What a keeper has answered: its connection, its events, the container's pid 1, its processes.
type Greeted = (Keeper, Events, Option<i32>, Vec<wire::ProcessState>);

/// The number of a process's record, what it says, and the output that is kept.
type Recorded = (Option<u64>, Arc<About>, Option<Arc<Kept>>);

/// A keeper that does not answer within this time is taken for dead.
const HELLO: Duration = Duration::from_secs(5);

impl Engine {
    /// Takes up every container with a record; ends those without.
    pub(crate) async fn restore(&self, found: Vec<(String, Option<Record>)>) {
        // All keepers are asked at the same time: one that does not answer delays no other.
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
        let count = containers.iter().flatten().count();
        if count > 0 {
            tracing::info!(count, "restore.done");
            self.shared.events.had_a_past();
        }
        self.sweep_cgroups_of_peas();
        // The output of their processes has no reader yet, and there may be much of it.
        containers.iter().flatten().for_each(|container| container.read_ahead());
    }

    /// Ends a container without a usable record, and sweeps what is left of it.
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

    /// Connects to a container's keeper, or returns why that fails.
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

    /// Returns by their ids the processes of a container that an earlier server has recorded.
    fn recorded(&self, id: &str) -> BTreeMap<String, Recorded> {
        let records = &self.shared.records;
        let of = |(number, about): (u64, About)| {
            let place = || records.output(id, number);
            let kept = (about.keep_output > 0)
                .then(|| Kept::open(place(), &self.shared.kept_output, about.keep_output));
            (about.id.clone(), (Some(number), Arc::new(about), kept))
        };
        records.processes(id).into_iter().map(of).collect()
    }

    async fn take_up(&self, record: Record) -> Option<Arc<Container>> {
        let container = Arc::new(Container::new(record.clone()));
        container.has_ids(self.shared.ids.kept(record.owner, record.range));
        if let Some(network) = &record.network {
            let rules = self.shared.records.egress(&record.id).unwrap_or_default();
            container.set_network(network.clone(), rules);
        }
        let hello = self.greet(&container).await;
        if let Ok((_, _, Some(init), _)) = &hello {
            container.find_namespace(*init);
        }
        if record.phase == Phase::Creating {
            if let Ok((keeper, ..)) = hello {
                drop(container.happens(lifecycle::Event::Launched(keeper)));
            }
            // If the undo fails the container can be destroyed later by its handle, unless a created
            // container has that handle.
            self.shared.lock().entry(record.handle).or_insert_with(|| container.clone());
            self.undo(&container).await;
            return None;
        }
        if let Some(made) = &record.made {
            self.shared.history.restore(made.clone());
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
        let mut recorded = self.recorded(&record.id);
        for state in processes {
            let (number, about, kept) = recorded
                .remove(&state.id)
                .unwrap_or_else(|| (None, Arc::new(About::unknown(state.id.clone())), None));
            let process = Process::new(about.clone(), kept, keeper.clone());
            if about.hold_input {
                process.hold_input();
            }
            self.output_to_files(&container, number, &process).await;
            let connected = match keeper.attach(&state.id).await {
                Ok(started) => process.connect(started.stdio).await,
                Err(error) => Err(Error::keeper("attach")(error)),
            };
            if let Err(error) = connected {
                // An ended process whose output was read has none any more.
                if state.status.is_none() {
                    tracing::warn!(handle = record.handle, process = state.id, %error, "restore.process-without-io");
                }
                process.finish_kept();
            }
            drop(container.add_process(&process, number));
            if let Some(status) = state.status {
                let unknown = Ending { status, at_ms: None, out_of_memory: false };
                let ending = about.ending.filter(|ending| ending.status == status).unwrap_or(unknown);
                drop(container.process_ended(&self.shared, &state.id, ending));
                self.after_last(&container, &process);
            }
            container.tell_start(&self.shared.events, &process, true);
        }
        // Their start was under way when the earlier server ended, or they were forgotten.
        for (number, ..) in recorded.into_values() {
            number.into_iter().for_each(|number| self.shared.forget_process(&record.id, number));
        }
        self.restore_peas(&container);
        self.restore_pause(&container);
        container.knows_ooms(&self.shared);
        self.watch(&container, events);
        tracing::debug!(handle = record.handle, id = record.id, "restore.found");
        Some(container)
    }

    /// Sets the device rules of the container's cgroup again: an earlier server that had no device rules may
    /// have made it.
    async fn renew_device_rules(&self, record: &Record) {
        let (shared, id, devices) = (self.shared.clone(), record.id.clone(), record.privileged.into());
        let renewed = tokio::task::spawn_blocking(move || shared.cgroups.renew(&id, devices)).await;
        // The container runs on, since others rely on it; but the operator must see this.
        if let Ok(Err(error)) = renewed {
            tracing::error!(handle = record.handle, id = record.id, %error, "restore.device-rules");
        }
    }
}
