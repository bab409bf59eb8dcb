//! The frame buffer's place: video memory follows the base address register, so that guests draw without leaving.

use cpu::Vm;
use memory::LOW_RAM_END;
use platform::Platform;
use platform::pci::Windows;
use platform::pci::spec::HOLE32;
use platform::vga::Vga;
use std::sync::Arc;

/// A frame buffer, and the engine that has to know where it is.
pub(super) struct Screen {
    vga: Arc<Vga>,
    vm: Arc<dyn Vm>,
    windows: Windows,
}

impl Screen {
    /// The frame buffer of a platform that has one.
    pub(super) fn new(platform: &Platform, vm: &Arc<dyn Vm>, windows: Windows) -> Option<Screen> {
        platform.vga.clone().map(|vga| Screen { vga, vm: vm.clone(), windows })
    }

    /// Follows the base address register. Where PCI devices cannot be, it is nowhere; so is memory that is not
    /// placed while its register is being sized.
    pub(super) fn follow(&self) {
        let memory = self.vga.memory();
        let place = self.vga.frame_buffer().filter(|start| {
            let end = start.saturating_add(memory.size());
            let low = *start >= LOW_RAM_END && end <= HOLE32.end();
            low || *start >= self.windows.mmio64.start && end <= self.windows.mmio64.end()
        });
        if memory.set_place(place) {
            self.vm.video_moved();
        }
    }
}
