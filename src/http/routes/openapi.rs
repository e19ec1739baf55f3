//! `GET /openapi.json`: the description of this API for programs.

use crate::http::reply::Reply;
use crate::http::service::Service;

/// The document, OpenAPI 3.1.
pub(super) static DOCUMENT: &str = include_str!("openapi.json");

pub(super) fn openapi(_: &Service) -> Reply {
    Reply::text("application/json", DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_reference_has_a_target_and_every_component_is_used() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
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
