//! API keys: every route but `/health` asks for one, routes that do not exist too. A place for one upload, which was given
//! out to a holder of a key, is open to who knows it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::context::RequestContext;
use crate::error::ApiError;
use crate::state::ServerState;

/// The one path that answers without a key.
pub(crate) const OPEN_PATH: &str = "/health";

/// The keys, as digests: comparing these takes the same time whatever a client sends.
pub(crate) struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

/// Which key a request came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyIdx(pub usize);

impl ApiKeys {
    pub fn new(keys: &[String]) -> Self {
        Self { digests: keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Looks through all keys, also after a match.
    pub fn find(&self, key: &str) -> Option<KeyIdx> {
        let given: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let mut found = None;
        for (idx, digest) in self.digests.iter().enumerate() {
            let difference = digest.iter().zip(given).fold(0, |all, (a, b)| all | (a ^ b));
            if std::hint::black_box(difference) == 0 {
                found = Some(KeyIdx(idx));
            }
        }
        found
    }
}

/// The token of `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Middleware over all routes.
pub(crate) async fn require_key(
    State(state): State<Arc<ServerState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    // Who was told where to send a file sends no key there, but a secret that is good for this one file.
    let invited = request.method() == Method::PUT && state.uploads.expects(path);
    if state.keys.is_empty() || path == OPEN_PATH || invited {
        return next.run(request).await;
    }
    let Some(key) = bearer(request.headers()).and_then(|key| state.keys.find(key)) else {
        return ApiError::invalid_key().into_response();
    };
    if let Some(context) = request.extensions_mut().get_mut::<RequestContext>() {
        context.key = Some(key);
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn finds_each_key_and_nothing_else() {
        let keys = ApiKeys::new(&["first".into(), "second".into()]);
        assert_eq!(keys.find("first"), Some(KeyIdx(0)));
        assert_eq!(keys.find("second"), Some(KeyIdx(1)));
        for wrong in ["", "firs", "first ", "FIRST", "firstsecond"] {
            assert_eq!(keys.find(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn reads_bearer_tokens_only() {
        let cases = [("Bearer a", Some("a")), ("bearer  a ", Some("a")), ("Basic a", None), ("a", None)];
        for (value, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(bearer(&headers), expected, "{value:?}");
        }
    }
}
