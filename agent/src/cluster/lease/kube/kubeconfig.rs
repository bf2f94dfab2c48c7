//! The kubeconfig: a YAML or JSON file that names an API server and who may talk to it.
//!
//! Programs that get credentials (`exec`, `auth-provider`) are not run: the agent holds privileges that no helper
//! needs.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::access::{AccessError, Cluster, Token};
use crate::base::yaml;
use crate::cluster::lease::rest::tls::{Pem, TlsError};
use crate::settings::Secret;

/// The file, as far as it counts here.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "current-context", default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    clusters: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
}

/// An entry of one of the lists.
#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    context: Context,
    #[serde(default)]
    cluster: ClusterEntry,
    #[serde(default)]
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct ClusterEntry {
    server: String,
    certificate_authority: String,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
    tls_server_name: String,
    proxy_url: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: String,
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    username: String,
    #[serde(rename = "as")]
    impersonate: String,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
}

/// What the current context names.
pub(super) struct Current {
    cluster: ClusterEntry,
    user: User,
}

/// Reads the current context's cluster and user.
pub(super) fn read(path: &Path) -> Result<Cluster, AccessError> {
    let error = |reason: String| AccessError::Kubeconfig {
        path: path.to_owned(),
        reason,
    };
    let text = fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
    parse(&text, path).map_err(|wrong| match wrong {
        Wrong::Content(reason) => error(reason),
        Wrong::Tls(source) => source.into(),
    })
}

enum Wrong {
    Content(String),
    Tls(TlsError),
}

impl From<String> for Wrong {
    fn from(reason: String) -> Self {
        Self::Content(reason)
    }
}

impl From<TlsError> for Wrong {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}

/// The current context's cluster and user, if nothing of them is unsupported. Reads no other file.
pub(super) fn current(text: &str) -> Result<Current, String> {
    let value = yaml::parse(text)?;
    let mut file: File = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let take = |list: &mut Vec<Named>, what: &str, name: &str| -> Result<Named, String> {
        let at = list.iter().position(|entry| entry.name == name);
        at.map(|at| list.swap_remove(at))
            .ok_or_else(|| format!("there is no {what} {name:?} in it"))
    };
    if file.current_context.is_empty() {
        return Err("it has no current-context".to_owned());
    }
    let context = take(&mut file.contexts, "context", &file.current_context)?.context;
    let cluster = take(&mut file.clusters, "cluster", &context.cluster)?.cluster;
    let user = match context.user.as_str() {
        "" => User::default(),
        name => take(&mut file.users, "user", name)?.user,
    };
    refuse(&cluster, &user)?;
    Ok(Current { cluster, user })
}

fn parse(text: &str, path: &Path) -> Result<Cluster, Wrong> {
    let Current { cluster, user } = current(text)?;
    let authorities = pem(
        &cluster.certificate_authority,
        &cluster.certificate_authority_data,
        "certificate-authority-data",
        path,
    )?;
    let certificate = pem(
        &user.client_certificate,
        &user.client_certificate_data,
        "client-certificate-data",
        path,
    )?;
    let private = pem(
        &user.client_key,
        &user.client_key_data,
        "client-key-data",
        path,
    )?;
    if certificate.is_some() != private.is_some() {
        return Err("its user has only one of client-certificate and client-key"
            .to_owned()
            .into());
    }
    Ok(Cluster {
        server: Some(cluster.server).filter(|server| !server.is_empty()),
        authorities,
        identity: certificate.zip(private),
        // As in client-go, the file wins.
        token: match (user.token_file.as_str(), user.token) {
            ("", token) if token.is_empty() => None,
            ("", token) => Some(Token::Text(Secret::new(token))),
            (file, _) => Some(Token::File(beside(path, file))),
        },
        server_name: Some(cluster.tls_server_name).filter(|name| !name.is_empty()),
    })
}

/// What is not supported, and what to do instead.
fn refuse(cluster: &ClusterEntry, user: &User) -> Result<(), String> {
    let instead = "give the user a token, a tokenFile or a client certificate";
    let refused = [
        (user.exec.is_some(), "exec", instead),
        (user.auth_provider.is_some(), "auth-provider", instead),
        (!user.username.is_empty(), "username", instead),
        (!user.impersonate.is_empty(), "as", "name the user itself"),
        (
            cluster.insecure_skip_tls_verify,
            "insecure-skip-tls-verify",
            "give the cluster's certificate-authority",
        ),
        (
            !cluster.proxy_url.is_empty(),
            "proxy-url",
            "name a server that this node reaches itself",
        ),
    ];
    match refused.into_iter().find(|(is, _, _)| *is) {
        Some((_, key, instead)) => Err(format!("{key} is not supported: {instead}")),
        None => Ok(()),
    }
}

/// A file, or its contents in base64, which win as in client-go.
fn pem(file: &str, data: &str, key: &str, path: &Path) -> Result<Option<Pem>, Wrong> {
    if !data.is_empty() {
        let text = STANDARD.decode(data.trim());
        let text = text.map_err(|error| format!("{key} is not base64: {error}"))?;
        return Ok(Some(Pem {
            path: path.to_owned(),
            text,
        }));
    }
    if file.is_empty() {
        return Ok(None);
    }
    Ok(Some(Pem::read(&beside(path, file))?))
}

/// Relative paths are relative to the kubeconfig.
fn beside(path: &Path, file: &str) -> std::path::PathBuf {
    path.parent().unwrap_or(Path::new("/")).join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubeadm writes `/etc/kubernetes/kubelet.conf`, with a token in place of the certificate.
    const KUBEADM: &str = "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://10.0.0.1:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: system:node:n1
  name: system:node:n1@kubernetes
current-context: system:node:n1@kubernetes
kind: Config
preferences: {}
users:
- name: system:node:n1
  user:
    token: abc.def
";

    /// The kubeconfig of flannel's older DaemonSets and of the `/etc/cni/net.d` of other plugins.
    const TOKEN_FILE: &str = r#"{"clusters":[{"name":"c","cluster":{"server":"https://10.96.0.1","tls-server-name":"kubernetes"}}],
        "contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}],"current-context":"x",
        "users":[{"name":"u","user":{"tokenFile":"token","token":"stale"}}]}"#;

    fn parsed(text: &str) -> Result<Cluster, String> {
        parse(text, Path::new("/etc/k/config")).map_err(|wrong| match wrong {
            Wrong::Content(reason) => reason,
            Wrong::Tls(error) => error.to_string(),
        })
    }

    #[test]
    fn the_current_contexts_cluster_and_user_count() {
        let cluster = parsed(KUBEADM).unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://10.0.0.1:6443"));
        assert_eq!(cluster.authorities.unwrap().text, b"CA");
        assert_eq!(cluster.token.unwrap().read().unwrap().expose(), "abc.def");
        let cluster = parsed(TOKEN_FILE).unwrap();
        assert_eq!(cluster.token.unwrap().place(), "/etc/k/token");
        assert_eq!(cluster.server_name.as_deref(), Some("kubernetes"));
    }

    #[test]
    fn what_is_not_supported_is_named_with_what_to_do() {
        let with_user = |user: &str| KUBEADM.replace("token: abc.def", user);
        let with_cluster = |line: &str| KUBEADM.replace("certificate-authority-data: Q0E=", line);
        for (text, expected) in [
            // As `aws eks update-kubeconfig` and `gcloud` write it.
            (
                with_user(
                    "exec:\n      apiVersion: client.authentication.k8s.io/v1beta1\n      command: aws",
                ),
                "exec is not supported: give the user a token",
            ),
            (
                with_user("auth-provider:\n      name: gcp"),
                "auth-provider is not supported",
            ),
            (with_user("username: admin"), "username is not supported"),
            (with_user("as: root"), "as is not supported"),
            (
                with_user("client-certificate-data: Q0E="),
                "only one of client-certificate and client-key",
            ),
            (
                with_cluster("insecure-skip-tls-verify: true"),
                "insecure-skip-tls-verify is not supported: give the cluster's",
            ),
            (with_cluster("proxy-url: http://p:1"), "proxy-url is not"),
            (
                with_cluster("certificate-authority-data: '*'"),
                "certificate-authority-data is not base64",
            ),
            (
                with_cluster("certificate-authority: /nonexistent/ca"),
                "failed to read /nonexistent/ca",
            ),
            (
                KUBEADM.replace("current-context", "context"),
                "it has no current-context",
            ),
            (
                KUBEADM.replace("cluster: kubernetes", "cluster: other"),
                "there is no cluster \"other\" in it",
            ),
            ("a: [".to_owned(), "bad YAML"),
            ("- 1".to_owned(), "invalid"),
            (String::new(), "invalid type: null"),
        ] {
            let error = parsed(&text).unwrap_err();
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }
}
