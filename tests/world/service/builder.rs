//! How a loader is configured and started.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use std::time::Duration;

use super::super::process::{Captured, command, run_to_end, spawn};
use super::super::resource_api::ResourceApi;
use super::super::tcp::free_port;
use super::{END, START, Service, wait_until_healthy};

/// How to start a [`Service`].
pub struct ServiceBuilder {
    pub(super) binary: PathBuf,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) unix: bool,
    pub(super) host: &'static str,
    pub(super) timeout: Duration,
}

impl ServiceBuilder {
    /// Runs this program instead of the one that Cargo built.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }

    /// Sets a variable of the process; it overrides the builder's.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Uses this Resource API.
    pub fn api(self, api: &ResourceApi) -> Self {
        self.env("RESOURCE_API_URL", api.url())
    }

    /// Listens on a Unix socket in the service's directory.
    pub fn unix(mut self) -> Self {
        self.unix = true;
        self
    }

    /// Listens on all addresses of this machine, not only the loopback one.
    pub fn on_all_addresses(mut self) -> Self {
        self.host = "0.0.0.0";
        self
    }

    /// Limits how long one HTTP call of the test may take in all.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts it and waits until `/health` answers; if it does not, panics with what the process wrote.
    pub fn start(self) -> Service {
        self.try_start().unwrap_or_else(|why| panic!("{why}"))
    }

    /// As [`start`](Self::start); an error says what went wrong and what the process wrote.
    pub fn try_start(self) -> Result<Service, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for tries in 0.. {
            let bind = self.bind(dir.path());
            let output = Captured::default();
            let child = Mutex::new(spawn(&self.binary, dir.path(), &self.env, &bind, &output));
            match wait_until_healthy(&child, &bind, &output) {
                Ok(()) => {
                    let Self { binary, env, timeout, .. } = self;
                    let env = Mutex::new(env);
                    return Ok(Service { dir, binary, env, bind, timeout, child, output });
                }
                // Another process took the port after it was chosen.
                Err(why) if why.contains("in use") && tries < 3 => {}
                Err(why) => return Err(why),
            }
        }
        unreachable!("the loop returns")
    }

    /// Runs the program to its end with these arguments and this standard input: for subcommands, and starts that fail.
    pub fn run(self, args: &[&str], stdin: &[u8]) -> Output {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let command = command(&self.binary, dir.path(), &self.env, &self.bind(dir.path()));
        run_to_end(command, args, stdin, START + END)
    }

    fn bind(&self, dir: &Path) -> String {
        if self.unix {
            format!("unix:{}", dir.join("loader.sock").display())
        } else {
            format!("{}:{}", self.host, free_port())
        }
    }
}
