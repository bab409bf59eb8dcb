//! What an engine can do on this host.

use serde::{Deserialize, Serialize};

/// The result of [`Engine::probe`](crate::Engine::probe).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Support {
    /// Whether guests can run with this engine here.
    pub usable: bool,
    /// What speed to expect.
    pub speed: Speed,
    /// What was found, and why the engine is or is not usable: one clause per finding.
    pub findings: Vec<String>,
    /// What the administrator could do to make it usable or faster.
    pub remedies: Vec<String>,
}

/// Expected speed, from slow to fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Speed {
    /// Does not run.
    None,
    /// A hundredth of native and below.
    Interpreted,
    /// A half to a fifth of native.
    Translated,
    /// Native.
    Hardware,
}
