//! Pages of lists: a stable order, an opaque place to go on from.

use std::fmt::Display;
use std::str::FromStr;

use super::model::Page;
use super::problem::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use utoipa::ToSchema;

/// Items on a page when nobody says.
pub(super) const PAGE_SIZE_DEFAULT: u32 = 50;
/// Items on a page at most.
pub(super) const PAGE_SIZE_MAX: u32 = 500;

/// Which page, of a list that has no other parameter.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PageParams {
    /// Items on a page, 1–500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    pub(super) page_size: Option<u32>,
    /// `next_page_token` of the page before.
    pub(super) page_token: Option<String>,
}

impl PageParams {
    /// How many items the page has, and behind what it begins.
    pub(super) fn read<T: FromStr>(&self, list: &str) -> ApiResult<(u32, Option<T>)> {
        read(list, self.page_size, self.page_token.as_deref())
    }
}

/// As [`PageParams::read`], of a list that has other parameters as well. `list` keeps the tokens of
/// different lists apart.
pub(super) fn read<T: FromStr>(
    list: &str,
    asked: Option<u32>,
    token: Option<&str>,
) -> ApiResult<(u32, Option<T>)> {
    Ok((page_size(asked)?, read_token(list, token)?))
}

/// A page of `list`, of rows that were read one longer than the page. The next one begins behind the `place`
/// of the last row.
pub(super) fn of<R, T: ToSchema, P: Display>(
    list: &str,
    size: u32,
    rows: Vec<R>,
    place: impl FnOnce(&R) -> P,
    describe: impl FnMut(R) -> T,
) -> Page<T> {
    let (rows, more) = cut(rows, size);
    let last = rows.last().filter(|_| more);
    let next_page_token = last.map(|last| next_token(list, place(last)));
    Page {
        items: rows.into_iter().map(describe).collect(),
        next_page_token,
    }
}

fn page_size(asked: Option<u32>) -> ApiResult<u32> {
    match asked.unwrap_or(PAGE_SIZE_DEFAULT) {
        size @ 1..=PAGE_SIZE_MAX => Ok(size),
        size => Err(ApiError::field(
            "page_size",
            format!("is {size}; it must be 1 to {PAGE_SIZE_MAX}"),
        )),
    }
}

/// The token that leads on after `last`.
pub(super) fn next_token(list: &str, last: impl Display) -> String {
    URL_SAFE_NO_PAD.encode(format!("{list}:{last}"))
}

fn read_token<T: FromStr>(list: &str, token: Option<&str>) -> ApiResult<Option<T>> {
    let Some(token) = token else { return Ok(None) };
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        text.strip_prefix(list)?.strip_prefix(':')?.parse().ok()
    };
    read().map(Some).ok_or_else(|| {
        ApiError::field(
            "page_token",
            "is not a token of this list; take `next_page_token` from the page before as it is",
        )
    })
}

/// Cuts a list that was read one longer than the page: the items, and whether more follow.
pub(super) fn cut<T>(mut items: Vec<T>, size: u32) -> (Vec<T>, bool) {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let more = items.len() > size;
    items.truncate(size);
    (items, more)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_page_token_works_for_its_own_list_only() {
        let id = Uuid::from_u128(42);
        let token = next_token("agents", id);
        assert_eq!(read_token("agents", Some(&token)).unwrap(), Some(id));
        assert_eq!(read_token::<Uuid>("agents", None).unwrap(), None);
        assert!(read_token::<Uuid>("tokens", Some(&token)).is_err());
        for bad in ["", "x", "!!!", "YWdlbnRzOg"] {
            assert!(read_token::<Uuid>("agents", Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_leads_on_behind_its_last_row_and_the_last_page_nowhere() {
        let rows = |first: u32, last: u32| (first..=last).collect::<Vec<_>>();
        let shown = |page: &Page<String>| page.items.join(" ");
        let first = of("rows", 3, rows(1, 4), |row| *row, |row| row.to_string());
        assert_eq!(shown(&first), "1 2 3");
        let params = PageParams {
            page_size: Some(3),
            page_token: first.next_page_token,
        };
        assert_eq!(params.read("rows").unwrap(), (3, Some(3)));
        assert!(params.read::<u32>("others").is_err());
        for rows in [rows(4, 6), rows(4, 4), Vec::new()] {
            let count = rows.len();
            let last = of("rows", 3, rows, |row| *row, |row| row.to_string());
            assert_eq!((last.items.len(), last.next_page_token), (count, None));
        }
    }

    #[test]
    fn page_sizes_are_bounded() {
        assert_eq!(page_size(None).unwrap(), 50);
        assert_eq!(page_size(Some(500)).unwrap(), 500);
        assert!(page_size(Some(0)).is_err());
        assert!(page_size(Some(501)).is_err());
    }
}
