//! `ocellus curate`, `ocellus data planted`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use ocellus::Result;
use ocellus::curate::{self, Config};
use ocellus::data::planted::{self, Sizes};
use ocellus::train::Progress;

use super::Machine;

/// Flags of `data planted`.
#[derive(clap::Args)]
pub struct PlantedFlags {
    /// Folder to write: pool, evaluation, curated, truth.tsv
    out: PathBuf,
    #[command(flatten)]
    sizes: Sizes,
}

/// Curates, or goes on.
pub fn curate(config: &Config, machine: &Machine) -> Result<ExitCode> {
    let device = machine.device()?;
    let out = config.out.display();
    let Some(report) = curate::run(config, &device, machine.dtype(&device)?)? else {
        say_err!("stopped and saved; the same command continues {out}");
        return Ok(ExitCode::from(130));
    };
    say!("{report}");
    say!("{out}: report.json, kept.txt, dropped.tsv, pictures of what was dropped");
    Ok(ExitCode::SUCCESS)
}

/// Makes a pool with copies.
pub fn planted(flags: &PlantedFlags) -> Result<()> {
    let Sizes { images, evaluation, curated, .. } = flags.sizes;
    let progress = Mutex::new(Progress::new("planted", (images + evaluation + curated) as u64, 0, 1.0, "images"));
    let all = planted::generate(&flags.sizes, &flags.out, &|| {
        if let Ok(mut progress) = progress.lock() {
            progress.step("");
        }
    })?;
    say!("{} images in {}; what is a copy of what: truth.tsv", all.len(), flags.out.display());
    Ok(())
}
