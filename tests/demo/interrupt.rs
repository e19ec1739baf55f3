//! Ctrl-C: the demo ends in order, so that no process and no temporary file is left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::{process, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::world::service::Service;

/// Whether the demo was asked to end, and whom to tell.
#[derive(Clone, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: AtomicBool,
    /// Weak, because the service must end with the session.
    service: OnceLock<Weak<Service>>,
}

impl Interrupt {
    /// Listens to signals from now on. The second one ends the process at once.
    pub fn listen(&self) -> Result<(), String> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| format!("signals: {error}"))?;
        let shared = self.shared.clone();
        thread::spawn(move || {
            for _ in signals.forever() {
                if shared.asked.swap(true, Ordering::SeqCst) {
                    process::exit(130);
                }
                shared.end_service();
            }
        });
        Ok(())
    }

    /// Whether there was a signal.
    pub fn asked(&self) -> bool {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// From now on a signal ends this service, and with it the transfer that the demo is waiting for.
    pub fn reaches(&self, service: &Arc<Service>) {
        let _ = self.shared.service.set(Arc::downgrade(service));
        if self.asked() {
            self.shared.end_service();
        }
    }
}

impl Shared {
    fn end_service(&self) {
        if let Some(service) = self.service.get().and_then(Weak::upgrade) {
            service.kill();
        }
    }
}
