//! What the runner adds to a guest: an empty command from its launch to its exit, beside wasmtime alone with the same guest.
//!
//! Prints one line of JSON for each round: microseconds of CPU for one guest where many follow each other, that of its instantiation and
//! its run (`ours_us`), that of wasmtime alone with its store (`alone_us`), and that of all the runner does for it (`whole_us`); and how
//! long one lasts by itself, from its launch to its exit (`lasted_us`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use runtara_domain::{
    Caller, CheckpointId, Checkpointed, ExitCause, ImageContent, ImageDigest, InstanceId,
    InstanceStatus, NewEvent, RaisedSignal, RunNumber, RunToken, SaveCheckpoint, SignalId,
    SignalWait, Sleep, TenantId, TokenHash, Waited, Word,
};
use runtara_runner::{
    AskedSettings, CallError, CallTracker, ImageFiles, Input, InstanceCalls, InstanceRoutes,
    LaunchSpec, PreparedImage, RouteBody, RunDirectories, RunKey, Runner,
};
use runtara_runner_wasm::{WasmConfig, WasmRunner};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use wasmtime_wasi::p2::bindings::sync::CommandPre;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// How long each side is measured in a round.
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
/// How many guests are launched at once, as a busy server does.
const AT_ONCE: usize = 16;
/// A command that does nothing.
const GUEST: &str = "(module (memory (export \"memory\") 1) (func (export \"_start\")))";

fn main() {
    let threads = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("there are threads");
    let place = tempfile::tempdir().expect("a directory can be made");
    let module = wat::parse_str(GUEST).expect("it is a module");
    let ours = threads.block_on(Ours::new(place.path(), &module));
    let alone = Alone::new(&module);
    for round in 0..=ROUNDS {
        let alone = alone.cpu_of_one();
        let [ours, whole, lasted] = threads.block_on(ours.cpu_of_one());
        // The first one warms up.
        if round > 0 {
            println!(
                "{{\"ours_us\":{ours:.2},\"alone_us\":{alone:.2},\"whole_us\":{whole:.2},\"lasted_us\":{lasted:.2}}}"
            );
        }
    }
}

/// What this process has computed, all its threads together.
fn computed() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask for its own usage");
    let time = used.user_time() + used.system_time();
    Duration::from_micros(time.num_microseconds().unsigned_abs())
}

fn each(time: Duration, count: u32) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(count)
}

/// The runner, as a server has it.
struct Ours {
    runner: WasmRunner,
    image: PreparedImage,
    count: std::cell::Cell<u32>,
    inside: std::cell::Cell<u64>,
}

impl Ours {
    async fn new(place: &std::path::Path, module: &[u8]) -> Self {
        let directories = RunDirectories::open(place).expect("the directory is ours");
        let runner = WasmRunner::new(
            WasmConfig::new(place),
            Arc::new(directories),
            Arc::new(Nobody),
            Arc::new(Nobody),
            CallTracker::new(),
        );
        let path = place.join("guest.wasm");
        std::fs::write(&path, module).expect("the directory is ours");
        let content = ImageContent {
            digest: ImageDigest::of(module),
            base: None,
        };
        let files = ImageFiles {
            content,
            path,
            base: None,
        };
        let image = runner.prepare(files).await.expect("it can be run");
        Self {
            runner,
            image,
            count: std::cell::Cell::new(0),
            inside: std::cell::Cell::new(0),
        }
    }

    /// CPU for one of many, that of the guest itself and all of it, and how long one lasts that is alone.
    async fn cpu_of_one(&self) -> [f64; 3] {
        let (began, mut count, before) = (Instant::now(), 0, computed());
        while began.elapsed() < ROUND {
            let runs = (0..AT_ONCE).map(|_| self.run());
            count += u32::try_from(futures_util::future::join_all(runs).await.len()).unwrap_or(0);
        }
        let whole = each(computed() - before, count);
        // Told in whole microseconds, of which a half is cut off on the average.
        let inside = each(Duration::from_micros(self.inside.take()), count) + 0.5;
        let mut lasted = Vec::new();
        for _ in 0..1_000 {
            lasted.push(self.run().await);
        }
        lasted.sort_unstable();
        let lasted = lasted[lasted.len() / 2].as_secs_f64() * 1e6;
        self.inside.take();
        [inside, whole, lasted]
    }

    async fn run(&self) -> Duration {
        self.count.set(self.count.get() + 1);
        let spec = LaunchSpec {
            key: RunKey {
                instance_id: InstanceId::new("order-7").expect("it is an id"),
                run_number: RunNumber(self.count.get()),
            },
            tenant_id: TenantId::new("acme").expect("it is an id"),
            image: self.image.clone(),
            settings: AskedSettings::default(),
            args: Vec::new(),
            env: BTreeMap::new(),
            passed_env: BTreeMap::new(),
            input: Input::Inline("{}".into()),
            checkpoint_id: None,
            token: RunToken::generate(),
            core_addr: "127.0.0.1:8001".to_owned(),
            timeout: Duration::from_secs(60),
            expires_in: None,
        };
        let began = Instant::now();
        let key = spec.key.clone();
        let run = self.runner.launch(spec).await.expect("it is launched");
        let exit = run.wait().await.expect("it ends");
        let took = began.elapsed();
        let sum = self.inside.get() + exit.usage.cpu_usec;
        self.inside.set(sum);
        assert_eq!(exit.cause, ExitCause::Code(0), "{exit:?}");
        self.runner
            .clean(&key, false)
            .await
            .expect("it left nothing");
        took
    }
}

/// wasmtime and its WASI, with a pool, and nobody else.
struct Alone {
    engine: Engine,
    command: CommandPre<Host>,
}

struct Host {
    wasi: WasiCtx,
    resources: ResourceTable,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.resources,
        }
    }
}

impl Alone {
    fn new(module: &[u8]) -> Self {
        let mut config = Config::new();
        let mut pool = PoolingAllocationConfig::new();
        pool.linear_memory_keep_resident(64 * 1024)
            .table_keep_resident(4096)
            .total_component_instances(100)
            .total_core_instances(800)
            .total_memories(100)
            .total_tables(400);
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .concurrency_support(false);
        let engine = Engine::new(&config).expect("there is address space");
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).expect("it is offered once");
        let component = runtara_runner_wasm::component(module).expect("it is a command");
        let component = Component::new(&engine, &component).expect("it is valid");
        let linked = linker.instantiate_pre(&component).expect("it imports WASI");
        let command = CommandPre::new(linked).expect("it is a command");
        Self { engine, command }
    }

    fn cpu_of_one(&self) -> f64 {
        let (began, mut count, before) = (Instant::now(), 0, computed());
        while began.elapsed() < ROUND {
            self.run();
            count += 1;
        }
        each(computed() - before, count)
    }

    fn run(&self) {
        let host = Host {
            wasi: WasiCtx::builder().build(),
            resources: ResourceTable::new(),
        };
        let mut store = Store::new(&self.engine, host);
        let command = self.command.instantiate(&mut store).expect("there is room");
        let ended = command.wasi_cli_run().call_run(&mut store);
        assert_eq!(ended.expect("it does not trap"), Ok(()));
        drop(store);
    }
}

/// For guests that say nothing.
struct Nobody;

#[async_trait]
impl InstanceRoutes for Nobody {
    async fn answer(&self, _run: TokenHash, _request: Request<RouteBody>) -> Response<RouteBody> {
        let nothing = Empty::new().map_err(|never| match never {});
        Response::new(nothing.boxed_unsync())
    }
}

#[async_trait]
impl InstanceCalls for Nobody {
    async fn register(
        &self,
        _caller: &Caller,
        _tenant_id: TenantId,
        _checkpoint_id: Option<CheckpointId>,
    ) -> Result<(), CallError> {
        Err(CallError::Internal)
    }

    async fn tenant(&self, _caller: &Caller) -> Result<TenantId, CallError> {
        Err(CallError::Internal)
    }

    async fn input(&self, _caller: &Caller) -> Result<Option<Bytes>, CallError> {
        Err(CallError::Internal)
    }

    async fn checkpoint(
        &self,
        _caller: &Caller,
        _request: SaveCheckpoint,
    ) -> Result<Checkpointed, CallError> {
        Err(CallError::Internal)
    }

    async fn poll_signal(&self, _caller: &Caller) -> Result<Option<RaisedSignal>, CallError> {
        Err(CallError::Internal)
    }

    async fn take_signal(
        &self,
        _caller: &Caller,
        _signal_id: &SignalId,
    ) -> Result<Option<Option<Bytes>>, CallError> {
        Err(CallError::Internal)
    }

    async fn wait_signal(
        &self,
        _caller: &Caller,
        _request: SignalWait,
    ) -> Result<Waited, CallError> {
        Err(CallError::Internal)
    }

    async fn sleep(&self, _caller: &Caller, _request: Sleep) -> Result<(), CallError> {
        Err(CallError::Internal)
    }

    async fn record(
        &self,
        _caller: &Caller,
        _event: NewEvent,
        _request_id: Option<String>,
    ) -> Result<(), CallError> {
        Err(CallError::Internal)
    }

    async fn heartbeat(&self, _caller: &Caller) -> Result<(), CallError> {
        Err(CallError::Internal)
    }

    async fn record_retry(
        &self,
        _caller: &Caller,
        _checkpoint_id: CheckpointId,
        _attempt: u32,
        _error: Option<String>,
    ) -> Result<(), CallError> {
        Err(CallError::Internal)
    }

    async fn say(&self, _caller: &Caller, _word: Word) -> Result<(), CallError> {
        Err(CallError::Internal)
    }

    async fn status(
        &self,
        _caller: &Caller,
        _of: &InstanceId,
    ) -> Result<Option<InstanceStatus>, CallError> {
        Err(CallError::Internal)
    }
}
