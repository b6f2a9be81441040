//! Images of the pool that are like curated ones (Oquab et al. 2023, section 3 and appendix A.4), by cosine of features.

use std::cmp::Reverse;
use std::path::Path;

use super::config::{Config, Retrieve};
use super::kmeans::Centres;
use super::parts::Parts;
use super::search::{Near, Rows, Wanted};
use crate::checkpoint::{StateDict, atomic, safetensors};
use crate::train::{Progress, interrupt};
use crate::{Device, Error, Result, Tensor};

/// Images for one cluster, by default.
const PER_CLUSTER: usize = 50;
/// Candidates of each curated image, in multiples of the number that is wanted; at least [`DEPTH`].
const CANDIDATES: usize = 4;
const DEPTH: usize = 64;

/// An image that was retrieved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retrieved {
    /// Number among the images of the pool that were left.
    pub image: u32,
    /// Number of the curated folder.
    pub set: usize,
    /// Number of the curated image in its set, or of the cluster.
    pub by: u32,
    /// Cosine to that image, or to the mean of the cluster's curated images.
    pub similarity: f32,
}

/// What was retrieved for each curated set, in order, and how many images there were too few of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The images.
    pub retrieved: Vec<Retrieved>,
    /// sample: images that curated images asked for and did not get.
    pub missing: usize,
    /// cluster: clusters that images were taken from.
    pub clusters: usize,
}

/// Retrieves from `points` `[n, dim]`, features of unit length of the images that are left; `None` if the user asked to stop.
///
/// # Errors
/// When there is nothing to retrieve from, or the numbers do not fit it; [`Error::Io`].
pub fn retrieve(
    points: &[f32],
    dim: usize,
    curated: &[Parts],
    config: &Config,
    device: &Device,
    folder: &Path,
) -> Result<Option<Found>> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    atomic::clean(folder, "")?;
    match config.retrieve {
        Retrieve::None => Ok(Some(Found::default())),
        Retrieve::Sample => samples(points, dim, curated, config, device, folder),
        Retrieve::Cluster => clusters(points, dim, curated, config, device, folder),
    }
}

fn samples(
    points: &[f32],
    dim: usize,
    curated: &[Parts],
    config: &Config,
    device: &Device,
    folder: &Path,
) -> Result<Option<Found>> {
    let left = points.len() / dim;
    let depth = left.min(DEPTH.max(CANDIDATES * config.k));
    let wanted = Wanted { k: depth, above: f32::NEG_INFINITY, views: 1, own: None };
    let rows = Rows::new(points, dim, device)?;
    let mut found = Found::default();
    let total: usize = curated.iter().map(Parts::count).sum();
    let mut progress = Progress::new("retrieve", total as u64, 0, 1.0, "parts");
    for (number, set) in curated.iter().enumerate() {
        let mut near = Vec::new();
        for part in 0..set.count() {
            if interrupt::asked() {
                return Ok(None);
            }
            let file = folder.join(format!("{}-{part:05}.safetensors", set.set.name));
            if !file.exists() {
                write(&file, &rows.nearest(&set.features(part)?.0, &wanted)?, depth)?;
            }
            near.extend(read(&file, depth)?);
            progress.step("");
        }
        let (taken, missing) = share_out(&near, config.k, left);
        let of =
            |(by, near): (u32, Near)| Retrieved { image: near.index, set: number, by, similarity: near.similarity };
        found.retrieved.extend(taken.into_iter().map(of));
        found.missing += missing;
    }
    progress.finish();
    Ok(Some(found))
}

/// Gives each query up to `k` of what is `near` it, no image to two queries: pairs by falling similarity, equal ones by query
/// and image. Returns query and image, and how many images are missing to `k` each.
fn share_out(near: &[Vec<Near>], k: usize, images: usize) -> (Vec<(u32, Near)>, usize) {
    let mut pairs: Vec<(u32, Near)> =
        near.iter().zip(0..).flat_map(|(near, query)| near.iter().map(move |n| (query, *n))).collect();
    pairs.sort_by(|a, b| b.1.similarity.total_cmp(&a.1.similarity).then((a.0, a.1.index).cmp(&(b.0, b.1.index))));
    let (mut taken, mut has) = (vec![false; images], vec![0; near.len()]);
    pairs.retain(|(query, near)| {
        let free = !taken[near.index as usize] && has[*query as usize] < k;
        if free {
            taken[near.index as usize] = true;
            has[*query as usize] += 1;
        }
        free
    });
    let missing = near.len() * k - pairs.len();
    (pairs, missing)
}

fn clusters(
    points: &[f32],
    dim: usize,
    curated: &[Parts],
    config: &Config,
    device: &Device,
    folder: &Path,
) -> Result<Option<Found>> {
    let left = points.len() / dim;
    let k = config.clusters.unwrap_or(left.div_ceil(PER_CLUSTER));
    let file = folder.join("centres.safetensors");
    let (mut centres, mut settled) = match file.exists() {
        true => read_centres(&file)?,
        false => (Centres::begin(points, dim, k, config.seed)?, false),
    };
    let mut progress = Progress::new("k-means", config.rounds as u64, centres.round as u64, left as f64, "images");
    while !settled && centres.round < config.rounds {
        if interrupt::asked() {
            return Ok(None);
        }
        settled = centres.step(points, dim, device)?;
        write_centres(&file, &centres, settled, dim)?;
        progress.step("");
    }
    progress.finish();
    let of_points = centres.assign(points, dim, device)?;
    let mut members = vec![Vec::new(); k];
    for (image, near) in of_points.iter().enumerate() {
        members[near.index as usize].push(image as u32);
    }
    let mut found = Found::default();
    for (number, set) in curated.iter().enumerate() {
        let features = set.all_features()?.0;
        let near = centres.assign(&features, dim, device)?;
        let chosen = choose(points, dim, &members, &features, &near, config);
        found.clusters += chosen.1;
        found.retrieved.extend(chosen.0.into_iter().map(|r| Retrieved { set: number, ..r }));
    }
    Ok(Some(found))
}

/// Of the clusters with more than `cluster_min` curated images, those with most of them first, the images nearest to the mean
/// of these; and the number of clusters. `members` are the pool's images of each cluster, `near` says where the curated
/// `features` lie.
fn choose(
    points: &[f32],
    dim: usize,
    members: &[Vec<u32>],
    features: &[f32],
    near: &[Near],
    config: &Config,
) -> (Vec<Retrieved>, usize) {
    let (mut sums, mut counts) = (vec![0f64; members.len() * dim], vec![0usize; members.len()]);
    for (feature, near) in features.chunks_exact(dim).zip(near) {
        let cluster = near.index as usize;
        counts[cluster] += 1;
        sums[cluster * dim..][..dim].iter_mut().zip(feature).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    let mut order: Vec<usize> = (0..members.len()).filter(|&c| counts[c] > config.cluster_min).collect();
    order.sort_by_key(|&c| (Reverse(counts[c]), c));
    let (mut all, mut used) = (Vec::new(), 0);
    for cluster in order {
        let room = config.cap - all.len();
        if room == 0 {
            break;
        }
        let mean = &sums[cluster * dim..][..dim];
        let norm = mean.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        let similarity = |image: u32| {
            let point = &points[image as usize * dim..][..dim];
            (point.iter().zip(mean).map(|(p, m)| f64::from(*p) * m).sum::<f64>() / norm) as f32
        };
        let mut images: Vec<Near> =
            members[cluster].iter().map(|&index| Near { index, similarity: similarity(index) }).collect();
        images.sort();
        images.truncate(config.per_cluster.min(room));
        let by = cluster as u32;
        all.extend(images.iter().map(|n| Retrieved { image: n.index, set: 0, by, similarity: n.similarity }));
        used += 1;
    }
    (all, used)
}

fn write(file: &Path, near: &[Vec<Near>], depth: usize) -> Result<()> {
    let indices: Vec<i32> = near.iter().flatten().map(|n| n.index as i32).collect();
    let similarities: Vec<f32> = near.iter().flatten().map(|n| n.similarity).collect();
    let mut dict = StateDict::new();
    dict.insert("images", Tensor::from_slice(&indices, [near.len(), depth], &Device::Cpu)?)?;
    dict.insert("similarity", Tensor::from_slice(&similarities, [near.len(), depth], &Device::Cpu)?)?;
    safetensors::write(file, &dict)
}

fn read(file: &Path, depth: usize) -> Result<Vec<Vec<Near>>> {
    let dict = safetensors::read(file)?;
    let (images, similarities) =
        (dict.require("images")?.to_vec::<i32>()?, dict.require("similarity")?.to_vec::<f32>()?);
    let near = |(&index, &similarity): (&i32, &f32)| Near { index: index as u32, similarity };
    let rows = images.chunks_exact(depth.max(1)).zip(similarities.chunks_exact(depth.max(1)));
    Ok(rows.map(|(images, similarities)| images.iter().zip(similarities).map(near).collect()).collect())
}

fn write_centres(file: &Path, centres: &Centres, settled: bool, dim: usize) -> Result<()> {
    let mut dict = StateDict::new();
    let shape = [centres.values.len() / dim, dim];
    dict.insert("centres", Tensor::from_slice(&centres.values, shape, &Device::Cpu)?)?;
    dict.insert("assigned", Tensor::from_slice(&centres.assigned, [centres.assigned.len()], &Device::Cpu)?)?;
    let state = [centres.round as i32, i32::from(settled)];
    dict.insert("round, settled", Tensor::from_slice(&state, [2], &Device::Cpu)?)?;
    safetensors::write(file, &dict)
}

fn read_centres(file: &Path) -> Result<(Centres, bool)> {
    let dict = safetensors::read(file)?;
    let state = dict.require("round, settled")?.to_vec::<i32>()?;
    let centres = Centres {
        values: dict.require("centres")?.to_vec()?,
        assigned: dict.require("assigned")?.to_vec()?,
        round: state[0] as usize,
    };
    Ok((centres, state[1] == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(list: &[(u32, f32)]) -> Vec<Near> {
        list.iter().map(|&(index, similarity)| Near { index, similarity }).collect()
    }

    #[test]
    fn an_image_goes_to_the_query_it_is_nearest_to_and_others_take_the_next() {
        let lists = [near(&[(0, 0.9), (1, 0.8), (2, 0.3)]), near(&[(0, 0.95), (1, 0.7), (3, 0.6)])];
        let (taken, missing) = share_out(&lists, 2, 4);
        let ids: Vec<_> = taken.iter().map(|(query, n)| (*query, n.index)).collect();
        assert_eq!((ids, missing), (vec![(1, 0), (0, 1), (1, 3), (0, 2)], 0));
        let (taken, missing) = share_out(&lists, 3, 4);
        assert_eq!((taken.len(), missing), (4, 2));
    }

    #[test]
    fn clusters_with_many_curated_images_come_first_and_are_capped() {
        use clap::Parser;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            config: Config,
        }
        let config = |more: &[&str]| Line::parse_from([&["curate", "pool"], more].concat()).config;
        let points = [1.0, 0.0, 0.8, 0.6, 0.6, 0.8, 0.0, 1.0, -1.0, 0.0];
        let members = [vec![0, 1], vec![2, 3], vec![4]];
        // One curated image in cluster 0, three in cluster 1, two in cluster 2.
        let features = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, -1.0, 0.0, -1.0, 0.0];
        let at = near(&[(0, 1.0), (1, 1.0), (1, 1.0), (1, 1.0), (2, 1.0), (2, 1.0)]);
        let images = |more: &[&str]| {
            let (found, used) = choose(&points, 2, &members, &features, &at, &config(more));
            (found.iter().map(|r| (r.by, r.image)).collect::<Vec<_>>(), used)
        };
        let two = ["--cluster-min", "1"];
        assert_eq!(images(&two), (vec![(1, 3), (1, 2), (2, 4)], 2));
        assert_eq!(images(&[&two[..], &["--per-cluster", "1"]].concat()), (vec![(1, 3), (2, 4)], 2));
        assert_eq!(images(&[&two[..], &["--cap", "2"]].concat()), (vec![(1, 3), (1, 2)], 1));
        assert_eq!(images(&[]), (vec![], 0));
    }
}
