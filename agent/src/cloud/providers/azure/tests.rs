//! Azure's resource manager as its documentation has it, and the provider before it.

use std::time::SystemTime;

use super::*;
use crate::base::retry::next_random;
use crate::base::time::secs;
use crate::cloud::providers::double::{
    Cloud, Double, Question, Reply, access, in_the_way, net, once, settle, shown, start, wanted,
};
use crate::plan::backend::CloudConfig;

const GROUP: &str = "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/nodes";
const OWN: &str = "10.0.0.7";
const SECRET: &str = "a-very-secret-token";

/// A route of the double.
#[derive(Clone, PartialEq, Debug)]
struct Kept {
    name: String,
    prefix: String,
    r#type: String,
    hop: String,
    etag: u64,
    /// So many requests until it is provisioned.
    updating: usize,
}

/// A resource group with a machine and a route table.
struct Group {
    routes: Vec<Kept>,
    etag: u64,
    page: usize,
    limit: usize,
    forwards: bool,
    is_scale_set: bool,
    has_table: bool,
    token: usize,
    /// Method and a part of the path, and what they are answered instead, once each.
    instead: Vec<(&'static str, &'static str, Reply)>,
    trouble: Option<(u64, usize)>,
    calls: Vec<String>,
    /// How operations end.
    ends: &'static str,
}

impl Group {
    fn new() -> Self {
        Self {
            routes: Vec::new(),
            etag: 1,
            page: 100,
            limit: 400,
            forwards: true,
            is_scale_set: false,
            has_table: true,
            token: 1,
            instead: Vec::new(),
            trouble: None,
            calls: Vec::new(),
            ends: r#"{"status":"Succeeded"}"#,
        }
    }

    fn has(&mut self, name: &str, prefix: &str, r#type: &str, hop: &str) {
        self.etag += 1;
        self.routes.push(Kept {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            r#type: r#type.to_owned(),
            hop: hop.to_owned(),
            etag: self.etag,
            updating: 0,
        });
    }

    fn machine(&self) -> String {
        match self.is_scale_set {
            true => format!(
                "{GROUP}/providers/Microsoft.Compute/virtualMachineScaleSets/pool/virtualMachines/0"
            ),
            false => format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/node-1"),
        }
    }

    fn metadata(&self, question: &Question) -> Reply {
        assert_eq!(question.header("metadata"), "true");
        match &*question.path {
            "/metadata/instance/compute" => Reply::new(
                200,
                json!({
                    "azEnvironment": "AzurePublicCloud", "location": "westeurope", "name": "node-1",
                    "resourceGroupName": "nodes", "resourceId": self.machine(), "vmScaleSetName": "",
                    "subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d",
                }),
            ),
            "/metadata/identity/oauth2/token" => {
                assert_eq!(
                    question.parameter("resource"),
                    "https://management.azure.com/"
                );
                if self.token == 0 {
                    let body = json!({"error": "invalid_request", "error_description": "Identity not found"});
                    return Reply::new(400, body);
                }
                let ends = secs(SystemTime::now()) + 86399;
                Reply::new(
                    200,
                    json!({
                        "access_token": format!("{SECRET}{}", self.token), "client_id": "1", "expires_in": "86399",
                        "expires_on": ends.to_string(), "token_type": "Bearer",
                    }),
                )
            }
            _ => Reply::new(404, ""),
        }
    }

    fn interface(&self, name: &str, address: &str) -> Value {
        json!({
            "name": name, "id": nic(name), "etag": format!("W/\"{}\"", self.etag), "location": "westeurope",
            "tags": {"owner": "somebody"},
            "properties": {
                "enableIPForwarding": self.forwards, "macAddress": "00-0D-3A-1B-C7-21",
                "ipConfigurations": [{"name": "ipconfig1", "properties": {
                    "privateIPAddress": address, "subnet": {"id": subnet()}}}],
            },
        })
    }

    fn resource(&mut self, question: &Question) -> Reply {
        let (method, path) = (question.method.as_str(), &*question.path);
        let machine = self.machine();
        if path == machine {
            let ids = [json!({"id": nic("other")}), json!({"id": nic("own")})];
            let body = json!({"properties": {"networkProfile": {"networkInterfaces": ids}}});
            return Reply::new(200, body);
        }
        if path == format!("{machine}/networkInterfaces") {
            assert_eq!(question.parameter("api-version"), "2018-10-01");
            return Reply::new(200, json!({"value": [self.interface("own", OWN)]}));
        }
        if path == nic("other") {
            return Reply::new(200, self.interface("other", "10.0.1.7"));
        }
        if path == nic("own") && method == "PUT" {
            let body = question.json();
            let expected = self.interface("own", OWN);
            assert_eq!(question.header("if-match"), expected["etag"]);
            assert_eq!(body["tags"], expected["tags"]);
            self.forwards = body["properties"]["enableIPForwarding"] == true;
            self.etag += 1;
            return self.accepted(200);
        }
        if path == nic("own") {
            return Reply::new(200, self.interface("own", OWN));
        }
        if path == subnet() {
            let table = self.has_table.then(|| json!({"id": table()}));
            return Reply::new(200, json!({"properties": {"routeTable": table}}));
        }
        if path.ends_with("/virtualNetworks/vnet/CheckIPAddressAvailability") {
            // Nobody has an address that ends in 8.
            let available = question.parameter("ipAddress").ends_with(".8");
            return Reply::new(
                200,
                json!({"available": available, "availableIPAddresses": []}),
            );
        }
        if path.contains("/operations/") {
            for route in &mut self.routes {
                route.updating = route.updating.saturating_sub(1);
            }
            if self.routes.iter().any(|route| route.updating > 0) {
                return Reply::new(200, r#"{"status":"InProgress"}"#).with("retry-after", 0);
            }
            return Reply::new(200, self.ends);
        }
        match path.strip_prefix(&format!("{}/routes", table())) {
            Some("") => self.page(question),
            Some(name) => self.route(question, name.trim_start_matches('/')),
            None => refused(404, "ResourceNotFound"),
        }
    }

    /// Accepted, and to be followed at a server that must not see the token.
    fn accepted(&self, status: u16) -> Reply {
        let url = "https://elsewhere.example/subscriptions/8d10da13/providers/Microsoft.Network/locations/westeurope/operations/1?api-version=2024-05-01";
        Reply::new(status, "{}")
            .with("azure-asyncoperation", url)
            .with("retry-after", 0)
    }

    fn page(&self, question: &Question) -> Reply {
        let start: usize = question.parameter("$skipToken").parse().unwrap_or(0);
        let end = (start + self.page).min(self.routes.len());
        let entries: Vec<Value> = self.routes[start..end].iter().map(entry).collect();
        let mut body = json!({"value": entries});
        if end < self.routes.len() {
            let path = format!("{}/routes?api-version=2024-05-01", table());
            body["nextLink"] = format!("https://elsewhere.example{path}&$skipToken={end}").into();
        }
        Reply::new(200, body)
    }

    fn route(&mut self, question: &Question, name: &str) -> Reply {
        if self.routes.iter().any(|route| route.updating > 0) {
            return refused(429, "RetryableErrorDueToAnotherOperation").with("retry-after", 10);
        }
        let etag = question.header("if-match");
        let at = self.routes.iter().position(|route| route.name == name);
        let is_other = |route: &Kept| format!("W/\"{}\"", route.etag) != etag;
        if !etag.is_empty() && at.is_none_or(|at| is_other(&self.routes[at])) {
            return refused(412, "PreconditionFailed");
        }
        if question.method == Method::DELETE {
            let Some(at) = at else {
                return Reply::new(204, "");
            };
            self.routes.remove(at);
            return self.accepted(202);
        }
        let body = question.json();
        let text = |key: &str| body["properties"][key].as_str().unwrap().to_owned();
        let prefix = text("addressPrefix");
        let mut others = self.routes.iter().filter(|route| route.name != name);
        if others.any(|route| route.prefix == prefix) {
            return refused(400, "RouteConflict");
        }
        if at.is_none() && self.routes.len() >= self.limit {
            return refused(400, "RoutesPerRouteTableLimitReached");
        }
        if let Some(at) = at {
            self.routes.remove(at);
        }
        self.has(
            name,
            &prefix,
            &text("nextHopType"),
            &text("nextHopIpAddress"),
        );
        self.routes.last_mut().unwrap().updating = 2;
        self.accepted(201)
    }
}

fn table() -> String {
    format!("{GROUP}/providers/Microsoft.Network/routeTables/table")
}

fn nic(name: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/networkInterfaces/{name}")
}

fn subnet() -> String {
    format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/vnet/subnets/nodes")
}

fn entry(route: &Kept) -> Value {
    let mut entry = json!({
        "name": route.name, "id": format!("{}/routes/{}", table(), route.name), "etag": format!("W/\"{}\"", route.etag),
        "type": "Microsoft.Network/routeTables/routes",
        "properties": {
            "provisioningState": if route.updating > 0 { "Updating" } else { "Succeeded" },
            "addressPrefix": route.prefix, "nextHopType": route.r#type, "hasBgpOverride": false,
        },
    });
    if route.r#type == MACHINE {
        entry["properties"]["nextHopIpAddress"] = route.hop.clone().into();
    }
    entry
}

fn refused(status: u16, code: &str) -> Reply {
    let error = json!({"code": code, "message": "No,\n really.", "details": []});
    Reply::new(status, json!({"error": error}))
}

impl Cloud for Group {
    fn answer(&mut self, question: &Question) -> Reply {
        if question.path.starts_with("/metadata/") {
            return self.metadata(question);
        }
        self.calls
            .push(format!("{} {}", question.method, question.path));
        assert!(!question.parameter("api-version").is_empty());
        if question.header("authorization") != format!("Bearer {SECRET}{}", self.token) {
            return refused(401, "ExpiredAuthenticationToken");
        }
        let instead = self.instead.iter().position(|(method, part, _)| {
            *method == question.method.as_str() && question.path.contains(part)
        });
        if let Some(at) = instead {
            return self.instead.remove(at).2;
        }
        let Some((seed, left @ 1..)) = &mut self.trouble else {
            return self.resource(question);
        };
        *left -= 1;
        match next_random(seed) % 8 {
            0 => refused(429, "TooManyRequests").with("retry-after", 17),
            1 => refused(503, "ServerTimeout"),
            // The effect without the answer.
            2 => {
                self.resource(question);
                Reply::new(504, "<html>")
            }
            3 => {
                self.token += 1;
                refused(401, "ExpiredAuthenticationToken")
            }
            _ => self.resource(question),
        }
    }
}

fn double(group: Group) -> (Double<Group>, Azure) {
    let double = start(group);
    let azure = Azure::new(access(&double, CloudConfig::default()));
    (double, azure)
}

/// The example of "Routes - List" (RouteTableRouteList), with the other forms that the documentation names.
#[test]
fn the_documentations_example_is_read() {
    let page = r#"{"value":[
        {"properties":{"provisioningState":"Succeeded","addressPrefix":"10.0.3.0/24","nextHopType":"VirtualNetworkGateway"},
         "name":"route1","id":"/subscriptions/subid/resourceGroups/rg1/providers/Microsoft.Network/routeTables/testrt/routes/route1"},
        {"properties":{"provisioningState":"Succeeded","addressPrefix":"10.0.2.0/24","nextHopType":"VirtualAppliance","nextHopIpAddress":"10.0.0.7"},
         "name":"selvage-10-0-2-0-24","etag":"W/\"1\""},
        {"properties":{"provisioningState":"Failed","addressPrefix":"10.0.4.0/24","nextHopType":"VirtualAppliance","nextHopIpAddress":"10.0.0.7"},
         "name":"selvage-10-0-4-0-24"},
        {"properties":{"provisioningState":"Succeeded","addressPrefix":"ApiManagement","nextHopType":"Internet"},"name":"ControlPlane"}]}"#;
    let page: Page<Entry> = serde_json::from_str(page).unwrap();
    let routes: Vec<Route> = page
        .value
        .iter()
        .filter_map(|entry| route(entry, OWN))
        .collect();
    assert_eq!(
        shown(&routes),
        [
            "10.0.2.0/24 own ours",
            "10.0.3.0/24 VirtualNetworkGateway foreign",
            "10.0.4.0/24 dead 10.0.0.7 ours",
        ]
    );
    assert_eq!(
        parts(&routes[1].handle),
        ("selvage-10-0-2-0-24", Some("W/\"1\""))
    );
    assert_eq!(parts(&routes[0].handle), ("route1", None));
}

#[tokio::test]
async fn a_list_that_cannot_be_followed_is_no_whole_one() {
    let mut group = Group::new();
    let page = json!({"value": [], "nextLink": "https://elsewhere.example/routes?page=2"});
    group
        .instead
        .push(("GET", "/routes", Reply::new(200, page)));
    let (_double, mut azure) = double(group);
    let error = azure.list(&table()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("a nextLink that leads to no subscription"),
        "{error}"
    );
}

#[tokio::test]
async fn the_subnets_table_is_listed_whole_and_changed() {
    for is_scale_set in [false, true] {
        let mut group = Group::new();
        group.is_scale_set = is_scale_set;
        group.page = 3;
        for number in 0..10 {
            let prefix = format!("10.9.{number}.0/24");
            group.has(&format!("r{number}"), &prefix, MACHINE, "10.0.0.9");
        }
        group.has("internet", "0.0.0.0/0", "Internet", "");
        let (double, mut azure) = double(group);
        let azure: &mut dyn RouteTable = &mut azure;
        let tables = azure.tables().await.unwrap();
        assert_eq!(tables, [table()]);
        assert_eq!(azure.list(&tables[0]).await.unwrap().len(), 11);
        let before = double.state().routes.clone();
        settle(azure, &wanted(), 5).await;
        let has = azure.list(&tables[0]).await.unwrap();
        assert!(shown(&has).contains(&"10.5.1.0/24 own ours".to_owned()));
        let ours = has.iter().find(|route| route.mark == Mark::Ours).unwrap();
        assert!(ours.handle.starts_with("selvage-10-5-1-0-24 "));
        azure.remove(&tables[0], ours).await.unwrap();
        let again = azure.remove(&tables[0], ours).await;
        assert!(
            matches!(again, Err(CloudError::Unavailable { .. })),
            "{again:?}"
        );
        assert_eq!(double.state().routes, before);
        let gone = azure.list(&format!("{GROUP}/gone")).await.unwrap_err();
        assert!(matches!(gone, CloudError::NotFound { .. }), "{gone}");
    }
}

#[tokio::test]
async fn tables_of_the_config_may_be_names() {
    let double = start(Group::new());
    let elsewhere = "/subscriptions/1/resourceGroups/2/providers/Microsoft.Network/routeTables/3";
    let config = CloudConfig {
        tables: vec!["table".to_owned(), elsewhere.to_owned()],
        ..CloudConfig::default()
    };
    let mut azure = Azure::new(access(&double, config));
    let tables = azure.tables().await.unwrap();
    assert_eq!(tables, [table(), elsewhere.to_owned()]);
    let mut group = Group::new();
    group.has_table = false;
    let (_double, mut azure) = self::double(group);
    let error = azure.tables().await.unwrap_err();
    assert!(
        error.to_string().contains("az network vnet subnet update"),
        "{error}"
    );
}

#[tokio::test]
async fn a_route_of_ours_is_replaced_and_one_of_somebody_else_is_not() {
    let mut group = Group::new();
    group.has("selvage-10-5-1-0-24", "10.5.1.0/24", MACHINE, "10.0.0.8");
    let (double, mut azure) = double(group);
    // Listed, and then changed by somebody else.
    let listed = RouteTable::list(&mut azure, &table()).await.unwrap();
    double.state().routes[0].etag += 1;
    let error = azure.replace(&table(), &listed[0]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "PUT route: the provider cannot do this now (PreconditionFailed)"
    );
    settle(&mut azure, &wanted(), 3).await;
    assert_eq!(double.state().routes[0].hop, OWN);
    assert_eq!(double.state().routes.len(), 1);
    let mut group = Group::new();
    group.has("db", "10.5.1.0/24", MACHINE, "10.0.0.9");
    let (double, mut azure) = self::double(group);
    assert_eq!(
        in_the_way(&mut azure, &wanted()).await,
        format!(
            "az network route-table route delete --ids {}/routes/db",
            table()
        )
    );
    let error = azure.add(&table(), net("10.5.1.0/24")).await.unwrap_err();
    assert!(matches!(error, CloudError::Exists { .. }), "{error}");
    assert_eq!(double.state().routes[0].hop, "10.0.0.9");
}

#[tokio::test]
async fn a_dead_nodes_route_goes_and_nobody_elses() {
    for may_ask in [true, false] {
        let mut group = Group::new();
        for (number, hop) in [(1, OWN), (2, "10.0.1.8"), (6, "10.0.0.8"), (7, "10.0.0.9")] {
            let name = format!("selvage-10-5-{number}-0-24");
            group.has(&name, &format!("10.5.{number}.0/24"), MACHINE, hop);
        }
        group.has("db", "10.5.8.0/24", MACHINE, "10.0.0.8");
        if !may_ask {
            let denied = refused(403, "AuthorizationFailed");
            group.instead = vec![("GET", "/CheckIPAddressAvailability", denied); 40];
        }
        let (double, mut azure) = double(group);
        for _ in 0..40 {
            assert_eq!(once(&mut azure, &wanted()).await.problems, []);
        }
        let routes = double.state().routes.clone();
        let mut routes = routes.iter().map(|route| &*route.prefix);
        assert_eq!(routes.any(|to| to == "10.5.6.0/24"), !may_ask);
        assert_eq!(double.state().routes.len(), if may_ask { 4 } else { 5 });
    }
}

#[tokio::test]
async fn operations_are_followed_to_their_end() {
    let (double, mut azure) = double(Group::new());
    let azure: &mut dyn RouteTable = &mut azure;
    let (own, next) = (net("10.5.1.0/24"), net("10.5.3.0/24"));
    azure.add(&table(), own).await.unwrap();
    let calls = double.state().calls.clone();
    let polls = calls.iter().filter(|call| call.contains("/operations/"));
    assert_eq!(polls.count(), 2, "{calls:?}");
    double.state().ends =
        r#"{"status":"Failed","error":{"code":"RoutesPerRouteTableLimitReached","message":"x"}}"#;
    let error = azure.add(&table(), next).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
    // Who may not see operations.
    double.state().instead = vec![("GET", "/operations/", refused(403, "AuthorizationFailed"))];
    azure.add(&table(), own).await.unwrap();
    double.state().routes[0].updating = 0;
    // One that goes on for long.
    double.state().routes.last_mut().unwrap().updating = 0;
    double.state().ends = r#"{"status":"InProgress"}"#;
    let slow = Reply::new(200, r#"{"status":"InProgress"}"#).with("retry-after", 60);
    double.state().instead = vec![("GET", "/operations/", slow)];
    let error = azure.add(&table(), next).await.unwrap_err();
    assert_eq!(error.to_string(), "PUT route 10.5.3.0/24 does not show yet");
    assert!(error.is_transient());
    // Another change meanwhile is refused, and told when.
    let error = azure.add(&table(), own).await.unwrap_err();
    assert_eq!(error.retry_after().map(|wait| wait.as_secs()), Some(10));
}

#[tokio::test]
async fn forwarding_is_switched_on_or_told_how() {
    let mut group = Group::new();
    group.forwards = false;
    let (double, mut azure) = double(group);
    assert_eq!(azure.forward().await.unwrap(), Forwarding::SwitchedOn);
    assert!(double.state().forwards);
    assert_eq!(azure.forward().await.unwrap(), Forwarding::Allowed);
    let calls = double.state().calls.len();
    assert_eq!(azure.forward().await.unwrap(), Forwarding::Allowed);
    assert_eq!(double.state().calls.len(), calls);
    for (is_scale_set, expected) in [
        (false, "az network nic update --ids"),
        (true, "az vmss update --ids"),
    ] {
        let mut group = Group::new();
        group.forwards = false;
        group.is_scale_set = is_scale_set;
        group.instead = vec![(
            "PUT",
            "/networkInterfaces/",
            refused(403, "AuthorizationFailed"),
        )];
        let (double, mut azure) = self::double(group);
        let Forwarding::Forbidden { command, .. } = azure.forward().await.unwrap() else {
            panic!("allowed");
        };
        assert!(command.starts_with(expected), "{command}");
        assert!(!double.state().forwards);
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let (double, mut azure) = double(Group::new());
    let azure: &mut dyn RouteTable = &mut azure;
    let own = net("10.5.1.0/24");
    double.state().instead = vec![
        (
            "PUT",
            "/routes/",
            refused(429, "TooManyRequests").with("retry-after", 17),
        ),
        ("PUT", "/routes/", refused(403, "AuthorizationFailed")),
        ("PUT", "/routes/", refused(400, "InvalidRequestFormat")),
        (
            "PUT",
            "/routes/",
            refused(409, "AnotherOperationInProgress"),
        ),
    ];
    for (expected, transient, wait) in [
        (
            "PUT route: the provider asks to slow down (TooManyRequests)",
            true,
            Some(17),
        ),
        (
            "PUT route: not allowed; give this instance's role the permission Microsoft.Network/routeTables/routes/write",
            false,
            None,
        ),
        (
            "PUT route: refused: InvalidRequestFormat: No, really.",
            false,
            None,
        ),
        (
            "PUT route: the provider cannot do this now (AnotherOperationInProgress)",
            true,
            None,
        ),
    ] {
        let error = azure.add(&table(), own).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.is_transient(), transient, "{error}");
        assert_eq!(error.retry_after().map(|wait| wait.as_secs()), wait);
    }
    double.state().limit = 0;
    let error = azure.add(&table(), own).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
    // A machine without an identity.
    let mut group = Group::new();
    group.token = 0;
    let (_double, mut azure) = self::double(group);
    let error = RouteTable::list(&mut azure, &table()).await.unwrap_err();
    assert!(
        error.to_string().contains("az vm identity assign"),
        "{error}"
    );
}

#[tokio::test]
async fn tokens_are_renewed_and_never_shown() {
    let (double, mut azure) = double(Group::new());
    assert!(RouteTable::list(&mut azure, &table()).await.is_ok());
    double.state().token = 2;
    assert!(RouteTable::list(&mut azure, &table()).await.is_ok());
    let texts = format!("{:?} {:?}", azure.token, azure.access);
    assert!(!texts.contains(SECRET), "{texts}");
    azure.token.as_mut().unwrap().ends = Some(secs(SystemTime::now()) + 60);
    double.state().token = 3;
    let calls = double.state().calls.len();
    assert!(RouteTable::list(&mut azure, &table()).await.is_ok());
    assert_eq!(double.state().calls.len(), calls + 1);
}

/// The login server of "OAuth 2.0 client credentials flow", and the resource manager behind it.
struct Login(Group);

impl Cloud for Login {
    fn answer(&mut self, question: &Question) -> Reply {
        if question.path != "/tenant-1/oauth2/v2.0/token" {
            return self.0.answer(question);
        }
        let body = String::from_utf8(question.body.to_vec()).unwrap();
        if body
            == "grant_type=client_credentials&client_id=client-1&client_secret=s%26cret&scope=https%3A%2F%2Fmanagement.azure.com%2F.default"
        {
            let token = format!("{SECRET}{}", self.0.token);
            let body = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": token});
            return Reply::new(200, body);
        }
        Reply::new(
            401,
            json!({"error": "invalid_client", "error_description": body}),
        )
    }
}

#[tokio::test]
async fn a_service_principal_comes_before_the_managed_identity() {
    let double = start(Login(Group::new()));
    let mut access = access(&double, CloudConfig::default());
    access.variable = |name| {
        let value = match name {
            "AZURE_TENANT_ID" => "tenant-1",
            "AZURE_CLIENT_ID" => "client-1",
            "AZURE_CLIENT_SECRET" => "s&cret",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let mut azure = Azure::new(access);
    assert!(RouteTable::list(&mut azure, &table()).await.is_ok());
    azure.token = None;
    azure.access.variable = |name| name.starts_with("AZURE_").then(|| "tenant-1".to_owned());
    let error = RouteTable::list(&mut azure, &table()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no usable credentials: https://login.microsoftonline.com/tenant-1/oauth2/v2.0/token does not accept \
         AZURE_CLIENT_ID and AZURE_CLIENT_SECRET: HTTP status 401"
    );
}

/// Any troubles, with and without an effect, end in the wanted table, and nobody else's route is touched.
#[tokio::test]
async fn any_troubles_end_in_the_wanted_table() {
    for seed in 0..40 {
        let mut group = Group::new();
        group.page = 2;
        group.has("db", "10.5.9.0/24", MACHINE, "10.0.0.9");
        group.has("selvage-10-5-7-0-24", "10.5.7.0/24", MACHINE, OWN);
        group.has("internet", "0.0.0.0/0", "Internet", "");
        if seed % 2 == 0 {
            group.has("selvage-10-5-1-0-24", "10.5.1.0/24", MACHINE, "10.0.0.8");
        }
        group.trouble = Some((seed, 40));
        let (double, mut azure) = double(group);
        for _ in 0..80 {
            // Nobody follows an operation whose answer was lost.
            if !once(&mut azure, &wanted()).await.problems.is_empty() {
                for route in &mut double.state().routes {
                    route.updating = 0;
                }
            }
        }
        settle(&mut azure, &wanted(), 3).await;
        let mut texts: Vec<String> = double
            .state()
            .routes
            .iter()
            .map(|route| format!("{} {}", route.prefix, route.hop))
            .collect();
        texts.sort();
        assert_eq!(
            texts,
            ["0.0.0.0/0 ", "10.5.1.0/24 10.0.0.7", "10.5.9.0/24 10.0.0.9"],
            "{seed}"
        );
    }
}
