//! The parts of the `hugepages` tool: pools, plans, stores, status, and measurements against stock llama.cpp.
//!
//! Imports point one way: `cli` (in the program) → parts → [`kernel`] → the library `llama_hugepages`.

#![warn(missing_docs)]

pub mod child_process;
pub mod compare;
pub mod demo_model;
pub mod doctor;
pub mod ending_signals;
pub mod kernel;
mod picture;
pub mod plan;
pub mod pool;
pub mod port;
pub mod serve;
pub mod server_arguments;
pub mod size;
pub mod stats;
pub mod status;
pub mod store;
pub mod tlb;
