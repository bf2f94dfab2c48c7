//! The data plane of the udp backend as a part of the executor.
//!
//! Its TUN device exists as long as the data plane does. The kernel reports only a TUN device; that it is ours, and its
//! options, are known only here.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddrV4;

use crate::base::logging::chain;
use crate::base::net::InterfaceName;
use crate::host::netlink::{ChangeError, TunDevices};
use crate::host::udp::{Counters, DataPlane, Settings};
use crate::plan::state::{Change, Key, Object, Tun};

/// The data plane of our TUN device, if there is one.
#[derive(Debug, Default)]
pub(super) struct Slot(Option<DataPlane>);

impl Slot {
    /// Its counters, if there is a data plane.
    pub(super) fn counters(&self) -> Option<Counters> {
        self.0.as_ref().map(DataPlane::counters)
    }

    /// Whether a device is served by our data plane.
    pub(super) fn has(&self, name: &InterfaceName) -> bool {
        self.plane(name).is_some()
    }

    /// The device, while it exists.
    pub(super) fn device(&self) -> Option<(InterfaceName, Tun)> {
        let plane = self.0.as_ref().filter(|plane| plane.is_alive())?;
        let tun = Tun {
            address: plane.address(),
            bind: plane.bind(),
        };
        Some((plane.name().clone(), tun))
    }

    /// The routes of a device's data plane.
    pub(super) fn observe(&self, name: &InterfaceName) -> Vec<(Key, Object)> {
        let routes = self.plane(name).map(DataPlane::routes).unwrap_or_default();
        let object = |(subnet, peer)| (Key::Forward(name.clone(), subnet), Object::Forward(peer));
        routes.into_iter().map(object).collect()
    }

    /// Applies changes to the table, all at once; returns one result per change. `broken` lists devices that could not
    /// be created.
    pub(super) fn apply(
        &self,
        changes: &[Change],
        broken: &BTreeSet<InterfaceName>,
    ) -> Vec<Result<(), ChangeError>> {
        let mut entries = Vec::new();
        let mut judge = |change: &Change| {
            let Key::Forward(link, subnet) = change.key() else {
                return Ok(());
            };
            match change {
                _ if broken.contains(link) => return Err(ChangeError::Dependency),
                Change::Set { .. } if !self.has(link) => {
                    return Err(ChangeError::NoDevice(link.clone()));
                }
                _ => entries.push((*subnet, peer(change))),
            }
            Ok(())
        };
        let outcomes = changes.iter().map(&mut judge).collect();
        if let (false, Some(plane)) = (entries.is_empty(), &self.0) {
            plane.update(entries);
        }
        outcomes
    }

    fn plane(&self, name: &InterfaceName) -> Option<&DataPlane> {
        self.0.as_ref().filter(|plane| plane.name() == name)
    }
}

/// The peer of a subnet after a change.
fn peer(change: &Change) -> Option<SocketAddrV4> {
    match change {
        Change::Set {
            object: Object::Forward(peer),
            ..
        } => Some(*peer),
        Change::Set { .. } | Change::Del { .. } => None,
    }
}

impl TunDevices for Slot {
    fn open(&mut self, name: &InterfaceName, tun: &Tun, mtu: u32) -> Result<(), ChangeError> {
        // A data plane that lost its device may still hold the port.
        self.0 = None;
        let settings = Settings {
            name: name.clone(),
            address: tun.address,
            mtu,
            bind: tun.bind,
            workers: None,
        };
        let opened = DataPlane::open(&settings);
        let plane = opened.map_err(|error| ChangeError::DataPlane {
            text: chain(&error),
            errno: error.errno(),
        })?;
        // The wire format cannot carry IPv6, so the device needs no link-local address, and the data plane would only
        // drop its solicitations. Errors are ignored: without IPv6 the file is missing.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        self.0 = Some(plane);
        Ok(())
    }

    fn set_mtu(&mut self, name: &InterfaceName, mtu: u32) {
        if let Some(plane) = self.plane(name) {
            plane.set_mtu(mtu);
        }
    }

    fn close(&mut self, name: &InterfaceName) {
        if self.has(name) {
            self.0 = None;
        }
    }
}
