//! WebAssembly guests, built from the sources in `tests/guests`: once for each content, into the target directory. Those in Rust are
//! programs of this workspace, built before the tests.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use wasi_preview1_component_adapter_provider as adapter;
use wit_bindgen_c::Opts;
use wit_component::ComponentEncoder;
use wit_parser::Resolve;

use crate::programs::directory;

/// How the guests are compiled: names of functions are kept for backtraces, and nothing else that helps in debugging.
const FLAGS: [&str; 8] = [
    "--target=wasm32-wasi",
    "-D_GNU_SOURCE",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--strip-debug",
    "-Wl,--fatal-warnings",
];

/// The guest that does what the program of this name does: a durable program if it needs to speak, else a command.
///
/// # Panics
/// If there is none, or it cannot be compiled.
#[must_use]
pub fn like(program: &str) -> Vec<u8> {
    let source = read(&format!("{program}.c"));
    let source = String::from_utf8(source).expect("a source is text");
    match source.contains("#include \"durable.h\"") {
        true => component(program),
        false => command(program),
    }
}

/// A command: a module of WASI preview 1, compiled from the C file of this name.
///
/// # Panics
/// If that cannot be done, with what the compiler says, or the packages that bring it.
#[must_use]
pub fn command(name: &str) -> Vec<u8> {
    let source = read(&format!("{name}.c"));
    built(&[b"command", &source], || {
        compile(&[&path_of(name)], &[], &[])
    })
}

/// A durable program: a component that speaks `wit/durable.wit` and is a command of WASI 0.2, compiled from the C file of this name.
///
/// # Panics
/// If that cannot be done, with what the compiler says, or the packages that bring it.
#[must_use]
pub fn component(name: &str) -> Vec<u8> {
    let [start, format, shared, json] = ["start.c", "format.h", "durable.h", "json.h"].map(read);
    let files = [path_of("start")];
    bound(
        &bindings("../wit", "imports"),
        &read(&format!("{name}.c")),
        &[&start, &format, &shared, &json],
        &files,
        &["-nostartfiles"],
    )
}

/// A program that speaks HTTP: a component that imports `wasi:http/outgoing-handler`, compiled from the C file of this name.
///
/// # Panics
/// If that cannot be done, with what the compiler says, or the packages that bring it.
#[must_use]
pub fn requester(name: &str) -> Vec<u8> {
    bound(
        &bindings("guests/wit", "requests"),
        &read(&format!("{name}.c")),
        &[&read("start.c"), &read("format.h")],
        &[path_of("start")],
        &["-nostartfiles"],
    )
}

/// The guest of the README: its first C program.
///
/// # Panics
/// If there is none, or it cannot be compiled.
#[must_use]
pub fn of_the_readme() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(&path).expect("the repository has one");
    let program = text.split("```c\n").nth(1);
    let program = program.and_then(|rest| rest.split("```").next());
    bound(
        &bindings("../wit", "imports"),
        program.expect("it shows a program").as_bytes(),
        &[],
        &[],
        &[],
    )
}

/// Compiles a program with bindings, and with what it shares with others: their content, the files, and how they are linked.
fn bound(
    bindings: &[(String, Vec<u8>)],
    source: &[u8],
    shared: &[&[u8]],
    files: &[PathBuf],
    link: &[&str],
) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = vec![
        b"component",
        source,
        adapter::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
    ];
    parts.extend(shared);
    parts.extend(bindings.iter().map(|(_, content)| content.as_slice()));
    built(&parts, || {
        let place = directory_for_work();
        let write = |name: &str, content: &[u8]| {
            let path = place.path().join(name);
            fs::write(&path, content).expect("the directory is ours");
            path
        };
        let made = bindings.iter().map(|(name, content)| write(name, content));
        let made: Vec<_> = made.chain([write("guest.c", source)]).collect();
        // A header is found, not compiled.
        let made = made
            .iter()
            .filter(|file| file.extension().is_some_and(|kind| kind != "h"));
        let files: Vec<_> = made.chain(files).map(PathBuf::as_path).collect();
        let module = compile(&files, &[place.path(), &guests()], link);
        componentise(&module)
    })
}

/// A durable program: the component that a program of this workspace is, built for `wasm32-wasip2`.
///
/// # Panics
/// If it was not built, with the command that does.
#[must_use]
pub fn of_rust(program: &str) -> Vec<u8> {
    // Beside the profile's directory, where cargo puts what it builds for another target.
    let place = directory().join("../wasm32-wasip2/release");
    let path = place.join(format!("{program}.wasm"));
    fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; `cargo xtask guests` builds it",
            path.display()
        )
    })
}

/// A module or a component, from the WebAssembly text of this name.
///
/// # Panics
/// If it is none, with the line.
#[must_use]
pub fn text(name: &str) -> Vec<u8> {
    let path = guests().join(format!("{name}.wat"));
    wat::parse_file(path).unwrap_or_else(|error| panic!("{error}"))
}

/// Makes a command a component, by the standard adapter.
///
/// # Panics
/// If it cannot be one.
#[must_use]
pub fn componentise(module: &[u8]) -> Vec<u8> {
    let encoder = ComponentEncoder::default().validate(true).module(module);
    let encoder = encoder.and_then(|encoder| {
        encoder.adapter(
            adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
            adapter::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        )
    });
    let component = encoder.and_then(|mut encoder| encoder.encode());
    component.unwrap_or_else(|error| panic!("the module is no component: {error:#}"))
}

/// What was built of these parts before, or else what is built now.
fn built(parts: &[&[u8]], build: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let cache = directory().join("guests");
    let file = cache.join(format!("{}.wasm", key_of(parts)));
    if let Ok(found) = fs::read(&file) {
        return found;
    }
    let made = build();
    // Another test may build the same at this moment: each has a file of its own until it is whole.
    let kept = fs::create_dir_all(&cache)
        .and_then(|()| tempfile::NamedTempFile::new_in(&cache))
        .and_then(|temporary| {
            fs::write(temporary.path(), &made)?;
            temporary.persist(&file).map_err(|error| error.error)
        });
    kept.unwrap_or_else(|error| panic!("the guest cannot be kept as {}: {error}", file.display()));
    made
}

/// The digest of the parts, of how they are compiled, and by what.
fn key_of(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    let flags = FLAGS.iter().map(|flag| flag.as_bytes());
    let parts = parts.iter().copied();
    for part in parts.chain(flags).chain([compiler().as_bytes()]) {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    let digest = digest.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the compiler says of itself.
fn compiler() -> &'static str {
    static SAID: OnceLock<String> = OnceLock::new();
    SAID.get_or_init(|| {
        let said = Command::new("clang").arg("--version").output();
        let said = said.unwrap_or_else(|error| panic!("{}", lacks_compiler(error)));
        String::from_utf8_lossy(&said.stdout).into_owned()
    })
}

fn lacks_compiler(error: impl Display) -> String {
    format!(
        "clang: {error}; Debian: apt install clang lld wasi-libc libclang-rt-dev-wasm32, or `cargo xtask test` brings it"
    )
}

/// C bindings of a world, whose directory is given from that of the tests: names of files and their content.
fn bindings(directory: &str, world: &str) -> Vec<(String, Vec<u8>)> {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut resolve = Resolve::default();
    let world = resolve
        .push_path(&wit)
        .and_then(|(package, _)| resolve.select_world(&[package], Some(world)))
        .unwrap_or_else(|error| panic!("{}: {error:#}", wit.display()));
    let mut files = Default::default();
    Opts::default()
        .build()
        .generate(&mut resolve, world, &mut files)
        .unwrap_or_else(|error| panic!("{} has no C bindings: {error:#}", wit.display()));
    let files = files.iter();
    let mut files: Vec<_> = files
        .map(|(name, content)| (name.to_owned(), content.to_vec()))
        .collect();
    files.sort();
    files
}

fn compile(files: &[&Path], includes: &[&Path], more: &[&str]) -> Vec<u8> {
    let place = directory_for_work();
    let to = place.path().join("guest.wasm");
    let mut command = Command::new("clang");
    command.args(FLAGS).args(more).arg("-o").arg(&to);
    for include in includes {
        // Not as our own: warnings in generated headers are nobody's here.
        command.arg("-isystem").arg(include);
    }
    let compiled = command.args(files).output();
    let compiled = compiled.unwrap_or_else(|error| panic!("{}", lacks_compiler(error)));
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{files:?}: {said}");
    fs::read(to).expect("it was made")
}

fn directory_for_work() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests")
}

fn path_of(name: &str) -> PathBuf {
    guests().join(format!("{name}.c"))
}

fn read(file: &str) -> Vec<u8> {
    let path = guests().join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
