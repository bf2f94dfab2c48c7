//! This machine's port: the router of its subnet, and the source addresses that it may use.
//!
//! Neutron drops what a port sends from an address that is neither its own nor in its `allowed_address_pairs`, unless
//! port security is off. Only the owner of the port may change the pairs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use hyper::Method;
use ipnet::Ipv4Net;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::failure::asked;
use super::wire::{OneSubnet, Pair, Port, Ports, Subnet};
use super::{OpenStack, TRIES};
use crate::cloud::error::CloudError;
use crate::cloud::providers::paging::Paging;
use crate::cloud::sign::form;
use crate::cloud::table::Forwarding;

/// The metadata service's document with the machine's ID.
const METADATA: &str = "http://169.254.169.254";
const DOCUMENT: &str = "/openstack/latest/meta_data.json";

/// The right to write the pairs, as Neutron's policies name it.
const UPDATE: &str = "update_port:allowed_address_pairs";

/// The ports of a page.
const PAGE: &str = "500";

/// Who is in this machine's subnet.
#[derive(Debug)]
pub(super) struct Neighbours {
    subnet: Ipv4Net,
    alive: BTreeSet<Ipv4Addr>,
}

impl Neighbours {
    /// Whether an address is of this subnet, and nobody has it, or a machine that does not run.
    pub(super) fn misses(&self, address: &str) -> bool {
        let address: Result<Ipv4Addr, _> = address.parse();
        address
            .is_ok_and(|address| self.subnet.contains(&address) && !self.alive.contains(&address))
    }
}

impl OpenStack {
    /// All ports that fit a query, page by page.
    async fn ports(&mut self, query: &[(&str, &str)]) -> Result<Vec<Port>, CloudError> {
        let asked = asked("GET ports", "get_port", "the ports");
        let mut ports: Vec<Port> = Vec::new();
        let mut marker: Option<String> = None;
        let mut paging = Paging::start(asked.call, &self.access.transport);
        loop {
            let mut query = query.to_vec();
            query.push(("limit", PAGE));
            if let Some(marker) = &marker {
                query.push(("marker", marker));
            }
            let page: Ports = self.get(&asked, &format!("/ports?{}", form(query))).await?;
            marker = page.next();
            ports.extend(page.ports);
            if marker.is_none() {
                return Ok(ports);
            }
            paging.go_on(&self.access.transport)?;
        }
    }

    /// The port with the underlay address. Networks that do not know of each other may have it twice; then the machine's
    /// ID decides.
    async fn own_port(&mut self) -> Result<Port, CloudError> {
        let address = format!("ip_address={}", self.own());
        let mut ports = self.ports(&[("fixed_ips", &address)]).await?;
        if ports.len() > 1 {
            let document = self.access.metadata(METADATA, DOCUMENT, Vec::new()).await?;
            let document: Value = match document {
                Some(document) => document.json("metadata service")?,
                None => Value::Null,
            };
            ports.retain(|port| document["uuid"] == *port.device_id);
        }
        ports.pop().ok_or_else(|| {
            CloudError::Unfit(format!(
                "the project of the credentials has no port with the address {} of this machine",
                self.own()
            ))
        })
    }

    /// The subnet of the underlay address, with its ID.
    async fn own_subnet(&mut self, port: &Port) -> Result<(String, Subnet), CloudError> {
        let own = self.own();
        let mut addresses = port.fixed_ips.iter();
        let found = addresses.find(|fixed| fixed.ip_address == own);
        let id = found.map_or_else(String::new, |fixed| fixed.subnet_id.clone());
        let asked = asked("GET subnet", "get_subnet", &id);
        let subnet: OneSubnet = self.get(&asked, &format!("/subnets/{id}")).await?;
        Ok((id, subnet.subnet))
    }

    /// The router that is the gateway of this machine's subnet.
    pub(super) async fn own_router(&mut self) -> Result<String, CloudError> {
        let port = self.own_port().await?;
        let (id, subnet) = self.own_subnet(&port).await?;
        let missing = || {
            CloudError::Unfit(format!(
                "the subnet {id} of this machine has no router as its gateway; name one as RouterID in the network config"
            ))
        };
        let gateway = subnet.gateway_ip.as_deref().ok_or_else(missing)?;
        let address = format!("ip_address={gateway}");
        let subnet = format!("subnet_id={id}");
        let query = [("fixed_ips", &*address), ("fixed_ips", &*subnet)];
        let mut ports = self.ports(&query).await?.into_iter();
        // `network:router_interface`, `network:router_interface_distributed`, `network:ha_router_replicated_interface`
        let router = ports.find(|port| {
            port.device_owner.starts_with("network:") && port.device_owner.contains("router")
        });
        router.map(|port| port.device_id).ok_or_else(missing)
    }

    /// Who is in this machine's subnet; `None` if other projects may have ports there, which cannot be seen.
    pub(super) async fn neighbours(
        &mut self,
        project: &str,
    ) -> Result<Option<Neighbours>, CloudError> {
        let port = self.own_port().await?;
        let (_, subnet) = self.own_subnet(&port).await?;
        let (Some(net), true) = (subnet.net(), subnet.project_id == project) else {
            return Ok(None);
        };
        let query = [
            ("network_id", &*port.network_id),
            ("fields", "id"),
            ("fields", "status"),
            ("fields", "device_owner"),
            ("fields", "fixed_ips"),
        ];
        let ports = self.ports(&query).await?;
        // Virtual addresses have ports that are never up.
        let is_off =
            |port: &Port| port.device_owner.starts_with("compute:") && port.status == "DOWN";
        let alive = ports.iter().filter(|port| !is_off(port));
        let addresses = alive.flat_map(|port| &port.fixed_ips);
        Ok(Some(Neighbours {
            subnet: net,
            alive: addresses
                .filter_map(|fixed| fixed.ip_address.parse().ok())
                .collect(),
        }))
    }

    /// Lets the port send from these subnets.
    pub(super) async fn allow(&mut self, own: &[Ipv4Net]) -> Result<Forwarding, CloudError> {
        let mut last = None;
        for _ in 0..TRIES {
            let port = self.own_port().await?;
            if port.port_security_enabled == Some(false) {
                return Ok(Forwarding::Allowed);
            }
            let pairs = &port.allowed_address_pairs;
            let missing = own
                .iter()
                .filter(|subnet| !pairs.iter().any(|pair| pair.covers(**subnet)));
            let missing: Vec<Pair> = missing.map(Pair::of).collect();
            if missing.is_empty() {
                return Ok(Forwarding::Allowed);
            }
            match self.write(&port, &missing).await {
                Ok(()) => return Ok(Forwarding::SwitchedOn),
                // Somebody changed the port meanwhile.
                Err(error @ CloudError::Unavailable { .. }) => last = Some(error),
                Err(error @ (CloudError::Denied { .. } | CloudError::Refused { .. })) => {
                    return Ok(Forwarding::Forbidden {
                        problem: error.to_string(),
                        command: command(&port.id, &missing),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        last.map_or(Ok(Forwarding::Allowed), Err)
    }

    async fn write(&mut self, port: &Port, missing: &[Pair]) -> Result<(), CloudError> {
        let asked = asked("PUT port", UPDATE, &port.id);
        let pairs = [&port.allowed_address_pairs[..], missing].concat();
        let body = json!({"port": {"allowed_address_pairs": pairs}});
        let path = format!("/ports/{}", port.id);
        self.ask::<IgnoredAny>(
            &asked,
            Method::PUT,
            &path,
            Some(&body),
            port.revision_number,
        )
        .await?;
        Ok(())
    }
}

/// What an administrator runs instead.
fn command(port: &str, missing: &[Pair]) -> String {
    let pairs = missing.iter();
    let pairs: Vec<String> = pairs
        .map(|pair| format!("--allowed-address ip-address={}", pair.ip_address))
        .collect();
    format!("openstack port set {} {port}", pairs.join(" "))
}
