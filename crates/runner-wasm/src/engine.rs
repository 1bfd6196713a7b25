//! The engine: how code is compiled, how memory is set aside, and the clock by which guests are interrupted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::component::Component;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails,
};

use crate::WasmConfig;

/// How long a guest computes before others have their turn.
pub(crate) const SLICE: Duration = Duration::from_millis(10);
/// Parts of a component: its own modules, and the adapters between them. They cost nothing before they are there.
const CORE_INSTANCES: u32 = 32;
/// Tables of a component, and how many of them a place in the pool has.
const TABLES: u32 = 16;
const TABLES_OF_A_PLACE: u32 = 4;
/// Memories of a component: each of its modules may have one. A place in the pool has one.
const MEMORIES: u32 = 4;
/// Elements of a table; every function that is called by a pointer takes one.
const TABLE_ELEMENTS: usize = 64 * 1024;
/// What the engine itself may note of an instance.
const INSTANCE_BYTES: usize = 1024 * 1024;
/// Memory that stays with a slot when its guest is gone, so that the next one need not fault it in again.
const KEPT_BYTES: usize = 64 * 1024;

/// Makes the engine of these settings.
///
/// # Errors
/// The system gives no such address space, as text.
pub(crate) fn engine(config: &WasmConfig) -> Result<Engine, String> {
    let made = Engine::new(&settings(config));
    made.map_err(|error| {
        let bytes = u128::from(config.max_instances) * u128::from(config.max_memory_bytes);
        format!(
            "address space for {} guests of up to {} bytes of memory ({bytes} bytes in all) cannot be had: {error:#}; lower \
             RUNTARA_WASM_MAX_INSTANCES or RUNTARA_WASM_MAX_MEMORY_BYTES, or raise the limit on address space (ulimit -v) or \
             the system's vm.max_map_count",
            config.max_instances, config.max_memory_bytes
        )
    })
}

/// Says how guests are run with these settings, and sets nothing aside.
///
/// # Errors
/// Why they cannot be run, and how many could be.
pub fn look(config: &WasmConfig) -> Result<String, String> {
    let Err(reason) = engine(config) else {
        return Ok(ready(config));
    };
    let counts = std::iter::successors(Some(config.max_instances / 2), |count| Some(count / 2));
    let mut fewer = counts
        .take_while(|count| *count > 0)
        .map(|max_instances| WasmConfig {
            max_instances,
            ..config.clone()
        });
    let possible = fewer.find(|config| engine(config).is_ok());
    Err(match possible {
        Some(config) => format!(
            "{reason}; RUNTARA_WASM_MAX_INSTANCES={} can be had",
            config.max_instances
        ),
        None => reason,
    })
}

/// What is said of guests that can be run.
pub(crate) fn ready(config: &WasmConfig) -> String {
    format!(
        "wasmtime, {} guests at once, each with up to {} bytes of memory",
        config.max_instances, config.max_memory_bytes
    )
}

/// How many places of the pool a guest of this component takes: one, unless it is made of several with a memory each.
pub(crate) fn places(component: &Component) -> u32 {
    // What it would import of modules nobody offers, so that all it needs is known.
    let needed = component.resources_required();
    let needed = needed.map_or(1, |needed| {
        let tables = needed.num_tables.div_ceil(TABLES_OF_A_PLACE);
        needed.num_memories.max(tables)
    });
    needed.max(1)
}

fn settings(config: &WasmConfig) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    let guests = config.max_instances;
    pool.total_component_instances(guests)
        .total_core_instances(guests.saturating_mul(CORE_INSTANCES))
        .total_memories(guests)
        .total_tables(guests.saturating_mul(TABLES_OF_A_PLACE))
        .total_stacks(guests)
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .max_component_instance_size(INSTANCE_BYTES)
        .max_core_instance_size(INSTANCE_BYTES)
        .max_memory_size(usize::try_from(config.max_memory_bytes).unwrap_or(usize::MAX))
        .table_elements(TABLE_ELEMENTS)
        .linear_memory_keep_resident(KEPT_BYTES)
        .table_keep_resident(4096)
        .async_stack_keep_resident(16 * 1024);
    let mut settings = Config::new();
    settings
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        .wasm_component_model(true)
        .concurrency_support(false)
        .memory_reservation(config.max_memory_bytes)
        .max_wasm_stack(config.stack_bytes)
        // What the host does for a guest needs room beyond that of the guest.
        .async_stack_size(config.stack_bytes + 512 * 1024)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    settings
}

/// Advances the engine's epoch as long as guests compute, so that each gives way to others when its slice is over. It rests while none
/// does.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    waker: Thread,
}

struct Shared {
    computing: AtomicUsize,
    resting: AtomicBool,
    ended: AtomicBool,
}

impl Ticker {
    /// Starts it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            computing: AtomicUsize::new(0),
            resting: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let (ticked, engine) = (Arc::clone(&shared), engine.weak());
        let thread = std::thread::Builder::new()
            .name("runtara-epochs".to_owned())
            .spawn(move || {
                while let Some(engine) = engine.upgrade() {
                    if ticked.ended.load(Ordering::SeqCst) {
                        return;
                    }
                    ticked.pause();
                    engine.increment_epoch();
                }
            })?;
        Ok(Self {
            shared,
            waker: thread.thread().clone(),
            thread: Some(thread),
        })
    }

    /// Says that a guest computes, as long as the answer lives.
    pub(crate) fn computing(&self) -> Computing<'_> {
        self.shared.computing.fetch_add(1, Ordering::SeqCst);
        if self.shared.resting.load(Ordering::SeqCst) {
            self.waker.unpark();
        }
        Computing(self)
    }
}

impl Shared {
    /// Until the next tick is due.
    fn pause(&self) {
        if self.computing.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(SLICE);
            return;
        }
        self.resting.store(true, Ordering::SeqCst);
        // Looked at again: one may have begun meanwhile, and seen that nobody rests.
        while self.computing.load(Ordering::SeqCst) == 0 && !self.ended.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.resting.store(false, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.waker.unpark();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// A guest computes.
pub(crate) struct Computing<'a>(&'a Ticker);

impl Drop for Computing<'_> {
    fn drop(&mut self) {
        self.0.shared.computing.fetch_sub(1, Ordering::SeqCst);
    }
}
