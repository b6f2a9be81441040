//! Ctrl-C: the first asks the loop to save and stop, the second ends the process at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::progress::stderr_line;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Installs the handler (SIGINT, SIGTERM); once per process, later calls do nothing.
pub fn listen() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let handler = || {
            if ASKED.swap(true, Ordering::SeqCst) {
                std::process::exit(130); // the user means it
            }
            stderr_line("\nstopping after this step and saving; press Ctrl-C again to stop at once");
        };
        if let Err(e) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C will not save the run: {e}");
        }
    });
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
