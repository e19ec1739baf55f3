//! The Resource API, the CDN and the network before them: requests on the wire, faults, other servers.

mod cdn_config;
mod clock;
mod names;
mod requests;
mod resource_api;
mod resumption;
mod s3_servers;
mod site_cache;
mod tls;
mod trouble;
mod uplink;
