//! ELF files, as far as Linux looks at them before it runs them.
//!
//! Rules: elf(5), the System V gABI chapters 4 and 5, and `fs/binfmt_elf.c` of Linux for what it refuses.

use std::fmt;
use std::io::{self, Read, Seek};

use super::{Detected, Source};

const ET_REL: u16 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const ET_CORE: u16 = 4;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_SONAME: u64 = 14;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_PIE: u64 = 0x0800_0000;

/// Linux refuses program headers of more than this (`load_elf_phdrs`).
const PROGRAM_HEADERS_BYTES: usize = 65_536;
/// Linux refuses a longer interpreter (`PATH_MAX`).
const INTERPRETER_BYTES: u64 = 4_096;
/// As much of the dynamic section is looked at; real ones have some dozen entries of 16 bytes.
const DYNAMIC_BYTES: u64 = 65_536;

/// A program in the Executable and Linkable Format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// The kind of processor it is for.
    pub machine: Machine,
    /// The width of its addresses.
    pub class: ElfClass,
    /// The dynamic loader that it asks for; `None` if it is statically linked.
    pub interpreter: Option<String>,
}

impl fmt::Display for Elf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interpreter {
            None => write!(f, "a statically linked ELF program for {}", self.machine),
            Some(path) => {
                write!(
                    f,
                    "an ELF program for {}, loaded by {}",
                    self.machine,
                    path.escape_debug()
                )
            }
        }
    }
}

/// The width of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElfClass {
    /// 32 bits.
    Elf32,
    /// 64 bits.
    Elf64,
}

/// A kind of processor, by its number in ELF files (`e_machine`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Machine(pub u16);

impl Machine {
    /// 64-bit x86.
    pub const X86_64: Self = Self(62);
    /// 32-bit x86.
    pub const I386: Self = Self(3);
    /// 64-bit Arm.
    pub const AARCH64: Self = Self(183);
    /// 32-bit Arm.
    pub const ARM: Self = Self(40);
    /// RISC-V.
    pub const RISCV: Self = Self(243);
    /// 64-bit PowerPC.
    pub const PPC64: Self = Self(21);
    /// IBM Z.
    pub const S390: Self = Self(22);
    /// LoongArch.
    pub const LOONGARCH: Self = Self(258);

    /// The kind that this server was built for, if it has a name here.
    #[must_use]
    pub fn host() -> Option<Self> {
        Some(match std::env::consts::ARCH {
            "x86_64" => Self::X86_64,
            "x86" => Self::I386,
            "aarch64" => Self::AARCH64,
            "arm" => Self::ARM,
            "riscv32" | "riscv64" => Self::RISCV,
            "powerpc64" => Self::PPC64,
            "s390x" => Self::S390,
            "loongarch64" => Self::LOONGARCH,
            _ => return None,
        })
    }

    /// Whether a processor of this kind runs programs for the other.
    #[must_use]
    pub fn runs(self, program: Self) -> bool {
        self == program
            || matches!(
                (self, program),
                (Self::X86_64, Self::I386) | (Self::AARCH64, Self::ARM)
            )
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::X86_64 => "x86_64",
            Self::I386 => "x86",
            Self::AARCH64 => "aarch64",
            Self::ARM => "arm",
            Self::RISCV => "riscv",
            Self::PPC64 => "powerpc64",
            Self::S390 => "s390x",
            Self::LOONGARCH => "loongarch64",
            Self(other) => return write!(f, "machine {other}"),
        })
    }
}

/// Reads an ELF file. Its magic has been seen.
pub(super) fn detect<R: Read + Seek>(source: &mut Source<'_, R>) -> io::Result<Detected> {
    Ok(match examine(source)? {
        Ok(elf) => Detected::Elf(elf),
        Err(what) => Detected::Unusable { what },
    })
}

/// The outer result is that of reading, the inner one says what is wrong with the file.
type Examined<T> = io::Result<Result<T, String>>;

/// Goes on with a value, or answers with what is wrong.
macro_rules! sound {
    ($examined:expr) => {
        match $examined {
            Ok(value) => value,
            Err(what) => return Ok(Err(what)),
        }
    };
}

fn examine<R: Read + Seek>(source: &mut Source<'_, R>) -> Examined<Elf> {
    let head = source.read_up_to(0, 64)?;
    let header =
        sound!(Header::parse(&head).ok_or("an ELF file that is cut off in its header".to_owned()));
    sound!(header.check());
    let segments = sound!(read_segments(source, &header)?);
    let interpreter = match segments.iter().find(|segment| segment.kind == PT_INTERP) {
        Some(segment) => Some(sound!(read_interpreter(source, segment)?)),
        None => None,
    };
    if header.kind == ET_DYN && interpreter.is_none() {
        sound!(check_static_pie(source, &header, &segments)?);
    }
    Ok(Ok(Elf {
        machine: Machine(header.machine),
        class: header.format.class,
        interpreter,
    }))
}

/// How numbers are written.
#[derive(Clone, Copy)]
struct Format {
    class: ElfClass,
    big_endian: bool,
}

impl Format {
    fn number(self, bytes: &[u8], offset: usize, width: usize) -> Option<u64> {
        let bytes = bytes.get(offset..offset + width)?;
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(match self.big_endian {
            true => bytes.iter().fold(0, join),
            false => bytes.iter().rev().fold(0, join),
        })
    }

    fn half(self, bytes: &[u8], offset: usize) -> Option<u16> {
        self.number(bytes, offset, 2)?.try_into().ok()
    }

    fn word(self, bytes: &[u8], offset: usize) -> Option<u32> {
        self.number(bytes, offset, 4)?.try_into().ok()
    }

    /// A number as wide as an address.
    fn address(self, bytes: &[u8], offset: usize) -> Option<u64> {
        self.number(bytes, offset, self.address_bytes())
    }

    fn address_bytes(self) -> usize {
        match self.class {
            ElfClass::Elf32 => 4,
            ElfClass::Elf64 => 8,
        }
    }

    fn segment_bytes(self) -> usize {
        match self.class {
            ElfClass::Elf32 => 32,
            ElfClass::Elf64 => 56,
        }
    }
}

struct Header {
    format: Format,
    kind: u16,
    machine: u16,
    entry: u64,
    segments_at: u64,
    segment_bytes: u16,
    segments: u16,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let class = match bytes.get(4)? {
            1 => ElfClass::Elf32,
            _ => ElfClass::Elf64,
        };
        let format = Format {
            class,
            big_endian: *bytes.get(5)? == 2,
        };
        let (segments_at, sizes_at) = match class {
            ElfClass::Elf32 => (28, 42),
            ElfClass::Elf64 => (32, 54),
        };
        Some(Self {
            format,
            kind: format.half(bytes, 16)?,
            machine: format.half(bytes, 18)?,
            entry: format.address(bytes, 24)?,
            segments_at: format.address(bytes, segments_at)?,
            segment_bytes: format.half(bytes, sizes_at)?,
            segments: format.half(bytes, sizes_at + 2)?,
        })
    }

    fn check(&self) -> Result<(), String> {
        let what = match self.kind {
            ET_EXEC | ET_DYN => {
                let expected = self.format.segment_bytes();
                let total = expected * usize::from(self.segments);
                if usize::from(self.segment_bytes) == expected
                    && (1..=PROGRAM_HEADERS_BYTES).contains(&total)
                {
                    return Ok(());
                }
                "an ELF file whose program headers break the rules"
            }
            ET_REL => "an ELF object file, which was not linked into a program",
            ET_CORE => "a core dump",
            _ => "an ELF file that is not a program",
        };
        Err(what.to_owned())
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    size: u64,
}

fn read_segments<R: Read + Seek>(
    source: &mut Source<'_, R>,
    header: &Header,
) -> Examined<Vec<Segment>> {
    let format = header.format;
    let length = format.segment_bytes() * usize::from(header.segments);
    let Some(table) = source.read_exact(header.segments_at, length)? else {
        return Ok(Err(
            "an ELF file that is cut off before its program headers".to_owned(),
        ));
    };
    let segment = |bytes: &[u8]| {
        let (offset_at, size_at) = match format.class {
            ElfClass::Elf32 => (4, 16),
            ElfClass::Elf64 => (8, 32),
        };
        Some(Segment {
            kind: format.word(bytes, 0)?,
            offset: format.address(bytes, offset_at)?,
            size: format.address(bytes, size_at)?,
        })
    };
    let segments: Option<Vec<_>> = table
        .chunks_exact(format.segment_bytes())
        .map(segment)
        .collect();
    let segments = segments.expect("each chunk has the size of a program header");
    let loads = segments.iter().filter(|segment| segment.kind == PT_LOAD);
    let end = loads
        .map(|segment| segment.offset.saturating_add(segment.size))
        .max();
    Ok(match end {
        None => Err("an ELF file that has nothing to load".to_owned()),
        Some(end) if end > source.size => Err(format!(
            "an ELF program that is cut off: it needs {end} bytes and has {}",
            source.size
        )),
        Some(_) => Ok(segments),
    })
}

fn read_interpreter<R: Read + Seek>(
    source: &mut Source<'_, R>,
    segment: &Segment,
) -> Examined<String> {
    let bytes = match segment.size {
        2..=INTERPRETER_BYTES => source.read_exact(segment.offset, segment.size as usize)?,
        _ => None,
    };
    // Linux refuses a path that does not end with the segment; one that ends before is that shorter path.
    let path = bytes
        .as_deref()
        .and_then(|bytes| bytes.strip_suffix(&[0]))
        .and_then(|bytes| bytes.split(|byte| *byte == 0).next())
        .and_then(|bytes| str::from_utf8(bytes).ok())
        .filter(|path| !path.is_empty());
    Ok(path
        .map(str::to_owned)
        .ok_or("an ELF program whose dynamic loader cannot be read".to_owned()))
}

/// Tells a static position-independent program from a shared library: both are of the same type and name no loader. The
/// linker marks the former with `DF_1_PIE`; older ones did not, but gave libraries a name or no entry.
fn check_static_pie<R: Read + Seek>(
    source: &mut Source<'_, R>,
    header: &Header,
    segments: &[Segment],
) -> Examined<()> {
    let format = header.format;
    let mut marked = false;
    let mut named = false;
    if let Some(segment) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) {
        let length = segment.size.min(DYNAMIC_BYTES) as usize;
        let entries = source.read_up_to(segment.offset, length)?;
        let width = format.address_bytes();
        for entry in entries.chunks_exact(2 * width) {
            match (format.address(entry, 0), format.address(entry, width)) {
                (Some(DT_NULL), _) => break,
                (Some(DT_SONAME), _) => named = true,
                (Some(DT_FLAGS_1), Some(flags)) => marked = flags & DF_1_PIE != 0,
                _ => {}
            }
        }
    }
    if marked || (!named && header.entry != 0) {
        return Ok(Ok(()));
    }
    Ok(Err(
        "an ELF shared library, which is not a program".to_owned()
    ))
}
