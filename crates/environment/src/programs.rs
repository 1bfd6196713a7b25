//! What the control plane is told of the runners.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use runtara_control::Programs;
use runtara_domain::{ImageDigest, RunnerKind};
use runtara_runner::{AskedSettings, ImageFiles, PrepareError, PreparedImage, Runner};

/// Hands on what the control plane asks to the runner of the kind.
pub(crate) struct ProgramsOfRunners {
    runners: Vec<Arc<dyn Runner>>,
}

impl ProgramsOfRunners {
    pub(crate) fn new(runners: &[Arc<dyn Runner>]) -> Self {
        let runners = runners.to_vec();
        Self { runners }
    }

    fn of(&self, kind: RunnerKind) -> Result<&dyn Runner, String> {
        let runner = self.runners.iter().find(|runner| runner.kind() == kind);
        runner
            .map(AsRef::as_ref)
            .ok_or_else(|| format!("this server has no runner for '{kind}'"))
    }
}

#[async_trait]
impl Programs for ProgramsOfRunners {
    fn check(&self, kind: RunnerKind, settings: &AskedSettings) -> Result<(), String> {
        self.of(kind)?.check(settings)
    }

    async fn prepare(
        &self,
        kind: RunnerKind,
        image: ImageFiles,
    ) -> Result<PreparedImage, PrepareError> {
        let content = image.content;
        let runner = self.of(kind);
        runner
            .map_err(|reason| PrepareError::Unfit { content, reason })?
            .prepare(image)
            .await
    }

    async fn forget(&self, digest: ImageDigest) -> io::Result<()> {
        // Whatever the content was registered as, and laid on.
        for runner in &self.runners {
            runner.forget(digest).await?;
        }
        Ok(())
    }

    async fn reclaim(&self) -> io::Result<()> {
        for runner in &self.runners {
            runner.reclaim().await?;
        }
        Ok(())
    }
}

/// What is missing of the kinds that are not ready, by what their runners report.
pub(crate) fn unavailable(report: &[(String, bool, String)]) -> BTreeMap<RunnerKind, String> {
    let unready = report.iter().filter(|(_, ready, _)| !ready);
    unready
        .filter_map(|(kind, _, text)| Some((kind.parse().ok()?, text.clone())))
        .collect()
}
