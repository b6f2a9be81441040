use std::fs;

use super::*;

const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER: u64 = 4;
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 128 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

fn number(field: u64, n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(n, &mut out);
    out
}

fn message(field: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 2, &mut out);
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn piece(text: &str, score: f32, kind: u64) -> Vec<u8> {
    let mut score_field = vec![2 << 3 | 5];
    score_field.extend(score.to_le_bytes());
    message(1, &[message(1, text.as_bytes()), score_field, number(3, kind)].concat())
}

/// The bytes of a `.model` file: `<pad>` 0, `</s>` 1, `<unk>` 2, then `pieces`; trainer and normaliser fields (number, value).
fn file(pieces: &[(&str, f32, u64)], trainer: &[(u64, u64)], normalizer: &[(u64, u64)]) -> Vec<u8> {
    let fields = |list: &[(u64, u64)]| list.iter().flat_map(|&(field, n)| number(field, n)).collect::<Vec<_>>();
    let mut out = [piece("<pad>", 0.0, CONTROL), piece("</s>", 0.0, CONTROL), piece("<unk>", 0.0, UNKNOWN)].concat();
    pieces.iter().for_each(|&(text, score, kind)| out.extend(piece(text, score, kind)));
    out.extend(message(2, &fields(trainer)));
    out.extend(message(3, &fields(normalizer)));
    out
}

fn settings(max_len: usize) -> Settings {
    Settings { max_len, ..Settings::siglip() }
}

fn open(bytes: &[u8], settings: Settings) -> Tokenizer {
    Tokenizer::from_bytes(bytes, "test.model", settings).unwrap()
}

fn encode(bytes: &[u8], text: &str) -> Vec<u32> {
    open(bytes, settings(8)).encode(text).unwrap()
}

const UNIGRAM: [(u64, u64); 1] = [(3, 1)];
const BPE: [(u64, u64); 1] = [(3, 2)];

#[test]
fn unigram_takes_the_best_sum_and_of_equal_ones_the_first() {
    let pieces = [
        ("▁", -2.0, NORMAL),  // 3
        ("a", -3.0, NORMAL),  // 4
        ("b", -3.0, NORMAL),  // 5
        ("ab", -5.0, NORMAL), // 6: better than a b
        ("▁a", -4.0, NORMAL), // 7: better than ▁ a; ▁a b and ▁ ab are equal
    ];
    let model = file(&pieces, &UNIGRAM, &[]);
    assert_eq!(encode(&model, "a"), [7]);
    // The path whose last piece begins first was found first.
    assert_eq!(encode(&model, "ab"), [3, 6]);
    assert_eq!(encode(&model, "bab"), [3, 5, 6]);
    // A run of unknown characters is one id.
    assert_eq!(encode(&model, "xyz ax"), [3, 2, 7, 2]);
    assert_eq!(encode(&model, ""), [] as [u32; 0]);
    assert_eq!(encode(&model, " \u{20} "), [] as [u32; 0]);
    assert_eq!(encode(&model, "  a   b "), [7, 3, 5]);
}

#[test]
fn bpe_merges_the_best_pair_then_the_leftmost() {
    let letters = [("a", -9.0, NORMAL), ("b", -9.0, NORMAL), ("▁", -9.0, NORMAL)]; // 3, 4, 5
    let merges = [("aa", -1.0, NORMAL), ("ab", -0.0, NORMAL), ("aaa", -2.0, NORMAL)]; // 6, 7, 8
    let plain = [(3u64, 0u64), (4, 0)]; // no dummy prefix, blanks stay
    let model = file(&[letters, merges].concat(), &BPE, &plain);
    assert_eq!(encode(&model, "aaab"), [6, 7]);
    assert_eq!(encode(&model, "aaa"), [8]);
    assert_eq!(encode(&model, "aaaa"), [6, 6]);
    assert_eq!(encode(&model, "b  a"), [4, 5, 5, 3]);
    assert_eq!(encode(&model, "bxyb"), [4, 2, 4]);
    // An unused piece helps to merge, and is taken apart in the result.
    let unused = [("aa", -1.0, UNUSED), ("ab", -0.0, NORMAL), ("aaa", -2.0, NORMAL)];
    let model = file(&[letters, unused].concat(), &BPE, &plain);
    assert_eq!(encode(&model, "aaa"), [8]);
    assert_eq!(encode(&model, "baa"), [4, 3, 3]);
}

#[test]
fn pieces_of_the_user_are_never_cut() {
    let pieces =
        [("▁", -1.0, NORMAL), ("a", -1.0, NORMAL), ("b", -1.0, NORMAL), ("bab", 0.0, USER), ("ab", -1.5, NORMAL)];
    for search in [UNIGRAM, BPE] {
        let model = file(&pieces, &search, &[]);
        let (start, ab) = (encode(&model, "abab")[0], 7);
        assert_eq!((start, encode(&model, "abab")), (3, vec![3, 4, 6]), "{search:?}");
        assert_eq!(encode(&model, "abb"), [3, ab, 5], "{search:?}");
    }
}

#[test]
fn bytes_stand_in_for_unknown_characters() {
    let names: Vec<String> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
    let mut pieces: Vec<_> = names.iter().map(|name| (name.as_str(), 0.0, BYTE)).collect();
    pieces.push(("a", -1.0, NORMAL));
    for search in [1, 2] {
        let trainer = [(3, search), (35, 1)];
        let model = file(&pieces, &trainer, &[(3, 0)]);
        assert_eq!(encode(&model, "aé"), [259, 3 + 0xc3, 3 + 0xa9], "search {search}");
        assert_eq!(encode(&model, "<0x41>")[0], 3 + u32::from(b'<'), "search {search}");
    }
    let text = Tokenizer::from_bytes(&file(&pieces[1..], &[(3, 2), (35, 1)], &[]), "test.model", settings(4));
    assert!(text.unwrap_err().to_string().contains("no piece `<0x00>`"));
}

#[test]
fn blanks_go_where_the_file_says() {
    let pieces = [("▁", -1.0, NORMAL), ("a", -1.0, NORMAL), (" ", -1.0, NORMAL)];
    let ids = |trainer: &[(u64, u64)], normalizer: &[(u64, u64)]| {
        encode(&file(&pieces, &[&UNIGRAM[..], trainer].concat(), normalizer), " a  a ")
    };
    assert_eq!(ids(&[], &[]), [3, 4, 3, 4]);
    assert_eq!(ids(&[(24, 1)], &[]), [4, 3, 4, 3]);
    assert_eq!(ids(&[], &[(3, 0)]), [4, 3, 4]);
    assert_eq!(ids(&[], &[(4, 0)]), [3, 3, 4, 3, 3, 4, 3]);
    assert_eq!(ids(&[], &[(5, 0)]), [5, 4, 5, 4]);
}

fn letters() -> Vec<u8> {
    file(&[("▁", -1.0, NORMAL), ("a", -1.0, NORMAL), ("b", -1.0, NORMAL), ("ü", -1.0, NORMAL)], &UNIGRAM, &[])
}

#[test]
fn ends_and_lengths() {
    let with =
        |eos, max_len, text| open(&letters(), Settings { eos, pad: 0, ..settings(max_len) }).tokens(text).unwrap();
    assert_eq!(with(Eos::Sticky, 5, "ab"), [3, 4, 5, 1, 0]);
    assert_eq!(with(Eos::Sticky, 4, "ab"), [3, 4, 5, 1]);
    assert_eq!(with(Eos::Sticky, 3, "ab"), [3, 4, 1]);
    assert_eq!(with(Eos::Yes, 5, "ab"), [3, 4, 5, 1, 0]);
    assert_eq!(with(Eos::Yes, 3, "ab"), [3, 4, 5]);
    assert_eq!(with(Eos::None, 5, "ab"), [3, 4, 5, 0, 0]);
    assert_eq!(with(Eos::Sticky, 1, "ab"), [1]);
    // Under the settings of SigLIP the last id, which is pooled, is always the end of text.
    let tokenizer = open(&letters(), settings(6));
    let long = "a b ".repeat(10_000);
    for text in ["", "a", "aaaaaaaaaaaa", &long] {
        let ids = tokenizer.tokens(text).unwrap();
        assert!(ids.len() == 6 && ids[5] == 1, "{ids:?}");
    }
    let rows = tokenizer.batch(&["a", "b"]).unwrap();
    assert_eq!(rows, [3, 4, 1, 1, 1, 1, 3, 5, 1, 1, 1, 1]);
}

#[test]
fn lower_case_and_punctuation() {
    let ids =
        |lower, punctuation| open(&letters(), Settings { lower, punctuation, ..settings(5) }).tokens("A. Ü").unwrap();
    assert_eq!(ids(Lower::Ascii, Punctuation::Keep), [3, 4, 2, 3, 1]);
    assert_eq!(ids(Lower::Ascii, Punctuation::Strip), [3, 4, 3, 2, 1]);
    assert_eq!(ids(Lower::Unicode, Punctuation::Strip), [3, 4, 3, 6, 1]);
    assert_eq!(ids(Lower::None, Punctuation::Strip), [3, 2, 3, 2, 1]);
    assert_eq!(Settings::siglip_hf().prepare(" Don't\t_Stop_ "), "dont stop");
    assert_eq!(Settings::siglip2().prepare("ZÜRICH"), "zÜrich");
}

#[test]
fn settings_are_stored_with_a_run() {
    for settings in [Settings::siglip(), Settings::siglip_hf(), Settings::siglip2()] {
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(toml::from_str::<Settings>(&text).unwrap(), settings);
        assert!(toml::from_str::<Settings>(&format!("{text}typo = 1\n")).is_err());
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let text = |bytes: &[u8], settings| Tokenizer::from_bytes(bytes, "x.model", settings).unwrap_err().to_string();
    assert!(text(&letters(), settings(0)).contains("max_len"));
    assert!(text(&letters(), Settings { pad: 7, ..settings(4) }).contains("below 7"));
    assert!(text(b"", settings(4)).contains("no pieces"));
    assert!(text(b"{\"version\": 1}", settings(4)).contains("x.model"));
    assert!(text(b"This is a text.", settings(4)).contains("no sentencepiece model"));
    assert!(text(&file(&[("a", 0.0, NORMAL); 2], &UNIGRAM, &[]), settings(4)).contains("`a` occurs twice"));
    assert!(text(&file(&[], &[(3, 3)], &[]), settings(4)).contains("model type 3"));
    assert!(text(&file(&[("a", f32::NAN, NORMAL)], &UNIGRAM, &[]), settings(4)).contains("NaN"));
    let endless = piece("a", 0.0, NORMAL);
    assert!(text(&endless, settings(4)).contains("unknown characters"));
    let no_end = [endless, piece("<unk>", 0.0, UNKNOWN)].concat();
    assert!(text(&no_end, settings(4)).contains("eos = \"none\""));
    let tokenizer = open(&no_end, Settings { eos: Eos::None, ..settings(4) });
    assert_eq!((tokenizer.eos(), tokenizer.vocab()), (None, 2));
    assert!(tokenizer.check_vocab(2).is_ok());
    let error = tokenizer.check_vocab(32_000).unwrap_err().to_string();
    assert!(error.contains("2 ids") && error.contains("32000"), "{error}");
    assert!(matches!(Tokenizer::open("no/such.model", settings(4)), Err(Error::Io { .. })));
}

#[test]
fn damaged_files_never_panic() {
    let pieces = [("▁a", -1.0, NORMAL), ("a", -2.0, NORMAL), ("ab", 0.0, USER)];
    let mut whole = file(&pieces, &BPE, &[]);
    whole.extend(message(3, &message(2, &[8, 0, 0, 0, 0, 0x1d, 0, 0, 97, 0x80, 0, 0, b'b', 0])));
    for at in 0..whole.len() {
        let _ = Tokenizer::from_bytes(&whole[..at], "cut", settings(4));
        for bit in [1, 4, 16, 128] {
            let mut damaged = whole.clone();
            damaged[at] ^= bit;
            if let Ok(tokenizer) = Tokenizer::from_bytes(&damaged, "damaged", settings(4)) {
                assert_eq!(tokenizer.tokens("ab a é▁a").unwrap().len(), 4);
            }
        }
    }
}

fn captions() -> Vec<String> {
    let (sizes, colours) = (["a small", "one large", "the tiny"], ["red", "green", "blue", "Grey"]);
    let things = ["circle", "square", "triangle", "owl", "castle", "tractor"];
    let mut captions = Vec::new();
    for size in sizes {
        for colour in colours {
            for (i, thing) in things.iter().enumerate() {
                captions.push(format!("A photo of {size} {colour} {thing} near {} {i}.", things[(i * 5 + 1) % 6]));
            }
        }
    }
    captions
}

#[test]
fn training_is_deterministic_and_its_file_opens() {
    let place = tempfile::tempdir().unwrap();
    let (training, settings) = (Training { vocab: 340, min_count: 2 }, settings(16));
    let write = |captions: &[String], name: &str| {
        let path = place.path().join(name);
        let ids = train(captions, &settings, &training, &path).unwrap();
        assert!((310..=340).contains(&ids), "{ids}");
        std::fs::read(path).unwrap()
    };
    let first = write(&captions(), "first.json");
    let backwards: Vec<String> = captions().into_iter().rev().collect();
    for again in 0..3 {
        assert!(write(&backwards, "again.json") == first, "{again}");
    }
    let tokenizer = Tokenizer::open(place.path().join("first.json"), settings.clone()).unwrap();
    assert!(tokenizer.check_vocab(340).is_ok());
    assert_eq!(tokenizer.eos(), Some(1));
    let ids = tokenizer.tokens("A photo of a small RED owl").unwrap();
    assert!(ids[0] > 258 && ids[15] == 1 && !ids.contains(&2), "{ids:?}");
    assert_eq!(ids, tokenizer.tokens("  a photo\tof a small red   owl").unwrap());
    assert!(ids.iter().filter(|id| **id > 2).count() < 12, "words are not pieces: {ids:?}");
    assert!(tokenizer.encode("é").unwrap().ends_with(&[3 + 0xc3, 3 + 0xa9]));
    // Names of reserved ids inside a caption are text.
    assert!(!tokenizer.encode("</s> <0x41>").unwrap().iter().any(|id| [1, 3 + 0x41].contains(id)));
    assert_eq!(tokenizer.tokens(&"word ".repeat(10_000)).unwrap().len(), 16);
}

#[test]
fn unusable_training_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("tokenizer.json");
    let run = |captions: &[&str], vocab| {
        let training = Training { vocab, min_count: 1 };
        train(captions, &settings(4), &training, &out).unwrap_err().to_string()
    };
    assert!(run(&["", " "], 1000).contains("no words"));
    assert!(run(&["abc"], 263).contains("264"));
    assert!(!out.exists());
}

#[test]
fn lines_of_a_file() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("captions.txt");
    std::fs::write(&path, "one\r\n\nzwölf\n").unwrap();
    assert_eq!(read_lines(&path).unwrap(), ["one", "", "zwölf"]);
    std::fs::write(&path, b"one\n\xff\n").unwrap();
    assert!(read_lines(&path).unwrap_err().to_string().ends_with("line 2 is not UTF-8"));
}

#[test]
fn a_saved_tokenizer_takes_the_place_of_others() {
    let place = tempfile::tempdir().unwrap();
    let names = ["tokenizer.json", "tokenizer.model", "spiece.model"].map(|name| place.path().join(name));
    names.iter().for_each(|path| fs::write(path, b"stale").unwrap());
    open(&letters(), settings(5)).save(place.path()).unwrap();
    assert_eq!(names.each_ref().map(|path| path.is_file()), [false, true, false]);
    let found = Tokenizer::beside(place.path(), None, settings(9)).unwrap();
    assert_eq!(found.vocab(), open(&letters(), settings(5)).vocab());
}

#[test]
fn a_tokenizer_lies_beside_its_weights() {
    let place = tempfile::tempdir().unwrap();
    let (run, other) = (place.path().join("run"), place.path().join("other.model"));
    let given = Settings { lower: Lower::Unicode, ..settings(5) };
    open(&letters(), given.clone()).save(&run).unwrap();
    let found = Tokenizer::beside(&run, None, settings(9)).unwrap();
    assert_eq!((found.settings(), found.vocab()), (&given, open(&letters(), given.clone()).vocab()));
    // By a file of the folder, and with another file in its place: the settings stay those of the weights.
    fs::write(&other, letters()).unwrap();
    let weights = run.join("model.safetensors");
    assert_eq!(Tokenizer::beside(&weights, Some(&other), settings(9)).unwrap().settings(), &given);
    // Without stored settings, the usual ones.
    fs::remove_file(run.join("tokenizer_settings.json")).unwrap();
    assert_eq!(Tokenizer::beside(&run, None, settings(9)).unwrap().settings(), &settings(9));
    fs::write(run.join("tokenizer_settings.json"), "{}").unwrap();
    let text = |e: Error| e.to_string();
    assert!(text(Tokenizer::beside(&run, None, settings(9)).unwrap_err()).contains("tokenizer_settings.json"));
    fs::remove_file(run.join("tokenizer.model")).unwrap();
    assert!(text(Tokenizer::beside(&run, None, settings(9)).unwrap_err()).contains("--tokenizer"));
}
