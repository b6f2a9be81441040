//! Row indices: checks on host devices, and example masks for the cases.

use rand::seq::SliceRandom;

use super::typed;
use crate::{DType, Error, Result, Tensor};

/// Checks that every group of `len` indices is free of duplicates and below `bound`. Only where the values can be read
/// without waiting for a device; kernels guard their reads themselves.
pub(crate) fn check_unique(op: &'static str, arg: &'static str, ids: &Tensor, len: usize, bound: usize) -> Result<()> {
    typed(op, arg, ids, DType::I32)?;
    if !ids.device().is_host() || len == 0 {
        return Ok(());
    }
    let mut seen = vec![0usize; bound]; // 1 + the last group that held the index
    for (group, ids) in ids.as_slice::<i32>()?.chunks(len).enumerate() {
        for (at, &id) in ids.iter().enumerate() {
            let arg = || format!("{arg}[{group}, {at}]");
            match usize::try_from(id).ok().and_then(|id| seen.get_mut(id)) {
                Some(last) if *last <= group => *last = group + 1,
                Some(_) => return Err(Error::value(op, arg(), id, "each index once")),
                None => return Err(Error::value(op, arg(), id, format!("an index below {bound}"))),
            }
        }
    }
    Ok(())
}

/// Checks that `ids_keep[b, j]` has rank `j` in `ids_restore[b]`, on host devices.
pub(crate) fn check_inverse(op: &'static str, ids_keep: &Tensor, ids_restore: &Tensor) -> Result<()> {
    let ([_, keep], [_, len]) = (ids_keep.dims::<2>(op, "ids_keep")?, ids_restore.dims::<2>(op, "ids_restore")?);
    check_unique(op, "ids_keep", ids_keep, keep, len)?;
    check_unique(op, "ids_restore", ids_restore, len, len)?;
    if !ids_keep.device().is_host() || keep == 0 {
        return Ok(());
    }
    let rows = ids_keep.as_slice::<i32>()?.chunks(keep).zip(ids_restore.as_slice::<i32>()?.chunks(len));
    for (b, (kept, restore)) in rows.enumerate() {
        for (j, &id) in kept.iter().enumerate() {
            let rank = restore[id as usize]; // in range: checked above
            if rank != j as i32 {
                let expected = format!("{j}, since `ids_keep[{b}, {j}]` is {id}");
                return Err(Error::value(op, format!("ids_restore[{b}, {id}]"), rank, expected));
            }
        }
    }
    Ok(())
}

/// A count as kernels take it.
pub(crate) fn count32(op: &'static str, what: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::argument(op, what, "length", n.to_string(), "below 2^32"))
}

/// Random masks for cases and tests.
pub(crate) struct Example {
    /// `[batch, keep]`
    pub keep: Vec<i32>,
    /// `[batch, len - keep]`, ascending
    pub masked: Vec<i32>,
    /// `[batch, len]`
    pub restore: Vec<i32>,
}

/// Keeps `keep` random patches of `len` in each of `batch` images.
pub(crate) fn example(batch: usize, len: usize, keep: usize) -> Example {
    let mut rng = crate::random::stream(7, len as u64);
    let mut out = Example { keep: vec![], masked: vec![], restore: vec![] };
    for _ in 0..batch {
        let mut order: Vec<i32> = (0..len as i32).collect();
        order.shuffle(&mut rng);
        out.keep.extend(&order[..keep]);
        let mut restore = vec![0; len];
        order.iter().enumerate().for_each(|(rank, &i)| restore[i as usize] = rank as i32);
        out.masked.extend((0..len as i32).filter(|&i| restore[i as usize] >= keep as i32));
        out.restore.extend(restore);
    }
    out
}
