//! Groups: what groupadd and groupdel refuse.

use ignition_config::v3_3::Group;

use super::super::super::locate::join_index;
use super::{Accounts, Findings, Machine, check_field, check_name};

/// The longest name that groupadd accepts.
const NAME_MAX: usize = 32;

pub(super) fn check(
    groups: &[Group],
    machine: &Machine<'_>,
    accounts: &mut Accounts,
    findings: &mut Findings<'_>,
) {
    let names = groups.iter().map(|group| group.name.as_str());
    findings.check_unique("passwd.groups", "name", names);
    for (i, group) in groups.iter().enumerate() {
        let at = join_index("passwd.groups", i);
        let name = &group.name;
        if let Err(reason) = check_name(name, NAME_MAX) {
            findings.error(format!("{at}.name"), reason);
            continue;
        }
        if group.should_exist == Some(false) {
            remove(&at, name, machine, accounts, findings);
            continue;
        }
        if let Some(id) = machine.image.groups.get(name) {
            if group.gid.is_some_and(|gid| gid != i64::from(*id)) {
                let message = format!(
                    "the image has the group {name:?} with ID {id}, which does not change; remove gid"
                );
                findings.warn(format!("{at}.gid"), message);
            }
            continue;
        }
        if let Err(reason) = check_field(group.password_hash.as_ref(), "a password hash") {
            findings.error(format!("{at}.passwordHash"), reason);
        }
        let id = match group.gid {
            Some(gid) => accounts
                .groups
                .check(name, gid, "group")
                .unwrap_or_else(|reason| {
                    findings.error(format!("{at}.gid"), reason);
                    None
                }),
            None if group.system == Some(true) => None,
            None => accounts.groups.next(),
        };
        accounts.groups.ids.insert(name.clone(), id);
    }
}

fn remove(
    at: &str,
    name: &str,
    machine: &Machine<'_>,
    accounts: &mut Accounts,
    findings: &mut Findings<'_>,
) {
    // In the image, a user's own group has the user's name.
    if machine.image.users.contains_key(name) && machine.image.groups.contains_key(name) {
        let message = format!(
            "it is the primary group of the user {name:?}, so groupdel refuses to delete it"
        );
        findings.error(format!("{at}.shouldExist"), message);
    }
    accounts.groups.ids.remove(name);
}
