//! The tests that need a boot. Few boots serve many cases:
//!
//! 1. two machines boot for the first time: [`first_boot`], [`overlay`], [`coreos`], [`operator`];
//! 2. both reboot: [`second_boot`];
//! 3. one reboots at another address while etcd is away: [`etcd_absent`]; then, [`renumbering`] and [`networks`];
//! 4. a machine with one network card and without the agent boots two times: [`after_boot`], [`surface`],
//!    [`plain_docker`], [`image_kernel`];
//! 5. beside it, machines whose configuration is broken or elsewhere: [`broken_ignition`], [`initrd_network`];
//! 6. machines that do what configurations ask for, as people write them: [`configs`];
//!    Then, machines of clouds, with their metadata services and drives: [`platforms`];
//! 7. a machine goes to the next version of the image and back: [`update`];
//! 8. two machines are given next versions that are bad, each in another way: [`update::bad`];
//! 9. another one is updated from a release server, with all that can go wrong on the way: [`release`];
//! 10. three machines go there in turn: [`fleet`];
//! 11. the power of one that does so is cut at any moment: [`power_cut`];
//! 12. one whose firmware starts only what is signed does the same: [`secure_boot`];
//! 13. two that get programs beside the image's, of the plain and the signed one: [`sysext`]; one that becomes a node of
//!     Kubernetes by such: [`kubernetes_node`];
//! 14. one boots by network, with nothing on its disk: [`pxe`];
//! 15. one has 512 MiB of memory: [`small`].

mod after_boot;
mod broken_ignition;
mod configs;
mod coreos;
#[cfg(test)]
mod documented;
mod etcd_absent;
mod first_boot;
mod fleet;
mod image_kernel;
mod initrd_network;
mod kubernetes_node;
mod networks;
mod operator;
mod overlay;
mod pair;
mod plain_docker;
mod platforms;
mod power_cut;
mod pxe;
mod release;
mod renumbering;
mod second_boot;
mod secure_boot;
mod singles;
mod small;
mod surface;
mod sysext;
mod update;

use anyhow::{Result, bail};

use crate::{
    cli::{Common, PowerCuts},
    host::Host,
    progress::{Progress, clock},
    suite::{Names, Suite},
};

/// All groups, in the order in which they run.
const GROUPS: &[Names] = &[
    first_boot::CASES,
    overlay::CASES,
    coreos::CASES,
    operator::CASES,
    second_boot::CASES,
    etcd_absent::CASES,
    renumbering::CASES,
    networks::CASES,
    after_boot::CASES,
    plain_docker::CASES,
    surface::CASES,
    image_kernel::CASES,
    broken_ignition::CASES,
    initrd_network::CASES,
    configs::CASES,
    configs::EXTENDED,
    platforms::CASES,
    update::CASES,
    update::bad::CASES,
    release::CASES,
    fleet::CASES,
    power_cut::CASES,
    secure_boot::CASES,
    sysext::CASES,
    kubernetes_node::CASES,
    pxe::CASES,
    small::CASES,
];

/// Cases that are too long for every change: `test --all` runs them, or a filter that names them.
const EXTENDED: &[Names] = &[
    renumbering::EXTENDED,
    networks::EXTENDED,
    after_boot::EXTENDED,
    image_kernel::EXTENDED,
    initrd_network::EXTENDED,
    configs::EXTENDED,
    platforms::CASES,
    update::EXTENDED,
    update::bad::CASES,
    release::EXTENDED,
    fleet::EXTENDED,
    power_cut::EXTENDED,
    secure_boot::EXTENDED,
    sysext::EXTENDED,
    kubernetes_node::EXTENDED,
    pxe::EXTENDED,
];

/// The names of all cases, one on each line.
pub(crate) fn list() -> String {
    let extended = EXTENDED.concat();
    let line = |name: &&str| match extended.contains(name) {
        true => format!("{name}\t(only with --all)\n"),
        false => format!("{name}\n"),
    };
    GROUPS.iter().copied().flatten().map(line).collect()
}

/// Runs the cases whose names contain `filter`; without a filter those that CI runs, or all.
///
/// # Errors
/// When none matches, or the host cannot run machines. Cases that fail are no error but `false`.
pub(crate) async fn run(
    common: &Common,
    filter: Option<String>,
    all: bool,
    power_cuts: &PowerCuts,
) -> Result<bool> {
    let progress = Progress::new();
    let dir = common.target.join("qemu");
    let left_out = if all { Vec::new() } else { EXTENDED.concat() };
    let not_run = if filter.is_none() { left_out.len() } else { 0 };
    let mut suite = Suite::new(&progress, filter, left_out, dir.clone());
    if !GROUPS.iter().any(|names| suite.wants_any(names)) {
        bail!("no test has this in its name; `qemu-tests list` names them");
    }
    let host = Host::prepare(common, &dir.join("key"), &progress).await?;
    let boots = dir.join("boots");
    pair::run(&mut suite, &host, common, &boots).await;
    singles::run(&mut suite, &host, common, &boots).await;
    configs::run(&mut suite, &host, common, &boots).await;
    platforms::run(&mut suite, &host, common, &boots).await;
    update::run(&mut suite, &host, common, &boots).await;
    update::bad::run(&mut suite, &host, common, &boots).await;
    release::run(&mut suite, &host, common, &boots).await;
    fleet::run(&mut suite, &host, common, &boots).await;
    power_cut::run(&mut suite, &host, common, power_cuts, &dir).await;
    secure_boot::run(&mut suite, &host, common, &boots).await;
    sysext::run(&mut suite, &host, common, &boots).await;
    kubernetes_node::run(&mut suite, &host, common, &boots).await;
    pxe::run(&mut suite, &host, common, &boots).await;
    small::run(&mut suite, &host, common, &boots).await;
    let (summary, good) = suite.summary();
    progress.line(&format!(
        "{} in all; consoles and what failed cases left are in {}",
        clock(progress.elapsed()).trim(),
        dir.display()
    ));
    if not_run > 0 {
        progress.line(&format!(
            "{not_run} longer cases were left out; `make test-qemu-all` runs them, too"
        ));
    }
    // The very last line, for machines to read.
    progress.line(&summary);
    Ok(good)
}

#[cfg(test)]
mod names {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn extended_cases_exist() {
        let names: Vec<_> = GROUPS.iter().copied().flatten().collect();
        for name in EXTENDED.concat() {
            assert!(names.contains(&&name), "{name}");
        }
    }

    #[test]
    fn names_are_unique_and_carry_their_group() {
        let names: Vec<_> = GROUPS.iter().copied().flatten().collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for group in GROUPS {
            let prefix = group[0].split("::").next().unwrap();
            assert!(
                group
                    .iter()
                    .all(|name| name.starts_with(&format!("{prefix}::"))),
                "{group:?}"
            );
        }
    }
}
