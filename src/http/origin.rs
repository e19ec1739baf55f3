//! Requests that a browser was made to send by somebody else's page.
//!
//! A person who can reach this service visits other pages, too, and those can make the browser post forms to it. A browser
//! says so: with `Sec-Fetch-Site` where it trusts the connection (https, localhost), and with `Origin` on every POST.
//! Programs send neither.
//!
//! A page can also point its own name at this service after it was loaded (DNS rebinding); its requests then are of the
//! same origin, and only the name in `Host` is strange. A GET of such a page, over http, has no other mark at all. So
//! without a client token, which such a page lacks, every request that reads or changes something must name this service
//! in a way that nobody else can: by an IP address, `localhost`, or a name in `ALLOWED_HOSTS`. Two kinds of request may use
//! other names, because no page can have sent them to its own profit:
//!
//! - what changes something and has no mark of a browser: a page's POST would carry its `Origin`;
//! - what comes from the network, has no mark of a browser, and uses a name that is not given away in the public DNS,
//!   such as `loader` or `box.lan`. Containers reach each other by those. Only somebody on the local network can give such
//!   a name to a page, and a service that listens there answers that person anyway. On the loopback interface it does
//!   not, and there such names are refused.
//!
//! No browser speaks to a Unix socket: there only what a proxy passes on, with the marks of a browser, is asked for its name.

use std::net::{IpAddr, Ipv6Addr};

use crate::configuration::Configuration;

/// Suffixes under which nobody can register a name.
const PRIVATE_SUFFIXES: [&str; 6] = [".localhost", ".local", ".internal", ".home.arpa", ".lan", ".svc"];

const FOREIGN_PAGE: &str = "the request was sent by a page of another site, which may not use this service";

const FOREIGN_NAME: &str =
    "this service must be reached by an IP address, localhost or a name in ALLOWED_HOSTS, unless CLIENT_TOKEN is set";

/// How a request came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    UnixSocket,
    /// From this machine, or this container.
    Loopback,
    Network,
}

impl Way {
    /// From the client's address; a client of a Unix socket has none.
    pub(super) fn of(client: Option<IpAddr>) -> Self {
        match client {
            None => Self::UnixSocket,
            Some(address) if address.to_canonical().is_loopback() => Self::Loopback,
            Some(_) => Self::Network,
        }
    }
}

/// What tells where a request comes from.
pub(super) struct Sender<'a> {
    /// `Sec-Fetch-Site`.
    pub(super) site: Option<&'a str>,
    /// `Origin`.
    pub(super) origin: Option<&'a str>,
    /// `Host`.
    pub(super) host: Option<&'a str>,
    /// `User-Agent`.
    pub(super) user_agent: Option<&'a str>,
    pub(super) way: Way,
}

impl Sender<'_> {
    /// Why the request is refused, if so. To be asked for each that is not for a public route.
    pub(super) fn objection(&self, changes_something: bool, configuration: &Configuration) -> Option<&'static str> {
        // What another site's page only reads, the browser keeps from it.
        if changes_something && self.is_of_another_site() {
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
        let harmless = changes_something
            || name.is_empty()
            || match self.way {
                Way::UnixSocket => true,
                Way::Loopback => false,
                Way::Network => is_private_name(name),
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

    /// Every browser has such a `User-Agent`, and most keep pages from changing it.
    fn is_a_browser(&self) -> bool {
        self.site.is_some()
            || self.origin.is_some()
            || self.user_agent.is_some_and(|agent| agent.trim_start().starts_with("Mozilla/"))
    }
}

/// Whether the origin is this host's: with TLS if a proxy is in front.
fn is_origin_of(origin: &str, host: &str) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host))
}

/// The name in a `Host` header, without the port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// A name that nobody else can have.
fn is_own_name(name: &str, configuration: &Configuration) -> bool {
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.parse::<IpAddr>().is_ok() || configuration.allowed_hosts.contains(&name)
}

/// A name that nobody can register, though somebody on the local network may have it.
fn is_private_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    is_name && !name.is_empty() && (!name.contains('.') || PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(variables: &[(&str, &str)]) -> Configuration {
        Configuration::from_lookup(|name| {
            Ok(variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        })
        .unwrap()
    }

    /// A program on this machine, without marks of a browser.
    fn program(host: &str) -> Sender<'_> {
        Sender { site: None, origin: None, host: Some(host), user_agent: Some("curl/8.5.0"), way: Way::Loopback }
    }

    fn objects_to(sender: &Sender<'_>, changes_something: bool) -> bool {
        sender.objection(changes_something, &configuration(&[])).is_some()
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
            for way in [Way::Loopback, Way::Network, Way::UnixSocket] {
                assert!(!objects_to(&Sender { way, ..program(host) }, true), "{host}");
            }
        }
        assert!(!objects_to(&Sender { host: None, ..program("") }, true));
    }

    /// A GET of a page whose name was pointed here looks like a program's.
    #[test]
    fn what_is_read_is_read_under_a_name_that_nobody_else_can_have() {
        for host in OWN {
            assert!(!objects_to(&program(host), false), "{host}");
        }
        for host in PRIVATE.into_iter().chain(FOREIGN) {
            assert!(objects_to(&program(host), false), "{host}");
        }
        // HTTP/1.0, which no browser speaks.
        assert!(!objects_to(&Sender { host: None, ..program("") }, false));
    }

    #[test]
    fn containers_read_under_the_names_that_they_have_for_each_other() {
        for host in PRIVATE {
            assert!(!objects_to(&Sender { way: Way::Network, ..program(host) }, false), "{host}");
            let page = Sender { user_agent: Some("Mozilla/5.0 (X11)"), way: Way::Network, ..program(host) };
            assert!(objects_to(&page, false), "{host}");
        }
        for host in FOREIGN {
            assert!(objects_to(&Sender { way: Way::Network, ..program(host) }, false), "{host}");
        }
    }

    #[test]
    fn a_browser_uses_a_name_that_nobody_else_can_have() {
        for way in [Way::Loopback, Way::Network] {
            for host in OWN {
                assert!(!objects_to(&Sender { site: Some("same-origin"), way, ..program(host) }, true), "{host}");
            }
            for host in PRIVATE.into_iter().chain(FOREIGN).chain(["", ":80"]) {
                let origin = format!("http://{host}");
                for changes_something in [true, false] {
                    let page = Sender { site: Some("same-origin"), way, ..program(host) };
                    assert!(objects_to(&page, changes_something), "{host}");
                    let page = Sender { origin: Some(&origin), way, ..program(host) };
                    assert!(objects_to(&page, changes_something), "{host}");
                }
            }
        }
    }

    #[test]
    fn names_that_are_allowed_are_for_everybody() {
        let configuration = configuration(&[("ALLOWED_HOSTS", "loader, Box17.fleet.example.com")]);
        let page = |host| Sender { site: Some("same-origin"), ..program(host) };
        for host in ["loader:8080", "LOADER", "box17.fleet.example.com.", "127.0.0.1"] {
            assert_eq!(page(host).objection(true, &configuration), None, "{host}");
            assert_eq!(program(host).objection(false, &configuration), None, "{host}");
        }
        for host in ["loader2", "x.loader", "fleet.example.com", "evil.example"] {
            assert_eq!(page(host).objection(true, &configuration), Some(FOREIGN_NAME), "{host}");
            assert_eq!(program(host).objection(false, &configuration), Some(FOREIGN_NAME), "{host}");
        }
    }

    #[test]
    fn only_pages_of_this_service_may_change_anything() {
        let from = |site, origin, host| objects_to(&Sender { site, origin, ..program(host) }, true);
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
        // Behind a proxy that changes `Host` the browser's own word counts.
        assert!(!from(Some("same-origin"), Some("https://box.example"), host));
        assert!(!from(Some("none"), None, host));
        // A proxy in front of a Unix socket passes on what browsers send.
        let proxied = Sender { origin: Some("http://evil.example"), way: Way::UnixSocket, ..program("box.example") };
        assert!(objects_to(&proxied, true) && objects_to(&proxied, false));
        assert!(!objects_to(&Sender { way: Way::UnixSocket, ..program("box.example") }, false));
    }

    #[test]
    fn a_client_token_is_stronger_than_a_name_but_not_than_the_question_of_the_page() {
        let configuration = configuration(&[("CLIENT_TOKEN", "x")]);
        let host = "a.example";
        let own = Sender { origin: Some("http://a.example"), ..program(host) };
        assert_eq!(own.objection(true, &configuration), None);
        assert_eq!(program(host).objection(false, &configuration), None);
        let foreign = Sender { origin: Some("http://b.example"), ..program(host) };
        assert_eq!(foreign.objection(true, &configuration), Some(FOREIGN_PAGE));
    }

    #[test]
    fn the_way_is_told_by_the_clients_address() {
        for (address, way) in [
            ("127.0.0.1", Way::Loopback),
            ("127.8.8.8", Way::Loopback),
            ("::1", Way::Loopback),
            ("::ffff:127.0.0.1", Way::Loopback),
            ("172.18.0.3", Way::Network),
            ("fd00::3", Way::Network),
        ] {
            assert_eq!(Way::of(address.parse().ok()), way, "{address}");
        }
        assert_eq!(Way::of(None), Way::UnixSocket);
    }
}
