//! Names and limits that several modules share, with the reason for each number.

use std::time::Duration;

/// The `User-Agent` and `Server` of this program.
pub const AGENT: &str = concat!("loader/", env!("CARGO_PKG_VERSION"));

/// A wall clock that shows less than this, in seconds since 1970 (it is 2026-01-01), was never set since the power came.
pub const EARLIEST_TIME: u64 = 1_767_225_600;

/// The folder, and so the bucket, of a load or upload that names none.
pub const DEFAULT_FOLDER: &str = "models";

/// The CDN configuration's file name in the Resource API's unnamed folder.
pub const CDN_CONFIG_FILE: &str = "cdn.yaml";

/// Bytes read, decrypted or written at a time. Ciphers reach full speed at 64 KiB; longer buffers mean fewer waits between
/// threads. Every running transfer holds a handful.
pub const CHUNK: usize = 256 * 1024;

/// The smallest page of memory that a processor has, in bytes.
pub const PAGE: usize = 4096;

/// The stall timeout of the Resource API and the CDN. (For clients it is `CLIENT_STALL_SECONDS`.)
pub const STALL_LIMIT: Duration = Duration::from_secs(30);

/// The largest JSON body, of clients and of the Resource API.
pub const MAX_JSON_BYTES: u64 = 64 * 1024;

/// The largest file from the Resource API: a small part has at most 3 KiB, `cdn.yaml` less.
pub const MAX_RESOURCE_BYTES: u64 = 1024 * 1024;
