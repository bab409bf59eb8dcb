//! Who may send how much (virtio 1.2, §5.10.6.3): a pure account of one connection.
//!
//! Each side tells how large its buffer is and how many bytes it has taken out of it since the
//! beginning; the other may have no more than that on the way. All counts wrap.

/// Our buffer for what a guest sends on one connection, in bytes.
pub(crate) const BUF_ALLOC: u32 = 256 << 10;

/// The account of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Credit {
    /// Bytes sent to the guest.
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Bytes received from the guest.
    received: u32,
    /// Bytes of those that were passed on.
    forwarded: u32,
    /// The value of `forwarded` that the guest was told last.
    told: u32,
}

impl Credit {
    /// Takes note of what a packet of the guest says about its buffer.
    pub(crate) fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (buf_alloc, fwd_cnt);
    }

    /// How many bytes may be sent to the guest now.
    pub(crate) fn available(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(on_the_way)
    }

    /// Books bytes sent to the guest.
    pub(crate) fn sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// Books bytes received from the guest; false when it had no credit for them.
    #[must_use]
    pub(crate) fn received(&mut self, len: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        if held.checked_add(len).is_none_or(|held| held > BUF_ALLOC) {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// Books bytes passed on.
    pub(crate) fn forwarded(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest should be told of room: it believes to have less than half, and has more.
    pub(crate) fn is_update_due(&self) -> bool {
        let believed = self.received.wrapping_sub(self.told);
        believed > BUF_ALLOC / 2 && self.told != self.forwarded
    }

    /// What to put into a packet to the guest: `buf_alloc` and `fwd_cnt`.
    pub(crate) fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (BUF_ALLOC, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_sent_follows_the_guests_buffer() {
        let mut credit = Credit { sent: u32::MAX - 10, ..Credit::default() };
        credit.learn(100, u32::MAX - 10);
        assert_eq!(credit.available(), 100);
        credit.sent(60);
        assert_eq!(credit.available(), 40, "the count has wrapped");
        credit.learn(100, 9);
        assert_eq!(credit.available(), 60);
        credit.learn(20, 9);
        assert_eq!(credit.available(), 0, "a buffer that shrinks owes nothing");
        credit.learn(100, 4000);
        assert_eq!(credit.available(), 0, "nor does a guest that claims to have read the future");
    }

    #[test]
    fn a_guest_cannot_exceed_our_buffer_and_learns_of_room_in_time() {
        let mut credit = Credit::default();
        assert!(credit.received(BUF_ALLOC));
        assert!(!credit.received(1) && !credit.received(u32::MAX));
        assert!(!credit.is_update_due(), "there is no room to tell of");
        credit.forwarded(1);
        assert!(credit.is_update_due());
        assert!(credit.received(1));
        assert_eq!(credit.tell(), (BUF_ALLOC, 1));
        assert!(!credit.is_update_due());
        credit.forwarded(BUF_ALLOC);
        assert!(credit.is_update_due());
        credit.tell();
        assert!(credit.received(BUF_ALLOC / 2));
        credit.forwarded(BUF_ALLOC / 2);
        assert!(!credit.is_update_due(), "the guest still has half");
    }
}
