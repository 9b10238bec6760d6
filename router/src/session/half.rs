//! One direction of a session.

use std::io;
use std::task::{Context, Poll, ready};

use crate::buffer::Buffer;

/// Ranges up to this size, in bytes, are copied behind rewritten bytes rather than sent apart: a
/// copy of this size costs less than a system call.
const JOIN_BYTES: usize = 16 * 1024;

/// What was read on one side and is to be written to the other: first `before`, then what is
/// approved in `buffer`.
#[derive(Default)]
pub(super) struct Half {
    pub(super) buffer: Buffer,
    /// Bytes that stand in front of the buffer's: rewritten, or the router's own.
    before: Vec<u8>,
    before_sent: usize,
    /// Bytes of the current message that pass without a look.
    pub(super) pass: usize,
    /// Bytes of the current message that are dropped without a look.
    pub(super) drop: usize,
}

impl Half {
    /// Whether something is to be written.
    #[inline]
    pub(super) fn has_output(&self) -> bool {
        !self.before.is_empty() || !self.buffer.approved().is_empty()
    }

    /// Whether nothing is held and no message is half through.
    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.buffer.is_empty() && self.before.is_empty() && self.pass == 0 && self.drop == 0
    }

    /// Bytes that stand in front of the buffer's and have not been written.
    #[inline]
    pub(super) fn unsent_own(&self) -> usize {
        self.before.len() - self.before_sent
    }

    /// Where bytes of the router's own are put, behind all that is approved so far.
    pub(super) fn own(&mut self) -> &mut Vec<u8> {
        if !self.buffer.approved().is_empty() {
            self.before.extend_from_slice(self.buffer.approved());
            self.buffer.all_sent();
        }
        &mut self.before
    }

    /// Approves the message of `len` bytes that the fresh bytes begin with, however much of it is
    /// there.
    #[inline]
    pub(super) fn forward(&mut self, len: usize) {
        let here = self.buffer.fresh().len().min(len);
        self.buffer.approve(here);
        self.pass = len - here;
    }

    /// Drops the message of `len` bytes that the fresh bytes begin with.
    pub(super) fn discard(&mut self, len: usize) {
        let here = self.buffer.fresh().len().min(len);
        self.buffer.swallow(here);
        self.drop = len - here;
    }

    /// Deals with the rest of a message that was decided on before. False if more is to come.
    #[inline(always)]
    pub(super) fn continue_message(&mut self) -> bool {
        // Of most messages all is there at once.
        (self.pass == 0 && self.drop == 0) || self.go_on()
    }

    #[inline(never)]
    fn go_on(&mut self) -> bool {
        if self.pass > 0 {
            let here = self.buffer.fresh().len().min(self.pass);
            self.buffer.approve(here);
            self.pass -= here;
        } else if self.drop > 0 {
            let here = self.buffer.fresh().len().min(self.drop);
            self.buffer.swallow(here);
            self.drop -= here;
        }
        self.pass == 0 && self.drop == 0
    }

    /// Writes all output, or as much as fits.
    #[inline]
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        if !self.before.is_empty() {
            let approved = self.buffer.approved();
            if !approved.is_empty() && approved.len() <= JOIN_BYTES {
                self.before.extend_from_slice(approved);
                self.buffer.all_sent();
            }
            while self.before_sent < self.before.len() {
                let n = ready!(write(cx, &self.before[self.before_sent..]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.before_sent += n;
                written += n;
            }
            self.before.clear();
            self.before.shrink_to(2 * JOIN_BYTES);
            self.before_sent = 0;
        }
        while !self.buffer.approved().is_empty() {
            let n = ready!(write(cx, self.buffer.approved()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.sent(n);
            written += n;
        }
        Poll::Ready(Ok(written))
    }

    /// Drops all output, and what is still to come of a message that was being passed on.
    pub(super) fn drop_output(&mut self) {
        self.before.clear();
        self.before_sent = 0;
        self.buffer.all_sent();
        self.drop += std::mem::take(&mut self.pass);
    }

    /// All output, taken out.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        let sent = self.before_sent;
        self.before_sent = 0;
        let mut out = std::mem::take(self.own());
        out.drain(..sent);
        out
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buffer = Buffer::default();
        self.before.clear();
        self.before_sent = 0;
        self.pass = 0;
        self.drop = 0;
    }
}
