//! The huge pages that a model needs with given arguments, before a load.

mod demand;
mod need;

pub use demand::{Answer, Demand, NodeDemand, answer};
pub(crate) use need::cause_and_hint;
pub use need::{Need, Plan, PlanError, SHORT};
