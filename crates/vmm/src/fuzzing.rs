//! Bodies of the fuzz targets: plain functions of bytes that must neither panic nor hang.

use crate::spec::VmSpec;
use api::worker::config::VmConfig;

/// Reads `data` as a line of the control protocol.
pub fn control_line(data: &[u8]) {
    let _ = crate::control::is_request(data);
}

/// Reads `data` as a configuration file and checks it.
pub fn config(data: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<VmConfig>(data) {
        let _ = VmSpec::try_from(config);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn mutated_lines_and_files_are_handled() {
        let seeds: [&[u8]; 4] = [
            br#"{"id": 7, "version": 1, "op": "counters"}"#,
            br#"{"op": "status"}"#,
            br#"{"kernel": "k", "memory": "1G", "cpus": 2, "disks": [{"path": "d", "serial": "s"}]}"#,
            br#"{"kernel": "k", "nets": [{"user": {"mac": "a6:41:72:00:00:01", "forward": ["1:2/udp"]}}]}"#,
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        for round in 0..5000 {
            let mut data = seeds[round % seeds.len()].to_vec();
            for _ in 0..1 + below(4) {
                let at = below(data.len());
                data[at] = [b'"', b'{', b'9', b'-', 0, 0xff, b',', below(256) as u8][below(8)];
            }
            super::control_line(&data);
            super::config(&data);
        }
    }
}
