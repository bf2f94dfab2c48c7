//! Google's side: the Compute Engine API for routes, and its metadata service.
//!
//! Written from the API's reference. Changes are operations that end after some looks at them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::server::{Cloud, Request, Response};

const PROJECT: &str = "projects/web-1";
const BASE: &str = "/compute/v1/projects/web-1/";
const LINK: &str = "https://www.googleapis.com/compute/v1/";

/// The project and all that is in it.
pub(crate) struct Compute {
    pub(crate) may_forward: bool,
    /// By name.
    pub(crate) routes: BTreeMap<String, Value>,
    pub(crate) quota: usize,
    /// How often an operation is looked at until it ends.
    pub(crate) looks: u32,
    operations: BTreeMap<String, Operation>,
    /// HTTP status, reason and message of the next answers to these methods.
    pub(crate) faults: VecDeque<(&'static str, u16, &'static str, &'static str)>,
    pub(crate) denied: BTreeSet<&'static str>,
    pub(crate) token: String,
    pub(crate) calls: Vec<String>,
}

/// A change that ends after some looks: with a route, or an error.
struct Operation {
    left: u32,
    route: Option<(String, Value)>,
    error: Option<String>,
}

impl Compute {
    pub(crate) fn new() -> Self {
        let out = json!({
            "name": "default-route", "network": format!("{LINK}{PROJECT}/global/networks/default"),
            "destRange": "0.0.0.0/0", "priority": 1000,
            "nextHopGateway": format!("{LINK}{PROJECT}/global/gateways/default-internet-gateway"),
        });
        Self {
            may_forward: true,
            routes: [("default-route".to_owned(), out)].into(),
            quota: 250,
            looks: 1,
            operations: BTreeMap::new(),
            faults: VecDeque::new(),
            denied: BTreeSet::new(),
            token: "ya29.first".to_owned(),
            calls: Vec::new(),
        }
    }

    /// A route of another instance, with or without a warning.
    pub(crate) fn put(
        &mut self,
        name: &str,
        destination: &str,
        instance: &str,
        warning: Option<&str>,
    ) {
        let warnings: Vec<Value> = warning
            .iter()
            .map(|code| json!({"code": code, "message": "x"}))
            .collect();
        self.routes.insert(name.to_owned(), json!({
            "name": name, "network": format!("{LINK}{PROJECT}/global/networks/default"),
            "destRange": destination, "priority": 1000, "warnings": warnings,
            "nextHopInstance": format!("{LINK}{PROJECT}/zones/europe-west1-b/instances/{instance}"),
        }));
    }

    /// The instance that a route leads to.
    pub(crate) fn hop(&self, name: &str) -> Option<String> {
        let hop = self.routes.get(name)?.get("nextHopInstance")?.as_str()?;
        Some(hop.rsplit('/').next()?.to_owned())
    }

    fn metadata(&self, request: &Request) -> Response {
        if request.header("metadata-flavor") != Some("Google") {
            return Response::new(403, "Missing Metadata-Flavor:Google header.");
        }
        match request.path().trim_start_matches("/computeMetadata/v1/") {
            "project/project-id" => Response::ok("web-1"),
            "instance/name" => Response::ok("node-1"),
            "instance/zone" => Response::ok("projects/4711/zones/europe-west1-b"),
            "instance/service-accounts/default/token" => Response::ok(
                json!({"access_token": self.token, "expires_in": 3599, "token_type": "Bearer"})
                    .to_string(),
            ),
            _ => Response::new(404, ""),
        }
    }

    fn api(&mut self, request: &Request, path: &str) -> Response {
        self.calls.push(format!("{} {path}", request.method));
        if request.header("authorization") != Some(&format!("Bearer {}", self.token)) {
            return failed(401, "authError", "Invalid Credentials");
        }
        if self
            .faults
            .front()
            .is_some_and(|(method, ..)| *method == request.method)
            && let Some((_, status, reason, message)) = self.faults.pop_front()
        {
            return failed(status, reason, message);
        }
        let words: Vec<&str> = path.split('/').collect();
        match (request.method.as_str(), words.as_slice()) {
            ("GET", ["zones", "europe-west1-b", "instances", "node-1"]) => Response::ok(json!({
                "name": "node-1", "canIpForward": self.may_forward,
                "selfLink": format!("{LINK}{PROJECT}/zones/europe-west1-b/instances/node-1"),
                "networkInterfaces": [{"network": format!("{LINK}{PROJECT}/global/networks/default"), "networkIP": "10.77.0.11"}],
            }).to_string()),
            ("GET", ["global", "routes"]) => self.list(request),
            ("GET", ["global", "routes", name]) => match self.routes.get(*name) {
                Some(route) => Response::ok(route.to_string()),
                None => failed(404, "notFound", "The resource was not found"),
            },
            ("GET", ["global", "operations", name]) => self.look(name),
            ("POST", ["global", "routes"]) => self.insert(request),
            ("DELETE", ["global", "routes", name]) => {
                if self.routes.remove(*name).is_none() {
                    return failed(404, "notFound", "The resource was not found");
                }
                self.operate(None, None)
            }
            _ => failed(404, "notFound", path),
        }
    }

    /// Two routes on a page.
    fn list(&self, request: &Request) -> Response {
        let query = request
            .target
            .split_once('?')
            .map_or("", |(_, query)| query);
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let token = pairs
            .find(|(name, _)| *name == "pageToken")
            .map_or("0", |(_, value)| value);
        let first: usize = token.parse().unwrap_or(0);
        let items: Vec<&Value> = self.routes.values().skip(first).take(2).collect();
        let mut page = json!({"kind": "compute#routeList", "items": items});
        if first + 2 < self.routes.len() {
            page["nextPageToken"] = json!((first + 2).to_string());
        }
        Response::ok(page.to_string())
    }

    fn insert(&mut self, request: &Request) -> Response {
        const PERMISSION: &str = "compute.networks.updatePolicy";
        if self.denied.contains(PERMISSION) {
            let message = format!(
                "Required '{PERMISSION}' permission for '{PROJECT}/global/networks/default'"
            );
            return failed(403, "forbidden", &message);
        }
        let Ok(route) = serde_json::from_slice::<Value>(&request.body) else {
            return failed(400, "invalid", "bad JSON");
        };
        let name = route["name"].as_str().unwrap_or_default().to_owned();
        if self.routes.contains_key(&name) {
            return failed(409, "alreadyExists", "The resource already exists");
        }
        if self.routes.len() >= self.quota {
            return self.operate(None, Some("QUOTA_EXCEEDED".to_owned()));
        }
        self.operate(Some((name, route)), None)
    }

    fn operate(&mut self, route: Option<(String, Value)>, error: Option<String>) -> Response {
        let name = format!("operation-{}", self.operations.len());
        let operation = Operation {
            left: self.looks,
            route,
            error,
        };
        self.operations.insert(name.clone(), operation);
        Response::ok(json!({"name": name, "status": "RUNNING"}).to_string())
    }

    fn look(&mut self, name: &str) -> Response {
        let Some(Operation { left, route, error }) = self.operations.get_mut(name) else {
            return failed(404, "notFound", name);
        };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return Response::ok(json!({"name": name, "status": "RUNNING"}).to_string());
        }
        if let Some((name, route)) = route.take() {
            self.routes.insert(name, route);
        }
        let mut operation = json!({"name": name, "status": "DONE"});
        if let Some(code) = error {
            operation["error"] =
                json!({"errors": [{"code": code, "message": "Quota 'ROUTES' exceeded."}]});
        }
        Response::ok(operation.to_string())
    }
}

impl Cloud for Compute {
    fn answer(&mut self, request: &Request) -> Response {
        if request.path().starts_with("/computeMetadata/") {
            return self.metadata(request);
        }
        match request.path().strip_prefix(BASE) {
            Some(path) => self.api(request, path),
            None => Response::new(404, ""),
        }
    }
}

fn failed(status: u16, reason: &str, message: &str) -> Response {
    let error = json!({"error": {
        "code": status, "message": message,
        "errors": [{"message": message, "domain": "global", "reason": reason}],
    }});
    Response::new(status, error.to_string())
}
