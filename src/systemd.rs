//! The interface to systemd: sockets that it has opened, the notifications of `Type=notify`, and its watchdog. Without systemd
//! nothing here has any effect.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};

/// The environment variables that are meant for this process and not for its children.
pub const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The first descriptor that systemd passes; the others follow it.
const FIRST_DESCRIPTOR: RawFd = 3;

/// More sockets than any unit needs.
const MAX_SOCKETS: RawFd = 64;

/// The longest time between two updates of the status line.
const MAX_INTERVAL: Duration = Duration::from_secs(2);

/// A listening socket that systemd owns: closing it turns no client away, and nobody else may remove its path.
#[derive(Debug)]
pub enum Socket {
    /// `ListenStream=` with an address.
    Tcp(TcpListener),
    /// `ListenStream=` with a path.
    Unix(UnixListener),
}

/// A socket from systemd that cannot be used, as one line that names `LISTEN_FDS`.
#[derive(Debug)]
pub struct SocketsError(String);

impl fmt::Display for SocketsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LISTEN_FDS {}", self.0)
    }
}

/// Sends systemd a state such as `READY=1`, or several that are separated by line feeds. It never blocks.
pub fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        log::warn!("{state:?} cannot be sent to systemd at NOTIFY_SOCKET ({}): {error}", socket.display());
    }
}

/// The state for the line that `systemctl status` shows. The text may have names from clients, and a line feed in one of them
/// would begin another state.
fn status(text: &str) -> String {
    format!("STATUS={}", text.replace(char::is_control, " "))
}

/// How often systemd expects `WATCHDOG=1`: twice in the time after which it kills this process. None without a watchdog.
fn watchdog_interval() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    interval(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id())
}

/// The sockets that systemd has passed to this process. Only the first call returns them.
pub fn sockets() -> Result<Option<Vec<Socket>>, SocketsError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| std::env::var(name).ok();
    let Some(count) = passed(variable("LISTEN_FDS"), variable("LISTEN_PID"), std::process::id())? else {
        return Ok(None);
    };
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(None);
    }
    (FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + count).map(adopt).collect::<Result<Vec<_>, _>>().map(Some)
}

/// Keeps systemd up to date about this service.
pub struct Notifier {
    watchdog: Option<Duration>,
    updated: Instant,
    summary: String,
}

impl Notifier {
    /// The service is ready.
    pub fn ready() -> Self {
        notify("READY=1");
        Self { watchdog: watchdog_interval(), updated: Instant::now(), summary: String::new() }
    }

    /// Feeds the watchdog and updates the status line, if it is time. To be called often.
    pub fn update(&mut self, summary: impl FnOnce() -> String) {
        if self.updated.elapsed() < self.watchdog.unwrap_or(MAX_INTERVAL).min(MAX_INTERVAL) {
            return;
        }
        self.updated = Instant::now();
        if self.watchdog.is_some() {
            notify("WATCHDOG=1");
        }
        let summary = summary();
        if self.summary != summary {
            notify(&status(&summary));
            self.summary = summary;
        }
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(Path::new(socket))?,
        _ => return Err(io::Error::other("it is neither a path nor an abstract name")),
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

fn interval(microseconds: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid != own.to_string()) {
        return None;
    }
    let limit = microseconds?.parse().ok().filter(|limit| *limit > 0)?;
    Some(Duration::from_micros(limit) / 2)
}

/// How many descriptors were passed to the process with the id `own`.
fn passed(count: Option<String>, pid: Option<String>, own: u32) -> Result<Option<RawFd>, SocketsError> {
    // If the variables are inherited, they name the parent process.
    if pid.is_none_or(|pid| pid != own.to_string()) {
        return Ok(None);
    }
    match count.unwrap_or_default().parse() {
        Ok(0) => Ok(None),
        Ok(count @ 1..=MAX_SOCKETS) => Ok(Some(count)),
        _ => Err(SocketsError(format!("is not a number of sockets up to {MAX_SOCKETS}"))),
    }
}

fn adopt(descriptor: RawFd) -> Result<Socket, SocketsError> {
    let refuse = |why: &str| SocketsError(format!("passes descriptor {descriptor}, which {why}"));
    if std::fs::symlink_metadata(format!("/proc/self/fd/{descriptor}")).is_err() {
        return Err(refuse("is not open"));
    }
    // SAFETY: it is open, and by LISTEN_PID it was opened for this process. `sockets` adopts each descriptor once.
    #[expect(unsafe_code, reason = "there is no safe way from a number to a descriptor")]
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    listener(descriptor).map_err(|why| refuse(&why))
}

fn listener(descriptor: OwnedFd) -> Result<Socket, String> {
    let family = sockopt::socket_domain(&descriptor).map_err(|_| "is not a socket")?;
    if sockopt::socket_type(&descriptor) != Ok(SocketType::STREAM) {
        return Err("is not a stream socket: the socket unit needs ListenStream=".to_owned());
    }
    if sockopt::socket_acceptconn(&descriptor) != Ok(true) {
        return Err("does not listen: the socket unit needs Accept=no".to_owned());
    }
    // systemd passes descriptors that survive `exec`, but docker must not inherit them.
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)
        .map_err(|error| format!("cannot be closed on exec: {error}"))?;
    match family {
        AddressFamily::INET | AddressFamily::INET6 => Ok(Socket::Tcp(descriptor.into())),
        AddressFamily::UNIX => Ok(Socket::Unix(descriptor.into())),
        _ => Err("is neither a TCP nor a Unix socket".to_owned()),
    }
}

/// Keeps systemd's variables from a child process.
pub fn hide_from(command: &mut std::process::Command) {
    for name in VARIABLES {
        command.env_remove(name);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs::File;
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn a_state_is_sent_to_a_path_or_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("loader-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        for (receiver, socket) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), OsString::from(format!("@{name}"))),
        ] {
            send(&socket, "READY=1\nSTATUS=ready").unwrap();
            let mut buffer = [0; 64];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\nSTATUS=ready");
        }
    }

    #[test]
    fn a_service_manager_that_does_not_read_does_not_block_the_service() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _receiver = UnixDatagram::bind(&path).unwrap();
        // The queue of a datagram socket has room for far fewer.
        let refused = (0..100_000).find_map(|_| send(path.as_os_str(), "WATCHDOG=1").err());
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::WouldBlock);
        assert!(send(OsStr::new("vsock:2:1"), "READY=1").is_err());
    }

    #[test]
    fn a_line_feed_in_the_status_begins_no_other_state() {
        assert_eq!(status("a@b\nMAINPID=1\r"), "STATUS=a@b MAINPID=1 ");
    }

    #[test]
    fn the_watchdog_interval_is_half_of_the_limit_and_for_this_process_only() {
        assert_eq!(interval(text("30000000"), None, 7), Some(Duration::from_secs(15)));
        assert_eq!(interval(text("30000000"), text("7"), 7), Some(Duration::from_secs(15)));
        for (microseconds, pid) in [(None, None), (text("0"), None), (text("x"), None), (text("30000000"), text("8"))] {
            assert_eq!(interval(microseconds, pid, 7), None);
        }
    }

    #[test]
    fn only_descriptors_for_this_process_are_taken() {
        assert_eq!(passed(text("2"), text("7"), 7).unwrap(), Some(2));
        for (count, pid) in [(None, None), (text("1"), None), (text("1"), text("8")), (text("0"), text("7"))] {
            assert_eq!(passed(count, pid, 7).unwrap(), None);
        }
        for count in [None, text(""), text("-1"), text("one"), text("65"), text("99999999999")] {
            let error = passed(count, text("7"), 7).unwrap_err().to_string();
            assert!(error.starts_with("LISTEN_FDS is not a number"), "{error}");
        }
    }

    #[test]
    fn only_listening_stream_sockets_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        rustix::io::fcntl_setfd(&tcp, FdFlags::empty()).unwrap();
        let Ok(Socket::Tcp(taken)) = listener(tcp.into()) else { panic!("a TCP listener is one") };
        assert_eq!(taken.local_addr().unwrap(), address);
        assert_eq!(rustix::io::fcntl_getfd(&taken).unwrap(), FdFlags::CLOEXEC);
        let unix = UnixListener::bind(directory.path().join("sock")).unwrap();
        assert!(matches!(listener(unix.into()), Ok(Socket::Unix(_))));

        let connected = TcpStream::connect(address).unwrap();
        for (descriptor, why) in [
            (OwnedFd::from(File::open("/proc/self/stat").unwrap()), "is not a socket"),
            (UdpSocket::bind("127.0.0.1:0").unwrap().into(), "is not a stream socket"),
            (UnixDatagram::bind(directory.path().join("datagrams")).unwrap().into(), "is not a stream socket"),
            (connected.into(), "does not listen"),
            (UnixStream::pair().unwrap().0.into(), "does not listen"),
        ] {
            assert!(listener(descriptor).unwrap_err().starts_with(why), "{why}");
        }
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_refused() {
        let error = adopt(RawFd::MAX).unwrap_err().to_string();
        assert!(error.starts_with("LISTEN_FDS passes descriptor") && error.ends_with("is not open"), "{error}");
    }
}
