//! A TCP server that can misbehave: it has one thread per connection, and can go away and come back on its port.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

type Handler = dyn Fn(TcpStream) + Send + Sync;

/// A listening port on 127.0.0.1 whose connections go to a handler.
pub struct TcpServer {
    port: u16,
    handler: Arc<Handler>,
    live: Arc<Live>,
    acceptor: Mutex<Option<Acceptor>>,
}

struct Acceptor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// The open connections, which end when the server goes down, as after a crash.
#[derive(Default)]
struct Live {
    next: AtomicU64,
    streams: Mutex<HashMap<u64, TcpStream>>,
}

impl TcpServer {
    /// Listens on `port`, or for 0 on one that nobody else takes while the server is down. The kernel could give the port that it chose
    /// to another test's server, which would answer instead.
    pub fn start(port: u16, handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = listen(if port == 0 { free_port() } else { port });
        let port = listener.local_addr().expect("a listener has an address").port();
        let server = Self { port, handler: Arc::new(handler), live: Arc::default(), acceptor: Mutex::new(None) };
        server.accept_from(listener);
        server
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    pub fn host_port(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Refuses new connections and cuts the open ones.
    pub fn down(&self) {
        if let Some(acceptor) = lock(&self.acceptor).take() {
            acceptor.stop.store(true, Ordering::SeqCst);
            // `accept` has no timeout: a last connection wakes it.
            let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
            let _ = acceptor.thread.join();
        }
        self.cut();
    }

    /// Listens again on the same port after [`down`](Self::down).
    pub fn up(&self) {
        if lock(&self.acceptor).is_none() {
            self.accept_from(listen(self.port));
        }
    }

    /// Cuts the open connections and keeps listening.
    pub fn cut(&self) {
        for stream in lock(&self.live.streams).values() {
            // After a shutdown alone the kernel no longer opens the receive window, and a client that waits for it may do so for minutes.
            reset_on_close(stream);
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        lock(&self.live.streams).len()
    }

    fn accept_from(&self, listener: TcpListener) {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, handler, live) = (stop.clone(), self.handler.clone(), self.live.clone());
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                live.serve(stream, handler.clone());
            }
        });
        *lock(&self.acceptor) = Some(Acceptor { stop, thread });
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.down();
    }
}

impl Live {
    fn serve(self: &Arc<Self>, stream: TcpStream, handler: Arc<Handler>) {
        let Ok(copy) = stream.try_clone() else { return };
        // Small writes are deliberate here (a trickle, a half): each must leave at once.
        let _ = stream.set_nodelay(true);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.streams).insert(id, copy);
        let live = self.clone();
        thread::spawn(move || {
            // A panicking handler must still give up its socket, or its client would wait for ever.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handler(stream)));
            lock(&live.streams).remove(&id);
        });
    }
}

/// Makes the close of `stream` a reset instead of an orderly end.
#[allow(unsafe_code)]
pub fn reset_on_close(stream: &TcpStream) {
    use std::os::fd::AsRawFd;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the descriptor is open for the whole call, and pointer and length are of a live `linger`.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "SO_LINGER: {}", io::Error::last_os_error());
}

/// Connects to a loopback address from this local port, which the standard library does not let one choose.
#[allow(unsafe_code)]
pub fn connect_from(port: u16, to: &str) -> io::Result<TcpStream> {
    use std::os::fd::FromRawFd;
    let in_c = |port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    };
    let to: SocketAddr = to.parse().map_err(io::Error::other)?;
    let (source, target) = (in_c(port), in_c(to.port()));
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the call takes no pointers; its result is checked before it is used as a descriptor.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    let stream = unsafe { TcpStream::from_raw_fd(socket) };
    // SAFETY: both addresses have the length that the calls are told, and outlive them.
    let failed = unsafe {
        libc::bind(socket, (&raw const source).cast(), length) != 0
            || libc::connect(socket, (&raw const target).cast(), length) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(stream) }
}

/// A port that nobody listens on. It is below the range of ephemeral ports, so that no outgoing connection of a test
/// that runs in parallel takes it while a service restarts.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run in parallel start at different places.
    let start = std::process::id().wrapping_mul(61);
    for _ in 0..10_000 {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + u16::try_from((start.wrapping_add(step)) % 18_000).expect("below 18,000");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

fn listen(port: u16) -> TcpListener {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok(listener) => return listener,
            Err(error) if Instant::now() > deadline => panic!("cannot listen on port {port}: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A lock that outlives a panicked test thread.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
