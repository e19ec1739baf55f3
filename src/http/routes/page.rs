//! `GET /`: the status page. It holds no data: its script fetches them from `/status` and `/unlock/status`, with the client
//! token where one is needed.

use crate::http::Reply;

static HTML: &str = include_str!("page.html");

/// With the hashes of the page's one script and one style, so that nothing else in the page is ever run.
const POLICY: &str = "default-src 'none'; script-src 'sha256-DCkO7D2smdbHDJE7x3gnxki5UkqGT2jDm3Z4s8pcXw8='; \
    style-src 'sha256-L97SBDJ6o03yMqmvSb5hvrienUMO877Xws2JMDXw94w='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(in crate::http) fn page() -> Reply {
    Reply::page(HTML, POLICY)
}

#[cfg(test)]
pub(super) mod tests {
    use jwt_simple::reexports::ct_codecs::{Base64, Encoder};
    use sha2::{Digest, Sha256};

    use super::*;

    /// The policy must name the hash of each of the page's `elements`, of which there is one each, and no page may have
    /// what the policy would stop.
    pub(in super::super) fn assert_policy_fits(html: &str, policy: &str, elements: &[&str]) {
        for element in elements {
            let parts: Vec<&str> = html.split(&format!("<{element}>")).collect();
            assert_eq!(parts.len(), 2, "one {element}");
            let content = parts[1].split(&format!("</{element}>")).next().unwrap();
            let hash = Base64::encode_to_string(Sha256::digest(content)).unwrap();
            let source = format!("{element}-src 'sha256-{hash}'");
            assert!(policy.contains(&source), "the policy must say {source}");
        }
        assert_eq!(policy.matches("sha256-").count(), elements.len());
        assert!(!policy.contains("unsafe") && policy.starts_with("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        for stopped in [" style=", " onclick=", " onload=", " src=", "href=\"http", "@import", "javascript:"] {
            assert!(!html.contains(stopped), "{stopped}");
        }
    }

    #[test]
    fn the_policy_of_the_page_names_its_script_and_its_style() {
        assert_policy_fits(HTML, POLICY, &["script", "style"]);
    }

    #[test]
    fn the_page_is_small_and_takes_no_markup_from_the_service() {
        assert!(HTML.len() <= 12 * 1024, "{} bytes", HTML.len());
        for writing_markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"] {
            assert!(!HTML.contains(writing_markup), "{writing_markup}");
        }
    }
}
