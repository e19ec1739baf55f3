//! One endpoint a file: to change an endpoint you open one file.

mod docs;
mod health;
mod load;
mod login;
mod metrics;
mod openapi;
mod page;
mod status;
mod unlock;
mod upload;

pub(super) use docs::docs;
pub(super) use health::health;
pub(super) use load::{admit_load, load};
pub(super) use login::login;
pub(super) use metrics::metrics;
pub(super) use openapi::openapi;
pub(super) use page::page;
pub(super) use status::status;
pub(super) use unlock::{unlock, unlock_status};
pub(super) use upload::{admit_upload, upload};

/// The folder that a request's query names. A folder has no character that needs an encoding.
fn folder_in_query(url: &str) -> Option<&str> {
    url.split_once('?')?.1.split('&').find_map(|field| field.strip_prefix("folder="))
}
