//! Objects of a video that are computed in one pass, and their answers side by side or apart.
//!
//! Objects that read equally many maps and pointers have memories of one shape, whatever frames these are of: positions
//! in time are data. So objects prompted in the same frame always go together, and others from the frame on in which
//! both banks are full. Putting together and cutting apart are copies on the device.

use std::collections::BTreeMap;

use super::frames::Reads;
use super::video::ObjectFrame;
use crate::ops::concat;
use crate::{Result, Tensor};

/// Most objects of one pass: at 1024 pixels in f32 each holds some 100 MB at a time (4 · 28 736 · (2 · 256 + 2 · 64)
/// bytes of keys, values and tokens, then 4 · 4096 · 2 · 2048 of hidden units), 1.6 GB together, however many objects
/// there are.
pub const MAX_BATCH: usize = 16;

/// Objects of one pass, by place, and what each of them reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// In rising order.
    pub objects: Vec<usize>,
    /// Of each object.
    pub reads: Vec<Reads>,
}

/// Objects and their reads in as few groups as can be.
pub fn groups(waiting: Vec<(usize, Reads)>) -> Vec<Group> {
    let mut alike: BTreeMap<[usize; 2], Vec<(usize, Reads)>> = BTreeMap::new();
    for (object, reads) in waiting {
        alike.entry([reads.memories.len(), reads.pointers.len()]).or_default().push((object, reads));
    }
    let mut groups = Vec::new();
    for all in alike.values() {
        groups.extend(all.chunks(MAX_BATCH).map(|part| {
            let (objects, reads) = part.iter().cloned().unzip();
            Group { objects, reads }
        }));
    }
    groups
}

/// Tensors `[1, ..]` as one, `[O, ..]`.
pub fn beside(xs: &[&Tensor]) -> Result<Tensor> {
    match xs {
        [one] => Ok((*one).clone()),
        _ => concat::forward(xs, 0),
    }
}

/// Rows `[1, ..]` of a tensor `[O, ..]`.
pub fn apart(x: &Tensor) -> Result<Vec<Tensor>> {
    match x.shape().first() {
        Some(&objects) if objects != 1 => (0..objects).map(|at| concat::slice_forward(x, 0, at..at + 1)).collect(),
        _ => Ok(vec![x.clone()]),
    }
}

/// The answers about single objects in one about all of them.
pub fn each(all: &ObjectFrame) -> Result<Vec<ObjectFrame>> {
    let memories = match &all.memory {
        Some(memory) => apart(memory)?.into_iter().map(Some).collect(),
        None => vec![None; all.score.numel()],
    };
    let masks = apart(&all.masks)?.into_iter();
    let parts = masks.zip(apart(&all.score)?).zip(apart(&all.pointer)?).zip(memories);
    Ok(parts.map(|(((masks, score), pointer), memory)| ObjectFrame { masks, score, pointer, memory }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::recipes::sam2::frames::{Now, Rules, reads};

    const RULES: Rules = Rules { memories: 3, conditioning: None, stride: 1, pointers: 4, past_pointers: true };

    /// What an object prompted in a frame, and tracked from there on, reads.
    fn reads_of(prompted: i64, now: i64) -> Reads {
        reads(&RULES, Now { frame: now, video: None, reverse: false }, &[prompted], |t| t > prompted).unwrap()
    }

    fn sizes(prompted: &[i64], now: i64) -> Vec<Vec<usize>> {
        let waiting = prompted.iter().map(|&at| reads_of(at, now)).enumerate().collect();
        groups(waiting).into_iter().map(|group| group.objects).collect()
    }

    #[test]
    fn who_reads_equally_much_goes_together() {
        assert_eq!(sizes(&[0, 0, 0], 1), [[0, 1, 2]]);
        assert_eq!(sizes(&[0, 4, 0, 5], 6), [vec![3], vec![1], vec![0, 2]]); // fewer maps first
        assert_eq!(sizes(&[0, 4, 0, 5], 9), [[0, 1, 2, 3]]); // all banks are full
        assert_eq!(sizes(&[], 9), [[0; 0]; 0]);
        let group = &groups(vec![(7, reads_of(0, 9)), (8, reads_of(5, 9))])[0];
        assert_eq!((&group.objects[..], &group.reads[..]), (&[7, 8][..], &[reads_of(0, 9), reads_of(5, 9)][..]));
        let many: Vec<usize> = sizes(&[0; 2 * MAX_BATCH + 1], 3).iter().map(Vec::len).collect();
        assert_eq!(many, [MAX_BATCH, MAX_BATCH, 1]);
    }

    #[test]
    fn what_is_cut_apart_can_be_put_together() {
        let all = Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6.], [3, 1, 2], &Device::Cpu).unwrap();
        let parts = apart(&all).unwrap();
        let values: Vec<Vec<f32>> = parts.iter().map(|part| part.to_vec().unwrap()).collect();
        assert_eq!((values, &parts[0].shape()[..]), (vec![vec![1., 2.], vec![3., 4.], vec![5., 6.]], &[1, 1, 2][..]));
        let again = beside(&parts.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!((again.to_vec::<f32>().unwrap(), again.shape()), (all.to_vec::<f32>().unwrap(), all.shape()));
        assert_eq!(apart(&parts[2]).unwrap()[0].ptr(), parts[2].ptr()); // one is no copy
    }
}
