//! What happened to an instance.

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::lifecycle::instance;
use crate::options::options;
use crate::transport::Call;
use crate::{Error, EventType, NotFound, Page, Pages, Payload, SortOrder};

/// One event of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Its number, which grows within an instance.
    pub id: i64,
    /// Whose it is.
    pub instance_id: String,
    /// What it tells.
    pub event_type: EventType,
    /// What a custom event is called by the program.
    #[serde(default)]
    pub subtype: Option<String>,
    /// When it was recorded.
    pub created_at_ms: i64,
    /// The checkpoint it belongs to.
    #[serde(default)]
    pub checkpoint_id: Option<String>,
    /// What the program said, mostly JSON.
    #[serde(default)]
    pub payload: Option<Payload>,
}

options! {
    /// Which events are listed, newest first unless `sort_order` says otherwise.
    EventFilter {
        text {
            /// Only those of this subtype.
            subtype,
            /// Only those whose payload contains this text, in any case.
            payload_contains,
            /// Only those of this scope.
            scope_id,
            /// Only those of scopes directly in this one.
            parent_scope_id,
            /// Where the page begins, from [`Page::next_cursor`].
            cursor,
        }
        plain {
            /// Only those of this type.
            event_type: EventType,
            /// Only those outside of any scope within another.
            root_scopes_only: bool,
            /// In which order.
            sort_order: SortOrder,
            /// Only those recorded at this time or later.
            created_after_ms: i64,
            /// Only those recorded before this time.
            created_before_ms: i64,
            /// How many at most.
            limit: u32,
            /// How many are left out in front. Not together with a cursor.
            offset: u64,
        }
    }
}

impl Client {
    /// Lists one page of an instance's events.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn events(
        &self,
        instance_id: &str,
        filter: &EventFilter,
    ) -> Result<Page<Event>, Error> {
        let path = instance(instance_id)?
            .then("/events")
            .with("event_type", filter.event_type.as_ref())
            .with("subtype", filter.subtype.as_ref())
            .with("payload_contains", filter.payload_contains.as_ref())
            .with("scope_id", filter.scope_id.as_ref())
            .with("parent_scope_id", filter.parent_scope_id.as_ref())
            .with("root_scopes_only", filter.root_scopes_only)
            .with("sort_order", filter.sort_order.as_ref())
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

    /// Walks over all events that match, page by page.
    #[must_use]
    pub fn all_events(&self, instance_id: &str, filter: &EventFilter) -> Pages<Event> {
        let (client, id, filter) = (self.clone(), instance_id.to_owned(), filter.clone());
        Pages::new(move |cursor| {
            let (client, id, mut filter) = (client.clone(), id.clone(), filter.clone());
            if cursor.is_some() {
                (filter.cursor, filter.offset) = (cursor, None);
            }
            Box::pin(async move { client.events(&id, &filter).await })
        })
    }
}
