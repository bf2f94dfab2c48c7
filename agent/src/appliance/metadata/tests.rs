use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

mod platforms;

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

    /// From now on nobody is there.
    pub(super) fn stop(&mut self) {
        self.task.abort();
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

pub(super) fn site(servers: Vec<String>) -> Site {
    Site {
        root: PathBuf::from("/nonexistent"),
        servers: Some(servers),
        guestinfo: BTreeMap::new(),
        patience: Duration::from_secs(20),
    }
}

/// A machine whose host says this.
pub(super) fn site_of_vmware(values: &[(&str, &str)]) -> Site {
    let values = values.iter();
    Site {
        guestinfo: values
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..site(Vec::new())
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
async fn alibaba_lists_its_keys_as_directories() {
    // "View instance metadata" in Alibaba's documentation: `public-keys/` gives `0/`.
    let documents = [
        ("/latest/meta-data/instance-id", "i-bp13znx0m0me8cquu0mi"),
        ("/latest/meta-data/public-keys/", "0/"),
        ("/latest/meta-data/public-keys/0/openssh-key", KEY),
    ];
    let (_, keys) = variables("aliyun", &documents).await;
    assert_eq!(keys, [KEY]);
}

#[tokio::test]
async fn the_first_row_that_gives_something_counts() {
    let azure = r#"{"compute":{"name":"vm2","osProfile":{"computerName":""}}}"#;
    let documents = [("/metadata/instance?api-version=2021-02-01", azure)];
    let (variables, _) = variables("azure", &documents).await;
    assert_eq!(variables, ["COREOS_AZURE_HOSTNAME=vm2"]);
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

#[test]
fn an_address_of_a_link_is_asked_on_each_interface_with_a_device() {
    let root = tempfile::tempdir().unwrap();
    for path in ["eth1/device", "eth0/device", "lo", "docker0"] {
        std::fs::create_dir_all(root.path().join("sys/class/net").join(path)).unwrap();
    }
    let mut site = site(Vec::new());
    site.servers = None;
    site.root = root.path().to_owned();
    let servers = site.servers(&["http://169.254.169.254", "http://[fe80::a9fe:a9fe%]"]);
    let expected = [
        "http://169.254.169.254",
        "http://[fe80::a9fe:a9fe%eth0]",
        "http://[fe80::a9fe:a9fe%eth1]",
    ];
    assert_eq!(servers, expected);
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
async fn drives_have_documents_as_services_have() {
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
    // Nobody is at the first address, as on a machine without IPv4.
    let site = site(vec!["http://127.0.0.1:1".to_owned(), server.url()]);
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
