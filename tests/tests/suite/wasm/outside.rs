//! Guests that call hosts outside: those that they may, within bounds, and no others.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use runtara_tests::http::Answer;
use runtara_tests::{
    Image, Server, Setup, Store, TENANT, eventually, free_ports, guest, on_both_stores,
};
use serde_json::{Value, json};

use super::contract::{seen, speaker};

on_both_stores!(
    allowed_hosts_are_called_and_no_others,
    image_and_start_say_which_within_what_is_allowed,
);

const MIB: usize = 1024 * 1024;

/// A host outside: on loopback, which is outside for a guest.
struct Outside {
    port: u16,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl Outside {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let outside = Self {
            port: listener.local_addr().expect("it is bound").port(),
            accepted: Arc::default(),
            ended: Arc::default(),
        };
        let (accepted, ended) = (Arc::clone(&outside.accepted), Arc::clone(&outside.ended));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                accepted.fetch_add(1, Ordering::SeqCst);
                // A guest that goes away is none of its concern.
                thread::spawn(move || drop(serve(stream.expect("somebody called"))));
            }
        });
        outside
    }

    fn rule(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Something to be woken by.
        let _woken = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let path = head.first().and_then(|line| line.split(' ').nth(1));
    let host = head.iter().find_map(|line| line.strip_prefix("host: "));
    let text = |text: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        )
    };
    match path.unwrap_or_default() {
        "/hello" => {
            let hello = format!("hello {}", host.unwrap_or("nobody"));
            stream.write_all(text(&hello).as_bytes())
        }
        "/slow" => {
            thread::sleep(Duration::from_millis(1_500));
            stream.write_all(text("slow").as_bytes())
        }
        "/count" => {
            let count = count_chunks(&mut reader)?;
            stream.write_all(text(&count.to_string()).as_bytes())
        }
        "/big" => {
            let length = 96 * MIB;
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
            )?;
            let piece = vec![b'x'; MIB];
            (0..96).try_for_each(|_| stream.write_all(&piece))
        }
        "/cut" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"),
        "/stalls" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")?;
            reader.read_to_end(&mut Vec::new()).map(drop)
        }
        "/long-head" => {
            let long = "x".repeat(MIB);
            write!(stream, "HTTP/1.1 200 OK\r\nx-long: {long}\r\n\r\n")
        }
        "/gibberish" => stream.write_all(b"220 mail.example.com ESMTP\r\n"),
        // Says nothing.
        _ => reader.read_to_end(&mut Vec::new()).map(drop),
    }
}

/// How many bytes a body in chunks has (RFC 9112, section 7.1).
fn count_chunks(reader: &mut impl std::io::BufRead) -> std::io::Result<u64> {
    let mut count = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).unwrap_or_default();
        std::io::copy(&mut reader.by_ref().take(length + 2), &mut std::io::sink())?;
        if length == 0 {
            return Ok(count);
        }
        count += length;
    }
}

fn server_that_allows(store: Store, hosts: &[String]) -> Server {
    Setup::new(store)
        .variable("RUNTARA_WASM_ALLOWED_HOSTS", &hosts.join(", "))
        .start()
}

/// What a guest with these settings sees.
fn seen_with(server: &Server, image: &Image, settings: &Value, script: &[String]) -> Vec<String> {
    let mut start = settings.clone();
    start["args"] = json!(script);
    seen(&server.launch(image, &start))
}

fn egress() -> Value {
    json!({ "network": "egress" })
}

fn get(url: &str) -> String {
    format!("fetch GET {url}")
}

fn allowed_hosts_are_called_and_no_others(store: Store) {
    let (outside, other) = (Outside::start(), Outside::start());
    let [nobody] = free_ports();
    let rules = [
        outside.rule(),
        format!("127.0.0.1:{nobody}"),
        "localhost".to_owned(),
        "nowhere.invalid".to_owned(),
    ];
    let server = server_that_allows(store, &rules);
    let image = speaker(&server);
    let (port, foreign) = (outside.port, other.port);
    let script = [
        "register".to_owned(),
        "save a one".to_owned(),
        get(&outside.url("/hello")),
        // A name is looked up, and what it stands for is looked at.
        get(&format!("http://localhost:{port}/hello")),
        get(&format!("http://localhost:{foreign}/hello")),
        get(&other.url("/hello")),
        get(&format!("http://127.0.0.2:{port}/hello")),
        get(&format!("http://[::1]:{port}/hello")),
        // As the system's resolver would take it.
        get(&format!("http://2130706433:{port}/hello")),
        get(&format!("http://0x7f.1:{port}/hello")),
        get("http://example.com/"),
        format!("fetch CONNECT {}", outside.url("/")),
        get(&format!("http://user@127.0.0.1:{port}/hello")),
        get(&format!("http://127.0.0.1:{nobody}/")),
        get("http://nowhere.invalid/"),
        "save b two".to_owned(),
    ];
    let seen = seen_with(&server, &image, &egress(), &script);
    let expected = [
        "a b25l".to_owned(),
        format!("200 hello 127.0.0.1:{port}"),
        format!("200 hello localhost:{port}"),
        "destination-IP-prohibited".to_owned(),
        "HTTP-request-denied".to_owned(),
        "HTTP-request-denied".to_owned(),
        "HTTP-request-denied".to_owned(),
        "HTTP-request-denied".to_owned(),
        "HTTP-request-denied".to_owned(),
        "HTTP-request-denied".to_owned(),
        "HTTP-request-method-invalid".to_owned(),
        "HTTP-request-URI-invalid".to_owned(),
        "connection-refused".to_owned(),
        "DNS-error".to_owned(),
        "b dHdv".to_owned(),
    ];
    assert_eq!(seen, expected);
    assert_eq!((outside.accepted(), other.accepted()), (2, 0));
}

fn image_and_start_say_which_within_what_is_allowed(store: Store) {
    let (first, second) = (Outside::start(), Outside::start());
    let mut server = server_that_allows(store, &["127.0.0.0/8".to_owned()]);
    let content = guest::requester("speaks_http");
    let fields = [
        ("tenant_id", TENANT),
        ("name", "narrow"),
        ("network", "pasta"),
        ("allowed_hosts", &first.rule()),
    ];
    let image = server.upload(&fields, &content).image();
    let shown = server.image(&image);
    assert_eq!(
        (&shown["network"], &shown["allowed_hosts"]),
        (&json!("egress"), &json!([first.rule()])),
        "{shown}"
    );
    let script = [get(&first.url("/hello")), get(&second.url("/hello"))];
    let reached = |server: &Server, settings: &Value| {
        let seen = seen_with(server, &image, settings, &script);
        let is_fine = |text: &String| text.starts_with("200 ");
        assert!(
            seen.iter()
                .all(|text| is_fine(text) || text == "HTTP-request-denied"),
            "{seen:?}"
        );
        (is_fine(&seen[0]), is_fine(&seen[1]))
    };
    assert_eq!(reached(&server, &json!({})), (true, false));
    assert_eq!(
        reached(&server, &json!({ "network": "none" })),
        (false, false)
    );
    let others = json!({ "allowed_hosts": [second.rule()] });
    assert_eq!(reached(&server, &others), (false, true));
    assert_eq!(
        reached(&server, &json!({ "allowed_hosts": [] })),
        (false, false)
    );

    let try_upload = |field: &str, value: &str| {
        let fields = [
            ("tenant_id", TENANT),
            ("name", "refused"),
            ("network", "egress"),
            (field, value),
        ];
        server.upload(&fields, &content)
    };
    let try_start = |settings: &Value| server.try_launch(&image, settings);
    let many: Vec<_> = (0..65).map(|n| format!("127.0.0.{n}")).collect();
    let refusals: [(Answer, &str); 7] = [
        (
            try_upload("allowed_hosts", "127.0.0.1, example.com"),
            "'example.com' in allowed_hosts",
        ),
        (
            try_upload("allowed_hosts", "http://127.0.0.1/"),
            "names no host",
        ),
        (try_upload("allowed_hosts", &many.join(",")), "65 entries"),
        (
            try_start(&json!({ "allowed_hosts": ["*"] })),
            "the operator allows WebAssembly guests '127.0.0.0/8'",
        ),
        (
            try_start(&json!({ "allowed_hosts": ["a b"] })),
            "names no host",
        ),
        (
            try_start(&json!({ "network": "isolated", "allowed_hosts": ["127.0.0.1"] })),
            "ask for 'egress' as well",
        ),
        (
            try_start(&json!({ "network": "host" })),
            "the network mode 'host'",
        ),
    ];
    for (answer, word) in refusals {
        let error = answer.refuses(400, "INVALID_SETTINGS");
        assert!(error.contains(word), "{error}");
    }

    // What the operator takes back is not given, and not forgotten.
    server.unset_variable("RUNTARA_WASM_ALLOWED_HOSTS");
    server.kill_9_and_restart();
    let error = server
        .try_launch(&image, &json!({}))
        .refuses(400, "INVALID_SETTINGS");
    assert!(error.contains("RUNTARA_WASM_ALLOWED_HOSTS"), "{error}");
}

#[test]
fn a_host_that_does_not_answer_as_it_should_is_given_up() {
    let outside = Outside::start();
    let server = server_that_allows(Store::Sqlite, &[outside.rule()]);
    let image = speaker(&server);
    let script = [
        format!("patience 300 {}", outside.url("/silent")),
        format!("patience 300 {}", outside.url("/stalls")),
        get(&outside.url("/cut")),
        get(&outside.url("/long-head")),
        get(&outside.url("/gibberish")),
        get(&outside.url("/hello")),
    ];
    let begun = Instant::now();
    let seen = seen_with(&server, &image, &egress(), &script);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let expected = [
        "connection-read-timeout",
        // Within a body, what went wrong is told in words.
        "broken: connection read timeout",
        "broken: incomplete HTTP response",
        "HTTP-response-header-section-size",
        "HTTP-protocol-error",
    ];
    assert_eq!(seen[..5], expected);
    assert!(seen[5].starts_with("200 hello"), "{seen:?}");
    let log = server.log();
    assert!(!log.contains("WARN") && !log.contains("panicked"), "{log}");
}

#[test]
fn much_goes_through_and_little_is_held() {
    let outside = Outside::start();
    let server = server_that_allows(Store::Sqlite, &[outside.rule()]);
    let image = speaker(&server);
    // The compiler has taken more for the image than anything here does.
    let before = peak(&server);
    let script = [
        format!("take {}", outside.url("/big")),
        format!("send 96 {}", outside.url("/count")),
        // More than the core takes, in one call.
        "send 80 http://127.0.0.1:8001/api/v1/instances/x/checkpoint".to_owned(),
    ];
    let settings = json!({ "network": "egress", "limits": { "memory_bytes": 16 * MIB } });
    let seen = seen_with(&server, &image, &settings, &script);
    assert_eq!(seen[0], format!("200 {}", 96 * MIB));
    assert_eq!(seen[1], format!("200 {}", 96 * MIB));
    // It does not say that it is JSON.
    assert!(seen[2].starts_with("415 "), "{}", seen[2]);
    let grown = peak(&server).saturating_sub(before);
    assert!(grown < 64 * MIB, "{grown}");
}

/// The most that this process ever held in memory, in bytes.
fn peak(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()));
    let status = status.expect("the server lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kibibytes: usize = kibibytes
        .and_then(|text| text.parse().ok())
        .expect("proc(5) has it");
    kibibytes * 1024
}

#[test]
fn a_guest_has_so_many_calls_at_once() {
    let outside = Outside::start();
    let server = server_that_allows(Store::Sqlite, &[outside.rule()]);
    let image = speaker(&server);
    let script = [
        format!("many 20 {}", outside.url("/slow")),
        // Those that were answered have left their places.
        format!("many 16 {}", outside.url("/hello")),
    ];
    let seen = seen_with(&server, &image, &egress(), &script);
    assert_eq!(seen[0], "16 answered, 4 connection-limit-reached");
    assert_eq!(seen[1], "16 answered, 0 none");
    // A guest that goes takes its calls with it.
    let silent = json!({ "network": "egress", "args": [get(&outside.url("/silent"))] });
    let run = server.launch(&image, &silent);
    let accepted = 32 + 1;
    eventually("its call", || match outside.accepted() {
        found if found == accepted => Ok(()),
        found => Err(found),
    });
    assert_eq!(run.stop(0)["status"], "cancelled");
}

/// A server that speaks TLS, with a certificate that nobody vouches for but itself.
struct Secure {
    directory: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Secure {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = |name: &str| directory.path().join(name);
        let request = "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = server\n[name]\nCN = test\n\
            [server]\nbasicConstraints = critical, CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";
        std::fs::write(path("request.conf"), request).expect("the directory is ours");
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-days", "2", "-config"])
            .arg(path("request.conf"))
            .arg("-keyout")
            .arg(path("key.pem"))
            .arg("-out")
            .arg(path("certificate.pem"))
            .output()
            .unwrap_or_else(|error| {
                panic!("cannot run openssl ({error}); install the package openssl")
            });
        let told = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "openssl: {told}");
        let [port] = free_ports();
        let child = Command::new("openssl")
            .args(["s_server", "-quiet", "-www", "-accept", &port.to_string()])
            .arg("-cert")
            .arg(path("certificate.pem"))
            .arg("-key")
            .arg(path("key.pem"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl was run before");
        let secure = Self {
            directory,
            child,
            port,
        };
        eventually("the server of openssl", || {
            TcpStream::connect(("127.0.0.1", port)).map(drop)
        });
        secure
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

#[test]
fn a_certificate_counts_if_the_system_trusts_who_made_it() {
    let (secure, plain) = (Secure::start(), Outside::start());
    let certificate = secure.certificate();
    let script = [
        format!("take https://127.0.0.1:{}/", secure.port),
        // No TLS is spoken there.
        format!("take https://127.0.0.1:{}/gibberish", plain.port),
    ];
    for trusted in [true, false] {
        let mut setup =
            Setup::new(Store::Sqlite).variable("RUNTARA_WASM_ALLOWED_HOSTS", "127.0.0.1");
        if trusted {
            setup = setup.variable("SSL_CERT_FILE", &certificate.display().to_string());
        }
        let server = setup.start();
        let image = speaker(&server);
        let seen = seen_with(
            &server,
            &image,
            &egress(),
            &script[..1 + usize::from(trusted)],
        );
        match trusted {
            true => {
                assert!(seen[0].starts_with("200 "), "{seen:?}");
                assert!(
                    seen[1].starts_with("0 0 TLS-protocol-error")
                        || seen[1].starts_with("0 0 connection-terminated"),
                    "{seen:?}"
                );
            }
            false => assert_eq!(seen, ["0 0 TLS-certificate-error"]),
        }
    }
}
