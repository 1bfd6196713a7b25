//! What an instance saved.

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::lifecycle::instance;
use crate::options::options;
use crate::transport::Call;
use crate::{Error, NotFound, Page, Pages, Payload};

/// One row of a list of checkpoints.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CheckpointSummary {
    /// Its id, unique within the instance.
    pub checkpoint_id: String,
    /// Whose it is.
    pub instance_id: String,
    /// When it was saved.
    pub created_at_ms: i64,
    /// Size of the saved state.
    pub data_size_bytes: u64,
}

/// A checkpoint with its state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Its id, unique within the instance.
    pub checkpoint_id: String,
    /// Whose it is.
    pub instance_id: String,
    /// When it was saved.
    pub created_at_ms: i64,
    /// The saved state.
    #[serde(default)]
    pub data: Option<Payload>,
}

options! {
    /// Which checkpoints are listed, newest first.
    CheckpointFilter {
        text {
            /// Only the one of this id.
            checkpoint_id,
            /// Where the page begins, from [`Page::next_cursor`].
            cursor,
        }
        plain {
            /// How many at most.
            limit: u32,
            /// How many are left out in front. Not together with a cursor.
            offset: u64,
            /// Only those saved at this time or later.
            created_after_ms: i64,
            /// Only those saved before this time.
            created_before_ms: i64,
        }
    }
}

#[derive(Deserialize)]
struct Found {
    found: bool,
}

impl Client {
    /// Lists one page of an instance's checkpoints, newest first. An unknown instance has none.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn checkpoints(
        &self,
        instance_id: &str,
        filter: &CheckpointFilter,
    ) -> Result<Page<CheckpointSummary>, Error> {
        let path = instance(instance_id)?
            .then("/checkpoints")
            .with("checkpoint_id", filter.checkpoint_id.as_ref())
            .with("created_after_ms", filter.created_after_ms)
            .with("created_before_ms", filter.created_before_ms)
            .with("limit", filter.limit)
            .with("offset", filter.offset)
            .with("cursor", filter.cursor.as_ref());
        self.send(Call::get(path))
            .await?
            .ok_or_missing(NotFound::Instance, instance_id)?
            .json()
    }

    /// Walks over all checkpoints that match, page by page.
    #[must_use]
    pub fn all_checkpoints(
        &self,
        instance_id: &str,
        filter: &CheckpointFilter,
    ) -> Pages<CheckpointSummary> {
        let (client, id, filter) = (self.clone(), instance_id.to_owned(), filter.clone());
        Pages::new(move |cursor| {
            let (client, id, mut filter) = (client.clone(), id.clone(), filter.clone());
            if cursor.is_some() {
                (filter.cursor, filter.offset) = (cursor, None);
            }
            Box::pin(async move { client.checkpoints(&id, &filter).await })
        })
    }

    /// Gives one checkpoint with its state.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the instance has no such checkpoint.
    pub async fn checkpoint(
        &self,
        instance_id: &str,
        checkpoint_id: &str,
    ) -> Result<Checkpoint, Error> {
        let path = instance(instance_id)?
            .then("/checkpoints")
            .id("checkpoint id", checkpoint_id)?;
        let answer = self
            .send(Call::get(path))
            .await?
            .ok_or_missing(NotFound::Checkpoint, checkpoint_id)?;
        if !answer.json::<Found>()?.found {
            return Err(Error::not_found(NotFound::Checkpoint, checkpoint_id));
        }
        answer.json()
    }
}
