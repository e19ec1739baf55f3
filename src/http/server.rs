//! Who answers a request: the accept loop itself what is in memory, a handler what may block.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tiny_http::Method;

use super::Service;
use super::exchange::Exchange;
use super::gate::{Gate, Limits, Listener};
use super::handlers::Handlers;
use super::json::admit_json;
use super::origin::{Sender, Way};
use super::pulse::{Pulse, Watch};
use super::reply::Reply;
use super::router::{Route, RouteError, methods_of, route};
use super::routes;
use crate::cancellation::Cancellation;
use crate::logging::Current;
use crate::systemd;

/// How long the accept loop waits for a request before it looks around.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// How often systemd is told what has changed.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// The service on its listeners.
pub struct Server {
    service: Arc<Service>,
    listeners: Vec<Listener>,
    stop: Arc<AtomicBool>,
}

/// What is left when the accept loop has ended: the handlers with their last transfers.
pub struct Running {
    handlers: Arc<Handlers>,
}

impl Running {
    /// Waits for the handlers to finish, but no longer than `patience`. Answers whether all did.
    pub fn finish_within(self, patience: Duration) -> bool {
        self.handlers.finish_within(patience)
    }
}

impl Server {
    /// Gets ready to serve. Setting `stop` ends [`serve`](Self::serve) soon after.
    pub fn new(service: Arc<Service>, listeners: Vec<Listener>, stop: Arc<AtomicBool>) -> Self {
        Self { service, listeners, stop }
    }

    /// Serves until it is told to stop. Then no more connections are accepted.
    ///
    /// # Errors
    /// The operating system's, when it refuses a thread or a socket at the start.
    pub fn serve(self) -> io::Result<Running> {
        let limits = Limits {
            connections: self.service.configuration.max_connections,
            handlers: self.service.configuration.handler_threads,
            stall: self.service.configuration.client_stall_limit,
        };
        let service = Arc::clone(&self.service);
        let handlers = Handlers::new(limits.handlers, Box::new(move |exchange| handle(&service, exchange)));
        let pulse = Arc::new(Pulse::default());
        let (gate, mut requests) =
            Gate::open(self.listeners, &limits, Arc::clone(&handlers), Arc::clone(&pulse), self.stop)?;
        let mut watch = Watch::new("the thread that reads requests", Arc::clone(&gate.pulse));
        let dispatcher = Dispatcher { service: self.service, gate, handlers };
        let mut reports = Reports::begin();
        loop {
            pulse.beat();
            watch.look();
            reports.report(&dispatcher.service);
            // What came in before the gate was closed is answered.
            let stopping = dispatcher.gate.is_closed();
            match requests.next(if stopping { Duration::ZERO } else { LOOK_AROUND }) {
                Some((method, target, number)) => {
                    if let Some(exchange) = dispatcher.gate.take(number) {
                        dispatcher.dispatch(&method, &target, exchange);
                    }
                }
                None if stopping => {
                    systemd::notify("STOPPING=1");
                    return Ok(Running { handlers: dispatcher.handlers });
                }
                None => {}
            }
        }
    }
}

/// What systemd is told of the accept loop: that it is ready, that it lives, and what the service is about.
struct Reports {
    watchdog: Option<Duration>,
    /// When systemd was last told that the loop lives.
    told: Instant,
    summary: String,
}

impl Reports {
    fn begin() -> Self {
        systemd::notify("READY=1");
        Self { watchdog: systemd::watchdog_interval(), told: Instant::now(), summary: String::new() }
    }

    fn report(&mut self, service: &Service) {
        if self.told.elapsed() < self.watchdog.unwrap_or(REPORT_EVERY).min(REPORT_EVERY) {
            return;
        }
        self.told = Instant::now();
        if self.watchdog.is_some() {
            systemd::notify("WATCHDOG=1");
        }
        let summary = service.summary();
        if self.summary != summary {
            systemd::notify(&systemd::status(&summary));
            self.summary = summary;
        }
    }
}

/// Hands requests to those who answer them.
struct Dispatcher {
    service: Arc<Service>,
    gate: Gate,
    handlers: Arc<Handlers>,
}

impl Dispatcher {
    /// Never waits for anything.
    fn dispatch(&self, method: &Method, target: &str, mut exchange: Box<Exchange>) {
        let _current = Current::enter(exchange.id());
        let reply = match admit(&self.service, method, target, &exchange) {
            Err(reply) => reply,
            Ok(route) if route.answers_from_memory() => {
                let work = || answer(&self.service, route, &mut exchange);
                match catch_unwind(AssertUnwindSafe(work)) {
                    Ok(reply) => reply,
                    // Dropping the exchange answers.
                    Err(_) => return,
                }
            }
            Ok(route) => {
                exchange.route = Some(route);
                if !exchange.body_has_begun() {
                    self.gate.await_body(exchange);
                } else if let Err(exchange) = self.handlers.submit(exchange) {
                    exchange.answer_busy();
                }
                return;
            }
        };
        if let Some(rest) = exchange.answer_at_once(reply) {
            // A client that does not read what it asked for. Dropping the rest ends its connection.
            drop(self.handlers.submit(Box::new(rest)));
        }
    }
}

/// The life of a request in a handler. A panic on the way is an answer of 500, given when the exchange is dropped.
fn handle(service: &Arc<Service>, exchange: Box<Exchange>) {
    let _current = Current::enter(exchange.id());
    // Nobody else wants what is asked of servers for this client. What changes something there goes on without it.
    let is_asking = matches!(exchange.route, Some(Route::Load(_) | Route::Login));
    let _cancellation = is_asking.then(|| Cancellation::enter(exchange.connection().cancelled()));
    let work = || {
        let Some(mut exchange) = exchange.finish_answer() else { return };
        if let Some(route) = exchange.route.take() {
            let reply = answer(service, route, &mut exchange);
            exchange.answer(reply);
        }
    };
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        log::error!("a handler panicked; its client was told that the request failed");
    }
}

/// Where a request leads. What can be refused by its head alone is refused here, before a byte of its body is waited for.
fn admit(service: &Service, method: &Method, target: &str, exchange: &Exchange) -> Result<Route, Reply> {
    let refused = |error| match error {
        RouteError::NotFound => Reply::error(404, "Not Found"),
        RouteError::BadEncoding => Reply::error(422, "the path is not percent-encoded UTF-8"),
        RouteError::MethodNotAllowed { allow } => Reply::error(405, "Method Not Allowed").with_header("Allow", allow),
    };
    if *method == Method::Options {
        return Err(methods_of(target).map_or_else(refused, Reply::options));
    }
    let route = route(method, target).map_err(refused)?;
    let sender = Sender {
        site: exchange.header("sec-fetch-site"),
        origin: exchange.header("origin"),
        host: exchange.header("host"),
        user_agent: exchange.header("user-agent"),
        way: Way::of(exchange.connection().address),
    };
    let objection = sender.objection(route.changes_something(), &service.configuration);
    if let (false, Some(objection)) = (route.is_public(), objection) {
        return Err(Reply::error(403, objection));
    }
    if !route.is_public() && !is_authorized(service, exchange) {
        let detail = "this service needs Authorization: Bearer with its client token";
        return Err(Reply::error(401, detail).with_header("WWW-Authenticate", "Bearer"));
    }
    match &route {
        Route::Login | Route::Unlock => admit_json(exchange)?,
        Route::Load(_) => routes::admit_load(exchange)?,
        Route::Upload(path_name) => routes::admit_upload(service, exchange, path_name)?,
        _ => {}
    }
    Ok(route)
}

fn answer(service: &Arc<Service>, route: Route, exchange: &mut Exchange) -> Reply {
    match route {
        Route::Page => routes::page(),
        Route::Docs => routes::docs(),
        Route::OpenApi => routes::openapi(),
        Route::Metrics => routes::metrics(service),
        Route::Health => routes::health(),
        Route::Status => routes::status(service),
        Route::Login => routes::login(service, exchange),
        Route::Load(path_name) => routes::load(service, exchange, path_name),
        Route::Upload(path_name) => routes::upload(service, exchange, path_name),
        Route::Unlock => routes::unlock(service, exchange),
        Route::UnlockStatus => routes::unlock_status(service),
    }
}

fn is_authorized(service: &Service, exchange: &Exchange) -> bool {
    let Some(token) = &service.configuration.client_token else { return true };
    let (scheme, candidate) =
        exchange.header("authorization").and_then(|value| value.split_once(' ')).unwrap_or_default();
    scheme.eq_ignore_ascii_case("bearer") && token.matches(candidate.trim())
}
