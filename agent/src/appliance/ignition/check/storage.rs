//! Files, directories and links: their paths, modes and owners, and conflicts between them.

use std::collections::HashMap;

use ignition_config::v3_3::{Link, NodeGroup, NodeUser, Storage};

use super::super::locate::join_index;
use super::{Findings, resource};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Link,
}

/// One entry of the three lists.
struct Node<'c> {
    kind: Kind,
    at: String,
    path: &'c str,
}

/// Checks the three lists of things with a path.
pub(super) fn check(storage: &Storage, minor: u64, findings: &mut Findings<'_>) {
    let mut nodes = Vec::new();
    for (i, directory) in storage.directories.iter().flatten().enumerate() {
        let at = join_index("storage.directories", i);
        check_mode(&at, directory.mode, findings);
        check_owner(
            &at,
            directory.user.as_ref(),
            directory.group.as_ref(),
            findings,
        );
        nodes.push(Node {
            kind: Kind::Directory,
            at,
            path: &directory.path,
        });
    }
    for (i, file) in storage.files.iter().flatten().enumerate() {
        let at = join_index("storage.files", i);
        check_mode(&at, file.mode, findings);
        check_owner(&at, file.user.as_ref(), file.group.as_ref(), findings);
        let source = file.contents.as_ref().and_then(|c| c.source.as_deref());
        if file.overwrite == Some(true) && source.is_none() {
            findings.error(
                format!("{at}.overwrite"),
                "overwrite needs contents.source, so that there is something to write",
            );
        }
        if let Some(contents) = &file.contents {
            resource::check(&format!("{at}.contents"), contents, minor, findings);
        }
        for (j, part) in file.append.iter().flatten().enumerate() {
            let path = join_index(&format!("{at}.append"), j);
            resource::check(&path, part, minor, findings);
        }
        nodes.push(Node {
            kind: Kind::File,
            at,
            path: &file.path,
        });
    }
    let links: Vec<&Link> = storage.links.iter().flatten().collect();
    for (i, link) in links.iter().enumerate() {
        let at = join_index("storage.links", i);
        check_owner(&at, link.user.as_ref(), link.group.as_ref(), findings);
        if link.target.as_deref().unwrap_or_default().is_empty() {
            findings.error(format!("{at}.target"), "a link needs a target");
        }
        nodes.push(Node {
            kind: Kind::Link,
            at,
            path: &link.path,
        });
    }
    check_paths(&nodes, findings);
    for (i, link) in links.iter().enumerate() {
        let is_target = |node: &&Node<'_>| Some(node.path) == link.target.as_deref();
        let target = nodes.iter().find(is_target);
        if link.hard == Some(true) && target.is_some_and(|node| node.kind == Kind::Directory) {
            let at = join_index("storage.links", i);
            findings.error(at, "a hard link cannot lead to a directory");
        }
    }
}

fn check_paths(nodes: &[Node<'_>], findings: &mut Findings<'_>) {
    let mut by_path: HashMap<&str, &Node<'_>> = HashMap::new();
    for node in nodes {
        if let Err(reason) = check_path(node.path) {
            findings.error(format!("{}.path", node.at), reason);
        } else if let Some(first) = by_path.get(node.path) {
            let message = format!("{} is already the path of {}", node.path, first.at);
            findings.error(format!("{}.path", node.at), message);
        } else {
            by_path.insert(node.path, node);
        }
    }
    for node in nodes {
        let parents = node.path.match_indices('/').map(|(at, _)| &node.path[..at]);
        for parent in parents.filter_map(|parent| by_path.get(parent)) {
            let what = match parent.kind {
                Kind::Directory => continue,
                Kind::File => "file",
                Kind::Link => "link",
            };
            let message = format!("{} lies below {}, which is a {what}", node.path, parent.at);
            findings.error(format!("{}.path", node.at), message);
        }
    }
}

/// An absolute path in its shortest form (Go's `filepath.Clean`).
pub(super) fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("a path is required".to_owned());
    }
    let Some(relative) = path.strip_prefix('/') else {
        return Err(format!("{path:?} is not absolute: it must begin with '/'"));
    };
    let is_clean = |part: &str| !["", ".", ".."].contains(&part);
    if relative.is_empty() || relative.split('/').all(is_clean) {
        Ok(())
    } else {
        Err(format!(
            "{path:?} is not in its shortest form: no '//', no '.' or '..', no '/' at the end"
        ))
    }
}

/// Modes as people write them for `chmod`; a decimal number that looks like one is a mistake.
const CHMOD_MODES: [i64; 27] = [
    400, 440, 444, 600, 620, 640, 644, 660, 664, 666, 700, 710, 711, 740, 744, 750, 751, 755, 770,
    771, 775, 777, 1777, 2755, 2775, 4755, 6755,
];

fn check_mode(at: &str, mode: Option<i64>, findings: &mut Findings<'_>) {
    let Some(mode) = mode else { return };
    let path = format!("{at}.mode");
    if !(0..=0o7777).contains(&mode) {
        findings.error(
            path,
            format!("{mode} is not a file mode: expected 0 to 4095, in decimal (0644 is 420)"),
        );
    } else if CHMOD_MODES.contains(&mode)
        && let Ok(meant) = i64::from_str_radix(&mode.to_string(), 8)
    {
        findings.warn(
            path,
            format!("JSON numbers are decimal: {mode} is mode {mode:04o}; for mode {mode:04} write {meant}"),
        );
    } else if mode > 0o777 {
        findings.warn(
            path,
            format!("mode {mode:04o}: Ignition sets setuid, setgid and sticky bits only from spec 3.6.0 on"),
        );
    }
}

fn check_owner(
    at: &str,
    user: Option<&NodeUser>,
    group: Option<&NodeGroup>,
    findings: &mut Findings<'_>,
) {
    let is_named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    if user.is_some_and(|user| user.id.is_some() && is_named(&user.name)) {
        findings.error(format!("{at}.user"), "give either an ID or a name");
    }
    if group.is_some_and(|group| group.id.is_some() && is_named(&group.name)) {
        findings.error(format!("{at}.group"), "give either an ID or a name");
    }
}
