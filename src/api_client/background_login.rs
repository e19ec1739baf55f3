//! Login without a person: tried again until somebody is logged in.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::ApiClient;
use super::login::LoginError;
use crate::constants::MAX_JSON_BYTES;
use crate::credentials::Credentials;
use crate::pauses::{Pauses, random_up_to};
use crate::threads::{self, lock};

/// The pauses after a failure that may pass.
const PAUSES: Pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(5 * 60));

/// The longest pause while the Resource API does not answer at all, or cannot be asked because the clock is wrong. Then a try costs
/// it nothing, and a box must be ready soon after its uplink has returned or its clock was set. The 200 boxes of [`SPREAD`] come
/// back with 10 logins a second.
const SILENCE: Duration = Duration::from_secs(28);

/// The pause after the Resource API refused the credentials.
const REFUSED: Duration = Duration::from_secs(15 * 60);

/// While credentials are refused, their file is compared with them this often.
const FILE_CHECK: Duration = Duration::from_secs(10);

/// How long a person's request waits for the login that it started.
const SOON: Duration = Duration::from_secs(5);

/// The first login comes at a random moment of this time after the start. When the power returns to a thousand boxes, they all
/// start in the same second. Of 200 boxes, 21 logins fall into one second in 3 of 1,000 cases (with 24 s, in 20).
const SPREAD: Duration = Duration::from_secs(28);

/// Where the credentials of a background login come from.
#[derive(Debug)]
pub enum CredentialsSource {
    /// A JSON file with `email` and `password`, read for each try, so that a changed password needs no restart.
    File(PathBuf),
    /// A person who logged in while the Resource API was away.
    Person(Credentials),
}

impl CredentialsSource {
    /// The error is a sentence that quotes nothing from the file.
    fn read(&self) -> Result<Credentials, String> {
        let path = match self {
            Self::Person(credentials) => return Ok(credentials.clone()),
            Self::File(path) => path,
        };
        let mut json = Zeroizing::new(Vec::new());
        let read = File::open(path).and_then(|file| file.take(MAX_JSON_BYTES).read_to_end(&mut json));
        read.map_err(|error| format!("CREDENTIALS_PATH names {}, which cannot be read: {error}", path.display()))?;
        serde_json::from_slice(&json).map_err(|_| {
            let path = path.display();
            format!("CREDENTIALS_PATH names {path}, which is not a JSON object with the texts email and password")
        })
    }
}

enum Failure {
    /// The credentials are wrong.
    Refused(Credentials, String),
    /// The next try may succeed.
    Other(String),
}

impl ApiClient {
    /// Starts the background login, unless one is running already.
    pub fn log_in_in_background(self: &Arc<Self>, source: CredentialsSource) {
        let mut background = lock(&self.background_login);
        if background.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let client = Arc::clone(self);
        let work = move || {
            client.log_in_until_it_succeeds(&source);
            lock(&client.background_login).problem = None;
        };
        match threads::spawn("login", work) {
            Ok(thread) => background.thread = Some(thread),
            Err(error) => {
                log::error!("the login in the background cannot be started: {error}");
                background.problem = Some(error.to_string());
            }
        }
    }

    /// Logs in with credentials that a person gave. While the Resource API is away, it continues in the background.
    pub fn log_in_soon(self: &Arc<Self>, credentials: Credentials) {
        let client = Arc::clone(self);
        let work = move || match client.login(credentials.clone()) {
            Ok(()) => {}
            Err(error) if error.is_away() => {
                log::warn!("{error}; the login is tried again in the background");
                client.log_in_in_background(CredentialsSource::Person(credentials));
            }
            Err(error) => log::warn!("{error}"),
        };
        match threads::spawn("login", work) {
            // It mostly takes a moment, and the next request is likely to need it.
            Ok(_) => drop(self.login.wait(SOON)),
            Err(error) => log::warn!("the login cannot be started: {error}"),
        }
    }

    /// The pause before something that failed is tried again.
    pub fn pause(&self, pauses: &mut Pauses) -> Duration {
        pause(pauses, self.api.outage.is_silence())
    }

    /// Waits until somebody is logged in.
    pub fn wait_for_login(&self) {
        while !self.login.wait(Duration::from_secs(3600)) {}
    }

    /// Why nobody is logged in, if the background login has failed so far.
    pub fn login_problem(&self) -> Option<String> {
        lock(&self.background_login).problem.clone()
    }

    fn log_in_until_it_succeeds(&self, source: &CredentialsSource) {
        if matches!(source, CredentialsSource::File(_)) && self.login.wait(random_up_to(SPREAD)) {
            return;
        }
        let mut pauses = PAUSES;
        loop {
            let (problem, refused) = match self.try_login_in_background(source) {
                Ok(()) => return,
                Err(Failure::Refused(credentials, problem)) => (problem, Some(credentials)),
                Err(Failure::Other(problem)) => (problem, None),
            };
            lock(&self.background_login).problem = Some(problem.clone());
            let is_logged_in = match refused {
                Some(refused) => {
                    let minutes = REFUSED.as_secs() / 60;
                    log::error!("{problem}; correct the credentials (the next try is in {minutes} minutes)");
                    self.wait_for_other_credentials(source, &refused)
                }
                None => {
                    let pause = self.pause(&mut pauses);
                    log::warn!("{problem}; the next try is in {} s", pause.as_secs().max(1));
                    self.login.wait(pause)
                }
            };
            if is_logged_in {
                return;
            }
        }
    }

    fn try_login_in_background(&self, source: &CredentialsSource) -> Result<(), Failure> {
        let credentials = source.read().map_err(Failure::Other)?;
        match self.prove(credentials.clone()) {
            Ok(login) => {
                self.login.set_unless_there_is_one(login);
                Ok(())
            }
            Err(LoginError::Api(error)) if error.is_refusal() => {
                Err(Failure::Refused(credentials, LoginError::Api(error).to_string()))
            }
            Err(error) => Err(Failure::Other(error.to_string())),
        }
    }

    /// Waits for [`REFUSED`], or until the source has other credentials than the refused ones. Returns whether somebody is
    /// logged in.
    fn wait_for_other_credentials(&self, source: &CredentialsSource, refused: &Credentials) -> bool {
        for _ in 0..REFUSED.as_secs() / FILE_CHECK.as_secs() {
            if self.login.wait(FILE_CHECK) {
                return true;
            }
            if source.read().is_ok_and(|credentials| !credentials.are(refused)) {
                return false;
            }
        }
        false
    }
}

fn pause(pauses: &mut Pauses, is_silent: bool) -> Duration {
    let pause = pauses.next();
    if is_silent { pause.min(SILENCE / 2 + random_up_to(SILENCE / 2)) } else { pause }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is expected in 30 of 10,000 cases.
    #[test]
    fn of_two_hundred_boxes_twenty_one_hardly_ever_log_in_within_a_second() {
        let is_crowded = || {
            let mut moments: Vec<Duration> = (0..200).map(|_| random_up_to(SPREAD)).collect();
            moments.sort_unstable();
            moments.windows(21).any(|logins| logins[20] - logins[0] <= Duration::from_secs(1))
        };
        let crowded = (0..10_000).filter(|_| is_crowded()).count();
        assert!(crowded < 80, "{crowded} of 10,000");
    }

    /// Even after days, a box is ready within half a minute of its uplink's return.
    #[test]
    fn pauses_stay_short_while_the_api_is_silent_and_only_then() {
        let mut pauses = PAUSES;
        assert!((0..100).all(|_| pause(&mut pauses, true) <= SILENCE));
        assert!(pause(&mut pauses, true) >= SILENCE / 2);
        assert!(pause(&mut pauses, false) >= Duration::from_secs(150));
    }
}
