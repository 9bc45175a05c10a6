//! What the host's network means for containers.

use super::Options;
use ipnet::Ipv4Net;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use wardian_network::{firewall::foreign, group, host, names};
use wardian_sys::directory::Directory;

/// The usual run directory.
const RUN: &str = "/run/wardian";

/// The findings. What cannot be read is left out and named in `unknown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    /// The pool of subnets for containers that was looked at.
    pub pool: String,
    /// Whether a server with a network runs here, or one of its containers lives.
    pub in_use: bool,
    /// Whether the host forwards packets.
    pub forwarding: Option<bool>,
    /// Whether frames from one port of a bridge to another are subject to the host's rules for forwarded packets.
    pub filters_bridges: bool,
    /// Chains of others that drop forwarded packets, and have not the rules that let containers' through.
    pub drops: Vec<Drop>,
    /// Networks of the host that have addresses in common with the pool.
    pub collisions: Vec<Collision>,
    /// Why containers have no name server that they can reach, unless the server's settings name some.
    pub no_name_server: Option<String>,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

/// A chain that drops forwarded packets for which it has no rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drop {
    /// Its table and name.
    pub chain: String,
    /// Commands that let containers' packets through.
    pub remedy: String,
}

/// A network of the host that has addresses in common with the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Collision {
    /// The network.
    pub network: String,
    /// Its link, if it has one.
    pub link: Option<String>,
    /// Whether it is a part of the pool; otherwise the pool is a part of it.
    pub is_inside: bool,
}

/// Examines the network namespace of this process.
pub fn probe(options: &Options) -> Network {
    let pool = options.pool;
    let mut found = Network {
        pool: pool.to_string(),
        forwarding: host::forwards(),
        filters_bridges: host::filters_bridges(),
        ..Network::default()
    };
    match host::tables() {
        Ok(tables) => found.in_use = !tables.is_empty(),
        Err(error) => found.unknown.push(error.to_string()),
    }
    let tag = tag(options.runs.first().map_or(Path::new(RUN), PathBuf::as_path));
    match foreign::foreign_drop(&tag, group(&tag)) {
        Ok(drops) => {
            let drop = |drop: foreign::Drops| Drop {
                remedy: drop.remedy.replace("NETWORK", &found.pool),
                chain: drop.chain,
            };
            found.drops = drops.into_iter().filter(|drops| !is_remedied(&drops.remedy)).map(drop).collect();
        }
        Err(error) => found.unknown.push(wardian_sys::text::chain(&error)),
    }
    match names::lacking(&[], false) {
        Ok(why) => found.no_name_server = why,
        Err(error) => found.unknown.push(error.to_string()),
    }
    match host::collisions(pool) {
        Ok(all) => found.collisions = all.into_iter().map(|foreign| collision(pool, foreign)).collect(),
        Err(error) => found.unknown.push(error.to_string()),
    }
    found
}

/// Whether the rules that these commands insert are there already. Other commands cannot be checked.
fn is_remedied(remedy: &str) -> bool {
    remedy.split("; ").all(|command| {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            [program, "-I", rule @ ..] if program.starts_with("ip") => {
                run(program, &[&["-w", "-C"], rule].concat()).is_some()
            }
            [program, "-t", table, "-I", rule @ ..] if program.starts_with("ip") => {
                run(program, &[&["-w", "-t", table, "-C"], rule].concat()).is_some()
            }
            ["nft", "insert", "rule", family, table, chain, rule @ ..] => {
                let listed = run("nft", &["-n", "list", "chain", family, table, chain]).unwrap_or_default();
                let rule = rule.join(" ");
                listed.lines().any(|line| line.trim() == rule)
            }
            _ => false,
        }
    })
}

/// Runs a program that only looks. Returns its output if it succeeds.
fn run(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn collision(pool: Ipv4Net, foreign: wardian_network::route::Foreign) -> Collision {
    Collision {
        network: foreign.network.to_string(),
        link: foreign.link,
        is_inside: pool.contains(&foreign.network),
    }
}

/// The tag of the instance with this run directory: that in its record, or the one that a server will have.
fn tag(run: &Path) -> String {
    let record = Directory::open(run).map(|dir| crate::ground::json(&dir, "instance.json"));
    if let Some(tag) = record.ok().and_then(|record| record["tag"].as_str().map(str::to_owned)) {
        return tag;
    }
    let real = std::fs::canonicalize(run).or_else(|_| std::path::absolute(run));
    let real = real.unwrap_or_else(|_| run.to_owned());
    let hash = Sha256::digest(real.as_os_str().as_encoded_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_that_of_the_record_or_of_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let from_path = tag(dir.path());
        assert!(from_path.len() == 32 && from_path.bytes().all(|byte| byte.is_ascii_hexdigit()));
        std::fs::write(dir.path().join("instance.json"), "{\"tag\":\"ab\"}").unwrap();
        assert_eq!(tag(dir.path()), "ab");
        assert_eq!(tag(Path::new("/run/wardian-missing")).len(), 32);
    }

    #[test]
    fn what_cannot_be_checked_is_not_remedied() {
        assert!(!is_remedied("for the networks: firewall-cmd --reload"));
        assert!(!is_remedied("nft insert rule inet no-such-table no-such-chain iifgroup 7 accept"));
    }

    #[test]
    fn a_network_is_inside_the_pool_or_around_it() {
        let pool = "10.254.0.0/22".parse().unwrap();
        let inside = |network: &str| {
            let network = network.parse().unwrap();
            collision(pool, wardian_network::route::Foreign { network, link: None, is_address: false })
                .is_inside
        };
        assert!(inside("10.254.1.0/24") && inside("10.254.0.0/22") && !inside("10.0.0.0/8"));
    }
}
