//! Whether a lease can be used: by itself, and an update beside the leases in use.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Batch, PeerTable};
use crate::base::net;
use crate::cluster::lease::allocate::overlap;
use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::refusal::PeerRefusal;

impl PeerTable {
    /// Checks whether a lease is sound, apart from overlaps with other nodes' leases.
    pub(super) fn judge(&self, lease: &Lease) -> Result<(), PeerRefusal> {
        let (key, attrs) = (&lease.key, &lease.attrs);
        let relevant = self.relevant(key);
        if relevant.nets().next().is_none() {
            return Err(PeerRefusal::OtherFamily);
        }
        let inside_v4 = match (self.network, key.v4) {
            (Some(network), Some(v4)) => network.contains(&v4),
            _ => true,
        };
        let inside_v6 = match (self.network_v6, key.v6) {
            (Some(network), Some(v6)) => network.contains(&v6),
            _ => true,
        };
        if !inside_v4 || !inside_v6 {
            return Err(PeerRefusal::OutsideNetwork);
        }
        if self.overlap(key, &self.own.key) {
            return Err(PeerRefusal::OverlapsOwn(self.own.key));
        }
        if let Some(address) = relevant.nets().find_map(|net| self.host_address_in(&net)) {
            return Err(PeerRefusal::HoldsHost(address));
        }
        if attrs.backend_type != self.own.attrs.backend_type {
            return Err(PeerRefusal::OtherBackend {
                theirs: crate::base::go_json::shorten(&attrs.backend_type),
            });
        }
        let bad_address = |address: IpAddr, what| PeerRefusal::PublicIp { address, what };
        if (attrs.public_ip, attrs.public_ipv6) == (None, None) {
            return Err(bad_address(Ipv4Addr::UNSPECIFIED.into(), "unspecified"));
        }
        if let Some(v4) = attrs.public_ip.filter(|_| self.network.is_some()) {
            if let Some(what) = net::unusable_v4(v4).or_else(|| self.inside(v4.into(), key)) {
                return Err(bad_address(v4.into(), what));
            }
            if Some(v4) == self.own.attrs.public_ip {
                return Err(PeerRefusal::OurPublicIp(v4.into()));
            }
        }
        if let Some(v6) = attrs.public_ipv6.filter(|_| self.network_v6.is_some()) {
            if let Some(what) = net::unusable_v6(v6).or_else(|| self.inside(v6.into(), key)) {
                return Err(bad_address(v6.into(), what));
            }
            if Some(v6) == self.own.attrs.public_ipv6 {
                return Err(PeerRefusal::OurPublicIp(v6.into()));
            }
        }
        (self.check)(lease)
    }

    /// Checks that an update claims nothing that another lease in use has, or one that is still to be decided.
    pub(super) fn judge_update(
        &mut self,
        lease: &Lease,
        known: Option<&Lease>,
        batch: &Batch,
    ) -> Result<(), PeerRefusal> {
        if known == Some(lease) {
            return Ok(());
        }
        if let Some(holder) = self.moves_into(lease, known, batch) {
            return Err(PeerRefusal::MovesInto(holder));
        }
        let Self {
            identities,
            sound,
            latest,
            accepted,
            ..
        } = self;
        let had = known.map_or_else(Vec::new, |known| known.attrs.identities());
        for (identity, what) in lease.attrs.identities() {
            if had.iter().any(|(had, _)| *had == identity) {
                continue;
            }
            let has_identity = |lease: Option<&Arc<Lease>>| {
                lease.is_some_and(|lease| {
                    let theirs = lease.attrs.identities();
                    theirs.iter().any(|(theirs, _)| *theirs == identity)
                })
            };
            let is_held = |holder: &SubnetKey| {
                *holder != lease.key
                    && (accepted.contains(holder)
                        || sound
                            .get(holder)
                            .is_some_and(|lease| batch.is_pending(lease)))
                    && has_identity(sound.get(holder))
                    && has_identity(latest.get(holder))
            };
            if let Some(holder) = identities.of(&identity, sound.values()).find(is_held) {
                return Err(PeerRefusal::Copies { what, holder });
            }
        }
        Ok(())
    }

    /// The lease into whose subnet an update moves the public IP, if any: one in use, or one that is still to be decided.
    fn moves_into(&self, lease: &Lease, known: Option<&Lease>, batch: &Batch) -> Option<SubnetKey> {
        let claim = self.claim(lease);
        if known.is_some_and(|known| self.claim(known).public == claim.public) {
            return None;
        }
        if let Some(holder) = self.accepted.subnet_covering(&claim) {
            return Some(holder);
        }
        // Most public addresses lie outside the network: those need no walk over all pending leases.
        claim.public.nets().next()?;
        // One that is still to be decided may come into use. If it does not, `settle` checks this update again.
        let mut moving = batch.pending.iter().map(|(_, key)| *key);
        moving.find(|key| *key != lease.key && overlap(&self.relevant(key), &claim.public))
    }

    /// This host's address in a subnet: an interface's, or one that peers send to.
    fn host_address_in(&self, subnet: &IpNet) -> Option<IpAddr> {
        let mut public = self.own.attrs.public_addresses();
        let public = public.find(|address| subnet.contains(address));
        public.or_else(|| self.host.in_subnet(subnet))
    }

    /// Whose subnet covers a public IP of the lease `key`, if packets to it would loop, encapsulated again and again.
    fn inside(&self, address: IpAddr, key: &SubnetKey) -> Option<&'static str> {
        let holds = |key: &SubnetKey| key.nets().any(|net| net.contains(&address));
        if holds(&self.relevant(key)) {
            Some("inside its own subnet")
        } else if holds(&self.relevant(&self.own.key)) {
            Some("inside this node's subnet")
        } else {
            None
        }
    }
}
