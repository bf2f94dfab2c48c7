//! Aliyun (Alibaba Cloud): custom routes of a VPC's route tables, with instances as next hops.
//!
//! Facts from the documentation of the VPC API, version 2016-04-28, and of "Instance metadata". A route table takes one
//! change at a time: while a route is `Pending`, every other change is refused and made later.

mod failure;
mod sign;
#[cfg(test)]
mod tests;
mod wire;

use hyper::Method;
use hyper::body::Bytes;
use ipnet::Ipv4Net;
use serde::de::{DeserializeOwned, IgnoredAny};

use self::failure::{asked, refusal};
use self::wire::{Entries, Entry, Found, RoleKey, Switch};
use super::access_key::{AccessKey, Names, Places, find, no_key, of_role};
use super::asked::{Asked, gone};
use super::paging::Paging;
use super::suspect::suspect;
use crate::base::retry::{next_random, random_seed};
use crate::base::time::{parse_rfc3339, secs};
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::CloudError;
use crate::cloud::table::{Forwarding, Later, Mark, Provider, Route, RouteTable, TableId, Target};
use crate::cloud::transport::{Answer, Call};

/// Its entry in the table.
pub(in crate::cloud) const PROVIDER: Provider = Provider {
    kind: "ali-vpc",
    open: |access| Box::new(Aliyun::new(access)),
};

/// The metadata service.
const METADATA: &str = "http://100.100.100.200";

/// An API and its version.
const VPC: (&str, &str) = ("vpc", "2016-04-28");
const ECS: (&str, &str) = ("ecs", "2014-05-26");

/// The name of our routes.
const NAME: &str = "selvage";

/// The routes of a page: the most that are given.
const PAGE: &str = "100";

/// How long a token for the metadata service is good, in seconds.
const TOKEN_SECS: u64 = 6 * 3600;

/// Where a key is looked for; the file is `~/.alibabacloud/credentials`.
const PLACES: Places = Places {
    id: &["ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_ID"],
    secret: &["ACCESS_KEY_SECRET", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"],
    token: &["ALIBABA_CLOUD_SECURITY_TOKEN"],
    file: Names {
        id: "access_key_id",
        secret: "access_key_secret",
        token: "security_token",
    },
};

/// This instance.
#[derive(Clone, Debug)]
struct Place {
    region: String,
    instance: String,
}

/// The route tables of this instance's VPC.
struct Aliyun {
    access: Access,
    place: Option<Place>,
    /// For the metadata service; an empty one if it wants none.
    token: Option<Kept<String>>,
    key: Option<Kept<AccessKey>>,
    /// The seed of numbers that are used once.
    seed: u64,
}

impl Aliyun {
    fn new(access: Access) -> Self {
        Self {
            access,
            place: None,
            token: None,
            key: None,
            seed: random_seed(),
        }
    }

    /// A token for the metadata service, in its "security hardening mode". One that does not know tokens is asked without.
    async fn token(&mut self) -> Result<String, CloudError> {
        let now = self.access.transport.now();
        if let Some(token) = self.token.as_ref().filter(|token| token.is_fresh(now)) {
            return Ok(token.value.clone());
        }
        let lifetime = TOKEN_SECS.to_string();
        let answer = self
            .access
            .transport
            .send(Call {
                method: Method::PUT,
                url: format!(
                    "{}/latest/api/token",
                    self.access.transport.metadata(METADATA)
                ),
                headers: vec![("x-aliyun-ecs-metadata-token-ttl-seconds", lifetime)],
                body: Bytes::new(),
            })
            .await?;
        let token = match answer.status {
            200 => String::from_utf8_lossy(&answer.body).trim().to_owned(),
            _ => String::new(),
        };
        self.token = Some(Kept {
            value: token.clone(),
            ends: Some(now.saturating_add(TOKEN_SECS)),
        });
        Ok(token)
    }

    /// A document of the metadata service as a text.
    async fn metadata(&mut self, path: &str) -> Result<Option<String>, CloudError> {
        let headers = match self.token().await? {
            token if token.is_empty() => Vec::new(),
            token => vec![("x-aliyun-ecs-metadata-token", token)],
        };
        let path = format!("/latest/meta-data/{path}");
        let answer = self.access.metadata(METADATA, &path, headers).await?;
        let text = answer.map(|answer| String::from_utf8_lossy(&answer.body).trim().to_owned());
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// The same where it must exist.
    async fn required(&mut self, path: &str) -> Result<String, CloudError> {
        self.metadata(path).await?.ok_or_else(|| {
            CloudError::Unfit(format!(
                "the metadata service {METADATA} has no {path}: ali-vpc needs an ECS instance in a VPC"
            ))
        })
    }

    async fn place(&mut self) -> Result<Place, CloudError> {
        if let Some(place) = &self.place {
            return Ok(place.clone());
        }
        let place = Place {
            region: self.required("region-id").await?,
            instance: self.required("instance-id").await?,
        };
        Ok(self.place.insert(place).clone())
    }

    /// The key of the network config, of the environment or of the file, else that of the instance's role.
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
        let folder = "ram/security-credentials/";
        let missing = || no_key("a RAM role of this instance");
        let roles = self.metadata(folder).await?.ok_or_else(missing)?;
        let role = roles.lines().next().unwrap_or_default();
        let text = self.metadata(&format!("{folder}{role}")).await?;
        let key: RoleKey = of_role(role, &text.ok_or_else(missing)?)?;
        Ok(Kept {
            ends: parse_rfc3339(&key.expiration).map(secs),
            value: AccessKey::new(
                key.access_key_id,
                key.access_key_secret,
                Some(key.security_token),
            ),
        })
    }

    /// 128 random bits; they need not be secret.
    fn nonce(&mut self) -> String {
        let (a, b) = (next_random(&mut self.seed), next_random(&mut self.seed));
        format!("{a:016x}{b:016x}")
    }

    /// Calls an operation of the VPC API in this instance's region.
    async fn call<T: DeserializeOwned>(
        &mut self,
        asked: &Asked<'_>,
        parameters: &[(&str, &str)],
    ) -> Result<T, CloudError> {
        self.call_of(VPC, asked, parameters).await
    }

    async fn call_of<T: DeserializeOwned>(
        &mut self,
        api: (&str, &'static str),
        asked: &Asked<'_>,
        parameters: &[(&str, &str)],
    ) -> Result<T, CloudError> {
        self.send(api, asked, parameters).await?.json(asked.call)
    }

    async fn send(
        &mut self,
        (product, version): (&str, &'static str),
        asked: &Asked<'_>,
        parameters: &[(&str, &str)],
    ) -> Result<Answer, CloudError> {
        let region = self.place().await?.region;
        let key = self.key().await?;
        let nonce = self.nonce();
        let mut parameters = parameters.to_vec();
        parameters.push(("RegionId", &region));
        let query = sign::query(&parameters);
        let api = self
            .access
            .transport
            .api(&format!("https://{product}.{region}.aliyuncs.com"));
        let call = sign::Call {
            host: host(&api),
            action: asked.call,
            version,
            query: &query,
            now: self.access.transport.now(),
            nonce: &nonce,
        };
        let call = Call {
            method: Method::POST,
            url: format!("{api}/?{query}"),
            headers: call.headers(&key),
            body: Bytes::new(),
        };
        let answer = self.access.transport.send(call).await?;
        if answer.status == 200 {
            return Ok(answer);
        }
        let error = asked.error(refusal(&answer));
        if matches!(error, CloudError::Credentials { .. }) {
            // The role may have another key by now.
            self.key = None;
        }
        Err(error)
    }

    async fn list(&mut self, table: &str) -> Result<Vec<Route>, CloudError> {
        let mut routes = self.read(table).await?;
        if let Some((at, instance)) = suspect(&routes, &mut self.seed)
            && self.is_gone(&instance).await
        {
            routes[at].target = Target::Dead(instance);
        }
        Ok(routes)
    }

    /// Whether an instance does not exist. Without an answer, or the right to ask, it does.
    async fn is_gone(&mut self, instance: &str) -> bool {
        let asked = asked("DescribeInstances", "ecs:DescribeInstances", instance);
        let ids = serde_json::json!([instance]).to_string();
        let found: Result<Found, _> = self.call_of(ECS, &asked, &[("InstanceIds", &ids)]).await;
        found.is_ok_and(|found| found.total_count == 0)
    }

    async fn read(&mut self, table: &str) -> Result<Vec<Route>, CloudError> {
        let asked = asked(
            "DescribeRouteEntryList",
            "vpc:DescribeRouteEntryList",
            table,
        );
        let own = self.place().await?.instance;
        let mut routes = Vec::new();
        let mut token = String::new();
        let mut paging = Paging::start(asked.call, &self.access.transport);
        loop {
            let mut parameters = vec![
                ("RouteTableId", table),
                ("IpVersion", "IPv4"),
                ("MaxResult", PAGE),
            ];
            if !token.is_empty() {
                parameters.push(("NextToken", &token));
            }
            let page: Entries = self.call(&asked, &parameters).await?;
            let entries = page.route_entrys.route_entry.iter();
            routes.extend(entries.filter_map(|entry| route(entry, &own)));
            let Some(next) = page.next_token.filter(|next| !next.is_empty()) else {
                return Ok(routes);
            };
            if next == token {
                return Err(paging.malformed("the same page again".to_owned()));
            }
            token = next;
            paging.go_on(&self.access.transport)?;
        }
    }

    async fn add(&mut self, table: &str, destination: Ipv4Net) -> Result<(), CloudError> {
        let instance = self.place().await?.instance;
        let destination = destination.to_string();
        let asked = asked("CreateRouteEntry", "vpc:CreateRouteEntry", &destination);
        let parameters = [
            ("RouteTableId", table),
            ("DestinationCidrBlock", &destination),
            ("NextHopType", "Instance"),
            ("NextHopId", &instance),
            ("RouteEntryName", NAME),
        ];
        let _: IgnoredAny = self.call(&asked, &parameters).await?;
        Ok(())
    }

    async fn remove(&mut self, route: &Route) -> Result<(), CloudError> {
        let asked = asked("DeleteRouteEntry", "vpc:DeleteRouteEntry", &route.handle);
        let parameters = [("RouteEntryId", &*route.handle)];
        gone(self.call::<IgnoredAny>(&asked, &parameters).await)
    }
}

impl RouteTable for Aliyun {
    fn tables(&mut self) -> Later<'_, Vec<TableId>> {
        Box::pin(async move {
            if !self.access.config.tables.is_empty() {
                return Ok(self.access.config.tables.clone());
            }
            let subnet = self.required("vswitch-id").await?;
            let asked = asked(
                "DescribeVSwitchAttributes",
                "vpc:DescribeVSwitchAttributes",
                &subnet,
            );
            let switch: Switch = self.call(&asked, &[("VSwitchId", &subnet)]).await?;
            Ok(vec![switch.route_table.route_table_id])
        })
    }

    fn list<'a>(&'a mut self, table: &'a TableId) -> Later<'a, Vec<Route>> {
        Box::pin(self.list(table))
    }

    fn add<'a>(&'a mut self, table: &'a TableId, destination: Ipv4Net) -> Later<'a, ()> {
        Box::pin(self.add(table, destination))
    }

    /// There is no replacement: a route to the same destination must be gone first. Until its removal is complete, the
    /// addition is refused as unavailable, and made later.
    fn replace<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(async move {
            self.remove(route).await?;
            self.add(table, route.destination).await
        })
    }

    fn remove<'a>(&'a mut self, _: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(self.remove(route))
    }

    /// Instances forward without being told to, unless somebody switched the check of a network interface on.
    fn allow_forwarding<'a>(&'a mut self, _: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
        Box::pin(async { Ok(Forwarding::Allowed) })
    }

    fn take_over_command(&self, _: &TableId, route: &Route) -> String {
        format!(
            "aliyun vpc DeleteRouteEntry --RouteEntryId {}",
            route.handle
        )
    }
}

/// The host of a URL, with its port.
fn host(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, host)| host)
}

/// What a listed entry is to us; `None` for one that is on its way out or that is no IPv4 subnet.
fn route(entry: &Entry, own: &str) -> Option<Route> {
    if entry.status == "Deleting" {
        return None;
    }
    let target = match entry.instance() {
        Some(instance) if instance == own => Target::Own,
        Some(instance) => Target::Other(instance.to_owned()),
        None => Target::Other(entry.hop()),
    };
    let mark = match &*entry.route_entry_name {
        NAME if entry.instance().is_some() => Mark::Ours,
        // flannel's have no name.
        "" if entry.instance().is_some() && entry.r#type == "Custom" => Mark::None,
        _ => Mark::Foreign,
    };
    Some(Route {
        destination: entry.destination()?,
        target,
        mark,
        handle: entry.route_entry_id.clone(),
    })
}
