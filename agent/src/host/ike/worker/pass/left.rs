//! What an earlier run of the agent, or a flannel, has left in charon; and the secrets, by whose names a run tells whether
//! another one is in use.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::super::super::client::ViciError;
use super::super::super::names;
use super::super::super::vici::Section;
use super::Session;

impl Session {
    /// Looks for what an earlier run or a flannel has loaded. Returns the connections, and keeps the secrets.
    pub(super) async fn survey(
        &mut self,
        networks: &[IpNet],
    ) -> Result<BTreeSet<String>, ViciError> {
        let there = self.client.call("get-shared", Section::default()).await?;
        let ids = there.texts("keys");
        for id in ids.filter(|id| names::is_ours(names::owner(id), networks)) {
            let of_owner = self.secrets.entry(names::owner(id).to_owned()).or_default();
            of_owner.insert(id.to_owned());
        }
        let there = self.client.call("get-conns", Section::default()).await?;
        let ours = there.texts("conns");
        let ours = ours.filter(|name| names::is_ours(name, networks));
        Ok(ours.map(Into::into).collect())
    }

    /// Removes a connection's secrets, but for one.
    pub(super) async fn unload_secrets(
        &mut self,
        name: &str,
        but: Option<&str>,
    ) -> Result<(), ViciError> {
        let mut ids = self.secrets.remove(name).unwrap_or_default();
        if let Some(kept) = but {
            ids.remove(kept);
            let kept = BTreeSet::from([kept.to_owned()]);
            self.secrets.insert(name.to_owned(), kept);
        }
        for id in &ids {
            let by_id = Section::default().with("id", id);
            self.try_order("unload-shared", name, by_id).await?;
        }
        Ok(())
    }
}
