//! The store behind hyper, in this process, with its two identities.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Result, s3_error};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::s3::Keys;
use super::s3_store::S3Store;

/// The running server; it stops when dropped.
pub struct S3Server {
    address: SocketAddr,
    runtime: Option<Runtime>,
    _data: TempDir,
}

impl S3Server {
    /// Starts on any free port of 127.0.0.1.
    pub fn start(downloader: &Keys, uploader: &Keys) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let mut auth = SimpleAuth::new();
        for keys in [downloader, uploader] {
            auth.register(keys.access.clone(), keys.secret.as_str().into());
        }
        let mut service = S3ServiceBuilder::new(S3Store::new(data.path()));
        service.set_auth(auth);
        service.set_access(Roles { uploader: uploader.access.clone() });
        let service = service.build();

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // Head and body go out in two writes; the second must not wait for the acknowledgement of the first.
                let _ = socket.set_nodelay(true);
                let service = service.clone();
                tokio::spawn(async move {
                    let mut builder = Builder::new(TokioExecutor::new());
                    // What a client began is finished although it goes away, as other stores do. Without this, hyper drops
                    // a completion halfway, which `s3s-fs` can neither repeat nor abort.
                    builder.http1().half_close(true);
                    let connection = builder.serve_connection(TokioIo::new(socket), service);
                    // If a client breaks off, its test made it do so.
                    let _ = connection.await;
                });
            }
        });
        Self { address, runtime: Some(runtime), _data: data }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Connections that hang on purpose must not hold up the test.
            runtime.shutdown_background();
        }
    }
}

/// The downloader may only read, as the CDN's keys are in the field.
struct Roles {
    uploader: String,
}

impl S3Access for Roles {
    // What `#[async_trait]` expands to: one method is not worth the crate.
    fn check<'a, 'b, 'c, 'f>(
        &'a self,
        cx: &'b mut S3AccessContext<'c>,
    ) -> Pin<Box<dyn Future<Output = S3Result<()>> + Send + 'f>>
    where
        'a: 'f,
        'b: 'f,
        'c: 'f,
        Self: 'f,
    {
        let reads = matches!(
            cx.s3_op().name(),
            "GetObject" | "HeadObject" | "ListObjects" | "ListObjectsV2" | "HeadBucket" | "GetBucketLocation"
        );
        let allowed = cx.credentials().is_some_and(|who| reads || who.access_key == self.uploader) && all_signed(cx);
        Box::pin(async move { if allowed { Ok(()) } else { Err(s3_error!(AccessDenied)) } })
    }
}

/// Whether the signature covers every `x-amz-` header. S3 and SeaweedFS refuse requests with others; `s3s` accepts
/// them.
fn all_signed(cx: &S3AccessContext<'_>) -> bool {
    let authorization = cx.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let query = cx.uri().query().unwrap_or_default();
    let in_header = authorization.split_once("SignedHeaders=").and_then(|(_, rest)| rest.split(',').next());
    let in_query = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-SignedHeaders="));
    let signed = in_header.or(in_query).unwrap_or_default().replace("%3B", ";").replace("%3b", ";");
    let names: Vec<_> = signed.split(';').collect();
    cx.headers().keys().all(|name| !name.as_str().starts_with("x-amz-") || names.contains(&name.as_str()))
}
