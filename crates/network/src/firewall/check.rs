//! Whether the firewall is still in place: other programs may flush the whole ruleset (`nft flush ruleset`).

use super::encode::{self, PORTS4, SETS, Set};
use super::{Error, Firewall, State, failed};
use crate::nft::Family;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// The state of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Everything is there.
    Intact,
    /// Something is missing or has been changed: this.
    Damaged(String),
}

/// What the tables have, except elements.
pub(super) struct Reading {
    /// A hash of the skeleton's chains, rules and elements.
    pub(super) fingerprint: u64,
    /// The number of rules in the chains of each container, by its id.
    programs: HashMap<String, usize>,
}

const ACTION: &str = "check its tables";
/// Sets whose elements do not depend on containers.
const POLICY: [&str; 6] = ["deny4", "deny6", "allow4", "allow6", "dns4", "dns6"];

impl Firewall {
    /// Tells whether tables, rules and elements are in place: one request when nobody else has changed the ruleset
    /// since the last time, otherwise a reading of both tables. What [`Firewall::repair`] does about damage is left
    /// to the caller.
    ///
    /// Elements are counted, not compared: the check is for programs that flush or reload rules, not for someone who
    /// has the privilege and the intention to deceive it.
    ///
    /// # Errors
    /// [`Error::Tables`].
    pub fn check(&self) -> Result<Health, Error> {
        let mut state = self.state.lock();
        // Read before the tables: a later change shows as another generation at the next check.
        let now = self.connection.generation().map_err(failed(ACTION, None))?;
        if state.generation == Some(now) {
            return Ok(Health::Intact);
        }
        Ok(match self.damage(&state)? {
            Some(what) => {
                state.generation = None;
                Health::Damaged(what)
            }
            None => {
                state.generation = Some(now);
                Health::Intact
            }
        })
    }

    fn damage(&self, state: &State) -> Result<Option<String>, Error> {
        let Some(reading) = self.read()? else {
            return Ok(Some(format!("a table {} is missing", self.table)));
        };
        if reading.fingerprint != state.fingerprint {
            return Ok(Some(format!("the rules of the tables {} have been changed", self.table)));
        }
        for (id, installed) in &state.members {
            let expected = installed.program.map_or(0, |program| program.rules);
            let found = reading.programs.get(id).copied().unwrap_or_default();
            if expected != found {
                return Ok(Some(format!("container {id} has {found} rules instead of {expected}")));
            }
        }
        let mut expected: HashMap<Set, usize> = HashMap::new();
        for installed in state.members.values() {
            let member = &installed.member;
            let all = [
                encode::addresses(member),
                encode::entries(member),
                encode::mapped(member, &member.mappings),
            ];
            for (set, _) in all.into_iter().flatten() {
                *expected.entry(set).or_default() += 1;
            }
        }
        for set in SETS {
            let keys = self.connection.keys(self.table(set.family), set.name);
            let found = keys.map_err(failed(ACTION, None))?.map_or(0, |keys| keys.len());
            let expected = expected.get(&set).copied().unwrap_or_default();
            if found != expected {
                return Ok(Some(format!("the set {} has {found} elements instead of {expected}", set.name)));
            }
        }
        Ok(None)
    }

    /// Reads chains and rules; `None` when a table is missing.
    pub(super) fn read(&self) -> Result<Option<Reading>, Error> {
        let mut hash = DefaultHasher::new();
        let mut programs = HashMap::new();
        for family in [Family::Inet, Family::Bridge] {
            let table = self.table(family);
            if self.connection.table_comment(table).map_err(failed(ACTION, None))?.is_none() {
                return Ok(None);
            }
            let chains = self.connection.chains(family).map_err(failed(ACTION, None))?;
            let chains: BTreeMap<_, _> = chains
                .into_iter()
                .filter(|chain| chain.table == self.table && encode::id_of(&chain.name).is_none())
                .map(|chain| (chain.name, chain.hook))
                .collect();
            chains.hash(&mut hash);
            let rules = self.connection.rules(table).map_err(failed(ACTION, None))?.unwrap_or_default();
            let mut skeleton: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
            for rule in rules {
                match encode::id_of(&rule.chain) {
                    Some(id) => *programs.entry(id.to_owned()).or_default() += 1,
                    None => skeleton.entry(rule.chain).or_default().push(rule.expressions),
                }
            }
            skeleton.hash(&mut hash);
            if family == Family::Inet {
                for set in POLICY {
                    let keys = self.connection.keys(table, set).map_err(failed(ACTION, None))?;
                    keys.map(|keys| keys.into_iter().collect::<BTreeSet<_>>()).hash(&mut hash);
                }
            }
        }
        Ok(Some(Reading { fingerprint: hash.finish(), programs }))
    }

    /// What the tables have of containers that are not among these `(id, port)`: ids of chains and sets, and names of
    /// ports.
    ///
    /// # Errors
    /// [`Error::Tables`].
    pub fn strays(&self, known: &[(&str, &str)]) -> Result<Vec<String>, Error> {
        let ids: HashSet<&str> = known.iter().map(|(id, _)| *id).collect();
        let ports: HashSet<&str> = known.iter().map(|(_, port)| *port).collect();
        let chains = self.connection.chains(Family::Inet).map_err(failed(ACTION, None))?;
        let chains = chains.into_iter().filter(|chain| chain.table == self.table).map(|chain| chain.name);
        let sets = self.connection.sets(self.inet()).map_err(failed(ACTION, None))?.unwrap_or_default();
        let mut strays: BTreeSet<String> = chains
            .chain(sets)
            .filter_map(|name| encode::id_of(&name).filter(|id| !ids.contains(id)).map(str::to_owned))
            .collect();
        let keys = self.connection.keys(self.table(PORTS4.family), PORTS4.name);
        for key in keys.map_err(failed(ACTION, None))?.unwrap_or_default() {
            let port = crate::message::text(key.get(..16).unwrap_or_default());
            if !ports.contains(port.as_str()) {
                strays.insert(port);
            }
        }
        Ok(strays.into_iter().collect())
    }
}
