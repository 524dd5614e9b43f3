//! The promises of the runtime, kept by every datapath and every way to sleep.
