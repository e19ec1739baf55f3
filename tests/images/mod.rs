//! The archive of container images and its unlock.

mod podman;
mod unlock;
mod unlock_failures;
