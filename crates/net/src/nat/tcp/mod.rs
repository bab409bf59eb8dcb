pub(crate) mod buffer;
pub(crate) mod endpoint;
pub(crate) mod ranges;
pub(crate) mod seq;
pub(crate) const FLOW_BUFFER_MIN: usize = 2 * buffer::CHUNK;
