//! TUN devices, which are no objects of netlink alone: such a device is there for as long as a process has it open. Who that
//! is the kernel does not tell.

use super::link::KernelLink;
use super::{ChangeError, Kernel};
use crate::base::net::InterfaceName;
use crate::plan::state::{Link, LinkKind, Object, Tun};

/// Makes TUN devices, by standing behind them.
pub(crate) trait Tuns: Send {
    /// Makes a device that is down.
    fn open(&mut self, name: &InterfaceName, tun: &Tun, mtu: u32) -> Result<(), ChangeError>;

    /// Hears of a device's new MTU.
    fn set_mtu(&mut self, name: &InterfaceName, mtu: u32);

    /// Ends a device.
    fn close(&mut self, name: &InterfaceName);
}

impl Kernel {
    /// Says what a TUN device is, if it is ours; any other device is left as the kernel tells it.
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
