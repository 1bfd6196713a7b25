//! What an image is made of, before it is compiled.

use std::borrow::Cow;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wasmparser::{Encoding, Parser, Payload, TypeRef};
use wit_component::ComponentEncoder;

/// Where the toolchains put the interfaces that a module was made for (`component-type:<world>`).
const INTERFACES: &str = "component-type";
/// What runs first in a command of preview 1.
const START: &str = "_start";

/// The component of an image: its own bytes, or those of a module within the standard adapter.
///
/// # Errors
/// Why there is none, in words for whoever registers it.
pub fn component(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if Parser::is_component(bytes) {
        return Ok(Cow::Borrowed(bytes));
    }
    let found = look(bytes).map_err(|error| format!("it is no valid module: {error}"))?;
    if !found.starts {
        return Err(format!(
            "the module exports no function '{START}', so it is a library and no command; link it as a command (clang --target=wasm32-wasi \
             with a main, or the Rust target wasm32-wasip1 with a main)"
        ));
    }
    if let Some((module, name)) = found.unknown {
        return Err(format!(
            "it imports '{name}' of '{module}', which is not offered: a module may import '{WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME}' (WASI \
             preview 1); make a component for other interfaces"
        ));
    }
    let encoded = ComponentEncoder::default()
        .validate(true)
        .module(bytes)
        .and_then(|encoder| {
            encoder.adapter(
                WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
                WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
            )
        })
        .and_then(|mut encoder| encoder.encode());
    encoded
        .map(Cow::Owned)
        .map_err(|error| format!("the module cannot be made a component: {error:#}"))
}

#[derive(Default)]
struct Found {
    starts: bool,
    /// The first import that nobody offers.
    unknown: Option<(String, String)>,
}

fn look(bytes: &[u8]) -> wasmparser::Result<Found> {
    let mut found = Found::default();
    let mut has_interfaces = false;
    let mut imports = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version {
                encoding: Encoding::Component,
                ..
            } => return Ok(found),
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let is_offered = import.module == WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME
                        && matches!(import.ty, TypeRef::Func(_));
                    if !is_offered {
                        imports.push((import.module.to_owned(), import.name.to_owned()));
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    found.starts |= export?.name == START;
                }
            }
            Payload::CustomSection(section) => {
                has_interfaces |= section.name().starts_with(INTERFACES);
            }
            _ => {}
        }
    }
    // With its interfaces noted, the encoder knows what else it imports, and the component is looked at.
    if !has_interfaces {
        found.unknown = imports.into_iter().next();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn a_command_becomes_a_component() {
        let bytes = module("(module (memory (export \"memory\") 1) (func (export \"_start\")))");
        let component = component(&bytes).unwrap();
        assert!(Parser::is_component(&component));
    }

    #[test]
    fn a_component_stays_as_it_is() {
        let bytes = module("(component)");
        assert!(matches!(component(&bytes), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn a_library_is_refused() {
        let error = component(&module("(module)")).unwrap_err();
        assert!(error.contains("'_start'"), "{error}");
    }

    #[test]
    fn an_import_that_nobody_offers_is_named() {
        let bytes = module(
            "(module (import \"env\" \"launch_rockets\" (func)) (memory (export \"memory\") 1) (func (export \"_start\")))",
        );
        let error = component(&bytes).unwrap_err();
        assert!(error.contains("'launch_rockets' of 'env'"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_module_are_refused() {
        let error = component(b"\0asm\x01\0\0\0\xff\xff").unwrap_err();
        assert!(error.contains("no valid module"), "{error}");
    }
}
