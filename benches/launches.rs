//! What every operation launches at the recipes' real shapes ([`ocellus::ops::cases`]), and what a perfect forward moves
//! and computes there, as JSON: `.ci/kernel_report` makes docs/kernels.md of it. Nothing is computed, so no GPU is needed:
//! the launches are those that the emulator would run.

use ocellus::device::emulated::dry_run;
use ocellus::ops::{Case, Fill, Input, cases};
use ocellus::{DType, Device, Grads, Result, Tape, Tensor};
use serde_json::{Value, json};

fn main() {
    let all: Vec<Value> =
        cases().iter().flat_map(|case| [DType::F32, DType::BF16, DType::F16].map(|t| describe(case, t))).collect();
    println!("{}", json!(all));
}

/// Contents do not matter, offsets and indices apart.
fn operand(input: &Input, dtype: DType) -> Tensor {
    let device = &Device::Emulated;
    match &input.fill {
        Fill::I32(values) => Tensor::from_slice(values, input.shape.clone(), device),
        Fill::U8 | Fill::Bytes(_) => Tensor::uninit(input.shape.clone(), DType::U8, device),
        Fill::AccNormal(..) | Fill::AccUniform(..) | Fill::Acc(_) => {
            Tensor::uninit(input.shape.clone(), DType::F32, device)
        }
        Fill::Normal(..) | Fill::Uniform(..) => Tensor::uninit(input.shape.clone(), dtype, device),
    }
    .unwrap()
}

fn describe(case: &Case, dtype: DType) -> Value {
    let (result, launches) = dry_run(|| {
        let operands: Vec<_> =
            case.inputs.iter().map(|input| input.operand(operand(input, dtype))).collect::<Result<_>>()?;
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let vars: Vec<_> = operands.iter().map(|operand| operand.on(&tape)).collect();
        let outputs = (case.run)(&tape, &vars)?;
        // Forward alone, where no output has a gradient.
        let Some(y) = outputs.iter().rfind(|y| y.slot().is_some()) else { return Ok(()) };
        tape.backward(y, Tensor::uninit_like(y.value())?, &mut grads)
    });
    result.unwrap_or_else(|e| panic!("{} {}: {e}", case.op, case.id));
    let launches: Vec<Value> = launches
        .iter()
        .map(|l| json!({ "kernel": l.kernel, "grid": l.launch.grid, "block": l.launch.block, "shared": l.launch.shared }))
        .collect();
    json!({
        "op": case.op,
        "id": case.id,
        "dtype": dtype.name(),
        "bytes": (case.bytes)(dtype),
        "flops": case.flops,
        "launches": launches,
    })
}
