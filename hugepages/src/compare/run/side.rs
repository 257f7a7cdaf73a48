//! One side of a case: a program with its arguments.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::{Plan, PlanError};

/// One side of a case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Side {
    /// Name in the report: `stock`, `hugepages`.
    pub name: String,
    /// A `llama-server`.
    pub program: PathBuf,
    /// The first file of the model.
    pub model: PathBuf,
    /// More arguments.
    pub args: Vec<String>,
    /// Variables of its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

impl Side {
    /// The plan of this side.
    ///
    /// # Errors
    /// [`PlanError`]
    pub fn plan(&self) -> Result<Plan, PlanError> {
        let model = ["--model".into(), self.model.clone().into_os_string()];
        let args = self.args.iter().map(Into::into);
        Plan::ask(&self.program, model.into_iter().chain(args))
    }
}
