//! `ocellus tokenizer train`.

use std::path::PathBuf;

use ocellus::data::text::{Lower, Punctuation, Settings, Training, read_lines, train};
use ocellus::data::{Pairs, Source, pairs};
use ocellus::{Error, Result};

/// Flags of `tokenizer train`.
#[derive(clap::Args)]
pub struct Flags {
    /// Text file with a caption a line, or images with captions: tar shards, .tsv, .csv, .jsonl, a folder
    captions: PathBuf,
    /// File to write
    #[arg(long, default_value = "tokenizer.json")]
    out: PathBuf,
    /// Ids at most
    #[arg(long, default_value_t = 8192)]
    vocab: usize,
    /// Pairs that occur less often are not merged
    #[arg(long, default_value_t = 2)]
    min_count: u64,
    /// Lower-casing; use the same in training
    #[arg(long, value_enum, default_value = "ascii")]
    lower: Lower,
    /// Punctuation; use the same in training
    #[arg(long, value_enum, default_value = "keep")]
    punctuation: Punctuation,
    #[command(flatten)]
    columns: pairs::Columns,
    /// Fail at the first pair that cannot be used instead of skipping it
    #[arg(long)]
    strict: bool,
}

/// Trains.
pub fn run(flags: &Flags) -> Result<()> {
    let settings = Settings { lower: flags.lower, punctuation: flags.punctuation, ..Settings::siglip() };
    let captions = captions(flags)?;
    let ids = train(&captions, &settings, &Training { vocab: flags.vocab, min_count: flags.min_count }, &flags.out)?;
    say!("{ids} ids from {} captions in {}", captions.len(), flags.out.display());
    Ok(())
}

fn captions(flags: &Flags) -> Result<Vec<String>> {
    if flags.captions.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) {
        return read_lines(&flags.captions);
    }
    let options = pairs::Options { columns: flags.columns.clone(), strict: flags.strict };
    let pairs = Pairs::open(&flags.captions, &options)?;
    let (mut captions, mut skipped) = (Vec::new(), pairs.skipped().count);
    let unreadable = |e: &Error| !flags.strict && matches!(e, Error::Dataset { .. } | Error::Io { .. });
    for index in 0..pairs.len() {
        match pairs.captions(index) {
            Ok(more) => captions.extend(more),
            Err(e) if unreadable(&e) => {
                say_err!("{e}");
                skipped += 1;
            }
            Err(e) => return Err(e),
        }
    }
    if skipped > 0 {
        say_err!("{skipped} pairs skipped");
    }
    Ok(captions)
}
