//! What a range is answered from: a state of the key space that can be read in
//! key order. Three implementations: the present ([`super::current`]), an older
//! revision ([`super::history`]), and the present with a command's own changes
//! ([`super::staged`]).

use super::ReadError;
use super::counts::WholeBlocks;
use super::range::KeyRange;

/// A live key as the source shows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    pub(super) key: &'a [u8],
    /// The sub-revision of the key's last change.
    pub(super) sub: u32,
    pub(super) record: &'a [u8],
}

pub(super) trait Source {
    /// Starts over, with the keys from `start` on: below `end`, or to the end of
    /// the range the source was made for.
    fn seek(&mut self, start: &[u8], end: Option<&[u8]>) -> Result<(), ReadError>;

    /// The next live key. The bytes stay valid until the next call.
    fn next(&mut self) -> Result<Option<Row<'_>>, ReadError>;

    /// The number of keys in the largest part of the range that can be told
    /// without reading it; `None` when reading is the cheaper or the only way.
    fn whole_blocks(&mut self, range: &KeyRange<'_>) -> Result<Option<WholeBlocks>, ReadError>;
}

/// Counts the keys from the start of `range`, which has the same end as the
/// source: whole blocks from the index, the edges by reading them.
pub(super) fn count(source: &mut impl Source, range: &KeyRange<'_>) -> Result<i64, ReadError> {
    match source.whole_blocks(range)? {
        None => count_rows(source, range.start, None),
        Some(WholeBlocks { first, last, keys }) => {
            let before = count_rows(source, range.start, Some(&first))?;
            let after = match last {
                Some(last) => count_rows(source, &last, None)?,
                None => 0,
            };
            Ok(before + keys + after)
        }
    }
}

fn count_rows(
    source: &mut impl Source,
    start: &[u8],
    end: Option<&[u8]>,
) -> Result<i64, ReadError> {
    source.seek(start, end)?;
    let mut count = 0;
    while source.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}
