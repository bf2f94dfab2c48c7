//! What kubectl, kustomize and Helm make of manifest, kustomization and chart, where they are installed; and the
//! programs that the objects name.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use selvage::base::yaml;
use serde_json::Value;
use tempfile::TempDir;

use crate::chart;
use crate::objects::{documents, one};
use crate::server::serve;
use crate::{path, read};

/// What a program prints; `None`, with words, if it is not installed.
fn output(program: &str, arguments: &[&OsStr], home: &Path) -> Option<(bool, String)> {
    let started = Command::new(program)
        .args(arguments)
        .env("HOME", home)
        .output();
    let output = match started {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: {program} cannot be run: {error}");
            return None;
        }
    };
    let said = [output.stdout, output.stderr].concat();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// Objects in an order of their own.
fn sorted(text: &str) -> Vec<String> {
    let objects = documents(text);
    let mut objects: Vec<_> = objects.iter().map(Value::to_string).collect();
    objects.sort();
    objects
}

#[test]
fn the_kustomization_has_the_objects_of_the_manifest() {
    let home = TempDir::new().expect("a directory");
    let directory = path("").into_os_string();
    let arguments = [OsStr::new("kustomize"), &directory];
    let Some((well, said)) = output("kubectl", &arguments, home.path()) else {
        return;
    };
    assert!(well, "{said}");
    assert_eq!(sorted(&said), sorted(&read("selvage.yaml")));
}

/// The pods' images, of all containers.
fn images(text: &str) -> Vec<String> {
    let documents = documents(text);
    let pod = &one(&documents, "DaemonSet")["spec"]["template"]["spec"];
    let of = |kind: &str| pod[kind].as_array().expect("containers").clone();
    let all = [of("initContainers"), of("containers")].concat();
    let image = |container: &Value| container["image"].as_str().expect("an image").to_owned();
    all.iter().map(image).collect()
}

/// A name and a tag that are changed in one place are those of all containers.
#[test]
fn the_image_is_named_in_one_place() {
    let kustomization = read("kustomization.yaml");
    let value = yaml::parse(&kustomization).expect("YAML");
    let version = env!("CARGO_PKG_VERSION");
    let name = "registry.example/selvage";
    assert_eq!(
        value["images"],
        serde_json::json!([{"name": name, "newName": name, "newTag": version}])
    );
    let manifest = read("selvage.yaml");
    assert_eq!(images(&manifest), vec![format!("{name}:{version}"); 2]);
    assert_eq!(
        manifest.matches(name).count(),
        2,
        "in both and nowhere else"
    );

    let home = TempDir::new().expect("a directory");
    let own = kustomization
        .replace(
            "newName: registry.example/",
            "newName: registry.internal:5000/infra/",
        )
        .replace(&format!("newTag: {version}"), "newTag: 1.2.3");
    fs::write(home.path().join("kustomization.yaml"), own).expect("a file");
    fs::write(home.path().join("selvage.yaml"), &manifest).expect("a file");
    let arguments = ["kustomize".as_ref(), home.path().as_os_str()];
    if let Some((well, said)) = output("kubectl", &arguments, home.path()) {
        assert!(well, "{said}");
        assert_eq!(
            images(&said),
            vec!["registry.internal:5000/infra/selvage:1.2.3"; 2]
        );
    }
}

/// The command of agent/docs/kubernetes.md, and of `selvage migrate`, does the same without kustomize.
#[test]
fn the_documented_command_names_the_image() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kubernetes.md");
    let docs = fs::read_to_string(docs).expect("the documentation");
    let line = docs.lines().find(|line| line.starts_with("sed '"));
    let (command, _) = line
        .and_then(|line| line.split_once(" | "))
        .expect("a command");
    let command = command
        .replace("REGISTRY", "registry.internal:5000/infra")
        .replace("VERSION", "1.2.3");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new("sh")
        .args(["-c", &command])
        .current_dir(root)
        .output();
    let said = String::from_utf8(output.expect("a shell").stdout).expect("text");
    assert_eq!(
        images(&said),
        vec!["registry.internal:5000/infra/selvage:1.2.3"; 2]
    );
}

/// The overlay that agent/docs/kubernetes.md shows.
#[test]
fn an_overlay_names_the_image_and_the_network() {
    let home = TempDir::new().expect("a directory");
    let base = home.path().join("units/kubernetes");
    fs::create_dir_all(&base).expect("a directory");
    for name in ["kustomization.yaml", "selvage.yaml"] {
        fs::copy(path(name), base.join(name)).expect("a file");
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kubernetes.md");
    let docs = fs::read_to_string(docs).expect("the documentation");
    let block = docs
        .split("```")
        .find(|block| block.starts_with("yaml\nresources:"));
    let block = block.expect("an overlay").trim_start_matches("yaml\n");
    let (resources, rest) = block.split_once("\nimages:").expect("images");
    assert!(resources.contains("units/kubernetes"), "{resources}");
    let overlay = format!("resources: [units/kubernetes]\nimages:{rest}");
    fs::write(home.path().join("kustomization.yaml"), overlay).expect("a file");
    let arguments = ["kustomize".as_ref(), home.path().as_os_str()];
    let Some((well, said)) = output("kubectl", &arguments, home.path()) else {
        return;
    };
    if !well && said.contains("patchesStrategicMerge") {
        eprintln!("skipped: kustomize 2.0, which kubectl 1.20 has, knows no such patches");
        return;
    }
    assert!(well, "{said}");
    let documents = documents(&said);
    let pod = &one(&documents, "DaemonSet")["spec"]["template"]["spec"];
    for container in [&pod["containers"][0], &pod["initContainers"][0]] {
        assert_eq!(container["image"], "registry.internal/infra/selvage:0.1.0");
    }
    let data = &one(&documents, "ConfigMap")["data"];
    let config: Value =
        serde_json::from_str(data["net-conf.json"].as_str().expect("a text")).expect("JSON");
    assert_eq!(config["Network"], "10.42.0.0/16");
    assert!(
        data["cni-conf.json"]
            .as_str()
            .is_some_and(|text| text.contains("portmap"))
    );
}

/// By a server that knows the kinds, as far as kubectl asks before it would create something. KUBE_SERVER names a real
/// one, whose schema kubectl then validates by.
#[test]
fn kubectl_takes_every_object() {
    let home = TempDir::new().expect("a directory");
    let server = env::var("KUBE_SERVER").unwrap_or_else(|_| serve());
    let create = |file: &Path, labels: &str| {
        let arguments = [
            "--server",
            &server,
            "create",
            "--dry-run=client",
            "--validate=true",
            "--selector",
            labels,
            "-f",
        ];
        let arguments = arguments.iter().map(OsStr::new).chain([file.as_os_str()]);
        output("kubectl", &arguments.collect::<Vec<_>>(), home.path())
    };
    let Some((well, said)) = create(&path("selvage.yaml"), "") else {
        return;
    };
    assert!(well, "{said}");
    let objects = documents(&read("selvage.yaml")).len();
    assert_eq!(said.matches("created (dry run)").count(), objects, "{said}");
    // Who moves from flannel keeps the network config.
    let (well, said) =
        create(&path("selvage.yaml"), "component!=network-config").expect("kubectl, as above");
    assert!(well && !said.contains("configmap"), "{said}");
    assert_eq!(
        said.matches("created (dry run)").count(),
        objects - 1,
        "{said}"
    );
    // flannel's manifest of 2018, whose kind is no more.
    let old = home.path().join("old.yaml");
    let text =
        read("selvage.yaml").replace("apiVersion: apps/v1", "apiVersion: extensions/v1beta1");
    fs::write(&old, text).expect("a file");
    let (well, said) = create(&old, "").expect("kubectl, as above");
    assert!(!well && said.contains("DaemonSet"), "{said}");
}

/// What this repository takes for Helm's rendering is Helm's.
#[test]
fn helm_renders_the_chart_to_the_same_objects() {
    let home = TempDir::new().expect("a directory");
    let chart = path("chart").into_os_string();
    let arguments: [&OsStr; 7] = [
        "template".as_ref(),
        "flannel".as_ref(),
        &chart,
        "--namespace".as_ref(),
        "kube-flannel".as_ref(),
        "--set".as_ref(),
        "podCidrv6=2001:cafe:42::/56,flannel.mtu=1400,flannel.nodeSelector.role=edge".as_ref(),
    ];
    let Some((well, said)) = output("helm", &arguments, home.path()) else {
        return;
    };
    assert!(well, "{said}");
    let ours = "podCidrv6: 2001:cafe:42::/56\nflannel: {mtu: 1400, nodeSelector: {role: edge}}";
    assert_eq!(
        sorted(&said),
        sorted(&chart::render(ours).expect("objects"))
    );
}

#[test]
fn the_chart_has_the_version_of_the_agent() {
    let chart = yaml::parse(&read("chart/Chart.yaml")).expect("YAML");
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

/// The init container's too, and what it installs is the ConfigMap's list.
#[test]
fn the_agent_installs_the_plugin_as_the_manifest_asks() {
    let documents = documents(&read("selvage.yaml"));
    let pod = &one(&documents, "DaemonSet")["spec"]["template"]["spec"];
    let data = &one(&documents, "ConfigMap")["data"];
    let directory = TempDir::new().expect("a directory");
    let root = directory.path();
    for made in ["etc/kube-flannel", "etc/cni/net.d", "opt/cni/bin"] {
        fs::create_dir_all(root.join(made)).expect("a directory");
    }
    let list = data["cni-conf.json"].as_str().expect("a text");
    fs::write(root.join("etc/kube-flannel/cni-conf.json"), list).expect("a file");
    let container = &pod["initContainers"][0];
    assert_eq!(container["command"][0], "/usr/bin/selvage");
    let arguments = container["args"].as_array().into_iter().flatten();
    let arguments = arguments.map(|one| match one.as_str().expect("a flag") {
        path if path.starts_with('/') => root.join(&path[1..]).into_os_string(),
        word => word.into(),
    });
    let mut agent = Command::new(env!("CARGO_BIN_EXE_selvage"));
    let output = agent.args(arguments).output().expect("the agent");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(root.join("opt/cni/bin/flannel").exists());
    let installed = fs::read_to_string(root.join("etc/cni/net.d/10-flannel.conflist"));
    let installed: Value = serde_json::from_str(&installed.expect("a list")).expect("JSON");
    let list: Value = serde_json::from_str(list).expect("JSON");
    assert_eq!(installed, list);
}

/// The container's command line is one that the agent takes, and its program is in the image.
#[test]
fn the_agent_takes_the_command_line_of_the_manifest() {
    let documents = documents(&read("selvage.yaml"));
    let container = &one(&documents, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let program = container["command"][0].as_str().expect("a program");
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/oci");
    let image = fs::read_to_string(image).expect("image/oci");
    let name = format!("\"{}\": ", program.trim_start_matches('/'));
    assert!(image.contains(&name), "image/oci has no {program}");

    let directory = TempDir::new().expect("a directory");
    let flanneld = directory.path().join("flanneld");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_selvage"), &flanneld).expect("a link");
    let run = |more: &str| {
        let arguments = container["args"].as_array().into_iter().flatten();
        let arguments = arguments
            .map(|one| one.as_str().expect("a flag"))
            .chain([more]);
        Command::new(&flanneld)
            .args(arguments)
            .output()
            .expect("the agent")
    };
    let output = run("--version");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = run("--kube-subnet-manager");
    assert_eq!(output.status.code(), Some(2), "an unknown flag is found");
}
