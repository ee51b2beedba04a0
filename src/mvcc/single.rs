//! One key as a source, when a point read has found all there is to know.

use super::ReadError;
use super::counts::WholeBlocks;
use super::range::KeyRange;
use super::record::current_row;
use super::source::{Row, Source};
use crate::storage::Value;

pub(super) struct SingleSource<'a> {
    key: &'a [u8],
    /// The row of `Current`; `None` when the key is not there.
    value: Option<Value<'a>>,
    is_done: bool,
}

impl<'a> SingleSource<'a> {
    pub(super) fn new(key: &'a [u8], value: Option<Value<'a>>) -> SingleSource<'a> {
        SingleSource {
            key,
            value,
            is_done: false,
        }
    }
}

impl Source for SingleSource<'_> {
    fn seek(&mut self, start: &[u8], _end: Option<&[u8]>) -> Result<(), ReadError> {
        debug_assert_eq!(start, self.key);
        self.is_done = false;
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Row<'_>>, ReadError> {
        match &self.value {
            Some(value) if !self.is_done => {
                self.is_done = true;
                let (sub, record) = current_row::parse(self.key, value)?;
                Ok(Some(Row {
                    key: self.key,
                    sub,
                    record,
                }))
            }
            _ => Ok(None),
        }
    }

    fn whole_blocks(&mut self, _range: &KeyRange<'_>) -> Result<Option<WholeBlocks>, ReadError> {
        Ok(None)
    }
}
