//! The training step of `benches/recipes.rs` in candle: a peer of `benches/compare.py`.
//!
//! Reads the number of steps of a visit per line of standard input and answers with one line of JSON.
//! LayerNorm and softmax are the composed forms: the fused ones have no gradient.

use std::io::BufRead;
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, ops};

const BATCH: usize = 8;
const GRID: usize = 14;
const PATCHES: usize = GRID * GRID;
const KEPT: usize = 49;
const PATCH: usize = 16;
const PIXELS: usize = 3 * PATCH * PATCH;

/// Makes parameters and remembers them.
struct Params {
    vars: Vec<Var>,
    device: Device,
}

impl Params {
    fn add(&mut self, values: Result<Tensor>) -> Result<Tensor> {
        let var = Var::from_tensor(&values?)?;
        self.vars.push(var.clone());
        Ok(var.as_tensor().clone())
    }

    fn linear(&mut self, inner: usize, outer: usize) -> Result<Linear> {
        let bound = (6.0 / (inner + outer) as f32).sqrt();
        let device = self.device.clone();
        let w = self.add(Tensor::rand(-bound, bound, (outer, inner), &device))?;
        Ok(Linear { w, b: self.add(Tensor::zeros(outer, DType::F32, &device))? })
    }

    fn norm(&mut self, dim: usize) -> Result<Norm> {
        let device = self.device.clone();
        let w = self.add(Tensor::ones(dim, DType::F32, &device))?;
        Ok(Norm { w, b: self.add(Tensor::zeros(dim, DType::F32, &device))? })
    }

    fn block(&mut self, dim: usize, heads: usize) -> Result<Block> {
        Ok(Block {
            norm1: self.norm(dim)?,
            qkv: self.linear(dim, 3 * dim)?,
            proj: self.linear(dim, dim)?,
            norm2: self.norm(dim)?,
            fc1: self.linear(dim, 4 * dim)?,
            fc2: self.linear(4 * dim, dim)?,
            heads,
        })
    }

    fn token(&mut self, dim: usize) -> Result<Tensor> {
        let device = self.device.clone();
        self.add(Tensor::randn(0f32, 0.02, (1, 1, dim), &device))
    }
}

struct Linear {
    w: Tensor,
    b: Tensor,
}

impl Linear {
    /// Rows of all sequences in one product.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dims = x.dims().to_vec();
        let (inner, outer) = (dims[dims.len() - 1], self.b.dim(0)?);
        let y = x.reshape(((), inner))?.matmul(&self.w.t()?)?.broadcast_add(&self.b)?;
        let mut shape = dims;
        *shape.last_mut().unwrap() = outer;
        y.reshape(shape)
    }
}

struct Norm {
    w: Tensor,
    b: Tensor,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm_slow(x, &self.w, &self.b, 1e-6)
    }
}

struct Block {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
}

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, n, dim) = x.dims3()?;
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?.reshape((b, n, 3, self.heads, dim / self.heads))?;
        let qkv = qkv.permute((2, 0, 3, 1, 4))?;
        let part = |i: usize| qkv.get(i)?.contiguous();
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q * ((dim / self.heads) as f64).powf(-0.5))?.matmul(&k.t()?)?;
        let y = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        let y = y.transpose(1, 2)?.contiguous()?.reshape((b, n, dim))?;
        let x = (x + self.proj.forward(&y)?)?;
        &x + self.fc2.forward(&self.fc1.forward(&self.norm2.forward(&x)?)?.gelu_erf()?)?
    }
}

struct Mae {
    embed: Linear,
    cls: Tensor,
    pos: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    decoder_embed: Linear,
    mask_token: Tensor,
    decoder_pos: Tensor,
    decoder_blocks: Vec<Block>,
    decoder_norm: Norm,
    decoder_pred: Linear,
}

impl Mae {
    fn new(p: &mut Params) -> Result<Self> {
        let (dim, wide) = (128, 192);
        let device = p.device.clone();
        Ok(Self {
            embed: p.linear(PIXELS, wide)?,
            cls: p.token(wide)?,
            pos: Tensor::randn(0f32, 0.5, (1, PATCHES + 1, wide), &device)?, // fixed; its values cost nothing
            blocks: (0..12).map(|_| p.block(wide, 3)).collect::<Result<_>>()?,
            norm: p.norm(wide)?,
            decoder_embed: p.linear(wide, dim)?,
            mask_token: p.token(dim)?,
            decoder_pos: Tensor::randn(0f32, 0.5, (1, PATCHES + 1, dim), &device)?,
            decoder_blocks: (0..4).map(|_| p.block(dim, 4)).collect::<Result<_>>()?,
            decoder_norm: p.norm(dim)?,
            decoder_pred: p.linear(dim, PIXELS)?,
        })
    }

    /// `kept`, `masked`: rows of `[B L]`; `restore`: rows of `[B (K + 1)]`, the last being the mask token's.
    fn loss(&self, images: &Tensor, kept: &Tensor, restore: &Tensor, masked: &Tensor) -> Result<Tensor> {
        let cells = images.reshape((BATCH, 3, GRID, PATCH, GRID * PATCH))?;
        let cells = cells.reshape(&[BATCH, 3, GRID, PATCH, GRID, PATCH][..])?;
        let patches = cells.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?.reshape((BATCH * PATCHES, PIXELS))?;
        let pos = self.pos.narrow(1, 1, PATCHES)?.repeat((BATCH, 1, 1))?.reshape((BATCH * PATCHES, ()))?;
        let x = (self.embed.forward(&patches.index_select(kept, 0)?)? + pos.index_select(kept, 0)?)?;
        let cls = self.cls.broadcast_add(&self.pos.narrow(1, 0, 1)?)?.broadcast_as((BATCH, 1, 192))?;
        let mut x = Tensor::cat(&[&cls.contiguous()?, &x.reshape((BATCH, KEPT, 192))?], 1)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let z = self.decoder_embed.forward(&self.norm.forward(&x)?)?;
        let rows = Tensor::cat(&[&z.reshape((BATCH * (KEPT + 1), 128))?, &self.mask_token.reshape((1, 128))?], 0)?;
        let mut y = rows.index_select(restore, 0)?.reshape((BATCH, PATCHES + 1, 128))?;
        y = y.broadcast_add(&self.decoder_pos)?;
        for block in &self.decoder_blocks {
            y = block.forward(&y)?;
        }
        let y = y.narrow(1, 1, PATCHES)?.contiguous()?.reshape((BATCH * PATCHES, 128))?.index_select(masked, 0)?;
        let pred = self.decoder_pred.forward(&self.decoder_norm.forward(&y)?)?;
        let target = cells.permute(vec![0, 2, 4, 3, 5, 1])?.contiguous()?.reshape((BATCH * PATCHES, PIXELS))?;
        let target = target.index_select(masked, 0)?;
        let target = target.broadcast_sub(&target.mean_keepdim(1)?)?;
        let var = (target.sqr()?.sum_keepdim(1)? / (PIXELS - 1) as f64)?;
        let target = target.broadcast_div(&(var + 1e-6)?.sqrt()?)?.detach();
        (pred - target)?.sqr()?.mean_all()
    }
}

/// Nanoseconds of processor time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|x| x.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let mut params = Params { vars: vec![], device: device.clone() };
    let model = Mae::new(&mut params)?;
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let side = GRID * PATCH;
    let pixels: Vec<f32> = (0..BATCH * 3 * side * side).map(|_| 4.0 * random() - 2.0).collect();
    let images = Tensor::from_vec(pixels, (BATCH, 3, side, side), &device)?;
    let (mut kept, mut restore, mut masked) = (vec![], vec![], vec![]);
    for b in 0..BATCH as u32 {
        let mut order: Vec<(u32, u32)> = (0..PATCHES as u32).map(|i| ((random() * 16e6) as u32, i)).collect();
        order.sort_unstable();
        let mut rank = [0u32; PATCHES];
        order.iter().enumerate().for_each(|(r, &(_, i))| rank[i as usize] = r as u32);
        kept.extend(order[..KEPT].iter().map(|&(_, i)| b * PATCHES as u32 + i));
        let first = b * (KEPT as u32 + 1);
        restore.push(first);
        for (i, &r) in rank.iter().enumerate() {
            let here = r < KEPT as u32;
            restore.push(if here { first + 1 + r } else { (BATCH * (KEPT + 1)) as u32 });
            if !here {
                masked.push(b * PATCHES as u32 + i as u32);
            }
        }
    }
    let index = |ids: Vec<u32>| Tensor::new(ids, &device);
    let (kept, restore, masked) = (index(kept)?, index(restore)?, index(masked)?);
    let settings = ParamsAdamW { lr: 1.5e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05 };
    let mut optimizer = AdamW::new(params.vars, settings)?;
    let mut loss = f32::NAN;
    for line in std::io::stdin().lock().lines() {
        let steps: usize = line.unwrap_or_default().trim().parse().unwrap_or(1);
        let (mut times, mut forward) = (vec![], vec![]);
        let cpu = cpu_seconds();
        for _ in 0..steps {
            let start = Instant::now();
            let y = model.loss(&images, &kept, &restore, &masked)?;
            forward.push(start.elapsed().as_secs_f64() * 1e3);
            optimizer.backward_step(&y)?;
            loss = y.to_scalar::<f32>()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let cpu = (cpu_seconds() - cpu) / steps as f64 * 1e3;
        println!("{{\"ms\":{times:?},\"forward_ms\":{forward:?},\"cpu_ms\":{cpu},\"loss\":{loss}}}");
    }
    Ok(())
}
