//! A store in a bucket of anything that speaks S3: AWS, MinIO, Ceph and others.
//!
//! The only place of the storage side where code is asynchronous: the backend owns a small tokio runtime and every call
//! waits on it, so it must not be called from inside another runtime's task.
//!
//! What is sent and what is made of the answers:
//!
//! - A put is one request with `If-None-Match: *` and the CRC32 of the bytes in `x-amz-checksum-crc32`, which is signed and
//!   which the store compares. Each put carries a random `x-amz-meta-put`.
//! - The SDK retries, five attempts in all; there is no second layer above it. When the store says `412` to an attempt
//!   that was not the first, an earlier one may have stored the object and its answer been lost: then the `put` mark of
//!   what is stored decides whether it is ours. A `412` to the first attempt is always [`BackendError::AlreadyExists`].
//! - The body of a put goes out in small pieces: of one that is handed over whole the SDK cannot tell whether it moves, and
//!   a line that went dead would be noticed only when the time of the attempt is over.
//! - The SDK does not retry a body that breaks off; [`S3::get`](Backend::get) asks again for the whole answer, five times.
//! - A listing must be complete and in order, page by page; whatever is not is an error.
//! - S3 does not say whether a delete removed something, so a delete asks first (one byte of the object). Of two deletes
//!   at once both may say yes. A missing object is not deleted again: that would leave a marker in a versioned bucket.

mod error;
mod put;
mod settings;

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::client::customize::CustomizableOperation;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{ProvideCredentials, Region, StalledStreamProtectionConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use jiff::Timestamp;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use super::{
    Backend, BackendError, OBJECT_BYTES_MAX, ObjectInfo, Properties, PutReceipt, check_name, check_prefix, check_put,
    checked_range, slice, too_long,
};
use error::{CREATE_BUCKET, DELETE, GET, LIST, PUT, innermost, status};
use put::{Pieces, RetryPut, Watch};
pub use settings::{S3Keys, S3Options, S3Times};

/// Attempts at one request, the first included; and at reading one answer's body.
const ATTEMPTS_MAX: u32 = 5;
/// Each attempt may take a second longer for every so many bytes that it sends.
const BYTES_PER_SECOND_MIN: u64 = 32 << 10;

/// Which put stored an object.
const PUT_MARK: &str = "put";

/// A bucket, or the part of one below a prefix, as a store.
pub struct S3 {
    client: Client,
    /// `Some` until dropped.
    runtime: Option<Runtime>,
    bucket: String,
    /// Empty or ending with `/`.
    prefix: String,
    location: String,
    /// For messages: where requests go.
    endpoint: String,
    times: S3Times,
    /// What must not be in any message.
    secrets: Vec<Zeroizing<String>>,
}

impl S3 {
    /// Opens the store in `bucket` below `prefix`, which is empty or a path. Finds the credentials; asks the bucket nothing.
    pub fn open(bucket: &str, prefix: &str, options: S3Options) -> Result<Self, BackendError> {
        let location = format!("s3://{bucket}{}{prefix}", if prefix.is_empty() { "" } else { "/" });
        let failed = |detail: String| BackendError::Other {
            name: "repository".to_owned(),
            location: location.clone(),
            action: "open",
            detail,
        };
        if options.endpoint.as_deref().is_some_and(|endpoint| endpoint.contains('@')) {
            return Err(failed(
                "the endpoint holds a user or password; give it as http://host:port and the credentials \
                 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                    .to_owned(),
            ));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("s3")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| failed(error.to_string()))?;

        let config = runtime.block_on(settings::load(&options));
        let endpoint = options.endpoint.or_else(|| config.endpoint_url().map(str::to_owned));
        let provider = config.credentials_provider().expect("the loader always sets a chain");
        let credentials = runtime.block_on(provider.provide_credentials()).map_err(|error| {
            // The usual case is told by the hint alone; a profile that cannot be read, say, is another.
            let why = if format!("{error:?}").starts_with("CredentialsNotLoaded") {
                "no credentials were found".to_owned()
            } else {
                format!("no credentials: {}", innermost(&error))
            };
            BackendError::Denied {
                name: "repository".to_owned(),
                location: location.clone(),
                action: "open",
                detail: format!(
                    "{why}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or MINIO_ACCESS_KEY and \
                     MINIO_SECRET_KEY"
                ),
            }
        })?;
        let mut secrets = vec![Zeroizing::new(credentials.secret_access_key().to_owned())];
        secrets.extend(credentials.session_token().map(|token| Zeroizing::new(token.to_owned())));

        // Attempts are bounded per request; the SDK's quota over all requests of a process would make a store that
        // cannot be reached use up the retries of another.
        let quota = RetryPartition::custom("vault").token_bucket(TokenBucket::unlimited()).build();
        let mut s3 = aws_sdk_s3::config::Builder::from(&config)
            .force_path_style(endpoint.is_some())
            .retry_partition(quota)
            .retry_classifier(RetryPut);
        if let Some(endpoint) = &endpoint {
            s3 = s3.endpoint_url(endpoint);
        }
        let region = config.region().map_or("us-east-1", Region::as_ref);
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        Ok(Self {
            client: Client::from_conf(s3.build()),
            runtime: Some(runtime),
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            location,
            times: options.times,
            endpoint,
            secrets,
        })
    }

    /// Makes the bucket; no error if it is this user's already.
    pub fn create_bucket(&self) -> Result<(), BackendError> {
        match self.wait(self.limited(self.client.create_bucket().bucket(&self.bucket).customize(), 0).send()) {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("BucketAlreadyOwnedByYou") => Ok(()),
            Err(error) => Err(self.error("bucket", CREATE_BUCKET, &error)),
        }
    }

    /// Sends a put with a checksum that is wrong and says whether the store refused it. Nothing is stored under `name`
    /// if it did; what it took anyway is removed.
    pub fn refuses_wrong_checksum(&self, name: &str) -> Result<bool, BackendError> {
        check_name(name)?;
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(name))
            .if_none_match("*")
            .checksum_crc32("AAAAAA==") // of the empty text only
            .body(ByteStream::from_static(b"not empty"));
        match self.wait(self.limited(put.customize(), 0).send()) {
            Ok(_) => self.delete(name).map(|_| false),
            Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 400) => Ok(true),
            Err(error) => Err(self.error(name, PUT, &error)),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().expect("only drop takes it").block_on(future)
    }

    /// Bounds the time of an attempt that sends `bytes`.
    fn limited<T, E, B>(
        &self,
        request: CustomizableOperation<T, E, B>,
        bytes: usize,
    ) -> CustomizableOperation<T, E, B> {
        let attempt = self.times.attempt + Duration::from_secs(bytes as u64 / BYTES_PER_SECOND_MIN);
        let timeouts =
            TimeoutConfig::builder().connect_timeout(self.times.connect).operation_attempt_timeout(attempt).build();
        // Of what a slow line is sent, the kernel takes megabytes at a time.
        let stall = if bytes == 0 { self.times.stall } else { self.times.stall * 3 };
        let stalled = StalledStreamProtectionConfig::enabled().grace_period(stall).build();
        request
            .config_override(aws_sdk_s3::Config::builder().timeout_config(timeouts).stalled_stream_protection(stalled))
    }

    /// Asks for an object, or those bytes of it.
    fn ask(
        &self,
        name: &str,
        range: Option<(u64, u64)>,
    ) -> Result<GetObjectOutput, Box<SdkError<GetObjectError, HttpResponse>>> {
        let mut request = self.client.get_object().bucket(&self.bucket).key(self.key(name));
        if let Some((first, last)) = range {
            request = request.range(format!("bytes={first}-{last}"));
        }
        self.wait(self.limited(request.customize(), 0).send()).map_err(Box::new)
    }

    /// Returns the object's size and the mark of the put that stored it, or `None` if there is no such object.
    fn look(&self, name: &str) -> Result<Option<Found>, BackendError> {
        match self.ask(name, Some((0, 0))) {
            Ok(answer) => {
                let bytes = object_bytes(&answer)
                    .ok_or_else(|| self.strange(name, "get", "it does not say how long the object is"))?;
                let put = answer.metadata().and_then(|metadata| metadata.get(PUT_MARK)).cloned();
                Ok(Some(Found { bytes, put }))
            }
            // Only an empty object has no first byte.
            Err(error) if status(&error) == Some(416) => Ok(Some(Found { bytes: 0, put: None })),
            Err(error) => match self.error(name, GET, &error) {
                BackendError::NotFound { .. } => Ok(None),
                other => Err(other),
            },
        }
    }

    /// Gets an answer and its body, again and again while the body breaks off.
    fn fetch(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let mut attempt = 1;
        loop {
            let answer = match self.ask(name, range.as_ref().map(|range| (range.start, range.end - 1))) {
                Err(error) if status(&error) == Some(416) => {
                    let found = self.look(name)?.map_or(0, |found| found.bytes);
                    let wanted_bytes = range.map_or(0, |range| range.end);
                    return Err(BackendError::ShortRange { name: name.to_owned(), actual_bytes: found, wanted_bytes });
                }
                other => other.map_err(|error| self.error(name, GET, &error))?,
            };
            let total = object_bytes(&answer)
                .ok_or_else(|| self.strange(name, "get", "it does not say how long the object is"))?;
            let (start, len) = checked_range(name, &self.location, total, range.clone())?;
            // A store may ignore a range and send everything.
            let whole = answer.content_range().is_none();
            let first = answer.content_range().and_then(range_start).unwrap_or(0);
            if !whole && first != start {
                return Err(self.strange(
                    name,
                    "get",
                    &format!("asked for bytes from {start}, it sent those from {first}"),
                ));
            }
            let expected = if whole { total } else { len as u64 };
            if expected > OBJECT_BYTES_MAX as u64 {
                return Err(self.damaged(name, too_long(expected)));
            }
            let broken = match self.wait(collect(answer.body, expected as usize)) {
                Ok(bytes) => return if whole { slice(name, &self.location, &bytes, range) } else { Ok(bytes) },
                Err(broken) => self.clean(broken),
            };
            if attempt == ATTEMPTS_MAX {
                return Err(if broken.contains("checksum mismatch") || broken.contains("more bytes") {
                    self.damaged(name, broken)
                } else {
                    self.unreachable(format!("{name} broke off {attempt} times: {broken}"))
                });
            }
            std::thread::sleep((self.times.backoff * 2u32.pow(attempt - 1)).min(self.times.backoff_max));
            attempt += 1;
        }
    }

    /// Decides whether the object that is there was stored by the put marked `mark`, whose answer was lost.
    fn is_ours(&self, name: &str, bytes: &Bytes, mark: &str) -> Result<bool, BackendError> {
        match self.look(name)? {
            None => Ok(false),
            Some(Found { put: Some(put), .. }) => Ok(put == mark),
            // A store that keeps no metadata, or an empty object.
            Some(found) => Ok(found.bytes == bytes.len() as u64 && self.get(name, None)? == *bytes),
        }
    }
}

impl Backend for S3 {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        check_put(name, &self.location, &bytes)?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| BackendError::Other {
            name: name.to_owned(),
            location: self.location.clone(),
            action: "put",
            detail: error.to_string(),
        })?;
        let mark = HEXLOWER.encode(&random);
        let watch = Watch::default();
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(name))
            .if_none_match("*")
            .checksum_crc32(BASE64.encode(&crc32fast::hash(&bytes).to_be_bytes()))
            .metadata(PUT_MARK, &mark)
            .content_type("application/octet-stream")
            .content_length(bytes.len() as i64)
            .body(Pieces::stream(bytes.clone()));
        let request = self.limited(request.customize(), bytes.len()).interceptor(watch.clone());
        let stored = match self.wait(request.send()) {
            Ok(_) if watch.checksum_differs() => {
                // The answer, or what it is about, was harmed: look.
                if self.get(name, None)? != bytes {
                    return Err(self.damaged(name, "the store's checksum of it is not ours".to_owned()));
                }
                true
            }
            Ok(_) => true,
            Err(error) if status(&error) == Some(412) => watch.attempts() > 1 && self.is_ours(name, &bytes, &mark)?,
            Err(error) => return Err(self.error(name, PUT, &error)),
        };
        if stored {
            Ok(PutReceipt { store_time: watch.store_time() })
        } else {
            Err(BackendError::AlreadyExists { name: name.to_owned(), location: self.location.clone() })
        }
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        check_name(name)?;
        match range {
            Some(range) if range.is_empty() => match self.look(name)? {
                Some(_) => Ok(Bytes::new()),
                None => Err(BackendError::NotFound { name: name.to_owned(), location: self.location.clone() }),
            },
            range => self.fetch(name, range),
        }
    }

    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        check_prefix(prefix)?;
        let shown = if prefix.is_empty() { "listing" } else { prefix };
        let strange = |detail: &str| self.strange(shown, "list", detail);
        let full_prefix = self.key(prefix);
        let mut token: Option<String> = None;
        let mut last_key = String::new();
        loop {
            let request = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(&full_prefix)
                .set_continuation_token(token.clone());
            let page = self.wait(self.limited(request.customize(), 0).send()).map_err(|error| {
                match self.error(shown, LIST, &error) {
                    // Said of a listing, this must not pass for an empty one.
                    BackendError::NotFound { .. } => strange("a listing is not found"),
                    other => other,
                }
            })?;
            let objects = page.contents();
            // An answer that is no listing at all parses as an empty one.
            let more = page.is_truncated().ok_or_else(|| strange("the answer to a listing is none"))?;
            if page.key_count().is_some_and(|count| usize::try_from(count) != Ok(objects.len())) {
                return Err(strange("a page of a listing holds another number of objects than it says"));
            }
            for object in objects {
                let key = object.key().ok_or_else(|| strange("a listing names an object without a name"))?;
                let Some(name) = key.strip_prefix(&self.prefix).filter(|_| key.starts_with(&full_prefix)) else {
                    return Err(strange("a listing names objects that were not asked for"));
                };
                if key <= last_key.as_str() {
                    return Err(strange("a listing is out of order or repeats itself"));
                }
                key.clone_into(&mut last_key);
                if check_name(name).is_err() {
                    continue;
                }
                let bytes = object.size().and_then(|bytes| u64::try_from(bytes).ok());
                let modified = object.last_modified().and_then(timestamp);
                let (Some(bytes), Some(modified)) = (bytes, modified) else {
                    return Err(strange("a listing lacks an object's size or time"));
                };
                each(ObjectInfo { name: name.to_owned(), bytes, modified })?;
            }
            let next = page.next_continuation_token().filter(|next| !next.is_empty()).map(str::to_owned);
            match (more, next) {
                (false, _) => return Ok(()),
                (true, None) => return Err(strange("a listing breaks off")),
                // Without objects in between, order does not show that it runs in a circle.
                (true, next) if next == token || objects.is_empty() => {
                    return Err(strange("a listing does not go on"));
                }
                (true, next) => token = next,
            }
        }
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        check_name(name)?;
        match self.look(name) {
            Ok(None) => return Ok(false),
            // Who may delete need not be allowed to read.
            Ok(Some(_)) | Err(BackendError::Denied { .. }) => {}
            Err(error) => return Err(error),
        }
        let request = self.client.delete_object().bucket(&self.bucket).key(self.key(name));
        match self.wait(self.limited(request.customize(), 0).send()) {
            Ok(_) => Ok(true),
            Err(error) => match self.error(name, DELETE, &error) {
                BackendError::NotFound { .. } => Ok(false),
                other => Err(other),
            },
        }
    }

    fn properties(&self) -> Properties {
        Properties { location: self.location.clone(), kind: "s3", parallel_requests: 4 }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Does not wait, which a runtime may not do inside another one.
            runtime.shutdown_background();
        }
    }
}

/// An object that is there.
struct Found {
    bytes: u64,
    put: Option<String>,
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}

/// Reads a body of exactly `expected` bytes.
async fn collect(mut body: ByteStream, expected: usize) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(expected).map_err(|error| error.to_string())?;
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| innermost(&error))?;
        if bytes.len() + part.len() > expected {
            return Err(format!("the answer has more bytes than the {expected} it spoke of"));
        }
        bytes.extend_from_slice(&part);
    }
    if bytes.len() < expected {
        return Err(format!("the answer ended after {} of {expected} bytes", bytes.len()));
    }
    Ok(bytes.into())
}

/// The length of the object an answer is about, whether it holds all of it or a range.
fn object_bytes(answer: &GetObjectOutput) -> Option<u64> {
    match answer.content_range() {
        Some(range) => range.rsplit_once('/')?.1.parse().ok(),
        None => u64::try_from(answer.content_length()?).ok(),
    }
}

/// The first byte of a `Content-Range`.
fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_with_a_password_is_refused_and_not_repeated() {
        let options = S3Options { endpoint: Some("http://user:hunter2@host".to_owned()), ..S3Options::default() };
        let text = S3::open("bucket", "", options).err().expect("refused").to_string();
        assert!(!text.contains("hunter2") && text.contains("AWS_SECRET_ACCESS_KEY"), "{text}");
    }
}
