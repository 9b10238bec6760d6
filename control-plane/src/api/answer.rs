//! Answers: with an entity tag, and lists with a cursor.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use super::problem::Problem;
use crate::store::etag;

/// A thing as it is, with its ETag.
pub(super) struct Tagged<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        tagged(StatusCode::OK, &self.0, &self.0)
    }
}

/// An answer with `body`, whose ETag is that of `thing`.
pub(super) fn tagged(status: StatusCode, thing: &impl Serialize, body: &impl Serialize) -> Response {
    let mut response = (status, axum::Json(body)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&etag(thing)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Items on a page: 100 if not said, 1000 at most.
pub(super) fn page_size(asked: Option<u16>) -> usize {
    usize::from(asked.unwrap_or(100).clamp(1, 1000))
}

/// A cursor for those that follow `last`.
pub(super) fn cursor(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("1{last}"))
}

/// Behind what to go on; the beginning if no cursor is given.
pub(super) fn behind(cursor: Option<&str>) -> Result<String, Problem> {
    let Some(cursor) = cursor else { return Ok(String::new()) };
    let text = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    // PostgreSQL keeps no NUL in text.
    let found = text.filter(|t| !t.contains('\0')).and_then(|t| t.strip_prefix('1').map(str::to_owned));
    found.ok_or_else(|| {
        Problem::malformed(StatusCode::BAD_REQUEST, "`cursor` must be one that a list has answered with")
    })
}

/// Cuts `items`, of which one more than the page holds was asked for, and says where to go on.
pub(super) fn cut<T>(items: &mut Vec<T>, size: usize, key: impl Fn(&T) -> String) -> Option<String> {
    if items.len() <= size {
        return None;
    }
    items.truncate(size);
    items.last().map(|last| cursor(&key(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back_and_others_are_refused() {
        for id in ["", "acme", "a/b ü"] {
            assert_eq!(behind(Some(&cursor(id))).ok().as_deref(), Some(id));
        }
        assert_eq!(behind(None).ok().as_deref(), Some(""));
        for wrong in ["", "acme", "%", "AAAA"] {
            assert!(behind(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_full_page_tells_where_to_go_on() {
        let mut items = vec![1, 2, 3];
        assert_eq!(cut(&mut items, 3, i32::to_string), None);
        assert_eq!(cut(&mut items, 2, i32::to_string), Some(cursor("2")));
        assert_eq!(items, [1, 2]);
    }
}
