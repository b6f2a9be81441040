//! DINOv2's schedules and parameter groups.

use ocellus::Device;
use ocellus::optim::{Group, Rules};
use ocellus::recipes::dinov2::schedule::{Curve, Schedules, scaled_lr};
use serde_json::Value;

use crate::reader::{Golden, Outcome, Report};

fn number(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("config `{key}` is {}", v[key]))
}

fn pair(v: &Value, key: &str) -> [f64; 2] {
    [0, 1].map(|i| v[key][i].as_f64().unwrap_or_else(|| panic!("config `{key}` is {}", v[key])))
}

pub fn schedules(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    for (j, case) in g.config.as_array().ok_or("no cases")?.iter().enumerate() {
        let [total, warmup, temp_warmup, freeze, batch] =
            ["total_iters", "warmup_iters", "temp_warmup_iters", "freeze_iters", "global_batch"]
                .map(|key| number(case, key) as u64);
        let ([wd, wd_end], [m, m_end], [temp, temp_end]) =
            (pair(case, "wd"), pair(case, "momentum"), pair(case, "temp"));
        let base = scaled_lr(number(case, "base_lr"), batch as usize);
        if (base - number(case, "lr")).abs() > 1e-12 {
            report.fail(format!("case {j}: learning rate {base}, expected {}", case["lr"]));
        }
        let schedules = Schedules {
            lr: Curve { start: 0.0, base, end: number(case, "min_lr"), warmup, total },
            weight_decay: Curve::cosine(wd, wd_end, total),
            momentum: Curve::cosine(m, m_end, total),
            teacher_temp: Curve::line(temp, temp_end, temp_warmup),
            freeze_last_layer: freeze,
        };
        let steps: Vec<u64> = g.get(&format!("input.steps_{j}")).values.iter().map(|&i| i as u64).collect();
        let mut compare = |name: &str, at: &dyn Fn(u64) -> f64| {
            let values: Vec<f64> = steps.iter().map(|&i| at(i)).collect();
            report.compare(g, &format!("output.{name}_{j}"), &values);
            values
        };
        compare("lr", &|i| schedules.lr.at(i));
        compare("last_layer_lr", &|i| schedules.last_layer_lr(i));
        compare("wd", &|i| schedules.weight_decay.at(i));
        compare("teacher_temp", &|i| schedules.teacher_temp.at(i));
        let momentum = compare("momentum", &|i| schedules.momentum.at(i));
        // What counts is the distance from 1, to which the file's f32 adds its rounding.
        for (m, truth) in momentum.iter().zip(&g.get(&format!("output.momentum_{j}")).values) {
            if (m - truth).abs() > 1e-3 * (1.0 - truth) + 6e-8 {
                report.fail(format!("case {j}: momentum {m}, expected {truth}"));
            }
        }
    }
    Ok(())
}

pub fn param_groups(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    for (j, case) in g.config.as_array().ok_or("no cases")?.iter().enumerate() {
        let names: Vec<&str> = case["names"].as_array().ok_or("no names")?.iter().filter_map(Value::as_str).collect();
        let (decay, patch) = (number(case, "layerwise_decay"), number(case, "patch_embed_lr_mult"));
        let rules = Rules::self_supervised(1.0, decay, number(case, "depth") as usize, patch);
        // As in training. The shape of a vector, which decides nothing here.
        let names: Vec<String> = names.iter().map(|name| format!("student.{name}")).collect();
        let groups: Vec<_> = names.iter().map(|name| rules.group(name, &[1])).collect();
        let of = |f: fn(&Group) -> f64| groups.iter().map(f).collect::<Vec<_>>();
        report.compare(g, &format!("output.lr_multiplier_{j}"), &of(|group| group.lr_scale));
        report.compare(g, &format!("output.wd_multiplier_{j}"), &of(|group| group.weight_decay));
        let last: Vec<f64> = names.iter().map(|name| f64::from(u8::from(rules.is_last_layer(name)))).collect();
        report.compare(g, &format!("output.is_last_layer_{j}"), &last);
    }
    Ok(())
}
