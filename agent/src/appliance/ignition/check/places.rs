//! Destinations of files, directories and links: read-only or existing paths, paths that do not survive a reboot, and
//! paths that nothing reads.

use ignition_config::v3_3::{Link, NodeUser, Storage};

use super::super::image::is_in;
use super::super::locate::join_index;
use super::Findings;
use super::accounts::Accounts;
use super::machine::Machine;

const ZONES: &str = "/usr/share/zoneinfo/";

/// One entry of the three lists.
struct Place<'c> {
    at: String,
    path: &'c str,
    kind: Kind<'c>,
    overwrite: bool,
}

#[derive(Clone, Copy)]
enum Kind<'c> {
    Directory,
    /// Has contents that replace a file, not only contents to append.
    File {
        writes: bool,
    },
    /// The link's target.
    Link(&'c str),
}

/// Checks the three lists against the image's files and its use of a path.
pub(super) fn check(
    storage: &Storage,
    machine: &Machine<'_>,
    accounts: &Accounts,
    findings: &mut Findings<'_>,
) {
    for (i, directory) in storage.directories.iter().flatten().enumerate() {
        let at = join_index("storage.directories", i);
        let (user, group) = (directory.user.as_ref(), directory.group.as_ref());
        accounts.check_owner(&at, user, group, machine, findings);
        let (path, overwrite) = (&*directory.path, directory.overwrite == Some(true));
        let kind = Kind::Directory;
        check_place(
            &Place {
                at,
                path,
                kind,
                overwrite,
            },
            machine,
            findings,
        );
    }
    for (i, file) in storage.files.iter().flatten().enumerate() {
        let at = join_index("storage.files", i);
        accounts.check_owner(
            &at,
            file.user.as_ref(),
            file.group.as_ref(),
            machine,
            findings,
        );
        check_parents(&at, &file.path, file.user.as_ref(), machine, findings);
        let source = file.contents.as_ref().and_then(|c| c.source.as_ref());
        let kind = Kind::File {
            writes: source.is_some(),
        };
        let (path, overwrite) = (&*file.path, file.overwrite == Some(true));
        check_place(
            &Place {
                at,
                path,
                kind,
                overwrite,
            },
            machine,
            findings,
        );
    }
    for (i, link) in storage.links.iter().flatten().enumerate() {
        let at = join_index("storage.links", i);
        accounts.check_owner(
            &at,
            link.user.as_ref(),
            link.group.as_ref(),
            machine,
            findings,
        );
        let kind = Kind::Link(link.target.as_deref().unwrap_or_default());
        let (path, overwrite) = (&*link.path, link.overwrite == Some(true));
        check_target(&at, link, machine, findings);
        if link.hard == Some(true) && machine.image.etc.files.contains(&link.path) {
            continue;
        }
        check_place(
            &Place {
                at,
                path,
                kind,
                overwrite,
            },
            machine,
            findings,
        );
    }
}

fn check_place(place: &Place<'_>, machine: &Machine<'_>, findings: &mut Findings<'_>) {
    let Place { at, path, .. } = place;
    let field = format!("{at}.path");
    if let Some(top) = machine.image.read_only(path) {
        let remedy = remedy_of_read_only(path);
        findings.error(
            field,
            format!("{top} is part of the read-only image: Ignition cannot write there; {remedy}"),
        );
        return;
    }
    if let Some(top) = machine.image.covered(path) {
        findings.warn(
            field,
            format!(
                "{top} is created at every boot, so what Ignition writes there is lost; {}",
                remedy_of_covered(path)
            ),
        );
        return;
    }
    if let Some(why) = machine.image.foreign_path(path) {
        findings.warn(&field, format!("nothing reads this here: {why}"));
    }
    if *path == "/etc/machine-id" && machine.units().any(|unit| unit.enabled == Some(true)) {
        findings.warn(&field, "with a machine ID, systemd does not recognize the first boot and enables none of this config's units");
    }
    check_taken(place, machine, findings);
}

/// Existing paths in /etc, which Ignition replaces only with `overwrite`.
fn check_taken(place: &Place<'_>, machine: &Machine<'_>, findings: &mut Findings<'_>) {
    let Place {
        at,
        path,
        kind,
        overwrite,
    } = place;
    let etc = &machine.image.etc;
    let is_file = etc.files.iter().any(|file| file == path);
    let link = etc.links.get(*path);
    let is_directory = !is_file && link.is_none() && is_directory_of(path, machine);
    let taken = match kind {
        Kind::Directory => is_file || link.is_some(),
        Kind::File { writes } => is_file && *writes || link.is_some() || is_directory,
        Kind::Link(target) => is_file || is_directory || link.is_some_and(|there| there != target),
    };
    let what = match (is_file, is_directory) {
        (true, _) => "file",
        (_, true) => "directory",
        _ => "link",
    };
    if taken && !overwrite {
        let field = format!("{at}.path");
        let message = if is_directory {
            format!("the image has the directory {path}, with files in it; choose another path")
        } else {
            format!("the image has the {what} {path} already; set overwrite to true")
        };
        findings.error(field, message);
    } else if *overwrite && is_directory {
        let message =
            format!("overwrite removes the image's directory {path} and everything in it");
        findings.warn(format!("{at}.overwrite"), message);
    }
}

fn is_directory_of(path: &str, machine: &Machine<'_>) -> bool {
    let etc = &machine.image.etc;
    let mut paths = etc.files.iter().chain(etc.links.keys());
    paths.any(|inside| inside != path && is_in(inside, path))
}

fn remedy_of_read_only(path: &str) -> &'static str {
    if path.contains("/bin") || path.contains("/sbin") {
        "put programs into /usr/local/bin or /opt/bin"
    } else if path.contains("/systemd/") || path.contains(".d/") {
        "the same folder below /etc takes precedence"
    } else {
        "use /etc, /opt or /var"
    }
}

fn remedy_of_covered(path: &str) -> &'static str {
    if is_in(path, "/proc") || is_in(path, "/sys") {
        "write /etc/sysctl.d/NAME.conf or a unit"
    } else if is_in(path, "/dev") {
        "write a udev rule, /etc/udev/rules.d/NAME.rules"
    } else {
        "create it by /etc/tmpfiles.d/NAME.conf (tmpfiles.d(5))"
    }
}

/// Ignition creates missing directories as root, also in a home directory.
fn check_parents(
    at: &str,
    path: &str,
    user: Option<&NodeUser>,
    machine: &Machine<'_>,
    findings: &mut Findings<'_>,
) {
    let owner = user
        .and_then(|user| user.name.as_deref())
        .unwrap_or_default();
    let Some(inside) = path.strip_prefix(&format!("/home/{owner}/")) else {
        return;
    };
    let home = path.len() - inside.len();
    let mut parents = inside
        .match_indices('/')
        .map(|(slash, _)| &path[..home + slash]);
    let is_made =
        |parent: &&str| *parent != format!("/home/{owner}/.ssh") && !machine.brings(parent);
    if let Some(parent) = parents.find(is_made).filter(|_| !owner.is_empty()) {
        findings.warn(
            format!("{at}.path"),
            format!("Ignition creates the directory {parent} for root, so {owner:?} cannot write there; add it to storage.directories with this owner"),
        );
    }
}

fn check_target(at: &str, link: &Link, machine: &Machine<'_>, findings: &mut Findings<'_>) {
    let target = link.target.as_deref().unwrap_or_default();
    let field = format!("{at}.target");
    if link.hard == Some(true) {
        let in_etc = |path: &str| is_in(path, "/etc");
        let is_image = machine.image.read_only(target).is_some();
        if is_image || in_etc(target) != in_etc(&link.path) {
            findings.error(field, "a hard link cannot lead to another file system, and /etc and /usr are separate ones; use a symbolic link");
        }
        return;
    }
    let Some(target) = resolve(&link.path, target) else {
        return;
    };
    if let Some(zone) = target.strip_prefix(ZONES) {
        let zones = &machine.image.time.zones;
        if !zone.is_empty() && !zones.iter().any(|known| known == zone) {
            let near = nearest(zone, zones)
                .map_or(String::new(), |near| format!("; did you mean {near}?"));
            findings.warn(
                field,
                format!("the image has no time zone {zone:?}, so the clock stays at UTC{near}"),
            );
        }
    } else if machine.has_program(&target) == Some(false) {
        findings.warn(
            field,
            format!("the link is dangling: the image has no {target}"),
        );
    } else if let Some(unit) = target.strip_prefix("/usr/lib/systemd/system/")
        && !unit.contains('/')
        && !machine.image.has_unit(unit)
    {
        findings.warn(
            field,
            format!("the link is dangling: the image has no unit {unit}"),
        );
    }
}

/// The absolute target of a link, from its text alone.
fn resolve(link: &str, target: &str) -> Option<String> {
    let directory = link.rsplit_once('/')?.0;
    let joined = if target.starts_with('/') {
        target.to_owned()
    } else {
        format!("{directory}/{target}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// The same name in other letter case, or the same city in another region.
fn nearest<'z>(zone: &str, zones: &'z [String]) -> Option<&'z String> {
    let city = |zone: &str| {
        zone.rsplit('/')
            .next()
            .unwrap_or_default()
            .to_lowercase()
            .replace([' ', '-'], "_")
    };
    zones.iter().find(|known| city(known) == city(zone))
}
