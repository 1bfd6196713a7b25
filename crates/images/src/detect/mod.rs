//! What content is, from the content alone.

mod elf;
mod tar;

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

pub use elf::{Elf, ElfClass, Machine};

/// How much of the first line of a script counts: Linux looks at this much of a file to find out how to run it
/// (`BINPRM_BUF_SIZE`; execve(2), "Interpreter scripts").
const HEAD_BYTES: usize = 256;

/// How content is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// What content is. Its `Display` is a phrase such as "a script for /bin/sh".
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detected {
    /// A program in the format of Linux.
    Elf(Elf),
    /// Text that begins with `#!`.
    Script {
        /// The path of the program that runs it.
        interpreter: String,
    },
    /// A core WebAssembly module.
    WasmModule,
    /// A WebAssembly component.
    WasmComponent,
    /// A container image: a tar archive of an OCI image layout.
    OciLayout,
    /// A container image: a tar archive as `docker save` writes it.
    DockerArchive,
    /// A tar archive that is not a container image.
    Tar,
    /// Compressed content. What is inside is not looked at.
    Compressed(Compression),
    /// Nothing at all.
    Empty,
    /// Something known that nothing could run.
    Unusable {
        /// What it is and what is wrong with it, as a phrase.
        what: String,
    },
    /// Something that is not known.
    Unknown {
        /// Its first bytes, at most eight.
        head: Vec<u8>,
    },
}

impl fmt::Display for Detected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(elf) => elf.fmt(f),
            Self::Script { interpreter } => {
                write!(f, "a script for {}", interpreter.escape_debug())
            }
            Self::WasmModule => f.write_str("a WebAssembly module"),
            Self::WasmComponent => f.write_str("a WebAssembly component"),
            Self::OciLayout => f.write_str("a container image (OCI layout)"),
            Self::DockerArchive => f.write_str("a container image (docker archive)"),
            Self::Tar => f.write_str(
                "a tar archive that is not a container image (neither `oci-layout` nor `manifest.json` is in it)",
            ),
            Self::Compressed(Compression::Gzip) => f.write_str("gzip-compressed content"),
            Self::Compressed(Compression::Zstd) => f.write_str("zstd-compressed content"),
            Self::Empty => f.write_str("empty"),
            Self::Unusable { what } => f.write_str(what),
            Self::Unknown { head } => {
                write!(f, "of an unknown format (it begins with \"{}\")", head.escape_ascii())
            }
        }
    }
}

/// Says what content is. Reads at most 3 MiB of it, at places that the content names, and holds at most 128 KiB at once.
///
/// ```
/// use runtara_images::{Detected, detect};
///
/// let script = detect(&mut std::io::Cursor::new("#!/bin/sh\necho hello\n"))?;
/// assert_eq!(script, Detected::Script { interpreter: "/bin/sh".to_owned() });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// What reading reported. Content that breaks the rules of its format is not an error: see [`Detected::Unusable`].
pub fn detect(content: &mut (impl Read + Seek)) -> io::Result<Detected> {
    let mut source = Source::new(content)?;
    let head = source.read_up_to(0, HEAD_BYTES)?;
    Ok(match head.as_slice() {
        [] => Detected::Empty,
        [0x7f, b'E', b'L', b'F', ..] => elf::detect(&mut source)?,
        [b'#', b'!', line @ ..] => script(line, source.size > HEAD_BYTES as u64),
        [0, b'a', b's', b'm', version @ ..] => wasm(version),
        [0x1f, 0x8b, 8, ..] => Detected::Compressed(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Detected::Compressed(Compression::Zstd),
        head => match tar::detect(&mut source)? {
            Some(archive) => archive,
            None => foreign(head),
        },
    })
}

/// The first line of a script, without `#!`.
fn script(head: &[u8], goes_on: bool) -> Detected {
    let unusable = |what: &str| Detected::Unusable {
        what: format!("a script whose first line {what}"),
    };
    let (line, ends) = match head.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&head[..end], true),
        None => (head, !goes_on),
    };
    let line = line.trim_ascii_start();
    let name = line
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .next()
        .unwrap_or_default();
    if name.len() == line.len() && !ends {
        // execve(2): a name that is cut off there is no name.
        return unusable("names no program within 255 bytes, the most that Linux looks at");
    }
    if name.is_empty() {
        return unusable("names no program after `#!`");
    }
    if name.ends_with(b"\r") {
        return unusable("ends with a carriage return, as on Windows; save it with Unix line ends");
    }
    match str::from_utf8(name) {
        Ok(name) if name.starts_with('/') && !name.contains('\0') => Detected::Script {
            interpreter: name.to_owned(),
        },
        _ => unusable("does not name its program by an absolute path"),
    }
}

/// What follows `\0asm`: two bytes of version, two of layer (WebAssembly core specification 5.5.16; component model,
/// `Binary.md`).
fn wasm(version: &[u8]) -> Detected {
    match version {
        [1, 0, 0, 0, ..] => Detected::WasmModule,
        [_, _, 1, 0, ..] => Detected::WasmComponent,
        _ => Detected::Unusable {
            what: "a WebAssembly file of an unknown version".to_owned(),
        },
    }
}

/// What people send by mistake has a name; everything else is unknown.
fn foreign(head: &[u8]) -> Detected {
    let what = match head {
        [b'M', b'Z', ..] => "a program for Windows",
        [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] => "a program for macOS",
        [0xca, 0xfe, 0xba, 0xbe, ..] => "a universal program for macOS or a Java class",
        [b'P', b'K', 3, 4, ..] => "a zip archive",
        _ => {
            return Detected::Unknown {
                head: head[..head.len().min(8)].to_vec(),
            };
        }
    };
    Detected::Unusable {
        what: what.to_owned(),
    }
}

/// Content that is read at places it names itself, each read bounded.
struct Source<'a, R> {
    content: &'a mut R,
    size: u64,
}

impl<'a, R: Read + Seek> Source<'a, R> {
    fn new(content: &'a mut R) -> io::Result<Self> {
        let size = content.seek(SeekFrom::End(0))?;
        Ok(Self { content, size })
    }

    /// Reads `length` bytes, or fewer where the content ends.
    fn read_up_to(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        if offset >= self.size {
            return Ok(Vec::new());
        }
        self.content.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        self.content
            .by_ref()
            .take(length as u64)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads `length` bytes, or `None` if the content ends before.
    fn read_exact(&mut self, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.read_up_to(offset, length)?;
        Ok((bytes.len() == length).then_some(bytes))
    }
}

#[cfg(test)]
mod tests;
