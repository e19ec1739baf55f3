//! `loader` without a command: the service, from its start to its end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::command::{Failure, configuration};
use crate::configuration::BindAddress;
use crate::http::{self, Listener, Service};
use crate::{logging, systemd, threads};

/// How long running transfers may continue after a signal.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

pub(super) fn serve() -> Result<(), Failure> {
    let configuration = configuration()?;
    logging::start(configuration.log_level, configuration.log_dir.as_deref());
    let stop = stop_on_signal().map_err(|error| Failure::runtime(format!("signals cannot be watched: {error}")))?;
    let default_salts = configuration.default_salts().join(", ");
    let has_token = configuration.client_token.is_some();
    // Before any file is touched: at an address in use another loader is serving, perhaps with the same files.
    let listeners = listeners(&configuration.bind_address)?;
    let service = Arc::new(Service::new(configuration).map_err(Failure::setup)?);

    for listener in &listeners {
        log::info!("loader {} listens on {}", env!("CARGO_PKG_VERSION"), listener.address());
    }
    if !default_salts.is_empty() {
        log::warn!("{default_salts}: the default is public and protects nothing; set the salts of your installation");
    }
    for listener in listeners.iter().filter(|listener| !has_token && listener.is_open_to_the_network()) {
        log::warn!(
            "{} is open to the network and CLIENT_TOKEN is not set: everybody there can log in, load models and upload them",
            listener.address()
        );
    }
    let draining = http::serve(Arc::clone(&service), listeners, stop)
        .map_err(|error| Failure::runtime(format!("requests cannot be served: {error}")))?;
    if !draining.finish_within(FINISH_LIMIT) {
        log::warn!("transfers that did not finish within {} s are cut off", FINISH_LIMIT.as_secs());
    }
    service.stop();
    log::info!("stopped");
    log::logger().flush();
    Ok(())
}

/// The sockets that systemd has opened, or else one at `BIND_ADDR`.
fn listeners(bind_address: &BindAddress) -> Result<Vec<Listener>, Failure> {
    if let Some(sockets) = systemd::sockets().map_err(Failure::setup)? {
        let prepared = sockets.into_iter().map(|socket| match socket {
            systemd::Socket::Tcp(listener) => Listener::Tcp(listener).prepared(),
            systemd::Socket::Unix(listener) => Listener::Unix(listener, None).prepared(),
        });
        let listeners: io::Result<Vec<Listener>> = prepared.collect();
        return listeners
            .map_err(|error| Failure::setup(format!("LISTEN_FDS names a socket that cannot be used: {error}")));
    }
    let listener = Listener::bind(bind_address)
        .map_err(|error| Failure::setup(format!("BIND_ADDR {bind_address} cannot be listened on: {error}")))?;
    Ok(vec![listener])
}

/// A flag that the first SIGTERM or SIGINT sets. The second ends the process at once.
fn stop_on_signal() -> io::Result<Arc<AtomicBool>> {
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
