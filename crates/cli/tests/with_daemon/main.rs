//! The program beside a daemon that answers what a test says.

mod requests;
mod rig;
