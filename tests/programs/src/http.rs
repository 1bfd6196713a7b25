//! Blocking HTTP/1.1 over one connection that is kept.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// Largest answer that is read.
const ANSWER_BYTES: u64 = 64 * 1024 * 1024;
/// Longest line of a head, and most lines.
const LINE_BYTES: u64 = 64 * 1024;
const LINES: usize = 128;

/// One connection, kept from call to call. A call is never repeated, not even when the connection turns out to be closed.
pub(crate) struct Client {
    authority: String,
    timeout: Duration,
    kept: Option<BufReader<Timed>>,
}

/// A connection whose reads end at a deadline: the time-out is one for the whole request.
struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            result => result,
        }
    }
}

impl Client {
    pub(crate) fn new(authority: &str, timeout: Duration) -> Self {
        Self {
            authority: authority.to_owned(),
            timeout,
            kept: None,
        }
    }

    /// Sends a request and gives status and body of the answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> io::Result<(u16, Vec<u8>)> {
        let deadline = Instant::now() + self.timeout;
        let mut connection = match self.kept.take() {
            Some(mut kept) => {
                kept.get_mut().deadline = deadline;
                kept
            }
            None => self.connect(deadline)?,
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.authority);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = body {
            head.push_str(&format!(
                "content-type: application/json\r\ncontent-length: {}\r\n",
                body.len()
            ));
        }
        head.push_str("\r\n");
        head.push_str(body.unwrap_or_default());
        let stream = &mut connection.get_mut().stream;
        stream.set_write_timeout(Some(self.timeout))?;
        stream.write_all(head.as_bytes())?;
        let (status, body, keep) = read_answer(&mut connection)?;
        if keep {
            self.kept = Some(connection);
        }
        Ok((status, body))
    }

    fn connect(&self, deadline: Instant) -> io::Result<BufReader<Timed>> {
        let mut last = io::Error::other(format!("{} has no address", self.authority));
        for address in self.authority.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(BufReader::new(Timed { stream, deadline }));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Reads an answer: its status, its body, and whether the connection may be kept.
fn read_answer(from: &mut BufReader<Timed>) -> io::Result<(u16, Vec<u8>, bool)> {
    let status_line = line(from)?;
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok());
    let status = status.ok_or_else(|| broken(&status_line))?;
    let (mut length, mut chunked, mut keep) = (None, false, true);
    for _ in 0..LINES {
        let line = line(from)?;
        if line.is_empty() {
            let body = match length {
                _ if chunked => read_chunks(from)?,
                Some(length) => read_exactly(from, length)?,
                None => {
                    keep = false;
                    let mut body = Vec::new();
                    from.take(ANSWER_BYTES).read_to_end(&mut body)?;
                    body
                }
            };
            return Ok((status, body, keep));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| broken(&line))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse().map_err(|_| broken(value))?),
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => keep = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Err(io::Error::other("the answer's head has no end"))
}

fn line(from: &mut BufReader<Timed>) -> io::Result<String> {
    let mut line = String::new();
    from.take(LINE_BYTES).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "connection closed before message completed",
        ));
    }
    Ok(line.trim_end().to_owned())
}

fn read_exactly(from: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    if length > ANSWER_BYTES {
        return Err(io::Error::other(format!("an answer of {length} bytes")));
    }
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body)?;
    if (body.len() as u64) < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body)
}

fn read_chunks(from: &mut BufReader<Timed>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(from)?;
        let hex = size.split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(hex, 16).map_err(|_| broken(&size))?;
        if size + body.len() as u64 > ANSWER_BYTES {
            return Err(io::Error::other("an answer without an end"));
        }
        body.extend(read_exactly(from, size)?);
        // After the last chunk this is the empty line that ends the (absent) trailers.
        line(from)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn broken(found: &str) -> io::Error {
    io::Error::other(format!("found {found:?}, wanted HTTP/1.1"))
}
