//! Requests that a browser was made to send by somebody else's page.
//!
//! A person who can reach this service visits other pages, too, and those can make the browser post forms to it. A browser
//! says so: with `Sec-Fetch-Site` where it trusts the connection (https, localhost), and with `Origin` on every POST.
//! Programs send neither, and are not concerned.
//!
//! A page can also point its own name at this service after it was loaded (DNS rebinding); its requests then are of the
//! same origin, and only the name in `Host` is strange. So a browser must use a name that nobody else can own: an IP
//! address, `localhost`, a name without a dot, as containers and hosts of a local network have, or one below a suffix that
//! is not given away in the public DNS. Where clients need a token, a page that lacks it can do nothing under any name.

use std::net::{IpAddr, Ipv6Addr};

/// Suffixes under which nobody can register a name.
const PRIVATE_SUFFIXES: [&str; 6] = [".localhost", ".local", ".internal", ".home.arpa", ".lan", ".svc"];

/// The headers that tell where a request comes from.
pub(super) struct Sender<'a> {
    /// `Sec-Fetch-Site`.
    pub(super) site: Option<&'a str>,
    /// `Origin`.
    pub(super) origin: Option<&'a str>,
    /// `Host`.
    pub(super) host: Option<&'a str>,
    /// Whether it must prove itself by the client token, too.
    pub(super) has_token: bool,
}

impl Sender<'_> {
    /// Why the request must not change anything, if so.
    pub(super) fn objection(&self) -> Option<&'static str> {
        if self.site.is_none() && self.origin.is_none() {
            return None;
        }
        let host = self.host.unwrap_or_default();
        let own = match self.site {
            Some(site) => matches!(site, "same-origin" | "none"),
            None => self.origin.is_some_and(|origin| is_origin_of(origin, host)),
        };
        if !own {
            return Some("the request was sent by a page of another site, which may not use this service");
        }
        let rebound = !self.has_token && !is_private_name(name_of(host));
        rebound.then_some(
            "a browser must reach this service by an IP address, localhost or a local name, unless CLIENT_TOKEN is set",
        )
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

fn is_private_name(name: &str) -> bool {
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_suffix = |suffix: &&str| name.ends_with(*suffix);
    !name.is_empty()
        && (name.parse::<IpAddr>().is_ok() || !name.contains('.') || PRIVATE_SUFFIXES.iter().any(is_suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(site: Option<&str>, origin: Option<&str>, host: Option<&str>) -> bool {
        Sender { site, origin, host, has_token: false }.objection().is_some()
    }

    #[test]
    fn programs_are_not_concerned() {
        for host in [None, Some("127.0.0.1:8080"), Some("box17.fleet.example.com")] {
            assert!(!objects(None, None, host), "{host:?}");
        }
    }

    #[test]
    fn only_pages_of_this_service_may_change_anything() {
        let host = Some("box:8080");
        for origin in ["http://box:8080", "https://box:8080", "http://BOX:8080"] {
            assert!(!objects(None, Some(origin), host), "{origin}");
        }
        for origin in
            ["null", "", "http://box", "http://box:8081", "http://evil.example", "file://box:8080", "box:8080"]
        {
            assert!(objects(None, Some(origin), host), "{origin}");
        }
        assert!(objects(None, Some("http://"), Some("")) && objects(None, Some("http://box"), None));
        for site in ["cross-site", "same-site", "", "nonsense"] {
            assert!(objects(Some(site), None, host) && objects(Some(site), Some("http://box:8080"), host), "{site}");
        }
        // Behind a proxy that changes `Host` the browser's own word counts.
        assert!(!objects(Some("same-origin"), Some("https://box.example"), host));
        assert!(!objects(Some("none"), None, host));
    }

    #[test]
    fn a_name_that_somebody_may_own_is_no_name_for_browsers() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:8080",
            "localhost:8080",
            "LOCALHOST",
            "loader",
            "loader:80",
            "x.localhost",
            "box.local",
            "box.lan.",
            "host.docker.internal:8080",
            "loader.edge.svc",
            "loader.edge.svc.cluster.local",
            "nas.home.arpa",
        ] {
            assert!(!objects(Some("same-origin"), None, Some(host)), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "local.evil.example",
            "127.0.0.1.evil.example",
            "xlocal.x",
            "",
            "[x]",
            ":80",
        ] {
            assert!(objects(Some("same-origin"), Some(&format!("http://{host}")), Some(host)), "{host}");
        }
        let with_token =
            Sender { site: None, origin: Some("http://a.example"), host: Some("a.example"), has_token: true };
        assert!(with_token.objection().is_none());
    }
}
