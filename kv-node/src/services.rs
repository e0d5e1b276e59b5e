//! What crosses the wire: each service decodes, calls, encodes.
//!
//! Not here: any decision; the listener (server).

pub mod kv;

pub mod pipeline;
