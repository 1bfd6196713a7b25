use runtara_domain::RunnerKind::{Native, Oci, Wasm};

use super::*;
use crate::{Elf, ElfClass};

fn elf() -> Detected {
    elf_for(Machine::X86_64)
}

fn elf_for(machine: Machine) -> Detected {
    Detected::Elf(Elf {
        machine,
        class: ElfClass::Elf64,
        interpreter: None,
    })
}

fn script() -> Detected {
    Detected::Script {
        interpreter: "/bin/sh".to_owned(),
    }
}

fn rules(runnable: &[RunnerKind], native_for_oci: bool) -> KindRules {
    KindRules {
        runnable: runnable.to_vec(),
        native_for_oci,
        machine: Some(Machine::X86_64),
    }
}

fn as_it_is(kind: RunnerKind) -> Result<ChosenKind, KindError> {
    Ok(ChosenKind {
        kind,
        native_for_oci: false,
    })
}

fn refusal(detected: &Detected, declared: Option<RunnerKind>, rules: &KindRules) -> String {
    check_kind(detected, declared, rules)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_declared_kind_that_fits_and_runs_here_is_taken() {
    let all = rules(&[Oci, Native, Wasm], true);
    for (detected, kind) in [
        (elf(), Native),
        (elf(), Oci),
        (script(), Native),
        (script(), Oci),
        (Detected::WasmModule, Wasm),
        (Detected::WasmComponent, Wasm),
        (Detected::OciLayout, Oci),
        (Detected::DockerArchive, Oci),
        (Detected::Compressed(Compression::Zstd), Oci),
    ] {
        assert_eq!(
            check_kind(&detected, Some(kind), &all),
            as_it_is(kind),
            "{detected}"
        );
    }
}

#[test]
fn without_a_declaration_the_content_decides_and_isolation_comes_first() {
    assert_eq!(
        check_kind(&elf(), None, &rules(&[Native], false)),
        as_it_is(Native)
    );
    assert_eq!(
        check_kind(&elf(), None, &rules(&[Native, Oci], true)),
        as_it_is(Oci)
    );
    assert_eq!(
        check_kind(&Detected::WasmModule, None, &rules(&[Native, Wasm], false)),
        as_it_is(Wasm)
    );
}

#[test]
fn a_program_declared_for_a_container_is_native_only_if_the_operator_said_so() {
    let allowed = check_kind(&script(), Some(Oci), &rules(&[Native], true));
    assert_eq!(
        allowed,
        Ok(ChosenKind {
            kind: Native,
            native_for_oci: true
        })
    );
    assert_eq!(
        refusal(&script(), Some(Oci), &rules(&[Native], false)),
        "the content is a script for /bin/sh, to be run as 'oci', and this server runs only 'native'; declare 'native' to \
         run it as a process of the host"
    );
}

#[test]
fn a_container_image_is_never_taken_for_native() {
    for detected in [Detected::OciLayout, Detected::Compressed(Compression::Gzip)] {
        let refusal = refusal(&detected, Some(Oci), &rules(&[Native], true));
        assert!(
            refusal.ends_with("container images need a build with the OCI runner"),
            "{refusal}"
        );
    }
}

#[test]
fn a_declared_kind_that_does_not_fit_is_refused_with_both_sides() {
    assert_eq!(
        refusal(
            &Detected::WasmModule,
            Some(Native),
            &rules(&[Native, Wasm], true)
        ),
        "runner type 'native' takes an ELF program or a `#!` script, and the content is a WebAssembly module; declare 'wasm'"
    );
    assert_eq!(
        refusal(&elf(), Some(Wasm), &rules(&[Native], true)),
        "runner type 'wasm' takes a WebAssembly module or component, and the content is a statically linked ELF program for \
         x86_64; declare 'oci' or 'native'"
    );
}

#[test]
fn what_nobody_can_run_is_refused_whatever_was_declared() {
    for declared in [None, Some(Native), Some(Oci), Some(Wasm)] {
        let refusal = refusal(
            &Detected::Empty,
            declared,
            &rules(&[Native, Oci, Wasm], true),
        );
        assert!(
            refusal.starts_with("the content is empty, which no runner can run; send an ELF"),
            "{refusal}"
        );
    }
}

#[test]
fn programs_for_other_machines_are_refused() {
    let native = rules(&[Native], false);
    assert_eq!(
        refusal(&elf_for(Machine::AARCH64), None, &native),
        "the content is a statically linked ELF program for aarch64, and this server is an x86_64 machine; build the program \
         for x86_64"
    );
    assert_eq!(
        check_kind(&elf_for(Machine::I386), None, &native),
        as_it_is(Native)
    );
}
