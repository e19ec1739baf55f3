//! A reference Resource API (section 4 of the specification) in this process, with faults on demand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jwt_simple::prelude::{ES256KeyPair, HS256Key};
use serde_json::Value;

use super::resource_server::{Armed, Signer, State, User};
use super::tcp::{TcpServer, lock};

/// A user that always exists.
pub const EMAIL: &str = "operator@example.com";
/// Password of [`EMAIL`].
pub const PASSWORD: &str = "correct-horse";

/// What a matching request meets instead of its answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The request is read and never answered.
    Hang,
    /// The request is carried out and never answered.
    HangAfterServed,
    /// This status and body.
    Status(u16, String),
    /// This status, with `Retry-After` in seconds.
    StatusWithRetryAfter(u16, u64),
    /// The connection is reset without an answer.
    Reset,
    /// The request is carried out, but the connection is reset before its answer.
    ResetAfterServed,
    /// The real answer with its full `Content-Length`, closed after half of the body.
    Truncate,
    /// Bytes that are not HTTP.
    Garbage,
    /// The real answer, with this many bytes of its body every 100 ms.
    Trickle(usize),
    /// The real answer, after this delay.
    Delay(Duration),
    /// A 302 to this URL.
    Redirect(String),
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// Method.
    pub method: String,
    /// Target as sent, percent-encoding and query included.
    pub path: String,
    /// Bytes of the body, without chunking.
    pub body_len: usize,
    /// Headers as sent.
    pub headers: Vec<(String, String)>,
    /// When the request was complete.
    pub at: Instant,
}

/// The running API; it stops when dropped.
pub struct ResourceApi {
    server: TcpServer,
    state: Arc<State>,
}

impl ResourceApi {
    /// Starts on any free port; tokens are signed with a shared secret.
    pub fn start() -> Self {
        Self::start_on(0)
    }

    /// As [`start`](Self::start), but on this port.
    pub fn start_on(port: u16) -> Self {
        Self::launch(port, Signer::Shared(HS256Key::generate()))
    }

    /// Starts on any free port; tokens are signed with ES256, and the PEM is the value for `JWT_PUBLIC_KEY_PATH`.
    pub fn start_signed() -> (Self, String) {
        let pair = ES256KeyPair::generate();
        let pem = pair.public_key().to_pem().expect("a public key has a PEM form");
        (Self::launch(0, Signer::Pair(Box::new(pair))), pem)
    }

    fn launch(port: u16, signer: Signer) -> Self {
        let state = Arc::new(State::new(signer));
        let served = state.clone();
        let server = TcpServer::start(port, move |stream| {
            // A client that goes away or sends nonsense ends its own connection only.
            let _ = served.serve(&stream);
        });
        let api = Self { server, state };
        api.add_user(EMAIL, PASSWORD, "Operator");
        api
    }

    /// The value for `RESOURCE_API_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.host_port())
    }

    /// The port, for [`start_on`](Self::start_on).
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Adds or replaces a user; the role is a name (`"Admin"`) or a number (`40`).
    pub fn add_user(&self, email: &str, password: &str, role: impl Into<Value>) {
        let user = User::new(password, role.into());
        lock(&self.state.inner).users.insert(email.to_owned(), user);
    }

    /// Stores a file's plaintext; each `get` encrypts it for the user and box that ask. `cdn.yaml` is in folder `""`.
    pub fn put_file(&self, folder: &str, name: &str, bytes: impl Into<Vec<u8>>) {
        lock(&self.state.inner).files.insert((folder.to_owned(), name.to_owned()), bytes.into());
    }

    /// The plaintext of a stored file.
    pub fn file(&self, folder: &str, name: &str) -> Option<Vec<u8>> {
        lock(&self.state.inner).files.get(&(folder.to_owned(), name.to_owned())).cloned()
    }

    /// Forgets a file.
    pub fn remove_file(&self, folder: &str, name: &str) {
        lock(&self.state.inner).files.remove(&(folder.to_owned(), name.to_owned()));
    }

    /// Folders and names of all files, sorted.
    pub fn files(&self) -> Vec<(String, String)> {
        let mut names: Vec<_> = lock(&self.state.inner).files.keys().cloned().collect();
        names.sort();
        names
    }

    /// Sets what `/binary-split/key-fragment` answers.
    pub fn set_key_fragment(&self, bytes: &[u8]) {
        lock(&self.state.inner).key_fragment = bytes.to_vec();
    }

    /// Sets the lifetime of tokens issued from now on.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        lock(&self.state.inner).token_lifetime = lifetime;
    }

    /// Revokes every token issued so far: it is answered 401.
    pub fn revoke_tokens(&self) {
        lock(&self.state.inner).tokens.clear();
    }

    /// All requests so far, faulted ones included.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.state.inner).requests.clone()
    }

    /// How many requests so far had a path with this prefix.
    pub fn count(&self, path_prefix: &str) -> usize {
        lock(&self.state.inner).requests.iter().filter(|request| request.path.starts_with(path_prefix)).count()
    }

    /// Forgets the recorded requests.
    pub fn clear_requests(&self) {
        lock(&self.state.inner).requests.clear();
    }

    /// Arms a fault for paths with this prefix, `times` times or until cleared. If several match, the oldest acts.
    pub fn fault(&self, path_prefix: &str, fault: Fault, times: Option<usize>) {
        let armed = Armed { prefix: path_prefix.to_owned(), fault, left: times };
        lock(&self.state.inner).faults.push(armed);
    }

    /// Whether a fault still waits for its request.
    pub fn awaits_a_request(&self) -> bool {
        lock(&self.state.inner).faults.iter().any(|armed| armed.left != Some(0))
    }

    /// Disarms all faults; a connection that hangs keeps hanging.
    pub fn clear_faults(&self) {
        lock(&self.state.inner).faults.clear();
    }

    /// Refuses connections and cuts the open ones, hanging ones too.
    pub fn down(&self) {
        self.server.down();
    }

    /// Listens again after [`down`](Self::down), with all files and users.
    pub fn up(&self) {
        self.server.up();
    }

    /// Cuts the open connections, hanging ones too, and keeps listening.
    pub fn cut(&self) {
        self.server.cut();
    }
}
