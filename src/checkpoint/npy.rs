//! The `.npy` format of NumPy, for features, labels and other arrays that leave for analysis.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use super::stored::Stored;
use super::{StateDict, atomic};
use crate::{DType, Device, Error, Result, Tensor};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header read; NumPy's own limit.
const MAX_HEADER: usize = 10_000;

/// Writes a tensor atomically, in its own type. NumPy has no bfloat16: cast before.
///
/// # Errors
/// [`Error::Io`]; an argument error for bfloat16.
pub fn write(path: impl AsRef<Path>, tensor: &Tensor) -> Result<()> {
    let descr = match tensor.dtype() {
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::F16 => "<f2",
        DType::I32 => "<i4",
        DType::U8 => "|u1",
        DType::BF16 => {
            return Err(Error::argument("npy", "tensor", "dtype", "bf16", "a type that NumPy has, such as f32"));
        }
    };
    let tensor = tensor.to_device(&Device::Cpu)?;
    write_bytes(path.as_ref(), descr, tensor.shape(), StateDict::bytes_of(&tensor)?)
}

/// Writes 64-bit integers atomically: labels, indices.
///
/// # Errors
/// [`Error::Io`]; an argument error when `values` does not have as many elements as `shape`.
pub fn write_i64(path: impl AsRef<Path>, values: &[i64], shape: &[usize]) -> Result<()> {
    let expected: usize = shape.iter().product();
    if values.len() != expected {
        let expected = format!("{expected} for shape {shape:?}");
        return Err(Error::argument("npy", "values", "length", values.len().to_string(), expected));
    }
    write_bytes(path.as_ref(), "<i8", shape, bytemuck::cast_slice(values))
}

fn write_bytes(path: &Path, descr: &str, shape: &[usize], bytes: &[u8]) -> Result<()> {
    let extents: Vec<_> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" }; // a tuple of one
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", extents.join(", "));
    let start = MAGIC.len() + 4;
    let total = (start + header.len() + 1).next_multiple_of(64); // the data is aligned, as NumPy writes it
    header.extend(std::iter::repeat_n(' ', total - start - header.len() - 1));
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(|_| Error::checkpoint(path, "too many axes for a header"))?;
    atomic::write(path, |w| {
        w.write_all(MAGIC)?;
        w.write_all(&[1, 0])?;
        w.write_all(&length.to_le_bytes())?;
        w.write_all(header.as_bytes())?;
        w.write_all(bytes)
    })
}

/// Reads an array. Integers other than i32 and u8 become i32, booleans u8.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] saying what is wrong with the file.
pub fn read(path: impl AsRef<Path>) -> Result<Tensor> {
    let path = path.as_ref();
    let file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    array(&mut BufReader::new(file), length, path, "array")
}

/// Reads an array of `length` bytes, header included; `path` and `name` for messages.
pub(super) fn array(file: &mut impl Read, length: u64, path: &Path, name: &str) -> Result<Tensor> {
    let (stored, shape, data_at) = header(file).map_err(|cause| Error::checkpoint(path, cause))?;
    let needed = stored.bytes(&shape);
    if needed.map(|n| n as u64) != Some(length.saturating_sub(data_at)) {
        let needed = needed.map_or("more than memory can hold".into(), |n| n.to_string());
        let given = length.saturating_sub(data_at);
        return Err(Error::checkpoint(path, format!("{given} bytes of data, its shape {shape:?} needs {needed}")));
    }
    stored.read(&shape, file).map_err(|e| e.of(path, name))
}

/// Type, shape and where the data begins.
fn header(file: &mut impl Read) -> std::result::Result<(Stored, Vec<usize>, u64), String> {
    let mut start = [0; 8];
    let truncated = |_| "truncated, or no .npy file".to_string();
    file.read_exact(&mut start).map_err(truncated)?;
    if !start.starts_with(MAGIC) {
        return Err("not a .npy file".into());
    }
    let mut size = [0; 4];
    let wide = match start[6] {
        1 => 2,
        2 | 3 => 4,
        other => return Err(format!("version {other} of the format, expected 1 to 3")),
    };
    file.read_exact(&mut size[..wide]).map_err(truncated)?;
    let size = u32::from_le_bytes(size) as usize;
    if size > MAX_HEADER {
        return Err(format!("a header of {size} bytes, expected at most {MAX_HEADER}"));
    }
    let mut text = vec![0; size];
    file.read_exact(&mut text).map_err(truncated)?;
    let text = String::from_utf8_lossy(&text);
    let unclear = || format!("a header that is not understood: {}", text.trim());
    // {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
    let after = |key: &str| text.split_once(key).map(|(_, rest)| rest.trim_start_matches([' ', ':']));
    let descr = after("'descr'").and_then(|r| r.strip_prefix('\'')?.split('\'').next()).ok_or_else(unclear)?;
    let shape = after("'shape'").and_then(|r| r.strip_prefix('(')?.split(')').next()).ok_or_else(unclear)?;
    let extents = shape.split(',').map(str::trim).filter(|d| !d.is_empty());
    let shape: Vec<usize> = extents.map(|d| d.parse().ok()).collect::<Option<_>>().ok_or_else(unclear)?;
    if !after("'fortran_order'").ok_or_else(unclear)?.starts_with("False") && shape.len() > 1 {
        return Err("Fortran order, expected C order: save numpy.ascontiguousarray(x)".into());
    }
    let stored = match descr {
        "<f4" => Stored::Native(DType::F32),
        "<f8" => Stored::Native(DType::F64),
        "<f2" => Stored::Native(DType::F16),
        "<i4" => Stored::Native(DType::I32),
        "|u1" => Stored::Native(DType::U8),
        "<i8" => Stored::I64,
        "<u8" => Stored::U64,
        "<u4" => Stored::U32,
        "<i2" => Stored::I16,
        "<u2" => Stored::U16,
        "|i1" => Stored::I8,
        "|b1" => Stored::Bool,
        other => return Err(format!("dtype `{other}`, expected little-endian floats, integers or booleans")),
    };
    Ok((stored, shape, (start.len() + wide + size) as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<Tensor> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path())
    }

    /// What `numpy.save` writes for this description and data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{header:117}\n");
        [&MAGIC[..], &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn bytes_are_those_of_numpy() {
        let path = tempfile::NamedTempFile::new().unwrap();
        for (shape, text) in [(&[2, 1][..], "(2, 1)"), (&[2], "(2,)")] {
            write(path.path(), &Tensor::from_slice(&[1f32, -2.0], shape, &Device::Cpu).unwrap()).unwrap();
            let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {text}, }}");
            let expected = file(&header, bytemuck::cast_slice(&[1f32, -2.0]));
            assert_eq!(std::fs::read(path.path()).unwrap(), expected);
        }
    }

    #[test]
    fn types_come_back() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let x = Tensor::from_slice(&[1.5f32, -2.0, 0.25], [3], &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::F16, DType::F64] {
            let x = x.cast(dtype).unwrap();
            write(path.path(), &x).unwrap();
            let back = read(path.path()).unwrap();
            assert_eq!((back.dtype(), back.to_f64().unwrap()), (dtype, x.to_f64().unwrap()));
        }
        assert!(write(path.path(), &x.cast(DType::BF16).unwrap()).unwrap_err().to_string().contains("bf16"));
        write_i64(path.path(), &[-1, 1 << 20, 3, 4], &[2, 2]).unwrap();
        let back = read(path.path()).unwrap();
        assert_eq!((&back.shape()[..], back.to_vec::<i32>().unwrap()), (&[2, 2][..], vec![-1, 1 << 20, 3, 4]));
        assert!(write_i64(path.path(), &[1], &[2]).unwrap_err().to_string().contains("expected 2 for shape [2]"));
        write_i64(path.path(), &[1 << 40], &[1]).unwrap();
        assert!(read(path.path()).unwrap_err().to_string().contains("fit i32"));
    }

    #[test]
    fn faults_are_named() {
        let good = file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", &[0; 8]);
        read_bytes(&good).unwrap();
        for cut in 0..16 {
            assert!(matches!(read_bytes(&good[..good.len() * cut / 16]), Err(Error::Checkpoint { .. })));
        }
        for (bytes, message) in [
            (b"PK\x03\x04 an archive".to_vec(), "not a .npy file"),
            ([&MAGIC[..], &[9, 0]].concat(), "version 9"),
            ([&MAGIC[..], &[2, 0, 0xff, 0xff, 0xff, 0xff]].concat(), "expected at most"),
            (file("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", &[0; 8]), "dtype `>f4`"),
            (file("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1), }", &[0; 8]), "ascontiguousarray"),
            (
                file("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", &[0; 8]),
                "8 bytes of data, its shape [3] needs 12",
            ),
            (
                file("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", &[]),
                "more than memory",
            ),
            (file("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", &[]), "not understood"),
            (file("{'shape': (1,), }", &[]), "not understood"),
        ] {
            let error = read_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), framed in any::<bool>()) {
            let bytes = if framed { file(&String::from_utf8_lossy(&bytes), &bytes) } else { bytes };
            let result = read_bytes(&bytes);
            prop_assert!(result.is_err());
        }
    }
}
