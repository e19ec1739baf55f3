//! The real `loader` program in its own process and its own directories.

mod builder;
mod prompt;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub use builder::ServiceBuilder;
pub use prompt::Promptness;

use super::client::{self, Download};
use super::eventually;
use super::multipart::Form;
use super::process::{Captured, command, memory_kib, reset_peak, run_to_end, signal, spawn};
use super::raw::{Reply, Stream, request_from};
use super::resource_api::{EMAIL, PASSWORD};
use super::tcp::lock;

/// A start that takes longer hangs.
const START: Duration = Duration::from_secs(60);
/// How long an orderly stop may take: the 10 s that running transfers get, and a margin.
const END: Duration = Duration::from_secs(25);

/// A running loader; it is killed when dropped.
pub struct Service {
    dir: TempDir,
    binary: PathBuf,
    env: Mutex<Vec<(OsString, OsString)>>,
    bind: String,
    timeout: Duration,
    child: Mutex<Child>,
    output: Captured,
}

impl Service {
    /// A builder with the default program.
    pub fn builder() -> ServiceBuilder {
        ServiceBuilder {
            binary: super::loader_binary(),
            env: Vec::new(),
            unix: false,
            host: "127.0.0.1",
            // An upload of 1 GiB is answered when the store has it, which took more than a minute on a busy disk.
            timeout: Duration::from_secs(600),
        }
    }

    /// `BIND_ADDR` of the process, as [`Stream::connect`] takes it.
    pub fn address(&self) -> &str {
        &self.bind
    }

    /// URL of a path (TCP only).
    pub fn url(&self, path: &str) -> String {
        assert!(!self.bind.starts_with("unix:"), "a Unix socket has no URL");
        format!("http://{}{path}", self.bind)
    }

    /// A raw connection.
    pub fn connect(&self) -> Stream {
        let address = self.bind.clone();
        let stream =
            Stream::connect(&address).unwrap_or_else(|error| panic!("{address}: {error}\n{}", self.log_text()));
        stream.set_timeout(self.timeout).expect("a timeout");
        stream
    }

    /// Sends any request. An error is a failure below HTTP, or a body that ends early.
    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, String> {
        client::call(&self.bind, self.timeout, method, path, headers, body)
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> Reply {
        self.expect(self.call("GET", path, &[], b""))
    }

    /// Fails unless `/health` is answered at once.
    pub fn is_prompt(&self) {
        Promptness::new().judge(self, "/health");
    }

    /// `POST` with a JSON body.
    pub fn post_json(&self, path: &str, body: Value) -> Reply {
        let json = [("Content-Type", "application/json")];
        self.expect(self.call("POST", path, &json, body.to_string().as_bytes()))
    }

    /// `/login` as the Resource API's default user.
    pub fn login(&self) -> Reply {
        self.login_as(EMAIL, PASSWORD)
    }

    /// `/login` with this account.
    pub fn login_as(&self, email: &str, password: &str) -> Reply {
        self.post_json("/login", json!({ "email": email, "password": password }))
    }

    /// `/load` of a file into memory; panics if the answer does not arrive whole.
    pub fn load(&self, folder: &str, name: &str) -> Reply {
        self.expect(self.try_load(folder, name))
    }

    /// As [`load`](Self::load); an error is a failure below HTTP, or a body that ends early.
    pub fn try_load(&self, folder: &str, name: &str) -> Result<Reply, String> {
        let (path, body) = load_request(folder, name);
        self.call("POST", &path, &[("Content-Type", "application/json")], &body)
    }

    /// `/load` of a file into a writer, for files that should not be held in memory. A body that ends early does not
    /// panic but sets [`Download::error`].
    pub fn load_to(&self, folder: &str, name: &str, to: &mut dyn Write) -> Download {
        let (path, body) = load_request(folder, name);
        self.expect(client::download(&self.bind, self.timeout, &path, &body, to))
    }

    /// `/upload` of a file in memory.
    pub fn upload(&self, folder: &str, name: &str, bytes: &[u8]) -> Reply {
        self.upload_reader(folder, name, bytes.len() as u64, bytes)
    }

    /// `/upload` of `len` bytes from a reader.
    pub fn upload_reader(&self, folder: &str, name: &str, len: u64, from: impl Read + Send) -> Reply {
        self.expect(self.try_upload_reader(folder, name, len, from))
    }

    /// As [`upload_reader`](Self::upload_reader); an error is a failure below HTTP.
    pub fn try_upload_reader(
        &self,
        folder: &str,
        name: &str,
        len: u64,
        from: impl Read + Send,
    ) -> Result<Reply, String> {
        let form = Form::new(name, &[("folder", folder)], &[]);
        let headers = [("Content-Type", form.content_type.as_str())];
        let path = format!("/upload/{}", client::segment(name));
        // Not through ureq: a refusal must be seen although the body was not sent to its end.
        let connect = || {
            let stream = Stream::connect(&self.bind)?;
            stream.set_timeout(self.timeout)?;
            Ok::<_, std::io::Error>(stream)
        };
        connect()
            .and_then(|stream| request_from(stream, "POST", &path, &headers, form.length(len), form.around(from)))
            .map_err(|error| format!("{path}: {error}"))
    }

    /// The directory that holds everything of this service.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `MODEL_CACHE_DIR`.
    pub fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    /// Where the big part of a file is cached.
    pub fn cache_file(&self, folder: &str, name: &str) -> PathBuf {
        self.cache_dir().join(folder).join(format!("{name}.big"))
    }

    /// The same, once the file and its record are in place: a moment after a client has the last byte of a load that fills the
    /// cache.
    pub fn cached(&self, folder: &str, name: &str) -> PathBuf {
        let file = self.cache_file(folder, name);
        let record = file.with_file_name(format!("{name}.big.json"));
        eventually(Duration::from_secs(120), "the model is cached", || file.exists() && record.exists());
        file
    }

    /// `IMAGES_PATH`; at first there is no such file.
    pub fn images_path(&self) -> PathBuf {
        self.dir.path().join("images.enc")
    }

    /// `LOG_DIR`.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Whether the process is still there.
    pub fn is_running(&self) -> bool {
        lock(&self.child).try_wait().is_ok_and(|status| status.is_none())
    }

    /// Resident memory now.
    pub fn vm_rss_kib(&self) -> u64 {
        memory_kib(self.pid(), "VmRSS")
    }

    /// Peak of resident memory since the start or the last [`reset_hwm`](Self::reset_hwm).
    pub fn vm_hwm_kib(&self) -> u64 {
        memory_kib(self.pid(), "VmHWM")
    }

    /// Fails if the peak since the last [`reset_hwm`](Self::reset_hwm) exceeds `idle` by more than `limit`, all in KiB.
    pub fn peaked_at_most(&self, idle: u64, limit: u64, doing: &str) {
        let grown = self.vm_hwm_kib().saturating_sub(idle);
        println!("{doing}: {grown} KiB over idle");
        assert!(self.is_emulated() || grown <= limit, "{doing}: {grown} KiB over idle");
    }

    /// Whether it runs under an emulator, which accounts for most of its memory and time.
    pub fn is_emulated(&self) -> bool {
        let program = fs::read_link(format!("/proc/{}/exe", self.pid())).expect("the loader runs");
        program.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"qemu-"))
    }

    /// A sample of `/metrics`, by its name and labels; 0 if nothing has been counted under these labels.
    pub fn metric(&self, sample: &str) -> u64 {
        let document = self.get("/metrics").text();
        let value = document.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        if let Some(value) = value {
            return value.parse().expect("a number");
        }
        let family = sample.split_once('{').map(|(family, _)| format!("# TYPE {family} "));
        assert!(family.is_some_and(|family| document.contains(&family)), "no {sample} in\n{document}");
        0
    }

    /// How many bytes of models it has received from the CDN.
    pub fn downloaded(&self) -> u64 {
        self.metric(r#"loader_transfer_bytes_total{stage="download"}"#)
    }

    /// Resets the peak of resident memory.
    pub fn reset_hwm(&self) {
        reset_peak(self.pid());
    }

    /// Whether one of its threads has this name.
    pub fn has_thread(&self, name: &str) -> bool {
        let mut tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        tasks.any(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
    }

    /// Threads of the process.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).map_or(0, Iterator::count)
    }

    /// Uploads that are being received, and what was left of broken ones.
    pub fn spooled(&self) -> usize {
        fs::read_dir(self.cache_dir().join(".spool")).map_or(0, Iterator::count)
    }

    /// Open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Everything it has written: stdout and stderr of all starts, and the log files.
    pub fn log_text(&self) -> String {
        let mut text = String::from_utf8_lossy(&lock(&self.output)).into_owned();
        let files = fs::read_dir(self.log_dir()).into_iter().flatten().flatten();
        for file in files {
            text.push_str(&String::from_utf8_lossy(&fs::read(file.path()).unwrap_or_default()));
        }
        text
    }

    /// Runs a second process of the program to its end, in the same environment: for commands such as `loader
    /// healthcheck`.
    pub fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, b"")
    }

    /// The same with this standard input.
    pub fn run_with(&self, args: &[&str], stdin: &[u8]) -> Output {
        run_to_end(self.command(), args, stdin, START + END)
    }

    /// A second process of the program, not started yet.
    pub fn command(&self) -> Command {
        self.command_of(&self.binary)
    }

    /// The same of another program, which is a client of this service.
    pub fn command_of(&self, binary: &Path) -> Command {
        command(binary, self.dir.path(), &lock(&self.env), &self.bind)
    }

    /// Sends SIGTERM and returns how it ended; panics if it does not end.
    pub fn terminate(&self) -> ExitStatus {
        // An id that has been waited for may belong to another process by now.
        if self.is_running() {
            signal(self.pid(), libc::SIGTERM);
        }
        self.wait(END)
    }

    /// Sends SIGKILL, as a power cut would end it.
    pub fn kill(&self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Waits for the end; panics with what it wrote if that does not come.
    pub fn wait(&self, at_most: Duration) -> ExitStatus {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(status) = lock(&self.child).try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the loader did not end:\n{}", self.log_text());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sets a variable for the next [`restart`](Self::restart).
    pub fn set_env(&self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) {
        lock(&self.env).push((name.as_ref().to_owned(), value.as_ref().to_owned()));
    }

    /// Kills it if it runs, and starts it again in the same directories and on the same address.
    pub fn restart(&self) {
        self.kill();
        let child = spawn(&self.binary, self.dir.path(), &lock(&self.env), &self.bind, &self.output);
        *lock(&self.child) = child;
        wait_until_healthy(&self.child, &self.bind, &self.output).unwrap_or_else(|why| panic!("{why}"));
    }

    fn expect<T>(&self, result: Result<T, String>) -> T {
        result.unwrap_or_else(|why| panic!("{why}\nthe loader said:\n{}", self.log_text()))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("the loader said:\n{}", self.log_text());
        }
    }
}

fn load_request(folder: &str, name: &str) -> (String, Vec<u8>) {
    let body = json!({ "filename": name, "folder": folder });
    (format!("/load/{}", client::segment(name)), body.to_string().into_bytes())
}

fn wait_until_healthy(child: &Mutex<Child>, bind: &str, output: &Captured) -> Result<(), String> {
    let deadline = Instant::now() + START;
    let said = || {
        // The pipes' readers may be a moment behind the process.
        thread::sleep(Duration::from_millis(100));
        String::from_utf8_lossy(&lock(output)).into_owned()
    };
    loop {
        if let Some(status) = lock(child).try_wait().map_err(|error| error.to_string())? {
            return Err(format!("the loader ended during its start ({status}) and said:\n{}", said()));
        }
        let health = client::call(bind, Duration::from_secs(2), "GET", "/health", &[], b"");
        if health.as_ref().is_ok_and(|reply| reply.status == 200) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let _ = lock(child).kill();
            return Err(format!("/health did not answer in time ({health:?}); the loader said:\n{}", said()));
        }
        thread::sleep(Duration::from_millis(10));
    }
}
