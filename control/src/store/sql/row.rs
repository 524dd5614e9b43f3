//! What a statement answers.

use sqlx::mysql::MySqlRow;
use sqlx::postgres::{PgRow, PgTypeInfo};
use sqlx::sqlite::SqliteRow;
use sqlx::{ColumnIndex, Error, Row as _, TypeInfo as _, ValueRef as _};

/// A row of an answer.
pub struct Row(pub(super) Kind);

pub(super) enum Kind {
    Sqlite(SqliteRow),
    Postgres(PgRow),
    MySql(MySqlRow),
}

/// Where a column stands: its number from 0, or its name.
pub trait Place:
    ColumnIndex<SqliteRow> + ColumnIndex<PgRow> + ColumnIndex<MySqlRow> + Copy
{
}

impl<P> Place for P where
    P: ColumnIndex<SqliteRow> + ColumnIndex<PgRow> + ColumnIndex<MySqlRow> + Copy
{
}

/// What can be read from a column.
pub trait Column<'r>: Sized {
    /// Reads the column at this place.
    ///
    /// # Errors
    /// It holds something else.
    fn read(row: &'r Row, at: usize) -> Result<Self, Error>;
}

impl Row {
    /// The value of a column.
    ///
    /// # Errors
    /// There is no such column, or it holds something else.
    pub fn try_get<'r, T: Column<'r>>(&'r self, place: impl Place) -> Result<T, Error> {
        let at = match &self.0 {
            Kind::Sqlite(row) => place.index(row),
            Kind::Postgres(row) => place.index(row),
            Kind::MySql(row) => place.index(row),
        };
        T::read(self, at?)
    }

    fn is_null(&self, at: usize) -> Result<bool, Error> {
        Ok(match &self.0 {
            Kind::Sqlite(row) => row.try_get_raw(at)?.is_null(),
            Kind::Postgres(row) => row.try_get_raw(at)?.is_null(),
            Kind::MySql(row) => row.try_get_raw(at)?.is_null(),
        })
    }
}

fn misfit(at: usize, what: String) -> Error {
    Error::ColumnDecode {
        index: at.to_string(),
        source: what.into(),
    }
}

impl Column<'_> for i64 {
    fn read(row: &Row, at: usize) -> Result<Self, Error> {
        match &row.0 {
            Kind::Sqlite(row) => row.try_get(at),
            Kind::Postgres(row) => postgres_int(row, at),
            // Columns, counts and truths are integers of several lengths.
            Kind::MySql(row) => row.try_get_unchecked(at),
        }
    }
}

/// PostgreSQL knows truths, and integers of several lengths.
fn postgres_int(row: &PgRow, at: usize) -> Result<i64, Error> {
    let kind = row.try_get_raw(at)?.type_info().into_owned();
    match PgTypeInfo::name(&kind) {
        "BOOL" => row.try_get::<bool, _>(at).map(i64::from),
        "INT4" => row.try_get::<i32, _>(at).map(i64::from),
        "INT2" => row.try_get::<i16, _>(at).map(i64::from),
        _ => row.try_get(at),
    }
}

impl Column<'_> for bool {
    fn read(row: &Row, at: usize) -> Result<Self, Error> {
        i64::read(row, at).map(|value| value != 0)
    }
}

macro_rules! narrower {
    ($($kind:ty),*) => {$(
        impl Column<'_> for $kind {
            fn read(row: &Row, at: usize) -> Result<Self, Error> {
                let value = i64::read(row, at)?;
                Self::try_from(value).map_err(|_| misfit(at, format!("{value} is no number for it")))
            }
        }
    )*};
}

narrower!(u8, u16, u32, i32);

impl<'r> Column<'r> for &'r str {
    fn read(row: &'r Row, at: usize) -> Result<Self, Error> {
        match &row.0 {
            Kind::Sqlite(row) => row.try_get(at),
            Kind::Postgres(row) => row.try_get(at),
            // Text that is compared is kept as bytes there.
            Kind::MySql(row) => row.try_get_unchecked(at),
        }
    }
}

impl<'r> Column<'r> for &'r [u8] {
    fn read(row: &'r Row, at: usize) -> Result<Self, Error> {
        match &row.0 {
            Kind::Sqlite(row) => row.try_get(at),
            Kind::Postgres(row) => row.try_get(at),
            Kind::MySql(row) => row.try_get_unchecked(at),
        }
    }
}

impl Column<'_> for String {
    fn read(row: &Row, at: usize) -> Result<Self, Error> {
        <&str>::read(row, at).map(str::to_owned)
    }
}

impl Column<'_> for Vec<u8> {
    fn read(row: &Row, at: usize) -> Result<Self, Error> {
        <&[u8]>::read(row, at).map(<[u8]>::to_vec)
    }
}

impl<'r, T: Column<'r>> Column<'r> for Option<T> {
    fn read(row: &'r Row, at: usize) -> Result<Self, Error> {
        match row.is_null(at)? {
            true => Ok(None),
            false => T::read(row, at).map(Some),
        }
    }
}
