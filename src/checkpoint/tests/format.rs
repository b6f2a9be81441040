//! The safetensors format: round trips, agreement with the reference implementation, damaged files.

use std::fs;
use std::path::Path;

use ::safetensors::SafeTensors;
use proptest::prelude::*;

use super::super::safetensors::{read, read_header, read_sharded, to_bytes, write};
use super::{assert_same, mixed, tensor, upstream};
use crate::Error;
use crate::checkpoint::StateDict;

fn read_bytes(bytes: &[u8]) -> crate::Result<StateDict> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    read(file.path())
}

fn refusal(bytes: &[u8]) -> String {
    match read_bytes(bytes) {
        Err(Error::Checkpoint { cause, .. }) => cause,
        other => panic!("expected a checkpoint error, got {other:?}"),
    }
}

/// A file with this header and this many bytes of tensors.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn saving_what_was_loaded_gives_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    write(&a, &mixed()).unwrap();
    let loaded = read(&a).unwrap();
    assert_same(&loaded, &mixed());
    assert_eq!(loaded.metadata, mixed().metadata);
    assert_eq!(loaded.origin, a);
    write(&b, &loaded).unwrap();
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
}

#[test]
fn the_reference_implementation_reads_our_files_and_we_read_its() {
    let (dict, bytes) = (mixed(), to_bytes(&mixed()));
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), dict.len());
    for (name, ours) in dict.iter() {
        let view = theirs.tensor(name).unwrap();
        assert_eq!(view.shape(), &ours.shape()[..], "{name}");
        assert_eq!(view.data(), StateDict::bytes_of(ours).unwrap(), "{name}");
        let at = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        assert_eq!(at % ours.dtype().size(), 0, "{name} is not aligned in the file");
    }
    let metadata = dict.metadata.clone().into_iter().collect();
    let back = ::safetensors::serialize(theirs.tensors(), Some(metadata)).unwrap();
    let back = read_bytes(&back).unwrap();
    assert_same(&back, &dict);
    assert_eq!(back.metadata, dict.metadata);
}

#[test]
fn integers_are_narrowed_and_refused_when_they_do_not_fit() {
    let header = r#"{"x":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#;
    let with = |a: i64, b: i64| {
        let mut bytes = file(header, 16);
        let at = bytes.len() - 16;
        bytes[at..at + 8].copy_from_slice(&a.to_le_bytes());
        bytes[at + 8..].copy_from_slice(&b.to_le_bytes());
        bytes
    };
    assert_eq!(read_bytes(&with(-7, 1 << 30)).unwrap().require("x").unwrap().to_vec::<i32>().unwrap(), [-7, 1 << 30]);
    assert_eq!(refusal(&with(0, 1 << 31)), "tensor `x` holds 2147483648, expected integers that fit i32");
    let bools = [&file(r#"{"x":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}"#, 0)[..], &[1, 0]].concat();
    assert_eq!(read_bytes(&bools).unwrap().require("x").unwrap().to_vec::<u8>().unwrap(), [1, 0]);
    let small =
        [&file(r#"{"x":{"dtype":"I16","shape":[1],"data_offsets":[0,2]}}"#, 0)[..], &(-3i16).to_le_bytes()].concat();
    assert_eq!(read_bytes(&small).unwrap().require("x").unwrap().to_vec::<i32>().unwrap(), [-3]);
    let odd = file(r#"{"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#, 2);
    assert!(refusal(&odd).contains("dtype F8_E4M3"), "{}", refusal(&odd));
}

#[test]
fn faults_are_named() {
    for (bytes, message) in [
        (vec![], "truncated: 0 bytes"),
        (vec![1, 2, 3], "truncated: 3 bytes"),
        (vec![0xff; 64], "not a safetensors file: its header would have"),
        (b"PK\x03\x04 a zip archive ..........".to_vec(), "not a safetensors file"),
        (1000u64.to_le_bytes().to_vec(), "truncated: the header has 1000 bytes, the file 0"),
        (file("[1, 2]", 0), "not a JSON object"),
        (file("{\"x\":", 0), "not a JSON object"),
        (file("{\"__metadata__\":{\"a\":1}}", 0), "metadata is not text"),
        (file(r#"{"x":{"dtype":"F32","shape":[1]}}"#, 4), "tensor `x` is described as"),
        (file(r#"{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4), "tensor `x` is described as"),
        (file(r#"{"x":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4), "tensor `x` is described as"),
        (
            file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
            "tensor `x` has 4 bytes, its shape [2] of F32 needs 8",
        ),
        (file(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8), "leaves a gap"),
        (file(r#"{"x":{"dtype":"F32","shape":[0],"data_offsets":[8,4]}}"#, 8), "leaves a gap"),
        (
            file(
                r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            "tensor `y` has offsets [4, 8], expected a start of 8: it overlaps",
        ),
        (file(r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}"#, 0), "too large"),
        (file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7), "truncated: 7 bytes of tensors"),
        (file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9), "1 bytes after the last tensor"),
    ] {
        let cause = refusal(&bytes);
        assert!(cause.contains(message), "got `{cause}`, expected `{message}`");
    }
    assert!(matches!(read("/no/such/file.safetensors"), Err(Error::Io { .. })));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = to_bytes(&upstream(8, 2, 4, 1, 4));
    for sixteenth in 0..16 {
        refusal(&bytes[..bytes.len() * sixteenth / 16]);
    }
    refusal(&bytes[..bytes.len() - 1]);
    read_bytes(&bytes).unwrap();
}

#[test]
fn shards_are_read_and_checked_against_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (x, y) = (tensor(&[2, 3], 1), tensor(&[4], 2));
    for (name, key, t) in [("m-1.safetensors", "x", &x), ("m-2.safetensors", "y", &y)] {
        let mut dict = StateDict::new();
        dict.insert(key, t.clone()).unwrap();
        write(at(name), &dict).unwrap();
    }
    let index = at("model.safetensors.index.json");
    let save = |map: &str| fs::write(&index, format!("{{\"metadata\":{{}},\"weight_map\":{map}}}")).unwrap();
    save(r#"{"x":"m-1.safetensors","y":"m-2.safetensors"}"#);
    let mut both = StateDict::new();
    both.insert("x", x).unwrap();
    both.insert("y", y).unwrap();
    assert_same(&read_sharded(&index).unwrap(), &both);
    assert_same(&crate::checkpoint::read(folder.path()).unwrap(), &both);
    assert_same(&crate::checkpoint::read(&index).unwrap(), &both);
    for (map, message) in [
        (r#"{"x":"m-2.safetensors"}"#, "tensor `x` is missing, which the index places here"),
        (r#"{"x":"../m-1.safetensors"}"#, "no file name in this folder"),
        (r#"{"x":"/etc/passwd"}"#, "no file name in this folder"),
        (r#"{"x":5}"#, "no file name in this folder"),
        ("5", "no `weight_map`"),
    ] {
        save(map);
        let error = read_sharded(&index).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    save(r#"{"x":"m-3.safetensors"}"#);
    assert!(matches!(read_sharded(&index), Err(Error::Io { path, .. }) if path == at("m-3.safetensors")));
}

#[test]
fn the_header_alone_can_be_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), &mixed()).unwrap();
    let header = read_header(file.path()).unwrap();
    assert_eq!(header.metadata, mixed().metadata);
    assert_eq!(header.entries[0].dtype, "F64");
    assert_eq!(header.entries[0].shape, [3, 5]);
    assert!(matches!(crate::checkpoint::read(Path::new("weights.doc")), Err(Error::Checkpoint { .. })));
}

#[test]
fn reserved_and_repeated_names_are_refused() {
    let mut dict = StateDict::new();
    dict.insert("__metadata__", tensor(&[1], 0)).unwrap();
    assert!(dict.insert("__metadata__", tensor(&[1], 0)).unwrap_err().to_string().contains("occurs twice"));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(write(file.path(), &dict).unwrap_err().to_string().contains("cannot be named"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), framed in any::<bool>()) {
        let header = [&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat();
        let result = read_bytes(if framed { &header } else { &bytes });
        prop_assert!(result.is_err());
    }

    #[test]
    fn a_damaged_header_is_refused_or_read(at in 0usize..400, byte in any::<u8>()) {
        let mut bytes = to_bytes(&mixed());
        let at = at % bytes.len();
        bytes[at] = byte;
        // Another letter in a name is still a file; what matters is that nothing panics or allocates without bound.
        if let Ok(dict) = read_bytes(&bytes) {
            prop_assert!(dict.bytes() <= bytes.len() * 4);
        }
    }

    #[test]
    fn any_dictionary_survives(shapes in prop::collection::vec(prop::collection::vec(0usize..5, 0..4), 0..8)) {
        let mut dict = StateDict::new();
        for (i, shape) in shapes.iter().enumerate() {
            dict.insert(format!("t{i}"), tensor(shape, i as u64)).unwrap();
        }
        let bytes = to_bytes(&dict);
        let back = read_bytes(&bytes).unwrap();
        assert_same(&back, &dict);
        prop_assert_eq!(to_bytes(&back), bytes);
    }
}
