//! TUN devices, which netlink alone cannot create: such a device exists while a process holds it open, and the kernel
//! does not report which process.

use super::link::KernelLink;
use super::{ChangeError, Kernel};
use crate::base::net::InterfaceName;
use crate::plan::state::{Link, LinkKind, Object, Tun};

/// Creates and serves TUN devices.
pub(crate) trait TunDevices: Send {
    /// Creates a device, down.
    fn open(&mut self, name: &InterfaceName, tun: &Tun, mtu: u32) -> Result<(), ChangeError>;

    /// Sets a device's new MTU.
    fn set_mtu(&mut self, name: &InterfaceName, mtu: u32);

    /// Removes a device.
    fn close(&mut self, name: &InterfaceName);
}

impl Kernel {
    /// Fills in the options of our own TUN device; returns any other device unchanged.
    pub(super) fn recognise(&self, link: KernelLink) -> KernelLink {
        let Some((_, tun)) = self.tun.as_ref().filter(|(name, _)| *name == link.name) else {
            return link;
        };
        let device = Link {
            mtu: link.mtu,
            up: link.up,
            kind: LinkKind::Tun(tun.clone()),
        };
        KernelLink {
            object: Object::Link(Box::new(device)),
            ..link
        }
    }
}
