//! The MAC address of a VXLAN device: peers send to the one in this node's lease, and the kernel drops packets for any
//! other. systemd-udevd changes addresses according to `MACAddressPolicy=` of the first matching `.link` file.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use super::inventory;
use crate::base::net::MacAddr;
use crate::command::doctor::{Context, Finding, Outcome, Severity};
use crate::host::identity::vxlan::stored_devices;
use crate::host::netlink::inventory::{Interface, Inventory};

mod link_file;

pub(super) const NAME: &str = "mac-policy";

/// Where systemd-udevd listens while it runs.
const UDEV: &str = "/run/udev/control";

/// `NET_ADDR_SET` (linux/netdevice.h): the address was set explicitly, and systemd-udevd leaves it alone.
const SET: &str = "3";

/// How long a running agent may take to restore a changed address.
const PATIENCE: Duration = Duration::from_millis(1500);

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let published = published(context);
    let mut inventory = inventory().await?;
    let differs = |inventory: &Inventory| {
        let mut pairs = published.iter();
        pairs.any(|(name, mac)| {
            inventory
                .named(name)
                .is_some_and(|device| differs_from(device, *mac))
        })
    };
    if context.status.is_ok() && differs(&inventory) {
        sleep(PATIENCE).await;
        inventory = super::inventory().await?;
    }
    let mut findings = Vec::new();
    for (name, mac) in &published {
        let Some(device) = inventory.named(name) else {
            continue;
        };
        let policy = Path::new(UDEV)
            .exists()
            .then(|| link_file::policy(name))
            .flatten();
        if differs_from(device, *mac) {
            findings.push(changed(device, *mac, policy.as_deref()));
        } else if let Some(policy) = policy.filter(|_| is_kernels_choice(device)) {
            findings.push(may_change(name, &policy));
        }
    }
    Ok(findings)
}

/// The VXLAN devices of this host, with the addresses that the agent publishes for them.
fn published(context: &Context<'_>) -> Vec<(String, MacAddr)> {
    let identities = stored_devices(&context.settings.files.state_dir).into_iter();
    let of_file = |path: &Path| fs::read_to_string(path).ok()?.trim().parse().ok();
    let mut published: Vec<_> = identities
        .filter_map(|(name, path)| Some((name.to_string(), of_file(&path)?)))
        .collect();
    // Devices of an earlier configuration do not matter.
    if let Ok(status) = &context.status {
        published.retain(|(name, _)| status.devices.iter().any(|device| device.name == *name));
    }
    published
}

fn differs_from(device: &Interface, mac: MacAddr) -> bool {
    device.kind.as_deref() == Some("vxlan") && device.mac.is_some_and(|found| found != mac)
}

/// Whether the kernel chose the address, according to sysfs. It shows the network namespace that it was mounted in, so
/// it counts only if it shows this device.
fn is_kernels_choice(device: &Interface) -> bool {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/sys/class/net/{}/{name}", device.name)).ok()?;
        Some(text.trim().to_owned())
    };
    let same = read("ifindex").is_some_and(|index| index == device.index.to_string())
        && read("address") == device.mac.map(|mac| mac.to_string());
    same && read("addr_assign_type").is_some_and(|how| how != SET)
}

/// The commands that keep systemd-udevd from changing the devices.
fn remedy(then: &[&str]) -> Vec<String> {
    let mut remedy = vec![
        "printf '[Match]\\nOriginalName=flannel*\\n[Link]\\nMACAddressPolicy=none\\n' > \
         /etc/systemd/network/50-selvage.link && udevadm control --reload"
            .to_owned(),
    ];
    remedy.extend(then.iter().map(|&line| line.to_owned()));
    remedy
}

fn changed(device: &Interface, mac: MacAddr, policy: Option<&str>) -> Finding {
    let name = &device.name;
    let found = device.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let what = format!("the MAC address of {name} is {found}, but this node's lease has {mac}");
    let why = "Peers send to the address in the lease, and the kernel drops packets for any other. systemd-udevd, NetworkManager or a command changed it";
    let set = format!("ip link set {name} address {mac}, which a running agent does on its own");
    let remedy = match policy {
        Some(_) => remedy(&[&set]),
        None => vec![set],
    };
    Finding::new(NAME, Severity::Error, name, what, why, remedy)
}

fn may_change(name: &str, policy: &str) -> Finding {
    Finding::new(
        NAME,
        Severity::Warning,
        name,
        format!(
            "systemd-udevd may change the MAC address of {name}: MACAddressPolicy={policy} applies to it"
        ),
        "The kernel chose the address when another agent created the device, so systemd-udevd may choose another at any later event of the device. Peers would send to the old one until the lease has the new one",
        remedy(&[]),
    )
}
