//! One endpoint a file: to change an endpoint you open one file.

mod health;
mod load;
mod login;
mod status;
mod unlock;
mod upload;

pub(super) use health::health;
pub(super) use load::load;
pub(super) use login::login;
pub(super) use status::status;
pub(super) use unlock::{unlock, unlock_status};
pub(super) use upload::upload;
