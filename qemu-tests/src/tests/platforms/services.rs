//! Providers whose machines ask a service for everything: EC2, Google Compute Engine, DigitalOcean, Hetzner.

use anyhow::Result;
use serde_json::json;

use super::{ADDRESS, BY_HTTP, Cloud, End, Given, Up, config, files, served, with_key};
use crate::serve::demands::{Demands, Header, Token};

const EC2: &[&str] = &["type=1,manufacturer=Amazon EC2,product=t3.micro"];
const GCE: &[&str] = &["type=1,manufacturer=Google,product=Google Compute Engine"];
const DIGITALOCEAN: &[&str] = &["type=1,manufacturer=DigitalOcean,product=Droplet"];
const HETZNER: &[&str] = &["type=1,manufacturer=Hetzner,product=vServer"];

/// These machines.
pub(super) const CLOUDS: &[Cloud] = &[
    Cloud {
        case: "platforms::ec2_with_tokens_only",
        name: "ec2",
        smbios: EC2,
        given: ec2,
        sata: false,
        ends: End::Up(Up {
            shows: &[
                "platform: aws (SMBIOS sys_vendor is \"Amazon EC2\")",
                BY_HTTP,
            ],
            prints: &[
                ("cat /run/reader", "172.16.0.15 203.0.113.25 3"),
                (
                    "cd /run/metadata; for name in flatcar afterburn selvage; do cmp coreos $name; done",
                    "",
                ),
            ],
            reports: &[],
        }),
    },
    Cloud {
        case: "platforms::gce_with_its_header",
        name: "gce",
        smbios: GCE,
        given: gce,
        sata: false,
        ends: End::Up(Up {
            shows: &[
                "platform: gcp (SMBIOS product_name is \"Google Compute Engine\")",
                BY_HTTP,
                "COREOS_GCE_IP_LOCAL_0=172.16.0.15",
                "COREOS_GCE_IP_EXTERNAL_0=203.0.113.26",
            ],
            prints: &[("stat -c %F /etc/from-gce", "regular empty file")],
            reports: &[],
        }),
    },
    Cloud {
        case: "platforms::digitalocean_by_http",
        name: "digitalocean",
        smbios: DIGITALOCEAN,
        given: digitalocean,
        sata: false,
        ends: End::Up(Up {
            shows: &[
                "platform: digitalocean (SMBIOS sys_vendor is \"DigitalOcean\")",
                BY_HTTP,
                "COREOS_DIGITALOCEAN_IPV4_PUBLIC_0=172.16.0.15",
                "COREOS_DIGITALOCEAN_IPV4_PRIVATE_0=10.132.255.113",
            ],
            prints: &[
                ("stat -c %F /etc/from-digitalocean", "regular empty file"),
                ("cat /etc/hostname", "sample-droplet"),
            ],
            reports: &[],
        }),
    },
    // Ignition itself fetches this one, and knows only that it is no JSON.
    Cloud {
        case: "platforms::digitalocean_cloud_config_is_refused_with_words",
        name: "digitalocean-cloud-config",
        smbios: DIGITALOCEAN,
        given: digitalocean_cloud_config,
        sata: false,
        ends: End::Stops(&[
            "ignition-fetch.service",
            "invalid character '#'",
            "no cloud-config, script or Butane config",
        ]),
    },
    Cloud {
        case: "platforms::hetzner_by_the_bridge",
        name: "hetzner",
        smbios: HETZNER,
        given: hetzner,
        sata: false,
        ends: End::Up(Up {
            shows: HETZNER_SHOWS,
            prints: &[
                (
                    "ls /etc/from-hetzner /etc/from-credential 2>/dev/null",
                    "/etc/from-hetzner",
                ),
                ("cat /etc/hostname", "my-server"),
            ],
            reports: &[],
        }),
    },
    Cloud {
        case: "platforms::credential_counts_more_than_the_platform",
        name: "credential",
        smbios: &[
            HETZNER[0],
            // {"ignition":{"version":"3.3.0"},"storage":{"files":[{"path":"/etc/from-credential"}]}}
            "type=11,value=io.systemd.credential.binary:ignition.config=eyJpZ25pdGlvbiI6eyJ2ZXJzaW9uIjoiMy4zLjAifSwic3\
             RvcmFnZSI6eyJmaWxlcyI6W3sicGF0aCI6Ii9ldGMvZnJvbS1jcmVkZW50aWFsIn1dfX0=",
        ],
        given: hetzner,
        // One of them shows by the way that the initrd finds such a disk.
        sata: true,
        ends: End::Up(Up {
            shows: HETZNER_SHOWS,
            prints: &[
                (
                    "ls /etc/from-hetzner /etc/from-credential 2>/dev/null",
                    "/etc/from-credential",
                ),
                ("cat /etc/hostname", "my-server"),
            ],
            reports: &[],
        }),
    },
    Cloud {
        case: "platforms::cloud_config_is_refused_with_words",
        name: "cloud-config",
        smbios: HETZNER,
        given: hetzner_cloud_config,
        sata: false,
        ends: End::Stops(&["it is a cloud-config", "write one with butane"]),
    },
];

const HETZNER_SHOWS: &[&str] = &[
    "platform: hetzner (SMBIOS sys_vendor is \"Hetzner\")",
    BY_HTTP,
    "AFTERBURN_HETZNER_PUBLIC_IPV4=172.16.0.15",
];

/// What people give by mistake.
const CLOUD_CONFIG: &str = "#cloud-config\npackages: [nginx]\n";

/// A unit as those for CoreOS are: it reads metadata, and names some of it for flannel's settings. 3 is the exit status of
/// `selvage status` where no agent runs; 78 would be a setting that cannot be used.
const READER: &str = "\
[Unit]
Requires=coreos-metadata.service
After=coreos-metadata.service

[Service]
Type=oneshot
RemainAfterExit=yes
EnvironmentFile=/run/metadata/coreos
Environment=FLANNELD_IFACE=${COREOS_EC2_IPV4_LOCAL}
Environment=FLANNELD_PUBLIC_IP=${COREOS_EC2_IPV4_PUBLIC}
ExecStart=/usr/bin/sh -c 'selvage status >/dev/null 2>&1; echo $$COREOS_EC2_IPV4_LOCAL $$COREOS_EC2_IPV4_PUBLIC $$?'
StandardOutput=file:/run/reader

[Install]
WantedBy=multi-user.target
";

/// By the EC2 user guide, "Use the Instance Metadata Service to access instance metadata": with `HttpTokens` required,
/// a request without a token is refused (401), and so is one for a token without its lifetime (400).
fn ec2(public_key: &str) -> Result<Given> {
    let config = json!({
        "ignition": {"version": "3.3.0"},
        "systemd": {"units": [{"name": "reader.service", "enabled": true, "contents": READER}]},
    });
    let demands = Demands {
        token: Some(Token {
            target: "/latest/api/token".into(),
            lifetime: "x-aws-ec2-metadata-token-ttl-seconds".into(),
            header: "x-aws-ec2-metadata-token".into(),
            token: "AQAEAJf0ken==".into(),
        }),
        ..Demands::default()
    };
    let data = "2021-01-03/meta-data";
    served(
        &demands,
        &[
            ("2019-10-01/user-data", config.to_string()),
            (
                "latest/dynamic/instance-identity/document",
                json!({"instanceId": "i-1234567890abcdef0", "region": "eu-central-1"}).to_string(),
            ),
            (&format!("{data}/local-ipv4"), ADDRESS.to_owned()),
            (&format!("{data}/public-ipv4"), "203.0.113.25".to_owned()),
            (&format!("{data}/public-keys/index"), "0=harness".to_owned()),
            (
                &format!("{data}/public-keys/0/openssh-key"),
                public_key.to_owned(),
            ),
        ],
    )
}

/// By Google's "About VM metadata" and "Query metadata": `Metadata-Flavor: Google` with every request, or it is refused
/// (403); `?recursive=true` gives everything below a directory as JSON. Keys are lines of `user:key`.
fn gce(public_key: &str) -> Result<Given> {
    let config = config("/etc/from-gce");
    let everything = json!({
        "instance": {
            "attributes": {
                "ssh-keys": format!("core:{}", public_key),
                "user-data": config,
            },
            "hostname": "test.europe-west3-a.c.example-project.internal",
            "id": 8_087_716_956_832_600_000_u64,
            "machineType": "projects/123456789012/machineTypes/e2-small",
            "networkInterfaces": [{
                "accessConfigs": [{"externalIp": "203.0.113.26", "type": "ONE_TO_ONE_NAT"}],
                "ip": ADDRESS,
                "mtu": 1460,
                "network": "projects/123456789012/networks/default",
            }],
            "zone": "projects/123456789012/zones/europe-west3-a",
        },
        "project": {"attributes": {}, "numericProjectId": 123_456_789_012_u64, "projectId": "example-project"},
    });
    let demands = Demands {
        header: Some(Header {
            name: "metadata-flavor".into(),
            value: "Google".into(),
            refusal: 403,
        }),
        ..Demands::default()
    };
    served(
        &demands,
        &[
            ("computeMetadata/v1/instance/attributes/user-data", config),
            ("computeMetadata/v1/?recursive=true", everything.to_string()),
        ],
    )
}

/// By DigitalOcean's "Metadata API Reference", `/metadata/v1.json` in "Droplet Properties"; what is not there is 404.
fn digitalocean(public_key: &str) -> Result<Given> {
    let everything = json!({
        "droplet_id": 2_756_294,
        "hostname": "sample-droplet",
        "vendor_data": "#cloud-config\ndisable_root: false\n",
        "public_keys": [public_key],
        "region": "nyc3",
        "interfaces": {
            "private": [{
                "ipv4": {"ip_address": "10.132.255.113", "netmask": "255.255.0.0", "gateway": "10.132.0.1"},
                "mac": "04:01:2a:0f:2a:02",
                "type": "private",
            }],
            "public": [{
                "ipv4": {"ip_address": ADDRESS, "netmask": "255.255.240.0", "gateway": "172.16.0.2"},
                "anchor_ipv4": {"ip_address": "10.17.0.9", "netmask": "255.255.0.0", "gateway": "10.17.0.1"},
                "mac": "04:01:2a:0f:2a:01",
                "type": "public",
            }],
        },
        "floating_ip": {"ipv4": {"active": false}},
        "dns": {"nameservers": ["67.207.67.2", "67.207.67.3"]},
        "features": {"dhcp_enabled": true},
    });
    let contents = [
        ("metadata/v1/user-data", config("/etc/from-digitalocean")),
        ("metadata/v1.json", everything.to_string()),
    ];
    served(&Demands::default(), &contents)
}

fn digitalocean_cloud_config(_: &str) -> Result<Given> {
    let contents = [("metadata/v1/user-data", CLOUD_CONFIG.to_owned())];
    served(&Demands::default(), &contents)
}

/// By Hetzner's "Server Metadata". The platform has the key as well: a config from elsewhere need not have it.
fn hetzner(public_key: &str) -> Result<Given> {
    let data = "hetzner/v1/metadata";
    let contents = [
        (
            "hetzner/v1/userdata",
            with_key(public_key, "/etc/from-hetzner"),
        ),
        (&format!("{data}/hostname"), "my-server".to_owned()),
        (&format!("{data}/public-ipv4"), ADDRESS.to_owned()),
        (
            &format!("{data}/public-keys"),
            json!([public_key]).to_string(),
        ),
    ];
    served(&Demands::default(), &contents)
}

fn hetzner_cloud_config(_: &str) -> Result<Given> {
    Ok(Given {
        served: files(&[("hetzner/v1/userdata", CLOUD_CONFIG.to_owned())]),
        ..Given::default()
    })
}
