//! One container: its record, its state, its processes.

pub mod clock;
pub mod lifecycle;
pub mod pea;
pub mod record;

use clock::Clock;
use lifecycle::Refusal;
use pea::Pea;
use record::{Phase, Record};

use crate::events::{Events, What};
use crate::keeper::Keeper;
use crate::process::about::{About, Ending};
use crate::process::kept::Kept;
use crate::process::leftover;
use crate::process::{Over, Process};
use crate::ready::ids::Lease;
use crate::{Error, Result, Shared};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::RwLock;
use wardian_network::{self as network, Network};
use wardian_runtime::stats::Files;
use wardian_runtime::wire::ENDED_KEPT;

type State = lifecycle::State<Keeper>;
type Event = lifecycle::Event<Keeper>;

/// A container in the engine.
#[derive(Debug)]
pub struct Container {
    /// The container's unique id.
    pub id: String,
    /// The container's name for clients.
    pub handle: String,
    /// The cgroup files with the container's statistics.
    files: OnceLock<Files>,
    /// Reserves the container's ids of the host until it is dropped.
    lease: OnceLock<Lease>,
    /// The network, from its reservation to the teardown. This lock is taken before the others, and held while
    /// the firewall is changed.
    network: Mutex<Option<Attached>>,
    /// The grace-time clock.
    clock: Mutex<Clock>,
    /// Its processes are frozen.
    paused: AtomicBool,
    /// Held for reading while something is started in it, and for writing while it is paused.
    pub starts: RwLock<()>,
    /// Held while its processes or its files are listed: a container may make that last, and only one waits for it.
    looking: Arc<tokio::sync::Mutex<()>>,
    /// Held while the record is written; readers of the record do not wait for that.
    saving: Mutex<()>,
    inner: Mutex<Inner>,
}

/// A container's network and its egress rules.
#[derive(Debug)]
pub struct Attached {
    pub network: Network,
    pub rules: Arc<Vec<network::Rule>>,
    /// The container's network namespace, where other programs need it to take the container out of its network.
    pub namespace: Option<OwnedFd>,
}

#[derive(Debug)]
struct Inner {
    record: Arc<Record>,
    state: State,
    /// Pid 1 as the host sees it.
    init: Option<i32>,
    /// The keeper's pid. One of its threads may be in the container's cgroups.
    keeper_pid: Option<i32>,
    processes: BTreeMap<Arc<str>, Known>,
    /// Ids of the ended processes, oldest first.
    ended: VecDeque<Arc<str>>,
    /// Ids of the ended processes that are not reduced to their status yet.
    whole: VecDeque<Arc<str>>,
    /// Ended processes whose output may still be open, in the order of their ends.
    open: VecDeque<Process>,
    /// The living peas by process id.
    peas: BTreeMap<String, Pea>,
    /// Ids of processes whose start listeners were told of, and whose end they were not.
    untold: BTreeSet<String>,
    /// The numbers of the recorded processes, and the last number that was given.
    recorded: BTreeMap<Arc<str>, u64>,
    last_number: u64,
    /// What was made of the OOM killer's kills so far.
    oom_kills: OomKills,
}

/// What state a container is in, for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It is being created.
    Creating,
    /// It lives.
    Active,
    /// It lives; its processes are frozen.
    Paused,
    /// It lives; a stop has ended its processes.
    Stopped,
    /// It can only be destroyed, for this reason.
    Broken(String),
    /// It is being destroyed.
    Ending,
}

/// A process in a list.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it was started as.
    pub about: Arc<About>,
    /// How it has ended; `None`: it runs.
    pub ending: Option<Ending>,
    /// What is kept of its output.
    pub kept: Option<Arc<Kept>>,
}

/// A process, or what is left of it.
#[derive(Debug)]
enum Known {
    Whole(Process),
    Over(Over),
}

impl Known {
    fn whole(&self) -> Option<&Process> {
        match self {
            Self::Whole(process) => Some(process),
            Self::Over(_) => None,
        }
    }
}

/// How many ended processes are checked, whenever one ends, for whether they can be reduced to their status.
const LOOKED_AT: usize = 4;

/// The kernel tells only how often the OOM killer has killed a process of the container, and not which one.
#[derive(Debug, Default)]
struct OomKills {
    /// The kills that listeners were told of.
    told: u64,
    /// The kills when a process was last seen to have been killed: a later one is the OOM killer's if there are more.
    blamed: u64,
}

impl OomKills {
    /// Returns whether there are new ones, and whether a process that ends now, and was killed if `is_killed`, may be one.
    fn count(&mut self, kills: u64, is_killed: bool) -> (bool, bool) {
        let news = kills > self.told;
        let is_oom = is_killed && kills > self.blamed;
        self.told = self.told.max(kills);
        if is_killed {
            self.blamed = self.blamed.max(kills);
        }
        (news, is_oom)
    }
}

/// Of so many ended processes without a record it is known what they were started as.
const DESCRIBED: usize = 50;

impl Inner {
    fn all_whole(&self) -> impl Iterator<Item = &Process> {
        self.processes.values().filter_map(Known::whole)
    }

    fn end_processes(&self) {
        for process in self.all_whole() {
            process.ended(Ending::now(137, false));
            process.cut();
            // Peas are cleaned up with their container.
            process.cleaned();
        }
    }

    /// Reduces ended processes to their status once nobody could get more of them: a container may have a
    /// thousand.
    fn shrink(&mut self) {
        for _ in 0..LOOKED_AT.min(self.whole.len()) {
            let Some(id) = self.whole.pop_front() else { return };
            let Some(known) = self.processes.get_mut(&id) else { continue };
            match known.whole().and_then(Process::is_over) {
                Some(over) => *known = Known::Over(over),
                None => self.whole.push_back(id),
            }
        }
    }

    /// Forgets what older ended processes were started as, unless they have a record: clients may start one every second, and
    /// nobody asks for it again.
    fn strip(&mut self) {
        let Some(id) = self.ended.len().checked_sub(DESCRIBED + 1).and_then(|at| self.ended.get(at)) else {
            return;
        };
        if !self.recorded.contains_key(id)
            && let Some(Known::Over(over)) = self.processes.get_mut(id)
        {
            over.about = Arc::new(About::unknown(id.to_string()));
        }
    }

    /// Forgets all but the newest ended processes. Returns the numbers of those that have a record.
    fn forget(&mut self) -> Vec<u64> {
        let mut recorded = Vec::new();
        while self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            recorded.extend(self.recorded.remove(&oldest));
            if let Some(Known::Whole(process)) = self.processes.remove(&oldest) {
                // Otherwise nothing would ever end its output.
                process.cut();
            }
        }
        recorded
    }

    /// Bounds the outputs that outlive their programs: above the bound the oldest end with what is in their
    /// pipes, and among them first those without a reader.
    fn cut_open(&mut self, handle: &str) {
        self.open.retain(Process::is_open);
        let [most, most_unread] = leftover::allowed();
        let unread = self.open.iter().filter(|process| !process.has_readers()).count();
        let mut excess = [self.open.len().saturating_sub(most), unread.saturating_sub(most_unread)];
        if excess == [0; 2] {
            return;
        }
        for unread_only in [true, false] {
            self.open.retain(|process| {
                let unread = !process.has_readers();
                let goes = if unread_only { unread && excess[1] > 0 } else { excess[0] > 0 };
                if goes {
                    excess = [excess[0].saturating_sub(1), excess[1].saturating_sub(usize::from(unread))];
                    tracing::warn!(
                        handle,
                        process = process.id(),
                        "process.output-closed: too many are left open"
                    );
                    process.cut();
                }
                !goes
            });
        }
    }
}

impl Container {
    /// Makes a container from its record.
    pub fn new(record: Record) -> Self {
        let (id, handle) = (record.id.clone(), record.handle.clone());
        let state = match record.phase {
            Phase::Creating => State::Creating { keeper: None },
            Phase::Created => State::Recorded { stopped: record.stopped },
        };
        let inner = Inner {
            record: Arc::new(record),
            state,
            init: None,
            keeper_pid: None,
            processes: BTreeMap::new(),
            ended: VecDeque::new(),
            whole: VecDeque::new(),
            open: VecDeque::new(),
            peas: BTreeMap::new(),
            untold: BTreeSet::new(),
            recorded: BTreeMap::new(),
            last_number: 0,
            oom_kills: OomKills::default(),
        };
        Self {
            id,
            handle,
            files: OnceLock::new(),
            lease: OnceLock::new(),
            network: Mutex::default(),
            clock: Mutex::default(),
            paused: AtomicBool::new(false),
            starts: RwLock::default(),
            looking: Arc::default(),
            saving: Mutex::default(),
            inner: Mutex::new(inner),
        }
    }

    /// Sets the lease of the container's host ids, once.
    pub fn has_ids(&self, lease: Lease) {
        drop(self.lease.set(lease));
    }

    /// Sets the network that is reserved for the container.
    pub fn set_network(&self, network: Network, rules: Vec<network::Rule>) {
        *self.network.lock() = Some(Attached { network, rules: Arc::new(rules), namespace: None });
    }

    /// Locks the container's network.
    pub fn network(&self) -> MutexGuard<'_, Option<Attached>> {
        self.network.lock()
    }

    /// Takes the network away at the teardown.
    pub fn leave_network(&self) -> Option<Network> {
        self.network.lock().take().map(|attached| attached.network)
    }

    /// Returns the error for a refused event.
    fn refused(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Unknown => Error::UnknownHandle(self.handle.clone()),
            Refusal::Broken(reason) => Error::Broken { handle: self.handle.clone(), reason },
            Refusal::Ending => Error::BeingDestroyed,
            Refusal::Impossible => {
                Error::GivenUp { during: "lifecycle", why: "this cannot happen to the container now" }
            }
        }
    }

    fn apply(&self, inner: &mut Inner, event: Event) -> Result<()> {
        inner.state = inner.state.after(event).map_err(|refusal| self.refused(refusal))?;
        Ok(())
    }

    /// Makes an event happen.
    ///
    /// # Errors
    /// [`lifecycle::State::after`] refuses it.
    pub fn happens(&self, event: Event) -> Result<()> {
        self.apply(&mut self.inner.lock(), event)
    }

    /// Whether an event could happen now, and if not, what a client is told.
    ///
    /// # Errors
    /// [`lifecycle::State::after`] refuses it.
    pub fn permits(&self, event: Event) -> Result<()> {
        self.inner.lock().state.after(event).map(drop).map_err(|refusal| self.refused(refusal))
    }

    /// Sets the pid that the container's pid 1 has on the host.
    pub fn launched(&self, init: i32) {
        self.inner.lock().init = Some(init);
    }

    /// Sets the keeper's pid.
    pub fn kept_by(&self, pid: i32) {
        self.inner.lock().keeper_pid = Some(pid);
    }

    /// See [`Container::kept_by`].
    pub fn keeper_pid(&self) -> Option<i32> {
        self.inner.lock().keeper_pid
    }

    /// Returns the processes in the container's cgroups that a stop must not signal: pid 1 and the keeper.
    pub fn untouchable(&self) -> Vec<i32> {
        let inner = self.inner.lock();
        inner.init.into_iter().chain(inner.keeper_pid).collect()
    }

    /// Marks the container broken, and its processes as ended. Returns whether it was neither broken nor ending before.
    /// `keeper` is a keeper that has answered although pid 1 has ended.
    pub fn lost(&self, keeper: Option<Keeper>, reason: &str) -> bool {
        let mut inner = self.inner.lock();
        let before = std::mem::discriminant(&inner.state);
        let happened = self.apply(&mut inner, Event::Lost { keeper, reason: reason.to_owned() });
        let news = happened.is_ok() && std::mem::discriminant(&inner.state) != before;
        if news {
            tracing::error!(handle = self.handle, id = self.id, reason, "container.broken");
        }
        inner.end_processes();
        news
    }

    /// Marks all processes as ended, after the teardown has killed them.
    pub fn end_processes(&self) {
        self.inner.lock().end_processes();
    }

    /// Tells listeners that a process has started, and that it has ended if its end was reported already. A
    /// process that an earlier server has started is `known`.
    pub fn tell_start(&self, events: &Events, process: &Process, known: bool) {
        let mut inner = self.inner.lock();
        let id = process.id().to_owned();
        if !known {
            events.tell(&self.handle, &self.id, What::ProcessStart { process: id.clone() });
        }
        if !known || process.status().is_none() {
            inner.untold.insert(id.clone());
        }
        self.tell_end_of(&mut inner, events, &id);
    }

    /// Tells listeners, once, that a process has ended.
    pub fn tell_end(&self, events: &Events, id: &str) {
        self.tell_end_of(&mut self.inner.lock(), events, id);
    }

    /// Tells listeners of the ends of all processes that have ended with the container.
    pub fn tell_ends(&self, events: &Events) {
        let mut inner = self.inner.lock();
        let open: Vec<String> = inner.untold.iter().cloned().collect();
        for id in open {
            self.tell_end_of(&mut inner, events, &id);
        }
    }

    /// Returns the ids of processes whose start listeners were told of, and whose end they were not.
    pub fn untold(&self) -> BTreeSet<String> {
        self.inner.lock().untold.clone()
    }

    fn tell_end_of(&self, inner: &mut Inner, events: &Events, id: &str) {
        let status = inner.processes.get(id).and_then(|known| match known {
            Known::Whole(process) => process.status(),
            Known::Over(over) => Some(over.ending.status),
        });
        // A start that was not told yet is told together with its end.
        if let Some(status) = status
            && inner.untold.remove(id)
        {
            events.tell(&self.handle, &self.id, What::ProcessExit { process: id.to_owned(), status });
        }
    }

    /// Returns, for a client, the record, whether the container is stopped, and why it is broken.
    ///
    /// # Errors
    /// For clients there is no such container.
    pub fn look(&self) -> Result<(Arc<Record>, bool, Option<String>)> {
        let inner = self.inner.lock();
        inner.state.after(Event::Look).map_err(|refusal| self.refused(refusal))?;
        Ok((inner.record.clone(), inner.state.is_stopped(), inner.state.broken().map(str::to_owned)))
    }

    /// Returns the record and the state, whatever it is.
    pub fn condition(&self) -> (Arc<Record>, Condition) {
        let inner = self.inner.lock();
        let condition = match &inner.state {
            lifecycle::State::Creating { .. } => Condition::Creating,
            lifecycle::State::Ending { .. } | lifecycle::State::Gone => Condition::Ending,
            lifecycle::State::Broken { reason, .. } => Condition::Broken(reason.clone()),
            _ if self.is_paused() => Condition::Paused,
            state if state.is_stopped() => Condition::Stopped,
            _ => Condition::Active,
        };
        (inner.record.clone(), condition)
    }

    /// Returns the keeper of a living container.
    ///
    /// # Errors
    /// The container does not live.
    pub fn keeper(&self) -> Result<Keeper> {
        let inner = self.inner.lock();
        let state = inner.state.after(Event::Use).map_err(|refusal| self.refused(refusal))?;
        state.keeper().cloned().ok_or_else(|| self.refused(Refusal::Impossible))
    }

    /// Returns the keeper in any state, if there is one.
    pub fn any_keeper(&self) -> Option<Keeper> {
        self.inner.lock().state.keeper().cloned()
    }

    /// Whether the container is stopped: see [`lifecycle::State::is_stopped`].
    pub fn is_stopped(&self) -> bool {
        self.inner.lock().state.is_stopped()
    }

    /// Whether its processes are frozen.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// See [`Container::is_paused`].
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    /// Returns the pid that the container's pid 1 has on the host.
    pub fn init(&self) -> Option<i32> {
        self.inner.lock().init
    }

    /// Returns the present record.
    pub fn record(&self) -> Arc<Record> {
        self.inner.lock().record.clone()
    }

    /// Changes the record: the changed copy is saved first, under the lock `saving`, and then takes the
    /// record's place.
    pub fn update(
        &self,
        change: impl FnOnce(&mut Record),
        save: impl FnOnce(&Record) -> std::io::Result<()>,
    ) -> Result<()> {
        let change = |record: &mut Record| {
            change(record);
            Ok(())
        };
        self.try_update(Event::Change, change, save)
    }

    /// Changes the record as [`Self::update`] does, with a change that may be refused, and makes the event of
    /// the change happen.
    pub fn try_update(
        &self,
        event: Event,
        change: impl FnOnce(&mut Record) -> Result<()>,
        save: impl FnOnce(&Record) -> std::io::Result<()>,
    ) -> Result<()> {
        let _saving = self.saving.lock();
        self.permits(Event::Change)?;
        let mut record = Record::clone(&self.record());
        change(&mut record)?;
        save(&record).map_err(Error::system("save the container's record"))?;
        let mut inner = self.inner.lock();
        self.apply(&mut inner, event)?;
        inner.record = Arc::new(record);
        Ok(())
    }

    /// Begins a teardown (`event` is Destroy or Undo); only one at a time. Waits for a write of the record
    /// that is under way: it must not bring the record back after the removal.
    ///
    /// # Errors
    /// [`lifecycle::State::after`] refuses it.
    pub fn begin_teardown(&self, event: Event) -> Result<()> {
        let _saving = self.saving.lock();
        self.happens(event)
    }

    /// Makes the container broken after a failed teardown, which can be tried again.
    pub fn teardown_failed(&self, error: &Error) {
        // Refused if no teardown was under way.
        drop(self.happens(Event::TeardownFailed(error.to_string())));
    }

    /// Locks the grace-time clock. This lock is taken before the container's other locks.
    pub fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock()
    }

    /// Adds a process, which reserves its id; `number` is that of its record.
    pub fn add_process(&self, process: &Process, number: Option<u64>) -> Result<()> {
        let mut inner = self.inner.lock();
        if inner.processes.contains_key(process.id()) {
            return Err(Error::ProcessInUse(process.id().to_owned()));
        }
        if let Some(number) = number {
            inner.last_number = inner.last_number.max(number);
            inner.recorded.insert(process.id().into(), number);
        }
        inner.processes.insert(process.id().into(), Known::Whole(process.clone()));
        Ok(())
    }

    /// Waits for nobody, and keeps others from listing the container's processes or files meanwhile.
    ///
    /// # Errors
    /// Somebody lists them.
    pub fn look_alone(&self) -> Result<tokio::sync::OwnedMutexGuard<()>> {
        let busy = |_| Error::Busy(format!("container {} is being looked at already", self.handle));
        self.looking.clone().try_lock_owned().map_err(busy)
    }

    /// Returns a number for a process that is to have a record.
    pub fn next_number(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.last_number += 1;
        inner.last_number
    }

    /// Returns how a process has ended that ends now, and whether the OOM killer has killed something since the last end.
    pub fn ending(&self, shared: &Shared, id: &str, status: i32) -> (Ending, bool) {
        let kills = self.files(shared).oom_kills();
        // A pea with limits of its own is not counted with its container.
        let pea = self.inner.lock().peas.get(id).cloned();
        let pea = pea.is_some_and(|pea| pea.is_out_of_memory(shared, &self.id));
        let is_killed = status == 128 + rustix::process::Signal::KILL.as_raw();
        let (news, is_oom) = self.inner.lock().oom_kills.count(kills, is_killed);
        (Ending::now(status, is_oom || (pea && is_killed)), news || pea)
    }

    /// Records the end of a process. Only the newest ended processes are remembered.
    pub fn process_ended(&self, shared: &Shared, id: &str, ending: Ending) -> Option<Process> {
        let mut inner = self.inner.lock();
        let (id, known) = inner.processes.get_key_value(id)?;
        let (id, process) = (id.clone(), known.whole()?.clone());
        process.ended(ending);
        let number = inner.recorded.get(&id).copied();
        inner.ended.push_back(id.clone());
        inner.whole.push_back(id);
        inner.open.push_back(process.clone());
        inner.cut_open(&self.handle);
        inner.shrink();
        inner.strip();
        let forgotten = inner.forget();
        drop(inner);
        if let Some(number) = number {
            let about = About { ending: Some(ending), ..About::clone(process.about()) };
            if let Err(error) = shared.records.save_process(&self.id, number, &about) {
                tracing::warn!(handle = self.handle, %error, "process.end-not-recorded");
            }
        }
        forgotten.into_iter().for_each(|number| shared.forget_process(&self.id, number));
        Some(process)
    }

    /// Ends the outputs of all ended processes: their descendants have been killed too.
    pub fn cut_outputs(&self) {
        self.inner.lock().all_whole().filter(|process| process.status().is_some()).for_each(Process::cut);
    }

    /// Reads the output of all running processes after a start of the server: they must not block on a full
    /// pipe until a client asks for it. Of those whose output is kept the rest is read too that they have left behind.
    pub fn read_ahead(&self) {
        self.inner
            .lock()
            .all_whole()
            .filter(|process| process.status().is_none() || process.kept().is_some())
            .for_each(Process::read_ahead);
    }

    /// Removes a process that was not started.
    pub fn remove_process(&self, shared: &Shared, id: &str) {
        let mut inner = self.inner.lock();
        inner.processes.remove(id);
        inner.open.retain(|process| process.id() != id);
        let number = inner.recorded.remove(id);
        drop(inner);
        number.into_iter().for_each(|number| shared.forget_process(&self.id, number));
    }

    /// Finds a process by its id.
    pub fn process(&self, id: &str) -> Result<Process> {
        let inner = self.inner.lock();
        let process = match inner.processes.get(id) {
            Some(Known::Whole(process)) => Some(process.clone()),
            Some(Known::Over(over)) => {
                inner.state.keeper().cloned().map(|keeper| Process::over(keeper, over.clone()))
            }
            None => None,
        };
        process.ok_or_else(|| Error::UnknownProcess(id.to_owned()))
    }

    /// Returns what is known of all processes: what they were started as, how they have ended, what is kept of their output.
    pub fn processes(&self) -> Vec<Seen> {
        let seen = |known: &Known| match known {
            Known::Whole(process) if !process.is_started() => None,
            Known::Whole(process) => Some(Seen {
                about: process.about().clone(),
                ending: process.ending(),
                kept: process.kept().cloned(),
            }),
            Known::Over(over) => {
                Some(Seen { about: over.about.clone(), ending: Some(over.ending), kept: over.kept.clone() })
            }
        };
        self.inner.lock().processes.values().filter_map(seen).collect()
    }

    /// Adds a living pea.
    pub fn add_pea(&self, process: &str, pea: Pea) {
        self.inner.lock().peas.insert(process.to_owned(), pea);
    }

    /// Removes a pea whose process has ended. The caller that gets the pea cleans up after it.
    pub fn take_pea(&self, process: &str) -> Option<Pea> {
        self.inner.lock().peas.remove(process)
    }

    /// Returns the living peas by process id.
    pub fn peas(&self) -> Vec<(String, Pea)> {
        self.inner.lock().peas.iter().map(|(id, pea)| (id.clone(), pea.clone())).collect()
    }

    /// Returns the cgroup files with the container's statistics.
    pub fn files(&self, shared: &Shared) -> &Files {
        self.files.get_or_init(|| Files::new(&shared.cgroups, &self.id, true))
    }

    /// Notes the kills that an earlier server has told of.
    pub fn knows_ooms(&self, shared: &Shared) {
        let kills = self.files(shared).oom_kills();
        self.inner.lock().oom_kills.count(kills, true);
    }

    /// Whether the OOM killer has killed a process of the container or of one of its peas.
    pub fn is_out_of_memory(&self, shared: &Shared) -> bool {
        self.record().out_of_memory
            || self.files(shared).oom_kills() > 0
            || self.peas().iter().any(|(_, pea)| pea.is_out_of_memory(shared, &self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::OomKills;

    #[test]
    fn a_kill_is_told_once_and_blamed_on_who_was_killed() {
        let mut kills = OomKills::default();
        assert_eq!(kills.count(0, true), (false, false));
        // Another process ends first.
        assert_eq!(kills.count(1, false), (true, false));
        assert_eq!(kills.count(1, true), (false, true));
        assert_eq!(kills.count(1, true), (false, false));
        assert_eq!(kills.count(3, true), (true, true));
    }
}
