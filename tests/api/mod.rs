//! The HTTP API as its clients see it: endpoints, ranges, the status page, the OpenAPI document, and who is refused.

mod browsers;
mod endpoints;
mod input;
mod login;
mod openapi;
mod page;
mod ranges;
