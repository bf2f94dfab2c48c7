//! Aliyun's servers as their documentation has them, and the provider before them.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::*;
use crate::base::retry::next_random;
use crate::base::time::rfc3339;
use crate::cloud::providers::double::{
    Cloud, Double, Question, Reply, access, in_the_way, net, once, settle, shown, start, wanted,
};
use crate::cloud::sign::{hex, hmac_sha256, sha256_hex};
use crate::plan::backend::CloudConfig;
use crate::settings::Secret;

const TABLE: &str = "vtb-bp1r9pvl4xen8s9ju";
const OWN: &str = "i-bp1own";
const SECRET: &str = "a-very-secret-key";
const TOKEN: &str = "a-very-secret-token";

/// A route of the double.
#[derive(Clone, PartialEq, Debug)]
struct Kept {
    id: String,
    name: String,
    destination: String,
    r#type: &'static str,
    hop_type: &'static str,
    hop: String,
    /// So many calls until it is available.
    pending: usize,
}

/// A region with one VPC.
struct Vpc {
    routes: Vec<Kept>,
    made: usize,
    page: usize,
    quota: usize,
    /// Operations and what they are answered instead, once each.
    instead: Vec<(&'static str, Reply)>,
    /// So many calls may go wrong, by this seed.
    trouble: Option<(u64, usize)>,
    nonces: BTreeSet<String>,
    /// The number of the role's key: old ones are refused.
    key: usize,
    calls: Vec<String>,
    /// Whether the metadata service wants a token.
    hardened: bool,
}

impl Vpc {
    fn new() -> Self {
        Self {
            routes: Vec::new(),
            made: 0,
            page: 100,
            quota: 200,
            instead: Vec::new(),
            trouble: None,
            nonces: BTreeSet::new(),
            key: 1,
            calls: Vec::new(),
            hardened: true,
        }
    }

    fn has(&mut self, destination: &str, hop: &str, name: &str) -> &mut Kept {
        self.made += 1;
        self.routes.push(Kept {
            id: format!("rte-{}", self.made),
            name: name.to_owned(),
            destination: destination.to_owned(),
            r#type: "Custom",
            hop_type: "Instance",
            hop: hop.to_owned(),
            pending: 0,
        });
        self.routes.last_mut().unwrap()
    }

    fn metadata(&self, question: &Question) -> Reply {
        if question.method == Method::PUT {
            assert_eq!(question.path, "/latest/api/token");
            let ttl = question.header("x-aliyun-ecs-metadata-token-ttl-seconds");
            assert!((1..=21600).contains(&ttl.parse::<u32>().unwrap()));
            return match self.hardened {
                true => Reply::new(200, "metadata-token"),
                false => Reply::new(404, ""),
            };
        }
        let token = question.header("x-aliyun-ecs-metadata-token");
        if self.hardened != (token == "metadata-token") {
            return Reply::new(403, "");
        }
        let (id, secret, key) = (format!("STS.{}", self.key), SECRET, self.key);
        let soon = SystemTime::now() + std::time::Duration::from_secs(3600);
        match question.path.trim_start_matches("/latest/meta-data/") {
            "region-id" => Reply::new(200, "cn-hangzhou"),
            "instance-id" => Reply::new(200, OWN),
            "vswitch-id" => Reply::new(200, "vsw-bp1own"),
            "ram/security-credentials/" => Reply::new(200, "node-role"),
            "ram/security-credentials/node-role" => Reply::new(
                200,
                json!({
                    "AccessKeyId": id, "AccessKeySecret": format!("{secret}{key}"), "SecurityToken": TOKEN,
                    "Expiration": rfc3339(soon), "LastUpdated": "2026-01-01T00:00:00Z", "Code": "Success",
                }),
            ),
            _ => Reply::new(404, "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>"),
        }
    }

    /// What is wrong with the signature, as the server finds out: from what came.
    fn unsigned(&mut self, question: &Question) -> Option<Reply> {
        let authorization = question.header("authorization");
        let rest = authorization.strip_prefix("ACS3-HMAC-SHA256 ").unwrap();
        let parts: Vec<&str> = rest.split(',').collect();
        let id = parts[0].strip_prefix("Credential=").unwrap();
        let names = parts[1].strip_prefix("SignedHeaders=").unwrap();
        let signature = parts[2].strip_prefix("Signature=").unwrap();
        if id != format!("STS.{}", self.key) {
            return Some(refused(404, "InvalidAccessKeyId.NotFound"));
        }
        let all = question.headers.iter().map(|(name, _)| name.as_str());
        let mut must: Vec<&str> = all
            .filter(|name| name.starts_with("x-acs-") || *name == "host")
            .collect();
        must.sort_unstable();
        assert_eq!(names, must.join(";"));
        let lines: String = must
            .iter()
            .map(|name| format!("{name}:{}\n", question.header(name)))
            .collect();
        let body = sha256_hex(&question.body);
        assert_eq!(question.header("x-acs-content-sha256"), body);
        let canonical = format!("POST\n/\n{}\n{lines}\n{names}\n{body}", question.query);
        let text = format!("ACS3-HMAC-SHA256\n{}", sha256_hex(canonical.as_bytes()));
        let key = format!("{SECRET}{}", self.key);
        if hex(&hmac_sha256(key.as_bytes(), text.as_bytes())) != signature {
            return Some(refused(400, "SignatureDoesNotMatch"));
        }
        assert_eq!(question.header("x-acs-security-token"), TOKEN);
        let date = parse_rfc3339(question.header("x-acs-date")).unwrap();
        let off = secs(SystemTime::now()).abs_diff(secs(date));
        assert!(off < 15 * 60, "{off}");
        let nonce = question.header("x-acs-signature-nonce").to_owned();
        assert!(self.nonces.insert(nonce), "a nonce came twice");
        None
    }

    fn operation(&mut self, question: &Question, action: &str) -> Reply {
        for route in &mut self.routes {
            route.pending = route.pending.saturating_sub(1);
        }
        let parameter = |name| question.parameter(name);
        assert_eq!(parameter("RegionId"), "cn-hangzhou");
        match action {
            "DescribeVSwitchAttributes" => {
                assert_eq!(parameter("VSwitchId"), "vsw-bp1own");
                let table = json!({"RouteTableId": TABLE, "RouteTableType": "System"});
                Reply::new(200, json!({"VSwitchId": "vsw-bp1own", "RouteTable": table}))
            }
            "DescribeRouteEntryList" => self.page(question),
            "DescribeInstances" => {
                assert_eq!(question.header("x-acs-version"), "2014-05-26");
                let ids: Vec<String> = serde_json::from_str(&parameter("InstanceIds")).unwrap();
                let alive = ids.iter().filter(|id| !id.contains("dead")).count();
                Reply::new(
                    200,
                    json!({"TotalCount": alive, "Instances": {"Instance": []}}),
                )
            }
            "CreateRouteEntry" => self.create(question),
            "DeleteRouteEntry" => {
                let before = self.routes.len();
                let id = parameter("RouteEntryId");
                if self.is_busy() {
                    return refused(400, "IncorrectRouteEntryStatus");
                }
                self.routes.retain(|route| route.id != id);
                match self.routes.len() == before {
                    true => refused(404, "InvalidRouteEntry.NotFound"),
                    false => Reply::new(200, json!({"RequestId": "1"})),
                }
            }
            other => panic!("{other}"),
        }
    }

    fn is_busy(&self) -> bool {
        self.routes.iter().any(|route| route.pending > 0)
    }

    fn page(&self, question: &Question) -> Reply {
        assert_eq!(question.parameter("RouteTableId"), TABLE);
        assert!((1..=100).contains(&question.parameter("MaxResult").parse::<usize>().unwrap()));
        let start: usize = question.parameter("NextToken").parse().unwrap_or(0);
        let end = (start + self.page).min(self.routes.len());
        let entries: Vec<Value> = self.routes[start..end].iter().map(entry).collect();
        let next = match end < self.routes.len() {
            true => end.to_string(),
            false => String::new(),
        };
        Reply::new(
            200,
            json!({"NextToken": next, "RouteEntrys": {"RouteEntry": entries}, "RequestId": "1"}),
        )
    }

    fn create(&mut self, question: &Question) -> Reply {
        let destination = question.parameter("DestinationCidrBlock");
        assert_eq!(question.parameter("NextHopType"), "Instance");
        if self.is_busy() {
            return refused(400, "IncorrectRouteEntryStatus");
        }
        if self
            .routes
            .iter()
            .any(|route| route.destination == destination)
        {
            return refused(400, "InvalidCIDRBlock.Duplicate");
        }
        if self.routes.len() >= self.quota {
            return refused(400, "QuotaExceeded");
        }
        let (hop, name) = (
            question.parameter("NextHopId"),
            question.parameter("RouteEntryName"),
        );
        let route = self.has(&destination, &hop, &name);
        route.pending = 2;
        let id = route.id.clone();
        Reply::new(200, json!({"RouteEntryId": id, "RequestId": "1"}))
    }
}

fn entry(route: &Kept) -> Value {
    json!({
        "RouteEntryId": route.id, "RouteEntryName": route.name, "Type": route.r#type, "IpVersion": "IPv4",
        "Status": if route.pending > 0 { "Pending" } else { "Available" },
        "RouteTableId": TABLE, "DestinationCidrBlock": route.destination,
        "NextHops": {"NextHop": [{
            "NextHopId": route.hop, "NextHopType": route.hop_type, "NextHopRelatedInfo": {}, "Enabled": 1, "Weight": 100,
        }]},
    })
}

fn refused(status: u16, code: &str) -> Reply {
    let host = "vpc.cn-hangzhou.aliyuncs.com";
    let body = json!({"RequestId": "1", "HostId": host, "Code": code, "Message": "No.\n Really."});
    Reply::new(status, body)
}

impl Cloud for Vpc {
    fn answer(&mut self, question: &Question) -> Reply {
        if question.path.starts_with("/latest/") {
            return self.metadata(question);
        }
        assert_eq!((&question.method, &*question.path), (&Method::POST, "/"));
        let action = question.header("x-acs-action").to_owned();
        let is_ecs = action == "DescribeInstances";
        assert_eq!(question.header("x-acs-version") == "2016-04-28", !is_ecs);
        self.calls.push(action.clone());
        if let Some(refused) = self.unsigned(question) {
            return refused;
        }
        if let Some(at) = self.instead.iter().position(|(of, _)| *of == action) {
            return self.instead.remove(at).1;
        }
        let Some((seed, left @ 1..)) = &mut self.trouble else {
            return self.operation(question, &action);
        };
        *left -= 1;
        match next_random(seed) % 6 {
            0 => refused(400, "Throttling.User"),
            1 => refused(503, "ServiceUnavailable"),
            // The effect without the answer.
            2 => {
                self.operation(question, &action);
                refused(500, "InternalError")
            }
            3 => Reply::new(200, "{"),
            _ => self.operation(question, &action),
        }
    }
}

fn double(vpc: Vpc) -> (Double<Vpc>, Aliyun) {
    let double = start(vpc);
    let aliyun = Aliyun::new(access(&double, CloudConfig::default()));
    (double, aliyun)
}

fn table() -> TableId {
    TABLE.to_owned()
}

/// The example of `DescribeRouteEntryList` (the JSON form), and one of `DescribeRouteTables`' system routes.
#[test]
fn the_documentations_example_is_read() {
    let page = r#"{
        "NextToken":"",
        "RouteEntrys":{"RouteEntry":[{
            "Status":"Available",
            "NextHops":{"NextHop":[{"NextHopId":"eni-bp16v0fuhulfl5e1****","NextHopRelatedInfo":{},"NextHopType":"NetworkInterface"}]},
            "RouteEntryName":"ENI","Type":"Custom","RouteEntryId":"rte-bp1aejenqyg5zcmv4****","IpVersion":"ipv4",
            "RouteTableId":"vtb-bp15w5q90d2rk3bww****","DestinationCidrBlock":"103.0.0.0/32"},
            {"Status":"Available","Type":"System","NextHops":{"NextHop":[{"NextHopType":"local","NextHopId":""}]},
            "DestinationCidrBlock":"192.168.0.0/24"},
            {"Status":"Deleting","Type":"Custom","DestinationCidrBlock":"10.0.0.0/24"},
            {"Status":"Available","Type":"Custom","DestinationCidrBlock":"pl-bp1fzpk8rg2f"}]},
        "RequestId":"57828ADD-F0C4-4125-AF79-6556D44C5277"}"#;
    let page: Entries = serde_json::from_str(page).unwrap();
    let routes = page.route_entrys.route_entry.iter();
    let routes: Vec<Route> = routes.filter_map(|entry| route(entry, OWN)).collect();
    assert_eq!(
        shown(&routes),
        [
            "103.0.0.0/32 eni-bp16v0fuhulfl5e1**** foreign",
            "192.168.0.0/24 local foreign"
        ]
    );
}

#[tokio::test]
async fn a_list_that_repeats_itself_is_no_whole_one() {
    let mut vpc = Vpc::new();
    vpc.page = 0;
    vpc.has("10.9.1.0/24", "i-other", "");
    let (_double, mut aliyun) = double(vpc);
    let error = aliyun.list(TABLE).await.unwrap_err();
    assert!(
        error.to_string().ends_with("the same page again"),
        "{error}"
    );
}

#[tokio::test]
async fn the_subnets_table_is_listed_whole_and_changed() {
    let mut vpc = Vpc::new();
    vpc.page = 7;
    for number in 0..30 {
        vpc.has(&format!("10.9.{number}.0/24"), "i-other", "");
    }
    vpc.has("0.0.0.0/0", "ngw-1", "").hop_type = "NatGateway";
    vpc.has("10.0.0.0/8", "", "").r#type = "System";
    let (double, mut aliyun) = double(vpc);
    let aliyun: &mut dyn RouteTable = &mut aliyun;
    assert_eq!(aliyun.tables().await.unwrap(), [TABLE]);
    assert_eq!(aliyun.list(&table()).await.unwrap().len(), 32);
    let before = double.state().routes.clone();
    settle(aliyun, &wanted(), 10).await;
    let has = aliyun.list(&table()).await.unwrap();
    assert!(shown(&has).contains(&"10.5.1.0/24 own ours".to_owned()));
    assert_eq!(double.state().routes[..32], before);
    let own = has
        .iter()
        .find(|route| route.target == Target::Own)
        .unwrap();
    aliyun.remove(&table(), own).await.unwrap();
    // Again: it is gone already.
    aliyun.remove(&table(), own).await.unwrap();
    assert_eq!(double.state().routes, before);
    assert_eq!(
        aliyun.allow_forwarding(&[]).await.unwrap(),
        Forwarding::Allowed
    );
}

#[tokio::test]
async fn only_our_own_routes_give_way() {
    let mut vpc = Vpc::new();
    // Of a node that had the subnet before; of an earlier lease of ours; flannel's; of somebody else.
    vpc.has("10.5.1.0/24", "i-dead", NAME);
    vpc.has("10.5.7.0/24", OWN, NAME);
    vpc.has("10.5.2.0/24", "i-peer", "");
    vpc.has("10.5.8.0/24", OWN, "db");
    let (double, mut aliyun) = double(vpc);
    settle(&mut aliyun, &wanted(), 10).await;
    let has = RouteTable::list(&mut aliyun, &table()).await.unwrap();
    assert_eq!(
        shown(&has),
        [
            "10.5.1.0/24 own ours",
            "10.5.2.0/24 i-peer unmarked",
            "10.5.8.0/24 own foreign",
        ]
    );
    drop(double);
    let mut vpc = Vpc::new();
    vpc.has("10.5.1.0/24", "i-other", "db");
    let (double, mut aliyun) = self::double(vpc);
    let command = in_the_way(&mut aliyun, &wanted()).await;
    assert_eq!(command, "aliyun vpc DeleteRouteEntry --RouteEntryId rte-1");
    assert_eq!(double.state().routes[0].hop, "i-other");
}

#[tokio::test]
async fn a_dead_nodes_route_goes_and_nobody_elses() {
    for may_ask in [true, false] {
        let mut vpc = Vpc::new();
        vpc.has("10.5.1.0/24", OWN, NAME);
        vpc.has("10.5.2.0/24", "i-dead-but-leased", NAME);
        vpc.has("10.5.6.0/24", "i-dead", NAME);
        vpc.has("10.5.7.0/24", "i-peer", NAME);
        vpc.has("10.5.8.0/24", "i-dead", "db");
        if !may_ask {
            let denied = ("DescribeInstances", refused(403, "Forbidden.RAM"));
            vpc.instead = vec![denied; 40];
        }
        let (double, mut aliyun) = double(vpc);
        for _ in 0..40 {
            assert_eq!(once(&mut aliyun, &wanted()).await.problems, []);
        }
        let routes = double.state().routes.clone();
        let mut routes = routes.iter().map(|route| &*route.destination);
        assert_eq!(routes.any(|to| to == "10.5.6.0/24"), !may_ask);
        assert_eq!(double.state().routes.len(), if may_ask { 4 } else { 5 });
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let (double, mut aliyun) = double(Vpc::new());
    let aliyun: &mut dyn RouteTable = &mut aliyun;
    let own = net("10.5.1.0/24");
    let throttled = refused(400, "Throttling.User").with("retry-after", 7);
    double.state().instead = vec![
        ("CreateRouteEntry", throttled),
        (
            "CreateRouteEntry",
            refused(400, "IncorrectRouteEntryStatus"),
        ),
        ("CreateRouteEntry", refused(403, "Forbidden.RAM")),
        ("CreateRouteEntry", refused(400, "InvalidCidrBlock")),
        ("CreateRouteEntry", Reply::new(502, "<html>")),
    ];
    for (expected, transient, wait) in [
        (
            "CreateRouteEntry: the provider asks to slow down (Throttling.User)",
            true,
            Some(7),
        ),
        (
            "CreateRouteEntry: the provider cannot do this now (IncorrectRouteEntryStatus)",
            true,
            None,
        ),
        (
            "CreateRouteEntry: not allowed; give this instance's role the permission vpc:CreateRouteEntry",
            false,
            None,
        ),
        (
            "CreateRouteEntry: refused: InvalidCidrBlock: No. Really.",
            false,
            None,
        ),
        (
            "CreateRouteEntry: the provider cannot do this now (502)",
            true,
            None,
        ),
    ] {
        let error = aliyun.add(&table(), own).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.is_transient(), transient, "{error}");
        assert_eq!(error.retry_after().map(|wait| wait.as_secs()), wait);
    }
    double.state().quota = 1;
    aliyun.add(&table(), own).await.unwrap();
    // The first is pending, so another has to wait; then the table is full.
    let next = net("10.5.3.0/24");
    let error = aliyun.add(&table(), next).await.unwrap_err();
    assert!(matches!(error, CloudError::Unavailable { .. }), "{error}");
    let error = aliyun.add(&table(), next).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
    let error = aliyun.add(&table(), own).await.unwrap_err();
    assert!(matches!(error, CloudError::Exists { .. }), "{error}");
}

#[tokio::test]
async fn a_roles_key_is_renewed_and_never_shown() {
    let (double, mut aliyun) = double(Vpc::new());
    assert!(RouteTable::list(&mut aliyun, &table()).await.is_ok());
    double.state().key = 2;
    let error = RouteTable::list(&mut aliyun, &table()).await.unwrap_err();
    assert!(matches!(error, CloudError::Credentials { .. }), "{error}");
    assert!(RouteTable::list(&mut aliyun, &table()).await.is_ok());
    let texts = format!("{error} {error:?} {:?} {:?}", aliyun.key, aliyun.access);
    for secret in [SECRET, TOKEN] {
        assert!(!texts.contains(secret), "{texts}");
    }
    // A service that knows no tokens.
    let mut vpc = Vpc::new();
    vpc.hardened = false;
    let (_double, mut aliyun) = self::double(vpc);
    assert_eq!(aliyun.tables().await.unwrap(), [TABLE]);
}

#[tokio::test]
async fn keys_of_config_environment_and_file_come_before_the_roles() {
    let double = start(Vpc::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials");
    std::fs::write(
        &path,
        "[other]\naccess_key_id = no\n[default]\ntype = access_key\naccess_key_id = file\naccess_key_secret = s3\n",
    )
    .unwrap();
    let mut access = access(&double, CloudConfig::default());
    access.credentials_file = Some(path);
    let mut aliyun = Aliyun::new(access);
    assert_eq!(aliyun.key().await.unwrap().id, "file");
    let of_environment = |name: &str| match name {
        "ACCESS_KEY_ID" => Some("environment".to_owned()),
        "ACCESS_KEY_SECRET" => Some("s2".to_owned()),
        _ => None,
    };
    aliyun.access.variable = of_environment;
    aliyun.key = None;
    assert_eq!(aliyun.key().await.unwrap().id, "environment");
    aliyun.access.config.access_key = Some(("config".to_owned(), Secret::new("s1".to_owned())));
    aliyun.key = None;
    let key = aliyun.key().await.unwrap();
    assert_eq!(key, AccessKey::new("config".into(), "s1".into(), None));
    assert!(double.state().calls.is_empty());
}

/// Any troubles, with and without an effect, end in the wanted table, and nobody else's route is touched.
#[tokio::test]
async fn any_troubles_end_in_the_wanted_table() {
    for seed in 0..40 {
        let mut vpc = Vpc::new();
        vpc.page = 2;
        vpc.has("10.5.9.0/24", "i-other", "db");
        vpc.has("10.5.7.0/24", OWN, NAME);
        vpc.has("0.0.0.0/0", "ngw-1", "").hop_type = "NatGateway";
        if seed % 2 == 0 {
            vpc.has("10.5.1.0/24", "i-dead", NAME);
        }
        vpc.trouble = Some((seed, 30));
        let (double, mut aliyun) = double(vpc);
        settle(&mut aliyun, &wanted(), 60).await;
        let routes = double.state().routes.clone();
        let mut texts: Vec<String> = routes
            .iter()
            .map(|route| format!("{} {}", route.destination, route.hop))
            .collect();
        texts.sort();
        assert_eq!(
            texts,
            [
                "0.0.0.0/0 ngw-1",
                "10.5.1.0/24 i-bp1own",
                "10.5.9.0/24 i-other"
            ],
            "{seed}"
        );
    }
}

/// A key that ends soon is replaced before.
#[tokio::test]
async fn a_key_that_ends_soon_is_not_used() {
    let (_double, mut aliyun) = double(Vpc::new());
    let now = secs(SystemTime::now());
    for (ends, is_kept) in [(now + 60, false), (now + 3600, true)] {
        aliyun.key = Some(crate::cloud::access::Kept {
            value: AccessKey::new("kept".into(), "x".into(), None),
            ends: Some(ends),
        });
        assert_eq!(aliyun.key().await.unwrap().id == "kept", is_kept);
    }
}
