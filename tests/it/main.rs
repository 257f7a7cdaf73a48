//! What is claimed, against the real server, the real pool and stock llama.cpp.
//! Lives here: tests that start programs. Not here: unit tests, which lie beside their code.

mod api;
mod architectures;
mod bad_input;
mod build_errors;
mod client;
mod company;
mod compare;
mod coverage;
mod demo_model;
mod device;
mod elsewhere;
mod embeddings;
mod engine;
mod environment;
mod equality;
mod file_systems;
mod fuzz;
mod instrumented;
mod kernel_settings;
mod memory;
mod off;
mod plan;
mod pool;
mod pool_made_up;
mod reading;
mod refused_calls;
mod resident;
mod router;
mod serve;
mod shortage;
mod status;
mod store;
mod support;
mod systemd;
mod tlb;
