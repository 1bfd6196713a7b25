//! Steps and scopes that programs announce in their events.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::Client;
use crate::lifecycle::instance;
use crate::options::options;
use crate::transport::Call;
use crate::{Error, NotFound, Page, SortOrder, StepStatus};

/// One step of an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Step {
    /// Its id.
    pub step_id: String,
    /// Its name.
    #[serde(default)]
    pub step_name: Option<String>,
    /// Its type.
    pub step_type: String,
    /// Where it stands.
    pub status: StepStatus,
    /// When it began.
    pub started_at_ms: i64,
    /// When it ended.
    #[serde(default)]
    pub completed_at_ms: Option<i64>,
    /// How long it took.
    #[serde(default)]
    pub duration_ms: Option<i64>,
    /// What it was given.
    #[serde(default)]
    pub inputs: Option<Value>,
    /// What it gave.
    #[serde(default)]
    pub outputs: Option<Value>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<Value>,
    /// Its scope.
    #[serde(default)]
    pub scope_id: Option<String>,
    /// The scope around its scope.
    #[serde(default)]
    pub parent_scope_id: Option<String>,
}

/// A scope on the way outward.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScopeAncestor {
    /// Its id.
    pub scope_id: String,
    /// The scope around it.
    #[serde(default)]
    pub parent_scope_id: Option<String>,
    /// The step that opened it.
    pub step_id: String,
    /// That step's name.
    #[serde(default)]
    pub step_name: Option<String>,
    /// That step's type.
    pub step_type: String,
    /// Its place among its like, such as the turn of a loop.
    #[serde(default)]
    pub index: Option<u32>,
    /// When it was opened.
    pub created_at_ms: i64,
}

options! {
    /// Which steps are listed, newest first unless `sort_order` says otherwise.
    StepFilter {
        text {
            /// Only those of this type.
            step_type,
            /// Only those of this scope.
            scope_id,
            /// Only those of scopes directly in this one.
            parent_scope_id,
            /// Where the page begins, from [`Page::next_cursor`].
            cursor,
        }
        plain {
            /// Only those that stand so.
            status: StepStatus,
            /// Only those outside of any scope within another.
            root_scopes_only: bool,
            /// In which order of their beginnings.
            sort_order: SortOrder,
            /// How many at most.
            limit: u32,
            /// How many are left out in front. Not together with a cursor.
            offset: u64,
        }
    }
}

#[derive(Deserialize)]
struct AncestorsAnswer {
    ancestors: Vec<ScopeAncestor>,
}

impl Client {
    /// Lists one page of an instance's steps.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn steps(&self, instance_id: &str, filter: &StepFilter) -> Result<Page<Step>, Error> {
        let path = instance(instance_id)?
            .then("/steps")
            .with("status", filter.status.as_ref())
            .with("step_type", filter.step_type.as_ref())
            .with("scope_id", filter.scope_id.as_ref())
            .with("parent_scope_id", filter.parent_scope_id.as_ref())
            .with("root_scopes_only", filter.root_scopes_only)
            .with("sort_order", filter.sort_order.as_ref())
            .with("limit", filter.limit)
            .with("offset", filter.offset)
            .with("cursor", filter.cursor.as_ref());
        self.send(Call::get(path))
            .await?
            .ok_or_missing(NotFound::Instance, instance_id)?
            .json()
    }

    /// Gives a scope and those around it, the scope itself first. An unknown scope gives an empty list.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn scope_ancestors(
        &self,
        instance_id: &str,
        scope_id: &str,
    ) -> Result<Vec<ScopeAncestor>, Error> {
        let path = instance(instance_id)?
            .then("/scopes")
            .id("scope id", scope_id)?
            .then("/ancestors");
        let answer = self
            .send(Call::get(path))
            .await?
            .ok_or_missing(NotFound::Instance, instance_id)?;
        Ok(answer.json::<AncestorsAnswer>()?.ancestors)
    }
}
