//! What this machine runs on: the cloud or hypervisor, found by what firmware, kernel and disks say of it.
//!
//! [`Facts::read`] takes a snapshot, [`detect`] judges it and does nothing else. No program is started: the initrd asks at
//! every first boot.

pub use self::facts::Facts;

mod facts;
mod rules;

/// The platform, and by what it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The id, as Ignition calls it: `aws`, `hetzner`, `metal`.
    pub id: String,
    /// Why, for people: `SMBIOS sys_vendor is "Hetzner"`.
    pub reason: String,
}

/// Names that other images give to platforms: CoreOS, Flatcar, Ignition after 2.14, Afterburn.
const OTHER_NAMES: [(&str, &str); 7] = [
    ("cloudstack-configdrive", "cloudstack"),
    ("cloudstack-metadata", "cloudstack"),
    ("ec2", "aws"),
    ("gce", "gcp"),
    ("openstack-metadata", "openstack"),
    ("oracle", "oraclecloud"),
    ("pxe", "metal"),
];

/// The id of a platform that may be given by another of its names.
pub fn id_of(name: &str) -> &str {
    let mut others = OTHER_NAMES.iter();
    others
        .find(|(other, _)| *other == name)
        .map_or(name, |(_, id)| id)
}

/// Finds the platform. What the kernel command line says counts most; else the first rule that holds. A machine about which
/// nothing is known is bare metal.
pub fn detect(facts: &Facts) -> Found {
    if let Some((argument, id)) = &facts.argument {
        return Found {
            id: id_of(id).to_owned(),
            reason: format!("{argument}={id} on the kernel command line"),
        };
    }
    for rule in rules::RULES {
        if let Some(reason) = rule.holds(facts) {
            return Found {
                id: rule.platform.to_owned(),
                reason,
            };
        }
    }
    let reason = match &facts.hypervisor {
        Some(name) => format!("a virtual machine ({name}) that no rule knows"),
        None => "no sign of a hypervisor or a cloud".to_owned(),
    };
    Found {
        id: "metal".to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests;
