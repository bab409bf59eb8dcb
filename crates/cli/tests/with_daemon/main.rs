//! The program beside a daemon that answers what a test says.

mod completion;
mod requests;
mod rig;
