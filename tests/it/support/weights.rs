//! The destinations of weights, with a model and stock's answers for each.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::equality::answers;

use super::models;
use super::server::Launch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The image of the file.
    Mapped,
    /// The image of a file of which any compressing file system can compress a third.
    Compressible,
    /// A buffer, through staging buffers.
    Repacked,
}

use Weights::{Compressible, Mapped, Repacked};

pub const BOTH: [Weights; 2] = [Mapped, Repacked];

impl Weights {
    /// A model of 100 MB.
    pub fn demo(self) -> PathBuf {
        match self {
            Mapped => models::demo("100M", "Q8_0"),
            Compressible => models::compressible_demo(),
            Repacked => models::demo("100M", "Q4_K"),
        }
    }

    /// A server of a copy of the model.
    pub fn with(self, launch: Launch, model: &Path) -> Launch {
        match self {
            Mapped | Compressible => launch.model(model),
            Repacked => launch.repacked_model(model),
        }
    }

    /// Our server of the model.
    pub fn launch(self) -> Launch {
        self.with(Launch::ours(), &self.demo())
    }

    /// Stock's answers. An error is the reason to skip the test.
    pub fn stock_answers(self) -> Result<&'static Value, String> {
        static ANSWERS: [OnceLock<Value>; 3] = [const { OnceLock::new() }; 3];
        let stock = Launch::stock()?;
        Ok(ANSWERS[self as usize].get_or_init(|| answers(&self.with(stock, &self.demo()).start())))
    }
}
