//! The table of platforms: where each has its metadata, and what of it is of use.
//!
//! Another platform is another row. The names are Afterburn's (its `docs/usage/attributes.md`), the paths from there and
//! from the platforms' documentation. Paths that are absent are no error: machines differ in what they have.

/// A platform.
pub(super) struct Provider {
    /// Its id.
    pub(super) platform: &'static str,
    /// Its name in Afterburn's variables: `AFTERBURN_AWS_…`.
    pub(super) afterburn: &'static str,
    /// Its name in CoreOS's variables: `COREOS_EC2_…`.
    pub(super) coreos: &'static str,
    /// Where to look, the first that answers counts.
    pub(super) places: &'static [Place],
}

/// A service or a drive, and what it has.
pub(super) struct Place {
    pub(super) from: Source,
    pub(super) values: &'static [Value],
    pub(super) keys: Keys,
    pub(super) user_data: Option<UserData>,
}

/// Where documents come from.
pub(super) enum Source {
    Http(Http),
    /// The first disk with one of these labels.
    Drive(&'static [&'static str]),
}

/// A metadata service.
pub(super) struct Http {
    /// Scheme and address; the first that answers counts.
    pub(super) servers: &'static [&'static str],
    pub(super) token: Option<Token>,
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// Whether it answers only ports that only root may use.
    pub(super) privileged: bool,
}

/// How a token is got by `PUT`, and shown.
pub(super) struct Token {
    pub(super) path: &'static str,
    /// The header of the request that says for how many seconds it should be good.
    pub(super) lifetime: &'static str,
    /// The header that it is shown in.
    pub(super) header: &'static str,
}

/// An attribute's name, its document, and the pointer into that (see `document::pick`). A name that ends in `*` takes all
/// that is found, and numbers them. What is called IPV4 or IPV6 must be such an address, and loses its prefix length.
pub(super) type Value = (&'static str, &'static str, &'static str);

/// Where the SSH keys are.
pub(super) enum Keys {
    Nowhere,
    /// A document and a pointer: each text has one key or several lines.
    At(&'static str, &'static str),
    /// EC2's way: a list of `0=name`, and a document `0/openssh-key` below it.
    Listed(&'static str),
    /// Google's way: lines of `user:key` in the attributes of instance and project.
    Google(&'static str),
}

/// Where the user data is: the first of the documents that there is.
pub(super) struct UserData {
    pub(super) documents: &'static [&'static str],
    pub(super) base64: bool,
}

impl Provider {
    /// Whether the platform has SSH keys.
    pub(super) fn has_keys(&self) -> bool {
        let mut places = self.places.iter();
        places.any(|place| !matches!(place.keys, Keys::Nowhere))
    }
}

/// A service without token and headers.
const fn plain(servers: &'static [&'static str]) -> Http {
    Http {
        servers,
        token: None,
        headers: &[],
        privileged: false,
    }
}

/// The address that most platforms use.
const USUAL: &[&str] = &["http://169.254.169.254"];

const AWS_KEYS: &str = "/2021-01-03/meta-data/public-keys/";
const GOOGLE: &str = "/computeMetadata/v1/?recursive=true";
const AZURE: &str = "/metadata/instance?api-version=2021-02-01";
const OPENSTACK: &str = "/openstack/2012-08-10/meta_data.json";
const OPENSTACK_DRIVE: &str = "openstack/latest/meta_data.json";
const EC2_DRIVE: &str = "ec2/latest/meta-data.json";
const DIGITALOCEAN: &str = "/metadata/v1.json";
const VULTR: &str = "/v1.json";
const SCALEWAY: &str = "/conf?format=json";
const ORACLE: &str = "/opc/v2/instance/";
const UPCLOUD: &str = "/metadata/v1.json";
const PACKET: &str = "/metadata";

/// Drives in OpenStack's and in NoCloud's form.
const CONFIG_DRIVE: &[&str] = &["config-2", "CONFIG-2"];
const NO_CLOUD: &[&str] = &["cidata", "CIDATA"];

/// What a drive in OpenStack's form has.
const fn config_drive(values: &'static [Value]) -> Place {
    Place {
        from: Source::Drive(CONFIG_DRIVE),
        values,
        keys: Keys::At(OPENSTACK_DRIVE, "/public_keys/*"),
        user_data: None,
    }
}

/// What a drive in NoCloud's form has.
const fn no_cloud(values: &'static [Value], keys: Keys) -> Place {
    Place {
        from: Source::Drive(NO_CLOUD),
        values,
        keys,
        user_data: Some(UserData {
            documents: &["user-data", "vendor-data"],
            base64: false,
        }),
    }
}

/// The drive of IBM's clouds.
const IBM_DRIVE: Place = no_cloud(
    &[
        ("INSTANCE_ID", "meta-data", "/instance-id"),
        ("LOCAL_HOSTNAME", "meta-data", "/local-hostname"),
    ],
    Keys::Nowhere,
);

/// All platforms that have metadata, by their ids.
pub(super) const PROVIDERS: &[Provider] = &[
    Provider {
        platform: "akamai",
        afterburn: "AKAMAI",
        coreos: "AKAMAI",
        places: &[Place {
            from: Source::Http(Http {
                servers: &["http://169.254.169.254", "http://[fd00:a9fe:a9fe::1]"],
                token: Some(Token {
                    path: "/v1/token",
                    lifetime: "Metadata-Token-Expiry-Seconds",
                    header: "Metadata-Token",
                }),
                headers: &[("Accept", "application/json, */*;q=0.1")],
                privileged: false,
            }),
            values: &[
                ("INSTANCE_HOST_UUID", "/v1/instance", "/host_uuid"),
                ("INSTANCE_ID", "/v1/instance", "/id"),
                ("INSTANCE_LABEL", "/v1/instance", "/label"),
                ("INSTANCE_REGION", "/v1/instance", "/region"),
                ("INSTANCE_TYPE", "/v1/instance", "/type"),
                ("PUBLIC_IPV4_*", "/v1/network", "/ipv4/public/*"),
                ("PRIVATE_IPV4_*", "/v1/network", "/ipv4/private/*"),
                ("SHARED_IPV4_*", "/v1/network", "/ipv4/shared/*"),
                ("IPV6_SLAAC", "/v1/network", "/ipv6/slaac"),
                ("IPV6_LINK_LOCAL", "/v1/network", "/ipv6/link_local"),
                ("IPV6_RANGE_*", "/v1/network", "/ipv6/ranges/*"),
                (
                    "IPV6_SHARED_RANGE_*",
                    "/v1/network",
                    "/ipv6/shared_ranges/*",
                ),
            ],
            keys: Keys::At("/v1/ssh-keys", "/users/*/*"),
            user_data: Some(UserData {
                documents: &["/v1/user-data"],
                base64: true,
            }),
        }],
    },
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
        platform: "azure",
        afterburn: "AZURE",
        coreos: "AZURE",
        places: &[Place {
            from: Source::Http(Http {
                servers: USUAL,
                token: None,
                headers: &[("Metadata", "true")],
                privileged: false,
            }),
            values: &[
                (
                    "IPV4_DYNAMIC",
                    AZURE,
                    "/network/interface/0/ipv4/ipAddress/0/privateIpAddress",
                ),
                (
                    "IPV4_VIRTUAL",
                    AZURE,
                    "/network/interface/0/ipv4/ipAddress/0/publicIpAddress",
                ),
                ("VMSIZE", AZURE, "/compute/vmSize"),
                ("HOSTNAME", AZURE, "/compute/name"),
                ("INSTANCE_ID", AZURE, "/compute/vmId"),
                ("REGION", AZURE, "/compute/location"),
                ("AVAILABILITY_ZONE", AZURE, "/compute/zone"),
            ],
            keys: Keys::At(AZURE, "/compute/publicKeys/*/keyData"),
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
        platform: "digitalocean",
        afterburn: "DIGITALOCEAN",
        coreos: "DIGITALOCEAN",
        places: &[Place {
            from: Source::Http(plain(USUAL)),
            values: &[
                ("HOSTNAME", DIGITALOCEAN, "/hostname"),
                ("REGION", DIGITALOCEAN, "/region"),
                ("INSTANCE_ID", DIGITALOCEAN, "/droplet_id"),
                (
                    "IPV4_PUBLIC_*",
                    DIGITALOCEAN,
                    "/interfaces/public/*/ipv4/ip_address",
                ),
                (
                    "IPV4_PRIVATE_*",
                    DIGITALOCEAN,
                    "/interfaces/private/*/ipv4/ip_address",
                ),
                (
                    "IPV4_ANCHOR_*",
                    DIGITALOCEAN,
                    "/interfaces/public/*/anchor_ipv4/ip_address",
                ),
                (
                    "IPV6_PUBLIC_*",
                    DIGITALOCEAN,
                    "/interfaces/public/*/ipv6/ip_address",
                ),
                (
                    "IPV6_PRIVATE_*",
                    DIGITALOCEAN,
                    "/interfaces/private/*/ipv6/ip_address",
                ),
            ],
            keys: Keys::At(DIGITALOCEAN, "/public_keys/*"),
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
        platform: "gcp",
        afterburn: "GCP",
        coreos: "GCE",
        places: &[Place {
            from: Source::Http(Http {
                servers: &["http://169.254.169.254", "http://[fd20:ce::254]"],
                token: None,
                headers: &[("Metadata-Flavor", "Google")],
                privileged: false,
            }),
            values: &[
                ("HOSTNAME", GOOGLE, "/instance/hostname"),
                ("INSTANCE_ID", GOOGLE, "/instance/id"),
                ("IP_LOCAL_*", GOOGLE, "/instance/networkInterfaces/*/ip"),
                (
                    "IP_EXTERNAL_*",
                    GOOGLE,
                    "/instance/networkInterfaces/*/accessConfigs/0/externalIp",
                ),
                ("MACHINE_TYPE", GOOGLE, "/instance/machineType"),
                ("ZONE", GOOGLE, "/instance/zone"),
            ],
            keys: Keys::Google(GOOGLE),
            user_data: None,
        }],
    },
    Provider {
        platform: "hetzner",
        afterburn: "HETZNER",
        coreos: "HETZNER",
        places: &[Place {
            from: Source::Http(plain(USUAL)),
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
        platform: "ibmcloud",
        afterburn: "IBMCLOUD",
        coreos: "IBMCLOUD",
        places: &[IBM_DRIVE],
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
    Provider {
        platform: "oraclecloud",
        afterburn: "ORACLECLOUD",
        coreos: "ORACLECLOUD",
        places: &[Place {
            from: Source::Http(Http {
                servers: &["http://169.254.169.254", "http://[fd00:c1::a9fe:a9fe]"],
                token: None,
                headers: &[("Authorization", "Bearer Oracle")],
                privileged: false,
            }),
            values: &[
                ("AVAILABILITY_DOMAIN", ORACLE, "/availabilityDomain"),
                ("COMPARTMENT_ID", ORACLE, "/compartmentId"),
                ("FAULT_DOMAIN", ORACLE, "/faultDomain"),
                ("HOSTNAME", ORACLE, "/hostname"),
                ("INSTANCE_ID", ORACLE, "/id"),
                ("INSTANCE_SHAPE", ORACLE, "/shape"),
                ("REGION_ID", ORACLE, "/canonicalRegionName"),
                ("IPV4_LOCAL", "/opc/v2/vnics/", "/0/privateIp"),
            ],
            keys: Keys::At(ORACLE, "/metadata/ssh_authorized_keys"),
            user_data: Some(UserData {
                documents: &["/opc/v2/instance/metadata/user_data"],
                base64: true,
            }),
        }],
    },
    Provider {
        platform: "packet",
        afterburn: "PACKET",
        coreos: "PACKET",
        places: &[Place {
            from: Source::Http(plain(&["https://metadata.packet.net"])),
            values: &[
                ("HOSTNAME", PACKET, "/hostname"),
                ("INSTANCE_ID", PACKET, "/id"),
                ("PLAN", PACKET, "/plan"),
                ("PHONE_HOME_URL", PACKET, "/phone_home_url"),
                (
                    "IPV4_PUBLIC_*",
                    PACKET,
                    "/network/addresses/[public=true]/address",
                ),
                (
                    "IPV4_PUBLIC_GATEWAY_*",
                    PACKET,
                    "/network/addresses/[public=true]/gateway",
                ),
                (
                    "IPV4_PRIVATE_*",
                    PACKET,
                    "/network/addresses/[public=false]/address",
                ),
                (
                    "IPV4_PRIVATE_GATEWAY_*",
                    PACKET,
                    "/network/addresses/[public=false]/gateway",
                ),
                (
                    "IPV6_PUBLIC_*",
                    PACKET,
                    "/network/addresses/[public=true]/address",
                ),
                (
                    "IPV6_PUBLIC_GATEWAY_*",
                    PACKET,
                    "/network/addresses/[public=true]/gateway",
                ),
            ],
            keys: Keys::At(PACKET, "/ssh_keys/*"),
            user_data: None,
        }],
    },
    Provider {
        platform: "powervs",
        afterburn: "POWERVS",
        coreos: "POWERVS",
        places: &[IBM_DRIVE],
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
        platform: "scaleway",
        afterburn: "SCALEWAY",
        coreos: "SCALEWAY",
        places: &[Place {
            from: Source::Http(Http {
                servers: &["http://169.254.42.42", "http://[fd00:42::42]"],
                token: None,
                headers: &[],
                privileged: true,
            }),
            // Afterburn's documentation and its code have the addresses' names the other way round.
            values: &[
                ("HOSTNAME", SCALEWAY, "/hostname"),
                ("INSTANCE_ID", SCALEWAY, "/id"),
                ("INSTANCE_TYPE", SCALEWAY, "/commercial_type"),
                ("IPV4_PRIVATE", SCALEWAY, "/private_ip"),
                ("IPV4_PUBLIC", SCALEWAY, "/public_ip/address"),
                ("IPV6_PUBLIC", SCALEWAY, "/ipv6/address"),
                ("PRIVATE_IPV4", SCALEWAY, "/private_ip"),
                ("PUBLIC_IPV4", SCALEWAY, "/public_ip/address"),
                ("PUBLIC_IPV6", SCALEWAY, "/ipv6/address"),
                ("ZONE_ID", SCALEWAY, "/location/zone_id"),
            ],
            keys: Keys::At(SCALEWAY, "/ssh_public_keys/*/key"),
            user_data: Some(UserData {
                documents: &["/user_data/cloud-init"],
                base64: false,
            }),
        }],
    },
    Provider {
        platform: "upcloud",
        afterburn: "UPCLOUD",
        coreos: "UPCLOUD",
        places: &[Place {
            from: Source::Http(plain(USUAL)),
            values: &[
                ("HOSTNAME", UPCLOUD, "/hostname"),
                ("INSTANCE_ID", UPCLOUD, "/instance_id"),
                ("REGION", UPCLOUD, "/region"),
                (
                    "IPV4_PUBLIC_*",
                    UPCLOUD,
                    "/network/interfaces/[type=public]/ip_addresses/*/address",
                ),
                (
                    "IPV4_PRIVATE_*",
                    UPCLOUD,
                    "/network/interfaces/[type=private]/ip_addresses/*/address",
                ),
                (
                    "IPV6_PUBLIC_*",
                    UPCLOUD,
                    "/network/interfaces/[type=public]/ip_addresses/*/address",
                ),
            ],
            keys: Keys::At(UPCLOUD, "/public_keys/*"),
            user_data: Some(UserData {
                documents: &["/metadata/v1/user_data"],
                base64: false,
            }),
        }],
    },
    Provider {
        platform: "vultr",
        afterburn: "VULTR",
        coreos: "VULTR",
        places: &[Place {
            from: Source::Http(plain(USUAL)),
            values: &[
                ("HOSTNAME", VULTR, "/hostname"),
                ("INSTANCE_ID", VULTR, "/instanceid"),
                ("REGION_CODE", VULTR, "/region/regioncode"),
                (
                    "IPV4_PUBLIC_*",
                    VULTR,
                    "/interfaces/[network-type=public]/ipv4/address",
                ),
                (
                    "IPV4_PRIVATE_*",
                    VULTR,
                    "/interfaces/[network-type=private]/ipv4/address",
                ),
                (
                    "IPV6_PUBLIC_*",
                    VULTR,
                    "/interfaces/[network-type=public]/ipv6/address",
                ),
            ],
            keys: Keys::At(VULTR, "/public-keys/*"),
            user_data: None,
        }],
    },
];
