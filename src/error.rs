//! The one error type of the crate: what was asked, what was given, what was expected.

use std::path::PathBuf;

/// Result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong. Messages name the operation, the argument, what was given and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument of an operation has a wrong shape, dtype, device or value.
    #[error("{op}: `{arg}` has {what} {given}, expected {expected}")]
    Argument {
        /// Operation, e.g. `layer_norm`.
        op: &'static str,
        /// Argument as the operation's signature names it.
        arg: String,
        /// `shape`, `dtype`, `device`, `value`, `length`.
        what: &'static str,
        /// What was passed.
        given: String,
        /// What would have been accepted.
        expected: String,
    },
    /// `backward` was called on a constant.
    #[error("backward: the value does not depend on any trainable parameter")]
    NothingToDifferentiate,
    /// A variable recorded on one tape reached the backward sweep of another.
    #[error("{op}: a variable of another tape was used")]
    ForeignVar {
        /// Operation that noticed.
        op: &'static str,
    },
    /// Trainable parameters that the loss does not reach.
    #[error("no gradient reached {} trainable parameter(s): {}", .0.len(), .0.join(", "))]
    MissingGradients(Vec<String>),
    /// A tensor that others hold was about to be written.
    #[error("{op}: the tensor is shared and cannot be written")]
    SharedTensor {
        /// Operation that wanted to write.
        op: &'static str,
    },
    /// Work that cannot be recorded to run again, or recorded work that can no longer run.
    #[error("the step cannot be recorded: {cause}")]
    Recording {
        /// What stands against it.
        cause: String,
    },
    /// A device was asked for that this build or machine does not have.
    #[error("device `{device}` is not available: {cause}")]
    DeviceUnavailable {
        /// `cuda:0`, `emulated`.
        device: String,
        /// What is missing and what to install or switch on.
        cause: String,
    },
    /// A kernel could not be launched, or the emulator found a fault in it.
    #[error("kernel {kernel} on {device}, grid {grid:?}, block {block:?}: {cause}")]
    Launch {
        /// Full kernel name with its dtype.
        kernel: String,
        /// Device it ran on.
        device: String,
        /// Blocks in x, y, z.
        grid: [u32; 3],
        /// Threads in x, y, z.
        block: [u32; 3],
        /// Driver error or emulator report.
        cause: String,
    },
    /// A driver or library call failed outside a kernel launch.
    #[error("{device}: {call}: {cause}")]
    Driver {
        /// Device it concerns.
        device: String,
        /// What was being done.
        call: String,
        /// What the driver said.
        cause: String,
    },
    /// Memory ran out on a device.
    #[error("{device}: out of memory, {bytes} bytes asked for")]
    OutOfMemory {
        /// Device it concerns.
        device: String,
        /// Size of the request.
        bytes: usize,
    },
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An image could not be decoded.
    #[error("{}: not a readable image: {cause}", path.display())]
    Image {
        /// File.
        path: PathBuf,
        /// What the decoder said.
        cause: String,
    },
    /// A data set has a fault that is not one file's.
    #[error("{}: {cause}", path.display())]
    Dataset {
        /// Folder or file.
        path: PathBuf,
        /// What is wrong and what was expected.
        cause: String,
    },
    /// A checkpoint cannot be read or does not fit.
    #[error("checkpoint {}: {cause}", path.display())]
    Checkpoint {
        /// File.
        path: PathBuf,
        /// What is wrong: truncated, unknown layout, missing tensors, wrong shapes.
        cause: String,
    },
    /// A tokenizer cannot be read, or does not fit what it is used for.
    #[error("tokenizer {}: {cause}", path.display())]
    Tokenizer {
        /// File.
        path: PathBuf,
        /// What is wrong and what was expected.
        cause: String,
    },
    /// A configuration value is not usable.
    #[error("config: `{key}` is {given}, expected {expected}")]
    Config {
        /// Key as in config.toml and the command line.
        key: String,
        /// Given value.
        given: String,
        /// What is accepted.
        expected: String,
    },
    /// Training met a value that is not finite.
    #[error("step {step}: {tensor} is {value}; {hint}")]
    NonFinite {
        /// Optimizer step.
        step: u64,
        /// Loss or parameter name.
        tensor: String,
        /// The value, `NaN` or `inf`.
        value: String,
        /// What to try.
        hint: String,
    },
    /// A training fault that is not a single value.
    #[error("{0}")]
    Training(String),
}

impl Error {
    /// A shape mismatch.
    pub fn shape(op: &'static str, arg: impl Into<String>, given: &[usize], expected: impl Into<String>) -> Self {
        Self::argument(op, arg, "shape", format!("{given:?}"), expected)
    }

    /// A value outside what the operation accepts.
    pub fn value(op: &'static str, arg: impl Into<String>, given: impl ToString, expected: impl Into<String>) -> Self {
        Self::argument(op, arg, "value", given.to_string(), expected)
    }

    /// Any argument error.
    pub fn argument(
        op: &'static str,
        arg: impl Into<String>,
        what: &'static str,
        given: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Argument { op, arg: arg.into(), what, given: given.into(), expected: expected.into() }
    }

    /// Adapter for `map_err` on file operations: `fs::read(p).map_err(Error::io(p))`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A checkpoint that cannot be used.
    pub fn checkpoint(path: impl Into<PathBuf>, cause: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.into(), cause: cause.into() }
    }

    /// A tokenizer that cannot be used.
    pub fn tokenizer(path: impl Into<PathBuf>, cause: impl Into<String>) -> Self {
        Self::Tokenizer { path: path.into(), cause: cause.into() }
    }

    /// A configuration value that is not usable.
    pub fn config(key: impl Into<String>, given: impl ToString, expected: impl Into<String>) -> Self {
        Self::Config { key: key.into(), given: given.to_string(), expected: expected.into() }
    }
}
