//! What MySQL 8 refuses and MariaDB takes: asked of every statement that any test runs, on whichever backend, and of
//! the schema. Nobody runs the tests on MySQL itself.

use super::text::{Dialect, inside, outermost, tokens, translate};

/// Reserved in MySQL 8.4. Words that are used as they are meant are in capitals in our SQL, but for `true`, `false` and
/// `database()`.
const RESERVED: &str = "accessible add all alter analyze and as asc asensitive before between bigint binary blob both by call cascade \
    case change char character check collate column condition constraint continue convert create cross cube \
    cume_dist current_date current_time current_timestamp current_user cursor databases day_hour day_microsecond \
    day_minute day_second dec decimal declare default delayed delete dense_rank desc describe deterministic distinct \
    distinctrow div double drop dual each else elseif empty enclosed escaped except exists exit explain fetch \
    first_value float float4 float8 for force foreign from fulltext function generated get grant group grouping \
    groups having high_priority hour_microsecond hour_minute hour_second if ignore in index infile inner inout \
    insensitive insert int int1 int2 int3 int4 int8 integer intersect interval into io_after_gtids io_before_gtids \
    is iterate join json_table key keys kill lag last_value lateral lead leading leave left like limit linear lines \
    load localtime localtimestamp lock long longblob longtext loop low_priority manual master_bind \
    master_ssl_verify_server_cert match maxvalue mediumblob mediumint mediumtext middleint minute_microsecond \
    minute_second mod modifies natural not no_write_to_binlog nth_value ntile null numeric of on optimize \
    optimizer_costs option optionally or order out outer outfile over parallel partition percent_rank precision \
    primary procedure purge qualify range rank read reads read_write real recursive references regexp release rename \
    repeat replace require resignal restrict return revoke right rlike row rows row_number schema schemas \
    second_microsecond select sensitive separator set show signal smallint spatial specific sql sqlexception \
    sqlstate sqlwarning sql_big_result sql_calc_found_rows sql_small_result ssl starting stored straight_join system \
    table tablesample terminated then tinyblob tinyint tinytext to trailing trigger undo union unique unlock \
    unsigned update usage use using utc_date utc_time utc_timestamp values varbinary varchar varcharacter varying \
    virtual when where while window with write xor year_month zerofill";
/// Words of MariaDB and PostgreSQL that MySQL has not, or not in 8.0.19.
const UNKNOWN: [&str; 8] = [
    "RETURNING",
    "INTERSECT",
    "EXCEPT",
    "NULLS",
    "FILTER",
    "ILIKE",
    "SEQUENCE",
    "FULL",
];

/// What MySQL would say against a text of ours; nothing: it takes it.
pub(super) fn against(text: &str) -> Option<String> {
    let parts = translate(Dialect::MySql, text).parts;
    parts.iter().find_map(|part| against_statement(&part.text))
}

fn against_statement(text: &str) -> Option<String> {
    let all = tokens(text);
    let words: Vec<&str> = all
        .into_iter()
        .filter(|word| !word.trim().is_empty())
        .collect();
    reserved(&words)
        .or_else(|| unknown(&words))
        .or_else(|| limit_in_set(&words))
        .or_else(|| reads_what_it_changes(&words))
}

/// Names are in small letters, and quoted where they are reserved; behind a dot anything is a name.
fn reserved(words: &[&str]) -> Option<String> {
    let found = words.iter().find(|word| {
        RESERVED
            .split_whitespace()
            .any(|reserved| reserved == **word)
    })?;
    Some(format!("`{found}` is reserved: write it with quotes"))
}

fn unknown(words: &[&str]) -> Option<String> {
    let found = words.iter().find(|word| UNKNOWN.contains(word))?;
    Some(format!("there is no {found}"))
}

/// `IN (SELECT … LIMIT …)`.
fn limit_in_set(words: &[&str]) -> Option<String> {
    for at in 0..words.len() {
        let set = matches!(words[at], "IN" | "ANY" | "ALL" | "SOME");
        let Some((set, _)) = set.then(|| inside(words, at + 1)).flatten() else {
            continue;
        };
        if set.first() == Some(&"SELECT") && outermost(set, "LIMIT").is_some() {
            return Some("no LIMIT in a set of IN: put it into a table of its own".to_owned());
        }
    }
    None
}

/// `DELETE FROM t WHERE … (SELECT … FROM t …)`: error 1093, but from a table of its own in FROM.
fn reads_what_it_changes(words: &[&str]) -> Option<String> {
    let changed = match *words.first()? {
        "UPDATE" => match words.get(1)? {
            &"JSON_TABLE" => words.get(outermost(words, "STRAIGHT_JOIN")? + 1)?,
            table => table,
        },
        "DELETE" => match words.get(1)? {
            &"FROM" => words.get(2)?,
            table => table,
        },
        _ => return None,
    };
    for at in 0..words.len() {
        let Some((select, _)) = (words[at] == "(").then(|| inside(words, at)).flatten() else {
            continue;
        };
        let from = outermost(select, "FROM");
        let reads = from.is_some_and(|from| select.get(from + 1) == Some(changed));
        // A table of its own is read before anything is changed.
        let is_table = at > 0 && matches!(words[at - 1], "FROM" | "JOIN" | "STRAIGHT_JOIN");
        if select.first() == Some(&"SELECT") && reads && !is_table {
            return Some(format!("{changed} is changed and read in one statement"));
        }
    }
    None
}

#[test]
fn what_mysql_refuses_is_found() {
    for (text, why) in [
        ("SELECT a AS rank FROM t", "`rank` is reserved"),
        ("SELECT groups FROM t", "`groups` is reserved"),
        ("INSERT INTO t (a) VALUES ($1) RETURNING a", "RETURNING"),
        (
            "SELECT a FROM t WHERE b IN (SELECT c FROM u LIMIT 1)",
            "no LIMIT",
        ),
        (
            "DELETE FROM t WHERE a IN (SELECT a FROM t WHERE b = 1)",
            "changed and read",
        ),
        (
            "UPDATE t SET a = (SELECT max(a) FROM t)",
            "changed and read",
        ),
        (
            "UPDATE t SET a = j.a FROM EACH($1: a int) AS j WHERE t.a = j.a AND (SELECT count(*) FROM t) > 1",
            "changed and read",
        ),
    ] {
        let found = against(text).unwrap_or_default();
        assert!(found.contains(why), "{text}: {found}");
    }
    for text in [
        "SELECT q.key, \"key\", 'rank' FROM t AS q WHERE (a, b) IN LIST($1: a hex, b int) LIMIT $2",
        "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u LIMIT 1)",
        "DELETE FROM t WHERE a IN (SELECT a FROM (SELECT a FROM t LIMIT 1) AS old)",
        "UPDATE t SET a = (SELECT max(a) FROM u)",
        "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
    ] {
        assert_eq!(against(text), None, "{text}");
    }
}

#[test]
fn the_schema_is_one_that_mysql_takes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/mysql");
    let mut statements = 0;
    for step in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(step.unwrap().path()).unwrap();
        let lines = text.lines().filter_map(|line| line.split("--").next());
        let text: Vec<&str> = lines.collect();
        for statement in text
            .join("\n")
            .split(';')
            .filter(|one| !one.trim().is_empty())
        {
            statements += 1;
            assert_eq!(against_statement(statement), None, "{statement}");
            // Of a text a default must be an expression.
            for column in statement.lines() {
                let (is_text, default) = (
                    column.contains("TEXT") || column.contains("BLOB"),
                    column.split_once("DEFAULT ").map(|(_, default)| default),
                );
                let literal =
                    default.is_some_and(|d| !d.starts_with('(') && !d.starts_with("NULL"));
                assert!(!(is_text && literal), "{column}");
            }
        }
    }
    assert!(statements > 20, "{statements}");
}
