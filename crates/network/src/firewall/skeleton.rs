//! The part of the firewall that does not depend on containers, loaded by the program nft.

use super::Error;
use super::program::Policy;
use ipnet::IpNet;
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;
use wardian_sys::program::{self, Program};

/// nft waits for other programs that change the firewall, and takes milliseconds by itself.
const PATIENCE: Duration = Duration::from_secs(60);
const TEMPLATE: &str = include_str!("skeleton.nft");

/// The comment of the tables: another text means that sets and chains may be declared differently, which nft cannot
/// change in place.
pub(super) fn structure() -> String {
    // FNV-1a, so that the value depends on nothing but the text.
    let hash = TEMPLATE.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("wardian skeleton {hash:016x}")
}

/// The script for these tables. `delete` are families whose table has to be made anew.
pub(super) fn script(table: &str, policy: &Policy, delete: &[&str]) -> Result<String, Error> {
    if policy.group == 0 {
        return Err(Error::Group);
    }
    let mut elements = String::new();
    for (set, nets) in [("deny", &policy.deny), ("allow", &policy.allow)] {
        let (four, six) = disjoint(nets);
        list(&mut elements, table, &format!("{set}4"), &four);
        list(&mut elements, table, &format!("{set}6"), &six);
    }
    let (mut six, mut four): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for address in &policy.dns {
        if address.is_ipv6() { &mut six } else { &mut four }.push(address.to_string());
    }
    for list in [&mut four, &mut six] {
        list.sort();
        list.dedup();
    }
    list(&mut elements, table, "dns4", &four);
    list(&mut elements, table, "dns6", &six);
    let mut script: String = delete.iter().map(|family| format!("delete table {family} {table}\n")).collect();
    script += &TEMPLATE
        .replace("@structure@", &structure())
        .replace("@host_access@", if policy.host_access { "accept" } else { "" })
        .replace("@flows@", &flows(policy.flows))
        .replace("@elements@", &elements)
        .replace("@group@", &policy.group.to_string())
        .replace("@table@", table);
    Ok(script)
}

fn list(to: &mut String, table: &str, set: &str, elements: &[String]) {
    if !elements.is_empty() {
        let elements = elements.join(", ");
        // Writing to a string cannot fail.
        let _ = writeln!(to, "add element inet {table} {set} {{ {elements} }}");
    }
}

/// The rules that bound the flows of each container: one container alone could use up the ports of masquerading to
/// one destination, or the host's connection tracking.
fn flows(most: u32) -> String {
    if most == 0 {
        return String::new();
    }
    let rule =
        |ip: &str, set: &str| format!("ct state new add @{set} {{ {ip} saddr ct count over {most} }} drop\n");
    rule("ip", "flows4") + &rule("ip6", "flows6")
}

/// The networks of each family, without those that lie in others.
fn disjoint(nets: &[IpNet]) -> (Vec<String>, Vec<String>) {
    let nets = IpNet::aggregate(&nets.to_vec());
    let (v6, v4): (Vec<IpNet>, Vec<IpNet>) = nets.into_iter().partition(|net| net.addr().is_ipv6());
    let shown = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect();
    (shown(v4), shown(v6))
}

/// Has nft run a script, which the kernel carries out as one transaction.
pub(crate) fn load(script: &str) -> Result<(), Error> {
    // A service's PATH may lack the directories of the super-user.
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        let (path, args) = (Path::new(program), ["-f", "-"]);
        let nft = Program { path, args: &args, env: &[], input: script.as_bytes(), patience: PATIENCE };
        let output = match nft.run() {
            Ok(output) => output,
            Err(program::Error::Start { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::Nft(error)),
        };
        if !output.status.success() {
            let text = output.said.chars().take(4096).collect();
            return Err(Error::Skeleton { status: output.status, text });
        }
        return Ok(());
    }
    Err(Error::NoNft)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn networks_in_others_are_left_out() {
        let nets = [
            "10.1.0.0/16",
            "10.0.0.0/8",
            "0.0.0.1/32",
            "10.0.0.0/8",
            "fd00::1/8",
            "192.168.7.9/24",
            "fd00::/16",
        ];
        let (four, six) = disjoint(&nets.map(net));
        assert_eq!(four, ["0.0.0.1/32", "10.0.0.0/8", "192.168.7.0/24"]);
        assert_eq!(six, ["fd00::/8"]);
        assert_eq!(
            disjoint(&[net("1.2.3.4/0"), net("::/0")]),
            (vec!["0.0.0.0/0".into()], vec!["::/0".into()])
        );
    }

    #[test]
    fn nothing_of_the_template_is_left() {
        let policy = Policy {
            group: 77,
            deny: vec![net("10.0.0.0/8")],
            allow: vec![],
            host_access: true,
            dns: vec!["10.0.0.1".parse().unwrap()],
            log_group: 5,
            flows: 1000,
        };
        let script = script("wardian-ab", &policy, &["inet"]).unwrap();
        assert!(script.starts_with("delete table inet wardian-ab\n"), "{script}");
        for placeholder in ["table", "structure", "group", "host_access", "elements"] {
            assert!(!script.contains(&format!("@{placeholder}@")), "{placeholder}");
        }
        assert!(script.contains("add element inet wardian-ab deny4 { 10.0.0.0/8 }"), "{script}");
        assert!(!script.contains("add element inet wardian-ab allow4"));
        let none = Policy { group: 0, ..policy };
        assert!(matches!(super::script("wardian-ab", &none, &[]), Err(Error::Group)));
    }
}
