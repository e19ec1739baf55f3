//! Where an unlock is: the states that `/unlock/status` reports, and the one place that changes them.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// The steps of an unlock in their order, and its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnlockState {
    /// Nothing was asked for since the start.
    Idle,
    /// Logging in to the Resource API.
    Authenticating,
    /// Fetching the key fragment.
    DownloadingKey,
    /// Checking that the archive decrypts with this key.
    Decrypting,
    /// Streaming the decrypted archive into `docker load`.
    LoadingImages,
    /// The images are in the Docker engine.
    Ready,
    /// The unlock failed; the message says why.
    Error,
}

impl UnlockState {
    /// Every state, in order.
    pub const ALL: [Self; 7] = [
        Self::Idle,
        Self::Authenticating,
        Self::DownloadingKey,
        Self::Decrypting,
        Self::LoadingImages,
        Self::Ready,
        Self::Error,
    ];

    /// Whether a worker is at work in this state.
    pub fn is_running(self) -> bool {
        !matches!(self, Self::Idle | Self::Ready | Self::Error)
    }
}

impl fmt::Display for UnlockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The JSON form is the name that operators know.
        self.serialize(f)
    }
}

/// Bytes of the archive's plaintext handed to docker so far, and in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 until the archive has been opened.
    pub total: u64,
}

/// What `GET /unlock/status` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnlockStatus {
    /// The current state.
    pub state: UnlockState,
    /// Why the last unlock failed; kept until the next one starts.
    pub error: Option<String>,
    /// How far the images are.
    pub progress: Progress,
}

/// The status of the one unlock that can run at a time, shared between handlers and the worker.
#[derive(Debug)]
pub struct UnlockMonitor(Mutex<UnlockStatus>);

impl Default for UnlockMonitor {
    fn default() -> Self {
        Self(Mutex::new(UnlockStatus { state: UnlockState::Idle, error: None, progress: Progress::default() }))
    }
}

impl UnlockMonitor {
    /// A copy of the status as it is now.
    pub fn status(&self) -> UnlockStatus {
        self.lock().clone()
    }

    /// Claims the unlock for the caller: if none runs, the state becomes [`UnlockState::Authenticating`] and the answer is
    /// [`Claim::Started`]. Check and start are one critical section, so of any number of callers exactly one is told to start.
    pub fn claim(&self) -> Claim {
        let mut status = self.lock();
        if status.state.is_running() {
            return Claim::Running(status.state);
        }
        *status = UnlockStatus { state: UnlockState::Authenticating, error: None, progress: Progress::default() };
        Claim::Started
    }

    /// Moves a running unlock to `state`.
    pub fn advance(&self, state: UnlockState) {
        self.lock().state = state;
    }

    /// Records how far the images are. `done` never goes backwards.
    pub fn progress(&self, done: u64, total: u64) {
        let mut status = self.lock();
        status.progress = Progress { done: done.max(status.progress.done), total };
    }

    /// Ends the unlock with `message`, a sentence for the technician.
    pub fn fail(&self, message: String) {
        let mut status = self.lock();
        status.state = UnlockState::Error;
        status.error = Some(message);
    }

    /// A panic while the lock was held leaves a status that is still whole, so it is used as it is.
    fn lock(&self) -> MutexGuard<'_, UnlockStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer to [`UnlockMonitor::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The caller must start the worker now.
    Started,
    /// A worker is at work, in this state.
    Running(UnlockState),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_their_names_on_the_wire() {
        let names: Vec<String> = UnlockState::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            ["idle", "authenticating", "downloading_key", "decrypting", "loading_images", "ready", "error"]
        );
    }

    #[test]
    fn of_many_callers_exactly_one_starts() {
        let monitor = UnlockMonitor::default();
        let started = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..50).map(|_| scope.spawn(|| monitor.claim())).collect();
            callers.into_iter().filter(|_| true).map(|c| c.join().unwrap()).filter(|c| *c == Claim::Started).count()
        });
        assert_eq!(started, 1);
    }

    #[test]
    fn error_is_kept_until_the_next_unlock() {
        let monitor = UnlockMonitor::default();
        monitor.claim();
        monitor.fail("no engine".into());
        assert_eq!(monitor.status().error.as_deref(), Some("no engine"));
        assert_eq!(monitor.claim(), Claim::Started);
        assert_eq!(monitor.status().error, None);
    }
}
