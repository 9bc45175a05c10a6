//! Chains and rules.

use super::set::{Table, UDATA_COMMENT, userdata};
use super::{Batch, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Operation};
use crate::message::Writer;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
/// The first 4 bytes of the registers; a key of several fields begins here.
const NFT_REG32_00: u32 = 8;

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The table has nothing against it.
    Accept,
    /// It goes through this chain and does not come back.
    Goto(String),
}

pub(super) fn put_verdict<'w>(writer: &'w mut Writer, verdict: &Verdict) -> &'w mut Writer {
    const NFTA_DATA_VERDICT: u16 = 2;
    const NFTA_VERDICT_CODE: u16 = 1;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    const NF_ACCEPT: u32 = 1;
    const NFT_GOTO: i32 = -4;
    writer.nest(NFTA_DATA_VERDICT, |writer| match verdict {
        Verdict::Accept => writer.be32(NFTA_VERDICT_CODE, NF_ACCEPT),
        Verdict::Goto(chain) => {
            writer.be32(NFTA_VERDICT_CODE, NFT_GOTO.cast_unsigned()).text(NFTA_VERDICT_CHAIN, chain)
        }
    })
}

/// What is loaded from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// The family of its network layer: `NFPROTO_IPV4` or `NFPROTO_IPV6`, 1 byte.
    NetworkProtocol,
    /// The number of its transport protocol, 1 byte.
    TransportProtocol,
    /// Bytes from the network layer's header.
    Network {
        /// Offset in bytes.
        offset: u32,
        /// Number of bytes.
        length: u32,
    },
    /// Bytes from the transport layer's header. A packet that is too short does not match the rule.
    Transport {
        /// Offset in bytes.
        offset: u32,
        /// Number of bytes.
        length: u32,
    },
}

impl Load {
    const fn registers(self) -> u32 {
        match self {
            Self::NetworkProtocol | Self::TransportProtocol => 1,
            Self::Network { length, .. } | Self::Transport { length, .. } => length.div_ceil(4),
        }
    }
}

/// A list of expressions: a packet goes on to the next one while it matches.
#[derive(Debug, Default)]
pub struct Rule(Writer);

impl Rule {
    /// A rule that matches everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Writer) -> &mut Writer) {
        const NFTA_EXPR_NAME: u16 = 1;
        const NFTA_EXPR_DATA: u16 = 2;
        self.0.nest(NFTA_LIST_ELEM, |writer| writer.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill));
    }

    fn load(&mut self, what: Load, register: u32) {
        const NFTA_META_DREG: u16 = 1;
        const NFTA_META_KEY: u16 = 2;
        const NFT_META_NFPROTO: u32 = 15;
        const NFT_META_L4PROTO: u32 = 16;
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        let mut meta = |key| {
            self.expression("meta", |writer| writer.be32(NFTA_META_KEY, key).be32(NFTA_META_DREG, register));
        };
        match what {
            Load::NetworkProtocol => meta(NFT_META_NFPROTO),
            Load::TransportProtocol => meta(NFT_META_L4PROTO),
            Load::Network { offset, length } => self.payload(NETWORK, offset, length, register),
            Load::Transport { offset, length } => self.payload(TRANSPORT, offset, length, register),
        }
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        const NFTA_PAYLOAD_DREG: u16 = 1;
        const NFTA_PAYLOAD_BASE: u16 = 2;
        const NFTA_PAYLOAD_OFFSET: u16 = 3;
        const NFTA_PAYLOAD_LEN: u16 = 4;
        self.expression("payload", |writer| {
            writer
                .be32(NFTA_PAYLOAD_DREG, register)
                .be32(NFTA_PAYLOAD_BASE, base)
                .be32(NFTA_PAYLOAD_OFFSET, offset)
                .be32(NFTA_PAYLOAD_LEN, length)
        });
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        const NFTA_CMP_SREG: u16 = 1;
        const NFTA_CMP_OP: u16 = 2;
        const NFTA_CMP_DATA: u16 = 3;
        self.expression("cmp", |writer| {
            writer
                .be32(NFTA_CMP_SREG, NFT_REG32_00)
                .be32(NFTA_CMP_OP, operator)
                .nest(NFTA_CMP_DATA, |writer| writer.put(NFTA_DATA_VALUE, value))
        });
    }

    /// Appends: what is loaded is from `first` to `last`, both included, compared as big-endian numbers.
    #[must_use]
    pub fn within(mut self, what: Load, first: &[u8], last: &[u8]) -> Self {
        const EQUAL: u32 = 0;
        const LESS_OR_EQUAL: u32 = 3;
        const GREATER_OR_EQUAL: u32 = 5;
        self.load(what, NFT_REG32_00);
        if first == last {
            self.compare(EQUAL, first);
        } else {
            self.compare(GREATER_OR_EQUAL, first);
            self.compare(LESS_OR_EQUAL, last);
        }
        self
    }

    /// Appends: what is loaded, field by field, is in the set.
    #[must_use]
    pub fn lookup(mut self, key: &[Load], set: &str) -> Self {
        const NFTA_LOOKUP_SET: u16 = 1;
        const NFTA_LOOKUP_SREG: u16 = 2;
        let mut register = NFT_REG32_00;
        for field in key {
            self.load(*field, register);
            register += field.registers();
        }
        self.expression("lookup", |writer| {
            writer.text(NFTA_LOOKUP_SET, set).be32(NFTA_LOOKUP_SREG, NFT_REG32_00)
        });
        self
    }

    /// Appends: connection tracking has one of these states for the packet, bits of `enum ip_conntrack_info`
    /// (`NF_CT_STATE_BIT`).
    #[must_use]
    pub fn state(mut self, bits: u32) -> Self {
        const NFTA_CT_DREG: u16 = 1;
        const NFTA_CT_KEY: u16 = 2;
        const NFT_CT_STATE: u32 = 0;
        const NFTA_BITWISE_SREG: u16 = 1;
        const NFTA_BITWISE_DREG: u16 = 2;
        const NFTA_BITWISE_LEN: u16 = 3;
        const NFTA_BITWISE_MASK: u16 = 4;
        const NFTA_BITWISE_XOR: u16 = 5;
        const NOT_EQUAL: u32 = 1;
        self.expression("ct", |writer| {
            writer.be32(NFTA_CT_KEY, NFT_CT_STATE).be32(NFTA_CT_DREG, NFT_REG32_00)
        });
        self.expression("bitwise", |writer| {
            writer
                .be32(NFTA_BITWISE_SREG, NFT_REG32_00)
                .be32(NFTA_BITWISE_DREG, NFT_REG32_00)
                .be32(NFTA_BITWISE_LEN, 4)
                // The state is an integer of the host's byte order, and so is the mask.
                .nest(NFTA_BITWISE_MASK, |writer| writer.put(NFTA_DATA_VALUE, &bits.to_ne_bytes()))
                .nest(NFTA_BITWISE_XOR, |writer| writer.put(NFTA_DATA_VALUE, &[0; 4]))
        });
        self.compare(NOT_EQUAL, &[0; 4]);
        self
    }

    /// Appends: the packet is handed to the listeners of a group of nfnetlink_log.
    #[must_use]
    pub fn log(mut self, group: u16, prefix: &str) -> Self {
        const NFTA_LOG_GROUP: u16 = 1;
        const NFTA_LOG_PREFIX: u16 = 2;
        self.expression("log", |writer| {
            writer.put(NFTA_LOG_GROUP, &group.to_be_bytes()).text(NFTA_LOG_PREFIX, prefix)
        });
        self
    }

    /// Appends what becomes of a packet that matches.
    #[must_use]
    pub fn verdict(mut self, verdict: &Verdict) -> Self {
        const NFTA_IMMEDIATE_DREG: u16 = 1;
        const NFTA_IMMEDIATE_DATA: u16 = 2;
        const NFT_REG_VERDICT: u32 = 0;
        self.expression("immediate", |writer| {
            writer
                .be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
                .nest(NFTA_IMMEDIATE_DATA, |writer| put_verdict(writer, verdict))
        });
        self
    }
}

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;

impl Batch {
    /// Appends the creation of a chain without a hook.
    pub fn add_chain(&mut self, table: Table<'_>, chain: &str, comment: &str) {
        const NFTA_CHAIN_USERDATA: u16 = 12;
        self.push(Operation::NewChain, table.family, NLM_F_CREATE | NLM_F_EXCL, chain, |writer| {
            chain_of(writer, table, chain).put(NFTA_CHAIN_USERDATA, &userdata(UDATA_COMMENT, comment))
        });
    }

    /// Appends the deletion of a chain without rules, which nothing may lead to any more.
    pub fn delete_chain(&mut self, table: Table<'_>, chain: &str) {
        self.push(Operation::DelChain, table.family, 0, chain, |writer| chain_of(writer, table, chain));
    }

    /// Appends the deletion of a chain's rules.
    pub fn flush_chain(&mut self, table: Table<'_>, chain: &str) {
        self.push(Operation::DelRule, table.family, 0, chain, |writer| {
            writer.text(NFTA_RULE_TABLE, table.name).text(NFTA_RULE_CHAIN, chain)
        });
    }

    /// Appends the addition of a rule at the end of a chain.
    pub fn add_rule(&mut self, table: Table<'_>, chain: &str, rule: &Rule, comment: &str) {
        const NFTA_RULE_EXPRESSIONS: u16 = 4;
        const NFTA_RULE_USERDATA: u16 = 7;
        self.push(Operation::NewRule, table.family, NLM_F_CREATE | NLM_F_APPEND, chain, |writer| {
            writer
                .text(NFTA_RULE_TABLE, table.name)
                .text(NFTA_RULE_CHAIN, chain)
                .put(NFTA_RULE_EXPRESSIONS | 0x8000, rule.0.bytes())
                .put(NFTA_RULE_USERDATA, &userdata(UDATA_COMMENT, comment))
        });
    }
}

fn chain_of<'w>(writer: &'w mut Writer, table: Table<'_>, chain: &str) -> &'w mut Writer {
    const NFTA_CHAIN_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    writer.text(NFTA_CHAIN_TABLE, table.name).text(NFTA_CHAIN_NAME, chain)
}
