//! Docker's networks and running containers, from its API (docs.docker.com/reference/api/engine).

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::NotChecked;
use crate::base::http::{self, Trouble};

/// Shorter than Docker's own client timeout, which is too long for a diagnosis.
const DEADLINE: Duration = Duration::from_secs(5);

/// Docker's default socket, unless `DOCKER_HOST` is set.
const SOCKET: &str = "/var/run/docker.sock";

/// Docker's state on this host.
#[derive(Debug)]
pub(super) struct Docker {
    pub(super) networks: Vec<Network>,
    /// The running containers.
    pub(super) containers: Vec<Container>,
}

/// The relevant part of `/info`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(default)]
    live_restore_enabled: bool,
}

/// A Docker network.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Network {
    pub(super) name: String,
    driver: String,
    #[serde(default, rename = "IPAM")]
    ipam: Option<Ipam>,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    #[serde(default)]
    config: Option<Vec<Pool>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pool {
    #[serde(default)]
    subnet: Option<String>,
}

/// A running container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    network_settings: Option<Settings>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    #[serde(default)]
    networks: Option<BTreeMap<String, Endpoint>>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(default, rename = "IPAddress")]
    v4: String,
    #[serde(default, rename = "GlobalIPv6Address")]
    v6: String,
}

impl Docker {
    /// Queries Docker; `None` if it is not running.
    ///
    /// # Errors
    /// Docker is running but does not answer, or refuses us.
    pub(super) async fn ask() -> Result<Option<Self>, NotChecked> {
        let Some(networks) = get("/networks").await? else {
            return Ok(None);
        };
        let containers = get("/containers/json").await?.unwrap_or_default();
        Ok(Some(Self {
            networks,
            containers,
        }))
    }

    /// The containers that make live-restore keep all networks: while they run, restarting Docker changes neither
    /// subnet nor MTU, whichever network they are in.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) async fn held_by(&self) -> Result<&[Container], NotChecked> {
        let info = get::<Info>("/info").await?;
        Ok(match info.is_some_and(|info| info.live_restore_enabled) {
            true => &self.containers,
            false => &[],
        })
    }

    /// The default bridge; `None` if Docker was configured without one.
    pub(super) fn default_bridge(&self) -> Option<&Network> {
        let is_default = |network: &&Network| {
            network.option("com.docker.network.bridge.default_bridge") == Some("true")
        };
        self.bridges().find(is_default)
    }

    /// The networks that are bridges on this host.
    pub(super) fn bridges(&self) -> impl Iterator<Item = &Network> {
        self.networks
            .iter()
            .filter(|network| network.driver == "bridge")
    }
}

impl Network {
    fn option(&self, name: &str) -> Option<&str> {
        let options = self.options.as_ref()?;
        options.get(name).map(String::as_str)
    }

    /// The device, if its name is configured.
    pub(super) fn device(&self) -> Option<&str> {
        self.option("com.docker.network.bridge.name")
    }

    /// Its configured MTU in bytes.
    pub(super) fn mtu(&self) -> Option<u32> {
        let mtu = self.option("com.docker.network.driver.mtu")?;
        mtu.parse().ok().filter(|mtu| *mtu != 0)
    }

    /// Whether its containers are isolated from each other (`icc=false`).
    pub(super) fn isolates(&self) -> bool {
        self.option("com.docker.network.bridge.enable_icc") == Some("false")
    }

    /// The subnets of its containers.
    pub(super) fn subnets(&self) -> impl Iterator<Item = IpNet> {
        let pools = self.ipam.as_ref().and_then(|ipam| ipam.config.as_ref());
        let pools = pools.into_iter().flatten();
        pools.filter_map(|pool| pool.subnet.as_ref()?.parse().ok())
    }
}

impl Container {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        match self.names.first() {
            Some(name) => name.trim_start_matches('/'),
            None => self.id.get(..12).unwrap_or(&self.id),
        }
    }

    /// Its addresses in all networks.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let networks = self
            .network_settings
            .as_ref()
            .and_then(|settings| settings.networks.as_ref());
        let texts = networks.into_iter().flatten();
        let texts = texts.flat_map(|(_, endpoint)| [&endpoint.v4, &endpoint.v6]);
        texts.filter_map(|text| text.parse().ok())
    }
}

/// The socket that Docker's own client would use. A remote `DOCKER_HOST` is ignored.
fn socket() -> PathBuf {
    let host = env::var("DOCKER_HOST").unwrap_or_default();
    let path = host.strip_prefix("unix://").unwrap_or(SOCKET);
    PathBuf::from(path)
}

/// `None` if nothing listens.
async fn get<T: DeserializeOwned>(target: &str) -> Result<Option<T>, NotChecked> {
    let socket = socket();
    let silent = |why: &dyn std::fmt::Display| {
        NotChecked(format!(
            "failed to query Docker on {}: {why}",
            socket.display()
        ))
    };
    match http::get(&socket, target, DEADLINE).await {
        Ok((200, body)) => serde_json::from_slice(&body)
            .map(Some)
            .map_err(|error| silent(&error)),
        Ok((status, _)) => Err(silent(&format_args!("HTTP status {status}"))),
        Err(Trouble::Connect(error))
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(Trouble::Connect(error) | Trouble::Exchange(error)) => Err(silent(&error)),
    }
}
