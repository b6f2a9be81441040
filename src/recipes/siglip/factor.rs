//! Which second moments Adafactor keeps as rows and columns.
//!
//! big_vision decides by the shapes of flax: a tensor is factored over its two largest axes (of equal ones the later) if both
//! are at least 32. Attention has its heads as an axis there, `[D, H, hd]`, so every head is a matrix of its own; here the
//! same elements lie in `[D, D]` or, stacked, `[3 D, D]`.

use super::Sizes;
use crate::ops::adafactor::{Groups, View};
use crate::optim::adafactor::Views;

/// Extent below which an axis is not factored.
const LEAST: usize = 32;

/// The axes with the two largest extents, in ascending order, if they are to be factored.
fn factored(shape: &[usize]) -> Option<[usize; 2]> {
    let mut axes: Vec<usize> = (0..shape.len()).collect();
    axes.sort_by_key(|&axis| shape[axis]); // stable, as NumPy's of so few
    let &[.., second, first] = &axes[..] else { return None };
    (shape[second] >= LEAST).then(|| [second.min(first), second.max(first)])
}

/// The views of a model's parameters.
pub fn views(sizes: &Sizes) -> Views {
    let heads = [sizes.vision.heads, sizes.text.heads];
    Box::new(move |name, shape| view(name, shape, heads[usize::from(name.starts_with("text_model."))]))
}

fn view(name: &str, shape: &[usize], heads: usize) -> Option<View> {
    let projections = [("qkv_proj.", 3), ("kv_proj.", 2), ("q_proj.", 1)];
    if let Some((_, stacked)) = projections.iter().find(|(part, _)| name.contains(part)) {
        return to_heads(shape, *stacked, heads);
    }
    match *shape {
        // [D, D] as [D, H, hd], in flax [H, hd, D].
        [out, inner] if name.contains("out_proj.") => match factored(&[heads, inner / heads, out])? {
            [1, 2] => Some(View { groups: heads, rows: out, cols: inner / heads, place: Groups::Middle }),
            _ => Some(View { groups: inner / heads, rows: out, cols: heads, place: Groups::Last }),
        },
        [rows, cols] => factored(shape).map(|_| View::matrix(rows, cols)),
        // A convolution, in flax [p, p, C, D].
        [out, channels, h, w] => match factored(&[h, w, channels, out])? {
            [1, 3] => Some(View { groups: channels * h, rows: out, cols: w, place: Groups::Middle }),
            [0, 1] => Some(View { groups: out * channels, rows: h, cols: w, place: Groups::First }),
            _ => None, // with more channels than images have
        },
        _ => None,
    }
}

/// Queries, keys or values, `stacked` of them: `[stacked H hd, D]`, in flax `[D, H, hd]` each with a bias `[H, hd]`.
fn to_heads(shape: &[usize], stacked: usize, heads: usize) -> Option<View> {
    let dim = shape[0] / stacked / heads;
    match *shape {
        // The width is never the smaller one; with more heads than places in a head, which no model has, the axes of the
        // heads would be factored, and those of all parts are not one.
        [_, width] => factored(&[width, heads, dim]).map(|_| View {
            groups: stacked * heads,
            rows: dim,
            cols: width,
            place: Groups::First,
        }),
        _ => factored(&[heads, dim]).map(|_| View { groups: stacked, rows: heads, cols: dim, place: Groups::First }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_largest_axes_are_factored() {
        assert_eq!(factored(&[768, 12, 64]), Some([0, 2]));
        assert_eq!(factored(&[12, 64, 768]), Some([1, 2]));
        assert_eq!(factored(&[1, 196, 768]), Some([1, 2]));
        assert_eq!(factored(&[16, 16, 3, 768]), None);
        assert_eq!(factored(&[32, 32, 3, 768]), Some([1, 3]), "of equal axes the later");
        assert_eq!(factored(&[1, 1, 768]), None);
        assert_eq!(factored(&[64]), None);
        assert_eq!(factored(&[31, 400]), None);
    }

    #[test]
    fn heads_are_matrices_of_their_own() {
        let first = |groups, rows, cols| Some(View { groups, rows, cols, place: Groups::First });
        let of = |name: &str, shape: &[usize]| view(name, shape, 12);
        assert_eq!(of("layers.0.self_attn.qkv_proj.weight", &[2304, 768]), first(36, 64, 768));
        assert_eq!(of("head.attention.kv_proj.weight", &[1536, 768]), first(24, 64, 768));
        assert_eq!(of("head.attention.q_proj.weight", &[768, 768]), first(12, 64, 768));
        assert_eq!(of("layers.0.self_attn.qkv_proj.bias", &[2304]), None, "12 heads");
        assert_eq!(view("qkv_proj.bias", &[3 * 40 * 48], 40), first(3, 40, 48));
        let out = View { groups: 12, rows: 768, cols: 64, place: Groups::Middle };
        assert_eq!(of("layers.0.self_attn.out_proj.weight", &[768, 768]), Some(out));
        assert_eq!(of("layers.0.self_attn.out_proj.bias", &[768]), None);
        assert_eq!(of("mlp.fc1.weight", &[3072, 768]), first(1, 3072, 768));
        assert_eq!(of("embeddings.patch_embedding.weight", &[768, 3, 16, 16]), None);
        let conv = View { groups: 96, rows: 768, cols: 32, place: Groups::Middle };
        assert_eq!(of("embeddings.patch_embedding.weight", &[768, 3, 32, 32]), Some(conv));
        assert_eq!(of("head.probe", &[1, 1, 768]), None);
        assert_eq!(view("qkv_proj.weight", &[72, 24], 2), None, "heads of 12");
    }
}
