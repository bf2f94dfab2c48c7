//! Drives that the hypervisor attaches, and keys and values that it hands over.

use super::{Keys, OPENSTACK_DRIVE, Place, Provider, Source, UserData, config_drive, no_cloud};
use crate::appliance::metadata::guestinfo;

/// These platforms, by their ids.
pub(super) const TABLE: &[Provider] = &[
    Provider {
        platform: "ibmcloud",
        afterburn: "IBMCLOUD",
        coreos: "IBMCLOUD",
        places: &[no_cloud(
            &[
                ("INSTANCE_ID", "meta-data", "/instance-id"),
                ("LOCAL_HOSTNAME", "meta-data", "/local-hostname"),
            ],
            Keys::Nowhere,
        )],
    },
    Provider {
        platform: "kubevirt",
        afterburn: "KUBEVIRT",
        coreos: "KUBEVIRT",
        places: &[
            config_drive(&[
                ("HOSTNAME", OPENSTACK_DRIVE, "/hostname"),
                ("INSTANCE_ID", OPENSTACK_DRIVE, "/instance_id"),
                ("INSTANCE_TYPE", OPENSTACK_DRIVE, "/instance_type"),
            ]),
            no_cloud(
                &[
                    ("HOSTNAME", "meta-data", "/local-hostname"),
                    ("INSTANCE_ID", "meta-data", "/instance-id"),
                    ("INSTANCE_TYPE", "meta-data", "/instance-type"),
                ],
                Keys::At("meta-data", "/public-keys/*"),
            ),
        ],
    },
    Provider {
        platform: "nutanix",
        afterburn: "NUTANIX",
        coreos: "NUTANIX",
        places: &[config_drive(&[
            ("HOSTNAME", OPENSTACK_DRIVE, "/hostname"),
            ("INSTANCE_ID", OPENSTACK_DRIVE, "/uuid"),
        ])],
    },
    Provider {
        platform: "powervs",
        afterburn: "POWERVS",
        coreos: "POWERVS",
        places: &[config_drive(&[
            ("INSTANCE_ID", OPENSTACK_DRIVE, "/uuid"),
            ("LOCAL_HOSTNAME", OPENSTACK_DRIVE, "/name"),
        ])],
    },
    Provider {
        platform: "proxmoxve",
        afterburn: "PROXMOXVE",
        coreos: "PROXMOXVE",
        places: &[no_cloud(
            &[
                ("HOSTNAME", "user-data", "/hostname"),
                ("INSTANCE_ID", "meta-data", "/instance-id"),
                ("IPV4", "network-config", "/config/*/subnets/*/address"),
                ("IPV6", "network-config", "/config/*/subnets/*/address"),
            ],
            Keys::At("user-data", "/ssh_authorized_keys/*"),
        )],
    },
    Provider {
        platform: guestinfo::PLATFORM,
        afterburn: "VMWARE",
        coreos: "VMWARE",
        places: &[Place {
            from: Source::GuestInfo,
            values: &[
                ("HOSTNAME", guestinfo::METADATA, "/local-hostname"),
                // Older than cloud-init's, and Container Linux's.
                ("HOSTNAME", guestinfo::HOSTNAME, ""),
                ("INSTANCE_ID", guestinfo::METADATA, "/instance-id"),
            ],
            keys: Keys::At(guestinfo::METADATA, "/public-keys-data"),
            user_data: Some(UserData {
                documents: &[guestinfo::USERDATA],
                base64: false,
            }),
        }],
    },
];
