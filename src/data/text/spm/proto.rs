//! The few fields of a sentencepiece model file that encoding needs, read from its protobuf bytes.

/// What a piece is. Numbers are the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// A model file. Fields that a file leaves out have the format's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Proto {
    pub pieces: Vec<Piece>,
    /// 1 unigram, 2 BPE, 3 words, 4 characters.
    pub model_type: u64,
    pub byte_fallback: bool,
    pub space_as_suffix: bool,
    pub eos_piece: String,
    pub charsmap: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_spaces: bool,
    pub escape_spaces: bool,
}

type Read<T> = Result<T, String>;

/// A field's value as it stands in the file.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
    Fixed64,
}

impl<'a> Value<'a> {
    fn bytes(&self) -> Read<&'a [u8]> {
        match *self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err("a field has the wrong wire type, so this is no sentencepiece model".into()),
        }
    }

    fn text(&self) -> Read<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|e| format!("a piece is not UTF-8: {e}"))
    }

    fn number(&self) -> Read<u64> {
        match *self {
            Self::Number(n) => Ok(n),
            _ => Err("a field has the wrong wire type, so this is no sentencepiece model".into()),
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Read<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(len).ok_or("the file ends early")?;
    *bytes = rest;
    Ok(head)
}

fn varint(bytes: &mut &[u8]) -> Read<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("a number has more than ten bytes, so this is no sentencepiece model".into())
}

/// Calls `each` with number and value of every field of a message.
fn fields<'a>(mut bytes: &'a [u8], mut each: impl FnMut(u64, Value<'a>) -> Read<()>) -> Read<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => {
                take(&mut bytes, 8)?;
                Value::Fixed64
            }
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).map_err(|_| "the file ends early")?;
                Value::Bytes(take(&mut bytes, len)?)
            }
            5 => Value::Fixed32(*take(&mut bytes, 4)?.first_chunk().ok_or("the file ends early")?),
            other => return Err(format!("wire type {other}, so this is no sentencepiece model")),
        };
        each(key >> 3, value)?;
    }
    Ok(())
}

fn piece(bytes: &[u8]) -> Read<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    fields(bytes, |field, value| {
        match (field, value) {
            (1, value) => piece.text = value.text()?,
            (2, Value::Fixed32(bits)) => piece.score = f32::from_le_bytes(bits),
            (3, value) => {
                piece.kind = match value.number()? {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    other => return Err(format!("piece `{}` is of the unknown type {other}", piece.text)),
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    if piece.text.is_empty() || !piece.score.is_finite() {
        return Err(format!("piece `{}` is empty or has the score {}", piece.text, piece.score));
    }
    Ok(piece)
}

impl Proto {
    pub fn read(bytes: &[u8]) -> Read<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            space_as_suffix: false,
            eos_piece: "</s>".into(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_spaces: true,
            escape_spaces: true,
        };
        fields(bytes, |field, value| {
            match field {
                1 => model.pieces.push(piece(value.bytes()?)?),
                2 => fields(value.bytes()?, |field, value| {
                    match field {
                        3 => model.model_type = value.number()?,
                        24 => model.space_as_suffix = value.number()? != 0,
                        35 => model.byte_fallback = value.number()? != 0,
                        47 => model.eos_piece = value.text()?,
                        _ => {}
                    }
                    Ok(())
                })?,
                3 => fields(value.bytes()?, |field, value| {
                    match field {
                        2 => model.charsmap = value.bytes()?.to_vec(),
                        3 => model.add_dummy_prefix = value.number()? != 0,
                        4 => model.remove_extra_spaces = value.number()? != 0,
                        5 => model.escape_spaces = value.number()? != 0,
                        _ => {}
                    }
                    Ok(())
                })?,
                _ => {}
            }
            Ok(())
        })?;
        if model.pieces.is_empty() {
            return Err("it has no pieces, expected a sentencepiece model".into());
        }
        Ok(model)
    }
}
