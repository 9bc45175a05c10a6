//! The texts of a container's /etc/hosts and /etc/resolv.conf (Garden server §4.5).
//!
//! Everything is given as text or as addresses; nothing but [`Host::read`] opens a file.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most bytes of a text, given or made: the files are kept in memory for each container.
pub const MAX_BYTES: usize = 64 << 10;
/// The most name servers, and the most search domains, that a list may have.
pub const MAX_ENTRIES: usize = 256;
/// Garden takes the last 49 characters of the handle for the name of the host.
const HOSTNAME: usize = 49;
/// The kernel takes no more bytes (`__NEW_UTS_LEN`, uts_namespaces(7)).
const HOSTNAME_BYTES: usize = 64;
/// Where systemd-resolved listens on the host's loopback interface (systemd-resolved.service(8)).
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Why a text is not made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Something is too long.
    #[error("{what}: {length}, of which {most} are allowed")]
    TooLong {
        /// What, and what is counted.
        what: &'static str,
        /// How long it is.
        length: usize,
        /// How long it may be.
        most: usize,
    },
    /// A name cannot stand in one of these files.
    #[error("{what} {name:?} is empty or contains white space or control characters")]
    Name {
        /// What the name is for.
        what: &'static str,
        /// The name, or its beginning.
        name: String,
    },
}

/// Returns the name of the host in a container: the end of its handle.
pub fn hostname(handle: &str) -> &str {
    let starts = handle.char_indices().rev().take(HOSTNAME).map(|(at, _)| at);
    let start = starts.take_while(|at| handle.len() - at <= HOSTNAME_BYTES).last();
    &handle[start.unwrap_or(handle.len())..]
}

/// Returns the text of /etc/hosts: localhost, the container's own name (the end of its handle), and the operator's
/// lines as they are.
///
/// # Errors
///
/// The handle is no name, or the text would be too long.
pub fn hosts(
    ip: IpAddr,
    ipv6: Option<Ipv6Addr>,
    handle: &str,
    additional: &[String],
) -> Result<String, Error> {
    check_name("the handle", handle)?;
    let name = hostname(handle);
    let mut text = "127.0.0.1 localhost\n".to_owned();
    if ipv6.is_some() {
        text.push_str("::1 localhost\n");
    }
    line(&mut text, &ip, name);
    if let Some(ipv6) = ipv6 {
        line(&mut text, &ipv6, name);
    }
    at_most(
        "bytes of /etc/hosts",
        text.len() + additional.iter().map(|line| line.len() + 1).sum::<usize>(),
        MAX_BYTES,
    )?;
    for entry in additional {
        text.push_str(entry);
        text.push('\n');
    }
    Ok(text)
}

/// From what the text of /etc/resolv.conf is made.
#[derive(Debug, Clone, Copy)]
pub struct Resolv<'a> {
    /// The text of the host's /etc/resolv.conf; empty if it has none.
    pub host: &'a str,
    /// The text of /run/systemd/resolve/resolv.conf, which has the servers that systemd-resolved asks. It is used
    /// where the host's own file names nothing but its stub, which containers cannot reach. (Garden leaves them
    /// without a server.)
    pub upstream: Option<&'a str>,
    /// The address of the container's bridge, for a host with a name server on its loopback interface.
    pub bridge: IpAddr,
    /// Servers that the operator has set instead of the host's (`--dns-server`).
    pub servers: &'a [IpAddr],
    /// Servers that the operator has added (`--additional-dns-server`).
    pub additional: &'a [IpAddr],
    /// Servers of this container alone, from its create or from a network plugin. They replace all others, also if
    /// the list is empty.
    pub own_servers: Option<&'a [IpAddr]>,
    /// A network plugin's search domains, which replace the host's.
    pub plugin_search: Option<&'a [String]>,
}

/// The host's own files for name servers.
#[derive(Debug, Default)]
pub struct Host {
    /// The text of /etc/resolv.conf; empty if there is none.
    pub(crate) resolv: String,
    /// The text of systemd-resolved's file with the servers that it asks, if the host's own names nothing but its stub.
    pub(crate) upstream: Option<String>,
}

impl Host {
    /// Reads them; what is missing is empty.
    pub fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let resolv = read("/etc/resolv.conf");
        let upstream = is_stub(&resolv).then(|| read("/run/systemd/resolve/resolv.conf"));
        Self { resolv, upstream: upstream.filter(|text| !text.is_empty()) }
    }
}

/// What the operator has set for the names of all containers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names<'a> {
    /// See [`Resolv::servers`].
    pub servers: &'a [IpAddr],
    /// See [`Resolv::additional`].
    pub additional: &'a [IpAddr],
    /// Lines for the end of every hosts file.
    pub host_entries: &'a [String],
}

impl<'a> Names<'a> {
    /// Adds what one container has to the operator's settings.
    pub fn resolv(
        &self,
        host: &'a Host,
        bridge: IpAddr,
        own_servers: Option<&'a [IpAddr]>,
        plugin_search: Option<&'a [String]>,
    ) -> Resolv<'a> {
        Resolv {
            host: &host.resolv,
            upstream: host.upstream.as_deref(),
            bridge,
            servers: self.servers,
            additional: self.additional,
            own_servers,
            plugin_search,
        }
    }
}

impl Resolv<'_> {
    /// Returns the text of /etc/resolv.conf.
    ///
    /// # Errors
    ///
    /// A list or a text is too long, or a search domain is no name.
    pub fn text(&self) -> Result<String, Error> {
        at_most("bytes of the host's resolv.conf", self.host.len(), MAX_BYTES)?;
        at_most("bytes of resolved's resolv.conf", self.upstream.map_or(0, str::len), MAX_BYTES)?;
        for servers in [self.servers, self.additional, self.own_servers.unwrap_or_default()] {
            at_most("name servers", servers.len(), MAX_ENTRIES)?;
        }
        let mut text = String::new();
        if let Some(servers) = self.own_servers {
            servers.iter().for_each(|server| line(&mut text, &"nameserver", server));
        } else {
            if self.servers.is_empty() {
                self.hosts_lines(&mut text);
            }
            let servers = self.servers.iter().chain(self.additional);
            servers.for_each(|server| line(&mut text, &"nameserver", server));
        }
        if let Some(domains) = self.plugin_search {
            at_most("search domains", domains.len(), MAX_ENTRIES)?;
            domains.iter().try_for_each(|domain| check_name("search domain", domain))?;
            if !domains.is_empty() {
                line(&mut text, &"search", domains.join(" "));
            }
        }
        at_most("bytes of /etc/resolv.conf", text.len(), MAX_BYTES)?;
        Ok(text)
    }

    /// Writes what of the host's file is of use in a container.
    fn hosts_lines(&self, text: &mut String) {
        let host = match self.upstream {
            Some(upstream) if is_stub(self.host) => upstream,
            _ => self.host,
        };
        if is_one_loopback(host) {
            return line(text, &"nameserver", self.bridge);
        }
        for entry in host.lines().filter(|line| !line.is_empty()) {
            match keyword(entry) {
                "nameserver" => {
                    if let Some(server) = server(entry).filter(|server| !server.is_loopback()) {
                        line(text, &"nameserver", server);
                    }
                }
                "search" if self.plugin_search.is_some() => {}
                _ => {
                    text.push_str(entry);
                    text.push('\n');
                }
            }
        }
    }
}

/// Returns the line of resolv.conf with these options; nothing if there are none.
///
/// # Errors
///
/// They are too many or too long, or one of them is no word.
pub fn options(options: &[String]) -> Result<String, Error> {
    if options.is_empty() {
        return Ok(String::new());
    }
    at_most("options of resolv.conf", options.len(), MAX_ENTRIES)?;
    options.iter().try_for_each(|option| check_name("option of resolv.conf", option))?;
    let mut text = String::new();
    line(&mut text, &"options", options.join(" "));
    at_most("bytes of options", text.len(), MAX_BYTES)?;
    Ok(text)
}

/// Returns whether the only name server of a host is systemd-resolved's stub.
pub fn is_stub(host: &str) -> bool {
    let mut servers = host.lines().filter(|line| keyword(line) == "nameserver").map(server).peekable();
    servers.peek().is_some() && servers.all(|server| server == Some(STUB))
}

/// Returns the addresses of the name servers in a text.
pub fn servers(text: &str) -> Vec<IpAddr> {
    text.lines().filter(|line| keyword(line) == "nameserver").filter_map(server).collect()
}

/// Returns whether a file consists of one line, and that names a server in 127.0.0.0/24.
fn is_one_loopback(host: &str) -> bool {
    let mut words = host.split_whitespace();
    let server = (words.next() == Some("nameserver")).then(|| words.next()).flatten();
    let one_line = words.next().is_none() && !host.trim().contains('\n');
    let local = |ip: Ipv4Addr| ip.octets()[..3] == [127, 0, 0];
    one_line && server.and_then(|server| server.parse().ok()).is_some_and(local)
}

/// The first word of a line. The C library wants it at the very beginning (resolv.conf(5)).
fn keyword(line: &str) -> &str {
    line.split(|c: char| c.is_ascii_whitespace()).next().unwrap_or_default()
}

/// The address of a `nameserver` line; `None` if it has none, several, or one with a zone, which is an interface of
/// the host.
fn server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    words.next().filter(|_| words.next().is_none())?.parse().ok()
}

fn line(text: &mut String, key: &dyn std::fmt::Display, value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{key} {value}");
}

fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::Name { what, name: name.chars().take(64).collect() });
    }
    Ok(())
}

fn at_most(what: &'static str, length: usize, most: usize) -> Result<(), Error> {
    if length <= most { Ok(()) } else { Err(Error::TooLong { what, length, most }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// What a container gets without flags and plugins.
    fn from_host(host: &str) -> String {
        plain(host).text().unwrap()
    }

    fn plain(host: &str) -> Resolv<'_> {
        Resolv {
            host,
            upstream: None,
            bridge: ip("10.254.0.1"),
            servers: &[],
            additional: &[],
            own_servers: None,
            plugin_search: None,
        }
    }

    #[test]
    fn hosts_has_the_containers_name() {
        let text = hosts(ip("10.254.0.2"), None, "one", &[]).unwrap();
        assert_eq!(text, "127.0.0.1 localhost\n10.254.0.2 one\n");
        let more = ["1.2.3.4 a b".to_owned(), "# as it is".to_owned()];
        let text = hosts(ip("10.254.0.2"), Some("fd00::a".parse().unwrap()), "one", &more).unwrap();
        assert_eq!(
            text,
            "127.0.0.1 localhost\n::1 localhost\n10.254.0.2 one\nfd00::a one\n1.2.3.4 a b\n# as it is\n"
        );
    }

    #[test]
    fn a_name_is_the_end_of_the_handle() {
        let name = |handle: &str| {
            let text = hosts(ip("10.254.0.2"), None, handle, &[]).unwrap();
            text.rsplit_once(' ').unwrap().1.trim_end().to_owned()
        };
        assert_eq!(name(&("x".repeat(20) + &"y".repeat(49))), "y".repeat(49));
        // A container resolves its own name, and the kernel takes no longer one.
        assert_eq!(name(&"é".repeat(60)), "é".repeat(32));
        assert_eq!(hostname(&"é".repeat(60)), "é".repeat(32));
        assert_eq!(name(&"y".repeat(49)), "y".repeat(49));
        for bad in ["", "a b", "a\n1.2.3.4 b", "a\u{7f}"] {
            assert!(matches!(hosts(ip("10.254.0.2"), None, bad, &[]), Err(Error::Name { .. })), "{bad:?}");
        }
        let long = hosts(ip("10.254.0.2"), None, "one", &["#".repeat(MAX_BYTES)]);
        assert!(matches!(long, Err(Error::TooLong { .. })));
    }

    #[test]
    fn the_hosts_servers_are_those_that_can_be_reached() {
        let host = "# by hand\n\nsearch a b\nnameserver 127.0.0.1\nnameserver   8.8.8.8 \nnameserver\n\
            nameserver 1.1.1.1 2.2.2.2\nnameserver x\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver\t2001:db8::1\n\
            options ndots:2\n nameserver 9.9.9.9";
        assert_eq!(
            from_host(host),
            "# by hand\nsearch a b\nnameserver 8.8.8.8\nnameserver 2001:db8::1\noptions ndots:2\n nameserver 9.9.9.9\n"
        );
        assert_eq!(from_host(""), "");
        assert_eq!(from_host("nameserver 8.8.8.8\r\n"), "nameserver 8.8.8.8\n");
    }

    #[test]
    fn a_server_of_the_host_alone_is_reached_by_the_bridge() {
        for host in ["nameserver 127.0.0.1", "\n  nameserver \t127.0.0.53 \n\n"] {
            assert_eq!(from_host(host), "nameserver 10.254.0.1\n", "{host:?}");
        }
        let with = Resolv { additional: &[ip("9.9.9.9")], ..plain("nameserver 127.0.0.1\n") };
        assert_eq!(with.text().unwrap(), "nameserver 10.254.0.1\nnameserver 9.9.9.9\n");
        // Not one line, or another loopback address.
        assert_eq!(from_host("nameserver 127.0.0.1\nnameserver 127.0.0.2\n"), "");
        assert_eq!(from_host("nameserver\n127.0.0.1"), "127.0.0.1\n");
        assert_eq!(from_host("nameserver 127.1.0.1"), "");
        assert_eq!(from_host("search a\nnameserver 127.0.0.1"), "search a\n");
    }

    #[test]
    fn the_servers_behind_resolveds_stub_are_used() {
        let stub = "# This is ...\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";
        let upstream = "# Do not edit\nnameserver 192.168.1.1\nnameserver 127.0.0.1\nsearch lan\n";
        let text = |host, upstream| Resolv { upstream, ..plain(host) }.text().unwrap();
        assert_eq!(text(stub, Some(upstream)), "# Do not edit\nnameserver 192.168.1.1\nsearch lan\n");
        assert_eq!(text("nameserver 127.0.0.53", Some(upstream)), text(stub, Some(upstream)));
        assert_eq!(text("nameserver 127.0.0.53", None), "nameserver 10.254.0.1\n");
        assert_eq!(text(stub, Some("nameserver 127.0.0.1\n")), "nameserver 10.254.0.1\n");
        // Another server: the file is used as it is.
        for host in ["nameserver 127.0.0.1", "nameserver 127.0.0.53\nnameserver 8.8.8.8\n", "search a", ""] {
            assert_eq!(text(host, Some(upstream)), text(host, None), "{host:?}");
        }
        assert!(is_stub(stub) && !is_stub(upstream) && !is_stub(""));
    }

    #[test]
    fn flags_replace_the_hosts_file() {
        let resolv = Resolv { servers: &[ip("1.2.3.4")], ..plain("search a\nnameserver 8.8.8.8") };
        assert_eq!(resolv.text().unwrap(), "nameserver 1.2.3.4\n");
        let resolv = Resolv { additional: &[ip("9.9.9.9"), ip("::2")], ..resolv };
        assert_eq!(resolv.text().unwrap(), "nameserver 1.2.3.4\nnameserver 9.9.9.9\nnameserver ::2\n");
        let resolv = Resolv { servers: &[], ..resolv };
        let added = "search a\nnameserver 8.8.8.8\nnameserver 9.9.9.9\nnameserver ::2\n";
        assert_eq!(resolv.text().unwrap(), added);
    }

    #[test]
    fn a_plugins_results_replace_everything() {
        let domains = ["x.y".to_owned(), "z".to_owned()];
        let all = Resolv {
            servers: &[ip("1.2.3.4")],
            additional: &[ip("9.9.9.9")],
            ..plain("search a\ndomain b\nnameserver 8.8.8.8\n")
        };
        let with =
            |servers, search| Resolv { own_servers: servers, plugin_search: search, ..all }.text().unwrap();
        let servers = [ip("5.5.5.5")];
        assert_eq!(with(Some(&servers), None), "nameserver 5.5.5.5\n");
        assert_eq!(with(Some(&[]), None), "");
        assert_eq!(with(Some(&[]), Some(&[])), "");
        assert_eq!(with(Some(&[]), Some(&domains)), "search x.y z\n");
        assert_eq!(with(None, Some(&domains)), "nameserver 1.2.3.4\nnameserver 9.9.9.9\nsearch x.y z\n");
        let host = Resolv { servers: &[], additional: &[], plugin_search: Some(&domains), ..all };
        assert_eq!(host.text().unwrap(), "domain b\nnameserver 8.8.8.8\nsearch x.y z\n");
    }

    #[test]
    fn what_is_too_long_or_no_name_is_refused() {
        let long = "#".repeat(MAX_BYTES + 1);
        assert!(matches!(plain(&long).text(), Err(Error::TooLong { .. })));
        assert!(matches!(Resolv { upstream: Some(&long), ..plain("") }.text(), Err(Error::TooLong { .. })));
        let many = vec![ip("::1"); MAX_ENTRIES + 1];
        for list in [
            Resolv { servers: &many, ..plain("") },
            Resolv { additional: &many, ..plain("") },
            Resolv { own_servers: Some(&many), ..plain("") },
        ] {
            assert!(matches!(list.text(), Err(Error::TooLong { what: "name servers", .. })));
        }
        for bad in ["a b", "a\nnameserver 6.6.6.6", ""] {
            let domains = [bad.to_owned()];
            let error = Resolv { plugin_search: Some(&domains), ..plain("") }.text().unwrap_err();
            assert!(error.to_string().contains("white space"), "{error}");
        }
        assert_eq!(options(&["ndots:2".to_owned(), "edns0".to_owned()]).unwrap(), "options ndots:2 edns0\n");
        assert_eq!(options(&[]).unwrap(), "");
        assert!(options(&["a\nnameserver 6.6.6.6".to_owned()]).is_err());
        let domains = vec!["a".repeat(MAX_BYTES)];
        assert!(matches!(
            Resolv { plugin_search: Some(&domains), ..plain("") }.text(),
            Err(Error::TooLong { .. })
        ));
    }
}
