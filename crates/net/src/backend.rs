//! The seam between a network card and what it is plugged into.

/// What a network card is plugged into. Frames are whole Ethernet frames without FCS.
pub trait Backend: Send {
    /// Takes one frame from the guest; dropping it is allowed; never blocks.
    fn transmit(&mut self, frame: &[u8]);
    /// Fills `frame` with the next frame for the guest and returns its length, or None when there is none now.
    fn receive(&mut self, frame: &mut [u8]) -> Option<usize>;
    /// A descriptor that becomes readable when `poll` should be called (new frames, timers); level-triggered.
    fn poll_fd(&self) -> std::os::fd::BorrowedFd<'_>;
    /// Does pending work (sockets, timers). Never blocks. Returns when to be called again at the latest.
    fn poll(&mut self) -> Option<std::time::Duration>;
    /// Largest frame it takes, in bytes (1514 by default).
    fn frame_size_max(&self) -> usize;
}
