//! The environment variables: read once at the start, checked, and given on as typed values.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::secret::Secret;
use crate::security::Salts;

/// Where the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket, created with mode 0660.
    Unix(PathBuf),
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Everything that the environment decides.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// `RESOURCE_API_URL`, without a trailing slash.
    pub resource_api_url: String,
    /// `IMAGES_PATH`: the encrypted archive of container images.
    pub images_path: PathBuf,
    /// `API_VERSION`: the image tag that the archive must hold, or `latest`.
    pub api_version: String,
    /// `BIND_ADDR`.
    pub bind_address: BindAddress,
    /// `MODEL_CACHE_DIR`.
    pub model_cache_dir: PathBuf,
    /// `LOG_DIR`; none when it is empty.
    pub log_dir: Option<PathBuf>,
    /// `LOG_LEVEL`.
    pub log_level: LevelFilter,
    /// `CDN_CONFIG_PATH`.
    pub cdn_config_path: Option<PathBuf>,
    /// `CA_CERT_PATH`.
    pub ca_cert_path: Option<PathBuf>,
    /// `HARDWARE_SALT`, `API_KEY_SALT`, `RESOURCE_KEY_SALT`.
    pub salts: Salts,
    /// The names of the salts that were left at their public default.
    pub default_salts: Vec<&'static str>,
    /// `HARDWARE_ID`.
    pub hardware_id: Option<String>,
    /// `HANDLER_THREADS`.
    pub handler_threads: usize,
    /// `MAX_UPLOAD_BYTES`.
    pub max_upload_bytes: u64,
    /// `CLIENT_STALL_SECONDS`: how long a client may keep its connection waiting.
    pub client_stall_limit: Duration,
    /// `MAX_CONNECTIONS`: client connections at once.
    pub max_connections: usize,
    /// `ALLOWED_HOSTS`: names in lower case by which browsers may reach this service, besides addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// `CLIENT_TOKEN`.
    pub client_token: Option<Secret>,
    /// `JWT_PUBLIC_KEY_PATH`.
    pub jwt_public_key_path: Option<PathBuf>,
    /// `SIGNING_KEY_PATH`: signs the manifests of uploads.
    pub signing_key_path: Option<PathBuf>,
    /// `TRUSTED_KEYS_PATH`: only what these keys signed is loaded.
    pub trusted_keys_path: Option<PathBuf>,
    /// `REQUIRE_MANIFEST`: uploads without a manifest are refused.
    pub require_manifest: bool,
    /// `OLD_READERS`: uploads set the plain key as well, which readers of the old kind ask for.
    pub old_readers: bool,
    /// `OFFLINE_HOURS`: how long a model may be loaded again without the Resource API; zero: never.
    pub offline_limit: Duration,
}

/// A variable whose value cannot be used. Its text is one line that names the variable.
#[derive(Debug)]
pub struct ConfigurationError {
    variable: &'static str,
    reason: String,
}

impl fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.variable, self.reason)
    }
}

impl std::error::Error for ConfigurationError {}

fn bad(variable: &'static str, reason: impl Into<String>) -> ConfigurationError {
    ConfigurationError { variable, reason: reason.into() }
}

impl Configuration {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// The first variable with a value that cannot be used.
    pub fn from_environment() -> Result<Self, ConfigurationError> {
        Self::from_lookup(variable)
    }

    /// What a command that talks to the running service needs of it, `BIND_ADDR` and `CLIENT_TOKEN`; all else is the
    /// default. A technician may not be able to read the service's files.
    ///
    /// # Errors
    /// The first of the two with a value that cannot be used.
    pub fn for_clients() -> Result<Self, ConfigurationError> {
        Self::from_lookup(|name| if matches!(name, "BIND_ADDR" | "CLIENT_TOKEN") { variable(name) } else { Ok(None) })
    }

    /// The same with another source of values, for tests.
    ///
    /// # Errors
    /// The first variable with a value that cannot be used, and whatever `lookup` refuses.
    pub fn from_lookup(
        lookup: impl Fn(&'static str) -> Result<Option<String>, ConfigurationError>,
    ) -> Result<Self, ConfigurationError> {
        let text = |name: &'static str, default: &str| -> Result<String, ConfigurationError> {
            Ok(lookup(name)?.unwrap_or_else(|| default.to_owned()))
        };
        // A variable that is set to nothing is how service managers and compose files say "unset".
        let optional = |name: &'static str| -> Result<Option<String>, ConfigurationError> {
            Ok(lookup(name)?.filter(|value| !value.is_empty()))
        };
        let path = |name: &'static str, default: &str| -> Result<PathBuf, ConfigurationError> {
            let value = text(name, default)?;
            if value.is_empty() {
                return Err(bad(name, "is empty; name a path or leave it unset"));
            }
            Ok(value.into())
        };
        let file = |name: &'static str| -> Result<Option<PathBuf>, ConfigurationError> {
            let Some(path) = optional(name)?.map(PathBuf::from) else { return Ok(None) };
            match std::fs::File::open(&path).and_then(|file| file.metadata()) {
                Ok(metadata) if metadata.is_dir() => {
                    Err(bad(name, format!("names {}, which is a directory", path.display())))
                }
                Ok(_) => Ok(Some(path)),
                Err(error) => Err(bad(name, format!("names {}, which cannot be read: {error}", path.display()))),
            }
        };

        // An empty secret is a slip, such as a variable that was not filled in, and would protect nothing.
        let secret = |name: &'static str, what: &str| -> Result<Option<Secret>, ConfigurationError> {
            match lookup(name)? {
                Some(value) if value.is_empty() => {
                    Err(bad(name, format!("is empty; set {what} of your installation or leave it unset")))
                }
                value => Ok(value.map(Secret::new)),
            }
        };
        let mut default_salts = Vec::new();
        let mut salt = |name: &'static str, default: &str| -> Result<Secret, ConfigurationError> {
            Ok(secret(name, "the salt")?.unwrap_or_else(|| {
                default_salts.push(name);
                Secret::new(default)
            }))
        };
        let salts = Salts {
            hardware: salt("HARDWARE_SALT", "dev-hardware-salt")?,
            api_key: salt("API_KEY_SALT", "dev-api-key-salt")?,
            resource_key: salt("RESOURCE_KEY_SALT", "dev-resource-key-salt")?,
        };

        let client_token = secret("CLIENT_TOKEN", "the token")?;
        if client_token.as_ref().is_some_and(|token| !token.expose().bytes().all(|b| b.is_ascii_graphic())) {
            return Err(bad("CLIENT_TOKEN", "may hold visible ASCII characters only, since it travels in a header"));
        }

        Ok(Self {
            resource_api_url: api_url(&text("RESOURCE_API_URL", "https://api.azaion.com")?)?,
            images_path: path("IMAGES_PATH", "/opt/azaion/images.enc")?,
            api_version: api_version(text("API_VERSION", "latest")?)?,
            bind_address: bind_address(&text("BIND_ADDR", "127.0.0.1:8080")?)?,
            model_cache_dir: path("MODEL_CACHE_DIR", "models")?,
            log_dir: Some(text("LOG_DIR", "logs")?).filter(|dir| !dir.is_empty()).map(PathBuf::from),
            log_level: log_level(&text("LOG_LEVEL", "info")?)?,
            cdn_config_path: file("CDN_CONFIG_PATH")?,
            ca_cert_path: file("CA_CERT_PATH")?,
            salts,
            default_salts,
            hardware_id: optional("HARDWARE_ID")?,
            handler_threads: handler_threads(&text("HANDLER_THREADS", "4")?)?,
            max_upload_bytes: max_upload_bytes(&text("MAX_UPLOAD_BYTES", "17179869184")?)?,
            client_stall_limit: client_stall_limit(&text("CLIENT_STALL_SECONDS", "30")?)?,
            max_connections: max_connections(&text("MAX_CONNECTIONS", "1024")?)?,
            allowed_hosts: allowed_hosts(&text("ALLOWED_HOSTS", "")?)?,
            client_token,
            jwt_public_key_path: file("JWT_PUBLIC_KEY_PATH")?,
            signing_key_path: file("SIGNING_KEY_PATH")?,
            trusted_keys_path: file("TRUSTED_KEYS_PATH")?,
            require_manifest: truth("REQUIRE_MANIFEST", &text("REQUIRE_MANIFEST", "false")?)?,
            old_readers: truth("OLD_READERS", &optional("OLD_READERS")?.unwrap_or_else(|| "true".into()))?,
            offline_limit: offline_limit(&text("OFFLINE_HOURS", "0")?)?,
        })
    }
}

fn variable(name: &'static str) -> Result<Option<String>, ConfigurationError> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(bad(name, "is not valid UTF-8 text")),
    }
}

fn api_url(value: &str) -> Result<String, ConfigurationError> {
    let refuse = |reason: &str| bad("RESOURCE_API_URL", format!("{reason}, for example https://api.azaion.com"));
    let url = url::Url::parse(value).map_err(|_| refuse("is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(refuse("is not an http or https URL"));
    }
    // A password in a URL would reach logs and errors.
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("may hold a host and a path only"));
    }
    Ok(value.trim_end_matches('/').to_owned())
}

fn api_version(value: String) -> Result<String, ConfigurationError> {
    let valid = !value.is_empty()
        && value.len() <= 128
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && !value.starts_with(['.', '-']);
    if valid { Ok(value) } else { Err(bad("API_VERSION", "is not an image tag such as 1.4.0 or latest")) }
}

fn bind_address(value: &str) -> Result<BindAddress, ConfigurationError> {
    if let Some(path) = value.strip_prefix("unix:") {
        // The kernel's `sun_path` holds 108 bytes with the NUL.
        if !path.starts_with('/') || path.len() > 107 {
            return Err(bad("BIND_ADDR", "needs an absolute path of at most 107 bytes after unix:"));
        }
        return Ok(BindAddress::Unix(path.into()));
    }
    value
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .map(BindAddress::Tcp)
        .ok_or_else(|| bad("BIND_ADDR", "is neither host:port, such as 127.0.0.1:8080, nor unix:/path"))
}

fn log_level(value: &str) -> Result<LevelFilter, ConfigurationError> {
    match value.to_ascii_lowercase().as_str() {
        "warning" => Ok(LevelFilter::Warn),
        level => level.parse().map_err(|_| bad("LOG_LEVEL", "is not one of off, error, warn, info, debug, trace")),
    }
}

fn handler_threads(value: &str) -> Result<usize, ConfigurationError> {
    match value.parse() {
        Ok(count @ 1..=64) => Ok(count),
        _ => Err(bad("HANDLER_THREADS", "is not a number from 1 to 64")),
    }
}

/// A number of bytes: digits, and `K`, `M` or `G` for powers of 1,024.
fn bytes(name: &'static str, value: &str) -> Result<u64, ConfigurationError> {
    let (digits, unit) = match value.as_bytes().last() {
        Some(b'K' | b'k') => (&value[..value.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&value[..value.len() - 1], 1 << 20),
        Some(b'G' | b'g') => (&value[..value.len() - 1], 1 << 30),
        _ => (value, 1),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|_| is_number).and_then(|number| number.checked_mul(unit));
    number.ok_or_else(|| bad(name, "is not a number of bytes such as 17179869184, 512M or 16G"))
}

fn max_upload_bytes(value: &str) -> Result<u64, ConfigurationError> {
    match bytes("MAX_UPLOAD_BYTES", value)? {
        0 => Err(bad("MAX_UPLOAD_BYTES", "is 0, which refuses every upload; give a number of bytes such as 16G")),
        limit => Ok(limit),
    }
}

fn max_connections(value: &str) -> Result<usize, ConfigurationError> {
    match value.parse() {
        Ok(count @ 1..=65_536) => Ok(count),
        _ => Err(bad("MAX_CONNECTIONS", "is not a number from 1 to 65536")),
    }
}

fn allowed_hosts(value: &str) -> Result<Vec<String>, ConfigurationError> {
    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            let is_name = !name.is_empty()
                && !name.starts_with('.')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            let refusal =
                "holds more than host names, such as box17.example.com,loader; ports and wildcards are not allowed";
            if is_name { Ok(name) } else { Err(bad("ALLOWED_HOSTS", refusal)) }
        })
        .collect()
}

fn client_stall_limit(value: &str) -> Result<Duration, ConfigurationError> {
    match value.parse() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(bad("CLIENT_STALL_SECONDS", "is not a number of seconds from 1 to 3600")),
    }
}

fn truth(name: &'static str, value: &str) -> Result<bool, ConfigurationError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" | "" => Ok(false),
        _ => Err(bad(name, "is neither true nor false")),
    }
}

/// A year at most: more is a slip of the finger.
fn offline_limit(value: &str) -> Result<Duration, ConfigurationError> {
    match value.parse::<u64>() {
        Ok(hours @ 0..=8760) => Ok(Duration::from_secs(hours * 3600)),
        _ => Err(bad("OFFLINE_HOURS", "is not a number of hours from 0 (off) to 8760")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Configuration, ConfigurationError> {
        Configuration::from_lookup(|name| {
            Ok(variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        })
    }

    #[test]
    fn defaults_are_those_of_the_specification() {
        let configuration = with(&[]).unwrap();
        assert_eq!(configuration.resource_api_url, "https://api.azaion.com");
        assert_eq!(configuration.images_path, PathBuf::from("/opt/azaion/images.enc"));
        assert_eq!(configuration.api_version, "latest");
        assert_eq!(configuration.bind_address.to_string(), "127.0.0.1:8080");
        assert_eq!(configuration.model_cache_dir, PathBuf::from("models"));
        assert_eq!(configuration.log_dir, Some(PathBuf::from("logs")));
        assert_eq!(configuration.log_level, LevelFilter::Info);
        assert_eq!(configuration.handler_threads, 4);
        assert_eq!(configuration.max_upload_bytes, 17_179_869_184);
        assert_eq!(configuration.client_stall_limit, Duration::from_secs(30));
        assert_eq!(configuration.max_connections, 1024);
        assert!(configuration.allowed_hosts.is_empty());
        assert_eq!(configuration.offline_limit, Duration::ZERO);
        assert_eq!((configuration.signing_key_path, configuration.trusted_keys_path), (None, None));
        assert!(!configuration.require_manifest && configuration.old_readers);
        assert_eq!(configuration.default_salts, ["HARDWARE_SALT", "API_KEY_SALT", "RESOURCE_KEY_SALT"]);
        assert!(configuration.client_token.is_none() && configuration.hardware_id.is_none());
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        for (name, value) in [
            ("RESOURCE_API_URL", "api.azaion.com"),
            ("RESOURCE_API_URL", "ftp://host"),
            ("RESOURCE_API_URL", "https://user:secret@host"),
            ("IMAGES_PATH", ""),
            ("API_VERSION", "a b"),
            ("BIND_ADDR", "8080"),
            ("BIND_ADDR", "unix:relative"),
            ("LOG_LEVEL", "loud"),
            ("CDN_CONFIG_PATH", "/nonexistent/cdn.yaml"),
            ("CA_CERT_PATH", "/nonexistent/ca.pem"),
            ("JWT_PUBLIC_KEY_PATH", "/nonexistent/key.pem"),
            ("SIGNING_KEY_PATH", "/nonexistent/key.pem"),
            ("TRUSTED_KEYS_PATH", "/nonexistent/key.pem"),
            ("REQUIRE_MANIFEST", "perhaps"),
            ("OLD_READERS", "some"),
            ("HANDLER_THREADS", "0"),
            ("HANDLER_THREADS", "many"),
            ("MAX_UPLOAD_BYTES", "0"),
            ("MAX_UPLOAD_BYTES", "0G"),
            ("MAX_UPLOAD_BYTES", ""),
            ("MAX_UPLOAD_BYTES", "G"),
            ("MAX_UPLOAD_BYTES", "+16G"),
            ("MAX_UPLOAD_BYTES", "16GB"),
            ("MAX_UPLOAD_BYTES", "1.5G"),
            ("MAX_UPLOAD_BYTES", "16é"),
            ("MAX_UPLOAD_BYTES", "99999999999G"),
            ("MAX_CONNECTIONS", "0"),
            ("MAX_CONNECTIONS", "65537"),
            ("MAX_CONNECTIONS", "1K"),
            ("ALLOWED_HOSTS", "*"),
            ("ALLOWED_HOSTS", "loader:8080"),
            ("ALLOWED_HOSTS", "loader,http://box"),
            ("ALLOWED_HOSTS", "*.example.com"),
            ("ALLOWED_HOSTS", ".example.com"),
            ("ALLOWED_HOSTS", "two names"),
            ("CLIENT_TOKEN", ""),
            ("CLIENT_STALL_SECONDS", "0"),
            ("CLIENT_STALL_SECONDS", "3601"),
            ("CLIENT_STALL_SECONDS", "30s"),
            ("OFFLINE_HOURS", "-1"),
            ("OFFLINE_HOURS", "1.5"),
            ("OFFLINE_HOURS", "8761"),
            ("CLIENT_TOKEN", "line\nbreak"),
            ("API_KEY_SALT", ""),
        ] {
            let error = with(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.lines().count() == 1, "{name}={value}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn byte_values_take_units_and_hosts_are_a_list() {
        for (value, expected) in [("1", 1), ("3K", 3 << 10), ("512M", 512 << 20), ("16G", 16 << 30), ("2g", 2 << 30)] {
            assert_eq!(with(&[("MAX_UPLOAD_BYTES", value)]).unwrap().max_upload_bytes, expected, "{value}");
        }
        let hosts = with(&[("ALLOWED_HOSTS", " Loader,box17.Example.com. ,, ")]).unwrap().allowed_hosts;
        assert_eq!(hosts, ["loader", "box17.example.com"]);
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let configuration = with(&[("API_KEY_SALT", "pepper"), ("CLIENT_TOKEN", "opensesame")]).unwrap();
        let debug = format!("{configuration:?}");
        assert!(!debug.contains("pepper") && !debug.contains("opensesame"), "{debug}");
    }
}
