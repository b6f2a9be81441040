//! Shapes of self-distillation losses in the recipes.

use super::{Pairing, prototype_cross_entropy};
use crate::DType;
use crate::ops::teacher::Teacher;
use crate::ops::{Case, Fill, Input};

/// `rows` student rows at temperature 0.1, each with `group` of `teachers` teacher rows at 0.07.
pub fn case(rows: usize, cols: usize, teachers: usize, group: usize) -> Case {
    let pairs = (0..rows * group).map(|i| (i * 7919 % teachers) as i32).collect();
    let paired = (rows, group) != (teachers, 1);
    let (std, temp) = (0.3f64, 0.07);
    let mean = -(cols as f64).ln() - (std / temp).powi(2) / 2.0; // rows of the teacher sum to about 1
    let inputs = vec![
        Input::normal("student", [rows, cols]).filled(Fill::Normal(0.0, std)),
        Input::constant("logits", [teachers, cols], Fill::Normal(0.0, std)),
        Input::constant("temp", [1], Fill::Acc(vec![temp])),
        Input::constant("prototypes", [cols], Fill::AccNormal(0.0, 0.1)),
        Input::constant("rows", [teachers], Fill::AccNormal(mean, 0.1)),
        Input::constant("weights", [rows], Fill::AccUniform(0.5, 1.5)),
        Input::constant("pairing", [rows, group], Fill::I32(pairs)),
    ];
    let id = format!("{rows}x{cols}-of{teachers}x{group}");
    Case::new("prototype_cross_entropy", id, inputs, move |tape, v| {
        let [z, temp, a, l, weights, pairs] = [1, 2, 3, 4, 5, 6].map(|i| v[i].value());
        let teacher = Teacher::new(z.clone(), temp.clone(), a.clone(), l.clone())?;
        let pairing = if paired { Pairing::Rows(pairs) } else { Pairing::Same };
        Ok(vec![prototype_cross_entropy(tape, &v[0], 0.1, &teacher, pairing, weights, rows.max(1) as f64)?])
    })
    .bytes(move |dtype: DType| ((rows + teachers) * cols * dtype.size() + 4 * (2 * rows + cols + teachers)) as u64)
    .terms(rows.max(cols))
}

/// DINOv2 ViT-L/14 at 32 images: local and global class tokens, masked patches; the widest batch of 65536 prototypes.
pub fn cases() -> Vec<Case> {
    vec![case(256, 131_072, 64, 2), case(64, 131_072, 64, 1), case(2458, 131_072, 2458, 1), case(4096, 65_536, 4096, 1)]
}
