//! What is to be said of a store, for `drover doctor` and `drover store check`.

use control::store::{Depth, Inspection, OpenError, ServerInspection};

use super::check::Check;
use crate::cli::store::advice;
use crate::cli::top::format::{bytes, count};
use crate::fault::chain;

/// A log longer than this is not let go of: somebody reads for very long (the server asks for 64 MiB).
const LOG_BYTES_MAX: u64 = 256 << 20;

/// Everything about a store. `path` is in what to do.
pub(in crate::cli) fn checks(
    looked: &Result<Option<Inspection>, OpenError>,
    depth: Depth,
) -> Vec<Check> {
    match looked {
        Err(error) => vec![Check::failure("store", chain(error), advice(error))],
        Ok(None) => vec![Check::ok("store", "none yet: the first start makes it")],
        Ok(Some(store)) => vec![
            place(store),
            pages(store, depth),
            schema(store),
            log(store),
            durability(store),
        ],
    }
}

fn place(store: &Inspection) -> Check {
    let user = match store.in_use {
        true => "a server has it open and goes on; it was only read",
        false => "no server has it open",
    };
    Check::ok(
        "store",
        format!("{}, {}; {user}", store.path.display(), bytes(store.bytes)),
    )
}

fn pages(store: &Inspection, depth: Depth) -> Check {
    let looked_at = match depth {
        Depth::Quick => "every page was read",
        Depth::Deep => "every page, index and reference was read",
    };
    match store.damage.as_slice() {
        [] => Check::ok("store.pages", format!("{looked_at}: no damage")),
        [first, rest @ ..] => {
            let more = match rest.len() {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            Check::failure(
                "store.pages",
                format!("damaged: {}{more}", first.replace('\n', " ")),
                "stop the server, keep a copy of the data directory, and restore a backup (docs/OPERATIONS.md, \
                 Backup); look at the disk: `dmesg`",
            )
        }
    }
}

/// What saves a store under another name, whether a server runs or not.
fn backup(store: &Inspection) -> String {
    let path = store.path.display();
    format!("sqlite3 {path} \"VACUUM INTO '{path}.backup'\"")
}

fn schema(store: &Inspection) -> Check {
    let (found, known) = (store.schema, store.known_schema);
    if found == known {
        return Check::ok("store.schema", format!("version {found}, this build's"));
    }
    let what =
        format!("version {found}; this build's first start on it makes it {known}, for good");
    Check::warning(
        "store.schema",
        what,
        format!("save it before the upgrade: {}", backup(store)),
    )
}

fn log(store: &Inspection) -> Check {
    let length = bytes(store.log_bytes);
    match (store.in_use, store.log_bytes) {
        (true, large) if large > LOG_BYTES_MAX => Check::warning(
            "store.log",
            format!(
                "the write-ahead log has {length}: somebody reads for so long that it cannot be folded in"
            ),
            format!("end what reads: `fuser -v {}`", store.path.display()),
        ),
        (false, left) if left > 0 => Check::ok(
            "store.log",
            format!("{length} left by a crash: the next start reads it; it belongs to the store"),
        ),
        (true, _) => Check::ok("store.log", format!("the write-ahead log has {length}")),
        (false, _) => Check::ok("store.log", "folded into the file"),
    }
}

fn durability(store: &Inspection) -> Check {
    match (store.has_wal, store.in_use) {
        (true, _) => Check::ok(
            "store.durability",
            "write-ahead log; the server waits for the disk at every commit",
        ),
        // A backup by VACUUM INTO, for one.
        (false, false) => Check::ok(
            "store.durability",
            "without a write-ahead log, as backups are: the next start puts it back",
        ),
        (false, true) => Check::failure(
            "store.durability",
            "the server runs without a write-ahead log",
            "restart the server, which puts it back; let nothing else write to the file",
        ),
    }
}

/// Everything about a store on a server.
pub(in crate::cli) fn server_checks(
    looked: &Result<ServerInspection, OpenError>,
    depth: Depth,
) -> Vec<Check> {
    let server = match looked {
        Err(error) => return vec![Check::failure("store", chain(error), advice(error))],
        Ok(server) => server,
    };
    let mut checks = vec![
        server_place(server),
        server_durability(server),
        server_schema(server),
    ];
    if depth == Depth::Deep {
        checks.push(Check::warning(
            "store.pages",
            "--deep does nothing here: it reads the file of an SQLite store, and a database's files are its server's",
            "let the server look: pg_amcheck DATABASE (PostgreSQL), or mariadb-check DATABASE",
        ));
    }
    checks
}

fn server_place(server: &ServerInspection) -> Check {
    let what = format!("{} on {}", server.url, server.software);
    if let Some(needed) = server.too_old {
        let upgrade = format!("upgrade it to {needed} or later");
        return Check::failure("store", format!("{what}, which is too old"), upgrade);
    }
    if server.read_only {
        return Check::failure(
            "store",
            format!("{what}, which takes no writes"),
            "name the primary server in `store`",
        );
    }
    let users = match server.servers {
        0 => "no process server is alive on it".to_owned(),
        1 => "1 process server is alive on it".to_owned(),
        servers => format!("{servers} process servers are alive on it"),
    };
    Check::ok("store", format!("{what}; {users}"))
}

fn server_durability(server: &ServerInspection) -> Check {
    let Some(weak) = server.weaknesses.first() else {
        return Check::ok(
            "store.durability",
            "the server waits for its disk at every commit",
        );
    };
    let what = format!("{} is {}", weak.setting, weak.found);
    let set = format!("set {} = {} on the server", weak.setting, weak.wanted);
    match weak.waivable && server.unsafe_will_do {
        true => Check::warning(
            "store.durability",
            format!("{what}: accepted work may be lost when the machine fails, as the URL allows"),
            set,
        ),
        false => Check::failure("store.durability", what, set),
    }
}

fn server_schema(server: &ServerInspection) -> Check {
    let (found, known) = (server.schema, server.known_schema);
    match found {
        0 => Check::ok("store.schema", "none yet: the first start makes it"),
        _ if found == known => Check::ok("store.schema", format!("version {found}, this build's")),
        _ => Check::warning(
            "store.schema",
            format!("version {found}; this build's first start on it makes it {known}, for good"),
            "save the database before the upgrade (docs/STORES.md, Backup)",
        ),
    }
}

/// How many agents the store lets in; 0 where nobody knows.
pub(super) fn agents(looked: &Result<Option<Inspection>, OpenError>) -> u64 {
    match looked {
        Ok(Some(store)) => store.agents,
        Ok(None) | Err(_) => 0,
    }
}

/// `1 agent`, `1,200 agents`.
pub(super) fn of_agents(agents: u64) -> String {
    match agents {
        1 => "1 agent".to_owned(),
        agents => format!("{} agents", count(agents)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use control::store::Neighbours;

    use super::super::check::{Status, worst};
    use super::*;

    /// A store on a server with nothing to say against it.
    pub(in crate::cli::doctor) fn server() -> ServerInspection {
        ServerInspection {
            url: "postgres://db/drover".to_owned(),
            software: "PostgreSQL 15.9".to_owned(),
            too_old: None,
            read_only: false,
            weaknesses: Vec::new(),
            unsafe_will_do: false,
            schema: 8,
            known_schema: 8,
            servers: 0,
            agents: 3,
            is_of_a_deployment: true,
            neighbours: Neighbours::Nobody,
            clock_ahead: 0,
        }
    }

    #[test]
    fn a_deep_look_at_a_database_is_told_to_be_none() {
        assert_eq!(
            worst(&server_checks(&Ok(server()), Depth::Quick)),
            Status::Ok
        );
        let deep = server_checks(&Ok(server()), Depth::Deep);
        assert_eq!(worst(&deep), Status::Warning);
        assert!(deep.iter().any(|check| check.found.contains("--deep")));
    }

    fn store() -> Inspection {
        Inspection {
            path: "/d/drover.db".into(),
            in_use: false,
            bytes: 4096,
            log_bytes: 0,
            schema: 8,
            known_schema: 8,
            has_wal: true,
            damage: Vec::new(),
            agents: 3,
            newest: None,
        }
    }

    fn checked(store: Inspection) -> Vec<Check> {
        checks(&Ok(Some(store)), Depth::Quick)
    }

    fn said(store: Inspection, name: &str) -> (Status, String) {
        let checks = checked(store);
        let check = checks.into_iter().find(|check| check.name == name).unwrap();
        let advice = check.advice.unwrap_or_default();
        (check.status, format!("{} {advice}", check.found))
    }

    #[test]
    fn a_sound_store_has_nothing_to_say_against_it() {
        assert_eq!(worst(&checked(store())), Status::Ok);
        let in_use = Inspection {
            in_use: true,
            log_bytes: LOG_BYTES_MAX,
            ..store()
        };
        assert_eq!(worst(&checked(in_use)), Status::Ok);
    }

    #[test]
    fn each_kind_of_trouble_is_told_with_what_to_do() {
        let damage = vec!["page 7 is\nbad".to_owned(), "row 2".to_owned()];
        let (status, words) = said(Inspection { damage, ..store() }, "store.pages");
        assert_eq!(status, Status::Failure);
        assert!(
            words.contains("page 7 is bad, and 1 more") && words.contains("restore"),
            "{words}"
        );

        let (status, words) = said(
            Inspection {
                schema: 7,
                ..store()
            },
            "store.schema",
        );
        assert_eq!(status, Status::Warning);
        assert!(
            words.contains("VACUUM INTO '/d/drover.db.backup'"),
            "{words}"
        );

        let long = Inspection {
            in_use: true,
            log_bytes: LOG_BYTES_MAX + 1,
            ..store()
        };
        assert_eq!(said(long, "store.log").0, Status::Warning);
        let crashed = said(
            Inspection {
                log_bytes: 1,
                ..store()
            },
            "store.log",
        );
        assert_eq!(crashed.0, Status::Ok);
        assert!(crashed.1.contains("left by a crash"), "{crashed:?}");

        let bare = Inspection {
            has_wal: false,
            ..store()
        };
        assert_eq!(said(bare.clone(), "store.durability").0, Status::Ok);
        let served = Inspection {
            in_use: true,
            ..bare
        };
        assert_eq!(said(served, "store.durability").0, Status::Failure);
    }

    #[test]
    fn what_cannot_be_opened_is_a_failure_and_what_is_not_there_is_none() {
        let path = || "/d/drover.db".into();
        let newer = OpenError::NewerSchema {
            path: path(),
            found: 9,
            known: 8,
        };
        let checks = checks(&Err(newer), Depth::Quick);
        assert_eq!(worst(&checks), Status::Failure);
        assert!(checks[0].advice.as_ref().unwrap().contains("newer drover"));
        assert_eq!(worst(&super::checks(&Ok(None), Depth::Quick)), Status::Ok);
    }
}
