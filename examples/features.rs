//! Features of every image of a folder by a trained encoder: `cargo run --release --example features -- RUN FOLDER`.

use std::path::Path;
use std::sync::Arc;

use ocellus::data::Folder;
use ocellus::nn::Builder;
use ocellus::recipes::mae::{Pool, load};
use ocellus::{DType, Device, Result, eval};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, folder] = arguments.as_slice() else {
        eprintln!("usage: features RUN FOLDER");
        std::process::exit(2);
    };
    let builder = Builder::new(&Device::Cpu, DType::F32, 0);
    let (model, _) = load::classifier(Path::new(run), &builder, 1, Some(Pool::Cls), None)?;
    let features = eval::extract(&model, Arc::new(Folder::open(folder)?), 64, eval::Kind::Pooled, |_| {})?;
    for (file, row) in features.files.iter().zip(features.values.to_vec::<f32>()?.chunks(model.trunk.config.dim)) {
        println!("{file}\t{:?}", &row[..4.min(row.len())]);
    }
    Ok(())
}
