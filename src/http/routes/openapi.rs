//! `GET /openapi.json`: the description of this API for programs.

use crate::http::Reply;

/// The document, OpenAPI 3.1.
pub(super) static DOCUMENT: &str = include_str!("openapi.json");

pub(in crate::http) fn openapi() -> Reply {
    Reply::text("application/json", DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::http::router::{endpoints, route};

    #[test]
    fn the_document_has_the_routers_endpoints_and_no_others() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                // HEAD comes with GET, and OPTIONS with every path.
                let allow = if method == "get" { "GET, HEAD, OPTIONS" } else { "POST, OPTIONS" };
                described.insert((path.as_str(), allow));
                let method = method.to_ascii_uppercase().parse().unwrap();
                let route = route(&method, path).unwrap();
                assert_eq!(operation["security"].is_array(), route.is_public(), "{path}: who may call it");
                assert_eq!(operation["responses"]["401"].is_object(), !route.is_public(), "{path}");
                for status in ["400", "403", "405", "500", "503"] {
                    assert!(operation["responses"][status].is_object(), "{path} can answer {status}");
                }
            }
        }
        assert_eq!(described, endpoints().collect());
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere_and_every_component_is_used() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let used: BTreeSet<&str> =
            DOCUMENT.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        for pointer in &used {
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        for (kind, components) in document["components"].as_object().unwrap() {
            for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
                assert!(used.contains(format!("/components/{kind}/{name}").as_str()), "{kind} {name} is not used");
            }
        }
    }
}
