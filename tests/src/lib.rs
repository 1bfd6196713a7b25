//! Black-box suites against the real server process: what they share.
//!
//! - [`Server`]: starts `runtara-environment` in a place of its own, kills it, restarts it, and cleans up after it.
//! - [`http`]: a small blocking HTTP/1.1 client that can also send what no proper client would.
//! - [`Image`] and the verbs of [`Server`]: register, start, look, wait.
//! - [`Server::runtara`]: the command line, as a person runs it.
//! - [`Shared`]: files by which a test and the programs that it starts tell each other how far they are.
//! - [`processes`]: which processes there are because of a server.
//!
//! Nothing is built here: programs are looked for beside the test, or where `RUNTARA_TEST_BIN_DIR` says.

pub mod http;
pub mod processes;

mod command_line;
mod database;
mod place;
mod postgres;
mod programs;
mod server;
mod verbs;
mod wait;

pub use command_line::Ran;
pub use database::Store;
pub use place::Shared;
pub use postgres::PrivatePostgres;
pub use programs::program;
pub use server::{Server, Setup, free_ports};
pub use verbs::{Image, Run, TENANT, base64, from_base64, milliseconds};
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
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn sqlite() {
                super::$name($crate::Store::Sqlite);
            }

            #[test]
            fn postgres() {
                super::$name($crate::Store::Postgres);
            }
        }
    )*};
}
