//! Statements are written once and told to each backend in its own words.
//!
//! ```text
//!   UPDATE process SET state = j.state
//!     FROM LIST($1: id hex, state text) AS j WHERE process.id = j.id
//!
//!   SQLite      UPDATE process SET state = j.value ->> 1 FROM json_each($1) AS j WHERE process.id = unhex(j.value ->> 0)
//!   PostgreSQL  … FROM jsonb_array_elements($1::jsonb) AS j (value) WHERE process.id = decode(j.value ->> 0, 'hex')
//!   MySQL       UPDATE JSON_TABLE(?, …) AS j STRAIGHT_JOIN process ON (process.id = unhex(j.c0)) SET state = j.c1
//! ```
//!
//! The common language is what all three have, and these, which are put into words here:
//!
//! | Written | Means |
//! |---|---|
//! | `$1`, `$2`, … | what is bound, in the order of binding, as often as it is needed |
//! | `LIST($1: a hex, b int, c text) AS j` | a bound JSON array of arrays as a table; `hex` is bytes in hex |
//! | `EACH($1: a hex) AS j` | a bound JSON array of values as a table of one column |
//! | `(a, b) IN LIST(…)`, `a IN EACH(…)` | the same as a set |
//! | `UPDATE t SET … FROM LIST(…) AS j WHERE …` | columns of `t` behind `SET` without its name |
//! | `DELETE FROM t WHERE (a, b) IN LIST(…)` | at the end of the statement |
//! | `ON CONFLICT (a) DO NOTHING`, `… DO UPDATE SET b = excluded.b` | no `WHERE` behind it; what a column was before is read before it is set |
//! | `a CROSS JOIN b ON …` | `a` is read first |
//! | `INDEXED BY i` | by this index, where there is a choice |
//! | `GREATEST`, `LEAST`, `hex`, `unhex`, `IS NOT DISTINCT FROM` | as their names say |
//! | `hex_list(a)` | of a group: the bytes in hex, behind commas |
//! | `json_text(a, 'name')` | a member of a JSON object as text |
//! | `unix_ms()` | what time it is where the store is, in milliseconds since the epoch |
//!
//! Several statements with `;` between them are one text. SQLite takes it as a whole; the others take one
//! after the other, but for those whose list is empty, which would do nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// Whose words.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
    /// MariaDB and MySQL, with `ANSI_QUOTES`, `PIPES_AS_CONCAT` and `NO_BACKSLASH_ESCAPES`.
    MySql,
}

/// A text in the words of one backend.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) parts: Vec<Part>,
}

/// What the backend takes at once.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) text: Arc<str>,
    /// Which of what is bound goes where, from 0; SQLite finds them by number.
    pub(super) order: Vec<usize>,
    /// It does nothing while this list is empty.
    pub(super) list: Option<usize>,
}

/// Puts a text into the words of `dialect`.
pub(super) fn translate(dialect: Dialect, text: &str) -> Statement {
    let tokens = tokens(text);
    let statements = tokens.split(|token| *token == ";");
    let statements = statements.filter(|statement| !is_blank(statement));
    let parts = statements.map(|statement| Writer::new(dialect, statement).write(statement));
    let mut parts: Vec<Part> = parts.collect();
    if dialect == Dialect::Sqlite && parts.len() > 1 {
        let texts: Vec<&str> = parts.iter().map(|part| &*part.text).collect();
        parts = vec![Part {
            text: texts.join(";\n").into(),
            order: Vec::new(),
            list: None,
        }];
    }
    Statement { parts }
}

/// Words with their dots, quoted texts, runs of space, and every other character by itself.
pub(super) fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.');
        let end = match first {
            '\'' | '"' => rest[1..].find(first).map(|at| at + 2),
            c if c.is_whitespace() => rest.find(|c: char| !c.is_whitespace()),
            c if is_word(c) => rest.find(|c: char| !is_word(c)),
            c => Some(c.len_utf8()),
        };
        let (token, more) = rest.split_at(end.unwrap_or(rest.len()));
        tokens.push(token);
        rest = more;
    }
    tokens
}

fn is_blank(tokens: &[&str]) -> bool {
    tokens.iter().all(|token| token.trim().is_empty())
}

/// Behind the words from `at` on, whatever space is between them; `None`: others stand there.
fn follow(tokens: &[&str], at: usize, words: &[&str]) -> Option<usize> {
    let mut at = at;
    for (number, word) in words.iter().enumerate() {
        if number > 0 {
            at = skip(tokens, at);
        }
        tokens.get(at).filter(|token| *token == word)?;
        at += 1;
    }
    Some(at)
}

fn skip(tokens: &[&str], at: usize) -> usize {
    let space = tokens.get(at..).unwrap_or_default().iter();
    at + space.take_while(|token| token.trim().is_empty()).count()
}

/// What stands between the parenthesis at `at` and the one that closes it, and where that is.
pub(super) fn inside<'a, 't>(tokens: &'a [&'t str], at: usize) -> Option<(&'a [&'t str], usize)> {
    let open = skip(tokens, at);
    tokens.get(open).filter(|token| **token == "(")?;
    let mut depth = 0_usize;
    for (place, token) in tokens.iter().enumerate().skip(open) {
        match *token {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&tokens[open + 1..place], place + 1));
        }
    }
    None
}

/// Where a word stands outside of all parentheses.
pub(super) fn outermost(tokens: &[&str], word: &str) -> Option<usize> {
    let mut depth = 0_i32;
    tokens.iter().position(|token| {
        depth += i32::from(*token == "(") - i32::from(*token == ")");
        depth == 0 && *token == word
    })
}

/// A list that is bound: `LIST($1: a hex, b int)`, `EACH($1: a hex)`.
struct List<'t> {
    /// Which of what is bound, from 0.
    bound: usize,
    /// Its members are arrays.
    of_arrays: bool,
    columns: Vec<(&'t str, &'t str)>,
}

impl<'t> List<'t> {
    /// The list at `at`, and where it ends.
    fn read(tokens: &[&'t str], at: usize) -> Option<(Self, usize)> {
        let of_arrays = match *tokens.get(at)? {
            "LIST" => true,
            "EACH" => false,
            _ => return None,
        };
        let (inside, end) = inside(tokens, at + 1)?;
        let mut words = inside
            .iter()
            .copied()
            .filter(|token| !token.trim().is_empty() && !matches!(*token, ":" | ","));
        let bound = number(words.next()?)?;
        let mut columns = Vec::new();
        while let (Some(name), Some(kind)) = (words.next(), words.next()) {
            columns.push((name, kind));
        }
        let list = Self {
            bound,
            of_arrays,
            columns,
        };
        Some((list, end))
    }

    /// A column, by its place, of the list under this name.
    fn column(&self, dialect: Dialect, alias: &str, at: usize) -> String {
        let kind = self.columns.get(at).map_or("text", |(_, kind)| *kind);
        if dialect == Dialect::MySql {
            return match kind {
                "hex" => format!("unhex({alias}.c{at})"),
                _ => format!("{alias}.c{at}"),
            };
        }
        let value = match self.of_arrays {
            true => format!("{alias}.value ->> {at}"),
            false => format!("{alias}.value"),
        };
        match (dialect, kind) {
            (Dialect::Postgres, "hex") => format!("decode({value}, 'hex')"),
            (Dialect::Postgres, "int") => format!("({value})::bigint"),
            (_, "hex") => format!("unhex({value})"),
            (Dialect::Postgres, _) => format!("({value})"),
            _ => value,
        }
    }
}

/// `$3` is number 2.
fn number(token: &str) -> Option<usize> {
    token
        .strip_prefix('$')?
        .parse::<usize>()
        .ok()?
        .checked_sub(1)
}

/// Writes one statement.
struct Writer {
    dialect: Dialect,
    /// `j.id` is this, for every list that has a name.
    columns: BTreeMap<String, String>,
    ignores: bool,
    list: Option<usize>,
    text: String,
    order: Vec<usize>,
}

impl Writer {
    fn new(dialect: Dialect, tokens: &[&str]) -> Self {
        let mut columns = BTreeMap::new();
        let mut first = None;
        for at in 0..tokens.len() {
            let Some((list, end)) = List::read(tokens, at) else {
                continue;
            };
            first = first.or(Some(list.bound));
            if let Some(alias) = alias_at(tokens, end) {
                for (place, (name, _)) in list.columns.iter().enumerate() {
                    let is = list.column(dialect, tokens[alias], place);
                    columns.insert(format!("{}.{name}", tokens[alias]), is);
                }
            }
        }
        let nothing = (0..tokens.len()).any(|at| follow(tokens, at, &["DO", "NOTHING"]).is_some());
        Self {
            dialect,
            columns,
            ignores: nothing && dialect == Dialect::MySql,
            list: first,
            text: String::new(),
            order: Vec::new(),
        }
    }

    fn write(mut self, tokens: &[&str]) -> Part {
        let start = skip(tokens, 0);
        let rearranged = match (self.dialect, tokens.get(start)) {
            (Dialect::MySql, Some(&"UPDATE")) => self.update(tokens, start),
            (Dialect::MySql, Some(&"DELETE")) => self.delete(tokens, start),
            _ => None,
        };
        if rearranged.is_none() {
            self.render(tokens);
        }
        Part {
            text: self.text.trim().into(),
            order: self.order,
            list: self.list,
        }
    }

    /// `UPDATE t SET s FROM f WHERE w`, which MySQL has as a join.
    fn update(&mut self, tokens: &[&str], start: usize) -> Option<()> {
        let (set, from) = (outermost(tokens, "SET")?, outermost(tokens, "FROM")?);
        let at_where = outermost(tokens, "WHERE")?;
        self.text.push_str("UPDATE");
        self.render(&tokens[from + 1..at_where]);
        self.text.push_str(" STRAIGHT_JOIN ");
        self.render(&tokens[start + 1..set]);
        self.text.push_str("ON (");
        self.render(&tokens[at_where + 1..]);
        self.text.push_str(") SET");
        self.render(&tokens[set + 1..from]);
        Some(())
    }

    /// `DELETE FROM t WHERE … AND (a, b) IN LIST(…)`, which MySQL would read `t` for as a whole.
    fn delete(&mut self, tokens: &[&str], start: usize) -> Option<()> {
        let at_in = outermost(tokens, "IN")?;
        let (list, _) = List::read(tokens, skip(tokens, at_in + 1))?;
        let at_where = outermost(tokens, "WHERE")?;
        let table = *tokens.get(skip(tokens, follow(tokens, start, &["DELETE", "FROM"])?))?;
        // In front of `IN`: what else must hold, and the columns.
        let before = &tokens[at_where + 1..at_in];
        let also = before.iter().rposition(|token| *token == "AND");
        let (also, columns) = match also {
            Some(and) => (&before[..and], &before[and + 1..]),
            None => (&before[..0], before),
        };
        let columns = columns
            .iter()
            .filter(|token| !token.trim().is_empty() && !matches!(**token, "(" | ")" | ","));
        write!(self.text, "DELETE {table} FROM ").ok();
        self.source(&list, "j");
        write!(self.text, " STRAIGHT_JOIN {table} ON (").ok();
        for (at, column) in columns.enumerate() {
            let and = if at == 0 { "" } else { " AND " };
            let is = list.column(self.dialect, "j", at);
            write!(self.text, "{and}{table}.{column} = {is}").ok();
        }
        if !is_blank(also) {
            self.text.push_str(" AND");
            self.render(also);
        }
        self.text.push(')');
        Some(())
    }

    fn render(&mut self, tokens: &[&str]) {
        let mut at = 0;
        while at < tokens.len() {
            at = self
                .phrase(tokens, at)
                .or_else(|| self.function(tokens, at))
                .unwrap_or_else(|| {
                    self.word(tokens[at]);
                    at + 1
                });
        }
    }

    fn word(&mut self, token: &str) {
        if let Some(bound) = number(token) {
            return self.bound(bound);
        }
        if let Some(is) = self.columns.get(token) {
            self.text.push_str(is);
            return;
        }
        match token.strip_prefix("excluded.") {
            Some(column) if self.dialect == Dialect::MySql => {
                write!(self.text, "VALUES({column})").ok();
            }
            _ if token == "INSERT" && self.ignores => self.text.push_str("INSERT IGNORE"),
            _ => self.text.push_str(token),
        }
    }

    fn bound(&mut self, bound: usize) {
        let number = match self.dialect {
            Dialect::Sqlite => bound + 1,
            Dialect::Postgres => {
                let known = self.order.iter().position(|other| *other == bound);
                known.unwrap_or_else(|| {
                    self.order.push(bound);
                    self.order.len() - 1
                }) + 1
            }
            Dialect::MySql => {
                self.order.push(bound);
                self.text.push('?');
                return;
            }
        };
        write!(self.text, "${number}").ok();
    }

    /// Several words that mean one thing; says where they end.
    fn phrase(&mut self, tokens: &[&str], at: usize) -> Option<usize> {
        if let Some((list, end)) = List::read(tokens, at) {
            return Some(self.list(&list, tokens, end));
        }
        let starts = |words: &[&str]| follow(tokens, at, words);
        let other = self.dialect != Dialect::Sqlite;
        let (said, end) = match self.dialect {
            Dialect::MySql if tokens[at] == "IS" => {
                ("<=>", starts(&["IS", "NOT", "DISTINCT", "FROM"])?)
            }
            Dialect::Postgres if tokens[at] == "CROSS" => ("JOIN", starts(&["CROSS", "JOIN"])?),
            Dialect::MySql if tokens[at] == "CROSS" => {
                ("STRAIGHT_JOIN", starts(&["CROSS", "JOIN"])?)
            }
            Dialect::MySql if tokens[at] == "ON" => {
                let (_, end) = inside(tokens, starts(&["ON", "CONFLICT"])?)?;
                let end = skip(tokens, end);
                match follow(tokens, end, &["DO", "NOTHING"]) {
                    Some(end) => ("", end),
                    None => {
                        let set = follow(tokens, end, &["DO", "UPDATE", "SET"])?;
                        ("ON DUPLICATE KEY UPDATE", set)
                    }
                }
            }
            _ if other && tokens[at] == "INDEXED" => {
                let name = skip(tokens, starts(&["INDEXED", "BY"])?);
                if self.dialect == Dialect::MySql {
                    write!(self.text, "FORCE INDEX ({})", tokens.get(name)?).ok();
                }
                ("", name + 1)
            }
            _ => return None,
        };
        self.text.push_str(said);
        Some(end)
    }

    /// A call that is another one elsewhere; says where it ends.
    fn function(&mut self, tokens: &[&str], at: usize) -> Option<usize> {
        use Dialect::{MySql, Postgres, Sqlite};
        let named = matches!(
            tokens[at],
            "GREATEST" | "LEAST" | "hex" | "unhex" | "hex_list" | "json_text" | "unix_ms"
        );
        let (args, end) = named.then(|| inside(tokens, at + 1)).flatten()?;
        let (before, after) = match (self.dialect, tokens[at]) {
            (Sqlite, "GREATEST") => ("max(", ")"),
            (Sqlite, "LEAST") => ("min(", ")"),
            (Postgres, "hex") => ("encode(", ", 'hex')"),
            (Postgres, "unhex") => ("decode(", ", 'hex')"),
            (Postgres, "hex_list") => ("string_agg(encode(", ", 'hex'), ',')"),
            (Sqlite, "hex_list") => ("group_concat(hex(", "), ',')"),
            (MySql, "hex_list") => ("group_concat(hex(", "))"),
            (_, "json_text") => return self.json_text(args, end),
            // None of these depends on time zones, nor on when a transaction began.
            (Sqlite, "unix_ms") => (
                "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER",
                ")",
            ),
            (Postgres, "unix_ms") => ("(extract(epoch FROM clock_timestamp()) * 1000)::bigint", ""),
            (MySql, "unix_ms") => (
                "CAST(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000 AS SIGNED",
                ")",
            ),
            _ => return None,
        };
        self.text.push_str(before);
        self.render(args);
        self.text.push_str(after);
        Some(end)
    }

    fn json_text(&mut self, args: &[&str], end: usize) -> Option<usize> {
        let comma = outermost(args, ",")?;
        let name = args.get(skip(args, comma + 1))?.trim_matches('\'');
        let (before, after) = match self.dialect {
            Dialect::Sqlite => ("(", format!(" ->> '$.{name}')")),
            // PostgreSQL has no text with the character 0, and would fail over it.
            Dialect::Postgres => (
                "(replace(",
                format!(", '\\u0000', '\\ufffd')::json ->> '{name}')"),
            ),
            Dialect::MySql => ("JSON_UNQUOTE(JSON_EXTRACT(", format!(", '$.{name}'))")),
        };
        self.text.push_str(before);
        self.render(&args[..comma]);
        self.text.push_str(&after);
        Some(end)
    }

    /// A list as a table, if it has a name, or as a set.
    fn list(&mut self, list: &List<'_>, tokens: &[&str], end: usize) -> usize {
        if let Some(alias) = alias_at(tokens, end) {
            self.source(list, tokens[alias]);
            return alias + 1;
        }
        self.text.push_str("(SELECT ");
        for at in 0..list.columns.len() {
            let comma = if at == 0 { "" } else { ", " };
            let is = list.column(self.dialect, "j", at);
            write!(self.text, "{comma}{is}").ok();
        }
        self.text.push_str(" FROM ");
        self.source(list, "j");
        self.text.push(')');
        end
    }

    fn source(&mut self, list: &List<'_>, alias: &str) {
        let (before, after) = match (self.dialect, list.of_arrays) {
            (Dialect::Sqlite, _) => ("json_each(", format!(") AS {alias}")),
            (Dialect::Postgres, true) => (
                "jsonb_array_elements(",
                format!("::jsonb) AS {alias} (value)"),
            ),
            (Dialect::Postgres, false) => (
                "jsonb_array_elements_text(",
                format!("::jsonb) AS {alias} (value)"),
            ),
            (Dialect::MySql, _) => ("JSON_TABLE(", json_table(list, alias)),
        };
        self.text.push_str(before);
        self.bound(list.bound);
        self.text.push_str(&after);
    }
}

/// The rest of a `JSON_TABLE` behind its document.
fn json_table(list: &List<'_>, alias: &str) -> String {
    let mut text = ", '$[*]' COLUMNS (".to_owned();
    for (at, (_, kind)) in list.columns.iter().enumerate() {
        let kind = match *kind {
            "hex" => "VARCHAR(512)",
            "int" => "BIGINT",
            _ => "LONGTEXT CHARACTER SET utf8mb4",
        };
        let comma = if at == 0 { "" } else { ", " };
        let place = if list.of_arrays {
            format!("[{at}]")
        } else {
            String::new()
        };
        write!(text, "{comma}c{at} {kind} PATH '${place}'").ok();
    }
    write!(text, ")) AS {alias}").ok();
    text
}

/// The name that something gets with `AS`, if it gets one.
fn alias_at(tokens: &[&str], end: usize) -> Option<usize> {
    let alias = skip(tokens, follow(tokens, skip(tokens, end), &["AS"])?);
    tokens.get(alias).map(|_| alias)
}

#[cfg(test)]
mod tests {
    use super::Dialect::{MySql, Postgres, Sqlite};
    use super::*;

    fn told(dialect: Dialect, text: &str) -> Vec<(String, Vec<usize>)> {
        let parts = translate(dialect, text).parts.into_iter();
        let parts = parts.map(|part| {
            let words: Vec<&str> = part.text.split_whitespace().collect();
            (words.join(" "), part.order)
        });
        parts.collect()
    }

    /// Each dialect's words for a text of one statement.
    fn assert_told(text: &str, in_words: [(Dialect, &str); 3]) {
        for (dialect, words) in in_words {
            assert_eq!(told(dialect, text)[0].0, words, "{dialect:?}");
        }
    }

    #[test]
    fn what_is_bound_is_found_by_number_or_by_place() {
        let text = "SELECT 1 FROM a WHERE b = $3 AND ($1 IS NULL OR c = $1) AND d = '$2'";
        let of = |dialect| told(dialect, text).remove(0);
        let (sqlite, _) = of(Sqlite);
        assert!(sqlite.contains("b = $3 AND ($1 IS NULL OR c = $1) AND d = '$2'"));
        let (postgres, order) = of(Postgres);
        assert!(postgres.contains("b = $1 AND ($2 IS NULL OR c = $2) AND d = '$2'"));
        assert_eq!(order, [2, 0]);
        let (mysql, order) = of(MySql);
        assert!(mysql.contains("b = ? AND (? IS NULL OR c = ?) AND d = '$2'"));
        assert_eq!(order, [2, 0, 0]);
    }

    #[test]
    fn a_list_is_a_table() {
        assert_told(
            "SELECT j.b, p.x FROM LIST($1: a hex, b int) AS j CROSS JOIN p ON p.a = j.a",
            [
                (
                    Sqlite,
                    "SELECT j.value ->> 1, p.x FROM json_each($1) AS j CROSS JOIN p ON p.a = unhex(j.value ->> 0)",
                ),
                (
                    Postgres,
                    "SELECT (j.value ->> 1)::bigint, p.x FROM jsonb_array_elements($1::jsonb) AS j (value) JOIN p ON p.a = decode(j.value ->> 0, 'hex')",
                ),
                (
                    MySql,
                    "SELECT j.c1, p.x FROM JSON_TABLE(?, '$[*]' COLUMNS (c0 VARCHAR(512) PATH '$[0]', c1 BIGINT PATH '$[1]')) AS j STRAIGHT_JOIN p ON p.a = unhex(j.c0)",
                ),
            ],
        );
        assert_told(
            "SELECT a FROM t WHERE a NOT IN EACH($1: a text)",
            [
                (
                    Sqlite,
                    "SELECT a FROM t WHERE a NOT IN (SELECT j.value FROM json_each($1) AS j)",
                ),
                (
                    Postgres,
                    "SELECT a FROM t WHERE a NOT IN (SELECT (j.value) FROM jsonb_array_elements_text($1::jsonb) AS j (value))",
                ),
                (
                    MySql,
                    "SELECT a FROM t WHERE a NOT IN (SELECT j.c0 FROM JSON_TABLE(?, '$[*]' COLUMNS (c0 LONGTEXT CHARACTER SET utf8mb4 PATH '$')) AS j)",
                ),
            ],
        );
    }

    #[test]
    fn what_changes_rows_of_a_list_reads_the_list_first() {
        assert_told(
            "UPDATE t SET b = j.b FROM LIST($1: a hex, b text) AS j WHERE t.a = j.a AND t.c = $2",
            [
                (
                    Sqlite,
                    "UPDATE t SET b = j.value ->> 1 FROM json_each($1) AS j WHERE t.a = unhex(j.value ->> 0) AND t.c = $2",
                ),
                (
                    Postgres,
                    "UPDATE t SET b = (j.value ->> 1) FROM jsonb_array_elements($1::jsonb) AS j (value) WHERE t.a = decode(j.value ->> 0, 'hex') AND t.c = $2",
                ),
                (
                    MySql,
                    "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (c0 VARCHAR(512) PATH '$[0]', c1 LONGTEXT CHARACTER SET utf8mb4 PATH '$[1]')) AS j STRAIGHT_JOIN t ON ( t.a = unhex(j.c0) AND t.c = ?) SET b = j.c1",
                ),
            ],
        );
        assert_told(
            "DELETE FROM t WHERE c = $2 AND (a, b) IN LIST($1: a hex, b int)",
            [
                (
                    Sqlite,
                    "DELETE FROM t WHERE c = $2 AND (a, b) IN (SELECT unhex(j.value ->> 0), j.value ->> 1 FROM json_each($1) AS j)",
                ),
                (
                    Postgres,
                    "DELETE FROM t WHERE c = $1 AND (a, b) IN (SELECT decode(j.value ->> 0, 'hex'), (j.value ->> 1)::bigint FROM jsonb_array_elements($2::jsonb) AS j (value))",
                ),
                (
                    MySql,
                    "DELETE t FROM JSON_TABLE(?, '$[*]' COLUMNS (c0 VARCHAR(512) PATH '$[0]', c1 BIGINT PATH '$[1]')) AS j STRAIGHT_JOIN t ON (t.a = unhex(j.c0) AND t.b = j.c1 AND c = ? )",
                ),
            ],
        );
    }

    #[test]
    fn conflicts_and_functions_are_put_into_words() {
        let nothing = "INSERT INTO t (a) VALUES ($1) ON CONFLICT (a) DO NOTHING";
        assert_told(
            nothing,
            [
                (Sqlite, nothing),
                (Postgres, nothing),
                (MySql, "INSERT IGNORE INTO t (a) VALUES (?)"),
            ],
        );
        assert_told(
            "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = GREATEST(t.b, excluded.b)",
            [
                (
                    Sqlite,
                    "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = max(t.b, excluded.b)",
                ),
                (
                    Postgres,
                    "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = GREATEST(t.b, excluded.b)",
                ),
                (
                    MySql,
                    "INSERT INTO t (a, b) VALUES (?, ?) ON DUPLICATE KEY UPDATE b = GREATEST(t.b, VALUES(b))",
                ),
            ],
        );
        assert_told(
            "SELECT unix_ms()",
            [
                (
                    Sqlite,
                    "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
                ),
                (
                    Postgres,
                    "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
                ),
                (
                    MySql,
                    "SELECT CAST(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000 AS SIGNED)",
                ),
            ],
        );
        assert_told(
            "SELECT hex(a), unhex(b), hex_list(c), json_text(d.e, 'f') FROM t INDEXED BY i WHERE g IS NOT DISTINCT FROM $1",
            [
                (
                    Sqlite,
                    "SELECT hex(a), unhex(b), group_concat(hex(c), ','), (d.e ->> '$.f') FROM t INDEXED BY i WHERE g IS NOT DISTINCT FROM $1",
                ),
                (
                    Postgres,
                    "SELECT encode(a, 'hex'), decode(b, 'hex'), string_agg(encode(c, 'hex'), ','), (replace(d.e, '\\u0000', '\\ufffd')::json ->> 'f') FROM t WHERE g IS NOT DISTINCT FROM $1",
                ),
                (
                    MySql,
                    "SELECT hex(a), unhex(b), group_concat(hex(c)), JSON_UNQUOTE(JSON_EXTRACT(d.e, '$.f')) FROM t FORCE INDEX (i) WHERE g <=> ?",
                ),
            ],
        );
    }

    #[test]
    fn several_statements_are_one_text_or_one_after_the_other() {
        let text = "DELETE FROM a WHERE b IN EACH($2: b int); SELECT j.c FROM LIST($1: d int, c int) AS j;";
        let parts = translate(Postgres, text).parts;
        let lists: Vec<_> = parts
            .iter()
            .map(|part| (part.list, part.order.as_slice()))
            .collect();
        assert_eq!(lists, [(Some(1), &[1][..]), (Some(0), &[0][..])]);
        let whole = told(Sqlite, text);
        assert_eq!(whole.len(), 1);
        assert!(
            whole[0]
                .0
                .ends_with("json_each($2) AS j); SELECT j.value ->> 1 FROM json_each($1) AS j")
        );
    }
}
