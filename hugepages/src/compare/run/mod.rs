//! What runs: programs, cases, and the order of the runs. Knows no report.
//!
//! ```text
//! cases.rs           the table of cases            case.rs            one case and its result
//! abba_order.rs      the runs in the order A B B A side.rs            a program with its arguments
//! server.rs          one server, start to end      program.rs         a program's version and options
//! memory_pressure.rs too little memory             cgroup.rs          a memory limit
//! many_servers.rs    several servers, one model    perplexity.rs      equal to the last digit
//! model_file.rs      the model in the page cache   temporary_store.rs a hugetlbfs mount
//! restart.rs         a restart or a sleep          guardian.rs        cleans up after SIGKILL
//! switch.rs          models in turn, one router    conversation.rs    its tokens and answers
//! traffic.rs         many messages, one router     scratch.rs         temporary files
//! ```

mod abba_order;
mod case;
mod cases;
mod cgroup;
mod conversation;
mod error;
mod guardian;
mod many_servers;
mod memory_pressure;
mod model_file;
mod perplexity;
mod program;
mod restart;
mod scratch;
mod server;
mod side;
mod switch;
mod temporary_store;
mod traffic;

pub use abba_order::Runner;
pub use case::{Case, CaseResult};
pub use cases::{CASES, Pages, Programs, RESTART, Recipe, Row, SWITCH, Which};
pub use conversation::context_size;
pub use error::{Cancelled, CompareError};
pub use many_servers::{Many, ManySide};
pub use memory_pressure::{Pressed, Pressure, PressureSide};
pub use model_file::{Cache, ModelFile};
pub use perplexity::{Perplexity, perplexity_arguments};
pub use program::Program;
pub use restart::{Pause, Restart, RestartSide, Restarted, Resume, SLEEP};
pub use scratch::Scratch;
pub use side::Side;
pub use switch::{
    RoutedModel, SWITCH_MEASURES, Switch, SwitchMeasure, SwitchTalk, Switched, link_models,
};
pub use temporary_store::Store;
pub use traffic::{Message, PERCENTILES, Percentile, Traffic};
