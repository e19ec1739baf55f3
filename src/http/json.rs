//! JSON bodies. They have a size limit, and an error never quotes them, since they may hold a password.

use std::io::Read;

use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use super::exchange::Exchange;
use super::reply::Reply;
use super::service::Service;
use crate::constants::MAX_JSON_BYTES;

/// Refuses a body that is not declared as JSON or is declared too long.
pub(super) fn admit_json(_: &Service, exchange: &Exchange, _: &str) -> Result<(), Reply> {
    let content_type = exchange.header("content-type").unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Reply::error(422, "the body must be JSON with Content-Type: application/json"));
    }
    if exchange.declared_length().is_some_and(|length| length > MAX_JSON_BYTES) {
        return Err(too_large());
    }
    Ok(())
}

/// Reads a body that [`admit_json`] has admitted and whose `fields` are texts.
pub(super) fn read_json<T: DeserializeOwned>(exchange: &mut Exchange, fields: &[&str]) -> Result<T, Reply> {
    // A vector that grows leaves copies of its content in freed memory, and the content may be a password.
    let length = exchange.declared_length().unwrap_or(MAX_JSON_BYTES);
    let mut json = Zeroizing::new(Vec::with_capacity(length as usize + 64));
    exchange.take(MAX_JSON_BYTES + 1).read_to_end(&mut json).map_err(|error| Reply::unreadable(&error))?;
    if json.len() as u64 > MAX_JSON_BYTES {
        return Err(too_large());
    }
    serde_json::from_slice(&json).map_err(|error| Reply::error(422, explain(&json, &error, fields)))
}

fn too_large() -> Reply {
    Reply::error(413, format!("a JSON body may have {MAX_JSON_BYTES} bytes at most"))
}

/// The errors of serde quote values, and a value may be a password of the wrong type.
fn explain(json: &[u8], error: &serde_json::Error, fields: &[&str]) -> String {
    let Ok(mut value) = serde_json::from_slice::<Value>(json) else {
        return format!("the body is not valid JSON (line {}, column {})", error.line(), error.column());
    };
    let reason = explain_value(&value, fields);
    wipe(&mut value);
    reason
}

fn explain_value(value: &Value, fields: &[&str]) -> String {
    let Value::Object(object) = value else { return "the body must be a JSON object".into() };
    let of_wrong_type = |field: &&&str| object.get(**field).is_some_and(|value| !value.is_string() && !value.is_null());
    if let Some(field) = fields.iter().find(of_wrong_type) {
        return format!("{field} must be a text");
    }
    if let Some(field) = fields.iter().find(|field| object.get(**field).is_none_or(Value::is_null)) {
        return format!("{field} is missing");
    }
    "a field appears twice, or its value has the wrong type".into()
}

/// Any text in the value may be a password.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(object) => object.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
