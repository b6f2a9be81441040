//! Evaluation of DINOv2's features: the votes of neighbours, what the heads of the linear probe see.

use ocellus::eval::sweep::{Feature, summary};
use ocellus::eval::{Features, knn, neighbours, votes};
use ocellus::{Device, Tensor};

use crate::reader::{Golden, Outcome, Report};

pub fn nearest(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let ks: Vec<usize> = serde_json::from_value(g.config["k"].clone())?;
    let (classes, temperature) = (g.usize("classes"), g.f64("temperature"));
    let features = |part: &str| Features {
        values: g.tensor(&format!("input.{part}_features"), device),
        labels: g.ints(&format!("input.{part}_labels")),
        files: vec![],
        skipped: vec![],
    };
    let (train, test) = (features("train"), features("test"));
    let most = *ks.iter().max().ok_or("no k")?;
    let found = neighbours(&train.values, &test.values, most)?;
    let labels: Vec<i32> = found.indices.iter().map(|&i| train.labels[i as usize]).collect();
    report.compare(g, "output.topk_similarity", &found.similarity.iter().map(|&s| s.into()).collect::<Vec<f64>>());
    report.compare(g, "output.topk_labels", &labels.iter().map(|&l| l.into()).collect::<Vec<f64>>());
    let rows: Vec<_> = found
        .similarity
        .chunks(most)
        .zip(labels.chunks(most))
        .map(|(similarity, labels)| votes(similarity, labels, &ks, temperature, classes))
        .collect();
    let accuracies = knn(&train, &test, &ks, temperature)?;
    for (at, (k, accuracy)) in ks.iter().zip(accuracies).enumerate() {
        let votes: Vec<f64> = rows.iter().flat_map(|of_ks| of_ks[at].clone()).collect();
        let largest = |row: &[f64]| (0..classes).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0) as f64;
        report.compare(g, &format!("output.prediction_k{k}"), &votes.chunks(classes).map(largest).collect::<Vec<_>>());
        report.compare(g, &format!("output.votes_k{k}"), &votes);
        report.compare(g, &format!("output.top1_k{k}"), &[accuracy.top1]);
    }
    Ok(())
}

pub fn linear_probe_features(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (batch, patches, dim) = (g.usize("batch"), g.usize("patches"), g.usize("dim"));
    let layer = |i: usize| {
        let (class, patch) = (g.floats(&format!("input.cls_{i}")), g.floats(&format!("input.patch_{i}")));
        let rows = class.chunks(dim).zip(patch.chunks(patches * dim));
        let values: Vec<f32> = rows.flat_map(|(class, patch)| [class, patch].concat()).collect();
        Tensor::from_slice(&values, [batch, 1 + patches, dim], device)
    };
    let layers = (0..g.usize("layers")).map(layer).collect::<Result<Vec<_>, _>>()?;
    let all = summary(&layers)?.to_f64()?;
    let names: Vec<String> = g.tensors.keys().filter(|name| name.starts_with("output.n")).cloned().collect();
    for name in names {
        let (blocks, pooled) = name["output.n".len()..].split_once("_avgpool").ok_or("another name of an output")?;
        let feature = Feature { blocks: blocks.parse()?, average_pool: pooled == "1" };
        let columns = feature.columns(layers.len(), dim);
        let rows = all.chunks((layers.len() + 1) * dim);
        report.compare(g, &name, &rows.flat_map(|row| row[columns.clone()].to_vec()).collect::<Vec<_>>());
    }
    Ok(())
}
