//! Black-box suites against the real server process: what they share.
//!
//! - [`Server`]: starts `runtara-environment` in a place of its own, kills it, restarts it, and cleans up after it.
//! - [`http`]: a small blocking HTTP/1.1 client that can also send what no proper client would.
//! - [`Image`] and the verbs of [`Server`]: register, start, look, wait.
//! - [`Server::runtara`]: the command line, as a person runs it.
//! - [`Shared`]: files by which a test and the programs that it starts tell each other how far they are.
//! - [`SharedDisk`]: a small disk that several servers use.
//! - [`Setup::beside`]: a further server on the same database; [`Proxy`]: a wire to that database which a test can cut.
//! - [`Hold`]: holds whoever opens a file or a directory, so that a test can act while the server is at work.
//! - [`processes`]: which processes there are because of a server.
//! - [`guest`]: WebAssembly modules and components, compiled from the C files in `guests`; some do what a program of the same name does.
//! - [`Ground`] and the macros: each test on both stores, and with programs of several kinds.
//! - [`image`]: container images, made byte by byte; [`Server::remains`]: what containers have left on the machine.
//!
//! `RUNTARA_TEST_OCI_RUNTIME` has all servers use another OCI runtime than runc.
//!
//! Nothing else is built here: programs are looked for beside the test, or where `RUNTARA_TEST_BIN_DIR` says.

pub mod guest;
pub mod http;
pub mod image;
pub mod processes;
pub mod s3;

mod command_line;
mod containers;
mod database;
mod hold;
mod keeper;
mod place;
mod postgres;
mod programs;
mod proxy;
mod run;
mod server;
mod shared_disk;
mod verbs;
mod wait;

pub use command_line::Ran;
pub use containers::Remains;
pub use database::{Ground, Kind, Store};
pub use hold::Hold;
pub use place::{Shared, clean_up_after_the_dead};
pub use postgres::PrivatePostgres;
pub use programs::program;
pub use proxy::Proxy;
pub use run::Run;
pub use server::{Server, Setup, free_ports};
pub use shared_disk::SharedDisk;
pub use verbs::{Image, TENANT, base64, from_base64, milliseconds};
pub use wait::{DEADLINE, eventually, eventually_within, holds_for};

/// Makes two tests of each function: on SQLite and on PostgreSQL.
///
/// ```text
/// on_both_stores!(a_start_is_kept);
///
/// fn a_start_is_kept(store: Store) { … }
/// ```
///
/// gives `a_start_is_kept::sqlite` and `a_start_is_kept::postgres`.
#[macro_export]
macro_rules! on_both_stores {
    ($($name:ident),* $(,)?) => {
        $($crate::tests_on! { $name {
            sqlite: $crate::Store::Sqlite,
            postgres: $crate::Store::Postgres,
        }})*
    };
}

/// Makes four tests of each function: natively and in containers, each on SQLite and on PostgreSQL.
///
/// ```text
/// in_both_kinds!(a_start_is_kept);
///
/// fn a_start_is_kept(ground: Ground) { … }
/// ```
///
/// gives `a_start_is_kept::sqlite`, `…::postgres`, `…::containers_on_sqlite` and `…::containers_on_postgres`.
#[macro_export]
macro_rules! in_both_kinds {
    ($($name:ident),* $(,)?) => {
        $($crate::tests_on! { $name {
            sqlite: $crate::Store::Sqlite.into(),
            postgres: $crate::Store::Postgres.into(),
            containers_on_sqlite: $crate::Store::Sqlite.in_containers(),
            containers_on_postgres: $crate::Store::Postgres.in_containers(),
        }})*
    };
}

/// Makes six tests of each function: those of [`in_both_kinds!`], and as guests on SQLite and on PostgreSQL, `…::guests_on_sqlite` and
/// `…::guests_on_postgres`.
#[macro_export]
macro_rules! in_every_kind {
    ($($name:ident),* $(,)?) => {
        $($crate::tests_on! { $name {
            sqlite: $crate::Store::Sqlite.into(),
            postgres: $crate::Store::Postgres.into(),
            containers_on_sqlite: $crate::Store::Sqlite.in_containers(),
            containers_on_postgres: $crate::Store::Postgres.in_containers(),
            guests_on_sqlite: $crate::Store::Sqlite.in_guests(),
            guests_on_postgres: $crate::Store::Postgres.in_guests(),
        }})*
    };
}

/// Makes four tests of each function: natively and as guests, each on SQLite and on PostgreSQL. For what a container would only do once
/// more.
#[macro_export]
macro_rules! natively_and_in_guests {
    ($($name:ident),* $(,)?) => {
        $($crate::tests_on! { $name {
            sqlite: $crate::Store::Sqlite.into(),
            postgres: $crate::Store::Postgres.into(),
            guests_on_sqlite: $crate::Store::Sqlite.in_guests(),
            guests_on_postgres: $crate::Store::Postgres.in_guests(),
        }})*
    };
}

/// A test for each ground that a function is to be tried on.
#[doc(hidden)]
#[macro_export]
macro_rules! tests_on {
    ($name:ident { $($test:ident: $ground:expr,)* }) => {
        mod $name {
            $(#[test]
            fn $test() {
                super::$name($ground);
            })*
        }
    };
}
