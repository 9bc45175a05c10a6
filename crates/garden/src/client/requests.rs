//! The client: one connection per request, as in the Go client.

use super::address::{Address, bulk, container, escape, files, property};
use super::answering::{Answering, Course, again};
use super::connection::{Server, dial};
use super::events::Events;
use super::hijack::{ERROR_LIMIT, ERROR_TIMEOUT, PROVISIONAL, hijack};
use super::kept::KeptOutput;
use super::process::{Io, Process};
use super::tar::{ReaderBody, TAR_FAILURE, TarReader};
use super::tls::{Tls, TlsFiles};
use crate::error::{Error, Result};
use crate::json::{decode, encode};
use crate::wire::{
    BandwidthLimits, BulkInfo, BulkMetrics, Capacity, Changes, Container, ContainerInfo, ContainerSpec,
    CpuLimits, Created, Details, DiskLimits, Handle, HandleList, History, ImageUnderWay, MemoryLimits,
    Metrics, NetIn, NetOutRule, ProcessSpec, ProcessState, PropertyValue, ServerInfo, Signal, Stop, Top,
    Usage, Volume, VolumeSpec,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, TE};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::Notify;

/// The most bytes of a JSON reply.
const REPLY_LIMIT: usize = 64 << 20;

/// Returns the query for these properties.
fn query(properties: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (n, (key, value)) in properties.iter().enumerate() {
        let _ = write!(text, "{}{}={}", if n == 0 { '?' } else { '&' }, escape(key), escape(value));
    }
    text
}

/// A Garden client; clones are cheap.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) server: Arc<Server>,
}

impl Client {
    /// Makes a client for `unix:/path` or `tcp:host:port`. Nothing is dialled yet.
    pub fn new(address: &str) -> Result<Self> {
        Ok(Self { server: Arc::new(Server { address: address.parse()?, tls: None }) })
    }

    /// Makes a client for `tcp:host:port` that uses TLS with certificates on both sides. Nothing is dialled
    /// yet.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be, or the address is that of a unix socket.
    pub fn with_tls(address: &str, files: &TlsFiles) -> Result<Self> {
        let address: Address = address.parse()?;
        if matches!(address, Address::Unix(_)) {
            return Err(Error::TlsOnUnix(address.to_string()));
        }
        Ok(Self { server: Arc::new(Server { address, tls: Some(Tls::load(files)?) }) })
    }

    /// Checks that the server answers.
    pub async fn ping(&self) -> Result<()> {
        self.call("GET", "/ping", None).await.map(drop)
    }

    /// Returns the capacity of the server's host.
    pub async fn capacity(&self) -> Result<Capacity> {
        self.get("/capacity").await
    }

    /// Returns the handles of the containers that have all these properties.
    pub async fn list(&self, filter: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let path = format!("/containers{}", query(filter));
        self.get::<HandleList>(&path).await.map(|list| list.handles)
    }

    /// Creates a container. Returns its handle.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        self.create_told(spec).await.map(|created| created.handle)
    }

    /// Creates a container. Returns its handle, and the server's warnings.
    pub async fn create_told(&self, spec: &ContainerSpec) -> Result<Created> {
        parse(&self.call("POST", "/containers", Some(encode(spec))).await?)
    }

    /// Destroys a container.
    pub async fn destroy(&self, handle: &str) -> Result<()> {
        self.call("DELETE", &container(handle, ""), None).await.map(drop)
    }

    /// Ends a container's processes; with `kill` by KILL at once.
    pub async fn stop(&self, handle: &str, kill: bool) -> Result<()> {
        self.stop_so(handle, &Stop { kill, ..Stop::default() }).await
    }

    /// Ends a container's processes; servers of Garden's ignore signal and time.
    pub async fn stop_so(&self, handle: &str, stop: &Stop) -> Result<()> {
        self.call("PUT", &container(handle, "/stop"), Some(encode(stop))).await.map(drop)
    }

    /// Freezes a container's processes. Wardian's own.
    pub async fn pause(&self, handle: &str) -> Result<()> {
        self.call("PUT", &format!("/wardian{}", container(handle, "/pause")), None).await.map(drop)
    }

    /// Lets a paused container go on. Wardian's own.
    pub async fn unpause(&self, handle: &str) -> Result<()> {
        self.call("PUT", &format!("/wardian{}", container(handle, "/unpause")), None).await.map(drop)
    }

    /// Sends a signal, given by name or number, to one process. Wardian's own.
    pub async fn signal(&self, handle: &str, process: &str, signal: &str) -> Result<()> {
        let path = container(handle, "/processes/") + &escape(process) + "/signal";
        let body = encode(&Signal { signal: signal.to_owned() });
        self.call("POST", &format!("/wardian{path}"), Some(body)).await.map(drop)
    }

    /// Returns the processes of a container and its peas. Wardian's own.
    pub async fn top(&self, handle: &str) -> Result<Top> {
        self.exact(&format!("/wardian{}", container(handle, "/top"))).await
    }

    /// Returns what a container has changed in its root file system. Wardian's own.
    pub async fn changes(&self, handle: &str) -> Result<Changes> {
        self.exact(&format!("/wardian{}", container(handle, "/changes"))).await
    }

    /// Returns information about a container.
    pub async fn info(&self, handle: &str) -> Result<ContainerInfo> {
        self.exact(&container(handle, "/info")).await
    }

    /// Returns information about several containers, by handle; an unknown one has an error.
    pub async fn bulk_info(&self, handles: &[&str]) -> Result<BTreeMap<String, BulkInfo>> {
        self.exact(&bulk("bulk_info", handles)).await
    }

    /// Returns the metrics of a container, or, given the id of a pea's process, of the pea.
    pub async fn metrics(&self, handle: &str) -> Result<Metrics> {
        self.exact(&container(handle, "/metrics")).await
    }

    /// Returns the metrics of several containers, by handle; an unknown one has an error.
    pub async fn bulk_metrics(&self, handles: &[&str]) -> Result<BTreeMap<String, BulkMetrics>> {
        self.exact(&bulk("bulk_metrics", handles)).await
    }

    /// Returns a container's processor shares, in `limit_in_shares`.
    pub async fn cpu_limits(&self, handle: &str) -> Result<CpuLimits> {
        self.get(&container(handle, "/limits/cpu")).await
    }

    /// Returns a container's memory limit.
    pub async fn memory_limits(&self, handle: &str) -> Result<MemoryLimits> {
        self.get(&container(handle, "/limits/memory")).await
    }

    /// Returns a container's disk limits, which Garden servers leave empty.
    pub async fn disk_limits(&self, handle: &str) -> Result<DiskLimits> {
        self.get(&container(handle, "/limits/disk")).await
    }

    /// Changes a living container's disk limits; wardian's own.
    pub async fn set_disk_limits(&self, handle: &str, limits: &DiskLimits) -> Result<()> {
        let path = format!("/wardian{}", container(handle, "/limits/disk"));
        self.call("PUT", &path, Some(encode(limits))).await.map(drop)
    }

    /// Returns a container's bandwidth limits, which Garden servers leave empty.
    pub async fn bandwidth_limits(&self, handle: &str) -> Result<BandwidthLimits> {
        self.get(&container(handle, "/limits/bandwidth")).await
    }

    /// Maps a port of the host to one of a container. Returns the mapping, with both ports.
    pub async fn net_in(&self, handle: &str, wanted: &NetIn) -> Result<NetIn> {
        parse(&self.call("POST", &container(handle, "/net/in"), Some(encode(wanted))).await?)
    }

    /// Lets a container reach what the server denies it: all rules, or none if one is refused.
    pub async fn bulk_net_out(&self, handle: &str, rules: &[NetOutRule]) -> Result<()> {
        self.call("POST", &container(handle, "/net/out/bulk"), Some(encode(&rules))).await.map(drop)
    }

    /// Sets how long a container lives without a call. Zero: until a moment from now.
    pub async fn set_grace_time(&self, handle: &str, grace: Duration) -> Result<()> {
        let nanoseconds = i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX);
        self.call("PUT", &container(handle, "/grace_time"), Some(encode(&nanoseconds))).await.map(drop)
    }

    /// Returns the phases of the last create and destroy of a handle, whose container need not live any more.
    /// Wardian's own.
    pub async fn history(&self, handle: &str) -> Result<History> {
        self.get(&format!("/wardian{}", container(handle, "/history"))).await
    }

    /// Returns the egress rules of a container, those of its create first. Wardian's own.
    pub async fn net_out_rules(&self, handle: &str) -> Result<Vec<NetOutRule>> {
        self.exact(&format!("/wardian{}", container(handle, "/net/out"))).await
    }

    /// Returns the images that the server brings into its store, oldest first. Wardian's own.
    pub async fn images_under_way(&self) -> Result<Vec<ImageUnderWay>> {
        self.exact("/wardian/images/under_way").await
    }

    /// Returns the containers that have all these properties, with their images and processes, by handle. Wardian's own.
    pub async fn containers(&self, properties: &BTreeMap<String, String>) -> Result<Vec<Container>> {
        self.exact(&format!("/wardian/containers{}", query(properties))).await
    }

    /// Returns what each container uses, by handle. Wardian's own.
    pub async fn usages(&self) -> Result<Vec<Usage>> {
        self.exact("/wardian/usage").await
    }

    /// Returns all that is known of a container; its variables only `with_env`. Wardian's own.
    pub async fn container(&self, handle: &str, with_env: bool) -> Result<Details> {
        let query = if with_env { "?env" } else { "" };
        self.exact(&format!("/wardian{}", container(handle, query))).await
    }

    /// Returns the handle that is meant by a handle or the beginning of a container's id. Wardian's own.
    pub async fn named(&self, name: &str) -> Result<String> {
        self.exact::<Handle>(&format!("/wardian{}", container(name, "/handle")))
            .await
            .map(|named| named.handle)
    }

    /// Waits for the end of a process, and returns how it has ended. Wardian's own.
    pub async fn wait(&self, handle: &str, process: &str) -> Result<ProcessState> {
        let path = format!("/processes/{}/wait", escape(process));
        self.exact(&format!("/wardian{}", container(handle, &path))).await
    }

    /// Reads the output that is kept of a process; with `follow` also what it prints from now on. Wardian's own.
    pub async fn kept_output(&self, handle: &str, process: &str, follow: bool) -> Result<KeptOutput> {
        let path = format!("/processes/{}/output{}", escape(process), if follow { "?follow" } else { "" });
        let path = format!("/wardian{}", container(handle, &path));
        hijack(&self.server, "GET", &path, "", &[]).await.map(|taken| KeptOutput::new(taken.stream))
    }

    /// Returns what the server is, and what it has. Wardian's own.
    pub async fn info_of_server(&self) -> Result<ServerInfo> {
        self.exact("/wardian/info").await
    }

    /// Returns the named volumes. Wardian's own.
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        self.exact("/wardian/volumes").await
    }

    /// Returns one named volume. Wardian's own.
    pub async fn volume(&self, name: &str) -> Result<Volume> {
        self.exact(&format!("/wardian/volumes/{}", escape(name))).await
    }

    /// Makes a named volume, unless there is one of this name. Wardian's own.
    pub async fn make_volume(&self, name: &str) -> Result<()> {
        let body = encode(&VolumeSpec { name: name.to_owned() });
        self.call("POST", "/wardian/volumes", Some(body)).await.map(drop)
    }

    /// Removes a named volume, which no container may use. Wardian's own.
    pub async fn remove_volume(&self, name: &str) -> Result<()> {
        self.call("DELETE", &format!("/wardian/volumes/{}", escape(name)), None).await.map(drop)
    }

    /// Removes all named volumes that no container uses. Returns their names. Wardian's own.
    pub async fn prune_volumes(&self) -> Result<Vec<String>> {
        let removed = self.call("DELETE", "/wardian/volumes", None).await?;
        serde_json::from_slice(&removed).map_err(|error| Error::response(&error))
    }

    /// Subscribes to events, of one container or of all; times are in milliseconds since 1970. Wardian's own.
    pub async fn events(
        &self,
        handle: Option<&str>,
        since_ms: Option<u64>,
        until_ms: Option<u64>,
    ) -> Result<Events> {
        let handle = handle.map(|handle| format!("handle={}", escape(handle)));
        let time = |name: &str, time: Option<u64>| time.map(|time| format!("{name}={time}"));
        let fields: Vec<String> =
            [handle, time("since_ms", since_ms), time("until_ms", until_ms)].into_iter().flatten().collect();
        let query = if fields.is_empty() { String::new() } else { format!("?{}", fields.join("&")) };
        let path = format!("/wardian/events{query}");
        hijack(&self.server, "GET", &path, "", &[]).await.map(|taken| Events::new(taken.stream))
    }

    /// Returns all properties of a container.
    pub async fn properties(&self, handle: &str) -> Result<BTreeMap<String, String>> {
        let reply = self.call("GET", &container(handle, "/properties"), None).await?;
        serde_json::from_slice::<Option<_>>(&reply)
            .map(Option::unwrap_or_default)
            .map_err(|error| Error::response(&error))
    }

    /// Returns one property.
    pub async fn property(&self, handle: &str, key: &str) -> Result<String> {
        self.get::<PropertyValue>(&property(handle, key)).await.map(|property| property.value)
    }

    /// Sets a property.
    pub async fn set_property(&self, handle: &str, key: &str, value: &str) -> Result<()> {
        let body = encode(&PropertyValue { value: value.into() });
        self.call("PUT", &property(handle, key), Some(body)).await.map(drop)
    }

    /// Removes a property.
    pub async fn remove_property(&self, handle: &str, key: &str) -> Result<()> {
        self.call("DELETE", &property(handle, key), None).await.map(drop)
    }

    /// Unpacks a tar in the container. With `length`, which must be exact, the body is not sent in chunks.
    pub async fn stream_in(
        &self,
        handle: &str,
        user: &str,
        destination: &str,
        tar: impl AsyncRead + Send + Unpin + 'static,
        length: Option<u64>,
    ) -> Result<()> {
        let path = files(handle, "destination", destination, user);
        let body = ReaderBody { reader: tar, left: length, ended: false };
        let request = request("PUT", &path).header(CONTENT_TYPE, "application/x-tar").body(body);
        self.exchange(request.map_err(bad_request)?, Arc::default()).await.map(drop)
    }

    /// Packs a path of the container. The reason of an incomplete tar comes at its end, as a
    /// [`TarFailure`](crate::TarFailure) in the reader's error.
    pub async fn stream_out(&self, handle: &str, user: &str, source: &str) -> Result<TarReader> {
        let request = request("GET", &files(handle, "source", source, user));
        let request = request.header(TAR_FAILURE, "trailer").header(TE, "trailers");
        let request = request.body(Full::<Bytes>::default()).map_err(bad_request)?;
        again(true, |course| self.tar(request.clone(), course)).await
    }

    async fn tar(&self, mut request: Request<Full<Bytes>>, course: Arc<Course>) -> Result<TarReader> {
        let endless = counted(&mut request);
        let io = Answering::new(dial(&self.server).await?, course);
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        // The connection ends when the reader is dropped, or has read to the end.
        let driver = tokio::spawn(connection);
        let reply = tokio::select! {
            reply = sender.send_request(request) => reply?,
            () = endless.notified() => {
                driver.abort();
                return Err(super::hijack::endless());
            }
        };
        if !reply.status().is_success() {
            return Err(failure(reply).await);
        }
        Ok(TarReader { body: reply.into_body(), chunk: Bytes::new() })
    }

    /// Starts a process, or with an image a pea.
    pub async fn run(&self, handle: &str, spec: &ProcessSpec, io: Io) -> Result<Process> {
        let path = container(handle, "/processes");
        Process::start(&self.server, "POST", &path, &encode(spec), io).await
    }

    /// Attaches to a process that was started before.
    pub async fn attach(&self, handle: &str, id: &str, io: Io) -> Result<Process> {
        let path = container(handle, "/processes/") + &escape(id);
        Process::start(&self.server, "GET", &path, &[], io).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parse(&self.call("GET", path, None).await?)
    }

    /// Reads a reply whose field names have the exact case.
    async fn exact<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let reply = self.call("GET", path, None).await?;
        serde_json::from_slice(&reply).map_err(|error| Error::response(&error))
    }

    pub(super) async fn call(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> Result<Bytes> {
        let mut request = request(method, path);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(bad_request)?;
        again(matches!(method, "GET" | "PUT"), |course| self.exchange(request.clone(), course)).await
    }

    /// Sends a request. Returns the whole reply. The connection is driven in this future and ends with it.
    async fn exchange<B>(&self, mut request: Request<B>, course: Arc<Course>) -> Result<Bytes>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let endless = counted(&mut request);
        let io = Answering::new(dial(&self.server).await?, course);
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        let (mut connection, mut over) = (pin!(connection), false);
        let mut work = pin!(async move {
            let reply = tokio::select! {
                reply = sender.send_request(request) => reply?,
                () = endless.notified() => return Err(super::hijack::endless()),
            };
            if !reply.status().is_success() {
                return Err(failure(reply).await);
            }
            collect(reply).await
        });
        std::future::poll_fn(move |cx| {
            // A failure of the connection reaches the request as well.
            over = over || connection.as_mut().poll(cx).is_ready();
            work.as_mut().poll(cx)
        })
        .await
    }
}

fn request(method: &str, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(path).header(HOST, "api").header(CONNECTION, "close")
}

fn bad_request(error: hyper::http::Error) -> Error {
    Error::Io(std::io::Error::other(error))
}

async fn collect(reply: Response<Incoming>) -> Result<Bytes> {
    let body = Limited::new(reply.into_body(), REPLY_LIMIT).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| Error::Io(std::io::Error::other(error)))
}

/// Returns what is notified once there are too many interim replies: hyper takes as many as come.
fn counted<B>(request: &mut Request<B>) -> Arc<Notify> {
    let (endless, count) = (Arc::new(Notify::new()), AtomicUsize::new(0));
    let tell = endless.clone();
    hyper::ext::on_informational(request, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) >= PROVISIONAL {
            tell.notify_one();
        }
    });
    endless
}

async fn failure(reply: Response<Incoming>) -> Error {
    let status = reply.status().as_u16();
    let (mut body, mut begin) = (reply.into_body(), Vec::new());
    let read = async {
        while let Some(Ok(frame)) = body.frame().await
            && begin.len() as u64 <= ERROR_LIMIT
        {
            begin.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    };
    // The part that has arrived is shown, however the body ended.
    let _ = tokio::time::timeout(ERROR_TIMEOUT, read).await;
    Error::from_reply(status, &begin)
}

fn parse<T: DeserializeOwned>(reply: &[u8]) -> Result<T> {
    decode(reply).map_err(|error| Error::response(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("unix:/run/a".parse::<Address>().unwrap(), Address::Unix("/run/a".into()));
        assert_eq!("tcp:[::1]:7777".parse::<Address>().unwrap().to_string(), "tcp:[::1]:7777");
        for bad in ["", "/run/a", "unix:run", "tcp:host", "http://x"] {
            assert!(Client::new(bad).is_err(), "{bad}");
        }
    }
}
