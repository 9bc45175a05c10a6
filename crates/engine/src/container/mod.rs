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
use crate::process::leftover;
use crate::process::{Over, Process};
use crate::ready::ids::Lease;
use crate::{Error, Result, Shared};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use wardian_runtime::stats::Files;
use wardian_runtime::wire::ENDED_KEPT;

type State = lifecycle::State<Keeper>;
type Event = lifecycle::Event<Keeper>;

/// A container as the engine holds it.
#[derive(Debug)]
pub struct Container {
    /// Unique.
    pub id: String,
    /// What clients call it.
    pub handle: String,
    /// Where its numbers are.
    files: OnceLock<Files>,
    /// Reserves the container's ids of the host until it is dropped.
    lease: OnceLock<Lease>,
    /// When it goes by itself.
    clock: Mutex<Clock>,
    /// Held while the record is written: readers of it do not wait for that.
    saving: Mutex<()>,
    inner: Mutex<Inner>,
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
    /// Ids of those that have ended, oldest first.
    ended: VecDeque<Arc<str>>,
    /// Those of them that are more than a status yet.
    whole: VecDeque<Arc<str>>,
    /// Those of them that may still print, the first to end first.
    open: VecDeque<Process>,
    /// The living peas by process id.
    peas: BTreeMap<String, Pea>,
    /// Processes whose start was told to listeners, and whose end was not.
    untold: BTreeSet<String>,
}

/// What is known of a process.
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

/// Of those that have ended so many are looked at whenever one ends, whether their status is all that is left.
const LOOKED_AT: usize = 4;

impl Inner {
    fn all_whole(&self) -> impl Iterator<Item = &Process> {
        self.processes.values().filter_map(Known::whole)
    }

    fn end_processes(&self) {
        for process in self.all_whole() {
            process.ended(137);
            process.cut();
            // Whoever ends the container cleans up after its peas.
            process.cleaned();
        }
    }

    /// What has ended is kept as its status, as soon as nobody could get more: there may be a thousand in each container.
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

    /// Only the newest of those that have ended are remembered.
    fn forget(&mut self) {
        while self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            if let Some(Known::Whole(process)) = self.processes.remove(&oldest) {
                // Nothing would end it any more.
                process.cut();
            }
        }
    }

    /// Outputs that outlive their programs are bounded: above that the oldest are over with what is there, and first those
    /// that nobody reads.
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
    /// From its record.
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
        };
        Self {
            id,
            handle,
            files: OnceLock::new(),
            lease: OnceLock::new(),
            clock: Mutex::default(),
            saving: Mutex::default(),
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Its ids. Asked once.
    pub fn has_ids(&self, lease: Lease) {
        drop(self.lease.set(lease));
    }

    /// The error of a refused event.
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
        self.apply(&mut self.lock(), event)
    }

    /// Whether an event could happen now, and if not, what a client is told.
    ///
    /// # Errors
    /// [`lifecycle::State::after`] refuses it.
    pub fn permits(&self, event: Event) -> Result<()> {
        self.lock().state.after(event).map(drop).map_err(|refusal| self.refused(refusal))
    }

    /// Sets the pid of pid 1 as the host sees it.
    pub fn launched(&self, init: i32) {
        self.lock().init = Some(init);
    }

    /// Sets the pid of its keeper.
    pub fn kept_by(&self, pid: i32) {
        self.lock().keeper_pid = Some(pid);
    }

    /// See [`Container::kept_by`].
    pub fn keeper_pid(&self) -> Option<i32> {
        self.lock().keeper_pid
    }

    /// Processes in its cgroups that no stop may reach: pid 1 and the keeper.
    pub fn untouchable(&self) -> Vec<i32> {
        let inner = self.lock();
        inner.init.into_iter().chain(inner.keeper_pid).collect()
    }

    /// Marks the container broken, and its processes as ended. Returns whether it was neither broken nor ending before.
    /// `keeper`: one that has answered although pid 1 has ended.
    pub fn lost(&self, keeper: Option<Keeper>, reason: &str) -> bool {
        let mut inner = self.lock();
        let before = std::mem::discriminant(&inner.state);
        let happened = self.apply(&mut inner, Event::Lost { keeper, reason: reason.to_owned() });
        let news = happened.is_ok() && std::mem::discriminant(&inner.state) != before;
        if news {
            tracing::error!(handle = self.handle, id = self.id, reason, "container.broken");
        }
        inner.end_processes();
        news
    }

    /// Marks all processes as ended: whoever ends the container has killed them.
    pub fn end_processes(&self) {
        self.lock().end_processes();
    }

    /// Tell listeners that a process has started; and that it has ended, if somebody has heard of that already. One that an
    /// earlier server has started is `known`.
    pub fn tell_start(&self, events: &Events, process: &Process, known: bool) {
        let mut inner = self.lock();
        let id = process.id().to_owned();
        if !known {
            events.tell(&self.handle, &self.id, What::ProcessStart { process: id.clone() });
        }
        if !known || process.status().is_none() {
            inner.untold.insert(id.clone());
        }
        self.tell_end_of(&mut inner, events, &id);
    }

    /// Tell listeners that a process has ended; once.
    pub fn tell_end(&self, events: &Events, id: &str) {
        self.tell_end_of(&mut self.lock(), events, id);
    }

    /// The same for all that have ended with the container.
    pub fn tell_ends(&self, events: &Events) {
        let mut inner = self.lock();
        let open: Vec<String> = inner.untold.iter().cloned().collect();
        for id in open {
            self.tell_end_of(&mut inner, events, &id);
        }
    }

    /// Ids of the processes whose start listeners were told, and whose end they were not.
    pub fn untold(&self) -> BTreeSet<String> {
        self.lock().untold.clone()
    }

    fn tell_end_of(&self, inner: &mut Inner, events: &Events, id: &str) {
        let status = inner.processes.get(id).and_then(|known| match known {
            Known::Whole(process) => process.status(),
            Known::Over(over) => Some(over.status),
        });
        // A start that was not told yet is told together with its end.
        if let Some(status) = status
            && inner.untold.remove(id)
        {
            events.tell(&self.handle, &self.id, What::ProcessExit { process: id.to_owned(), status });
        }
    }

    /// Its record, whether it is stopped, and why it is broken, for a client.
    ///
    /// # Errors
    /// For clients there is no such container.
    pub fn look(&self) -> Result<(Arc<Record>, bool, Option<String>)> {
        let inner = self.lock();
        inner.state.after(Event::Look).map_err(|refusal| self.refused(refusal))?;
        Ok((inner.record.clone(), inner.state.is_stopped(), inner.state.broken().map(str::to_owned)))
    }

    /// Its keeper, to ask something of a living container.
    ///
    /// # Errors
    /// The container does not live.
    pub fn keeper(&self) -> Result<Keeper> {
        let inner = self.lock();
        let state = inner.state.after(Event::Use).map_err(|refusal| self.refused(refusal))?;
        state.keeper().cloned().ok_or_else(|| self.refused(Refusal::Impossible))
    }

    /// Its keeper, whatever its state.
    pub fn any_keeper(&self) -> Option<Keeper> {
        self.lock().state.keeper().cloned()
    }

    /// Whether a stop was the last that was asked of it.
    pub fn is_stopped(&self) -> bool {
        self.lock().state.is_stopped()
    }

    /// Pid 1 as the host sees it.
    pub fn init(&self) -> Option<i32> {
        self.lock().init
    }

    /// Its record, as it is now.
    pub fn record(&self) -> Arc<Record> {
        self.lock().record.clone()
    }

    /// Change the record: `save` it first, while nobody else can, then show it.
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

    /// The same with a change that may be refused, and with the event that the new record makes true.
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
        let mut inner = self.lock();
        self.apply(&mut inner, event)?;
        inner.record = Arc::new(record);
        Ok(())
    }

    /// Begins a teardown (`event` is Destroy or Undo); only one at a time. A record that is being written is waited for: it
    /// must not come back after it was removed.
    ///
    /// # Errors
    /// [`lifecycle::State::after`] refuses it.
    pub fn begin_teardown(&self, event: Event) -> Result<()> {
        let _saving = self.saving.lock();
        self.happens(event)
    }

    /// Makes it broken: its teardown has failed, and can be tried again.
    pub fn teardown_failed(&self, error: &Error) {
        // Refused where no teardown was under way.
        drop(self.happens(Event::TeardownFailed(error.to_string())));
    }

    /// When it goes by itself. Taken before the container's other locks.
    pub fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock()
    }

    /// Reserve a process id.
    pub fn add_process(&self, process: &Process) -> Result<()> {
        let mut inner = self.lock();
        if inner.processes.contains_key(process.id()) {
            return Err(Error::ProcessInUse(process.id().to_owned()));
        }
        inner.processes.insert(process.id().into(), Known::Whole(process.clone()));
        Ok(())
    }

    /// A process has ended. Of those only the newest are remembered.
    pub fn process_ended(&self, id: &str, status: i32) -> Option<Process> {
        let mut inner = self.lock();
        let (id, known) = inner.processes.get_key_value(id)?;
        let (id, process) = (id.clone(), known.whole()?.clone());
        process.ended(status);
        inner.ended.push_back(id.clone());
        inner.whole.push_back(id);
        inner.open.push_back(process.clone());
        inner.cut_open(&self.handle);
        inner.shrink();
        inner.forget();
        Some(process)
    }

    /// Everything in it was killed: what ended processes have started prints nothing more.
    pub fn cut_outputs(&self) {
        self.lock().all_whole().filter(|process| process.status().is_some()).for_each(Process::cut);
    }

    /// After a start of the server: what its processes print must not wait for somebody who asks for it.
    pub fn read_ahead(&self) {
        self.lock().all_whole().filter(|process| process.status().is_none()).for_each(Process::read_ahead);
    }

    /// It never started.
    pub fn remove_process(&self, id: &str) {
        let mut inner = self.lock();
        inner.processes.remove(id);
        inner.open.retain(|process| process.id() != id);
    }

    /// A process by id.
    pub fn process(&self, id: &str) -> Result<Process> {
        let inner = self.lock();
        let process = match inner.processes.get(id) {
            Some(Known::Whole(process)) => Some(process.clone()),
            Some(Known::Over(over)) => {
                inner.state.keeper().cloned().map(|keeper| Process::over(id.to_owned(), keeper, *over))
            }
            None => None,
        };
        process.ok_or_else(|| Error::UnknownProcess(id.to_owned()))
    }

    /// A pea lives.
    pub fn add_pea(&self, process: &str, pea: Pea) {
        self.lock().peas.insert(process.to_owned(), pea);
    }

    /// It does not any more: whoever gets it cleans up.
    pub fn take_pea(&self, process: &str) -> Option<Pea> {
        self.lock().peas.remove(process)
    }

    /// The living peas by process id.
    pub fn peas(&self) -> Vec<(String, Pea)> {
        self.lock().peas.iter().map(|(id, pea)| (id.clone(), pea.clone())).collect()
    }

    /// Where its numbers are.
    pub fn files(&self, shared: &Shared) -> &Files {
        self.files.get_or_init(|| Files::new(&shared.cgroups, &self.id, true))
    }

    /// Whether the kernel has killed something in it, or in a pea of it, for want of memory.
    pub fn is_out_of_memory(&self, shared: &Shared) -> bool {
        self.record().out_of_memory
            || self.files(shared).oom_kills() > 0
            || self.peas().iter().any(|(_, pea)| pea.is_out_of_memory(shared, &self.id))
    }
}
