//! Pixels as numbers: bytes or floats, normalised per channel.

use super::{on, shaped};
use crate::dtype::{Element, Float, Real, num_like::Ops};
use crate::{DType, Error, Result, Tensor};

/// An element of an image.
pub(crate) trait Pixel: Element {
    /// The value of white.
    const FULL: f64;
    /// As a number.
    fn widen<A: Real>(self) -> A;
}

impl Pixel for u8 {
    const FULL: f64 = 255.0;
    #[inline(always)]
    fn widen<A: Real>(self) -> A {
        A::of(self.into())
    }
}

macro_rules! float_pixel {
    ($($t:ty),*) => { $(
        impl Pixel for $t {
            const FULL: f64 = 1.0;
            #[inline(always)]
            fn widen<A: Real>(self) -> A {
                A::of(self.get().f64())
            }
        }
    )* };
}
float_pixel!(f32, f64, half::bf16, half::f16);

/// Runs `$body` with `$S` standing for the pixel type of `$dtype`.
macro_rules! with_pixel {
    ($op:expr, $arg:expr, $dtype:expr, $S:ident => $body:expr) => {
        match $dtype {
            $crate::DType::U8 => {
                type $S = u8;
                $body
            }
            other => $crate::with_float!($op, $arg, other, $S => $body),
        }
    };
}
pub(crate) use with_pixel;

/// `value = (x / FULL - mean[c]) · inverse[c]`.
pub(crate) struct Norm<A> {
    pub unit: A,
    pub mean: Vec<A>,
    pub inverse: Vec<A>,
}

impl<A: Real> Norm<A> {
    /// From `[2, C]` means and standard deviations, or neither.
    pub fn new<S: Pixel>(norm: Option<&Tensor>, channels: usize) -> Result<Self> {
        let unit = A::ONE / A::of(S::FULL);
        let Some(norm) = norm else {
            return Ok(Self { unit, mean: vec![A::ZERO; channels], inverse: vec![A::ONE; channels] });
        };
        let values = norm.to_f64()?;
        let (mean, std) = values.split_at(channels);
        Ok(Self {
            unit,
            mean: mean.iter().map(|&m| A::of(m)).collect(),
            inverse: std.iter().map(|&s| A::ONE / A::of(s)).collect(),
        })
    }
}

/// Blocks of warps that take patches one after the other: eight per SM of an H100; not measured yet.
const BLOCKS: u32 = 1056;
/// Patches of such a warp at most: it works out once where their pixels are.
const MAX_ROWS: u32 = 4;

/// How many of `rows` patches each warp of the blocks takes, `warps` of them in a block.
pub(crate) fn rows_per_warp(rows: u32, warps: u32) -> u32 {
    (rows / (warps * BLOCKS)).clamp(1, MAX_ROWS)
}

/// Checks the normalisation `[2, C]`: f32, or f64 where there is f64.
pub(crate) fn check_norm(op: &'static str, norm: Option<&Tensor>, channels: usize, images: &Tensor) -> Result<()> {
    let Some(norm) = norm else { return Ok(()) };
    shaped(op, "norm", norm, &[2, channels])?;
    on(op, "norm", norm, images)?;
    match norm.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        other => Err(Error::argument(op, "norm", "dtype", other.name(), "f32")),
    }
}

/// Picks the variant of a kernel for an image dtype.
pub(crate) fn variant(
    op: &'static str,
    images: DType,
    [u8, f32, bf16, f16]: [&'static str; 4],
) -> Result<&'static str> {
    match images {
        DType::U8 => Ok(u8),
        DType::F32 => Ok(f32),
        DType::BF16 => Ok(bf16),
        DType::F16 => Ok(f16),
        other => Err(Error::argument(op, "images", "dtype", other.name(), "u8, f32, bf16 or f16")),
    }
}
