//! Boot tests: real kernels under the real programs, from outside.
