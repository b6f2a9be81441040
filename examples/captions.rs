//! How well each caption fits each image of a folder: `cargo run --release --example captions -- RUN FOLDER CAPTION...`

use std::path::Path;

use ocellus::data::transforms::Interpolation;
use ocellus::data::{Folder, Source};
use ocellus::eval::image_text::{Embedder, tokenizer};
use ocellus::recipes::siglip::load;
use ocellus::{DType, Device, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, folder, captions @ ..] = arguments.as_slice() else {
        eprintln!("usage: captions RUN FOLDER CAPTION...");
        std::process::exit(2);
    };
    let (model, sizes) = load::model(Path::new(run), &Device::Cpu, DType::F32, None)?;
    let tokenizer = tokenizer(Path::new(run), None, &sizes)?;
    let interpolation = Interpolation::Bicubic;
    let embedder =
        Embedder { model: &model, sizes: &sizes, tokenizer: &tokenizer, interpolation, crop: false, batch: 64 };
    let folder = Folder::open(folder)?;
    for index in 0..folder.len() {
        let image = folder.load(index)?.as_ref().clone();
        let found = embedder.matches(vec![image], captions.to_vec(), vec![0; captions.len()])?;
        println!("{}\t{:.3?}", folder.path(index).display(), found.probabilities);
    }
    Ok(())
}
