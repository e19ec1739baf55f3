//! The address that the service listens on.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// The longest path of a Unix socket: the kernel's `sun_path` has 108 bytes, the last of them NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Where the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket, created with mode 0660.
    Unix(PathBuf),
}

impl BindAddress {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') || path.len() > MAX_SOCKET_PATH {
                return Err(format!("needs an absolute path of at most {MAX_SOCKET_PATH} bytes after unix:"));
            }
            return Ok(Self::Unix(path.into()));
        }
        let address = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        address.map(Self::Tcp).ok_or_else(|| "is neither host:port, such as 127.0.0.1:8080, nor unix:/path".into())
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
