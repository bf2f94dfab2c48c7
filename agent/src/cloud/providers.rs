//! One file for each provider.

mod access_key;
pub(super) mod aliyun;
mod asked;
pub(super) mod aws;
pub(super) mod azure;
#[cfg(test)]
mod double;
pub(super) mod gce;
pub(super) mod openstack;
mod paging;
mod suspect;
pub(super) mod tencent;
mod variables;
