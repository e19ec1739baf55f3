//! The HTTP API as its clients see it: endpoints, ranges, the status page, the OpenAPI document, and who is refused.

mod http_api;
mod openapi;
mod page;
mod ranges;
mod security;
