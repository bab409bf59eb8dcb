//! For tests of protocols whose requests lie in a line beside fields of the line.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;

/// Checks that no request has a field of the line that it lies in, which would never reach it. `known` is one of the
/// operations, of which there are more than `operations`; more than `with_fields` of them have fields.
pub(crate) fn check<R: DeserializeOwned + Debug>(
    line: &[&str],
    known: &str,
    operations: usize,
    with_fields: usize,
) {
    // What there is, serde tells when it is asked for what there is not.
    let words = |request: Value| -> Vec<String> {
        let error = serde_json::from_value::<R>(request).unwrap_err().to_string();
        let expected = error.split_once("expected").map_or("", |(_, expected)| expected);
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let found = words(json!({"op": "?"}));
    assert!(found.len() > operations && found.contains(&known.to_owned()), "{found:?}");
    let mut number = 0;
    for operation in found {
        let fields = words(json!({"op": operation, "?": 0}));
        number += usize::from(!fields.is_empty());
        for field in line {
            assert!(!fields.iter().any(|found| found == field), "{operation} has a field {field}");
        }
    }
    assert!(number > with_fields, "{number} requests with fields");
}
