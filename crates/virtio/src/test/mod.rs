//! The other side of a device, for tests: a driver that sets devices up through PCI and works real rings
//! in real guest memory, and the world behind a device. Also for tests of other crates (feature `test`)
//! and for fuzzing.
//!
//! What does not go as a test expects panics here; that is what tests are for.

mod driver;
mod ring;
mod world;

pub use driver::Driver;
pub use ring::{Buffer, DriverRing, PAGE};
pub use world::{Interrupts, MemDisk, Recorder, Wire, WireEnd};

use crate::Kick;
use crate::device::{Activation, Interrupt, VirtioDevice};
use crate::queue::{Position, Queue};
use crate::spec::feature;
use crate::worker::{Progress, Work};
use memory::Ram;
use std::sync::Arc;

/// A device at work without threads and transport: the test calls the steps itself.
pub struct Bench {
    /// The guest's memory.
    pub ram: Arc<Ram>,
    /// The driver's side of each queue.
    pub rings: Vec<DriverRing>,
    /// What interrupts came.
    pub recorder: Arc<Recorder>,
    /// The device's workers.
    pub works: Vec<Box<dyn Work>>,
}

impl Bench {
    /// Activates `device` with all of its queues, `size` descriptors each, and these features besides
    /// VERSION_1.
    pub fn new(device: &mut dyn VirtioDevice, size: u16, features: u64) -> Bench {
        let ram = Arc::new(Ram::new(4 << 20).expect("memory for a test"));
        let recorder = Arc::new(Recorder::default());
        let event_idx = features & feature::RING_EVENT_IDX != 0;
        let (mut rings, mut queues) = (Vec::new(), Vec::new());
        for index in 0..device.queue_sizes().len() as u16 {
            let base = 0x1_0000 + index as u64 * 0x1_0000;
            let ring = DriverRing::new(ram.clone(), index, size, base, event_idx);
            queues.push(Some(Queue::new(
                index,
                ring.layout(),
                Position::default(),
                event_idx,
                ram.clone(),
                Arc::new(Kick::new().expect("an eventfd")),
                recorder.clone(),
            )));
            rings.push(ring);
        }
        let interrupt: Arc<dyn Interrupt> = recorder.clone();
        let activation =
            Activation { features: features | feature::VERSION_1, queues, ram: ram.clone(), interrupt };
        let works = device.activate(activation);
        Bench { ram, rings, recorder, works }
    }

    /// Lets the workers work until they would go to sleep.
    ///
    /// # Panics
    /// When they do not get there: a worker that runs on although its guest stands still.
    pub fn settle(&mut self) {
        for work in &mut self.works {
            let mut rounds = 0;
            while work.work() == Progress::More || work.is_pending() || work.arm() {
                rounds += 1;
                assert!(rounds < 10_000, "a worker that finds no rest");
            }
        }
    }
}
