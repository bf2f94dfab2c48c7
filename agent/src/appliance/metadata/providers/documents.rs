//! Services with one document, or few, for everything.

use super::{Http, Keys, Place, Provider, Source, Token, USUAL, UserData, plain};

const GOOGLE: &str = "/computeMetadata/v1/?recursive=true";
const AZURE: &str = "/metadata/instance?api-version=2021-02-01";
const DIGITALOCEAN: &str = "/metadata/v1.json";
const VULTR: &str = "/v1.json";
const SCALEWAY: &str = "/conf?format=json";
const ORACLE: &str = "/opc/v2/instance/";
const UPCLOUD: &str = "/metadata/v1.json";
const PACKET: &str = "/metadata";

/// These platforms, by their ids.
pub(super) const TABLE: &[Provider] = &[
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
                // A scale set calls its machines SET_0, which is no host name.
                ("HOSTNAME", AZURE, "/compute/osProfile/computerName"),
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
