//! What nf_tables has: the parts that checks need.

use super::set::{Table, UDATA_COMMENT, comment_of};
use super::{Connection, Error, Family, Operation};
use crate::message::{attributes, be32, find, find_path, text};

const NF_DROP: u32 = 0;

/// A chain as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The family of its table.
    pub family: Family,
    /// Its table's name.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it is called, of a base chain.
    pub hook: Option<Hook>,
}

/// Where a base chain is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hook {
    /// The number of the hook (`enum nf_inet_hooks`, `NF_BR_…`).
    pub number: u32,
    /// Its place among the chains of the hook.
    pub priority: u32,
    /// `filter`, `nat`, `route`.
    pub kind: String,
    /// Whether a packet that no rule decides is dropped.
    pub drops: bool,
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: String,
    /// Its expressions as the kernel encodes them.
    pub expressions: Vec<u8>,
}

impl Rule {
    /// Whether it drops or rejects every packet that reaches it.
    #[must_use]
    pub fn stops_everything(&self) -> bool {
        const NFTA_EXPR_NAME: u16 = 1;
        const NFTA_EXPR_DATA: u16 = 2;
        const NFTA_IMMEDIATE_DATA: u16 = 2;
        const NFTA_DATA_VERDICT: u16 = 2;
        const NFTA_VERDICT_CODE: u16 = 1;
        for (_, expression) in attributes(&self.expressions) {
            match find(expression, NFTA_EXPR_NAME).map(text).as_deref() {
                Some("counter" | "log") => (),
                Some("reject") => return true,
                Some("immediate") => {
                    let path = [NFTA_EXPR_DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE];
                    return find_path(expression, &path).and_then(be32) == Some(NF_DROP);
                }
                _ => return false,
            }
        }
        false
    }
}

impl Connection {
    /// The number of the ruleset's generation: each committed batch, whoever sends it, increases it by one.
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn generation(&self) -> Result<u32, Error> {
        const NFTA_GEN_ID: u16 = 1;
        let what = (Operation::GetGen, Family::Unspecified, "");
        self.get(what, |writer| writer, |all| find(all, NFTA_GEN_ID).and_then(be32))
    }

    /// The comment of a table; `None` when there is no such table, an empty text when it has no comment.
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn table_comment(&self, table: Table<'_>) -> Result<Option<String>, Error> {
        const NFTA_TABLE_NAME: u16 = 1;
        const NFTA_TABLE_USERDATA: u16 = 6;
        let found = self.get(
            (Operation::GetTable, table.family, table.name),
            |writer| writer.text(NFTA_TABLE_NAME, table.name),
            |all| {
                let userdata = find(all, NFTA_TABLE_USERDATA).unwrap_or_default();
                Some(comment_of(userdata, UDATA_COMMENT).unwrap_or_default())
            },
        );
        missing_is_none(found)
    }

    /// All chains of a family; of all families with [`Family::Unspecified`].
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn chains(&self, family: Family) -> Result<Vec<Chain>, Error> {
        const NFTA_CHAIN_TABLE: u16 = 1;
        const NFTA_CHAIN_NAME: u16 = 3;
        const NFTA_CHAIN_HOOK: u16 = 4;
        const NFTA_CHAIN_POLICY: u16 = 5;
        const NFTA_CHAIN_TYPE: u16 = 7;
        const NFTA_HOOK_HOOKNUM: u16 = 1;
        const NFTA_HOOK_PRIORITY: u16 = 2;
        self.list(
            (Operation::GetChain, family, ""),
            |writer| writer,
            |family, all| {
                let text = |kind| find(all, kind).map(text).unwrap_or_default();
                let hook = find(all, NFTA_CHAIN_HOOK).and_then(|hook| {
                    Some(Hook {
                        number: find(hook, NFTA_HOOK_HOOKNUM).and_then(be32)?,
                        priority: find(hook, NFTA_HOOK_PRIORITY).and_then(be32)?,
                        kind: text(NFTA_CHAIN_TYPE),
                        drops: find(all, NFTA_CHAIN_POLICY).and_then(be32) == Some(NF_DROP),
                    })
                });
                [Chain { family, table: text(NFTA_CHAIN_TABLE), name: text(NFTA_CHAIN_NAME), hook }]
            },
        )
    }

    /// The rules of a table, each chain's in their order; `None` when there is no such table.
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn rules(&self, table: Table<'_>) -> Result<Option<Vec<Rule>>, Error> {
        const NFTA_RULE_TABLE: u16 = 1;
        const NFTA_RULE_CHAIN: u16 = 2;
        const NFTA_RULE_EXPRESSIONS: u16 = 4;
        let found = self.list(
            (Operation::GetRule, table.family, table.name),
            |writer| writer.text(NFTA_RULE_TABLE, table.name),
            |_, all| {
                // Old kernels do not heed the filter.
                if find(all, NFTA_RULE_TABLE).map(text).as_deref() != Some(table.name) {
                    return None;
                }
                let chain = find(all, NFTA_RULE_CHAIN).map(text).unwrap_or_default();
                let expressions = find(all, NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec();
                Some(Rule { chain, expressions })
            },
        );
        missing_is_none(found)
    }

    /// The names of a table's sets and maps that have a name; `None` when there is no such table.
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn sets(&self, table: Table<'_>) -> Result<Option<Vec<String>>, Error> {
        const NFTA_SET_TABLE: u16 = 1;
        const NFTA_SET_NAME: u16 = 2;
        const NFTA_SET_FLAGS: u16 = 3;
        const NFT_SET_ANONYMOUS: u32 = 1;
        let found = self.list(
            (Operation::GetSet, table.family, table.name),
            |writer| writer.text(NFTA_SET_TABLE, table.name),
            |_, all| {
                let text = |kind| find(all, kind).map(text).unwrap_or_default();
                let flags = find(all, NFTA_SET_FLAGS).and_then(be32).unwrap_or_default();
                let is_named = text(NFTA_SET_TABLE) == table.name && flags & NFT_SET_ANONYMOUS == 0;
                is_named.then(|| text(NFTA_SET_NAME))
            },
        );
        missing_is_none(found)
    }

    /// The keys of a set or map, as bytes; `None` when there is no such set.
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn keys(&self, table: Table<'_>, set: &str) -> Result<Option<Vec<Vec<u8>>>, Error> {
        const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
        const NFTA_SET_ELEM_LIST_SET: u16 = 2;
        const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
        const NFTA_SET_ELEM_KEY: u16 = 1;
        const NFTA_DATA_VALUE: u16 = 1;
        let found = self.list(
            (Operation::GetSetElem, table.family, set),
            |writer| writer.text(NFTA_SET_ELEM_LIST_TABLE, table.name).text(NFTA_SET_ELEM_LIST_SET, set),
            |_, all| {
                let list = find(all, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                let key = |(_, element)| {
                    find_path(element, &[NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE]).map(<[u8]>::to_vec)
                };
                attributes(list).filter_map(key).collect::<Vec<_>>()
            },
        );
        missing_is_none(found)
    }
}

fn missing_is_none<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
