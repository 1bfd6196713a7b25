//! Who speaks for an instance.

use crate::{InstanceState, Origin, Refusal, TokenHash};

/// What a caller of the instance protocol shows for itself. The check stands in each write's own statement, never in a
/// cache, so that a run that was superseded a moment ago changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// The token of a run that we launched.
    Run(TokenHash),
    /// Nothing: an instance that we did not launch and that registered itself.
    SelfRegistered,
}

/// Says whether a caller may speak for an instance in this state.
///
/// # Errors
/// [`Refusal::RunSuperseded`] if the token is not that of the current run; [`Refusal::TokenRequired`] if a launched instance
/// is spoken for without one.
pub fn check_fence(state: &InstanceState, fence: Fence) -> Result<(), Refusal> {
    match (fence, state.origin) {
        (Fence::Run(token), Origin::Launched) if state.run.token == Some(token) => Ok(()),
        (Fence::Run(_), _) => Err(Refusal::RunSuperseded),
        (Fence::SelfRegistered, Origin::SelfRegistered) => Ok(()),
        (Fence::SelfRegistered, Origin::Launched) => Err(Refusal::TokenRequired),
    }
}
