//! Where this machine is: its subscription and its network interface.

use serde::Deserialize;
use serde_json::Value;

use super::failure::asked;
use super::wire::Page;
use super::{Azure, METADATA, NETWORK};
use crate::cloud::error::CloudError;

/// The version of the API of virtual machines.
const COMPUTE: &str = "2024-07-01";

/// The only version by which interfaces of scale sets are read.
const SCALE_SET: &str = "2018-10-01";

/// How long what was read of the interface counts. The resource manager takes some requests a second of all machines that
/// share an identity.
const INTERFACE_SECS: u64 = 600;

/// A cloud of Azure: the base URLs of its servers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Environment {
    pub(super) manager: &'static str,
    pub(super) login: &'static str,
}

impl Environment {
    /// By its name in the metadata.
    fn named(name: &str) -> Self {
        match name {
            "AzureUSGovernmentCloud" => Self {
                manager: "https://management.usgovcloudapi.net",
                login: "https://login.microsoftonline.us",
            },
            "AzureChinaCloud" => Self {
                manager: "https://management.chinacloudapi.cn",
                login: "https://login.chinacloudapi.cn",
            },
            _ => Self {
                manager: "https://management.azure.com",
                login: "https://login.microsoftonline.com",
            },
        }
    }
}

/// The metadata service's document, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Compute {
    #[serde(default)]
    az_environment: String,
    resource_id: String,
    subscription_id: String,
    resource_group_name: String,
}

/// This machine.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) environment: Environment,
    /// The machine's ID in the resource manager.
    pub(super) machine: String,
    /// The ID of its resource group.
    pub(super) group: String,
}

impl Place {
    /// Whether it is an instance of a scale set, whose model has the settings of its interfaces.
    pub(super) fn scale_set(&self) -> Option<&str> {
        let (set, _) = self.machine.rsplit_once("/virtualMachines/")?;
        set.contains("/virtualMachineScaleSets/").then_some(set)
    }
}

impl Azure {
    pub(super) async fn place(&mut self) -> Result<Place, CloudError> {
        if let Some(place) = &self.place {
            return Ok(place.clone());
        }
        let path = "/metadata/instance/compute?api-version=2021-02-01&format=json";
        let headers = vec![("metadata", "true".to_owned())];
        let answer = self.access.metadata(METADATA, path, headers).await?;
        let answer = answer.ok_or_else(|| {
            CloudError::Unfit(format!(
                "the metadata service {METADATA} knows no machine: azure-vnet needs a virtual machine of Azure"
            ))
        })?;
        let compute: Compute = answer.json("metadata service")?;
        let place = Place {
            environment: Environment::named(&compute.az_environment),
            machine: compute.resource_id,
            group: format!(
                "/subscriptions/{}/resourceGroups/{}",
                compute.subscription_id, compute.resource_group_name
            ),
        };
        Ok(self.place.insert(place).clone())
    }

    /// The network interface with the underlay address, whole; read again after [`INTERFACE_SECS`].
    pub(super) async fn interface(&mut self) -> Result<Value, CloudError> {
        let now = self.access.transport.now();
        let since = |read: u64| now.saturating_sub(read);
        if let Some((read, interface)) = &self.interface
            && since(*read) < INTERFACE_SECS
        {
            return Ok(interface.clone());
        }
        let interface = self.read_interface().await?;
        Ok(self.interface.insert((now, interface)).1.clone())
    }

    async fn read_interface(&mut self) -> Result<Value, CloudError> {
        let place = self.place().await?;
        let own = self.own();
        let is_own = |interface: &Value| configuration(interface, &own).is_some();
        let found = match place.scale_set() {
            Some(_) => {
                let asked = asked(
                    "GET networkInterfaces",
                    "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/networkInterfaces/read",
                    &place.machine,
                );
                let path = format!(
                    "{}/networkInterfaces?api-version={SCALE_SET}",
                    place.machine
                );
                let page: Page<Value> = self.get(&asked, &path).await?;
                page.value.into_iter().find(is_own)
            }
            None => {
                let asked = asked(
                    "GET virtualMachine",
                    "Microsoft.Compute/virtualMachines/read",
                    &place.machine,
                );
                let path = format!("{}?api-version={COMPUTE}", place.machine);
                let machine: Value = self.get(&asked, &path).await?;
                let interfaces = &machine["properties"]["networkProfile"]["networkInterfaces"];
                let ids = interfaces.as_array().into_iter().flatten();
                let ids: Vec<String> = ids
                    .filter_map(|interface| Some(interface["id"].as_str()?.to_owned()))
                    .collect();
                self.first(&ids, is_own).await?
            }
        };
        found.ok_or_else(|| {
            CloudError::Unfit(format!(
                "no network interface of this machine has the underlay address {own}"
            ))
        })
    }

    async fn first(
        &mut self,
        ids: &[String],
        is_own: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>, CloudError> {
        for id in ids {
            let asked = asked("GET networkInterface", READ_NIC, id);
            let path = format!("{id}?api-version={NETWORK}");
            let interface: Value = self.get(&asked, &path).await?;
            if is_own(&interface) {
                return Ok(Some(interface));
            }
        }
        Ok(None)
    }

    /// The ID of the subnet of the underlay address.
    pub(super) async fn subnet(&mut self) -> Result<String, CloudError> {
        let interface = self.interface().await?;
        let own = self.own();
        let subnet = configuration(&interface, &own)
            .and_then(|configuration| configuration["properties"]["subnet"]["id"].as_str());
        subnet.map(str::to_owned).ok_or(CloudError::Malformed {
            call: "GET networkInterface",
            problem: "no subnet".to_owned(),
        })
    }
}

const READ_NIC: &str = "Microsoft.Network/networkInterfaces/read";

/// The IP configuration with an address.
fn configuration<'a>(interface: &'a Value, address: &str) -> Option<&'a Value> {
    let configurations = interface["properties"]["ipConfigurations"].as_array()?;
    let mut configurations = configurations.iter();
    configurations.find(|configuration| configuration["properties"]["privateIPAddress"] == *address)
}
