//! Netlink messages as bytes (`netlink(7)`, `linux/netlink.h`): requests are written, replies are read.
//!
//! A message is a header of 16 bytes (length, type, flags, sequence number, port), a fixed part that belongs to its
//! type, and attributes. An attribute is a length, a type and a value, and its value may be attributes again.
//! Everything is padded to four bytes and in the byte order of the host, except for the integers of nf_tables, which
//! are big-endian.

use std::net::IpAddr;

/// Bytes of a message's header.
pub(crate) const HEADER: usize = 16;
/// Bytes of an attribute's header.
const ATTRIBUTE: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: without the flags `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE: u16 = 0x3fff;

/// Bytes that grow by attributes.
///
/// What writes the attributes within an attribute or a message returns the writer, as its methods do.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    /// Whether something was longer than its length can tell; the bytes are of no use then.
    overflow: bool,
}

impl Writer {
    /// The bytes so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value);
        self.end(start)
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds an integer in network byte order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a string that ends in NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.end(start)
    }

    /// Adds an address, four or sixteen bytes in network byte order.
    pub(crate) fn address(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(v4) => self.put(kind, &v4.octets()),
            IpAddr::V6(v6) => self.put(kind, &v6.octets()),
        }
    }

    /// Adds an attribute that has attributes, written by `fill`, after a fixed part.
    pub(crate) fn nest_after(
        &mut self,
        kind: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Self) -> &mut Self,
    ) -> &mut Self {
        let start = self.begin(kind | NESTED);
        self.bytes.extend_from_slice(fixed);
        self.pad();
        fill(self).end(start)
    }

    /// Adds an attribute that has attributes, written by `fill`.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        self.nest_after(kind, &[], fill)
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        let [one, other] = kind.to_ne_bytes();
        self.bytes.extend_from_slice(&[0, 0, one, other]);
        start
    }

    fn end(&mut self, start: usize) -> &mut Self {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds a message: its type, its flags besides `NLM_F_REQUEST`, its fixed part and its attributes.
    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Self) -> &mut Self,
    ) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(fixed);
        self.pad();
        fill(self);
        match u32::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
        start
    }
}

/// One request among several.
#[derive(Debug)]
struct Request {
    /// Where its header starts.
    start: usize,
    on_error: OnError,
}

/// What an error of a request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    /// The request has failed.
    Report,
    /// Nothing if it is this errno.
    Tolerate(i32),
    /// The whole batch has failed, and the kernel may say no more about it.
    End,
}

/// Requests that go to the kernel in one message, in this order.
///
/// The kernel carries all of them out, also those after one that has failed, unless they are a batch. What must not
/// happen after a failure belongs into a later set.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    writer: Writer,
    requests: Vec<Request>,
    /// The position of the last request that is not a mark.
    last: usize,
}

impl Requests {
    /// Adds a request: its type, its flags besides `NLM_F_REQUEST`, its fixed part and its attributes.
    pub(crate) fn add(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Writer) -> &mut Writer,
    ) -> &mut Self {
        let start = self.writer.message(kind, flags, fixed, fill);
        self.last = self.requests.len();
        self.requests.push(Request { start, on_error: OnError::Report });
        self
    }

    /// Adds the begin or the end of a batch of nfnetlink (`NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`) for a
    /// subsystem. The kernel makes all changes of a batch or none of them.
    pub(crate) fn mark(&mut self, kind: u16, subsystem: u16) -> &mut Self {
        let start = self.writer.message(kind, 0, &nfgenmsg(0, subsystem), |writer| writer);
        self.requests.push(Request { start, on_error: OnError::End });
        self
    }

    /// Lets the last request fail with this errno.
    pub(crate) fn tolerate(&mut self, errno: i32) -> &mut Self {
        if let Some(last) = self.requests.last_mut() {
            last.on_error = OnError::Tolerate(errno);
        }
        self
    }

    pub(crate) fn on_error(&self, index: usize) -> Option<OnError> {
        self.requests.get(index).map(|request| request.on_error)
    }

    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// The position of the request that is acknowledged.
    pub(crate) fn last(&self) -> usize {
        self.last
    }

    /// The number of bytes so far.
    pub(crate) fn size(&self) -> usize {
        self.writer.bytes.len()
    }

    /// Numbers the requests from `first` on and has the last one acknowledged: the kernel works on them in order, so
    /// all errors have arrived by then. Nothing if an attribute is longer than 64 KiB.
    pub(crate) fn seal(&mut self, first: u32) -> Option<&[u8]> {
        let bytes = &mut self.writer.bytes;
        for (request, number) in self.requests.iter().zip(0..) {
            let at = request.start + 8;
            bytes[at..at + 4].copy_from_slice(&first.wrapping_add(number).to_ne_bytes());
        }
        if let Some(last) = self.requests.get(self.last) {
            let at = last.start + 6;
            let flags = u16::from_ne_bytes([bytes[at], bytes[at + 1]]) | libc::NLM_F_ACK as u16;
            bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        (!self.writer.overflow).then_some(&self.writer.bytes)
    }
}

/// `struct nfgenmsg`, the fixed part of messages of nfnetlink: family, version 0, resource.
pub(crate) fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What follows the header.
    pub(crate) body: &'a [u8],
}

/// The messages of a datagram; the rest is skipped where a length makes no sense.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body: &bytes[HEADER..length],
        };
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some(message)
    })
}

/// The attributes of a message or of an attribute: type without its flags, and value. The rest is skipped where a
/// length makes no sense.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        if length < ATTRIBUTE || length > bytes.len() {
            return None;
        }
        let attribute = (u16_at(bytes, 2)? & TYPE, &bytes[ATTRIBUTE..length]);
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some(attribute)
    })
}

/// The value of the first attribute of a type.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(this, _)| *this == kind).map(|(_, value)| value)
}

/// The value of an attribute within attributes.
pub(crate) fn find_path<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter().try_fold(bytes, |within, kind| find(within, *kind))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// An integer in network byte order.
pub(crate) fn be32(bytes: &[u8]) -> Option<u32> {
    u32_at(bytes, 0).map(u32::from_be)
}

/// A string up to its NUL; bytes that are not UTF-8 are replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address of four or sixteen bytes.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut requests = Requests::default();
        requests.add(16, 0x400, &[1, 2, 3, 4], |writer| {
            writer.text(3, "lo").u32(4, 1500).be32(5, 0x0102_0304).nest(18, |inner| {
                inner.text(1, "veth").nest_after(2, &[9; 6], |peer| peer.u8(7, 8).u64(9, 10))
            })
        });
        requests.add(17, 0, &[5; 4], |writer| writer).tolerate(libc::ENODEV);
        assert_eq!(
            [0, 1, 2].map(|index| requests.on_error(index)),
            [Some(OnError::Report), Some(OnError::Tolerate(libc::ENODEV)), None]
        );
        let bytes = requests.seal(7).unwrap().to_vec();
        let all: Vec<_> = messages(&bytes).collect();
        let heads: Vec<_> = all.iter().map(|one| (one.kind, one.flags, one.sequence)).collect();
        let request = libc::NLM_F_REQUEST as u16;
        assert_eq!(heads, [(16, 0x400 | request, 7), (17, request | libc::NLM_F_ACK as u16, 8)]);
        let body = &all[0].body[4..];
        assert_eq!(find(body, 3).map(text).as_deref(), Some("lo"));
        assert_eq!(find(body, 4).and_then(|value| u32_at(value, 0)), Some(1500));
        assert_eq!(find(body, 5), Some([1, 2, 3, 4].as_slice()));
        assert_eq!(find(body, 5).and_then(be32), Some(0x0102_0304));
        assert_eq!(find_path(body, &[18, 1]).map(text).as_deref(), Some("veth"));
        let peer = find_path(body, &[18, 2]).unwrap();
        assert_eq!(&peer[..6], &[9; 6]);
        assert_eq!(find(&peer[8..], 7), Some([8].as_slice()));
        assert_eq!(find(&peer[8..], 9).and_then(|value| u64_at(value, 0)), Some(10));
        assert_eq!(find_path(body, &[18, 5]), None);
        // Everything may be cut off anywhere.
        for end in 0..bytes.len() {
            assert!(messages(&bytes[..end]).count() < 2);
            assert!(attributes(&body[..end.min(body.len())]).count() <= 4);
        }
    }

    /// The bytes of a request for the link `lo`, as iproute2 5.15 sends it.
    #[test]
    fn a_request_has_the_layout_of_the_kernels_headers() {
        let mut requests = Requests::default();
        requests.add(18, 0, &[0; 16], |writer| writer.text(3, "lo"));
        let mut wanted = vec![40, 0, 0, 0, 18, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        wanted.extend([0; 16]);
        wanted.extend([7, 0, 3, 0, b'l', b'o', 0, 0]);
        if cfg!(target_endian = "little") {
            assert_eq!(requests.seal(1), Some(wanted.as_slice()));
        }
    }

    /// The last change of a batch is acknowledged, not its end: kernels before 6.10 acknowledge no end.
    #[test]
    fn a_batch_has_a_begin_and_an_end() {
        let mut requests = Requests::default();
        requests.mark(0x10, 10);
        requests.add(0xa0c, 0, &nfgenmsg(1, 0), |writer| writer);
        requests.mark(0x11, 10);
        let on_error = [0, 1, 2].map(|index| requests.on_error(index));
        assert_eq!(on_error, [OnError::End, OnError::Report, OnError::End].map(Some));
        assert_eq!(requests.last(), 1);
        let bytes = requests.seal(7).unwrap();
        let all: Vec<_> = messages(bytes).map(|one| (one.kind, one.flags, one.sequence, one.body)).collect();
        let subsystem: &[u8] = &[0, 0, 0, 10];
        let both = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        assert_eq!(
            all,
            [(0x10, 1, 7, subsystem), (0xa0c, both, 8, [1, 0, 0, 0].as_slice()), (0x11, 1, 9, subsystem)]
        );
    }

    #[test]
    fn an_attribute_that_is_too_long_is_told() {
        for (length, fits) in [(65_531, true), (65_532, false)] {
            let mut requests = Requests::default();
            requests.add(16, 0, &[], |writer| writer.put(1, &vec![0; length]));
            assert_eq!(requests.seal(1).is_some(), fits);
        }
    }

    #[test]
    fn lengths_that_make_no_sense_end_the_reading() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..random.usize(0..64)).map(|_| random.u8(..)).collect();
            // Lengths that could be true are rare among random bytes.
            for byte in bytes.iter_mut().step_by(4) {
                *byte = random.u8(0..40);
            }
            let read: usize = messages(&bytes).map(|one| attributes(one.body).count()).sum();
            assert!(read <= bytes.len() / ATTRIBUTE);
            for (_, value) in attributes(&bytes) {
                let _ = (text(value), address(value), u64_at(value, 3), u32_at(value, usize::MAX));
            }
        }
        assert_eq!(attributes(&[3, 0, 1, 0, 5, 0]).count(), 0);
        assert_eq!(attributes(&[5, 0, 1, 0, 7]).collect::<Vec<_>>(), [(1, [7].as_slice())]);
    }
}
