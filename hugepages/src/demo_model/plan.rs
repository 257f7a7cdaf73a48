//! The spec and the plan of a model.

use std::{io, path::PathBuf};

use super::{Arch, Output, Shape, WrittenFile, arch, blocks, vocab, write};

use llama_hugepages::gguf::{Gguf, GgufError, TensorType};

use crate::size::ByteSize;

/// The weight types that can be generated.
pub const WEIGHT_TYPES: [TensorType; 7] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_K,
    TensorType::Q6_K,
];

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts per layer, at least 2.
    pub count: u32,
    /// Experts that compute each token, at most `count`.
    pub used: u32,
}

/// The requested properties of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The family of the model.
    pub arch: Arch,
    /// Type of the weights: one of [`WEIGHT_TYPES`].
    pub weights: TensorType,
    /// Size of the file, or of all shards together. The result is within 5 %, at a megabyte or two within 25 %.
    pub size: ByteSize,
    /// Needed for [`Arch::Qwen3Moe`], possible for [`Arch::Llama`].
    pub experts: Option<Experts>,
    /// No separate output layer, as in small models.
    pub tied: bool,
    /// Seed of the random weights.
    pub seed: u64,
    /// Context length in the header; `None` means 4096, or 512 for an encoder.
    pub context: Option<u32>,
}

impl Default for Spec {
    /// A dense Llama of 1 GiB in `Q8_0`.
    fn default() -> Self {
        Self {
            arch: Arch::Llama,
            weights: TensorType::Q8_0,
            size: ByteSize::new(1 << 30),
            experts: None,
            tied: false,
            seed: 0,
            context: None,
        }
    }
}

/// A complete description of a model: it determines every byte.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) spec: Spec,
    pub(super) shape: Shape,
    pub(super) tensors: Vec<arch::Tensor>,
}

/// Why a model was not written. [`Error::hint`] names the remedy if the user has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum Error {
    #[error(
        "size {asked} is too small for this architecture and weight type: the minimum is about {smallest}"
    )]
    TooSmall { asked: ByteSize, smallest: ByteSize },
    #[error("size {asked} is too large: the maximum is about {largest}")]
    TooLarge { asked: ByteSize, largest: ByteSize },
    #[error("cannot generate weights of type {0}")]
    WeightType(TensorType),
    #[error("{arch} needs a number of experts", arch = .0.name())]
    NeedsExperts(Arch),
    #[error("{arch} has no experts", arch = .0.name())]
    TakesNoExperts(Arch),
    #[error("invalid number of experts: {used} used of {count}; expected 2 to {max} experts, and 1 to all of them used", max = MAX_EXPERTS)]
    Experts { count: u32, used: u32 },
    #[error("{arch} has no output layer to tie, because it is an encoder", arch = .0.name())]
    CannotTie(Arch),
    #[error("context of {0} tokens is out of range: expected 8 to 16777216")]
    Context(u32),
    #[error("too many shards: {shards} for {tensors} tensors")]
    Shards { shards: u16, tensors: usize },
    #[error("`{}` exists", .0.display())]
    Exists(PathBuf),
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("another process is writing `{}`", .0.display())]
    Busy(PathBuf),
    #[error("too little space in `{dir}`: {need} needed, {free} free", dir = .dir.display())]
    NoSpace {
        dir: PathBuf,
        need: ByteSize,
        free: ByteSize,
    },
    #[error("cannot {what} `{path}`", path = .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot write the header")]
    Header(#[from] GgufError),
    #[error("cancelled")]
    Cancelled,
}

/// llama.cpp's `LLAMA_MAX_EXPERTS`.
const MAX_EXPERTS: u32 = 512;

impl Error {
    /// The hint for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TooSmall { smallest, .. } => {
                Some(format!("use --size {smallest} or more, or fewer experts"))
            }
            Self::Exists(_) => Some("--force replaces it".into()),
            Self::NoSpace { .. } => Some("use a smaller --size or another directory".into()),
            Self::NeedsExperts(_) => Some("add --experts 8 --experts-used 2".into()),
            Self::TakesNoExperts(_) => {
                Some("use --arch llama or --arch qwen3moe for experts".into())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("create the directory first".into())
            }
            _ => None,
        }
    }
}

impl Spec {
    /// Computes the shape and the tensors.
    ///
    /// # Errors
    ///
    /// If the parts of the spec contradict each other, or no such model has this size.
    pub fn plan(self) -> Result<Plan, Error> {
        if !WEIGHT_TYPES.contains(&self.weights) {
            return Err(Error::WeightType(self.weights));
        }
        match (self.arch, self.experts) {
            (Arch::Qwen3Moe, None) => return Err(Error::NeedsExperts(self.arch)),
            (Arch::Qwen3 | Arch::Bert, Some(_)) => return Err(Error::TakesNoExperts(self.arch)),
            (_, Some(Experts { count, used }))
                if !(2..=MAX_EXPERTS).contains(&count) || !(1..=count).contains(&used) =>
            {
                return Err(Error::Experts { count, used });
            }
            _ => {}
        }
        if self.tied && self.arch == Arch::Bert {
            return Err(Error::CannotTie(self.arch));
        }
        if let Some(context) = self
            .context
            .filter(|tokens| !(8..=1 << 24).contains(tokens))
        {
            return Err(Error::Context(context));
        }
        let shape = Shape::choose(&self)?;
        Ok(Plan {
            tensors: shape.tensors(),
            shape,
            spec: self,
        })
    }
}

impl Plan {
    /// The dimensions of the model.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Number of weights, biases and norms.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(arch::Tensor::elements).sum()
    }

    /// Writes the model and returns the files, in order.
    ///
    /// A file gets its final name only after all files are complete. After an error or a cancel, all new files are removed.
    ///
    /// # Errors
    ///
    /// Before the first write: a file exists, or too little space. Later: errors of the file system.
    pub fn write(&self, output: &Output<'_>) -> Result<Vec<WrittenFile>, Error> {
        write::write(self, output)
    }

    /// Bytes of data of all tensors.
    pub(super) fn data_bytes(&self) -> u64 {
        self.tensors
            .iter()
            .map(|tensor| tensor.bytes(self.spec.weights))
            .sum()
    }

    /// The random stream of a tensor's data.
    pub(super) fn stream(&self, tensor: &arch::Tensor) -> Result<blocks::Stream, Error> {
        use arch::Content::{Bias, F32Weight, Norm, Weight};
        let ty = tensor.ty(self.spec.weights);
        let (mean, std) = match tensor.content {
            Weight | F32Weight => (0.0, 1.0 / (tensor.shape[0] as f32).sqrt()),
            Norm => (1.0, 0.05),
            Bias => (0.0, 0.02),
        };
        blocks::Stream::new(self.spec.seed, &tensor.name, ty, mean, std)
            .ok_or(Error::WeightType(ty))
    }

    /// The keys of the header that describe the whole model.
    pub(super) fn set_keys(&self, header: &mut Gguf) -> Result<(), GgufError> {
        let Spec {
            arch,
            weights,
            seed,
            ..
        } = &self.spec;
        header.set_str("general.architecture", arch.name())?;
        header.set_str("general.type", "model")?;
        header.set_str("general.name", &format!("demo {} {weights}", arch.name()))?;
        header.set_str(
            "general.description",
            &format!("random weights, seed {seed}, made by llama-hugepages: answers are nonsense"),
        )?;
        header.set_u32("general.file_type", file_type(*weights))?;
        header.set_u32("general.quantization_version", 2)?;
        self.shape.set_keys(header)?;
        vocab::set(
            header,
            if *arch == Arch::Bert {
                vocab::Use::Embedding
            } else {
                vocab::Use::Generation
            },
        )
    }
}

/// `general.file_type`, llama.cpp's `llama_ftype`: the type of most weights.
fn file_type(weights: TensorType) -> u32 {
    use llama_hugepages::ffi;
    match weights {
        TensorType::F32 => ffi::LLAMA_FTYPE_ALL_F32,
        TensorType::BF16 => ffi::LLAMA_FTYPE_MOSTLY_BF16,
        TensorType::Q8_0 => ffi::LLAMA_FTYPE_MOSTLY_Q8_0,
        TensorType::Q4_0 => ffi::LLAMA_FTYPE_MOSTLY_Q4_0,
        TensorType::Q4_K => ffi::LLAMA_FTYPE_MOSTLY_Q4_K_S,
        TensorType::Q6_K => ffi::LLAMA_FTYPE_MOSTLY_Q6_K,
        _ => ffi::LLAMA_FTYPE_MOSTLY_F16,
    }
}
