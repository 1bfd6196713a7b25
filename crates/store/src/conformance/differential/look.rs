//! Looks at what can be seen of a store, and puts it into words that can be compared.

use std::fmt::{Debug, Write as _};

use runtara_domain::{Cursor, InstanceState, LabelFilter, Status, Timestamp};

use super::act::{Act, INSTANCES, Question};
use super::names::{
    CONTENTS, SUBTYPES, content, image_id, instance_id, kinds, name, node_id, owner,
};
use super::play::{Player, words};
use crate::conformance::make::checkpoint;
use crate::{
    CheckpointFilter, CheckpointSummary, EventFilter, ImageFilter, InstanceFilter, InstanceOrder,
    MetricsBucket, MetricsQuery, Page, PageRequest, PageStart, StepFilter, StoreResult,
};

const HOUR: u64 = 3_600_000;

/// All pages from a beginning on, cursors and totals included.
async fn walk<T: Debug>(
    size: u8,
    offset: Option<u8>,
    ask: impl AsyncFn(PageRequest) -> StoreResult<Page<T>>,
) -> String {
    walk_shown(size, offset, ask, |rows, next| {
        format!("{rows:#?}\n{next:?}")
    })
    .await
}

async fn walk_shown<T>(
    size: u8,
    offset: Option<u8>,
    ask: impl AsyncFn(PageRequest) -> StoreResult<Page<T>>,
    show: impl Fn(&[T], Option<&Cursor>) -> String,
) -> String {
    let mut words = String::new();
    let mut start = PageStart::Offset(offset.map_or(0, u64::from));
    for _ in 0..1_000 {
        let request = PageRequest {
            start,
            limit: u32::from(size),
        };
        let page = match ask(request).await {
            Ok(page) => page,
            Err(error) => return super::play::words::<()>(Err(error)),
        };
        let shown = show(&page.rows, page.next.as_ref());
        let _ = writeln!(words, "{shown}\n{:?}", page.total);
        match page.next {
            Some(next) => start = PageStart::After(next),
            None => return words,
        }
    }
    panic!("the pages have no end: {words}");
}

/// Which numbers checkpoints have is not promised, only that they grow.
fn show_checkpoints(rows: &[CheckpointSummary], next: Option<&Cursor>) -> String {
    let numbers: Vec<_> = rows.iter().map(|row| row.seq).collect();
    assert!(numbers.is_sorted_by(|one, other| one > other), "{rows:#?}");
    let rows = rows.iter().cloned();
    let unnumbered: Vec<_> = rows
        .map(|row| CheckpointSummary { seq: 0, ..row })
        .collect();
    format!("{unnumbered:#?}\n{}", next.is_some())
}

fn label(text: &str) -> LabelFilter {
    LabelFilter::parse(text).expect("it is valid")
}

impl Player<'_> {
    /// A state with its token named.
    pub(super) fn named(&self, mut state: InstanceState) -> InstanceState {
        let token = state.run.token;
        state.run.token = token.map(|token| self.name_of(&state.instance_id, token));
        state
    }

    /// Looks at the instance that an act was about.
    pub(super) async fn look_at(&self, act: &Act) -> String {
        match act {
            Act::Start { instance, .. }
            | Act::Call { instance, .. }
            | Act::Ask { instance, .. }
            | Act::Exit { instance, .. }
            | Act::Send { instance, .. }
            | Act::Silent { instance, .. }
            | Act::Purge(instance) => self.record(*instance).await,
            _ => String::new(),
        }
    }

    async fn record(&self, instance: u8) -> String {
        let found = self.store.instance(&instance_id(instance)).await;
        words(found.map(|found| {
            found.map(|found| {
                let stood = found.time_in_states;
                (
                    self.named(found.state),
                    stood,
                    found.image_name,
                    found.labels,
                )
            })
        }))
    }

    pub(super) async fn ask(&self, question: &Question) -> String {
        let store = &self.store;
        match question {
            Question::Instances {
                filter,
                order,
                size,
                offset,
            } => {
                let filter = self.instance_filter(*filter);
                walk(*size, *offset, async |page| {
                    store.list_instances(&filter, *order, &page).await
                })
                .await
            }
            Question::Images {
                filter,
                size,
                offset,
            } => {
                let mut wanted = ImageFilter::default();
                if filter & 1 != 0 {
                    wanted.tenant_id = Some(owner(filter >> 4));
                }
                if filter & 6 == 6 {
                    wanted.name = Some(name(filter >> 5).to_owned());
                }
                if filter & 24 == 24 {
                    wanted.labels.push(label("team"));
                }
                walk(*size, *offset, async |page| {
                    store.list_images(&wanted, &page).await
                })
                .await
            }
            Question::Events {
                instance,
                filter,
                ascending,
                size,
                offset,
            } => {
                let id = instance_id(*instance);
                let filter = self.event_filter(*filter, *ascending);
                walk(*size, *offset, async |page| {
                    store.list_events(&id, &filter, &page).await
                })
                .await
            }
            Question::Checkpoints {
                instance,
                filter,
                size,
                offset,
            } => {
                let id = instance_id(*instance);
                let now = self.now;
                let filter = CheckpointFilter {
                    checkpoint_id: (filter & 3 == 3).then(|| name(filter >> 6).to_owned()),
                    created_after: (filter & 12 == 12).then(|| Timestamp(now.0 - 5_000)),
                    created_before: (filter & 48 == 48).then(|| Timestamp(now.0 - 1_000)),
                };
                let ask =
                    async |page: PageRequest| store.list_checkpoints(&id, &filter, &page).await;
                walk_shown(*size, *offset, ask, show_checkpoints).await
            }
            Question::Steps {
                instance,
                filter,
                status,
                ascending,
                size,
                offset,
            } => {
                let id = instance_id(*instance);
                let filter = StepFilter {
                    status: *status,
                    step_type: (filter & 3 == 3).then(|| "sql".to_owned()),
                    scope_id: (filter & 12 == 12).then(|| "x".to_owned()),
                    parent_scope_id: (filter & 48 == 48).then(|| "x".to_owned()),
                    root_scopes_only: filter & 9 == 8,
                    step_ids: match filter & 0xc0 {
                        0xc0 => vec!["t".to_owned(), "other".to_owned()],
                        _ => Vec::new(),
                    },
                    ascending: *ascending,
                };
                walk(*size, *offset, async |page| {
                    store.list_steps(&id, &filter, &page).await
                })
                .await
            }
            Question::Scopes { instance, scope } => {
                let scope = ["x", "y", "z"][usize::from(*scope)];
                words(store.scope_ancestors(&instance_id(*instance), scope).await)
            }
            Question::Metrics { tenant, by_day } => self.metrics(*tenant, *by_day).await,
            Question::Live(node) => {
                let live = store.live_runs(node_id(*node), None, 100).await;
                words(live.map(|live| {
                    let named = live.into_iter().map(|mut live| {
                        live.token = self.name_of(&live.instance_id, live.token);
                        live
                    });
                    named.collect::<Vec<_>>()
                }))
            }
            Question::NextDue(mask) => words(store.next_due(&kinds(*mask)).await),
        }
    }

    fn instance_filter(&self, filter: u16) -> InstanceFilter {
        let now = self.now;
        let ago = |mask: u16, millis| (filter & mask == mask).then(|| Timestamp(now.0 - millis));
        let bits = (filter >> 8) as u8;
        InstanceFilter {
            tenant_id: (filter & 1 != 0).then(|| owner(bits)),
            status: (filter & 6 == 6).then(|| Status::ALL[usize::from(bits) % Status::ALL.len()]),
            image_id: (filter & 0x18 == 0x18).then(|| image_id(bits & 1)),
            image_name_prefix: (filter & 0x60 == 0x60).then(|| name(bits).to_owned()),
            created_after: ago(0x0380, 60_000),
            created_before: ago(0x0d00, 2_000),
            finished_after: ago(0x3100, 60_000),
            finished_before: ago(0x5200, 2_000),
            labels: match filter & 0xc000 {
                0xc000 => vec![label("team")],
                0x8000 => vec![label("env"), label("team=sales")],
                _ => Vec::new(),
            },
        }
    }

    fn event_filter(&self, filter: u16, ascending: bool) -> EventFilter {
        use runtara_domain::EventKind;
        let now = self.now;
        let bits = usize::from(filter >> 8);
        let texts = ["STEP_id", "100%", "_", "é", "error\":null"];
        EventFilter {
            kind: (filter & 3 == 3).then(|| EventKind::ALL[bits % EventKind::ALL.len()]),
            subtype: match filter & 12 {
                12 => SUBTYPES[bits % SUBTYPES.len()].map(str::to_owned),
                _ => None,
            },
            created_after: (filter & 0x30 == 0x30).then(|| Timestamp(now.0 - 10_000)),
            created_before: (filter & 0xc0 == 0xc0).then(|| Timestamp(now.0 - 1)),
            payload_contains: (filter & 0x300 == 0x300).then(|| texts[bits % 5].to_owned()),
            scope_id: (filter & 0xc00 == 0xc00).then(|| "x".to_owned()),
            parent_scope_id: (filter & 0x3000 == 0x3000).then(|| "x".to_owned()),
            root_scopes_only: filter & 0xc000 == 0xc000,
            ascending,
        }
    }

    async fn metrics(&self, tenant: u8, by_day: bool) -> String {
        let query = MetricsQuery {
            tenant_id: owner(tenant),
            start: Timestamp(0),
            end: self.now.plus_millis(1),
            bucket_ms: if by_day { 24 * HOUR } else { HOUR },
        };
        let buckets = self.store.tenant_metrics(&query).await;
        // Averages may be added up in another order.
        let rounded = |value: Option<f64>| value.map(|value| format!("{value:.6}"));
        let as_words = |bucket: MetricsBucket| {
            format!(
                "{} {} {} {} {:?} {:?} {:?} {:?} {:?}",
                bucket.start,
                bucket.completed,
                bucket.failed,
                bucket.cancelled,
                rounded(bucket.avg_duration_ms),
                rounded(bucket.min_duration_ms),
                rounded(bucket.max_duration_ms),
                rounded(bucket.avg_memory_bytes),
                bucket.max_memory_bytes,
            )
        };
        words(buckets.map(|buckets| buckets.into_iter().map(as_words).collect::<Vec<_>>()))
    }

    /// Looks at everything.
    pub(super) async fn look_at_all(&self) -> String {
        let mut seen = String::new();
        for instance in 0..INSTANCES {
            let id = instance_id(instance);
            let _ = writeln!(seen, "{id}\n{}", self.record(instance).await);
            seen.push_str(&words(self.store.instance_values(&id).await));
            seen.push_str(&words(self.store.instance_input(&id).await));
            for question in all_of(instance) {
                seen.push_str(&self.ask(&question).await);
            }
            for n in 0..3 {
                seen.push_str(&words(
                    self.store.checkpoint(&id, &checkpoint(name(n))).await,
                ));
            }
            let live = self.store.live_run(&id).await;
            seen.push_str(&words(
                live.map(|live| live.map(|live| (live.run_number, live.status))),
            ));
        }
        use InstanceOrder as O;
        for order in [
            O::CreatedAscending,
            O::FinishedAscending,
            O::FinishedDescending,
        ] {
            let filter = 0;
            let all = Question::Instances {
                filter,
                order,
                size: 2,
                offset: None,
            };
            seen.push_str(&self.ask(&all).await);
        }
        for n in 0..self.images() {
            seen.push_str(&words(self.store.image(&image_id(n)).await));
        }
        for n in 0..CONTENTS {
            seen.push_str(&words(self.store.is_content_needed(&content(n)).await));
        }
        for question in [
            Question::Images {
                filter: 0,
                size: 2,
                offset: None,
            },
            Question::Metrics {
                tenant: 0,
                by_day: false,
            },
            Question::Metrics {
                tenant: 1,
                by_day: true,
            },
            Question::Live(0),
            Question::Live(1),
            Question::NextDue(7),
        ] {
            seen.push_str(&self.ask(&question).await);
        }
        seen
    }
}

fn all_of(instance: u8) -> [Question; 3] {
    let (size, offset) = (50, None);
    [
        Question::Events {
            instance,
            filter: 0,
            ascending: true,
            size,
            offset,
        },
        Question::Checkpoints {
            instance,
            filter: 0,
            size,
            offset,
        },
        Question::Steps {
            instance,
            filter: 0,
            status: None,
            ascending: true,
            size,
            offset,
        },
    ]
}
