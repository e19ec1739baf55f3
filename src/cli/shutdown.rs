//! SIGTERM and SIGINT.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::threads;

/// A flag that the first of the two signals sets. The second ends the process at once.
///
/// # Errors
/// The operating system's, if signals cannot be watched.
pub fn on_signal() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let flag = Arc::clone(&stop);
    threads::spawn("signals", move || {
        for signal in &mut signals {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(128 + signal);
            }
            log::info!("stopping: no more connections are accepted, running transfers may finish");
        }
    })?;
    Ok(stop)
}
