//! Google Compute Engine: routes of the VPC network to this instance.
//!
//! A route is named after its destination, as in flannel: `flannel-10-5-1-0-24`; one of that name is ours. Its priority is
//! 1000, flannel's and Google's default. The only table is the network that the underlay's interface is in.

mod api;
mod credentials;

use hyper::Method;
use ipnet::Ipv4Net;
use serde::Deserialize;

use self::api::{Compute, Request};
use crate::cloud::error::CloudError;
use crate::cloud::sign::percent;
use crate::cloud::table::{Forwarding, Later, Mark, Provider, Route, RouteTable, TableId, Target};

/// The metadata service, by its address: it needs no name server.
const METADATA: &str = "http://169.254.169.254";

/// The priority of flannel's routes.
const PRIORITY: u32 = 1000;

/// The provider.
pub(crate) const PROVIDER: Provider = Provider {
    kind: "gce",
    open: |access| {
        Box::new(Gce {
            compute: Compute::new(access),
            place: None,
        })
    },
};

/// Google Compute Engine, as this instance sees it.
#[derive(Debug)]
struct Gce {
    compute: Compute,
    place: Option<Place>,
}

/// This instance. Resources go by their names below the API's version, `projects/…`.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    zone: String,
    instance: String,
    network: String,
    may_forward: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Instance {
    self_link: String,
    #[serde(default)]
    can_ip_forward: bool,
    #[serde(default)]
    network_interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    network: String,
    #[serde(rename = "networkIP")]
    address: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RouteResource {
    name: String,
    network: String,
    dest_range: String,
    next_hop_instance: Option<String>,
    next_hop_ip: Option<String>,
    next_hop_gateway: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    warnings: Vec<Warning>,
}

#[derive(Deserialize)]
struct Warning {
    code: String,
}

impl Gce {
    /// Looks this instance up, again on each call.
    async fn locate(&mut self) -> Result<Place, CloudError> {
        let name = self.compute.metadata("instance/name").await?;
        let zone = self.compute.metadata("instance/zone").await?;
        // projects/123456789/zones/europe-west1-b
        let zone = zone.rsplit('/').next().unwrap_or_default().to_owned();
        let path = format!("zones/{}/instances/{}", percent(&zone), percent(&name));
        let request = Request::get(&path, "compute.instances.get");
        let instance: Instance = self.compute.ask(request).await?;
        let address = self.compute.access.address.to_string();
        let mut interfaces = instance.network_interfaces.iter();
        let interface = interfaces.find(|it| it.address.as_deref() == Some(address.as_str()));
        let interface = interface.ok_or_else(|| {
            CloudError::Unfit(format!(
                "no network interface of the instance {name} has the address {address}; set --iface or --public-ip so that the underlay is an interface of Compute Engine"
            ))
        })?;
        let place = Place {
            instance: below_version(&instance.self_link).to_owned(),
            network: below_version(&interface.network).to_owned(),
            may_forward: instance.can_ip_forward,
            name,
            zone,
        };
        Ok(self.place.insert(place).clone())
    }

    /// This instance as last seen.
    async fn place(&mut self) -> Result<Place, CloudError> {
        match &self.place {
            Some(place) => Ok(place.clone()),
            None => self.locate().await,
        }
    }

    async fn routes(&mut self, network: &TableId) -> Result<Vec<Route>, CloudError> {
        let place = self.place().await?;
        let listed = self
            .compute
            .pages::<RouteResource>("global/routes", "compute.routes.list");
        Ok((listed.await?.iter())
            .filter(|route| below_version(&route.network) == network)
            .filter_map(|listed| route(listed, &place))
            .collect())
    }

    async fn insert(&mut self, network: &TableId, destination: Ipv4Net) -> Result<(), CloudError> {
        let place = self.place().await?;
        let name = route_name(destination);
        let body = serde_json::json!({
            "name": name,
            "destRange": destination.to_string(),
            "network": network,
            "nextHopInstance": place.instance,
            "priority": PRIORITY,
            "tags": [],
        });
        let request = Request {
            method: Method::POST,
            body: Some(body.to_string()),
            ..Request::get("global/routes", "compute.routes.create")
        };
        match self.compute.change(request).await {
            Err(error @ CloudError::Exists { .. }) => {
                Err(self.explain(&name, network, error).await)
            }
            result => result,
        }
    }

    /// A route of this name that no list of the network has is in another one.
    async fn explain(&mut self, name: &str, network: &TableId, error: CloudError) -> CloudError {
        let path = format!("global/routes/{name}");
        let found = self
            .compute
            .ask::<RouteResource>(Request::get(&path, "compute.routes.get"));
        match found.await {
            Ok(found) if below_version(&found.network) != network => CloudError::Unfit(format!(
                "the project already has a route {name}, in the network {}: give one of the two clusters another range",
                below_version(&found.network)
            )),
            _ => error,
        }
    }

    async fn delete(&mut self, route: &Route) -> Result<(), CloudError> {
        let path = format!("global/routes/{}", percent(&route.handle));
        let request = Request {
            method: Method::DELETE,
            ..Request::get(&path, "compute.routes.delete")
        };
        match self.compute.change(request).await {
            Err(CloudError::NotFound { .. }) => Ok(()),
            result => result,
        }
    }

    async fn check_forwarding(&mut self) -> Result<Forwarding, CloudError> {
        let place = self.locate().await?;
        if place.may_forward {
            return Ok(Forwarding::Allowed);
        }
        let Place { name, zone, .. } = place;
        Ok(Forwarding::Forbidden {
            problem: format!("canIpForward of the instance {name} is false"),
            command: format!(
                "gcloud compute instances export {name} --zone={zone} --destination=vm.yaml && sed -i 's/^canIpForward: false/canIpForward: true/' vm.yaml && gcloud compute instances update-from-file {name} --zone={zone} --source=vm.yaml --most-disruptive-allowed-action=RESTART"
            ),
        })
    }
}

/// A listed route; `None` for an IPv6 one, or one that only some instances use.
fn route(listed: &RouteResource, place: &Place) -> Option<Route> {
    let destination = listed.dest_range.parse().ok()?;
    if !listed.tags.is_empty() {
        return None;
    }
    let hops = [
        &listed.next_hop_instance,
        &listed.next_hop_ip,
        &listed.next_hop_gateway,
    ];
    let hop = hops.into_iter().flatten().next();
    let hop = hop.map_or("another kind of next hop", |hop| below_version(hop));
    let is_gone = |warning: &Warning| {
        matches!(
            warning.code.as_str(),
            "NEXT_HOP_INSTANCE_NOT_FOUND" | "NEXT_HOP_NOT_RUNNING"
        )
    };
    let target = if hop == place.instance {
        Target::Own
    } else if listed.warnings.iter().any(is_gone) {
        Target::Dead(hop.to_owned())
    } else {
        Target::Other(hop.to_owned())
    };
    Some(Route {
        destination,
        target,
        mark: match listed.name == route_name(destination) {
            true => Mark::Ours,
            false => Mark::Foreign,
        },
        handle: listed.name.clone(),
    })
}

/// flannel's name for a route.
fn route_name(destination: Ipv4Net) -> String {
    let text = destination.to_string().replace(['.', '/'], "-");
    format!("flannel-{text}")
}

/// A resource's name without server and version, which differ between the API's host names.
fn below_version(link: &str) -> &str {
    link.find("projects/")
        .and_then(|at| link.get(at..))
        .unwrap_or(link)
}

impl RouteTable for Gce {
    fn tables(&mut self) -> Later<'_, Vec<TableId>> {
        Box::pin(async { Ok(vec![self.place().await?.network]) })
    }

    fn list<'a>(&'a mut self, table: &'a TableId) -> Later<'a, Vec<Route>> {
        Box::pin(self.routes(table))
    }

    fn add<'a>(&'a mut self, table: &'a TableId, destination: Ipv4Net) -> Later<'a, ()> {
        Box::pin(self.insert(table, destination))
    }

    /// A route cannot be changed.
    fn replace<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(async {
            self.delete(route).await?;
            self.insert(table, route.destination).await
        })
    }

    fn remove<'a>(&'a mut self, _: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(self.delete(route))
    }

    fn allow_forwarding<'a>(&'a mut self, _: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
        Box::pin(self.check_forwarding())
    }

    fn take_over_command(&self, _: &TableId, route: &Route) -> String {
        format!("gcloud compute routes delete {}", route.handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_flannels() {
        let name = route_name("10.5.1.0/24".parse().unwrap());
        assert_eq!(name, "flannel-10-5-1-0-24");
    }

    /// The form of `routes.list` in the Compute Engine API's reference.
    #[test]
    fn routes_are_told_apart_by_name_and_next_hop() {
        let place = Place {
            name: "a".to_owned(),
            zone: "z".to_owned(),
            instance: "projects/p/zones/z/instances/a".to_owned(),
            network: "projects/p/global/networks/default".to_owned(),
            may_forward: true,
        };
        let read = |json: &str| route(&serde_json::from_str(json).unwrap(), &place);
        let ours = r#"{"kind":"compute#route","name":"flannel-10-5-1-0-24","network":"https://www.googleapis.com/compute/v1/projects/p/global/networks/default","destRange":"10.5.1.0/24","priority":1000,"nextHopInstance":"https://www.googleapis.com/compute/v1/projects/p/zones/z/instances/a"}"#;
        let route = read(ours).unwrap();
        assert_eq!((route.target, route.mark), (Target::Own, Mark::Ours));
        let other = read(&ours.replace("instances/a", "instances/ab")).unwrap();
        let hop = "projects/p/zones/z/instances/ab";
        assert_eq!(other.target, Target::Other(hop.to_owned()));
        let gone = ours.replace("instances/a\"}", "instances/b\",\"warnings\":[{\"code\":\"NEXT_HOP_INSTANCE_NOT_FOUND\",\"message\":\"x\"}]}");
        assert!(matches!(read(&gone).unwrap().target, Target::Dead(_)));
        let named = read(&ours.replace("flannel-", "admins-")).unwrap();
        assert_eq!(named.mark, Mark::Foreign);
        assert_eq!(read(&ours.replace("10.5.1.0/24", "fd00::/64")), None);
        let tagged = ours.replace("\"priority\"", "\"tags\":[\"db\"],\"priority\"");
        assert_eq!(read(&tagged), None);
    }
}
