//! Ended instances beyond their retention.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{Retention, RetentionClass};
use runtara_store::{EndPlace, EndedInstance, Expired, Owners, Store};
use tokio::time::Instant;

use super::{Failure, Pass, Reconciler};
use crate::Shared;

/// How many ended instances are looked at in one question.
const LOOKED_AT: u32 = 500;
/// How many are taken away at once.
const AT_ONCE: usize = 50;
/// How many rows of what belonged to them are removed at once.
const ROWS: u32 = 1_000;
/// How often everything is looked at again, what was passed over before included.
const FROM_THE_START: Duration = Duration::from_secs(86_400);

/// Removes ended instances beyond their retention.
#[derive(Default)]
pub(super) struct Instances {
    places: Mutex<Places>,
}

/// How far the search has come for each class: what ended before that is removed, or is kept for longer by another rule. Without them every
/// search would look at all that is kept.
#[derive(Default)]
struct Places {
    since: Option<Instant>,
    reached: HashMap<usize, EndPlace>,
}

impl Instances {
    fn place(&self, class: usize) -> Option<EndPlace> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places
            .since
            .is_none_or(|since| since.elapsed() > FROM_THE_START)
        {
            *places = Places {
                since: Some(Instant::now()),
                reached: HashMap::new(),
            };
        }
        places.reached.get(&class).cloned()
    }

    fn note(&self, class: usize, reached: EndPlace) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.reached.insert(class, reached);
    }
}

fn demand(retention: &Retention, class: &RetentionClass, after: Option<EndPlace>) -> Expired {
    Expired {
        owners: match &class.tenant {
            Some(tenant) => Owners::Only(tenant.clone()),
            None => Owners::AllBut(retention.tenants()),
        },
        statuses: class.statuses.clone(),
        ended_ms: class.keep_ms,
        after,
        limit: LOOKED_AT,
    }
}

#[async_trait]
impl Reconciler for Instances {
    fn name(&self) -> &'static str {
        "instances"
    }

    fn about(&self) -> &'static str {
        "ended instances beyond their retention"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(300)
    }

    async fn reconcile(&self, shared: &Shared, pass: &Pass) -> Result<(), Failure> {
        let store = shared.store.as_ref();
        // What a server before this one did not come to.
        remove_remains(store, pass).await?;
        let retention = &shared.config.upkeep.retention;
        for (index, class) in retention.classes().iter().enumerate() {
            let known = (!pass.is_by_hand()).then(|| self.place(index)).flatten();
            let mut demand = demand(retention, class, known);
            // Noted up to the first that has to be looked at again.
            let mut is_noted = !pass.dry_run;
            loop {
                if pass.is_over() {
                    return Ok(());
                }
                let began = Instant::now();
                let page = store.expired_instances(&demand).await?;
                let whole = remove(store, pass, &page.instances).await?;
                is_noted &= whole && !page.leaving;
                let Some(reached) = page.reached else { break };
                if is_noted {
                    self.note(index, reached.clone());
                }
                if !whole {
                    return Ok(());
                }
                if !page.more {
                    break;
                }
                demand.after = Some(reached);
                pass.give_way(began.elapsed()).await;
            }
        }
        Ok(())
    }
}

/// Removes instances in small batches. Says whether it came to all of them.
async fn remove(store: &dyn Store, pass: &Pass, ended: &[EndedInstance]) -> Result<bool, Failure> {
    if pass.dry_run {
        for one in ended {
            pass.item(|| name(one), 0);
        }
        return Ok(true);
    }
    for batch in ended.chunks(AT_ONCE) {
        if pass.is_over() {
            return Ok(false);
        }
        let began = Instant::now();
        let gone = store.remove_ended(batch).await?;
        for one in batch.iter().filter(|one| gone.contains(&one.instance_id)) {
            pass.item(|| name(one), 0);
        }
        pass.give_way(began.elapsed()).await;
        if !remove_remains(store, pass).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn name(ended: &EndedInstance) -> String {
    let EndedInstance {
        instance_id,
        tenant_id,
        status,
        ..
    } = ended;
    format!("{instance_id} of {tenant_id}, {status}")
}

/// Removes what is left of instances that were taken away. Says whether that is all.
async fn remove_remains(store: &dyn Store, pass: &Pass) -> Result<bool, Failure> {
    if pass.dry_run {
        return Ok(true);
    }
    loop {
        let began = Instant::now();
        let removed = store.remove_remains(ROWS).await?;
        pass.bytes(removed.bytes);
        if !removed.more {
            return Ok(true);
        }
        if pass.is_over() {
            return Ok(false);
        }
        pass.give_way(began.elapsed()).await;
    }
}
