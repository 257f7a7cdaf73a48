//! Stores: hugetlbfs directories that keep models on huge pages after the loading process ends.
//!
//! The engine writes the resident images, checks their owners, and locks them. This module adds types, finds the attached
//! processes, and groups images by model. A store can also hold plain `.gguf` files, which any llama.cpp can map. All other files
//! in the directory belong to other programs: they are counted, but never opened, followed or removed.

mod attached;
mod copy;
mod directory;
mod drop;
mod engine;
mod error;
mod gc;
mod image;
mod load;
pub mod mount;
mod names;
mod verify;

pub use attached::{Attached, Process};
pub use copy::Copied;
pub use directory::Store;
pub(crate) use engine::probe;
pub use engine::{Info, Reason};
pub use error::StoreError;
pub use gc::{Garbage, Rules, span};
pub use image::{Entries, Image, PlainFile};
pub use load::Loader;
pub use names::{Model, Named, shards};
