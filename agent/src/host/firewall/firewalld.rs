//! firewalld: its nftables table rejects packets that no zone accepts, whatever other tables accept.
//!
//! The agent must not change that table (firewalld may own it, and each reload recreates it). Instead it adds the
//! overlay network as a source of the zone `trusted`, as k3s tells its users to do by hand. That works for backends
//! with and without a device. Containers can then also reach the host's own services, as without firewalld. The entry
//! is not permanent: a reload removes it, the agent notices and adds it again.
//!
//! firewalld is a Python program behind D-Bus: a call takes 0.2 s at best, and many seconds during a reload. The agent
//! does not wait for it.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::task::JoinHandle;
use tracing::info;

use super::Failures;
use super::nftables::{Nftables, TABLE_FAMILY, Tables};
use super::program::{self, Error};

/// firewalld's table, in the family of ours.
pub(super) const TABLE: &str = "firewalld";

/// The program that talks to firewalld over D-Bus.
const PROGRAM: &str = "firewall-cmd";

/// The action named in errors.
const ACTION: &str = "trust the overlay network";

/// Deadline of one call. Generous, because the agent does not wait, and a firewalld that reloads on a busy machine
/// answers late.
const DEADLINE: Duration = Duration::from_secs(60);

/// Pause after a failed call; doubles up to the maximum.
const MIN_PAUSE: Duration = Duration::from_secs(2);
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// Whether firewalld manages the rules of a host with these tables.
pub(super) fn is_in(tables: &Tables) -> bool {
    tables.has(TABLE_FAMILY, TABLE)
}

#[derive(Default)]
pub(super) struct Firewalld {
    /// The running call, until its outcome is known.
    call: Option<JoinHandle<Result<(), Error>>>,
    /// Whether the last call succeeded.
    accepted: bool,
    /// When to retry after a failure, and the current pause.
    pause: Option<(Instant, Duration)>,
}

impl Firewalld {
    /// Adds `networks` to the trusted zone, except those that are in a zone already; returns whether nothing is left to
    /// do. The kernel announces firewalld's changes, so the caller comes back.
    pub(super) async fn ensure(
        &mut self,
        networks: impl Iterator<Item = IpNet>,
        nftables: &mut Nftables,
        failures: &mut Failures,
    ) -> bool {
        match self.call.take() {
            Some(call) if !call.is_finished() => {
                self.call = Some(call);
                return false;
            }
            // A task that panicked has already reported it.
            Some(call) => match call.await.unwrap_or(Ok(())) {
                Ok(()) => self.accepted = true,
                Err(error) => self.retry_later(&error, failures),
            },
            None => {}
        }
        if self.pause.is_some_and(|(until, _)| Instant::now() < until) {
            return false;
        }
        match untrusted(networks, nftables).await {
            Ok(networks) if networks.is_empty() => {
                (self.accepted, self.pause) = (false, None);
                true
            }
            // A reload may have removed the entry again. But do not retry at once: if we cannot parse the rules, we
            // would call forever.
            Ok(networks) if std::mem::take(&mut self.accepted) => {
                let names: Vec<_> = networks.iter().map(IpNet::to_string).collect();
                let error = Error::Refused {
                    program: PROGRAM.to_owned(),
                    action: ACTION,
                    message: format!(
                        "it reported success, but no rule of firewalld names {}",
                        names.join(", ")
                    ),
                };
                self.retry_later(&error, failures);
                false
            }
            Ok(networks) => {
                self.call = Some(tokio::spawn(trust(networks)));
                false
            }
            Err(error) => {
                self.retry_later(&error, failures);
                false
            }
        }
    }

    fn retry_later(&mut self, error: &Error, failures: &mut Failures) {
        failures.log(error);
        let last = self.pause.map_or(MIN_PAUSE / 2, |(_, pause)| pause);
        let pause = (last * 2).min(MAX_PAUSE);
        self.pause = Some((Instant::now() + pause, pause));
    }
}

/// The networks that no zone contains.
async fn untrusted(
    networks: impl Iterator<Item = IpNet>,
    nftables: &mut Nftables,
) -> Result<Vec<IpNet>, Error> {
    let branches = nftables.branches(TABLE_FAMILY, TABLE).await?;
    Ok(networks
        .filter(|network| !is_trusted(&branches, *network))
        .collect())
}

async fn trust(networks: Vec<IpNet>) -> Result<(), Error> {
    for network in networks {
        let source = format!("--add-source={network}");
        firewall_cmd(ACTION, &["--zone=trusted", &source]).await?;
        info!(%network, "added the overlay network to firewalld's trusted zone");
    }
    Ok(())
}

/// Whether a zone contains the overlay, possibly one that the administrator chose. firewalld before 1.0 jumps to the
/// chain `filter_FWDI_ZONE`, since 1.0 to `filter_FWD_ZONE`, and 2.5 to `filter_FWD_ZONE_dispatch_stage2`.
fn is_trusted(branches: &[(IpNet, String)], network: IpNet) -> bool {
    let is_zone =
        |(source, chain): &(IpNet, String)| *source == network && chain.starts_with("filter_FWD");
    branches.iter().any(is_zone)
}

/// Removes `networks` from the trusted zone, unless the permanent configuration lists them; returns whether any was
/// removed. Failures do not matter: firewalld forgets the entry at its next reload.
pub(super) async fn untrust(networks: &[IpNet]) -> bool {
    let mut removed = false;
    for network in networks.iter().map(IpNet::trunc) {
        let query = format!("--query-source={network}");
        let permanent = firewall_cmd("query", &["--permanent", "--zone=trusted", &query]).await;
        if permanent.is_ok() {
            continue;
        }
        if firewall_cmd("query", &["--zone=trusted", &query])
            .await
            .is_ok()
        {
            let remove = format!("--remove-source={network}");
            removed |= firewall_cmd("remove", &["--zone=trusted", &remove])
                .await
                .is_ok();
        }
    }
    removed
}

async fn firewall_cmd(action: &'static str, arguments: &[&str]) -> Result<(), Error> {
    let path = program::find(PROGRAM).ok_or_else(|| Error::NoProgram {
        program: PROGRAM.to_owned(),
        package: "firewalld",
    })?;
    let output = program::run_within(DEADLINE, path, arguments, "").await?;
    program::printed(PROGRAM, action, &output).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_in_a_zone_are_found_in_firewallds_own_rules() {
        let branches = [
            ("10.5.0.0/16", "mangle_PRE_trusted"),
            ("10.5.0.0/16", "filter_IN_trusted"),
            ("10.5.0.0/16", "filter_FWD_trusted"),
            ("fd00:5::/48", "filter_FWDI_internal"),
            ("10.7.0.0/16", "filter_FWD_trusted_dispatch_stage2"),
            ("10.6.0.0/16", "filter_IN_trusted_to_HOST"),
            ("10.6.0.0/16", "filter_IN_trusted"),
        ]
        .map(|(source, chain)| (source.parse().unwrap(), chain.to_owned()));
        for (network, expected) in [
            ("10.5.0.0/16", true),
            ("fd00:5::/48", true),
            ("10.7.0.0/16", true),
            ("10.6.0.0/16", false),
            ("10.5.0.0/17", false),
        ] {
            assert_eq!(
                is_trusted(&branches, network.parse().unwrap()),
                expected,
                "{network}"
            );
        }
    }
}
