//! `selvage migrate` before a live cluster, with manifests that nobody here wrote: `migrate/*.yaml` has them, retyped.
//!
//! | module | what it is about |
//! |---|---|
//! | `makers` | the manifests of flannel and of others who bring it along |
//! | `obstacles` | what stands in the way of a move, and what must be carried over |
//! | `back` | the way back, and a cluster that has been moved |

mod back;
mod makers;
mod obstacles;
mod world;
