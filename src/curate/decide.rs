//! Which images of the pool stay: one of each component of near-duplicates, none of a component that holds a copy of an
//! evaluation image.

use super::disjoint::Disjoint;
use super::graph::Edge;

/// What becomes of an image of the pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// It stays.
    Kept,
    /// Another image of its component stays. The number and the similarity are those of that image if the two are neighbours,
    /// else of its most similar neighbour.
    Duplicate(u32, f32),
    /// Its component holds a copy of an evaluation image. Its most similar such image, by number, or, if it has none itself,
    /// its most similar neighbour.
    Evaluation(u32, f32),
}

/// The fate of each image of a pool, whose widths and heights are given. Edges to numbers beyond the pool are to evaluation
/// images. `[within, beyond]` are the similarities from which an edge counts.
///
/// Of a component the image of most pixels stays, of equal ones the first.
pub fn decide(sizes: &[[u32; 2]], edges: &[Edge], [within, beyond]: [f64; 2]) -> Vec<Fate> {
    let n = sizes.len() as u32;
    let mut sets = Disjoint::new(sizes.len());
    let mut evaluation: Vec<Option<(f32, u32)>> = vec![None; sizes.len()];
    let mut neighbour: Vec<Option<(f32, u32)>> = vec![None; sizes.len()];
    let mut direct: Vec<(u32, u32, f32)> = Vec::new();
    for edge in edges {
        // Each edge once in either direction: a similarity may have been found from one side only.
        for (a, b) in [(edge.from, edge.to), (edge.to, edge.from)] {
            let similarity = f64::from(edge.similarity);
            match (a < n, b < n) {
                (true, true) if similarity > within => {
                    sets.join(a, b);
                    nearer(&mut neighbour[a as usize], b, edge.similarity);
                    direct.push((a, b, edge.similarity));
                }
                (true, false) if similarity > beyond => nearer(&mut evaluation[a as usize], b, edge.similarity),
                _ => {}
            }
        }
    }
    // Of an edge that was found from both sides the larger similarity.
    direct.sort_by(|x, y| (x.0, x.1).cmp(&(y.0, y.1)).then(y.2.total_cmp(&x.2)));
    let between = |a: u32, b: u32| {
        let at = direct.partition_point(|(x, y, _)| (*x, *y) < (a, b));
        direct.get(at).filter(|(x, y, _)| (*x, *y) == (a, b)).map(|(.., similarity)| (*similarity, b))
    };
    let mut fates = vec![Fate::Kept; sizes.len()];
    for members in sets.components() {
        let pixels = |i: u32| sizes[i as usize].iter().map(|side| u64::from(*side)).product::<u64>();
        let stays = members.iter().copied().min_by_key(|&i| (std::cmp::Reverse(pixels(i)), i));
        let taken = members.iter().any(|&i| evaluation[i as usize].is_some());
        for &i in &members {
            let at = i as usize;
            let near = neighbour[at];
            fates[at] = match (taken, stays) {
                (true, _) => evaluation[at].or(near).map_or(Fate::Kept, |(s, of)| Fate::Evaluation(of, s)),
                (false, Some(stays)) if stays != i => {
                    between(i, stays).or(near).map_or(Fate::Kept, |(s, of)| Fate::Duplicate(of, s))
                }
                _ => Fate::Kept,
            };
        }
    }
    fates
}

fn nearer(best: &mut Option<(f32, u32)>, other: u32, similarity: f32) {
    let better = |&(s, o): &(f32, u32)| similarity > s || (similarity == s && other < o);
    if best.as_ref().is_none_or(better) {
        *best = Some((similarity, other));
    }
}

#[cfg(test)]
mod tests {
    use super::Fate::{Duplicate, Evaluation, Kept};
    use super::*;

    fn edge(from: u32, to: u32, similarity: f32) -> Edge {
        Edge { from, to, similarity }
    }

    #[test]
    fn one_of_a_component_stays_and_none_beside_an_evaluation_image() {
        // 0-1-2 a chain whose middle is the largest; 3 alone; 4-5 with 5 near evaluation image 7; 6 too far from 8.
        let sizes = [[4, 4], [5, 4], [4, 4], [9, 9], [2, 2], [2, 2], [3, 3]];
        let edges = [
            edge(0, 1, 0.97),
            edge(1, 0, 0.98),
            edge(2, 1, 0.96),
            edge(3, 2, 0.95),
            edge(4, 5, 0.99),
            edge(7, 5, 0.91),
            edge(8, 5, 0.905),
            edge(6, 8, 0.9),
            edge(7, 8, 1.0),
        ];
        let expected =
            [Duplicate(1, 0.98), Kept, Duplicate(1, 0.96), Kept, Evaluation(5, 0.99), Evaluation(7, 0.91), Kept];
        assert_eq!(decide(&sizes, &edges, [f64::from(0.95f32), f64::from(0.9f32)]), expected);
    }

    #[test]
    fn of_equal_images_the_first_stays_and_far_members_name_their_neighbour() {
        let edges = [edge(2, 1, 0.99), edge(1, 0, 0.96)];
        let expected = [Kept, Duplicate(0, 0.96), Duplicate(1, 0.99)];
        assert_eq!(decide(&[[8, 8]; 3], &edges, [0.9, 0.9]), expected);
        assert_eq!(decide(&[[8, 8]; 3], &[], [0.9, 0.9]), [Kept; 3]);
    }
}
