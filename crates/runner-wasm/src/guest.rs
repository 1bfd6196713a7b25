//! The state of one guest: what it sees, what it may take, and for whom it speaks.

use std::sync::Arc;

use runtara_domain::{Caller, CheckpointId, Fence, TenantId, TokenHash};
use runtara_runner::shim::LogStream;
use runtara_runner::{
    CallTracker, InstanceCalls, InstanceRoutes, LaunchSpec, RunKey, forbidden_env_name,
};
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, format_err};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpView};

use crate::drain::{Door, Gate};
use crate::network::{CORE_ADDR, Network, Outside, Reach, Speaker};
use crate::output::{Outputs, Sink};
use crate::scratch::{self, Scratch};

/// The name that a program finds as its own.
const PROGRAM: &str = "program";
/// Elements of a table of a guest.
const TABLE_ELEMENTS: usize = 64 * 1024;
/// Most bytes of randomness of one call.
const RANDOM_BYTES: u64 = 1024 * 1024;
/// Most things of the host that a guest holds at once: streams, requests, headers.
const RESOURCES: usize = 2048;
/// How long a published client of the protocol waits for an answer, unless the start says otherwise: as other programs are told.
const REQUEST_TIMEOUT_MS: &str = "600000";

/// Whom durable calls are carried to.
#[derive(Clone)]
pub(crate) struct Core {
    pub(crate) calls: Arc<dyn InstanceCalls>,
    /// The same calls, of guests that speak HTTP.
    pub(crate) routes: Arc<dyn InstanceRoutes>,
    pub(crate) tracker: CallTracker,
}

/// What is given to a guest, beside what its start says.
pub(crate) struct Given {
    pub(crate) memory_bytes: u64,
    pub(crate) reach: Reach,
    /// The directory that it may write to, if it asks for one.
    pub(crate) scratch: Option<Scratch>,
    /// Whether it speaks HTTP, and is to be told where.
    pub(crate) requests: bool,
}

/// The data of a guest's store.
pub(crate) struct Guest {
    wasi: WasiCtx,
    network: Network,
    resources: ResourceTable,
    pub(crate) limits: Limits,
    pub(crate) outputs: Arc<Outputs>,
    pub(crate) core: Core,
    pub(crate) door: Arc<Door>,
    pub(crate) key: RunKey,
    pub(crate) tenant_id: TenantId,
    pub(crate) caller: Arc<Caller>,
    pub(crate) token: TokenHash,
    pub(crate) checkpoint_id: Option<CheckpointId>,
    /// Whether the run was announced as one that speaks.
    pub(crate) registered: bool,
}

impl Guest {
    pub(crate) fn new(
        spec: &LaunchSpec,
        given: Given,
        outputs: Arc<Outputs>,
        core: Core,
        gate: Arc<Gate>,
        outside: Arc<Outside>,
    ) -> wasmtime::Result<Self> {
        let door = Arc::new(Door::new(gate));
        let sink = |stream| Sink {
            outputs: Arc::clone(&outputs),
            stream,
        };
        let token = spec.token.hash();
        let mut wasi = WasiCtxBuilder::new();
        wasi.arg(PROGRAM)
            .args(&spec.args)
            .stdout(sink(LogStream::Stdout))
            .stderr(sink(LogStream::Stderr))
            .max_random_size(RANDOM_BYTES)
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .initial_cwd("/");
        for (name, value) in env(spec, given.requests) {
            wasi.env(name, value);
        }
        if let Some(scratch) = &given.scratch {
            wasi.preopened_dir(scratch.path(), scratch::PLACE, FsPerms::ReadWrite)?;
        }
        let mut resources = ResourceTable::new();
        resources.set_max_capacity(RESOURCES);
        Ok(Self {
            wasi: wasi.build(),
            network: Network::new(Speaker {
                routes: Arc::clone(&core.routes),
                run: token,
                door: Arc::clone(&door),
                reach: given.reach,
                outside,
            }),
            resources,
            limits: Limits::new(given.memory_bytes),
            outputs,
            core,
            door,
            key: spec.key.clone(),
            tenant_id: spec.tenant_id.clone(),
            caller: Arc::new(Caller {
                instance_id: spec.key.instance_id.clone(),
                fence: Fence::Run(token),
            }),
            token,
            checkpoint_id: spec.checkpoint_id.clone(),
            registered: false,
        })
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.resources,
        }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.network.context,
            table: &mut self.resources,
            hooks: &mut self.network.hooks,
        }
    }
}

/// The variables of a guest: those of the operator and of its start, who it is, and if it speaks HTTP, where. It has no use for a secret by
/// which to speak.
fn env(spec: &LaunchSpec, requests: bool) -> Vec<(&str, String)> {
    let given = spec.passed_env.iter().chain(&spec.env);
    let given = given.filter(|(name, value)| !forbidden_env_name(name) && !value.contains('\0'));
    let mut env: std::collections::BTreeMap<&str, String> = given
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    if requests {
        env.entry("RUNTARA_REQUEST_TIMEOUT_MS")
            .or_insert_with(|| REQUEST_TIMEOUT_MS.to_owned());
        env.insert("RUNTARA_HTTP_URL", format!("http://{CORE_ADDR}"));
        env.insert("RUNTARA_SERVER_ADDR", CORE_ADDR.to_owned());
        if let Some(checkpoint_id) = &spec.checkpoint_id {
            env.insert("RUNTARA_CHECKPOINT_ID", checkpoint_id.to_string());
        }
    }
    env.insert("RUNTARA_INSTANCE_ID", spec.key.instance_id.to_string());
    env.insert("RUNTARA_TENANT_ID", spec.tenant_id.to_string());
    env.insert("RUNTARA_RUN_NUMBER", spec.key.run_number.to_string());
    env.into_iter().collect()
}

/// What a guest may take, and what it took.
#[derive(Debug)]
pub(crate) struct Limits {
    memory_bytes: usize,
    taken_bytes: usize,
    pub(crate) peak_bytes: usize,
}

/// A guest wanted more memory than it may have.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("its memory would have more than the {limit} bytes that it is limited to")]
pub(crate) struct OutOfMemory {
    limit: usize,
}

impl Limits {
    fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes: usize::try_from(memory_bytes).unwrap_or(usize::MAX),
            taken_bytes: 0,
            peak_bytes: 0,
        }
    }
}

impl ResourceLimiter for Limits {
    /// Of all memories together. A program that is refused memory seldom does anything sensible, so it is ended, as a process is.
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // What its own module forbids is its own affair.
        if maximum.is_some_and(|maximum| desired > maximum) && desired <= self.memory_bytes {
            return Ok(false);
        }
        // As much as cannot be counted can be asked for.
        let others = self.taken_bytes.saturating_sub(current);
        let taken = others.saturating_add(desired);
        if taken > self.memory_bytes {
            return Err(format_err!(OutOfMemory {
                limit: self.memory_bytes,
            }));
        }
        self.taken_bytes = taken;
        self.peak_bytes = self.peak_bytes.max(taken);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }
}
