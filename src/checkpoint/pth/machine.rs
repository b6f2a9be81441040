//! The stack machine of pickles, protocols 2 to 5, as data in and data out: no name is ever looked up or called.
//!
//! Values live in one vector and refer to each other by index, as pickles build them by mutation. Every opcode adds at most one
//! node, and copies are charged to a budget, so memory is bounded by a multiple of the input.

use std::collections::HashMap;

use super::calls;
use super::value::{Object, TensorRef, Value};

/// Index of a node.
pub type Id = u32;

/// Why a pickle cannot be read.
pub type Fault = String;

/// A value under construction.
#[derive(Debug)]
pub enum Node {
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// Up to 128 bits.
    Int(i128),
    /// A float.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes, and longer integers.
    Bytes(Vec<u8>),
    /// `list`
    List(Vec<Id>),
    /// `tuple`
    Tuple(Vec<Id>),
    /// `set`, `frozenset`
    Set(Vec<Id>),
    /// `dict` and its kin.
    Dict(Vec<(Id, Id)>),
    /// A class or function by name.
    Class(String),
    /// An instance of an unknown class.
    Object(Box<Instance>),
    /// A storage, by the tuple that names it.
    Storage(Id),
    /// A tensor.
    Tensor(Box<TensorRef>),
}

/// An instance of an unknown class.
#[derive(Debug)]
pub struct Instance {
    /// Full name.
    pub class: String,
    /// Tuple of arguments.
    pub args: Id,
    /// Set by BUILD.
    pub state: Option<Id>,
    /// Set by SETITEM(S).
    pub items: Vec<(Id, Id)>,
    /// Set by APPEND(S) and ADDITEMS.
    pub elements: Vec<Id>,
}

/// Bytes that may be copied within a pickle: far above what checkpoints need.
const COPY_BUDGET: usize = 128 << 20;
/// Values in the result: sharing could otherwise make it exponentially larger than the file.
const VALUE_BUDGET: usize = 4 << 20;
/// Nesting of the result, which is walked by recursion.
const MAX_DEPTH: usize = 100;

/// The state of the machine.
pub struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    budget: usize,
}

/// Reads one pickle.
///
/// # Errors
/// Says what is wrong at which byte.
pub fn read(input: &[u8]) -> Result<Value, Fault> {
    let mut m = Machine {
        input,
        at: 0,
        nodes: vec![],
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        budget: COPY_BUDGET,
    };
    let root = m.run().map_err(|cause| format!("byte {}: {cause}", m.at))?;
    m.value(root, 0, &mut VALUE_BUDGET.clone())
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, Fault> {
        if self.bytes(1)? != [0x80] {
            return Err("not a pickle of protocol 2 or later".into());
        }
        match self.byte()? {
            2..=5 => {}
            other => return Err(format!("pickle protocol {other}, expected 2 to 5")),
        }
        loop {
            let code = self.byte()?;
            if code == b'.' {
                return self.pop();
            }
            self.step(code)?;
        }
    }

    fn step(&mut self, code: u8) -> Result<(), Fault> {
        match code {
            0x95 => drop(self.bytes(8)?), // FRAME: a length that only buffering readers need
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.cut_at_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'J' => {
                let v = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(v.into()));
            }
            b'K' => {
                let v = self.byte()?;
                self.push(Node::Int(v.into()));
            }
            b'M' => {
                let v = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(v.into()));
            }
            0x8a => {
                let size = self.byte()?.into();
                self.long(size)?;
            }
            0x8b => {
                let size = self.size4()?;
                self.long(size)?;
            }
            b'G' => {
                let v = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(v));
            }
            b'X' | 0x8c | 0x8d => {
                let size = self.sized(code, 0x8c, 0x8d)?;
                let text = String::from_utf8_lossy(self.bytes(size)?).into_owned();
                self.push(Node::Str(text));
            }
            // Text of Python 2: bytes without an encoding, in practice ASCII.
            b'T' | b'U' => {
                let size = self.sized(code, b'U', 0)?;
                let text = String::from_utf8_lossy(self.bytes(size)?).into_owned();
                self.push(Node::Str(text));
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let size = if code == 0x96 { self.size8()? } else { self.sized(code, b'C', 0x8e)? };
                let bytes = self.bytes(size)?.to_vec();
                self.push(Node::Bytes(bytes));
            }
            b']' => self.push(Node::List(vec![])),
            b')' => self.push(Node::Tuple(vec![])),
            b'}' => self.push(Node::Dict(vec![])),
            0x8f => self.push(Node::Set(vec![])),
            b'l' => {
                let items = self.cut_at_mark()?;
                self.push(Node::List(items));
            }
            b't' => {
                let items = self.cut_at_mark()?;
                self.push(Node::Tuple(items));
            }
            0x91 => {
                let items = self.cut_at_mark()?;
                self.push(Node::Set(items));
            }
            0x85..=0x87 => {
                let mut items = (0x84..code).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push(Node::Tuple(items));
            }
            b'd' => {
                let items = self.cut_at_mark()?;
                let items = pairs(&items)?;
                self.push(Node::Dict(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.cut_at_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.cut_at_mark()?;
                self.set_items(pairs(&items)?)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.class(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Str(module), Node::Str(name)) = (self.node(module), self.node(name)) else {
                    return Err("a class without a name".into());
                };
                let (module, name) = (module.clone(), name.clone());
                self.class(&module, &name)?;
            }
            b'R' | 0x81 => {
                let (args, callee) = (self.pop()?, self.pop()?);
                let made = self.call(callee, args)?;
                self.stack.push(made);
            }
            0x92 => {
                let (_keywords, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                let made = self.call(class, args)?;
                self.stack.push(made);
            }
            b'b' => {
                let state = self.pop()?;
                let on = self.top()?;
                // Attributes of dictionaries (the `_metadata` of state dictionaries) and tensors carry no values.
                if let Node::Object(object) = &mut self.nodes[on as usize] {
                    object.state = Some(state);
                }
            }
            b'Q' => {
                let key = self.pop()?;
                self.push(Node::Storage(key));
            }
            b'h' => {
                let key = self.byte()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            b'q' => {
                let key = self.byte()?.into();
                self.remember(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => self.remember(u32::try_from(self.memo.len()).map_err(|_| "too many values")?)?,
            other => return Err(format!("opcode {other:#04x}, which checkpoints do not use")),
        }
        Ok(())
    }

    /// Adds a node and puts it on the stack.
    fn push(&mut self, node: Node) {
        let id = self.add(node);
        self.stack.push(id);
    }

    /// Adds a node.
    pub fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        (self.nodes.len() - 1) as Id // at most one node per byte of input, whose length is limited
    }

    /// A node.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// Elements of a tuple or list.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// Pays for a copy.
    pub fn charge(&mut self, bytes: usize) -> Result<(), Fault> {
        self.budget = self.budget.checked_sub(bytes).ok_or("its values would need too much memory")?;
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("the stack is empty".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn top(&self) -> Result<Id, Fault> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn cut_at_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop().filter(|m| *m <= self.stack.len()).ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn bytes(&mut self, size: usize) -> Result<&[u8], Fault> {
        let end = self.at.checked_add(size).filter(|e| *e <= self.input.len()).ok_or("truncated")?;
        let bytes = &self.input[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.bytes(N)?.try_into().map_err(|_| "truncated".into())
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    fn size4(&mut self) -> Result<usize, Fault> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn size8(&mut self) -> Result<usize, Fault> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| "truncated".into())
    }

    /// A length of one byte for the opcode `short`, of eight for `long`, else of four.
    fn sized(&mut self, code: u8, short: u8, long: u8) -> Result<usize, Fault> {
        match code {
            c if c == short => Ok(self.byte()?.into()),
            c if c == long => self.size8(),
            _ => self.size4(),
        }
    }

    fn line(&mut self) -> Result<String, Fault> {
        let rest = &self.input[self.at..];
        let size = rest.iter().position(|b| *b == b'\n').ok_or("truncated")?;
        self.at += size + 1;
        Ok(String::from_utf8_lossy(&rest[..size]).into_owned())
    }

    /// Two's complement, least significant byte first.
    fn long(&mut self, size: usize) -> Result<(), Fault> {
        let bytes = self.bytes(size)?;
        let node = if size <= 16 {
            let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
            let mut wide = [fill; 16];
            wide[..size].copy_from_slice(bytes);
            Node::Int(i128::from_le_bytes(wide))
        } else {
            Node::Bytes(bytes.to_vec())
        };
        self.push(node);
        Ok(())
    }

    fn class(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        self.charge(module.len() + name.len())?;
        let module = if module == "__builtin__" { "builtins" } else { module };
        self.push(Node::Class(format!("{module}.{name}")));
        Ok(())
    }

    fn call(&mut self, callee: Id, args: Id) -> Result<Id, Fault> {
        let Node::Class(class) = self.node(callee) else { return Err("a call of something that is no class".into()) };
        let class = class.clone();
        self.charge(class.len())?;
        calls::call(self, &class, args)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        let on = self.top()?;
        match &mut self.nodes[on as usize] {
            Node::List(list) | Node::Set(list) => list.extend(items),
            Node::Object(object) => object.elements.extend(items),
            _ => return Err("elements for something that is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<(Id, Id)>) -> Result<(), Fault> {
        let on = self.top()?;
        match &mut self.nodes[on as usize] {
            Node::Dict(dict) => dict.extend(items),
            Node::Object(object) => object.items.extend(items),
            _ => return Err("items for something that is no dictionary".into()),
        }
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), Fault> {
        let id = *self.memo.get(&key).ok_or_else(|| format!("a value {key} that was not remembered"))?;
        self.stack.push(id);
        Ok(())
    }

    /// The finished value of a node.
    fn value(&self, id: Id, depth: usize, budget: &mut usize) -> Result<Value, Fault> {
        if depth > MAX_DEPTH {
            return Err(format!("values are nested more than {MAX_DEPTH} deep or hold themselves"));
        }
        let mut pay = |n: usize| -> Result<(), Fault> {
            *budget = budget.checked_sub(n).ok_or("its values would need too much memory")?;
            Ok(())
        };
        pay(1)?;
        match self.node(id) {
            Node::Str(text) | Node::Class(text) => pay(text.len() / 32)?,
            Node::Bytes(bytes) => pay(bytes.len() / 32)?,
            Node::Object(object) => pay(object.class.len() / 32)?,
            _ => {}
        }
        let mut of = |id: &Id| self.value(*id, depth + 1, budget);
        Ok(match self.node(id) {
            Node::None => Value::None,
            Node::Bool(v) => Value::Bool(*v),
            Node::Int(v) => Value::Int(*v),
            Node::Float(v) => Value::Float(*v),
            Node::Str(v) => Value::Str(v.clone()),
            Node::Bytes(v) => Value::Bytes(v.clone()),
            Node::List(v) => Value::List(v.iter().map(of).collect::<Result<_, _>>()?),
            Node::Tuple(v) => Value::Tuple(v.iter().map(of).collect::<Result<_, _>>()?),
            Node::Set(v) => Value::Set(v.iter().map(of).collect::<Result<_, _>>()?),
            Node::Dict(v) => Value::Dict(v.iter().map(|(k, v)| Ok((of(k)?, of(v)?))).collect::<Result<_, Fault>>()?),
            Node::Class(v) => Value::Class(v.clone()),
            Node::Storage(_) => Value::Class("torch.storage".into()),
            Node::Tensor(t) => Value::Tensor(t.clone()),
            Node::Object(object) => Value::Object(Box::new(Object {
                class: object.class.clone(),
                args: match of(&object.args)? {
                    Value::Tuple(args) => args,
                    other => vec![other],
                },
                state: object.state.as_ref().map_or(Ok(Value::None), &mut of)?,
                items: object.items.iter().map(|(k, v)| Ok((of(k)?, of(v)?))).collect::<Result<_, Fault>>()?,
                elements: object.elements.iter().map(of).collect::<Result<_, _>>()?,
            })),
        })
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Fault> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() { Ok(pairs.iter().map(|p| (p[0], p[1])).collect()) } else { Err("a key without a value".into()) }
}
