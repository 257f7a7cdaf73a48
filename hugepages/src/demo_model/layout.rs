//! The layout of a model: every tensor, and the random stream of its data.

use super::blocks::Stream;
use super::tensors::{Content, Tensor};
use super::{Error, Shape, Spec};

/// A complete description of a model: it determines every byte.
#[derive(Clone, Debug)]
pub struct Layout {
    pub(super) spec: Spec,
    pub(super) shape: Shape,
    pub(super) tensors: Vec<Tensor>,
}

impl Spec {
    /// Computes the shape and the tensors.
    ///
    /// # Errors
    ///
    /// If the parts of the spec contradict each other, or no such model has this size.
    pub fn layout(self) -> Result<Layout, Error> {
        self.check()?;
        let shape = Shape::choose(&self)?;
        Ok(Layout {
            tensors: shape.tensors(),
            shape,
            spec: self,
        })
    }
}

impl Layout {
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
        self.tensors.iter().map(Tensor::elements).sum()
    }

    /// Bytes of data of all tensors.
    pub(super) fn data_bytes(&self) -> u64 {
        self.tensors
            .iter()
            .map(|tensor| tensor.bytes(self.spec.weights))
            .sum()
    }

    /// The random stream of a tensor's data.
    pub(super) fn stream(&self, tensor: &Tensor) -> Result<Stream, Error> {
        use Content::{Bias, F32Weight, Norm, Weight};
        let ty = tensor.ty(self.spec.weights);
        let (mean, std) = match tensor.content {
            Weight | F32Weight => (0.0, 1.0 / (tensor.shape[0] as f32).sqrt()),
            Norm => (1.0, 0.05),
            Bias => (0.0, 0.02),
        };
        Stream::new(self.spec.seed, &tensor.name, ty, mean, std).ok_or(Error::WeightType(ty))
    }
}
