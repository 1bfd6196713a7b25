//! A keep-alive HTTP/1.1 connection, as cheap as it gets: the load must not cost more than what it loads.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::error::Error;

/// Longer than the longest poll that is asked for.
const TIME_LIMIT: Duration = Duration::from_secs(45);
/// Bounds what is read of an answer.
const LARGEST_BODY: usize = 16 * 1024 * 1024;
/// Separates the parts of an upload; long and odd enough to stand in no program.
const BOUNDARY: &str = "runtara-bench-5d0c1b7a9e3f4826b1d7c0a4";

/// A connection that stays open from call to call.
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
    request: Vec<u8>,
    line: Vec<u8>,
    body: Vec<u8>,
}

impl Connection {
    /// Connects to 127.0.0.1 on that port.
    pub(super) fn open(port: u16) -> Result<Self, Error> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let connect = || {
            let stream = TcpStream::connect_timeout(&address, TIME_LIMIT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TIME_LIMIT))?;
            stream.set_write_timeout(Some(TIME_LIMIT))?;
            Ok(stream)
        };
        let stream = connect().map_err(Error::io(format!("connect to {address}")))?;
        Ok(Self {
            stream: BufReader::with_capacity(4096, stream),
            address,
            request: Vec::new(),
            line: Vec::new(),
            body: Vec::new(),
        })
    }

    /// Asks for a resource.
    pub(super) fn get(&mut self, path: &str) -> Result<Value, Error> {
        self.call("GET", path, b"")?;
        self.json(path)
    }

    /// Sends JSON and reads the answer as JSON.
    pub(super) fn post(&mut self, path: &str, body: &Value) -> Result<Value, Error> {
        self.call("POST", path, body.to_string().as_bytes())?;
        self.json(path)
    }

    /// Makes a call and leaves the answer unread by anybody but us.
    ///
    /// # Errors
    /// When it does not get through, or is answered by anything but 2xx.
    pub(super) fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(), Error> {
        let status = self
            .exchange(method, path, body)
            .map_err(Error::io(format!("{method} {}{path}", self.address)))?;
        self.judge(status, method, path)
    }

    /// Uploads a program of `size` bytes that are made on the way, as `multipart/form-data`.
    pub(super) fn upload(
        &mut self,
        fields: &[(&str, &str)],
        size: u64,
        block: &[u8],
    ) -> Result<Value, Error> {
        let path = "/api/v1/images/upload";
        let status = self
            .send_form(path, fields, size, block)
            .and_then(|()| self.read_answer())
            .map_err(Error::io(format!("POST {}{path}", self.address)))?;
        self.judge(status, "POST", path)?;
        self.json(path)
    }

    fn send_form(
        &mut self,
        path: &str,
        fields: &[(&str, &str)],
        size: u64,
        block: &[u8],
    ) -> io::Result<()> {
        let mut before = String::new();
        for (name, value) in fields {
            before.push_str(&format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            ));
        }
        before.push_str(&format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"binary\"; filename=\"binary\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        ));
        let after = format!("\r\n--{BOUNDARY}--\r\n");
        let length = before.len() as u64 + size + after.len() as u64;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\
             Content-Length: {length}\r\n\r\n{before}",
            self.address
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        let mut left = size;
        while left > 0 {
            let part = block
                .len()
                .min(usize::try_from(left).unwrap_or(block.len()));
            stream.write_all(&block[..part])?;
            left -= part as u64;
        }
        stream.write_all(after.as_bytes())
    }

    fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<u16> {
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n",
            self.address
        )?;
        if method == "POST" {
            write!(
                self.request,
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            )?;
        }
        self.request.extend_from_slice(b"\r\n");
        self.request.extend_from_slice(body);
        self.stream.get_mut().write_all(&self.request)?;
        self.read_answer()
    }

    fn read_answer(&mut self) -> io::Result<u16> {
        self.read_line()?;
        let first = std::str::from_utf8(&self.line).unwrap_or_default();
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| odd(&format!("the status line {first:?}")))?;
        let mut length = None;
        loop {
            self.read_line()?;
            if self.line.is_empty() {
                break;
            }
            let header = std::str::from_utf8(&self.line).unwrap_or_default();
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok();
            }
        }
        let length: usize = length.ok_or_else(|| odd("a body of unknown length"))?;
        if length > LARGEST_BODY {
            return Err(odd(&format!("a body of {length} bytes")));
        }
        self.body.resize(length, 0);
        self.stream.read_exact(&mut self.body)?;
        Ok(status)
    }

    fn read_line(&mut self) -> io::Result<()> {
        self.line.clear();
        self.stream.read_until(b'\n', &mut self.line)?;
        if self.line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Ok(())
    }

    fn judge(&self, status: u16, method: &str, path: &str) -> Result<(), Error> {
        if (200..300).contains(&status) {
            return Ok(());
        }
        let body = String::from_utf8_lossy(&self.body);
        Err(Error::Unmet(format!(
            "{method} {path} was answered with HTTP {status}: {body}"
        )))
    }

    fn json(&self, path: &str) -> Result<Value, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::Unmet(format!("the answer to {path} is no JSON: {error}")))
    }
}

fn odd(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server sent {what}"),
    )
}
