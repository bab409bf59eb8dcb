//! A machine and its twin: saved in the middle of whatever a script of accesses has led to, restored as another
//! machine, and both go on with the same accesses. Nobody outside may see a difference.

use super::*;
use crate::fuzzing::machine::{Machine, RAM_SIZE, Seen, VIDEO_SIZE, Witness};
use crate::fuzzing::tests::Random;
use clock::{Clock, ClockSaved};
use memory::{Bytes, GuestAddress, Ram};
use serde_json::Value;
use std::time::Duration;

/// The wall clock's time at guest time 0: shortly before a leap day.
const EPOCH: Duration = Duration::from_secs(1_709_164_790);

/// A machine with all that belongs to it alone.
struct Twin {
    machine: Machine,
    witness: Witness,
    ram: Ram,
    video: Arc<VideoMemory>,
    clock: Arc<Clock>,
}

impl Twin {
    fn at(time: ClockSaved) -> Twin {
        let clock = Arc::new(Clock::restore(time));
        clock.set_wall(EPOCH + Duration::from_nanos(clock.now()));
        let ram = Ram::new(RAM_SIZE).unwrap();
        let video = Arc::new(VideoMemory::new(VIDEO_SIZE).unwrap());
        let (timers, witness) = (Timers::new(clock.clone()).unwrap(), Witness::awake());
        let machine = Machine::over(ram.guest().clone(), video.clone(), timers, witness.clone());
        Twin { machine, witness, ram, video, clock }
    }

    /// Another machine that goes on from this one's saved state, which goes by way of text.
    fn twin(&self) -> Twin {
        self.machine.platform.settle();
        let time = self.clock.save();
        let saved = serde_json::to_string(&self.machine.platform.save()).unwrap();
        let twin = Twin::at(time);
        twin.ram.guest().write_slice(&self.memory(), GuestAddress(0)).unwrap();
        twin.machine.platform.restore(serde_json::from_str(&saved).unwrap()).unwrap();
        twin.machine.drive_lines_as(&self.machine);
        twin.machine.platform.pci.remap();
        twin
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM_SIZE as usize];
        self.ram.guest().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn picture(&self) -> Vec<u8> {
        let mut bytes = vec![0; VIDEO_SIZE as usize];
        self.video.read(0, &mut bytes);
        bytes
    }

    /// All of the state.
    fn state(&self) -> Value {
        serde_json::to_value(self.machine.platform.save()).unwrap()
    }
}

/// The first place where two trees differ.
fn difference(a: &Value, b: &Value, path: String) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            a.iter().zip(b).find_map(|((name, a), (_, b))| difference(a, b, format!("{path}/{name}")))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => (0..)
            .zip(a.iter().zip(b))
            .find_map(|(index, (a, b)): (usize, _)| difference(a, b, format!("{path}/{index}"))),
        _ => (a != b).then(|| format!("{path}: {a} and {b}")),
    }
}

#[test]
fn a_machine_and_its_restored_twin_cannot_be_told_apart() {
    let scale: u64 = std::env::var("FUZZ_SCALE").map_or(1, |scale| scale.parse().expect("a number"));
    let mut random = Random(17);
    let start = ClockSaved { tsc: 0, ..Clock::new().save() };
    for round in 0..100 * scale {
        let original = Twin::at(start);
        for _ in 0..1 + random.next() % 4 {
            original.machine.run(&random.script());
        }
        let twin = original.twin();
        let told = "what restoring tells the outside: only the level of INTR";
        original.witness.take();
        let restored = twin.witness.take();
        assert!(restored.iter().all(|seen| matches!(seen, Seen::Intr(_))), "{round}: {told}: {restored:x?}");
        assert_eq!(
            difference(&original.state(), &twin.state(), String::new()),
            None,
            "{round}: just restored"
        );
        for turn in 0..3 {
            let script = random.script();
            original.machine.run(&script);
            twin.machine.run(&script);
            let (here, there) = (original.witness.take(), twin.witness.take());
            let first = here.iter().zip(&there).position(|(here, there)| here != there);
            let first = first.unwrap_or(here.len().min(there.len()));
            let (here, there) = (here.get(first), there.get(first));
            assert_eq!(here, there, "round {round}, turn {turn}: thing {first} that is seen of it");
        }
        assert_eq!(difference(&original.state(), &twin.state(), String::new()), None, "{round}: at the end");
        assert!(original.memory() == twin.memory(), "{round}: memory");
        assert!(original.picture() == twin.picture(), "{round}: video memory");
    }
}
