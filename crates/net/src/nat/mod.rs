mod config;
mod forward;
mod tcp;
pub use config::*;
pub use forward::*;
