//! Who calls, and the bookkeeping of a call.

use std::future::Future;

use http::{HeaderMap, StatusCode};
use runtara_domain::{Caller, Fence, InstanceId, Refusal};
use runtara_runner::CallError;

use super::CoreState;
use crate::ApiError;

/// Who calls, and the bookkeeping of the call.
pub(super) struct Session<'a> {
    state: &'a CoreState,
    pub(super) caller: Caller,
    /// The tenant that the caller names.
    tenant: Option<String>,
}

impl<'a> Session<'a> {
    /// # Errors
    /// 403 if the headers name another instance than the path.
    pub(super) fn new(
        state: &'a CoreState,
        fence: Fence,
        instance_id: InstanceId,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let named = headers
            .get("x-runtara-instance-id")
            .and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        if named.is_some_and(|named| named != instance_id.as_str()) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "INSTANCE_FORBIDDEN",
                "the header X-Runtara-Instance-Id names another instance than the path",
            ));
        }
        Ok(Self::of_caller(state, fence, instance_id, headers))
    }

    /// For a call that names another instance than the caller's own.
    pub(super) fn of_caller(
        state: &'a CoreState,
        fence: Fence,
        instance_id: InstanceId,
        headers: &HeaderMap,
    ) -> Self {
        Self {
            state,
            caller: Caller { instance_id, fence },
            tenant: named_tenant(headers),
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
        let guard = self.state.tracker.begin(token, waits);
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
        let (state, caller) = (self.state, &self.caller);
        if state.tenants.is_of(caller, named) {
            return Ok(true);
        }
        match state.calls.tenant(caller).await {
            Ok(tenant) => {
                let matches = tenant.as_str() == named;
                state.tenants.remember(caller, tenant);
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
            && let Ok(Some(owner)) = self.state.store.run_of_token(token).await
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

/// The tenant that the headers name, if they name one.
pub(super) fn named_tenant(headers: &HeaderMap) -> Option<String> {
    headers
        .get("x-runtara-tenant-id")
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .filter(|tenant| !tenant.is_empty())
}

pub(super) fn foreign_tenant() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "TENANT_FORBIDDEN",
        "the header X-Runtara-Tenant-Id names another tenant than that of the instance",
    )
}
