//! Rights as a real server's RBAC has them: what a request does with which resource, and the words in which it is refused.

use hyper::{Method, Response};
use serde_json::{Value, json};

use crate::server::{Body, Cluster, whole};

/// The user who has only the rights that a test gives, as with a real server; all others may do everything.
pub(crate) const LIMITED: &str = "flannel";

/// What a request does, in the words of `k8s.io/apiserver/pkg/authorization/authorizer`.
pub(crate) struct Attributes<'a> {
    verb: &'static str,
    group: &'a str,
    namespace: Option<&'a str>,
    /// With the subresource: `nodes/status`.
    resource: String,
    name: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    /// Of a request for objects; `None` for others, such as the one for the version.
    pub(crate) fn of(method: &Method, path: &'a str, query: &str) -> Option<Self> {
        let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", _, rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let (kind, name, part) = match rest {
            [kind] => (*kind, None, None),
            [kind, name] => (*kind, Some(*name), None),
            [kind, name, part] => (*kind, Some(*name), Some(*part)),
            _ => return None,
        };
        let verb = match (method.as_str(), name) {
            ("GET", Some(_)) => "get",
            ("GET", None) if query.contains("watch=") => "watch",
            ("GET", None) => "list",
            ("POST", _) => "create",
            ("PATCH", _) => "patch",
            _ => return None,
        };
        Some(Self {
            verb,
            group,
            namespace,
            resource: part.map_or(kind.to_owned(), |part| format!("{kind}/{part}")),
            name,
        })
    }

    /// The refusal, word for word as in flannel-io/flannel#1735 (a list) and simplyblock/simplyblock-csi#316 (of one
    /// node): `responsewriters.Forbidden` and `errors.NewForbidden`.
    pub(crate) fn refusal(&self, user: &str) -> Response<Body> {
        let kind = self.resource.split('/').next().unwrap_or_default();
        let qualified = match self.group {
            "" => kind.to_owned(),
            group => format!("{kind}.{group}"),
        };
        let object = match self.name {
            Some(name) => format!("{qualified} \"{name}\""),
            None => qualified,
        };
        let scope = match self.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let (verb, resource, group) = (self.verb, &self.resource, self.group);
        let message = format!(
            "{object} is forbidden: User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {scope}"
        );
        let details = match self.name {
            Some(name) => json!({"name": name, "kind": kind}),
            None => json!({"kind": kind}),
        };
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": "Forbidden", "details": details, "code": 403,
        });
        whole(403, &status)
    }

    /// Whether a user may do this. Each may ask for rights (`system:basic-user`).
    pub(crate) fn are_allowed(&self, cluster: &Cluster, user: &str) -> bool {
        self.group == "authorization.k8s.io" || has_right(cluster, user, &self.resource, self.verb)
    }
}

/// Whether a user has a right.
pub(crate) fn has_right(cluster: &Cluster, user: &str, resource: &str, verb: &str) -> bool {
    let mut rights = cluster.rights.iter();
    user != LIMITED || rights.any(|(of, given)| of == resource && given == verb)
}

/// The status of a review, as a real server writes it.
pub(crate) fn verdict(allowed: bool) -> Value {
    match allowed {
        true => json!({
            "allowed": true,
            "reason": "RBAC: allowed by ClusterRoleBinding \"flannel\" of ClusterRole \"flannel\" to User \"flannel\"",
        }),
        false => json!({"allowed": false}),
    }
}
