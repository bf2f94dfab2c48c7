use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

/// A metadata service on the loopback.
pub(super) struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What it answers: a body by path, and what each request must have.
#[derive(Clone, Default)]
struct Documents {
    bodies: BTreeMap<String, String>,
    /// A header, without which there is 401.
    required: Option<String>,
    /// So many requests get 503 before.
    failures: usize,
    /// The status of a `PUT`.
    put: Option<u16>,
}

impl Server {
    /// One that has these documents.
    pub(super) async fn start(documents: &[(&str, &str)]) -> Self {
        Self::with(Documents::of(documents)).await
    }

    async fn with(documents: Documents) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream, &documents, &seen).await;
            }
        });
        Self {
            address,
            heads,
            task,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests, each with its headers and body.
    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Documents {
    fn of(documents: &[(&str, &str)]) -> Self {
        let bodies = documents.iter();
        Self {
            bodies: bodies
                .map(|(path, body)| ((*path).to_owned(), (*body).to_owned()))
                .collect(),
            ..Self::default()
        }
    }

    fn answer(&self, head: &str, number: usize) -> (u16, String) {
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let lower = head.to_ascii_lowercase();
        let lacks = |wanted: &String| !lower.contains(&wanted.to_ascii_lowercase());
        if number < self.failures {
            return (503, String::new());
        }
        if let (true, Some(status)) = (method == "PUT", self.put) {
            return (status, String::new());
        }
        if method != "PUT" && self.required.as_ref().is_some_and(lacks) {
            return (401, String::new());
        }
        match self.bodies.get(path) {
            Some(body) => (200, body.clone()),
            None => (404, "not here".to_owned()),
        }
    }
}

async fn serve(mut stream: TcpStream, documents: &Documents, seen: &Mutex<Vec<String>>) {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await.unwrap_or_default();
        text += &String::from_utf8_lossy(&buffer[..count]);
        let length = text
            .to_ascii_lowercase()
            .split_once("content-length: ")
            .and_then(|(_, rest)| rest.lines().next()?.parse().ok())
            .unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
        if count == 0 || body.is_some_and(|body| body >= length) {
            break;
        }
    }
    let number = seen.lock().unwrap().len();
    seen.lock().unwrap().push(text.clone());
    let (status, body) = documents.answer(&text, number);
    let answer = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
}

fn site(servers: Vec<String>) -> Site {
    Site {
        root: PathBuf::from("/nonexistent"),
        servers: Some(servers),
        patience: Duration::from_secs(20),
    }
}

/// What a platform's documents give: all names with `COREOS_`, in the order of the file, and the keys.
async fn variables(platform: &str, documents: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let server = Server::start(documents).await;
    let metadata = fetch(platform, &site(vec![server.url()])).await.unwrap();
    let text = environment(&metadata);
    let lines = text.lines().filter(|line| line.starts_with("COREOS_"));
    (lines.map(str::to_owned).collect(), metadata.ssh_keys)
}

/// Documents as the platforms' documentation and other programs' tests show them, shortened.
#[tokio::test]
async fn documents_of_the_platforms_become_variables() {
    let google = format!(
        r#"{{"instance":{{"hostname":"host.c.project.internal","id":7,"attributes":{{"ssh-keys":"core:{KEY}\n\nbad"}},
        "machineType":"projects/1/machineTypes/e2-small","zone":"projects/1/zones/us-a",
        "networkInterfaces":[{{"ip":"10.128.0.2","accessConfigs":[{{"externalIp":"34.1.2.3"}}]}},
        {{"ip":"10.9.0.2","accessConfigs":[{{"externalIp":""}}]}}]}},"project":{{"attributes":{{}}}}}}"#
    );
    let azure = format!(
        r#"{{"compute":{{"name":"vm1","vmSize":"Standard_A3","location":"westus","zone":"",
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

const AWS: [(&str, &str); 7] = [
    ("/latest/api/token", "t0ken"),
    ("/2021-01-03/meta-data/local-ipv4", "172.31.1.2"),
    ("/2021-01-03/meta-data/public-ipv4", "52.1.2.3"),
    (
        "/2021-01-03/meta-data/hostname",
        "ip-172-31-1-2.ec2.internal",
    ),
    (
        "/2021-01-03/dynamic/instance-identity/document",
        r#"{"region":"us-east-1"}"#,
    ),
    ("/2021-01-03/meta-data/public-keys/", "0=my-key"),
    ("/2021-01-03/meta-data/public-keys/0/openssh-key", KEY),
];

#[tokio::test]
async fn ec2_is_asked_with_a_token_and_each_document_once() {
    let mut documents = Documents::of(&AWS);
    documents.required = Some("X-aws-ec2-metadata-token: t0ken".to_owned());
    let server = Server::with(documents).await;
    let metadata = fetch("ec2", &site(vec![server.url()])).await.unwrap();
    assert_eq!(metadata.common("IPV4_LOCAL"), Some("172.31.1.2"));
    assert_eq!(
        metadata.common("HOSTNAME"),
        Some("ip-172-31-1-2.ec2.internal")
    );
    assert_eq!(metadata.common("REGION"), Some("us-east-1"));
    assert_eq!(metadata.ssh_keys, [KEY]);
    let heads = server.heads();
    assert!(
        heads[0].starts_with("PUT /latest/api/token"),
        "{}",
        heads[0]
    );
    let mut lines: Vec<_> = heads
        .iter()
        .map(|head| head.lines().next().unwrap())
        .collect();
    let all = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), all, "asked twice: {heads:?}");
}

#[tokio::test]
async fn a_service_without_tokens_is_asked_without() {
    let mut documents = Documents::of(&AWS);
    documents.put = Some(405);
    let server = Server::with(documents).await;
    let metadata = fetch("aws", &site(vec![server.url()])).await.unwrap();
    assert_eq!(metadata.common("IPV4_PUBLIC"), Some("52.1.2.3"));
}

#[tokio::test]
async fn a_service_that_is_slow_to_come_is_asked_again() {
    let mut documents = Documents::of(&AWS);
    documents.failures = 3;
    let server = Server::with(documents).await;
    // Nobody is at the first address.
    let servers = vec!["http://127.0.0.1:1".to_owned(), server.url()];
    let metadata = fetch("aws", &site(servers)).await.unwrap();
    assert_eq!(metadata.source, Some(server.url()));
}

#[tokio::test]
async fn an_error_names_url_cause_and_time() {
    let mut documents = Documents::of(&AWS);
    documents.put = Some(403);
    let server = Server::with(documents).await;
    let mut site = site(vec!["http://127.0.0.1:1".to_owned(), server.url()]);
    site.patience = Duration::from_millis(300);
    let error = fetch("aws", &site).await.unwrap_err().to_string();
    for part in [
        "no answer from platform aws after 0 s: ",
        "http://127.0.0.1:1/latest/api/token: failed to connect: Connection refused",
        "/latest/api/token: HTTP status 403 (is the metadata service switched off for this machine?)",
    ] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[tokio::test]
async fn a_bad_document_is_no_reason_to_wait() {
    let server = Server::start(&[("/metadata/v1.json", "{\"hostname\":")]).await;
    let error = fetch("digitalocean", &site(vec![server.url()]))
        .await
        .unwrap_err();
    let text = crate::base::logging::chain(&error);
    assert!(text.contains("/metadata/v1.json: bad JSON: EOF"), "{text}");
    // Something else listens there.
    let server = Server::start(&[("/", "hello")]).await;
    let mut site = site(vec![server.url()]);
    site.patience = Duration::ZERO;
    let error = fetch("digitalocean", &site).await.unwrap_err().to_string();
    assert!(error.contains("there are no metadata here"), "{error}");
}

#[tokio::test]
async fn what_is_no_key_is_left_out() {
    let body = format!("{KEY} me@laptop\nssh-dss AAAA old\n\n{KEY} me@laptop\n");
    let documents = [
        ("/1.0/meta-data/local-hostname", "vm"),
        ("/1.0/meta-data/public-keys", body.as_str()),
    ];
    let (_, keys) = variables("exoscale", &documents).await;
    assert_eq!(keys, [format!("{KEY} me@laptop")]);
}

#[tokio::test]
async fn drives_are_read_before_the_service_is_asked() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join("dev/disk/by-label").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "config-2/openstack/latest/meta_data.json",
        &format!(r#"{{"uuid":"b3c7f4de","hostname":"abai","public_keys":{{"mykey":"{KEY}\n"}}}}"#),
    );
    write(
        "config-2/ec2/latest/meta-data.json",
        r#"{"instance-id":"i-022da7a2","instance-type":"m1.small","local-ipv4":"10.0.151.35","public-ipv4":""}"#,
    );
    let mut site = site(Vec::new());
    site.root = root.path().to_owned();
    let metadata = fetch("openstack", &site).await.unwrap();
    assert_eq!(
        metadata.source.as_deref(),
        Some("the disk labelled config-2")
    );
    assert_eq!(metadata.common("IPV4_LOCAL"), Some("10.0.151.35"));
    assert_eq!(metadata.common("IPV4_PUBLIC"), None);
    assert_eq!(metadata.ssh_keys, [KEY]);

    // As Proxmox VE writes it: Afterburn's fixture `proxmoxve/static`.
    write(
        "cidata/meta-data",
        "instance-id: 15a9919cb91024fbd1d70fa07f0efa749cbba03b\n",
    );
    write(
        "cidata/user-data",
        &format!("#cloud-config\nhostname: dummy\nssh_authorized_keys:\n  - {KEY}\n"),
    );
    write(
        "cidata/network-config",
        "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      subnets:\n      - type: static\n        address: '192.168.1.1'\n        netmask: '255.255.255.0'\n      - type: static6\n        address: '2001:db8:85a3::8a2e:370:0/24'\n",
    );
    let metadata = fetch("proxmoxve", &site).await.unwrap();
    assert_eq!(metadata.common("HOSTNAME"), Some("dummy"));
    assert_eq!(metadata.common("IPV4_LOCAL"), Some("192.168.1.1"));
    assert_eq!(metadata.common("IPV6"), Some("2001:db8:85a3::8a2e:370:0"));
    assert_eq!(metadata.ssh_keys, [KEY]);
    // A user's own Ignition config in the same place is not YAML that anybody wrote for us.
    write("cidata/user-data", "a: [1\n");
    let metadata = fetch("proxmoxve", &site).await.unwrap();
    assert_eq!(metadata.common("HOSTNAME"), None);
}

#[tokio::test]
async fn azure_and_scaleway_are_told_that_the_machine_is_up() {
    let goal = "<GoalState><Incarnation>1</Incarnation><Container><ContainerId>c6d5</ContainerId>\
                <InstanceId>b61f.Role_0</InstanceId></Container></GoalState>";
    let server = Server::start(&[
        ("/machine/?comp=goalstate", goal),
        ("/machine/?comp=health", ""),
        ("/state", ""),
    ])
    .await;
    let site = site(vec![server.url()]);
    let told = check_in::check_in("azure", &site).await.unwrap().unwrap();
    assert!(told.starts_with("ready, to "), "{told}");
    check_in::check_in("scaleway", &site)
        .await
        .unwrap()
        .unwrap();
    let heads = server.heads();
    assert!(
        heads[0].contains("x-ms-version: 2012-11-30"),
        "{}",
        heads[0]
    );
    assert!(
        heads[1].starts_with("POST /machine/?comp=health"),
        "{}",
        heads[1]
    );
    for part in [
        "<GoalStateIncarnation>1<",
        "<ContainerId>c6d5<",
        "<InstanceId>b61f.Role_0<",
        "<State>Ready<",
    ] {
        assert!(heads[1].contains(part), "{}", heads[1]);
    }
    assert!(heads[2].starts_with("PATCH /state"), "{}", heads[2]);
    assert!(
        heads[2].ends_with(r#"{"state_detail":"booted"}"#),
        "{}",
        heads[2]
    );
    assert_eq!(check_in::check_in("metal", &site).await.unwrap(), None);
    let other = Server::start(&[]).await;
    let site = super::tests::site(vec![other.url()]);
    let error = check_in::check_in("azure", &site).await.unwrap_err();
    let text = crate::base::logging::chain(&error);
    assert!(text.contains("?comp=goalstate: HTTP status 404"), "{text}");
}

#[tokio::test]
async fn a_platform_without_metadata_says_so() {
    let metadata = fetch("metal", &site(Vec::new())).await.unwrap();
    assert_eq!(metadata.source, None);
    assert_eq!(environment(&metadata), "SELVAGE_METADATA_PLATFORM=metal\n");
}
