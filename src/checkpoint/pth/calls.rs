//! The few functions whose meaning a checkpoint needs. Everything else becomes an opaque object.

use super::super::stored::Stored;
use super::machine::{Fault, Id, Instance, Machine, Node};
use super::value::TensorRef;
use crate::DType;

/// What `class(*args)` stands for.
///
/// # Errors
/// When the arguments of a known function are not what it takes.
pub fn call(m: &mut Machine, class: &str, args: Id) -> Result<Id, Fault> {
    call_nested(m, class, args, 0)
}

fn call_nested(m: &mut Machine, class: &str, args: Id, depth: usize) -> Result<Id, Fault> {
    let argument = |m: &Machine, at: usize| m.sequence(args).and_then(|a| a.get(at).copied());
    let made = match class {
        "collections.OrderedDict" | "builtins.dict" => Some(dict(m, argument(m, 0))?),
        "collections.defaultdict" => Some(dict(m, argument(m, 1))?),
        "builtins.list" | "builtins.tuple" | "builtins.set" | "builtins.frozenset" | "torch.Size" => {
            sequence(m, class, argument(m, 0))?
        }
        "_codecs.encode" => encode(m, argument(m, 0), argument(m, 1))?,
        "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar" => {
            scalar(m, argument(m, 0), argument(m, 1)).map(|v| m.add(v))
        }
        "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor_v3" => {
            let tensor = tensor(m, args).ok_or("a tensor whose description is not understood")??;
            m.charge(size_of::<TensorRef>() + tensor.shape.len() * 16 + tensor.storage.len())?;
            Some(m.add(Node::Tensor(Box::new(tensor))))
        }
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => argument(m, 0),
        // A subclass of tensor: (function, type, arguments, state).
        "torch._tensor._rebuild_from_type_v2" if depth == 0 => {
            match (argument(m, 0).map(|f| m.node(f)), argument(m, 2)) {
                (Some(Node::Class(function)), Some(args)) => {
                    let function = function.clone();
                    Some(call_nested(m, &function, args, 1)?)
                }
                _ => None,
            }
        }
        _ => None,
    };
    Ok(match made {
        Some(id) => id,
        None => {
            m.charge(size_of::<Instance>() + class.len())?;
            let class = class.to_string();
            m.add(Node::Object(Box::new(Instance { class, args, state: None, items: vec![], elements: vec![] })))
        }
    })
}

/// `dict()`, `dict(pairs)`, `dict(dict)`
fn dict(m: &mut Machine, from: Option<Id>) -> Result<Id, Fault> {
    let items: Vec<(Id, Id)> = match from.map(|id| m.node(id)) {
        None | Some(Node::None) => vec![],
        Some(Node::Dict(items)) => items.clone(),
        Some(Node::List(pairs) | Node::Tuple(pairs)) => {
            let pair = |id: &Id| m.sequence(*id).and_then(|p| <[Id; 2]>::try_from(p).ok()).map(|[k, v]| (k, v));
            pairs.iter().map(pair).collect::<Option<_>>().ok_or("a dictionary made from something else than pairs")?
        }
        Some(_) => return Err("a dictionary made from something else than pairs".into()),
    };
    m.charge(items.len() * size_of::<(Id, Id)>())?;
    Ok(m.add(Node::Dict(items)))
}

/// `list(..)` and its kin over a sequence.
fn sequence(m: &mut Machine, class: &str, from: Option<Id>) -> Result<Option<Id>, Fault> {
    let items = match from.map(|id| m.node(id)) {
        None => vec![],
        Some(Node::List(items) | Node::Tuple(items) | Node::Set(items)) => items.clone(),
        Some(_) => return Ok(None),
    };
    m.charge(items.len() * size_of::<Id>())?;
    Ok(Some(m.add(match class {
        "builtins.list" => Node::List(items),
        "builtins.set" | "builtins.frozenset" => Node::Set(items),
        _ => Node::Tuple(items),
    })))
}

/// Bytes in protocol 2: text of code points below 256, encoded as latin-1.
fn encode(m: &mut Machine, text: Option<Id>, codec: Option<Id>) -> Result<Option<Id>, Fault> {
    let (Some(text), Some(codec)) = (text, codec) else { return Ok(None) };
    let (Node::Str(text), Node::Str(codec)) = (m.node(text), m.node(codec)) else { return Ok(None) };
    if codec != "latin1" && codec != "latin-1" {
        return Ok(None);
    }
    let bytes = text.chars().map(|c| u8::try_from(u32::from(c))).collect::<Result<Vec<u8>, _>>();
    let bytes = bytes.map_err(|_| "bytes with a value above 255")?;
    m.charge(bytes.len())?;
    Ok(Some(m.add(Node::Bytes(bytes))))
}

/// A numpy scalar: (dtype, its bytes). The dtype is an object made from a code such as `f8`, its state begins (version, order).
fn scalar(m: &Machine, dtype: Option<Id>, bytes: Option<Id>) -> Option<Node> {
    let (Node::Object(dtype), Node::Bytes(bytes)) = (m.node(dtype?), m.node(bytes?)) else { return None };
    let Node::Str(code) = m.node(*m.sequence(dtype.args)?.first()?) else { return None };
    let big = dtype
        .state
        .and_then(|s| m.sequence(s)?.get(1).copied())
        .is_some_and(|o| matches!(m.node(o), Node::Str(o) if o == ">"));
    let mut bytes = bytes.clone();
    if big {
        bytes.reverse();
    }
    let wide = |signed: bool| {
        let fill = if signed && bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 16];
        wide.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        Some(Node::Int(i128::from_le_bytes(wide)))
    };
    match code.as_str() {
        "f8" => Some(Node::Float(f64::from_le_bytes(bytes.try_into().ok()?))),
        "f4" => Some(Node::Float(f32::from_le_bytes(bytes.try_into().ok()?).into())),
        "f2" => Some(Node::Float(half::f16::from_le_bytes(bytes.try_into().ok()?).to_f64())),
        "b1" => Some(Node::Bool(bytes != [0])),
        "i1" | "i2" | "i4" | "i8" => wide(true),
        "u1" | "u2" | "u4" | "u8" => wide(false),
        _ => None,
    }
}

/// `(storage, offset, shape, strides, ...)`, in version 3 with the dtype as seventh. `None` if it is not of that form.
fn tensor(m: &Machine, args: Id) -> Option<Result<TensorRef, Fault>> {
    let args = m.sequence(args)?;
    let Node::Storage(key) = m.node(*args.first()?) else { return None };
    let key = m.sequence(*key)?; // ("storage", class, name, device, length)
    let (Node::Class(class), Node::Str(storage)) = (m.node(*key.get(1)?), m.node(*key.get(2)?)) else { return None };
    let length = extent(m, *key.get(4)?)?;
    let extents = |id: Id| m.sequence(id)?.iter().map(|d| extent(m, *d)).collect::<Option<Vec<usize>>>();
    let (offset, shape, strides) = (extent(m, *args.get(1)?)?, extents(*args.get(2)?)?, extents(*args.get(3)?)?);
    let name = match class.rsplit('.').next()? {
        "UntypedStorage" => match args.get(6).map(|d| m.node(*d)) {
            Some(Node::Class(dtype)) => dtype.strip_prefix("torch.")?,
            _ => return None,
        },
        typed => typed.strip_suffix("Storage")?,
    };
    let Some(stored) = stored(name) else {
        return Some(Err(format!("a tensor of type {name}, which is not supported")));
    };
    let length = if class.ends_with("UntypedStorage") { length / stored.size() } else { length };
    if shape.len() != strides.len() || shape.len() > 64 {
        return Some(Err(format!("a tensor of shape {shape:?} with strides {strides:?}")));
    }
    let tensor = TensorRef { shape, strides, offset, storage: storage.clone(), length, stored };
    Some(tensor.check().map(|()| tensor))
}

fn extent(m: &Machine, id: Id) -> Option<usize> {
    if let Node::Int(v) = m.node(id) { usize::try_from(*v).ok() } else { None }
}

/// By the name of the storage class or of the dtype.
fn stored(name: &str) -> Option<Stored> {
    Some(match name {
        "Float" | "float32" => Stored::Native(DType::F32),
        "Double" | "float64" => Stored::Native(DType::F64),
        "Half" | "float16" => Stored::Native(DType::F16),
        "BFloat16" | "bfloat16" => Stored::Native(DType::BF16),
        "Int" | "int32" => Stored::Native(DType::I32),
        "Byte" | "uint8" => Stored::Native(DType::U8),
        "Long" | "int64" => Stored::I64,
        "Short" | "int16" => Stored::I16,
        "Char" | "int8" => Stored::I8,
        "Bool" | "bool" => Stored::Bool,
        "uint16" => Stored::U16,
        "uint32" => Stored::U32,
        "uint64" => Stored::U64,
        _ => return None,
    })
}

impl TensorRef {
    /// Whether every element lies in the storage, and there are not absurdly more of them than it has.
    fn check(&self) -> Result<(), Fault> {
        let fault = || {
            format!(
                "a tensor of shape {:?}, strides {:?}, offset {} in {} elements",
                self.shape, self.strides, self.offset, self.length
            )
        };
        let bytes = self.stored.bytes(&self.shape).ok_or_else(fault)?;
        if self.shape.contains(&0) {
            return Ok(());
        }
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (d, s)| at.checked_add((d - 1).checked_mul(*s)?));
        // Strides of zero repeat elements; a little of that is legitimate.
        let expanded = bytes > self.length.saturating_mul(self.stored.size()).max(1 << 20);
        if last.is_none_or(|last| last >= self.length) || expanded { Err(fault()) } else { Ok(()) }
    }

    /// Whether the elements are the whole storage in order.
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && self.is_contiguous() && self.shape.iter().product::<usize>() == self.length
    }

    /// Whether the elements follow one another.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(d, s)| {
            let fits = *d <= 1 || *s == step;
            step *= d;
            fits
        })
    }

    /// The elements in row-major order, from the bytes of the storage.
    pub fn gather(&self, storage: &[u8]) -> Vec<u8> {
        let size = self.stored.size();
        let count: usize = self.shape.iter().product();
        if self.is_contiguous() {
            return storage[self.offset * size..][..count * size].to_vec();
        }
        let mut out = Vec::with_capacity(count * size);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..count {
            let at = self.offset + index.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>();
            out.extend_from_slice(&storage[at * size..][..size]);
            for (i, d) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *d {
                    break;
                }
                *i = 0;
            }
        }
        out
    }
}
