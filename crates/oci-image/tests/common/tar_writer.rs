//! A writer of tar archives that writes whatever it is told to, the forbidden too.

/// One entry; what is not set is harmless.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Vec<u8>,
    pub flag: u8,
    pub target: Vec<u8>,
    pub content: Vec<u8>,
    /// The size in the header, if it lies.
    pub size: Option<u64>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub modified: u64,
    /// Records of a pax header before it.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

fn entry(name: &[u8], flag: u8) -> Entry {
    Entry {
        name: name.to_vec(),
        flag,
        target: Vec::new(),
        content: Vec::new(),
        size: None,
        mode: if flag == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        modified: 1_000_000_000,
        records: Vec::new(),
    }
}

pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    Entry {
        content: content.as_ref().to_vec(),
        ..entry(name.as_ref(), b'0')
    }
}

pub fn directory(name: impl AsRef<[u8]>) -> Entry {
    entry(name.as_ref(), b'5')
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry {
        target: target.as_ref().to_vec(),
        ..entry(name.as_ref(), b'2')
    }
}

pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry {
        target: target.as_ref().to_vec(),
        ..entry(name.as_ref(), b'1')
    }
}

pub fn other(name: impl AsRef<[u8]>, flag: u8) -> Entry {
    entry(name.as_ref(), flag)
}

impl Entry {
    pub fn record(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records
            .push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    pub fn size(self, size: u64) -> Self {
        Self {
            size: Some(size),
            ..self
        }
    }

    /// The headers and the content, filled up to whole blocks.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.records.is_empty() {
            let records: Vec<u8> = self
                .records
                .iter()
                .flat_map(|(key, value)| record(key, value))
                .collect();
            bytes.extend(block(
                &Entry {
                    content: Vec::new(),
                    ..entry(b"pax", b'x')
                },
                records.len() as u64,
            ));
            padded(&mut bytes, &records);
        }
        if self.name.len() > 100 {
            bytes.extend(block(
                &entry(b"././@LongLink", b'L'),
                self.name.len() as u64 + 1,
            ));
            padded(&mut bytes, &[self.name.as_slice(), b"\0"].concat());
        }
        if self.target.len() > 100 {
            bytes.extend(block(
                &entry(b"././@LongLink", b'K'),
                self.target.len() as u64 + 1,
            ));
            padded(&mut bytes, &[self.target.as_slice(), b"\0"].concat());
        }
        bytes.extend(block(self, self.size.unwrap_or(self.content.len() as u64)));
        padded(&mut bytes, &self.content);
        bytes
    }
}

/// An archive, with its end.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(Entry::bytes).collect();
    bytes.extend([0; 1024]);
    bytes
}

fn padded(bytes: &mut Vec<u8>, content: &[u8]) {
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// A header as GNU tar writes it.
fn block(entry: &Entry, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, length: usize, bytes: &[u8]| {
        let length = length.min(bytes.len());
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, 100, &entry.name);
    put(100, 8, format!("{:07o}", entry.mode).as_bytes());
    put(108, 8, &number(entry.uid, 7));
    put(116, 8, &number(entry.gid, 7));
    put(124, 12, &number(size, 11));
    put(136, 12, &number(entry.modified, 11));
    put(156, 1, &[entry.flag]);
    put(157, 100, &entry.target);
    put(257, 8, b"ustar  \0");
    seal(&mut block);
    block
}

/// Writes the checksum of a header.
pub fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().copied().map(u32::from).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn number(number: u64, digits: usize) -> Vec<u8> {
    let octal = format!("{number:0digits$o}");
    if octal.len() <= digits {
        return octal.into_bytes();
    }
    let mut bytes = vec![0; digits + 1];
    let from = bytes.len() - 8;
    if digits == 7 {
        bytes.copy_from_slice(&number.to_be_bytes());
    } else {
        bytes[from..].copy_from_slice(&number.to_be_bytes());
    }
    bytes[0] |= 0x80;
    bytes
}
