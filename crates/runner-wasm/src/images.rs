//! Images that are ready to be instantiated.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runtara_domain::{ImageContent, ImageDigest};
use runtara_runner::{ImageFiles, PrepareError};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi::p2::bindings::CommandPre;

use crate::cache::{Cache, KeepError};
use crate::content;
use crate::engine;
use crate::guest::Guest;
use crate::network::HANDLER;

/// A compiled image whose imports are found.
pub(crate) struct Image {
    pub(crate) command: CommandPre<Guest>,
    /// How many places in the pool a guest of it takes.
    pub(crate) places: u32,
    /// Whether it can be told anything: without durable calls it would not notice.
    pub(crate) listens: bool,
    /// Whether it speaks HTTP.
    pub(crate) requests: bool,
}

/// All images of a server.
pub(crate) struct Images {
    engine: Engine,
    linker: Linker<Guest>,
    cache: Cache,
    /// Places in the pool.
    places: u32,
    ready: Mutex<HashMap<ImageDigest, Arc<Image>>>,
}

impl Images {
    pub(crate) fn new(engine: Engine, linker: Linker<Guest>, cache: Cache, places: u32) -> Self {
        Self {
            engine,
            linker,
            cache,
            places,
            ready: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ImageDigest, Arc<Image>>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is ready.
    pub(crate) fn ready(&self, digest: ImageDigest) -> Option<Arc<Image>> {
        self.lock().get(&digest).map(Arc::clone)
    }

    /// Makes one ready that was compiled before. Blocking.
    pub(crate) fn known(&self, content: ImageContent) -> Option<Result<(), PrepareError>> {
        if self.ready(content.digest).is_some() {
            return Some(Ok(()));
        }
        let component = self.cache.load(&self.engine, content.digest)?;
        Some(self.link(content, &component))
    }

    /// Compiles one, and makes it ready. Blocking, and long.
    ///
    /// # Errors
    /// [`PrepareError::Unfit`] if it can never run here, [`PrepareError::NotAllowed`] if it could with other settings,
    /// [`PrepareError::Host`] if this machine stood in the way.
    pub(crate) fn prepare(&self, image: &ImageFiles) -> Result<(), PrepareError> {
        if let Some(known) = self.known(image.content) {
            return known;
        }
        let content = image.content;
        let host =
            |context: &'static str| move |source| PrepareError::host(content, context, source);
        let unfit = |reason| PrepareError::Unfit { content, reason };
        let not_allowed = |reason| PrepareError::NotAllowed { content, reason };
        let bytes = std::fs::read(&image.path).map_err(host("its content could not be read"))?;
        let component = content::component(&bytes).map_err(unfit)?;
        let code = self.engine.precompile_component(&component);
        let code = code.map_err(|error| unfit(format!("it cannot be compiled: {error:#}")))?;
        let component = self.cache.keep(&self.engine, content.digest, &code);
        let component = component.map_err(|error| match error {
            KeepError::Io(error) => host("what was compiled could not be kept")(error),
            KeepError::NotAllowed(error) => {
                not_allowed(format!("it needs more than a guest is given here: {error}"))
            }
        })?;
        self.link(content, &component)
    }

    fn link(&self, content: ImageContent, component: &Component) -> Result<(), PrepareError> {
        let unfit = |reason| PrepareError::Unfit { content, reason };
        let linked = self.linker.instantiate_pre(component).map_err(|error| {
            unfit(format!(
                "it imports what is not offered: {error:#}; offered are WASI 0.2 without sockets' use, 'wasi:http' for outgoing requests, and 'runtara:durable'"
            ))
        })?;
        let command = CommandPre::new(linked).map_err(|error| {
            unfit(format!(
                "it is no command, which exports 'wasi:cli/run': {error:#}"
            ))
        })?;
        let kind = component.component_type();
        let imports = |start| {
            let mut imports = kind.imports(&self.engine);
            imports.any(|(name, _)| name.starts_with(start))
        };
        let requests = imports(HANDLER);
        let places = engine::places(component);
        if places > self.places {
            let reason = format!(
                "its parts have memories and tables for {places} guests, and RUNTARA_WASM_MAX_INSTANCES is {}",
                self.places
            );
            return Err(PrepareError::NotAllowed { content, reason });
        }
        let image = Arc::new(Image {
            command,
            places,
            listens: requests || imports("runtara:durable/"),
            requests,
        });
        self.lock().insert(content.digest, image);
        Ok(())
    }

    /// Forgets one. Runs of it go on. Blocking.
    ///
    /// # Errors
    /// What removing its code reported.
    pub(crate) fn forget(&self, digest: ImageDigest) -> io::Result<()> {
        self.lock().remove(&digest);
        self.cache.forget(digest)
    }
}
