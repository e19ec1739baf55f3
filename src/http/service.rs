//! What requests work with.

use std::sync::Arc;

use crate::api_client::ApiClient;
use crate::configuration::Configuration;
use crate::metrics::{self, Stage};
use crate::unlock::Unlock;
use crate::upkeep::Upkeep;

/// The parts of the program that requests reach.
pub struct Service {
    pub(super) client: Arc<ApiClient>,
    pub(super) unlock: Arc<Unlock>,
    pub(super) upkeep: Arc<Upkeep>,
    pub(super) configuration: Configuration,
}

impl Service {
    /// A service as configured. The error is one line that names the variable whose file cannot be used.
    pub fn new(configuration: Configuration) -> Result<Self, String> {
        // The first call starts the clock.
        let _ = metrics::uptime();
        let client = Arc::new(ApiClient::new(&configuration)?);
        let unlock = Arc::new(Unlock::new(&configuration, Arc::clone(&client)));
        let upkeep = Upkeep::start(&configuration, &client, &unlock);
        Ok(Self { client, unlock, upkeep, configuration })
    }

    /// What the service is doing, in one line for `systemctl status`.
    pub(super) fn summary(&self) -> String {
        let login = if self.client.user().is_some() { "logged in" } else { "not logged in" };
        let downloads = metrics::under_way(Stage::Download).get();
        format!("{login}; images: {}; downloads: {downloads}", self.unlock.status().state)
    }

    /// Stops all work before the process ends.
    pub fn stop(&self) {
        self.unlock.stop();
        self.client.cache().stop();
    }
}
