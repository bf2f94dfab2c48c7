//! Documents as the platforms' documentation and other programs' tests show them, shortened.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

#[tokio::test]
async fn documents_of_the_platforms_become_variables() {
    let google = format!(
        r#"{{"instance":{{"hostname":"host.c.project.internal","id":7,"attributes":{{"ssh-keys":"core:{KEY}\n\nbad"}},
        "machineType":"projects/1/machineTypes/e2-small","zone":"projects/1/zones/us-a",
        "networkInterfaces":[{{"ip":"10.128.0.2","accessConfigs":[{{"externalIp":"34.1.2.3"}}]}},
        {{"ip":"10.9.0.2","accessConfigs":[{{"externalIp":""}}]}}]}},"project":{{"attributes":{{}}}}}}"#
    );
    let azure = format!(
        r#"{{"compute":{{"name":"set_1","osProfile":{{"computerName":"vm1"}},"vmSize":"Standard_A3",
        "location":"westus","zone":"",
        "publicKeys":[{{"keyData":"{KEY}","path":"/home/core/.ssh/authorized_keys"}}]}},
        "network":{{"interface":[{{"ipv4":{{"ipAddress":[{{"privateIpAddress":"10.144.133.132","publicIpAddress":""}}]}},
        "ipv6":{{"ipAddress":[]}},"macAddress":"0011AAFFBB22"}}]}}}}"#
    );
    let digitalocean = r#"{"droplet_id":2756294,"hostname":"sample-droplet","public_keys":[],"region":"nyc3",
        "interfaces":{"private":[{"ipv4":{"ip_address":"10.132.255.113","netmask":"255.255.0.0"},"type":"private"}],
        "public":[{"ipv4":{"ip_address":"104.131.20.105"},"ipv6":{"ip_address":"2604:A880:0800:0010:0000:0000:017D:2001",
        "cidr":64},"anchor_ipv4":{"ip_address":"10.17.0.9"},"type":"public"}]}}"#;
    let packet = r#"{"id":"3d36","hostname":"test","plan":"baremetal_0","ssh_keys":[],
        "phone_home_url":"http://metadata/phone-home","network":{"addresses":[
        {"address_family":4,"public":true,"address":"147.75.0.2","gateway":"147.75.0.1"},
        {"address_family":6,"public":true,"address":"2604:1380::2","gateway":"2604:1380::1"},
        {"address_family":4,"public":false,"address":"10.1.0.3","gateway":"10.1.0.2"}]}}"#;
    for (platform, documents, expected, keys) in [
        (
            "gcp",
            vec![("/computeMetadata/v1/?recursive=true", google.as_str())],
            vec![
                "COREOS_GCE_HOSTNAME=host.c.project.internal",
                "COREOS_GCE_INSTANCE_ID=7",
                "COREOS_GCE_IP_LOCAL_0=10.128.0.2",
                "COREOS_GCE_IP_LOCAL_1=10.9.0.2",
                "COREOS_GCE_IP_EXTERNAL_0=34.1.2.3",
                "COREOS_GCE_MACHINE_TYPE=projects/1/machineTypes/e2-small",
                "COREOS_GCE_ZONE=projects/1/zones/us-a",
            ],
            1,
        ),
        (
            "azure",
            vec![("/metadata/instance?api-version=2021-02-01", azure.as_str())],
            vec![
                "COREOS_AZURE_IPV4_DYNAMIC=10.144.133.132",
                "COREOS_AZURE_VMSIZE=Standard_A3",
                "COREOS_AZURE_HOSTNAME=vm1",
                "COREOS_AZURE_REGION=westus",
            ],
            1,
        ),
        (
            "digitalocean",
            vec![("/metadata/v1.json", digitalocean)],
            vec![
                "COREOS_DIGITALOCEAN_HOSTNAME=sample-droplet",
                "COREOS_DIGITALOCEAN_REGION=nyc3",
                "COREOS_DIGITALOCEAN_INSTANCE_ID=2756294",
                "COREOS_DIGITALOCEAN_IPV4_PUBLIC_0=104.131.20.105",
                "COREOS_DIGITALOCEAN_IPV4_PRIVATE_0=10.132.255.113",
                "COREOS_DIGITALOCEAN_IPV4_ANCHOR_0=10.17.0.9",
                "COREOS_DIGITALOCEAN_IPV6_PUBLIC_0=2604:a880:800:10::17d:2001",
            ],
            0,
        ),
        (
            "packet",
            vec![("/metadata", packet)],
            vec![
                "COREOS_PACKET_HOSTNAME=test",
                "COREOS_PACKET_INSTANCE_ID=3d36",
                "COREOS_PACKET_PLAN=baremetal_0",
                "COREOS_PACKET_PHONE_HOME_URL=http://metadata/phone-home",
                "COREOS_PACKET_IPV4_PUBLIC_0=147.75.0.2",
                "COREOS_PACKET_IPV4_PUBLIC_GATEWAY_0=147.75.0.1",
                "COREOS_PACKET_IPV4_PRIVATE_0=10.1.0.3",
                "COREOS_PACKET_IPV4_PRIVATE_GATEWAY_0=10.1.0.2",
                "COREOS_PACKET_IPV6_PUBLIC_0=2604:1380::2",
                "COREOS_PACKET_IPV6_PUBLIC_GATEWAY_0=2604:1380::1",
            ],
            0,
        ),
        (
            "exoscale",
            vec![
                ("/1.0/meta-data/local-hostname", "vm-1"),
                ("/1.0/meta-data/local-ipv4", "194.182.160.1"),
                ("/1.0/meta-data/public-keys", KEY),
            ],
            vec![
                "COREOS_EXOSCALE_LOCAL_IPV4=194.182.160.1",
                "COREOS_EXOSCALE_LOCAL_HOSTNAME=vm-1",
            ],
            1,
        ),
    ] {
        let (variables, found) = variables(platform, &documents).await;
        assert_eq!(variables, expected, "{platform}");
        assert_eq!(found, vec![KEY; keys], "{platform}");
    }
}

#[tokio::test]
async fn more_platforms_documents_become_variables() {
    let keys = format!("[\"{KEY}\"]");
    let hetzner = vec![
        ("/hetzner/v1/metadata/hostname", "my-server"),
        ("/hetzner/v1/metadata/public-ipv4", "1.2.3.4"),
        ("/hetzner/v1/metadata/public-keys", keys.as_str()),
        (
            "/hetzner/v1/metadata/private-networks",
            "- ip: 10.0.0.2\n  alias_ips: []\n  interface_num: 1\n- ip: 10.128.0.2\n",
        ),
        (
            "/hetzner/v1/metadata/network-config",
            "version: 1\nconfig:\n- type: physical\n  subnets:\n  - ipv4: true\n    type: dhcp\n  - address: 2a01:4f8::1/64\n    ipv6: true\n    type: static\n",
        ),
    ];
    let vultr = format!(
        r#"{{"hostname":"CLOUDINIT_1","instanceid":"42506325","interfaces":[
        {{"ipv4":{{"address":"108.61.89.242","netmask":"255.255.255.0"}},"ipv6":{{"address":"2001:19f0:5:56c2::1"}},
        "mac":"56:00:03:15:c4:65","network-type":"public"}},
        {{"ipv4":{{"address":"10.1.112.3"}},"network-type":"private"}}],
        "public-keys":["{KEY}"],"region":{{"regioncode":"EWR"}}}}"#
    );
    let scaleway = r#"{"id":"11111111-1111","hostname":"frontend-0","commercial_type":"DEV1-S","private_ip":null,
        "public_ip":{"address":"1.2.3.4"},"ipv6":null,"location":{"zone_id":"par1"},"ssh_public_keys":[]}"#;
    let oracle = format!(
        r#"{{"availabilityDomain":"AD-1","faultDomain":"FAULT-DOMAIN-3","hostname":"tactical","id":"ocid1.instance",
        "shape":"VM.Standard.E2.1.Micro","canonicalRegionName":"us-ashburn-1","metadata":{{"ssh_authorized_keys":"{KEY}\n"}}}}"#
    );
    let upcloud = r#"{"cloud_name":"upcloud","instance_id":"00322b68","hostname":"ubuntu-01","region":"fi-hel2",
        "network":{"interfaces":[{"index":1,"ip_addresses":[{"address":"185.70.197.2","family":"IPv4"}],"type":"public"},
        {"index":3,"ip_addresses":[{"address":"2a04:3540:1000:310::1","family":"IPv6"}],"type":"public"}]},"public_keys":[]}"#;
    let akamai = [
        ("/v1/token", "t0ken"),
        (
            "/v1/instance",
            r#"{"id":12345,"region":"us-east","type":"g6-standard-1","tags":[]}"#,
        ),
        (
            "/v1/network",
            r#"{"ipv4":{"public":["1.2.3.4/32"],"private":[],"shared":[]},"ipv6":{"slaac":"2600:3c03::1/128","ranges":["2600:e000::/64"]}}"#,
        ),
        ("/v1/ssh-keys", r#"{"users":{"root":[]}}"#),
    ];
    for (platform, documents, expected, keys) in [
        (
            "hetzner",
            hetzner,
            vec![
                "COREOS_HETZNER_HOSTNAME=my-server",
                "COREOS_HETZNER_PUBLIC_IPV4=1.2.3.4",
                "COREOS_HETZNER_PUBLIC_IPV6=2a01:4f8::1",
                "COREOS_HETZNER_PRIVATE_IPV4_0=10.0.0.2",
                "COREOS_HETZNER_PRIVATE_IPV4_1=10.128.0.2",
            ],
            1,
        ),
        (
            "vultr",
            vec![("/v1.json", vultr.as_str())],
            vec![
                "COREOS_VULTR_HOSTNAME=CLOUDINIT_1",
                "COREOS_VULTR_INSTANCE_ID=42506325",
                "COREOS_VULTR_REGION_CODE=EWR",
                "COREOS_VULTR_IPV4_PUBLIC_0=108.61.89.242",
                "COREOS_VULTR_IPV4_PRIVATE_0=10.1.112.3",
                "COREOS_VULTR_IPV6_PUBLIC_0=2001:19f0:5:56c2::1",
            ],
            1,
        ),
        (
            "scaleway",
            vec![("/conf?format=json", scaleway)],
            vec![
                "COREOS_SCALEWAY_HOSTNAME=frontend-0",
                "COREOS_SCALEWAY_INSTANCE_ID=11111111-1111",
                "COREOS_SCALEWAY_INSTANCE_TYPE=DEV1-S",
                "COREOS_SCALEWAY_IPV4_PUBLIC=1.2.3.4",
                "COREOS_SCALEWAY_PUBLIC_IPV4=1.2.3.4",
                "COREOS_SCALEWAY_ZONE_ID=par1",
            ],
            0,
        ),
        (
            "oraclecloud",
            vec![
                ("/opc/v2/instance/", oracle.as_str()),
                ("/opc/v2/vnics/", r#"[{"privateIp":"10.0.3.6"}]"#),
            ],
            vec![
                "COREOS_ORACLECLOUD_AVAILABILITY_DOMAIN=AD-1",
                "COREOS_ORACLECLOUD_FAULT_DOMAIN=FAULT-DOMAIN-3",
                "COREOS_ORACLECLOUD_HOSTNAME=tactical",
                "COREOS_ORACLECLOUD_INSTANCE_ID=ocid1.instance",
                "COREOS_ORACLECLOUD_INSTANCE_SHAPE=VM.Standard.E2.1.Micro",
                "COREOS_ORACLECLOUD_REGION_ID=us-ashburn-1",
                "COREOS_ORACLECLOUD_IPV4_LOCAL=10.0.3.6",
            ],
            1,
        ),
        (
            "upcloud",
            vec![("/metadata/v1.json", upcloud)],
            vec![
                "COREOS_UPCLOUD_HOSTNAME=ubuntu-01",
                "COREOS_UPCLOUD_INSTANCE_ID=00322b68",
                "COREOS_UPCLOUD_REGION=fi-hel2",
                "COREOS_UPCLOUD_IPV4_PUBLIC_0=185.70.197.2",
                "COREOS_UPCLOUD_IPV6_PUBLIC_0=2a04:3540:1000:310::1",
            ],
            0,
        ),
        (
            "akamai",
            akamai.to_vec(),
            vec![
                "COREOS_AKAMAI_INSTANCE_ID=12345",
                "COREOS_AKAMAI_INSTANCE_REGION=us-east",
                "COREOS_AKAMAI_INSTANCE_TYPE=g6-standard-1",
                "COREOS_AKAMAI_PUBLIC_IPV4_0=1.2.3.4",
                "COREOS_AKAMAI_IPV6_SLAAC=2600:3c03::1",
                "COREOS_AKAMAI_IPV6_RANGE_0=2600:e000::/64",
            ],
            0,
        ),
    ] {
        let (variables, found) = variables(platform, &documents).await;
        assert_eq!(variables, expected, "{platform}");
        assert_eq!(found, vec![KEY; keys], "{platform}");
    }
}

#[tokio::test]
async fn vmware_tells_by_its_keys() {
    // Deckhouse's documentation of static nodes on vSphere, whose metadata.json is handed over in base64.
    let deckhouse = format!(
        r#"{{"instance-id": "cloud-static-worker-0", "local-hostname": "cloud-static-worker-0", "public-keys-data": "{KEY}",
        "network": {{"version": 2, "ethernets": {{"id0": {{"match": {{"driver": "vmxnet3"}}, "dhcp4": true}}}}}}}}"#
    );
    // cloud-init's documentation of its datasource VMware; its key is one for each line.
    let cloud_init = format!(
        "instance-id: cloud-vm\nlocal-hostname: cloud-vm\nnetwork:\n  version: 2\n  ethernets:\n    nics:\n      match:\n\
         \x20       name: ens*\n      dhcp4: yes\npublic-keys-data: |\n  {KEY} one\n  {KEY} two\n"
    );
    // CoreOS Container Linux's documentation "Running on VMware": guestinfo.hostname.
    let values = |pairs: &[(&str, &str)]| site_of_vmware(pairs);
    for (site, expected, keys) in [
        (
            values(&[
                ("guestinfo.metadata", &STANDARD.encode(&deckhouse)),
                ("guestinfo.metadata.encoding", "base64"),
            ]),
            vec![
                "COREOS_VMWARE_HOSTNAME=cloud-static-worker-0",
                "COREOS_VMWARE_INSTANCE_ID=cloud-static-worker-0",
            ],
            1,
        ),
        (
            values(&[
                ("guestinfo.metadata", &cloud_init),
                ("guestinfo.hostname", "other"),
            ]),
            vec![
                "COREOS_VMWARE_HOSTNAME=cloud-vm",
                "COREOS_VMWARE_INSTANCE_ID=cloud-vm",
            ],
            2,
        ),
        (
            values(&[("guestinfo.hostname", "coreos1")]),
            vec!["COREOS_VMWARE_HOSTNAME=coreos1"],
            0,
        ),
        (values(&[]), vec![], 0),
    ] {
        let metadata = fetch("vmware", &site).await.unwrap();
        assert_eq!(metadata.source.as_deref(), Some("VMware's guestinfo"));
        let text = environment(&metadata);
        let lines = text.lines().filter(|line| line.starts_with("COREOS_"));
        assert_eq!(lines.collect::<Vec<_>>(), expected);
        assert_eq!(metadata.ssh_keys.len(), keys);
    }
    let site = site_of_vmware(&[("guestinfo.metadata", "{\"instance-id\":")]);
    let error = fetch("vmware", &site).await.unwrap_err();
    let text = crate::base::logging::chain(&error);
    assert!(
        text.contains("VMware's guestinfo.metadata: bad JSON"),
        "{text}"
    );
}
