//! As much of an API server as kubectl asks before it would create something: which kinds there are.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use serde_json::{Value, json};

/// Group and version, path, and the kinds: their name in a path, and whether they are in a namespace.
type Kinds = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str, bool)],
);
const KINDS: [Kinds; 3] = [
    (
        "v1",
        "/api/v1",
        &[
            ("Namespace", "namespaces", false),
            ("ServiceAccount", "serviceaccounts", true),
            ("ConfigMap", "configmaps", true),
        ],
    ),
    (
        "apps/v1",
        "/apis/apps/v1",
        &[("DaemonSet", "daemonsets", true)],
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "/apis/rbac.authorization.k8s.io/v1",
        &[
            ("ClusterRole", "clusterroles", false),
            ("ClusterRoleBinding", "clusterrolebindings", false),
            ("Role", "roles", true),
            ("RoleBinding", "rolebindings", true),
        ],
    ),
];

/// Starts the server, which ends with the test; its URL.
pub(crate) fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that is gone is none of the server's business.
            let _ = answer(stream);
        }
    });
    url
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let target = request.split(' ').nth(1).unwrap_or_default();
    let target = target.split('?').next().unwrap_or_default();
    let (status, kind, body) = match target {
        "/openapi/v2" => (
            "200 OK",
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            schema(),
        ),
        target => match discovered(target) {
            Some(document) => (
                "200 OK",
                "application/json",
                document.to_string().into_bytes(),
            ),
            None => (
                "404 Not Found",
                "application/json",
                b"{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"code\":404}".to_vec(),
            ),
        },
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

/// What there is to be created, and that a server of today validates fields itself.
fn discovered(target: &str) -> Option<Value> {
    match target {
        "/api" => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        "/apis" => Some(groups()),
        "/openapi/v3" => {
            let paths = KINDS.iter().map(|(_, path, _)| {
                let url = json!({"serverRelativeURL": format!("/openapi/v3{path}")});
                (path.trim_start_matches('/').to_owned(), url)
            });
            Some(json!({"paths": Value::Object(paths.collect())}))
        }
        target => {
            let path = target.trim_start_matches("/openapi/v3");
            let kinds = KINDS.iter().find(|(_, known, _)| *known == path)?;
            Some(match path == target {
                true => resources(kinds),
                false => operations(kinds),
            })
        }
    }
}

fn groups() -> Value {
    let versions = KINDS.iter();
    let groups = versions.filter_map(|(version, ..)| version.split_once('/'));
    let groups: Value = groups
        .map(|(group, number)| {
            let full = format!("{group}/{number}");
            let version = json!({"groupVersion": full, "version": number});
            json!({"name": group, "versions": [version], "preferredVersion": version})
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resources((version, _, kinds): &Kinds) -> Value {
    let resources: Value = kinds
        .iter()
        .map(|(kind, name, namespaced)| {
            let verbs = ["create", "get"];
            json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": verbs})
        })
        .collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
}

fn operations((version, _, kinds): &Kinds) -> Value {
    let (group, number) = version.split_once('/').unwrap_or(("", version));
    let paths = kinds.iter().map(|(kind, ..)| {
        let known = json!({"group": group, "version": number, "kind": kind});
        let parameter =
            json!({"name": "fieldValidation", "in": "query", "schema": {"type": "string"}});
        let patch = json!({"parameters": [parameter], "x-kubernetes-group-version-kind": known});
        (format!("/{kind}"), json!({"patch": patch}))
    });
    let paths = Value::Object(paths.collect());
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"}, "paths": paths})
}

/// OpenAPI's second version in protobuf (gnostic's OpenAPIv2.proto), which kubectl 1.20 wants: kinds of which nothing
/// is known but that they exist.
fn schema() -> Vec<u8> {
    let mut definitions = Vec::new();
    for (version, _, kinds) in KINDS {
        let (group, number) = version.split_once('/').unwrap_or(("", version));
        for (kind, ..) in kinds {
            let known = format!("- {{group: \"{group}\", version: {number}, kind: {kind}}}\n");
            let any = field(2, known.as_bytes());
            let extension = [field(1, b"x-kubernetes-group-version-kind"), field(2, &any)].concat();
            let named = [
                field(1, format!("{number}.{kind}").as_bytes()),
                field(2, &field(31, &extension)),
            ]
            .concat();
            definitions.extend(field(1, &named));
        }
    }
    [field(1, b"2.0"), field(9, &definitions)].concat()
}

/// A field of a protobuf message that has bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |mut value: usize| {
        while value >= 0x80 {
            out.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        out.push(value.to_le_bytes()[0]);
    };
    put(usize::from(number) << 3 | 2);
    put(bytes.len());
    out.extend_from_slice(bytes);
    out
}
