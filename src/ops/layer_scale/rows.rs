//! Which tokens a branch was computed for.

use super::OP;
use crate::{Device, Error, Result, Tensor};

/// The rows of a branch over packed sequences: the token and the sequence of each. Made on the host, kept on a device.
#[derive(Clone, Debug)]
pub struct RowMap {
    /// `[R]`: number, among the sequences the branch has, of each row's sequence.
    sequence: Tensor,
    /// `[R]` token of each row, and `[T]` row of each token or -1; none where row `t` is that of token `t`.
    routes: Option<(Tensor, Tensor)>,
    /// `[sequences + 1]`: first row of each sequence of the branch.
    cu_seqlens: Tensor,
    tokens: usize,
}

impl RowMap {
    /// A branch that has every row of the sequences `cu_seqlens[i]..cu_seqlens[i + 1]`.
    ///
    /// # Errors
    /// When the offsets do not start at 0 or fall.
    pub fn all(cu_seqlens: &[i32], device: &Device) -> Result<Self> {
        let tokens = check_offsets(cu_seqlens)?;
        let mut sequence = Vec::with_capacity(tokens);
        for (i, pair) in cu_seqlens.windows(2).enumerate() {
            sequence.resize(pair[1] as usize, i as i32);
        }
        let (sequence, cu_seqlens) = (upload(&sequence, device)?, upload(cu_seqlens, device)?);
        Ok(Self { sequence, routes: None, cu_seqlens, tokens })
    }

    /// A branch that has the rows of the sequences `kept`, one after the other in that order.
    ///
    /// # Errors
    /// When the offsets do not start at 0 or fall, or a kept sequence does not exist or occurs twice.
    pub fn subset(cu_seqlens: &[i32], kept: &[usize], device: &Device) -> Result<Self> {
        let tokens = check_offsets(cu_seqlens)?;
        let sequences = cu_seqlens.len() - 1;
        let mut seen = vec![false; sequences];
        let (mut token, mut sequence, mut offsets) = (vec![], vec![], vec![0]);
        let mut source = vec![-1; tokens];
        for (i, &k) in kept.iter().enumerate() {
            match seen.get_mut(k) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(Error::value(OP, format!("kept[{i}]"), k, "each sequence once")),
                None => return Err(Error::value(OP, format!("kept[{i}]"), k, format!("a sequence below {sequences}"))),
            }
            for t in cu_seqlens[k]..cu_seqlens[k + 1] {
                source[t as usize] = token.len() as i32;
                token.push(t);
                sequence.push(i as i32);
            }
            offsets.push(token.len() as i32);
        }
        Ok(Self {
            sequence: upload(&sequence, device)?,
            routes: Some((upload(&token, device)?, upload(&source, device)?)),
            cu_seqlens: upload(&offsets, device)?,
            tokens,
        })
    }

    /// Tokens of the residual stream.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows of the branch.
    pub fn rows(&self) -> usize {
        self.sequence.numel()
    }

    /// Sequences the branch has: factors a call takes.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.numel() - 1
    }

    /// `[R]`, i32: the token of each row, to gather the branch's input by; none where the branch has every token.
    pub fn ids(&self) -> Option<&Tensor> {
        self.routes.as_ref().map(|(token, _)| token)
    }

    /// `[sequences + 1]`, i32: offsets of the sequences within the branch.
    pub fn cu_seqlens(&self) -> &Tensor {
        &self.cu_seqlens
    }

    /// Everything of it that lies on the device, in a fixed order: a map of as many rows may be copied over it.
    pub fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let routes = self.routes.iter_mut().flat_map(|(token, source)| [token, source]);
        [&mut self.sequence, &mut self.cu_seqlens].into_iter().chain(routes)
    }

    pub(super) fn sequence(&self) -> &Tensor {
        &self.sequence
    }

    /// `[T]`, i32: the row of each token, -1 for none.
    pub(super) fn source(&self) -> Option<&Tensor> {
        self.routes.as_ref().map(|(_, source)| source)
    }
}

fn upload(values: &[i32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, [values.len()], device)
}

/// The number of tokens.
fn check_offsets(offsets: &[i32]) -> Result<usize> {
    let refuse =
        |at: usize, expected: String| Err(Error::value(OP, format!("cu_seqlens[{at}]"), offsets[at], expected));
    if offsets.is_empty() {
        return Err(Error::argument(OP, "cu_seqlens", "length", "0", "sequences + 1"));
    }
    if offsets[0] != 0 {
        return refuse(0, "0".into());
    }
    for (i, pair) in offsets.windows(2).enumerate() {
        if pair[1] < pair[0] {
            return refuse(i + 1, format!("at least {}, the offset before it", pair[0]));
        }
    }
    Ok(offsets[offsets.len() - 1] as usize)
}
