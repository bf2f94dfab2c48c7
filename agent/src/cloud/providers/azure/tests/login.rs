//! Tokens: whose they are, and how long they last.

use std::time::SystemTime;

use super::group::SECRET;
use super::*;
use crate::base::time::secs;
use crate::cloud::providers::double::{Cloud, Question};

#[tokio::test]
async fn tokens_are_renewed_and_never_shown() {
    let (double, mut azure) = double(Group::new());
    assert!(RouteTable::list(&mut azure, &table()).await.is_ok());
    double.state().token = 2;
    assert!(RouteTable::list(&mut azure, &table()).await.is_ok());
    let texts = format!("{:?} {:?}", azure.token, azure.access);
    assert!(!texts.contains(SECRET), "{texts}");
    azure.token.as_mut().unwrap().ends = Some(secs(SystemTime::now()) + 60);
    double.state().token = 3;
    let calls = double.state().calls.len();
    assert!(RouteTable::list(&mut azure, &table()).await.is_ok());
    assert_eq!(double.state().calls.len(), calls + 1);
}

/// The login server of "OAuth 2.0 client credentials flow", and the resource manager behind it.
struct Login(Group);

impl Cloud for Login {
    fn answer(&mut self, question: &Question) -> Reply {
        if question.path != "/tenant-1/oauth2/v2.0/token" {
            return self.0.answer(question);
        }
        let body = String::from_utf8(question.body.to_vec()).unwrap();
        if body
            == "grant_type=client_credentials&client_id=client-1&client_secret=s%26cret&scope=https%3A%2F%2Fmanagement.azure.com%2F.default"
        {
            let token = format!("{SECRET}{}", self.0.token);
            let body = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": token});
            return Reply::new(200, body);
        }
        Reply::new(
            401,
            json!({"error": "invalid_client", "error_description": body}),
        )
    }
}

#[tokio::test]
async fn a_service_principal_comes_before_the_managed_identity() {
    let double = start(Login(Group::new()));
    let mut access = access(&double, CloudConfig::default());
    access.variable = |name| {
        let value = match name {
            "AZURE_TENANT_ID" => "tenant-1",
            "AZURE_CLIENT_ID" => "client-1",
            "AZURE_CLIENT_SECRET" => "s&cret",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let mut azure = Azure::new(access);
    assert!(RouteTable::list(&mut azure, &table()).await.is_ok());
    azure.token = None;
    azure.access.variable = |name| name.starts_with("AZURE_").then(|| "tenant-1".to_owned());
    let error = RouteTable::list(&mut azure, &table()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no usable credentials: https://login.microsoftonline.com/tenant-1/oauth2/v2.0/token does not accept \
         AZURE_CLIENT_ID and AZURE_CLIENT_SECRET: HTTP status 401"
    );
}
