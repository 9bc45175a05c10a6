//! Rules of others that stop what containers send: a packet passes when *no* table drops it, whatever another one
//! has accepted.

use super::{Error, failed};
use crate::nft::dump::Rule;
use crate::nft::set::Table;
use crate::nft::{Connection, Family};
use std::fs;
use std::process::{Command, Stdio};

/// A chain that stops forwarded packets for which it has no rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drops {
    /// Where it is: `ip filter FORWARD`, for legacy iptables `iptables-legacy filter FORWARD`.
    pub chain: String,
    /// What lets containers' packets through: commands for the administrator.
    pub remedy: String,
}

/// Finds base chains of the hook forward, in other tables than this instance's (`tag`), that stop what none of their
/// rules lets through, by their policy or by their last rule: those of nft and iptables-nft; and those of legacy
/// iptables, if the kernel has its tables. A chain may well have rules for containers' packets; only their
/// absence would make it a fault.
///
/// # Errors
/// [`Error::Tables`], [`Error::Legacy`].
pub fn foreign_drop(tag: &str, group: u32) -> Result<Vec<Drops>, Error> {
    /// `NF_INET_FORWARD`.
    const FORWARD: u32 = 2;
    let own = format!("wardian-{tag}");
    let action = "look for rules of others";
    let connection = Connection::open().map_err(failed(action, None))?;
    let chains = connection.chains(Family::Unspecified).map_err(failed(action, None))?;
    let mut found = Vec::new();
    for chain in chains {
        let Some(hook) = chain.hook.filter(|hook| hook.number == FORWARD && chain.table != own) else {
            continue;
        };
        let family = match chain.family {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            // The hook of that number in bridge tables is for frames from one port to another.
            Family::Bridge | Family::Unspecified => continue,
        };
        let rules = connection.rules(Table { family: chain.family, name: &chain.table });
        let rules = rules.map_err(failed(action, None))?.unwrap_or_default();
        let last = rules.iter().rfind(|rule| rule.chain == chain.name);
        if !hook.drops && !last.is_some_and(Rule::stops_everything) {
            continue;
        }
        let at = format!("{family} {} {}", chain.table, chain.name);
        let remedy = match (family, chain.table.as_str(), chain.name.as_str()) {
            ("ip", table, "FORWARD") if LEGACY.contains(&table) => iptables("iptables", table, group),
            ("ip6", table, "FORWARD") if LEGACY.contains(&table) => iptables("ip6tables", table, group),
            // Rules of others in this table are gone when firewalld reloads.
            (_, "firewalld", _) => {
                "for the networks of the containers: firewall-cmd --permanent --zone=trusted \
                                    --add-source=NETWORK; firewall-cmd --reload"
                    .to_owned()
            }
            _ => format!(
                "nft insert rule {at} iifgroup {group} accept; nft insert rule {at} oifgroup {group} accept"
            ),
        };
        found.push(Drops { chain: at, remedy });
    }
    for (list, program) in [
        ("/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
        ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
    ] {
        // The file is of the thread's network namespace, as the netlink socket is. Without the module there is no such
        // file, and starting the program would load the module.
        let tables = fs::read_to_string(list).unwrap_or_default();
        for table in LEGACY.into_iter().filter(|table| tables.lines().any(|line| line == *table)) {
            if legacy_drops(program, table)? {
                let chain = format!("{program} {table} FORWARD");
                found.push(Drops { chain, remedy: iptables(program, table, group) });
            }
        }
    }
    Ok(found)
}

/// Tables of iptables whose chain FORWARD can drop packets (iptables(8)).
const LEGACY: [&str; 3] = ["filter", "mangle", "security"];

fn iptables(program: &str, table: &str, group: u32) -> String {
    let table = if table == "filter" { String::new() } else { format!("-t {table} ") };
    let rule =
        |side: &str| format!("{program} {table}-I FORWARD -m devgroup --{side}-group {group:#x} -j ACCEPT");
    format!("{}; {}", rule("src"), rule("dst"))
}

fn legacy_drops(program: &str, table: &str) -> Result<bool, Error> {
    let output = Command::new(format!("{program}-save"))
        .args(["-t", table])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(Error::Legacy)?;
    Ok(drops(&String::from_utf8_lossy(&output.stdout)))
}

/// Whether the output of iptables-save has a FORWARD that stops what none of its rules lets through: by its policy, or
/// by its last rule.
fn drops(saved: &str) -> bool {
    let last = saved.lines().rev().find_map(|line| line.strip_prefix("-A FORWARD "));
    // Rules with a condition have it before the target.
    let stops = |rule: &str| ["-j DROP", "-j REJECT"].iter().any(|target| rule.starts_with(target));
    saved.lines().any(|line| line.starts_with(":FORWARD DROP")) || last.is_some_and(stops)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_policy_is_read_from_iptables_save() {
        assert!(super::drops("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [3:180]\nCOMMIT\n"));
        assert!(!super::drops("*filter\n:FORWARD ACCEPT [0:0]\n:FORWARD2 DROP [0:0]\n"));
        let with = |rules: &str| super::drops(&format!("*filter\n:FORWARD ACCEPT [0:0]\n{rules}COMMIT\n"));
        assert!(with(
            "-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n"
        ));
        assert!(with("-A FORWARD -j DROP\n-A OTHER -j ACCEPT\n"));
        assert!(!with("-A FORWARD -i eth0 -j DROP\n") && !with("-A FORWARD -j DROP\n-A FORWARD -j OTHER\n"));
    }

    #[test]
    fn a_remedy_names_its_table() {
        let filter = super::iptables("iptables", "filter", 0x4000_0001);
        assert!(filter.starts_with("iptables -I FORWARD -m devgroup --src-group 0x40000001 -j ACCEPT; "));
        assert!(
            super::iptables("iptables-legacy", "mangle", 7)
                .starts_with("iptables-legacy -t mangle -I FORWARD ")
        );
    }
}
