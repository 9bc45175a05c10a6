//! Starts of processes and peas in a living container.

use crate::admission::bounds;
use crate::container::Container;
use crate::container::lifecycle::Event;
use crate::container::record::Record;
use crate::failpoints::Point;
use crate::keeper::{self, Keeper};
use crate::process::Process;
use crate::process::about::About;
use crate::process::kept::{self, Kept};
use crate::spec::{Defaults, OfImage, ProcessSpec};
use crate::{Engine, Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tracing::Instrument as _;
use wardian_runtime::caps;
use wardian_runtime::wire::{Exec, Failure, Feature, Run, Started};
use wardian_sys::failpoint;
use wardian_sys::memfd;

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

impl Engine {
    /// Starts a process or a pea.
    ///
    /// # Errors
    /// Unknown container, taken id, or whatever prevents the start of the program.
    pub async fn run(&self, handle: &str, mut spec: ProcessSpec) -> Result<Process> {
        let container = self.find(handle)?;
        let keeper = container.keeper()?;
        if spec.image.is_none() && !spec.bind_mounts.is_empty() {
            let message = "Running a process with bind mounts and no image provided is not allowed";
            return Err(Error::Invalid(message.to_owned()));
        }
        if spec.image.is_some() && spec.of_image != OfImage::Nothing {
            return Err(Error::Invalid("a pea has nothing of its container's image".to_owned()));
        }
        complete(&mut spec, &container.record())?;
        if spec.tty.is_some() && !keeper.has(Feature::Terminals) {
            let message =
                "the container was made by an earlier version, which cannot give a process a terminal";
            return Err(Error::Invalid(message.to_owned()));
        }
        if spec.id.is_empty() {
            spec.id = uuid::Uuid::new_v4().to_string();
        }
        bounds::process(&spec)?;
        if spec.keep_output > kept::MOST {
            let message = format!(
                "at most {} bytes of a process's output are kept, not {}",
                kept::MOST,
                spec.keep_output
            );
            return Err(Error::Invalid(message));
        }
        let about = Arc::new(About::new(&spec));
        let number = about.is_recorded().then(|| container.next_number());
        let kept = number.filter(|_| spec.keep_output > 0).map(|number| {
            let place = self.shared.records.output(&container.id, number);
            Kept::new(place, &self.shared.kept_output, spec.keep_output)
        });
        let process = Process::new(about.clone(), kept, keeper.clone());
        container.add_process(&process, number)?;
        if spec.hold_input {
            process.hold_input();
        }
        if let Some(number) = number
            && let Err(error) = self.shared.records.save_process(&container.id, number, &about)
        {
            container.remove_process(&self.shared, process.id());
            return Err(Error::system("process record")(error));
        }
        let (engine, theirs, started) = (self.clone(), container.clone(), process.clone());
        // The start runs in a task of its own: a client that disconnects must not leave half a pea.
        let task = async move {
            let result = match theirs.going().await {
                Ok(_going) => {
                    // A process whose output cannot be written to a file is started: it is kept for `logs`.
                    engine.output_to_files(&theirs, number, &started).await;
                    engine.start_process(&theirs, &keeper, &started, spec).await
                }
                Err(error) => Err(error),
            };
            match &result {
                Ok(()) => {
                    engine.resumed(&theirs);
                    theirs.tell_start(&engine.shared.events, &started, false);
                }
                Err(_) => theirs.remove_process(&engine.shared, started.id()),
            }
            result
        };
        let task = tokio::spawn(task.in_current_span());
        task.await.map_err(Error::task("run"))??;
        Ok(process)
    }

    /// Writes what is kept of a process to files, if there are to be any. That there can be none is logged.
    pub(crate) async fn output_to_files(
        &self,
        container: &Container,
        number: Option<u64>,
        process: &Process,
    ) {
        let (Some(number), Some(kept)) = (number, process.kept()) else { return };
        if !self.shared.output_files.are_wanted() {
            return;
        }
        let (shared, id) = (self.shared.clone(), container.id.clone());
        let prepared = tokio::task::spawn_blocking(move || shared.output_files.prepare(&id)).await;
        match prepared.map_err(std::io::Error::other).flatten() {
            Ok(()) => self.shared.output_files.follow(&container.id, number, kept),
            Err(error) => tracing::warn!(handle = container.handle, %error, "output.no-file"),
        }
    }

    /// Marks a stopped container as running again: something was started in it after the stop.
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
            let entry = self.shared.cgroups.enter_v2(&container.id)?;
            let run = Run { id: spec.id.clone(), exec: payload.as_fd(), pea: None, place: entry.as_fds() };
            failpoint::reach(Point::RunAsking);
            let answer = async { keeper.run(run).await?.answer().await }.await;
            failpoint::reach(Point::RunAnswered);
            let connected = connect(process, keeper, answer).await;
            return connected.map_err(|error| error.under(&record.limits));
        }
        self.start_pea(container, keeper, process, spec, exec).await
    }

    /// Finds a process, running or ended.
    ///
    /// # Errors
    /// Unknown container or process.
    pub async fn attach(&self, handle: &str, id: &str) -> Result<Process> {
        // A Garden client is told of the process, whichever of container and process is unknown.
        let unknown = || Error::UnknownProcess(id.to_owned());
        let process = self.find(handle).map_err(|_| unknown())?.process(id)?;
        if process.is_started() { Ok(process) } else { Err(unknown()) }
    }
}

pub fn payload(exec: &Exec) -> Result<OwnedFd> {
    bounds::program(&exec.args, &exec.env)?;
    let json = serde_json::to_vec(exec).map_err(Error::system("run"))?;
    memfd::sealed("process.json", &json, 0o400).map_err(Error::system("run"))
}

/// Adds to a spec what the container's image says.
fn complete(spec: &mut ProcessSpec, record: &Record) -> Result<()> {
    let Defaults { entrypoint, command, user, working_dir, volumes: _ } = &record.defaults;
    if spec.of_image == OfImage::Nothing {
        return Ok(());
    }
    if spec.of_image == OfImage::Command {
        let given: Vec<_> =
            std::iter::once(std::mem::take(&mut spec.path)).chain(std::mem::take(&mut spec.args)).collect();
        let is_given = given.len() > 1 || !given[0].is_empty();
        let mut all = entrypoint.iter().chain(if is_given { &given } else { command }).cloned();
        let Some(path) = all.next() else {
            let image = &record.image.0;
            return Err(Error::Invalid(format!(
                "the image {image} has no command of its own (neither Entrypoint nor Cmd): say what to run"
            )));
        };
        (spec.path, spec.args) = (path, all.collect());
    }
    if spec.user.is_empty() {
        spec.user.clone_from(user);
    }
    if spec.dir.is_empty() {
        spec.dir = if working_dir.is_empty() { "/".to_owned() } else { working_dir.clone() };
    }
    Ok(())
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

pub async fn connect(
    process: &Process,
    keeper: &Keeper,
    answer: std::result::Result<Started<OwnedFd>, keeper::Error>,
) -> Result<()> {
    match answer {
        Ok(Started { warnings, stdio, .. }) => {
            for warning in warnings {
                tracing::info!(process = process.id(), warning, "run.degraded");
            }
            let connected = process.connect(stdio).await;
            if connected.is_err() {
                end_unknown(keeper, process.id()).await;
            }
            connected
        }
        Err(error @ keeper::Error::NoDescriptors) => {
            end_unknown(keeper, process.id()).await;
            Err(Error::keeper("run")(error))
        }
        Err(keeper::Error::Failed { kind: Failure::ExecutableNotFound, message }) => {
            Err(Error::ExecutableNotFound(format!("exec failed: {message}")))
        }
        Err(keeper::Error::Failed { message, .. }) => Err(Error::Launch(message)),
        Err(error) => Err(Error::keeper("run")(error)),
    }
}

/// Kills a running program whose descriptors were lost: no client could ever reach it.
async fn end_unknown(keeper: &Keeper, id: &str) {
    tracing::error!(process = id, "run.no-descriptors: it is killed");
    // A keeper that is gone has no processes.
    drop(keeper.signal(id, rustix::process::Signal::KILL.as_raw()).await);
    drop(keeper.release(id).await);
}
