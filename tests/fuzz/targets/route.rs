//! The request target, and the names that come out of it or out of a body.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use loader::http::fuzz_route;
use loader::names::{FileName, Folder};

/// A name is one component of a path, whatever it was made of.
fn is_one_component(name: &str) {
    let mut components = Path::new(name).components();
    assert!(matches!(components.next(), Some(Component::Normal(part)) if part == name));
    assert!(components.next().is_none());
    assert!(!name.chars().any(char::is_control) && name.len() <= 200);
}

fn names(text: &str) {
    if let Ok(name) = FileName::new(text) {
        is_one_component(&name);
    }
    if let Ok(folder) = Folder::new(text) {
        is_one_component(&folder);
    }
}

fuzz_target!(|text: &str| {
    if let Some(parameter) = fuzz_route(text) {
        names(&parameter);
    }
    names(text);
});
