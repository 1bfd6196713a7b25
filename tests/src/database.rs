//! Which store a server is tested on.

use std::env;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The store of a server under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A file in the data directory.
    Sqlite,
    /// A database of its own in the PostgreSQL that `RUNTARA_TEST_POSTGRES_URL` names.
    Postgres,
}

impl Store {
    /// This store under a server whose programs run in containers.
    #[must_use]
    pub fn in_containers(self) -> Ground {
        Ground {
            store: self,
            kind: Kind::Containers,
        }
    }

    /// This store under a server whose programs are WebAssembly guests.
    #[must_use]
    pub fn in_guests(self) -> Ground {
        Ground {
            store: self,
            kind: Kind::Wasm,
        }
    }
}

/// How the programs of a test are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As processes of the host.
    Native,
    /// In containers, laid on an image with a shell and the libraries of the host.
    Containers,
    /// As WebAssembly guests in the server's own process: the source in `tests/guests` that is named like the program, and does the same.
    Wasm,
}

/// What a server under test stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ground {
    /// Its store.
    pub store: Store,
    /// How it runs the programs of the test.
    pub kind: Kind,
}

impl From<Store> for Ground {
    fn from(store: Store) -> Self {
        Self {
            store,
            kind: Kind::Native,
        }
    }
}

/// The database of one test, gone with it.
pub(crate) enum Database {
    /// That of another server, which is not dropped with this value.
    OfAnother {
        url: String,
    },
    Sqlite {
        url: String,
    },
    Postgres {
        admin: String,
        name: String,
    },
}

impl Database {
    pub(crate) fn make(store: Store, place: &Path) -> Self {
        match store {
            Store::Sqlite => Self::Sqlite {
                url: format!("sqlite:{}", place.join("data/runtara.db").display()),
            },
            Store::Postgres => Self::in_postgres(&admin_url()),
        }
    }

    pub(crate) fn in_postgres(admin: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("suite_{}_{number}", std::process::id());
        // Left by a test of an earlier life of this process id, which was killed.
        psql(
            admin,
            &format!("drop database if exists {name} with (force)"),
        );
        psql(admin, &format!("create database {name}"));
        let admin = admin.to_owned();
        Self::Postgres { admin, name }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite { url } | Self::OfAnother { url } => url.clone(),
            Self::Postgres { admin, name } => {
                let server = admin
                    .rsplit_once('/')
                    .map_or(admin.as_str(), |(server, _)| server);
                format!("{server}/{name}")
            }
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Self::Postgres { admin, name } = self {
            // Fails only when that PostgreSQL has been ended, and then it is gone anyway.
            let _gone_anyway = run_psql(
                admin,
                &format!("drop database if exists {name} with (force)"),
            );
        }
    }
}

fn admin_url() -> String {
    env::var("RUNTARA_TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!(
            "RUNTARA_TEST_POSTGRES_URL is not set; run the tests with `cargo xtask test`, or start a database with \
             `cargo xtask db start` and set the variable to its URL"
        )
    })
}

/// Runs a statement and gives what it prints: one line a row, columns separated by `|`.
///
/// # Panics
/// If it fails.
pub(crate) fn psql(url: &str, statement: &str) -> String {
    run_psql(url, statement).unwrap_or_else(|error| panic!("psql, {statement}: {error}"))
}

fn run_psql(url: &str, statement: &str) -> Result<String, String> {
    let output = Command::new("psql")
        .args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            url,
            "-c",
            statement,
        ])
        .env("PGCONNECT_TIMEOUT", "10")
        .env("PGOPTIONS", "-c client_min_messages=warning")
        .output()
        .map_err(|error| format!("cannot run psql: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
