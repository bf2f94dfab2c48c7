//! Users: what useradd, usermod and userdel refuse, and home directories that Ignition cannot write to.

use ignition_config::v3_3::User;

use super::super::super::image::is_in;
use super::super::super::locate::join_index;
use super::super::super::ssh_key;
use super::{Accounts, Findings, Machine, check_field, check_hash, check_name};

/// The longest name that useradd accepts.
const NAME_MAX: usize = 256;

/// Users of the image whose home directory exists when Ignition runs.
const WITH_HOME: [&str; 2] = ["core", "root"];

pub(super) fn check(
    users: &[User],
    machine: &Machine<'_>,
    accounts: &mut Accounts,
    findings: &mut Findings<'_>,
) {
    let names = users.iter().map(|user| user.name.as_str());
    findings.check_unique("passwd.users", "name", names);
    for (i, user) in users.iter().enumerate() {
        let at = join_index("passwd.users", i);
        check_keys(&at, user, findings);
        let groups = user.groups.iter().flatten();
        findings.check_unique(&format!("{at}.groups"), "name", groups);
        let name = &user.name;
        let is_in_image = machine.image.users.contains_key(name);
        if !is_in_image && let Err(reason) = check_name(name, NAME_MAX) {
            findings.error(format!("{at}.name"), reason);
            continue;
        }
        if user.should_exist == Some(false) {
            remove(&at, name, is_in_image, accounts, findings);
            continue;
        }
        check_fields(&at, user, machine, findings);
        check_home(&at, user, is_in_image, machine, findings);
        check_groups(&at, user, machine, accounts, findings);
        add(&at, user, is_in_image, accounts, findings);
    }
}

fn check_keys(at: &str, user: &User, findings: &mut Findings<'_>) {
    let list = format!("{at}.sshAuthorizedKeys");
    let keys = || user.ssh_authorized_keys.iter().flatten();
    findings.check_unique(&list, "key", keys());
    for (j, key) in keys().enumerate() {
        // Ignition writes any line. sshd skips lines that it cannot parse, and options before a key are valid.
        let has_options = key.contains("ssh-") || key.contains("ecdsa-");
        if let Err(error) = ssh_key::check(key.trim())
            && (!has_options || key.contains("PRIVATE KEY"))
        {
            let path = join_index(&list, j);
            findings.warn(path, format!("sshd will not accept this key: {error}"));
        }
    }
}

fn remove(
    at: &str,
    name: &str,
    is_in_image: bool,
    accounts: &mut Accounts,
    findings: &mut Findings<'_>,
) {
    if is_in_image && !WITH_HOME.contains(&name) {
        findings.warn(
            format!("{at}.shouldExist"),
            format!("{name:?} is one of the image's system accounts: userdel fails, because its home directory belongs to another user"),
        );
    }
    accounts.users.ids.remove(name);
}

fn check_fields(at: &str, user: &User, machine: &Machine<'_>, findings: &mut Findings<'_>) {
    if let Err(reason) = check_field(user.gecos.as_ref(), "a comment") {
        findings.error(format!("{at}.gecos"), reason);
    }
    if let Err(reason) = check_field(user.password_hash.as_ref(), "a password hash") {
        findings.error(format!("{at}.passwordHash"), reason);
    } else if let Some(reason) = check_hash(user.password_hash.as_ref()) {
        findings.warn(format!("{at}.passwordHash"), reason);
    }
    let shell = user.shell.as_deref().unwrap_or_default();
    let shells = &machine.image.shells;
    let is_known = shells
        .login
        .iter()
        .chain(&shells.none)
        .any(|known| known == shell);
    if shell.is_empty() || is_known || machine.brings(shell) {
    } else if !shell.starts_with('/') {
        let message = format!("{shell:?} is not an absolute path, so useradd refuses it");
        findings.error(format!("{at}.shell"), message);
    } else {
        findings.warn(
            format!("{at}.shell"),
            format!("the image has no shell {shell}, so {:?} cannot log in; it has /bin/bash and /bin/sh", user.name),
        );
    }
}

/// Ignition creates the home directory, and then writes the keys into it as that user.
fn check_home(
    at: &str,
    user: &User,
    is_in_image: bool,
    machine: &Machine<'_>,
    findings: &mut Findings<'_>,
) {
    let name = user.name.as_str();
    let has_keys = user.ssh_authorized_keys.iter().flatten().next().is_some();
    let asked = user.home_dir.as_deref().filter(|home| !home.is_empty());
    let default = format!("/home/{name}");
    let home = asked.unwrap_or(&default);
    let is_made = user.no_create_home != Some(true);
    let path = format!("{at}.homeDir");
    if has_keys && name == "root" && !machine.brings_below("/etc/ssh") {
        findings.warn(
            format!("{at}.sshAuthorizedKeys"),
            "the image's sshd does not allow root logins (PermitRootLogin no); use core and sudo",
        );
    }
    if is_in_image && asked.is_none() {
        if has_keys && !WITH_HOME.contains(&name) {
            findings.error(
                format!("{at}.sshAuthorizedKeys"),
                format!("{name:?} is one of the image's system accounts and has no home directory to write keys into"),
            );
        }
        return;
    }
    if !home.starts_with('/') || home.contains([':', '\n']) {
        findings.error(
            path,
            format!("{home:?} is not a home directory that useradd accepts: an absolute path"),
        );
    } else if machine.image.read_only(home).is_some() {
        if is_made || has_keys {
            findings.error(
                path,
                format!(
                    "{home} is read-only, so no home directory can be created there; use {default}"
                ),
            );
        }
    } else if machine.image.covered(home).is_some() {
        findings.warn(
            path,
            format!("{home} is emptied at every boot, including the keys; use {default}"),
        );
    } else if has_keys
        && !is_made
        && !is_in_image
        && !WITH_HOME.iter().any(|name| home.ends_with(name))
        && !is_mounted(home, machine)
    {
        findings.error(
            format!("{at}.noCreateHome"),
            format!(
                "the keys go to {home}, which nothing creates; remove noCreateHome or the keys"
            ),
        );
    }
}

/// Whether a file system of the config is mounted at or above the directory.
fn is_mounted(home: &str, machine: &Machine<'_>) -> bool {
    let storage = machine.config.storage.iter();
    let mut filesystems = storage.flat_map(|storage| storage.filesystems.iter().flatten());
    filesystems.any(|filesystem| {
        let path = filesystem.path.as_deref().unwrap_or_default();
        !path.is_empty() && is_in(home, path)
    })
}

fn check_groups(
    at: &str,
    user: &User,
    machine: &Machine<'_>,
    accounts: &Accounts,
    findings: &mut Findings<'_>,
) {
    let lists = [
        (user.primary_group.as_slice(), format!("{at}.primaryGroup")),
        (
            user.groups.as_deref().unwrap_or_default(),
            format!("{at}.groups"),
        ),
    ];
    for (names, path) in lists {
        for (j, name) in names.iter().enumerate() {
            let is_empty = name.is_empty() && path.ends_with("primaryGroup");
            if is_empty || accounts.has_group(name) {
                continue;
            }
            let path = if path.ends_with("groups") {
                join_index(&path, j)
            } else {
                path.clone()
            };
            let message = format!(
                "there is no group {name:?} when {:?} is created: it is not in the image, not in passwd.groups, and no earlier user has it",
                user.name
            );
            machine.lacks(path, &message, findings);
        }
    }
}

fn add(
    at: &str,
    user: &User,
    is_in_image: bool,
    accounts: &mut Accounts,
    findings: &mut Findings<'_>,
) {
    let name = &user.name;
    let has_primary = user
        .primary_group
        .as_ref()
        .is_some_and(|group| !group.is_empty());
    let gets_group = !is_in_image && !has_primary && user.no_user_group != Some(true);
    let id = match user.uid {
        Some(uid) => accounts
            .users
            .check(name, uid, "user")
            .unwrap_or_else(|reason| {
                findings.error(format!("{at}.uid"), reason);
                None
            }),
        None if is_in_image => accounts.users.ids.get(name).copied().flatten(),
        None if user.system == Some(true) => None,
        None => accounts.users.next(),
    };
    accounts.users.ids.insert(name.clone(), id);
    if gets_group {
        // The group with the same number, if there is none of this name, which the initrd lets the user have.
        let id = id.filter(|id| accounts.groups.owner(*id).is_none());
        let id = id.or_else(|| accounts.groups.next().filter(|_| user.system != Some(true)));
        accounts.groups.ids.entry(name.clone()).or_insert(id);
    }
}
