//! Runs: who is due, who claims, what lives where.

use runtara_domain::{
    Change, InstanceId, NodeId, RunnerKind, Status, TenantId, Timestamp, TokenHash, transition,
};

use super::model::{Instance, Model};
use crate::{CLAIMED_INPUT_BYTES, Claim, ClaimedRun, LiveRun, NextDue, TokenOwner};

impl Model {
    fn kind_of(&self, instance: &Instance) -> Option<RunnerKind> {
        let image = self.images.get(instance.state.image_id.as_ref()?)?;
        Some(image.record.kind)
    }

    /// Instances of these kinds that have a due time and no live run, in the order of their due times.
    fn with_due_time(&self, kinds: &[RunnerKind]) -> Vec<(Timestamp, &Instance)> {
        let is_of_kind = |instance: &Instance| {
            self.kind_of(instance)
                .is_some_and(|kind| kinds.contains(&kind))
        };
        let mut found: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.state.live_node.is_none() && is_of_kind(instance))
            .filter_map(|instance| Some((instance.state.due_at?, instance)))
            .collect();
        found.sort_by_key(|(due_at, _)| *due_at);
        found
    }

    /// See [`crate::Store::claim_due`].
    pub fn claim_due(&mut self, claim: &Claim, now: Timestamp) -> Vec<ClaimedRun> {
        let node = self.nodes.get(&claim.node);
        if !node.is_some_and(|node| node.may_claim(now)) {
            return Vec::new();
        }
        let due: Vec<_> = self
            .with_due_time(&claim.kinds)
            .into_iter()
            .filter(|(due_at, instance)| {
                *due_at <= now
                    && !instance.state.is_expired(now)
                    && !claim.without_tenants.contains(&instance.state.tenant_id)
            })
            .map(|(due_at, instance)| (due_at, instance.state.instance_id.clone()))
            .collect();
        let mut tokens = claim.tokens.iter();
        let mut claimed = Vec::new();
        for (due_at, id) in due {
            let tenant = &self.instances[&id].state.tenant_id;
            let has_room = claim
                .running_allowed
                .is_none_or(|allowed| self.running(tenant) < allowed as usize);
            if !has_room {
                continue;
            }
            let Some(token) = tokens.next() else {
                break;
            };
            let change = Change::Claim {
                node: claim.node,
                token: *token,
            };
            let instance = &self.instances[&id];
            let decided = transition(&instance.state, &change, now)
                .expect("an instance that is due can be claimed");
            self.apply(&id, decided, now, |_| {});
            claimed.push(self.claimed(&id, *token, due_at, now));
        }
        claimed
    }

    fn running(&self, tenant: &TenantId) -> usize {
        let states = self.instances.values().map(|instance| &instance.state);
        states
            .filter(|state| state.status == Status::Running && state.tenant_id == *tenant)
            .count()
    }

    fn claimed(
        &self,
        id: &InstanceId,
        token: TokenHash,
        due_at: Timestamp,
        now: Timestamp,
    ) -> ClaimedRun {
        let instance = &self.instances[id];
        let state = &instance.state;
        let image = state.image_id.as_ref().and_then(|id| self.images.get(id));
        let input = instance.input.clone();
        ClaimedRun {
            token,
            instance_id: id.clone(),
            tenant_id: state.tenant_id.clone(),
            run_number: state.run_number,
            due_at,
            image: image.expect("what is due has an image").record.clone(),
            input: input.filter(|input| input.len() <= CLAIMED_INPUT_BYTES),
            env: instance.env.clone(),
            args: instance.args.clone(),
            settings: instance.settings.clone(),
            checkpoint_id: state.checkpoint_id.clone(),
            timeout_ms: state.timeout_ms,
            heartbeat_timeout_ms: state.heartbeat_timeout_ms,
            expires_in_ms: state.expires_at.map(|at| at.millis_since(now)),
        }
    }

    /// See [`crate::Store::next_due`].
    #[must_use]
    pub fn next_due(&self, kinds: &[RunnerKind], now: Timestamp) -> NextDue {
        let next = self.with_due_time(kinds).first().map(|(due_at, _)| *due_at);
        NextDue {
            in_ms: next.map(|due_at| due_at.millis_since(now)),
        }
    }

    /// See [`crate::Store::next_due_later`].
    #[must_use]
    pub fn next_due_later(&self, kinds: &[RunnerKind], now: Timestamp) -> NextDue {
        let all = self.with_due_time(kinds);
        let next = all.iter().find(|(due_at, _)| *due_at > now);
        NextDue {
            in_ms: next.map(|(due_at, _)| due_at.millis_since(now)),
        }
    }

    fn live(&self, instance: &Instance, now: Timestamp) -> Option<LiveRun> {
        let state = &instance.state;
        Some(LiveRun {
            instance_id: state.instance_id.clone(),
            run_number: state.run_number,
            token: state.run.token?,
            kind: self.kind_of(instance)?,
            node: state.live_node?,
            status: state.status,
            leave_in_ms: state.run.leave_by.map(|by| by.millis_since(now)),
            asked_to_leave: state.run.asked_to_leave,
            slept_ms: state.run.slept_ms,
            heartbeat_timeout_ms: state.heartbeat_timeout_ms,
            silent_in_ms: state.liveness().silent_in_ms(now),
        })
    }

    /// See [`crate::Store::live_runs`].
    #[must_use]
    pub fn live_runs(
        &self,
        node: NodeId,
        after: Option<&InstanceId>,
        limit: u32,
        now: Timestamp,
    ) -> Vec<LiveRun> {
        self.instances
            .iter()
            .filter(|(id, _)| after.is_none_or(|after| *id > after))
            .filter_map(|(_, instance)| self.live(instance, now))
            .filter(|live| live.node == node)
            .take(limit as usize)
            .collect()
    }

    /// See [`crate::Store::live_run`].
    #[must_use]
    pub fn live_run(&self, id: &InstanceId, now: Timestamp) -> Option<LiveRun> {
        self.live(self.instances.get(id)?, now)
    }

    /// See [`crate::Store::run_of_token`].
    #[must_use]
    pub fn run_of_token(&self, token: TokenHash) -> Option<TokenOwner> {
        let has_token = |instance: &&Instance| instance.state.run.token == Some(token);
        let state = &self.instances.values().find(has_token)?.state;
        Some(TokenOwner {
            instance_id: state.instance_id.clone(),
            tenant_id: state.tenant_id.clone(),
            run_number: state.run_number,
        })
    }
}
