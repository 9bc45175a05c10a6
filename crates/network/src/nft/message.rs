//! Netlink messages as bytes: headers and attributes (netlink(7), `linux/netfilter/nfnetlink.h`).

/// The subsystem of nf_tables among those of nfnetlink.
pub const NFTABLES: u16 = 10;

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// All families, in dumps alone.
    Unspecified = 0,
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// Frames that cross a bridge.
    Bridge = 7,
    /// IPv6.
    Ip6 = 10,
}

/// Bytes that grow by attributes. Integers of nf_tables are big-endian.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    overflow: bool,
}

impl Writer {
    /// The bytes so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether an attribute was longer than its 16-bit length can tell; the bytes are of no use then.
    #[must_use]
    pub const fn overflowed(&self) -> bool {
        self.overflow
    }

    /// Appends an attribute, padded to 4 bytes.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value);
        self.end(start);
    }

    /// Appends a string with its terminating zero.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.end(start);
    }

    /// Appends a 32-bit integer.
    pub fn int(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Appends an attribute that consists of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        const NESTED: u16 = 0x8000;
        let start = self.begin(kind | NESTED);
        fill(self);
        self.end(start);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Appends a whole message: `nlmsghdr`, `nfgenmsg` with the resource id, and the attributes that `fill` writes.
    pub fn message(&mut self, header: &Header, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&header.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&header.flags.to_ne_bytes());
        self.bytes.extend_from_slice(&header.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[header.family as u8, 0]);
        self.bytes.extend_from_slice(&header.resource.to_be_bytes());
        fill(self);
        match u32::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
    }

    /// Sets bits in the flags of the message that begins at `start`.
    pub fn add_flags(&mut self, start: usize, flags: u16) {
        let at = start + 6;
        let now = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(now | flags).to_ne_bytes());
    }
}

/// What comes before a message's attributes.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// `nfgen_family`.
    pub family: Family,
    /// `res_id`.
    pub resource: u16,
}

/// Length of `nlmsghdr`.
pub const NLMSGHDR: usize = 16;
/// Length of `nfgenmsg`.
pub const NFGENMSG: usize = 4;

/// The messages in a datagram: type, flags, sequence number and payload. What is cut off ends the iteration.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..NLMSGHDR)?;
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let payload = bytes.get(NLMSGHDR..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, sequence, payload))
    })
}

/// The attributes in a payload: type without flags, and value. What is cut off ends the iteration.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this type.
#[must_use]
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(this, value)| (this == kind).then_some(value))
}

/// A string without its terminating zero; bytes that are not UTF-8 are replaced.
#[must_use]
pub fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

/// A big-endian 32-bit integer.
#[must_use]
pub fn int(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut writer = Writer::default();
        let header = Header { kind: 0xa0c, flags: 1, sequence: 7, family: Family::Inet, resource: 0 };
        writer.message(&header, |writer| {
            writer.text(1, "abc");
            writer.nest(3, |writer| writer.int(2, 0x0102_0304));
        });
        writer.add_flags(0, 4);
        let bytes = writer.bytes().to_vec();
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        let (kind, flags, sequence, payload) = all[0];
        assert_eq!((kind, flags, sequence), (0xa0c, 5, 7));
        assert_eq!(payload[..4], [1, 0, 0, 0]);
        let attributes = &payload[NFGENMSG..];
        assert_eq!(text(attribute(attributes, 1).unwrap()), "abc");
        assert_eq!(int(attribute(attribute(attributes, 3).unwrap(), 2).unwrap()), Some(0x0102_0304));
        // Everything may be cut off anywhere.
        for end in 0..bytes.len() {
            for (_, _, _, payload) in messages(&bytes[..end]) {
                let _ = attributes_of(payload);
            }
        }
    }

    fn attributes_of(payload: &[u8]) -> usize {
        attributes(payload).count()
    }

    #[test]
    fn an_attribute_that_is_too_long_is_told() {
        let mut writer = Writer::default();
        writer.put(1, &vec![0; 65_532]);
        assert!(writer.overflowed());
    }
}
