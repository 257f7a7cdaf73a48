//! Tokens to decode together.

use crate::token::Token;

/// Tokens for one call of [`Context::decode`](crate::Context::decode), each at a position of a sequence.
///
/// ```
/// use llama_hugepages::{Batch, Token};
///
/// // A prompt: only its last token needs output.
/// let prompt = Batch::prompt(&[Token(1), Token(2), Token(3)]);
/// assert_eq!(prompt.len(), 3);
/// assert!(!prompt.is_output(0) && prompt.is_output(2));
///
/// // The same token continues two sequences.
/// let mut batch = Batch::new();
/// batch.push(Token(7), 0, None, true);
/// batch.push(Token(7), 1, None, true);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub(crate) tokens: Vec<Token>,
    pub(crate) sequences: Vec<i32>,
    /// `None`: the next position of the sequence.
    pub(crate) positions: Vec<Option<i32>>,
    /// 0 or 1, the type that C uses.
    pub(crate) outputs: Vec<i8>,
}

impl Batch {
    /// An empty batch.
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

    /// Adds a token. Without a position it takes the next position of its sequence. `output` requests logits or embeddings for this token;
    /// a context with embeddings computes them for all tokens.
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

    /// Whether the batch contains no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether an entry requests output.
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
