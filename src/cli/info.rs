//! `ocellus info`.

use ocellus::{Device, device};

/// Prints devices, kernels and what is missing.
pub fn info() {
    say!("ocellus {}", env!("CARGO_PKG_VERSION"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    say!("\ndevices\n  cpu        {cores} cores, {}", device::host::instructions());
    match Device::emulated() {
        Ok(_) => say!("  emulated   {} kernels", device::emulated_kernels()),
        Err(e) => say!("  emulated   no: {e}"),
    }
    match Device::cuda(0) {
        Ok(gpu) => say!("  cuda:0     {}", gpu.description()),
        Err(e) => say!("  cuda:0     no: {e}"),
    }
    let kernels = device::compiled_kernels();
    say!("\ncompiled kernels: {}", kernels.len());
    for (stem, architectures) in kernels {
        say!("  {stem:<20} {}", architectures.join(" "));
    }
}
