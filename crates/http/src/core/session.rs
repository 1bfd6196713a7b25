//! Who calls, and the bookkeeping of a call.

use std::future::Future;

use axum::extract::{FromRequestParts, RawPathParams};
use http::StatusCode;
use http::request::Parts;
use runtara_domain::{Caller, Fence, InstanceId, Refusal};
use runtara_runner::{CallError, InstanceCalls};

use super::CoreState;
use crate::ApiError;
use crate::extract::parse_id;

/// The header by which callers name the instance that they are.
const INSTANCE: &str = "x-runtara-instance-id";
/// The header by which callers name their tenant.
const TENANT: &str = "x-runtara-tenant-id";

/// A caller that speaks for the instance of the path, and the bookkeeping of its call.
pub(super) struct Session {
    state: CoreState,
    pub(super) caller: Caller,
    /// The tenant that the caller names.
    tenant: Option<String>,
}

impl FromRequestParts<CoreState> for Session {
    type Rejection = ApiError;

    /// # Errors
    /// 400 for an id that is none, 403 if the headers name another instance than the path.
    async fn from_request_parts(
        parts: &mut Parts,
        state: &CoreState,
    ) -> Result<Self, Self::Rejection> {
        let of = instance_of_path(parts).await?;
        let named = parts.headers.get(INSTANCE);
        if named.is_some_and(|named| named.as_bytes() != of.as_str().as_bytes()) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "INSTANCE_FORBIDDEN",
                "the header X-Runtara-Instance-Id names another instance than the path",
            ));
        }
        Self::of_caller(parts, state, of)
    }
}

/// A caller that asks about the instance of the path, which may be another one of its tenant.
pub(super) struct Watcher {
    pub(super) session: Session,
    pub(super) of: InstanceId,
}

impl FromRequestParts<CoreState> for Watcher {
    type Rejection = ApiError;

    /// # Errors
    /// 400 for an id that is none, in the path or the headers.
    async fn from_request_parts(
        parts: &mut Parts,
        state: &CoreState,
    ) -> Result<Self, Self::Rejection> {
        let of = instance_of_path(parts).await?;
        let caller = match parts.headers.get(INSTANCE) {
            Some(named) => parse_id(&String::from_utf8_lossy(named.as_bytes()))?,
            None => of.clone(),
        };
        let session = Session::of_caller(parts, state, caller)?;
        Ok(Self { session, of })
    }
}

/// The instance that the path names, decoded once and checked.
async fn instance_of_path(parts: &mut Parts) -> Result<InstanceId, ApiError> {
    let named = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|error| ApiError::bad_request("INVALID_PATH", error))?;
    let id = named.iter().find(|(name, _)| *name == "instance_id");
    parse_id(id.map_or("", |(_, id)| id))
}

impl Session {
    fn of_caller(
        parts: &Parts,
        state: &CoreState,
        instance_id: InstanceId,
    ) -> Result<Self, ApiError> {
        // Every request that is admitted has one.
        let fence = *parts
            .extensions
            .get::<Fence>()
            .ok_or_else(ApiError::internal)?;
        let tenant = parts
            .headers
            .get(TENANT)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .filter(|tenant| !tenant.is_empty());
        Ok(Self {
            state: state.clone(),
            caller: Caller { instance_id, fence },
            tenant,
        })
    }

    pub(super) fn calls(&self) -> &dyn InstanceCalls {
        self.state.0.calls.as_ref()
    }

    /// # Errors
    /// 403 if the headers name another tenant than this.
    pub(super) fn check_tenant(&self, tenant: &str) -> Result<(), ApiError> {
        match &self.tenant {
            Some(named) if named != tenant => Err(foreign_tenant()),
            _ => Ok(()),
        }
    }

    /// Makes a call and keeps account of how it was answered.
    pub(super) async fn call<T>(
        &self,
        act: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, ApiError> {
        self.account(false, act).await
    }

    /// Makes a call that is meant to be answered late.
    pub(super) async fn wait<T>(
        &self,
        act: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, ApiError> {
        self.account(true, act).await
    }

    async fn account<T>(
        &self,
        waits: bool,
        act: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, ApiError> {
        let act = async {
            if !self.names_its_tenant().await? {
                return Ok(None);
            }
            act.await.map(Some)
        };
        let Fence::Run(token) = self.caller.fence else {
            return act.await?.ok_or_else(foreign_tenant);
        };
        let guard = self.state.0.tracker.begin(token, waits);
        match act.await {
            Ok(answer) => {
                guard.answered();
                answer.ok_or_else(foreign_tenant)
            }
            Err(CallError::Refused(Refusal::RunSuperseded)) => {
                guard.answered();
                Err(self.superseded().await)
            }
            Err(error) => {
                let error = ApiError::from(error);
                if error.is_ours() {
                    guard.failed();
                } else {
                    guard.answered();
                }
                Err(error)
            }
        }
    }

    /// Whether the tenant that the caller names, if it names one, is its own.
    async fn names_its_tenant(&self) -> Result<bool, CallError> {
        let Some(named) = &self.tenant else {
            return Ok(true);
        };
        let (state, caller) = (&self.state, &self.caller);
        if state.0.tenants.is_of(caller, named) {
            return Ok(true);
        }
        match state.0.calls.tenant(caller).await {
            Ok(tenant) => {
                let matches = tenant.as_str() == named;
                state.0.tenants.remember(caller, tenant);
                Ok(matches)
            }
            // It has none yet: its registration says whose it is.
            Err(CallError::Refused(Refusal::InstanceUnknown)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Tells a run that is over from one that speaks for another instance.
    async fn superseded(&self) -> ApiError {
        if let Fence::Run(token) = self.caller.fence
            && let Ok(Some(owner)) = self.state.0.store.run_of_token(token).await
            && owner.instance_id != self.caller.instance_id
        {
            return ApiError::new(
                StatusCode::FORBIDDEN,
                "INSTANCE_FORBIDDEN",
                "the run that calls is not one of this instance",
            );
        }
        Refusal::RunSuperseded.into()
    }
}

fn foreign_tenant() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "TENANT_FORBIDDEN",
        "the header X-Runtara-Tenant-Id names another tenant than that of the instance",
    )
}
