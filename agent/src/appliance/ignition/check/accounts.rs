//! Users and groups in the order in which Ignition creates them: first groups, then users, each in the order of the
//! config, in addition to those of the image. If groupadd, useradd or usermod refuse something, the boot stops.

mod groups;
mod users;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use ignition_config::v3_3::{NodeGroup, NodeUser};

use super::Findings;
use super::machine::Machine;

/// IDs that useradd and groupadd assign if none is set (`UID_MIN`, `UID_MAX` of /etc/login.defs).
const ORDINARY: std::ops::RangeInclusive<u32> = 1000..=60000;

/// The existing users and groups.
#[derive(Clone, Default)]
pub(super) struct Accounts {
    users: Ids,
    groups: Ids,
}

impl Accounts {
    /// Checks both lists, and returns the resulting users and groups.
    pub(super) fn check(machine: &Machine<'_>, findings: &mut Findings<'_>) -> Self {
        let mut accounts = Self {
            users: Ids::of(&machine.image.users),
            groups: Ids::of(&machine.image.groups),
        };
        if let Some(passwd) = &machine.config.passwd {
            let groups = passwd.groups.as_deref().unwrap_or_default();
            groups::check(groups, machine, &mut accounts, findings);
            let users = passwd.users.as_deref().unwrap_or_default();
            users::check(users, machine, &mut accounts, findings);
        }
        accounts
    }

    pub(super) fn has_user(&self, name: &str) -> bool {
        self.users.ids.contains_key(name)
    }

    /// Whether a group with this name or number exists.
    pub(super) fn has_group(&self, name: &str) -> bool {
        let number = name.parse().ok();
        self.groups.ids.contains_key(name)
            || number.is_some_and(|id| self.groups.owner(id).is_some())
    }

    /// Checks that the owner of a file, directory or link exists.
    pub(super) fn check_owner(
        &self,
        at: &str,
        user: Option<&NodeUser>,
        group: Option<&NodeGroup>,
        machine: &Machine<'_>,
        findings: &mut Findings<'_>,
    ) {
        let user = user
            .and_then(|user| user.name.as_deref())
            .unwrap_or_default();
        if !user.is_empty() && !self.has_user(user) {
            let message = format!("there is no user {user:?} in the image or in passwd.users");
            machine.lacks(format!("{at}.user.name"), &message, findings);
        }
        let group = group
            .and_then(|group| group.name.as_deref())
            .unwrap_or_default();
        if !group.is_empty() && !self.groups.ids.contains_key(group) {
            let message = format!("there is no group {group:?} in the image or in passwd.groups");
            machine.lacks(format!("{at}.group.name"), &message, findings);
        }
    }
}

/// Names and IDs of users, or of groups.
#[derive(Clone, Default)]
struct Ids {
    /// An ID is unknown if useradd assigns one from the system range.
    ids: BTreeMap<String, Option<u32>>,
}

impl Ids {
    fn of(image: &BTreeMap<String, u32>) -> Self {
        let ids = image.iter().map(|(name, id)| (name.clone(), Some(*id)));
        Self { ids: ids.collect() }
    }

    fn owner(&self, id: u32) -> Option<&str> {
        let mut ids = self.ids.iter();
        ids.find(|(_, other)| **other == Some(id))
            .map(|(name, _)| &**name)
    }

    /// The next ID to assign: one more than the highest.
    fn next(&self) -> Option<u32> {
        let used: BTreeSet<u32> = self.ids.values().flatten().copied().collect();
        let next = used.range(ORDINARY).next_back()? + 1;
        ORDINARY.contains(&next).then_some(next)
    }

    /// Checks an ID that is set for `name`, which may have it already.
    fn check(&self, name: &str, id: i64, what: &str) -> Result<Option<u32>, String> {
        let Some(id) = u32::try_from(id).ok().filter(|id| *id != u32::MAX) else {
            return Err(format!("{id} is not an id: expected 0 to 4294967294"));
        };
        match self.owner(id) {
            Some(owner) if owner != name => Err(format!(
                "{id} is the id of {what} {owner:?} already; choose another one"
            )),
            _ => Ok(Some(id)),
        }
    }
}

/// Valid names for useradd and groupadd (shadow 4.17): letters, digits, `_`, `.` and `-`, not a number, and optionally
/// `$` at the end.
fn check_name(name: &str, max: usize) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name is required".to_owned());
    }
    let stem = name.strip_suffix('$').unwrap_or(name);
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let is_name = stem.bytes().all(is_allowed)
        && !name.starts_with(['-', '$'])
        && !name.bytes().all(|b| b.is_ascii_digit())
        && !["", ".", ".."].contains(&stem);
    if !is_name {
        Err(format!(
            "{name:?} is not a name that useradd and groupadd accept: letters, digits, '_', '.' and '-', not a number"
        ))
    } else if name.len() > max {
        Err(format!("{name:?} is too long: at most {max} characters"))
    } else {
        Ok(())
    }
}

/// A valid field of /etc/passwd and similar files.
fn check_field(value: Option<&String>, what: &str) -> Result<(), String> {
    match value {
        Some(value) if value.contains([':', '\n']) => {
            Err(format!("{what} cannot have a colon or a line break"))
        }
        _ => Ok(()),
    }
}

/// Prefixes of password hashes that libxcrypt supports (crypt(5)).
const HASHES: [&str; 10] = [
    "$y$", "$gy$", "$7$", "$2a$", "$2b$", "$2y$", "$6$", "$5$", "$md5", "$1$",
];

/// Why no login works with this hash.
fn check_hash(hash: Option<&String>) -> Option<&'static str> {
    let hash = hash?;
    let is_locked = hash.is_empty() || hash.starts_with(['*', '!']);
    let is_des = hash.len() == 13 && !hash.contains('$');
    let is_hash = HASHES.iter().any(|method| hash.starts_with(method));
    (!is_locked && !is_des && !is_hash).then_some(
        "this is not a password hash, so no password will match; make one with `openssl passwd -6`",
    )
}
