//! Processes, peas, and tars in and out of a living container.

use crate::container::Container;
use crate::create::{assemble, network_files, shm_bytes};
use crate::lifecycle::Event;
use crate::metrics::{Pea, since_boot};
use crate::process::Process;
use crate::record::Record;
use crate::spec::{BindMount, ProcessSpec};
use crate::{Engine, Error, Result, Shared, Transfer, bounds};
use rustix::pipe::PipeFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::net::unix::pipe;
use tracing::Instrument as _;
use wardian_runtime::bundle::Settings;
use wardian_runtime::cgroup::devices::Devices;
use wardian_runtime::client::{self, Keeper};
use wardian_runtime::wire::{self, Exec, Failure, Op, Placement, Reply};
use wardian_runtime::{caps, cgroup};
use wardian_store::Image;
use wardian_sys::failpoint::{self, Point};
use wardian_sys::{memfd, namespace};

/// Names of resource limits and their numbers (getrlimit(2), x86-64 and arm64).
const RLIMITS: [(&str, u32); 15] = [
    ("cpu", 0),
    ("fsize", 1),
    ("data", 2),
    ("stack", 3),
    ("core", 4),
    ("rss", 5),
    ("nproc", 6),
    ("nofile", 7),
    ("memlock", 8),
    ("as", 9),
    ("locks", 10),
    ("sigpending", 11),
    ("msgqueue", 12),
    ("nice", 13),
    ("rtprio", 14),
];

/// Bytes a tar's pipe holds: fewer changes between writer and reader.
const PIPE: usize = 1 << 20;

impl Engine {
    /// Start a process or a pea.
    ///
    /// # Errors
    /// Unknown container, id taken, and whatever keeps the program from starting.
    pub async fn run(&self, handle: &str, mut spec: ProcessSpec) -> Result<Process> {
        let container = self.find(handle)?;
        let keeper = container.keeper()?;
        if spec.image.is_none() && !spec.bind_mounts.is_empty() {
            let message = "Running a process with bind mounts and no image provided is not allowed";
            return Err(Error::Invalid(message.to_owned()));
        }
        if spec.tty.is_some() && container.keeper_version() < wire::TERMINALS {
            let message =
                "the container was made by an earlier version, which cannot give a process a terminal";
            return Err(Error::Invalid(message.to_owned()));
        }
        if spec.id.is_empty() {
            spec.id = uuid::Uuid::new_v4().to_string();
        }
        bounds::process(&spec)?;
        let process = Process::new(spec.id.clone(), keeper.clone());
        container.add_process(&process)?;
        let (engine, theirs, started) = (self.clone(), container.clone(), process.clone());
        // In a task of its own: a client that goes away must not leave half a pea.
        let task = async move {
            let result = engine.start_process(&theirs, &keeper, &started, spec).await;
            match &result {
                Ok(()) => {
                    engine.resumed(&theirs);
                    theirs.tell_start(&engine.shared.events, &started, false);
                }
                Err(_) => theirs.remove_process(started.id()),
            }
            result
        };
        let task = tokio::spawn(task.in_current_span());
        task.await.map_err(|e| Error::failed("run", e))??;
        Ok(process)
    }

    /// A container in which something was started after a stop is no stopped one any more.
    pub(crate) fn resumed(&self, container: &Container) {
        let resumed = |record: &mut Record| {
            record.stopped = false;
            Ok(())
        };
        if container.is_stopped()
            && let Err(error) =
                container.try_update(Event::Resumed, resumed, |record| self.shared.records.save(record))
        {
            tracing::warn!(handle = container.handle, %error, "stop.still-recorded");
        }
    }

    async fn start_process(
        &self,
        container: &Arc<Container>,
        keeper: &Keeper,
        process: &Process,
        spec: ProcessSpec,
    ) -> Result<()> {
        let record = container.record();
        let exec = exec(&record, &spec, self.shared.config.no_new_privileges)?;
        if spec.image.is_none() {
            let payload = payload(&exec)?;
            let entry =
                self.shared.cgroups.enter_v2(&container.id).map_err(|e| Error::failed("cgroup", e))?;
            let place = Placement { v1_procs: entry.v1.len(), v2_dir: entry.v2.is_some() };
            let mut fds = vec![payload.as_fd()];
            fds.extend(entry.fds());
            let op = Op::Run { id: spec.id.clone(), boxed: None, place };
            failpoint::reach(Point::RunAsking);
            let answer = keeper.ask(op, &fds).await;
            failpoint::reach(Point::RunAnswered);
            return connect(process, keeper, answer).await;
        }
        let image = self.image("creating-volume", spec.image.as_deref().unwrap_or_default()).await?;
        let shared = self.shared.clone();
        let theirs = container.clone();
        let pea = uuid::Uuid::new_v4().simple().to_string();
        let rootfs_id = pea.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            prepare_pea(&shared, &theirs, &spec, &image, exec, &rootfs_id)
        })
        .await;
        let answer = match prepared.map_err(|e| Error::failed("pea", e)).flatten() {
            Ok((payload, parts, op)) => {
                process.needs_cleaning();
                let made = Pea { rootfs: pea.clone(), made_ns: since_boot() };
                container.add_pea(process.id(), made);
                let mut fds = vec![payload.as_fd(), parts.config.as_fd(), parts.rootfs.as_fd()];
                fds.extend(parts.binds.iter().map(AsFd::as_fd));
                fds.extend(parts.entry.fds());
                let answer = async {
                    let asked = keeper.begin(op, &fds).await?;
                    failpoint::reach(Point::PeaAsked);
                    asked.answer().await
                };
                let answer = answer.await;
                failpoint::reach(Point::PeaAnswered);
                connect(process, keeper, answer).await
            }
            Err(error) => Err(error),
        };
        if answer.is_err() {
            container.take_pea(process.id());
            clean_pea(&self.shared, &container.id, &pea);
        }
        answer
    }

    /// A pea that has ended: end what it left behind, let its root file system go, then tell.
    pub(crate) fn after_pea(&self, container: &Arc<Container>, process: &Process) {
        let Some(pea) = container.take_pea(process.id()) else { return };
        let (shared, container, process) = (self.shared.clone(), container.clone(), process.clone());
        failpoint::reach(Point::PeaEnded);
        tokio::task::spawn_blocking(move || {
            // Its cgroup's count goes with it.
            if pea.is_out_of_memory(&shared, &container.id) {
                let save = |record: &Record| shared.records.save(record);
                // A container that ends needs it no more.
                drop(container.update(|record| record.out_of_memory = true, save));
            }
            clean_pea(&shared, &container.id, &pea.rootfs);
            process.cleaned();
        });
    }

    /// Find a process, running or ended.
    ///
    /// # Errors
    /// Unknown container or process.
    pub async fn attach(&self, handle: &str, id: &str) -> Result<Process> {
        // A Garden client hears of the process, whichever of the two is missing.
        let unknown = || Error::UnknownProcess(id.to_owned());
        let process = self.find(handle).map_err(|_| unknown())?.process(id)?;
        if process.is_started() { Ok(process) } else { Err(unknown()) }
    }

    /// Unpack a tar inside the container: write it to the pipe, drop the pipe, then `finish`.
    ///
    /// # Errors
    /// Unknown or broken container; what the unpacking says comes from `finish`.
    pub async fn stream_in(
        &self,
        handle: &str,
        user: &str,
        destination: &str,
    ) -> Result<Transfer<pipe::Sender>> {
        let (reader, writer) = tar_pipe()?;
        let writer = pipe::Sender::from_owned_fd(writer).map_err(|e| Error::failed("stream-in", e))?;
        self.transfer(handle, true, user, destination, reader, writer)
    }

    /// Pack a path inside the container: read the tar from the pipe to its end, then `finish`.
    ///
    /// # Errors
    /// Unknown or broken container; what the packing says comes from `finish`.
    pub async fn stream_out(
        &self,
        handle: &str,
        user: &str,
        source: &str,
    ) -> Result<Transfer<pipe::Receiver>> {
        let (reader, writer) = tar_pipe()?;
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(|e| Error::failed("stream-out", e))?;
        self.transfer(handle, false, user, source, writer, reader)
    }

    fn transfer<P>(
        &self,
        handle: &str,
        inward: bool,
        user: &str,
        path: &str,
        theirs: OwnedFd,
        ours: P,
    ) -> Result<Transfer<P>> {
        // Clients look for these words.
        let step = if inward { "stream-in: error streaming in" } else { "stream-out" };
        bounds::transfer(user, path)?;
        let container = self.find(handle)?;
        let keeper = container.keeper()?;
        let entry = self.shared.cgroups.enter_v2(&container.id).map_err(|e| Error::failed("cgroup", e))?;
        let place = Placement { v1_procs: entry.v1.len(), v2_dir: entry.v2.is_some() };
        let op = Op::Transfer { inward, user: user.to_owned(), path: path.to_owned(), place };
        let can_cancel = container.keeper_version() >= wire::CONFINED;
        let (wanted, dropped) = tokio::sync::oneshot::channel::<std::convert::Infallible>();
        let task = tokio::spawn(async move {
            let mut fds = vec![theirs.as_fd()];
            fds.extend(entry.fds());
            let asked = keeper.begin(op, &fds).await;
            // Our copy of their end must go while they work, or nobody would see it close.
            drop(fds);
            drop((theirs, entry));
            failpoint::reach(if inward { Point::StreamInBegun } else { Point::StreamOutBegun });
            let answer = async {
                let asked = asked?;
                let transfer = asked.seq;
                let mut answer = std::pin::pin!(asked.answer());
                tokio::select! {
                    answer = &mut answer => answer,
                    // Nobody wants it any more. The end of the pipe does not end a helper that container root has stopped.
                    _ = dropped, if can_cancel => {
                        keeper.ask(Op::Cancel { transfer }, &[]).await?;
                        answer.await
                    }
                }
            };
            answer.await.map(drop).map_err(|e| Error::failed(step, e))
        });
        Ok(Transfer { pipe: Some(ours), task, _wanted: wanted })
    }
}

fn tar_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::failed("pipe", e))?;
    // Above the host's limit for pipes it stays as it is: slower, not wrong.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
    Ok((reader, writer))
}

fn payload(exec: &Exec) -> Result<OwnedFd> {
    bounds::program(&exec.args, &exec.env)?;
    let json = serde_json::to_vec(exec).map_err(|e| Error::failed("run", e))?;
    memfd::sealed("process.json", &json, 0o400).map_err(|e| Error::failed("run", e))
}

fn exec(record: &Record, spec: &ProcessSpec, no_new_privileges: bool) -> Result<Exec> {
    let mut rlimits = Vec::new();
    for (name, value) in &spec.rlimits {
        let number = RLIMITS.iter().find(|(known, _)| known == name).map(|(_, number)| *number);
        rlimits.push((number.ok_or_else(|| Error::Invalid(format!("unknown rlimit {name:?}")))?, *value));
    }
    let mut args = vec![spec.path.clone()];
    args.extend(spec.args.iter().cloned());
    if args.iter().any(|a| a.contains('\0')) {
        return Err(Error::Invalid("an argument contains a NUL".to_owned()));
    }
    let mut env = if spec.image.is_some() { Vec::new() } else { record.env.clone() };
    env.extend(spec.env.iter().cloned());
    Ok(Exec {
        args,
        env,
        dir: if spec.image.is_some() && spec.dir.is_empty() { "/".to_owned() } else { spec.dir.clone() },
        make_dir: spec.image.is_none(),
        user: spec.user.clone(),
        rlimits,
        capabilities: if record.privileged { caps::PRIVILEGED } else { caps::UNPRIVILEGED },
        capabilities_non_root: caps::NON_ROOT,
        no_new_privileges: no_new_privileges && !record.privileged,
        tty: spec.tty.map(Into::into),
        pea: spec.image.is_some(),
    })
}

async fn connect(
    process: &Process,
    keeper: &Keeper,
    answer: std::result::Result<(Reply, Vec<OwnedFd>), client::Error>,
) -> Result<()> {
    match answer {
        Ok((Reply::Started { warnings, stdin, tty, .. }, fds)) => {
            for warning in warnings {
                tracing::warn!(process = process.id(), warning, "run.degraded");
            }
            let connected = process.connect(stdin, tty, fds).await;
            if connected.is_err() {
                end_unknown(keeper, process.id()).await;
            }
            connected
        }
        Err(error @ client::Error::NoDescriptors) => {
            end_unknown(keeper, process.id()).await;
            Err(Error::failed("run", error))
        }
        Ok(_) => Err(Error::failed("run", "the keeper's answer makes no sense")),
        Err(client::Error::Failed { kind: Failure::ExecutableNotFound, message }) => {
            Err(Error::ExecutableNotFound(format!("exec failed: {message}")))
        }
        Err(client::Error::Failed { message, .. }) => Err(Error::Invalid(message)),
        Err(error) => Err(Error::failed("run", error)),
    }
}

/// A program that runs, and whose descriptors have not come: nobody will ever know of it.
async fn end_unknown(keeper: &Keeper, id: &str) {
    tracing::error!(process = id, "run.no-descriptors: it is killed");
    let signal = rustix::process::Signal::KILL.as_raw();
    // A keeper that is gone has no processes.
    drop(keeper.ask(Op::Signal { id: id.to_owned(), signal }, &[]).await);
    drop(keeper.ask(Op::Release { id: id.to_owned() }, &[]).await);
}

type PreparedPea = (OwnedFd, crate::create::Parts, Op);

fn prepare_pea(
    shared: &Shared,
    container: &Container,
    spec: &ProcessSpec,
    image: &Image,
    mut exec: Exec,
    pea: &str,
) -> Result<PreparedPea> {
    let record = container.record();
    exec.env = image.config.env.iter().chain(&exec.env).cloned().collect();
    if let Some((uid, gid)) = spec.user.split_once(':')
        && (uid.parse::<u32>().is_err() || gid.parse::<u32>().is_err())
    {
        return Err(Error::Invalid(format!("parse-user: '{}' is not a valid uid:gid", spec.user)));
    }
    shared.records.pea_begins(&container.id, pea, &spec.id).map_err(|e| Error::failed("pea", e))?;
    failpoint::reach(Point::PeaRecorded);
    // Below its container, or with limits of its own beside it.
    let cgroup = pea_cgroup(&container.id, pea, spec.limits.is_some());
    let mut limits = spec.limits.map_or_else(cgroup::Limits::default, Into::into);
    if spec.limits.is_some() && limits.pids == 0 {
        limits.pids = shared.config.default_pids;
    }
    // Below its container it has the device rules of that.
    let devices = spec.limits.is_some().then(|| Devices::from(record.privileged));
    let entry = shared.cgroups.make(&cgroup, limits, devices).map_err(|e| Error::failed("cgroup", e))?;
    failpoint::reach(Point::PeaCgroup);
    let dir = shared.records.path(&container.id);
    let confined = container.keeper_version() >= wire::CONFINED;
    let init = container.init().ok_or_else(|| Error::Invalid("the container is not running".to_owned()))?;
    let settings = Settings {
        privileged: record.privileged,
        joins: Some(init),
        cgroups_path: format!("/{}/{cgroup}", shared.cgroups.top()),
        no_new_privileges: exec.no_new_privileges,
        memory_bytes: limits.memory_bytes,
        cpu_shares: limits.cpu_shares,
        shm_bytes: shm_bytes(shared.config.shm_bytes, spec.limits.unwrap_or(record.limits).memory_bytes),
        pids: limits.pids,
        earlier: !confined,
        ..shared.settings(record.range)
    };
    // The keeper shows the container's own files to its peas. One of an earlier version has them in the run directory.
    let files = network_files(&dir);
    let mut binds = spec.bind_mounts.clone();
    let files: &[BindMount] = if confined { &files } else { &[] };
    if !confined {
        binds.extend(network_files(&dir));
    }
    // A namespace for the mapping alone: that of the container would have to be found by a number of a process.
    let maps = shared.ids.maps(record.range);
    let own = record.range.map(|_| namespace::user(&maps, &maps)).transpose();
    let own = own.map_err(|e| Error::failed("namespaces", e))?;
    let owner = shared.root_of(record.range, own.as_ref().unwrap_or(&shared.idmap));
    let owner = (!record.privileged).then_some(owner);
    let config = dir.join("peas").join(format!("{pea}.json"));
    let parts = assemble(shared, pea, image, owner, settings, &binds, (files, false), entry, &config)?;
    failpoint::reach(Point::PeaRootfs);
    let op = Op::Run { id: spec.id.clone(), boxed: Some(parts.boxed.clone()), place: parts.place() };
    Ok((payload(&exec)?, parts, op))
}

/// Where a pea runs.
pub fn pea_cgroup(container: &str, pea: &str, own: bool) -> String {
    if own { format!("{container}.{pea}") } else { format!("{container}/{pea}") }
}

/// Everything that a pea has had. Its root file system's last reference was the keeper's.
pub fn clean_pea(shared: &Shared, container: &str, pea: &str) {
    let cgroups = [false, true].map(|own| pea_cgroup(container, pea, own));
    for cgroup in &cgroups {
        shared.cgroups.kill(cgroup);
    }
    shared.records.pea_ends(container, pea);
    failpoint::reach(Point::PeaCleaning);
    shared.store.release_rootfs(pea, Some(pea));
    for cgroup in cgroups {
        shared.remove_cgroup_later(cgroup);
    }
}
