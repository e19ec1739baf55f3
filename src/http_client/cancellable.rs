//! Connections that stop waiting for input once the thread's work is cancelled.

use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport,
};

use super::tls::TlsConnector;
use crate::cancellation::Cancellation;

/// ureq's default connector chain with [`Cancellable`] between TCP and `tls`.
pub(super) fn connector(tls: TlsConnector) -> impl Connector {
    let direct = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default());
    direct.chain(CancellableConnector).chain(tls)
}

#[derive(Debug)]
struct CancellableConnector;

impl<In: Transport> Connector<In> for CancellableConnector {
    type Out = Cancellable<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(Cancellable))
    }
}

#[derive(Debug)]
struct Cancellable<T>(T);

impl<T: Transport> Transport for Cancellable<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        if !Cancellation::is_possible() {
            return self.0.await_input(timeout);
        }
        let NextTimeout { after: mut left, reason, .. } = timeout.for_read();
        loop {
            Cancellation::check()?;
            let slice = Cancellation::CHECK_INTERVAL.min(*left);
            let wait = NextTimeout { after: slice.into(), reason, per_read: None, per_write: None };
            match self.0.await_input(wait) {
                Err(Error::Timeout(_)) if slice < *left => {
                    if !left.is_not_happening() {
                        left = (*left - slice).into();
                    }
                }
                result => return result,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }
}
