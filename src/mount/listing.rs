//! The list of models that the service has at hand, from its `GET /models`.

use serde::Deserialize;

use crate::names::ModelName;

#[derive(Deserialize)]
struct Document {
    /// What is in the cache.
    models: Vec<Name>,
    /// What is in `KEEP`.
    #[serde(default)]
    keep: Vec<Name>,
}

#[derive(Deserialize)]
struct Name {
    folder: String,
    name: String,
}

/// Parses the answer to `GET /models`. A model may be in it twice.
pub(super) fn parse(body: &[u8]) -> Option<Vec<ModelName>> {
    let Document { models, keep } = serde_json::from_slice(body).ok()?;
    let names = models.into_iter().chain(keep);
    Some(names.filter_map(|Name { folder, name }| ModelName::new(folder, name).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_may_have_more_fields_and_need_not_have_kept_models() {
        let names = |body: &str| parse(body.as_bytes()).map(|models| models.iter().map(ToString::to_string).collect());
        let cached = r#"{"models":[{"folder":"models","name":"a.bin","bytes":7}],"more":1}"#;
        assert_eq!(names(cached), Some(vec!["models/a.bin".to_owned()]));
        let kept = r#"{"models":[],"keep":[{"folder":"models","name":"b.bin"},{"folder":"M","name":"/"}]}"#;
        assert_eq!(names(kept), Some(vec!["models/b.bin".to_owned()]));
        assert_eq!(names("{}"), None);
    }
}
