//! Users and groups.

use ignition_config::v3_3::Passwd;

use super::super::locate::join_index;
use super::super::ssh_key;
use super::Findings;

/// Checks names and what may not appear twice.
pub(super) fn check(passwd: &Passwd, findings: &mut Findings<'_>) {
    let users = passwd.users.as_deref().unwrap_or_default();
    let groups = passwd.groups.as_deref().unwrap_or_default();
    check_names(
        "passwd.users",
        users.iter().map(|user| user.name.as_str()),
        findings,
    );
    check_names(
        "passwd.groups",
        groups.iter().map(|group| group.name.as_str()),
        findings,
    );
    for (i, user) in users.iter().enumerate() {
        let at = join_index("passwd.users", i);
        findings.check_unique(
            &format!("{at}.groups"),
            "name",
            user.groups.iter().flatten(),
        );
        let keys = || user.ssh_authorized_keys.iter().flatten();
        findings.check_unique(&format!("{at}.sshAuthorizedKeys"), "key", keys());
        for (j, key) in keys().enumerate() {
            // Ignition writes any line; sshd skips what it cannot read, and options before a key are legitimate.
            let has_options = key.contains("ssh-") || key.contains("ecdsa-");
            if let Err(error) = ssh_key::check(key.trim())
                && (!has_options || key.contains("PRIVATE KEY"))
            {
                let path = join_index(&format!("{at}.sshAuthorizedKeys"), j);
                findings.warn(path, format!("sshd will not accept this key: {error}"));
            }
        }
    }
}

fn check_names<'c>(
    list: &str,
    names: impl Iterator<Item = &'c str> + Clone,
    findings: &mut Findings<'_>,
) {
    for (i, name) in names.clone().enumerate() {
        // What would end the field or the line in /etc/passwd, or read as an option of useradd.
        let is_bad =
            |c: char| c == ':' || c == ',' || c == '/' || c.is_whitespace() || c.is_control();
        if name.is_empty() {
            findings.error(
                format!("{}.name", join_index(list, i)),
                "a name is required",
            );
        } else if name.contains(is_bad) || name.starts_with('-') {
            findings.error(
                format!("{}.name", join_index(list, i)),
                format!("{name:?} is not a name that useradd and groupadd accept"),
            );
        }
    }
    findings.check_unique(list, "name", names);
}
