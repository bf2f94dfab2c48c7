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

/// How long firewalld is left alone after it refused.
const MIN_PAUSE: Duration = Duration::from_secs(2);
const MAX_PAUSE: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Firewalld {
    /// What it was asked last, until the outcome is known.
    call: Option<JoinHandle<Result<(), Error>>>,
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
                Ok(()) => self.pause = None,
                Err(error) => self.put_off(&error, complaints),
            },
            None => {}
        }
        if self.pause.is_some_and(|(until, _)| Instant::now() < until) {
            return false;
        }
        match outside_of_zones(networks).await {
            Ok(networks) if networks.is_empty() => true,
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
        firewall_cmd(
            "let the overlay through",
            &["--zone=trusted", &format!("--add-source={network}")],
        )
        .await?;
        info!(%network, "firewalld trusts the overlay");
    }
    Ok(())
}

/// Whether the overlay is in a zone, be it one that the administrator chose. The chain was called `filter_FWDI_ZONE`
/// before firewalld 1.0 and is `filter_FWD_ZONE` since.
fn is_bound(listing: &str, network: IpNet) -> bool {
    let rule = format!(" saddr {network} goto filter_FWD");
    listing.contains(&rule)
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
    let output = program::run(path, arguments, "").await?;
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
\t\tip saddr 10.6.0.0/16 goto filter_IN_trusted
";
        for (network, expected) in [
            ("10.5.0.0/16", true),
            ("fd00:5::/48", true),
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
