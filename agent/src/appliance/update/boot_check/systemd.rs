//! The units that a boot check asks systemd for.

use std::io;

use crate::appliance::systemd::Systemd;

/// Units that wait for the boot check, or run beside it for as long as it does.
const OURS: [&str; 4] = [
    "selvage-boot-check.service",
    "selvage-next-try.service",
    "boot-complete.target",
    "systemd-bless-boot.service",
];

/// Units of updates, which may wait for the outcome of this check.
const UPDATES: &str = "selvage-update";

/// The units that are of interest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Units {
    /// Failed units.
    pub(super) failed: Vec<String>,
    /// Units with a job that runs.
    pub(super) starting: Vec<String>,
}

impl Units {
    /// Asks systemd.
    pub(super) async fn look(systemd: &Systemd) -> io::Result<Self> {
        let plain = ["--no-legend", "--plain", "--full", "--no-pager"];
        let failed = [&["list-units", "--state=failed"], &plain[..]].concat();
        let failed = systemd.ask(&failed).await?;
        let jobs = systemd.ask(&[&["list-jobs"], &plain[..]].concat()).await?;
        Ok(Self {
            failed: failed_units(&failed),
            starting: starting_units(&jobs),
        })
    }
}

fn failed_units(text: &str) -> Vec<String> {
    sorted(first_words(text))
}

fn first_words(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
}

/// The units of lines such as `137 docker.service start running`. A job that waits does so for one that runs, and a
/// target for its units.
fn starting_units(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (_id, unit) = (words.next()?, words.next()?);
        let running = words.next_back() == Some("running");
        (running && !unit.ends_with(".target")).then_some(unit)
    });
    sorted(names)
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let ours = |name: &&str| OURS.contains(name) || name.starts_with(UPDATES);
    let mut names: Vec<String> = names
        .filter(|name| !ours(name))
        .map(ToOwned::to_owned)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The units of the agents of further networks.
///
/// # Errors
/// systemd cannot be asked.
pub(super) async fn agents_of_networks(systemd: &Systemd) -> io::Result<Vec<String>> {
    let arguments = ["list-units", "--all", "--no-legend", "--plain", "--full"];
    let arguments = [&arguments[..], &["--no-pager", "selvage@*.service"]].concat();
    let text = systemd.ask(&arguments).await?;
    Ok(sorted(first_words(&text)))
}

/// Whether one of the units is enabled; those that do not exist are not.
///
/// # Errors
/// systemd cannot be asked.
pub(super) async fn is_enabled(systemd: &Systemd, units: &[&str]) -> io::Result<bool> {
    // The exit status depends on the first unit alone.
    let output = systemd.run(&[&["is-enabled"], units].concat()).await?;
    let states = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(states
        .lines()
        .any(|state| matches!(state.trim(), "enabled" | "enabled-runtime" | "alias")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_units_are_listed_but_for_our_own() {
        let text = "\
b.service             loaded failed failed B
a.mount               loaded failed failed A
selvage-boot-check.service loaded failed failed Check
";
        assert_eq!(failed_units(text), ["a.mount", "b.service"]);
        assert_eq!(failed_units(""), [""; 0]);
    }

    #[test]
    fn units_that_others_wait_for_are_starting() {
        let text = "\
 137 docker.service              start waiting
 101 selvage.service             start running
   2 multi-user.target           start waiting
   3 odd.target                  start running
 140 selvage-boot-check.service  start running
 141 boot-complete.target        start waiting
 150 selvage-update.service      start running
 102 dev-sdb.device              start running
";
        assert_eq!(starting_units(text), ["dev-sdb.device", "selvage.service"]);
        assert_eq!(starting_units("No jobs running.\n"), [""; 0]);
    }
}
