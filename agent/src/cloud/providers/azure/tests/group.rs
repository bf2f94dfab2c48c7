//! A resource group of the tests, as the documentation of Azure's resource manager has it.

use std::time::SystemTime;

use hyper::Method;
use serde_json::{Value, json};

use crate::base::retry::next_random;
use crate::base::time::secs;
use crate::cloud::providers::azure::{Azure, MACHINE};
use crate::cloud::providers::double::{Cloud, Double, Question, Reply, access, start};
use crate::plan::backend::CloudConfig;

pub(super) const GROUP: &str =
    "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/nodes";
pub(super) const OWN: &str = "10.0.0.7";
pub(super) const SECRET: &str = "a-very-secret-token";

/// A route of the double.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) prefix: String,
    pub(super) r#type: String,
    pub(super) hop: String,
    pub(super) etag: u64,
    /// So many requests until it is provisioned.
    pub(super) updating: usize,
}

/// A resource group with a machine and a route table.
pub(super) struct Group {
    pub(super) routes: Vec<Kept>,
    pub(super) etag: u64,
    pub(super) page: usize,
    pub(super) limit: usize,
    pub(super) forwards: bool,
    pub(super) is_scale_set: bool,
    pub(super) has_table: bool,
    pub(super) token: usize,
    /// Method and a part of the path, and what they are answered instead, once each.
    pub(super) instead: Vec<(&'static str, &'static str, Reply)>,
    pub(super) trouble: Option<(u64, usize)>,
    pub(super) calls: Vec<String>,
    /// How operations end.
    pub(super) ends: &'static str,
}

impl Group {
    pub(super) fn new() -> Self {
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

    pub(super) fn has(&mut self, name: &str, prefix: &str, r#type: &str, hop: &str) {
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

pub(super) fn table() -> String {
    format!("{GROUP}/providers/Microsoft.Network/routeTables/table")
}

pub(super) fn nic(name: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/networkInterfaces/{name}")
}

pub(super) fn subnet() -> String {
    format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/vnet/subnets/nodes")
}

pub(super) fn entry(route: &Kept) -> Value {
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

pub(super) fn refused(status: u16, code: &str) -> Reply {
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

pub(super) fn double(group: Group) -> (Double<Group>, Azure) {
    let double = start(group);
    let azure = Azure::new(access(&double, CloudConfig::default()));
    (double, azure)
}
