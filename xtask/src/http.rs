//! A small blocking HTTP/1.1 client for JSON: what `up` needs to talk to the server, and no more.
//!
//! One connection per call, so that a server that was killed in between is no special case.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::error::Error;

/// Answers that `up` reads are small; more than this is a fault.
const LARGEST_BODY: u64 = 16 * 1024 * 1024;
/// Bound of the head of an answer.
const LARGEST_HEAD: u64 = 64 * 1024;
/// Longer than the longest poll that we ask for.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Separates the parts of an upload; long and odd enough to stand in no program.
const BOUNDARY: &str = "runtara-xtask-7c1f4be2a90d4b6f8d53e6a1";

/// Where a server listens on this machine.
#[derive(Clone, Copy)]
pub(crate) struct Client {
    port: u16,
}

/// What a server answered.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The body as JSON; null when it is none.
    pub(crate) body: Value,
}

impl Client {
    /// Speaks to 127.0.0.1 on that port.
    pub(crate) fn new(port: u16) -> Self {
        Self { port }
    }

    /// Asks for a resource.
    pub(crate) fn get(self, path: &str) -> Result<Answer, Error> {
        self.exchange("GET", path, |stream, head| {
            stream.write_all(format!("{head}\r\n").as_bytes())
        })
    }

    /// Sends a JSON body.
    pub(crate) fn post(self, path: &str, body: &Value) -> Result<Answer, Error> {
        let body = body.to_string();
        self.exchange("POST", path, |stream, head| {
            let length = body.len();
            let head = format!(
                "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(head.as_bytes())
        })
    }

    /// Sends text fields and then a file as `multipart/form-data`, the file as a stream.
    pub(crate) fn upload(
        self,
        path: &str,
        fields: &[(&str, &str)],
        name: &str,
        file: &Path,
    ) -> Result<Answer, Error> {
        let mut program =
            File::open(file).map_err(Error::io(format!("open {}", file.display())))?;
        let size = program
            .metadata()
            .map_err(Error::io(format!("look at {}", file.display())))?
            .len();
        let before = form_before_file(fields, name);
        let after = format!("\r\n--{BOUNDARY}--\r\n");
        self.exchange("POST", path, |stream, head| {
            let length = before.len() as u64 + size + after.len() as u64;
            let head = format!(
                "{head}Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\
                 Content-Length: {length}\r\n\r\n{before}"
            );
            stream.write_all(head.as_bytes())?;
            io::copy(&mut Read::take(&mut program, size), stream)?;
            stream.write_all(after.as_bytes())
        })
    }

    fn exchange(
        self,
        method: &str,
        path: &str,
        send: impl FnOnce(&mut TcpStream, &str) -> io::Result<()>,
    ) -> Result<Answer, Error> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let talk = || -> io::Result<Answer> {
            let mut stream = TcpStream::connect_timeout(&address, TIME_LIMIT)?;
            stream.set_read_timeout(Some(TIME_LIMIT))?;
            stream.set_write_timeout(Some(TIME_LIMIT))?;
            let head =
                format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
            send(&mut stream, &head)?;
            read_answer(stream)
        };
        talk().map_err(Error::io(format!("{method} http://{address}{path}")))
    }
}

impl Answer {
    /// Gives the body of an answer that says yes: 2xx, and no `"success": false`.
    ///
    /// # Errors
    /// With the server's own words when it refused.
    pub(crate) fn accepted(self, what: &str) -> Result<Value, Error> {
        let refused = self.body.get("success") == Some(&Value::Bool(false));
        if (200..300).contains(&self.status) && !refused {
            return Ok(self.body);
        }
        let reason = self
            .body
            .get("error")
            .and_then(Value::as_str)
            .unwrap_or("no reason given");
        let status = self.status;
        Err(Error::Unmet(format!(
            "the server refused to {what}: {reason} (HTTP {status})"
        )))
    }
}

fn form_before_file(fields: &[(&str, &str)], name: &str) -> String {
    let mut form = String::new();
    for (field, value) in fields {
        form.push_str(&format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n"
        ));
    }
    form.push_str(&format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    ));
    form
}

/// Reads one answer (RFC 9112): its body is chunked, of a known length, or ends with the connection.
fn read_answer(stream: impl Read) -> io::Result<Answer> {
    let mut reader = BufReader::new(stream);
    let mut head = Head::read(&mut reader)?;
    while (100..200).contains(&head.status) {
        head = Head::read(&mut reader)?;
    }
    let mut body = Vec::new();
    if head.chunked {
        read_chunks(&mut reader, &mut body)?;
    } else if let Some(length) = head.length {
        if length > LARGEST_BODY {
            return Err(odd(&format!("a body of {length} bytes")));
        }
        let read = reader.take(length).read_to_end(&mut body)?;
        if (read as u64) < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    } else {
        let read = reader.take(LARGEST_BODY + 1).read_to_end(&mut body)?;
        if read as u64 > LARGEST_BODY {
            return Err(odd(&format!("a body of more than {LARGEST_BODY} bytes")));
        }
    }
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok(Answer {
        status: head.status,
        body,
    })
}

#[derive(Default)]
struct Head {
    status: u16,
    length: Option<u64>,
    chunked: bool,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut reader = reader.take(LARGEST_HEAD);
        let first = read_line(&mut reader)?;
        let status = first
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.split(' ').nth(1));
        let Some(status) = status.and_then(|word| word.parse().ok()) else {
            return Err(odd(&format!("the status line {first:?}")));
        };
        let mut head = Self {
            status,
            ..Self::default()
        };
        loop {
            let line = read_line(&mut reader)?;
            if line.is_empty() {
                return Ok(head);
            }
            let Some((name, value)) = line.split_once(':') else {
                return Err(odd(&format!("the header {line:?}")));
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                let length = value
                    .parse()
                    .map_err(|_| odd(&format!("a length of {value:?}")))?;
                head.length = Some(length);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = value.eq_ignore_ascii_case("chunked");
            }
        }
    }
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = read_line(&mut reader.take(LARGEST_HEAD))?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16)
            .map_err(|_| odd(&format!("a chunk of the size {digits:?}")))?;
        if size.saturating_add(body.len() as u64) > LARGEST_BODY {
            return Err(odd(&format!("a body of more than {LARGEST_BODY} bytes")));
        }
        if size == 0 {
            // What may follow are trailers, which nobody asked for; the connection ends here.
            return Ok(());
        }
        if (reader.take(size).read_to_end(body)? as u64) < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = read_line(&mut reader.take(2))?;
        if !end.is_empty() {
            return Err(odd(&format!("a chunk that ends with {end:?}")));
        }
    }
}

/// Reads to the end of a line and gives it without that end.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let Some(line) = line.strip_suffix('\n') else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn odd(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server sent {what}"),
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use serde_json::json;

    use super::*;

    fn read(text: &str) -> io::Result<Answer> {
        read_answer(text.as_bytes())
    }

    #[test]
    fn a_body_of_known_length_ends_there() {
        let answer = read("HTTP/1.1 200 OK\r\ncontent-LENGTH: 7\r\n\r\n{\"a\":1}HTTP/1.1 500 no")
            .expect("it is complete");
        assert_eq!(
            answer,
            Answer {
                status: 200,
                body: json!({"a": 1})
            }
        );
    }

    #[test]
    fn chunks_are_put_together() {
        let answer = read(
            "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n\
             4;x=y\r\n{\"a\"\r\n3\r\n:1}\r\n0\r\n\r\n",
        )
        .expect("it is complete");
        assert_eq!(
            answer,
            Answer {
                status: 201,
                body: json!({"a": 1})
            }
        );
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection() {
        let answer = read("HTTP/1.0 200 OK\r\n\r\n[1]").expect("it is complete");
        assert_eq!(
            answer,
            Answer {
                status: 200,
                body: json!([1])
            }
        );
    }

    #[test]
    fn what_comes_before_the_answer_is_passed_over() {
        let answer = read("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(
            answer.expect("it is complete"),
            Answer {
                status: 204,
                body: Value::Null
            }
        );
    }

    #[test]
    fn broken_answers_are_errors() {
        for text in [
            "",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            assert!(read(text).is_err(), "{text:?} was taken for an answer");
        }
        let endless = format!(
            "HTTP/1.1 200 OK\r\nx: {}",
            "y".repeat(LARGEST_HEAD as usize)
        );
        assert!(
            read(&endless).is_err(),
            "a head without an end was taken for an answer"
        );
    }

    #[test]
    fn a_file_is_uploaded_as_the_last_part_of_a_form() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client comes");
            let mut reader = BufReader::new(stream.try_clone().expect("it is open"));
            let mut length = 0;
            loop {
                let line = read_line(&mut reader).expect("the head is complete");
                if let Some(value) = line.strip_prefix("Content-Length: ") {
                    length = value.parse().expect("it is a number");
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader
                .read_exact(&mut body)
                .expect("the body has the length it says");
            stream
                .write_all(b"HTTP/1.1 201 Created\r\n\r\n{}")
                .expect("the client reads");
            String::from_utf8(body).expect("the test sends text")
        });
        let file = std::env::temp_dir().join(format!("xtask-upload-{}", std::process::id()));
        std::fs::write(&file, "content").expect("the directory can be written");

        let answer = Client::new(port).upload("/upload", &[("name", "n")], "binary", &file);

        std::fs::remove_file(&file).expect("it is ours");
        assert_eq!(answer.expect("the server answered").status, 201);
        let body = server.join().expect("the server saw what it wanted");
        let expected = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nn\r\n\
             --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"binary\"; \
             filename=\"binary\"\r\nContent-Type: application/octet-stream\r\n\r\n\
             content\r\n--{BOUNDARY}--\r\n"
        );
        assert_eq!(body, expected);
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let answer = Answer {
            status: 200,
            body: json!({"success": false, "error": "too old"}),
        };
        let error = answer
            .accepted("resume")
            .expect_err("it was refused")
            .to_string();
        assert_eq!(error, "the server refused to resume: too old (HTTP 200)");
    }
}
