//! The TUN device of the udp back end and the data plane behind it, as objects like those of the kernel.
//!
//! The device exists for as long as its data plane does. To the kernel it is some TUN device; that it is ours, and what
//! is behind it, is known here alone.

use std::fs;
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;

use super::link::KernelLink;
use super::{ChangeError, Kernel};
use crate::base::logging::chain;
use crate::base::net::InterfaceName;
use crate::host::udp::{Counters, DataPlane, Settings};
use crate::plan::state::{Change, Key, Link, LinkKind, Object, Tun};

/// A change of the table: the peer that gets a subnet's packets, or nobody.
pub(super) type Forward = (Ipv4Net, Option<SocketAddrV4>);

/// What a change of the table is.
pub(super) fn forward(subnet: Ipv4Net, change: &Change) -> Forward {
    match change {
        Change::Set {
            object: Object::Forward(peer),
            ..
        } => (subnet, Some(*peer)),
        Change::Set { .. } | Change::Del { .. } => (subnet, None),
    }
}

impl Kernel {
    /// What went through the data plane of the udp back end, and what did not and why, if there is one.
    pub fn data_plane_counters(&self) -> Option<Counters> {
        self.data_plane.as_ref().map(DataPlane::counters)
    }

    /// Makes a TUN device with a data plane behind it; the device is down.
    pub(super) fn open_data_plane(
        &mut self,
        name: &InterfaceName,
        tun: &Tun,
        mtu: u32,
    ) -> Result<(), ChangeError> {
        // One that lost its device may still have the port.
        self.data_plane = None;
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
        // The wire format has no place for IPv6, so the device needs no link-local address, and its solicitations would
        // only be dropped. Nothing is lost where there is no IPv6.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        self.data_plane = Some(plane);
        Ok(())
    }

    /// Whether there is a data plane behind a device.
    pub(super) fn has_data_plane(&self, name: &InterfaceName) -> bool {
        self.plane(name).is_some()
    }

    /// Makes the changes of the table that have gathered, all at once.
    pub(super) fn update_data_plane(&mut self, forwards: &mut Vec<Forward>) {
        if let (false, Some(plane)) = (forwards.is_empty(), &self.data_plane) {
            plane.update(forwards.drain(..));
        }
        forwards.clear();
    }

    /// Tells the data plane of what is changed in its device.
    pub(super) fn change_data_plane(&mut self, name: &InterfaceName, want: &Link) {
        if let Some(plane) = self.plane(name) {
            plane.set_mtu(want.mtu);
        }
    }

    /// Ends the data plane behind a device, which goes with it.
    pub(super) fn close_data_plane(&mut self, name: &InterfaceName) {
        if self.has_data_plane(name) {
            self.data_plane = None;
        }
    }

    /// Says what a TUN device is, if it is ours; any other device is left as the kernel tells it.
    pub(super) fn recognise(&self, link: KernelLink) -> KernelLink {
        let Some(plane) = self.plane(&link.name).filter(|plane| plane.is_alive()) else {
            return link;
        };
        let kind = LinkKind::Tun(Tun {
            address: plane.address(),
            bind: plane.bind(),
        });
        let (mtu, up) = (link.mtu, link.up);
        KernelLink {
            object: Object::Link(Box::new(Link { mtu, up, kind })),
            ..link
        }
    }

    /// The table of the data plane behind a device.
    pub(super) fn forwards(&self, name: &InterfaceName) -> Vec<(Key, Object)> {
        let routes = self.plane(name).map(DataPlane::routes).unwrap_or_default();
        let object = |(subnet, peer)| (Key::Forward(name.clone(), subnet), Object::Forward(peer));
        routes.into_iter().map(object).collect()
    }

    fn plane(&self, name: &InterfaceName) -> Option<&DataPlane> {
        self.data_plane
            .as_ref()
            .filter(|plane| plane.name() == name)
    }
}
