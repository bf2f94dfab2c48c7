//! Azure: user-defined routes of the route table of this machine's subnet, with virtual appliances as next hops.
//!
//! Facts from the REST API of Microsoft.Network (route tables, routes, network interfaces), "Track asynchronous Azure
//! operations", "Throttling Resource Manager requests", and "Azure Instance Metadata Service".
//!
//! A table takes one change at a time: others are refused as `AnotherOperationInProgress` and made later.

mod failure;
mod login;
mod manager;
mod place;
#[cfg(test)]
mod tests;
mod wire;

use hyper::Method;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use self::failure::asked;
use self::place::Place;
use self::wire::{Availability, Entry, Page, Subnet};
use super::asked::{Asked, gone};
use super::paging::Paging;
use super::suspect::suspect;
use crate::base::retry::random_seed;
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::CloudError;
use crate::cloud::table::{Forwarding, Later, Mark, Provider, Route, RouteTable, TableId, Target};
use crate::settings::Secret;

/// Its entry in the table.
pub(in crate::cloud) const PROVIDER: Provider = Provider {
    kind: "azure-vnet",
    open: |access| Box::new(Azure::new(access)),
};

/// The metadata service.
const METADATA: &str = "http://169.254.169.254";

/// The version of the API of Microsoft.Network.
const NETWORK: &str = "2024-05-01";

/// The start of the names of our routes.
const NAME: &str = "selvage-";

/// The type of a next hop that is a machine.
const MACHINE: &str = "VirtualAppliance";

const READ: &str = "Microsoft.Network/routeTables/routes/read";
const WRITE: &str = "Microsoft.Network/routeTables/routes/write";
const DELETE: &str = "Microsoft.Network/routeTables/routes/delete";

/// The routes of this machine's subnet.
struct Azure {
    access: Access,
    place: Option<Place>,
    token: Option<Kept<Secret>>,
    /// The network interface, and when it was read, in seconds since 1970.
    interface: Option<(u64, Value)>,
    /// The seed of the choice of routes to ask of.
    seed: u64,
}

impl Azure {
    fn new(access: Access) -> Self {
        Self {
            access,
            place: None,
            token: None,
            interface: None,
            seed: random_seed(),
        }
    }

    /// The address by which this machine is called as a next hop.
    fn own(&self) -> String {
        self.access.address.to_string()
    }

    /// The IDs of the config's tables; a mere name is one of this machine's resource group.
    async fn named_tables(&mut self) -> Result<Vec<TableId>, CloudError> {
        let group = self.place().await?.group;
        let tables = self.access.config.tables.iter();
        Ok(tables
            .map(|table| match table.starts_with('/') {
                true => table.clone(),
                false => format!("{group}/providers/Microsoft.Network/routeTables/{table}"),
            })
            .collect())
    }

    /// The table of the subnet with the underlay address.
    async fn own_table(&mut self) -> Result<TableId, CloudError> {
        let id = self.subnet().await?;
        let asked = asked(
            "GET subnet",
            "Microsoft.Network/virtualNetworks/subnets/read",
            &id,
        );
        let path = format!("{id}?api-version={NETWORK}");
        let subnet: Subnet = self.get(&asked, &path).await?;
        let table = subnet.properties.route_table.map(|table| table.id);
        table.ok_or_else(|| {
            CloudError::Unfit(format!(
                "the subnet {id} has no route table: az network vnet subnet update --ids {id} --route-table TABLE"
            ))
        })
    }

    async fn list(&mut self, table: &str) -> Result<Vec<Route>, CloudError> {
        let mut routes = self.read(table).await?;
        if let Some((at, address)) = suspect(&routes, &mut self.seed)
            && self.is_gone(&address).await.unwrap_or(false)
        {
            routes[at].target = Target::Dead(address);
        }
        Ok(routes)
    }

    /// Whether an address of this machine's virtual network is nobody's.
    async fn is_gone(&mut self, address: &str) -> Result<bool, CloudError> {
        let subnet = self.subnet().await?;
        let network = subnet.rsplit_once("/subnets/");
        let network = network.map_or(&*subnet, |(network, _)| network);
        let asked = asked(
            "GET CheckIPAddressAvailability",
            "Microsoft.Network/virtualNetworks/read",
            network,
        );
        let path = format!(
            "{network}/CheckIPAddressAvailability?ipAddress={address}&api-version={NETWORK}"
        );
        let found: Availability = self.get(&asked, &path).await?;
        Ok(found.available)
    }

    async fn read(&mut self, table: &str) -> Result<Vec<Route>, CloudError> {
        let asked = asked("GET routes", READ, table);
        let own = self.own();
        let mut routes = Vec::new();
        let mut path = format!("{table}/routes?api-version={NETWORK}");
        let mut paging = Paging::start(asked.call, &self.access.transport);
        loop {
            let page: Page<Entry> = self.get(&asked, &path).await?;
            routes.extend(page.value.iter().filter_map(|entry| route(entry, &own)));
            let Some(next) = page.next_link.filter(|next| !next.is_empty()) else {
                return Ok(routes);
            };
            // Never with our token to another server.
            let Some(at) = next.find("/subscriptions/") else {
                return Err(paging.malformed("a nextLink that leads to no subscription".to_owned()));
            };
            path = next[at..].to_owned();
            paging.go_on(&self.access.transport)?;
        }
    }

    /// Writes a route to this machine; with an `etag` only over the one that has it.
    async fn put(
        &mut self,
        table: &str,
        name: &str,
        destination: Ipv4Net,
        etag: Option<&str>,
    ) -> Result<(), CloudError> {
        let object = destination.to_string();
        let asked = asked("PUT route", WRITE, &object);
        let path = format!("{table}/routes/{name}?api-version={NETWORK}");
        let body = json!({"properties": {
            "addressPrefix": object, "nextHopType": MACHINE, "nextHopIpAddress": self.own(),
        }});
        self.change(&asked, Method::PUT, &path, Some(&body), etag)
            .await
    }

    async fn remove(&mut self, table: &str, route: &Route) -> Result<(), CloudError> {
        let (name, etag) = parts(&route.handle);
        let asked = asked("DELETE route", DELETE, name);
        let path = format!("{table}/routes/{name}?api-version={NETWORK}");
        gone(self.change(&asked, Method::DELETE, &path, None, etag).await)
    }

    /// Switches IP forwarding of the network interface on.
    async fn forward(&mut self) -> Result<Forwarding, CloudError> {
        let mut interface = self.interface().await?;
        if interface["properties"]["enableIPForwarding"] == true {
            return Ok(Forwarding::Allowed);
        }
        let id = interface["id"].as_str().unwrap_or_default().to_owned();
        let place = self.place().await?;
        if let Some(set) = place.scale_set() {
            return Ok(Forwarding::Forbidden {
                problem: "IP forwarding is off in the model of the scale set".to_owned(),
                command: format!(
                    "az vmss update --ids {set} --set virtualMachineProfile.networkProfile.\
                     networkInterfaceConfigurations[0].enableIPForwarding=true, then az vmss update-instances"
                ),
            });
        }
        self.interface = None;
        // The interface is written whole, under the condition that nobody has changed it meanwhile.
        interface["properties"]["enableIPForwarding"] = true.into();
        let etag = interface["etag"].as_str().map(str::to_owned);
        let asked = asked(
            "PUT networkInterface",
            "Microsoft.Network/networkInterfaces/write",
            &id,
        );
        match self.write(&asked, &id, &interface, etag.as_deref()).await {
            Ok(()) => Ok(Forwarding::SwitchedOn),
            Err(error @ (CloudError::Denied { .. } | CloudError::Refused { .. })) => {
                Ok(Forwarding::Forbidden {
                    problem: error.to_string(),
                    command: format!("az network nic update --ids {id} --ip-forwarding true"),
                })
            }
            Err(error) => Err(error),
        }
    }

    async fn write(
        &mut self,
        asked: &Asked<'_>,
        id: &str,
        interface: &Value,
        etag: Option<&str>,
    ) -> Result<(), CloudError> {
        let path = format!("{id}?api-version={NETWORK}");
        self.change(asked, Method::PUT, &path, Some(interface), etag)
            .await
    }
}

impl RouteTable for Azure {
    fn tables(&mut self) -> Later<'_, Vec<TableId>> {
        Box::pin(async move {
            match self.access.config.tables.is_empty() {
                true => Ok(vec![self.own_table().await?]),
                false => self.named_tables().await,
            }
        })
    }

    fn list<'a>(&'a mut self, table: &'a TableId) -> Later<'a, Vec<Route>> {
        Box::pin(self.list(table))
    }

    /// Writes over a route of the same name, which the subnet's lease gives us the right to. One with another name is a
    /// conflict.
    fn add<'a>(&'a mut self, table: &'a TableId, destination: Ipv4Net) -> Later<'a, ()> {
        Box::pin(async move {
            let name = name(destination);
            self.put(table, &name, destination, None).await
        })
    }

    fn replace<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(async move {
            let (name, etag) = parts(&route.handle);
            self.put(table, name, route.destination, etag).await
        })
    }

    fn remove<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(self.remove(table, route))
    }

    fn allow_forwarding<'a>(&'a mut self, _: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
        Box::pin(self.forward())
    }

    fn take_over_command(&self, table: &TableId, route: &Route) -> String {
        let (name, _) = parts(&route.handle);
        format!("az network route-table route delete --ids {table}/routes/{name}")
    }
}

/// The name of our route to a destination: `selvage-10-5-1-0-24`.
fn name(destination: Ipv4Net) -> String {
    format!("{NAME}{}", destination.to_string().replace(['.', '/'], "-"))
}

/// The name in a handle that [`route`] made, which has no space in it, and the etag.
fn parts(handle: &str) -> (&str, Option<&str>) {
    match handle.split_once(' ') {
        Some((name, etag)) if !etag.is_empty() => (name, Some(etag)),
        Some((name, _)) => (name, None),
        None => (handle, None),
    }
}

/// What a listed route is to us; `None` for one that is on its way out or that is no IPv4 subnet. One that failed leads
/// nowhere.
fn route(entry: &Entry, own: &str) -> Option<Route> {
    let says = &entry.properties;
    if says.provisioning_state == "Deleting" {
        return None;
    }
    let is_machine = says.next_hop_type == MACHINE;
    let hop = match is_machine {
        true => says.next_hop_ip_address.clone(),
        false => says.next_hop_type.clone(),
    };
    let is_ours = is_machine && entry.name.starts_with(NAME);
    let target = match &*says.provisioning_state {
        "Failed" if is_ours => Target::Dead(hop),
        _ if is_machine && hop == own => Target::Own,
        _ => Target::Other(hop),
    };
    Some(Route {
        destination: entry.destination()?,
        target,
        mark: if is_ours { Mark::Ours } else { Mark::Foreign },
        handle: format!("{} {}", entry.name, entry.etag),
    })
}
