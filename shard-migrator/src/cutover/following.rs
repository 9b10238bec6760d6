//! The changes of a tenant on their way while everything else of a cutover is done.

use std::pin::Pin;
use std::time::Duration;

/// Work that goes on beside other work, and must not be dropped half way.
pub(super) struct Following<'f, F: Future> {
    work: Pin<&'f mut F>,
    is_over: bool,
    came_to: Option<F::Output>,
}

impl<'f, F: Future> Following<'f, F> {
    pub(super) fn new(work: Pin<&'f mut F>) -> Self {
        Self { work, is_over: false, came_to: None }
    }

    /// Goes on until `other` is done.
    pub(super) async fn beside<A>(&mut self, other: impl Future<Output = A>) -> A {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                biased;
                answer = &mut other => return answer,
                done = self.work.as_mut(), if !self.is_over => (self.is_over, self.came_to) = (true, Some(done)),
            }
        }
    }

    /// What it comes to, once, if that is within `limit`.
    pub(super) async fn within(&mut self, limit: Duration) -> Option<F::Output> {
        if !self.is_over {
            self.came_to = tokio::time::timeout(limit, self.work.as_mut()).await.ok();
            self.is_over = self.came_to.is_some();
        }
        self.came_to.take()
    }
}
