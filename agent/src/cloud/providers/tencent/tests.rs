//! Tencent Cloud's servers as their documentation has them, and the provider before them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::*;
use crate::base::retry::next_random;
use crate::cloud::providers::double::{
    Cloud, Double, Question, Reply, access, in_the_way, net, once, settle, shown, start, wanted,
};
use crate::cloud::sign::{hex, hmac_sha256, sha256_hex};
use crate::plan::backend::CloudConfig;
use crate::settings::Secret;

const TABLE: &str = "rtb-l2h8d7c2";
const OWN: &str = "10.0.0.7";
const SECRET: &str = "a-very-secret-key";
const TOKEN: &str = "a-very-secret-token";

/// A route of the double.
#[derive(Clone, PartialEq, Debug)]
struct Kept {
    id: u64,
    destination: String,
    r#type: String,
    hop: String,
    description: String,
    enabled: bool,
}

/// A region with one VPC, whose second table is this machine's.
struct Vpc {
    routes: Vec<Kept>,
    made: u64,
    quota: usize,
    instead: Vec<(&'static str, Reply)>,
    trouble: Option<(u64, usize)>,
    key: usize,
}

impl Vpc {
    fn new() -> Self {
        Self {
            routes: Vec::new(),
            made: 14914,
            quota: 50,
            instead: Vec::new(),
            trouble: None,
            key: 1,
        }
    }

    fn has(&mut self, destination: &str, hop: &str, description: &str) -> &mut Kept {
        self.made += 1;
        self.routes.push(Kept {
            id: self.made,
            destination: destination.to_owned(),
            r#type: MACHINE.to_owned(),
            hop: hop.to_owned(),
            description: description.to_owned(),
            enabled: true,
        });
        self.routes.last_mut().unwrap()
    }

    fn metadata(&self, path: &str) -> Reply {
        let key = self.key;
        match path.trim_start_matches("/latest/meta-data/") {
            "placement/region" => Reply::new(200, "ap-guangzhou"),
            "network/interfaces/macs/" => Reply::new(200, "52:54:00:00:00:01/\n52:54:00:BF:B3:51/"),
            "network/interfaces/macs/52:54:00:00:00:01/primary-local-ipv4" => {
                Reply::new(200, "10.0.9.7")
            }
            "network/interfaces/macs/52:54:00:BF:B3:51/primary-local-ipv4" => Reply::new(200, OWN),
            "network/interfaces/macs/52:54:00:BF:B3:51/vpc-id" => Reply::new(200, "vpc-2at5y1pn"),
            "network/interfaces/macs/52:54:00:BF:B3:51/subnet-id" => {
                Reply::new(200, "subnet-9vezk02c")
            }
            "cam/security-credentials/" => Reply::new(200, "node-role"),
            "cam/security-credentials/node-role" => Reply::new(
                200,
                json!({
                    "TmpSecretId": format!("AKID{key}"), "TmpSecretKey": format!("{SECRET}{key}"),
                    "ExpiredTime": now() + 3600, "Expiration": "2027-01-01T00:00:00Z", "Token": TOKEN, "Code": "Success",
                }),
            ),
            _ => Reply::new(404, "<html>"),
        }
    }

    /// What is wrong with the signature, as the server finds out: from what came.
    fn unsigned(&self, question: &Question) -> Option<Reply> {
        let authorization = question.header("authorization");
        let rest = authorization.strip_prefix("TC3-HMAC-SHA256 ").unwrap();
        let parts: Vec<&str> = rest.split(", ").collect();
        let credential = parts[0].strip_prefix("Credential=").unwrap();
        let names = parts[1].strip_prefix("SignedHeaders=").unwrap();
        let signature = parts[2].strip_prefix("Signature=").unwrap();
        let (id, scope) = credential.split_once('/').unwrap();
        if id != format!("AKID{}", self.key) {
            return Some(refused("AuthFailure.SecretIdNotFound"));
        }
        for must in ["content-type", "host"] {
            assert!(names.split(';').any(|name| name == must), "{names}");
        }
        let lines: String = names
            .split(';')
            .map(|name| format!("{name}:{}\n", question.header(name).to_lowercase()))
            .collect();
        let body = sha256_hex(&question.body);
        let canonical = format!("POST\n/\n\n{lines}\n{names}\n{body}");
        let stamp = question.header("x-tc-timestamp");
        assert!(now().abs_diff(stamp.parse().unwrap()) < 300, "{stamp}");
        let hash = sha256_hex(canonical.as_bytes());
        let text = format!("TC3-HMAC-SHA256\n{stamp}\n{scope}\n{hash}");
        let key = format!("TC3{SECRET}{}", self.key);
        let key = scope.split('/').fold(key.into_bytes(), |key, part| {
            hmac_sha256(&key, part.as_bytes())
        });
        if hex(&hmac_sha256(&key, text.as_bytes())) != signature {
            return Some(refused("AuthFailure.SignatureFailure"));
        }
        assert_eq!(question.header("x-tc-token"), TOKEN);
        None
    }

    fn action(&mut self, question: &Question, action: &str) -> Reply {
        let body = question.json();
        assert_eq!(question.header("x-tc-region"), "ap-guangzhou");
        if action == "DescribeRouteTables" {
            return self.describe(&body);
        }
        if action == "DescribeInstances" {
            assert_eq!(body["Filters"][0]["Name"], "private-ip-address");
            // No machine has an address that ends in 8.
            let address = body["Filters"][0]["Values"][0].as_str().unwrap();
            let count = usize::from(!address.ends_with(".8"));
            return Reply::new(
                200,
                json!({"Response": {"TotalCount": count, "InstanceSet": []}}),
            );
        }
        if body["RouteTableId"] != TABLE {
            return refused("ResourceNotFound");
        }
        let route = &body["Routes"][0];
        match action {
            "CreateRoutes" => self.create(route),
            "ReplaceRoutes" => {
                let id = route["RouteId"].as_u64().unwrap();
                let Some(old) = self.routes.iter_mut().find(|old| old.id == id) else {
                    return refused("ResourceNotFound");
                };
                *old = kept(id, route);
                Reply::new(200, json!({"Response": {"RequestId": "1"}}))
            }
            "DeleteRoutes" => {
                let id = route["RouteId"].as_u64().unwrap();
                let before = self.routes.len();
                self.routes.retain(|route| route.id != id);
                match self.routes.len() == before {
                    true => refused("ResourceNotFound"),
                    false => Reply::new(200, json!({"Response": {"RequestId": "1"}})),
                }
            }
            other => panic!("{other}"),
        }
    }

    /// Two tables of others come first, one to a page.
    fn describe(&self, body: &Value) -> Reply {
        let (offset, limit) = (&body["Offset"], &body["Limit"]);
        let offset: usize = offset.as_str().unwrap().parse().unwrap();
        assert!((1..=100).contains(&limit.as_str().unwrap().parse::<usize>().unwrap()));
        let filter = &body["Filters"][0];
        let routes: Vec<Value> = self.routes.iter().map(entry).collect();
        let own = json!({
            "VpcId": "vpc-2at5y1pn", "RouteTableId": TABLE, "RouteTableName": "TestRouteTable", "Main": false,
            "AssociationSet": [{"RouteTableId": TABLE, "SubnetId": "subnet-9vezk02c"}], "RouteSet": routes,
        });
        let other = |number| {
            json!({
                "RouteTableId": format!("rtb-{number}"), "RouteSet": [],
                "AssociationSet": [{"RouteTableId": format!("rtb-{number}"), "SubnetId": "subnet-other"}],
            })
        };
        let tables = match (filter["Name"].as_str().unwrap(), &filter["Values"][0]) {
            ("vpc-id", vpc) if vpc == "vpc-2at5y1pn" => vec![other(1), own],
            ("route-table-id", table) if table == TABLE => vec![own],
            _ => Vec::new(),
        };
        let page: Vec<&Value> = tables.iter().skip(offset).take(1).collect();
        let body = json!({"TotalCount": tables.len(), "RouteTableSet": page, "RequestId": "1"});
        Reply::new(200, json!({"Response": body}))
    }

    fn create(&mut self, route: &Value) -> Reply {
        let mut routes = self.routes.iter();
        if routes.any(|old| route["DestinationCidrBlock"] == *old.destination) {
            return refused("InvalidParameterValue.Duplicate");
        }
        if self.routes.len() >= self.quota {
            return refused("LimitExceeded");
        }
        self.made += 1;
        self.routes.push(kept(self.made, route));
        Reply::new(
            200,
            json!({"Response": {"TotalCount": 1, "RequestId": "1"}}),
        )
    }
}

fn kept(id: u64, route: &Value) -> Kept {
    let text = |key: &str| route[key].as_str().unwrap().to_owned();
    Kept {
        id,
        destination: text("DestinationCidrBlock"),
        r#type: text("GatewayType"),
        hop: text("GatewayId"),
        description: text("RouteDescription"),
        enabled: route["Enabled"].as_bool().unwrap(),
    }
}

fn entry(route: &Kept) -> Value {
    json!({
        "RouteId": route.id, "RouteItemId": format!("rti-{}", route.id), "RouteType": "USER",
        "DestinationCidrBlock": route.destination, "DestinationIpv6CidrBlock": "", "GatewayType": route.r#type,
        "GatewayId": route.hop, "RouteDescription": route.description, "Enabled": route.enabled,
    })
}

fn refused(code: &str) -> Reply {
    let error = json!({"Code": code, "Message": "No, `really`."});
    Reply::new(200, json!({"Response": {"Error": error, "RequestId": "1"}}))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

impl Cloud for Vpc {
    fn answer(&mut self, question: &Question) -> Reply {
        if question.path.starts_with("/latest/") {
            return self.metadata(&question.path);
        }
        assert_eq!((&question.method, &*question.path), (&Method::POST, "/"));
        assert_eq!(question.header("x-tc-version"), "2017-03-12");
        let action = question.header("x-tc-action").to_owned();
        if let Some(refused) = self.unsigned(question) {
            return refused;
        }
        if let Some(at) = self.instead.iter().position(|(of, _)| *of == action) {
            return self.instead.remove(at).1;
        }
        let Some((seed, left @ 1..)) = &mut self.trouble else {
            return self.action(question, &action);
        };
        *left -= 1;
        match next_random(seed) % 6 {
            0 => refused("RequestLimitExceeded"),
            1 => Reply::new(504, "<html>"),
            // The effect without the answer.
            2 => {
                self.action(question, &action);
                refused("InternalError")
            }
            3 => Reply::new(200, "{}"),
            _ => self.action(question, &action),
        }
    }
}

fn double(vpc: Vpc) -> (Double<Vpc>, Tencent) {
    let double = start(vpc);
    let tencent = Tencent::new(access(&double, CloudConfig::default()));
    (double, tencent)
}

fn table() -> TableId {
    TABLE.to_owned()
}

/// The example of `DescribeRouteTables`, as in tencentcloud-cli's `vpc/v20170312/examples`.
#[test]
fn the_documentations_example_is_read() {
    let answer = r#"{"Response":{"RouteTableSet":[{"VpcId":"vpc-2at5y1pn","RouteTableId":"rtb-l2h8d7c2",
        "RouteTableName":"TestRouteTable","AssociationSet":[],"RouteSet":[
        {"RouteId":0,"RouteItemId":"rti6-12345678","DestinationCidrBlock":"","DestinationIpv6CidrBlock":"2402:4e00:1000:810b::/64","GatewayType":"CCN","GatewayId":"ccn-12345678","RouteDescription":""},
        {"RouteId":14915,"RouteItemId":"rti-12345678","DestinationCidrBlock":"169.254.64.0/23","GatewayType":"NORMAL_CVM","GatewayId":"172.16.0.25","RouteDescription":""},
        {"RouteId":14916,"RouteItemId":"rti-22345678","DestinationCidrBlock":"10.254.64.0/24","GatewayType":"NORMAL_CVM","GatewayId":"172.16.0.26","RouteDescription":""},
        {"RouteId":14917,"RouteItemId":"rti-32345678","DestinationCidrBlock":"10.254.100.0/24","GatewayType":"NORMAL_CVM","GatewayId":"172.16.0.26","RouteDescription":"whoIam"},
        {"RouteId":16642,"RouteItemId":"rti-42345678","DestinationCidrBlock":"10.200.0.0/18","GatewayType":"PEERCONNECTION","GatewayId":"pcx-4n2m594s","RouteDescription":"bb"}],
        "Main":false,"TagSet":[{"Value":"test","Key":"test"}],"CreatedTime":"2017-06-30 19:52:03"}],
        "TotalCount":16,"RequestId":"74883e1b-5901-46de-ae1e-d6e2cf591c5b"}}"#;
    let answer: Envelope<Tables> = serde_json::from_str(answer).unwrap();
    assert_eq!(answer.response.total_count, 16);
    let routes = answer.response.route_table_set[0].route_set.iter();
    let routes: Vec<Route> = routes
        .filter_map(|entry| route(entry, "172.16.0.25"))
        .collect();
    assert_eq!(
        shown(&routes),
        [
            "10.200.0.0/18 pcx-4n2m594s foreign",
            "10.254.100.0/24 172.16.0.26 foreign",
            "10.254.64.0/24 172.16.0.26 unmarked",
            "169.254.64.0/23 own unmarked",
        ]
    );
}

#[tokio::test]
async fn the_subnets_table_is_found_and_changed() {
    let mut vpc = Vpc::new();
    vpc.has("0.0.0.0/0", "nat-1", "").r#type = "NAT".to_owned();
    vpc.has("10.5.8.0/24", OWN, "db");
    let (double, mut tencent) = double(vpc);
    let tencent: &mut dyn RouteTable = &mut tencent;
    assert_eq!(tencent.tables().await.unwrap(), [TABLE]);
    let before = double.state().routes.clone();
    settle(tencent, &wanted(), 10).await;
    let has = tencent.list(&table()).await.unwrap();
    assert!(shown(&has).contains(&"10.5.1.0/24 own ours".to_owned()));
    assert_eq!(double.state().routes[..2], before);
    let ours = has.iter().find(|route| route.mark == Mark::Ours).unwrap();
    tencent.remove(&table(), ours).await.unwrap();
    // Again: it is gone already.
    tencent.remove(&table(), ours).await.unwrap();
    assert_eq!(double.state().routes, before);
    assert_eq!(
        tencent.allow_forwarding(&[]).await.unwrap(),
        Forwarding::Allowed
    );
    let gone = tencent.list(&"rtb-gone".to_owned()).await.unwrap_err();
    assert_eq!(
        gone.to_string(),
        "DescribeRouteTables: rtb-gone does not exist"
    );
}

#[tokio::test]
async fn a_route_of_ours_or_one_that_is_off_is_replaced_in_place() {
    for (hop, description, enabled) in [
        ("10.0.0.9", DESCRIPTION, true),
        (OWN, "", false),
        (OWN, DESCRIPTION, false),
    ] {
        let mut vpc = Vpc::new();
        vpc.has("10.5.1.0/24", hop, description).enabled = enabled;
        let (double, mut tencent) = double(vpc);
        settle(&mut tencent, &wanted(), 3).await;
        let routes = &double.state().routes;
        assert_eq!(routes.len(), 1);
        assert_eq!((&*routes[0].hop, routes[0].enabled), (OWN, true));
        assert_eq!(routes[0].id, 14915);
    }
    let mut vpc = Vpc::new();
    vpc.has("10.5.1.0/24", "10.0.0.9", "db");
    let (double, mut tencent) = double(vpc);
    assert_eq!(
        in_the_way(&mut tencent, &wanted()).await,
        r#"tccli vpc DeleteRoutes --RouteTableId rtb-l2h8d7c2 --Routes '[{"RouteId": 14915}]'"#
    );
    assert_eq!(double.state().routes[0].hop, "10.0.0.9");
}

#[tokio::test]
async fn a_dead_nodes_route_goes_and_nobody_elses() {
    for may_ask in [true, false] {
        let mut vpc = Vpc::new();
        vpc.has("10.5.1.0/24", OWN, DESCRIPTION);
        vpc.has("10.5.2.0/24", "10.0.1.8", DESCRIPTION);
        vpc.has("10.5.6.0/24", "10.0.0.8", DESCRIPTION);
        vpc.has("10.5.7.0/24", "10.0.0.9", DESCRIPTION);
        vpc.has("10.5.8.0/24", "10.0.0.8", "db");
        if !may_ask {
            let denied = ("DescribeInstances", refused("UnauthorizedOperation"));
            vpc.instead = vec![denied; 40];
        }
        let (double, mut tencent) = double(vpc);
        for _ in 0..40 {
            assert_eq!(once(&mut tencent, &wanted()).await.problems, []);
        }
        let routes = double.state().routes.clone();
        let mut routes = routes.iter().map(|route| &*route.destination);
        assert_eq!(routes.any(|to| to == "10.5.6.0/24"), !may_ask);
        assert_eq!(double.state().routes.len(), if may_ask { 4 } else { 5 });
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let (double, mut tencent) = double(Vpc::new());
    let tencent: &mut dyn RouteTable = &mut tencent;
    let own = net("10.5.1.0/24");
    double.state().instead = vec![
        ("CreateRoutes", refused("RequestLimitExceeded")),
        ("CreateRoutes", refused("UnauthorizedOperation")),
        ("CreateRoutes", refused("InvalidParameterValue.Malformed")),
        (
            "CreateRoutes",
            Reply::new(504, "<html>").with("retry-after", 9),
        ),
    ];
    for (expected, transient, wait) in [
        (
            "CreateRoutes: the provider asks to slow down (RequestLimitExceeded)",
            true,
            None,
        ),
        (
            "CreateRoutes: not allowed; give this instance's role the permission vpc:CreateRoutes",
            false,
            None,
        ),
        (
            "CreateRoutes: refused: InvalidParameterValue.Malformed: No, `really`.",
            false,
            None,
        ),
        (
            "CreateRoutes: the provider cannot do this now (504)",
            true,
            Some(9),
        ),
    ] {
        let error = tencent.add(&table(), own).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.is_transient(), transient, "{error}");
        assert_eq!(error.retry_after().map(|wait| wait.as_secs()), wait);
    }
    double.state().quota = 1;
    tencent.add(&table(), own).await.unwrap();
    let error = tencent.add(&table(), own).await.unwrap_err();
    assert!(matches!(error, CloudError::Exists { .. }), "{error}");
    let error = tencent.add(&table(), net("10.5.3.0/24")).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
}

#[tokio::test]
async fn a_roles_key_is_renewed_and_never_shown() {
    let (double, mut tencent) = double(Vpc::new());
    assert!(RouteTable::list(&mut tencent, &table()).await.is_ok());
    double.state().key = 2;
    let error = RouteTable::list(&mut tencent, &table()).await.unwrap_err();
    assert!(matches!(error, CloudError::Credentials { .. }), "{error}");
    assert!(RouteTable::list(&mut tencent, &table()).await.is_ok());
    let texts = format!("{error} {error:?} {:?} {:?}", tencent.key, tencent.access);
    for secret in [SECRET, TOKEN] {
        assert!(!texts.contains(secret), "{texts}");
    }
}

#[tokio::test]
async fn keys_of_config_environment_and_file_come_before_the_roles() {
    let double = start(Vpc::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials");
    std::fs::write(&path, "[default]\nsecret_id=file\nsecret_key=s3\n").unwrap();
    let mut access = access(&double, CloudConfig::default());
    access.credentials_file = Some(path.clone());
    let mut tencent = Tencent::new(access);
    assert_eq!(tencent.key().await.unwrap().id, "file");
    std::fs::write(&path, "[default]\nsecret_id=file\n").unwrap();
    tencent.key = None;
    let error = tencent.key().await.unwrap_err().to_string();
    assert!(error.ends_with("expected secret_id and secret_key in a section [default]"));
    tencent.access.variable = |name| match name {
        "TENCENTCLOUD_SECRET_ID" => Some("environment".to_owned()),
        "TENCENTCLOUD_SECRET_KEY" => Some("s2".to_owned()),
        _ => None,
    };
    assert_eq!(tencent.key().await.unwrap().id, "environment");
    tencent.access.config.access_key = Some(("config".to_owned(), Secret::new("s1".to_owned())));
    tencent.key = None;
    let key = tencent.key().await.unwrap();
    assert_eq!(key, AccessKey::new("config".into(), "s1".into(), None));
}

/// Any troubles, with and without an effect, end in the wanted table, and nobody else's route is touched.
#[tokio::test]
async fn any_troubles_end_in_the_wanted_table() {
    for seed in 0..40 {
        let mut vpc = Vpc::new();
        vpc.has("10.5.9.0/24", "10.0.0.9", "db");
        vpc.has("10.5.7.0/24", OWN, DESCRIPTION);
        vpc.has("0.0.0.0/0", "nat-1", "").r#type = "NAT".to_owned();
        if seed % 2 == 0 {
            vpc.has("10.5.1.0/24", "10.0.0.8", DESCRIPTION);
        }
        vpc.trouble = Some((seed, 30));
        let (double, mut tencent) = double(vpc);
        settle(&mut tencent, &wanted(), 60).await;
        let routes = double.state().routes.clone();
        let mut texts: Vec<String> = routes
            .iter()
            .map(|route| format!("{} {}", route.destination, route.hop))
            .collect();
        texts.sort();
        assert_eq!(
            texts,
            [
                "0.0.0.0/0 nat-1",
                "10.5.1.0/24 10.0.0.7",
                "10.5.9.0/24 10.0.0.9"
            ],
            "{seed}"
        );
    }
}
