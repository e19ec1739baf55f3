//! A far link that loses packets: a TUN device, through which both ends of every connection are the kernel's own TCP.
//!
//! What is sent to the far address comes out of the device as IP packets. Each is lost with a certain probability, or goes back
//! into the device half a round trip later with its two addresses exchanged, so that it comes from the far address. Handshakes,
//! slow start, selective acknowledgements and retransmissions are therefore real, and acknowledgements are lost as data is. A sum
//! does not change with the order of what it adds, so neither do the checksums.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_tcp_congestion;

/// Addresses that no network uses: they are reserved for benchmarks (RFC 2544).
const NEAR: &str = "198.18.0.1";
const FAR: &str = "198.18.0.2";

/// The default of most Linux servers. A kernel may have another one, such as BBR, which does not treat loss as congestion.
const CONGESTION_CONTROL: &str = "cubic";

/// As on Ethernet.
const PACKET: usize = 1500;

/// The length of the device's queue, so long that no packet is lost there.
const QUEUE: &str = "10000";

/// The properties of a link.
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// The round-trip time.
    pub round_trip: Duration,
    /// The probability that a packet is lost, in each direction.
    pub loss: f64,
}

/// The running link; the device is gone when this is dropped.
pub struct Tunnel {
    port: u16,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    relays: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    all: AtomicU64,
    lost: AtomicU64,
}

impl Tunnel {
    /// In front of `host:port`. The error is why there is none.
    pub fn to(upstream: &str, properties: Properties) -> Result<Self, String> {
        let (device, name) = open_device().map_err(|error| format!("/dev/net/tun gives no device: {error}"))?;
        ip(&["address", "add", NEAR, "peer", FAR, "dev", &name])?;
        ip(&["link", "set", &name, "mtu", &PACKET.to_string(), "txqueuelen", QUEUE, "up"])?;
        let failed = |error: io::Error| format!("no server at {NEAR}: {error}");
        let listener = TcpListener::bind((NEAR, 0)).map_err(failed)?;
        // Accepted connections inherit the setting.
        set_tcp_congestion(&listener, CONGESTION_CONTROL)
            .map_err(|error| format!("the kernel has no {CONGESTION_CONTROL}: {error}"))?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::<Counts>::default());
        let upstream = upstream.to_owned();
        let writing = device.try_clone().map_err(failed)?;
        let (packets, arriving) = channel();
        let relays = vec![
            thread::spawn({
                let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
                move || take_packets(&device, properties, &packets, &stop, &counts)
            }),
            thread::spawn(move || deliver(&arriving, &writing)),
            thread::spawn({
                let stop = Arc::clone(&stop);
                move || serve(&listener, &upstream, &stop)
            }),
        ];
        Ok(Self { port: address.port(), stop, counts, relays })
    }

    /// Its far end as a URL.
    pub fn url(&self) -> String {
        format!("http://{FAR}:{}", self.port)
    }

    /// The share of packets lost so far.
    pub fn loss(&self) -> f64 {
        let [lost, all] = [&self.counts.lost, &self.counts.all].map(|count| count.load(Ordering::Relaxed));
        lost as f64 / all.max(1) as f64
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // `accept` has no timeout: a last connection wakes it. It goes to this end, not through the device.
        let _ = TcpStream::connect((NEAR, self.port));
        for relay in self.relays.drain(..) {
            let _ = relay.join();
        }
    }
}

/// A new TUN device that lives as long as this file, and its name.
#[allow(unsafe_code)]
fn open_device() -> io::Result<(File, String)> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    // IFF_TUN and IFF_NO_PI: IP packets and nothing else.
    const FLAGS: i16 = 0x0001 | 0x1000;
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // `struct ifreq`: 16 bytes of a name, in which the kernel replaces `%d`, and the flags in a union of 24.
    let mut request = [0_u8; 40];
    request[..7].copy_from_slice(b"bench%d");
    request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
    // SAFETY: the request is as long as the kernel's structure, and lives longer than the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request[..16].iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
    Ok((device, name))
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip does not start: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {}", arguments.join(" "), said.trim())) }
}

/// Takes what the kernel sends, and passes on what is not lost with the time at which it arrives.
fn take_packets(
    mut device: &File,
    properties: Properties,
    packets: &Sender<(Instant, Vec<u8>)>,
    stop: &AtomicBool,
    counts: &Counts,
) {
    let often = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    while !stop.load(Ordering::SeqCst) {
        let mut polled = [PollFd::new(&device, PollFlags::IN)];
        if !poll(&mut polled, Some(&often)).is_ok_and(|ready| ready > 0) {
            continue;
        }
        let mut packet = vec![0; PACKET];
        let Ok(length) = device.read(&mut packet) else { continue };
        packet.truncate(length);
        // Only IPv4 is used here; the kernel itself sends IPv6 router solicitations.
        if length < 20 || packet[0] >> 4 != 4 {
            continue;
        }
        counts.all.fetch_add(1, Ordering::Relaxed);
        let drawn = f64::from(getrandom::u32().expect("the kernel has randomness")) / f64::from(u32::MAX);
        if drawn < properties.loss {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let (source, destination) = packet[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
        if packets.send((Instant::now() + properties.round_trip / 2, packet)).is_err() {
            return;
        }
    }
}

fn deliver(arriving: &Receiver<(Instant, Vec<u8>)>, mut device: &File) {
    while let Ok((at, packet)) = arriving.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        let _ = device.write(&packet);
    }
}

/// The far end: passes connections on to the upstream, as a proxy beside it would.
fn serve(listener: &TcpListener, upstream: &str, stop: &AtomicBool) {
    while let Ok((client, from)) = listener.accept() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let upstream = upstream.to_owned();
        thread::spawn(move || forward(&client, from, &upstream));
    }
}

fn forward(client: &TcpStream, from: SocketAddr, upstream: &str) {
    let Ok(server) = TcpStream::connect(upstream) else { return eprintln!("{from}: {upstream} refuses") };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
        // The server has said all it had: what the client still has to say interests nobody.
        let _ = client.shutdown(Shutdown::Read);
    });
}
