//! Asks the servers for what was planned, as often as it takes until each ask is answered.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use runtara_tests::http::{Address, Answer, Connection, Request, exchange};
use runtara_tests::{TENANT, image};
use serde_json::{Value, json};

use crate::field::{Meaning, Notes, meaning};
use crate::ledger::Broken;
use crate::leftovers::digest_of;
use crate::plan::{Ask, Expected, Kind, Planned, Registered};

/// How long until something is asked again.
const AGAIN: Duration = Duration::from_millis(300);
/// How many launches without progress are allowed: the harness kills more than a program would die.
const ATTEMPTS: u32 = 1_000;

/// Where it is asked, and what the images are called there.
pub(crate) struct Driver<'a> {
    pub(crate) notes: &'a Notes,
    pub(crate) addresses: &'a [Address],
    pub(crate) images: &'a BTreeMap<Kind, Registered>,
    pub(crate) ledger: &'a str,
    pub(crate) began: Instant,
    next: AtomicUsize,
}

/// What is to be done when: time, instance, and which of its asks.
type Queue = BinaryHeap<Reverse<(Instant, usize, usize)>>;

impl<'a> Driver<'a> {
    pub(crate) fn new(
        notes: &'a Notes,
        addresses: &'a [Address],
        images: &'a BTreeMap<Kind, Registered>,
        ledger: &'a str,
    ) -> Self {
        Self {
            notes,
            addresses,
            images,
            ledger,
            began: Instant::now(),
            next: AtomicUsize::new(0),
        }
    }

    /// Asks for all that is planned with so many threads; ends when all is answered, or at the deadline.
    pub(crate) fn drive(&self, plan: &[Planned], threads: usize, deadline: Instant) {
        let mut queue = Queue::new();
        for (number, planned) in plan.iter().enumerate() {
            queue.push(Reverse((self.began + planned.asks[0].0, number, 0)));
        }
        let open = AtomicUsize::new(plan.len());
        let queue = Mutex::new(queue);
        let take = || {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = queue
                .peek()
                .is_some_and(|Reverse((at, ..))| *at <= Instant::now());
            is_due.then(|| queue.pop()).flatten()
        };
        let work = || {
            while open.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
                let Some(Reverse((_, number, place))) = take() else {
                    sleep(Duration::from_millis(10));
                    continue;
                };
                let planned = &plan[number];
                let next = if self.ask(planned, &planned.asks[place].1) {
                    let next = planned.asks.get(place + 1);
                    next.map(|(at, _)| (self.began + *at, number, place + 1))
                } else {
                    Some((Instant::now() + AGAIN, number, place))
                };
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                match next {
                    Some(next) => queue.push(Reverse(next)),
                    None => drop(open.fetch_sub(1, Ordering::Relaxed)),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        let left = open.into_inner();
        if left > 0 {
            let what = format!("of {left} instances not all was answered that was asked");
            self.notes.broken(Broken::at_large(what));
        }
    }

    /// Any of the servers.
    pub(crate) fn address(&self) -> &Address {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.addresses[next % self.addresses.len()]
    }

    /// Asks once; false if it is to be asked again.
    fn ask(&self, planned: &Planned, ask: &Ask) -> bool {
        let path = |rest: &str| format!("/api/v1/instances/{}{rest}", planned.id);
        let (name, request) = match ask {
            Ask::Start | Ask::StartUnheard => ("start", self.start(planned)),
            Ask::Signal(kind) => {
                let body = json!({"signal_type": kind, "payload": null});
                (*kind, Request::post(&path("/signals"), &body))
            }
            Ask::Custom(id, payload) => {
                let body = json!({"checkpoint_id": id, "payload": payload.to_string()});
                (
                    "custom signal",
                    Request::post(&path("/signals/custom"), &body),
                )
            }
            Ask::Resume => ("resume", Request::new("POST", &path("/resume"))),
            Ask::Stop => {
                let body = json!({"reason": "as planned", "grace_period_seconds": 1});
                ("stop", Request::post(&path("/stop"), &body))
            }
        };
        if matches!(ask, Ask::StartUnheard) {
            let sent = Connection::open(self.address())
                .and_then(|mut connection| connection.send(&request.bytes()));
            self.notes.count(match sent {
                Ok(()) => "ask: start, unheard",
                Err(_) => "ask: start, unsent",
            });
            return true;
        }
        let answer = exchange(self.address(), &request);
        self.notes.say(&format!(
            "{}: {name}: {}",
            planned.id,
            match &answer {
                Ok(answer) => answer.status.to_string(),
                Err(error) => error.to_string(),
            }
        ));
        match meaning(&answer) {
            Meaning::Done => {
                self.notes.count(format!("ask: {name}"));
                true
            }
            Meaning::Later => {
                self.notes.count(format!("ask: {name}, again"));
                false
            }
            Meaning::Refused if !matches!(ask, Ask::Start) => {
                self.notes.count(format!("ask: {name}, refused"));
                true
            }
            Meaning::Refused => {
                let what = format!("its start was refused: {}", text(&answer));
                self.notes.broken(Broken::of(&planned.id, what));
                true
            }
            Meaning::Wrong(text) => {
                let what = format!("{name} was answered with {text}");
                self.notes.broken(Broken::of(&planned.id, what));
                // What is wrong with the server may pass; what is wrong with the question does not.
                !text.starts_with("HTTP 5")
            }
        }
    }

    fn start(&self, planned: &Planned) -> Request {
        let image = planned
            .image
            .as_ref()
            .unwrap_or_else(|| &self.images[&planned.kind]);
        let mut body = json!({
            "image_id": image.id, "tenant_id": TENANT, "instance_id": planned.id,
            "max_attempts": ATTEMPTS, "timeout_seconds": 3_600,
        });
        if planned.image.is_none() {
            body["input"] = planned.input(self.ledger);
        }
        Request::post("/api/v1/instances", &body)
    }

    /// Registers new images again and again, and gives an instance of each to be started, until the proof ends.
    pub(crate) fn register(&self, mut rng: Rng, kinds: &[Kind], until: Instant) -> Vec<Planned> {
        let mut planned = Vec::new();
        let kinds: Vec<_> = kinds.iter().filter(|kind| **kind != Kind::Wasm).collect();
        while Instant::now() < until && !kinds.is_empty() {
            let number = planned.len();
            let kind = *kinds[rng.usize(..kinds.len())];
            let content = fresh(&mut rng, kind, number);
            let name = format!("fresh-{number}");
            if let Some(image) = self.upload(&name, kind, &content, until) {
                let one = Planned {
                    id: format!("f{number:04}"),
                    kind,
                    image: Some(image),
                    output: Some(json!(number)),
                    expected: Expected::Completed,
                    asks: vec![(Duration::ZERO, Ask::Start)],
                    about: "is of a new image",
                    ..Planned::default()
                };
                self.drive(
                    std::slice::from_ref(&one),
                    1,
                    until + Duration::from_secs(120),
                );
                planned.push(one);
            }
            sleep(Duration::from_millis(rng.u64(1_000..5_000)));
        }
        planned
    }

    /// Registers an image, as often as it takes. It is run by any of the servers, whichever of them has its content.
    fn upload(&self, name: &str, kind: Kind, content: &[u8], until: Instant) -> Option<Registered> {
        while Instant::now() < until {
            let answer = exchange(self.address(), &registration(name, kind, content));
            match meaning(&answer) {
                Meaning::Done => {
                    self.notes.count("ask: registration");
                    return answer.ok().map(|answer| image_of(&answer, content));
                }
                Meaning::Later => self.notes.count("ask: registration, again"),
                Meaning::Refused | Meaning::Wrong(_) => {
                    let what = format!("registration: {}", text(&answer));
                    self.notes.broken(Broken::at_large(what));
                    return None;
                }
            }
            sleep(AGAIN);
        }
        None
    }
}

fn text(answer: &std::io::Result<Answer>) -> String {
    match answer {
        Ok(answer) => answer.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The form that registers content.
pub(crate) fn registration(name: &str, kind: Kind, content: &[u8]) -> Request {
    let texts: &[(&str, &str)] = match kind {
        Kind::Native => &[("runner_type", "native")],
        Kind::Oci => &[],
        Kind::Wasm => &[("runner_type", "wasm")],
    };
    let mut all = vec![("tenant_id", TENANT), ("name", name)];
    all.extend(texts);
    Request::form("/api/v1/images/upload", &all, &[("binary", content)])
}

/// The image that content was registered as.
pub(crate) fn image_of(answer: &Answer, content: &[u8]) -> Registered {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    Registered {
        id: body["image_id"].as_str().unwrap_or_default().to_owned(),
        digest: digest_of(content),
    }
}

/// Content that nobody has registered before, of a program that gives its number and knows nothing of the protocol.
fn fresh(rng: &mut Rng, kind: Kind, number: usize) -> Vec<u8> {
    let padding: String = (0..rng.usize(100_000..3_000_000))
        .map(|_| rng.alphanumeric())
        .collect();
    if kind != Kind::Oci {
        return format!("#!/bin/sh\necho {number}\nexit 0\n# {padding}\n").into_bytes();
    }
    let mut layer = image::Layer::new().file("padding", padding);
    for file in 0..20 {
        layer = layer.file(&format!("etc/{number}-{file}"), number.to_string());
    }
    let layer = layer.finish();
    let config = json!({"Entrypoint": ["/bin/echo", number.to_string()]});
    image::archive(&[image::base_layer(), &layer], &config)
}
