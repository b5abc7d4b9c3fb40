//! A put on its way: its body in pieces, its attempts and answers, and which failures another attempt may mend.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef, InterceptorContext,
};
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata};
use aws_sdk_s3::operation::put_object::PutObjectError;
use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat, SdkBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use jiff::Timestamp;

use super::error::BROKEN_ON_THE_WAY;
use super::timestamp;

/// Sees a put's attempts and answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    attempts: AtomicU32,
    checksum_differs: AtomicBool,
    sent_checksum: Mutex<Option<String>>,
    date: Mutex<Option<Timestamp>>,
}

const CHECKSUM_HEADER: &str = "x-amz-checksum-crc32";

impl Watch {
    /// Attempts that were sent so far.
    pub(super) fn attempts(&self) -> u32 {
        self.0.attempts.load(Ordering::Relaxed)
    }

    /// Whether the store said another checksum than it was sent.
    pub(super) fn checksum_differs(&self) -> bool {
        self.0.checksum_differs.load(Ordering::Relaxed)
    }

    /// The store's clock at its last answer; this host's if the answer had no `Date`.
    pub(super) fn store_time(&self) -> Timestamp {
        self.0.date.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Timestamp::now)
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "vault put watch"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.attempts.fetch_add(1, Ordering::Relaxed);
        let sent = context.request().headers().get(CHECKSUM_HEADER).map(str::to_owned);
        *self.0.sent_checksum.lock().unwrap_or_else(PoisonError::into_inner) = sent;
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.response().headers();
        let date = headers.get("date").and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
        if let Some(date) = date.as_ref().and_then(timestamp) {
            *self.0.date.lock().unwrap_or_else(PoisonError::into_inner) = Some(date);
        }
        let sent = self.0.sent_checksum.lock().unwrap_or_else(PoisonError::into_inner);
        let differs =
            matches!((sent.as_deref(), headers.get(CHECKSUM_HEADER)), (Some(sent), Some(there)) if sent != there);
        self.0.checksum_differs.store(differs, Ordering::Relaxed);
        Ok(())
    }
}

/// Failures of a put that another attempt may mend and that the SDK does not retry by itself: bytes harmed on the way,
/// a conflict with a request at the same time, and being told to slow down.
#[derive(Debug)]
pub(super) struct RetryPut;

impl ClassifyRetry for RetryPut {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let code = context
            .output_or_error()
            .and_then(|outcome| outcome.err())
            .and_then(|error| error.as_operation_error())
            .and_then(|error| error.downcast_ref::<PutObjectError>())
            .and_then(ProvideErrorMetadata::code);
        match (context.response().map(|answer| answer.status().as_u16()), code) {
            (_, Some(code)) if BROKEN_ON_THE_WAY.contains(&code) => RetryAction::transient_error(),
            (Some(408 | 409), _) => RetryAction::transient_error(),
            (Some(429), _) => RetryAction::throttling_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "vault put retries"
    }
}

/// The body of a put, handed over piece by piece.
pub(super) struct Pieces(Bytes);

impl Pieces {
    const PIECE_BYTES: usize = 64 << 10;

    pub(super) fn stream(bytes: Bytes) -> ByteStream {
        ByteStream::new(SdkBody::retryable(move || SdkBody::from_body_1_x(Self(bytes.clone()))))
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let len = self.0.len().min(Self::PIECE_BYTES);
        Poll::Ready((len > 0).then(|| Ok(Frame::data(self.0.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}
