//! What nf_tables has: the parts that checks need.

use super::message::{self, Family, attribute, attributes, int};
use super::set::{Table, UDATA_COMMENT, comment_of};
use super::{Connection, Error, Operation};
use rustix::io::Errno;

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
            match attribute(expression, NFTA_EXPR_NAME).map(message::text).as_deref() {
                Some("counter" | "log") => (),
                Some("reject") => return true,
                Some("immediate") => {
                    let path = [NFTA_EXPR_DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE];
                    let code = path.into_iter().try_fold(expression, attribute);
                    return code.and_then(int) == Some(NF_DROP);
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
        let number = self.request(
            what,
            false,
            |_| (),
            |found, _, attributes| *found = attribute(attributes, NFTA_GEN_ID).and_then(int),
            || None,
        )?;
        number.ok_or(Error::Silent { operation: Operation::GetGen, subject: String::new() })
    }

    /// The comment of a table; `None` when there is no such table, an empty text when it has no comment.
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn table_comment(&self, table: Table<'_>) -> Result<Option<String>, Error> {
        const NFTA_TABLE_NAME: u16 = 1;
        const NFTA_TABLE_USERDATA: u16 = 6;
        let found = self.request(
            (Operation::GetTable, table.family, table.name),
            false,
            |writer| writer.text(NFTA_TABLE_NAME, table.name),
            |found, _, attributes| {
                let userdata = attribute(attributes, NFTA_TABLE_USERDATA).unwrap_or_default();
                *found = comment_of(userdata, UDATA_COMMENT).unwrap_or_default();
            },
            String::new,
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
        self.request(
            (Operation::GetChain, family, ""),
            true,
            |_| (),
            |found: &mut Vec<Chain>, family, all| {
                let text = |kind| attribute(all, kind).map(message::text).unwrap_or_default();
                let hook = attribute(all, NFTA_CHAIN_HOOK).and_then(|hook| {
                    Some(Hook {
                        number: attribute(hook, NFTA_HOOK_HOOKNUM).and_then(int)?,
                        priority: attribute(hook, NFTA_HOOK_PRIORITY).and_then(int)?,
                        kind: text(NFTA_CHAIN_TYPE),
                        drops: attribute(all, NFTA_CHAIN_POLICY).and_then(int) == Some(NF_DROP),
                    })
                });
                found.push(Chain {
                    family,
                    table: text(NFTA_CHAIN_TABLE),
                    name: text(NFTA_CHAIN_NAME),
                    hook,
                });
            },
            Vec::new,
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
        let found = self.request(
            (Operation::GetRule, table.family, table.name),
            true,
            |writer| writer.text(NFTA_RULE_TABLE, table.name),
            |found: &mut Vec<Rule>, _, all| {
                // Old kernels do not heed the filter.
                if attribute(all, NFTA_RULE_TABLE).map(message::text).as_deref() != Some(table.name) {
                    return;
                }
                let chain = attribute(all, NFTA_RULE_CHAIN).map(message::text).unwrap_or_default();
                let expressions = attribute(all, NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec();
                found.push(Rule { chain, expressions });
            },
            Vec::new,
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
        let found = self.request(
            (Operation::GetSet, table.family, table.name),
            true,
            |writer| writer.text(NFTA_SET_TABLE, table.name),
            |found: &mut Vec<String>, _, all| {
                let text = |kind| attribute(all, kind).map(message::text).unwrap_or_default();
                let flags = attribute(all, NFTA_SET_FLAGS).and_then(int).unwrap_or_default();
                if text(NFTA_SET_TABLE) == table.name && flags & NFT_SET_ANONYMOUS == 0 {
                    found.push(text(NFTA_SET_NAME));
                }
            },
            Vec::new,
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
        let found = self.request(
            (Operation::GetSetElem, table.family, set),
            true,
            |writer| {
                writer.text(NFTA_SET_ELEM_LIST_TABLE, table.name);
                writer.text(NFTA_SET_ELEM_LIST_SET, set);
            },
            |found: &mut Vec<Vec<u8>>, _, all| {
                let list = attribute(all, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                found.extend(attributes(list).filter_map(|(_, element)| {
                    let key = attribute(element, NFTA_SET_ELEM_KEY)?;
                    Some(attribute(key, NFTA_DATA_VALUE)?.to_vec())
                }));
            },
            Vec::new,
        );
        missing_is_none(found)
    }
}

fn missing_is_none<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
