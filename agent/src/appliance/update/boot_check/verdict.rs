//! Whether a version is good: what held before the update is compared with what holds now. Pure.
//!
//! `docs/boot-check.md` has these rules in words, with who may be condemned wrongly.

use std::fmt;

use super::site;
use crate::appliance::update::state::{FailedCheck, FailureCode, Health};
use crate::telemetry::status::{Cause, Code};

/// A store on this very host. If it failed, nobody else is to blame for a store that does not answer.
const OWN_STORE: [&str; 2] = ["etcd.service", "etcd-member.service"];

/// What is said about a version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Everything holds that must.
    Good,
    /// Something fails that held before, and this version may be the cause. Those failures come first.
    Bad(Vec<Concern>),
    /// Something fails, but it failed before, or the cause is outside of this machine.
    Undecided(Vec<Concern>),
}

/// A check that fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Concern {
    pub(crate) code: FailureCode,
    /// The unit or check, where there are several of a kind.
    pub(crate) object: Option<String>,
    pub(crate) reason: String,
    pub(crate) blame: Blame,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Blame {
    /// It held before, and this version may be the cause.
    ThisVersion,
    /// It failed before as well, or it is not known whether it did.
    Before,
    /// The cause is outside of this machine, or follows from such a cause.
    Outside,
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match self.blame {
            Blame::ThisVersion => Ok(()),
            Blame::Before => f.write_str(" (also before the update)"),
            Blame::Outside => f.write_str(" (the cause is outside of this machine)"),
        }
    }
}

impl Verdict {
    /// Whether all that condemns is that units are still starting, which may take long with good reason.
    pub(crate) fn only_hangs(&self) -> bool {
        let hangs =
            |concern: &Concern| concern.code == FailureCode::HungUnit && concern.object.is_some();
        !self.concerns().is_empty() && self.concerns().iter().all(hangs)
    }

    /// What fails, most important first.
    pub(crate) fn concerns(&self) -> &[Concern] {
        match self {
            Self::Good => &[],
            Self::Bad(concerns) | Self::Undecided(concerns) => concerns,
        }
    }
}

/// Compares the health before the update with that of now.
pub(crate) fn verdict(before: &Health, now: &Health) -> Verdict {
    let comparison = Comparison { before, now };
    let agent = comparison.agent();
    // Docker waits for the agent's subnet, and so does whatever needs the network.
    let outage = agent
        .as_ref()
        .is_some_and(|concern| concern.blame != Blame::ThisVersion);
    let mut concerns: Vec<Concern> = agent.into_iter().collect();
    concerns.extend(comparison.overlay(outage));
    concerns.extend(comparison.docker(outage));
    concerns.extend(comparison.units(outage));
    concerns.extend(comparison.site_checks(outage));
    concerns.sort_by_key(|concern| concern.blame);
    match concerns.first() {
        None => Verdict::Good,
        Some(first) if first.blame == Blame::ThisVersion => Verdict::Bad(concerns),
        Some(_) => Verdict::Undecided(concerns),
    }
}

struct Comparison<'a> {
    before: &'a Health,
    now: &'a Health,
}

impl Comparison<'_> {
    fn agent(&self) -> Option<Concern> {
        let (before, now) = (self.before, self.now);
        let reason = match now.agent_ready {
            Some(true) => return None,
            None if before.agent_ready.is_none() => return None,
            None => "the agent is no longer enabled".to_owned(),
            Some(false) => format!("the agent is not ready: {}", sentences(&now.causes)),
        };
        let outside =
            !now.causes.is_empty() && now.causes.iter().all(|cause| self.is_outside(cause.code));
        let blame = if before.agent_ready != Some(true) {
            Blame::Before
        } else if outside && now.agent_ready.is_some() {
            Blame::Outside
        } else {
            Blame::ThisVersion
        };
        Some(Concern {
            code: FailureCode::Agent,
            object: None,
            reason,
            blame,
        })
    }

    /// Whether a cause that holds now, and did not before, is no fault of a version.
    fn is_outside(&self, code: Code) -> bool {
        match code {
            // Not if this host's own network is the cause, or its own etcd.
            Code::StoreUnreachable | Code::CloudUnreachable => {
                !self.underlay_is_lost() && !self.own_store_failed()
            }
            // What the store or the provider says, or what all nodes share.
            Code::StoreRefused
            | Code::NoNetworkConfig
            | Code::NetworkConfigChanged
            | Code::SubnetOutsideNetwork
            | Code::OutOfSubnets
            | Code::LostRaces
            | Code::NoNode
            | Code::NoPodCidr
            | Code::LeaseLost
            | Code::CloudThrottled
            | Code::CloudDenied
            | Code::CloudQuota
            | Code::CloudRouteHeld
            | Code::CloudForwarding => true,
            // A new version may read, encrypt, encode or program differently, or lack a driver.
            Code::Starting
            | Code::BadNetworkConfig
            | Code::StoreTls
            | Code::StoreLogin
            | Code::LeaseNotEncoded
            | Code::NoUnderlay
            | Code::Privileges
            | Code::OtherAgent
            | Code::BehindNat
            | Code::UnderlayMtu
            | Code::BackendCommand
            | Code::BackendIdentity
            | Code::Netlink
            | Code::SubnetFile
            | Code::Firewall
            | Code::CloudCredentials
            | Code::CloudSetup
            | Code::CloudRefused
            | Code::DockerSubnet
            | Code::KernelConflict
            | Code::KernelExists
            | Code::KernelPort
            | Code::KernelFull
            | Code::KernelNoModule
            | Code::KernelNoPrivileges
            | Code::KernelNoPath
            | Code::KernelNoDevice
            | Code::KernelDependency
            | Code::KernelOtherAgent
            | Code::KernelCommand
            | Code::KernelRefused
            | Code::IkeDaemon
            | Code::NoAgent
            | Code::AgentSilent
            | Code::DeviceMissing
            | Code::NotVisible
            | Code::Unknown => false,
        }
    }

    /// Whether hosts on the underlay answered before, and none does now.
    fn underlay_is_lost(&self) -> bool {
        !self.before.underlay_answering.is_empty() && self.now.underlay_answering.is_empty()
    }

    fn own_store_failed(&self) -> bool {
        self.before.units_known && OWN_STORE.iter().any(|unit| self.is_new_failure(unit))
    }

    fn is_new_failure(&self, unit: &str) -> bool {
        let is_it = |other: &String| other == unit;
        self.now.failed_units.iter().any(is_it) && !self.before.failed_units.iter().any(is_it)
    }

    fn overlay(&self, outage: bool) -> Option<Concern> {
        let asked = self.before.peers_answering.len();
        if asked == 0 || !self.now.peers_answering.is_empty() {
            return None;
        }
        // If peers answered on the underlay before and do not now, they are down, or their site's network is.
        let blame = match outage || self.underlay_is_lost() {
            true => Blame::Outside,
            false => Blame::ThisVersion,
        };
        Some(Concern {
            code: FailureCode::Overlay,
            object: None,
            reason: format!(
                "no peer answers over the overlay, before the update {} did",
                match asked {
                    1 => "one".to_owned(),
                    more => more.to_string(),
                }
            ),
            blame,
        })
    }

    fn docker(&self, outage: bool) -> Option<Concern> {
        let (before, now) = (self.before.docker_ok, self.now.docker_ok);
        let reason = match now {
            Some(true) => return None,
            None if before.is_none() => return None,
            None => "Docker is no longer enabled",
            Some(false) => "Docker does not answer",
        };
        Some(Concern {
            code: FailureCode::Docker,
            object: None,
            reason: reason.to_owned(),
            blame: match before {
                Some(true) if outage && now.is_some() => Blame::Outside,
                Some(true) => Blame::ThisVersion,
                Some(false) | None => Blame::Before,
            },
        })
    }

    fn units(&self, outage: bool) -> Vec<Concern> {
        let (before, now) = (self.before, self.now);
        let blame = match (before.units_known, outage) {
            (false, _) => Blame::Before,
            (true, true) => Blame::Outside,
            (true, false) => Blame::ThisVersion,
        };
        if !now.units_known {
            return vec![Concern {
                code: FailureCode::HungUnit,
                object: None,
                reason: "systemd does not answer".to_owned(),
                blame,
            }];
        }
        // A unit that failed before and fails again says nothing about the version, and must not keep a machine from
        // updates for ever.
        let failed = now
            .failed_units
            .iter()
            .filter(|unit| !before.failed_units.contains(unit));
        let failed = failed.map(|unit| Concern {
            code: FailureCode::FailedUnit,
            object: Some(unit.clone()),
            reason: format!("{unit} failed"),
            blame,
        });
        let starting = now
            .starting_units
            .iter()
            .filter(|unit| !before.starting_units.contains(unit));
        let starting = starting.map(|unit| Concern {
            code: FailureCode::HungUnit,
            object: Some(unit.clone()),
            reason: format!("{unit} does not finish starting"),
            blame,
        });
        failed.chain(starting).collect()
    }

    fn site_checks(&self, outage: bool) -> Vec<Concern> {
        let concern = |check: &FailedCheck| Concern {
            code: FailureCode::SiteCheck,
            object: Some(check.name.clone()),
            reason: match &*check.name {
                site::ITSELF => format!("/etc/selvage/boot-checks.d: {}", check.why),
                name => format!("boot-checks.d/{name}: {}", check.why),
            },
            blame: if check.outside || outage {
                Blame::Outside
            } else if self.before.checks_passed.contains(&check.name) {
                Blame::ThisVersion
            } else {
                Blame::Before
            },
        };
        self.now.checks_failed.iter().map(concern).collect()
    }
}

fn sentences(causes: &[Cause]) -> String {
    let texts: Vec<&str> = causes.iter().map(|cause| cause.text.as_str()).collect();
    match texts.is_empty() {
        true => "it does not say why".to_owned(),
        false => texts.join("; "),
    }
}

#[cfg(test)]
mod tests;
