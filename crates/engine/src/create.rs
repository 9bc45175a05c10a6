//! The create of a container: from a request to a living container.

use crate::admission::bounds;
use crate::age::since_boot;
use crate::assemble::{Parts, assemble, network_files, shm_bytes};
use crate::container::Container;
use crate::container::lifecycle;
use crate::container::record::{CONFIG, Phase, Record, VERSION};
use crate::error::{Whose, too_little};
use crate::events::What;
use crate::failpoints::Point;
use crate::history::{Kind, Timeline};
use crate::image::gone;
use crate::keeper::{Event, Keeper};
use crate::ready::ids::Home;
use crate::ready::keepers::Waiting;
use crate::spec::{ContainerSpec, Defaults, StopSignal};
use crate::{Engine, Error, Result, Shared, grace, mounts};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tracing::Instrument as _;
use wardian_network as network;
use wardian_runtime::bundle::Settings;
use wardian_runtime::cgroup::devices::Devices;
use wardian_runtime::wire::Create;
use wardian_store::{DiskLimit, Image};
use wardian_sys::{failpoint, signal};

impl Engine {
    /// Creates a container. Returns its handle, and warnings for the client.
    ///
    /// # Errors
    /// The handle is invalid or taken, the image cannot be found, or the kernel refuses something. Nothing is
    /// left behind.
    pub async fn create(&self, mut spec: ContainerSpec) -> Result<(String, Vec<String>)> {
        if spec.handle.is_empty() {
            spec.handle = uuid::Uuid::new_v4().to_string();
        }
        bounds::container(&spec)?;
        if spec.limits.pids == 0 {
            spec.limits.pids = self.shared.config.default_pids;
        }
        if spec.privileged && self.shared.config.disable_privileged {
            return Err(Error::Invalid("privileged container creation is disabled".to_owned()));
        }
        crate::network::heed_properties(&mut spec, &self.shared.config.network_namespaces)?;
        let grace =
            if spec.grace_time.is_zero() { self.shared.config.default_grace_time } else { spec.grace_time };
        if !grace.is_zero() {
            spec.properties.insert(grace::PROPERTY.to_owned(), grace.as_nanos().to_string());
        }
        // A create that cannot succeed must not queue.
        self.check_room(&self.shared.lock(), &spec.handle)?;
        let timeline = Timeline::begin();
        let image = self.image("image", &spec.image, &spec.pull).await;
        timeline.ended("image");
        let image = image.inspect_err(|error| {
            // The container has no id yet.
            let failed = timeline.operation(Kind::Create, &spec.handle, "", Some(error.to_string()));
            self.shared.history.add(failed);
        })?;
        let unasked = |why| {
            format!(
                "no registry has told whether there is a newer image, so that of the store is used: {why}"
            )
        };
        let warning = image
            .unasked
            .clone()
            .map(unasked)
            .into_iter()
            .chain(image.config.warning())
            .reduce(|a, b| a + "\n" + &b);
        let mut warnings: Vec<String> = warning.into_iter().collect();
        if self.prepare_limit(&image, spec.limits.disk).await? {
            timeline.ended("disk-limit");
        }
        let _turn = match self.shared.gate.try_enter() {
            Some(turn) => turn,
            None => {
                let turn = tokio::select! {
                    turn = self.shared.gate.enter() => turn?,
                    () = gone() => return Err(Error::GivenUp { during: "create", why: "the client has gone before its turn" }),
                };
                timeline.ended("queue");
                turn
            }
        };
        let shared = self.shared.clone();
        let waiting = tokio::task::spawn_blocking(move || shared.keepers.take()).await;
        let waiting = waiting.map_err(Error::task("create"))?.map_err(Error::system("start a keeper"))?;
        let container = match self.reserve(&spec, &image, &waiting) {
            Ok(container) => container,
            Err(error) => {
                self.shared.keepers.put_back(waiting);
                return Err(error);
            }
        };
        failpoint::reach(Point::CreateReserved);
        timeline.ended("keeper");
        // The create runs in a task of its own: a client that disconnects must not leave a half-made
        // container.
        let engine = self.clone();
        let made = async move {
            let _served = engine.shared.sweeper.serve();
            let slow = engine.look_if_slow(Kind::Create, &container.id, None, None);
            let result = engine.make(&container, waiting, spec, image, &timeline).await;
            let (handle, id) = (container.handle.clone(), container.id.clone());
            match &result {
                Ok(_) => {
                    engine.strap(&container);
                    tracing::info!(handle, id, ms = timeline.ms(), "create.done");
                    engine.shared.history.add(timeline.operation(Kind::Create, &handle, &id, None));
                    engine.shared.events.tell(&handle, &id, What::Create);
                }
                Err(error) => {
                    tracing::debug!(handle, %error, "create.undo");
                    engine.undo(&container).await;
                    timeline.ended("undo");
                    let failed = timeline.operation(Kind::Create, &handle, &id, Some(error.to_string()));
                    engine.shared.history.add(failed);
                }
            }
            drop(slow);
            failpoint::reach(Point::CreateReplying);
            result.map(|advice| {
                warnings.extend(advice);
                (handle, warnings)
            })
        };
        let made = tokio::spawn(made.in_current_span());
        made.await.map_err(Error::task("create"))?
    }

    /// Has the store make what root file systems with this limit have in common; false if it is there. A create waits for
    /// that before it has a place among the creates, which others could use meanwhile.
    pub(crate) async fn prepare_limit(&self, image: &Image, limit: DiskLimit) -> Result<bool> {
        if self.shared.store.is_prepared(image, limit) {
            return Ok(false);
        }
        let _turn = tokio::select! {
            turn = self.shared.limits_gate.enter() => turn?,
            () = gone() => return Err(Error::GivenUp { during: "create", why: "the client has gone before its turn" }),
        };
        let (shared, image) = (self.shared.clone(), image.clone());
        let prepared = tokio::task::spawn_blocking(move || shared.store.prepare_limit(&image, limit)).await;
        prepared.map(|()| true).map_err(Error::task("create"))
    }

    fn reserve(&self, spec: &ContainerSpec, image: &Image, waiting: &Waiting) -> Result<Arc<Container>> {
        let env: Vec<String> = image.config.env.iter().chain(&spec.env).cloned().collect();
        bounds::environment(&env)?;
        let config = &image.config;
        let defaults = Defaults {
            entrypoint: config.entrypoint.clone(),
            command: config.command.clone(),
            user: config.user.clone(),
            working_dir: config.working_dir.clone(),
            volumes: config.volumes.clone(),
        };
        bounds::defaults(&defaults)?;
        let stop_signal = stop_signal(spec.stop_signal, &config.stop_signal)?;
        let record = Record {
            version: VERSION,
            id: waiting.id.clone(),
            handle: spec.handle.clone(),
            phase: Phase::Creating,
            boot_id: self.shared.boot_id.clone(),
            privileged: spec.privileged,
            env,
            image: (image.shown.clone(), image.id.clone()),
            defaults,
            properties: spec.properties.clone(),
            stopped: false,
            stop_signal,
            made: None,
            made_ns: 0,
            limits: spec.limits,
            out_of_memory: false,
            owner: 0,
            range: None,
            volumes: spec.volumes.iter().map(|volume| volume.name.clone()).collect(),
            network: None,
        };
        let bytes = record.beyond();
        let _weighing = (bytes > 0).then(|| self.shared.weighing());
        let mut containers = self.shared.lock();
        self.check_room(&containers, &spec.handle)?;
        bounds::beside(bytes, containers.values().map(|other| other.record().beyond()))?;
        let container = Arc::new(Container::new(record));
        container.kept_by(waiting.pid);
        containers.insert(spec.handle.clone(), container.clone());
        Ok(container)
    }

    fn check_room(&self, containers: &HashMap<String, Arc<Container>>, handle: &str) -> Result<()> {
        if containers.contains_key(handle) {
            return Err(Error::HandleInUse(handle.to_owned()));
        }
        let max = self.shared.config.max_containers;
        if max > 0 && containers.len() as u64 >= max {
            return Err(Error::Invalid("max containers reached".to_owned()));
        }
        Ok(())
    }

    async fn make(
        &self,
        container: &Arc<Container>,
        waiting: Waiting,
        spec: ContainerSpec,
        image: Image,
        timeline: &Timeline,
    ) -> Result<Vec<String>> {
        let shared = self.shared.clone();
        let (theirs, phases) = (container.clone(), timeline.clone());
        let span = tracing::Span::current();
        let prepare = move || {
            let prepared = span.in_scope(|| prepare(&shared, &theirs, waiting, &spec, &image, &phases));
            prepared.map(|prepared| (prepared, spec.network))
        };
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let ((pair, connection, parts), order) = prepared.map_err(Error::task("create"))??;
        let (keeper, events) = Keeper::new(connection).map_err(Error::keeper("create"))?;
        container.happens(lifecycle::Event::Launched(keeper.clone()))?;
        let create = Create {
            init: self.shared.keepers.init.as_fd(),
            network: pair.network.as_fd(),
            user: pair.user.as_ref().map(AsFd::as_fd),
            sysfs: pair.sysfs.as_ref().map(AsFd::as_fd),
            boxed: parts.boxed.as_fds(),
            place: parts.place.as_fds(),
        };
        let answer = keeper.create(create).await;
        timeline.ended("launch");
        let limits = container.record().limits;
        let init = answer.map_err(|error| {
            let said = error.to_string();
            let misplaced = parts.misplaced.iter().find_map(|mount| mount.explain(&said));
            misplaced.unwrap_or_else(|| Error::keeper("create")(error).under(&limits))
        })?;
        failpoint::reach(Point::CreateAnswered);
        container.launched(init);
        self.watch(container, events);
        self.network_launched(container, &keeper, init, order).await?;
        container.try_update(
            lifecycle::Event::Created,
            |record| {
                record.phase = Phase::Created;
                record.made_ns = since_boot();
                record.properties.insert("garden.state".to_owned(), "created".to_owned());
                record.made = Some(timeline.operation(Kind::Create, &record.handle, &record.id, None));
                Ok(())
            },
            |record| self.shared.records.save(record),
        )?;
        failpoint::reach(Point::CreateCommitted);
        Ok(parts.advice)
    }

    /// See [`Shared::network_launched`].
    async fn network_launched(
        &self,
        container: &Arc<Container>,
        keeper: &Keeper,
        init: i32,
        order: network::Order,
    ) -> Result<()> {
        if !container.is_outside() {
            return Ok(());
        }
        let (shared, theirs, span) = (self.shared.clone(), container.clone(), tracing::Span::current());
        let launched = move || span.in_scope(|| shared.network_launched(&theirs, init, &order));
        let launched = tokio::task::spawn_blocking(launched).await;
        if let Some(files) = launched.map_err(Error::task("create"))?? {
            keeper.rewrite(&files).await.map_err(Error::keeper("network files"))?;
        }
        Ok(())
    }

    /// Handles the events of the container's keeper. The task holds the container only weakly, and ends with
    /// the keeper's connection.
    pub(crate) fn watch(
        &self,
        container: &Arc<Container>,
        mut events: tokio::sync::mpsc::UnboundedReceiver<Event>,
    ) {
        let (engine, container) = (self.clone(), Arc::downgrade(container));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Some(container) = container.upgrade() else { return };
                match event {
                    Event::Exited { id, status } => {
                        let (ending, is_oom) = container.ending(&engine.shared, &id, status);
                        if is_oom {
                            engine.shared.events.tell(&container.handle, &container.id, What::Oom);
                        }
                        if let Some(process) = container.process_ended(&engine.shared, &id, ending) {
                            container.tell_end(&engine.shared.events, &id);
                            engine.after_pea(&container, &process);
                            engine.after_last(&container, &process);
                        }
                    }
                    Event::Gone => {
                        let hint = too_little(&container.record().limits);
                        let reason = format!("its init or its keeper has ended{hint}");
                        let news = container.lost(None, &reason);
                        container.tell_ends(&engine.shared.events);
                        if news {
                            let what = What::Broken { reason };
                            engine.shared.events.tell(&container.handle, &container.id, what);
                        }
                    }
                }
            }
        });
    }

    /// Removes whatever a failed create has made so far.
    pub(crate) async fn undo(&self, container: &Arc<Container>) {
        // The teardown copes with every part missing.
        if container.begin_teardown(lifecycle::Event::Undo).is_ok()
            && let Err(error) = self.tear_down(container, &Timeline::begin()).await
        {
            tracing::warn!(handle = container.handle, %error, "create.undo-failed");
            // The container becomes broken: it is listed with `garden.state=all` and can be destroyed, so
            // that its handle is not taken for ever.
            container.teardown_failed(&error);
        }
    }
}

/// Returns the number of the signal that a stop begins with, 0 for TERM.
fn stop_signal(wanted: StopSignal, of_image: &str) -> Result<i32> {
    match wanted {
        StopSignal::Term => Ok(0),
        StopSignal::OfImage if of_image.is_empty() => Ok(0),
        StopSignal::OfImage => signal::parse(of_image).map_err(|error| {
            Error::Invalid(format!(
                "the image's StopSignal: {error}; `--stop-signal TERM` chooses another one"
            ))
        }),
        StopSignal::Number(number) if signal::from_number(number).is_some() => Ok(number),
        StopSignal::Number(number) => Err(Error::Invalid(format!("stop_signal: no signal {number}"))),
    }
}

type Prepared = (wardian_sys::namespace::Pair, OwnedFd, Parts);

fn prepare(
    shared: &Shared,
    container: &Container,
    waiting: Waiting,
    spec: &ContainerSpec,
    image: &Image,
    timeline: &Timeline,
) -> Result<Prepared> {
    let id = &container.id;
    let dir = shared.records.path(id);
    let run = Error::system("run directory");
    std::fs::create_dir(&dir).map_err(run)?;
    let Home { pair, lease, veth } = shared.home(spec)?;
    let (owner, range) = lease.as_ref().map_or((0, None), |lease| (lease.owner, lease.range));
    lease.into_iter().for_each(|lease| container.has_ids(lease));
    failpoint::reach(Point::CreatePaired);
    timeline.ended("namespaces");
    let named = network::Named { id, handle: &container.handle };
    let network = shared.networks.reserve(&spec.network, named, veth.as_ref(), || {
        shared.subnets.take().map_err(network::Error::Ahead)
    })?;
    if let Some(network) = &network {
        container.set_network(network.clone(), spec.network.egress.clone());
        timeline.ended("address");
    }
    let has = |record: &mut Record| {
        (record.owner, record.range) = (owner, range);
        shared.describe(record, network.as_ref());
    };
    container.update(has, |record| shared.records.save(record))?;
    if !spec.network.egress.is_empty() {
        shared.records.save_egress(id, &spec.network.egress).map_err(run)?;
    }
    failpoint::reach(Point::CreateRecorded);
    std::fs::rename(&waiting.socket, dir.join("keeper.sock")).map_err(run)?;
    timeline.ended("record");
    if network.is_some() {
        shared.connect(container, &pair, veth)?;
        failpoint::reach(Point::CreateConnected);
        timeline.ended("network");
    }
    let texts = shared.networks.files(container.record().network.as_ref(), &spec.handle)?;
    let mut files = Vec::new();
    for (file, contents) in network_files(&dir).into_iter().zip([texts.hosts, texts.resolv]) {
        std::fs::write(&file.source, contents).map_err(run)?;
        files.push(file);
    }
    let settings = Settings {
        privileged: spec.privileged,
        hostname: Some(network::files::hostname(&spec.handle).to_owned()),
        env: container.record().env.clone(),
        no_new_privileges: shared.config.no_new_privileges && !spec.privileged,
        shm_bytes: shm_bytes(shared.config.shm_bytes, spec.limits.memory_bytes),
        memory_bytes: spec.limits.memory_bytes,
        cpu_shares: spec.limits.cpu_shares,
        pids: spec.limits.pids,
        directories: image.config.volumes.clone(),
        cgroups_path: format!("/{}/{id}", shared.cgroups.top()),
        ..shared.settings(range)
    };
    timeline.ended("files");
    let cgroup = Error::Cgroup;
    // The cgroup was made ahead with the device rules of an unprivileged container, and nothing runs in it
    // yet.
    if spec.privileged {
        shared.cgroups.impose(id, Devices::Privileged).map_err(cgroup)?;
    }
    shared.cgroups.limit(id, spec.limits.into()).map_err(cgroup)?;
    let entry = shared.cgroups.enter_v2(id).map_err(cgroup)?;
    // A privileged container mounts its cgroups itself if it wants them.
    let v1_mounts = if spec.privileged { Vec::new() } else { shared.cgroups.v1_mounts(id) };
    failpoint::reach(Point::CreateCgroup);
    timeline.ended("cgroup");
    let owner = pair.user.as_ref().map(|user| shared.root_of(range, user));
    let files = (&*files, true);
    let config = dir.join(CONFIG);
    let rootfs = wardian_store::RootfsSpec { image, owner, limit: spec.limits.disk };
    let root = (id.as_str(), Whose::Container(container.handle.clone()));
    let mounts = (&*mounts::of_container(spec), &*shared.ids.maps(range));
    let parts = assemble(shared, root, &rootfs, settings, mounts, files, v1_mounts, entry, &config)?;
    failpoint::reach(Point::CreateRootfs);
    timeline.ended("root-file-system");
    Ok((pair, waiting.connection, parts))
}
