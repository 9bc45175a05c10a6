//! Converts messages with named descriptors to packets and back.

use super::{
    Boxed, Create, Destroyed, Failure, Hello, Message, Op, Placement, Reply, Run, Started, Stdio, Transfer,
    words,
};
use std::io;
use std::os::fd::OwnedFd;
use wardian_sys::packet;

/// Why a request cannot be carried out.
#[derive(Debug)]
pub enum Refused {
    /// It has no `seq`, so it cannot be answered.
    Unreadable,
    /// It is answered with this failure.
    Answer {
        /// The `seq` of the request.
        seq: u64,
        /// The kind of failure.
        kind: Failure,
        /// The error text.
        message: String,
    },
}

/// Why a message of the keeper cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum Unheard {
    /// It does not tell which request it answers.
    Unreadable,
    /// This process had no room for the answer's descriptors. The request itself has been carried out.
    NoDescriptors {
        /// The `seq` of the request.
        seq: u64,
    },
    /// The keeper has sent too few descriptors.
    Incomplete {
        /// The `seq` of the request.
        seq: u64,
        /// The missing descriptor.
        what: &'static str,
    },
}

/// Encodes a request as a packet: its bytes, and its descriptors in order.
///
/// # Errors
/// A value cannot be represented in JSON; no such value is known.
pub fn encode<F>(seq: u64, op: Op<F>) -> io::Result<(Vec<u8>, Vec<F>)> {
    let mut fds = Vec::new();
    let op = match op {
        Op::Hello => words::Op::Hello,
        Op::Prepare { tasks } => {
            fds = tasks;
            words::Op::Prepare
        }
        Op::Create(Create { init, network, user, sysfs, boxed, place }) => {
            fds.extend([init, network]);
            let (with_user, with_sysfs) = (user.is_some(), sysfs.is_some());
            fds.extend(user.into_iter().chain(sysfs));
            words::Op::Create {
                user: with_user,
                sysfs: with_sysfs,
                boxed: put_boxed(boxed, &mut fds),
                place: put_place(place, &mut fds),
            }
        }
        Op::Run(Run { id, exec, pea, place }) => {
            fds.push(exec);
            let boxed = pea.map(|pea| put_boxed(pea, &mut fds));
            words::Op::Run { id, boxed, place: put_place(place, &mut fds) }
        }
        Op::Transfer(Transfer { inward, user, path, tar, place }) => {
            fds.push(tar);
            words::Op::Transfer { inward, user, path, place: put_place(place, &mut fds) }
        }
        Op::Cancel { transfer } => words::Op::Cancel { transfer },
        Op::Attach { id } => words::Op::Attach { id },
        Op::CloseStdin { id } => words::Op::CloseStdin { id },
        Op::Resize { id, window } => words::Op::Resize { id, window },
        Op::Signal { id, signal } => words::Op::Signal { id, signal },
        Op::Release { id } => words::Op::Release { id },
        Op::Unmounted { id } => words::Op::Unmounted { id },
        Op::Rewrite { files } => {
            fds = files;
            words::Op::Rewrite { count: fds.len() }
        }
        Op::Destroy => words::Op::Destroy,
    };
    Ok((serde_json::to_vec(&words::Request { seq, op })?, fds))
}

/// Decodes the request in a packet, with its `seq`.
///
/// # Errors
/// See [`Refused`].
pub fn decode(packet: packet::Message) -> Result<(u64, Op<OwnedFd>), Refused> {
    let packet::Message { bytes, fds, whole } = packet;
    let words::Request { seq, op } = serde_json::from_slice(&bytes).map_err(|error| {
        match serde_json::from_slice::<words::Numbered>(&bytes) {
            Ok(words::Numbered { seq }) => Refused::Answer {
                seq,
                kind: Failure::Unsupported,
                message: format!("the keeper does not understand what is asked: {error}"),
            },
            Err(_) => Refused::Unreadable,
        }
    })?;
    let refused = |message: String| Refused::Answer { seq, kind: Failure::Other, message };
    if !whole {
        return Err(refused("the keeper has no file descriptor left for what was sent".to_owned()));
    }
    let mut fds = Fds(fds.into_iter());
    let op = take_op(op, &mut fds).map_err(|what| refused(format!("{what} is missing")))?;
    match fds.0.len() {
        0 => Ok((seq, op)),
        more => Err(refused(format!("{more} more descriptors than the request has names for"))),
    }
}

fn take_op(op: words::Op, fds: &mut Fds) -> Result<Op<OwnedFd>, &'static str> {
    Ok(match op {
        words::Op::Hello => Op::Hello,
        words::Op::Prepare => Op::Prepare { tasks: fds.0.by_ref().collect() },
        words::Op::Create { user, sysfs, boxed, place } => Op::Create(Create {
            init: fds.one("the program of pid 1")?,
            network: fds.one("the network namespace")?,
            user: if user { Some(fds.one("the user namespace")?) } else { None },
            sysfs: if sysfs { Some(fds.one("the sysfs")?) } else { None },
            boxed: take_boxed(boxed, fds)?,
            place: take_place(&place, fds)?,
        }),
        words::Op::Run { id, boxed, place } => Op::Run(Run {
            id,
            exec: fds.one("the process's JSON")?,
            pea: boxed.map(|boxed| take_boxed(boxed, fds)).transpose()?,
            place: take_place(&place, fds)?,
        }),
        words::Op::Transfer { inward, user, path, place } => {
            let tar = fds.one("the tar's pipe")?;
            Op::Transfer(Transfer { inward, user, path, tar, place: take_place(&place, fds)? })
        }
        words::Op::Cancel { transfer } => Op::Cancel { transfer },
        words::Op::Attach { id } => Op::Attach { id },
        words::Op::CloseStdin { id } => Op::CloseStdin { id },
        words::Op::Resize { id, window } => Op::Resize { id, window },
        words::Op::Signal { id, signal } => Op::Signal { id, signal },
        words::Op::Release { id } => Op::Release { id },
        words::Op::Unmounted { id } => Op::Unmounted { id },
        words::Op::Rewrite { count } => {
            let files = (0..count).map(|_| fds.one("a file"));
            Op::Rewrite { files: files.collect::<Result<_, _>>()? }
        }
        words::Op::Destroy => Op::Destroy,
    })
}

/// Encodes a message of the keeper as a packet: its bytes, and its descriptors in order.
///
/// # Errors
/// A value cannot be represented in JSON; no such value is known.
pub fn encode_reply<F>(message: Message<F>) -> io::Result<(Vec<u8>, Vec<F>)> {
    let mut fds = Vec::new();
    let message = match message {
        Message::Reply { seq, reply } => words::Message::Reply { seq, reply: put_reply(reply, &mut fds) },
        Message::Exited { id, status } => words::Message::Exited { id, status },
        Message::Gone { status } => words::Message::Gone { status },
    };
    Ok((serde_json::to_vec(&message)?, fds))
}

fn put_reply<F>(reply: Reply<F>, fds: &mut Vec<F>) -> words::Reply {
    match reply {
        Reply::Hello(Hello { version, pid, init, processes }) => {
            fds.push(processes);
            words::Reply::Hello { version, pid, init }
        }
        Reply::Made { pid, init } => {
            fds.push(init);
            words::Reply::Started { warnings: Vec::new(), stdin: false, pid, tty: false }
        }
        Reply::Started(Started { pid, warnings, stdio }) => {
            let (with_stdin, tty) = match stdio {
                Stdio::Pipes { stdin, output } => {
                    let with_stdin = stdin.is_some();
                    fds.extend(stdin);
                    fds.extend(output.into_iter().flat_map(|(stdout, stderr)| [stdout, stderr]));
                    (with_stdin, false)
                }
                Stdio::Terminal(master) => {
                    fds.extend(master);
                    (false, true)
                }
            };
            words::Reply::Started { warnings, stdin: with_stdin, pid, tty }
        }
        Reply::Done => words::Reply::Done,
        Reply::Destroyed(Destroyed { killed_us, unmounted_us }) => {
            words::Reply::Destroyed { killed_us, unmounted_us }
        }
        Reply::Unmounted { us } => words::Reply::Unmounted { us },
        Reply::Failed { kind, message } => words::Reply::Failed { kind, message },
    }
}

/// Decodes the keeper's message in a packet.
///
/// # Errors
/// See [`Unheard`].
pub fn decode_reply(packet: packet::Message) -> Result<Message<OwnedFd>, Unheard> {
    let packet::Message { bytes, fds, whole } = packet;
    match serde_json::from_slice(&bytes).map_err(|_| Unheard::Unreadable)? {
        words::Message::Reply { seq, .. } if !whole => Err(Unheard::NoDescriptors { seq }),
        words::Message::Reply { seq, reply } => match take_reply(reply, &mut Fds(fds.into_iter())) {
            Ok(reply) => Ok(Message::Reply { seq, reply }),
            Err(what) => Err(Unheard::Incomplete { seq, what }),
        },
        words::Message::Exited { id, status } => Ok(Message::Exited { id, status }),
        words::Message::Gone { status } => Ok(Message::Gone { status }),
    }
}

fn take_reply(reply: words::Reply, fds: &mut Fds) -> Result<Reply<OwnedFd>, &'static str> {
    Ok(match reply {
        words::Reply::Hello { version, pid, init } => {
            Reply::Hello(Hello { version, pid, init, processes: fds.one("the list of processes")? })
        }
        words::Reply::Started { stdin: false, pid, tty: false, .. } if fds.0.len() == 1 => {
            Reply::Made { pid, init: fds.one("pid 1's pidfd")? }
        }
        words::Reply::Started { warnings, pid, tty: true, .. } => {
            Reply::Started(Started { pid, warnings, stdio: Stdio::Terminal(fds.0.next()) })
        }
        words::Reply::Started { warnings, stdin, pid, tty: false } => {
            let stdin = if stdin { Some(fds.one("standard input")?) } else { None };
            let output = match fds.0.next() {
                None => None,
                Some(stdout) => Some((stdout, fds.one("standard error")?)),
            };
            Reply::Started(Started { pid, warnings, stdio: Stdio::Pipes { stdin, output } })
        }
        words::Reply::Done => Reply::Done,
        words::Reply::Destroyed { killed_us, unmounted_us } => {
            Reply::Destroyed(Destroyed { killed_us, unmounted_us })
        }
        words::Reply::Unmounted { us } => Reply::Unmounted { us },
        words::Reply::Failed { kind, message } => Reply::Failed { kind, message },
    })
}

/// The descriptors of a packet that have not been taken yet.
struct Fds(std::vec::IntoIter<OwnedFd>);

impl Fds {
    fn one(&mut self, what: &'static str) -> Result<OwnedFd, &'static str> {
        self.0.next().ok_or(what)
    }

    fn named(
        &mut self,
        names: Vec<String>,
        what: &'static str,
    ) -> Result<Vec<(String, OwnedFd)>, &'static str> {
        names.into_iter().map(|name| Ok((name, self.one(what)?))).collect()
    }
}

fn put_place<F>(place: Placement<F>, fds: &mut Vec<F>) -> words::Placement {
    let words = words::Placement { v1_procs: place.v1_procs.len(), v2_dir: place.v2_dir.is_some() };
    fds.extend(place.v1_procs);
    fds.extend(place.v2_dir);
    words
}

fn take_place(place: &words::Placement, fds: &mut Fds) -> Result<Placement<OwnedFd>, &'static str> {
    let v1_procs: Vec<_> = fds.0.by_ref().take(place.v1_procs).collect();
    if v1_procs.len() < place.v1_procs {
        return Err("a v1 cgroup");
    }
    Ok(Placement { v1_procs, v2_dir: if place.v2_dir { Some(fds.one("the v2 cgroup")?) } else { None } })
}

fn put_boxed<F>(boxed: Boxed<F>, fds: &mut Vec<F>) -> words::Boxed {
    let Boxed { config, rootfs, binds, files, v1_hierarchies, v1_mounts } = boxed;
    fds.extend([config, rootfs]);
    let mut put = |named: Vec<(String, F)>| -> Vec<String> {
        let (names, descriptors): (_, Vec<F>) = named.into_iter().unzip();
        fds.extend(descriptors);
        names
    };
    let (binds, files) = (put(binds), put(files));
    let mounts = v1_mounts.len();
    fds.extend(v1_mounts);
    words::Boxed { binds, files, v1_hierarchies, v1_mounts: mounts }
}

fn take_boxed(boxed: words::Boxed, fds: &mut Fds) -> Result<Boxed<OwnedFd>, &'static str> {
    let words::Boxed { binds, files, v1_hierarchies, v1_mounts } = boxed;
    if v1_mounts != 0 && v1_mounts != v1_hierarchies.len() {
        return Err("a cgroup mount");
    }
    Ok(Boxed {
        config: fds.one("config.json")?,
        rootfs: fds.one("the root file system")?,
        binds: fds.named(binds, "a bind mount")?,
        files: fds.named(files, "a file")?,
        v1_mounts: (0..v1_mounts).map(|_| fds.one("a cgroup mount")).collect::<Result<_, _>>()?,
        v1_hierarchies,
    })
}
