//! Who may come in, decided before a body is read: a place among the open requests, and memory for the body.
//!
//! State: the bytes of all bodies that are held. A body counts as it arrives, so that a client which declares much and
//! sends little takes little; it counts until it is parsed and tokenized.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, Result};
use crate::state::ServerState;

/// What one permit of the budget stands for.
const UNIT_BYTES: usize = 256;

/// Bytes of bodies that may be held at once.
pub(crate) struct BodyBudget {
    units: Arc<Semaphore>,
    limit_bytes: usize,
}

/// A body's share of the budget, given back when it is dropped.
pub(crate) struct BodyShare {
    permit: Option<OwnedSemaphorePermit>,
    held_bytes: usize,
}

impl BodyBudget {
    pub fn new(limit_bytes: usize) -> Self {
        let units = limit_bytes.div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)), limit_bytes }
    }

    /// A share of nothing yet.
    pub fn share(&self) -> BodyShare {
        BodyShare { permit: None, held_bytes: 0 }
    }

    /// Makes a share hold `held_bytes`.
    pub fn grow(&self, share: &mut BodyShare, held_bytes: usize) -> Result<()> {
        let more = held_bytes.div_ceil(UNIT_BYTES).saturating_sub(share.held_bytes.div_ceil(UNIT_BYTES));
        let full = || {
            let message = format!("request bodies of {} bytes are held already", self.limit_bytes);
            ApiError::overloaded(message, Duration::from_secs(1))
        };
        if more > 0 {
            let more = u32::try_from(more).map_err(|_| full())?;
            let permit = self.units.clone().try_acquire_many_owned(more).map_err(|_| full())?;
            match &mut share.permit {
                Some(held) => held.merge(permit),
                None => share.permit = Some(permit),
            }
        }
        share.held_bytes = held_bytes;
        Ok(())
    }
}

/// A place among the open generation requests.
pub(crate) struct GenerationPlace(pub OwnedSemaphorePermit);

impl FromRequestParts<Arc<ServerState>> for GenerationPlace {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, state: &Arc<ServerState>) -> Result<Self> {
        state.admit().map(Self)
    }
}

/// A place among the open tokenize and detokenize requests.
pub(crate) struct TokenizationPlace {
    _permit: OwnedSemaphorePermit,
}

impl FromRequestParts<Arc<ServerState>> for TokenizationPlace {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, state: &Arc<ServerState>) -> Result<Self> {
        state.admit_tokenization().map(|permit| Self { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_and_come_back() {
        let budget = BodyBudget::new(1024);
        let (mut one, mut two) = (budget.share(), budget.share());
        budget.grow(&mut one, 1).unwrap();
        budget.grow(&mut one, 256).unwrap();
        assert_eq!(budget.units.available_permits(), 3);
        budget.grow(&mut one, 257).unwrap();
        budget.grow(&mut two, 512).unwrap();
        assert_eq!(budget.grow(&mut one, 513).unwrap_err().status, 429);
        drop(two);
        budget.grow(&mut one, 1024).unwrap();
        assert_eq!(budget.grow(&mut one, usize::MAX).unwrap_err().status, 429);
        drop(one);
        assert_eq!(budget.units.available_permits(), 4);
    }
}
