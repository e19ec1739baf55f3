//! Names and limits that more than one module needs, with the reason for each number.

use std::time::Duration;

/// Name and version as this program gives them to servers and clients.
pub const AGENT: &str = concat!("loader/", env!("CARGO_PKG_VERSION"));

/// Folder of an upload or load that names none, and the bucket of the same name.
pub const DEFAULT_FOLDER: &str = "models";

/// The file that holds the CDN configuration in the Resource API's unnamed folder.
pub const CDN_CONFIG_FILE: &str = "cdn.yaml";

/// Bytes read, decrypted or written at a time. Ciphers run at full speed from 64 KiB on; threads that hand such buffers to
/// each other wait for each other less the longer they are. Every running transfer holds a handful.
pub const CHUNK: usize = 256 * 1024;

/// The Resource API or the CDN has failed when it moves no byte for so long. (For clients it is `CLIENT_STALL_SECONDS`.)
pub const STALL_LIMIT: Duration = Duration::from_secs(30);

/// The largest JSON body that is read, from clients and from the Resource API.
pub const MAX_JSON_BYTES: u64 = 64 * 1024;

/// The largest file that is fetched whole from the Resource API: small parts are at most 3 KiB, `cdn.yaml` is less.
pub const MAX_RESOURCE_BYTES: u64 = 1024 * 1024;
