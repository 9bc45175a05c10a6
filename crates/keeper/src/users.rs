//! Resolves the user of a process: Garden's rules over the text of /etc/passwd and /etc/group (Garden server §2.8).

use std::collections::HashSet;
use wardian_runtime::rights::Rights;

/// Ids and home of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, `/` when unknown.
    pub home: String,
}

impl User {
    /// These rights with the ids and groups of this user.
    pub fn with(&self, rights: Rights) -> Rights {
        Rights { uid: self.uid, gid: self.gid, groups: self.groups.clone(), ..rights }
    }
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or("/") })
    })
}

fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// Greater ids are refused, as the real server does. setresuid(2) takes 4294967295 for "leave unchanged": a user of
/// that id would stay root.
const MAX_ID: u32 = 2_147_483_647;

fn out_of_range() -> String {
    format!("uids and gids must be in range 0-{MAX_ID}")
}

/// Parses a number as an id, even where the image has a user or group of that name, as runc does: an image must not
/// decide what a number means.
fn number(text: &str) -> Option<Result<u32, String>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().ok().filter(|id| *id <= MAX_ID).ok_or_else(out_of_range))
}

/// Resolves `wanted` (`""`, `name`, `uid`, and either with `:group` or `:gid`).
///
/// # Errors
/// The text that a client gets.
pub fn resolve(wanted: &str, passwd_text: &str, group_text: &str) -> Result<User, String> {
    let (name, group) = wanted.split_once(':').map_or((wanted, None), |(name, group)| (name, Some(group)));
    let home =
        |entry: Option<&Entry<'_>>| entry.map(|e| e.home).filter(|h| !h.is_empty()).unwrap_or("/").to_owned();
    let members = |user: &str| -> Vec<u32> {
        groups(group_text)
            .filter(|(_, _, m)| m.split(',').any(|m| m == user))
            .map(|(_, gid, _)| gid)
            .collect()
    };
    let mut user = if name.is_empty() || name == "root" {
        let entry = passwd(passwd_text).find(|e| e.uid == 0);
        User {
            uid: 0,
            gid: entry.as_ref().map_or(0, |e| e.gid),
            groups: members("root"),
            home: home(entry.as_ref()),
        }
    } else if let Some(uid) = number(name) {
        let uid = uid?;
        let entry = passwd(passwd_text).find(|e| e.uid == uid);
        let groups = entry.as_ref().map_or_else(Vec::new, |e| members(e.name));
        User { uid, gid: entry.as_ref().map_or(0, |e| e.gid), groups, home: home(entry.as_ref()) }
    } else if let Some(entry) = passwd(passwd_text).find(|e| e.name == name) {
        User { uid: entry.uid, gid: entry.gid, groups: members(name), home: home(Some(&entry)) }
    } else {
        return Err(format!("unable to find user {name}: no matching entries in passwd file"));
    };
    if let Some(group) = group {
        user.groups.clear();
        let named = || groups(group_text).find(|(name, _, _)| *name == group).map(|(_, gid, _)| gid);
        user.gid = match number(group) {
            Some(gid) => gid?,
            None => named()
                .ok_or_else(|| format!("unable to find group {group}: no matching entries in group file"))?,
        };
    }
    if user.groups.iter().chain([&user.uid, &user.gid]).any(|id| *id > MAX_ID) {
        return Err(out_of_range());
    }
    Ok(user)
}

/// Builds the environment of a process: PATH, USER and HOME where missing; of several entries of a name the last
/// counts.
///
/// # Errors
/// An entry without a name or `=`, or with a NUL.
pub fn environment(given: &[String], user: &User, wanted: &str) -> Result<Vec<String>, String> {
    let mut seen = HashSet::new();
    let mut env: Vec<String> = Vec::with_capacity(given.len() + 3);
    for entry in given.iter().rev() {
        let name = entry.split_once('=').map(|(name, _)| name).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("invalid environment variable: {entry:?}"))?;
        if entry.contains('\0') {
            return Err(format!("invalid environment variable: {name:?} contains a NUL"));
        }
        if seen.insert(name) {
            env.push(entry.clone());
        }
    }
    env.reverse();
    let mut default = |name: &str, value: &str| {
        if name == "HOME" && env.iter().any(|entry| entry == "HOME=") {
            env.retain(|entry| entry != "HOME=");
            seen.remove(name);
        }
        if !seen.contains(name) {
            env.push(format!("{name}={value}"));
        }
    };
    default("PATH", if user.uid == 0 { ROOT_PATH } else { USER_PATH });
    default("USER", if wanted.is_empty() { "root" } else { wanted });
    default("HOME", &user.home);
    Ok(env)
}

const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nalice:x:1001:1010:,,,:/home/alice:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root\nalice:x:1010:alice\nextra:x:1011:bob,alice\n";

    fn ids(wanted: &str) -> (u32, u32, Vec<u32>, String) {
        let u = resolve(wanted, PASSWD, GROUP).unwrap();
        (u.uid, u.gid, u.groups, u.home)
    }

    #[test]
    fn users_by_every_spelling() {
        assert_eq!(ids(""), (0, 0, vec![10], "/root".into()));
        assert_eq!(ids("alice"), (1001, 1010, vec![1010, 1011], "/home/alice".into()));
        assert_eq!(ids("1001"), (1001, 1010, vec![1010, 1011], "/home/alice".into()));
        assert_eq!(ids("alice:extra"), (1001, 1011, vec![], "/home/alice".into()));
        assert_eq!(ids("7:8"), (7, 8, vec![], "/".into()));
        // A numeric name in the image's passwd or group does not count.
        let (passwd, group) = ("1000:x:0:0::/:\nroot:x:0:0::/:\n", "1000:x:0:\n");
        for wanted in ["1000", "1000:1000"] {
            assert_eq!(resolve(wanted, passwd, group).unwrap().uid, 1000, "{wanted}");
        }
        assert_eq!(resolve("1000:1000", passwd, group).unwrap().gid, 1000);
        assert!(resolve("+5", passwd, group).is_err());
        assert_eq!(resolve("", "", "").unwrap(), User { uid: 0, gid: 0, groups: vec![], home: "/".into() });
    }

    #[test]
    fn unknown_and_impossible_users_are_named() {
        let error = |wanted| resolve(wanted, PASSWD, GROUP).unwrap_err();
        assert_eq!(error("bob"), "unable to find user bob: no matching entries in passwd file");
        assert_eq!(error("alice:nope"), "unable to find group nope: no matching entries in group file");
        assert_eq!(error("2147483648"), "uids and gids must be in range 0-2147483647");
        // Ids in the image's own files are checked as well.
        let range = || Err("uids and gids must be in range 0-2147483647".to_owned());
        let passwd =
            "root:x:0:0::/:\nstay:x:4294967295:4294967295::/:\nhigh:x:1:2147483648::/:\nok:x:2:2::/:\n";
        let group = "all:x:4294967295:ok\n";
        for wanted in ["stay", "high", "ok", "2:all"] {
            assert_eq!(resolve(wanted, passwd, group), range(), "{wanted}");
        }
        assert_eq!(resolve("", "root:x:0:4294967295::/:\n", ""), range());
    }

    #[test]
    fn environment_defaults_and_duplicates() {
        let user = resolve("alice", PASSWD, GROUP).unwrap();
        let env = environment(&["A=1".into(), "B=2".into(), "A=3".into(), "USER=x".into()], &user, "alice")
            .unwrap();
        assert_eq!(env, ["B=2", "A=3", "USER=x", "PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/home/alice"]);
        for bad in ["NOEQUALS", "=x", "A=\0"] {
            assert!(environment(&[bad.to_owned()], &user, "").is_err(), "{bad:?}");
        }
    }
}
