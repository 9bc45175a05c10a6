//! Sets, maps and their elements.

use super::rule::{Verdict, put_verdict};
use super::{Batch, Family, NLM_F_CREATE, NLM_F_EXCL, Operation};
use crate::message::{Writer, text};
use std::net::IpAddr;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
/// The kernel pads each field of a concatenation to the size of a register.
const REGISTER: usize = 4;
/// Elements of one message: their list's length has 16 bits.
const LIST: usize = 48 * 1024;

/// A type of nft's, by its number in `enum datatypes` (nftables, include/datatype.h). The kernel does not use it; it
/// tells `nft list` how to print a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum KeyType {
    /// An IPv4 address.
    Ipv4 = 7,
    /// An IPv6 address.
    Ipv6 = 8,
    /// A protocol's number.
    Protocol = 12,
    /// A port, and also the type and code of an ICMP message, for which nft has no type of 16 bits.
    Port = 13,
}

impl KeyType {
    const fn bytes(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

/// A key or a value: fields one after the other, each padded to 4 bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// No field.
    #[must_use]
    pub fn new() -> Self {
        /// The longest keys are of a link, a hardware address and an IPv6 address.
        const MOST: usize = 16 + 8 + 16;
        Self(Vec::with_capacity(MOST))
    }

    /// Appends a field of these bytes.
    #[must_use]
    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(REGISTER), 0);
        self
    }

    /// Appends an interface's name: 16 bytes, zeros after the name. A longer name is cut off.
    #[must_use]
    pub fn link(self, name: &str) -> Self {
        const IFNAMSIZ: usize = 16;
        let mut field = [0; IFNAMSIZ];
        for (to, from) in field.iter_mut().zip(name.bytes().take(IFNAMSIZ - 1)) {
            *to = from;
        }
        self.bytes(&field)
    }

    /// Appends an address of 4 or 16 bytes.
    #[must_use]
    pub fn ip(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.bytes(&address.octets()),
            IpAddr::V6(address) => self.bytes(&address.octets()),
        }
    }

    /// Appends a protocol's number.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.bytes(&[number])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.bytes(&port.to_be_bytes())
    }
}

/// What a map holds for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: the element of a set.
    None,
    /// Fields.
    Fields(Fields),
    /// What becomes of the packet.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key; with `last` the first one of a range, field by field.
    pub key: Fields,
    /// The last key of a range, field by field.
    pub last: Option<Fields>,
    /// What the map has for it.
    pub value: Value,
}

impl Element {
    /// The element of a set.
    #[must_use]
    pub const fn key(key: Fields) -> Self {
        Self { key, last: None, value: Value::None }
    }

    fn put(&self, writer: &mut Writer, comment: Option<&str>, with_value: bool) {
        const NFTA_SET_ELEM_KEY: u16 = 1;
        const NFTA_SET_ELEM_DATA: u16 = 2;
        const NFTA_SET_ELEM_USERDATA: u16 = 6;
        const NFTA_SET_ELEM_KEY_END: u16 = 10;
        let value = |fields: &Fields, kind, writer: &mut Writer| {
            writer.nest(kind, |writer| writer.put(NFTA_DATA_VALUE, &fields.0));
        };
        writer.nest(NFTA_LIST_ELEM, |writer| {
            value(&self.key, NFTA_SET_ELEM_KEY, writer);
            if let Some(last) = &self.last {
                value(last, NFTA_SET_ELEM_KEY_END, writer);
            }
            if !with_value {
                return writer;
            }
            match &self.value {
                Value::None => {}
                Value::Fields(fields) => value(fields, NFTA_SET_ELEM_DATA, writer),
                Value::Verdict(verdict) => {
                    writer.nest(NFTA_SET_ELEM_DATA, |writer| put_verdict(writer, verdict));
                }
            }
            if let Some(comment) = comment {
                writer.put(NFTA_SET_ELEM_USERDATA, &userdata(UDATA_COMMENT, comment));
            }
            writer
        });
    }
}

/// `NFTNL_UDATA_RULE_COMMENT`, and the same number for elements, chains and tables (libnftnl, udata.h).
pub(super) const UDATA_COMMENT: u8 = 0;
const UDATA_SET_COMMENT: u8 = 7;

/// A comment as nft keeps it beside an object: type, length, text, zero. nft takes no comment above 128 bytes.
pub(super) fn userdata(kind: u8, comment: &str) -> Vec<u8> {
    const LIMIT: usize = 127;
    let end = (0..=LIMIT.min(comment.len())).rev().find(|end| comment.is_char_boundary(*end)).unwrap_or(0);
    let text = &comment.as_bytes()[..end];
    let mut bytes = vec![kind, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

/// The comment in an object's userdata.
pub(super) fn comment_of(mut userdata: &[u8], kind: u8) -> Option<String> {
    while let [this, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *this == kind {
            return Some(text(value));
        }
        userdata = &rest[usize::from(*length)..];
    }
    None
}

/// A table, for the operations in it.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

impl Batch {
    /// Appends the creation of a set of ranges in all fields (`NFT_SET_CONCAT`). `expected` is the number of elements.
    pub fn add_set(
        &mut self,
        table: Table<'_>,
        set: &str,
        fields: &[KeyType],
        expected: usize,
        comment: &str,
    ) {
        const NFTA_SET_TABLE: u16 = 1;
        const NFTA_SET_NAME: u16 = 2;
        const NFTA_SET_FLAGS: u16 = 3;
        const NFTA_SET_KEY_TYPE: u16 = 4;
        const NFTA_SET_KEY_LEN: u16 = 5;
        const NFTA_SET_DESC: u16 = 9;
        const NFTA_SET_ID: u16 = 10;
        const NFTA_SET_USERDATA: u16 = 13;
        const NFTA_SET_DESC_SIZE: u16 = 1;
        const NFTA_SET_DESC_CONCAT: u16 = 2;
        const NFTA_SET_FIELD_LEN: u16 = 1;
        const NFT_SET_INTERVAL: u32 = 0x4;
        const NFT_SET_CONCAT: u32 = 0x80;
        // nft numbers a concatenation's type by its fields' types, 6 bits for each.
        let key_type = fields.iter().fold(0, |all, field| all << 6 | *field as u32);
        let length: u32 = fields.iter().map(|field| field.bytes().next_multiple_of(4)).sum();
        let id = u32::try_from(self.operations.len() + 1).unwrap_or(u32::MAX);
        self.push(Operation::NewSet, table.family, NLM_F_CREATE | NLM_F_EXCL, set, |writer| {
            writer
                .text(NFTA_SET_TABLE, table.name)
                .text(NFTA_SET_NAME, set)
                .be32(NFTA_SET_ID, id)
                .be32(NFTA_SET_FLAGS, NFT_SET_INTERVAL | NFT_SET_CONCAT)
                .be32(NFTA_SET_KEY_TYPE, key_type)
                .be32(NFTA_SET_KEY_LEN, length)
                .nest(NFTA_SET_DESC, |writer| {
                    writer.be32(NFTA_SET_DESC_SIZE, u32::try_from(expected).unwrap_or(u32::MAX)).nest(
                        NFTA_SET_DESC_CONCAT,
                        |writer| {
                            fields.iter().fold(writer, |writer, field| {
                                writer.nest(NFTA_LIST_ELEM, |writer| {
                                    writer.be32(NFTA_SET_FIELD_LEN, field.bytes())
                                })
                            })
                        },
                    )
                })
                .put(NFTA_SET_USERDATA, &userdata(UDATA_SET_COMMENT, comment))
        });
    }

    /// Appends the deletion of a set, which no rule may use any more.
    pub fn delete_set(&mut self, table: Table<'_>, set: &str) {
        const NFTA_SET_TABLE: u16 = 1;
        const NFTA_SET_NAME: u16 = 2;
        self.push(Operation::DelSet, table.family, 0, set, |writer| {
            writer.text(NFTA_SET_TABLE, table.name).text(NFTA_SET_NAME, set)
        });
    }

    /// Appends the addition of elements to a set or map. One that is there is an error (EEXIST).
    pub fn add_elements<'e>(
        &mut self,
        table: Table<'_>,
        set: &str,
        elements: impl IntoIterator<Item = (&'e Element, Option<&'e str>)>,
    ) {
        self.elements(Operation::NewSetElem, NLM_F_CREATE | NLM_F_EXCL, table, set, elements);
    }

    /// Appends the deletion of elements. One that is not there is an error (ENOENT).
    pub fn delete_elements<'e>(
        &mut self,
        table: Table<'_>,
        set: &str,
        elements: impl IntoIterator<Item = &'e Element>,
    ) {
        let elements = elements.into_iter().map(|element| (element, None));
        self.elements(Operation::DelSetElem, 0, table, set, elements);
    }

    /// Appends the deletion of all elements of a set.
    pub fn flush_set(&mut self, table: Table<'_>, set: &str) {
        self.push(Operation::DelSetElem, table.family, 0, set, |writer| list_of(writer, table, set));
    }

    fn elements<'e>(
        &mut self,
        operation: Operation,
        flags: u16,
        table: Table<'_>,
        set: &str,
        elements: impl IntoIterator<Item = (&'e Element, Option<&'e str>)>,
    ) {
        const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.push(operation, table.family, flags, set, |writer| {
                list_of(writer, table, set).nest(NFTA_SET_ELEM_LIST_ELEMENTS, |writer| {
                    let start = writer.bytes().len();
                    while writer.bytes().len() - start < LIST
                        && let Some((element, comment)) = elements.next()
                    {
                        element.put(writer, comment, operation == Operation::NewSetElem);
                    }
                    writer
                })
            });
        }
    }
}

fn list_of<'w>(writer: &'w mut Writer, table: Table<'_>, set: &str) -> &'w mut Writer {
    const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
    const NFTA_SET_ELEM_LIST_SET: u16 = 2;
    writer.text(NFTA_SET_ELEM_LIST_TABLE, table.name).text(NFTA_SET_ELEM_LIST_SET, set)
}
