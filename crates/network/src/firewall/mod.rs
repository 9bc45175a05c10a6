//! The firewall of containers: two nftables tables, one for what crosses the bridges and one for what the host
//! forwards, receives and translates (`skeleton.nft` has the rules, with their reasons).
//!
//! A container is a few elements of sets, added and deleted in one transaction over netlink. One with egress rules
//! also has a chain and sets of its own.
//!
//! What these tables accept another table may still drop: see [`foreign`].

pub mod foreign;
pub mod program;

mod check;
mod encode;
pub(crate) mod skeleton;

pub use check::Health;

use crate::egress::Step;
use crate::nft::dump::Chain;
use crate::nft::set::{Element, Table};
use crate::nft::{self, Batch, Connection, Family};
use crate::ports::Mapping;
use encode::{Footprint, Program, SETS, Set};
use parking_lot::Mutex;
use program::{Member, Policy};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::process::ExitStatus;
use wardian_sys::text::chain;

/// A failure of the firewall.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no nft.
    #[error(
        "there is no program nft on this host, which loads the firewall's rules: install the package nftables"
    )]
    NoNft,
    /// nft could not be run.
    #[error("cannot run nft")]
    Nft(#[source] wardian_sys::program::Error),
    /// nft has refused the rules.
    #[error("nft cannot load the firewall's rules ({status}): {text}")]
    Skeleton {
        /// How nft has ended.
        status: ExitStatus,
        /// What it has said.
        text: String,
    },
    /// The policy's interface group is 0, which every interface of the host belongs to.
    #[error("the interface group of containers cannot be 0")]
    Group,
    /// The tag is not fit for a table's name.
    #[error("{tag:?} is no tag of an instance: 1 to 64 letters and digits are needed")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// A container is described in a way that no rule can express.
    #[error("the firewall cannot have the container {handle:?}: {reason}")]
    Member {
        /// Its handle.
        handle: String,
        /// What is wrong.
        reason: String,
    },
    /// The container has been added before.
    #[error("the firewall has the container {id} already")]
    Known {
        /// Its id.
        id: String,
    },
    /// The container has not been added.
    #[error("the firewall has no container {id}")]
    Unknown {
        /// The id.
        id: String,
    },
    /// nf_tables has failed.
    #[error("the firewall could not {action}{}", subject.as_ref().map(|subject| format!(" of container {subject}")).unwrap_or_default())]
    Tables {
        /// What was to be done.
        action: &'static str,
        /// The id of the container.
        subject: Option<String>,
        /// The failure.
        #[source]
        source: nft::Error,
    },
    /// iptables-legacy-save could not tell its rules.
    #[error("cannot read the rules of iptables-legacy")]
    Legacy(#[source] io::Error),
}

fn failed(action: &'static str, subject: Option<&str>) -> impl FnOnce(nft::Error) -> Error {
    let subject = subject.map(str::to_owned);
    move |source| Error::Tables { action, subject, source }
}

/// The firewall of one instance in one network namespace.
#[derive(Debug)]
pub struct Firewall {
    connection: Connection,
    /// The name of both tables.
    table: String,
    policy: Policy,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<String, Installed>,
    /// The ruleset's generation when everything was last known to be in place.
    generation: Option<u32>,
    /// The skeleton's chains and rules as the kernel has them.
    fingerprint: u64,
}

#[derive(Debug)]
struct Installed {
    member: Member,
    program: Option<Footprint>,
}

impl Firewall {
    /// Loads the skeleton for this policy, in the network namespace of the calling thread. Rules take effect at once
    /// for all containers; elements and chains of containers stay as they are, unless the tables are missing or of
    /// another version. The firewall knows no container then: [`Firewall::replace_all`] has to follow.
    ///
    /// The rules are loaded even if they are there already, because somebody may have changed them since; this costs
    /// one process.
    ///
    /// # Errors
    /// [`Error::NoNft`], [`Error::Nft`], [`Error::Skeleton`], [`Error::Tables`], or what is wrong with the policy.
    pub fn open(tag: &str, policy: &Policy) -> Result<Self, Error> {
        let firewall = Self {
            connection: Connection::open().map_err(failed("be reached", None))?,
            table: table_name(tag)?,
            policy: policy.clone(),
            state: Mutex::new(State::default()),
        };
        firewall.load(&mut firewall.state.lock())?;
        Ok(firewall)
    }

    fn table(&self, family: Family) -> Table<'_> {
        Table { family, name: &self.table }
    }

    fn inet(&self) -> Table<'_> {
        self.table(Family::Inet)
    }

    /// Loads the skeleton and remembers what the kernel made of it.
    fn load(&self, state: &mut State) -> Result<(), Error> {
        let mut there = Vec::new();
        let mut same = true;
        for (family, name) in [(Family::Inet, "inet"), (Family::Bridge, "bridge")] {
            let comment = self.connection.table_comment(self.table(family));
            let comment = comment.map_err(failed("read its tables", None))?;
            same &= comment.as_ref().is_none_or(|comment| *comment == skeleton::structure());
            there.extend(comment.map(|_| name));
        }
        let delete = if same { &[][..] } else { &there[..] };
        skeleton::load(&skeleton::script(&self.table, &self.policy, delete)?)?;
        state.fingerprint = self.read()?.map_or(0, |reading| reading.fingerprint);
        state.generation = None;
        Ok(())
    }

    /// Adds a container.
    ///
    /// # Errors
    /// [`Error::Known`], [`Error::Member`], [`Error::Tables`]; nothing has changed then.
    pub fn add(&self, member: &Member) -> Result<(), Error> {
        valid(member)?;
        let mut state = self.state.lock();
        if state.members.contains_key(&member.id) {
            return Err(Error::Known { id: member.id.clone() });
        }
        let mut batch = Batch::new();
        let program = self.append(&mut batch, [member]).pop().flatten();
        self.commit(&mut state, batch).map_err(failed("add the rules", Some(&member.id)))?;
        state.members.insert(member.id.clone(), Installed { member: member.clone(), program });
        Ok(())
    }

    /// Removes what [`Firewall::add`] and later changes have made for a container. Where somebody else has removed a
    /// part of it already, [`Firewall::check`] says afterwards what is left to repair.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Tables`]; nothing has changed then.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        let mut state = self.state.lock();
        let installed = state.members.get(id).ok_or_else(|| Error::Unknown { id: id.to_owned() })?;
        let mut batch = Batch::new();
        let mut all = encode::addresses(&installed.member);
        all.extend(encode::entries(&installed.member));
        all.extend(encode::mapped(&installed.member, &installed.member.mappings));
        self.delete(&mut batch, &all);
        if let Some(program) = installed.program {
            program.delete(&mut batch, self.inet(), id);
        }
        match self.commit(&mut state, batch) {
            Err(error) if error.errno() == Some(libc::ENOENT) => state.generation = None,
            done => done.map_err(failed("remove the rules", Some(id)))?,
        }
        state.members.remove(id);
        Ok(())
    }

    /// Gives a container other egress rules, in one transaction.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Tables`]; nothing has changed then.
    pub fn set_egress(&self, id: &str, egress: &[Step]) -> Result<(), Error> {
        let mut state = self.state.lock();
        let installed = state.members.get(id).ok_or_else(|| Error::Unknown { id: id.to_owned() })?;
        let member = Member { egress: egress.to_vec(), ..installed.member.clone() };
        let mut batch = Batch::new();
        self.delete(&mut batch, &encode::entries(&installed.member));
        if let Some(program) = installed.program {
            program.delete(&mut batch, self.inet(), id);
        }
        let program = self.append_program(&mut batch, &member);
        self.insert(&mut batch, &commented(&member, encode::entries(&member)));
        self.commit(&mut state, batch).map_err(failed("change the egress rules", Some(id)))?;
        state.members.insert(id.to_owned(), Installed { member, program });
        Ok(())
    }

    /// Maps one more port of the host to a container. While an earlier mapping of the same container has the same
    /// host port, the earlier one counts.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Member`], [`Error::Tables`]: EEXIST when another container has the host's port;
    /// nothing has changed then.
    pub fn map_port(&self, id: &str, mapping: Mapping) -> Result<(), Error> {
        self.change_mappings(id, "map a port", |mappings| mappings.push(mapping))
    }

    /// Ends a mapping. One that the container does not have is not an error.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Tables`]; nothing has changed then.
    pub fn unmap_port(&self, id: &str, mapping: Mapping) -> Result<(), Error> {
        self.change_mappings(id, "unmap a port", |mappings| {
            if let Some(at) = mappings.iter().rposition(|one| *one == mapping) {
                mappings.remove(at);
            }
        })
    }

    fn change_mappings(
        &self,
        id: &str,
        action: &'static str,
        change: impl FnOnce(&mut Vec<Mapping>),
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        let installed = state.members.get(id).ok_or_else(|| Error::Unknown { id: id.to_owned() })?;
        let member = &installed.member;
        let mut mappings = member.mappings.clone();
        change(&mut mappings);
        valid(&Member { mappings: mappings.clone(), ..member.clone() })?;
        let old = encode::mapped(member, &member.mappings);
        let new = encode::mapped(member, &mappings);
        let mut batch = Batch::new();
        self.delete(&mut batch, &old.iter().filter(|one| !new.contains(one)).cloned().collect::<Vec<_>>());
        let added = new.into_iter().filter(|one| !old.contains(one)).collect();
        self.insert(&mut batch, &commented(member, added));
        self.commit(&mut state, batch).map_err(failed(action, Some(id)))?;
        if let Some(installed) = state.members.get_mut(id) {
            installed.member.mappings = mappings;
        }
        Ok(())
    }

    /// Makes the mapped ports of all containers those of other addresses of the host, in one transaction.
    ///
    /// # Errors
    /// [`Error::Tables`]; nothing has changed then.
    pub fn set_external(&self, external: &[IpAddr]) -> Result<(), Error> {
        let mut state = self.state.lock();
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for installed in state.members.values() {
            let member = &installed.member;
            old.extend(encode::mapped(member, &member.mappings));
            let member = Member { external: external.to_vec(), ..member.clone() };
            new.extend(commented(&member, encode::mapped(&member, &member.mappings)));
        }
        let mut batch = Batch::new();
        self.delete(&mut batch, &old);
        self.insert(&mut batch, &new);
        self.commit(&mut state, batch).map_err(failed("move the mapped ports", None))?;
        for installed in state.members.values_mut() {
            installed.member.external = external.to_vec();
        }
        Ok(())
    }

    /// Makes these the only containers, in one transaction, whatever the tables have now.
    ///
    /// # Errors
    /// [`Error::Member`], [`Error::Known`] for an id that is there twice, [`Error::Tables`]; nothing has changed then.
    pub fn replace_all(&self, members: &[Member]) -> Result<(), Error> {
        self.replace(&mut self.state.lock(), members)
    }

    /// Makes a change, and if a part of the tables is missing, makes them anew and the change again: another program may
    /// have flushed the ruleset, and the next [`Firewall::check`] has not come yet.
    ///
    /// # Errors
    /// Those of the change, and as [`Firewall::repair`].
    pub fn mended(&self, change: impl Fn(&Self) -> Result<(), Error>) -> Result<(), Error> {
        match change(self) {
            Err(Error::Tables { source, .. }) if source.errno() == Some(libc::ENOENT) => {
                let damage = chain(&source);
                self.repair()?;
                let text = "another program has changed the firewall of containers: it was made anew";
                tracing::warn!(damage, text, "network.firewall-restored");
                change(self)
            }
            done => done,
        }
    }

    /// Loads the skeleton and makes everything again for all containers, after a [`Firewall::check`] that has found
    /// damage.
    ///
    /// # Errors
    /// As [`Firewall::open`] and [`Firewall::replace_all`].
    pub fn repair(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        self.load(&mut state)?;
        let members: Vec<Member> = state.members.values().map(|installed| installed.member.clone()).collect();
        self.replace(&mut state, &members)
    }

    fn replace(&self, state: &mut State, members: &[Member]) -> Result<(), Error> {
        let mut ids = HashSet::new();
        for member in members {
            valid(member)?;
            if !ids.insert(&member.id) {
                return Err(Error::Known { id: member.id.clone() });
            }
        }
        let action = "replace all rules";
        let table = self.inet();
        let chains = self.connection.chains(Family::Inet).map_err(failed(action, None))?;
        let sets = self.connection.sets(table).map_err(failed(action, None))?.unwrap_or_default();
        let mut batch = Batch::new();
        for set in SETS {
            batch.flush_set(self.table(set.family), set.name);
        }
        let own = |name: &String| encode::id_of(name).is_some();
        let chains = chains.into_iter().filter(|chain| chain.table == self.table).map(|chain| chain.name);
        let chains: Vec<String> = chains.filter(own).collect();
        // Rules lead from one chain to another and use the sets: they go first.
        for chain in &chains {
            batch.flush_chain(table, chain);
        }
        for chain in &chains {
            batch.delete_chain(table, chain);
        }
        for set in sets.iter().filter(|name| own(name)) {
            batch.delete_set(table, set);
        }
        let programs = self.append(&mut batch, members);
        self.commit(state, batch).map_err(failed(action, None))?;
        let installed = members.iter().zip(programs);
        state.members = installed
            .map(|(member, program)| (member.id.clone(), Installed { member: member.clone(), program }))
            .collect();
        // What was there is replaced, whoever has changed it, but not the skeleton.
        Ok(())
    }

    /// Appends all that these containers need; returns what their programs leave in the kernel.
    fn append<'m>(
        &self,
        batch: &mut Batch,
        members: impl IntoIterator<Item = &'m Member>,
    ) -> Vec<Option<Footprint>> {
        let mut elements = Vec::new();
        let mut programs = Vec::new();
        for member in members {
            programs.push(self.append_program(batch, member));
            let mut all = encode::addresses(member);
            all.extend(encode::entries(member));
            all.extend(encode::mapped(member, &member.mappings));
            elements.extend(commented(member, all));
        }
        self.insert(batch, &elements);
        programs
    }

    fn append_program(&self, batch: &mut Batch, member: &Member) -> Option<Footprint> {
        let program = Program::of(member)?;
        Some(program.add(batch, self.inet(), member, self.policy.log_group))
    }

    fn insert(&self, batch: &mut Batch, elements: &[(Set, Element, String)]) {
        for set in SETS {
            let of_set = elements.iter().filter(|(this, ..)| *this == set);
            let of_set = of_set.map(|(_, element, comment)| (element, Some(comment.as_str())));
            batch.add_elements(self.table(set.family), set.name, of_set);
        }
    }

    fn delete(&self, batch: &mut Batch, elements: &[(Set, Element)]) {
        for set in SETS {
            let of_set = elements.iter().filter(|(this, _)| *this == set).map(|(_, element)| element);
            batch.delete_elements(self.table(set.family), set.name, of_set);
        }
    }

    /// Commits a batch. If nobody else has changed the ruleset since everything was last known to be in place, it
    /// still is.
    fn commit(&self, state: &mut State, batch: Batch) -> Result<(), nft::Error> {
        if batch.is_empty() {
            return Ok(());
        }
        self.connection.commit(batch)?;
        let before = state.generation.take();
        // The batch has succeeded: a generation that cannot be read only makes the next check thorough.
        let now = self.connection.generation().ok();
        state.generation = now.filter(|now| before.is_some_and(|before| next(before) == *now));
        Ok(())
    }

    /// Deletes both tables, and with them everything that the firewall has made.
    ///
    /// # Errors
    /// [`Error::Tables`].
    pub fn remove_tables(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        delete_tables(&self.connection, &self.table)?;
        *state = State::default();
        Ok(())
    }
}

/// Deletes the tables of an instance, of which no server runs. Returns whether there were any.
///
/// # Errors
/// [`Error::Tag`], [`Error::Tables`].
pub fn remove(tag: &str) -> Result<bool, Error> {
    let table = table_name(tag)?;
    let removed = Connection::open()
        .map_err(failed("be reached", None))
        .and_then(|connection| delete_tables(&connection, &table));
    match removed {
        Err(Error::Tables { source, .. }) if source.is_without_tables() => Ok(false),
        removed => removed,
    }
}

/// The chains of all programs in this network namespace; none where the kernel has no nf_tables.
pub(crate) fn chains() -> Result<Vec<Chain>, Error> {
    let action = "look at the chains of the host";
    match Connection::open().and_then(|connection| connection.chains(Family::Unspecified)) {
        Err(error) if error.is_without_tables() => Ok(Vec::new()),
        chains => chains.map_err(failed(action, None)),
    }
}

fn delete_tables(connection: &Connection, name: &str) -> Result<bool, Error> {
    let action = "delete its tables";
    let mut batch = Batch::new();
    let mut found = false;
    for family in [Family::Inet, Family::Bridge] {
        let comment = connection.table_comment(Table { family, name });
        if comment.map_err(failed(action, None))?.is_some() {
            batch.delete_table(family, name);
            found = true;
        }
    }
    connection.commit(batch).map_err(failed(action, None))?;
    Ok(found)
}

fn table_name(tag: &str) -> Result<String, Error> {
    if tag.is_empty() || tag.len() > 64 || !tag.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Error::Tag { tag: tag.to_owned() });
    }
    Ok(format!("wardian-{tag}"))
}

/// The generation after this one; the kernel leaves out 0.
const fn next(generation: u32) -> u32 {
    if generation == u32::MAX { 1 } else { generation + 1 }
}

/// Elements with the comment that tells whose they are.
fn commented(member: &Member, elements: Vec<(Set, Element)>) -> Vec<(Set, Element, String)> {
    let comment = encode::shown(&member.handle, encode::COMMENT);
    elements.into_iter().map(|(set, element)| (set, element, comment.clone())).collect()
}

fn valid(member: &Member) -> Result<(), Error> {
    /// `IFNAMSIZ` without the terminating zero.
    const LINK: usize = 15;
    let link = |name: &str| {
        !name.is_empty() && name.len() <= LINK && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let id = |id: &str| {
        (1..=16).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let wrong = if !id(&member.id) {
        format!("{:?} is no id", member.id)
    } else if !link(&member.bridge) {
        format!("{:?} is no name of a bridge", member.bridge)
    } else if !link(&member.port) {
        format!("{:?} is no name of a port", member.port)
    } else if member.mappings.iter().any(|mapping| mapping.host == 0 || mapping.container == 0) {
        "a mapped port is 0".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Member { handle: member.handle.clone(), reason: wrong })
}

#[cfg(test)]
mod tests;
