use std::io::Cursor;

use proptest::prelude::*;

use super::*;

fn of(content: &[u8]) -> Detected {
    detect(&mut Cursor::new(content)).unwrap()
}

fn text_of(content: &[u8]) -> String {
    of(content).to_string()
}

fn script_for(interpreter: &str) -> Detected {
    Detected::Script {
        interpreter: interpreter.to_owned(),
    }
}

/// A 64-bit little-endian ELF file of this type and entry, with these segments (type, content) behind its headers.
fn elf(kind: u16, entry: u64, segments: &[(u32, &[u8])]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(kind.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend([0; 8 + 4]);
    for half in [64, 56, segments.len() as u16, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    assert_eq!(file.len(), 64);
    let mut offset = 64 + 56 * segments.len() as u64;
    for (kind, content) in segments {
        let size = content.len() as u64;
        file.extend(kind.to_le_bytes());
        file.extend(5_u32.to_le_bytes());
        for number in [offset, offset, offset, size, size, 1] {
            file.extend(number.to_le_bytes());
        }
        offset += size;
    }
    for (_, content) in segments {
        file.extend(*content);
    }
    file
}

fn dynamic(entries: &[(u64, u64)]) -> Vec<u8> {
    let numbers = entries.iter().flat_map(|(tag, value)| [*tag, *value]);
    numbers.flat_map(u64::to_le_bytes).collect()
}

fn program(interpreter: Option<&str>) -> Detected {
    Detected::Elf(Elf {
        machine: Machine::X86_64,
        class: ElfClass::Elf64,
        interpreter: interpreter.map(str::to_owned),
    })
}

const LOAD: (u32, &[u8]) = (1, b"code");
const PIE: (u64, u64) = (0x6fff_fffb, 0x0800_0000);
const NAME: (u64, u64) = (14, 1);

#[test]
fn programs_and_how_they_are_linked() {
    assert_eq!(of(&elf(2, 0x40_1000, &[LOAD])), program(None));
    let loaded = elf(3, 0x1000, &[LOAD, (3, b"/lib64/ld-linux-x86-64.so.2\0")]);
    assert_eq!(of(&loaded), program(Some("/lib64/ld-linux-x86-64.so.2")));
    assert_eq!(
        text_of(&loaded),
        "an ELF program for x86_64, loaded by /lib64/ld-linux-x86-64.so.2"
    );
    let static_pie = elf(3, 0, &[LOAD, (2, &dynamic(&[NAME, PIE, (0, 0)]))]);
    assert_eq!(of(&static_pie), program(None));
    let unmarked_static_pie = elf(3, 0x1000, &[LOAD, (2, &dynamic(&[(0, 0), NAME]))]);
    assert_eq!(of(&unmarked_static_pie), program(None));
    assert_eq!(
        text_of(&static_pie),
        "a statically linked ELF program for x86_64"
    );
}

#[test]
fn this_very_program_is_one() {
    let mut this = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let Detected::Elf(elf) = detect(&mut this).unwrap() else {
        panic!("not detected as an ELF program");
    };
    assert_eq!(Some(elf.machine), Machine::host());
}

#[test]
fn big_endian_and_32_bit_programs_are_read() {
    let mut file = b"\x7fELF\x01\x02\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 21] {
        file.extend(half.to_be_bytes());
    }
    for word in [1_u32, 0x1000, 52, 0, 0] {
        file.extend(word.to_be_bytes());
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_be_bytes());
    }
    for word in [1_u32, 84, 84, 84, 4, 4, 5, 1] {
        file.extend(word.to_be_bytes());
    }
    file.extend(b"code");
    assert_eq!(
        of(&file),
        Detected::Elf(Elf {
            machine: Machine::PPC64,
            class: ElfClass::Elf32,
            interpreter: None
        })
    );
}

#[test]
fn elf_files_that_are_no_programs_say_what_they_are() {
    let cut = elf(2, 0x1000, &[LOAD]);
    for (file, what) in [
        (
            elf(3, 0, &[LOAD]),
            "an ELF shared library, which is not a program",
        ),
        (
            elf(3, 0x1000, &[LOAD, (2, &dynamic(&[NAME]))]),
            "an ELF shared library, which is not a program",
        ),
        (
            elf(1, 0, &[LOAD]),
            "an ELF object file, which was not linked into a program",
        ),
        (elf(4, 0, &[LOAD]), "a core dump"),
        (elf(9, 0, &[LOAD]), "an ELF file that is not a program"),
        (
            elf(2, 1, &[]),
            "an ELF file whose program headers break the rules",
        ),
        (
            elf(2, 1, &[(6, b"x")]),
            "an ELF file that has nothing to load",
        ),
        (
            elf(2, 1, &[LOAD, (3, b"/no/end")]),
            "an ELF program whose dynamic loader cannot be read",
        ),
        (
            elf(2, 1, &[LOAD, (3, b"\0\0")]),
            "an ELF program whose dynamic loader cannot be read",
        ),
        (
            cut[..cut.len() - 1].to_vec(),
            "an ELF program that is cut off: it needs 124 bytes and has 123",
        ),
        (
            cut[..100].to_vec(),
            "an ELF file that is cut off before its program headers",
        ),
        (
            cut[..20].to_vec(),
            "an ELF file that is cut off in its header",
        ),
    ] {
        assert_eq!(text_of(&file), what);
    }
}

#[test]
fn scripts_name_their_interpreter() {
    assert_eq!(of(b"#!/bin/sh\necho"), script_for("/bin/sh"));
    assert_eq!(
        of(b"#! \t/usr/bin/env python3\n"),
        script_for("/usr/bin/env")
    );
    assert_eq!(of(b"#!/bin/true"), script_for("/bin/true"));
    let long_argument = [b"#!/bin/awk ".as_slice(), &[b'x'; 400]].concat();
    assert_eq!(of(&long_argument), script_for("/bin/awk"));
}

#[test]
fn scripts_that_linux_would_not_run_say_why() {
    let too_long = [b"#!/".as_slice(), &[b'x'; 400], b"\n"].concat();
    for (script, why) in [
        (b"#!\necho".as_slice(), "names no program after `#!`"),
        (b"#!", "names no program after `#!`"),
        (
            b"#!/bin/sh\r\necho",
            "ends with a carriage return, as on Windows; save it with Unix line ends",
        ),
        (
            b"#!python3\n",
            "does not name its program by an absolute path",
        ),
        (
            b"#!/bin/s\0h\n",
            "does not name its program by an absolute path",
        ),
        (
            &too_long,
            "names no program within 255 bytes, the most that Linux looks at",
        ),
    ] {
        assert_eq!(text_of(script), format!("a script whose first line {why}"));
    }
}

#[test]
fn webassembly_is_told_apart_by_its_layer() {
    assert_eq!(of(b"\0asm\x01\0\0\0\x01"), Detected::WasmModule);
    assert_eq!(of(b"\0asm\x0d\0\x01\0"), Detected::WasmComponent);
    assert_eq!(
        text_of(b"\0asm\x02\0\0\0"),
        "a WebAssembly file of an unknown version"
    );
    assert_eq!(
        text_of(b"\0asm"),
        "a WebAssembly file of an unknown version"
    );
}

/// A member of a tar archive with as much content.
fn member(name: &str, content: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..135].copy_from_slice(format!("{content:011o}").as_bytes());
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block.resize(512 + content.next_multiple_of(512), b'x');
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().copied().map(u32::from).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = members.concat();
    archive.resize(archive.len() + 1024, 0);
    archive
}

#[test]
fn archives_are_container_images_by_what_is_in_them() {
    let oci = [
        member("blobs/sha256/ab", 70_000),
        member("./oci-layout", 30),
    ];
    assert_eq!(of(&archive(&oci)), Detected::OciLayout);
    let docker = [member("ab/layer.tar", 513), member("manifest.json", 2)];
    assert_eq!(of(&archive(&docker)), Detected::DockerArchive);
    let both = [member("manifest.json", 2), member("oci-layout", 30)];
    assert_eq!(of(&archive(&both)), Detected::OciLayout);
    let neither = [
        member("data/manifest.json", 2),
        member("oci-layout.txt", 30),
    ];
    assert_eq!(of(&archive(&neither)), Detected::Tar);
}

#[test]
fn a_name_with_a_prefix_is_not_at_the_top() {
    let mut nested = member("oci-layout", 30);
    nested[345..351].copy_from_slice(b"nested");
    seal(&mut nested);
    assert_eq!(of(&archive(&[nested])), Detected::Tar);
}

#[test]
fn a_directory_of_the_name_is_not_the_file() {
    let mut directory = member("manifest.json", 0);
    directory[156] = b'5';
    seal(&mut directory);
    assert_eq!(of(&archive(&[directory])), Detected::Tar);
}

#[test]
fn sizes_beyond_the_octal_field_do_not_overflow() {
    let mut huge = member("layer", 0);
    huge[124..136].copy_from_slice(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
    seal(&mut huge);
    assert_eq!(
        of(&archive(&[huge, member("oci-layout", 1)])),
        Detected::Tar
    );
}

#[test]
fn other_things_have_a_name_or_show_their_first_bytes() {
    assert_eq!(of(b""), Detected::Empty);
    assert_eq!(
        of(b"\x1f\x8b\x08\0"),
        Detected::Compressed(Compression::Gzip)
    );
    assert_eq!(
        of(b"\x28\xb5\x2f\xfd\0"),
        Detected::Compressed(Compression::Zstd)
    );
    assert_eq!(text_of(b"MZ\x90"), "a program for Windows");
    assert_eq!(text_of(b"PK\x03\x04"), "a zip archive");
    assert_eq!(
        text_of(b"\"hello\nworld\""),
        r#"of an unknown format (it begins with "\"hello\nw")"#
    );
}

/// Counts what is read.
struct Counted<'a> {
    content: Cursor<&'a [u8]>,
    read: usize,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        self.read += read;
        Ok(read)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.content.seek(to)
    }
}

fn read_by_detection(content: &[u8]) -> usize {
    let mut counted = Counted {
        content: Cursor::new(content),
        read: 0,
    };
    let detected = detect(&mut counted).unwrap();
    assert!(detected.to_string().len() < 20_000);
    counted.read
}

#[test]
fn an_archive_of_many_members_is_not_read_whole() {
    let members = vec![member("x", 0); 20_000];
    assert!(read_by_detection(&archive(&members)) <= 3 * 1024 * 1024);
}

/// Content that is nearly right: the beginning of something known, with bytes changed and the end cut off.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop_oneof![
        Just(elf(
            3,
            0x1000,
            &[LOAD, (3, b"/lib/ld.so\0"), (2, &dynamic(&[NAME, PIE]))]
        )),
        Just(archive(&[member("a", 600), member("manifest.json", 2)])),
        Just(b"#!/usr/bin/env python3\nprint()".to_vec()),
        Just(b"\0asm\x0d\0\x01\0".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..600),
    ];
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (whole, changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut content, changes, cut, keep)| {
            for (at, byte) in changes {
                if !content.is_empty() {
                    let at = at.index(content.len());
                    content[at] = byte;
                }
            }
            if !keep && !content.is_empty() {
                content.truncate(cut.index(content.len()));
            }
            // So that damage to a member reaches the code behind its checksum.
            if content.len() > 512 && content[257..262] == *b"ustar" {
                seal(&mut content);
            }
            content
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn any_content_is_judged_within_bounds(content in damaged()) {
        prop_assert!(read_by_detection(&content) <= 3 * 1024 * 1024);
    }
}
