//! Builds one of the guests of `tests/guests` into a file, for whoever is no test: `build_guest saves_steps.c guest.wasm`.

use std::process::ExitCode;

use runtara_tests::guest;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [source, to] = arguments.as_slice() else {
        eprintln!("usage: build_guest <file of tests/guests, .c or .wat> <file to write>");
        return ExitCode::from(2);
    };
    let built = match source.rsplit_once('.') {
        Some((name, "c")) => guest::component(name),
        Some((name, "wat")) => guest::text(name),
        _ => {
            eprintln!("'{source}' is neither C (.c) nor WebAssembly text (.wat)");
            return ExitCode::from(2);
        }
    };
    match std::fs::write(to, built) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{to}: {error}");
            ExitCode::FAILURE
        }
    }
}
