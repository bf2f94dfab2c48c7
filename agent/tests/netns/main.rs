//! Tests against the real kernel, in network namespaces of their own. They need root: `make test-netns`.

mod executor;
mod host;
mod netns;
mod scale;
