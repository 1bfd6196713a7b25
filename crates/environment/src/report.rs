//! What the server says of itself.

use runtara_http::environment::ServerReport;
use runtara_scheduler::Scheduler;

/// The runners of this server as they were found at its start, and its runs as they are now.
pub(crate) struct Report {
    pub(crate) scheduler: Scheduler,
    pub(crate) runners: Vec<(String, bool, String)>,
}

impl ServerReport for Report {
    fn active_runs(&self) -> usize {
        self.scheduler.live_runs()
    }

    fn runners(&self) -> Vec<(String, bool, String)> {
        self.runners.clone()
    }
}
