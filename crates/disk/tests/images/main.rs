//! Images against QEMU's tools: what we write they read, what they write we read, and they find nothing
//! wrong. Where `qemu-img` is missing the tests say so and pass; `cargo xtask test` installs it.

mod formats;
mod replacing;
mod support;
