//! The archive of container images and its unlock.

mod old_images;
mod podman;
mod unlock;
mod unlock_failures;
