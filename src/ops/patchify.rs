//! Images as rows of patches: the geometry the masked operations share, and the two plain functions for targets and
//! pictures.
//!
//! `patches[b, gy·Wg + gx, (py·p + px)·C + c] = images[b, c, gy·p + py, gx·p + px]`: pixel row, pixel column, channel
//! fastest. That is the order of predictions and targets; a patch embedding reads `(c, py, px)` instead
//! ([`masked_gather`](super::masked_gather)).

use rayon::prelude::*;

use crate::{Device, Error, Result, Tensor};

/// Geometry of `[B, C, H, W]` images cut into square patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub batch: usize,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub patch: usize,
}

impl Grid {
    /// Of an image tensor that consists of patches.
    pub fn check(op: &'static str, images: &Tensor, patch: usize) -> Result<Self> {
        let grid = Self::inside(op, images, patch)?;
        if grid.height % patch != 0 || grid.width % patch != 0 {
            let expected = format!("sides that are multiples of the patch, {patch}");
            return Err(Error::shape(op, "images", images.shape(), expected));
        }
        Ok(grid)
    }

    /// Of the whole patches of an image tensor: pixels right of them and below them belong to none.
    pub fn inside(op: &'static str, images: &Tensor, patch: usize) -> Result<Self> {
        let [batch, channels, height, width] = images.dims(op, "images")?;
        if patch == 0 || patch > u16::MAX.into() {
            return Err(Error::value(op, "patch", patch, "from 1 to 65535 pixels"));
        }
        Ok(Self { batch, channels, height, width, patch })
    }

    /// Patches in a row of the image.
    pub fn columns(&self) -> usize {
        self.width / self.patch
    }

    /// Patches in an image, `L`.
    pub fn patches(&self) -> usize {
        self.height / self.patch * self.columns()
    }

    /// Values in a patch, `P`.
    pub fn values(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// Pixels a kernel moves at once: they divide the patch, so they stay in its row, and the width, so every row of
    /// pixels is aligned.
    pub fn vector(&self) -> u32 {
        [4, 2].into_iter().find(|&v| self.patch.is_multiple_of(v) && self.width.is_multiple_of(v)).unwrap_or(1) as u32
    }

    /// Values in an image.
    pub fn image(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The rows of pixels of patch `id` as `(c, py, offset inside the image)`; each is `patch` long.
    #[inline(always)]
    pub fn rows(&self, id: usize) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let Self { channels, height, width, patch, .. } = *self;
        let first = id / (width / patch) * patch * width + id % (width / patch) * patch;
        (0..channels).flat_map(move |c| (0..patch).map(move |py| (c, py, (c * height + py) * width + first)))
    }
}

/// Cuts `images: [B, C, H, W]` of any dtype into patches `[B, L, p·p·C]`, channel fastest; an exact copy.
///
/// # Errors
/// When a side is not a multiple of `patch`.
pub fn patchify(images: &Tensor, patch: usize) -> Result<Tensor> {
    let grid = Grid::check("patchify", images, patch)?;
    let host = images.to_device(&Device::Cpu)?;
    let mut y = Tensor::uninit([grid.batch, grid.patches(), grid.values()], images.dtype(), &Device::Cpu)?;
    copy(&grid, images.dtype().size(), bytes(&host)?, bytes_mut(&mut y)?, |image, patches| (patches, image));
    y.to_device(images.device())
}

/// The inverse of [`patchify`]: `patches: [B, L, p·p·C]` on a grid of `(Hg, Wg)` patches become `[B, C, Hg·p, Wg·p]`.
///
/// # Errors
/// When `patches` does not have `Hg·Wg` rows of a multiple of `patch²` values.
pub fn unpatchify(patches: &Tensor, patch: usize, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let op = "unpatchify";
    let [batch, len, values] = patches.dims(op, "patches")?;
    let area = patch * patch;
    if area == 0 || values % area != 0 || len != rows * columns {
        let expected = format!("[B, {rows} x {columns}, multiple of {patch} x {patch}]");
        return Err(Error::shape(op, "patches", patches.shape(), expected));
    }
    let grid = Grid { batch, channels: values / area, height: rows * patch, width: columns * patch, patch };
    let shape = [batch, grid.channels, grid.height, grid.width];
    let (mut x, host) = (Tensor::uninit(shape, patches.dtype(), &Device::Cpu)?, patches.to_device(&Device::Cpu)?);
    copy(&grid, patches.dtype().size(), bytes(&host)?, bytes_mut(&mut x)?, |image, patches| (image, patches));
    x.to_device(patches.device())
}

/// Copies element by element between the two layouts; `direct` turns (image, patches) positions into (to, from).
fn copy(grid: &Grid, size: usize, from: &[u8], to: &mut [u8], direct: fn(usize, usize) -> (usize, usize)) {
    let image = grid.image() * size;
    if image == 0 {
        return;
    }
    to.par_chunks_mut(image).zip(from.par_chunks(image)).for_each(|(to, from)| {
        for id in 0..grid.patches() {
            for (c, py, at) in grid.rows(id) {
                for px in 0..grid.patch {
                    let (t, f) = direct(at + px, id * grid.values() + (py * grid.patch + px) * grid.channels + c);
                    to[t * size..][..size].copy_from_slice(&from[f * size..][..size]);
                }
            }
        }
    });
}

fn bytes(x: &Tensor) -> Result<&[u8]> {
    let missing = || Error::argument("patchify", "x", "device", x.device().name(), "cpu");
    x.storage().host().ok_or_else(missing)
}

fn bytes_mut(x: &mut Tensor) -> Result<&mut [u8]> {
    let missing = Error::argument("patchify", "y", "device", x.device().name(), "cpu");
    x.storage_mut("patchify")?.host_mut().ok_or(missing)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::DType;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn unpatchify_inverts(b in 0usize..3, c in 1usize..5, hg in 1usize..4, wg in 1usize..4, p in 1usize..6) {
            let shape = [b, c, hg * p, wg * p];
            let x: Vec<i32> = (0..shape.iter().product::<usize>() as i32).collect();
            let x = Tensor::from_slice(&x, shape, &Device::Cpu).unwrap();
            let y = patchify(&x, p).unwrap();
            let values = y.to_vec::<i32>().unwrap();
            for (at, v) in values.iter().enumerate() {
                let (row, j) = (at / (p * p * c), at % (p * p * c));
                let (image, id) = (row / (hg * wg), row % (hg * wg));
                let (py, px, ch) = (j / c / p, j / c % p, j % c);
                let expected = ((image * c + ch) * hg * p + id / wg * p + py) * wg * p + id % wg * p + px;
                prop_assert_eq!(*v, expected as i32);
            }
            let back = unpatchify(&y, p, (hg, wg)).unwrap();
            prop_assert_eq!(back.shape(), x.shape());
            prop_assert_eq!(back.to_vec::<i32>().unwrap(), x.to_vec::<i32>().unwrap());
        }
    }

    #[test]
    fn vectors_divide_patch_and_width() {
        for (patch, width, vector) in [(16, 224, 4), (14, 224, 2), (6, 30, 2), (7, 35, 1), (4, 20, 4), (1, 8, 1)] {
            assert_eq!(Grid { batch: 1, channels: 3, height: patch, width, patch }.vector(), vector);
        }
    }

    #[test]
    fn wrong_shapes_are_named() {
        let x = Tensor::zeros([2, 3, 30, 32], DType::U8, &Device::Cpu).unwrap();
        let error = patchify(&x, 16).unwrap_err().to_string();
        let expected =
            "patchify: `images` has shape [2, 3, 30, 32], expected sides that are multiples of the patch, 16";
        assert_eq!(error, expected);
        let y = Tensor::zeros([2, 5, 12], DType::F32, &Device::Cpu).unwrap();
        assert!(unpatchify(&y, 2, (2, 3)).is_err());
        assert!(unpatchify(&y, 5, (5, 1)).is_err());
    }
}
