//! firewalld, which rejects in its own nftables table what no zone of it lets through, whatever other tables accept.
//!
//! Its table must not be touched (it may be owned by firewalld's process, and a reload makes it anew), so it is asked:
//! packets whose source is in the overlay belong to its zone `trusted`. That is what k3s tells its users to do by hand.
//! It holds for back ends with and without a device of their own, and lets containers reach the services of the hosts,
//! as they would without firewalld. The entry is not permanent: it is gone with a reload, noticed, and made again.
//!
//! firewalld is a Python program behind D-Bus, which takes a fifth of a second at best and many seconds while it reloads.
//! The agent goes on meanwhile.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::task::JoinHandle;
use tracing::info;

use super::Complaints;
use super::nftables;
use super::program::{self, Error};

/// firewalld's table, with its family.
pub(super) const TABLE: &str = "inet firewalld";

/// The program that talks to firewalld over D-Bus.
const PROGRAM: &str = "firewall-cmd";

/// What it is asked for.
const ACTION: &str = "let the overlay through";

/// How long one call may take: nobody waits for it, and a firewalld that reloads on a busy machine answers late.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long firewalld is left alone after it refused.
const MIN_PAUSE: Duration = Duration::from_secs(2);
const MAX_PAUSE: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Firewalld {
    /// What it was asked last, until the outcome is known.
    call: Option<JoinHandle<Result<(), Error>>>,
    /// Whether it said yes to that.
    agreed: bool,
    /// When to ask again after a refusal, and how long that pause is.
    pause: Option<(Instant, Duration)>,
}

impl Firewalld {
    /// Has `networks` put into the trusted zone where they are in no zone yet; returns whether nothing is left to do. What
    /// firewalld then changes is announced by the kernel, so that the caller comes back.
    pub(super) async fn ensure(
        &mut self,
        networks: impl Iterator<Item = IpNet>,
        complaints: &mut Complaints,
    ) -> bool {
        match self.call.take() {
            Some(call) if !call.is_finished() => {
                self.call = Some(call);
                return false;
            }
            // A panic was told by whoever panicked.
            Some(call) => match call.await.unwrap_or(Ok(())) {
                Ok(()) => self.agreed = true,
                Err(error) => self.put_off(&error, complaints),
            },
            None => {}
        }
        if self.pause.is_some_and(|(until, _)| Instant::now() < until) {
            return false;
        }
        match outside_of_zones(networks).await {
            Ok(networks) if networks.is_empty() => {
                (self.agreed, self.pause) = (false, None);
                true
            }
            // A reload may have come in between; but rules that cannot be read must not make us ask for ever.
            Ok(networks) if std::mem::take(&mut self.agreed) => {
                let names: Vec<_> = networks.iter().map(IpNet::to_string).collect();
                let error = Error::Refused {
                    program: PROGRAM.to_owned(),
                    action: ACTION,
                    message: format!("it agreed, but no rule of it names {}", names.join(", ")),
                };
                self.put_off(&error, complaints);
                false
            }
            Ok(networks) => {
                self.call = Some(tokio::spawn(trust(networks)));
                false
            }
            Err(error) => {
                self.put_off(&error, complaints);
                false
            }
        }
    }

    fn put_off(&mut self, error: &Error, complaints: &mut Complaints) {
        complaints.log(error);
        let last = self.pause.map_or(MIN_PAUSE / 2, |(_, pause)| pause);
        let pause = (last * 2).min(MAX_PAUSE);
        self.pause = Some((Instant::now() + pause, pause));
    }
}

/// The networks that are in no zone.
async fn outside_of_zones(networks: impl Iterator<Item = IpNet>) -> Result<Vec<IpNet>, Error> {
    let listing = nftables::listing("inet", "firewalld")
        .await?
        .unwrap_or_default();
    Ok(networks
        .filter(|network| !is_bound(&listing, *network))
        .collect())
}

async fn trust(networks: Vec<IpNet>) -> Result<(), Error> {
    for network in networks {
        let source = format!("--add-source={network}");
        firewall_cmd(ACTION, &["--zone=trusted", &source]).await?;
        info!(%network, "firewalld trusts the overlay");
    }
    Ok(())
}

/// Whether the overlay is in a zone, be it one that the administrator chose. firewalld before 1.0 goes to the chain
/// `filter_FWDI_ZONE`, since 1.0 to `filter_FWD_ZONE`; 2.5 jumps to `filter_FWD_ZONE_dispatch_stage2`.
fn is_bound(listing: &str, network: IpNet) -> bool {
    ["goto", "jump"].iter().any(|verdict| {
        let rule = format!(" saddr {network} {verdict} filter_FWD");
        listing.contains(&rule)
    })
}

/// Takes `networks` out of the trusted zone, except where the administrator put them there for good; returns whether any
/// was in it. firewalld forgets by itself with its next reload, so failures do not matter.
pub(super) async fn forget(networks: &[IpNet]) -> bool {
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
    if output.status.success() {
        Ok(())
    } else {
        Err(program::refused(PROGRAM, action, &output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_in_a_zone_are_found_in_firewallds_own_rules() {
        let listing = "\
\t\tip saddr 10.5.0.0/16 goto mangle_PRE_trusted
\t\tip saddr 10.5.0.0/16 goto filter_IN_trusted
\t\tip saddr 10.5.0.0/16 goto filter_FWD_trusted
\t\tip6 saddr fd00:5::/48 goto filter_FWDI_internal
\t\tip saddr 10.7.0.0/16 jump filter_FWD_trusted_dispatch_stage2
\t\tip saddr 10.6.0.0/16 jump filter_IN_trusted_to_HOST
\t\tip daddr 10.6.0.0/16 jump filter_FWD_public_to_trusted
\t\tip saddr 10.6.0.0/16 goto filter_IN_trusted
";
        for (network, expected) in [
            ("10.5.0.0/16", true),
            ("fd00:5::/48", true),
            ("10.7.0.0/16", true),
            ("10.6.0.0/16", false),
            ("10.5.0.0/17", false),
        ] {
            assert_eq!(
                is_bound(listing, network.parse().unwrap()),
                expected,
                "{network}"
            );
        }
    }
}
