//! `wardian serve`: the server, from its settings to its shutdown.

mod network;
mod settings;

pub use settings::Args;

use crate::store::registries;
use crate::{log, systemd};
use anyhow::{Context, Result, ensure};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{ParseError, Targets};
use wardian_engine::{Config, Engine};
use wardian_lab::signals::Asking;
use wardian_server::{Debug, ListenAddr, Listener, Options, SetLevel, SocketOptions, Tls};

/// The path of the keeper in packages.
const KEEPER: &str = "/usr/lib/wardian/wardian-keeper";

/// Finds the keeper beside this program, or at the packages' path.
fn find_keeper() -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.join("wardian-keeper")));
    let found = beside.into_iter().chain([PathBuf::from(KEEPER)]).find(|path| path.is_file());
    found.with_context(|| {
        format!("no wardian-keeper beside this program nor at {KEEPER}; name it with --keeper")
    })
}

/// The failpoints of the server and its keepers.
const FAILPOINTS: &[&[&str]] = &[
    wardian_engine::FAILPOINTS,
    wardian_engine::KEEPER_FAILPOINTS,
    wardian_server::FAILPOINTS,
    wardian_store::FAILPOINTS,
];

/// Serves until SIGTERM or SIGINT; `begin` is called once there is a log.
pub fn run(settings: Args, begin: impl FnOnce()) -> Result<ExitCode> {
    // Records contain environments, so files made without an explicit mode are for root only.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    settings.check()?;
    ensure!(
        rustix::process::geteuid().is_root(),
        "serve must run as root, which makes the containers: try sudo"
    );
    let keeper = match &settings.keeper {
        Some(keeper) => {
            // The keeper runs as root. One found beside this program needs no check: a user who could change it could
            // change this program too.
            wardian_sys::directory::check_file(keeper).context("--keeper")?;
            keeper.clone()
        }
        None => find_keeper()?,
    };
    wardian_sys::failpoint::check(FAILPOINTS)?;
    let inherited = systemd::listeners()?;
    let filter = log::start(settings.log_format, settings.log_level.clone())?;
    begin();
    wardian_sys::heap::set_up();
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(serve(settings, keeper, inherited, filter))?;
    // Blocking work that is stuck in the kernel must not keep the server from ending.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(settings: Args, keeper: PathBuf, inherited: Vec<OwnedFd>, filter: log::Filter) -> Result<()> {
    let mut interrupt = Asking::catch(SignalKind::interrupt()).context("catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("find {}", path.display()));
    let addresses = settings.addresses(!inherited.is_empty());
    let mut all = addresses.iter().chain(&settings.debug_listen);
    let tls = settings.tls()?;
    ensure!(
        tls.is_none() || !inherited.is_empty() || all.any(|address| address.starts_with("tcp:")),
        "--tls-cert: no address is a TCP address, so that nobody would be shown it; name one with --listen tcp:HOST:PORT"
    );
    let certificate = tls.as_ref().map(|tls| absolute(tls.certificate)).transpose()?;
    let tls = tls.map(|files| Tls::load(files.certificate, files.key, files.client_authorities));
    let tls = tls.transpose().context("TLS")?;
    let options = SocketOptions {
        mode: settings.socket_mode,
        insecure_listen: settings.insecure_listen,
        tls,
        host_names: settings.host_name.clone(),
        ..SocketOptions::default()
    };
    // The addresses are checked before anything is started.
    for address in addresses.iter().chain(&settings.debug_listen) {
        let checked = address.parse().and_then(|parsed| Listener::check(&parsed, &options));
        checked.with_context(|| format!("listen on {address}"))?;
    }
    let config = Config {
        root: absolute(&settings.root)?,
        run: absolute(&settings.run)?,
        default_rootfs: settings.default_rootfs.clone(),
        keeper,
        certificate,
        max_containers: settings.max_containers,
        gc_threshold: settings.gc_threshold,
        remote: settings.fetching(),
        pull: settings.pull,
        registries: registries(&settings.insecure_registry)?,
        limits: settings.limits(),
        ready_rootfs: settings.ready_rootfs,
        disk_driver: settings.disk_driver,
        id_ranges: settings.id_ranges,
        default_pids: settings.default_pids_limit,
        no_new_privileges: settings.no_new_privileges,
        cpu_entitlement_per_share: settings.cpu_entitlement_per_share.unwrap_or(0.0),
        destroy_on_start: settings.destroy_containers_on_startup,
        default_grace_time: settings.default_grace_time,
        network: settings.network.driver(),
        network_namespaces: settings.network.namespaces(),
        shm_bytes: settings.shm_size,
        kept_output: settings.kept_output,
        output_files: settings.output_files,
        max_concurrent_creates: settings.max_concurrent_creates,
        max_queued_creates: settings.max_queued_creates,
        disable_privileged: settings.disable_privileged_containers,
    };
    let engine = Engine::start(config).await.context("start the engine")?;
    let bound = async {
        let listeners = bind(&addresses, inherited, &options).await?;
        let debug = bind(settings.debug_listen.as_slice(), Vec::new(), &options).await?.pop();
        let debug = debug.map(|listener| Debug { listener, set_level: set_level(filter) });
        anyhow::Ok((listeners, debug))
    };
    let (listeners, debug) = match bound.await {
        Ok(bound) => bound,
        Err(error) => {
            // Nothing made ahead must be left behind.
            engine.shutdown().await;
            return Err(error);
        }
    };
    let head_timeout = Some(settings.read_header_timeout).filter(|time| !time.is_zero());
    let transfer_patience = Some(settings.transfer_patience).filter(|time| !time.is_zero());
    let max_connections = settings.connections();
    let socket = listeners.iter().find_map(|listener| match listener.address() {
        // One in the abstract name space has no path.
        Ok(ListenAddr::Unix(path)) if path.is_absolute() => Some(path),
        _ => None,
    });
    let page = Some(crate::monitor::of_server(socket.as_deref()));
    let server = Options { max_connections, head_timeout, transfer_patience, page, debug };
    let stop = async {
        let name = tokio::select! {
            () = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!(signal = name, "serve.draining");
        systemd::stopping();
    };
    systemd::ready();
    let served = wardian_server::serve(engine.clone(), listeners, server, stop).await;
    engine.shutdown().await;
    served.context("serve")
}

async fn bind(
    addresses: &[String],
    inherited: Vec<OwnedFd>,
    options: &SocketOptions,
) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for socket in inherited {
        let listener = Listener::inherited(socket, options)?;
        let address = listener.address().map_or_else(|_| "?".to_owned(), |address| address.to_string());
        tracing::info!(%address, inherited = true, "serve.listening");
        listeners.push(listener);
    }
    for address in addresses {
        let parsed: ListenAddr = address.parse().with_context(|| format!("listen on {address}"))?;
        let bound = Listener::bind(&parsed, options).await;
        listeners.push(bound.with_context(|| format!("listen on {address}"))?);
        tracing::info!(%address, "serve.listening");
    }
    Ok(listeners)
}

/// Returns the function with which the debug server sets the log level.
fn set_level(filter: log::Filter) -> SetLevel {
    Box::new(move |level| {
        let targets: Targets = level.parse().map_err(|error: ParseError| error.to_string())?;
        filter.reload(targets).map_err(|error| error.to_string())
    })
}
