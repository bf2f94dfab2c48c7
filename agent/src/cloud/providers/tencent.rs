//! Tencent Cloud: routing policies of a VPC's route tables, with machines as next hops by their private address.
//!
//! Facts from the documentation of the VPC API, version 2017-03-12, of "Viewing instance metadata", and from flannel's
//! `tencentvpc.go`. Machines forward without being told to.

mod failure;
mod sign;
#[cfg(test)]
mod tests;
mod wire;

use hyper::Method;
use hyper::body::Bytes;
use ipnet::Ipv4Net;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use self::failure::{asked, refusal};
use self::wire::{
    Change, Delete, Deleted, Describe, Entry, Envelope, Failed, Filter, FindMachine, Found,
    MACHINE, NewRoute, RoleKey, Table, Tables,
};
use super::access_key::{AccessKey, Names, Places, find, no_key, of_role};
use super::asked::{Asked, gone};
use super::paging::Paging;
use super::suspect::suspect;
use crate::base::retry::random_seed;
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::CloudError;
use crate::cloud::table::{Forwarding, Later, Mark, Provider, Route, RouteTable, TableId, Target};
use crate::cloud::transport::{Answer, Call};

/// Its entry in the table.
pub(in crate::cloud) const PROVIDER: Provider = Provider {
    kind: "tencent-vpc",
    open: |access| Box::new(Tencent::new(access)),
};

/// The metadata service.
const METADATA: &str = "http://metadata.tencentyun.com";

/// The version of the APIs of VPC and CVM.
const VERSION: &str = "2017-03-12";

/// The description of our routes.
const DESCRIPTION: &str = "selvage";

/// The route tables of a page: the most that are given.
const PAGE: usize = 100;

/// Where a key is looked for; the file is `~/.tencentcloud/credentials`.
const PLACES: Places = Places {
    id: &["ACCESS_KEY_ID", "TENCENTCLOUD_SECRET_ID"],
    secret: &["ACCESS_KEY_SECRET", "TENCENTCLOUD_SECRET_KEY"],
    token: &["TENCENTCLOUD_SESSION_TOKEN"],
    file: Names {
        id: "secret_id",
        secret: "secret_key",
        token: "token",
    },
};

/// The route tables of this machine's VPC.
struct Tencent {
    access: Access,
    region: Option<String>,
    key: Option<Kept<AccessKey>>,
    /// The seed of the choice of routes to ask of.
    seed: u64,
}

impl Tencent {
    fn new(access: Access) -> Self {
        Self {
            access,
            region: None,
            key: None,
            seed: random_seed(),
        }
    }

    /// A document of the metadata service as a text.
    async fn metadata(&mut self, path: &str) -> Result<Option<String>, CloudError> {
        let path = format!("/latest/meta-data/{path}");
        let answer = self.access.metadata(METADATA, &path, Vec::new()).await?;
        let text = answer.map(|answer| String::from_utf8_lossy(&answer.body).trim().to_owned());
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// The same where it must exist.
    async fn required(&mut self, path: &str) -> Result<String, CloudError> {
        self.metadata(path).await?.ok_or_else(|| {
            CloudError::Unfit(format!(
                "the metadata service {METADATA} has no {path}: tencent-vpc needs a CVM in a VPC"
            ))
        })
    }

    /// The folder of the network interface that has the underlay address, else of the first.
    async fn interface(&mut self) -> Result<String, CloudError> {
        let own = self.own();
        let folder = "network/interfaces/macs/";
        let macs = self.required(folder).await?;
        for mac in macs.lines().map(|line| line.trim_end_matches('/')) {
            let path = format!("{folder}{mac}/primary-local-ipv4");
            if self
                .metadata(&path)
                .await?
                .is_some_and(|found| found == own)
            {
                return Ok(format!("{folder}{mac}"));
            }
        }
        let mac = self.required("mac").await?;
        Ok(format!("{folder}{mac}"))
    }

    /// The address by which this machine is called as a next hop.
    fn own(&self) -> String {
        self.access.address.to_string()
    }

    async fn region(&mut self) -> Result<String, CloudError> {
        if let Some(region) = &self.region {
            return Ok(region.clone());
        }
        let region = self.required("placement/region").await?;
        Ok(self.region.insert(region).clone())
    }

    /// The key of the network config, of the environment or of the file, else that of the machine's role.
    async fn key(&mut self) -> Result<AccessKey, CloudError> {
        let now = self.access.transport.now();
        if let Some(key) = self.key.as_ref().filter(|key| key.is_fresh(now)) {
            return Ok(key.value.clone());
        }
        let key = match find(&self.access, &PLACES)? {
            Some(value) => Kept { value, ends: None },
            None => self.role_key().await?,
        };
        Ok(self.key.insert(key).value.clone())
    }

    async fn role_key(&mut self) -> Result<Kept<AccessKey>, CloudError> {
        let folder = "cam/security-credentials/";
        let missing = || no_key("a CAM role of this machine");
        let roles = self.metadata(folder).await?.ok_or_else(missing)?;
        let role = roles.lines().next().unwrap_or_default();
        let text = self.metadata(&format!("{folder}{role}")).await?;
        let key: RoleKey = of_role(role, &text.ok_or_else(missing)?)?;
        Ok(Kept {
            ends: Some(key.expired_time),
            value: AccessKey::new(key.tmp_secret_id, key.tmp_secret_key, Some(key.token)),
        })
    }

    /// Calls an action of the VPC API in this machine's region.
    async fn call<T: DeserializeOwned>(
        &mut self,
        asked: &Asked<'_>,
        parameters: &impl Serialize,
    ) -> Result<T, CloudError> {
        self.call_of("vpc", asked, parameters).await
    }

    async fn call_of<T: DeserializeOwned>(
        &mut self,
        service: &str,
        asked: &Asked<'_>,
        parameters: &impl Serialize,
    ) -> Result<T, CloudError> {
        let body = serde_json::to_string(parameters).map_err(|problem| CloudError::Malformed {
            call: asked.call,
            problem: problem.to_string(),
        })?;
        let answer = self.send(service, asked, body).await?;
        let answer: Envelope<T> = answer.json(asked.call)?;
        Ok(answer.response)
    }

    async fn send(
        &mut self,
        service: &str,
        asked: &Asked<'_>,
        body: String,
    ) -> Result<Answer, CloudError> {
        let region = self.region().await?;
        let key = self.key().await?;
        let api = self
            .access
            .transport
            .api(&format!("https://{service}.tencentcloudapi.com"));
        let headers = sign::Call {
            host: api.split_once("://").map_or(&*api, |(_, host)| host),
            service,
            action: asked.call,
            version: VERSION,
            region: &region,
            body: &body,
            now: self.access.transport.now(),
        }
        .headers(&key);
        let call = Call {
            method: Method::POST,
            url: format!("{api}/"),
            headers,
            body: Bytes::from(body),
        };
        let answer = self.access.transport.send(call).await?;
        if answer.status != 200 {
            // Errors of the API come with 200; this is of a front end.
            return Err(CloudError::Unavailable {
                call: asked.call,
                code: answer.status.to_string(),
                retry_after: answer.retry_after(),
            });
        }
        let failed: Envelope<Failed> = answer.json(asked.call)?;
        let Some(error) = failed.response.error else {
            return Ok(answer);
        };
        let error = asked.error(refusal(error));
        if matches!(error, CloudError::Credentials { .. }) {
            // The role may have another key by now.
            self.key = None;
        }
        Err(error)
    }

    /// The route tables that a filter lets through.
    async fn describe(&mut self, name: &str, value: &str) -> Result<Vec<Table>, CloudError> {
        let asked = asked("DescribeRouteTables", "vpc:DescribeRouteTables", value);
        let mut tables: Vec<Table> = Vec::new();
        let mut paging = Paging::start(asked.call, &self.access.transport);
        loop {
            let values = [value];
            let parameters = Describe {
                filters: vec![Filter { name, values }],
                offset: tables.len().to_string(),
                limit: PAGE.to_string(),
            };
            let page: Tables = self.call(&asked, &parameters).await?;
            let is_last = page.route_table_set.is_empty();
            tables.extend(page.route_table_set);
            if is_last || tables.len() >= page.total_count {
                return Ok(tables);
            }
            paging.go_on(&self.access.transport)?;
        }
    }

    /// The table that this machine's subnet uses.
    async fn own_table(&mut self) -> Result<TableId, CloudError> {
        let interface = self.interface().await?;
        let vpc = self.required(&format!("{interface}/vpc-id")).await?;
        let subnet = self.required(&format!("{interface}/subnet-id")).await?;
        let tables = self.describe("vpc-id", &vpc).await?;
        let mut tables = tables.into_iter();
        let own = tables.find(|table| {
            let mut subnets = table.association_set.iter();
            subnets.any(|associated| associated.subnet_id == subnet)
        });
        own.map(|table| table.route_table_id)
            .ok_or_else(|| CloudError::NotFound {
                call: "DescribeRouteTables",
                what: format!("a route table of {subnet} in {vpc}"),
            })
    }

    async fn list(&mut self, table: &str) -> Result<Vec<Route>, CloudError> {
        let mut routes = self.read(table).await?;
        if let Some((at, address)) = suspect(&routes, &mut self.seed)
            && self.is_gone(&address).await
        {
            routes[at].target = Target::Dead(address);
        }
        Ok(routes)
    }

    /// Whether no machine has an address. Without an answer, or the right to ask, one has.
    async fn is_gone(&mut self, address: &str) -> bool {
        let asked = asked("DescribeInstances", "cvm:DescribeInstances", address);
        let parameters = FindMachine {
            filters: [Filter {
                name: "private-ip-address",
                values: [address],
            }],
        };
        let found: Result<Found, _> = self.call_of("cvm", &asked, &parameters).await;
        found.is_ok_and(|found| found.total_count == 0)
    }

    async fn read(&mut self, table: &str) -> Result<Vec<Route>, CloudError> {
        let own = self.own();
        let tables = self.describe("route-table-id", table).await?;
        let mut tables = tables.into_iter();
        let found = tables.find(|found| found.route_table_id == table);
        let found = found.ok_or_else(|| CloudError::NotFound {
            call: "DescribeRouteTables",
            what: table.to_owned(),
        })?;
        let routes = found.route_set.iter();
        Ok(routes.filter_map(|entry| route(entry, &own)).collect())
    }

    /// Adds a route to this machine, or lets it take the place of another.
    async fn put(
        &mut self,
        asked: &Asked<'_>,
        table: &str,
        destination: Ipv4Net,
        route_id: Option<u64>,
    ) -> Result<(), CloudError> {
        let address = self.own();
        let parameters = Change {
            route_table_id: table,
            routes: [NewRoute {
                route_id,
                destination_cidr_block: destination.to_string(),
                gateway_type: MACHINE,
                gateway_id: &address,
                route_description: DESCRIPTION,
                enabled: true,
            }],
        };
        let _: IgnoredAny = self.call(asked, &parameters).await?;
        Ok(())
    }
}

impl RouteTable for Tencent {
    fn tables(&mut self) -> Later<'_, Vec<TableId>> {
        Box::pin(async move {
            match &self.access.config.tables[..] {
                [] => Ok(vec![self.own_table().await?]),
                tables => Ok(tables.to_vec()),
            }
        })
    }

    fn list<'a>(&'a mut self, table: &'a TableId) -> Later<'a, Vec<Route>> {
        Box::pin(self.list(table))
    }

    fn add<'a>(&'a mut self, table: &'a TableId, destination: Ipv4Net) -> Later<'a, ()> {
        Box::pin(async move {
            let object = destination.to_string();
            let asked = asked("CreateRoutes", "vpc:CreateRoutes", &object);
            self.put(&asked, table, destination, None).await
        })
    }

    fn replace<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(async move {
            let asked = asked("ReplaceRoutes", "vpc:ReplaceRoutes", &route.handle);
            let id = id(&route.handle, asked.call)?;
            self.put(&asked, table, route.destination, Some(id)).await
        })
    }

    fn remove<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(async move {
            let asked = asked("DeleteRoutes", "vpc:DeleteRoutes", &route.handle);
            let parameters = Delete {
                route_table_id: table,
                routes: [Deleted {
                    route_id: id(&route.handle, asked.call)?,
                }],
            };
            gone(self.call::<IgnoredAny>(&asked, &parameters).await)
        })
    }

    fn allow_forwarding<'a>(&'a mut self, _: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
        Box::pin(async { Ok(Forwarding::Allowed) })
    }

    fn take_over_command(&self, table: &TableId, route: &Route) -> String {
        format!(
            "tccli vpc DeleteRoutes --RouteTableId {table} --Routes '[{{\"RouteId\": {}}}]'",
            route.handle
        )
    }
}

/// The ID in a handle that [`route`] made.
fn id(handle: &str, call: &'static str) -> Result<u64, CloudError> {
    handle.parse().map_err(|_| CloudError::NotFound {
        call,
        what: format!("route {handle:?}"),
    })
}

/// What a listed route is to us; `None` for IPv6. One that is switched off leads nowhere.
fn route(entry: &Entry, own: &str) -> Option<Route> {
    let target = match entry.machine() {
        _ if entry.is_off() => Target::Dead(entry.gateway_id.clone()),
        Some(address) if address == own => Target::Own,
        _ => Target::Other(entry.gateway_id.clone()),
    };
    let is_users = ["", "USER"].contains(&&*entry.route_type);
    let mark = match (&*entry.route_description, entry.machine()) {
        (DESCRIPTION, Some(_)) if is_users => Mark::Ours,
        // flannel's have no description.
        ("", Some(_)) if is_users => Mark::None,
        _ => Mark::Foreign,
    };
    Some(Route {
        destination: entry.destination()?,
        target,
        mark,
        handle: entry.route_id.to_string(),
    })
}
