//! Decides who answers a request: the accept loop if the answer is in memory, else a handler.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tiny_http::Method;

use super::exchange::Exchange;
use super::gate::Gate;
use super::handlers::Handlers;
use super::origin::{Origin, Transport};
use super::reply::Reply;
use super::routes::{self, AnsweredBy, Route};
use super::service::Service;
use crate::cancellation::Cancellation;
use crate::logging::Current;

pub(super) struct Dispatcher {
    pub(super) service: Arc<Service>,
    pub(super) gate: Arc<Gate>,
    pub(super) handlers: Arc<Handlers>,
}

impl Dispatcher {
    /// Answers the request or hands it on. It never blocks.
    pub(super) fn dispatch(&self, method: &Method, target: &str, mut exchange: Box<Exchange>) {
        let _current = Current::enter(exchange.id());
        let reply = match self.admit(method, target, &mut exchange) {
            Err(reply) => reply,
            Ok((route, parameter)) => match route.answered_by {
                AnsweredBy::AcceptLoop(answer) => match catch_unwind(AssertUnwindSafe(|| answer(&self.service))) {
                    Ok(reply) => reply,
                    // Dropping the exchange answers 500.
                    Err(_) => return,
                },
                AnsweredBy::Handler(answer) => {
                    let service = Arc::clone(&self.service);
                    exchange.task = Some(Box::new(move |mut exchange| {
                        let cancelled = exchange.connection().cancelled();
                        let _cancellation = route.cancellable.then(|| Cancellation::enter(cancelled));
                        let reply = answer(&service, &mut exchange, &parameter).unwrap_or_else(|error| error);
                        exchange.answer(reply);
                    }));
                    if !exchange.body_has_begun() {
                        self.gate.await_body(exchange);
                    } else if let Err(exchange) = self.handlers.submit(exchange) {
                        exchange.answer_busy();
                    }
                    return;
                }
            },
        };
        if let Some(unsent) = exchange.answer_at_once(reply) {
            // The client is slow to read. If no handler has time for it, its connection ends.
            drop(self.handlers.submit(Box::new(unsent)));
        }
    }

    /// The request's route and path parameter. Whatever the head alone shows to be wrong is refused before the client is
    /// asked for the body.
    fn admit(&self, method: &Method, target: &str, exchange: &mut Exchange) -> Result<(&'static Route, String), Reply> {
        if (method, target) == (&Method::Options, "*") {
            return Err(Reply::options(routes::all_methods()));
        }
        let (route, parameter) = routes::find(target)?;
        exchange.leads_to(route.pattern, route.polled);
        if *method == Method::Options {
            return Err(Reply::options(route.allow));
        }
        if !route.allows(method.as_str()) {
            return Err(Reply::error(405, "Method Not Allowed").with_header("Allow", route.allow));
        }
        if !route.public {
            let origin = Origin {
                site: exchange.header("sec-fetch-site"),
                origin: exchange.header("origin"),
                host: exchange.header("host"),
                user_agent: exchange.header("user-agent"),
                transport: Transport::of(exchange.connection().address),
            };
            if let Some(objection) = origin.objection(route.is_safe(), &self.service.configuration) {
                return Err(Reply::error(403, objection));
            }
            if !self.is_authorized(exchange) {
                let detail = "this service needs Authorization: Bearer with its client token";
                return Err(Reply::error(401, detail).with_header("WWW-Authenticate", "Bearer"));
            }
        }
        (route.admit)(&self.service, exchange, &parameter)?;
        Ok((route, parameter))
    }

    fn is_authorized(&self, exchange: &Exchange) -> bool {
        let Some(token) = &self.service.configuration.client_token else { return true };
        let (scheme, candidate) =
            exchange.header("authorization").and_then(|value| value.split_once(' ')).unwrap_or_default();
        scheme.eq_ignore_ascii_case("bearer") && token.matches(candidate.trim())
    }
}
