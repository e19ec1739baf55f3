//! The state of the unlock, as `/unlock/status` reports it.

use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};

use serde::Serialize;

use crate::threads::lock;

/// The steps of an unlock, in order, and its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnlockState {
    /// No unlock since the start.
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

    /// Whether a worker runs in this state.
    pub fn is_running(self) -> bool {
        !matches!(self, Self::Idle | Self::Ready | Self::Error)
    }
}

impl fmt::Display for UnlockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The same name as in JSON.
        self.serialize(f)
    }
}

/// How much of the archive's plaintext docker has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnlockProgress {
    /// Bytes read.
    pub done: u64,
    /// All bytes; 0 until the archive is open.
    pub total: u64,
}

/// The body of `GET /unlock/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnlockStatus {
    /// The current state.
    pub state: UnlockState,
    /// Why the last unlock failed; kept until the next one starts.
    pub error: Option<String>,
    /// How far the archive has been read.
    pub progress: UnlockProgress,
}

/// The status of the unlock, shared by handlers and the worker.
#[derive(Debug)]
pub struct UnlockMonitor {
    status: Mutex<UnlockStatus>,
    changed: Condvar,
}

impl Default for UnlockMonitor {
    fn default() -> Self {
        let status = UnlockStatus { state: UnlockState::Idle, error: None, progress: UnlockProgress::default() };
        Self { status: Mutex::new(status), changed: Condvar::new() }
    }
}

impl UnlockMonitor {
    /// The current status.
    pub fn status(&self) -> UnlockStatus {
        lock(&self.status).clone()
    }

    /// Claims the unlock for the caller. Check and start are one critical section, so that of any number of callers exactly
    /// one gets [`Claim::Started`].
    pub fn claim(&self) -> Claim {
        let mut status = lock(&self.status);
        if status.state.is_running() {
            return Claim::Running(status.state);
        }
        *status = UnlockStatus { state: UnlockState::Authenticating, error: None, progress: UnlockProgress::default() };
        Claim::Started
    }

    /// Sets [`UnlockState::Ready`], for images that are there although nobody has asked for an unlock since the start.
    pub fn set_ready_if_idle(&self) {
        let mut status = lock(&self.status);
        if status.state == UnlockState::Idle {
            status.state = UnlockState::Ready;
        }
    }

    /// Waits until no unlock is running, and returns the state.
    pub fn wait_until_ended(&self) -> UnlockState {
        let ended = self.changed.wait_while(lock(&self.status), |status| status.state.is_running());
        ended.unwrap_or_else(PoisonError::into_inner).state
    }

    /// Moves a running unlock to `state`.
    pub fn advance(&self, state: UnlockState) {
        lock(&self.status).state = state;
        self.changed.notify_all();
    }

    /// Reports progress. `done` never decreases.
    pub fn progress(&self, done: u64, total: u64) {
        let mut status = lock(&self.status);
        status.progress = UnlockProgress { done: done.max(status.progress.done), total };
    }

    /// Ends the unlock with an error message.
    pub fn fail(&self, message: String) {
        let mut status = lock(&self.status);
        status.state = UnlockState::Error;
        status.error = Some(message);
        self.changed.notify_all();
    }
}

/// The result of [`UnlockMonitor::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The caller must start the worker; the state is [`UnlockState::Authenticating`].
    Started,
    /// A worker is running, in this state.
    Running(UnlockState),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_in_snake_case() {
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
            callers.into_iter().map(|caller| caller.join().unwrap()).filter(|claim| *claim == Claim::Started).count()
        });
        assert_eq!(started, 1);
    }

    #[test]
    fn the_error_is_kept_until_the_next_unlock() {
        let monitor = UnlockMonitor::default();
        monitor.claim();
        monitor.fail("no engine".into());
        assert_eq!(monitor.status().error.as_deref(), Some("no engine"));
        assert_eq!(monitor.claim(), Claim::Started);
        assert_eq!(monitor.status().error, None);
    }
}
