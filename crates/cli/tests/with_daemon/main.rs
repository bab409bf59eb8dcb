//! The program beside a daemon that answers what a test says.

mod completion;
mod files_and_signals;
mod requests;
mod rig;
mod stub;
