//! Repository URLs: a path, `file:///path`, or `s3://bucket/prefix`.
//!
//! A URL never holds a secret; one that seems to is refused and not repeated in the message.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::{Backend, BackendError, Local};
#[cfg(feature = "s3")]
use super::{S3, S3Options};

/// Opens the store at `url`, which must exist (a bucket is asked nothing yet). Credentials come from the environment.
pub fn open(url: &str) -> Result<Arc<dyn Backend>, BackendError> {
    match url.parse()? {
        Location::Folder(path) => Ok(Arc::new(Local::open(path)?)),
        location => location.open_remote(),
    }
}

/// Opens the store at `url`; makes it if it is a folder that does not exist. Buckets are not made.
pub fn create(url: &str) -> Result<Arc<dyn Backend>, BackendError> {
    match url.parse()? {
        Location::Folder(path) => Ok(Arc::new(Local::create(path)?)),
        location => location.open_remote(),
    }
}

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    Folder(PathBuf),
    /// `prefix` is empty or a path without slashes at its ends.
    S3 {
        bucket: String,
        prefix: String,
    },
}

impl Location {
    #[cfg(feature = "s3")]
    fn open_remote(&self) -> Result<Arc<dyn Backend>, BackendError> {
        Ok(Arc::new(self.open_s3()?))
    }

    /// Opens the bucket of a [`Location::S3`].
    #[cfg(feature = "s3")]
    pub(super) fn open_s3(&self) -> Result<S3, BackendError> {
        match self {
            Self::S3 { bucket, prefix } => {
                S3::open(bucket, prefix, S3Options::from_env(&|name| std::env::var(name).ok()))
            }
            Self::Folder(_) => Err(bad("is a folder and no bucket".to_owned())),
        }
    }

    #[cfg(not(feature = "s3"))]
    fn open_remote(&self) -> Result<Arc<dyn Backend>, BackendError> {
        Err(bad(format!("{self} needs a vault that was built with the feature `s3`")))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl FromStr for Location {
    type Err = BackendError;

    fn from_str(url: &str) -> Result<Self, BackendError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            if url.starts_with("s3:") {
                return Err(bad(SHAPE.to_owned()));
            }
            if url.is_empty() || url.contains('\0') {
                return Err(bad("the repository's path is empty or holds a NUL".to_owned()));
            }
            return Ok(Self::Folder(url.into()));
        };
        match scheme {
            // A path may hold an `@`.
            "file" if rest.starts_with('/') && !rest.contains('\0') => Ok(Self::Folder(rest.into())),
            "file" => Err(bad("file:// takes an absolute path, as in file:///srv/vault".to_owned())),
            // Before anything that repeats a part of the URL.
            _ if rest.contains('@') => {
                Err(bad(format!("the repository's URL holds a user or password. {ALTERNATIVES}")))
            }
            "s3" => s3(rest),
            "http" | "https" => Err(bad(SHAPE.to_owned())),
            _ => Err(bad("a repository is a path or s3://bucket/prefix; this URL begins otherwise".to_owned())),
        }
    }
}

const SHAPE: &str =
    "a bucket is written s3://bucket/prefix; where the store is not AWS, set AWS_ENDPOINT_URL=http://host:port";

const ALTERNATIVES: &str = "Secrets on a command line can be seen by everybody on the host: set AWS_ACCESS_KEY_ID and \
    AWS_SECRET_ACCESS_KEY, or MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or AWS_PROFILE, and write s3://bucket/prefix";

/// Most bytes of a bucket's prefix. Keys in S3 have at most 1024, and object names take 128.
const PREFIX_BYTES_MAX: usize = 512;

fn s3(rest: &str) -> Result<Location, BackendError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // `key:secret` forgotten half way, or `host:port`: not repeated.
    if bucket.contains(':') {
        return Err(bad(SHAPE.to_owned()));
    }
    let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let fits = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        && edge(bucket.bytes().next())
        && edge(bucket.bytes().last());
    if !fits {
        return Err(bad(format!(
            "{bucket:?} cannot be a bucket's name: 3 to 63 of a-z 0-9 - . with a letter or digit at both ends"
        )));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let fits = prefix.is_empty()
        || prefix.len() <= PREFIX_BYTES_MAX
            && prefix.split('/').all(|part| {
                !part.is_empty()
                    && part != "."
                    && part != ".."
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=' | b'+' | b'~'))
            });
    if !fits {
        return Err(bad(format!(
            "{prefix:?} cannot be a prefix: at most {PREFIX_BYTES_MAX} of letters, digits and - _ . = + ~ between single slashes"
        )));
    }
    Ok(Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

fn bad(detail: String) -> BackendError {
    BackendError::BadLocation { detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_buckets_are_told_apart() {
        let folder = |path: &str| Location::Folder(path.into());
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        for (url, expected) in [
            ("/srv/vault", folder("/srv/vault")),
            ("relative/path", folder("relative/path")),
            ("s3", folder("s3")),
            ("/srv/who@where:what", folder("/srv/who@where:what")),
            ("file:///srv/a@b", folder("/srv/a@b")),
            ("s3://bucket", s3("bucket", "")),
            ("s3://bucket/", s3("bucket", "")),
            ("s3://bucket/a/b", s3("bucket", "a/b")),
            ("s3://my.bucket-1/Team_A/2026/", s3("my.bucket-1", "Team_A/2026")),
        ] {
            assert_eq!(url.parse::<Location>().unwrap(), expected, "{url}");
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        for url in [
            "",
            "a\0b",
            "s3:",
            "s3:http://host/bucket",
            "s3://",
            "s3:///prefix",
            "s3://a",
            "s3://Bucket",
            "s3://-bucket",
            "s3://bucket//a",
            "s3://bucket/../other",
            "s3://bucket/a?b=c",
            "s3://bucket/a b",
            "s3://localhost:9000/bucket",
            "http://localhost:9000/bucket",
            "https://s3.example.com/b",
            "sftp://host/path",
            "file://relative",
            "://",
        ] {
            assert!(matches!(url.parse::<Location>(), Err(BackendError::BadLocation { .. })), "{url:?} is refused");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for url in [
            "s3://AKIDKEY:hunter2/x@bucket/prefix",
            "s3://AKIDKEY:hunter2@bucket/prefix",
            "s3://AKIDKEY:hunter2/bucket",
            "s3://hunter2@bucket",
            "https://AKIDKEY:hunter2@host:9000/bucket",
            "sftp://user:hunter2@host/path",
            "s3:https://AKIDKEY:hunter2@host/bucket",
        ] {
            let text = url.parse::<Location>().unwrap_err().to_string();
            assert!(!text.contains("hunter2") && !text.contains("AKIDKEY"), "{url}: {text}");
        }
        let text = "s3://key:secret@bucket".parse::<Location>().unwrap_err().to_string();
        assert!(text.contains("AWS_SECRET_ACCESS_KEY"), "{text} names what to use instead");
    }

    #[test]
    fn a_location_reads_back_what_it_prints() {
        for url in ["/srv/vault", "s3://bucket", "s3://bucket/a/b"] {
            assert_eq!(url.parse::<Location>().unwrap().to_string(), url);
        }
    }
}
