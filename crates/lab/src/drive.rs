//! The requests of an instance of the app to a Garden server.

use crate::code::{ADDRESS, APP, Code, HEALTHY, PORT, Sample};
use crate::image::USER;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use wardian_garden::wire::{ContainerSpec, DiskLimits, ImageRef, Limits, NetIn, ProcessSpec};
use wardian_garden::{Client, Io, Process};

/// A step that takes longer has failed. A hundred instances share disk and processors in it: with 100 MB each, a disk
/// that takes 50 MB/s needs 200 s.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long, in milliseconds of pauses, a health check retries an app that does not answer.
const HEALTH_PATIENCE: u64 = 60_000;
/// Name of the file that [`Instance::scribble`] creates.
const SCRIBBLED: &str = "scribbled";

/// Exit status and output of a process.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Time from the last byte of its output until its exit status arrived.
    pub ending: Duration,
}

/// What a container is to have beside its image.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// Whether a port of the host leads to the app.
    pub network: bool,
    /// The most bytes of its root file system, the image included; `None`: no limit.
    pub disk_limit_bytes: Option<u64>,
}

/// An app in a container.
#[derive(Debug)]
pub struct Instance {
    client: Client,
    /// Handle of the container.
    pub handle: String,
    /// Image of its peas.
    image: String,
    /// Where it is reached, if containers have a network.
    place: Option<Place>,
    /// The app's process, which holds its connections. In a mutex because a process cannot be shared between threads.
    app: Mutex<Option<Process>>,
}

/// Where an app is reached.
#[derive(Debug)]
struct Place {
    /// The container's address.
    address: String,
    /// The host's address and the port there that leads to the app.
    mapped: String,
}

/// Whether containers of a server have a network, seen by a container that is destroyed at once.
///
/// # Errors
/// The container cannot be created, looked at or destroyed.
pub async fn has_network(client: &Client, handle: &str, image: &str) -> Result<bool> {
    let image = ImageRef { uri: image.to_owned(), ..Default::default() };
    let spec = ContainerSpec { handle: handle.to_owned(), image, ..Default::default() };
    patient(client.create(&spec)).await.with_context(|| format!("create {handle}"))?;
    let info = patient(client.info(handle)).await;
    patient(client.destroy(handle)).await.with_context(|| format!("destroy {handle}"))?;
    let info = info.with_context(|| format!("look at {handle}"))?;
    // On a host that others do not reach there is nothing to map a port of.
    Ok(!info.container_ip.is_empty() && !info.external_ip.starts_with("127."))
}

impl Instance {
    /// Creates a container for the app, with loopback alone.
    pub async fn create(client: Client, handle: String, image: String) -> Result<Self> {
        Self::create_on(client, handle, image.clone(), image, Wish::default()).await
    }

    /// Creates a container of an image that has the app's code as its last layer, over `base`. Peas use the base
    /// alone: a platform's health check brings an image of its own and does not need the code.
    pub async fn create_on(
        client: Client,
        handle: String,
        image: String,
        base: String,
        Wish { network, disk_limit_bytes }: Wish,
    ) -> Result<Self> {
        let port = NetIn { container_port: PORT.into(), ..NetIn::default() };
        let disk_limits =
            DiskLimits { byte_hard: disk_limit_bytes.unwrap_or_default(), ..DiskLimits::default() };
        let spec = ContainerSpec {
            handle: handle.clone(),
            image: ImageRef { uri: image, ..Default::default() },
            netin: if network { vec![port] } else { Vec::new() },
            limits: Limits { disk_limits, ..Limits::default() },
            ..Default::default()
        };
        patient(client.create(&spec)).await.with_context(|| format!("create {handle}"))?;
        let place = if network {
            let info = patient(client.info(&handle)).await.with_context(|| format!("look at {handle}"))?;
            let port = info.mapped_ports.iter().flatten().next();
            let port = port.with_context(|| format!("{handle} has no mapped port"))?.host_port;
            Some(Place { address: info.container_ip, mapped: format!("{}:{port}", info.external_ip) })
        } else {
            None
        };
        Ok(Self { client, handle, image: base, place, app: Mutex::new(None) })
    }

    /// Streams the code in.
    pub async fn stream_in(&self, code: &Code) -> Result<()> {
        let tar = std::io::Cursor::new(code.tar.clone());
        let length = code.tar.len() as u64;
        patient(self.client.stream_in(&self.handle, USER, APP, tar, Some(length)))
            .await
            .with_context(|| format!("stream the code into {}", self.handle))
    }

    /// Starts the app.
    pub async fn start(&self) -> Result<()> {
        let spec = ProcessSpec {
            path: "/bin/sh".into(),
            args: vec!["start.sh".into()],
            dir: APP.into(),
            user: USER.into(),
            env: self.place.iter().map(|place| format!("{ADDRESS}={}", place.address)).collect(),
            ..Default::default()
        };
        let io = Io { stderr: true, wait: true, ..Io::default() };
        let app = patient(self.client.run(&self.handle, &spec, io)).await;
        let app = app.with_context(|| format!("start the app in {}", self.handle))?;
        if let Ok(mut kept) = self.app.lock() {
            *kept = Some(app);
        }
        Ok(())
    }

    /// Runs a health check in a pea, which retries until the app is up, and then asks through the mapped port.
    pub async fn pea(&self) -> Result<Ended> {
        let address = self.place.as_ref().map_or("127.0.0.1", |place| place.address.as_str());
        let ask = health_check(address, self.place.as_ref().map(|place| place.mapped.as_str()));
        let what = format!("health check in {}", self.handle);
        let ended = self.run("/bin/sh", &["-c", &ask], "", true).await.context(what.clone())?;
        if ended.status != 0 || ended.stdout != HEALTHY.as_bytes() {
            let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
            let app = self.app_said().await;
            let answer = String::from_utf8_lossy(&ended.stdout);
            bail!(
                "{what} failed with status {}, answer {answer:?}, errors {said:?}; the app itself said: {app}",
                ended.status
            );
        }
        Ok(ended)
    }

    /// Reads a file of the code back in the container and compares its digest; checks that the directory is
    /// unchanged, without a trace of [`Instance::scribble`].
    pub async fn verify(&self, sample: &Sample) -> Result<()> {
        let ended = self.run("/bin/sh", &["-c", &reading_of(sample)], USER, false).await?;
        check_reading(sample, &self.handle, &ended.stdout).map_err(|error| {
            anyhow!("{error} {:?} (status {})", String::from_utf8_lossy(&ended.stderr), ended.status)
        })
    }

    /// Writes into the app's directory: a new file, and over an old one. No other instance may see that.
    pub async fn scribble(&self) -> Result<()> {
        let write = format!("cd {APP} && echo x > {SCRIBBLED} && echo x > health && cat {SCRIBBLED} health");
        let ended = self.run("/bin/sh", &["-c", &write], USER, false).await?;
        ensure!(
            ended.status == 0 && ended.stdout == b"x\nx\n",
            "the app's user cannot write into {APP} in {}: {:?} (status {})",
            self.handle,
            String::from_utf8_lossy(&ended.stderr),
            ended.status
        );
        Ok(())
    }

    /// Runs a process until it ends.
    pub async fn run(&self, path: &str, args: &[&str], user: &str, pea: bool) -> Result<Ended> {
        let uri = if pea { self.image.clone() } else { String::new() };
        let spec = ProcessSpec {
            path: path.into(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            user: user.into(),
            image: ImageRef { uri, ..Default::default() },
            ..Default::default()
        };
        let run = async {
            let mut process = self
                .client
                .run(&self.handle, &spec, Io { stdout: true, stderr: true, wait: true, ..Io::default() })
                .await?;
            let (mut stdout, mut stderr) = (process.take_stdout(), process.take_stderr());
            let started = Instant::now();
            let read_out = async {
                let (mut all, mut last) = (Vec::new(), started);
                if let Some(from) = stdout.as_mut() {
                    while from.read_buf(&mut all).await? > 0 {
                        last = Instant::now();
                    }
                }
                Ok::<_, std::io::Error>((all, last))
            };
            let read_err = async {
                let mut all = Vec::new();
                if let Some(from) = stderr.as_mut() {
                    from.read_to_end(&mut all).await?;
                }
                Ok::<_, std::io::Error>(all)
            };
            let wait = async { (process.wait().await, Instant::now()) };
            let (out, stderr, (status, ended)) = tokio::join!(read_out, read_err, wait);
            let (stdout, last) = out?;
            let ending = ended.saturating_duration_since(last);
            anyhow::Ok(Ended { status: status?, stdout, stderr: stderr?, ending })
        };
        match tokio::time::timeout(PATIENCE, run).await {
            Ok(ended) => ended.with_context(|| format!("run {path} in {}", self.handle)),
            Err(_) => Err(anyhow!("{path} in {} did not end within {PATIENCE:?}", self.handle)),
        }
    }

    /// The app's standard error so far.
    async fn app_said(&self) -> String {
        let stderr = self.app.lock().ok().and_then(|mut app| app.as_mut()?.take_stderr());
        let Some(mut stderr) = stderr else {
            return "(none)".into();
        };
        let mut said = Vec::new();
        let read = stderr.read_to_end(&mut said);
        let _ = tokio::time::timeout(Duration::from_millis(200), read).await;
        if said.is_empty() { "(none)".into() } else { String::from_utf8_lossy(&said).trim().to_owned() }
    }

    /// Destroys the container.
    pub async fn destroy(&self) -> Result<()> {
        patient(self.client.destroy(&self.handle)).await.with_context(|| format!("destroy {}", self.handle))
    }
}

/// A health check: a shell's script that retries until the app at this address is up, prints its answer, and then asks
/// through the mapped port, if there is one.
pub(crate) fn health_check(address: &str, mapped: Option<&str>) -> String {
    // Every attempt starts two processes, and a hundred peas check at once: the longer a pea has waited the longer its
    // pause, but at most an eighth of the time waited, or the 10 ms of the first pause.
    let through = mapped.map(|mapped| format!(" && wget -q -O /dev/null http://{mapped}/health"));
    let through = through.unwrap_or_default();
    format!(
        "w=0; while [ $w -lt {HEALTH_PATIENCE} ]; do \
         wget -q -O - http://{address}:{PORT}/health 2>/dev/null && {{ true{through}; exit; }}; \
         p=$((10 + w / 8)); [ $p -lt 500 ] || p=500; w=$((w + p)); sleep $(printf 0.%03d $p); done; \
         echo 'the app does not answer' >&2; exit 1"
    )
}

/// A shell's script that prints what [`check_reading`] checks.
pub(crate) fn reading_of(sample: &Sample) -> String {
    format!("cd {APP} && sha256sum {} && cat health && ls | grep {SCRIBBLED}; true", sample.file)
}

/// Checks the answer that a health check in a container has printed.
pub(crate) fn check_health(name: &str, answer: &[u8]) -> Result<()> {
    let said = String::from_utf8_lossy(answer);
    ensure!(said == HEALTHY, "the health check of {name} got {said:?}");
    Ok(())
}

/// Checks what was read back in a container: a file of the code, and that nobody has changed the directory.
pub(crate) fn check_reading(Sample { file, digest }: &Sample, name: &str, found: &[u8]) -> Result<()> {
    let found = String::from_utf8_lossy(found);
    ensure!(
        found == format!("{digest}  {file}\n{HEALTHY}"),
        "the code in {name} is not what was put there: expected {file} with {digest} and the health page, found \
         {found:?}"
    );
    Ok(())
}

/// A request with a time limit.
async fn patient<T>(request: impl Future<Output = wardian_garden::Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(anyhow!("no answer within {PATIENCE:?}")),
    }
}
