//! Netlink messages as bytes (`netlink(7)`, `linux/netlink.h`): requests are written, replies are read.
//!
//! A message is a header of 16 bytes (length, type, flags, sequence number, port), a fixed part that belongs to its
//! type, and attributes. An attribute is a length, a type and a value, and its value may be attributes again.
//! Everything is padded to four bytes and in the byte order of the host.

use std::net::IpAddr;

/// Bytes of a message's header.
pub(crate) const HEADER: usize = 16;
/// Bytes of an attribute's header.
const ATTRIBUTE: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: without the flags `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE: u16 = 0x3fff;

/// Writes the attributes of a request.
#[derive(Debug)]
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Adds an attribute.
    ///
    /// # Panics
    /// The value has 64 KiB or more: no caller has values that come from outside and are not bounded.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE + value.len()).expect("the values of attributes are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(self.0);
        self
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a string that ends in NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an address, four or sixteen bytes in network byte order.
    pub(crate) fn address(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(v4) => self.bytes(kind, &v4.octets()),
            IpAddr::V6(v6) => self.bytes(kind, &v6.octets()),
        }
    }

    /// Adds an attribute that has attributes, written by `fill`, after a fixed part.
    pub(crate) fn nest_after(
        &mut self,
        kind: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let start = self.0.len();
        self.bytes(kind | NESTED, fixed);
        fill(&mut Attributes(self.0));
        let length =
            u16::try_from(self.0.len() - start).expect("attributes within an attribute are few and short");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Adds an attribute that has attributes, written by `fill`.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.nest_after(kind, &[], fill)
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// One request among several.
#[derive(Debug)]
struct Request {
    /// Where its header starts.
    start: usize,
    /// An errno that counts as success.
    tolerated: Option<i32>,
}

/// Requests that go to the kernel in one message, in this order.
///
/// The kernel carries all of them out, also those after one that has failed. What must not happen after a failure
/// belongs into a later set.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    bytes: Vec<u8>,
    requests: Vec<Request>,
}

impl Requests {
    /// Adds a request: its type, its flags besides `NLM_F_REQUEST`, its fixed part and its attributes.
    pub(crate) fn add(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(fixed);
        pad(&mut self.bytes);
        fill(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).expect("a request is short");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.requests.push(Request { start, tolerated: None });
        self
    }

    /// Lets the last request fail with this errno.
    pub(crate) fn tolerate(&mut self, errno: i32) -> &mut Self {
        if let Some(last) = self.requests.last_mut() {
            last.tolerated = Some(errno);
        }
        self
    }

    pub(crate) fn tolerated(&self, index: usize) -> Option<i32> {
        self.requests.get(index).and_then(|request| request.tolerated)
    }

    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Numbers the requests from `first` on and has the last one acknowledged: the kernel works on them in order, so
    /// all errors have arrived by then.
    pub(crate) fn seal(&mut self, first: u32) -> &[u8] {
        for (request, number) in self.requests.iter().zip(0..) {
            let at = request.start + 8;
            self.bytes[at..at + 4].copy_from_slice(&first.wrapping_add(number).to_ne_bytes());
        }
        if let Some(last) = self.requests.last() {
            let at = last.start + 6;
            let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | libc::NLM_F_ACK as u16;
            self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        &self.bytes
    }
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

/// A string up to its NUL.
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
        requests.add(16, 0x400, &[1, 2, 3, 4], |attributes| {
            attributes.text(3, "lo").u32(4, 1500).nest(18, |inner| {
                inner.text(1, "veth").nest_after(2, &[9; 6], |peer| {
                    peer.u8(7, 8).u64(9, 10);
                });
            });
        });
        requests.add(17, 0, &[5; 4], |_| {}).tolerate(libc::ENODEV);
        assert_eq!((requests.tolerated(0), requests.tolerated(1)), (None, Some(libc::ENODEV)));
        let bytes = requests.seal(7).to_vec();
        let all: Vec<_> = messages(&bytes).collect();
        let heads: Vec<_> = all.iter().map(|one| (one.kind, one.flags, one.sequence)).collect();
        let request = libc::NLM_F_REQUEST as u16;
        assert_eq!(heads, [(16, 0x400 | request, 7), (17, request | libc::NLM_F_ACK as u16, 8)]);
        let body = &all[0].body[4..];
        assert_eq!(find(body, 3).map(text).as_deref(), Some("lo"));
        assert_eq!(find(body, 4).and_then(|value| u32_at(value, 0)), Some(1500));
        assert_eq!(find_path(body, &[18, 1]).map(text).as_deref(), Some("veth"));
        let peer = find_path(body, &[18, 2]).unwrap();
        assert_eq!(&peer[..6], &[9; 6]);
        assert_eq!(find(&peer[8..], 7), Some([8].as_slice()));
        assert_eq!(find(&peer[8..], 9).and_then(|value| u64_at(value, 0)), Some(10));
        assert_eq!(find_path(body, &[18, 5]), None);
    }

    /// The bytes of a request for the link `lo`, as iproute2 5.15 sends it.
    #[test]
    fn a_request_has_the_layout_of_the_kernels_headers() {
        let mut requests = Requests::default();
        requests.add(18, 0, &[0; 16], |attributes| {
            attributes.text(3, "lo");
        });
        let mut wanted = vec![40, 0, 0, 0, 18, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        wanted.extend([0; 16]);
        wanted.extend([7, 0, 3, 0, b'l', b'o', 0, 0]);
        if cfg!(target_endian = "little") {
            assert_eq!(requests.seal(1), wanted);
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
