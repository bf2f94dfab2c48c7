//! How a node finds the API server and proves who it is: tokens, certificates, the pod's node.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use selvage::cluster::lease::kube::KubeStore;
use selvage::cluster::lease::{Fault, LeaseStore, StoreError};
use serde_json::json;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::authority::{Authority, loopback};
use crate::node::{Files, bare, cluster};
use crate::server::ApiServer;

/// A kubeconfig whose user has these lines.
pub(crate) fn kubeconfig(server: &str, authority: Option<&Path>, user: &str) -> String {
    let authority = authority.map_or(String::new(), |path| {
        format!("    certificate-authority: {}\n", path.display())
    });
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context:\n    cluster: k\n    user: u\n\
         clusters:\n- name: k\n  cluster:\n    server: {server}\n{authority}users:\n- name: u\n  user:\n{user}"
    )
}

async fn node(store: &mut KubeStore) -> Result<(), StoreError> {
    store.network_config().await.map(drop)
}

#[tokio::test]
async fn a_token_is_read_again_when_it_is_replaced() {
    let (server, mut files, _) = cluster();
    server.change(|cluster| cluster.tokens = vec!["first".to_owned()]);
    let config = kubeconfig(&server.url(), None, "    tokenFile: token\n");
    fs::write(files.path("kubeconfig"), config).unwrap();
    files.settings.api_url = None;
    files.settings.kubeconfig = Some(files.path("kubeconfig"));
    let mut store = files.store();
    let error = node(&mut store).await.unwrap_err();
    assert!(
        error.to_string().contains("failed to read the token in"),
        "{error}"
    );
    assert_eq!(error.fault(), Fault::Login);
    fs::write(files.path("token"), "first\n").unwrap();
    node(&mut store).await.unwrap();
    server.change(|cluster| cluster.tokens = vec!["second".to_owned()]);
    let error = node(&mut store).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("Unauthorized: the token in "), "{text}");
    assert!(!text.contains("first"), "{text}");
    assert_eq!(error.fault(), Fault::Login);
    fs::write(files.path("token"), "second\n").unwrap();
    node(&mut store).await.unwrap();
}

#[tokio::test]
async fn a_kubeconfig_may_come_late_and_what_it_cannot_have_is_named() {
    let (server, mut files, _) = cluster();
    files.settings.api_url = None;
    files.settings.kubeconfig = Some(files.path("kubelet.conf"));
    let mut store = files.store();
    let error = node(&mut store).await.unwrap_err().to_string();
    assert!(error.contains("kubelet.conf: No such file"), "{error}");
    let exec = kubeconfig(&server.url(), None, "    exec:\n      command: aws\n");
    fs::write(files.path("kubelet.conf"), exec).unwrap();
    let error = node(&mut store).await.unwrap_err().to_string();
    assert!(
        error.contains("exec is not supported: give the user a token"),
        "{error}"
    );
    let plain = kubeconfig(&server.url(), None, "    token: t\n");
    fs::write(files.path("kubelet.conf"), plain).unwrap();
    node(&mut store).await.unwrap();
}

#[tokio::test]
async fn a_pod_is_asked_for_its_node_once() {
    let (server, mut files, _) = cluster();
    files.settings.node_name = None;
    for (name, value) in [("POD_NAME", "flannel-x"), ("POD_NAMESPACE", "kube-flannel")] {
        let variables = &mut files.surroundings.variables;
        variables.insert(name.to_owned(), value.to_owned());
    }
    let mut store = files.store();
    assert_eq!(store.owner(), "kube-flannel/flannel-x");
    let error = node(&mut store).await.unwrap_err().to_string();
    assert!(error.contains("pods \"flannel-x\" not found"), "{error}");
    server.change(|cluster| {
        let pod = json!({"spec": {"nodeName": "n1"}});
        cluster
            .pods
            .insert("kube-flannel/flannel-x".to_owned(), pod);
    });
    node(&mut store).await.unwrap();
    node(&mut store).await.unwrap();
    let asked = server.look(|cluster| cluster.count("GET /api/v1/namespaces/kube-flannel/pods/"));
    assert_eq!(asked, 2);
    // NODE_NAME wins, and without either there is nothing to wait for.
    files
        .surroundings
        .variables
        .insert("NODE_NAME".to_owned(), "n1".to_owned());
    assert_eq!(files.store().owner(), "n1");
    files.surroundings.variables.clear();
    let error = KubeStore::new(&files.settings, files.surroundings.clone()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("set kubernetes.node-name or NODE_NAME"),
        "{error}"
    );
    files
        .surroundings
        .variables
        .insert("NODE_NAME".to_owned(), "../x".to_owned());
    assert!(KubeStore::new(&files.settings, files.surroundings.clone()).is_err());
}

pub(crate) fn acceptor(authority: &Authority) -> TlsAcceptor {
    let read = |name: &str| fs::read(authority.path(name)).unwrap();
    let certificate = CertificateDer::from_pem_slice(&read("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn free_port() -> SocketAddr {
    SocketAddr::new(loopback().into(), 0)
}

/// The service account of a pod, with its CA and token.
fn in_cluster(authority: &Authority, server: &ApiServer) -> Files {
    let mut files = Files::new("");
    files.settings.api_url = None;
    let account = &files.surroundings.service_account;
    fs::create_dir(account).unwrap();
    fs::copy(authority.path("ca.pem"), account.join("ca.crt")).unwrap();
    fs::write(account.join("token"), "t").unwrap();
    for (name, value) in [
        ("KUBERNETES_SERVICE_HOST", server.address.ip().to_string()),
        ("KUBERNETES_SERVICE_PORT", server.address.port().to_string()),
    ] {
        files.surroundings.variables.insert(name.to_owned(), value);
    }
    files
}

#[tokio::test]
async fn a_pod_trusts_the_authority_of_its_service_account_alone() {
    let authority = Authority::new();
    let server = ApiServer::start_with_tls(free_port(), acceptor(&authority));
    server.change(|cluster| {
        cluster.put(bare("n1", &["10.244.1.0/24"]));
        cluster.tokens = vec!["t".to_owned()];
    });
    let files = in_cluster(&authority, &server);
    node(&mut files.store()).await.unwrap();
    let account = &files.surroundings.service_account;
    let other = Authority::new();
    fs::copy(other.path("ca.pem"), account.join("ca.crt")).unwrap();
    let error = node(&mut files.store()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Tls, "{error}");
    fs::write(account.join("ca.crt"), "rubbish").unwrap();
    let error = node(&mut files.store()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Tls, "{error}");
    assert!(
        error
            .to_string()
            .contains("ca.crt has no certificate in PEM form"),
        "{error}"
    );
}

/// The same as with a clock that is wrong: the certificate is not valid now.
#[tokio::test]
async fn an_expired_certificate_is_named() {
    let authority = Authority::new();
    authority.shorten("server", -3600);
    let server = ApiServer::start_with_tls(free_port(), acceptor(&authority));
    let files = in_cluster(&authority, &server);
    let error = node(&mut files.store()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Tls, "{error}");
    assert!(error.to_string().contains("certificate expired"), "{error}");
}
