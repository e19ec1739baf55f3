//! `GET /openapi.json` and `GET /docs`: the description of this API for programs, and as a page for people, without scripts.
//! A test generates the page.

use crate::http::reply::Reply;
use crate::http::service::Service;

/// The document, OpenAPI 3.1.
pub(super) static DOCUMENT: &str = include_str!("openapi.json");

static HTML: &str = include_str!("docs.html");

/// Names the hash of the style.
const POLICY: &str = "default-src 'none'; style-src 'sha256-lgv5Q9WH1G7S+eyCDYrD3yZSasVQSWd2or8ulPHIrtg='; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

pub(super) fn openapi(_: &Service) -> Reply {
    Reply::text("application/json", DOCUMENT)
}

pub(super) fn docs(_: &Service) -> Reply {
    Reply::page(HTML, POLICY)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write;

    use serde_json::Value;

    use super::super::page::tests::assert_policy_fits;
    use super::*;

    const STYLE: &str = "\
:root{color-scheme:light dark}
body{max-width:52rem;margin:2rem auto;padding:0 1.25rem;font:16px/1.5 system-ui,sans-serif}
h2{margin:2rem 0 .25rem;padding-top:1rem;border-top:1px solid #8886;font-size:1.1rem}
p{margin:.4rem 0}
table{border-collapse:collapse;margin:.4rem 0}
th,td{padding:.2rem 1rem .2rem 0;text-align:left;vertical-align:top}
code{font-family:ui-monospace,monospace;overflow-wrap:anywhere}
";

    struct Page {
        document: Value,
        html: String,
    }

    impl Page {
        fn generate() -> String {
            let document: Value = serde_json::from_str(DOCUMENT).unwrap();
            let mut page = Self { document: document.clone(), html: String::new() };
            page.html = format!(
                "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
                 <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Loader API</title>\n\
                 <link rel=\"icon\" href=\"data:,\">\n<style>\n{STYLE}</style>\n<main>\n<h1>Loader API {}</h1>\n<p>{}\n\
                 <p><a href=\"/openapi.json\">OpenAPI</a> · <a href=\"/\">Status page</a>\n",
                text(&document["info"]["version"]),
                text(&document["info"]["description"]),
            );
            for (path, operations) in document["paths"].as_object().unwrap() {
                for (method, operation) in operations.as_object().unwrap() {
                    page.operation(&method.to_ascii_uppercase(), path, operation);
                }
            }
            page.html += "<h2>Answers of several endpoints</h2>\n<table>\n";
            for (name, response) in document["components"]["responses"].as_object().unwrap() {
                if name.parse::<u16>().is_ok() {
                    writeln!(page.html, "<tr><th>{name}<td>{}", text(&response["description"])).unwrap();
                }
            }
            page.html += "</table>\n";
            page.objects();
            page.html += "</main>\n</html>\n";
            page.html
        }

        fn operation(&mut self, method: &str, path: &str, operation: &Value) {
            write!(self.html, "<h2><code>{method} {path}</code></h2>\n<p>{}.", text(&operation["summary"])).unwrap();
            if let Some(more) = operation["description"].as_str() {
                write!(self.html, " {}", escaped(more)).unwrap();
            }
            if operation["security"].is_array() {
                self.html += " Needs no client token.";
            }
            self.html += "\n<table>\n";
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let parameter = self.resolved(parameter);
                let schema = self.resolved(&parameter["schema"]);
                let described = parameter.get("description").or(schema.get("description"));
                let described = described.map_or_else(String::new, text);
                let (place, name) = (text(&parameter["in"]), text(&parameter["name"]));
                writeln!(self.html, "<tr><th>{place} <code>{name}</code><td>{described}").unwrap();
            }
            let body = self.resolved(&operation["requestBody"]);
            for (kind, content) in body["content"].as_object().into_iter().flatten() {
                let fields = self.fields(&content["schema"]);
                writeln!(self.html, "<tr><th>body<td>{kind}: {fields}").unwrap();
            }
            let (mut own, mut common) = (String::new(), Vec::new());
            for (status, response) in operation["responses"].as_object().unwrap() {
                let resolved = self.resolved(response);
                if response.get("$ref").is_some_and(|to| to.as_str().unwrap().ends_with(status)) {
                    common.push(status.as_str());
                    continue;
                }
                write!(own, "<tr><th>{status}<td>{}", text(&resolved["description"])).unwrap();
                for (kind, content) in resolved["content"].as_object().into_iter().flatten() {
                    let fields = if status == "200" { self.fields(&content["schema"]) } else { String::new() };
                    write!(own, " <code>{kind}</code> {fields}").unwrap();
                }
                own += "\n";
            }
            writeln!(self.html, "{own}<tr><th>also<td>{}\n</table>", common.join(", ")).unwrap();
        }

        /// The named schemas.
        fn objects(&mut self) {
            let schemas = self.document["components"]["schemas"].as_object().unwrap().clone();
            for (name, schema) in &schemas {
                let description = schema.get("description").map_or_else(String::new, |words| text(words) + ". ");
                let values = schema["enum"].as_array();
                let values = values.map(|values| values.iter().map(text).collect::<Vec<_>>().join(", "));
                let pattern = schema.get("pattern").map(|pattern| format!("<code>{}</code>", text(pattern)));
                let rest = values.or(pattern).unwrap_or_else(|| self.fields(schema));
                writeln!(self.html, "<h2 id=\"{name}\">{name}</h2>\n<p>{description}{rest}").unwrap();
            }
        }

        /// The type of a value, or its fields, of which the optional ones have a question mark.
        fn fields(&self, schema: &Value) -> String {
            if let Some(name) = schema["$ref"].as_str().and_then(|to| to.strip_prefix("#/components/schemas/")) {
                return format!("<a href=\"#{name}\">{name}</a>");
            }
            if let Some(value) = schema["const"].as_str() {
                return format!("<code>\"{value}\"</code>");
            }
            if let Some(choices) = schema["anyOf"].as_array() {
                return choices.iter().map(|choice| self.fields(choice)).collect::<Vec<_>>().join(" or ");
            }
            if schema.get("items").is_some() {
                return format!("list of {}", self.fields(&schema["items"]));
            }
            let kinds: Vec<&str> = match &schema["type"] {
                Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
                kind => kind.as_str().into_iter().collect(),
            };
            let Some(properties) = schema["properties"].as_object() else { return kinds.join(" or ") };
            let required = schema["required"].as_array();
            let fields = properties.iter().map(|(name, schema)| {
                let is_required = required.is_some_and(|names| names.iter().any(|required| required == name));
                format!("<code>{name}{}</code> {}", if is_required { "" } else { "?" }, self.fields(schema))
            });
            let null = if kinds.contains(&"null") { " or null" } else { "" };
            format!("{{ {} }}{null}", fields.collect::<Vec<_>>().join(", "))
        }

        fn resolved(&self, value: &Value) -> Value {
            let target = value["$ref"].as_str().map(|to| self.document.pointer(&to[1..]).unwrap());
            target.unwrap_or(value).clone()
        }
    }

    fn text(value: &Value) -> String {
        escaped(value.as_str().unwrap())
    }

    /// Text as HTML, in which backquotes become code.
    fn escaped(text: &str) -> String {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let pieces = text.split('`').enumerate();
        pieces.map(|(i, piece)| if i % 2 == 1 { format!("<code>{piece}</code>") } else { piece.to_owned() }).collect()
    }

    /// `UPDATE_DOCS=1 cargo test docs` generates the page.
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

    #[test]
    fn the_page_is_generated_from_the_document() {
        let made = Page::generate();
        assert!(!made.contains("<script") && !made.contains("://"));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/routes/docs.html");
            return std::fs::write(path, &made).unwrap();
        }
        assert!(HTML == made, "docs.html is not up to date with openapi.json; run UPDATE_DOCS=1 cargo test docs");
    }

    #[test]
    fn the_policy_names_the_style_of_the_page() {
        assert_policy_fits(HTML, POLICY, &["style"]);
    }
}
