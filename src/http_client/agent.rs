//! The configuration of connections: time limits and the proxy.

use std::env;
use std::time::Duration;

use ureq::config::Config;
use ureq::{Agent, Proxy};

use crate::constants::{AGENT, CHUNK, STALL_LIMIT};

/// The time limit for resolving a host name, and again for connecting.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Idle connections kept per server. A download in ranges uses several over and over, and opening one takes up to three
/// round trips.
const IDLE_CONNECTIONS: usize = 8;

/// The longest response head.
const MAX_RESPONSE_HEAD: usize = 32 * 1024;

/// The variables that may name a proxy, by precedence.
const PROXY_VARIABLES: [&str; 6] = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// The configuration of all connections. The error is a sentence that names the environment variable with an unusable
/// value.
pub(super) fn config() -> Result<Config, String> {
    Ok(Agent::config_builder()
        .http_status_as_error(false)
        // A redirect would carry credentials to a server that nobody configured.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy()?)
        .timeout_resolve(Some(CONNECT_LIMIT))
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_per_read(Some(STALL_LIMIT))
        .timeout_per_write(Some(STALL_LIMIT))
        .max_response_header_size(MAX_RESPONSE_HEAD)
        .input_buffer_size(CHUNK)
        .output_buffer_size(CHUNK)
        .max_idle_connections_per_host(IDLE_CONNECTIONS)
        .max_idle_age(Duration::from_secs(10))
        .user_agent(AGENT)
        .accept("*/*")
        .build())
}

/// The proxy in the environment, with the exceptions in `NO_PROXY`. ureq's own reading of these variables ignores an unusable
/// address, and in `NO_PROXY` names after a space and subdomains.
fn proxy() -> Result<Option<Proxy>, String> {
    let set = |name: &&str| env::var(name).ok().filter(|value| !value.trim().is_empty());
    let Some((name, value)) = PROXY_VARIABLES.iter().find_map(|name| Some((name, set(name)?))) else { return Ok(None) };
    let unusable = || format!("{name} is not the address of a proxy such as http://proxy.example.com:3128");
    let given = Proxy::new(value.trim()).map_err(|_| unusable())?;
    if !matches!(given.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https) {
        return Err(unusable());
    }
    let mut proxy = Proxy::builder(given.protocol()).host(given.host()).port(given.port());
    if let Some(user) = given.username() {
        proxy = proxy.username(user);
    }
    if let Some(password) = given.password() {
        proxy = proxy.password(password);
    }
    let exceptions = ["NO_PROXY", "no_proxy"].iter().find_map(set).unwrap_or_default();
    for exception in exceptions.split([',', ' ', '\t']).filter(|exception| !exception.is_empty()) {
        proxy = proxy.no_proxy(exception);
        if !exception.starts_with(['.', '*']) {
            proxy = proxy.no_proxy(&format!(".{exception}"));
        }
    }
    proxy.build().map(Some).map_err(|_| unusable())
}
