//! How many bytes a second a container may receive and send (`linux/pkt_sched.h`, `linux/pkt_cls.h`).
//!
//! A token bucket (`tbf`, tc-tbf(8)) sends as many bytes as there are tokens, and delays what has none.
//!
//! - *Towards* the container it is the queueing discipline of the host's end of its pair.
//! - *From* the container: packets that come out of the host's end are redirected (`mirred`) to an `ifb` device, whose
//!   queueing discipline is the bucket, and come back from there as if nothing had happened. One such device for each
//!   container that has the limit.
//!
//! A bucket at the container's own end would need no second device and would slow down senders instead of dropping
//! packets. But a program with CAP_NET_RAW, which Garden's containers have, passes it by: a packet socket with
//! `PACKET_QDISC_BYPASS` (packet(7)) sends without any queueing discipline. And a privileged container can remove it.
//! Actions that drop what is too much without a device (`police`) and the filter that matches all (`matchall`) are
//! missing in some kernels; `u32` with an empty mask is nearly everywhere.

use thiserror::Error;

use crate::link;
use crate::message::{Requests, Writer, find, find_path, text, u32_at, u64_at};
use crate::netlink::{self, Connection};

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;

/// `TC_H_ROOT`, `TC_H_INGRESS`, and the handle that goes with the latter.
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: spares the tables of times for packet sizes that old kernels needed.
const LINKLAYER_ETHERNET: u8 = 1;
/// `TCA_U32_SEL`, `TCA_U32_ACT`, `TC_U32_TERMINAL`.
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
/// The key of the first of several actions.
const FIRST: u16 = 1;
/// `TCA_ACT_KIND`, `TCA_ACT_OPTIONS`, `TCA_MIRRED_PARMS`.
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// `TC_ACT_STOLEN`, `TCA_EGRESS_REDIR`.
const TC_ACT_STOLEN: i32 = 4;
const TCA_EGRESS_REDIR: i32 = 1;
/// Time units of the packet scheduler in a second: `PSCHED_TICKS_PER_SEC`, with `PSCHED_SHIFT` 6 (net/pkt_sched.h).
const TICKS: u128 = 1_000_000_000 >> 6;

/// How long a packet may wait for tokens, in milliseconds, before what comes after it is dropped. Long enough for TCP
/// to fill the rate, short enough for its replies.
const PATIENCE: u64 = 50;

/// The least burst in bytes: a packet that is larger than the bucket is never sent. Packets that the kernel has put
/// together (GSO) are taken apart for it; this is the largest Ethernet frame that is sent as it is, with jumbo frames.
pub const LEAST_BURST: u32 = 9216;

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes a second, with their Ethernet headers; 0: no limit.
    pub rate: u64,
    /// Bytes that may be sent at once after a pause; at least [`LEAST_BURST`] are.
    pub burst: u32,
}

impl Limit {
    /// No limit.
    pub const NONE: Self = Self { rate: 0, burst: 0 };

    fn burst(self) -> u32 {
        self.burst.max(LEAST_BURST)
    }

    /// Bytes that may wait: what [`PATIENCE`] and the bucket allow, and never less than a few packets.
    fn queue(self) -> u32 {
        let waiting = self.rate / (1000 / PATIENCE);
        u32::try_from(waiting.saturating_add(u64::from(self.burst()))).unwrap_or(u32::MAX)
    }

    /// Writes the parameters of a token bucket.
    fn write(self, options: &mut Writer) -> &mut Writer {
        // `struct tc_tbf_qopt`: two `struct tc_ratespec` (the second, for a peak rate, is empty), the limit of the
        // queue, the size of the bucket as the time it takes to fill, and the bucket of the peak rate.
        let mut parameters = [0; 36];
        parameters[1] = LINKLAYER_ETHERNET;
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
        parameters[24..28].copy_from_slice(&self.queue().to_ne_bytes());
        let fill = u128::from(self.burst()) * TICKS / u128::from(self.rate.max(1));
        let fill = u32::try_from(fill).unwrap_or(u32::MAX);
        parameters[28..32].copy_from_slice(&fill.to_ne_bytes());
        options
            .put(TCA_TBF_PARMS, &parameters)
            // The exact number of bytes; newer than, and used instead of, the time.
            .u32(TCA_TBF_BURST, self.burst());
        if self.rate >= u64::from(u32::MAX) {
            options.u64(TCA_TBF_RATE64, self.rate);
        }
        options
    }
}

/// Why a limit is not as it was wanted.
#[derive(Debug, Error)]
pub enum Error {
    /// It could not be set.
    #[error("limit the bandwidth {direction} link {index}")]
    Set {
        /// `towards` or `from`.
        direction: &'static str,
        /// The number of the host's end.
        index: u32,
        /// The kernel's reason; `ENOENT`: it lacks a module, such as `sch_tbf`.
        #[source]
        source: netlink::Error,
    },
    /// The device that packets are redirected to could not be made, found or deleted.
    #[error("device for the bandwidth from link {index}")]
    Device {
        /// The number of the host's end.
        index: u32,
        /// The reason.
        #[source]
        source: link::Error,
    },
    /// It could not be removed.
    #[error("remove the bandwidth limit {direction} link {index}")]
    Remove {
        /// `towards` or `from`.
        direction: &'static str,
        /// The number of the host's end.
        index: u32,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// It could not be read.
    #[error("read the bandwidth limit of link {index}")]
    Read {
        /// The number of the link.
        index: u32,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
}

/// `struct tcmsg`: family and padding, link, handle, parent, info.
fn header(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), handle.to_ne_bytes(), parent.to_ne_bytes(), info.to_ne_bytes()].concat()
}

fn add_bucket(requests: &mut Requests, index: u32, limit: Limit) {
    requests.add(libc::RTM_NEWQDISC, CREATE, &header(index, 0, ROOT, 0), |fields| {
        fields.text(libc::TCA_KIND, "tbf").nest(libc::TCA_OPTIONS, |options| limit.write(options))
    });
}

fn remove_root(requests: &mut Requests, index: u32) {
    // ENOENT: it has none but the one that every link has.
    requests.add(libc::RTM_DELQDISC, 0, &header(index, 0, ROOT, 0), |writer| writer).tolerate(libc::ENOENT);
}

/// Sets, changes or (with a rate of 0) removes the limit of what is sent *towards* the container, at the host's end of
/// its pair. What waits in the queue is lost when a limit is removed.
///
/// # Errors
/// [`Error::Set`], [`Error::Remove`].
pub fn limit_towards(route: &mut Connection, index: u32, limit: Limit) -> Result<(), Error> {
    let direction = "towards";
    let mut requests = Requests::default();
    if limit.rate == 0 {
        remove_root(&mut requests, index);
        return route.command(requests).map_err(|source| Error::Remove { direction, index, source });
    }
    add_bucket(&mut requests, index, limit);
    route.command(requests).map_err(|source| Error::Set { direction, index, source })
}

/// Sets or changes the limit of what comes *from* the container at the host's end of its pair. `device` is the name of
/// the `ifb` device, which is made if it is missing and belongs to `group`. Returns its number.
///
/// The device does not go with the container's namespace: [`remove_from`] deletes it.
///
/// # Errors
/// [`Error::Device`], [`Error::Set`]. With a rate of 0 it is refused as `EINVAL`.
pub fn limit_from(
    route: &mut Connection,
    index: u32,
    limit: Limit,
    device: &str,
    group: u32,
) -> Result<u32, Error> {
    let failed = |source| Error::Set { direction: "from", index, source };
    if limit.rate == 0 {
        let source = std::io::Error::from_raw_os_error(libc::EINVAL);
        return Err(failed(netlink::Error::Refused { request: 0, source, text: None }));
    }
    let device = link::ensure_ifb(route, device, group).map_err(|source| Error::Device { index, source })?;
    let mut requests = Requests::default();
    add_bucket(&mut requests, device, limit);
    route.command(requests).map_err(failed)?;
    if redirected_to(route, index).map_err(failed)? == Some(device) {
        return Ok(device);
    }
    // What an earlier call has left half made, or what leads to a device that is gone.
    let mut requests = Requests::default();
    remove_ingress(&mut requests, index);
    requests.add(libc::RTM_NEWQDISC, CREATE, &header(index, INGRESS_HANDLE, INGRESS, 0), |fields| {
        fields.text(libc::TCA_KIND, "ingress")
    });
    add_redirect(&mut requests, index, device);
    route.command(requests).map_err(failed)?;
    Ok(device)
}

fn remove_ingress(requests: &mut Requests, index: u32) {
    // ENOENT: there is none.
    requests
        .add(libc::RTM_DELQDISC, 0, &header(index, INGRESS_HANDLE, INGRESS, 0), |writer| writer)
        .tolerate(libc::ENOENT);
}

/// A filter that sends all packets from a link out of `device`.
fn add_redirect(requests: &mut Requests, index: u32, device: u32) {
    // Priority and protocol, in network byte order: all.
    let info = 1 << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    requests.add(libc::RTM_NEWTFILTER, create, &header(index, 0, INGRESS_HANDLE, info), |fields| {
        fields.text(libc::TCA_KIND, "u32").nest(libc::TCA_OPTIONS, |options| {
            // `struct tc_u32_sel` with one key that compares nothing.
            let mut selector = [0; 32];
            selector[0] = TC_U32_TERMINAL;
            selector[2] = 1;
            options.put(TCA_U32_SEL, &selector).nest(TCA_U32_ACT, |actions| {
                actions.nest(FIRST, |action| {
                    action.text(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |options| {
                        // `struct tc_mirred`: index, capab, action, refcnt, bindcnt, eaction, ifindex.
                        let numbers = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, device.cast_signed()];
                        options.put(TCA_MIRRED_PARMS, numbers.map(i32::to_ne_bytes).as_flattened())
                    })
                })
            })
        })
    });
}

/// The device that packets from a link are redirected to; 0 if it is gone.
fn redirected_to(route: &mut Connection, index: u32) -> Result<Option<u32>, netlink::Error> {
    let filters = route.list(
        |requests, flags| {
            requests.add(libc::RTM_GETTFILTER, flags, &header(index, 0, INGRESS_HANDLE, 0), |writer| writer);
        },
        |message| {
            let path = [libc::TCA_OPTIONS, TCA_U32_ACT, FIRST, TCA_ACT_OPTIONS, TCA_MIRRED_PARMS];
            u32_at(find_path(message.body.get(20..)?, &path)?, 24)
        },
    )?;
    Ok(filters.first().copied())
}

/// Removes the limit of what comes from the container, if it has one, and deletes the device. The link need not exist
/// any more. Deleting a device takes up to 30 ms ([`link::delete`]); for the background.
///
/// # Errors
/// [`Error::Remove`], [`Error::Device`].
pub fn remove_from(route: &mut Connection, index: u32, device: &str) -> Result<(), Error> {
    let mut requests = Requests::default();
    remove_ingress(&mut requests, index);
    match route.command(requests) {
        // The link is gone, and its queueing disciplines with it.
        Err(error) if error.errno() == Some(libc::ENODEV) => {}
        result => result.map_err(|source| Error::Remove { direction: "from", index, source })?,
    }
    let failed = |source| Error::Device { index, source };
    match link::find_by_name(route, device).map_err(failed)? {
        Some(link) => link::delete(route, link.index).map_err(failed),
        None => Ok(()),
    }
}

/// The token bucket of a link: of the host's end for what is sent towards the container, of the `ifb` device for what
/// comes from it. [`Limit::NONE`] if there is none.
///
/// # Errors
/// [`Error::Read`].
pub fn read(route: &mut Connection, index: u32) -> Result<Limit, Error> {
    let mut limit = Limit::NONE;
    let mut requests = Requests::default();
    // The kernel answers in the form of an event for all who listen, and to the one who asks only if told so.
    let echo = libc::NLM_F_ECHO as u16;
    requests
        .add(libc::RTM_GETQDISC, echo, &header(index, 0, ROOT, 0), |writer| writer)
        .tolerate(libc::ENOENT);
    route
        .ask(requests, |_, reply| {
            let attributes = reply.body.get(20..).unwrap_or_default();
            if find(attributes, libc::TCA_KIND).map(text).as_deref() != Some("tbf") {
                return;
            }
            let options = find(attributes, libc::TCA_OPTIONS).unwrap_or_default();
            let parameters = find(options, TCA_TBF_PARMS).unwrap_or_default();
            let rate = u32_at(parameters, 8).unwrap_or(0);
            let rate =
                find(options, TCA_TBF_RATE64).and_then(|value| u64_at(value, 0)).unwrap_or(rate.into());
            let fill = u32_at(parameters, 28).unwrap_or(0);
            let burst = u128::from(fill) * u128::from(rate) / TICKS;
            limit = Limit { rate, burst: u32::try_from(burst).unwrap_or(u32::MAX) };
        })
        .map_err(|source| Error::Read { index, source })?;
    Ok(limit)
}
