//! Bridges of other programs: their ports and addresses.

use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use super::message::Message;
use super::{Kernel, KernelError, Refused, address};
use crate::base::net::InterfaceName;

/// A bridge, as reported by the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// Its index, unique in this namespace while it exists.
    pub index: u32,
    /// The names of the devices attached to it.
    pub ports: Vec<String>,
    /// Its addresses of both families.
    pub addresses: Vec<IpNet>,
}

impl Kernel {
    /// Reads a device as a bridge: `ip link show master NAME` and `ip address show dev NAME`; `None` if no such device
    /// exists.
    ///
    /// The ports are listed before the addresses, so that an address removed before the first port was attached is
    /// never seen together with that port.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed, or the device was removed meanwhile.
    pub async fn bridge(&mut self, name: &InterfaceName) -> Result<Option<Bridge>, KernelError> {
        let Some(link) = self.find_link(name).await? else {
            return Ok(None);
        };
        let index = link.index;
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::Controller(index));
        let request = Message::GetLink(request);
        let pick = |message| port_name(message, index);
        let ports = self.socket.dump("bridge ports", request, pick).await?;
        let request = address::list(index);
        let pick = |message| match address::read(&message) {
            Some((of, address)) if of == index => Some(address),
            _ => None,
        };
        let addresses = self.socket.dump("addresses", request, pick).await?;
        Ok(Some(Bridge {
            index,
            ports: ports.items,
            addresses: addresses.items,
        }))
    }

    /// Removes an address: `ip address del`.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed. The inner error is the kernel's refusal, `EADDRNOTAVAIL` if there
    /// is no such address.
    pub async fn delete_address(
        &mut self,
        index: u32,
        address: IpNet,
    ) -> Result<Result<(), Refused>, KernelError> {
        let outcomes = self
            .socket
            .batch(&[address::delete(index, address)])
            .await?;
        Ok(outcomes.into_iter().collect())
    }
}

/// The name of a device attached to the bridge. Checked here because old kernels ignore the filter in the request.
fn port_name(message: Message, bridge: u32) -> Option<String> {
    let Message::NewLink(link) = message else {
        return None;
    };
    let attached = link.attributes.contains(&LinkAttribute::Controller(bridge));
    link.attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) if attached => Some(name),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_this_bridge_are_its_ports() {
        let device = |name: &str, controller: Option<u32>| {
            let mut link = LinkMessage::default();
            link.attributes.push(LinkAttribute::IfName(name.into()));
            let controller = controller.map(LinkAttribute::Controller);
            link.attributes.extend(controller);
            Message::NewLink(link)
        };
        assert_eq!(port_name(device("veth1", Some(7)), 7), Some("veth1".into()));
        assert_eq!(port_name(device("veth2", Some(8)), 7), None);
        assert_eq!(port_name(device("eth0", None), 7), None);
    }
}
