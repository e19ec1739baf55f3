//! What the service does by itself, so that a box needs no person after its start: it logs in, unlocks, and keeps the models in
//! `KEEP` current.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::api_client::{ApiClient, CredentialsSource};
use crate::configuration::Configuration;
use crate::names::ModelName;
use crate::pauses::{Pauses, random_up_to};
use crate::threads::{self, lock};
use crate::unlock::Unlock;
use crate::unlock_state::UnlockState;

/// The pauses after an unlock that failed.
const UNLOCK_PAUSES: Pauses = Pauses::new(Duration::from_secs(5), Duration::from_secs(5 * 60));

/// The pause after a model could not be brought up to date; it doubles up to `KEEP_SECONDS`.
const KEEP_PAUSE: Duration = Duration::from_secs(2);

/// The key of the images' problem. No model has a name without a slash.
const IMAGES: &str = "images";

const NO_ARCHIVE: &str = "UNLOCK_AT_START is set, but there is no archive at IMAGES_PATH";

/// The background work.
pub struct Upkeep {
    client: Arc<ApiClient>,
    unlock: Arc<Unlock>,
    unlocks: bool,
    keep: Vec<ModelName>,
    keep_every: Duration,
    /// Why a model in `KEEP` is not current, or why there are no images.
    problems: Mutex<BTreeMap<String, String>>,
}

impl Upkeep {
    /// Starts what the configuration asks for.
    pub fn start(configuration: &Configuration, client: &Arc<ApiClient>, unlock: &Arc<Unlock>) -> Arc<Self> {
        let upkeep = Arc::new(Self {
            client: Arc::clone(client),
            unlock: Arc::clone(unlock),
            unlocks: configuration.unlock_at_start,
            keep: configuration.keep.clone(),
            keep_every: configuration.keep_every,
            problems: Mutex::default(),
        });
        if let Some(path) = &configuration.credentials_path {
            client.log_in_in_background(CredentialsSource::File(path.clone()));
        }
        upkeep.spawn("unlock", |upkeep| upkeep.unlock_images());
        if !upkeep.keep.is_empty() {
            upkeep.spawn("keep", |upkeep| upkeep.keep_models());
        }
        upkeep
    }

    /// What the box still lacks, a sentence each. Empty if it is ready.
    pub fn waiting(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        if self.client.user().is_none() {
            let problem = self.client.login_problem();
            waiting.push(problem.unwrap_or_else(|| "nobody is logged in".into()));
        }
        let problems = lock(&self.problems);
        let status = self.unlock.status();
        if self.unlocks && status.state != UnlockState::Ready {
            let problem = status.error.or_else(|| problems.get(IMAGES).cloned());
            waiting.push(format!("the images are not loaded: {}", problem.unwrap_or_else(|| status.state.to_string())));
        }
        for model in self.keep.iter().filter(|model| !self.client.is_at_hand(model)) {
            let why = problems.get(&model.to_string()).map_or("it is being downloaded", String::as_str);
            waiting.push(format!("{model} is not at hand: {why}"));
        }
        waiting
    }

    fn spawn(self: &Arc<Self>, name: &str, work: impl FnOnce(&Self) + Send + 'static) {
        let upkeep = Arc::clone(self);
        if let Err(error) = threads::spawn(name, move || work(&upkeep)) {
            log::error!("the thread {name} cannot be started: {error}");
        }
    }

    fn unlock_images(&self) {
        // Comes before the login: if the engine has the images, neither the Resource API nor the key is needed.
        self.unlock.find_loaded_images();
        let mut pauses = UNLOCK_PAUSES;
        while self.unlocks && self.unlock.status().state != UnlockState::Ready {
            self.client.wait_for_login();
            let pause = match self.unlock.start(None) {
                Some(_) if self.unlock.wait_until_ended() == UnlockState::Ready => return,
                Some(_) => self.client.pause(&mut pauses),
                None => {
                    let pause = pauses.next();
                    log::warn!("{NO_ARCHIVE}; the next try is in {} s", pause.as_secs());
                    lock(&self.problems).insert(IMAGES.into(), NO_ARCHIVE.into());
                    pause
                }
            };
            std::thread::sleep(pause);
        }
    }

    fn keep_models(&self) {
        self.client.wait_for_login();
        let mut pauses = Pauses::new(KEEP_PAUSE, self.keep_every);
        loop {
            let mut all_are_current = true;
            for model in &self.keep {
                let kept = self.client.keep_current(model);
                let mut problems = lock(&self.problems);
                match kept {
                    Ok(()) => drop(problems.remove(&model.to_string())),
                    Err(error) => {
                        log::warn!("{model}, which KEEP names, is not current: {error}");
                        problems.insert(model.to_string(), error.to_string());
                        all_are_current = false;
                    }
                }
            }
            let pause = if all_are_current {
                pauses = Pauses::new(KEEP_PAUSE, self.keep_every);
                // Jitter keeps a fleet that has started together from asking together.
                self.keep_every.mul_f64(0.9) + random_up_to(self.keep_every.mul_f64(0.2))
            } else {
                self.client.pause(&mut pauses)
            };
            self.client.wait_for_stale_model(pause);
        }
    }
}
