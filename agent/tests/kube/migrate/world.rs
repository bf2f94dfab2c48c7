//! A cluster that is moved, and the report about it.

use std::fs;
use std::path::Path;

use hyper::Method;
use selvage::base::terminal::Colour;
use selvage::base::yaml;
use selvage::command::cli::{MigrateCommand, MigrateFlags};
use selvage::command::migrate;
use selvage::settings::{MigrateSettings, Settings};
use serde_json::{Value, json};

use crate::node::flannel;
use crate::real::Ask;
use crate::server::ApiServer;

/// A cluster with these objects, and what `selvage migrate` is told to reach it.
pub(super) struct World {
    pub(super) server: ApiServer,
    pub(super) settings: Settings,
}

/// The documents of a manifest in `migrate/`.
pub(super) fn manifest(name: &str) -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kube/migrate");
    documents(&fs::read_to_string(directory.join(name)).unwrap())
}

pub(super) fn documents(text: &str) -> Vec<Value> {
    let parts = text.split("\n---\n").map(|part| yaml::parse(part).unwrap());
    parts.filter(|document| !document.is_null()).collect()
}

/// Where the objects of a kind are.
fn collection(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let group = match text("/apiVersion").unwrap() {
        "v1" => "/api/v1".to_owned(),
        group => format!("/apis/{group}"),
    };
    let kind = format!("{}s", text("/kind").unwrap().to_lowercase());
    match text("/metadata/namespace") {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{kind}"),
        None => format!("{group}/{kind}"),
    }
}

impl World {
    /// A cluster of three nodes with flannel, in 10.244.0.0/16.
    pub(super) fn new(objects: Vec<Value>) -> Self {
        let server = ApiServer::start();
        server.change(|cluster| {
            for number in 1..=3 {
                let mut node = flannel(&format!("n{number}"), number);
                node["status"]["nodeInfo"] = info("linux", "amd64", "v1.33.1");
                cluster.put(node);
            }
            let version = json!({"major": "1", "minor": "33+", "gitVersion": "v1.33.1-eks-0"});
            cluster.objects.insert("/version".to_owned(), version);
        });
        let mut settings = Settings::default();
        settings.kubernetes.api_url = Some(server.url());
        let world = Self { server, settings };
        for object in objects {
            world.put(object);
        }
        world
    }

    pub(super) fn of(name: &str) -> Self {
        Self::new(manifest(name))
    }

    /// The same, but with the first object of this kind changed.
    pub(super) fn changed(name: &str, kind: &str, change: impl FnOnce(&mut Value)) -> Self {
        let mut objects = manifest(name);
        let object = objects.iter_mut().find(|object| object["kind"] == kind);
        change(object.unwrap());
        Self::new(objects)
    }

    /// Puts an object into the cluster.
    pub(super) fn put(&self, object: Value) {
        let collection = collection(&object);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let path = format!("{collection}/{name}");
        if let Some(real) = self.server.real() {
            if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                let body = json!({"metadata": {"name": namespace}});
                real.ask(Ask::new(Method::POST, "/api/v1/namespaces", Some(&body)));
            }
            real.must(Method::POST, &collection, Some(&object));
            if object.get("status").is_some() {
                real.must(Method::PUT, &format!("{path}/status"), Some(&object));
            }
        }
        self.server.change(|cluster| {
            cluster.objects.insert(path, object);
        });
    }

    pub(super) async fn run(&self, back: bool, json: bool) -> (u8, String) {
        let flags = MigrateFlags {
            json,
            color: Colour::Never,
            settings: MigrateSettings::default(),
        };
        let command = match back {
            true => MigrateCommand::Back(flags),
            false => MigrateCommand::FromFlannel(flags),
        };
        let mut output = Vec::new();
        let status = migrate::run(&command, &self.settings, &mut output).await;
        (status.unwrap(), String::from_utf8(output).unwrap())
    }

    /// The report of `from-flannel`.
    pub(super) async fn report(&self) -> Report {
        let (status, text) = self.run(false, true).await;
        Report::new(status, &text)
    }

    /// The report of `back`.
    pub(super) async fn back(&self) -> Report {
        let (status, text) = self.run(true, true).await;
        Report::new(status, &text)
    }
}

/// What a kubelet says of its node.
pub(super) fn info(os: &str, arch: &str, kubelet: &str) -> Value {
    json!({
        "machineID": "m", "systemUUID": "u", "bootID": "b", "osImage": "Debian GNU/Linux 13 (trixie)",
        "kubeProxyVersion": "", "operatingSystem": os, "architecture": arch,
        "kernelVersion": "6.12.41+deb13-amd64", "kubeletVersion": kubelet,
        "containerRuntimeVersion": "containerd://2.1.4",
    })
}

/// A report, with what tests look for.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) status: u8,
    pub(super) value: Value,
}

impl Report {
    pub(super) fn new(status: u8, text: &str) -> Self {
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(value["schema"], 1);
        Self { status, value }
    }

    pub(super) fn list(&self, name: &str) -> &[Value] {
        self.value[name].as_array().unwrap()
    }

    /// Severity, check and text of each finding.
    pub(super) fn findings(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let finding = |finding: &Value| {
            let (severity, check) = (&finding["severity"], &finding["check"]);
            format!(
                "{} {}: {}",
                text(severity),
                text(check),
                text(&finding["what"])
            )
        };
        self.list("findings").iter().map(finding).collect()
    }

    /// All remedies of a check.
    pub(super) fn remedies(&self, check: &str) -> Vec<&str> {
        let of_it = self.list("findings").iter();
        let of_it = of_it.filter(|finding| finding["check"] == check);
        let remedies = of_it.flat_map(|finding| finding["remedy"].as_array().unwrap());
        remedies.map(|remedy| remedy.as_str().unwrap()).collect()
    }

    /// What the steps say to do, in order.
    pub(super) fn how(&self) -> Vec<&str> {
        let steps = self.list("steps").iter();
        let how = steps.flat_map(|step| step["how"].as_array().unwrap());
        how.map(|line| line.as_str().unwrap()).collect()
    }

    /// Whether a list of sentences has one with these words.
    pub(super) fn says(&self, list: &str, words: &str) -> bool {
        let mut lines = self.list(list).iter();
        lines.any(|line| line.as_str().is_some_and(|line| line.contains(words)))
    }
}

/// How our manifest is applied.
pub(super) const APPLY: &str = "sed 's|registry.example/selvage:.*|REGISTRY/selvage:VERSION|' units/kubernetes/selvage.yaml | kubectl apply -l component!=network-config -f -";
