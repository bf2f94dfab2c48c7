//! A device and its counters, for the status.

use std::collections::HashMap;

use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, Stats64};

use super::message::{Message, Request, Verb};
use super::{Kernel, KernelError, Session, link};
use crate::base::net::InterfaceName;
use crate::plan::state::{LinkKind, Object};
use crate::plan::wireguard_key::PublicKey;

/// A device and its counters (`struct rtnl_link_stats64` of linux/if_link.h).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// [`Object::Link`], or [`Object::OtherLink`] for a kind that we never create.
    pub object: Object,
    /// Counters since it was created.
    pub statistics: Stats64,
}

impl Kernel {
    /// Gets one device with its counters.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
    pub async fn device(&mut self, name: &InterfaceName) -> Result<Option<Device>, KernelError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_string())];
        let request = Request::new(Verb::Get, Message::GetLink(message));
        // The only refusal is ENODEV: no such device.
        let answer = self.socket.get(request).await?.ok().flatten();
        let Some(answer) = answer else {
            return Ok(None);
        };
        let Some(link) = link::read(&answer).filter(|link| link.name == *name) else {
            return Ok(None);
        };
        let statistics = statistics(&answer).unwrap_or_default();
        let object = self.recognise(link).object;
        Ok(Some(Device { object, statistics }))
    }

    /// Traffic to and from each peer of a WireGuard device; empty for any other device. Needs `CAP_NET_ADMIN`.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed, or the kernel refuses the request.
    pub async fn sessions(
        &mut self,
        name: &InterfaceName,
    ) -> Result<HashMap<PublicKey, Session>, KernelError> {
        let Some(link) = self.find_link(name).await? else {
            return Ok(HashMap::new());
        };
        match &link.object {
            Object::Link(device) if matches!(device.kind, LinkKind::Wireguard(_)) => {
                self.wireguard.sessions(link.index).await
            }
            _ => Ok(HashMap::new()),
        }
    }
}

fn statistics(message: &Message) -> Option<Stats64> {
    let Message::NewLink(link) = message else {
        return None;
    };
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Stats64(statistics) => Some(*statistics),
            _ => None,
        })
}
