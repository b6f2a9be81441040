use super::*;
use crate::Device;
use crate::eval::fixtures::Colours;

/// Pictures 32 wide and 16 high: a red (1) or green (2) half on blue ground (0), left or right, its middle row not labelled.
fn scenes(place: &Path, part: &str, count: usize) -> Arc<Scenes> {
    let root = place.join(part);
    std::fs::create_dir_all(root.join("images")).unwrap();
    std::fs::create_dir_all(root.join("masks")).unwrap();
    for i in 0..count {
        let (left, red) = (i % 3 != 0, i % 2 == 0);
        let thing = |x: usize| (x < 16) == left;
        let (colour, class) = if red { ([220, 30, 30], 1) } else { ([30, 220, 30], 2) };
        let at = |i: usize| (i % 32, i / 32);
        let pixels = (0..512).flat_map(|i| if thing(at(i).0) { colour } else { [20, 20, 200] }).collect();
        let label = |i: usize| match at(i) {
            (_, 8) => IGNORED,
            (x, _) => u8::from(thing(x)) * class,
        };
        Image::new(32, 16, pixels).unwrap().save_png(root.join(format!("images/{i:02}.png"))).unwrap();
        let map = LabelMap { width: 32, height: 16, ids: (0..512).map(label).collect() };
        map.save(root.join(format!("masks/{i:02}.png"))).unwrap();
    }
    Arc::new(Scenes::open(&root, false, &|_| ()).unwrap())
}

fn config() -> Config {
    Config {
        epochs: 30,
        batch_size: 4,
        optimizer: Method::AdamW,
        lr: Some(0.05),
        weight_decay: 0.0,
        no_augment: false,
        seed: 0,
    }
}

#[test]
fn a_linear_layer_learns_the_colours_of_pixels() {
    let place = tempfile::tempdir().unwrap();
    let (train, val) = (scenes(place.path(), "train", 12), scenes(place.path(), "val", 5));
    for change in
        [config(), Config { no_augment: true, ..config() }, Config { optimizer: Method::Sgd, lr: None, ..config() }]
    {
        let mut losses = vec![];
        let head = change.train(&Colours, &train, 3, |_, _, _, loss| losses.extend(loss)).unwrap();
        assert!(losses[0] > 0.9 && losses.len() == 90 && losses[89] < 0.3 * losses[0], "{losses:?}");
        let out = place.path().join("predictions");
        let found = evaluate(&Colours, &head, &val, Some(&out), |_, _| ()).unwrap();
        // The border between halves lies between two patches: at most a pixel on each side of it is wrong.
        assert!(found.accuracy() > 0.93 && found.mean_iou() > 0.85, "{change:?}: {found:?}");
        assert_eq!(found.pixels(), 5 * 15 * 32);
        let drawn = LabelMap::open(out.join("04.png")).unwrap();
        let right = drawn.ids.iter().zip(&val.map(4).unwrap().ids).filter(|(a, b)| a == b).count();
        assert!((drawn.width, drawn.height) == (32, 16) && right > 440, "{right}");
    }
}

#[test]
fn labels_beyond_those_of_training_are_named() {
    let place = tempfile::tempdir().unwrap();
    let val = scenes(place.path(), "val", 2);
    let head = ProbeHead::new(&Builder::new(&Device::Cpu, DType::F32, 0), 3, 2).unwrap();
    let text = evaluate(&Colours, &head, &val, None, |_, _| ()).unwrap_err().to_string();
    assert!(text.ends_with("val: labels up to 2, expected below 2, as in training"), "{text}");
}

#[test]
fn unusable_settings_are_named() {
    let text = |config: Config| config.check().unwrap_err().to_string();
    assert_eq!(text(Config { epochs: 0, ..config() }), "config: `epochs` is 0, expected at least 1");
    assert_eq!(text(Config { lr: Some(f64::NAN), ..config() }), "config: `lr` is NaN, expected 0 to 1000");
}

#[test]
fn mirrored_maps_go_with_mirrored_images() {
    let map = LabelMap { width: 3, height: 2, ids: vec![1, 2, 3, 4, 5, 6] };
    assert_eq!(mirror(&map).ids, [3, 2, 1, 6, 5, 4]);
    assert_eq!(mirror(&mirror(&map)), map);
}
