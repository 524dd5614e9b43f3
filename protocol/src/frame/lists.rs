//! Lists of names: addresses, drivers, labels, open operations.

use flatbuffers::{ForwardsUOffset, Vector, WIPOffset};

use super::check::{self, Fault};
use super::codec::{Builder, operation_id, read_operation_id, string};
use super::operation::{read_phase, write_phase};
use crate::generated::agent as fb;
use crate::ids::Fence;
use crate::limits::{
    ADDRESSES_MAX, JOURNAL_OPEN_MAX, KINDS_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX,
};
use crate::operation::OpenOperation;

/// Where a list of strings or tables was written; `None` for an empty one.
pub(super) type List<T> = Option<WIPOffset<Vector<'static, ForwardsUOffset<T>>>>;
/// A list of strings or tables that may be absent.
pub(super) type ReadList<'a, T> = Option<Vector<'a, ForwardsUOffset<T>>>;

pub(super) fn write_addresses(
    b: &mut Builder,
    addresses: &[String],
) -> Result<List<&'static str>, Fault> {
    check::size("addresses", addresses.len(), ADDRESSES_MAX)?;
    write_strings(b, addresses, |text| check::address("addresses", text))
}

pub(super) fn read_addresses(list: ReadList<'_, &str>) -> Result<Vec<String>, Fault> {
    read_strings(list, "addresses", ADDRESSES_MAX, check::address)
}

pub(super) fn write_kinds(b: &mut Builder, kinds: &[String]) -> Result<List<&'static str>, Fault> {
    check::size("kinds", kinds.len(), KINDS_MAX)?;
    write_strings(b, kinds, |text| check::kind("kinds", text))
}

pub(super) fn read_kinds(list: ReadList<'_, &str>) -> Result<Vec<String>, Fault> {
    read_strings(list, "kinds", KINDS_MAX, check::kind)
}

pub(super) fn write_strings(
    b: &mut Builder,
    texts: &[String],
    check: impl for<'t> Fn(&'t str) -> Result<&'t str, Fault>,
) -> Result<List<&'static str>, Fault> {
    if texts.is_empty() {
        return Ok(None);
    }
    let offsets = texts
        .iter()
        .map(|text| Ok(b.create_string(check(text)?)))
        .collect::<Result<Vec<_>, Fault>>()?;
    Ok(Some(b.create_vector(&offsets)))
}

pub(super) fn read_strings(
    list: ReadList<'_, &str>,
    field: &'static str,
    max: usize,
    check: impl for<'t> Fn(&'static str, &'t str) -> Result<&'t str, Fault>,
) -> Result<Vec<String>, Fault> {
    let Some(list) = list else {
        return Ok(Vec::new());
    };
    check::size(field, list.len(), max)?;
    list.iter()
        .map(|text| Ok(check(field, text)?.to_owned()))
        .collect()
}

pub(super) fn write_labels(
    b: &mut Builder,
    labels: &[(String, String)],
) -> Result<List<fb::Label<'static>>, Fault> {
    check::size("labels", labels.len(), LABELS_MAX)?;
    if labels.is_empty() {
        return Ok(None);
    }
    let mut offsets = Vec::with_capacity(labels.len());
    for (name, value) in labels {
        check::label_name("labels.name", name, NAME_BYTES_MAX)?;
        check::name("labels.value", value, LABEL_VALUE_BYTES_MAX)?;
        let args = fb::LabelArgs {
            name: string(b, name),
            value: string(b, value),
        };
        offsets.push(fb::Label::create(b, &args));
    }
    Ok(Some(b.create_vector(&offsets)))
}

pub(super) fn read_labels(
    list: ReadList<'_, fb::Label<'_>>,
) -> Result<Vec<(String, String)>, Fault> {
    let Some(list) = list else {
        return Ok(Vec::new());
    };
    check::size("labels", list.len(), LABELS_MAX)?;
    list.iter()
        .map(|label| {
            let value = label.value().unwrap_or_default();
            check::label_name("labels.name", label.name(), NAME_BYTES_MAX)?;
            check::name("labels.value", value, LABEL_VALUE_BYTES_MAX)?;
            Ok((label.name().to_owned(), value.to_owned()))
        })
        .collect()
}

/// Where the open operations were written.
pub(super) type OpenList = Option<WIPOffset<Vector<'static, fb::OpenOperation>>>;

pub(super) fn write_open(b: &mut Builder, open: &[OpenOperation]) -> Result<OpenList, Fault> {
    check::size("open", open.len(), JOURNAL_OPEN_MAX)?;
    if open.is_empty() {
        return Ok(None);
    }
    let list = open.iter().map(|line| {
        let operation = operation_id(line.operation);
        fb::OpenOperation::new(&operation, write_phase(line.phase), line.fence.0)
    });
    Ok(Some(b.create_vector_from_iter(list)))
}

pub(super) fn read_open(
    list: Option<Vector<'_, fb::OpenOperation>>,
) -> Result<Vec<OpenOperation>, Fault> {
    let Some(list) = list else {
        return Ok(Vec::new());
    };
    check::size("open", list.len(), JOURNAL_OPEN_MAX)?;
    list.iter()
        .map(|line| {
            Ok(OpenOperation {
                operation: read_operation_id(line.operation()),
                fence: Fence(line.fence()),
                phase: read_phase(line.phase()).ok_or(Fault::unknown("open.phase"))?,
            })
        })
        .collect()
}
