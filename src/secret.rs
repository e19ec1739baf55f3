//! Secret texts: passwords, tokens, keys and salts.

use std::fmt;

use serde::Deserialize;
use zeroize::Zeroizing;

/// A secret text. It is wiped from memory when dropped, and its `Debug` form is `***`; there is no `Display`.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself. The caller is responsible for where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in a time that depends on the lengths only, so that the delay tells a guesser nothing.
    pub fn matches(&self, candidate: &str) -> bool {
        let (ours, theirs) = (self.0.as_bytes(), candidate.as_bytes());
        let differing = ours.iter().zip(theirs).fold(0, |differing, (a, b)| std::hint::black_box(differing | (a ^ b)));
        ours.len() == theirs.len() && differing == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A flat JSON object of strings. It may hold a password, so it is wiped when dropped.
pub fn json_object<const N: usize>(fields: [(&str, &str); N]) -> Zeroizing<Vec<u8>> {
    let object = fields.map(|(name, value)| {
        // A string always has a JSON form.
        Zeroizing::new(format!("\"{name}\":{}", serde_json::to_string(value).unwrap_or_default()))
    });
    let fields: Vec<&str> = object.iter().map(|field| field.as_str()).collect();
    Zeroizing::new(format!("{{{}}}", fields.join(",")).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
    }

    #[test]
    fn matches_only_the_same_text() {
        let secret = Secret::new("token");
        assert!(secret.matches("token"));
        for other in ["", "toke", "tokem", "token1"] {
            assert!(!secret.matches(other), "{other}");
        }
    }
}
