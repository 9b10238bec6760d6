//! Buffers of the data path, and the per-thread stock they come from.
//!
//! An idle session owns none: one is taken when there is something to read into it, and goes back
//! when it is empty.

use std::cell::RefCell;

/// Size of a buffer from the stock, in bytes. Large results are won by large reads.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;

/// Buffers that a thread keeps for reuse; more are freed.
const STOCK_MAX: usize = 64;

thread_local! {
    static STOCK: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes read from a socket, of which a prefix has been looked at and may be sent on.
///
/// `start ≤ scan ≤ end ≤ data.len()`. `start..scan` is approved for sending, `scan..end` is still
/// to be looked at. Without `data` all three are 0.
#[derive(Default)]
pub(crate) struct Buffer {
    data: Box<[u8]>,
    start: usize,
    scan: usize,
    end: usize,
}

impl Buffer {
    /// A buffer that holds `bytes`, none of them looked at.
    pub(crate) fn holding(bytes: &[u8]) -> Self {
        let mut buffer = Self::default();
        buffer.extend(bytes);
        buffer
    }

    /// What has been approved and not been sent.
    #[inline]
    pub(crate) fn approved(&self) -> &[u8] {
        &self.data[self.start..self.scan]
    }

    /// What has not been looked at.
    #[inline]
    pub(crate) fn fresh(&self) -> &[u8] {
        &self.data[self.scan..self.end]
    }

    /// The same, to change bytes in place.
    #[inline]
    pub(crate) fn fresh_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.scan..self.end]
    }

    /// Approves the next `n` bytes.
    #[inline]
    pub(crate) fn approve(&mut self, n: usize) {
        debug_assert!(self.scan + n <= self.end);
        self.scan += n;
    }

    /// Takes the next `n` bytes out, so that they are never sent.
    pub(crate) fn swallow(&mut self, n: usize) {
        debug_assert!(self.scan + n <= self.end);
        if self.start < self.scan {
            // What was approved stays in front of what follows: move it up over the gap.
            self.data.copy_within(self.start..self.scan, self.start + n);
        }
        self.start += n;
        self.scan += n;
        self.settle();
    }

    /// `n` approved bytes have been sent.
    #[inline]
    pub(crate) fn sent(&mut self, n: usize) {
        debug_assert!(self.start + n <= self.scan);
        self.start += n;
        self.settle();
    }

    /// The approved bytes were copied elsewhere.
    pub(crate) fn all_sent(&mut self) {
        self.start = self.scan;
        self.settle();
    }

    #[inline]
    fn settle(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.scan = 0;
            self.end = 0;
        }
    }

    /// Whether there is nothing in it at all.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Room to read into, taking a buffer from the stock if there is none yet. Empty only if what
    /// is held fills the buffer.
    #[inline]
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.data.is_empty() {
            self.data = take();
        } else if self.data.len() - self.end < BUFFER_BYTES / 4 && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            self.scan -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.data[self.end..]
    }

    /// `n` bytes were read into [`Self::room`].
    #[inline]
    pub(crate) fn filled(&mut self, n: usize) {
        debug_assert!(self.end + n <= self.data.len());
        self.end += n;
    }

    /// Makes the buffer larger, for a message that must be held whole. Doubling keeps the
    /// allocation within twice of what has really arrived. False if it is at `max` already.
    pub(crate) fn grow(&mut self, max: usize) -> bool {
        if self.data.len() >= max {
            return false;
        }
        let mut data = vec![0; (self.data.len() * 2).min(max).max(BUFFER_BYTES)].into_boxed_slice();
        data[..self.end].copy_from_slice(&self.data[..self.end]);
        give(std::mem::replace(&mut self.data, data));
        true
    }

    /// Whether `n` more bytes fit without growing.
    pub(crate) fn could_hold(&self, n: usize) -> bool {
        n <= self.data.len().max(BUFFER_BYTES)
    }

    /// Adds `bytes` that were read elsewhere.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        while self.room().len() < bytes.len() {
            if !self.grow(usize::MAX / 4) {
                return;
            }
        }
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.filled(bytes.len());
    }

    /// Gives the memory back if nothing is held.
    #[inline]
    pub(crate) fn rest(&mut self) {
        if self.is_empty() && !self.data.is_empty() {
            give(std::mem::take(&mut self.data));
        }
    }

    /// Moves what is held into memory of just that size, for a long wait.
    pub(crate) fn shrink(&mut self) {
        if self.data.len() >= BUFFER_BYTES && self.end - self.start < BUFFER_BYTES / 4 {
            let data: Box<[u8]> = self.data[self.start..self.end].into();
            self.scan -= self.start;
            self.end -= self.start;
            self.start = 0;
            give(std::mem::replace(&mut self.data, data));
        }
    }

    /// Undoes [`Self::shrink`], so that there is room again.
    pub(crate) fn widen(&mut self) {
        if !self.data.is_empty() && self.data.len() < BUFFER_BYTES {
            let mut data = take();
            data[..self.end].copy_from_slice(&self.data[..self.end]);
            self.data = data;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.data));
    }
}

fn take() -> Box<[u8]> {
    STOCK.with(|stock| stock.borrow_mut().pop()).unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

fn give(data: Box<[u8]>) {
    if data.len() == BUFFER_BYTES {
        // At thread exit the stock may be gone already; then the buffer is simply freed.
        let _ = STOCK.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            if stock.len() < STOCK_MAX {
                stock.push(data);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swallowing_keeps_what_is_approved_in_order() {
        let mut b = Buffer::holding(b"aaSSbbTTcc");
        b.approve(2);
        b.swallow(2);
        b.approve(2);
        b.swallow(2);
        b.approve(2);
        assert_eq!(b.approved(), b"aabbcc");
        b.sent(4);
        assert_eq!(b.approved(), b"cc");
        b.sent(2);
        assert!(b.is_empty());
    }

    #[test]
    fn a_shrunk_buffer_can_be_read_into_again() {
        let mut b = Buffer::holding(b"hello");
        b.shrink();
        b.widen();
        assert_eq!(b.fresh(), b"hello");
        assert!(b.room().len() > 1000);
    }

    #[test]
    fn growing_stops_at_the_limit() {
        let mut b = Buffer::holding(&vec![7; BUFFER_BYTES]);
        assert!(b.room().is_empty());
        assert!(b.grow(BUFFER_BYTES + 10));
        assert_eq!(b.room().len(), 10);
        assert!(!b.grow(BUFFER_BYTES + 10));
        assert_eq!(b.fresh().len(), BUFFER_BYTES);
    }
}
