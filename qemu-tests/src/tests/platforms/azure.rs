//! Azure: the config by the metadata service or, where that has none, on a CD; and the report to the host, without which
//! Azure takes a machine for one that did not come up.

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{ADDRESS, BY_HTTP, Cloud, End, Files, Given, Up, config, files, served};
use crate::{
    drive::{Drive, Kind},
    serve::demands::{Demands, Header},
};

const SMBIOS: &[&str] = &[
    "type=1,manufacturer=Microsoft Corporation,product=Virtual Machine",
    "type=3,manufacturer=Microsoft Corporation,asset=7783-7084-3265-9085-8269-3286-77",
];

/// These machines.
pub(super) const CLOUDS: &[Cloud] = &[
    Cloud {
        case: "platforms::azure_by_imds",
        name: "azure-imds",
        smbios: SMBIOS,
        given: by_imds,
        sata: false,
        ends: End::Up(Up {
            shows: SHOWS,
            prints: &[
                FILE,
                ("cat /etc/hostname", "vm1"),
                ("systemctl is-active selvage-check-in.service", "active"),
            ],
            reports: READY,
        }),
    },
    Cloud {
        case: "platforms::azure_by_the_cd",
        name: "azure-cd",
        smbios: SMBIOS,
        given: by_the_cd,
        sata: false,
        ends: End::Up(Up {
            shows: SHOWS,
            prints: &[
                FILE,
                (
                    "lsblk -no FSTYPE,LABEL /dev/sr0 | tr -s ' '",
                    "udf rd_rdfe_test",
                ),
                // Nothing stays mounted that was looked at.
                ("findmnt -rno TARGET /dev/sr0", ""),
            ],
            reports: READY,
        }),
    },
];

const SHOWS: &[&str] = &[
    "platform: azure (SMBIOS chassis_asset_tag is \"7783-7084-3265-9085-8269-3286-77\")",
    BY_HTTP,
    "COREOS_AZURE_IPV4_DYNAMIC=172.16.0.15",
    "COREOS_AZURE_IPV4_VIRTUAL=203.0.113.27",
];
const FILE: (&str, &str) = ("stat -c %F /etc/from-azure", "regular empty file");

/// The parts of the report that name this machine, and its state.
const READY: &[&str] = &[
    "<GoalStateIncarnation>1</GoalStateIncarnation>",
    "<ContainerId>c6d5526c-5ac2-4200-b6e2-56f2b70c5ab2</ContainerId>",
    "<InstanceId>b61f93d0-e1ed-40b2-b067-22c243233448._vm1</InstanceId>",
    "<State>Ready</State>",
];

/// In the shape of `GoalState` in the tests of Azure/WALinuxAgent and coreos/afterburn.
const GOAL_STATE: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">
  <Version>2012-11-30</Version>
  <Incarnation>1</Incarnation>
  <Machine>
    <ExpectedState>Started</ExpectedState>
    <StopRolesDeadlineHint>300000</StopRolesDeadlineHint>
    <LBProbePorts><Port>16001</Port></LBProbePorts>
  </Machine>
  <Container>
    <ContainerId>c6d5526c-5ac2-4200-b6e2-56f2b70c5ab2</ContainerId>
    <RoleInstanceList>
      <RoleInstance>
        <InstanceId>b61f93d0-e1ed-40b2-b067-22c243233448._vm1</InstanceId>
        <State>Started</State>
      </RoleInstance>
    </RoleInstanceList>
  </Container>
</GoalState>
"#;

/// In the shape of `ovf-env.xml` in the tests of Azure/WALinuxAgent; `CustomData` there is what `CustomData.bin` has.
const OVF: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:wa="http://schemas.microsoft.com/windowsazure">
  <wa:ProvisioningSection>
    <wa:Version>1.0</wa:Version>
    <LinuxProvisioningConfigurationSet xmlns="http://schemas.microsoft.com/windowsazure">
      <ConfigurationSetType>LinuxProvisioningConfiguration</ConfigurationSetType>
      <HostName>vm1</HostName>
      <UserName>core</UserName>
      <DisableSshPasswordAuthentication>true</DisableSshPasswordAuthentication>
      <CustomData>CUSTOM-DATA</CustomData>
    </LinuxProvisioningConfigurationSet>
  </wa:ProvisioningSection>
  <wa:PlatformSettingsSection>
    <wa:Version>1.0</wa:Version>
    <PlatformSettings xmlns="http://schemas.microsoft.com/windowsazure">
      <ProvisionGuestAgent>false</ProvisionGuestAgent>
    </PlatformSettings>
  </wa:PlatformSettingsSection>
</Environment>
"#;

/// By Microsoft's "Azure Instance Metadata Service": `Metadata: true` with every request, or it is refused (400); user data
/// are in base64, and an empty text where there are none.
fn imds(public_key: &str, user_data: String) -> Result<Given> {
    let instance = json!({
        "compute": {
            "azEnvironment": "AzurePublicCloud",
            "location": "westeurope",
            "name": "vm1",
            "osProfile": {"adminUsername": "core", "computerName": "vm1", "disablePasswordAuthentication": "true"},
            "osType": "Linux",
            "publicKeys": [{"keyData": public_key, "path": "/home/core/.ssh/authorized_keys"}],
            "vmId": "5d33a910-a7a0-4443-9f01-6a807801b29b",
            "vmSize": "Standard_B2s",
            "zone": "",
        },
        "network": {"interface": [{
            "ipv4": {
                "ipAddress": [{"privateIpAddress": ADDRESS, "publicIpAddress": "203.0.113.27"}],
                "subnet": [{"address": "172.16.0.0", "prefix": "24"}],
            },
            "ipv6": {"ipAddress": []},
            "macAddress": "525400123456",
        }]},
    });
    let demands = Demands {
        header: Some(Header {
            name: "metadata".into(),
            value: "true".into(),
            refusal: 400,
        }),
        ..Demands::default()
    };
    let contents = [
        (
            "metadata/instance/compute/userData?api-version=2021-01-01&format=text",
            user_data,
        ),
        (
            "metadata/instance?api-version=2021-02-01",
            instance.to_string(),
        ),
    ];
    Ok(Given {
        azure_host: wire_server()?,
        ..served(&demands, &contents)?
    })
}

/// The host speaks with clients that name the version of the protocol, as Azure/WALinuxAgent does (`wire.py`).
fn wire_server() -> Result<Files> {
    let demands = Demands {
        header: Some(Header {
            name: "x-ms-version".into(),
            value: "2012-11-30".into(),
            refusal: 400,
        }),
        takes: Some("/machine/?comp=health".into()),
        ..Demands::default()
    };
    let mut wire_server = files(&[("machine/?comp=goalstate", GOAL_STATE.to_owned())]);
    wire_server.push(demands.file()?);
    Ok(wire_server)
}

fn by_imds(public_key: &str) -> Result<Given> {
    imds(public_key, STANDARD.encode(config("/etc/from-azure")))
}

fn by_the_cd(public_key: &str) -> Result<Given> {
    let config = config("/etc/from-azure");
    let ovf = OVF.replace("CUSTOM-DATA", &STANDARD.encode(&config));
    Ok(Given {
        drive: Some(Drive {
            kind: Kind::UdfCd,
            label: "rd_rdfe_test",
            files: files(&[("ovf-env.xml", ovf), ("CustomData.bin", config)]),
        }),
        ..imds(public_key, String::new())?
    })
}
