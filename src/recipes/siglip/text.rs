//! The text tower.

use super::Sizes;
use crate::nn::{Block, Builder, Init, LayerNorm, Linear, PerSize, Sequences};
use crate::ops::embedding::{Lookup, embedding};
use crate::ops::gather_rows::gather_rows;
use crate::{Device, Error, Param, Result, Tape, Tensor, Var, module};

/// Token ids of a batch of texts on a device, all of one length and checked against the vocabulary.
#[derive(Clone, Debug)]
pub struct TokenIds {
    tokens: Lookup,
    len: usize,
}

impl TokenIds {
    /// `ids: [B · len]`, text after text, padded to `len` tokens each.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first id that is not below `vocab`; a shape error when `ids` are not whole texts.
    pub fn new(ids: &[i32], len: usize, vocab: usize, device: &Device) -> Result<Self> {
        if len == 0 || !ids.len().is_multiple_of(len) {
            let expected = format!("whole texts of {len} tokens, at least one each");
            return Err(Error::argument("token_ids", "ids", "length", ids.len().to_string(), expected));
        }
        Ok(Self { tokens: Lookup::new(ids, vocab, device)?, len })
    }

    /// Number of texts.
    pub fn batch(&self) -> usize {
        self.tokens.len() / self.len
    }

    /// Tokens of each.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Its tensors, over which those of the next batch are copied when a recorded step runs again.
    pub fn tensors(&mut self) -> [&mut Tensor; 2] {
        self.tokens.tensors()
    }
}

/// A transformer over all tokens of a text, without any mask: padding takes part in attention, as it did in training, and
/// the last position, usually padding, is the one that is embedded. A text has to be padded as in training to get its
/// embedding; another length or a mask gives another one.
///
/// Parameter names as in [`ImageTower`](super::ImageTower).
#[derive(Clone, Debug)]
pub struct TextTower {
    /// `[vocabulary, width]`.
    pub token_embedding: Param,
    /// `[context, width]`.
    pub position_embedding: Param,
    /// The transformer.
    pub layers: Vec<Block>,
    /// After the transformer.
    pub final_layer_norm: LayerNorm,
    /// `[embed_dim, width]`.
    pub head: Linear,
    /// Whether blocks keep only their input and compute the rest again in the backward sweep.
    pub recompute: bool,
    layout: PerSize<Layout>,
}
module!(TextTower { token_embedding, position_embedding, layers, final_layer_norm, head });

/// What follows from number and length of the texts.
#[derive(Clone, Debug)]
struct Layout {
    positions: Lookup,
    seqs: Sequences,
    last: Tensor,
}

impl TextTower {
    /// With big_vision's initial values.
    ///
    /// # Errors
    /// For sizes that no model can have.
    pub fn new(b: &Builder, sizes: &Sizes) -> Result<Self> {
        sizes.check()?;
        let (model, tower) = (b.pp("text_model"), &sizes.text);
        let (embeddings, width, style) = (model.pp("embeddings"), tower.width, tower.style());
        let layer = |i| {
            let path = model.pp("encoder.layers").pp(i);
            Block::new(&path, width, tower.heads, tower.hidden, sizes.eps, &style)
        };
        let table = |name: &str, rows: usize| {
            embeddings.param(&format!("{name}.weight"), [rows, width], Init::Normal((width as f64).powf(-0.5)))
        };
        let weight = Init::Lecun { fan_in: width };
        Ok(Self {
            token_embedding: table("token_embedding", sizes.vocab_size)?,
            position_embedding: table("position_embedding", sizes.context_len)?,
            layers: (0..tower.depth).map(layer).collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::new(&model.pp("final_layer_norm"), width, sizes.eps)?,
            head: Linear::with(&model.pp("head"), width, sizes.embed_dim, weight, Init::Zeros)?,
            recompute: false,
            layout: PerSize::default(),
        })
    }

    /// Embeddings of texts, not normalised: `[B, embed_dim]`. Only the last position is normed and projected.
    ///
    /// # Errors
    /// When the texts are longer than the tower's positions, or their ids of another vocabulary.
    pub fn forward(&self, tape: &Tape, ids: &TokenIds) -> Result<Var> {
        let (x, layout) = self.run(tape, ids)?;
        let x = self.final_layer_norm.forward(tape, &gather_rows(tape, &x, &layout.last)?)?;
        self.head.forward(tape, &x, None)
    }

    /// All tokens after the last norm: `[B · len, width]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn encode(&self, tape: &Tape, ids: &TokenIds) -> Result<Var> {
        self.final_layer_norm.forward(tape, &self.run(tape, ids)?.0)
    }

    fn run(&self, tape: &Tape, ids: &TokenIds) -> Result<(Var, Layout)> {
        let layout = self.layout(ids, self.token_embedding.value().device())?;
        let x = embedding(tape, &tape.param(&self.token_embedding), &ids.tokens, None)?;
        let x = embedding(tape, &tape.param(&self.position_embedding), &layout.positions, Some(&x))?;
        Ok((Block::run(&self.layers, tape, x, &layout.seqs, &[], self.recompute)?, layout))
    }

    fn layout(&self, ids: &TokenIds, device: &Device) -> Result<Layout> {
        let (batch, len, context) = (ids.batch(), ids.len, self.position_embedding.value().shape()[0]);
        if len > context {
            return Err(Error::argument("text_tower", "ids", "length", len.to_string(), format!("at most {context}")));
        }
        self.layout.get(batch, len, device, || {
            let positions: Vec<i32> = (0..batch).flat_map(|_| 0..len as i32).collect();
            let last: Vec<i32> = (1..=batch).map(|text| (text * len) as i32 - 1).collect();
            Ok(Layout {
                positions: Lookup::new(&positions, context, device)?,
                seqs: Sequences::uniform(batch, len, device)?,
                last: Tensor::from_slice(&last, [batch], device)?,
            })
        })
    }
}
