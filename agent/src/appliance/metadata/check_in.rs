//! Tells a platform that waits for it that this machine is up: Azure's provisioning is over only then, Equinix Metal's
//! installation too; Scaleway shows it.

use hyper::Method;
use hyper::body::Bytes;
use tokio::time::Instant;

use super::http::{Trouble, ask};
use super::{Error, Metadata, Site, fetch};
use crate::appliance::platform;
use crate::base::http::Call;

/// Azure's host, as seen from each of its machines ("What is IP address 168.63.129.16?").
const WIRE_SERVER: &str = "http://168.63.129.16";

/// What the wire server wants to be told of each client.
const WIRE_HEADERS: [(&str, &str); 2] = [
    ("x-ms-agent-name", "selvage"),
    ("x-ms-version", "2012-11-30"),
];

/// The first that answers counts.
const SCALEWAY: [&str; 2] = ["http://169.254.42.42", "http://[fd00:42::42]"];

/// Tells it once. Returns what was told to whom, or `None` where nobody waits.
///
/// # Errors
/// When the platform cannot be told. Whoever calls tries again.
pub async fn check_in(platform: &str, site: &Site) -> Result<Option<String>, Error> {
    let platform = platform::id_of(platform);
    let started = Instant::now();
    let told = match platform {
        "azure" | "azurestack" => first(site.servers(&[WIRE_SERVER]), azure).await,
        "packet" => {
            let metadata = fetch(platform, site).await?;
            packet(&metadata).await.map_err(|trouble| vec![trouble])
        }
        "scaleway" => first(site.servers(&SCALEWAY), scaleway).await,
        _ => return Ok(None),
    };
    told.map(Some).map_err(|troubles| Error::NoAnswer {
        platform: platform.to_owned(),
        waited: started.elapsed(),
        troubles,
    })
}

/// Tells the first server that can be told.
async fn first(
    servers: Vec<String>,
    tell: impl AsyncFn(&str) -> Result<String, Trouble>,
) -> Result<String, Vec<Trouble>> {
    let mut troubles = Vec::new();
    for server in servers {
        match tell(&server).await {
            Ok(told) => return Ok(told),
            Err(trouble) => troubles.push(trouble),
        }
    }
    Err(troubles)
}

async fn tell(
    method: Method,
    url: &str,
    headers: &[(&'static str, &str)],
    body: String,
) -> Result<Bytes, Trouble> {
    let headers = headers
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let call = Call {
        method,
        url: url.to_owned(),
        headers: headers.collect(),
        body: Bytes::from(body),
    };
    match ask(call, false).await? {
        (status, body) if (200..300).contains(&status) => Ok(body),
        (status, _) => Err(Trouble::Status {
            url: url.to_owned(),
            status,
        }),
    }
}

async fn azure(server: &str) -> Result<String, Trouble> {
    let url = format!("{server}/machine/?comp=goalstate");
    let body = tell(Method::GET, &url, &WIRE_HEADERS, String::new()).await?;
    let goal = String::from_utf8_lossy(&body);
    let part = |name: &str| {
        element(&goal, name).ok_or_else(|| Trouble::Document {
            place: url.clone(),
            problem: format!("the goal state has no {name}"),
        })
    };
    let report = ready(
        part("Incarnation")?,
        part("ContainerId")?,
        part("InstanceId")?,
    );
    let url = format!("{server}/machine/?comp=health");
    let [name, version] = WIRE_HEADERS;
    let headers = [name, version, ("content-type", "text/xml;charset=utf-8")];
    tell(Method::POST, &url, &headers, report).await?;
    Ok(format!("ready, to {url}"))
}

/// The text of the first element of a name, in a document that a program wrote: without attributes or entities in it.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let text = text.trim();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (!text.is_empty() && text.chars().all(is_plain)).then_some(text)
}

/// The report of a machine that is ready, as walinuxagent and Afterburn send it.
fn ready(incarnation: &str, container: &str, instance: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
         <Health xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
         xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\">\
         <GoalStateIncarnation>{incarnation}</GoalStateIncarnation>\
         <Container><ContainerId>{container}</ContainerId>\
         <RoleInstanceList><Role><InstanceId>{instance}</InstanceId>\
         <Health><State>Ready</State></Health>\
         </Role></RoleInstanceList></Container></Health>\n"
    )
}

async fn packet(metadata: &Metadata) -> Result<String, Trouble> {
    let attribute = |(name, _): &&(String, String)| name == "PHONE_HOME_URL";
    let Some((_, url)) = metadata.attributes.iter().find(attribute) else {
        return Err(Trouble::Document {
            place: metadata.source.clone().unwrap_or_default(),
            problem: "there is no phone_home_url".to_owned(),
        });
    };
    let headers = [("content-type", "application/json")];
    tell(Method::POST, url, &headers, String::new()).await?;
    Ok(format!("up, to {url}"))
}

async fn scaleway(server: &str) -> Result<String, Trouble> {
    let url = format!("{server}/state");
    let headers = [("content-type", "application/json")];
    let body = r#"{"state_detail":"booted"}"#.to_owned();
    tell(Method::PATCH, &url, &headers, body).await?;
    Ok(format!("booted, to {url}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shortened from the tests of Afterburn and walinuxagent.
    const GOAL: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="goalstate10.xsd">
  <Version>2012-11-30</Version>
  <Incarnation>42</Incarnation>
  <Machine><ExpectedState>Started</ExpectedState></Machine>
  <Container>
    <ContainerId>c6d5526c-5ac2-4200-b6e2-56f2b70c5ab2</ContainerId>
    <RoleInstanceList><RoleInstance>
      <InstanceId>b61f93d0-e1ed-40b2-b067-22c243233448.MachineRole_IN_0</InstanceId>
      <State>Started</State>
    </RoleInstance></RoleInstanceList>
  </Container>
</GoalState>"#;

    #[test]
    fn parts_of_the_goal_state_are_found_and_nothing_is_injected() {
        assert_eq!(element(GOAL, "Incarnation"), Some("42"));
        assert_eq!(
            element(GOAL, "InstanceId"),
            Some("b61f93d0-e1ed-40b2-b067-22c243233448.MachineRole_IN_0")
        );
        for xml in [
            "",
            "<Incarnation>",
            "<Incarnation></Incarnation>",
            "<Incarnation>1</Incarnation<",
            "<Incarnation>1<a/></Incarnation>",
        ] {
            assert_eq!(element(xml, "Incarnation"), None, "{xml}");
        }
    }
}
