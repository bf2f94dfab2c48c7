//! Where the API server is, and how this node proves who it is there.
//!
//! Nothing is read when the agent starts: `kubeadm join` may write the kubeconfig later, and certificates and tokens
//! are replaced while the agent runs. All files are read for each connection, and the token for each request.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio_rustls::rustls::ClientConfig;

use super::kubeconfig;
use crate::base::endpoint::ApiUrl;
use crate::cluster::lease::rest::tls::{self, Pem, TlsError};
use crate::settings::{Kubernetes, Secret};

/// What a pod is given, besides settings.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The environment: `KUBERNETES_SERVICE_HOST` and `_PORT`, `NODE_NAME`, `POD_NAME` and `POD_NAMESPACE` count.
    pub variables: BTreeMap<String, String>,
    /// The directory with the token and the CA certificates of the service account.
    pub service_account: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let names = [
            "KUBERNETES_SERVICE_HOST",
            "KUBERNETES_SERVICE_PORT",
            "NODE_NAME",
            "POD_NAME",
            "POD_NAMESPACE",
        ];
        let variables = names.into_iter().filter_map(|name| {
            let value = std::env::var(name).ok()?;
            Some((name.to_owned(), value))
        });
        Self {
            variables: variables.collect(),
            service_account: PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount"),
        }
    }

    /// A variable that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

/// There is no way to the API server.
#[derive(Debug, Error)]
pub(super) enum AccessError {
    /// No source names a server.
    #[error(
        "no API server is known: run the agent as a pod with a service account, or set kubernetes.kubeconfig or kubernetes.api-url"
    )]
    NoServer,
    /// A source names a server that cannot be one.
    #[error("{0:?} is not the URL of an API server: expected {form}", form = ApiUrl::FORM)]
    Url(String),
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The token cannot be read.
    #[error("failed to read the token in {}: {reason}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Everyone on the way could read the token.
    #[error(
        "the kubeconfig's token is not sent to {0} without TLS: make that an https:// URL, or have the user without token"
    )]
    Clear(String),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A token that requests carry.
#[derive(Clone, Debug)]
pub(super) enum Token {
    /// It is in a file, which is replaced before the token expires.
    File(PathBuf),
    /// It stands in the kubeconfig.
    Text(Secret),
}

impl Token {
    pub(super) fn read(&self) -> Result<Secret, AccessError> {
        let path = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::File(path) => path,
        };
        let error = |reason: String| AccessError::Token {
            path: path.clone(),
            reason,
        };
        let text = fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(error("it is empty, or not one line of ASCII".to_owned()));
        }
        Ok(Secret::new(token.to_owned()))
    }

    /// Where it is from, for messages.
    pub(super) fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Text(_) => "the kubeconfig".to_owned(),
        }
    }
}

/// What a kubeconfig or a service account says.
#[derive(Clone, Debug, Default)]
pub(super) struct Cluster {
    pub(super) server: Option<String>,
    pub(super) authorities: Option<Pem>,
    /// Certificate and private key.
    pub(super) identity: Option<(Pem, Pem)>,
    pub(super) token: Option<Token>,
    /// The name in the server's certificate, if that is not its host's.
    pub(super) server_name: Option<String>,
}

/// How to connect.
pub(super) struct Grant {
    pub(super) url: ApiUrl,
    pub(super) tls: Option<ClientConfig>,
    pub(super) server_name: Option<String>,
    pub(super) token: Option<Token>,
}

/// Where to look for all of it.
#[derive(Clone, Debug)]
pub(super) struct Access {
    api_url: Option<String>,
    kubeconfig: Option<PathBuf>,
    surroundings: Surroundings,
}

impl Access {
    pub(super) fn new(settings: &Kubernetes, surroundings: Surroundings) -> Self {
        Self {
            api_url: settings.api_url.clone(),
            kubeconfig: settings.kubeconfig.clone(),
            surroundings,
        }
    }

    /// Reads all of it anew.
    pub(super) fn load(&self) -> Result<Grant, AccessError> {
        let cluster = match &self.kubeconfig {
            Some(path) => kubeconfig::read(path)?,
            None => self.service_account()?,
        };
        let text = self.api_url.as_ref().or(cluster.server.as_ref());
        let text = text.ok_or(AccessError::NoServer)?;
        let tls_by_default = cluster.authorities.is_some() || cluster.identity.is_some();
        let url = ApiUrl::parse(text, tls_by_default)
            .ok_or_else(|| AccessError::Url(crate::base::endpoint::without_user(text)))?;
        let tls = match url.endpoint.tls {
            true => Some(tls::client(
                cluster.authorities.as_ref(),
                cluster.identity.as_ref(),
            )?),
            false => None,
        };
        if tls.is_none() && cluster.token.is_some() && !url.endpoint.is_loopback() {
            return Err(AccessError::Clear(url.endpoint.url));
        }
        Ok(Grant {
            url,
            tls,
            server_name: cluster.server_name,
            token: cluster.token,
        })
    }

    /// What the API server is called before there is a connection.
    pub(super) fn describe(&self) -> String {
        match (&self.api_url, &self.kubeconfig) {
            (Some(url), _) => url.clone(),
            (None, Some(path)) => format!("the server in {}", path.display()),
            (None, None) => "the server of the service account".to_owned(),
        }
    }

    /// The service account of this pod, as far as there is one.
    fn service_account(&self) -> Result<Cluster, AccessError> {
        let (host, port) = (
            self.surroundings.get("KUBERNETES_SERVICE_HOST"),
            self.surroundings.get("KUBERNETES_SERVICE_PORT"),
        );
        let server = host.zip(port).map(|(host, port)| match host.contains(':') {
            true => format!("https://[{host}]:{port}"),
            false => format!("https://{host}:{port}"),
        });
        let file = |name: &str| -> PathBuf { self.surroundings.service_account.join(name) };
        let is_plain = self.api_url.as_ref().is_some_and(|url| !is_https(url));
        // A plain connection would show the token to everyone on its way.
        if is_plain || !Path::exists(&file("token")) {
            return Ok(Cluster {
                server,
                ..Cluster::default()
            });
        }
        Ok(Cluster {
            server,
            authorities: Some(Pem::read(&file("ca.crt"))?),
            token: Some(Token::File(file("token"))),
            ..Cluster::default()
        })
    }
}

fn is_https(url: &str) -> bool {
    ApiUrl::parse(url, false).is_some_and(|url| url.endpoint.tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(api_url: Option<&str>, kubeconfig: Option<&Path>, account: &Path) -> Access {
        let variables = [
            ("KUBERNETES_SERVICE_HOST", "fd00:96::1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
        ];
        Access {
            api_url: api_url.map(str::to_owned),
            kubeconfig: kubeconfig.map(Path::to_owned),
            surroundings: Surroundings {
                variables: variables
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
                service_account: account.to_owned(),
            },
        }
    }

    #[test]
    fn the_token_is_read_anew_and_never_sent_in_clear() {
        let account = tempfile::tempdir().unwrap();
        let path = account.path().join("token");
        fs::write(&path, "first\n").unwrap();
        let missing = access(None, None, account.path()).load().err().unwrap();
        assert!(missing.to_string().contains("ca.crt"), "{missing}");
        let plain = access(Some("http://10.0.0.1:8080"), None, account.path());
        assert!(plain.load().unwrap().token.is_none());

        let token = Token::File(path.clone());
        assert_eq!(token.read().unwrap().expose(), "first");
        fs::write(&path, "second").unwrap();
        assert_eq!(token.read().unwrap().expose(), "second");
        for bad in ["", "\n", "a b", "a\nb"] {
            fs::write(&path, bad).unwrap();
            assert!(token.read().is_err(), "{bad:?}");
        }
        fs::remove_file(&path).unwrap();
        let error = token.read().unwrap_err().to_string();
        assert!(error.contains("failed to read the token in"), "{error}");
    }

    #[test]
    fn a_kubeconfigs_token_goes_to_others_over_tls_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        let load = |server: &str, api_url: Option<&str>| {
            let user = "{name: u, user: {token: t0ken}}";
            let text = format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: '{server}'}}}}]\nusers: [{user}]\n"
            );
            fs::write(&path, text).unwrap();
            access(api_url, Some(&path), directory.path()).load()
        };
        for clear in [
            "http://10.0.0.1:8080",
            "http://api.example",
            "10.0.0.1:8080",
        ] {
            for error in [load(clear, None), load("https://10.0.0.1", Some(clear))] {
                let error = error.err().unwrap().to_string();
                assert!(
                    error.contains("without TLS: make that an https://"),
                    "{error}"
                );
                assert!(!error.contains("t0ken"), "{error}");
            }
        }
        for loopback in [
            "http://127.0.0.1:8001",
            "http://[::1]:8001",
            "http://localhost:8001",
        ] {
            assert!(load(loopback, None).unwrap().token.is_some(), "{loopback}");
        }
    }

    #[test]
    fn without_a_service_account_the_url_alone_will_do() {
        let nowhere = Path::new("/nonexistent");
        let grant = access(Some("http://10.0.0.1:8080"), None, nowhere).load();
        let grant = grant.unwrap();
        assert_eq!(grant.url.endpoint.url, "http://10.0.0.1:8080");
        assert!(grant.tls.is_none());
        let mut none = access(None, None, nowhere);
        none.surroundings.variables.clear();
        let error = none.load().err().unwrap();
        assert!(matches!(error, AccessError::NoServer), "{error}");
        let server = access(None, None, nowhere)
            .service_account()
            .unwrap()
            .server;
        assert_eq!(server.as_deref(), Some("https://[fd00:96::1]:443"));
    }
}
