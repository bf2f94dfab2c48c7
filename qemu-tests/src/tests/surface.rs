//! What of a machine can be reached or misused: each list of what is allowed is a file in `surface/`, with the reason on
//! each line, and is compared with the running machine exactly. Something new has to be argued for there, and what is
//! gone has to be taken off. Runs on the machine of [`super::after_boot`], where neither agent nor etcd is enabled.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    cluster::Cluster,
    ssh::{Ssh, USER},
    suite::{Names, Suite},
};

/// The cases here.
pub(super) const CASES: Names = &[
    "surface::only_sudo_is_setuid",
    "surface::only_known_paths_are_world_writable",
    "surface::no_program_has_capabilities_of_its_own",
    "surface::only_known_accounts_have_a_shell_or_a_password",
    "surface::kernel_settings_are_the_restrictive_ones",
    "surface::services_may_do_no_more_than_they_must",
    "surface::sshd_takes_keys_of_users_and_modern_algorithms_only",
];

/// What no list says anything about: file systems of the kernel, and those of containers.
const FIND: &str = "sudo find / /usr /etc /run /dev -xdev \
    \\( -path /proc -o -path /sys -o -path /var/lib/docker -o -path /var/lib/containerd \\) -prune -o";
/// A connection's time, on a guest that computes slowly.
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs the cases.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster) {
    suite.case(CASES[0], cluster, setid).await;
    suite.case(CASES[1], cluster, world_writable).await;
    suite.case(CASES[2], cluster, capabilities).await;
    suite.case(CASES[3], cluster, accounts).await;
    suite.case(CASES[4], cluster, kernel_settings).await;
    suite.case(CASES[5], cluster, services).await;
    suite.case(CASES[6], cluster, sshd).await;
}

/// An allow-list: an entry and, after a `#`, why it is there. `*` in an entry is any text without a slash, and a `?` before it
/// says that it may be missing. Lines that begin with `#` are comments.
pub(super) struct List {
    name: &'static str,
    entries: Vec<Entry>,
}

struct Entry {
    pattern: String,
    may_be_missing: bool,
    why: String,
}

impl List {
    pub(super) fn parse(name: &'static str, text: &str) -> Self {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entries = lines
            .map(|line| {
                let (pattern, why) = line.split_once('#').unwrap_or((line, ""));
                let pattern = pattern.trim();
                Entry {
                    pattern: pattern.trim_start_matches('?').trim().to_owned(),
                    may_be_missing: pattern.starts_with('?'),
                    why: why.trim().to_owned(),
                }
            })
            .collect();
        Self { name, entries }
    }

    /// Fails unless these are what the list has.
    ///
    /// # Errors
    /// Names what is not in the list, and what only the list has.
    pub(super) fn compare<'a>(&self, found: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let found: Vec<_> = found.into_iter().filter(|item| !item.is_empty()).collect();
        let mut differences = Vec::new();
        for item in &found {
            let known = |entry: &Entry| matches(&entry.pattern, item);
            if !self.entries.iter().any(known) {
                differences.push(format!("not in the list: {item}"));
            }
        }
        for entry in &self.entries {
            let there = found.iter().any(|item| matches(&entry.pattern, item));
            if !there && !entry.may_be_missing {
                differences.push(format!(
                    "only in the list: {} ({})",
                    entry.pattern, entry.why
                ));
            }
        }
        ensure!(
            differences.is_empty(),
            "this machine differs from src/tests/surface/{}:\n{}",
            self.name,
            differences.join("\n")
        );
        Ok(())
    }
}

/// Whether the text is what the pattern says; `*` is any text without a slash.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(tail) = text.strip_prefix(head) else {
        return false;
    };
    let reach = tail.find('/').unwrap_or(tail.len());
    (0..=reach)
        .filter(|&end| tail.is_char_boundary(end))
        .any(|end| matches(rest, &tail[end..]))
}

macro_rules! list {
    ($name:literal) => {
        List::parse($name, include_str!(concat!("surface/", $name)))
    };
}

/// What listens, as `protocol address:port program`.
pub(super) fn sockets() -> List {
    list!("sockets")
}

async fn ask(cluster: &Cluster, script: &str) -> Result<String> {
    cluster.machines[0].ssh.run(script).await
}

async fn setid(cluster: &mut Cluster) -> Result<()> {
    let said = ask(
        cluster,
        &format!("{FIND} -perm /6000 -printf '%M %u:%g %p\\n' | sort -u"),
    )
    .await?;
    list!("setid").compare(said.lines())
}

async fn world_writable(cluster: &mut Cluster) -> Result<()> {
    let said = ask(
        cluster,
        &format!("{FIND} -perm -0002 ! -type l -printf '%M %u:%g %p\\n' | sort -u"),
    )
    .await?;
    list!("world-writable").compare(said.lines())
}

/// The attribute is looked for by its program, which must be able to find one.
async fn capabilities(cluster: &mut Cluster) -> Result<()> {
    let said = ask(
        cluster,
        "set -e; export PATH=$PATH:/usr/sbin; t=$(sudo mktemp /root/XXXXXX); \
         sudo setcap cap_net_raw+ep $t; sudo getcap $t | grep -q cap_net_raw; sudo rm $t; \
         sudo getcap -r / 2>/dev/null || true",
    )
    .await?;
    list!("capabilities").compare(said.lines())
}

/// By name: the shell of those who have one, and for passwords whether there is one, none, or none that fits.
async fn accounts(cluster: &mut Cluster) -> Result<()> {
    let said = ask(
        cluster,
        "awk -F: '$7 !~ /\\/(nologin|false)$/ { print \"shell \" $1 \" \" $7 }' /etc/passwd; \
         sudo awk -F: '$2 !~ /^[!*]/ { print \"password \" $1 }' /etc/shadow; \
         awk -F: '$2 != \"x\" { print \"password in passwd \" $1 }' /etc/passwd; \
         awk -F: '$3 == 0 { print \"uid 0 \" $1 }' /etc/passwd",
    )
    .await?;
    list!("accounts").compare(said.lines())
}

async fn kernel_settings(cluster: &mut Cluster) -> Result<()> {
    let list = list!("kernel");
    let files: Vec<_> = list
        .entries
        .iter()
        .filter_map(|entry| entry.pattern.split_once('='))
        .map(|(key, _)| key.trim().to_owned())
        .collect();
    let script: Vec<_> = files
        .iter()
        .map(|key| {
            format!(
                "echo \"{key} = $(sudo cat /proc/sys/{})\"",
                key.replace('.', "/")
            )
        })
        .collect();
    let said = ask(cluster, &script.join(" && ")).await?;
    list.compare(said.lines())
}

/// `systemd-analyze security` of what is loaded: no service that the list does not have, and none above its figure.
async fn services(cluster: &mut Cluster) -> Result<()> {
    let said = ask(cluster, "systemd-analyze security --no-pager --json=short").await?;
    let most = list!("services");
    let found = exposures(&said)?;
    let mut limits = BTreeMap::new();
    for entry in &most.entries {
        let (unit, limit) = entry
            .pattern
            .split_once(' ')
            .context("no figure in the list")?;
        limits.insert(unit.trim(), limit.trim().parse::<f64>()?);
    }
    let above: Vec<_> = found
        .iter()
        .filter(|(unit, figure)| {
            let fits = |(pattern, limit): (&&str, &f64)| matches(pattern, unit) && figure <= limit;
            !limits.iter().any(fits)
        })
        .map(|(unit, figure)| format!("{unit} {figure}"))
        .collect();
    ensure!(
        above.is_empty(),
        "not in src/tests/surface/services, or more exposed than there:\n{}",
        above.join("\n")
    );
    Ok(())
}

/// The units of `systemd-analyze security --json=short`, with their figures.
fn exposures(json: &str) -> Result<Vec<(String, f64)>> {
    let units: Vec<Value> = serde_json::from_str(json).context("no JSON")?;
    let found: Vec<_> = units
        .iter()
        .filter_map(|unit| {
            let figure = &unit["exposure"];
            let figure = figure.as_f64().or_else(|| figure.as_str()?.parse().ok())?;
            Some((unit["unit"].as_str()?.to_owned(), figure))
        })
        .collect();
    ensure!(
        !found.is_empty() && found.len() == units.len(),
        "{} figures for {} units",
        found.len(),
        units.len()
    );
    Ok(found)
}

/// Ways to come in that must be closed, each with what the client says then. Where an option makes the client offer
/// something old, the same connection with something modern in its place works. Few: sshd takes no connection of an address
/// any more whose failures add up to 15 s (`PerSourcePenalties`; 5 s for a refused login, 1 s for the others).
const REFUSED: &[(&str, &[&str], &str)] = &[
    (
        USER,
        &["KexAlgorithms=diffie-hellman-group14-sha1"],
        "no matching key exchange method found",
    ),
    (USER, &["Ciphers=aes128-cbc"], "no matching cipher found"),
    (
        USER,
        &["Ciphers=aes128-ctr", "MACs=hmac-sha1"],
        "no matching MAC found",
    ),
    (
        USER,
        &["HostKeyAlgorithms=ssh-rsa"],
        "no matching host key type found",
    ),
    (
        USER,
        &["PubkeyAuthentication=no"],
        "Permission denied (publickey)",
    ),
    ("root", &[], "Permission denied (publickey)"),
];

const TAKEN: &[&[&str]] = &[
    &["KexAlgorithms=curve25519-sha256"],
    &["Ciphers=aes128-ctr", "MACs=hmac-sha2-256-etm@openssh.com"],
    &["HostKeyAlgorithms=ssh-ed25519"],
];

async fn sshd(cluster: &mut Cluster) -> Result<()> {
    let ssh = &cluster.machines[0].ssh;
    for options in TAKEN {
        let (ended_well, said) = attempt(ssh, USER, options).await?;
        ensure!(ended_well, "{options:?} is refused: {said}");
    }
    // The key would do, if it were for root to use one.
    ssh.run(
        "sudo install -D -m 600 -o root ~core/.ssh/authorized_keys.d/ignition /root/.ssh/authorized_keys 2>/dev/null || \
         sudo install -D -m 600 -o root ~core/.ssh/authorized_keys /root/.ssh/authorized_keys",
    )
    .await?;
    for (user, options, words) in REFUSED {
        let (ended_well, said) = attempt(ssh, user, options).await?;
        ensure!(!ended_well, "{user} comes in with {options:?}");
        ensure!(
            said.contains(words),
            "{user} with {options:?} is not refused for that: {said}"
        );
    }
    ssh.run("sudo rm /root/.ssh/authorized_keys")
        .await
        .map(drop)
}

/// Logs in on a connection of its own; gives whether that worked, and what the client said.
async fn attempt(ssh: &Ssh, user: &str, options: &[&str]) -> Result<(bool, String)> {
    // Of an option that is given twice, ssh takes the first.
    let own = options.iter().flat_map(|option| ["-o", option]);
    let mut command = Command::new("ssh");
    command
        .args(own)
        // What was not agreed on is not logged as an error.
        .args(["-o", "LogLevel=INFO"])
        .args(ssh.arguments())
        .args(["-o", "BatchMode=yes", "-S", "none"])
        .arg(format!("{user}@127.0.0.1"))
        .arg("true")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output())
        .await
        .with_context(|| format!("ssh with {options:?} does not end"))?
        .context("failed to run ssh (package openssh-client)")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((output.status.success(), said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_says_why_it_is_there() {
        let lists = [
            sockets(),
            list!("setid"),
            list!("world-writable"),
            list!("capabilities"),
            list!("accounts"),
            list!("kernel"),
            list!("services"),
        ];
        for list in lists {
            for entry in &list.entries {
                assert!(!entry.why.is_empty(), "{}: {}", list.name, entry.pattern);
            }
        }
    }

    #[test]
    fn a_list_is_compared_in_both_directions() {
        let list = List::parse("x", "# comment\n\na /b/*/c # why\n? d # why\ne # why\n");
        list.compare(["a /b/1/c", "e"]).unwrap();
        list.compare(["a /b/1/c", "a /b/2/c", "d", "e", ""])
            .unwrap();
        for (found, words) in [
            (vec!["a /b/1/c"], "only in the list: e"),
            (vec!["e"], "only in the list: a /b/*/c"),
            (vec!["a /b/1/2/c", "e"], "not in the list: a /b/1/2/c"),
            (vec!["a /b/1/c", "e", "ee"], "not in the list: ee"),
        ] {
            let said = list.compare(found).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn figures_are_read_as_systemd_prints_them() {
        let said = r#"[{"unit":"a.service","exposure":"9.6","predicate":"UNSAFE","happy":"x"}]"#;
        assert_eq!(exposures(said).unwrap(), [("a.service".to_owned(), 9.6)]);
        assert!(exposures("[]").is_err());
        assert!(exposures(r#"[{"unit":"a.service"}]"#).is_err());
    }
}
