//! Plays acts on a store, and puts what comes of them into words that can be compared.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use runtara_domain::{
    Caller, Change, Due, Fence, InstanceId, NewEvent, NewInstance, RegistrationNumber, RunNumber,
    RunnerKind, SaveCheckpoint, Status, Timestamp, TokenHash, Word, limits,
};

use super::act::{Act, Asked, STARTED, Said, Spoken, Whose};
use super::names::{
    CONTENTS, PAYLOADS, SUBTYPES, content, exit, image_id, instance_id, kinds, label_set, name,
    node_id, owner, settings_of, state_of,
};
use crate::conformance::Harness;
use crate::conformance::make::{checkpoint, new_image, signal, sleep, wait_for};
use crate::{
    Claim, ClaimedRun, Expired, HeldWait, NodeLease, Owners, Started, Store, StoreError,
    StoreResult, WaitRequest, Waiting,
};

/// An answer in words. What stood in the way of a store is for its own tests; that something did is a difference.
pub(super) fn words<T: Debug>(answer: StoreResult<T>) -> String {
    match answer {
        Ok(answer) => format!("{answer:#?}"),
        Err(StoreError::Refused(refusal)) => format!("refused: {refusal:?}"),
        Err(error) => format!("error: {error:?}"),
    }
}

/// One of the two who play.
pub(super) struct Player<'a> {
    harness: &'a dyn Harness,
    pub(super) store: Arc<dyn Store>,
    /// The tokens of an instance's runs, by their numbers; of ids that were used again, of the last use.
    tokens: BTreeMap<InstanceId, BTreeMap<RunNumber, TokenHash>>,
    held: BTreeMap<InstanceId, Vec<HeldWait>>,
    images: u8,
    given: u64,
    /// The time of the store.
    pub(super) now: Timestamp,
}

impl<'a> Player<'a> {
    pub(super) fn new(harness: &'a dyn Harness) -> Self {
        Self {
            harness,
            store: harness.store(),
            tokens: BTreeMap::new(),
            held: BTreeMap::new(),
            images: 0,
            given: 0,
            now: Timestamp(0),
        }
    }

    pub(super) fn images(&self) -> u8 {
        self.images
    }

    /// A token as it is compared: by the run that it belongs to.
    pub(super) fn name_of(&self, id: &InstanceId, token: TokenHash) -> TokenHash {
        let of = self.tokens.get(id).into_iter().flatten();
        let run = of.into_iter().find(|(_, known)| **known == token);
        let number = run.map_or(u32::MAX, |(run, _)| run.0);
        let mut name = [0; 32];
        name[..4].copy_from_slice(&number.to_be_bytes());
        TokenHash(name)
    }

    fn caller(&self, n: u8, run: Whose) -> Caller {
        let instance_id = instance_id(n);
        let mut of = self
            .tokens
            .get(&instance_id)
            .into_iter()
            .flat_map(|runs| runs.values().rev());
        let token = match run {
            Whose::Last => of.next(),
            Whose::Before => of.nth(1),
            Whose::Nobody => None,
        };
        let fence = match (run, token) {
            (Whose::Nobody, _) => Fence::SelfRegistered,
            (_, Some(token)) => Fence::Run(*token),
            (_, None) if n >= STARTED => Fence::SelfRegistered,
            (_, None) => Fence::Run(TokenHash([0xee; 32])),
        };
        Caller { instance_id, fence }
    }

    fn number_of(&self, id: &InstanceId, run: Whose) -> RunNumber {
        let runs = self.tokens.get(id).into_iter().flat_map(BTreeMap::keys);
        let last = runs.last().copied().unwrap_or_default();
        match run {
            Whose::Last => last,
            _ => RunNumber(last.0.saturating_sub(1)),
        }
    }

    pub(super) async fn play(&mut self, act: &Act) -> String {
        let store = self.store.clone();
        match act.clone() {
            Act::RegisterImage {
                tenant,
                name: image,
                content: of,
                kind,
                overtaken,
            } => {
                let mut new = new_image(&owner(tenant), name(image), &[of]);
                new.image_id = image_id(self.images);
                let number = self.images.saturating_sub(overtaken);
                new.number = RegistrationNumber(number.into());
                new.kind = RunnerKind::ALL[usize::from(kind)];
                new.labels = label_set(of + 1);
                new.settings = settings_of(of);
                new.base = (kind > 0).then(|| content((of + kind) % CONTENTS));
                new.container = (kind > 0).then(|| format!(r#"{{"user":"{of}"}}"#));
                self.images += 1;
                let answer = store.register_image(new).await;
                // Every history begins so, and from then on the clock is moved by its acts alone.
                if let Ok(image) = &answer {
                    self.now = image.created_at;
                }
                words(answer)
            }
            Act::DeleteImage(n) => words(store.delete_image(&image_id(n)).await),
            Act::RemoveUnneeded => {
                let unneeded = match store.unneeded_images(100).await {
                    Ok(unneeded) => unneeded,
                    Err(error) => return words::<()>(Err(error)),
                };
                let mut removed = store.remove_unneeded_images(100).await;
                if let Ok(removed) = &mut removed {
                    removed.sort();
                }
                words(removed.map(|removed| (unneeded, removed)))
            }
            Act::Start { .. } => self.start(act).await,
            Act::Claim {
                node,
                most,
                kinds,
                without,
            } => self.claim(node, most, kinds, without).await,
            Act::Call {
                instance,
                run,
                call,
            } => {
                let caller = self.caller(instance, run);
                self.call(&caller, call).await
            }
            Act::Ask { instance, asked } => {
                let change = match asked {
                    Asked::Cancel => Change::Cancel { payload: None },
                    Asked::Pause => Change::Pause {
                        payload: Some(Bytes::from_static(b"\xff")),
                    },
                    Asked::Resume => Change::Resume,
                    Asked::Stop(grace_ms) => Change::Stop {
                        grace_ms: u64::from(grace_ms),
                        reason: "enough".to_owned(),
                    },
                };
                self.change(&instance_id(instance), change).await
            }
            Act::Exit {
                instance,
                run,
                how,
                our_fault,
            } => {
                let id = instance_id(instance);
                let run_number = self.number_of(&id, run);
                let change = Change::Exit {
                    run_number,
                    exit: exit(how),
                    our_fault,
                };
                self.change(&id, change).await
            }
            Act::Send {
                instance,
                signal: of,
                payload,
            } => {
                let payload = (payload > 0).then(|| Bytes::from(vec![payload]));
                words(
                    store
                        .send_signal(&instance_id(instance), &signal(name(of)), payload)
                        .await,
                )
            }
            Act::Purge(n) => {
                let answer = store.purge_instance(&instance_id(n)).await;
                if matches!(answer, Ok(crate::Purge::Purged)) {
                    self.tokens.remove(&instance_id(n));
                }
                words(answer)
            }
            Act::Fold { instance, limit } => {
                let id = instance_id(instance);
                let overfull = store.overfull_instances(std::slice::from_ref(&id)).await;
                let folded = store.fold_events(&id, u32::from(limit)).await;
                words(overfull.and_then(|overfull| Ok((overfull, folded?))))
            }
            Act::RemoveEnded {
                tenant,
                only,
                ended_ms,
            } => self.remove_ended(tenant, only, ended_ms).await,
            Act::Renew { node, lease_ms } => {
                let lease = NodeLease {
                    guarded: lease_ms % 2 == 0,
                    ..NodeLease::new(node_id(node), format!("node-{node}"), u64::from(lease_ms))
                };
                words(store.renew_node(lease).await)
            }
            Act::Release(n) => words(store.release_node(node_id(n)).await),
            Act::Drain { node, after_ms } => words(
                store
                    .drain_node(node_id(node), after_ms.map(u64::from))
                    .await,
            ),
            Act::RemoveNode(n) => words(store.remove_node(node_id(n)).await),
            Act::Nodes => words(store.nodes().await),
            Act::Expire(n) => {
                let mut lost = store.expire_nodes(node_id(n), 100).await;
                if let Ok(lost) = &mut lost {
                    lost.sort();
                }
                words(lost)
            }
            Act::Silent {
                instance,
                run,
                unheard_ms,
            } => {
                let id = instance_id(instance);
                let change = Change::Silent {
                    run_number: self.number_of(&id, run),
                    unheard_ms: u64::from(unheard_ms),
                };
                self.change(&id, change).await
            }
            Act::ExpireDue(most) => words(store.expire_due(u32::from(most)).await),
            Act::Lapse(most) => words(store.lapse_silent(9_000, u32::from(most)).await),
            Act::Advance(millis) => {
                self.harness.advance(u64::from(millis)).await;
                self.now = self.now.plus_millis(u64::from(millis));
                String::new()
            }
            Act::Again(_) => unreachable!("it was expanded"),
            Act::Look(question) => self.ask(&question).await,
        }
    }

    async fn remove_ended(&mut self, tenant: u8, only: bool, ended_ms: u32) -> String {
        let demand = Expired {
            owners: match only {
                true => Owners::Only(owner(tenant)),
                false => Owners::AllBut(vec![owner(tenant)]),
            },
            statuses: vec![Status::Completed, Status::Failed],
            ended_ms: u64::from(ended_ms),
            after: None,
            limit: 3,
        };
        let expired = match self.store.expired_instances(&demand).await {
            Ok(expired) => expired,
            Err(error) => return words::<()>(Err(error)),
        };
        let removed = self.store.remove_ended(&expired.instances).await;
        for id in removed.iter().flatten() {
            self.tokens.remove(id);
        }
        // A part of what is left: how much that is differs, what is seen of it must not.
        let remains = self.store.remove_remains(2).await.map(drop);
        words(remains.and(removed.map(|removed| (expired, removed))))
    }

    async fn start(&self, act: &Act) -> String {
        let Act::Start {
            instance,
            tenant,
            image,
            input,
            delay_ms,
            attempts,
            labels,
        } = act
        else {
            unreachable!("only starts come here");
        };
        let new = NewInstance {
            instance_id: instance_id(*instance),
            tenant_id: owner(*tenant),
            image_id: image_id(*image),
            input: Bytes::from(vec![b'0' + input]),
            env: BTreeMap::from([("LABELS".to_owned(), labels.to_string())]),
            args: vec![format!("--input={input}")],
            labels: label_set(*labels),
            settings: settings_of(*labels),
            timeout_ms: limits::RUN_TIMEOUT_MS,
            max_attempts: attempts.map(u32::from),
            max_events: (*labels == 2).then_some(4),
            due: match delay_ms.map(u64::from) {
                None => Due::NOW,
                Some(millis) if millis % 2 == 0 => Due::After(millis),
                Some(millis) => Due::At(self.now.plus_millis(millis)),
            },
            request_timeout_ms: (*labels == 3).then_some(9_000),
            heartbeat_timeout_ms: (*labels % 2 == 1).then_some(10_000),
            pending_allowed: (*labels == 1).then_some(2),
            expires: (*labels == 2).then_some(Due::After(300_000)),
        };
        let answer = self.store.start_instance(new).await;
        words(answer.map(|started| match started {
            Started::New(state) => Started::New(Box::new(self.named(*state))),
            Started::Same(state) => Started::Same(Box::new(self.named(*state))),
            other => other,
        }))
    }

    async fn claim(&mut self, node: u8, most: u8, kind_mask: u8, without: u8) -> String {
        let tokens = (0..most).map(|_| {
            self.given += 1;
            let mut token = [0xaa; 32];
            token[..8].copy_from_slice(&self.given.to_be_bytes());
            TokenHash(token)
        });
        // Mostly by a node that may.
        if most != 3 {
            let lease = NodeLease::new(node_id(node), "node", 1_000_000);
            let _renewed = self.store.renew_node(lease).await;
        }
        let claim = Claim {
            node: node_id(node),
            kinds: kinds(kind_mask),
            tokens: tokens.collect(),
            without_tenants: (0..2)
                .filter(|n| without & (1 << n) != 0)
                .map(owner)
                .collect(),
            running_allowed: (most == 2).then_some(2),
        };
        let claimed = match self.store.claim_due(claim).await {
            Ok(claimed) => claimed,
            Err(error) => return words::<()>(Err(error)),
        };
        for run in &claimed {
            let runs = self.tokens.entry(run.instance_id.clone()).or_default();
            runs.insert(run.run_number, run.token);
        }
        claimed
            .iter()
            .map(claimed_words)
            .collect::<Vec<_>>()
            .join("\n")
    }

    async fn change(&self, id: &InstanceId, change: Change) -> String {
        let answer = self.store.change(id, change).await;
        words(answer.map(|changed| (self.named(changed.state), changed.applied)))
    }

    async fn call(&mut self, caller: &Caller, call: Said) -> String {
        let store = self.store.clone();
        let request_id = |n: Option<u8>| n.map(|n| format!("r-{n}"));
        match call {
            Said::Register {
                tenant,
                checkpoint: of,
            } => {
                let of = of.map(|of| checkpoint(name(of)));
                words(store.register_instance(caller, &owner(tenant), of).await)
            }
            Said::Save {
                name: of,
                state,
                request,
            } => {
                let request = SaveCheckpoint {
                    checkpoint_id: checkpoint(name(of)),
                    state: state_of(state),
                    request_id: request_id(request),
                };
                words(store.save_checkpoint(caller, request).await)
            }
            Said::Poll => words(store.poll_signal(caller).await),
            Said::Take {
                signal: of,
                request,
            } => {
                let request = request_id(request);
                words(store.take_signal(caller, &signal(name(of)), request).await)
            }
            Said::Sleep {
                name: of,
                millis,
                state,
                request,
                park,
            } => {
                let mut wait = sleep(of.map(name), u64::from(millis), &state_of(state));
                (wait.call.request_id, wait.call.park) = (request_id(request), park);
                wait.call.named = request.is_some();
                self.wait(caller, wait).await
            }
            Said::Wait {
                signal: of,
                timeout_ms,
                request,
                park,
            } => {
                let mut wait = wait_for(name(of), timeout_ms.map(u64::from));
                (wait.call.request_id, wait.call.park) = (request_id(request), park);
                wait.call.named = request.is_some();
                self.wait(caller, wait).await
            }
            Said::GoOn { which, park_now } => {
                let held = self.held.get(&caller.instance_id);
                let held = held.and_then(|held| {
                    let back = usize::from(which) % held.len();
                    held.iter().rev().nth(back).cloned()
                });
                match held {
                    Some(held) => words(store.continue_wait(caller, &held, park_now).await),
                    None => "nothing is held".to_owned(),
                }
            }
            Said::Event {
                subtype,
                payload,
                request,
            } => {
                let subtype = SUBTYPES[usize::from(subtype)].map(str::to_owned);
                let payload = PAYLOADS[usize::from(payload)].map(Bytes::from_static);
                let event = NewEvent::custom(subtype, None, payload);
                words(store.record_event(caller, event, request_id(request)).await)
            }
            Said::Heartbeat => words(store.heartbeat(caller).await),
            Said::Retry {
                name: of,
                attempt,
                error,
            } => {
                let error = error.then(|| "connection refused".to_owned());
                let of = checkpoint(name(of));
                words(
                    store
                        .record_retry(caller, &of, u32::from(attempt), error)
                        .await,
                )
            }
            Said::Word { word, our_fault } => {
                let word = self.word(word);
                let answer = store.say(caller, word, our_fault).await;
                words(answer.map(|changed| (self.named(changed.state), changed.applied)))
            }
        }
    }

    async fn wait(&mut self, caller: &Caller, request: WaitRequest) -> String {
        let answer = self.store.begin_wait(caller, request).await;
        if let Ok(Waiting::Held(held)) = &answer {
            let of = self.held.entry(caller.instance_id.clone()).or_default();
            of.push(held.clone());
        }
        words(answer)
    }

    fn word(&self, word: Spoken) -> Word {
        match word {
            Spoken::Completed(output) => Word::Completed {
                output: output.then(|| Bytes::from_static(b"[7]")),
            },
            Spoken::Failed => Word::Failed {
                error: "it did not work".to_owned(),
            },
            Spoken::Suspended => Word::Suspended,
            Spoken::Until {
                millis,
                name: of,
                state,
            } => Word::SuspendedUntil {
                wake_at: self.now.plus_millis(u64::from(millis)),
                checkpoint_id: checkpoint(name(of)),
                state: state_of(state),
            },
            Spoken::Acknowledged(kind) => Word::Acknowledged(kind),
        }
    }
}

fn claimed_words(run: &ClaimedRun) -> String {
    let ClaimedRun {
        token: _,
        instance_id,
        tenant_id,
        run_number,
        due_at,
        image,
        input,
        env,
        args,
        settings,
        checkpoint_id,
        timeout_ms,
        heartbeat_timeout_ms,
        expires_in_ms,
    } = run;
    format!(
        "{instance_id} {tenant_id} {run_number} {due_at} {image:?} {input:?} {env:?} {args:?} {settings:?} {checkpoint_id:?} {timeout_ms} {heartbeat_timeout_ms:?} {expires_in_ms:?}"
    )
}
