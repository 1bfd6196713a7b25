//! An async client for everything the environment offers: images, instances, signals, checkpoints, events, logs.
//!
//! A [`Client`] is cheap to clone and keeps its connections. Each method is one call of the environment's HTTP API, except
//! [`Client::wait`], [`Client::find_image`], [`EventFollower`] and [`Pages`], which are built from several.
//!
//! ```no_run
//! # async fn example() -> Result<(), runtara_management_sdk::Error> {
//! use std::time::Duration;
//!
//! use runtara_management_sdk::{Client, ImageRegistration, StartRequest};
//!
//! let client = Client::builder("http://127.0.0.1:8002").tenant("acme").build()?;
//! let image = client
//!     .upload_image_file(&ImageRegistration::new("orders"), "target/release/orders", |_| {})
//!     .await?;
//! let started = client
//!     .start(&StartRequest::new(&image.image_id).instance_id("order-17").input(serde_json::json!({"order": 17})))
//!     .await?;
//! let ended = client.wait(&started.instance_id, Some(Duration::from_secs(600))).await?;
//! println!("{}: {:?}", ended.status, ended.output);
//! # Ok(()) }
//! ```
//!
//! # What is repeated, and what is not
//!
//! A call that only reads is repeated when the connection fails, a few times with a growing pause. So is a start that names its
//! instance or carries an idempotency key, because the server then knows it as the same start. Nothing else is: a call whose
//! answer was lost may have been carried out.
//!
//! # Limits
//!
//! Every call ends: after the request time-out, plus whatever the caller asked the server to wait. Two streams may be silent for
//! as long as the program is: [`LogStream`] and [`EventFollower`]; a peer that is gone is noticed by TCP keep-alive. Answers are read
//! up to [`ClientBuilder::max_response_bytes`], uploads are streamed and never held in memory.

mod agents;
mod checkpoints;
mod client;
mod config;
mod error;
mod events;
mod follow;
mod health;
mod images;
mod instances;
mod lifecycle;
mod logs;
mod machine;
mod metrics;
mod nodes;
mod options;
mod page;
mod payload;
mod query;
mod settings;
mod start;
mod steps;
mod transport;
mod upload;
mod wait;
mod words;

pub use agents::{
    Agent, Capability, CapabilityDetail, CapabilityField, CapabilityTest, CapabilityTestResult,
};
pub use checkpoints::{Checkpoint, CheckpointFilter, CheckpointSummary};
pub use client::Client;
pub use config::{ClientBuilder, DEFAULT_ADDRESS};
pub use error::{Error, NotFound};
pub use events::{Event, EventFilter};
pub use follow::EventFollower;
pub use health::{Health, Readiness};
pub use images::{Image, ImageFilter, ImageRegistration, RegisteredImage};
pub use instances::{Instance, InstanceFilter, InstanceSummary, TimeInStates};
pub use lifecycle::Stopped;
pub use logs::{LogQuery, LogStream};
pub use machine::MachineCheck;
pub use metrics::{MetricsBucket, MetricsQuery, TenantMetrics};
pub use nodes::Node;
pub use page::{Page, Pages};
pub use payload::Payload;
pub use settings::ResourceLimits;
pub use start::{StartRequest, Started};
pub use steps::{ScopeAncestor, Step, StepFilter};
pub use upload::UploadProgress;
pub use words::{
    CheckResult, EventType, Granularity, InstanceOrder, NetworkMode, OutputStream, RunnerKind,
    SignalKind, SortOrder, Status, StatusReason, StepStatus, TerminationReason,
};

/// Text keys and values that a caller attaches to an image or an instance.
pub type Labels = std::collections::BTreeMap<String, String>;
