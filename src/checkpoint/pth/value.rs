//! What a pickle holds, as plain data.

use super::super::stored::Stored;

/// A value of a pickle. Nothing of it was executed: objects are their class name and the data they would be made from.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// An integer of at most 128 bits.
    Int(i128),
    /// A float, also of numpy.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes, also the digits of longer integers, least significant first.
    Bytes(Vec<u8>),
    /// `list`
    List(Vec<Value>),
    /// `tuple`, `torch.Size`
    Tuple(Vec<Value>),
    /// `set`, `frozenset`
    Set(Vec<Value>),
    /// `dict`, `OrderedDict`, `defaultdict` in order
    Dict(Vec<(Value, Value)>),
    /// A tensor, whose contents are read on demand.
    Tensor(Box<TensorRef>),
    /// A class or function by its full name: `torch.float32`
    Class(String),
    /// An instance of any other class.
    Object(Box<Object>),
}

/// An instance of a class that means nothing here.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Full name: `argparse.Namespace`
    pub class: String,
    /// Arguments of its construction.
    pub args: Vec<Value>,
    /// Its state, usually a dictionary of its attributes.
    pub state: Value,
    /// Items of a subclass of `dict`.
    pub items: Vec<(Value, Value)>,
    /// Elements of a subclass of `list` or `set`.
    pub elements: Vec<Value>,
}

/// Where a tensor's elements are in an archive.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRef {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, for each axis.
    pub strides: Vec<usize>,
    /// Element of the storage that the first one is.
    pub offset: usize,
    /// Name of the storage.
    pub storage: String,
    /// Elements in the storage.
    pub length: usize,
    pub(in super::super) stored: Stored,
}

impl Value {
    /// An item of a dictionary or an attribute of an object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Dict(items) => items.iter().rfind(|(k, _)| matches!(k, Self::Str(k) if k == key)).map(|(_, v)| v),
            Self::Object(object) => object.state.get(key),
            _ => None,
        }
    }

    /// A number as f64.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(v) => Some(*v as f64),
            Self::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// Text.
    pub fn text(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// What it is, for messages.
    pub fn kind(&self) -> String {
        match self {
            Self::None => "None".into(),
            Self::Bool(_) => "a bool".into(),
            Self::Int(_) => "an integer".into(),
            Self::Float(_) => "a float".into(),
            Self::Str(_) => "text".into(),
            Self::Bytes(_) => "bytes".into(),
            Self::List(_) => "a list".into(),
            Self::Tuple(_) => "a tuple".into(),
            Self::Set(_) => "a set".into(),
            Self::Dict(_) => "a dictionary".into(),
            Self::Tensor(_) => "a tensor".into(),
            Self::Class(name) => format!("the class {name}"),
            Self::Object(object) => format!("an object of class {}", object.class),
        }
    }
}
