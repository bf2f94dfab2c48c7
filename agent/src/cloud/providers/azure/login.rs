//! Tokens of Microsoft Entra ID: by the machine's managed identity, or as a service principal.
//!
//! From "How to use managed identities on a VM to acquire an access token" and "OAuth 2.0 client credentials flow".

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use serde::Deserialize;

use super::METADATA;
use super::place::Environment;
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::CloudError;
use crate::cloud::providers::variables::Variables;
use crate::cloud::sign::form;
use crate::cloud::transport::Call;
use crate::settings::Secret;

const CALL: &str = "POST oauth2/v2.0/token";

/// A token of the metadata service.
#[derive(Deserialize)]
struct Managed {
    access_token: String,
    /// Seconds since 1970, as a text.
    expires_on: String,
}

/// One of the login server.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    /// In seconds.
    expires_in: u64,
}

/// Takes a token for the resource manager.
pub(super) async fn login(
    access: &mut Access,
    environment: &Environment,
) -> Result<Kept<Secret>, CloudError> {
    let variables = Variables::read(access)?;
    let client = variables.get("AZURE_CLIENT_ID");
    let tenant = variables.get("AZURE_TENANT_ID");
    let secret = variables.get("AZURE_CLIENT_SECRET");
    match (client, tenant, secret) {
        (Some(client), Some(tenant), Some(secret)) => {
            let url = format!("{}/{tenant}/oauth2/v2.0/token", environment.login);
            let scope = format!("{}/.default", environment.manager);
            let body = form([
                ("grant_type", "client_credentials"),
                ("client_id", &client),
                ("client_secret", &secret),
                ("scope", &scope),
            ]);
            granted(access, &url, body).await
        }
        // One of several identities of the machine.
        (client, ..) => managed(access, environment, client.as_deref()).await,
    }
}

async fn managed(
    access: &mut Access,
    environment: &Environment,
    client: Option<&str>,
) -> Result<Kept<Secret>, CloudError> {
    let resource = format!("{}/", environment.manager);
    let mut query = vec![("api-version", "2018-02-01"), ("resource", &resource)];
    query.extend(client.map(|client| ("client_id", client)));
    let path = format!("/metadata/identity/oauth2/token?{}", form(query));
    let headers = vec![("metadata", "true".to_owned())];
    let answer = match access.metadata(METADATA, &path, headers).await {
        // "Identity not found" comes with 400.
        Ok(None) | Err(CloudError::Refused { .. }) => {
            return Err(CloudError::Credentials {
                problem: "this machine has no managed identity, or not the one of AZURE_CLIENT_ID \
                          (az vm identity assign gives it one); nor are AZURE_TENANT_ID, AZURE_CLIENT_ID and \
                          AZURE_CLIENT_SECRET set"
                    .to_owned(),
            });
        }
        Ok(Some(answer)) => answer,
        Err(error) => return Err(error),
    };
    // The message of serde's error might show a part of the token.
    let token: Managed =
        serde_json::from_slice(&answer.body).map_err(|_| CloudError::Malformed {
            call: "metadata service",
            problem: "no token".to_owned(),
        })?;
    Ok(Kept {
        value: Secret::new(token.access_token),
        ends: token.expires_on.parse().ok(),
    })
}

async fn granted(access: &mut Access, url: &str, body: String) -> Result<Kept<Secret>, CloudError> {
    let now = access.transport.now();
    let call = Call {
        method: Method::POST,
        url: access.transport.at(url),
        headers: vec![(
            "content-type",
            "application/x-www-form-urlencoded".to_owned(),
        )],
        body: Bytes::from(body),
    };
    let answer = access.transport.send(call).await?;
    let retry_after = answer.retry_after();
    match answer.status {
        200 => (),
        429 => {
            return Err(CloudError::Throttled {
                call: CALL,
                code: "429".to_owned(),
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
                problem: format!(
                    "{url} does not accept AZURE_CLIENT_ID and AZURE_CLIENT_SECRET: HTTP status {status}"
                ),
            });
        }
    }
    let token: Granted =
        serde_json::from_slice(&answer.body).map_err(|_| CloudError::Malformed {
            call: CALL,
            problem: "no token".to_owned(),
        })?;
    let lasts = Duration::from_secs(token.expires_in);
    let token = Secret::new(token.access_token);
    Ok(Kept::lasting(token, now, lasts))
}
