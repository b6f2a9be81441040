//! Element types of files. Floats, i32 and u8 are kept; other integers become i32 if they fit, booleans u8.

use std::io::{self, Read};

use crate::{DType, Device, Shape, Tensor};

/// An element type in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A type that tensors have too.
    Native(DType),
    /// 64-bit signed.
    I64,
    /// 64-bit unsigned.
    U64,
    /// 32-bit unsigned.
    U32,
    /// 16-bit signed.
    I16,
    /// 16-bit unsigned.
    U16,
    /// 8-bit signed.
    I8,
    /// One byte, 0 or 1.
    Bool,
}

/// Why a tensor could not be read.
pub enum ReadError {
    /// The file ended or the disk failed.
    Io(io::Error),
    /// An integer outside i32.
    Range(i128),
    /// Memory.
    Other(crate::Error),
}

impl From<io::Error> for ReadError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<crate::Error> for ReadError {
    fn from(e: crate::Error) -> Self {
        Self::Other(e)
    }
}

impl ReadError {
    /// The error of a tensor of a file.
    pub fn of(self, path: &std::path::Path, name: &str) -> crate::Error {
        match self {
            Self::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                crate::Error::checkpoint(path, format!("truncated inside tensor `{name}`"))
            }
            Self::Io(source) => crate::Error::Io { path: path.into(), source },
            Self::Range(v) => {
                crate::Error::checkpoint(path, format!("tensor `{name}` holds {v}, expected integers that fit i32"))
            }
            Self::Other(e) => e,
        }
    }
}

impl Stored {
    /// By its name in safetensors headers; `None` for the 8-bit floats and other types without a use here.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Self::Native(DType::F32),
            "BF16" => Self::Native(DType::BF16),
            "F16" => Self::Native(DType::F16),
            "F64" => Self::Native(DType::F64),
            "I32" => Self::Native(DType::I32),
            "U8" => Self::Native(DType::U8),
            "I64" => Self::I64,
            "U64" => Self::U64,
            "U32" => Self::U32,
            "I16" => Self::I16,
            "U16" => Self::U16,
            "I8" => Self::I8,
            "BOOL" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes per element in the file.
    pub fn size(self) -> usize {
        match self {
            Self::Native(dtype) => dtype.size(),
            Self::I64 | Self::U64 => 8,
            Self::U32 => 4,
            Self::I16 | Self::U16 => 2,
            Self::I8 | Self::Bool => 1,
        }
    }

    /// Bytes of a tensor of this shape in the file; `None` beyond what memory can address.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        // Extents of zero must not hide an overflow of the others: strides would overflow later.
        shape.iter().try_fold(self.size(), |n, &d| n.checked_mul(d.max(1)).filter(|&n| n <= isize::MAX as usize))?;
        Some(shape.iter().product::<usize>() * self.size())
    }

    /// Reads a tensor whose [`bytes`](Self::bytes) the caller has checked against the file.
    pub fn read(self, shape: &[usize], from: &mut impl Read) -> Result<Tensor, ReadError> {
        let shape = Shape::from(shape);
        if let Self::Native(dtype) = self {
            let mut t = Tensor::uninit(shape, dtype, &Device::Cpu)?;
            if let Some(bytes) = t.storage_mut("read")?.host_mut() {
                from.read_exact(bytes)?;
            }
            return Ok(t);
        }
        let mut bytes = vec![0; shape.numel() * self.size()];
        from.read_exact(&mut bytes)?;
        match self {
            Self::I64 => ints(&bytes, shape, |b: [u8; 8]| i64::from_le_bytes(b)),
            Self::U64 => ints(&bytes, shape, |b: [u8; 8]| u64::from_le_bytes(b)),
            Self::U32 => ints(&bytes, shape, |b: [u8; 4]| u32::from_le_bytes(b)),
            Self::I16 => ints(&bytes, shape, |b: [u8; 2]| i16::from_le_bytes(b)),
            Self::U16 => ints(&bytes, shape, |b: [u8; 2]| u16::from_le_bytes(b)),
            Self::I8 => ints(&bytes, shape, |b: [u8; 1]| i8::from_le_bytes(b)),
            Self::Bool | Self::Native(_) => {
                bytes.iter_mut().for_each(|b| *b = u8::from(*b != 0));
                Ok(Tensor::from_slice(&bytes, shape, &Device::Cpu)?)
            }
        }
    }
}

fn ints<const N: usize, V>(bytes: &[u8], shape: Shape, value: impl Fn([u8; N]) -> V) -> Result<Tensor, ReadError>
where
    V: Copy + TryInto<i32> + Into<i128>,
{
    let (chunks, _) = bytes.as_chunks::<N>();
    let narrow = |&b: &[u8; N]| {
        let v = value(b);
        v.try_into().map_err(|_| ReadError::Range(v.into()))
    };
    let values = chunks.iter().map(narrow).collect::<Result<Vec<i32>, _>>()?;
    Ok(Tensor::from_slice(&values, shape, &Device::Cpu)?)
}
