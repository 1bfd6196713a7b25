//! What the machine of the server offers.

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::query::Path;
use crate::transport::Call;
use crate::{CheckResult, Error};

/// One thing that the server has looked at on its machine when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MachineCheck {
    /// What it is about, in a few words.
    pub about: String,
    /// How it is.
    pub result: CheckResult,
    /// What was found, and, if it is not fine, after a semicolon what to do.
    pub text: String,
}

impl MachineCheck {
    /// What was found.
    #[must_use]
    pub fn found(&self) -> &str {
        self.parts().map_or(&self.text, |(found, _)| found)
    }

    /// What to do about it, where the server says it.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.parts().map(|(_, advice)| advice)
    }

    fn parts(&self) -> Option<(&str, &str)> {
        match self.result {
            CheckResult::Fine => None,
            _ => self.text.split_once("; "),
        }
    }
}

#[derive(Deserialize)]
struct MachineAnswer {
    checks: Vec<MachineCheck>,
}

impl Client {
    /// Asks what the server has found out about its machine: what containers need, and each network mode. `None` if the server is older
    /// than this question.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), runtara_management_sdk::Error> {
    /// use runtara_management_sdk::{CheckResult, Client};
    ///
    /// for check in Client::local().machine().await?.into_iter().flatten() {
    ///     if check.result != CheckResult::Fine {
    ///         println!("{}: {}", check.about, check.text);
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn machine(&self) -> Result<Option<Vec<MachineCheck>>, Error> {
        let answer = self.send(Call::get(Path::new("/api/v1/machine"))).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let told: MachineAnswer = answer.ok()?.json()?;
        Ok(Some(told.checks))
    }
}
