//! PyTorch archives: files written by PyTorch itself (`tests/data/pth/make.py`), and hostile ones built here.

use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::super::pth::{PthFile, Value, read};
use super::super::{safetensors, to_upstream};
use super::assert_same;
use crate::{DType, Error};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/pth").join(name)
}

fn expected(name: &str) -> super::StateDict {
    safetensors::read(fixture(name).with_extension("expected.safetensors")).unwrap()
}

/// An archive of these members.
fn archive(members: &[(&str, &[u8])], method: CompressionMethod) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut zip = ZipWriter::new(file.reopen().unwrap());
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    file
}

fn pickled(pickle: &[u8]) -> tempfile::NamedTempFile {
    archive(&[("archive/data.pkl", pickle)], CompressionMethod::Stored)
}

fn root(pickle: &[u8]) -> Value {
    PthFile::open(pickled(pickle).path()).unwrap().root().clone()
}

fn refusal(pickle: &[u8]) -> String {
    match PthFile::open(pickled(pickle).path()) {
        Err(Error::Checkpoint { cause, .. }) => cause,
        other => panic!("expected a checkpoint error, got {:?}", other.map(|f| f.root().clone())),
    }
}

/// `{"x": tensor}` over a storage "0" with this class, number of elements, offset, shape and strides (below 256 each).
fn tensor_pickle(class: &str, length: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let ints = |v: &[u8]| v.iter().flat_map(|d| [b'K', *d]).collect::<Vec<_>>();
    [
        b"\x80\x02}U\x01xctorch._utils\n_rebuild_tensor_v2\n((U\x07storage",
        format!("ctorch\n{class}\n").as_bytes(),
        b"U\x010U\x03cpuK",
        &[length],
        b"tQK",
        &[offset],
        b"(",
        &ints(shape),
        b"t(",
        &ints(strides),
        b"t\x89NtRs.",
    ]
    .concat()
}

fn with_storage(pickle: &[u8], storage: &[u8]) -> crate::Result<super::StateDict> {
    read(archive(&[("m/data.pkl", pickle), ("m/data/0", storage)], CompressionMethod::Deflated).path())
}

#[test]
fn a_training_file_is_read_whole() {
    let file = PthFile::open(fixture("training.pth")).unwrap();
    let model = file.state_dict(None).unwrap();
    assert_same(&model, &expected("training.pth"));
    assert_same(&file.state_dict(Some("model")).unwrap(), &model);
    assert_eq!(model.names().next(), Some("cls_token"), "the order is the file's");
    assert_eq!(to_upstream(model.clone()).unwrap().len(), model.len());
    assert_same(&crate::checkpoint::read(fixture("training.pth")).unwrap(), &model);

    let args = file.root().get("args").unwrap();
    assert_eq!(args.kind(), "an object of class argparse.Namespace");
    assert_eq!(args.get("norm_pix_loss"), Some(&Value::Bool(true)));
    assert_eq!(args.get("lr"), Some(&Value::Float(2.4e-3)));
    assert_eq!(args.get("seed"), Some(&Value::Int(-3)));
    assert_eq!(args.get("ok"), Some(&Value::Bool(true)));
    assert_eq!(args.get("half").unwrap().number(), Some(0.5));
    assert_eq!(args.get("resume").unwrap().text(), Some(""));
    assert_eq!(args.get("dist_url"), Some(&Value::None));
    assert_eq!(args.get("big"), Some(&Value::Int(1 << 70)));
    assert_eq!(args.get("negative"), Some(&Value::Int(-(1 << 40))));
    assert_eq!(args.get("raw"), Some(&Value::Bytes(vec![0, 255])));
    let Some(Value::Object(device)) = args.get("device") else { panic!("device") };
    assert_eq!((device.class.as_str(), &device.args[..]), ("torch.device", &[Value::Str("cpu".into())][..]));

    assert_eq!(file.root().get("epoch"), Some(&Value::Int(3)));
    assert_eq!(file.root().get("scaler").unwrap().get("scale").unwrap().number(), Some(65536.0));
    let Some(Value::Dict(state)) = file.root().get("optimizer").unwrap().get("state") else { panic!("state") };
    let (_, first) = &state[0];
    let Some(Value::Tensor(moment)) = first.get("exp_avg") else { panic!("exp_avg") };
    // After one step: (1 - 0.9) times the gradient, which is twice the first parameter before the step.
    let after = model.require("cls_token").unwrap().to_f64().unwrap();
    for (m, p) in file.tensor(moment).unwrap().to_f64().unwrap().iter().zip(after) {
        assert!((m * 5.0 - p).abs() < 2e-3, "{m} {p}");
    }
}

#[test]
fn all_types_and_memory_layouts_are_read() {
    let given = read(fixture("layouts.pth")).unwrap();
    assert_same(&given, &expected("layouts.pth"));
    assert_eq!(given.require("bfloat").unwrap().dtype(), DType::BF16);
    assert_eq!(given.require("word").unwrap().to_vec::<i32>().unwrap(), [0, 65535]);
    let file = PthFile::open(fixture("layouts.pth")).unwrap();
    let Value::Dict(items) = file.root() else { panic!("no dictionary") };
    for (name, value) in items {
        let Value::Tensor(t) = value else { panic!("{name:?}") };
        assert_eq!(
            file.tensor(t).unwrap().to_f64().unwrap(),
            given.require(name.text().unwrap()).unwrap().to_f64().unwrap()
        );
    }
}

#[test]
fn another_folder_key_and_protocol_are_read() {
    let file = PthFile::open(fixture("archive.pth")).unwrap();
    assert_same(&file.state_dict(None).unwrap(), &expected("archive.pth"));
    let Some(Value::List(history)) = file.root().get("history") else { panic!("history") };
    assert_eq!(history[0], Value::Tuple(vec![Value::Int(0), Value::Float(0.5)]));
    assert_eq!(history[1].get("set"), Some(&Value::Set(vec![Value::Int(1)])));
    assert_eq!(history[1].get("size"), Some(&Value::Tuple(vec![Value::Int(2), Value::Int(3)])));
    let error = file.state_dict(Some("model")).err().unwrap().to_string();
    assert!(error.contains("no `model`: the file has `epoch`, `model_state`, `history`"), "{error}");
    let error = file.state_dict(Some("epoch")).err().unwrap().to_string();
    assert!(error.contains("`epoch` is an integer, expected a dictionary of tensors"), "{error}");
    let error = file.state_dict(Some("history")).err().unwrap().to_string();
    assert!(error.contains("is a list"), "{error}");
}

#[test]
fn files_that_cannot_be_used_say_why() {
    let cause = |path: PathBuf| read(path).err().unwrap().to_string();
    let old = cause(fixture("old_format.pth"));
    assert!(old.contains("PyTorch before 1.6") && old.contains("torch.save(torch.load("), "{old}");
    let module = cause(fixture("whole_module.pth"));
    assert!(module.contains("torch.nn.modules.linear.Linear") && module.contains("save its state_dict()"), "{module}");
    for (bytes, message) in [
        (&b""[..], "truncated: an empty file"),
        (b"hello, world, this is no archive", "not a PyTorch archive"),
        (b"PK\x03\x04 and then nothing", "not a complete zip archive"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let cause = cause(file.path().into());
        assert!(cause.contains(message), "{cause}");
    }
    let none = archive(&[("readme", b"x")], CompressionMethod::Stored);
    assert!(cause(none.path().into()).contains("0 members `*/data.pkl`"));
    let two = archive(&[("a/data.pkl", b"x"), ("b/data.pkl", b"x")], CompressionMethod::Stored);
    assert!(cause(two.path().into()).contains("2 members"));
    let big = archive(&[("a/data.pkl", b"\x80\x02N."), ("a/byteorder", b"big")], CompressionMethod::Stored);
    assert!(cause(big.path().into()).contains("byte order `big`"));
    assert!(matches!(read("/no/such/file.pth"), Err(Error::Io { .. })));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = std::fs::read(fixture("training.pth")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for sixteenth in 0..16 {
        std::fs::write(file.path(), &bytes[..bytes.len() * sixteenth / 16]).unwrap();
        assert!(matches!(read(file.path()), Err(Error::Checkpoint { .. })));
    }
}

#[test]
fn a_flipped_bit_in_a_storage_is_found_by_its_checksum() {
    let bytes = std::fs::read(fixture("training.pth")).unwrap();
    let weight = expected("training.pth").require("blocks.0.mlp.fc1.weight").unwrap().to_vec::<f32>().unwrap();
    let needle: &[u8] = bytemuck::cast_slice(&weight);
    let at = bytes.windows(needle.len()).position(|w| w == needle).unwrap();
    let mut bytes = bytes;
    bytes[at + 5] ^= 4;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let error = read(file.path()).err().unwrap().to_string();
    assert!(error.contains("is damaged"), "{error}");
}

#[test]
fn nothing_is_executed() {
    // What a malicious file would do: os.system("...").
    let value = root(b"\x80\x02cos\nsystem\nU\x04true\x85R.");
    let Value::Object(object) = value else { panic!("{value:?}") };
    assert_eq!((object.class.as_str(), &object.args[..]), ("os.system", &[Value::Str("true".into())][..]));
    let value = root(b"\x80\x02cbuiltins\neval\n.");
    assert_eq!(value, Value::Class("builtins.eval".into()));
}

#[test]
fn pickles_of_the_other_kinds_are_read() {
    let int = |v| Value::Int(v);
    let text = |v: &str| Value::Str(v.into());
    for (pickle, value) in [
        (&b"\x80\x02N."[..], Value::None),
        (b"\x80\x02\x8a\x00.", int(0)),
        (b"\x80\x02\x8a\x01\xff.", int(-1)),
        (b"\x80\x02\x8b\x02\x00\x00\x00\x00\x80.", int(-32768)),
        (b"\x80\x02(K\x01K\x02l.", Value::List(vec![int(1), int(2)])),
        (b"\x80\x02(U\x01aK\x02d.", Value::Dict(vec![(text("a"), int(2))])),
        (b"\x80\x02K\x012\x86.", Value::Tuple(vec![int(1), int(1)])),
        (b"\x80\x02K\x01K\x020.", int(1)),
        (b"\x80\x02K\x01(K\x02K\x031.", int(1)),
        (b"\x80\x04\x8f(K\x01\x90.", Value::Set(vec![int(1)])),
        (b"\x80\x04(K\x01\x91.", Value::Set(vec![int(1)])),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", Value::Bytes(b"a".to_vec())),
        (b"\x80\x04\x8d\x01\x00\x00\x00\x00\x00\x00\x00a.", text("a")),
        (b"\x80\x02]K\x01aq\x07h\x07.", Value::List(vec![int(1)])),
        (
            b"\x80\x02ccollections\ndefaultdict\nc__builtin__\nlist\n\x85RU\x01aK\x01s.",
            Value::Dict(vec![(text("a"), int(1))]),
        ),
        (b"\x80\x02ccollections\nOrderedDict\n]]U\x01aaK\x01aa\x85R.", Value::Dict(vec![(text("a"), int(1))])),
        (b"\x80\x02c__builtin__\nset\n]K\x01a\x85R.", Value::Set(vec![int(1)])),
    ] {
        assert_eq!(root(pickle), value, "{}", pickle.escape_ascii());
    }
}

#[test]
fn broken_pickles_say_where() {
    for (pickle, message) in [
        (&b""[..], "truncated"),
        (b"N.", "not a pickle of protocol 2"),
        (b"\x80\x09N.", "protocol 9"),
        (b"\x80\x02N", "byte 3: truncated"),
        (b"\x80\x02.", "the stack is empty"),
        (b"\x80\x02(N(0.", "the stack is empty"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02N(\x85t.", "the stack is empty"),
        (b"\x80\x02(K\x01d.", "a key without a value"),
        (b"\x80\x02h\x05.", "was not remembered"),
        (b"\x80\x02K\x01K\x01\x85R.", "a call of something that is no class"),
        (b"\x80\x02NNa.", "no list"),
        (b"\x80\x02NNNs.", "no dictionary"),
        (b"\x80\x02X\xff\xff\xff\xffa.", "truncated"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "truncated"),
        (b"\x80\x02cos\nsys", "truncated"),
        (b"\x80\x02I01\n.", "opcode 0x49"),
        (b"\x80\x04NN\x93.", "a class without a name"),
        (b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.", "something else than pairs"),
        (b"\x80\x02]q\x00h\x00a.", "hold themselves"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "description is not understood"),
    ] {
        let cause = refusal(pickle);
        assert!(cause.starts_with("data.pkl") && cause.contains(message), "`{}`: {cause}", pickle.escape_ascii());
    }
}

#[test]
fn bombs_are_refused() {
    // Thirty lists, each of them twice in the next: 2^30 values from 200 bytes.
    let mut shared = b"\x80\x02]q\x00".to_vec();
    for _ in 0..30 {
        shared.extend(b"0]h\x00ah\x00aq\x00");
    }
    shared.push(b'.');
    assert!(refusal(&shared).contains("too much memory"));
    // One long text encoded over and over.
    let text = vec![b'a'; 1 << 20];
    let mut copies = [b"\x80\x02X\x00\x00\x10\x00", &text[..], b"U\x06latin1\x86q\x00c_codecs\nencode\nq\x01"].concat();
    for _ in 0..1000 {
        copies.extend(b"h\x01h\x00R0");
    }
    copies.extend(b"N.");
    assert!(refusal(&copies).contains("too much memory"));
    let nested = [&b"\x80\x02"[..], &vec![b']'; 100_000], &vec![b'a'; 99_999], b"."].concat();
    assert!(refusal(&nested).contains("nested more than"));
    // A member that unpacks to far more than a pickle may have.
    let zeros = vec![b'N'; 40 << 20];
    let bomb = archive(&[("a/data.pkl", &zeros)], CompressionMethod::Deflated);
    let error = PthFile::open(bomb.path()).err().unwrap().to_string();
    assert!(error.contains("expected at most"), "{error}");
}

#[test]
fn tensors_are_checked_against_their_storage() {
    let storage: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let dict = with_storage(&tensor_pickle("FloatStorage", 6, 1, &[2, 2], &[1, 2]), &storage).unwrap();
    assert_eq!(dict.require("x").unwrap().to_vec::<f32>().unwrap(), [1.0, 3.0, 2.0, 4.0]);
    for (pickle, bytes, message) in [
        (tensor_pickle("FloatStorage", 6, 0, &[7], &[1]), &storage[..], "shape [7], strides [1]"),
        (tensor_pickle("FloatStorage", 6, 5, &[2], &[1]), &storage, "offset 5 in 6 elements"),
        (tensor_pickle("FloatStorage", 6, 0, &[2, 2], &[4, 2]), &storage, "strides [4, 2]"),
        (tensor_pickle("FloatStorage", 6, 0, &[2, 2], &[1]), &storage, "shape [2, 2] with strides [1]"),
        (tensor_pickle("FloatStorage", 6, 0, &[255, 255, 255], &[0, 0, 0]), &storage, "in 6 elements"),
        (tensor_pickle("FloatStorage", 6, 0, &[255; 9], &[0; 9]), &storage, "in 6 elements"),
        (
            tensor_pickle("FloatStorage", 6, 0, &[6], &[1]),
            &storage[..20],
            "storage 0 has 20 bytes, expected 6 elements of 4",
        ),
        (tensor_pickle("FloatStorage", 5, 0, &[5], &[1]), &storage, "storage 0 has 24 bytes"),
        (tensor_pickle("QInt8Storage", 6, 0, &[6], &[1]), &storage, "type QInt8"),
    ] {
        let error = with_storage(&pickle, bytes).err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
    }
    let alone = archive(&[("m/data.pkl", &tensor_pickle("FloatStorage", 6, 0, &[6], &[1]))], CompressionMethod::Stored);
    assert!(read(alone.path()).err().unwrap().to_string().contains("member `data/0` is missing"));
    let long = i64::MAX.to_le_bytes();
    let error = with_storage(&tensor_pickle("LongStorage", 1, 0, &[1], &[1]), &long).err().unwrap().to_string();
    assert!(error.contains("integers that fit i32"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_pickles_never_panic(code in prop::collection::vec(any::<u8>(), 0..80)) {
        let pickle = [&b"\x80\x02"[..], &code, b"."].concat();
        let _ = PthFile::open(pickled(&pickle).path()).map(|f| f.state_dict(None).is_ok());
    }

    #[test]
    fn damaged_files_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = std::fs::read(fixture("layouts.pth")).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        if let Ok(dict) = read(file.path()) {
            prop_assert!(dict.len() <= 19);
        }
    }
}
