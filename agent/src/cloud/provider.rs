//! The providers.

use super::providers::{aliyun, aws, azure, gce, openstack, tencent};
use super::table::Provider;

/// All of them. A new one needs a file under `providers/` and a line here.
static PROVIDERS: &[Provider] = &[
    aliyun::PROVIDER,
    aws::PROVIDER,
    azure::PROVIDER,
    gce::PROVIDER,
    openstack::PROVIDER,
    tencent::PROVIDER,
];

/// The provider of a backend.
pub(crate) fn find(kind: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::backend::{CLOUD_MEMORY, table};

    #[test]
    fn every_cloud_backend_has_a_provider_and_the_reverse() {
        let mut backends: Vec<&str> = table::all()
            .filter(|backend| backend.memory == Some(CLOUD_MEMORY))
            .map(|backend| backend.kind)
            .collect();
        let mut providers: Vec<&str> = PROVIDERS.iter().map(|provider| provider.kind).collect();
        backends.sort_unstable();
        providers.sort_unstable();
        assert_eq!(backends, providers);
    }
}
