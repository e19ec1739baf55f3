//! The archive of container images and its unlock.

mod unlock;
mod unlock_failures;
