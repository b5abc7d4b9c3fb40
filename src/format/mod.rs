//! Every byte that vault writes into a repository, sans I/O. One file per page of `format-spec/`.

pub mod config;
pub mod index;
pub mod manifest;
pub mod pack;
pub mod records;
pub mod slot;

mod bytes;

/// Why bytes that should be ours could not be read. Carried by every parser of this module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    #[error("{what} ends too early")]
    Truncated { what: &'static str },
    #[error("{what} is followed by bytes that do not belong to it")]
    Trailing { what: &'static str },
    #[error("{what} does not begin with its magic bytes")]
    Magic { what: &'static str },
    #[error("{what} of version {found}; this vault reads version {known}: use a newer vault")]
    Version { what: &'static str, found: u32, known: u32 },
    #[error("{what} of version {found}: use vault {needs} or newer")]
    Newer { what: &'static str, found: u32, needs: String },
    #[error("{what} out of range: {value}")]
    Range { what: &'static str, value: u64 },
    #[error("{what} is not the text it should be")]
    Text { what: &'static str },
    #[error("{what} is not valid JSON of its kind")]
    Json { what: &'static str, source: serde_json::Error },
    #[error("item path {path:?} is not one a source writes")]
    Path { path: String },
    #[error("{what} was not made with this repository's key, or was changed")]
    Mac { what: &'static str },
}
