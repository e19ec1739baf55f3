//! A far link: a TCP relay with a round-trip time, a bandwidth that all connections share, and for each direction of each
//! connection a window that opens as TCP's does.
//!
//! A sender may have as many bytes in flight as its window allows; they are acknowledged a round trip after they were
//! sent, and until the window is at its limit every acknowledged byte widens it by one, which is slow start.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::world::tcp::{TcpServer, lock};

/// What a sender may have in flight at first: ten segments (RFC 6928).
const FIRST_WINDOW: usize = 10 * 1460;

/// The most bytes that are sent in one go.
const PIECE: usize = 16 * 1024;

/// The properties of a link.
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// The round-trip time.
    pub round_trip: Duration,
    /// Bytes per second of all connections together.
    pub bandwidth: f64,
    /// The most that one connection may have in flight, in bytes.
    pub window: usize,
}

/// The running relay; it stops when dropped.
pub struct Link {
    server: TcpServer,
}

impl Link {
    /// In front of `host:port`.
    pub fn to(upstream: &str, properties: Properties) -> Self {
        let upstream = upstream.to_owned();
        // Each way has a bandwidth of its own.
        let (up, down) = (Arc::new(Mutex::new(Instant::now())), Arc::new(Mutex::new(Instant::now())));
        let server = TcpServer::start(0, move |client| {
            let Ok(server) = TcpStream::connect(&upstream) else { return };
            let _ = server.set_nodelay(true);
            // The time of the handshake, which takes none on loopback.
            thread::sleep(properties.round_trip);
            thread::scope(|scope| {
                scope.spawn(|| Way::new(properties, Arc::clone(&up)).carry(&client, &server));
                Way::new(properties, Arc::clone(&down)).carry(&server, &client);
            });
        });
        Self { server }
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.host_port())
    }
}

/// One direction of a connection.
struct Way {
    properties: Properties,
    /// When the wire becomes free.
    wire: Arc<Mutex<Instant>>,
    flight: Arc<Flight>,
}

#[derive(Default)]
struct Flight {
    state: Mutex<InFlight>,
    changed: Condvar,
}

#[derive(Default)]
struct InFlight {
    bytes: usize,
    /// When acknowledgements arrive, and for how many bytes.
    acknowledgements: VecDeque<(Instant, usize)>,
    broken: bool,
}

impl Way {
    fn new(properties: Properties, wire: Arc<Mutex<Instant>>) -> Self {
        Self { properties, wire, flight: Arc::default() }
    }

    fn carry(self, from: &TcpStream, to: &TcpStream) {
        let (pieces, arriving) = channel();
        let flight = Arc::clone(&self.flight);
        let half = self.properties.round_trip / 2;
        thread::scope(|scope| {
            scope.spawn(move || {
                let _ = deliver(&arriving, to, &flight, half);
                // The other side learns of the end, and the sender that nobody listens any more.
                let _ = to.shutdown(Shutdown::Write);
                lock(&flight.state).broken = true;
                flight.changed.notify_all();
                let _ = from.shutdown(Shutdown::Read);
            });
            let _ = self.send(from, &pieces);
            drop(pieces);
        });
    }

    fn send(&self, mut from: &TcpStream, pieces: &Sender<(Instant, Vec<u8>)>) -> io::Result<()> {
        let mut window = FIRST_WINDOW.min(self.properties.window);
        loop {
            let room = self.wait_for_room(&mut window);
            let mut piece = vec![0; PIECE.min(room)];
            let count = from.read(&mut piece)?;
            if count == 0 {
                return Ok(());
            }
            piece.truncate(count);
            lock(&self.flight.state).bytes += count;
            let sent = self.occupy_wire(count);
            if pieces.send((sent + self.properties.round_trip / 2, piece)).is_err() {
                return Ok(());
            }
        }
    }

    /// Waits until the window has room; returns how much.
    fn wait_for_room(&self, window: &mut usize) -> usize {
        let mut state = lock(&self.flight.state);
        loop {
            let now = Instant::now();
            while let Some((_, count)) = state.acknowledgements.front().copied().filter(|(at, _)| *at <= now) {
                state.acknowledgements.pop_front();
                state.bytes -= count;
                *window = (*window + count).min(self.properties.window);
            }
            if state.bytes < *window || state.broken {
                return (*window).saturating_sub(state.bytes).max(1);
            }
            let wait = state.acknowledgements.front().map_or(Duration::from_millis(50), |(at, _)| *at - now);
            state = self.flight.changed.wait_timeout(state, wait).expect("nobody panics").0;
        }
    }

    /// Waits for its turn on the wire; returns when the last byte will have left.
    fn occupy_wire(&self, count: usize) -> Instant {
        let time = Duration::from_secs_f64(count as f64 / self.properties.bandwidth);
        let sent = {
            let mut free = lock(&self.wire);
            *free = (*free).max(Instant::now()) + time;
            *free
        };
        // Shorter sleeps are too inexact to be worth it.
        let ahead = sent.saturating_duration_since(Instant::now());
        if ahead > Duration::from_millis(1) {
            thread::sleep(ahead);
        }
        sent
    }
}

fn deliver(
    arriving: &Receiver<(Instant, Vec<u8>)>,
    mut to: &TcpStream,
    flight: &Flight,
    half: Duration,
) -> io::Result<()> {
    while let Ok((at, piece)) = arriving.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        to.write_all(&piece)?;
        lock(&flight.state).acknowledgements.push_back((Instant::now() + half, piece.len()));
        flight.changed.notify_all();
    }
    Ok(())
}
