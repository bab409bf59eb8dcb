//! Types that cross a process boundary: worker control requests, replies and errors.
