//! Amazon's side: EC2's Query API for route tables and instances, and its metadata service (IMDSv2).
//!
//! Written from the EC2 API Reference. It checks each signature by its own computation.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use ring::{digest, hmac};

use super::server::{Cloud, Request, Response};

/// The role's secret; the access key and the session token say which generation of it.
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A route: its next hop is an interface, or another kind of thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) destination: String,
    /// `eni-…` or `igw-…`.
    pub(crate) hop: String,
}

/// A route table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// The subnets that use it; with `None` it is the VPC's main one.
    pub(crate) subnet: Option<&'static str>,
    pub(crate) routes: Vec<Entry>,
}

/// An instance with one interface.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) interface: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) is_checked: bool,
}

/// An answer that is given once in place of the right one, to a call of this name.
pub(crate) struct Fault {
    pub(crate) action: &'static str,
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) retry_after: Option<u64>,
    /// Whether the call has its effect all the same.
    pub(crate) is_done: bool,
}

impl Fault {
    pub(crate) fn new(action: &'static str, status: u16, code: &'static str) -> Self {
        Self {
            action,
            status,
            code,
            retry_after: None,
            is_done: false,
        }
    }
}

/// The region and all that is in it.
pub(crate) struct Ec2 {
    pub(crate) instances: Vec<Instance>,
    pub(crate) tables: BTreeMap<String, Table>,
    /// How many routes a table may have.
    pub(crate) quota: usize,
    /// How many lists after a change still show what was before.
    pub(crate) lag: usize,
    stale: Option<(usize, BTreeMap<String, Table>)>,
    pub(crate) faults: VecDeque<Fault>,
    pub(crate) denied: BTreeSet<&'static str>,
    /// What the metadata service answers once in place of a document.
    pub(crate) metadata_fault: Option<(&'static str, u16)>,
    /// Whether it answers lists one table at a time.
    pub(crate) in_pages: bool,
    /// Counts up when the role's credentials are replaced; older ones are refused.
    pub(crate) generation: u64,
    /// Which credentials are valid; `None` for those of the role.
    pub(crate) user: Option<&'static str>,
    /// Whether the API fails all calls.
    pub(crate) is_away: bool,
    /// The calls, in order.
    pub(crate) calls: Vec<String>,
    /// When the last one was signed: `20150830T123600Z`.
    pub(crate) signed_at: String,
    /// What was wrong with the requests.
    pub(crate) wrong: Vec<String>,
}

impl Ec2 {
    /// One instance for each address, and a main table with a way out.
    pub(crate) fn new(addresses: &[Ipv4Addr]) -> Self {
        let instance = |(number, address): (usize, &Ipv4Addr)| Instance {
            id: format!("i-{number:017x}"),
            interface: format!("eni-{number:017x}"),
            address: *address,
            is_checked: true,
        };
        let out = Entry {
            destination: "0.0.0.0/0".to_owned(),
            hop: "igw-1".to_owned(),
        };
        let main = Table {
            subnet: None,
            routes: vec![out],
        };
        Self {
            instances: addresses.iter().enumerate().map(instance).collect(),
            tables: [("rtb-main".to_owned(), main)].into(),
            quota: 50,
            lag: 0,
            stale: None,
            faults: VecDeque::new(),
            denied: BTreeSet::new(),
            metadata_fault: None,
            in_pages: false,
            generation: 1,
            user: None,
            is_away: false,
            calls: Vec::new(),
            signed_at: String::new(),
            wrong: Vec::new(),
        }
    }

    /// The next hop of a destination in a table.
    pub(crate) fn hop(&self, table: &str, destination: &str) -> Option<String> {
        let routes = &self.tables.get(table)?.routes;
        let mut routes = routes.iter();
        Some(
            routes
                .find(|route| route.destination == destination)?
                .hop
                .clone(),
        )
    }

    /// How often a call was made.
    pub(crate) fn count(&self, action: &str) -> usize {
        self.calls.iter().filter(|call| *call == action).count()
    }

    fn instance(&self, from: IpAddr) -> Option<&Instance> {
        // On loopback there is only one.
        let mut all = self.instances.iter();
        let own = all.find(|instance| IpAddr::V4(instance.address) == from);
        own.or(self.instances.first().filter(|_| from.is_loopback()))
    }

    fn metadata(&mut self, request: &Request) -> Option<Response> {
        if request.is("PUT", "/latest/api/token") {
            let lifetime = request.header("x-aws-ec2-metadata-token-ttl-seconds")?;
            let seconds: u64 = lifetime.parse().ok()?;
            return Some(match (1..=21_600).contains(&seconds) {
                true => Response::ok("TOKEN=="),
                false => Response::new(400, ""),
            });
        }
        let name = request.path().strip_prefix("/latest/meta-data/")?;
        if request.header("x-aws-ec2-metadata-token") != Some("TOKEN==") {
            return Some(Response::new(401, ""));
        }
        if self
            .metadata_fault
            .is_some_and(|(document, _)| document == name)
        {
            let (_, status) = self.metadata_fault.take()?;
            return Some(Response::new(status, ""));
        }
        let instance = self.instance(request.from)?;
        let generation = self.generation;
        Some(match name {
            "instance-id" => Response::ok(&instance.id),
            "placement/region" => Response::ok("eu-test-1"),
            "services/domain" => Response::ok("amazonaws.com"),
            "iam/security-credentials/" if self.user.is_none() => Response::ok("node-role"),
            "iam/security-credentials/node-role" => Response::ok(format!(
                r#"{{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"ASIA{generation}","SecretAccessKey":"{SECRET}","Token":"session{generation}","Expiration":"2100-01-01T00:00:00Z"}}"#
            )),
            _ => Response::new(404, ""),
        })
    }

    fn api(&mut self, request: &Request) -> Response {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let parameters: BTreeMap<String, String> = (body.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect();
        let get = |name: &str| parameters.get(name).map_or("", String::as_str);
        let action = get("Action").to_owned();
        self.calls.push(action.clone());
        self.signed_at = request.header("x-amz-date").unwrap_or_default().to_owned();
        if let Some(error) = self.check(request) {
            self.wrong.push(error.to_owned());
            return failed(403, error, "not you");
        }
        if self.denied.contains(action.as_str()) {
            return failed(
                403,
                "UnauthorizedOperation",
                "You are not authorized to perform this operation.",
            );
        }
        let fault = match self.faults.front() {
            Some(fault) if fault.action == action => self.faults.pop_front(),
            _ => None,
        };
        if fault.as_ref().is_none_or(|fault| fault.is_done) {
            let answer = self.act(&action, &parameters);
            if fault.is_none() {
                return answer;
            }
        }
        let Some(fault) = fault else {
            return failed(500, "InternalError", "");
        };
        let answer = failed(fault.status, fault.code, "Request limit exceeded.");
        match fault.retry_after {
            Some(seconds) => answer.with("retry-after", seconds),
            None => answer,
        }
    }

    fn act(&mut self, action: &str, parameters: &BTreeMap<String, String>) -> Response {
        let get = |name: &str| parameters.get(name).map_or("", String::as_str);
        if get("Version") != "2016-11-15" {
            return failed(400, "InvalidParameterValue", "Version");
        }
        let before = self.tables.clone();
        match action {
            "DescribeInstances" => self.describe_instances(get("InstanceId.1")),
            "DescribeRouteTables" => self.describe_tables(parameters),
            "ModifyNetworkInterfaceAttribute" => self.modify(parameters),
            "CreateRoute" | "ReplaceRoute" | "DeleteRoute" => {
                let answer = self.change(action, parameters);
                self.stale = (answer.status == 200 && self.lag > 0).then_some((self.lag, before));
                answer
            }
            _ => failed(400, "InvalidAction", action),
        }
    }

    fn describe_instances(&self, id: &str) -> Response {
        let Some(instance) = self.instances.iter().find(|it| it.id == id) else {
            return failed(400, "InvalidInstanceID.NotFound", id);
        };
        let Instance {
            interface,
            address,
            is_checked,
            ..
        } = instance;
        done(
            "DescribeInstances",
            &format!(
                "<reservationSet><item><instancesSet><item><instanceId>{id}</instanceId><networkInterfaceSet>\
             <item><networkInterfaceId>eni-other</networkInterfaceId><subnetId>subnet-b</subnetId><vpcId>vpc-1</vpcId><privateIpAddress>198.51.100.1</privateIpAddress><sourceDestCheck>true</sourceDestCheck></item>\
             <item><networkInterfaceId>{interface}</networkInterfaceId><subnetId>subnet-a</subnetId><vpcId>vpc-1</vpcId>\
             <privateIpAddress>198.51.100.2</privateIpAddress><sourceDestCheck>{is_checked}</sourceDestCheck><privateIpAddressesSet>\
             <item><privateIpAddress>198.51.100.2</privateIpAddress></item><item><privateIpAddress>{address}</privateIpAddress></item>\
             </privateIpAddressesSet></item></networkInterfaceSet></item></instancesSet></item></reservationSet>"
            ),
        )
    }

    fn describe_tables(&mut self, parameters: &BTreeMap<String, String>) -> Response {
        let get = |name: &str| parameters.get(name).map_or("", String::as_str);
        let shown = match &mut self.stale {
            Some((left, before)) if *left > 0 => {
                *left -= 1;
                before.clone()
            }
            _ => self.tables.clone(),
        };
        let wanted: Vec<(&String, &Table)> = (shown.iter())
            .filter(
                |(id, table)| match (get("RouteTableId.1"), get("Filter.1.Name")) {
                    ("", "association.subnet-id") => table.subnet == Some(get("Filter.1.Value.1")),
                    ("", "association.main") => {
                        table.subnet.is_none()
                            && get("Filter.1.Value.1") == "true"
                            && (get("Filter.2.Name"), get("Filter.2.Value.1"))
                                == ("vpc-id", "vpc-1")
                    }
                    (id_wanted, _) => *id == id_wanted,
                },
            )
            .collect();
        if wanted.is_empty() && !get("RouteTableId.1").is_empty() {
            return failed(400, "InvalidRouteTableID.NotFound", get("RouteTableId.1"));
        }
        let first: usize = get("NextToken").parse().unwrap_or(0);
        let most = if self.in_pages { 1 } else { usize::MAX };
        let page: String = (wanted.iter().skip(first).take(most))
            .map(|(id, table)| self.table(id, table))
            .collect();
        let next = match self.in_pages && first + 1 < wanted.len().max(2) {
            // A last page may be empty.
            true => format!("<nextToken>{}</nextToken>", first + 1),
            false => String::new(),
        };
        done(
            "DescribeRouteTables",
            &format!("<routeTableSet>{page}</routeTableSet>{next}"),
        )
    }

    fn table(&self, id: &str, table: &Table) -> String {
        let local = "<item><destinationCidrBlock>10.77.0.0/16</destinationCidrBlock><gatewayId>local</gatewayId><state>active</state><origin>CreateRouteTable</origin></item>\
                     <item><destinationIpv6CidrBlock>::/0</destinationIpv6CidrBlock><gatewayId>igw-1</gatewayId><state>active</state><origin>CreateRoute</origin></item>";
        let routes: String = (table.routes.iter())
            .map(|Entry { destination, hop }| {
                let instance = self.instances.iter().find(|it| it.interface == *hop);
                let (kind, state) = match (hop.split_once('-'), instance) {
                    (Some(("eni", _)), Some(_)) => ("networkInterfaceId", "active"),
                    (Some(("eni", _)), None) => ("networkInterfaceId", "blackhole"),
                    _ => ("gatewayId", "active"),
                };
                let instance = instance.map_or_else(String::new, |it| format!("<instanceId>{}</instanceId><instanceOwnerId>1</instanceOwnerId>", it.id));
                format!("<item><destinationCidrBlock>{destination}</destinationCidrBlock>{instance}<{kind}>{hop}</{kind}><state>{state}</state><origin>CreateRoute</origin></item>")
            })
            .collect();
        format!(
            "<item><routeTableId>{id}</routeTableId><vpcId>vpc-1</vpcId><routeSet>{local}{routes}</routeSet></item>"
        )
    }

    fn modify(&mut self, parameters: &BTreeMap<String, String>) -> Response {
        let get = |name: &str| parameters.get(name).map_or("", String::as_str);
        let id = get("NetworkInterfaceId");
        let Some(instance) = self.instances.iter_mut().find(|it| it.interface == id) else {
            return failed(400, "InvalidNetworkInterfaceID.NotFound", id);
        };
        instance.is_checked = get("SourceDestCheck.Value") != "false";
        done("ModifyNetworkInterfaceAttribute", "<return>true</return>")
    }

    fn change(&mut self, action: &str, parameters: &BTreeMap<String, String>) -> Response {
        let get = |name: &str| parameters.get(name).map_or("", String::as_str);
        let (destination, hop) = (get("DestinationCidrBlock"), get("NetworkInterfaceId"));
        let quota = self.quota;
        let Some(table) = self.tables.get_mut(get("RouteTableId")) else {
            return failed(400, "InvalidRouteTableID.NotFound", get("RouteTableId"));
        };
        let at = (table.routes.iter()).position(|route| route.destination == destination);
        let entry = || Entry {
            destination: destination.to_owned(),
            hop: hop.to_owned(),
        };
        match (action, at) {
            ("CreateRoute", Some(_)) => {
                return failed(
                    400,
                    "RouteAlreadyExists",
                    "The route identified by it already exists.",
                );
            }
            ("CreateRoute", None) if table.routes.len() >= quota => {
                return failed(
                    400,
                    "RouteLimitExceeded",
                    "The maximum number of routes has been reached.",
                );
            }
            ("CreateRoute", None) => table.routes.push(entry()),
            ("ReplaceRoute", Some(at)) => table.routes[at] = entry(),
            ("DeleteRoute", Some(at)) => drop(table.routes.remove(at)),
            _ => {
                return failed(
                    400,
                    "InvalidRoute.NotFound",
                    "no route with destination-cidr-block",
                );
            }
        }
        done(action, "<return>true</return>")
    }

    /// What is wrong with the signature, if anything.
    fn check(&self, request: &Request) -> Option<&'static str> {
        let authorization = request.header("authorization").unwrap_or_default();
        let field = |name: &str| {
            let (_, rest) = authorization.split_once(name)?;
            rest.split(',').next()
        };
        let (Some(scope), Some(names), Some(signature)) = (
            field("Credential="),
            field("SignedHeaders="),
            field("Signature="),
        ) else {
            return Some("MissingAuthenticationToken");
        };
        let mut scope = scope.split('/');
        let id = scope.next().unwrap_or_default();
        let scope: Vec<&str> = scope.collect();
        let session = format!("session{}", self.generation);
        match self.user {
            Some(user) if id != user => return Some("InvalidClientTokenId"),
            None if id != format!("ASIA{}", self.generation) => return Some("ExpiredToken"),
            None if request.header("x-amz-security-token") != Some(&session) => {
                return Some("InvalidClientTokenId");
            }
            _ => (),
        }
        let time = request.header("x-amz-date").unwrap_or_default();
        let required = ["host", "x-amz-date"];
        if scope.get(1..) != Some(&["eu-test-1", "ec2", "aws4_request"])
            || time.get(..8) != scope.first().copied()
            || !required
                .iter()
                .all(|name| names.split(';').any(|signed| signed == *name))
        {
            return Some("IncompleteSignature");
        }
        let headers: String = (names.split(';'))
            .map(|name| format!("{name}:{}\n", request.header(name).unwrap_or_default()))
            .collect();
        let hash = |data: &[u8]| hex(digest::digest(&digest::SHA256, data).as_ref());
        let canonical = format!(
            "{}\n{}\n\n{headers}\n{names}\n{}",
            request.method,
            request.path(),
            hash(&request.body)
        );
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{time}\n{}\n{}",
            scope.join("/"),
            hash(canonical.as_bytes())
        );
        let mac = |key: &[u8], data: &[u8]| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
                .as_ref()
                .to_vec()
        };
        let mut key = format!("AWS4{SECRET}").into_bytes();
        for part in &scope {
            key = mac(&key, part.as_bytes());
        }
        (hex(&mac(&key, to_sign.as_bytes())) != signature).then_some("SignatureDoesNotMatch")
    }
}

impl Cloud for Ec2 {
    fn answer(&mut self, request: &Request) -> Response {
        if request.path().starts_with("/latest/") {
            return self.metadata(request).unwrap_or(Response::new(404, ""));
        }
        if self.is_away {
            return Response::new(503, "");
        }
        if request.is("POST", "/") {
            return self.api(request);
        }
        Response::new(404, "")
    }
}

fn done(action: &str, content: &str) -> Response {
    Response::ok(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>{content}</{action}Response>"
    ))
}

fn failed(status: u16, code: &str, message: &str) -> Response {
    Response::new(
        status,
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>ea966190-f9aa-478e-9ede-example</RequestID></Response>"
        ),
    )
}

fn decoded(text: &str) -> String {
    let text = percent_encoding::percent_decode_str(text);
    text.decode_utf8_lossy().into_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
