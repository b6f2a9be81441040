//! CUDA graphs of one stream's work.

use std::sync::Arc;

use cudarc::driver::{self, sys};

use super::CudaDevice;
use crate::{Error, Result};

/// Work recorded from a stream, instantiated.
pub struct CudaGraph {
    device: Arc<CudaDevice>,
    graph: driver::CudaGraph,
}

// SAFETY: the driver wants calls on one graph one after the other, whatever their threads: `launch` borrows it uniquely.
unsafe impl Send for CudaGraph {}

impl CudaDevice {
    /// Records what `f` starts on this device instead of running it. Memory that `f` allocates must outlive the graph.
    pub fn record<R>(self: &Arc<Self>, f: impl FnOnce() -> Result<R>) -> Result<(R, CudaGraph)> {
        /// Leaves the recording mode of the stream, also when `f` panics.
        struct End<'a>(Option<&'a CudaDevice>);
        impl End<'_> {
            fn end(&mut self) -> Option<std::result::Result<Option<driver::CudaGraph>, driver::DriverError>> {
                self.0.take().map(|device| device.stream.end_capture(sys::CUgraphInstantiate_flags(0)))
            }
        }
        impl Drop for End<'_> {
            fn drop(&mut self) {
                drop(self.end());
            }
        }
        self.synchronize()?; // memory is freed on another stream meanwhile
        // SAFETY: the pool is the device's; blocks in use stay.
        unsafe { sys::cuMemPoolTrimTo(self.pool, 0) }.result().map_err(self.failed("trim the memory pool"))?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED; // allocations are allowed
        self.stream.begin_capture(mode).map_err(self.failed("begin to record"))?;
        let mut end = End(Some(self));
        let value = f();
        let ended = end.end();
        let value = value?; // its error says more than the driver's about the broken recording
        let graph = ended.transpose().map_err(self.failed("instantiate the recorded work"))?.flatten();
        let graph = graph.ok_or_else(|| Error::Recording { cause: "the driver recorded nothing".into() })?;
        Ok((value, CudaGraph { device: self.clone(), graph }))
    }
}

impl CudaGraph {
    /// Starts the recorded work on the stream.
    pub fn launch(&mut self) -> Result<()> {
        self.graph.launch().map_err(self.device.failed("launch the recorded work"))
    }
}
