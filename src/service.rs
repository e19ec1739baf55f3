//! What the handlers share: the API client, the unlock, and the configuration.

use std::sync::Arc;

use crate::api_client::ApiClient;
use crate::configuration::Configuration;
use crate::credentials::Credentials;
use crate::unlock_state::{Claim, UnlockMonitor, UnlockState, UnlockStatus};

/// The one instance in a process.
pub struct Service {
    /// Logs in, loads and uploads.
    pub client: ApiClient,
    /// What the environment decides.
    pub configuration: Configuration,
    unlock: UnlockMonitor,
}

impl Service {
    /// A service as configured.
    ///
    /// # Errors
    /// One line that names the environment variable whose file cannot be used.
    pub fn new(configuration: Configuration) -> Result<Self, String> {
        let client = ApiClient::new(&configuration)?;
        Ok(Self { client, configuration, unlock: UnlockMonitor::default() })
    }

    /// Starts the unlock, unless one runs. Answers the state; none if there is no archive.
    pub fn unlock(self: &Arc<Self>, credentials: Credentials) -> Option<UnlockState> {
        let status = self.unlock.status();
        if status.state.is_running() {
            return Some(status.state);
        }
        if !self.configuration.images_path.is_file() {
            return None;
        }
        match self.unlock.claim() {
            Claim::Running(state) => Some(state),
            Claim::Started => {
                let _ = credentials;
                self.unlock.fail("unlocking is not part of this version".into());
                Some(UnlockState::Error)
            }
        }
    }

    /// Puts everything away before the process ends.
    pub fn stop(&self) {
        self.client.stop();
    }

    /// Where the unlock is.
    #[must_use]
    pub fn unlock_status(&self) -> UnlockStatus {
        self.unlock.status()
    }
}
