//! The huge pages that a model needs with given arguments, before a load.
//!
//! The server computes the plan with the code that loads models: it reads the headers, places each tensor, and ends before it
//! takes the first page. So the plan matches a load.
//!
//! ```text
//! ask.rs     asks llama-server      demand.rs  the need against the pools: missing pages, and commands that add them
//! need.rs    the need, and its sums limits.rs  the need as limits of containers
//! error.rs   why a plan fails
//! ```

mod ask;
mod demand;
mod error;
mod limits;
mod need;

pub(crate) use ask::cause_and_hint;
pub use ask::{GROW, SHORT};
pub use demand::{Demand, NodeDemand, PoolDemand};
pub use error::PlanError;
pub use limits::{Containers, Limits, LimitsError, bounded_arguments};
pub use need::{Context, Memory, Need, Plan, RouterModel, WorkerNeed};
