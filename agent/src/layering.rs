//! The folders' order, as a test: who may import whom, and that the plans do nothing but plan.
//!
//! Read from the source: `crate::` and `super::` paths outside comments and tests. `README.md` draws the same picture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;

/// The folders from the ground up. Each imports those before it.
const ORDER: [&str; 11] = [
    "base",
    "settings",
    "cluster",
    "plan",
    "cloud",
    "host",
    "telemetry",
    "agent",
    "flannel",
    "appliance",
    "command",
];

/// Folders that stand side by side: none of them imports another.
const SIDE_BY_SIDE: [&str; 3] = ["agent", "flannel", "appliance"];

/// What a plan has no use for: files, processes, the environment, sockets, clocks, a runtime, the kernel's interfaces.
const NOT_IN_PLANS: &str = r"std::(fs|process|env|thread|os)\b|std::net::(Tcp|Udp|ToSocket)|std::io::|Instant::now|SystemTime::now|\b(tokio|nix|rtnetlink|sys_mount|tempfile|tracing)::";

/// A source file without its tests and comments.
struct Source {
    /// The module, as `["plan", "backend", "vxlan"]`.
    module: Vec<String>,
    text: String,
}

impl Source {
    /// The paths that start at the crate's root which the file names, without the crate.
    fn imports(&self) -> BTreeSet<Vec<String>> {
        let path = Regex::new(r"\b(crate|(?:super::)*super)((?:::[a-z_][a-z_0-9]*)*)").unwrap();
        let mut imports = BTreeSet::new();
        for found in path.captures_iter(&self.text) {
            let start = match &found[1] {
                "crate" => &[][..],
                ups => {
                    let ups = ups.matches("super").count();
                    assert!(
                        ups < self.module.len(),
                        "{:?}: {ups} times super",
                        self.module
                    );
                    &self.module[..self.module.len() - ups]
                }
            };
            let rest = found[2].split("::").filter(|name| !name.is_empty());
            let import: Vec<String> = start.iter().cloned().chain(rest.map(Into::into)).collect();
            if !import.is_empty() {
                imports.insert(import);
            }
        }
        imports
    }

    fn folder(&self) -> &str {
        &self.module[0]
    }

    fn name(&self) -> String {
        self.module.join("/")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let comment = Regex::new(r"(?m)//.*$").unwrap();
    let mut sources = Vec::new();
    for path in files(&root) {
        let relative = path.strip_prefix(&root).unwrap().with_extension("");
        let module: Vec<String> = relative
            .iter()
            .map(|name| name.to_str().unwrap().to_owned())
            .collect();
        let is_test = |name: &String| name.ends_with("tests") || name == "samples";
        let is_outside =
            matches!(&module[..], [file] if ["main", "lib", "layering"].contains(&file.as_str()));
        if is_outside || module.iter().any(is_test) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        assert!(
            !code.contains("use crate::{"),
            "{}: one `use` for each folder, so that each can be seen",
            path.display()
        );
        sources.push(Source {
            module,
            text: comment.replace_all(code, "").into_owned(),
        });
    }
    sources
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn a_folder_imports_only_what_is_below_it() {
    let place = |folder: &str| ORDER.iter().position(|name| *name == folder);
    let mut wrong = Vec::new();
    for source in sources() {
        let own = place(source.folder());
        assert!(own.is_some(), "{} is in none of {ORDER:?}", source.name());
        for import in source.imports() {
            let is_sideways = SIDE_BY_SIDE.contains(&source.folder())
                && SIDE_BY_SIDE.contains(&import[0].as_str())
                && import[0] != source.folder();
            if place(&import[0]) > own || is_sideways {
                wrong.push(format!("{} imports {}", source.name(), import.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn plans_do_no_io_and_read_no_clock() {
    let io = Regex::new(NOT_IN_PLANS).unwrap();
    let mut wrong = Vec::new();
    for source in sources() {
        if source.folder() != "plan" {
            continue;
        }
        for found in io.find_iter(&source.text) {
            wrong.push(format!("{} uses {}", source.name(), found.as_str()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A module of the top two levels: `lease` of `cluster::lease::etcd`; a folder that is one module itself is not divided.
fn of_two_levels(path: &[String], divided: &BTreeSet<String>) -> Option<String> {
    match path {
        [folder, module, ..] if divided.contains(folder) => Some(format!("{folder}::{module}")),
        [folder, ..] if !divided.contains(folder) => Some(folder.clone()),
        _ => None,
    }
}

#[test]
fn no_two_modules_import_each_other() {
    let sources = sources();
    let has_code =
        |source: &&Source| source.text.contains("fn ") || source.text.contains("struct ");
    let whole: BTreeSet<&str> = (sources.iter().filter(|source| source.module.len() == 1))
        .filter(has_code)
        .map(Source::folder)
        .collect();
    let divided: BTreeSet<String> = (ORDER.iter())
        .filter(|folder| !whole.contains(*folder))
        .map(|folder| (*folder).to_owned())
        .collect();
    let mut below: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in &sources {
        let Some(from) = of_two_levels(&source.module, &divided) else {
            continue;
        };
        for import in source.imports() {
            let to = of_two_levels(&import, &divided).filter(|to| *to != from);
            below.entry(from.clone()).or_default().extend(to);
        }
    }
    // What imports nothing that is left is no part of a circle.
    while let Some(free) = below
        .iter()
        .find(|(_, imports)| imports.iter().all(|import| !below.contains_key(import)))
        .map(|(module, _)| module.clone())
    {
        below.remove(&free);
    }
    assert!(
        below.is_empty(),
        "these import each other, or import one that does: {below:#?}"
    );
}
