//! The runner.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use runtara_domain::{ImageDigest, RunnerKind};
use runtara_runner::{
    Adoption, AskedSettings, CallTracker, ImageFiles, InstanceCalls, InstanceRoutes, LaunchError,
    LaunchObstacle, LaunchSpec, PrepareError, PreparedImage, Readiness, Run, RunDirectories,
    RunKey, Runner, RunnerError, blocking,
};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker};

use crate::WasmConfig;
use crate::cache::Cache;
use crate::drain::Gate;
use crate::engine::{self, Ticker};
use crate::guest::{Core, Given, Guest};
use crate::host::Imports;
use crate::images::Images;
use crate::network::Outside;
use crate::output::Outputs;
use crate::run::{Launched, Shared, WasmRun};
use crate::scratch::{self, Scratch};
use crate::settings;

/// Runs guests in this process, on threads of their own.
pub struct WasmRunner {
    config: WasmConfig,
    directories: Arc<RunDirectories>,
    core: Core,
    gate: Arc<Gate>,
    outside: Arc<Outside>,
    /// Why there are no guests, if this machine runs none.
    parts: Result<Parts, String>,
    compiling: Semaphore,
    /// Why guests cannot have directories of their own here, if they cannot.
    no_scratch: Option<String>,
    runs: Arc<Mutex<Runs>>,
}

struct Parts {
    engine: Engine,
    ticker: Arc<Ticker>,
    images: Arc<Images>,
    /// Places in the pool that are free.
    places: Arc<Semaphore>,
    /// Taken when the runner is dropped.
    threads: Option<Runtime>,
}

#[derive(Default)]
struct Runs {
    live: HashMap<RunKey, Arc<Shared>>,
    /// Of runs that have ended, and left no files.
    quiet: std::collections::HashSet<RunKey>,
}

impl WasmRunner {
    /// A runner that keeps outputs in these directories, which are those of its data directory, and carries durable calls to the core: those of its
    /// own interfaces as calls, those over HTTP to the routes.
    /// Sets address space aside for its guests. Blocking.
    ///
    /// It can be had on any machine: where no guests can be run, [`Runner::readiness`] says why.
    #[must_use]
    pub fn new(
        config: WasmConfig,
        directories: Arc<RunDirectories>,
        calls: Arc<dyn InstanceCalls>,
        routes: Arc<dyn InstanceRoutes>,
        tracker: CallTracker,
    ) -> Self {
        Self {
            parts: parts(&config),
            compiling: Semaphore::new(config.compiled_at_once.max(1)),
            no_scratch: scratch::obstacle(),
            outside: Arc::new(Outside::new(config.connections)),
            config,
            directories,
            core: Core {
                calls,
                routes,
                tracker,
            },
            gate: Arc::new(Gate::new()),
            runs: Arc::default(),
        }
    }

    fn parts(&self) -> io::Result<&Parts> {
        let parts = self.parts.as_ref();
        parts.map_err(|unfit| io::Error::other(unfit.clone()))
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        lock(&self.runs)
    }
}

fn lock(runs: &Mutex<Runs>) -> MutexGuard<'_, Runs> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parts(config: &WasmConfig) -> Result<Parts, String> {
    let engine = engine::engine(config)?;
    let ticker = Ticker::start(&engine).map_err(|error| error.to_string())?;
    let linker = linker(&engine).map_err(|error| format!("{error:#}"))?;
    let cache = Cache::open(&config.cache(), &engine).map_err(|error| {
        let place = config.cache();
        format!("'{}' cannot be used: {error}", place.display())
    })?;
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads.max(1))
        .thread_name("runtara-wasm")
        // Between slices of guests that compute, who else is due is looked at: as a rule it is after 61 of them, which is most of a second.
        .event_interval(1)
        .enable_all()
        .build()
        .map_err(|error| format!("there are no threads for guests: {error}"))?;
    Ok(Parts {
        images: Arc::new(Images::new(
            engine.clone(),
            linker,
            cache,
            config.max_instances,
        )),
        places: Arc::new(Semaphore::new(config.max_instances as usize)),
        engine,
        ticker: Arc::new(ticker),
        threads: Some(threads),
    })
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    Imports::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest: &mut Guest| guest)?;
    Ok(linker)
}

impl Drop for WasmRunner {
    fn drop(&mut self) {
        for shared in lock(&self.runs).live.values() {
            shared.drop_now();
        }
        if let Ok(parts) = &mut self.parts
            && let Some(threads) = parts.threads.take()
        {
            // Nobody waits for guests that compute.
            threads.shutdown_background();
        }
    }
}

#[async_trait]
impl Runner for WasmRunner {
    fn kind(&self) -> RunnerKind {
        RunnerKind::Wasm
    }

    async fn readiness(&self) -> Readiness {
        match &self.parts {
            Ok(_) => Readiness::Ready(engine::ready(&self.config)),
            Err(unfit) => Readiness::Unfit(unfit.clone()),
        }
    }

    async fn prepare(&self, image: ImageFiles) -> Result<PreparedImage, PrepareError> {
        let content = image.content;
        let unfit = |error| PrepareError::host(content, "no guest can be run here", error);
        let images = Arc::clone(&self.parts().map_err(unfit)?.images);
        let known = {
            let images = Arc::clone(&images);
            blocking(move || Ok(images.known(content)))
        };
        match known.await.map_err(unfit)? {
            Some(known) => known?,
            None => {
                let turn = self.compiling.acquire().await;
                let _turn = turn.map_err(|error| unfit(io::Error::other(error)))?;
                let made = blocking(move || Ok(images.prepare(&image))).await;
                made.map_err(unfit)??;
            }
        }
        Ok(PreparedImage {
            content,
            about: None,
            path: self.config.cache(),
        })
    }

    fn check(&self, settings: &AskedSettings) -> Result<(), String> {
        let settled = settings::settle(&self.config, settings)?;
        match (&self.no_scratch, settled.writable_bytes) {
            (Some(obstacle), Some(_)) => Err(format!("it asks for writable_bytes, and {obstacle}")),
            _ => Ok(()),
        }
    }

    async fn forget(&self, digest: ImageDigest) -> Result<(), io::Error> {
        let Ok(parts) = &self.parts else {
            return Ok(());
        };
        let images = Arc::clone(&parts.images);
        blocking(move || images.forget(digest)).await
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Run>, LaunchError> {
        let refused = |obstacle, reason: String| LaunchError {
            key: spec.key.clone(),
            obstacle,
            reason,
        };
        let host = |reason: &str| refused(LaunchObstacle::Host, reason.to_owned());
        let parts = self.parts.as_ref().map_err(|unfit| host(unfit))?;
        let threads = parts
            .threads
            .as_ref()
            .ok_or_else(|| host("it is about to end"))?;
        let settled = settings::settle(&self.config, &spec.settings)
            .map_err(|reason| refused(LaunchObstacle::Host, reason))?;
        let image = parts
            .images
            .ready(spec.image.content.digest)
            .ok_or_else(|| {
                let reason = "what was compiled of it is gone".to_owned();
                refused(LaunchObstacle::NotPrepared, reason)
            })?;
        if self.gate.is_closed() {
            return Err(host("the server goes away"));
        }
        let outputs = Arc::new(Outputs::new(
            Arc::clone(&self.directories),
            spec.key.clone(),
            self.config.log_cap_bytes,
        ));
        let (core, gate) = (self.core.clone(), Arc::clone(&self.gate));
        let outside = Arc::clone(&self.outside);
        let run = Arc::new(WasmRun::new(spec.key.clone(), image.listens));
        let memory_bytes = settled.memory_bytes;
        let scratch = settled.writable_bytes.map(Scratch::make).transpose();
        let scratch = scratch.map_err(|error| {
            host(&format!(
                "its directory in memory could not be made: {error}"
            ))
        })?;
        let given = Given {
            memory_bytes,
            reach: settled.reach,
            scratch,
            requests: image.requests,
        };
        let guest = Guest::new(&spec, given, Arc::clone(&outputs), core, gate, outside)
            .map_err(|error| host(&format!("{error:#}")))?;
        let launched = Launched {
            engine: parts.engine.clone(),
            ticker: Arc::clone(&parts.ticker),
            places: Arc::clone(&parts.places),
            guest,
            image,
            outputs,
            memory_bytes,
            timeout: spec.timeout,
            expiry: spec
                .expires_in
                .and_then(|left| std::time::Instant::now().checked_add(left)),
        };
        let (shared, runs, key) = (Arc::clone(&run.shared), Arc::clone(&self.runs), spec.key);
        lock(&runs).live.insert(key.clone(), Arc::clone(&shared));
        let (going, tells_end) = (self.gate.enter(), shared.tell_its_end());
        threads.spawn(async move {
            let _at_last = (going, tells_end);
            let directory = launched.run(&key, &shared).await;
            let mut runs = lock(&runs);
            runs.live.remove(&key);
            if directory.is_none() {
                runs.quiet.insert(key);
            }
        });
        Ok(run)
    }

    /// Whatever ran in a process before this one has ended with it.
    async fn adopt(&self, _key: &RunKey) -> Result<Adoption, RunnerError> {
        Ok(Adoption::Gone)
    }

    /// Parks each guest at its next durable call. Whoever stops waiting for that has the others dropped.
    async fn leave(&self) {
        self.gate.close().await;
    }

    async fn clean(&self, key: &RunKey, keep_logs: bool) -> Result<(), RunnerError> {
        if self.runs().quiet.remove(key) {
            return Ok(());
        }
        let (directories, run) = (Arc::clone(&self.directories), key.clone());
        let removed = blocking(move || directories.remove(&run, keep_logs)).await;
        removed.map_err(|source| RunnerError {
            key: key.clone(),
            context: "what it has left could not be removed".to_owned(),
            source,
        })
    }
}
