//! A server whose sockets are kept by somebody else is replaced without a refused connection or a lost request.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use runtara_tests::http::{Address, Answer, Connection, Request, exchange};
use runtara_tests::{Ground, Server, Setup, Store, eventually, in_both_kinds, on_both_stores};
use serde_json::json;

on_both_stores!(no_request_is_lost_while_servers_follow_one_another);

in_both_kinds!(a_program_that_repeats_nothing_does_not_notice_that_servers_follow_one_another);

fn passed_on(ground: impl Into<Ground>) -> Server {
    Setup::new(ground).with_sockets_passed_on().start()
}

/// What a client is told until it is to stop.
#[derive(Default)]
struct Client {
    answers: AtomicUsize,
    /// How many of them were the last on their connection.
    last: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Client {
    /// Notes an answer. Says whether the connection is of no further use.
    fn note(&self, answer: io::Result<Answer>) -> bool {
        let failure = match answer {
            Ok(answer) if answer.status == 200 => {
                let is_last = answer.header("connection") == Some("close");
                self.last.fetch_add(usize::from(is_last), Ordering::SeqCst);
                self.answers.fetch_add(1, Ordering::SeqCst);
                return is_last;
            }
            Ok(answer) => format!("{}: {}", answer.status, answer.text()),
            Err(error) => error.to_string(),
        };
        self.failures
            .lock()
            .expect("no holder panics")
            .push(failure);
        true
    }

    /// Asks again and again, over one connection for as long as it lasts.
    fn asks_on(&self, address: &Address, request: &Request, pause: Duration, stop: &AtomicBool) {
        let mut connection = None;
        while !stop.load(Ordering::SeqCst) {
            let open = connection
                .take()
                .map_or_else(|| Connection::open(address), Ok);
            let answer = open.and_then(|mut open| {
                let answer = open.exchange(request);
                connection = Some(open);
                answer
            });
            if self.note(answer) {
                connection = None;
            }
            thread::sleep(pause);
        }
    }

    /// Asks again and again, each time over a connection of its own.
    fn asks_anew(&self, address: &Address, request: &Request, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            self.note(exchange(address, request));
        }
    }

    /// Waits until it is answered, by the server that is there now.
    fn is_answered_again(&self) {
        let before = self.answers.load(Ordering::SeqCst);
        eventually("a client is answered", || {
            match self.answers.load(Ordering::SeqCst) {
                now if now >= before + 3 => Ok(()),
                now => Err(format!("{before} answers before, {now} now")),
            }
        });
    }
}

fn no_request_is_lost_while_servers_follow_one_another(store: Store) {
    let mut server = passed_on(store);
    let id = server.launch(&server.shell("true"), &json!({})).id;
    let _ended = server.instance(&id).wait_for("completed");
    let request = Request::get(&format!("/api/v1/instances/{id}"));
    let (address, stop) = (server.environment(), AtomicBool::new(false));
    let [busy, idle, anew] = &[(); 3].map(|()| Client::default());
    let clients = [busy, idle, anew];
    thread::scope(|scope| {
        scope.spawn(|| busy.asks_on(&address, &request, Duration::ZERO, &stop));
        scope.spawn(|| idle.asks_on(&address, &request, Duration::from_millis(150), &stop));
        scope.spawn(|| anew.asks_anew(&address, &request, &stop));
        for _ in 0..3 {
            clients.iter().for_each(|client| client.is_answered_again());
            let status = server.sigterm();
            assert!(status.success(), "{status}");
            server.start_again();
        }
        clients.iter().for_each(|client| client.is_answered_again());
        stop.store(true, Ordering::SeqCst);
    });
    for (who, client) in [("busy", busy), ("idle", idle), ("anew", anew)] {
        let failures = client.failures.lock().expect("no holder panics");
        assert!(failures.is_empty(), "{who}: {failures:?}");
    }
    for client in [busy, idle] {
        let last = client.last.load(Ordering::SeqCst);
        assert_eq!(last, 3, "each server ends the connection with an answer");
    }
}

fn a_program_that_repeats_nothing_does_not_notice_that_servers_follow_one_another(ground: Ground) {
    let mut server = passed_on(ground);
    let steps = (1..=60).flat_map(|number| {
        let name = format!("step-{number}");
        [
            json!({ "checkpoint": { "id": name, "value": number } }),
            json!({ "work": 50 }),
        ]
    });
    let input = json!({ "actions": steps.collect::<Vec<_>>() });
    let id = server
        .launch(&server.scripted(), &json!({ "input": input }))
        .id;
    for some in [5, 15, 25] {
        eventually("its steps", || {
            match server.instance(&id).checkpoints().len() {
                saved if saved >= some => Ok(()),
                saved => Err(format!("{saved} of {some}")),
            }
        });
        let _left = server.sigterm();
        server.start_again();
    }
    let _ended = server.instance(&id).wait_for("completed");
    let events = server.instance(&id).event_names();
    let odd: Vec<_> = events
        .iter()
        .filter(|name| name.contains("interrupted"))
        .collect();
    assert!(odd.is_empty(), "{odd:?}; {}", server.instance(&id).story());
    assert_eq!(server.instance(&id).checkpoints().len(), 60);
}

#[test]
fn a_socket_on_which_nothing_is_served_is_refused() {
    let setup = Setup::new(Store::Sqlite).with_sockets_passed_on();
    let (status, log) = setup
        .variable("RUNTARA_ENV_HTTP_BIND", "127.0.0.2")
        .run_to_its_end();
    assert_eq!(status.code(), Some(1), "{log}");
    let said = "sockets were passed on in LISTEN_FDS that listen on 127.0.0.1:";
    assert!(log.contains(said), "{log}");
    assert!(log.contains("RUNTARA_ENV_HTTP_BIND"), "{log}");
}
