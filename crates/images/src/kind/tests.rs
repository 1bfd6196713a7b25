use runtara_domain::RunnerKind::{Native, Oci, Wasm};

use super::*;
use crate::{Elf, ElfClass};

fn elf() -> Detected {
    elf_for(Machine::X86_64)
}

fn dynamic() -> Detected {
    Detected::Elf(Elf {
        machine: Machine::X86_64,
        class: ElfClass::Elf64,
        interpreter: Some("/lib64/ld-linux-x86-64.so.2".to_owned()),
    })
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
        unavailable: BTreeMap::from([(Wasm, "install it".to_owned())]),
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

fn check(
    detected: &Detected,
    declared: Option<RunnerKind>,
    rules: &KindRules,
) -> Result<ChosenKind, KindError> {
    check_kind(
        &Candidate {
            detected,
            declared,
            with_base: false,
        },
        rules,
    )
}

fn check_on_base(
    detected: &Detected,
    declared: Option<RunnerKind>,
    rules: &KindRules,
) -> Result<ChosenKind, KindError> {
    check_kind(
        &Candidate {
            detected,
            declared,
            with_base: true,
        },
        rules,
    )
}

fn refusal(detected: &Detected, declared: Option<RunnerKind>, rules: &KindRules) -> String {
    check(detected, declared, rules).unwrap_err().to_string()
}

#[test]
fn a_declared_kind_that_fits_and_runs_here_is_taken() {
    let all = rules(&[Oci, Native, Wasm], true);
    for (detected, kind) in [
        (elf(), Native),
        (elf(), Oci),
        (script(), Native),
        (dynamic(), Native),
        (Detected::WasmModule, Wasm),
        (Detected::WasmComponent, Wasm),
        (Detected::OciLayout, Oci),
        (Detected::DockerArchive, Oci),
        (Detected::Compressed(Compression::Zstd), Oci),
    ] {
        assert_eq!(
            check(&detected, Some(kind), &all),
            as_it_is(kind),
            "{detected}"
        );
    }
}

#[test]
fn without_a_declaration_the_content_decides_and_isolation_comes_first() {
    assert_eq!(
        check(&elf(), None, &rules(&[Native], false)),
        as_it_is(Native)
    );
    assert_eq!(
        check(&elf(), None, &rules(&[Native, Oci], true)),
        as_it_is(Oci)
    );
    assert_eq!(
        check(&Detected::WasmModule, None, &rules(&[Native, Wasm], false)),
        as_it_is(Wasm)
    );
}

#[test]
fn a_program_declared_for_a_container_is_native_only_if_the_operator_said_so() {
    let allowed = check(&script(), Some(Oci), &rules(&[Native], true));
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
        let mut rules = rules(&[Native], true);
        let reason = "runc is missing; install it".to_owned();
        rules.unavailable.insert(Oci, reason);
        let refusal = refusal(&detected, Some(Oci), &rules);
        assert!(
            refusal.ends_with(
                "to be run as 'oci', and this server runs only 'native': runc is missing; install it"
            ),
            "{refusal}"
        );
    }
}

#[test]
fn what_is_missing_is_told_with_the_way_around_it() {
    let mut rules = rules(&[Native], false);
    rules
        .unavailable
        .insert(Oci, "runc is missing; install it".to_owned());
    assert_eq!(
        refusal(&elf(), Some(Oci), &rules),
        "the content is a statically linked ELF program for x86_64, to be run as 'oci', and this server runs only 'native': \
         runc is missing; install it; declare 'native' to run it as a process of the host"
    );
    rules.runnable.clear();
    rules
        .unavailable
        .insert(Native, "the server is root".to_owned());
    assert_eq!(
        refusal(&elf(), Some(Native), &rules),
        "the content is a statically linked ELF program for x86_64, to be run as 'native', and this server runs no programs: \
         the server is root"
    );
}

#[test]
fn a_program_that_lacks_its_loader_in_a_container_is_native_or_refused() {
    let both = rules(&[Oci, Native], true);
    assert_eq!(
        refusal(&dynamic(), Some(Oci), &both),
        "the content is an ELF program for x86_64, loaded by /lib64/ld-linux-x86-64.so.2, to be run as 'oci', and a container of it alone holds no \
         /lib64/ld-linux-x86-64.so.2; link the program statically, or name a base image that holds it, or declare 'native' to \
         run it as a process of the host"
    );
    assert_eq!(
        refusal(&script(), Some(Oci), &both),
        "the content is a script for /bin/sh, to be run as 'oci', and a container of it alone holds no /bin/sh; name a base image that holds it, or \
         declare 'native' to run it as a process of the host"
    );
    for detected in [dynamic(), script()] {
        for declared in [None, Some(Native)] {
            assert_eq!(check(&detected, declared, &both), as_it_is(Native));
        }
        let refused = refusal(&detected, None, &rules(&[Oci], true));
        assert!(
            refused.ends_with("name a base image that holds it"),
            "{refused}"
        );
        let refused = refusal(&detected, Some(Native), &rules(&[Oci], true));
        assert!(
            refused.contains("to be run as 'native', and this server runs only 'oci'"),
            "{refused}"
        );
    }
}

#[test]
fn on_a_base_programs_and_scripts_run_in_containers_and_nothing_else_does() {
    let all = rules(&[Oci, Native, Wasm], true);
    for detected in [elf(), dynamic(), script()] {
        for declared in [None, Some(Oci)] {
            assert_eq!(check_on_base(&detected, declared, &all), as_it_is(Oci));
        }
        for declared in [Native, Wasm] {
            let error = check_on_base(&detected, Some(declared), &all);
            assert_eq!(error, Err(KindError::BaseOfContainers { declared }));
        }
    }
    for detected in [
        Detected::OciLayout,
        Detected::DockerArchive,
        Detected::Compressed(Compression::Gzip),
        Detected::WasmModule,
    ] {
        let error = check_on_base(&detected, None, &all).unwrap_err();
        assert!(matches!(error, KindError::NotOnBase { .. }), "{error}");
    }
}

#[test]
fn a_base_is_never_dropped_where_there_are_no_containers() {
    let native = rules(&[Native], true);
    for declared in [None, Some(Oci)] {
        let error = check_on_base(&elf(), declared, &native).unwrap_err();
        assert!(
            matches!(
                error,
                KindError::NotHere {
                    kind: Oci,
                    hint: "",
                    ..
                }
            ),
            "{error}"
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
        check(&elf_for(Machine::I386), None, &native),
        as_it_is(Native)
    );
}
