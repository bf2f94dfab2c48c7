//! Amazon VPC: routes to this instance's network interface.
//!
//! The interface is the one with the underlay's address, as in flannel. AWS keeps no name or description of a route, so
//! that one to a live interface of somebody else is never ours to replace.

mod api;
mod credentials;
mod sigv4;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use self::api::{
    CREATE_ROUTE, DELETE_ROUTE, DESCRIBE_INSTANCES, DESCRIBE_ROUTE_TABLES, Ec2,
    MODIFY_NETWORK_INTERFACE_ATTRIBUTE, REPLACE_ROUTE,
};
use crate::cloud::error::CloudError;
use crate::cloud::table::{Forwarding, Later, Mark, Provider, Route, RouteTable, TableId, Target};
use crate::cloud::xml::Element;

/// The metadata service.
const METADATA: &str = "http://169.254.169.254";

/// The provider.
pub(crate) const PROVIDER: Provider = Provider {
    kind: "aws-vpc",
    open: |access| {
        Box::new(Aws {
            ec2: Ec2::new(access),
            instance: String::new(),
            interface: None,
        })
    },
};

/// Amazon VPC, as this instance sees it.
#[derive(Debug)]
struct Aws {
    ec2: Ec2,
    /// This instance's ID; empty until it is known.
    instance: String,
    interface: Option<Interface>,
}

/// A network interface of this instance.
#[derive(Clone, Debug)]
struct Interface {
    id: String,
    subnet: String,
    vpc: String,
    /// Whether packets that are not from or to its own address are dropped.
    is_checked: bool,
}

impl Aws {
    /// Asks the metadata service which instance this is, and where, once.
    async fn locate(&mut self) -> Result<(), CloudError> {
        if !self.instance.is_empty() {
            return Ok(());
        }
        let region = match self
            .ec2
            .access
            .variable(&["AWS_REGION", "AWS_DEFAULT_REGION"])
        {
            Some(region) => region,
            None => self.metadata("placement/region").await?,
        };
        let instance = self.metadata("instance-id").await?;
        // China's is amazonaws.com.cn. The oldest metadata services do not tell it.
        let domain = match self.metadata("services/domain").await {
            Err(CloudError::Unfit(_)) => "amazonaws.com".to_owned(),
            domain => domain?,
        };
        let server = format!("https://ec2.{region}.{domain}");
        self.ec2.server = self.ec2.access.transport.api(&server);
        self.ec2.region = region;
        self.instance = instance;
        Ok(())
    }

    async fn metadata(&mut self, name: &str) -> Result<String, CloudError> {
        let access = &mut self.ec2.access;
        let token = credentials::metadata_token(access).await?;
        let path = format!("/latest/meta-data/{name}");
        let answer = access.metadata(METADATA, &path, token).await?;
        let text = answer.map(|answer| String::from_utf8_lossy(&answer.body).trim().to_owned());
        text.filter(|text| !text.is_empty()).ok_or_else(|| {
            CloudError::Unfit(format!(
                "the metadata service has no {name}: is this an EC2 instance?"
            ))
        })
    }

    /// Looks this instance's interface up, again on each call.
    async fn find_interface(&mut self) -> Result<Interface, CloudError> {
        self.locate().await?;
        let instance = self.instance.clone();
        let parameters = [("InstanceId.1", instance.as_str())];
        let pages = self.ec2.pages(DESCRIBE_INSTANCES, &parameters).await?;
        let address = self.ec2.access.address;
        let found = pages.iter().find_map(|page| interface(page, address));
        let found = found.ok_or_else(|| {
            CloudError::Unfit(format!(
                "no network interface of the instance {instance} has the address {address}; set --iface or --public-ip so that the underlay is an interface of EC2"
            ))
        })?;
        Ok(self.interface.insert(found).clone())
    }

    /// The interface as last seen.
    async fn interface(&mut self) -> Result<Interface, CloudError> {
        match &self.interface {
            Some(interface) => Ok(interface.clone()),
            None => self.find_interface().await,
        }
    }

    /// The table that the interface's subnet is associated with, or else the VPC's main one.
    async fn discover(&mut self) -> Result<Vec<TableId>, CloudError> {
        let Interface { subnet, vpc, .. } = self.interface().await?;
        let of_subnet = [
            ("Filter.1.Name", "association.subnet-id"),
            ("Filter.1.Value.1", subnet.as_str()),
        ];
        let main = [
            ("Filter.1.Name", "association.main"),
            ("Filter.1.Value.1", "true"),
            ("Filter.2.Name", "vpc-id"),
            ("Filter.2.Value.1", vpc.as_str()),
        ];
        for filter in [&of_subnet[..], &main[..]] {
            let pages = self.ec2.pages(DESCRIBE_ROUTE_TABLES, filter).await?;
            let mut ids = (pages.iter())
                .flat_map(|page| page.all("routeTableSet/item"))
                .filter_map(|table| table.text("routeTableId"));
            if let Some(id) = ids.next() {
                return Ok(vec![id.to_owned()]);
            }
        }
        Err(CloudError::Unfit(format!(
            "neither the subnet {subnet} nor the VPC {vpc} has a route table; set RouteTableID in the network config"
        )))
    }

    async fn routes(&mut self, table: &TableId) -> Result<Vec<Route>, CloudError> {
        let own = self.interface().await?.id;
        let parameters = [("RouteTableId.1", table.as_str())];
        let pages = self.ec2.pages(DESCRIBE_ROUTE_TABLES, &parameters).await?;
        Ok(pages
            .iter()
            .flat_map(|page| page.all("routeTableSet/item/routeSet/item"))
            .filter_map(|item| route(item, &own))
            .collect())
    }

    async fn set(
        &mut self,
        action: api::Action,
        table: &TableId,
        destination: Ipv4Net,
    ) -> Result<(), CloudError> {
        let own = self.interface().await?.id;
        let destination = destination.to_string();
        let parameters = [
            ("RouteTableId", table.as_str()),
            ("DestinationCidrBlock", destination.as_str()),
            ("NetworkInterfaceId", own.as_str()),
        ];
        self.ec2.call(action, &parameters).await.map(drop)
    }

    async fn delete(&mut self, table: &TableId, destination: Ipv4Net) -> Result<(), CloudError> {
        let destination = destination.to_string();
        let parameters = [
            ("RouteTableId", table.as_str()),
            ("DestinationCidrBlock", destination.as_str()),
        ];
        match self.ec2.call(DELETE_ROUTE, &parameters).await {
            Ok(_) | Err(CloudError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn switch_check_off(&mut self) -> Result<Forwarding, CloudError> {
        let interface = self.find_interface().await?;
        if !interface.is_checked {
            return Ok(Forwarding::Allowed);
        }
        let parameters = [
            ("NetworkInterfaceId", interface.id.as_str()),
            ("SourceDestCheck.Value", "false"),
        ];
        let action = MODIFY_NETWORK_INTERFACE_ATTRIBUTE;
        match self.ec2.call(action, &parameters).await {
            Ok(_) => Ok(Forwarding::SwitchedOn),
            Err(error @ CloudError::Denied { .. }) => Ok(Forwarding::Forbidden {
                problem: error.to_string(),
                command: format!(
                    "aws ec2 modify-network-interface-attribute --network-interface-id {} --no-source-dest-check",
                    interface.id
                ),
            }),
            Err(error) => Err(error),
        }
    }
}

/// The interface with an address, in an answer of DescribeInstances.
fn interface(page: &Element, address: Ipv4Addr) -> Option<Interface> {
    let address = address.to_string();
    let interfaces = page.all("reservationSet/item/instancesSet/item/networkInterfaceSet/item");
    let mut ours = interfaces.into_iter().filter(|item| {
        item.text("privateIpAddress") == Some(address.as_str())
            || item
                .all("privateIpAddressesSet/item")
                .iter()
                .any(|item| item.text("privateIpAddress") == Some(address.as_str()))
    });
    let item = ours.next()?;
    Some(Interface {
        id: item.text("networkInterfaceId")?.to_owned(),
        subnet: item.text("subnetId")?.to_owned(),
        vpc: item.text("vpcId")?.to_owned(),
        is_checked: item.text("sourceDestCheck") != Some("false"),
    })
}

/// A route in an answer of DescribeRouteTables; `None` for one of another kind of destination.
fn route(item: &Element, own: &str) -> Option<Route> {
    let destination = item.text("destinationCidrBlock")?.parse().ok()?;
    let interface = item.text("networkInterfaceId");
    let hop = interface.or(item.text("instanceId"));
    let made_by_hand = item
        .text("origin")
        .is_none_or(|origin| origin == "CreateRoute");
    let is_dead = item.text("state") == Some("blackhole");
    let gateway = [
        "gatewayId",
        "natGatewayId",
        "transitGatewayId",
        "vpcPeeringConnectionId",
        "localGatewayId",
        "carrierGatewayId",
        "coreNetworkArn",
    ];
    let gateway = gateway.iter().find_map(|name| item.text(name));
    let name = hop.or(gateway).unwrap_or("nothing").to_owned();
    let target = match interface {
        Some(interface) if interface == own => Target::Own,
        _ if is_dead => Target::Dead(name),
        _ => Target::Other(name),
    };
    let is_foreign = !made_by_hand || (hop.is_none() && gateway.is_some());
    Some(Route {
        destination,
        target,
        mark: if is_foreign {
            Mark::Foreign
        } else {
            Mark::None
        },
        handle: String::new(),
    })
}

impl RouteTable for Aws {
    fn tables(&mut self) -> Later<'_, Vec<TableId>> {
        Box::pin(async {
            match &self.ec2.access.config.tables[..] {
                [] => self.discover().await,
                tables => Ok(tables.to_vec()),
            }
        })
    }

    fn list<'a>(&'a mut self, table: &'a TableId) -> Later<'a, Vec<Route>> {
        Box::pin(self.routes(table))
    }

    fn add<'a>(&'a mut self, table: &'a TableId, destination: Ipv4Net) -> Later<'a, ()> {
        Box::pin(self.set(CREATE_ROUTE, table, destination))
    }

    fn replace<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(self.set(REPLACE_ROUTE, table, route.destination))
    }

    fn remove<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(self.delete(table, route.destination))
    }

    fn allow_forwarding<'a>(&'a mut self, _: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
        Box::pin(self.switch_check_off())
    }

    fn take_over_command(&self, table: &TableId, route: &Route) -> String {
        let own = self.interface.as_ref();
        let own = own.map_or("ENI", |interface| interface.id.as_str());
        format!(
            "aws ec2 replace-route --route-table-id {table} --destination-cidr-block {} --network-interface-id {own}",
            route.destination
        )
    }
}
