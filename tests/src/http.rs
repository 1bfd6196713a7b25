//! A small blocking HTTP/1.1 client (RFC 9112) that can also send what no proper client would.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// Longer than any call that is not meant to take long; calls that are have a limit of their own.
const PATIENCE: Duration = Duration::from_secs(60);
/// Separates the parts of an upload; long and odd enough to stand in no program.
const BOUNDARY: &str = "runtara-tests-2c19d8f7a05e4b63";

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A port of this machine.
    Port(u16),
    /// A socket in the file system.
    Socket(PathBuf),
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A request without a body. `target` is a path with its query, sent as it is.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// A GET.
    #[must_use]
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A DELETE.
    #[must_use]
    pub fn delete(target: &str) -> Self {
        Self::new("DELETE", target)
    }

    /// A POST of JSON.
    #[must_use]
    pub fn post(target: &str, body: &Value) -> Self {
        Self::new("POST", target)
            .header("Content-Type", "application/json")
            .body(body.to_string())
    }

    /// A POST of a form: texts first, and then each file.
    #[must_use]
    pub fn form(target: &str, texts: &[(&str, &str)], files: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (name, value) in texts {
            let part = format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            );
            body.extend_from_slice(part.as_bytes());
        }
        for (name, content) in files {
            let head = format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n"
            );
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(content);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        Self::new("POST", target)
            .header(
                "Content-Type",
                &format!("multipart/form-data; boundary={BOUNDARY}"),
            )
            .body(body)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// The bytes of the request as they go over the wire.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.has("host") {
            head.push_str("Host: localhost\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let framed = self.has("content-length") || self.has("transfer-encoding");
        if !framed && (self.body.is_some() || self.method == "POST") {
            let length = self.body.as_ref().map_or(0, Vec::len);
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }

    fn has(&self, name: &str) -> bool {
        self.headers
            .iter()
            .any(|(found, _)| found.eq_ignore_ascii_case(name))
    }
}

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers in their order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(&found.1)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("the body is not JSON ({error}): {self}"))
    }

    /// The JSON body of an answer that has this status.
    ///
    /// # Panics
    /// If it has another.
    #[must_use]
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(
            self.status, status,
            "another status was wanted; the answer: {self}"
        );
        self.json()
    }

    /// Checks an answer that says no: its status, its code, and that its body has the form of every error.
    ///
    /// # Panics
    /// If anything is otherwise.
    #[track_caller]
    pub fn refuses(&self, status: u16, code: &str) -> String {
        let body = self.expect(status);
        assert_eq!(
            body["success"], false,
            "every refusal says `success: false`: {self}"
        );
        assert_eq!(
            body["code"], code,
            "another code was wanted; the answer: {self}"
        );
        let text = body["error"].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "a refusal has a text: {self}");
        text.to_owned()
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text();
        let shown: String = text.chars().take(2_000).collect();
        write!(f, "HTTP {} {shown}", self.status)
    }
}

/// Sends a request over a connection of its own and reads the answer.
///
/// # Errors
/// If the server cannot be reached, cuts the connection or takes longer than a minute.
pub fn exchange(address: &Address, request: &Request) -> io::Result<Answer> {
    let request = request.clone().header("Connection", "close");
    Connection::open(address)?.exchange(&request)
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}

/// One connection, which is kept.
pub struct Connection {
    stream: BufReader<Stream>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn open(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Port(port) => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Address::Socket(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        let connection = Self {
            stream: BufReader::new(stream),
        };
        connection.set_patience(PATIENCE)?;
        Ok(connection)
    }

    /// How long each read and write may take.
    ///
    /// # Errors
    /// As the system says.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))
            }
        }
    }

    /// Sends a request and reads its answer; the connection stays open if the server leaves it open.
    ///
    /// # Errors
    /// If the server cuts the connection or takes too long.
    pub fn exchange(&mut self, request: &Request) -> io::Result<Answer> {
        let sent = self.send(&request.bytes());
        match self.read() {
            Ok(answer) => Ok(answer),
            // A server may answer before it has read all, and close: the write fails then, and the answer is there.
            Err(error) => sent.and(Err(error)),
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the server has cut the connection.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(bytes)?;
        stream.flush()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// If the server cuts the connection or takes too long.
    pub fn read(&mut self) -> io::Result<Answer> {
        loop {
            let answer = self.read_one()?;
            if answer.status >= 200 {
                return Ok(answer);
            }
        }
    }

    /// Whether the server has closed the connection without another word.
    ///
    /// # Errors
    /// If it takes longer than the connection's patience.
    pub fn is_closed(&mut self) -> io::Result<bool> {
        match self.stream.fill_buf() {
            Ok(bytes) => Ok(bytes.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Tells the server that nothing more will be sent or read, as a client does that leaves, and waits until it has closed the connection.
    ///
    /// # Errors
    /// If it takes longer than the connection's patience.
    pub fn leave(mut self) -> io::Result<()> {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write)?,
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write)?,
        }
        match self.is_closed()? {
            true => Ok(()),
            false => Err(io::Error::other("the server answered nevertheless")),
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn read_one(&mut self) -> io::Result<Answer> {
        let odd = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| odd(&first))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| odd(&line))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        if status < 200 || status == 204 || status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some() {
            self.read_chunks(&mut answer.body)?;
        } else if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().map_err(|_| odd(length))?;
            answer.body = vec![0; length];
            self.stream.read_exact(&mut answer.body)?;
        } else {
            self.stream.read_to_end(&mut answer.body)?;
        }
        Ok(answer)
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, line.clone()))?;
            let start = body.len();
            body.resize(start + size, 0);
            self.stream.read_exact(&mut body[start..])?;
            let _line_end_or_trailer = self.line()?;
            if size == 0 {
                return Ok(());
            }
        }
    }
}
