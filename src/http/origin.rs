//! Refuses requests that a browser sends for a page of somebody else.
//!
//! A person who can reach this service also visits other pages, and those can make the browser post forms to it. A browser
//! marks such requests: with `Sec-Fetch-Site` if it trusts the connection (https, localhost), and with `Origin` on every
//! POST. Programs send neither.
//!
//! A page can also point its own name at this service after it was loaded (DNS rebinding). Its requests then have the same
//! origin as the service, and only the name in `Host` is wrong. A GET of such a page, over http, has no other mark at all.
//! Such a page has no client token. So without one, every request must name this service in a way that nobody else can: by
//! an IP address, `localhost` or a name in `ALLOWED_HOSTS`. Two kinds of requests may use other names, because they cannot
//! come from such a page, or are of no use to it:
//!
//! - Requests that change something and have no mark of a browser. The POST of a page would have its `Origin`.
//! - Requests from the network that have no mark of a browser and use a name that does not exist in the public DNS, such as
//!   `loader` or `box.lan`. Containers reach each other by such names. Only somebody on the local network can give such a
//!   name to a page, and a service that listens there answers that person anyway. A service on the loopback interface does
//!   not, so there such names are refused.
//!
//! No browser can use a Unix socket. There the name is checked only if a proxy passes on the marks of a browser.

use std::net::{IpAddr, Ipv6Addr};

use crate::configuration::Configuration;

/// Nobody can register a name under these suffixes.
const PRIVATE_SUFFIXES: [&str; 6] = [".localhost", ".local", ".internal", ".home.arpa", ".lan", ".svc"];

const FOREIGN_PAGE: &str = "the request was sent by a page of another site, which may not use this service";

const FOREIGN_NAME: &str =
    "this service must be reached by an IP address, localhost or a name in ALLOWED_HOSTS, unless CLIENT_TOKEN is set";

/// How a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    UnixSocket,
    /// From this machine or this container.
    Loopback,
    Network,
}

impl Transport {
    /// By the client's address, which a client of a Unix socket does not have.
    pub(super) fn of(client: Option<IpAddr>) -> Self {
        match client {
            None => Self::UnixSocket,
            Some(address) if address.to_canonical().is_loopback() => Self::Loopback,
            Some(_) => Self::Network,
        }
    }
}

/// The marks of where a request comes from.
pub(super) struct Origin<'a> {
    /// `Sec-Fetch-Site`.
    pub(super) site: Option<&'a str>,
    pub(super) origin: Option<&'a str>,
    pub(super) host: Option<&'a str>,
    pub(super) user_agent: Option<&'a str>,
    pub(super) transport: Transport,
}

impl Origin<'_> {
    /// Why the request must be refused, if so. Public routes have no objections.
    pub(super) fn objection(&self, is_safe: bool, configuration: &Configuration) -> Option<&'static str> {
        // The browser hides answers from a page of another site, so reading does no harm.
        if !is_safe && self.is_of_another_site() {
            return Some(FOREIGN_PAGE);
        }
        let name = name_of(self.host.unwrap_or_default());
        if configuration.client_token.is_some() || is_own_name(name, configuration) {
            return None;
        }
        if self.is_a_browser() {
            return Some(FOREIGN_NAME);
        }
        // A browser always sends `Host`.
        let harmless = !is_safe
            || name.is_empty()
            || match self.transport {
                Transport::UnixSocket => true,
                Transport::Loopback => false,
                Transport::Network => is_private_name(name),
            };
        (!harmless).then_some(FOREIGN_NAME)
    }

    fn is_of_another_site(&self) -> bool {
        match (self.site, self.origin) {
            (Some(site), _) => !matches!(site, "same-origin" | "none"),
            (None, Some(origin)) => !is_origin_of(origin, self.host.unwrap_or_default()),
            (None, None) => false,
        }
    }

    /// Every browser has such a `User-Agent`, and most do not let pages change it.
    fn is_a_browser(&self) -> bool {
        self.site.is_some()
            || self.origin.is_some()
            || self.user_agent.is_some_and(|agent| agent.trim_start().starts_with("Mozilla/"))
    }
}

/// Whether the origin is this host, with TLS if there is a proxy.
fn is_origin_of(origin: &str, host: &str) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host))
}

/// The name in a `Host` header without the port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether nobody else can have this name.
fn is_own_name(name: &str, configuration: &Configuration) -> bool {
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.parse::<IpAddr>().is_ok() || configuration.allowed_hosts.contains(&name)
}

/// Whether nobody can register this name, though somebody on the local network may have it.
fn is_private_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    is_name && !name.is_empty() && (!name.contains('.') || PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(variables: &[(&str, &str)]) -> Configuration {
        Configuration::from_lookup(&|name| {
            Ok(variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        })
        .unwrap()
    }

    /// A request of a program on this machine, without marks of a browser.
    fn program(host: &str) -> Origin<'_> {
        Origin {
            site: None,
            origin: None,
            host: Some(host),
            user_agent: Some("curl/8.5.0"),
            transport: Transport::Loopback,
        }
    }

    fn objects_to(request: &Origin<'_>, is_safe: bool) -> bool {
        request.objection(is_safe, &configuration(&[])).is_some()
    }

    const OWN: [&str; 7] =
        ["127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080", "localhost:8080", "LOCALHOST", "localhost."];
    const PRIVATE: [&str; 9] = [
        "loader",
        "loader:8080",
        "x.localhost",
        "box.local",
        "box.lan.",
        "host.docker.internal:8080",
        "loader.edge.svc",
        "loader.edge.svc.cluster.local",
        "NAS.home.arpa",
    ];
    const FOREIGN: [&str; 8] = [
        "evil.example",
        "evil.example:8080",
        "local.evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "xlocal.x",
        "[x]:80",
        "127.0.0.1:x",
    ];

    #[test]
    fn a_program_may_change_things_under_any_name() {
        for host in OWN.into_iter().chain(PRIVATE).chain(FOREIGN) {
            for transport in [Transport::Loopback, Transport::Network, Transport::UnixSocket] {
                assert!(!objects_to(&Origin { transport, ..program(host) }, false), "{host}");
            }
        }
        assert!(!objects_to(&Origin { host: None, ..program("") }, false));
    }

    /// A GET of a page whose name was pointed here looks like the GET of a program.
    #[test]
    fn a_program_reads_only_under_names_that_nobody_else_can_have() {
        for host in OWN {
            assert!(!objects_to(&program(host), true), "{host}");
        }
        for host in PRIVATE.into_iter().chain(FOREIGN) {
            assert!(objects_to(&program(host), true), "{host}");
        }
        // HTTP/1.0, which no browser speaks.
        assert!(!objects_to(&Origin { host: None, ..program("") }, true));
    }

    #[test]
    fn containers_read_under_the_names_by_which_they_reach_each_other() {
        for host in PRIVATE {
            assert!(!objects_to(&Origin { transport: Transport::Network, ..program(host) }, true), "{host}");
            let page = Origin { user_agent: Some("Mozilla/5.0 (X11)"), transport: Transport::Network, ..program(host) };
            assert!(objects_to(&page, true), "{host}");
        }
        for host in FOREIGN {
            assert!(objects_to(&Origin { transport: Transport::Network, ..program(host) }, true), "{host}");
        }
    }

    #[test]
    fn a_browser_must_use_a_name_that_nobody_else_can_have() {
        for transport in [Transport::Loopback, Transport::Network] {
            for host in OWN {
                assert!(
                    !objects_to(&Origin { site: Some("same-origin"), transport, ..program(host) }, false),
                    "{host}"
                );
            }
            for host in PRIVATE.into_iter().chain(FOREIGN).chain(["", ":80"]) {
                let origin = format!("http://{host}");
                for is_safe in [true, false] {
                    let page = Origin { site: Some("same-origin"), transport, ..program(host) };
                    assert!(objects_to(&page, is_safe), "{host}");
                    let page = Origin { origin: Some(&origin), transport, ..program(host) };
                    assert!(objects_to(&page, is_safe), "{host}");
                }
            }
        }
    }

    #[test]
    fn allowed_hosts_are_for_browsers_and_programs() {
        let configuration = configuration(&[("ALLOWED_HOSTS", "loader, Box17.fleet.example.com")]);
        let page = |host| Origin { site: Some("same-origin"), ..program(host) };
        for host in ["loader:8080", "LOADER", "box17.fleet.example.com.", "127.0.0.1"] {
            assert_eq!(page(host).objection(false, &configuration), None, "{host}");
            assert_eq!(program(host).objection(true, &configuration), None, "{host}");
        }
        for host in ["loader2", "x.loader", "fleet.example.com", "evil.example"] {
            assert_eq!(page(host).objection(false, &configuration), Some(FOREIGN_NAME), "{host}");
            assert_eq!(program(host).objection(true, &configuration), Some(FOREIGN_NAME), "{host}");
        }
    }

    #[test]
    fn only_pages_of_this_service_may_change_anything() {
        let from = |site, origin, host| objects_to(&Origin { site, origin, ..program(host) }, false);
        let host = "127.0.0.1:8080";
        for origin in ["http://127.0.0.1:8080", "https://127.0.0.1:8080"] {
            assert!(!from(None, Some(origin), host), "{origin}");
        }
        assert!(!from(None, Some("http://LOCALHOST:8080"), "localhost:8080"));
        for origin in [
            "null",
            "",
            "http://127.0.0.1",
            "http://127.0.0.1:8081",
            "http://evil.example",
            "file://127.0.0.1:8080",
            "127.0.0.1:8080",
        ] {
            assert!(from(None, Some(origin), host), "{origin}");
        }
        assert!(from(None, Some("http://"), ""));
        for site in ["cross-site", "same-site", "", "nonsense"] {
            assert!(from(Some(site), None, host) && from(Some(site), Some("http://127.0.0.1:8080"), host), "{site}");
        }
        // After a proxy that changes `Host`, only the mark of the browser counts.
        assert!(!from(Some("same-origin"), Some("https://box.example"), host));
        assert!(!from(Some("none"), None, host));
        // A proxy in front of a Unix socket passes on what browsers send.
        let proxied =
            Origin { origin: Some("http://evil.example"), transport: Transport::UnixSocket, ..program("box.example") };
        assert!(objects_to(&proxied, false) && objects_to(&proxied, true));
        assert!(!objects_to(&Origin { transport: Transport::UnixSocket, ..program("box.example") }, true));
    }

    #[test]
    fn with_a_client_token_any_name_will_do_but_pages_of_other_sites_are_still_refused() {
        let configuration = configuration(&[("CLIENT_TOKEN", "x")]);
        let host = "a.example";
        let own = Origin { origin: Some("http://a.example"), ..program(host) };
        assert_eq!(own.objection(false, &configuration), None);
        assert_eq!(program(host).objection(true, &configuration), None);
        let foreign = Origin { origin: Some("http://b.example"), ..program(host) };
        assert_eq!(foreign.objection(false, &configuration), Some(FOREIGN_PAGE));
    }

    #[test]
    fn the_transport_follows_from_the_address_of_the_client() {
        for (address, transport) in [
            ("127.0.0.1", Transport::Loopback),
            ("127.8.8.8", Transport::Loopback),
            ("::1", Transport::Loopback),
            ("::ffff:127.0.0.1", Transport::Loopback),
            ("172.18.0.3", Transport::Network),
            ("fd00::3", Transport::Network),
        ] {
            assert_eq!(Transport::of(address.parse().ok()), transport, "{address}");
        }
        assert_eq!(Transport::of(None), Transport::UnixSocket);
    }
}
