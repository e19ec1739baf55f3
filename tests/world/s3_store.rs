//! `s3s-fs`, made as strict and as atomic as the stores in the field.
//!
//! Unchanged (0.14.1), it ignores `If-Match` on reads, fails on a suffix range longer than the object, creates buckets
//! implicitly, accepts any part ETag, and lets a reader see half of an overwriting copy. A loader that passes on it
//! could still lose data on a real store. What is added here was compared with SeaweedFS 4.48.
//!
//! It also reads files 4 KiB at a time, each on another thread, which takes minutes for a GiB on a busy machine.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Mutex;

#[allow(clippy::wildcard_imports)]
use s3s::dto::*;
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::sync::RwLock;
use tokio_util::io::ReaderStream;

use super::tcp::lock;

/// The largest part, and the largest object in one request; more must come as a multipart upload.
const MAX_PUT: usize = 256 * 1024 * 1024;

/// How much of a file is read at a time.
const PIECE: usize = 256 * 1024;

/// The store. Nothing reads an object while its bytes or its metadata change, so both appear to change at once.
pub struct S3Store {
    files: FileSystem,
    root: PathBuf,
    change: RwLock<()>,
    uploads: Mutex<HashMap<String, Upload>>,
}

/// A multipart upload that is neither complete nor aborted.
struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<i32, ETag>,
}

type Answer<'f, T> = Pin<Box<dyn Future<Output = S3Result<S3Response<T>>> + Send + 'f>>;

impl S3Store {
    /// A store in an existing directory.
    pub fn new(root: &Path) -> Self {
        let files = FileSystem::new(root).expect("a store in an existing directory");
        Self { files, root: root.to_owned(), change: RwLock::default(), uploads: Mutex::default() }
    }

    fn bucket_exists(&self, bucket: &str) -> S3Result<()> {
        if self.root.join(bucket).is_dir() { Ok(()) } else { Err(s3_error!(NoSuchBucket, "The bucket does not exist")) }
    }

    fn object_path(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }

    /// Limits a suffix range to the object, as HTTP demands; an empty object has no range at all.
    fn bounded(&self, bucket: &str, key: &str, range: Option<Range>) -> S3Result<Option<Range>> {
        let Some(Range::Suffix { length }) = range else { return Ok(range) };
        match std::fs::metadata(self.object_path(bucket, key)) {
            Ok(file) if file.len() == 0 => Err(s3_error!(InvalidRange)),
            Ok(file) => Ok(Some(Range::Suffix { length: length.min(file.len()) })),
            // The read itself says what is missing.
            Err(_) => Ok(range),
        }
    }

    /// A range of an object's bytes; all of it without one.
    async fn bytes(&self, bucket: &str, key: &str, range: Option<Range>) -> S3Result<(i64, StreamingBlob)> {
        let mut file = File::open(self.object_path(bucket, key)).await.map_err(|_| s3_error!(NoSuchKey))?;
        let length = file.metadata().await.map_err(s3s::S3Error::internal_error)?.len();
        let range = range.map_or(Ok(0..length), |range| range.check(length))?;
        file.seek(SeekFrom::Start(range.start)).await.map_err(s3s::S3Error::internal_error)?;
        let length = range.end - range.start;
        Ok((length as i64, StreamingBlob::wrap(ReaderStream::with_capacity(file.take(length), PIECE))))
    }

    fn upload_exists(&self, id: &str) -> S3Result<()> {
        if lock(&self.uploads).contains_key(id) { Ok(()) } else { Err(s3_error!(NoSuchUpload)) }
    }

    fn note_part(&self, id: &str, number: i32, etag: Option<&ETag>) {
        if let (Some(upload), Some(etag)) = (lock(&self.uploads).get_mut(id), etag) {
            upload.parts.insert(number, etag.clone());
        }
    }
}

/// `If-Match` and `If-None-Match` of a read.
fn check(etag: Option<&ETag>, wanted: Option<&ETagCondition>, unwanted: Option<&ETagCondition>) -> S3Result<()> {
    let is = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(other) => etag.is_some_and(|etag| etag.weak_cmp(other)),
    };
    if wanted.is_some_and(|condition| !is(condition)) {
        return Err(s3_error!(PreconditionFailed));
    }
    if unwanted.is_some_and(is) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

/// Methods of [`S3`] as `#[async_trait]` writes them, without the crate.
macro_rules! operations {
    ($(fn $name:ident($store:ident, $request:ident: $input:ident) -> $output:ident $body:block)*) => {$(
        fn $name<'a, 'f>(&'a self, $request: S3Request<$input>) -> Answer<'f, $output>
        where
            'a: 'f,
            Self: 'f,
        {
            let $store = self;
            Box::pin(async move { $body })
        }
    )*};
}

/// Methods that `s3s-fs` answers as it is.
macro_rules! as_they_are {
    ($($name:ident: $input:ident -> $output:ident;)*) => {
        operations! { $(fn $name(store, request: $input) -> $output { store.files.$name(request).await })* }
    };
}

impl S3 for S3Store {
    as_they_are! {
        create_bucket: CreateBucketInput -> CreateBucketOutput;
        delete_bucket: DeleteBucketInput -> DeleteBucketOutput;
        get_bucket_location: GetBucketLocationInput -> GetBucketLocationOutput;
        head_bucket: HeadBucketInput -> HeadBucketOutput;
        list_buckets: ListBucketsInput -> ListBucketsOutput;
        list_parts: ListPartsInput -> ListPartsOutput;
        delete_object: DeleteObjectInput -> DeleteObjectOutput;
        delete_objects: DeleteObjectsInput -> DeleteObjectsOutput;
    }

    operations! {
        fn get_object(store, request: GetObjectInput) -> GetObjectOutput {
            let mut request = request;
            let input = &mut request.input;
            store.bucket_exists(&input.bucket)?;
            let _still = store.change.read().await;
            input.range = store.bounded(&input.bucket, &input.key, input.range)?;
            let (wanted, unwanted) = (input.if_match.clone(), input.if_none_match.clone());
            let (bucket, key, range) = (input.bucket.clone(), input.key.clone(), input.range);
            let mut answer = store.files.get_object(request).await?;
            check(answer.output.e_tag.as_ref(), wanted.as_ref(), unwanted.as_ref())?;
            answer.output.accept_ranges = Some("bytes".to_owned());
            answer.output.body = Some(store.bytes(&bucket, &key, range).await?.1);
            Ok(answer)
        }

        fn head_object(store, request: HeadObjectInput) -> HeadObjectOutput {
            let (wanted, unwanted) = (request.input.if_match.clone(), request.input.if_none_match.clone());
            let _still = store.change.read().await;
            let mut answer = store.files.head_object(request).await?;
            check(answer.output.e_tag.as_ref(), wanted.as_ref(), unwanted.as_ref())?;
            answer.output.accept_ranges = Some("bytes".to_owned());
            Ok(answer)
        }

        fn put_object(store, request: PutObjectInput) -> PutObjectOutput {
            let mut request = request;
            store.bucket_exists(&request.input.bucket)?;
            // The body is read first: a client that stalls must not hold up the readers of other objects.
            let mut body = Body::from(request.input.body.take().ok_or_else(|| s3_error!(IncompleteBody))?);
            let bytes = body.store_all_limited(MAX_PUT).await.map_err(|why| {
                s3_error!(BadDigest, "the body ended early or is not what was signed: {why}")
            })?;
            request.input.body = Some(Body::from(bytes).into());
            let _alone = store.change.write().await;
            store.files.put_object(request).await
        }

        fn copy_object(store, request: CopyObjectInput) -> CopyObjectOutput {
            let input = &request.input;
            store.bucket_exists(&input.bucket)?;
            let target = store.object_path(&input.bucket, &input.key);
            let onto_itself = matches!(
                &input.copy_source,
                CopySource::Bucket { bucket, key, .. } if store.object_path(bucket, key) == target
            );
            if onto_itself && input.metadata_directive.as_ref().is_none_or(|directive| directive.as_str() != "REPLACE") {
                return Err(s3_error!(InvalidRequest, "a copy onto itself that changes nothing"));
            }
            let _alone = store.change.write().await;
            // The old file is moved aside: a copy into the file itself would change it under its readers.
            let aside = store.root.join(".copied-over");
            let moved = !onto_itself && std::fs::rename(&target, &aside).is_ok();
            let answer = store.files.copy_object(request).await;
            if moved && answer.is_err() {
                std::fs::rename(&aside, &target).map_err(s3s::S3Error::internal_error)?;
            }
            answer
        }

        fn list_objects(store, request: ListObjectsInput) -> ListObjectsOutput {
            let _still = store.change.read().await;
            store.files.list_objects(request).await
        }

        fn list_objects_v2(store, request: ListObjectsV2Input) -> ListObjectsV2Output {
            let _still = store.change.read().await;
            store.files.list_objects_v2(request).await
        }

        fn create_multipart_upload(store, request: CreateMultipartUploadInput) -> CreateMultipartUploadOutput {
            let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
            store.bucket_exists(&bucket)?;
            let answer = store.files.create_multipart_upload(request).await?;
            let id = answer.output.upload_id.clone().unwrap_or_default();
            lock(&store.uploads).insert(id, Upload { bucket, key, parts: BTreeMap::new() });
            Ok(answer)
        }

        fn upload_part(store, request: UploadPartInput) -> UploadPartOutput {
            let (id, number) = (request.input.upload_id.clone(), request.input.part_number);
            store.upload_exists(&id)?;
            let answer = store.files.upload_part(request).await?;
            store.note_part(&id, number, answer.output.e_tag.as_ref());
            Ok(answer)
        }

        fn upload_part_copy(store, request: UploadPartCopyInput) -> UploadPartCopyOutput {
            let (id, number) = (request.input.upload_id.clone(), request.input.part_number);
            store.upload_exists(&id)?;
            let CopySource::Bucket { bucket, key, .. } = &request.input.copy_source else {
                return Err(s3_error!(NotImplemented));
            };
            let range = request.input.copy_source_range.as_deref().map(Range::parse).transpose();
            let range = range.map_err(|_| s3_error!(InvalidArgument))?;
            let _still = store.change.read().await;
            let (length, bytes) = store.bytes(bucket, key, range).await?;
            if let Some(Range::Int { first, last: Some(last) }) = range
                && length as u64 != last - first + 1
            {
                return Err(s3_error!(InvalidRange));
            }
            let part = request.map_input(|input| UploadPartInput {
                bucket: input.bucket,
                key: input.key,
                upload_id: input.upload_id,
                part_number: input.part_number,
                content_length: Some(length),
                body: Some(bytes),
                ..UploadPartInput::default()
            });
            let e_tag = store.files.upload_part(part).await?.output.e_tag;
            store.note_part(&id, number, e_tag.as_ref());
            let copied = CopyPartResult { e_tag, ..CopyPartResult::default() };
            let copy_part_result = Some(copied);
            Ok(S3Response::new(UploadPartCopyOutput { copy_part_result, ..UploadPartCopyOutput::default() }))
        }

        fn complete_multipart_upload(store, request: CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput {
            let id = request.input.upload_id.clone();
            // A repeated completion waits for the first one. `s3s-fs` would answer AccessDenied to an upload that is gone.
            let _alone = store.change.write().await;
            store.upload_exists(&id)?;
            let named = request.input.multipart_upload.iter().flat_map(|upload| upload.parts.iter().flatten());
            for part in named {
                let uploads = lock(&store.uploads);
                let known = uploads.get(&id).and_then(|upload| upload.parts.get(&part.part_number.unwrap_or_default()));
                if known.is_none() || known != part.e_tag.as_ref() {
                    return Err(s3_error!(InvalidPart));
                }
            }
            let answer = store.files.complete_multipart_upload(request).await?;
            lock(&store.uploads).remove(&id);
            Ok(answer)
        }

        fn abort_multipart_upload(store, request: AbortMultipartUploadInput) -> AbortMultipartUploadOutput {
            let id = request.input.upload_id.clone();
            let _alone = store.change.write().await;
            store.upload_exists(&id)?;
            let answer = store.files.abort_multipart_upload(request).await?;
            lock(&store.uploads).remove(&id);
            Ok(answer)
        }

        fn list_multipart_uploads(store, request: ListMultipartUploadsInput) -> ListMultipartUploadsOutput {
            let ListMultipartUploadsInput { bucket, prefix, .. } = request.input;
            store.bucket_exists(&bucket)?;
            let prefix = prefix.unwrap_or_default();
            let uploads = lock(&store.uploads);
            let here = uploads.iter().filter(|(_, upload)| upload.bucket == bucket && upload.key.starts_with(&prefix));
            let list = here.map(|(id, upload)| MultipartUpload {
                key: Some(upload.key.clone()),
                upload_id: Some(id.clone()),
                initiated: Some(std::time::SystemTime::now().into()),
                ..MultipartUpload::default()
            });
            let uploads = Some(list.collect());
            let bucket = Some(bucket);
            Ok(S3Response::new(ListMultipartUploadsOutput { bucket, uploads, ..ListMultipartUploadsOutput::default() }))
        }
    }
}
