//! The environment variables: one table, read once at the start and checked.
//!
//! A new variable is one row of the table. Its field, its line in `loader --help` and in the README's table, and for a secret
//! the `_FILE` variable and the removal from the environment of `docker`, follow from it.

mod bind_address;
mod value;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use log::LevelFilter;
use zeroize::Zeroizing;

use self::value::Value;
use crate::names::ModelName;
use crate::secret::Secret;
use crate::security::Salts;

pub use self::bind_address::BindAddress;

/// Finds the value of a variable. Not generic: each type of lookup would be another copy of the code that reads the whole table.
type Lookup<'a> = dyn Fn(&str) -> Result<Option<String>, String> + 'a;

/// A row of the table of variables.
pub struct Variable {
    /// The variable's name.
    pub name: &'static str,
    /// Its value where it is not set; empty for none.
    pub default: &'static str,
    /// What it means, in a few words.
    pub help: &'static str,
    /// Whether the value must not be seen. It can then also come from the file that `{name}_FILE` names.
    pub is_secret: bool,
}

impl Variable {
    const fn new(name: &'static str, default: &'static str, help: &'static str, secret: &str) -> Self {
        Self { name, default, help, is_secret: !secret.is_empty() }
    }

    /// The variable that names a file with the value.
    pub fn file_variable(&self) -> String {
        format!("{}_FILE", self.name)
    }

    fn parse<T>(&self, lookup: &Lookup<'_>, parse: impl Fn(&Value) -> Result<T, String>) -> Result<T, String> {
        let (name, value) = self.value(lookup)?;
        parse(&value).map_err(|reason| format!("{name} {reason}"))
    }

    /// The value, and the variable that it is from. Not generic, since there is a [`parse`](Self::parse) for each row.
    fn value(&self, lookup: &Lookup<'_>) -> Result<(String, Value), String> {
        let (mut name, file_variable) = (self.name.to_owned(), self.file_variable());
        let mut set = lookup(self.name)?.map(Zeroizing::new);
        let file = if self.is_secret { lookup(&file_variable)?.filter(|path| !path.is_empty()) } else { None };
        if let Some(path) = file {
            if set.is_some() {
                return Err(format!("{name} and {file_variable} are both set; unset one of them"));
            }
            let text = value::read_secret(Path::new(&path)).map_err(|reason| format!("{file_variable} {reason}"))?;
            (name, set) = (file_variable, Some(text));
        }
        let is_set = set.is_some();
        let text = set.unwrap_or_else(|| Zeroizing::new(self.default.to_owned()));
        Ok((name, Value { text, default: self.default, is_set }))
    }
}

/// Makes the rows of [`VARIABLES`] and the fields of [`Configuration`] from one table.
macro_rules! variables {
    ($($($secret:ident)? $name:literal = $default:literal, $help:literal => $field:ident: $type:ty = $parse:expr;)*) => {
        /// All variables, in the order in which people read them.
        pub static VARIABLES: &[Variable] = &[$(Variable::new($name, $default, $help, stringify!($($secret)?))),*];

        /// Everything that the environment decides.
        #[derive(Clone, Debug)]
        pub struct Configuration {
            $(#[doc = concat!("`", $name, "`: ", $help, ".")] pub $field: $type,)*
        }

        impl Configuration {
            /// Reads every variable through `lookup`. The error is one line that names the first one that cannot be used.
            pub fn from_lookup(lookup: &Lookup<'_>) -> Result<Self, String> {
                Ok(Self {
                    $($field: Variable::new($name, $default, $help, stringify!($($secret)?)).parse(lookup, $parse)?,)*
                })
            }
        }
    };
}

// Name and default, meaning, field and parser. A default is written as a person would set it.
variables! {
    "RESOURCE_API_URL" = "https://api.azaion.com", "URL of the Resource API"
        => resource_api_url: String = value::api_url;
    "IMAGES_PATH" = "/opt/azaion/images.enc", "encrypted archive of container images"
        => images_path: PathBuf = value::path;
    "API_VERSION" = "latest", "image tag that the archive must hold"
        => api_version: String = value::image_tag;
    "BIND_ADDR" = "127.0.0.1:8080", "host:port, or unix:/path (mode 0660)"
        => bind_address: BindAddress = value::bind_address;
    "MODEL_CACHE_DIR" = "models", "directory of the model cache"
        => model_cache_dir: PathBuf = value::path;
    "LOG_DIR" = "logs", "daily log files, 7 kept, at most 16 MiB each; empty: no files"
        => log_dir: Option<PathBuf> = value::path_if_any;
    "LOG_LEVEL" = "info", "off, error, warn, info, debug or trace"
        => log_level: LevelFilter = value::log_level;
    "CDN_CONFIG_PATH" = "", "CDN configuration (YAML); unset: fetched from the Resource API"
        => cdn_config_path: Option<PathBuf> = value::file_if_any;
    "CA_CERT_PATH" = "", "PEM certificates to trust besides the web's authorities"
        => ca_cert_path: Option<PathBuf> = value::file_if_any;
    secret "HARDWARE_SALT" = "dev-hardware-salt", "salt of your installation for the hardware hash"
        => hardware_salt: Secret = value::salt;
    secret "API_KEY_SALT" = "dev-api-key-salt", "salt of your installation for the API key"
        => api_key_salt: Secret = value::salt;
    secret "RESOURCE_KEY_SALT" = "dev-resource-key-salt", "salt of your installation for the resource key"
        => resource_key_salt: Secret = value::salt;
    "HARDWARE_ID" = "", "replaces the hardware string; unset: read from the hardware"
        => hardware_id: Option<String> = value::text_if_any;
    "HANDLER_THREADS" = "4", "requests handled at once, 1 to 64"
        => handler_threads: usize = value::number(1..=64);
    "MAX_UPLOAD_BYTES" = "17179869184", "largest upload; K, M or G (1024) may follow the number"
        => max_upload_bytes: u64 = value::bytes(1);
    "CLIENT_STALL_SECONDS" = "30", "a client that moves no byte for this long is cut off, 1 to 3600"
        => client_stall_limit: Duration = value::time(1, 1..=3600);
    "MAX_CONNECTIONS" = "1024", "client connections at once, 1 to 65536"
        => max_connections: usize = value::number(1..=65_536);
    secret "CLIENT_TOKEN" = "", "bearer token that clients must send"
        => client_token: Option<Secret> = value::token;
    "LOADER_URL" = "", "for commands: http://host:port or unix:/path; unset: BIND_ADDR"
        => loader_url: Option<BindAddress> = value::loader_url;
    "ALLOWED_HOSTS" = "", "comma-separated host names that browsers may use for this service"
        => allowed_hosts: Vec<String> = value::host_names;
    "JWT_PUBLIC_KEY_PATH" = "", "PEM public key (RSA or P-256) that verifies the Resource API's tokens"
        => jwt_public_key_path: Option<PathBuf> = value::file_if_any;
    "SIGNING_KEY_PATH" = "", "PEM private key (Ed25519) that signs what this box uploads"
        => signing_key_path: Option<PathBuf> = value::file_if_any;
    "TRUSTED_KEYS_PATH" = "", "PEM public keys (Ed25519); only what one of them signed is loaded"
        => trusted_keys_path: Option<PathBuf> = value::file_if_any;
    "REQUIRE_MANIFEST" = "false", "true: models without a manifest are refused"
        => require_manifest: bool = value::flag;
    "OLD_READERS" = "true", "false: uploads leave out the plain key, which only old readers need"
        => old_readers: bool = value::flag;
    "CREDENTIALS_PATH" = "", "JSON file with the email and password of the login at the start"
        => credentials_path: Option<PathBuf> = value::path_if_any;
    "UNLOCK_AT_START" = "false", "true: unlocks at the start, with those credentials"
        => unlock_at_start: bool = value::flag;
    "PRUNE_OLD_IMAGES" = "false", "true: images of earlier archives that no container uses are removed"
        => prune_old_images: bool = value::flag;
    "KEEP" = "", "comma-separated folder/name: models to have at hand always"
        => keep: Vec<ModelName> = value::models;
    "KEEP_SECONDS" = "300", "how often new versions of these models are looked for, 1 to 86400"
        => keep_every: Duration = value::time(1, 1..=86_400);
    "CACHE_MAX_BYTES" = "0", "limit of the model cache; models used longest ago go; 0: no limit"
        => cache_max_bytes: u64 = value::bytes(0);
    "CACHE_MIN_FREE_BYTES" = "256M", "the model cache leaves this much of the file system free; 0: no limit"
        => cache_min_free_bytes: u64 = value::bytes(0);
    "DOWNLOAD_RATE" = "0", "bytes a second for all downloads of models together; 0: no limit"
        => download_rate: u64 = value::bytes(0);
    // A year at most: more is a slip of the finger.
    "OFFLINE_HOURS" = "0", "how long models load without the Resource API, 0 (not at all) to 8760"
        => offline_limit: Duration = value::time(3600, 0..=8760);
}

impl Configuration {
    /// Reads the process's environment.
    pub fn from_environment() -> Result<Self, String> {
        // That is for commands: a name in it that cannot be resolved must not stop the service.
        Self::from_lookup(&|name| if name == "LOADER_URL" { Ok(None) } else { variable(name) })
    }

    /// What a command needs to reach the running service; everything else has its default. A technician may not be able to
    /// read the files that the service reads.
    pub fn for_clients() -> Result<Self, String> {
        Self::from_lookup(&|name| match name {
            "BIND_ADDR" | "LOADER_URL" | "CLIENT_TOKEN" | "CLIENT_TOKEN_FILE" => variable(name),
            _ => Ok(None),
        })
    }

    /// Where commands and the mount find the service.
    pub fn service_address(&self) -> &BindAddress {
        self.loader_url.as_ref().unwrap_or(&self.bind_address)
    }

    /// The salts together.
    pub fn salts(&self) -> Salts {
        Salts {
            hardware: self.hardware_salt.clone(),
            api_key: self.api_key_salt.clone(),
            resource_key: self.resource_key_salt.clone(),
        }
    }

    /// The names of the salts that have their public default.
    pub fn default_salts(&self) -> Vec<&'static str> {
        let salts = [&self.hardware_salt, &self.api_key_salt, &self.resource_key_salt];
        let secrets = VARIABLES.iter().filter(|variable| variable.is_secret && !variable.default.is_empty());
        secrets.filter(|row| salts.iter().any(|salt| salt.matches(row.default))).map(|row| row.name).collect()
    }
}

/// Removes the secrets of this program, and the names of files with them, from the environment of another one.
pub fn hide_secrets_from(command: &mut Command) {
    for secret in VARIABLES.iter().filter(|variable| variable.is_secret) {
        command.env_remove(secret.name).env_remove(secret.file_variable());
    }
}

fn variable(name: &str) -> Result<Option<String>, String> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("{name} is not valid UTF-8 text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Configuration, String> {
        Configuration::from_lookup(&|name| {
            Ok(variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        })
    }

    #[test]
    fn the_defaults_are_the_specification_s() {
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
        assert_eq!((configuration.cache_max_bytes, configuration.cache_min_free_bytes), (0, 256 << 20));
        assert_eq!(configuration.download_rate, 0);
        assert!(configuration.signing_key_path.is_none() && configuration.trusted_keys_path.is_none());
        assert!(!configuration.require_manifest && configuration.old_readers && !configuration.prune_old_images);
        assert_eq!(configuration.default_salts(), ["HARDWARE_SALT", "API_KEY_SALT", "RESOURCE_KEY_SALT"]);
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
            ("LOADER_URL", "https://127.0.0.1:1"),
            ("LOADER_URL", "127.0.0.1:8080"),
            ("LOADER_URL", "http://127.0.0.1:80/path"),
            ("LOADER_URL", "unix:relative"),
            ("LOG_LEVEL", "loud"),
            ("CDN_CONFIG_PATH", "/nonexistent/cdn.yaml"),
            ("CA_CERT_PATH", "/nonexistent/ca.pem"),
            ("JWT_PUBLIC_KEY_PATH", "/nonexistent/key.pem"),
            ("SIGNING_KEY_PATH", "/nonexistent/key.pem"),
            ("TRUSTED_KEYS_PATH", "/nonexistent/key.pem"),
            ("REQUIRE_MANIFEST", "perhaps"),
            ("OLD_READERS", "some"),
            ("PRUNE_OLD_IMAGES", "old"),
            ("HANDLER_THREADS", "0"),
            ("HANDLER_THREADS", "many"),
            ("HANDLER_THREADS", "+4"),
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
            ("CACHE_MAX_BYTES", "all"),
            ("CACHE_MAX_BYTES", ""),
            ("CACHE_MIN_FREE_BYTES", "10%"),
            ("DOWNLOAD_RATE", "5MB"),
            ("CLIENT_TOKEN", "line\nbreak"),
            ("API_KEY_SALT", ""),
        ] {
            let error = with(&[(name, value)]).unwrap_err();
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
    fn a_secret_can_come_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let from_file = |text: &[u8]| {
            std::fs::write(path, text).unwrap();
            with(&[("API_KEY_SALT_FILE", path), ("CLIENT_TOKEN_FILE", ""), ("HARDWARE_SALT_FILE", "")])
        };
        for (text, salt) in [("pepper", "pepper"), ("pepper\n", "pepper"), ("pep per\n\n", "pep per\n")] {
            let configuration = from_file(text.as_bytes()).unwrap();
            assert_eq!(configuration.api_key_salt.expose(), salt);
            assert_eq!(configuration.default_salts(), ["HARDWARE_SALT", "RESOURCE_KEY_SALT"]);
        }
        for text in [&b""[..], b"\n", b"\xff", &[b'x'; 70_000]] {
            let error = from_file(text).unwrap_err();
            assert!(error.starts_with(&format!("API_KEY_SALT_FILE names {path}, which ")), "{error}");
        }
        std::fs::write(path, "pepper").unwrap();
        let error = with(&[("CLIENT_TOKEN", "sesame"), ("CLIENT_TOKEN_FILE", path)]).unwrap_err();
        assert_eq!(error, "CLIENT_TOKEN and CLIENT_TOKEN_FILE are both set; unset one of them");
        let error = with(&[("CLIENT_TOKEN_FILE", "/nonexistent/token")]).unwrap_err();
        assert!(error.starts_with("CLIENT_TOKEN_FILE names /nonexistent/token, which cannot be read"), "{error}");
        // Only secrets have such a variable.
        assert!(with(&[("API_VERSION_FILE", "/nonexistent/version")]).is_ok());
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let configuration = with(&[("API_KEY_SALT", "pepper"), ("CLIENT_TOKEN", "opensesame")]).unwrap();
        let debug = format!("{configuration:?}");
        assert!(!debug.contains("pepper") && !debug.contains("opensesame"), "{debug}");
    }
}
