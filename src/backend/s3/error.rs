//! What a failed call means: the store's answers and the network's failures as [`BackendError`]s.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::{ATTEMPTS_MAX, S3};
use crate::backend::BackendError;

/// A call, for messages, and the right it takes.
#[derive(Clone, Copy)]
pub(super) struct Action {
    pub(super) name: &'static str,
    right: &'static str,
}

pub(super) const PUT: Action = Action { name: "put", right: "s3:PutObject" };
pub(super) const GET: Action =
    Action { name: "get", right: "s3:GetObject (and s3:ListBucket, to tell what is missing)" };
pub(super) const LIST: Action = Action { name: "list", right: "s3:ListBucket" };
pub(super) const DELETE: Action = Action { name: "delete", right: "s3:DeleteObject" };
pub(super) const CREATE_BUCKET: Action = Action { name: "create bucket", right: "s3:CreateBucket" };

/// What a store says of bytes that do not fit their checksums or length.
pub(super) const BROKEN_ON_THE_WAY: &[&str] =
    &["BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InvalidDigest", "IncompleteBody"];

impl S3 {
    pub(super) fn damaged(&self, name: &str, detail: String) -> BackendError {
        BackendError::Damaged { name: name.to_owned(), location: self.location.clone(), detail }
    }

    pub(super) fn unreachable(&self, detail: String) -> BackendError {
        BackendError::Unreachable { location: self.location.clone(), detail: format!("{}: {detail}", self.endpoint) }
    }

    pub(super) fn strange(&self, name: &str, action: &'static str, detail: &str) -> BackendError {
        BackendError::Other {
            name: name.to_owned(),
            location: self.location.clone(),
            action,
            detail: format!("{} does not answer as S3 does: {}", self.endpoint, self.clean(detail.to_owned())),
        }
    }

    /// Takes secrets out of a text that others wrote.
    pub(super) fn clean(&self, text: String) -> String {
        self.secrets.iter().filter(|secret| !secret.is_empty()).fold(text, |text, secret| {
            if text.contains(secret.as_str()) { text.replace(secret.as_str(), "[redacted]") } else { text }
        })
    }

    /// What the failure of `action` on the object `name` means.
    pub(super) fn error<E>(&self, name: &str, action: Action, error: &SdkError<E, HttpResponse>) -> BackendError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let location = self.location.clone();
        let object = name.to_owned();
        let action_name = action.name;
        let Action { right, name: action, .. } = action;
        match error {
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => {
                let mut why = self.clean(innermost(error));
                if why.contains("UnknownIssuer") {
                    why += "; for a certificate authority of your own, set SSL_CERT_FILE to its PEM file";
                }
                return self.unreachable(why);
            }
            SdkError::ServiceError(_) => {}
            SdkError::ResponseError(_) => return self.strange(name, action, &innermost(error)),
            _ => {
                return BackendError::Other { name: object, location, action, detail: self.clean(innermost(error)) };
            }
        }
        let status = status(error).unwrap_or(0);
        let code = error.code().unwrap_or("no error code");
        let said = self.clean(match error.message() {
            Some(message) if !message.is_empty() => format!("{code}: {message}"),
            _ => format!("{code}, HTTP {status}"),
        });
        let denied = |why: &str| BackendError::Denied {
            name: name.to_owned(),
            location: self.location.clone(),
            action: action_name,
            detail: format!("{why} ({said})"),
        };
        match (status, code) {
            (_, "NoSuchBucket") => BackendError::NoStore {
                location,
                hint: format!(
                    "; make the bucket first: `aws s3 mb s3://{0}`, or with MinIO `mc mb ALIAS/{0}`",
                    self.bucket
                ),
            },
            (_, "NoSuchKey" | "NotFound") => BackendError::NotFound { name: object, location },
            (412, _) => BackendError::AlreadyExists { name: object, location },
            (_, "InvalidAccessKeyId") => denied("the access key is unknown there; check AWS_ACCESS_KEY_ID"),
            (_, "SignatureDoesNotMatch") => {
                denied("the secret key does not fit the access key; check AWS_SECRET_ACCESS_KEY")
            }
            (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
                denied("the session token has expired or is not valid; get a new one")
            }
            (_, "RequestTimeTooSkewed") => denied("this host's clock and the store's differ too much; set the clock"),
            (301 | 307, _)
            | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
                let region = error
                    .raw_response()
                    .and_then(|answer| answer.headers().get("x-amz-bucket-region"))
                    .map_or_else(|| "set AWS_REGION".to_owned(), |region| format!("set AWS_REGION={region}"));
                let detail = format!("the bucket is in another region; {region} ({said})");
                BackendError::Other { name: object, location, action, detail }
            }
            (507, _)
            | (
                _,
                "XMinioStorageFull"
                | "XMinioAdminBucketQuotaExceeded"
                | "QuotaExceeded"
                | "InsufficientStorage"
                | "XMinioDiskFull",
            ) => BackendError::NoSpace { name: object, location },
            (401 | 403, _) => denied(&format!("the credentials need {right}")),
            (_, "ObjectLocked" | "ObjectLockedByBucketPolicy") => denied("the object is locked"),
            (_, code) if BROKEN_ON_THE_WAY.contains(&code) => self.damaged(name, said),
            (408 | 409 | 429 | 500..=599, _) if code != "NotImplemented" => {
                self.unreachable(format!("{action} {name}: {said}, after {ATTEMPTS_MAX} attempts"))
            }
            _ => BackendError::Other { name: object, location, action, detail: said },
        }
    }
}

/// The HTTP status of the answer, if there was one.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|answer| answer.status().as_u16())
}

/// The cause at the bottom of a chain of errors: what happened, without the layers it came through.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
