//! Following the events of an instance while it lives.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::Client;
use crate::{Error, Event, EventFilter, Pages, SortOrder};

/// Events are listed by time, and two that were recorded at almost the same moment may become visible in the other order. So each
/// look begins this much before the newest that was seen, and what was seen is left out by its id.
const OVERLAP_MS: i64 = 5_000;
/// Events fetched with one call.
const PAGE: u32 = 500;
/// Most ids that are remembered before those out of the overlap are forgotten.
const REMEMBERED: usize = 10_000;
/// Most events that one [`EventFollower::poll`] gives.
const POLLED: usize = 1_000;
/// How long the server is asked to wait for the end of the instance between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Gives an instance's events as they are recorded, each once.
///
/// ```no_run
/// # async fn example(client: runtara_management_sdk::Client) -> Result<(), runtara_management_sdk::Error> {
/// use runtara_management_sdk::EventFilter;
///
/// let mut events = client.follow_events("order-17", EventFilter::new());
/// while let Some(event) = events.next().await? {
///     println!("{} {}", event.id, event.event_type);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct EventFollower {
    client: Client,
    instance_id: String,
    filter: EventFilter,
    after_id: i64,
    /// Ids that were given, by id, with their times: those that a later look may meet again.
    seen: BTreeMap<i64, i64>,
    newest_ms: Option<i64>,
    /// The look that is under way, fetched page by page.
    look: Option<Pages<Event>>,
}

impl Client {
    /// Follows the events of an instance that match `filter`, oldest first, those that are already there included. The order, cursor,
    /// limit and offset of the filter are not used.
    #[must_use]
    pub fn follow_events(
        &self,
        instance_id: impl Into<String>,
        filter: EventFilter,
    ) -> EventFollower {
        EventFollower {
            client: self.clone(),
            instance_id: instance_id.into(),
            newest_ms: None,
            filter,
            after_id: i64::MIN,
            seen: BTreeMap::new(),
            look: None,
        }
    }
}

impl EventFollower {
    /// Leaves out events up to this id, those that a caller saw before.
    #[must_use]
    pub fn after(mut self, event_id: i64) -> Self {
        self.after_id = event_id;
        self
    }

    /// The next event, or `None` once the instance has ended and all were given. May wait for as long as the program is silent.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the instance is unknown. After an error that [`Error::is_transient`], a further call goes on where
    /// this one broke off.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        let mut has_ended = false;
        loop {
            if let Some(event) = self.look().await? {
                return Ok(Some(event));
            }
            if has_ended {
                return Ok(None);
            }
            // The last look must come after the end was seen: events may have been recorded since the one before.
            let began = tokio::time::Instant::now();
            has_ended = self
                .client
                .instance_after(&self.instance_id, PAUSE)
                .await?
                .status
                .is_end();
            if !has_ended {
                // A server that does not wait would be asked without pause.
                tokio::time::sleep_until(began + PAUSE).await;
            }
        }
    }

    /// What was recorded since the last call, without waiting; at most 1,000 events at a time.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn poll(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        while events.len() < POLLED {
            match self.look().await? {
                Some(event) => events.push(event),
                None => break,
            }
        }
        Ok(events)
    }

    /// The next event of the look that is under way, or of a new one; `None` at its end.
    async fn look(&mut self) -> Result<Option<Event>, Error> {
        let filter = self.filter_from_here();
        let pages = self
            .look
            .get_or_insert_with(|| self.client.all_events(&self.instance_id, &filter));
        while let Some(event) = pages.next().await? {
            let is_new = event.id > self.after_id
                && self.seen.insert(event.id, event.created_at_ms).is_none();
            if is_new {
                self.newest_ms = self.newest_ms.max(Some(event.created_at_ms));
                if self.seen.len() > REMEMBERED {
                    self.forget();
                }
                return Ok(Some(event));
            }
        }
        self.look = None;
        self.forget();
        Ok(None)
    }

    fn filter_from_here(&self) -> EventFilter {
        let mut filter = self.filter.clone().sort_order(SortOrder::Asc).limit(PAGE);
        (filter.cursor, filter.offset) = (None, None);
        filter.created_after_ms = self.since().max(filter.created_after_ms);
        filter
    }

    fn since(&self) -> Option<i64> {
        self.newest_ms.map(|newest| newest - OVERLAP_MS)
    }

    /// Forgets what no later look meets.
    fn forget(&mut self) {
        if let Some(since) = self.since() {
            self.seen.retain(|_, created| *created >= since);
        }
    }
}
