use super::*;
use crate::queue::RingError;
use crate::test::{Bench, Buffer};
use memory::{Bytes, GuestAddress};

#[test]
fn buffers_are_filled_up_to_the_limit() {
    let mut bench = Bench::new(&mut Rng::new(), 16, 0);
    for (buffers, len) in [
        (&[Buffer::In(0x10_0000, 16)][..], 16),
        (&[Buffer::In(0x10_0000, 100), Buffer::In(0x11_0000, 200)], 300),
        (&[Buffer::In(0x10_0000, 1 << 20)], REQUEST_MAX),
        (&[Buffer::Out(0x10_0000, 16)], 0),
    ] {
        let head = bench.rings[0].add(buffers);
        bench.settle();
        assert_eq!(bench.rings[0].take_used(), Some((head, len)));
    }
    let mut bytes = [[0; 200]; 2];
    for bytes in &mut bytes {
        bench.rings[0].add(&[Buffer::In(0x12_0000, 200)]);
        bench.settle();
        bench.rings[0].take_used();
        bench.ram.guest().read_slice(bytes, GuestAddress(0x12_0000)).unwrap();
    }
    assert_ne!(bytes[0], bytes[1]);
    assert!(bytes.iter().all(|bytes| bytes.iter().any(|byte| *byte != 0)));
}

#[test]
fn a_buffer_outside_of_ram_breaks_the_queue() {
    let mut bench = Bench::new(&mut Rng::new(), 16, 0);
    bench.rings[0].add(&[Buffer::In(1 << 40, 16)]);
    bench.settle();
    assert_eq!(bench.recorder.fault(), Some((0, RingError::BadBuffer)));
}
