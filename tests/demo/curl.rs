//! Commands for the user to try.

use serde_json::json;

use crate::session::Session;
use crate::world::client::segment;
use crate::world::resource_api::{EMAIL, PASSWORD};

/// The commands, each as it can be pasted into a shell.
pub fn commands(session: &Session) -> String {
    let url = session.service().url("");
    let Session { folder, model, sha256, .. } = session;
    let load = |name: &str| {
        let body = quoted(&json!({ "filename": name, "folder": folder }).to_string());
        format!("curl -sH 'Content-Type: application/json' -d {body} {url}/load/{}", segment(name))
    };
    let login = quoted(&json!({ "email": EMAIL, "password": PASSWORD }).to_string());
    let local = quoted(concat!("data=@", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    format!(
        "The loader stays up at {url} until Ctrl-C. Try in another terminal:\n\
         \n\
         # log in (the demo has done so already)\n\
         curl -H 'Content-Type: application/json' -d {login} {url}/login\n\
         \n\
         # load the model and hash it: {sha256}\n\
         {load_model} | sha256sum\n\
         \n\
         # upload a local file, and load it\n\
         curl -F folder={folder} -F {local} {url}/upload/Cargo.toml\n\
         {load_local}\n\
         \n\
         # ask for the state\n\
         curl {url}/status\n\
         curl {url}/unlock/status\n",
        load_model = load(&model.name),
        load_local = load("Cargo.toml"),
    )
}

/// Quotes a word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
