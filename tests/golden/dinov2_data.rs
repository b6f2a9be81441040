//! What DINOv2 draws: judged by its distribution.

use ocellus::Device;
use ocellus::data::block_masking::BlockMasking;
use ocellus::data::{Purpose, Stream};

use crate::reader::{Golden, Outcome, Report};

/// As many masks as the file has, drawn from another generator: mean, frequencies of the counts, where the blocks lie.
pub fn block_mask_statistics(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    for (j, case) in g.config["cases"].as_array().ok_or("no cases")?.iter().enumerate() {
        let number = |key: &str| case[key].as_f64().unwrap_or_else(|| panic!("config `{key}` is {}", case[key]));
        let grid = [0, 1].map(|i| case["grid"][i].as_u64().unwrap_or_default() as usize);
        let masking = BlockMasking { grid, max_patches: number("max_num_patches") as usize };
        let (request, draws) = (number("requested") as usize, number("draws") as usize);
        let patches = grid[0] * grid[1];
        let (mut histogram, mut marginal) = (vec![0.0; patches + 1], vec![0.0; patches]);
        let mut rng = Stream::new(0, Purpose::TEST, 0, j as u64);
        for _ in 0..draws {
            let mask = masking.draw(request, &mut rng);
            marginal.iter_mut().zip(&mask).for_each(|(sum, &m)| *sum += f64::from(m) / draws as f64);
            histogram[mask.iter().filter(|m| **m == 1).count()] += 1.0;
        }
        let [counts, places] = ["count_hist", "marginal"].map(|name| {
            let name = format!("output.{name}_{j}");
            report.note(&name);
            &g.get(&name).values
        });
        let n = draws as f64;
        let mean = |h: &[f64]| h.iter().enumerate().map(|(count, times)| count as f64 * times / n).sum::<f64>();
        let (ours, bound) = (mean(&histogram), 4.0 * number("std") / n.sqrt());
        if (ours - number("mean")).abs() > bound {
            report.fail(format!("case {j}: mean count {ours}, expected {} to {bound:.1e}", number("mean")));
        }
        if let Some(more) = histogram.iter().skip(request + 1).position(|&times| times > 0.0) {
            report.fail(format!("case {j}: {} patches hidden, {request} requested", request + 1 + more));
        }
        // Five standard deviations of the difference of two counts, and what is rare.
        for (count, (a, b)) in histogram.iter().zip(counts).enumerate() {
            if (a - b).abs() > 5.0 * (a + b).sqrt() + 5.0 {
                report.fail(format!("case {j}: {count} patches hidden {a} times, expected {b}"));
            }
        }
        let far = marginal.iter().zip(places).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        if far > 0.02 {
            report.fail(format!("case {j}: a patch is hidden {far:.3} more or less often than expected"));
        }
        // Samples of the file show what a mask is; ours are drawn from another generator.
        let samples = format!("output.sample_{j}_");
        for (name, sample) in g.tensors.iter().filter(|(name, _)| name.starts_with(&samples)) {
            report.note(name);
            if sample.shape != grid || sample.values.iter().sum::<f64>() > request as f64 {
                report.fail(format!("{name}: not a mask of {grid:?} with at most {request} ones"));
            }
        }
    }
    Ok(())
}
