//! Opens the store that a configuration means.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtara_store::postgres::{PostgresOptions, PostgresStore};
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use runtara_store::{Nudges, Store, StoreError};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::Error;
use crate::config::Config;
use crate::runtime::database_of;

/// How long a database that is away at the start is waited for: both may just be starting together.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

/// Opens the store and brings it up to date.
pub(crate) async fn open(
    config: &Config,
    data_dir: &Path,
    nudges: Nudges,
) -> Result<Arc<dyn Store>, Error> {
    let url = database_of(config, data_dir);
    info!(database = %url, "opening the database");
    if url.is_sqlite() {
        let options = SqliteOptions::new(url.expose())?
            .statement_timeout(config.database_timeout)
            .claims_by_tenant(config.max_runs_per_tenant.is_some())
            .nudges(nudges);
        return Ok(Arc::new(SqliteStore::open(options).await?));
    }
    let mut options =
        PostgresOptions::new(url.expose()).max_connections(config.database_connections);
    options.statement_timeout = config.database_timeout;
    options.nudges = nudges;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match PostgresStore::connect(options.clone()).await {
            Ok(store) => return Ok(Arc::new(store)),
            Err(error @ StoreError::Unavailable { .. }) if Instant::now() + PAUSE < deadline => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                warn!(%error, source, "the database cannot be reached yet");
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use runtara_domain::NodeId;
    use sqlx::{Connection as _, SqliteConnection};

    use super::{Config, Duration, Nudges, StoreError, open};
    use crate::config::Mode;

    #[tokio::test]
    async fn a_write_to_sqlite_takes_no_longer_than_is_configured() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let lookup = |name: &str| match name {
            "RUNTARA_DATABASE_URL" => Some(format!("sqlite:{}", path.display()).into()),
            "RUNTARA_DB_REQUEST_TIMEOUT_MS" => Some("300".into()),
            _ => None,
        };
        let config = Config::read(Mode::Serve, &lookup).unwrap();
        let store = open(&config, directory.path(), Nudges::new())
            .await
            .unwrap();
        store.ping().await.unwrap();
        // A person with a tool, who holds the database for longer.
        let mut other = SqliteConnection::connect(&format!("sqlite:{}", path.display()))
            .await
            .unwrap();
        sqlx::query("begin immediate")
            .execute(&mut other)
            .await
            .unwrap();
        let asked = Instant::now();
        let answer = store.release_node(NodeId::generate()).await;
        let took = asked.elapsed();
        assert!(
            matches!(answer, Err(StoreError::Unavailable { .. })),
            "{answer:?}"
        );
        assert!(took < Duration::from_secs(3), "it took {took:?}");
        sqlx::query("rollback").execute(&mut other).await.unwrap();
        other.close().await.unwrap();
        store.close().await;
    }
}
