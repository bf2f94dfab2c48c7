//! Services with a text for each value, as EC2 has it.

use super::{
    EC2_DRIVE, Http, Keys, OPENSTACK_DRIVE, Place, Provider, Source, Token, USUAL, UserData,
    config_drive, plain,
};

const AWS_KEYS: &str = "/2021-01-03/meta-data/public-keys/";
const OPENSTACK: &str = "/openstack/2012-08-10/meta_data.json";

/// These platforms, by their ids.
pub(super) const TABLE: &[Provider] = &[
    Provider {
        platform: "aliyun",
        afterburn: "ALIYUN",
        coreos: "ALIYUN",
        places: &[Place {
            from: Source::Http(Http {
                servers: &["http://100.100.100.200"],
                token: Some(Token {
                    path: "/latest/api/token",
                    lifetime: "X-aliyun-ecs-metadata-token-ttl-seconds",
                    header: "X-aliyun-ecs-metadata-token",
                }),
                headers: &[],
                privileged: false,
            }),
            values: &[
                ("EIPV4", "/latest/meta-data/eipv4", ""),
                ("HOSTNAME", "/latest/meta-data/hostname", ""),
                ("IMAGE_ID", "/latest/meta-data/image-id", ""),
                ("INSTANCE_ID", "/latest/meta-data/instance-id", ""),
                (
                    "INSTANCE_TYPE",
                    "/latest/meta-data/instance/instance-type",
                    "",
                ),
                ("IPV4_PRIVATE", "/latest/meta-data/private-ipv4", ""),
                ("IPV4_PUBLIC", "/latest/meta-data/public-ipv4", ""),
                ("REGION_ID", "/latest/meta-data/region-id", ""),
                ("VPC_ID", "/latest/meta-data/vpc-id", ""),
                ("ZONE_ID", "/latest/meta-data/zone-id", ""),
            ],
            keys: Keys::Listed("/latest/meta-data/public-keys/"),
            user_data: None,
        }],
    },
    Provider {
        platform: "aws",
        afterburn: "AWS",
        coreos: "EC2",
        places: &[Place {
            from: Source::Http(Http {
                servers: &["http://169.254.169.254", "http://[fd00:ec2::254]"],
                token: Some(Token {
                    path: "/latest/api/token",
                    lifetime: "X-aws-ec2-metadata-token-ttl-seconds",
                    header: "X-aws-ec2-metadata-token",
                }),
                headers: &[],
                privileged: false,
            }),
            values: &[
                ("HOSTNAME", "/2021-01-03/meta-data/hostname", ""),
                (
                    "PUBLIC_HOSTNAME",
                    "/2021-01-03/meta-data/public-hostname",
                    "",
                ),
                ("IPV4_LOCAL", "/2021-01-03/meta-data/local-ipv4", ""),
                ("IPV4_PUBLIC", "/2021-01-03/meta-data/public-ipv4", ""),
                ("IPV6", "/2021-01-03/meta-data/ipv6", ""),
                (
                    "AVAILABILITY_ZONE",
                    "/2021-01-03/meta-data/placement/availability-zone",
                    "",
                ),
                (
                    "AVAILABILITY_ZONE_ID",
                    "/2021-01-03/meta-data/placement/availability-zone-id",
                    "",
                ),
                ("INSTANCE_ID", "/2021-01-03/meta-data/instance-id", ""),
                ("INSTANCE_TYPE", "/2021-01-03/meta-data/instance-type", ""),
                (
                    "REGION",
                    "/2021-01-03/dynamic/instance-identity/document",
                    "/region",
                ),
            ],
            keys: Keys::Listed(AWS_KEYS),
            user_data: None,
        }],
    },
    Provider {
        platform: "cloudstack",
        afterburn: "CLOUDSTACK",
        coreos: "CLOUDSTACK",
        places: &[Place {
            // The virtual router, under the name that it gives itself in the machine's domain.
            from: Source::Http(plain(&["http://data-server"])),
            values: &[
                (
                    "AVAILABILITY_ZONE",
                    "/latest/meta-data/availability-zone",
                    "",
                ),
                ("CLOUD_IDENTIFIER", "/latest/meta-data/cloud-identifier", ""),
                ("INSTANCE_ID", "/latest/meta-data/instance-id", ""),
                ("IPV4_LOCAL", "/latest/meta-data/local-ipv4", ""),
                ("IPV4_PUBLIC", "/latest/meta-data/public-ipv4", ""),
                ("LOCAL_HOSTNAME", "/latest/meta-data/local-hostname", ""),
                ("PUBLIC_HOSTNAME", "/latest/meta-data/public-hostname", ""),
                ("SERVICE_OFFERING", "/latest/meta-data/service-offering", ""),
                ("VM_ID", "/latest/meta-data/vm-id", ""),
            ],
            keys: Keys::At("/latest/meta-data/public-keys", ""),
            user_data: None,
        }],
    },
    Provider {
        platform: "exoscale",
        afterburn: "EXOSCALE",
        coreos: "EXOSCALE",
        places: &[Place {
            from: Source::Http(plain(USUAL)),
            values: &[
                ("AVAILABILITY_ZONE", "/1.0/meta-data/availability-zone", ""),
                ("CLOUD_IDENTIFIER", "/1.0/meta-data/cloud-identifier", ""),
                ("INSTANCE_ID", "/1.0/meta-data/instance-id", ""),
                ("LOCAL_IPV4", "/1.0/meta-data/local-ipv4", ""),
                ("PUBLIC_IPV4", "/1.0/meta-data/public-ipv4", ""),
                ("LOCAL_HOSTNAME", "/1.0/meta-data/local-hostname", ""),
                ("PUBLIC_HOSTNAME", "/1.0/meta-data/public-hostname", ""),
                ("SERVICE_OFFERING", "/1.0/meta-data/service-offering", ""),
                ("VM_ID", "/1.0/meta-data/vm-id", ""),
            ],
            keys: Keys::At("/1.0/meta-data/public-keys", ""),
            user_data: None,
        }],
    },
    Provider {
        platform: "hetzner",
        afterburn: "HETZNER",
        coreos: "HETZNER",
        places: &[Place {
            // The second is for machines without IPv4.
            from: Source::Http(plain(&[
                "http://169.254.169.254",
                "http://[fe80::a9fe:a9fe%]",
            ])),
            values: &[
                (
                    "AVAILABILITY_ZONE",
                    "/hetzner/v1/metadata/availability-zone",
                    "",
                ),
                ("HOSTNAME", "/hetzner/v1/metadata/hostname", ""),
                ("INSTANCE_ID", "/hetzner/v1/metadata/instance-id", ""),
                ("PUBLIC_IPV4", "/hetzner/v1/metadata/public-ipv4", ""),
                (
                    "PUBLIC_IPV6",
                    "/hetzner/v1/metadata/network-config",
                    "/config/*/subnets/[ipv6=true]/address",
                ),
                (
                    "PRIVATE_IPV4_*",
                    "/hetzner/v1/metadata/private-networks",
                    "/*/ip",
                ),
                ("REGION", "/hetzner/v1/metadata/region", ""),
            ],
            keys: Keys::At("/hetzner/v1/metadata/public-keys", "/*"),
            user_data: Some(UserData {
                documents: &["/hetzner/v1/userdata"],
                base64: false,
            }),
        }],
    },
    Provider {
        platform: "openstack",
        afterburn: "OPENSTACK",
        coreos: "OPENSTACK",
        places: &[
            config_drive(&[
                ("HOSTNAME", OPENSTACK_DRIVE, "/hostname"),
                ("INSTANCE_UUID", OPENSTACK_DRIVE, "/uuid"),
                ("AVAILABILITY_ZONE", OPENSTACK_DRIVE, "/availability_zone"),
                ("INSTANCE_ID", EC2_DRIVE, "/instance-id"),
                ("INSTANCE_TYPE", EC2_DRIVE, "/instance-type"),
                ("IPV4_LOCAL", EC2_DRIVE, "/local-ipv4"),
                ("IPV4_PUBLIC", EC2_DRIVE, "/public-ipv4"),
            ]),
            Place {
                from: Source::Http(plain(USUAL)),
                values: &[
                    ("HOSTNAME", "/latest/meta-data/hostname", ""),
                    ("INSTANCE_UUID", OPENSTACK, "/uuid"),
                    ("AVAILABILITY_ZONE", OPENSTACK, "/availability_zone"),
                    ("INSTANCE_ID", "/latest/meta-data/instance-id", ""),
                    ("INSTANCE_TYPE", "/latest/meta-data/instance-type", ""),
                    ("IPV4_LOCAL", "/latest/meta-data/local-ipv4", ""),
                    ("IPV4_PUBLIC", "/latest/meta-data/public-ipv4", ""),
                ],
                keys: Keys::At(OPENSTACK, "/public_keys/*"),
                user_data: None,
            },
        ],
    },
];
