//! Repository URLs: a path, or `s3://bucket/prefix`.

use std::sync::Arc;

use crate::backend::local::Local;
use crate::backend::{Backend, BackendError};

/// Opens the store at `url`, which must exist.
pub fn open(url: &str) -> Result<Arc<dyn Backend>, BackendError> {
    Ok(Arc::new(Local::open(url)?))
}

/// Opens the store at `url`; makes it if it is a folder that does not exist.
pub fn create(url: &str) -> Result<Arc<dyn Backend>, BackendError> {
    Ok(Arc::new(Local::create(url)?))
}
