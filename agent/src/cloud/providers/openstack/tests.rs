//! Keystone and Neutron as their documentation has them, and the provider before them.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::*;
use crate::base::retry::next_random;
use crate::base::time::{rfc3339, secs};
use crate::cloud::providers::double::{
    Cloud, Double, Question, Reply, access, in_the_way, net, settle, shown, start, wanted,
};
use crate::plan::backend::CloudConfig;

const ROUTER: &str = "f8a44de0-fc8e-45df-93c7-f79bf3b01c95";
const PROJECT: &str = "0bd18306d801447bb457a46252d82d13";
const OWN: &str = "10.0.0.7";
const PASSWORD: &str = "a-very-secret-password";

/// A project with one network and one router.
struct Project {
    /// Destination and next hop.
    routes: Vec<(String, String)>,
    revision: u64,
    /// The pairs of this machine's port.
    pairs: Vec<Value>,
    port_revision: u64,
    has_port_security: bool,
    /// Other machines: address and status.
    others: Vec<(&'static str, &'static str)>,
    is_atomic: bool,
    has_revisions: bool,
    quota: usize,
    /// The number of the token that counts; those before are revoked.
    token: u64,
    logins: usize,
    /// Method and end of the path, and what they are answered instead, once each.
    instead: Vec<(&'static str, &'static str, Reply)>,
    /// Before so many writes of the router somebody else adds a route to it.
    races: usize,
    trouble: Option<(u64, usize)>,
}

impl Project {
    fn new() -> Self {
        Self {
            routes: Vec::new(),
            revision: 4,
            pairs: Vec::new(),
            port_revision: 9,
            has_port_security: true,
            others: vec![("10.0.0.9", "ACTIVE"), ("10.0.0.20", "ACTIVE")],
            is_atomic: true,
            has_revisions: true,
            quota: 30,
            token: 1,
            logins: 0,
            instead: Vec::new(),
            races: 0,
            trouble: None,
        }
    }

    fn has(&mut self, destination: &str, hop: &str) {
        self.routes.push((destination.to_owned(), hop.to_owned()));
    }

    fn login(&mut self, question: &Question) -> Reply {
        self.logins += 1;
        let body = question.json();
        let user = &body["auth"]["identity"]["password"]["user"];
        if user["password"] != PASSWORD || user["name"] != "nodes" {
            return Reply::new(401, json!({"error": {"code": 401, "message": PASSWORD}}));
        }
        assert_eq!(body["auth"]["scope"]["project"]["name"], "demo");
        let soon = SystemTime::now() + std::time::Duration::from_secs(3600);
        let ends = rfc3339(soon).replace('Z', ".000000Z");
        let endpoint = |interface, host| json!({"interface": interface, "region": "RegionOne", "region_id": "RegionOne", "url": format!("http://{host}:9696/networking")});
        let endpoints = [
            endpoint("internal", "inside"),
            endpoint("public", "outside"),
        ];
        let token = json!({
            "methods": ["password"], "expires_at": ends, "project": {"id": PROJECT, "name": "demo"},
            "catalog": [{"type": "network", "name": "neutron", "endpoints": endpoints}],
        });
        Reply::new(201, json!({"token": token}))
            .with("x-subject-token", format!("token-{}", self.token))
    }

    fn neutron(&mut self, question: &Question, path: &str) -> Reply {
        let method = question.method.as_str();
        match (method, path) {
            ("GET", "/extensions/extraroute-atomic") => match self.is_atomic {
                true => Reply::new(
                    200,
                    json!({"extension": {"alias": "extraroute-atomic", "links": []}}),
                ),
                false => failed(404, "HTTPNotFound"),
            },
            ("GET", "/ports") => self.ports(question),
            ("PUT", "/ports/own") => self.put_port(question),
            ("GET", "/subnets/subnet-1") => Reply::new(
                200,
                json!({"subnet": {
                    "id": "subnet-1", "gateway_ip": "10.0.0.1", "cidr": "10.0.0.0/24", "project_id": PROJECT,
                }}),
            ),
            ("GET" | "PUT", _) if path.starts_with(&format!("/routers/{ROUTER}")) => {
                self.router(question, path.rsplit('/').next().unwrap())
            }
            _ => failed(404, "RouterNotFound"),
        }
    }

    fn port(&self, id: &str, address: &str, owner: &str, device: &str) -> Value {
        let mut port = json!({
            "id": id, "network_id": "network-1", "device_owner": owner, "device_id": device, "status": "ACTIVE",
            "fixed_ips": [{"subnet_id": "subnet-1", "ip_address": address}], "allowed_address_pairs": [],
        });
        if id == "own" {
            port["allowed_address_pairs"] = self.pairs.clone().into();
            port["port_security_enabled"] = self.has_port_security.into();
            if self.has_revisions {
                port["revision_number"] = self.port_revision.into();
            }
        }
        port
    }

    /// Two to a page.
    fn ports(&self, question: &Question) -> Reply {
        let mut ports = vec![
            self.port("own", OWN, "compute:nova", "machine-1"),
            self.port("gateway", "10.0.0.1", "network:router_interface", ROUTER),
            self.port("dhcp", "10.0.0.2", "network:dhcp", "dhcp-1"),
        ];
        for (address, status) in &self.others {
            let id = format!("port-{address}");
            let mut port = self.port(&id, address, "compute:nova", &id);
            port["status"] = (*status).into();
            ports.push(port);
        }
        let wanted = question.query.split('&').filter_map(|pair| {
            let value = pair.strip_prefix("fixed_ips=ip_address%3D")?;
            Some(value.to_owned())
        });
        for address in wanted {
            ports.retain(|port| port["fixed_ips"][0]["ip_address"] == *address);
        }
        let marker = question.parameter("marker");
        let start = ports.iter().position(|port| port["id"] == *marker);
        let rest = ports.split_off(start.map_or(0, |start| start + 1));
        let links = match rest.len() > 2 {
            true => json!([{"rel": "next", "href": "http://elsewhere/"}]),
            false => json!([]),
        };
        let page: Vec<&Value> = rest.iter().take(2).collect();
        Reply::new(200, json!({"ports": page, "ports_links": links}))
    }

    fn put_port(&mut self, question: &Question) -> Reply {
        let expected = format!("revision_number={}", self.port_revision);
        let condition = question.header("if-match");
        if !condition.is_empty() && condition != expected {
            return failed(412, "RevisionNumberConstraintFailed");
        }
        let body = question.json();
        self.pairs = body["port"]["allowed_address_pairs"]
            .as_array()
            .unwrap()
            .clone();
        self.port_revision += 1;
        Reply::new(200, json!({"port": {"id": "own"}}))
    }

    fn router(&mut self, question: &Question, verb: &str) -> Reply {
        if question.method == Method::GET {
            return self.shown();
        }
        if self.races > 0 {
            self.races -= 1;
            self.revision += 1;
            self.has(&format!("10.9.{}.0/24", self.races), "10.0.0.9");
        }
        let body = question.json();
        let routes = body["router"]["routes"].as_array().unwrap();
        let text = |route: &Value, key: &str| route[key].as_str().unwrap().to_owned();
        let routes = routes
            .iter()
            .map(|route| (text(route, "destination"), text(route, "nexthop")));
        let routes: Vec<(String, String)> = routes.collect();
        let mut next = self.routes.clone();
        match verb {
            "add_extraroutes" if self.is_atomic => {
                next.retain(|route| !routes.contains(route));
                next.extend(routes);
            }
            "remove_extraroutes" if self.is_atomic => next.retain(|route| !routes.contains(route)),
            ROUTER => {
                let condition = question.header("if-match");
                let expected = format!("revision_number={}", self.revision);
                if !condition.is_empty() && condition != expected {
                    return failed(412, "RevisionNumberConstraintFailed");
                }
                next = routes;
            }
            _ => return failed(404, "HTTPNotFound"),
        }
        if next.len() > self.quota {
            return failed(400, "RoutesExhausted");
        }
        self.routes = next;
        self.revision += 1;
        self.shown()
    }

    fn shown(&self) -> Reply {
        let routes = self.routes.iter();
        let routes: Vec<Value> = routes
            .map(|(destination, hop)| json!({"destination": destination, "nexthop": hop}))
            .collect();
        let mut router =
            json!({"id": ROUTER, "name": "router1", "project_id": PROJECT, "routes": routes});
        if self.has_revisions {
            router["revision_number"] = self.revision.into();
        }
        Reply::new(200, json!({"router": router}))
    }
}

fn failed(status: u16, kind: &str) -> Reply {
    let error = json!({"type": kind, "message": "No,  really.", "detail": ""});
    Reply::new(status, json!({"NeutronError": error}))
}

impl Cloud for Project {
    fn answer(&mut self, question: &Question) -> Reply {
        if question.path == "/v3/auth/tokens" {
            return self.login(question);
        }
        let path = question.path.strip_prefix("/networking/v2.0").unwrap();
        if question.header("x-auth-token") != format!("token-{}", self.token) {
            return Reply::new(
                401,
                json!({"error": {"code": 401, "title": "Unauthorized"}}),
            );
        }
        let instead = self.instead.iter().position(|(method, end, _)| {
            *method == question.method.as_str() && path.ends_with(end)
        });
        if let Some(at) = instead {
            return self.instead.remove(at).2;
        }
        let Some((seed, left @ 1..)) = &mut self.trouble else {
            return self.neutron(question, path);
        };
        *left -= 1;
        match next_random(seed) % 8 {
            0 => Reply::new(429, "slow down"),
            1 => failed(503, "ServiceUnavailable"),
            // The effect without the answer.
            2 => {
                self.neutron(question, path);
                Reply::new(504, "<html>")
            }
            3 => Reply::new(200, "[]"),
            4 => {
                self.token += 1;
                Reply::new(401, "")
            }
            _ => self.neutron(question, path),
        }
    }
}

fn variable(name: &str) -> Option<String> {
    let value = match name {
        "OS_AUTH_URL" => "http://keystone:5000/v3/",
        "OS_USERNAME" => "nodes",
        "OS_PASSWORD" => PASSWORD,
        "OS_PROJECT_NAME" => "demo",
        _ => return None,
    };
    Some(value.to_owned())
}

fn double(project: Project) -> (Double<Project>, OpenStack) {
    let double = start(project);
    let mut access = access(&double, CloudConfig::default());
    access.variable = variable;
    (double, OpenStack::new(access))
}

fn table() -> TableId {
    ROUTER.to_owned()
}

fn hops(project: &Project) -> Vec<String> {
    let routes = project.routes.iter();
    let mut texts: Vec<String> = routes.map(|(to, hop)| format!("{to} {hop}")).collect();
    texts.sort();
    texts
}

/// The examples of "Add extra routes to router" and "Show port details" in "Networking API v2.0", shortened.
#[test]
fn the_documentations_examples_are_read() {
    let router = r#"{"router":{"id":"64e339bb-1a6c-47bd-9ee7-a0cf81a35172","name":"router1","routes":[
        {"destination":"10.0.1.0/24","nexthop":"10.0.0.11"},{"destination":"10.0.2.0/24","nexthop":"10.0.0.12"},
        {"destination":"10.0.3.0/24","nexthop":"10.0.0.13"},{"destination":"10.0.4.0/24","nexthop":"10.0.0.14"}]}}"#;
    let router: OneRouter = serde_json::from_str(router).unwrap();
    let routes = router.router.routes.iter();
    let routes: Vec<Route> = routes
        .filter_map(|extra| route(extra, "10.0.0.13", None))
        .collect();
    assert_eq!(
        shown(&routes),
        [
            "10.0.1.0/24 10.0.0.11 unmarked",
            "10.0.2.0/24 10.0.0.12 unmarked",
            "10.0.3.0/24 own unmarked",
            "10.0.4.0/24 10.0.0.14 unmarked",
        ]
    );
    let ports = r#"{"ports":[{"admin_state_up":true,"allowed_address_pairs":[{"mac_address":"fa:16:3e:c4:cd:3f","ip_address":"10.5.0.0/16"}],
        "device_id":"5e3898d7-11be-483e-9732-b2f5eccd2b2e","device_owner":"compute:nova","fixed_ips":[{"ip_address":"10.0.0.1","subnet_id":"a0304c3a-4f08-4c43-88af-d796509c97d2"}],
        "id":"46d4bfb9-b26e-41f3-bd2e-e6dcc1ccedb2","network_id":"a87cc70a-3e15-4acf-8205-9b711a3531b7","revision_number":1,"status":"ACTIVE","port_security_enabled":true}],
        "ports_links":[]}"#;
    let ports: wire::Ports = serde_json::from_str(ports).unwrap();
    assert_eq!(ports.next(), None);
    let pair = &ports.ports[0].allowed_address_pairs[0];
    assert!(pair.covers(net("10.5.3.0/24")) && !pair.covers(net("10.6.0.0/24")));
}

#[tokio::test]
async fn the_router_of_the_subnet_is_found_and_changed_in_either_way() {
    for (is_atomic, has_revisions) in [(true, true), (false, true), (false, false)] {
        let mut project = Project::new();
        project.is_atomic = is_atomic;
        project.has_revisions = has_revisions;
        project.has("172.16.0.0/16", "10.0.0.20");
        let (double, mut openstack) = double(project);
        let openstack: &mut dyn RouteTable = &mut openstack;
        assert_eq!(openstack.tables().await.unwrap(), [ROUTER]);
        settle(openstack, &wanted(), 4).await;
        let both = ["10.5.1.0/24 10.0.0.7", "172.16.0.0/16 10.0.0.20"];
        assert_eq!(hops(&double.state()), both);
        openstack.add(&table(), net("10.5.1.0/24")).await.unwrap();
        let has = openstack.list(&table()).await.unwrap();
        let own = has
            .iter()
            .find(|route| route.target == Target::Own)
            .unwrap();
        openstack.remove(&table(), own).await.unwrap();
        openstack.remove(&table(), own).await.unwrap();
        assert_eq!(hops(&double.state()), both[1..]);
        assert_eq!(double.state().logins, 1);
        let gone = openstack.list(&"gone".to_owned()).await.unwrap_err();
        assert_eq!(gone.to_string(), "GET router: gone does not exist");
    }
}

#[tokio::test]
async fn a_list_that_others_write_too_loses_nothing() {
    for (is_atomic, races) in [(true, 3), (false, 3)] {
        let mut project = Project::new();
        project.is_atomic = is_atomic;
        project.races = races;
        let (double, mut openstack) = double(project);
        openstack.add(ROUTER, net("10.5.1.0/24")).await.unwrap();
        let hops = hops(&double.state());
        assert!(hops.contains(&"10.5.1.0/24 10.0.0.7".to_owned()));
        let others = hops.len() - 1;
        assert_eq!(others, if is_atomic { 1 } else { 3 }, "{hops:?}");
    }
    let mut project = Project::new();
    project.is_atomic = false;
    project.races = 100;
    let (_double, mut openstack) = double(project);
    let error = openstack.add(ROUTER, net("10.5.1.0/24")).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test]
async fn only_routes_to_nobody_give_way() {
    for is_atomic in [true, false] {
        let mut project = Project::new();
        project.is_atomic = is_atomic;
        // A stopped machine; one that is gone; a machine of somebody else; next hops elsewhere.
        project.others.push(("10.0.0.8", "DOWN"));
        project.has("10.5.1.0/24", "10.0.0.8");
        project.has("10.5.7.0/24", "10.0.0.30");
        project.has("10.5.8.0/24", "10.0.0.9");
        project.has("10.5.9.0/24", "192.168.3.3");
        let (double, mut openstack) = double(project);
        settle(&mut openstack, &wanted(), 4).await;
        assert_eq!(
            hops(&double.state()),
            [
                "10.5.1.0/24 10.0.0.7",
                "10.5.8.0/24 10.0.0.9",
                "10.5.9.0/24 192.168.3.3"
            ]
        );
    }
}

#[tokio::test]
async fn a_route_of_somebody_else_to_the_own_subnet_is_never_joined() {
    for is_atomic in [true, false] {
        let mut project = Project::new();
        project.is_atomic = is_atomic;
        project.has("10.5.1.0/24", "10.0.0.9");
        let (double, mut openstack) = double(project);
        // It was not there when the router was listed.
        let error = openstack.add(ROUTER, net("10.5.1.0/24")).await.unwrap_err();
        assert!(matches!(error, CloudError::Exists { .. }), "{error}");
        assert_eq!(hops(&double.state()), ["10.5.1.0/24 10.0.0.9"]);
        assert_eq!(
            in_the_way(&mut openstack, &wanted()).await,
            format!(
                "openstack router remove route --route destination=10.5.1.0/24,gateway=10.0.0.9 {ROUTER}"
            )
        );
        assert_eq!(hops(&double.state()), ["10.5.1.0/24 10.0.0.9"]);
    }
}

#[tokio::test]
async fn the_port_lets_the_own_subnet_through() {
    let own = [net("10.5.1.0/24")];
    let (double, mut openstack) = double(Project::new());
    double.state().pairs =
        vec![json!({"ip_address": "10.0.0.100", "mac_address": "fa:16:3e:c4:cd:3f"})];
    let forwarding = openstack.allow(&own).await.unwrap();
    assert_eq!(forwarding, Forwarding::SwitchedOn);
    assert_eq!(
        double.state().pairs,
        [
            json!({"ip_address": "10.0.0.100", "mac_address": "fa:16:3e:c4:cd:3f"}),
            json!({"ip_address": "10.5.1.0/24"})
        ]
    );
    assert_eq!(openstack.allow(&own).await.unwrap(), Forwarding::Allowed);
    // A wider pair, and a port without security.
    double.state().pairs = vec![json!({"ip_address": "10.5.0.0/16"})];
    assert_eq!(openstack.allow(&own).await.unwrap(), Forwarding::Allowed);
    double.state().pairs.clear();
    double.state().has_port_security = false;
    assert_eq!(openstack.allow(&own).await.unwrap(), Forwarding::Allowed);
    // Somebody changes the port at the same time.
    double.state().has_port_security = true;
    double.state().instead = vec![("PUT", "/own", failed(412, "RevisionNumberConstraintFailed"))];
    let forwarding = openstack.allow(&own).await.unwrap();
    assert_eq!(forwarding, Forwarding::SwitchedOn);
    // Who may not is told the command.
    double.state().pairs.clear();
    double.state().instead = vec![("PUT", "/own", failed(403, "PolicyNotAuthorized"))];
    let Forwarding::Forbidden { problem, command } = openstack.allow(&own).await.unwrap() else {
        panic!("allowed");
    };
    assert!(
        problem.contains("update_port:allowed_address_pairs"),
        "{problem}"
    );
    assert_eq!(
        command,
        "openstack port set --allowed-address ip-address=10.5.1.0/24 own"
    );
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let (double, mut openstack) = double(Project::new());
    let openstack: &mut dyn RouteTable = &mut openstack;
    let own = net("10.5.1.0/24");
    let end = "add_extraroutes";
    double.state().instead = vec![
        ("PUT", end, Reply::new(429, "").with("retry-after", 5)),
        ("PUT", end, failed(403, "PolicyNotAuthorized")),
        ("PUT", end, failed(400, "InvalidRoutes")),
        ("PUT", end, failed(503, "")),
    ];
    for (expected, transient, wait) in [
        (
            "add route: the provider asks to slow down (429)",
            true,
            Some(5),
        ),
        (
            "add route: not allowed; give this instance's role the permission update_router",
            false,
            None,
        ),
        (
            "add route: refused: InvalidRoutes: No, really.",
            false,
            None,
        ),
        (
            "add route: the provider cannot do this now (503)",
            true,
            None,
        ),
    ] {
        let error = openstack.add(&table(), own).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.is_transient(), transient, "{error}");
        assert_eq!(error.retry_after().map(|wait| wait.as_secs()), wait);
    }
    double.state().quota = 0;
    let error = openstack.add(&table(), own).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
    assert!(error.to_string().contains("max_routes"), "{error}");
}

#[tokio::test]
async fn a_revoked_token_is_replaced_and_nothing_secret_is_shown() {
    let (double, mut openstack) = double(Project::new());
    assert!(openstack.list(ROUTER).await.is_ok());
    double.state().token = 2;
    assert!(openstack.list(ROUTER).await.is_ok());
    assert_eq!(double.state().logins, 2);
    let texts = format!("{:?} {:?}", openstack.session, openstack.access);
    assert!(
        !texts.contains("token-2") && !texts.contains(PASSWORD),
        "{texts}"
    );
    openstack.session = None;
    openstack.access.variable = |name| match name {
        "OS_PASSWORD" => Some("another".to_owned()),
        name => variable(name),
    };
    let error = openstack.list(ROUTER).await.unwrap_err();
    assert!(matches!(error, CloudError::Credentials { .. }), "{error}");
    let texts = format!("{error} {error:?}");
    assert!(
        !texts.contains(PASSWORD) && !texts.contains("another"),
        "{texts}"
    );
    // A token that ends soon is not used.
    openstack.access.variable = variable;
    assert!(openstack.list(ROUTER).await.is_ok());
    let soon = secs(SystemTime::now()) + 60;
    openstack.session.as_mut().unwrap().ends = Some(soon);
    let logins = double.state().logins;
    assert!(openstack.list(ROUTER).await.is_ok());
    assert_eq!(double.state().logins, logins + 1);
}

/// Any troubles, with and without an effect, end in the wanted list, and nobody else's route is touched.
#[tokio::test]
async fn any_troubles_end_in_the_wanted_list() {
    for seed in 0..40 {
        let mut project = Project::new();
        project.is_atomic = seed % 2 == 0;
        project.has("10.5.9.0/24", "10.0.0.9");
        project.has("10.5.7.0/24", OWN);
        project.has("172.16.0.0/16", "10.0.0.20");
        if seed % 3 == 0 {
            project.has("10.5.1.0/24", "10.0.0.30");
        }
        project.trouble = Some((seed, 40));
        let (double, mut openstack) = double(project);
        settle(&mut openstack, &wanted(), 80).await;
        let expected = [
            "10.5.1.0/24 10.0.0.7",
            "10.5.9.0/24 10.0.0.9",
            "172.16.0.0/16 10.0.0.20",
        ];
        assert_eq!(hops(&double.state()), expected, "{seed}");
    }
}
