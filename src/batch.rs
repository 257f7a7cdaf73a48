//! Tokens to decode together.

use crate::vocab::Token;

/// Tokens for one call of [`Context::decode`](crate::Context::decode), each at a position of a sequence.
///
/// ```
/// use llama_hugepages::{Batch, Token};
///
/// // A prompt: what comes after its last token is wanted.
/// let prompt = Batch::prompt(&[Token(1), Token(2), Token(3)]);
/// assert_eq!(prompt.len(), 3);
/// assert!(!prompt.is_output(0) && prompt.is_output(2));
///
/// // The same token as the next one of two sequences.
/// let mut batch = Batch::new();
/// batch.push(Token(7), 0, None, true);
/// batch.push(Token(7), 1, None, true);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub(crate) tokens: Vec<Token>,
    pub(crate) sequences: Vec<i32>,
    /// `None`: the next one of the sequence.
    pub(crate) positions: Vec<Option<i32>>,
    /// As C has it: 0 or 1.
    pub(crate) outputs: Vec<i8>,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next tokens of sequence 0, with output for the last.
    pub fn prompt(tokens: &[Token]) -> Self {
        let mut batch = Self::new();
        for (i, token) in tokens.iter().enumerate() {
            batch.push(*token, 0, None, i + 1 == tokens.len());
        }
        batch
    }

    /// The next tokens of sequence 0, with output for each.
    pub fn all_outputs(tokens: &[Token]) -> Self {
        let mut batch = Self::new();
        for token in tokens {
            batch.push(*token, 0, None, true);
        }
        batch
    }

    /// Adds a token. Without a position it is the next one of its sequence. `output`: whether logits or embeddings are
    /// wanted for it; a context that computes embeddings does so for all.
    pub fn push(&mut self, token: Token, sequence: i32, position: Option<i32>, output: bool) {
        self.tokens.push(token);
        self.sequences.push(sequence);
        self.positions.push(position);
        self.outputs.push(i8::from(output));
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether output is wanted for an entry.
    pub fn is_output(&self, index: usize) -> bool {
        self.outputs.get(index).is_some_and(|output| *output != 0)
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.sequences.clear();
        self.positions.clear();
        self.outputs.clear();
    }
}
