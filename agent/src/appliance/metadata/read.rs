//! Reads what a place has, by its row in the table.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::document::pick;
use super::drive::Drive;
use super::http::{Session, Trouble};
use super::providers::{Keys, Place, Source, UserData, Value};
use super::{Site, guestinfo};

/// The largest user data, in bytes, far above what any platform takes.
const MAX_USER_DATA: usize = 4 << 20;

/// What a place has.
pub(super) struct Contents {
    pub(super) attributes: Vec<(String, String)>,
    pub(super) keys: Vec<String>,
}

/// An open place.
enum Opened<'a> {
    Service(Session<'a>),
    Drive(Drive),
    GuestInfo(&'a Site),
}

impl Opened<'_> {
    /// What it is, for people.
    fn name(&self) -> String {
        match self {
            Self::Service(session) => session.server().to_owned(),
            Self::Drive(drive) => format!("the disk labelled {}", drive.label()),
            Self::GuestInfo(_) => "VMware's guestinfo".to_owned(),
        }
    }

    /// A document of it, for people.
    fn name_of(&self, path: &str) -> String {
        match self {
            Self::Service(session) => session.url(path),
            Self::Drive(drive) => drive.name(path),
            Self::GuestInfo(_) => guestinfo::name(path),
        }
    }

    async fn bytes(&mut self, path: &str) -> Result<Option<Vec<u8>>, Trouble> {
        match self {
            Self::Service(session) => Ok(session.get(path).await?.map(|body| body.to_vec())),
            Self::Drive(drive) => drive.read(path),
            Self::GuestInfo(site) => guestinfo::decoded(site, path),
        }
    }

    /// The texts at a pointer of a document; none without the document.
    async fn texts(&mut self, path: &str, pointer: &str) -> Result<Vec<String>, Trouble> {
        let Some(bytes) = self.bytes(path).await? else {
            return Ok(Vec::new());
        };
        let text = String::from_utf8(bytes);
        let picked = match text {
            Ok(text) => pick(&text, pointer),
            Err(_) => Err("it is no UTF-8".to_owned()),
        };
        match picked {
            Ok(texts) => Ok(texts),
            // A user's own, which may be anything, holds a cloud-config only with some platforms.
            Err(_) if path == "user-data" => Ok(Vec::new()),
            Err(problem) => Err(Trouble::Document {
                place: self.name_of(path),
                problem,
            }),
        }
    }

    async fn value(
        &mut self,
        (name, path, pointer): Value,
    ) -> Result<Vec<(String, String)>, Trouble> {
        let texts = self.texts(path, pointer).await?;
        let mut texts = texts.iter().filter_map(|text| checked(name, text));
        Ok(match name.strip_suffix('*') {
            None => texts.next().map(|text| (name.to_owned(), text)),
            Some(start) => {
                let numbered = texts.enumerate();
                return Ok(numbered
                    .map(|(number, text)| (format!("{start}{number}"), text))
                    .collect());
            }
        }
        .into_iter()
        .collect())
    }

    async fn keys(&mut self, keys: &Keys) -> Result<Vec<String>, Trouble> {
        let texts = match keys {
            Keys::Nowhere => Vec::new(),
            Keys::At(path, pointer) => self.texts(path, pointer).await?,
            Keys::Listed(path) => {
                let mut texts = Vec::new();
                for list in self.texts(path, "").await? {
                    for line in list.lines() {
                        let (number, _) = line.split_once('=').unwrap_or((line, ""));
                        // Alibaba lists directories: `0/`.
                        let number = number.trim_end_matches('/');
                        let path = format!("{path}{number}/openssh-key");
                        texts.extend(self.texts(&path, "").await?);
                    }
                }
                texts
            }
            Keys::Google(path) => self.google(path).await?,
        };
        let lines = texts.iter().flat_map(|text| text.lines());
        let lines = lines.map(str::trim).filter(|line| !line.is_empty());
        Ok(lines.map(str::to_owned).collect())
    }

    /// Google's keys: those of the instance, and of the project unless the instance forbids it. The old attribute of the
    /// instance, where it is set, replaces all others.
    async fn google(&mut self, path: &str) -> Result<Vec<String>, Trouble> {
        let mut attributes = vec!["/instance/attributes/ssh-keys"];
        let old = "/instance/attributes/sshKeys";
        let blocked = "/instance/attributes/block-project-ssh-keys";
        if !self.texts(path, old).await?.is_empty() {
            attributes = vec![old];
        } else if !(self.texts(path, blocked).await?.iter())
            .any(|is| is.eq_ignore_ascii_case("true"))
        {
            attributes.extend([
                "/project/attributes/sshKeys",
                "/project/attributes/ssh-keys",
            ]);
        }
        let mut keys = Vec::new();
        for pointer in attributes {
            for text in self.texts(path, pointer).await? {
                let of_users = text.lines().filter_map(|line| line.split_once(':'));
                keys.extend(of_users.map(|(_, key)| key.to_owned()));
            }
        }
        Ok(keys)
    }
}

/// A value of the right kind for its name.
fn checked(name: &str, text: &str) -> Option<String> {
    // A prefix is what those are about.
    if name.contains("RANGE") {
        return Some(text.to_owned());
    }
    let address = || {
        let with_prefix = || text.parse().ok().map(|net: IpNet| net.addr());
        text.parse().ok().or_else(with_prefix)
    };
    if name.contains("IPV4") {
        address().filter(IpAddr::is_ipv4).map(|is| is.to_string())
    } else if name.contains("IPV6") {
        address().filter(IpAddr::is_ipv6).map(|is| is.to_string())
    } else {
        Some(text.to_owned())
    }
}

/// Opens the place, at each of its servers in turn, and has `look` look at it.
async fn at<'a, T>(
    place: &'a Place,
    site: &'a Site,
    look: impl AsyncFn(&mut Opened<'a>) -> Result<T, Trouble>,
) -> Result<(String, T), Vec<Trouble>> {
    let mut troubles = Vec::new();
    match &place.from {
        Source::Drive(labels) => {
            let seen = async {
                let mut opened = Opened::Drive(Drive::open(&site.root, labels)?);
                let seen = look(&mut opened).await?;
                Ok((opened.name(), seen))
            };
            return seen.await.map_err(|trouble| vec![trouble]);
        }
        Source::GuestInfo => {
            let mut opened = Opened::GuestInfo(site);
            let seen = look(&mut opened).await;
            return seen
                .map(|seen| (opened.name(), seen))
                .map_err(|trouble| vec![trouble]);
        }
        Source::Http(http) => {
            for server in site.servers(http.servers) {
                let seen = async {
                    let mut opened = Opened::Service(Session::open(http, server).await?);
                    let seen = look(&mut opened).await?;
                    Ok((opened.name(), seen))
                };
                match seen.await {
                    Ok(seen) => return Ok(seen),
                    Err(trouble) => troubles.push(trouble),
                }
            }
        }
    }
    Err(troubles)
}

/// Everything that the place has, and its name.
pub(super) async fn all(place: &Place, site: &Site) -> Result<(String, Contents), Vec<Trouble>> {
    let look = async |opened: &mut Opened<'_>| {
        let mut attributes = Vec::new();
        for value in place.values {
            let (name, ..) = *value;
            if !attributes.iter().any(|(known, _)| known == name) {
                attributes.extend(opened.value(*value).await?);
            }
        }
        // A host of VMware's need not say anything.
        if attributes.is_empty() && !matches!(opened, Opened::GuestInfo(_)) {
            // Another service than that of the platform, or one that is not ready.
            let paths: BTreeSet<_> = place.values.iter().map(|(_, path, _)| *path).collect();
            let first = paths.first().copied().unwrap_or_default();
            return Err(Trouble::Exchange {
                url: opened.name_of(first),
                problem: "there are no metadata here".to_owned(),
            });
        }
        let keys = opened.keys(&place.keys).await?;
        Ok(Contents { attributes, keys })
    };
    at(place, site, look).await
}

/// The user data, as it is, and where it is from; `None` if there is none.
pub(super) async fn user_data(
    place: &Place,
    wanted: &UserData,
    site: &Site,
) -> Result<(String, Vec<Candidate>), Vec<Trouble>> {
    let look = async |opened: &mut Opened<'_>| {
        let mut found = Vec::new();
        for path in wanted.documents {
            let Some(bytes) = opened.bytes(path).await? else {
                continue;
            };
            let place = opened.name_of(path);
            if bytes.len() > MAX_USER_DATA {
                return Err(Trouble::Document {
                    place,
                    problem: format!("it is larger than {MAX_USER_DATA} bytes"),
                });
            }
            found.push(Candidate { place, bytes });
        }
        Ok(found)
    };
    at(place, site, look).await
}

/// A document that may be the config.
pub(super) struct Candidate {
    /// Where it is from.
    pub(super) place: String,
    pub(super) bytes: Vec<u8>,
}
