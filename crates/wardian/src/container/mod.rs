//! Commands on containers. They are Garden clients, and need access to the server's socket only.

pub mod attach;
pub mod cp;
pub mod create;
pub mod diff;
pub mod events;
pub mod exec;
pub mod export;
mod format;
pub mod inspect;
pub mod logs;
pub mod manage;
mod mounts;
pub mod network;
pub mod pause;
pub mod ps;
pub mod run;
pub mod session;
pub mod signal;
pub mod spec;
pub mod stats;
mod status;
mod terminal;
pub mod top;
pub mod volume;

use crate::context::{self, File, Sourced, Status};
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
pub use wardian_garden::wire::MAIN;
use wardian_garden::{Address, Client, Error, ErrorKind, TlsFiles};

/// Digits of a container's id, and the fewest that name it.
const ID: usize = 32;
const LEAST_ID: usize = 4;

/// Which server.
#[derive(Debug, Clone, ClapArgs)]
pub struct Server {
    /// The server: a socket's path, unix:/PATH or tcp:HOST:PORT
    // In `wardian lab` the flag is called --addr.
    #[arg(long, alias = "addr", value_name = "ADDR", env = "WARDIAN_SOCKET", default_value = usual(),
        value_parser = address)]
    socket: Address,
    /// Speak TLS to a server at tcp:HOST:PORT: certificates of the CAs that may have issued the server's [env: WARDIAN_TLS_CA]
    // The variables are not read by clap: a command that uses a unix socket must ignore them.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The certificate that is shown to the server [env: WARDIAN_TLS_CLIENT_CERT]
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate [env: WARDIAN_TLS_CLIENT_KEY]
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

/// Returns the default address of a server that has no settings file.
fn usual() -> &'static str {
    static USUAL: LazyLock<String> = LazyLock::new(|| context::address(None, context::own).value);
    &USUAL
}

fn address(text: &str) -> Result<Address, String> {
    let path = text.starts_with('/').then(|| Address::Unix(text.into()));
    path.map_or_else(
        || text.parse().map_err(|_| "neither a path nor unix:/PATH nor tcp:HOST:PORT".to_owned()),
        Ok,
    )
}

/// Returns a client for the server that a command line means which is not complete yet.
pub fn client_for(words: &[OsString]) -> Option<Client> {
    let path = |flag| context::word_of(words, flag).map(PathBuf::from);
    let named = context::word_of(words, "--socket").or_else(|| context::own("WARDIAN_SOCKET"));
    let named = named.map_or_else(
        || Some(context::address(context::file_for(words).as_ref(), context::own).value),
        |named| named.into_string().ok(),
    );
    let server = Server {
        socket: address(&named?).ok()?,
        tls_ca: path("--tls-ca"),
        tls_cert: path("--tls-cert"),
        tls_key: path("--tls-key"),
    };
    let files = server.tls_files();
    let is_whole = files.iter().all(Option::is_some) || files.iter().all(Option::is_none);
    if is_whole { server.client().ok() } else { None }
}

impl Server {
    /// Returns a client, which does not connect yet.
    pub fn client(&self) -> Result<Client> {
        let address = self.socket.to_string();
        match self.tls_files() {
            [Some(authorities), Some(certificate), Some(key)] => {
                Ok(Client::with_tls(&address, &TlsFiles { authorities, certificate, key })?)
            }
            [None, None, None] => Ok(Client::new(&address)?),
            _ => {
                let text =
                    "--tls-ca, --tls-cert and --tls-key, or their environment variables, go together\n";
                clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, text).exit()
            }
        }
    }

    /// Returns the address.
    pub fn address(&self) -> &Address {
        &self.socket
    }

    /// Whether the server is on this host, and so has the same files.
    pub fn is_local(&self) -> bool {
        matches!(self.socket, Address::Unix(_))
    }

    /// Returns the files with the CAs, the certificate and the key: from the flags, and for a server on TCP also from
    /// the environment. For a unix socket the environment is ignored, because it may be meant for another server.
    fn tls_files(&self) -> [Option<PathBuf>; 3] {
        let is_tcp = matches!(self.socket, Address::Tcp(_));
        let from =
            |name| std::env::var_os(name).filter(|value| is_tcp && !value.is_empty()).map(PathBuf::from);
        [
            (&self.tls_ca, "WARDIAN_TLS_CA"),
            // The server's flags use the variables without CLIENT, so that one environment can hold both.
            (&self.tls_cert, "WARDIAN_TLS_CLIENT_CERT"),
            (&self.tls_key, "WARDIAN_TLS_CLIENT_KEY"),
        ]
        .map(|(flag, name)| flag.clone().or_else(|| from(name)))
    }

    /// Returns the settings of the connection, and where they are from.
    pub fn settings(&self) -> Vec<(&'static str, Sourced)> {
        let socket = Sourced { value: self.socket.to_string(), source: context::source_of_socket() };
        let flags = [&self.tls_ca, &self.tls_cert, &self.tls_key].map(Option::is_some);
        let tls = [
            ("tls-ca", "--tls-ca", "WARDIAN_TLS_CA"),
            ("tls-cert", "--tls-cert", "WARDIAN_TLS_CLIENT_CERT"),
            ("tls-key", "--tls-key", "WARDIAN_TLS_CLIENT_KEY"),
        ];
        let tls = tls.into_iter().zip(flags).zip(self.tls_files()).filter_map(
            |(((name, flag, variable), is_flag), file)| {
                let source = if is_flag { flag } else { variable }.to_owned();
                Some((name, Sourced { value: file?.display().to_string(), source }))
            },
        );
        std::iter::once(("socket", socket)).chain(tls).collect()
    }

    /// Adds advice to an error, where there is any.
    pub fn explain(&self, error: Error) -> anyhow::Error {
        let advice = match &error {
            Error::NotHttp(_) if self.may_want_tls() => Some(self.want_tls()),
            // A TLS alert cannot be parsed as HTTP.
            Error::Http(source) if source.is_parse() && self.may_want_tls() => Some(self.want_tls()),
            Error::Connect { source, .. } => self.unreachable(source.kind()),
            // A server refuses a client certificate by an alert after the handshake.
            Error::Http(_) | Error::Io(_) if self.tls_files()[0].is_some() => Some(format!(
                "the connection to {} has ended: a server does so with a client whose certificate is not of its --tls-client-ca",
                self.socket
            )),
            Error::Http(_) | Error::Io(_) | Error::Disconnected => {
                Some("the server has gone, or has cut the connection: see its log".to_owned())
            }
            Error::Garden(body) if body.message == "request body too large" => Some(
                "the server takes no request as long as this one: give it fewer or shorter variables (-e, --env-file), \
                 properties or arguments"
                    .to_owned(),
            ),
            other => match other.kind() {
                Some(ErrorKind::ContainerNotFound) => {
                    Some(format!("{error}; `wardian ps` lists the containers there are"))
                }
                _ => None,
            },
        };
        match advice {
            Some(advice) => anyhow::Error::new(error).context(advice),
            None => error.into(),
        }
    }

    /// Converts an error of a request that other Garden servers do not have; `lacks` is what they do not do.
    pub fn explain_own(&self, error: Error, lacks: &str) -> anyhow::Error {
        if matches!(error, Error::Status { .. }) {
            return anyhow::Error::new(error)
                .context(format!("this server {lacks}: it is no wardian, or an earlier one"));
        }
        self.explain(error)
    }

    fn may_want_tls(&self) -> bool {
        matches!(self.socket, Address::Tcp(_)) && self.tls_files()[0].is_none()
    }

    /// Converts an error while attached to a process. A connection error ends the attachment, and not the process.
    pub fn left(&self, error: Error, handle: &str, process: &str) -> anyhow::Error {
        let gone = matches!(error, Error::Http(_) | Error::Io(_) | Error::Disconnected);
        let error = self.explain(error);
        if !gone {
            return error;
        }
        let process = if process == MAIN { String::new() } else { format!(" {process}") };
        error.context(format!(
            "the connection to the process is lost, and it goes on: `wardian attach {handle}{process}` comes back once a server \
             answers again"
        ))
    }

    /// Converts an error of starting a process. The process may have been started although its output cannot be
    /// fetched.
    pub fn unheard(&self, error: Error, handle: &str) -> anyhow::Error {
        let Error::Output { process, source } = error else { return self.explain(error) };
        let process = if process == MAIN { String::new() } else { format!(" {process}") };
        self.explain(*source).context(format!(
            "the process was started and goes on, but its output cannot be fetched: `wardian attach {handle}{process}` shows \
             what it prints from then on"
        ))
    }

    /// Returns the handle that is meant by a handle or by the beginning of a container's id. Only what may be the beginning of
    /// an id costs a request.
    pub async fn named(&self, client: &Client, name: &str) -> Result<String> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if !(LEAST_ID..=ID).contains(&name.len()) || !name.bytes().all(is_digit) {
            return Ok(name.to_owned());
        }
        match client.named(name).await {
            Ok(handle) => Ok(handle),
            Err(error @ Error::Garden(_)) if error.kind() != Some(ErrorKind::ContainerNotFound) => {
                Err(error.into())
            }
            // Other Garden servers do not know the request; the command's own one tells what is wrong.
            Err(_) => Ok(name.to_owned()),
        }
    }

    /// Converts an error of a request for a process.
    pub fn no_process(&self, error: Error, handle: &str, process: &str) -> anyhow::Error {
        if error.kind() == Some(ErrorKind::ProcessNotFound) {
            let why = if process == MAIN { ", `run` has started nothing in it" } else { "" };
            return anyhow::Error::new(error).context(format!(
                "unknown process: {process} in {handle}{why}; `wardian inspect {handle}` lists the processes"
            ));
        }
        self.explain(error)
    }

    fn want_tls(&self) -> String {
        format!(
            "what answers at {} does not speak HTTP: if it is a server with --tls-cert, it speaks TLS, so give --tls-ca, --tls-cert \
             and --tls-key",
            self.socket
        )
    }

    fn unreachable(&self, kind: IoKind) -> Option<String> {
        let address = &self.socket;
        let Address::Unix(path) = address else {
            return Some(match kind {
                IoKind::InvalidData => format!(
                    "the server at {address} cannot show a certificate for that name that is of --tls-ca"
                ),
                _ => format!("no server answers at {address}: is that its --listen?"),
            });
        };
        match kind {
            IoKind::PermissionDenied => {
                Some(format!("you may not speak to the server at {address}: {}", closed(path)))
            }
            IoKind::NotFound | IoKind::ConnectionRefused => {
                let start = start(address, context::file(), context::own);
                let is_socket = |meta: std::fs::Metadata| meta.file_type().is_socket();
                let dead = match kind {
                    IoKind::NotFound => "",
                    _ if std::fs::metadata(path).is_ok_and(is_socket) => {
                        " (its socket is there, nobody listens)"
                    }
                    _ => " (that is no socket)",
                };
                Some(format!(
                    "no server answers at {address}{dead}. Start one with `{start}`, or name the one \
                     that runs with --socket or WARDIAN_SOCKET"
                ))
            }
            _ => None,
        }
    }
}

/// Returns the command that starts a server at `address`. What the environment names is given as flags, because sudo
/// does not pass the variables on, and the server would use its defaults.
fn start(address: &Address, file: Option<&File>, variable: impl Fn(&str) -> Option<OsString>) -> String {
    let absolute = |dir: &Path| std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let mut command = "sudo wardian serve".to_owned();
    if let Some(file) =
        file.filter(|file| file.status == Status::Read && file.path != Path::new(context::PATH))
    {
        command += &format!(" --config {}", absolute(&file.path).display());
    }
    for (flag, name) in [("root", "WARDIAN_ROOT"), ("run", "WARDIAN_RUN")] {
        if let Some(dir) = variable(name) {
            command += &format!(" --{flag} {}", absolute(Path::new(&dir)).display());
        }
    }
    if address.to_string() != context::address(file, variable).value {
        command += &format!(" --listen {address}");
    }
    command
}

/// Why a socket cannot be opened.
fn closed(path: &Path) -> String {
    let Ok(meta) = std::fs::metadata(path) else {
        return "its directory is closed to you. Try sudo".to_owned();
    };
    if !meta.file_type().is_socket() {
        return "that is no socket".to_owned();
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let group = group_name(&groups, meta.gid()).unwrap_or("").to_owned();
    let mode = meta.mode() & 0o777;
    if mode & 0o060 == 0o060 && meta.gid() != 0 && !group.is_empty() {
        format!("it is for root and the group {group} (mode {mode:04o}). Try sudo, or join the group")
    } else {
        format!("it is for root (mode {mode:04o}). Try sudo")
    }
}

/// Returns a group's name from the text of a group file.
fn group_name(groups: &str, gid: u32) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then_some(name)
    })
}

/// Runs a command's work.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let done = runtime.block_on(work);
    // A thread may be blocked reading standard input, and is not waited for.
    runtime.shutdown_background();
    done
}

/// How many containers a command works on at a time.
const TOGETHER: usize = 16;

/// Does the work for each handle, several at a time, also after a failure; lines and errors are printed in the order of
/// the handles, the last error is returned. The work returns the line to print, if any. A signal ends it
/// with a message that the containers which it has not printed may or may not be `done` (such as "stopped"; empty: they are only waited for).
pub async fn each<F>(
    handles: &[String],
    signals: &mut session::Signals,
    done: &str,
    work: impl Fn(String) -> F,
) -> Result<()>
where
    F: Future<Output = Result<Option<String>>> + Send + 'static,
{
    let (mut waiting, mut running) = (handles.iter(), VecDeque::new());
    let mut failure: Option<anyhow::Error> = None;
    loop {
        while running.len() < TOGETHER
            && let Some(handle) = waiting.next()
        {
            running.push_back((handle, tokio::spawn(work(handle.clone()))));
        }
        let Some((handle, mut task)) = running.pop_front() else { break };
        let answer = match signals.until(&mut task).await {
            Ok(answer) => answer.context("a task has ended")?,
            Err(number) => {
                running.push_front((handle, task));
                let (some, rest) = (names(running.iter().map(|(handle, _)| *handle)), names(waiting));
                running.iter().for_each(|(_, task)| task.abort());
                let rest = if rest.is_empty() { rest } else { format!("; not {done}: {rest}") };
                let text = if done.is_empty() {
                    format!("these have not ended: {some}")
                } else {
                    format!(
                        "the server has not said whether these are {done}: {some}: `wardian ps` shows it{rest}"
                    )
                };
                failure.iter().for_each(crate::print::failure);
                return Err(crate::exit::interrupted(number, &text));
            }
        };
        let told = answer.and_then(|line| match line {
            Some(line) => crate::print::text(&format!("{line}\n")),
            None => Ok(()),
        });
        if let Err(error) = told
            && let Some(earlier) = failure.replace(error)
        {
            crate::print::failure(&earlier);
        }
    }
    failure.map_or(Ok(()), Err)
}

fn names<'a>(handles: impl Iterator<Item = &'a String>) -> String {
    handles.map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address("/a b").unwrap(), Address::Unix("/a b".into()));
        assert_eq!(address("unix:/a").unwrap(), Address::Unix("/a".into()));
        assert_eq!(address("tcp:h:1").unwrap(), Address::Tcp("h:1".into()));
        assert!(address("garden.sock").is_err() && address("").is_err());
    }

    #[test]
    fn groups_have_names() {
        let text = "root:x:0:\nwardian:x:77:alice\nodd\n";
        assert_eq!((group_name(text, 77), group_name(text, 7)), (Some("wardian"), None));
    }

    #[test]
    fn what_to_do_without_a_server() {
        let server = |text: &str| Server {
            socket: address(text).unwrap(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        };
        let missing = |text: &str, kind| server(text).unreachable(kind).unwrap();
        let usual = missing("/run/wardian/garden.sock", IoKind::NotFound);
        assert!(
            usual.contains("`sudo wardian serve`") && usual.contains("unix:/run/wardian/garden.sock"),
            "{usual}"
        );
        let dir = tempfile::tempdir().unwrap();
        let dead = dir.path().join("dead");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let other = missing(dead.to_str().unwrap(), IoKind::ConnectionRefused);
        let listen = format!("`sudo wardian serve --listen unix:{}`", dead.display());
        assert!(other.contains(&listen) && other.contains("nobody listens"), "{other}");
        assert!(missing("/dev/null", IoKind::ConnectionRefused).contains("no socket"));
        let told = |socket: &str, named: &[(&str, &str)]| {
            start(&super::address(socket).unwrap(), None, |name| {
                let named = named.iter().find(|(known, _)| *known == name);
                named.map(|(_, value)| OsString::from(value)).filter(|value| !value.is_empty())
            })
        };
        let run = [("WARDIAN_RUN", "/x/run"), ("WARDIAN_ROOT", "")];
        assert_eq!(told("/x/run/garden.sock", &run), "sudo wardian serve --run /x/run");
        let both = [("WARDIAN_RUN", "/y"), ("WARDIAN_ROOT", "/x/root")];
        assert_eq!(
            told("/x/run/garden.sock", &both),
            "sudo wardian serve --root /x/root --run /y --listen unix:/x/run/garden.sock"
        );
        assert!(missing("tcp:h:1", IoKind::ConnectionRefused).contains("tcp:h:1"));
        assert!(missing("/x/y", IoKind::PermissionDenied).contains("closed to you"));
        assert!(missing("/etc/passwd", IoKind::PermissionDenied).contains("no socket"));
    }
}
