//! Bodies of the fuzz targets: plain functions of bytes that must neither panic nor hang.

use super::frame::{FrameDecoder, FrameKind};
use super::{Control, Event, ReplyResult, Request, RequestLine};

/// Reads `data` as what a hostile peer sends, whichever side it plays.
pub fn frames(data: &[u8]) {
    let mut decoder = FrameDecoder::default();
    let piece = data.first().map_or(1, |&byte| usize::from(byte).max(1));
    for bytes in data.chunks(piece) {
        decoder.push(bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => payload(frame.kind, &frame.payload),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn payload(kind: FrameKind, payload: &[u8]) {
    match kind {
        FrameKind::Request => {
            if let Ok(RequestLine { request: Request::Personality(personality), .. }) =
                serde_json::from_slice(payload)
            {
                let _ = personality.check();
            }
        }
        FrameKind::Reply => {
            let _ = serde_json::from_slice::<ReplyResult>(payload);
        }
        FrameKind::Control => {
            let _ = serde_json::from_slice::<Control>(payload);
        }
        FrameKind::Event => {
            if let Ok(Event::Exited(exit)) = serde_json::from_slice(payload) {
                let _ = exit.code();
            }
        }
        FrameKind::Stdin | FrameKind::Stdout | FrameKind::Stderr | FrameKind::Data => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::frame::write_frame;

    /// A small generator of repeatable pseudo-random numbers (xorshift64).
    struct Random(u64);
    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }
    }

    #[test]
    fn mutated_frames_are_handled() {
        let texts: [(FrameKind, &str); 6] = [
            (FrameKind::Request, r#"{"version":1,"op":"exec","command":["ls"],"environment":{"A":"b"}}"#),
            (
                FrameKind::Request,
                r#"{"version":1,"op":"personality","instance_id":"i","identity":{"hostname":"h"}}"#,
            ),
            (FrameKind::Reply, r#"{"ok":{"type":"frozen","frozen":["/"]}}"#),
            (FrameKind::Reply, r#"{"error":{"kind":"failed","message":"no"}}"#),
            (FrameKind::Event, r#"{"type":"exited","status":3}"#),
            (FrameKind::Control, r#"{"type":"resize","rows":1,"columns":2}"#),
        ];
        let mut seed = Vec::new();
        for (kind, text) in texts {
            write_frame(&mut seed, kind, text.as_bytes()).unwrap();
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..5000 {
            let mut data = seed.clone();
            for _ in 0..random.below(6) {
                let at = random.below(data.len());
                data[at] = [0, 1, 0x7f, 0xff, b'"', b'{', random.below(256) as u8][random.below(7)];
            }
            if random.below(4) == 0 {
                data.truncate(random.below(data.len()));
            }
            frames(&data);
        }
    }
}
