//! The keeper's poll loop over connections, children and launches.

use crate::child::{self, Namespaces, Way};
use crate::handed::{self, read_all};
use crate::inside::{self, Devices, Parts};
use crate::launches::{self, Fail, Kind, Launch, other};
use crate::parked::Parked;
use crate::process::{self, Io, PeaBox, Process, Processes, TheirIo};
use crate::report::{Report, Tag};
use crate::{exec, rights, transfer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use wardian_runtime::bundle::Plan;
use wardian_runtime::failpoints::Point;
use wardian_runtime::rights::Rights;
use wardian_runtime::seccomp;
use wardian_runtime::wire::{
    self, Create, Destroyed, Exec, Failure, Hello, Message, Op, Refused, Reply, Run, Started, Transfer,
};
use wardian_sys::failpoint;
use wardian_sys::{children, heap, memfd, mount, namespace, packet};

/// The running container.
#[derive(Debug)]
struct Container {
    pid: Pid,
    pidfd: OwnedFd,
    user: bool,
    /// Rights of pid 1. Processes and tar helpers use the same seccomp filter.
    rights: Rights,
    /// Host uid of container root.
    root: u32,
    devices: Devices,
    _rootfs: OwnedFd,
}

impl Container {
    /// Makes the devices of a pea: it shares the container's own files, but not its /dev.
    fn devices_of_pea(&self, plan: &Plan) -> Result<Devices, String> {
        let own = self.devices.own.as_ref().map(|own| own.for_pea(plan)).transpose()?.flatten();
        inside::devices(plan, own)
    }
}

/// How long a keeper stays at most after its container's destroy. It usually ends when the server hangs up, which the
/// server does once nothing is being created or destroyed, or half a second later. The reason: the teardown of a
/// process costs the kernel a third of a millisecond, and of a hundred destroys at once the last would wait for all
/// of them.
const LINGER: Duration = Duration::from_secs(10);

/// How many children are reaped in one turn of the loop.
const REAPED_AT_ONCE: usize = 64;

/// A destroy in progress.
#[derive(Debug)]
struct Ending {
    connection: u64,
    seq: u64,
    since: Instant,
    /// How long closing (unmounting) the container's root file system took.
    unmounted: Duration,
}

/// The state of the poll loop.
#[derive(Debug)]
pub struct Keeper {
    listener: OwnedFd,
    signals: OwnedFd,
    connections: HashMap<u64, OwnedFd>,
    next_connection: u64,
    launches: Vec<Launch>,
    processes: Processes,
    container: Option<Container>,
    made: bool,
    /// Whether a child has ended that may not be reaped yet, see [`launches`].
    held: bool,
    /// Whether more children may have ended than were reaped in this turn.
    more: bool,
    ending: Option<Ending>,
    /// Set once the container is destroyed: the latest time to exit, see [`LINGER`].
    leave: Option<Instant>,
    parked: Option<Parked>,
    /// A sysfs to clone for peas; `None` if none was handed over, or where the kernel cannot clone a detached mount (before
    /// 6.15): then one is mounted for each pea.
    sysfs: Option<OwnedFd>,
    /// See [`wire::SPEAKS`].
    speaks: Option<u32>,
}

fn unknown(id: &str) -> Fail {
    (Failure::UnknownProcess, format!("unknown process: {id}"))
}

impl Keeper {
    /// Starts a session, enters the nursery's mount namespace and makes the process undumpable.
    #[allow(unsafe_code)]
    pub fn start() -> io::Result<Self> {
        // SAFETY: the server starts us with exactly these descriptors, and nothing else has touched them.
        let [listener, connection, nursery] = [wire::LISTENER_FD, wire::CONNECTION_FD, wire::NURSERY_FD]
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        child::undumpable();
        child::close_from(wire::NURSERY_FD + 1)?;
        child::set_inheritance()?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        rustix::thread::move_into_link_name_space(
            nursery.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Mount),
        )?;
        drop(nursery);
        let _ = rustix::process::setsid();
        rustix::thread::set_name(c"wardian-keeper")?;
        for fd in [&listener, &connection] {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        }
        let signals = child_signals()?;
        Ok(Self {
            listener,
            signals,
            connections: HashMap::from([(0, connection)]),
            next_connection: 1,
            launches: Vec::new(),
            processes: Processes::default(),
            container: None,
            made: false,
            held: false,
            more: false,
            ending: None,
            leave: None,
            parked: None,
            sysfs: None,
            speaks: std::env::var(wire::SPEAKS).ok().and_then(|version| version.parse().ok()),
        })
    }

    /// Runs the loop until the keeper is told to end, or has neither a container nor a connection.
    pub fn run(mut self) -> ExitCode {
        loop {
            if self.done() {
                return ExitCode::SUCCESS;
            }
            let deadline = self.launches.iter().filter_map(Launch::deadline).chain(self.leave).min();
            let ids: Vec<u64> = self.connections.keys().copied().collect();
            let mut fds =
                vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            fds.extend(ids.iter().map(|id| PollFd::new(&self.connections[id], PollFlags::IN)));
            for launch in &self.launches {
                // Once the pid is known only the end of the pipe matters, and POLLHUP reports that: reading earlier
                // frames early gains nothing.
                let flags = if launch.pid.is_some() { PollFlags::empty() } else { PollFlags::IN };
                fds.extend(launch.pipe.as_ref().map(|pipe| PollFd::new(pipe, flags)));
            }
            let deadline = if self.more { Some(Instant::now()) } else { deadline };
            let timeout = deadline.map(|d| {
                let mut left = d.saturating_duration_since(Instant::now());
                if !self.more {
                    left += Duration::from_millis(1);
                }
                rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
            });
            if poll(&mut fds, timeout.as_ref()).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                self.accept();
            }
            // Launches first: their reports determine which children may be reaped.
            let (connections, reports) = ready[2..].split_at(ids.len());
            if reports.contains(&true) {
                self.hear();
            }
            self.expire();
            if ready[1] || self.held || self.more {
                self.reap();
            }
            for (id, _) in ids.iter().zip(connections).filter(|(_, ready)| **ready) {
                self.receive(*id);
            }
        }
    }

    /// Answers a destroy once everything is reaped. Returns whether the keeper may exit: there is no container, launch or
    /// connection, or [`LINGER`] has passed.
    fn done(&mut self) -> bool {
        if let Some(ending) = &self.ending {
            let alive = self.container.is_some() || self.processes.any_alive();
            if !alive && self.launches.is_empty() {
                self.processes.clear();
                let reply = match self.speaks {
                    Some(1) => Reply::Done,
                    _ => Reply::Destroyed(Destroyed {
                        killed_us: us(ending.since.elapsed().saturating_sub(ending.unmounted)),
                        unmounted_us: us(ending.unmounted),
                    }),
                };
                failpoint::reach(Point::DestroyReplying);
                self.reply(ending.connection, ending.seq, reply);
                (self.ending, self.made) = (None, false);
                self.leave = Some(Instant::now() + LINGER);
            }
        }
        if self.leave.is_some_and(|leave| Instant::now() >= leave) {
            return true;
        }
        self.connections.is_empty() && !self.made && self.launches.is_empty()
    }

    fn accept(&mut self) {
        if let Ok(fd) = rustix::net::accept_with(&self.listener, rustix::net::SocketFlags::CLOEXEC) {
            self.connections.insert(self.next_connection, fd);
            self.next_connection += 1;
        }
    }

    /// Closes a connection whose server is gone or sent something unreadable, and kills its transfers: nobody waits
    /// for their result, and container root could stop a helper for ever.
    fn hang_up(&mut self, id: u64) {
        drop(self.connections.remove(&id));
        self.cancel(|launch| launch.connection == id);
    }

    fn cancel(&self, which: impl Fn(&Launch) -> bool) {
        let transfers = self.launches.iter().filter(|launch| matches!(launch.kind, Kind::Transfer));
        transfers.filter(|launch| which(launch)).for_each(Launch::kill);
    }

    fn receive(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        let message = match packet::receive(connection, RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            other => other,
        };
        match message {
            Ok(packet) if !packet.bytes.is_empty() => match wire::decode(packet) {
                // Keepers of version 1 did not know Resize, and a message that a keeper cannot parse ends the
                // connection.
                Ok((_, Op::Resize { .. })) if self.speaks == Some(1) => self.hang_up(id),
                Ok((seq, op)) => self.answer(id, seq, op),
                Err(Refused::Answer { seq, kind, message }) => {
                    self.reply(id, seq, Reply::Failed { kind, message });
                }
                Err(Refused::Unreadable) => self.hang_up(id),
            },
            _ => self.hang_up(id),
        }
    }

    fn send(&self, connection: u64, message: Message<BorrowedFd<'_>>) {
        if let (Some(socket), Ok((bytes, fds))) =
            (self.connections.get(&connection), wire::encode_reply(message))
        {
            // If the server is gone the message is lost: the next server asks for the state. A server that does not
            // read blocks this keeper, as it blocks its own clients; the container's processes run on.
            let _ = packet::send(socket, &bytes, &fds);
        }
    }

    fn reply(&self, connection: u64, seq: u64, reply: Reply<BorrowedFd<'_>>) {
        self.send(connection, Message::Reply { seq, reply });
    }

    fn tell_all(&self, message: impl Fn() -> Message<BorrowedFd<'static>>) {
        for id in self.connections.keys() {
            self.send(*id, message());
        }
    }

    fn answer(&mut self, connection: u64, seq: u64, op: Op<OwnedFd>) {
        let done = |()| Some(Reply::Done);
        // `None`: the answer is sent later.
        let answer = match op {
            Op::Hello => self.hello(connection, seq).map(|()| None),
            Op::Prepare { tasks } => {
                // Without cgroup v1 no thread has to be placed in a cgroup.
                match (!tasks.is_empty()).then(|| Parked::start(&tasks)).transpose() {
                    Ok(parked) => self.parked = parked,
                    // Processes started from here would be outside the container's limits, so the keeper ends
                    // instead.
                    Err(_) => std::process::exit(1),
                }
                // Done here because no client waits for this request.
                seccomp::prepare();
                Ok(Some(Reply::Done))
            }
            Op::Create(create) => self.create(connection, seq, create).map(|()| None),
            Op::Run(run) => self.exec(connection, seq, run).map(|()| None),
            Op::Transfer(transfer) => self.transfer(connection, seq, transfer).map(|()| None),
            Op::Attach { id } => self.find(&id).map(|process| {
                self.hand_out(process, connection, seq, Vec::new());
                None
            }),
            Op::CloseStdin { id } => self.with(&id, Io::close_stdin).map(done),
            Op::Resize { id, window } => {
                self.find(&id).and_then(|process| process.io.resize(window).map_err(other)).map(done)
            }
            Op::Signal { id, signal } => self.signal(&id, signal).map(done),
            Op::Release { id } => self.with(&id, Io::release).map(done),
            Op::Unmounted { id } => self.unmounted(&id).map(Some),
            Op::Rewrite { files } => self.rewrite(&files).map(done),
            Op::Cancel { transfer } => {
                self.cancel(|launch| launch.connection == connection && launch.seq == transfer);
                Ok(Some(Reply::Done))
            }
            Op::Destroy => {
                let unmounted = Duration::ZERO;
                self.ending = Some(Ending { connection, seq, since: Instant::now(), unmounted });
                self.kill_all();
                failpoint::reach(Point::DestroyKilled);
                Ok(None)
            }
        };
        match answer {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(connection, seq, reply),
            Err((kind, message)) => self.reply(connection, seq, Reply::Failed { kind, message }),
        }
    }

    fn rewrite(&self, files: &[OwnedFd]) -> Result<(), Fail> {
        let contents: Vec<Vec<u8>> = files.iter().map(handed::read_all).collect::<Result<_, _>>()?;
        let container = self.container.as_ref().ok_or_else(|| other("this keeper has no container"))?;
        let own =
            container.devices.own.as_ref().ok_or_else(|| other("the container has no files of its own"))?;
        own.rewrite(&contents).map_err(other)
    }

    fn hello(&self, connection: u64, seq: u64) -> Result<(), Fail> {
        let json = serde_json::to_vec(&self.processes.states()).map_err(other)?;
        let processes = memfd::sealed("processes.json", &json, 0o400).map_err(other)?;
        let hello = Hello {
            version: self.speaks.unwrap_or(wire::VERSION),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            init: self.container.as_ref().map(|c| c.pid.as_raw_nonzero().get()),
            processes: processes.as_fd(),
        };
        self.reply(connection, seq, Reply::Hello(hello));
        Ok(())
    }

    fn find(&self, id: &str) -> Result<&Process, Fail> {
        self.processes.get(id).ok_or_else(|| unknown(id))
    }

    fn unmounted(&self, id: &str) -> Result<Reply<BorrowedFd<'static>>, Fail> {
        let process = self.find(id)?;
        let closed = process.closed.filter(|_| process.pea);
        closed.map(|time| Reply::Unmounted { us: us(time) }).ok_or_else(|| other("it is no ended pea"))
    }

    fn with(&mut self, id: &str, change: impl FnOnce(&mut Io)) -> Result<(), Fail> {
        let process = self.processes.get_mut(id).ok_or_else(|| unknown(id))?;
        change(&mut process.io);
        Ok(())
    }

    fn signal(&self, id: &str, signal: i32) -> Result<(), Fail> {
        // The pid belongs to an unreaped child, so the kernel cannot have reused it.
        let pid = self.find(id)?.pid;
        let signal =
            wardian_sys::signal::from_number(signal).ok_or_else(|| other(format!("no signal {signal}")))?;
        pid.map_or(Ok(()), |pid| kill_process(pid, signal).map_err(other))
    }

    fn hand_out(&self, process: &Process, connection: u64, seq: u64, warnings: Vec<String>) {
        let pid = process.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
        self.reply(connection, seq, Reply::Started(Started { pid, warnings, stdio: process.io.handed() }));
    }

    fn create(&mut self, connection: u64, seq: u64, create: Create<OwnedFd>) -> Result<(), Fail> {
        if self.made {
            return Err(other("this keeper has a container already"));
        }
        let Create { init, network, user, sysfs, boxed, place } = create;
        let plan = handed::plan(&boxed)?;
        handed::fits_container(&plan, user.is_some())?;
        let own = handed::own_files(&boxed, &plan)?;
        let devices = inside::devices(&plan, own).map_err(other)?;
        self.sysfs = sysfs.as_ref().and_then(|sysfs| mount::open_tree_clone(sysfs, "", false).ok());
        let (pipe, report) = report_pipe()?;
        let into = Namespaces::New { user: user.as_ref().map(AsFd::as_fd), network: network.as_fd() };
        let parts = Parts {
            plan: &plan,
            rootfs: boxed.rootfs.as_fd(),
            devices: &devices,
            binds: &boxed.binds,
            hierarchies: &boxed.v1_hierarchies,
            v1_mounts: &boxed.v1_mounts,
            sysfs: sysfs.as_ref(),
        };
        let keep = [parts.numbers(), vec![init.as_raw_fd()]].concat();
        let way = Way { keep: &keep, place: &place, rights: &plan.rights, into };
        let body = |report: &Report| {
            inside::enter(&parts)?;
            inside::no_stdio(&parts)?;
            child::close_all_but(&[report.number(), init.as_raw_fd()])?;
            let _ = rustix::process::setsid();
            rights::take(&plan.rights)?;
            child::clean_slate()?;
            child::die_with_parent()?;
            report.send(Tag::Ready, "");
            Err(child::exec_fd(init.as_fd(), "garden-init"))
        };
        failpoint::reach(Point::CreateCloning);
        let stage = from(self.parked.as_ref(), || child::start(&way, &report, body));
        failpoint::reach(Point::CreateCloned);
        let kind = Kind::Create(Box::new((boxed.rootfs, devices, plan)));
        self.launch(kind, connection, seq, pipe, report, stage, true)
    }

    fn exec(&mut self, connection: u64, seq: u64, run: Run<OwnedFd>) -> Result<(), Fail> {
        let Run { id, exec, pea, place } = run;
        if self.find(&id).is_ok() {
            return Err(other(format!("process ID '{id}' already in use")));
        }
        let exec: Exec = serde_json::from_slice(&read_all(&exec)?).map_err(other)?;
        let inside = match pea {
            None => None,
            Some(boxed) => Some((handed::plan(&boxed)?, boxed)),
        };
        let container = self.container.as_ref().ok_or_else(|| other("the container is not running"))?;
        if let Some((plan, _)) = &inside {
            let pid = container.pid.as_raw_nonzero().get();
            handed::fits_pea(plan, &exec, pid, container.user)?;
        }
        let (pipe, report) = report_pipe()?;
        let filter = inside.as_ref().map_or(&container.rights, |(plan, _)| &plan.rights).seccomp.clone();
        let rights = exec::rights(&exec, filter);
        let devices = inside.as_ref().map(|(plan, _)| container.devices_of_pea(plan)).transpose();
        let devices = devices.map_err(other)?;
        let (io, theirs) = match exec.tty {
            None => process::pipes(container.root).map_err(other)?,
            Some(window) => {
                process::terminal(devices.as_ref().unwrap_or(&container.devices), container.root, window)
                    .map_err(|e| other(format!("make a terminal: {e}")))?
            }
        };
        let into = Namespaces::Join {
            pidfd: container.pidfd.as_fd(),
            user: container.user,
            own_mounts: inside.is_some(),
        };
        let sysfs = inside.as_ref().and_then(|_| match &self.sysfs {
            Some(sysfs) => mount::open_tree_clone(sysfs, "", false).ok(),
            None => namespace::sysfs_of(namespace_of(container.pid, "net")?.as_fd()).ok(),
        });
        let parts = inside.as_ref().zip(devices.as_ref()).map(|((plan, boxed), devices)| Parts {
            plan,
            rootfs: boxed.rootfs.as_fd(),
            devices,
            binds: &boxed.binds,
            hierarchies: &boxed.v1_hierarchies,
            v1_mounts: &boxed.v1_mounts,
            sysfs: sysfs.as_ref(),
        });
        let mut keep = parts.as_ref().map(Parts::numbers).unwrap_or_default();
        keep.extend(stdio_numbers(&theirs));
        let way = Way { keep: &keep, place: &place, rights: &rights, into };
        let body = |report: &Report| {
            if let Some(parts) = &parts {
                inside::enter(parts)?;
            }
            exec::run(&exec, &theirs, report, rights.clone())
        };
        failpoint::reach(Point::RunCloning);
        let stage = from(self.parked.as_ref(), || child::start(&way, &report, body));
        failpoint::reach(Point::RunCloned);
        let rootfs = inside.map(|(_, boxed)| boxed.rootfs);
        self.launch(Kind::Run(id.clone()), connection, seq, pipe, report, stage, true)?;
        self.processes.insert(
            id,
            io,
            rootfs.zip(devices).map(|(rootfs, devices)| PeaBox::new(rootfs, devices)),
        );
        Ok(())
    }

    fn transfer(&mut self, connection: u64, seq: u64, transfer: Transfer<OwnedFd>) -> Result<(), Fail> {
        let Transfer { inward, user, path, tar, place } = transfer;
        let container = self.container.as_ref().ok_or_else(|| other("the container is not running"))?;
        let (pipe, report) = report_pipe()?;
        let into =
            Namespaces::Join { pidfd: container.pidfd.as_fd(), user: container.user, own_mounts: false };
        // The child keeps the tar's pipe and the report pipe alone: it must not hold another process's pipe open.
        let rights = transfer::rights(&container.rights);
        let keep = [tar.as_raw_fd()];
        let way = Way { keep: &keep, place: &place, rights: &rights, into };
        let task = transfer::Task { inward, user: &user, path: &path, rights: &rights };
        let body = |report: &Report| match tar
            .try_clone()
            .map_err(child::failed("tar"))
            .and_then(|tar| transfer::run(&task, tar))
        {
            Ok(()) => child::exit(0),
            Err(stop) => {
                report.send(Tag::Error, &stop.text);
                child::exit(1)
            }
        };
        let stage = from(self.parked.as_ref(), || child::start(&way, &report, body));
        failpoint::reach(Point::TransferCloned);
        drop(tar);
        self.launch(Kind::Transfer, connection, seq, pipe, report, stage, false)
    }

    #[allow(clippy::too_many_arguments)]
    fn launch(
        &mut self,
        kind: Kind,
        connection: u64,
        seq: u64,
        pipe: OwnedFd,
        report: Report,
        stage: io::Result<i32>,
        hurry: bool,
    ) -> Result<(), Fail> {
        drop(report);
        let stage = stage.map_err(|error| other(format!("cannot start a process: {error}")))?;
        let stage = Pid::from_raw(stage).ok_or_else(|| other("cannot start a process"))?;
        self.launches.push(Launch::new(kind, connection, seq, pipe, stage, hurry));
        Ok(())
    }

    /// Reads the reports of launches, and settles those whose outcome is known.
    fn hear(&mut self) {
        for launch in &mut self.launches {
            // The process is in its namespaces from its clone on, and is an unreaped child.
            if let (Some(pid), Kind::Run(id)) = (launch.hear(), &launch.kind)
                && let Some(boxed) = self.processes.get_mut(id).and_then(|p| p.boxed.as_mut())
            {
                boxed.namespace = namespace_of(pid, "mnt");
            }
        }
        self.settle_all();
    }

    fn settle_all(&mut self) {
        while let Some(index) = self.launches.iter().position(Launch::is_settled) {
            let launch = self.launches.remove(index);
            self.settle(launch);
        }
    }

    fn settle(&mut self, launch: Launch) {
        let (connection, seq) = (launch.connection, launch.seq);
        let started = match (launch.failure, launch.pid) {
            (Some(failure), _) => Err(failure),
            (None, Some(pid)) if launch.ready => Ok(pid),
            (None, _) => Err(other("the process was killed before its program could start")),
        };
        match (launch.kind, started) {
            (Kind::Transfer, started) => {
                self.reply(connection, seq, transferred(launch.status, started.err()));
            }
            (Kind::Run(id), Ok(pid)) => {
                self.processes.started(&id, pid);
                match self.find(&id) {
                    Ok(process) => {
                        self.hand_out(process, connection, seq, launch.warnings);
                        failpoint::reach(Point::RunReplied);
                    }
                    Err((kind, message)) => {
                        self.reply(connection, seq, Reply::Failed { kind, message });
                    }
                }
            }
            (Kind::Create(_), Ok(pid)) if children::has_ended(pid.as_raw_nonzero().get()) => {
                let (kind, message) = other("the container's init ended at once");
                self.reply(connection, seq, Reply::Failed { kind, message });
            }
            (Kind::Create(parts), Ok(pid)) => self.created(connection, seq, pid, *parts),
            (kind, Err((failure, message))) => {
                if let Kind::Run(id) = kind {
                    self.processes.remove(&id);
                }
                self.reply(connection, seq, Reply::Failed { kind: failure, message });
            }
        }
    }

    fn created(
        &mut self,
        connection: u64,
        seq: u64,
        pid: Pid,
        (rootfs, mut devices, plan): (OwnedFd, Devices, Plan),
    ) {
        devices.own.iter_mut().for_each(inside::OwnFiles::attached);
        match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(pidfd) => {
                self.made = true;
                let (user, root, rights) = (plan.user, plan.root_ids.0, plan.rights);
                let container = Container { pid, pidfd, user, rights, root, devices, _rootfs: rootfs };
                let reply = Reply::Made { pid: pid.as_raw_nonzero().get(), init: container.pidfd.as_fd() };
                self.reply(connection, seq, reply);
                failpoint::reach(Point::CreateReplied);
                self.container = Some(container);
                // What the bundle needed is not needed again, and there may be hundreds of keepers.
                heap::trim();
            }
            Err(error) => {
                let message = format!("pidfd_open: {error}");
                self.reply(connection, seq, Reply::Failed { kind: Failure::Other, message });
            }
        }
    }

    /// Kills launches that are past their deadline.
    fn expire(&mut self) {
        let now = Instant::now();
        self.launches.iter_mut().for_each(|launch| launch.expire(now));
    }

    fn kill_all(&mut self) {
        self.launches.iter().for_each(Launch::kill);
        if let Some(container) = &self.container {
            let _ = kill_process(container.pid, Signal::KILL);
        }
    }

    /// Reaps children that have ended and may be reaped, see [`launches`].
    fn reap(&mut self) {
        let mut scratch = [0; 1024];
        while rustix::io::read(&self.signals, &mut scratch).is_ok_and(|n| n > 0) {}
        (self.held, self.more) = (false, true);
        // A bounded number per turn: a privileged container can create children of the keeper (CLONE_PARENT) as fast
        // as they are reaped.
        for _ in 0..REAPED_AT_ONCE {
            let Ok(Some(pid)) = children::peek_ended().map(|raw| raw.and_then(Pid::from_raw)) else {
                self.more = false;
                break;
            };
            if !self.may_reap(pid) {
                // waitid keeps returning the held child and hides the others, so the known pids are tried one by one.
                (self.held, self.more) = (true, false);
                for pid in self.known() {
                    let _ = self.reap_one(pid);
                }
                break;
            }
            if !self.reap_one(pid) {
                self.more = false;
                break;
            }
        }
        self.settle_all();
    }

    fn may_reap(&self, pid: Pid) -> bool {
        let known = self.container.as_ref().is_some_and(|c| c.pid == pid) || self.processes.has(pid);
        launches::may_reap(&self.launches, pid, known)
    }

    /// Pids of the children that may be reaped once they have ended.
    fn known(&self) -> Vec<Pid> {
        let launches = self.launches.iter().flat_map(|launch| [launch.stage, launch.pid]).flatten();
        let known = launches.chain(self.container.as_ref().map(|c| c.pid)).chain(self.processes.pids());
        known.filter(|pid| self.may_reap(*pid)).collect()
    }

    /// Reaps a child if it has ended. Returns whether it had.
    fn reap_one(&mut self, pid: Pid) -> bool {
        let status = children::reap(pid.as_raw_nonzero().get());
        if let Some(status) = status {
            self.ended(pid, status);
        }
        status.is_some()
    }

    fn ended(&mut self, pid: Pid, status: i32) {
        if self.container.as_ref().is_some_and(|c| c.pid == pid) {
            // Closing the root file system unmounts it; a volatile overlay has nothing to sync.
            if self.ending.is_some() {
                failpoint::reach(Point::DestroyClosing);
            }
            let closing = Instant::now();
            self.container = None;
            match &mut self.ending {
                Some(ending) => ending.unmounted = closing.elapsed(),
                None => self.tell_all(|| Message::Gone { status }),
            }
            return;
        }
        if let Some((id, boxed)) = self.processes.exited(pid, status) {
            failpoint::reach(Point::Exited);
            self.tell_all(|| Message::Exited { id: id.clone(), status });
            // The answer does not wait for the unmount of a pea's root file system.
            let closing = Instant::now();
            drop(boxed);
            if let Some(process) = self.processes.get_mut(&id) {
                process.closed = Some(closing.elapsed());
            }
            return;
        }
        // The child may be the process of a failed launch, which no client knows.
        let _ = self.launches.iter_mut().any(|launch| launch.reaped(pid, status));
    }
}

/// A transfer has succeeded only if its helper exits with status 0: the helper may also have been killed, by a
/// process of its user or by the OOM killer.
fn transferred(status: Option<i32>, said: Option<Fail>) -> Reply<BorrowedFd<'static>> {
    let (kind, message) = match (status, said) {
        (Some(0), _) => return Reply::Done,
        (Some(status @ 129..), _) => other(format!(
            "the helper was killed by signal {} before it had finished: what it has moved is not whole",
            status - 128
        )),
        (_, Some(said)) => said,
        (status, None) => other(format!("the helper failed without a word: {status:?}")),
    };
    Reply::Failed { kind, message }
}

/// Clones from the parked thread, in the container's cgroups, if there is one.
fn from(parked: Option<&Parked>, start: impl FnOnce() -> io::Result<i32>) -> io::Result<i32> {
    let mut start = Some(start);
    let mut job = || start.take().map_or_else(|| Err(io::ErrorKind::Other.into()), |start| start());
    match parked {
        Some(parked) => parked.call(&mut job),
        None => job(),
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn stdio_numbers(io: &TheirIo) -> Vec<RawFd> {
    match io {
        TheirIo::Pipes(pipes) => pipes.iter().map(AsRawFd::as_raw_fd).collect(),
        TheirIo::Terminal(slave) => vec![slave.as_raw_fd()],
    }
}

/// Opens a namespace of a process. Its mount namespace is held: the process's exit would pay for the unmounts otherwise.
fn namespace_of(pid: Pid, kind: &str) -> Option<OwnedFd> {
    let path = format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero());
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd), Fail> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(other)
}

fn report_pipe() -> Result<(OwnedFd, Report), Fail> {
    let (reader, writer) = new_pipe()?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(other)?;
    Ok((reader, Report(writer)))
}

/// A signalfd for SIGCHLD.
#[allow(unsafe_code)]
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: a signal set on our stack; the descriptor is owned at once.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}
