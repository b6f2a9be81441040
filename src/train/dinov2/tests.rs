//! Steps that are recorded: nothing in them is uploaded or read back (a recording would refuse it), and what changes from
//! batch to batch lies in their inputs, of one shape.

use clap::{Args, FromArgMatches};

use super::super::stepper::Stepper;
use super::*;
use crate::data::Batch;
use crate::recipes::dinov2::{FfnKind, HeadSizes, Start};
use crate::recipes::{Inputs, Numbers, Task};
use crate::testing::devices;

const STEPS: u64 = 5;
/// Images of a batch.
const IMAGES: usize = 2;

/// Crops of 8 and 4 pixels, everything random, a last layer that rests in the first three updates of ten. The rate is small
/// because AdamW makes whole steps of gradients that are rounding alone, which differs between devices.
fn config(flags: &[&str]) -> Config {
    let command = Config::augment_args(clap::Command::new("pretrain").arg(clap::Arg::new("resume").long("resume")));
    let small = "pretrain images --preset micro --image-size 8 --local-size 4 --patch-size 2 --local-crops 2 --drop-path 0.4 \
                 --prototypes 12 --lr 0.0001 --freeze-last-layer 0.3 --teacher-temp-warmup 1 --collapse-patience 0";
    let flags = small.split_whitespace().chain(flags.iter().copied());
    Config::from_arg_matches(&command.get_matches_from(flags)).unwrap()
}

fn sizes(config: &Config, registers: usize) -> NetworkSizes {
    let head = HeadSizes { hidden: 12, bottleneck: 6, prototypes: 12, layers: 2 };
    NetworkSizes {
        backbone: Sizes {
            embed_dim: 16,
            depth: 2,
            num_heads: 2,
            ffn: FfnKind::Mlp,
            hidden: 24,
            registers,
            ..config.sizes()
        },
        dino_head: head,
        ibot_head: (!config.shared_head && config.ibot_weight > 0.0).then_some(head),
    }
}

/// What a run of this kind trains; a distilled teacher has registers that its student does not have.
fn task(flags: &[&str], distils: bool, dtype: DType, device: &Device) -> (Pretrain, AdamW) {
    let mut config = config(flags);
    config.teacher = distils.then(|| "teacher".into());
    if distils {
        config.prototypes = None;
    }
    let make = |name: &str, registers: usize| {
        sizes(&config, registers).network(&Builder::new(device, dtype, 5).pp(name), &Start::SMALL).unwrap()
    };
    let (teacher, average) = (make("teacher", if distils { 2 } else { 0 }), distils.then(|| make("average", 0)));
    let model = assemble(&config, make("student", 0), teacher, average).unwrap();
    let optimizer = AdamW::new(config.hyper(), config.rules(2));
    (Pretrain::new(&config, model, 10, 10).unwrap(), optimizer)
}

fn batch(step: u64) -> Batch<u8> {
    let images =
        (0..(IMAGES * 3 * (2 * 64 + 2 * 16)) as u64).map(|i| ((i * i + i * 37 + step * 101) % 251) as u8).collect();
    let (labels, indices) = (vec![0; IMAGES], vec![0; IMAGES]);
    Batch { images, labels, captions: vec![], indices, epoch: 0, step_in_epoch: step }
}

/// What some updates give.
struct Run {
    losses: Vec<f64>,
    /// Norms of gradients and what is logged, of all updates.
    numbers: Numbers,
    /// Of everything that is saved: student, teacher, average, centres.
    weights: Vec<f64>,
    /// Shapes of the inputs of each update.
    shapes: Vec<String>,
}

fn run(flags: &[&str], distils: bool, dtype: DType, device: &Device, eager: bool) -> Run {
    let (mut task, mut optimizer) = task(flags, distils, dtype, device);
    let mut stepper = Stepper::new(device, 1.0, Some(3.0));
    if eager {
        stepper = stepper.eager();
    }
    let (mut losses, mut numbers, mut shapes) = (vec![], vec![], vec![]);
    for step in 0..STEPS {
        stepper.begin(&mut task);
        // Recorded for good: neither given up nor begun anew because memory went or is shared.
        assert_eq!(stepper.records(), device.records() && !eager && step > 0, "{flags:?} before update {step}");
        let mut inputs = task.inputs(&batch(step)).unwrap();
        shapes.push(inputs.tensors().iter().map(|t| t.shape().to_string()).collect());
        losses.push(stepper.micro_step(&mut task, inputs, 0).unwrap().loss);
        let rates = task.rates(step, 0.0);
        let stats = stepper.update(&mut task, &mut optimizer, &rates).unwrap();
        numbers.push(("norm", stats.grad_norm));
        numbers.extend(task.notes(&[]).unwrap());
    }
    let weights = task.module().params().iter().flat_map(|p| p.master.to_f64().unwrap()).collect();
    Run { losses, numbers, weights, shapes }
}

/// Masks, stochastic depth, temperature, momentum, decay and a last layer that begins to move: of recorded steps as of those
/// launched one by one, bit for bit. Both have lists of hidden patches of one length; on the CPU, which records nothing, they
/// are as long as they have to be, and the losses are the same.
#[test]
fn a_recorded_step_is_the_step() {
    for device in devices() {
        for (flags, distils, dtype) in [
            (&[][..], false, DType::F32),
            (&["--targets", "centering", "--shared-head", "--recompute"], false, DType::F32),
            (&["--ibot-weight", "0"], false, DType::BF16),
            (&["--targets", "softmax"], true, DType::F32),
        ] {
            let what = format!("{flags:?}, distillation {distils}, on {device}");
            let recorded = run(flags, distils, dtype, &device, false);
            let launched = run(flags, distils, dtype, &device, true);
            assert_eq!(recorded.losses, launched.losses, "{what}");
            assert_eq!(recorded.numbers, launched.numbers, "{what}");
            assert!(recorded.weights == launched.weights, "{what}");
            assert!(
                recorded.shapes.iter().all(|shapes| *shapes == recorded.shapes[0]),
                "{what}: {:?}",
                recorded.shapes
            );
            if dtype == DType::F32 {
                let exact = run(flags, distils, dtype, &Device::Cpu, false);
                // In distillation all patches are compared.
                assert_eq!(exact.shapes.iter().all(|shapes| *shapes == exact.shapes[0]), distils, "{what}");
                for (a, b) in recorded.losses.iter().zip(&exact.losses) {
                    assert!((a - b).abs() < 1e-4 * b.abs(), "{what}: {:?} and {:?}", recorded.losses, exact.losses);
                }
            }
        }
    }
}
