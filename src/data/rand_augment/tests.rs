use super::*;
use crate::data::fixtures::{checksum, noise};
use crate::data::resize::resize;
use crate::data::rng::Purpose;

/// Noise, a soft image of few values, and the smallest and flattest ones.
fn images() -> [Image; 5] {
    let seed = noise(7, 6);
    let mut soft = resize(&seed, seed.rect(), 45, 34, Filter::Bicubic).unwrap();
    soft.data.iter_mut().for_each(|v| *v = *v / 2 + 40);
    [noise(23, 19), soft, noise(2, 1), Image::filled(5, 4, [9, 80, 80]), noise(1, 9)]
}

#[test]
fn bytes_are_those_of_pillow() {
    // Operation, interpolation, checksum of what Pillow 13.0.0 makes of the five images.
    let cases: &[(Change, Filter, u64)] = &[
        (Change::AutoContrast, Filter::Bicubic, 0xec6b956191c0bb17),
        (Change::Equalize, Filter::Bicubic, 0x30f0770c0fe6b25d),
        (Change::Invert, Filter::Bicubic, 0xac896633a37abdee),
        (Change::Posterize(1), Filter::Bicubic, 0x650279311115e08d),
        (Change::Posterize(3), Filter::Bicubic, 0x48e3fb2f6b7dd7ed),
        (Change::Posterize(4), Filter::Bicubic, 0xdda493b2105c252d),
        (Change::Solarize(0), Filter::Bicubic, 0xac896633a37abdee),
        (Change::Solarize(26), Filter::Bicubic, 0xaa800b374168083b),
        (Change::Solarize(77), Filter::Bicubic, 0xd6b5751aecea8d84),
        (Change::Solarize(256), Filter::Bicubic, 0xb64bc243dae0afdc),
        (Change::SolarizeAdd(0), Filter::Bicubic, 0xb64bc243dae0afdc),
        (Change::SolarizeAdd(99), Filter::Bicubic, 0xae769460daa0a437),
        (Change::SolarizeAdd(110), Filter::Bicubic, 0xf3f09cbfeddda1da),
        (Change::Colour(0.1), Filter::Bicubic, 0x54864e56a1429159),
        (Change::Contrast(0.1), Filter::Bicubic, 0x1db517f10d0af273),
        (Change::Brightness(0.1), Filter::Bicubic, 0x3df2e4633009efd7),
        (Change::Sharpness(0.1), Filter::Bicubic, 0xac76b5eac41d74a8),
        (Change::Colour(0.19), Filter::Bicubic, 0xa22e432bb0a0e3b3),
        (Change::Contrast(0.19), Filter::Bicubic, 0xfc39469cb26dec76),
        (Change::Brightness(0.19), Filter::Bicubic, 0x64c33602252b35a8),
        (Change::Sharpness(0.19), Filter::Bicubic, 0x59e2aa6944e386b2),
        (Change::Colour(0.37), Filter::Bicubic, 0xe4b1df19b6ca229f),
        (Change::Contrast(0.37), Filter::Bicubic, 0xe03fa6cfc6c60c55),
        (Change::Brightness(0.37), Filter::Bicubic, 0x334a11424fcdf578),
        (Change::Sharpness(0.37), Filter::Bicubic, 0x8ed952b385928f9c),
        (Change::Colour(1.0), Filter::Bicubic, 0xb64bc243dae0afdc),
        (Change::Contrast(1.0), Filter::Bicubic, 0xb64bc243dae0afdc),
        (Change::Brightness(1.0), Filter::Bicubic, 0xb64bc243dae0afdc),
        (Change::Sharpness(1.0), Filter::Bicubic, 0xb64bc243dae0afdc),
        (Change::Colour(1.4), Filter::Bicubic, 0x812d46a363cab6d3),
        (Change::Contrast(1.4), Filter::Bicubic, 0xd872cb0af9a21923),
        (Change::Brightness(1.4), Filter::Bicubic, 0x9a75e44f1d99f58b),
        (Change::Sharpness(1.4), Filter::Bicubic, 0x9c3e0af80f8b25f0),
        (Change::Colour(1.81), Filter::Bicubic, 0x744038dc2a6d2582),
        (Change::Contrast(1.81), Filter::Bicubic, 0xdad9ee6b334cf779),
        (Change::Brightness(1.81), Filter::Bicubic, 0x90f5669ae756f3de),
        (Change::Sharpness(1.81), Filter::Bicubic, 0x63481f457d00bcf4),
        (Change::Colour(1.9), Filter::Bicubic, 0x09aa4b90b4af7fdc),
        (Change::Contrast(1.9), Filter::Bicubic, 0xfaf3a4061fd5ca8e),
        (Change::Brightness(1.9), Filter::Bicubic, 0x5384e2a999ecd7b1),
        (Change::Sharpness(1.9), Filter::Bicubic, 0x7ad34d27d953ad1a),
        (Change::Rotate(-27.3), Filter::Bilinear, 0x6485b70864837536),
        (Change::Rotate(12.0), Filter::Bilinear, 0x7730f1fb53fdc7b4),
        (Change::Rotate(0.0), Filter::Bilinear, 0xb64bc243dae0afdc),
        (Change::Rotate(30.0), Filter::Bilinear, 0x68eb229dbd82a58d),
        (Change::ShearX(-0.27), Filter::Bilinear, 0xa1107f0d0788b72f),
        (Change::ShearY(-0.27), Filter::Bilinear, 0xe225f4b7e7660162),
        (Change::ShearX(0.123), Filter::Bilinear, 0xb867bef776a97b00),
        (Change::ShearY(0.123), Filter::Bilinear, 0xcc94337b8e53e511),
        (Change::ShearX(0.3), Filter::Bilinear, 0xc042361cbfd6ff96),
        (Change::ShearY(0.3), Filter::Bilinear, 0xf72b12adea6911d6),
        (Change::TranslateX(-0.405), Filter::Bilinear, 0x8e6e61fb2515504b),
        (Change::TranslateY(-0.405), Filter::Bilinear, 0x7ba018bde55ff748),
        (Change::TranslateX(0.217), Filter::Bilinear, 0xe264584318d3f95b),
        (Change::TranslateY(0.217), Filter::Bilinear, 0xd542a11c3e678821),
        (Change::TranslateX(0.45), Filter::Bilinear, 0x0b9e9817a8c7ef64),
        (Change::TranslateY(0.45), Filter::Bilinear, 0x9191677069d80ce6),
        (Change::Rotate(-27.3), Filter::Bicubic, 0x0e52a027b05242ce),
        (Change::Rotate(12.0), Filter::Bicubic, 0x80eaa2574f5df8a2),
        (Change::Rotate(0.0), Filter::Bicubic, 0xb64bc243dae0afdc),
        (Change::Rotate(30.0), Filter::Bicubic, 0xbaf1e58a54d81ce6),
        (Change::ShearX(-0.27), Filter::Bicubic, 0x0315b9899756ccfb),
        (Change::ShearY(-0.27), Filter::Bicubic, 0x62dce94201d3bcb2),
        (Change::ShearX(0.123), Filter::Bicubic, 0xb497c1391ed3f386),
        (Change::ShearY(0.123), Filter::Bicubic, 0xd60dd9b1b1a763f0),
        (Change::ShearX(0.3), Filter::Bicubic, 0xff1d185884d221be),
        (Change::ShearY(0.3), Filter::Bicubic, 0x358b20529121823d),
        (Change::TranslateX(-0.405), Filter::Bicubic, 0x7d7ae349328a8b14),
        (Change::TranslateY(-0.405), Filter::Bicubic, 0x5e9a0873f5dceb47),
        (Change::TranslateX(0.217), Filter::Bicubic, 0x8f677de7073f0e62),
        (Change::TranslateY(0.217), Filter::Bicubic, 0x1131c056d8bdb011),
        (Change::TranslateX(0.45), Filter::Bicubic, 0x2e2f21a786466a0c),
        (Change::TranslateY(0.45), Filter::Bicubic, 0x152660c576de22fa),
    ];
    let fill = RandAugment::default().fill;
    assert_eq!(fill, [124, 116, 104]);
    let mut wrong = Vec::new();
    for &(change, filter, expected) in cases {
        let bytes: Vec<u8> = images().iter().flat_map(|image| change.apply(image, filter, fill).data).collect();
        if checksum(&bytes) != expected {
            wrong.push((change, filter));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn magnitudes_become_the_arguments_of_the_recipe() {
    let mut rng = Stream::new(0, Purpose::TEST, 0, 0);
    let at = |rng: &mut Stream, which, level| Change::at_level(rng, which, level);
    assert_eq!(at(&mut rng, 4, 9.0), Change::Posterize(1));
    assert_eq!([0.0, 4.9, 10.0].map(|level| at(&mut rng, 4, level)), [4, 3, 0].map(Change::Posterize));
    assert_eq!(at(&mut rng, 5, 9.0), Change::Solarize(256 - 230));
    assert_eq!(at(&mut rng, 6, 9.0), Change::SolarizeAdd(99));
    let mut signs = std::collections::HashSet::new();
    for _ in 0..40 {
        let Change::Rotate(degrees) = at(&mut rng, 3, 9.0) else { panic!("not a rotation") };
        assert_eq!(degrees.abs(), 27.0);
        signs.insert(degrees > 0.0);
        let Change::TranslateY(part) = at(&mut rng, 14, 10.0) else { panic!("not a translation") };
        assert_eq!(part.abs(), 0.45);
        let Change::Contrast(factor) = at(&mut rng, 8, 10.0) else { panic!("not a contrast") };
        assert!([0.1, 1.9].contains(&factor));
    }
    assert_eq!(signs.len(), 2);
}

#[test]
fn draws_have_the_stated_frequencies() {
    let settings = RandAugment { filter: None, ..RandAugment::default() };
    let mut rng = Stream::new(1, Purpose::TEST, 0, 0);
    let draws: Vec<_> = (0..4000).map(|_| settings.draw(&mut rng)).collect();
    let applied: usize = draws.iter().map(Vec::len).sum();
    assert!((3700..4300).contains(&applied), "{applied}"); // 8000/2 +- 6.7 standard deviations
    let kinds: std::collections::HashSet<_> =
        draws.iter().flatten().map(|(change, _)| std::mem::discriminant(change)).collect();
    assert_eq!(kinds.len(), CHANGES);
    let cubic = draws.iter().flatten().filter(|(_, filter)| *filter == Filter::Bicubic).count();
    assert!((applied / 2 - 220..applied / 2 + 220).contains(&cubic), "{cubic}");
    let again: Vec<_> = {
        let mut rng = Stream::new(1, Purpose::TEST, 0, 0);
        (0..4000).map(|_| settings.draw(&mut rng)).collect()
    };
    assert_eq!(draws, again);
}

#[test]
fn settings_are_read_from_their_usual_form() {
    assert_eq!(RandAugment::parse("rand-m9-mstd0.5-inc1").unwrap(), RandAugment::default());
    let other = RandAugment::parse("rand-inc1-n3-m5-p0.7").unwrap();
    assert_eq!((other.count, other.magnitude, other.deviation, other.probability), (3, 5.0, 0.0, 0.7));
    for text in [
        "",
        "rand",
        "rand-m9",
        "original",
        "rand-m11-inc1",
        "rand-inc0",
        "rand-m-inc1",
        "rand-x3-inc1",
        "rand-n1.5-inc1",
    ] {
        assert!(RandAugment::parse(text).is_err(), "{text}");
    }
}

#[test]
fn images_keep_their_size() {
    let settings = RandAugment { count: 4, probability: 1.0, ..RandAugment::default() };
    for index in 0..60 {
        let changes = settings.draw(&mut Stream::new(2, Purpose::TEST, 0, index));
        for image in images() {
            let out = settings.apply(image.clone(), &changes);
            assert_eq!((out.width, out.height, out.data.len()), (image.width, image.height, image.data.len()));
        }
    }
}
