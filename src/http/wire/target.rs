//! Request targets and the authorities in them.

use std::net::Ipv6Addr;

/// The authority that a target in absolute form has, and the path with its query. The error is a sentence for the client.
pub(super) fn parse(target: &str, may_be_asterisk: bool) -> Result<(Option<&str>, String), &'static str> {
    if target.contains('#') {
        return Err("the request target has a fragment");
    }
    if target.starts_with('/') || (may_be_asterisk && target == "*") {
        return Ok((None, target.to_owned()));
    }
    let has = |scheme: &&str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let scheme = ["http://", "https://"].into_iter().find(has);
    let scheme = scheme.ok_or("the request target is neither a path nor a URL of this service")?;
    let rest = &target[scheme.len()..];
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !is_authority(authority) {
        return Err("the host in the request target is not a name or address with an optional port");
    }
    Ok((Some(authority), if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }))
}

/// Whether this is a non-empty `host[:port]` with the characters of RFC 3986, 3.2.2.
pub(super) fn is_authority(authority: &str) -> bool {
    let is_ipv6 = |literal: &str| literal.parse::<Ipv6Addr>().is_ok();
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((literal, "")) if is_ipv6(literal) => ("literal", ""),
        Some((literal, rest)) if is_ipv6(literal) && rest.starts_with(':') => ("literal", &rest[1..]),
        Some(_) => return false,
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte);
    let is_encoded = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    let valid = host.bytes().all(of_name) && host.split('%').skip(1).all(is_encoded);
    !host.is_empty() && valid && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_a_port() {
        for (host, valid) in [
            ("box", true),
            ("box:", true),
            ("127.0.0.1:80", true),
            ("[::1]:80", true),
            ("[::1]", true),
            ("", false),
            (":80", false),
            ("a b", false),
            ("user@box", false),
            ("box:80:81", false),
            ("box:x", false),
            ("[::1", false),
            ("[::1]x", false),
            ("[box]", false),
            ("b\u{f6}x", false),
        ] {
            assert_eq!(is_authority(host), valid, "{host}");
        }
    }
}
