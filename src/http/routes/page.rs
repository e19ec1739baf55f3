//! `GET /`: the status page. It has no data of its own: its script fetches `/status` and `/unlock/status`, with the client
//! token if one is needed.

use crate::http::reply::Reply;
use crate::http::service::Service;

static HTML: &str = include_str!("page.html");

/// Names the hashes of the only script and the only style, so that a browser runs nothing else in the page.
const POLICY: &str = "default-src 'none'; script-src 'sha256-KJmxgnR0gdHoMsXP4pU0Tuy+yx446pCAy7SvUYbRf9o='; \
    style-src 'sha256-L97SBDJ6o03yMqmvSb5hvrienUMO877Xws2JMDXw94w='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn page(_: &Service) -> Reply {
    Reply::page(HTML, POLICY)
}

#[cfg(test)]
pub(super) mod tests {
    use jwt_simple::reexports::ct_codecs::{Base64, Encoder};
    use sha2::{Digest, Sha256};

    use super::*;

    /// The page must have one of each of the `elements`, the policy must name its hash, and the page must have nothing else
    /// that the policy blocks.
    pub(in super::super) fn assert_policy_fits(html: &str, policy: &str, elements: &[&str]) {
        for element in elements {
            let parts: Vec<&str> = html.split(&format!("<{element}>")).collect();
            assert_eq!(parts.len(), 2, "one {element}");
            let content = parts[1].split(&format!("</{element}>")).next().unwrap();
            let hash = Base64::encode_to_string(Sha256::digest(content)).unwrap();
            let source = format!("{element}-src 'sha256-{hash}'");
            assert!(policy.contains(&source), "the policy must have {source}");
        }
        assert_eq!(policy.matches("sha256-").count(), elements.len());
        assert!(!policy.contains("unsafe") && policy.starts_with("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        for blocked in [" style=", " onclick=", " onload=", " src=", "href=\"http", "@import", "javascript:"] {
            assert!(!html.contains(blocked), "{blocked}");
        }
    }

    #[test]
    fn the_policy_names_the_script_and_the_style_of_the_page() {
        assert_policy_fits(HTML, POLICY, &["script", "style"]);
    }

    #[test]
    fn the_page_is_small_and_takes_no_markup_from_the_service() {
        assert!(HTML.len() <= 13 * 1024, "{} bytes", HTML.len());
        for writing_markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"] {
            assert!(!HTML.contains(writing_markup), "{writing_markup}");
        }
    }
}
