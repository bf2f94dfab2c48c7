//! Configurations as people write them: retyped in the shapes that the documentation of Flatcar and Fedora CoreOS and
//! public repositories show, with names and values of our own. Each thing that one asks for is looked at in the machine.
//!
//! Machines are dear, so several configurations share one: Ignition merges them, as it would those of a user. They are
//! what lies in `qemu-tests/configs/`; the harness adds nothing but its key.

mod access;
mod machines;
mod refused;
mod secure;
mod table;
mod told;

use anyhow::{Result, bail, ensure};

use crate::{machine::Machine, suite::Names};

pub(super) use machines::run;

/// The cases that `make test-qemu` runs.
pub(super) const CASES: Names = &[
    // The machine `node`.
    "configs::node_is_up",
    "configs::users_and_groups",
    "configs::system_user",
    "configs::files",
    "configs::time_zone",
    "configs::kernel_settings",
    "configs::units",
    "configs::mounts",
    "configs::autologin",
    "configs::docker_daemon",
    "configs::etcd",
    "configs::no_updates",
    "configs::kubernetes_node",
    "configs::remote_merge",
    "configs::check_agrees_with_the_boots",
];

/// Those that `make test-qemu` leaves out: of the refused ones it has one, in [`super::broken_ignition`].
pub(super) const EXTENDED: Names = &[
    // The machine `flatcar`.
    "configs::flatcar_is_up",
    "configs::static_network",
    "configs::flannel_on_flatcar",
    // The machine `told`.
    "configs::what_is_not_there_is_told",
    // The machine `disk`.
    "configs::disk_is_up",
    "configs::remote_replace",
    "configs::data_disk",
    "configs::etcd_environment",
    "configs::time_zone_overwrite",
    "configs::usr_local",
    // The machine `disks`.
    "configs::disks_are_up",
    "configs::partition_beside_image",
    "configs::raid_of_two_disks",
    "configs::luks_by_key_file",
    "configs::kernel_arguments",
    "configs::newer_spec",
    "configs::disks_are_there_again",
    // The machine `tpm`.
    "configs::tpm_is_up",
    "configs::luks_by_tpm",
    "configs::tpm_opens_again",
    // The machine `embedded`.
    "configs::embedded_is_up",
    "configs::embedded_in_the_image",
    // The machines `https` and `unknown-authority`.
    "configs::remote_merge_by_https",
    "configs::unknown_authority_is_told",
    // One machine each.
    "configs::refused_unknown_group",
    "configs::refused_uid_twice",
    "configs::refused_uid_of_core",
    "configs::refused_gid_twice",
    "configs::refused_unknown_owner",
    "configs::refused_kernel_arguments",
    "configs::refused_partitions",
    "configs::refused_xfs",
    "configs::refused_raid",
    "configs::refused_luks",
    "configs::refused_below_usr",
    "configs::refused_newer_spec",
    "configs::refused_newer_remote",
    "configs::refused_wrong_hash",
];

/// A configuration that boots and does what it says.
#[derive(Debug)]
struct Config {
    /// Its case.
    case: &'static str,
    /// What it was modelled on: repository and path.
    shape: &'static str,
    /// The configuration itself.
    text: &'static str,
    /// What it asks for.
    asks: &'static [Ask],
}

/// One thing that a configuration asks for.
#[derive(Debug, Clone, Copy)]
struct Ask {
    /// The thing, in words.
    what: &'static str,
    /// Shell commands that look at it, run by `core`.
    look: &'static str,
    /// What they print if it is there, without white space at the ends.
    sees: &'static str,
}

/// An [`Ask`].
const fn ask(what: &'static str, look: &'static str, sees: &'static str) -> Ask {
    Ask { what, look, sees }
}

/// Ends the answer to one question.
const END: &str = "----8<----";

/// Looks at everything in one go, and tells all that is not as asked for.
///
/// # Errors
/// Names each of those things, what was seen, and what should have been.
async fn look_at(machine: &Machine, asks: &[Ask]) -> Result<()> {
    let said = machine.ssh.run(&script(asks)).await?;
    let wrong = wrong(asks, &said)?;
    ensure!(
        wrong.is_empty(),
        "{}: {} of {} are not as asked for:\n{}",
        machine.name(),
        wrong.len(),
        asks.len(),
        wrong.join("\n")
    );
    Ok(())
}

fn script(asks: &[Ask]) -> String {
    // Each in a shell of its own, with what it complains about in its answer.
    let ask = |ask: &Ask| format!("( {}\n) 2>&1 </dev/null\necho '{END}'\n", ask.look);
    asks.iter().map(ask).collect()
}

fn wrong(asks: &[Ask], said: &str) -> Result<Vec<String>> {
    let mut answers: Vec<_> = said.split(END).map(str::trim).collect();
    // After the last end there is nothing.
    answers.pop();
    if answers.len() != asks.len() {
        bail!("{} answers to {} questions", answers.len(), asks.len());
    }
    let wrong = asks
        .iter()
        .zip(answers)
        .filter(|(ask, seen)| ask.sees != *seen);
    Ok(wrong
        .map(|(ask, seen)| {
            let Ask { what, look, sees } = ask;
            format!("- {what}: {seen:?} instead of {sees:?}; asked: {look}")
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told() {
        let asks = [
            ask("one", "echo 1", "1"),
            ask("two", "echo 2", "3"),
            ask("three", "cat /nonexistent", ""),
        ];
        let output = std::process::Command::new("sh")
            .args(["-c", &script(&asks)])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let wrong = wrong(&asks, &said).unwrap();
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].starts_with("- two: \"2\" instead of \"3\""));
        assert!(wrong[1].contains("No such file"), "{}", wrong[1]);
        assert!(super::wrong(&asks[..1], "").is_err());
    }

    #[test]
    fn every_configuration_is_a_case_and_says_where_its_shape_is_from() {
        let cases = [CASES, EXTENDED].concat();
        let mut count = 0;
        for config in table::MACHINES.iter().flat_map(|machine| machine.configs) {
            assert!(cases.contains(&config.case), "{}", config.case);
            assert!(!config.asks.is_empty(), "{}", config.case);
            assert!(config.shape.contains('/'), "{}", config.case);
            count += 1;
        }
        assert!(count >= 12, "{count}");
        for refused in refused::TABLE {
            assert!(cases.contains(&refused.case), "{}", refused.case);
        }
    }

    fn json(config: &Config) -> Value {
        serde_json::from_str(config.text).unwrap()
    }

    #[test]
    fn every_spec_is_there() {
        let mut specs = BTreeSet::new();
        for config in table::MACHINES.iter().flat_map(|machine| machine.configs) {
            let version = json(config)["ignition"]["version"]
                .as_str()
                .unwrap()
                .to_owned();
            specs.insert(version);
        }
        let all = ["3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.4.0", "3.5.0"];
        assert_eq!(Vec::from_iter(specs), all);
    }

    /// Merged, the later one would win, and the earlier one's questions would be about it.
    #[test]
    fn configurations_that_share_a_machine_do_not_write_the_same() {
        for machine in table::MACHINES {
            let mut paths = BTreeSet::new();
            for config in machine.configs.iter().map(json) {
                for kind in ["files", "directories", "links"] {
                    for entry in config["storage"][kind].as_array().into_iter().flatten() {
                        let path = entry["path"].as_str().unwrap().to_owned();
                        assert!(paths.insert(path.clone()), "{}: {path}", machine.name);
                    }
                }
            }
        }
    }

    #[test]
    fn served_files_have_the_hashes_that_configurations_name() {
        // sha512sum is everywhere; the harness has no use for a library of hashes otherwise.
        let sum = |bytes: &[u8]| {
            use std::io::Write as _;
            let mut child = std::process::Command::new("sha512sum")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(bytes).unwrap();
            let output = child.wait_with_output().unwrap();
            String::from_utf8(output.stdout).unwrap()[..128].to_owned()
        };
        let merge = include_str!("../../configs/remote-merge.ign");
        assert!(merge.contains(&sum(access::REMOTE)));
    }
}
