//! Private servers for tests: PostgreSQL, MariaDB, Redis and ZooKeeper, from Debian's packages.
//!
//! ```text
//!   test ── starts ──▶ server   on loopback, a free port, in a folder of its own, as `nobody`
//!     │                  ▲
//!     └── a pipe ──▶ keeper: when the pipe closes, however the test ended, it kills the server
//!                            and removes the folder
//! ```
//!
//! Each is ready when its `start` returns: it has answered. It ends when it is dropped. For what goes wrong
//! in production there are [`Server::kill`], [`Server::stop`], [`Server::pause`], [`Server::resume`] and
//! [`Server::restart`], which comes back on the same port with the same data. `shared` gives every test of a
//! process the same one; take a fresh database of it, and hurt only one of your own.
//!
//! ```no_run
//! # async fn test() -> Result<(), testkit::KitError> {
//! let postgres = testkit::Postgres::start().await?;
//! let url = postgres.database("orders").await?;
//! postgres.pause();
//! // ... what does the program do now?
//! postgres.resume();
//! # Ok(()) }
//! ```
//!
//! A package that is missing is named with the command that installs it; `.ci/services` installs all.

mod error;
mod keeper;
mod mariadb;
mod places;
mod postgres;
mod redis;
mod server;
mod tls;
mod zookeeper;

pub use self::error::KitError;
pub use self::mariadb::MariaDb;
pub use self::places::{free_ports, loopback};
pub use self::postgres::Postgres;
pub use self::redis::Redis;
pub use self::server::Server;
pub use self::tls::ClientTls;
pub use self::zookeeper::ZooKeeper;
