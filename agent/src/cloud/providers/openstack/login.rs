//! Keystone, version 3: a token by password or application credential, and where Neutron is.
//!
//! The variables are those of OpenStack's own clients, from the environment or from a file in the form of `openrc.sh`.

use hyper::Method;
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::base::time::{parse_rfc3339, secs};
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::CloudError;
use crate::cloud::providers::variables::Variables;
use crate::cloud::transport::Call;
use crate::settings::Secret;

const CALL: &str = "POST /v3/auth/tokens";

/// What requests to Neutron are made with.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) token: Secret,
    /// Neutron's base URL, without a trailing slash and a version.
    pub(super) neutron: String,
    /// The project of the token.
    pub(super) project: String,
}

/// The answer.
#[derive(Deserialize)]
struct Answer {
    token: Token,
}

#[derive(Deserialize)]
struct Token {
    expires_at: String,
    #[serde(default)]
    catalog: Vec<Service>,
    #[serde(default)]
    project: Project,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Project {
    id: String,
}

#[derive(Deserialize)]
struct Service {
    r#type: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    interface: String,
    #[serde(default)]
    region: Option<String>,
    url: String,
}

/// The variables that say how to get a token.
struct Settings(Variables);

impl Settings {
    fn required(&self, name: &str) -> Result<String, CloudError> {
        self.0.get(name).ok_or_else(|| CloudError::Credentials {
            problem: format!(
                "{name} is neither in the environment nor in the credentials file; it needs OS_AUTH_URL, and either \
                 OS_APPLICATION_CREDENTIAL_ID and OS_APPLICATION_CREDENTIAL_SECRET, or OS_USERNAME, OS_PASSWORD and \
                 OS_PROJECT_NAME"
            ),
        })
    }

    /// A name or an ID: `{"id": …}` if there is one.
    fn named(&self, id: &str, name: &str, usual: Option<&str>) -> Result<Value, CloudError> {
        if let Some(id) = self.0.get(id) {
            return Ok(json!({"id": id}));
        }
        match usual {
            Some(usual) => Ok(json!({"name": self.0.get(name).as_deref().unwrap_or(usual)})),
            None => Ok(json!({"name": self.required(name)?})),
        }
    }

    /// A user or a project, with its domain if it is called by name.
    fn in_domain(&self, what: &str, name: &str) -> Result<Value, CloudError> {
        let mut object = self.named(&format!("OS_{what}_ID"), name, None)?;
        if object.get("name").is_some() {
            let (id, name) = (
                format!("OS_{what}_DOMAIN_ID"),
                format!("OS_{what}_DOMAIN_NAME"),
            );
            object["domain"] = self.named(&id, &name, Some("Default"))?;
        }
        Ok(object)
    }

    /// The request for a token.
    fn request(&self) -> Result<Value, CloudError> {
        if self.0.get("OS_APPLICATION_CREDENTIAL_SECRET").is_some() {
            let (id, name) = (
                "OS_APPLICATION_CREDENTIAL_ID",
                "OS_APPLICATION_CREDENTIAL_NAME",
            );
            let mut credential = self.named(id, name, None)?;
            if credential.get("name").is_some() {
                credential["user"] = self.in_domain("USER", "OS_USERNAME")?;
            }
            credential["secret"] = self.required("OS_APPLICATION_CREDENTIAL_SECRET")?.into();
            // Its project is fixed.
            return Ok(json!({"auth": {"identity": {
                "methods": ["application_credential"], "application_credential": credential,
            }}}));
        }
        let mut user = self.in_domain("USER", "OS_USERNAME")?;
        user["password"] = self.required("OS_PASSWORD")?.into();
        Ok(json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": self.in_domain("PROJECT", "OS_PROJECT_NAME")?},
        }}))
    }

    /// Where tokens are given.
    fn url(&self) -> Result<String, CloudError> {
        let url = self.required("OS_AUTH_URL")?;
        let url = url.trim_end_matches('/');
        Ok(match url.ends_with("/v3") {
            true => format!("{url}/auth/tokens"),
            false => format!("{}/v3/auth/tokens", url.trim_end_matches("/v2.0")),
        })
    }
}

/// Takes a token.
pub(super) async fn login(access: &mut Access) -> Result<Kept<Session>, CloudError> {
    let settings = Settings(Variables::read(access)?);
    let (url, request) = (settings.url()?, settings.request()?);
    let region = settings.0.get("OS_REGION_NAME");
    let interface = settings.0.get("OS_INTERFACE");
    let interface = interface.as_deref().unwrap_or("public");
    let interface = interface.trim_end_matches("URL").to_owned();
    if let Some(file) = settings.0.get("OS_CACERT") {
        access.transport.trust(file.into());
    }
    let call = Call {
        method: Method::POST,
        url: access.transport.at(&url),
        headers: vec![("content-type", "application/json".to_owned())],
        body: Bytes::from(request.to_string()),
    };
    let answer = access.transport.send(call).await?;
    let retry_after = answer.retry_after();
    match answer.status {
        201 => (),
        code @ (413 | 429) => {
            return Err(CloudError::Throttled {
                call: CALL,
                code: code.to_string(),
                retry_after,
            });
        }
        code @ 500.. => {
            return Err(CloudError::Unavailable {
                call: CALL,
                code: code.to_string(),
                retry_after,
            });
        }
        status => {
            return Err(CloudError::Credentials {
                problem: format!("{url} does not accept them: HTTP status {status}"),
            });
        }
    }
    let token = answer.headers.get("x-subject-token");
    let token = token.and_then(|token| token.to_str().ok());
    let token = token.ok_or_else(|| CloudError::Malformed {
        call: CALL,
        problem: "no X-Subject-Token".to_owned(),
    })?;
    let body: Answer = answer.secret_json(CALL)?;
    let neutron = neutron(&body.token.catalog, &interface, region.as_deref())?;
    Ok(Kept {
        value: Session {
            token: Secret::new(token.to_owned()),
            neutron: access.transport.at(&neutron),
            project: body.token.project.id,
        },
        ends: ends(&body.token.expires_at),
    })
}

/// Neutron's URL of the catalog, without a version.
fn neutron(
    catalog: &[Service],
    interface: &str,
    region: Option<&str>,
) -> Result<String, CloudError> {
    let services = catalog.iter().filter(|service| service.r#type == "network");
    let mut endpoints = services.flat_map(|service| &service.endpoints);
    let found = endpoints.find(|endpoint| {
        endpoint.interface == interface
            && region.is_none_or(|region| endpoint.region.as_deref() == Some(region))
    });
    let url = found.map(|endpoint| endpoint.url.trim_end_matches('/'));
    let url = url.ok_or_else(|| {
        let region = region.map_or_else(String::new, |region| format!(" in the region {region}"));
        CloudError::Unfit(format!(
            "the catalog has no {interface} endpoint of the type network{region}; OS_INTERFACE and OS_REGION_NAME \
             choose another"
        ))
    })?;
    Ok(url.trim_end_matches("/v2.0").to_owned())
}

/// When a token ends; Keystone says it to the microsecond.
fn ends(text: &str) -> Option<u64> {
    let (whole, _) = text.split_once('.').unwrap_or((text, ""));
    let whole = whole.trim_end_matches('Z');
    parse_rfc3339(&format!("{whole}Z")).map(secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::transport::Transport;
    use crate::plan::backend::CloudConfig;

    fn settings(variable: fn(&str) -> Option<String>) -> Settings {
        let access = Access {
            transport: Transport::new(None, None),
            config: CloudConfig::default(),
            address: [10, 0, 0, 7].into(),
            credentials_file: None,
            variable,
        };
        Settings(Variables::read(&access).unwrap())
    }

    /// The forms of "Identity API v3": "Password authentication with scoped authorization", "Authenticating with an
    /// Application Credential".
    #[test]
    fn tokens_are_asked_for_as_the_documentation_says() {
        let password = settings(|name| {
            let value = match name {
                "OS_USERNAME" => "admin",
                "OS_PASSWORD" => "devstacker",
                "OS_PROJECT_ID" => "a6944d763bf64ee6a275f1263fae0352",
                _ => return None,
            };
            Some(value.to_owned())
        });
        assert_eq!(
            password.request().unwrap(),
            json!({"auth": {
                "identity": {"methods": ["password"], "password": {"user": {
                    "name": "admin", "domain": {"name": "Default"}, "password": "devstacker"}}},
                "scope": {"project": {"id": "a6944d763bf64ee6a275f1263fae0352"}}}})
        );
        let credential = settings(|name| {
            let value = match name {
                "OS_APPLICATION_CREDENTIAL_ID" => "423f19a4ac1e4f48bbb4180756e6eb6c",
                "OS_APPLICATION_CREDENTIAL_SECRET" => "rEaqvJka48mpv",
                _ => return None,
            };
            Some(value.to_owned())
        });
        assert_eq!(
            credential.request().unwrap(),
            json!({"auth": {"identity": {
                "methods": ["application_credential"],
                "application_credential": {
                    "id": "423f19a4ac1e4f48bbb4180756e6eb6c", "secret": "rEaqvJka48mpv"}}}})
        );
        let named = settings(|name| {
            let value = match name {
                "OS_APPLICATION_CREDENTIAL_NAME" => "monitoring",
                "OS_APPLICATION_CREDENTIAL_SECRET" => "rEaqvJka48mpv",
                "OS_USERNAME" => "ada",
                "OS_USER_DOMAIN_ID" => "default",
                _ => return None,
            };
            Some(value.to_owned())
        });
        let request = named.request().unwrap();
        assert_eq!(
            request["auth"]["identity"]["application_credential"],
            json!({"name": "monitoring", "secret": "rEaqvJka48mpv",
                "user": {"name": "ada", "domain": {"id": "default"}}})
        );
        let none = settings(|_| None);
        let error = none.request().unwrap_err();
        assert!(
            error.to_string().contains("OS_USERNAME is neither"),
            "{error}"
        );
    }

    /// The catalog is that of the documentation's example, shortened, with another region.
    #[test]
    fn neutron_is_found_in_the_catalog() {
        let catalog = r#"[
            {"endpoints":[{"region_id":"RegionOne","url":"http://example.com/identity","region":"RegionOne","interface":"public"}],"type":"identity","name":"keystone"},
            {"endpoints":[
                {"region_id":"RegionOne","url":"http://10.0.0.1:9696/","region":"RegionOne","interface":"internal"},
                {"region_id":"RegionOne","url":"https://example.com:9696/networking/v2.0","region":"RegionOne","interface":"public"},
                {"region_id":"RegionTwo","url":"https://two.example.com:9696","region":"RegionTwo","interface":"public"}],
             "type":"network","name":"neutron"}]"#;
        let catalog: Vec<Service> = serde_json::from_str(catalog).unwrap();
        for (interface, region, url) in [
            ("public", None, "https://example.com:9696/networking"),
            ("public", Some("RegionTwo"), "https://two.example.com:9696"),
            ("internal", Some("RegionOne"), "http://10.0.0.1:9696"),
        ] {
            assert_eq!(neutron(&catalog, interface, region).unwrap(), url);
        }
        let error = neutron(&catalog, "admin", Some("RegionOne")).unwrap_err();
        assert!(matches!(error, CloudError::Unfit(_)), "{error}");
    }

    #[test]
    fn ends_are_read_with_fractions_of_seconds() {
        let expected = Some(1_446_823_937);
        assert_eq!(ends("2015-11-06T15:32:17.893769Z"), expected);
        assert_eq!(ends("2015-11-06T15:32:17Z"), expected);
        assert_eq!(ends("tomorrow"), None);
    }
}
