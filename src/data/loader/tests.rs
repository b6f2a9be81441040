use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::data::augment::{CropParams, CropRange};
use crate::data::decode;
use crate::data::folder::Folder;
use crate::data::resize::Filter;

/// Images whose every byte is their number; those in `broken` cannot be read.
struct Numbered {
    len: usize,
    broken: Vec<usize>,
}

impl Source for Numbered {
    fn len(&self) -> usize {
        self.len
    }

    fn label(&self, index: usize) -> i32 {
        index as i32 % 3
    }

    fn name(&self, index: usize) -> PathBuf {
        format!("{index}.png").into()
    }

    fn load(&self, index: usize) -> Result<Arc<Image>> {
        if self.broken.contains(&index) {
            return Err(Error::Image { path: self.name(index), cause: "broken".to_owned() });
        }
        Ok(Arc::new(Image::filled(6, 5, [index as u8; 3])))
    }
}

fn numbered(len: usize, broken: &[usize]) -> Arc<dyn Source> {
    Arc::new(Numbered { len, broken: broken.to_vec() })
}

/// The number of the image and a random byte; sleeps irregularly so that threads overtake each other.
fn probe(image: &Image, rng: &mut Stream) -> Result<Vec<u8>> {
    let random = rng.bits() as u8;
    std::thread::sleep(Duration::from_micros(u64::from(random)));
    Ok(vec![image.data[0], random])
}

fn options(threads: usize) -> Options {
    Options { threads, epochs: Some(3), ..Options::training(4, 11) }
}

fn collect(source: Arc<dyn Source>, options: Options) -> Vec<Batch<u8>> {
    Loader::new(source, probe, options).unwrap().collect::<Result<_>>().unwrap()
}

#[test]
fn every_number_of_threads_gives_the_same_batches() {
    let one = collect(numbered(23, &[5, 9]), options(1));
    assert_eq!(one.len(), 3 * 5);
    for threads in [2, 4] {
        for prefetch in [1, 2, 7] {
            let many = collect(numbered(23, &[5, 9]), Options { prefetch, ..options(threads) });
            assert_eq!(one, many, "{threads} threads, {prefetch} batches ahead");
        }
    }
}

#[test]
fn epochs_are_permutations_and_differ() {
    let batches = collect(numbered(24, &[]), options(2));
    let epoch = |e: u64| -> Vec<u32> {
        batches.iter().filter(|b| b.epoch == e).flat_map(|b| b.indices.iter().copied()).collect()
    };
    for e in 0..3 {
        let mut sorted = epoch(e);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..24).collect::<Vec<_>>());
    }
    assert_ne!(epoch(0), epoch(1));
    for batch in &batches {
        assert_eq!(batch.images.len(), 8);
        for (i, &index) in batch.indices.iter().enumerate() {
            assert_eq!((batch.images[2 * i], batch.labels[i]), (index as u8, index as i32 % 3));
        }
    }
    assert_ne!(batches, collect(numbered(24, &[]), Options { seed: 12, ..options(2) }));
}

#[test]
fn a_loader_resumes_anywhere_as_if_it_had_never_stopped() {
    let whole = collect(numbered(23, &[3]), options(2));
    let mut first = Loader::new(numbered(23, &[3]), probe, options(2)).unwrap();
    for stop in 0..whole.len() {
        let rest = collect(numbered(23, &[3]), Options { start: first.position(), ..options(3) });
        assert_eq!(rest, whole[stop..], "from batch {stop}");
        first.next().unwrap().unwrap();
    }
    assert_eq!(first.position(), Position { epoch: 3, step: 0 });
    assert!(first.next().is_none());
    // The end of an epoch is the beginning of the next one.
    let at_end = Options { start: Position { epoch: 0, step: 5 }, ..options(1) };
    assert_eq!(collect(numbered(23, &[3]), at_end), whole[5..]);
}

#[test]
fn evaluation_keeps_every_sample_in_order() {
    let batches = collect(numbered(10, &[6]), Options::evaluation(4));
    let indices: Vec<_> = batches.iter().map(|b| b.indices.clone()).collect();
    assert_eq!(indices, [vec![0, 1, 2, 3], vec![4, 5, 7], vec![8, 9]]);
    assert_eq!(collect(numbered(3, &[]), Options::evaluation(4)).len(), 1);
}

#[test]
fn ranks_share_each_epoch_without_overlap() {
    let rank = |rank| collect(numbered(26, &[]), Options { rank, ranks: 3, ..options(2) });
    let all: Vec<_> = (0..3).map(rank).collect();
    assert!(all.iter().all(|batches| batches.len() == 3 * 2));
    for step in 0..6 {
        let mut seen: Vec<_> = all.iter().flat_map(|batches| batches[step].indices.clone()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 12);
    }
    let last = |rank| {
        let batches = collect(numbered(10, &[]), Options { rank, ranks: 3, ..Options::evaluation(4) });
        batches.iter().map(|b| b.indices.len()).sum::<usize>()
    };
    assert_eq!([last(0), last(1), last(2)], [4, 4, 2]);
}

#[test]
fn unreadable_samples_are_replaced_by_the_next_in_order_and_named() {
    let options = Options { shuffle: false, drop_last: false, epochs: Some(1), ..options(2) };
    let mut loader = Loader::new(numbered(6, &[1, 2, 5]), probe, options.clone()).unwrap();
    let indices: Vec<_> = loader.by_ref().map(|b| b.unwrap().indices).collect();
    assert_eq!(indices, [vec![0, 3, 3, 3], vec![4, 0]]);
    let names: Vec<_> = loader.failures().into_iter().map(|(path, _)| path).collect();
    assert_eq!(names, ["1.png", "2.png", "5.png"].map(PathBuf::from));
    assert!(loader.failures()[0].1.contains("broken"));

    let strict = Options { unreadable: Unreadable::Fail, ..options.clone() };
    let results: Vec<_> = Loader::new(numbered(6, &[5]), probe, strict).unwrap().collect();
    assert!(results[0].is_ok() && results.len() == 2);
    assert!(results[1].as_ref().unwrap_err().to_string().contains("5.png"));

    let mut hopeless = Loader::new(numbered(3, &[0, 1, 2]), probe, options).unwrap();
    let error = hopeless.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("neither it nor the 2 samples after it"), "{error}");
    assert!(hopeless.next().is_none());
}

#[test]
fn faults_of_the_transform_end_the_loader() {
    let panics = |_: &Image, _: &mut Stream| -> Result<Vec<u8>> { panic!("deliberate") };
    let mut loader = Loader::new(numbered(9, &[]), panics, options(2)).unwrap();
    assert!(loader.next().unwrap().unwrap_err().to_string().contains("panicked"));
    let uneven = |image: &Image, _: &mut Stream| Ok(vec![0u8; usize::from(image.data[0])]);
    let mut loader = Loader::new(numbered(9, &[]), uneven, options(2)).unwrap();
    assert!(loader.next().unwrap().unwrap_err().to_string().contains("`transform` has length"));
}

#[test]
fn what_a_transform_refuses_is_named_and_replaced() {
    let refuses = |image: &Image, _: &mut Stream| match image.data[0] {
        3 => Err(Error::value("probe", "image", 3, "another")),
        value => Ok(vec![value]),
    };
    let once = Options { epochs: Some(1), ..options(2) };
    let mut loader = Loader::new(numbered(8, &[]), refuses, once.clone()).unwrap();
    assert!(loader.by_ref().all(|batch| batch.is_ok_and(|batch| !batch.images.contains(&3))));
    let [(file, cause)] = &loader.failures()[..] else { panic!("{:?}", loader.failures()) };
    assert!(file.ends_with("3.png") && cause.contains("3.png: probe: `image` has value 3"), "{cause}");
    let strict = Options { unreadable: Unreadable::Fail, ..once };
    let error = Loader::new(numbered(8, &[]), refuses, strict).unwrap().find_map(Result::err).unwrap();
    assert!(error.to_string().contains("3.png"), "{error}");
}

#[test]
fn unusable_options_say_the_numbers() {
    let text = |len, options| match Loader::new(numbered(len, &[]), probe, options) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("accepted"),
    };
    assert_eq!(text(3, options(1)), "loader: `batch` has value 4, expected at most the 3 samples of the data set");
    let ranks = Options { ranks: 2, ..options(1) };
    assert!(text(7, ranks).contains("4 x 2 ranks, expected at most the 7 samples"));
    assert!(text(7, Options { rank: 1, ..options(1) }).contains("below 1"));
    assert!(text(7, Options { batch: 0, ..options(1) }).contains("at least 1"));
    assert!(text(7, Options { prefetch: 0, ..options(1) }).contains("at least 1"));
    assert!(text(0, Options::evaluation(1)).contains("0 samples"));
    let late = Options { start: Position { epoch: 0, step: 3 }, ..options(1) };
    assert!(text(8, late).contains("at most 2, the batches of an epoch"));
}

#[test]
fn dropping_it_in_the_middle_joins_the_threads() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static STARTED: AtomicBool = AtomicBool::new(false);
    let slow = |_: &Image, _: &mut Stream| {
        RUNNING.fetch_add(1, Ordering::SeqCst);
        STARTED.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        Ok(vec![0u8])
    };
    for taken in 0..4 {
        let mut loader = Loader::new(numbered(40, &[]), slow, Options { epochs: None, ..options(4) }).unwrap();
        for _ in 0..taken {
            loader.next().unwrap().unwrap();
        }
        drop(loader);
        assert_eq!(RUNNING.load(Ordering::SeqCst), 0);
    }
    assert!(STARTED.load(Ordering::SeqCst));
}

#[test]
fn the_number_of_batches_held_is_bounded() {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let count = |_: &Image, _: &mut Stream| Ok(vec![MADE.fetch_add(1, Ordering::SeqCst) as u8]);
    let options = Options { prefetch: 2, epochs: None, ..options(3) };
    let mut loader = Loader::new(numbered(40, &[]), count, options).unwrap();
    loader.next().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(MADE.load(Ordering::SeqCst), 3 * 4); // one handed out, two waiting
    assert_eq!(loader.stats().batches, 1);
    assert!(loader.stats().total_wait >= loader.stats().last_wait);
}

#[test]
fn files_of_every_kind_of_fault_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let images = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
    let good = std::fs::read(images.join("420.jpg")).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("0.jpg", &good);
    write("1.jpg", &good[..good.len() / 2]);
    write("2.jpg", b"not a picture");
    write("3.png", b"");
    let png = std::fs::read(images.join("420.expected.png")).unwrap();
    write("4.png", &png[..png.len() - 40]);
    let webp = std::fs::read(images.join("lossy.webp")).unwrap();
    write("5.webp", &webp[..60]);
    write("6.webp", &webp);

    let crop = |image: &Image, rng: &mut Stream| {
        let params = CropParams::draw(rng, image.width, image.height, &CropRange::PRETRAIN);
        Ok(params.apply(image, 16, 16, Filter::Bicubic)?.to_planes())
    };
    let options = Options { epochs: Some(1), batch: 7, ..options(2) };
    let folder = Arc::new(Folder::open(&dir).unwrap());
    let mut loader = Loader::new(folder, crop, options).unwrap();
    let batch = loader.next().unwrap().unwrap();
    assert_eq!(batch.images.len(), 7 * 3 * 16 * 16);
    assert!(batch.indices.iter().all(|i| [0, 6].contains(i)));
    assert_eq!(loader.failures().len(), 5);
    // A substitute is cropped by the random stream of the place it fills.
    let image = decode::open(dir.path().join("0.jpg")).unwrap();
    let order = loader.shared.order(0);
    for (place, (&own, &used)) in order.iter().zip(&batch.indices).enumerate() {
        if used == 0 {
            let expected = crop(&image, &mut Stream::new(11, Purpose::AUGMENT, 0, u64::from(own))).unwrap();
            assert_eq!(batch.images[place * 768..(place + 1) * 768], expected);
        }
    }
}
