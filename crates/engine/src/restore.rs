//! After a start: find the containers that live, undo what was half made.

use crate::container::Container;
use crate::metrics::{Pea, changed_since_boot};
use crate::process::Process;
use crate::record::{Phase, Record};
use crate::{Engine, destroy};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use wardian_runtime::client::{self, Keeper};
use wardian_runtime::wire::{self, Op, Reply};
use wardian_sys::packet;

/// A keeper that does not say hello by then is taken for dead.
const HELLO: Duration = Duration::from_secs(5);

impl Engine {
    /// Take up every container on record; end the rest.
    pub(crate) async fn restore(&self, found: Vec<(String, Option<Record>)>) {
        for (id, record) in found {
            match record {
                Some(record) => self.take_up(record).await,
                None => {
                    let shared = self.shared.clone();
                    if let Some((keeper, _)) = self.keeper_of(&id).await {
                        end(keeper);
                    }
                    drop(tokio::task::spawn_blocking(move || destroy::sweep(&shared, &id)).await);
                }
            }
        }
    }

    async fn keeper_of(
        &self,
        id: &str,
    ) -> Option<(Keeper, tokio::sync::mpsc::UnboundedReceiver<client::Event>)> {
        let dir: OwnedFd = std::fs::File::open(self.shared.records.path(id)).ok()?.into();
        let socket = packet::connect_at(dir.as_fd(), "keeper.sock").ok()?;
        Keeper::new(socket).ok()
    }

    async fn take_up(&self, record: Record) {
        let container = Arc::new(Container::new(record.clone()));
        let hello = async {
            let (keeper, events) = self.keeper_of(&record.id).await?;
            match tokio::time::timeout(HELLO, keeper.ask(Op::Hello, &[])).await {
                Ok(Ok((Reply::Hello { init, version, pid }, fds))) if version <= wire::VERSION => {
                    container.kept_by(pid, version);
                    Some((keeper, events, init, process_list(fds)?))
                }
                _ => None,
            }
        };
        let hello = hello.await;
        if record.phase == Phase::Creating {
            if let Some((keeper, ..)) = hello {
                container.alive(keeper, None);
            }
            self.undo(&container).await;
            return;
        }
        if let Some(made) = &record.made {
            self.shared.history.add(made.clone());
        }
        self.shared.lock().insert(record.handle.clone(), container.clone());
        let Some((keeper, events, init, processes)) = hello else {
            container.broke("its keeper has ended");
            return;
        };
        container.alive(keeper.clone(), init);
        for state in processes {
            let process = Process::new(state.id.clone(), keeper.clone());
            let asked = keeper.ask(Op::Attach { id: state.id.clone() }, &[]).await;
            if let Ok((Reply::Started { stdin, tty, .. }, fds)) = asked
                && let Err(error) = process.connect(stdin, tty, fds).await
            {
                tracing::warn!(handle = record.handle, process = state.id, %error, "restore.process-without-io");
            }
            drop(container.add_process(&process));
            match state.status {
                Some(status) => drop(container.process_ended(&state.id, status)),
                None => process.read_ahead(),
            }
        }
        self.restore_peas(&container);
        self.watch(&container, events);
        tracing::info!(handle = record.handle, id = record.id, "restore.found");
    }

    /// Root file systems of peas whose process is known to have ended are let go.
    fn restore_peas(&self, container: &Arc<Container>) {
        for pea in self.shared.records.peas(&container.id) {
            let record = self.shared.records.path(&container.id).join("peas").join(&pea);
            let process = std::fs::read_to_string(&record);
            let process = process.ok().and_then(|id| container.process(&id).ok());
            match process.filter(|p| p.status().is_none()) {
                Some(process) => {
                    process.needs_cleaning();
                    let made_ns = changed_since_boot(&record);
                    container.add_pea(process.id(), Pea { rootfs: pea, made_ns });
                }
                None => crate::run::clean_pea(&self.shared, &container.id, &pea),
            }
        }
    }
}

/// The file that comes with a hello.
fn process_list(fds: Vec<OwnedFd>) -> Option<Vec<wire::ProcessState>> {
    let list = std::fs::File::from(fds.into_iter().next()?);
    serde_json::from_reader(std::io::BufReader::new(list)).ok()
}

/// A container without a record: its keeper ends it.
fn end(keeper: Keeper) {
    tokio::spawn(async move { drop(keeper.ask(Op::Destroy, &[]).await) });
}
