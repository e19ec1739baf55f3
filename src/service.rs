//! What the handlers share: the API client, the unlock, and the configuration.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::api_client::ApiClient;
use crate::configuration::Configuration;
use crate::credentials::Credentials;
use crate::docker::Docker;
use crate::metrics::{self, Stage};
use crate::threads;
use crate::unlock::Unlock;
use crate::unlock_state::{Claim, UnlockMonitor, UnlockState, UnlockStatus};

/// The record of the last unlock, in the cache's root. No folder can have this name.
const UNLOCK_RECORD: &str = ".unlock.json";

/// The one instance in a process.
pub struct Service {
    /// Logs in, loads and uploads.
    pub client: Arc<ApiClient>,
    /// What the environment decides.
    pub configuration: Configuration,
    docker: Docker,
    monitor: UnlockMonitor,
}

impl Service {
    /// A service as configured.
    ///
    /// # Errors
    /// One line that names the environment variable whose file cannot be used.
    pub fn new(configuration: Configuration) -> Result<Self, String> {
        // The first look starts the clock.
        let _ = metrics::uptime();
        let client = Arc::new(ApiClient::new(&configuration)?);
        Ok(Self { client, configuration, docker: Docker::default(), monitor: UnlockMonitor::default() })
    }

    /// Starts the unlock, unless one runs or its images are there already. Answers the state; none if there is no archive.
    pub fn start_unlock(self: &Arc<Self>, credentials: Credentials) -> Option<UnlockState> {
        let status = self.monitor.status();
        if status.state.is_running() {
            return Some(status.state);
        }
        if !self.configuration.images_path.is_file() {
            return None;
        }
        match self.monitor.claim() {
            Claim::Running(state) => return Some(state),
            Claim::Started => {}
        }
        // From here on it is this caller's. Looking before the claim would let a second caller, who looked before the first
        // one's unlock ended, start another.
        // A panic here must not leave the claim behind.
        let done = catch_unwind(AssertUnwindSafe(|| self.unlock().is_done())).unwrap_or(false);
        if done {
            log::info!("the archive's images are loaded already");
            self.monitor.advance(UnlockState::Ready);
            return Some(UnlockState::Ready);
        }
        let service = Arc::clone(self);
        if let Err(error) = threads::spawn("unlock", move || service.unlock().run(credentials)) {
            self.monitor.fail(format!("the unlock cannot be started: {error}"));
        }
        Some(self.monitor.status().state)
    }

    /// Where the unlock is.
    #[must_use]
    pub fn unlock_status(&self) -> UnlockStatus {
        self.monitor.status()
    }

    /// What the service is about, in one line for `systemctl status`.
    pub fn summary(&self) -> String {
        let login = if self.client.user().is_some() { "logged in" } else { "not logged in" };
        let downloads = metrics::under_way(Stage::Download).get();
        format!("{login}; images: {}; downloads: {downloads}", self.monitor.status().state)
    }

    /// Puts everything away before the process ends.
    pub fn stop(&self) {
        self.docker.kill();
        self.client.stop();
    }

    fn unlock(&self) -> Unlock<'_> {
        Unlock {
            client: &self.client,
            docker: &self.docker,
            monitor: &self.monitor,
            images_path: &self.configuration.images_path,
            api_version: &self.configuration.api_version,
            record_path: self.configuration.model_cache_dir.join(UNLOCK_RECORD),
        }
    }
}
