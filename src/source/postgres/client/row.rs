//! Rows of a result.

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::DataRowBody;

use super::error::{QueryError, refused};

/// One row of a result, as text.
#[derive(Debug, Clone)]
pub struct Row(Vec<Option<String>>);

impl Row {
    /// The value of a column; an empty text for NULL and for a column that is not there.
    pub fn text(&self, column: usize) -> &str {
        self.optional(column).unwrap_or("")
    }

    /// The value of a column, `None` for NULL.
    pub fn optional(&self, column: usize) -> Option<&str> {
        self.0.get(column)?.as_deref()
    }

    /// A boolean column.
    pub fn is_true(&self, column: usize) -> bool {
        self.text(column) == "t"
    }

    /// A number; 0 for NULL and for what is none.
    pub fn number<T: std::str::FromStr + Default>(&self, column: usize) -> T {
        self.text(column).parse().unwrap_or_default()
    }
}

pub(super) fn row(body: &DataRowBody) -> Result<Row, QueryError> {
    let buffer = body.buffer();
    let mut values = Vec::new();
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next().map_err(refused)? {
        values.push(match range {
            None => None,
            Some(range) => {
                let bytes = buffer.get(range).ok_or_else(|| refused("a row shorter than its lengths"))?;
                let text = std::str::from_utf8(bytes).map_err(|_| {
                    refused(format!("{:?} is not UTF-8; such names cannot be handled", String::from_utf8_lossy(bytes)))
                })?;
                Some(text.to_owned())
            }
        });
    }
    Ok(Row(values))
}
