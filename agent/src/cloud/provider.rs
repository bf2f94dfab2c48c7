//! The providers.

use super::access::Access;
use super::providers::{aliyun, aws, azure, gce, openstack, tencent};
use super::table::RouteTable;

/// A provider. Its name is that of the backend.
#[derive(Debug)]
pub(crate) struct Provider {
    /// The backend's name in the network config.
    pub(crate) kind: &'static str,
    /// Opens it. Asks nothing yet.
    pub(crate) open: fn(Access) -> Box<dyn RouteTable>,
}

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
    use crate::plan::backend::table;

    #[test]
    fn every_cloud_backend_has_a_provider_and_the_reverse() {
        let mut backends: Vec<&str> = table::all()
            .filter(|backend| backend.is_cloud)
            .map(|backend| backend.kind)
            .collect();
        let mut providers: Vec<&str> = PROVIDERS.iter().map(|provider| provider.kind).collect();
        backends.sort_unstable();
        providers.sort_unstable();
        assert_eq!(backends, providers);
    }
}
