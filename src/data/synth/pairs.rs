//! Captioned pictures that are easy to read: one to three equal things on a plain ground, every attribute in the caption.
//!
//! Made so that a small model learns them from scratch in minutes: nothing overlaps, nothing but noise and a little light is
//! added, 32 pixels suffice. What it is good for is composition: a quarter of the pairs of colour and shape never occur in
//! training ([`held_out`]), so naming them right means that colour and shape were learnt apart.

use serde::Serialize;

use super::paint::{COLOURS, Canvas, Pattern, Surface, jittered};
use super::scene::article;
use super::shape::{Kind, Placed};
use crate::data::image::Image;
use crate::data::rng::Stream;

/// Colours of things: the first of [`COLOURS`], all of them bright.
const HUES: usize = 8;
/// Colours of the ground, none of which a thing has.
const GROUNDS: [usize; 3] = [9, 10, 11];
/// Sizes: name, radius over the side of the picture.
const SIZES: [(&str, f64); 2] = [("small", 0.13), ("large", 0.21)];
const PATTERNS: [Pattern; 3] = [Pattern::Plain, Pattern::Striped, Pattern::Dotted];

/// Quarters of the picture, and its middle: where things stand.
const TOP_LEFT: [f64; 2] = [0.27, 0.27];
const TOP_RIGHT: [f64; 2] = [0.73, 0.27];
const BOTTOM_LEFT: [f64; 2] = [0.27, 0.73];
const BOTTOM_RIGHT: [f64; 2] = [0.73, 0.73];
const MIDDLE: [f64; 2] = [0.5, 0.5];

/// How things stand: the words for it, and the sets of places one of which is taken.
const LAYOUTS: [(&str, &[&[[f64; 2]]]); 9] = [
    ("at the top left", &[&[TOP_LEFT]]),
    ("at the top right", &[&[TOP_RIGHT]]),
    ("at the bottom left", &[&[BOTTOM_LEFT]]),
    ("at the bottom right", &[&[BOTTOM_RIGHT]]),
    ("in the middle", &[&[MIDDLE]]),
    ("side by side", &[&[TOP_LEFT, TOP_RIGHT], &[BOTTOM_LEFT, BOTTOM_RIGHT]]),
    ("one above the other", &[&[TOP_LEFT, BOTTOM_LEFT], &[TOP_RIGHT, BOTTOM_RIGHT]]),
    ("corner to corner", &[&[TOP_LEFT, BOTTOM_RIGHT], &[TOP_RIGHT, BOTTOM_LEFT]]),
    (
        "in three corners",
        &[
            &[TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT],
            &[TOP_LEFT, BOTTOM_LEFT, BOTTOM_RIGHT],
            &[TOP_LEFT, TOP_RIGHT, BOTTOM_RIGHT],
            &[TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT],
        ],
    ),
];
/// The first layouts are of one thing.
const SINGLE: usize = 5;

/// Prompts for these pictures, `{}` for a class name.
pub const TEMPLATES: [&str; 3] = ["a {}", "a picture of a {}", "there is a {}"];

/// Whether things of a colour and a shape, by their numbers, are kept out of training: where the two add up to 3 modulo 4.
/// Every colour and every shape is seen in other pairs.
pub fn held_out(colour: usize, shape: usize) -> bool {
    (colour + shape) % 4 == 3
}

/// What is in a picture, as its captions say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Attributes {
    /// Number of things.
    pub count: usize,
    /// `small` or `large`.
    pub size: &'static str,
    /// Colour of the things.
    pub colour: &'static str,
    /// Pattern of the things.
    pub pattern: &'static str,
    /// Shape of the things.
    pub shape: &'static str,
    /// How they stand.
    pub place: &'static str,
    /// Colour of the ground.
    pub ground: &'static str,
}

/// A picture with its captions.
#[derive(Clone, Debug, PartialEq)]
pub struct Captioned {
    /// The picture.
    pub image: Image,
    /// What is in it.
    pub attributes: Attributes,
    /// Two sentences that say all of it, differently; for training a third of size, colour and shape alone, as class names are.
    pub captions: Vec<String>,
}

/// Numbers of the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Combination {
    shape: usize,
    colour: usize,
    size: usize,
    pattern: usize,
    layout: usize,
    ground: usize,
}

/// A class of the zero-shot test: size, colour and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    size: usize,
    colour: usize,
    shape: usize,
}

impl Class {
    /// All classes of the first `shapes` shapes.
    pub fn all(shapes: usize) -> impl Iterator<Item = Self> {
        let of_shape = |shape| (0..HUES).map(move |colour| (colour, shape));
        let sized = |(colour, shape)| (0..SIZES.len()).map(move |size| Self { size, colour, shape });
        (0..shapes).flat_map(of_shape).flat_map(sized)
    }

    /// Whether training has nothing of its colour and shape.
    pub fn is_held_out(self) -> bool {
        held_out(self.colour, self.shape)
    }

    /// `large red circle`.
    pub fn name(self) -> String {
        format!("{} {} {}", SIZES[self.size].0, COLOURS[self.colour].0, Kind::ALL[self.shape].name())
    }

    /// A picture of one thing of this class; the rest is drawn.
    pub fn one(self, rng: &mut Stream) -> Combination {
        self.combination(rng.below(PATTERNS.len()), rng.below(SINGLE), rng.below(GROUNDS.len()))
    }

    fn combination(self, pattern: usize, layout: usize, ground: usize) -> Combination {
        Combination { shape: self.shape, colour: self.colour, size: self.size, pattern, layout, ground }
    }
}

impl Combination {
    /// All that are held out, of the first `shapes` shapes.
    pub fn all_held_out(shapes: usize) -> Vec<Self> {
        let of = |class: Class| {
            let rest = (0..PATTERNS.len()).flat_map(|p| (0..LAYOUTS.len()).map(move |l| (p, l)));
            rest.flat_map(move |(p, l)| (0..GROUNDS.len()).map(move |g| class.combination(p, l, g)))
        };
        Class::all(shapes).filter(|class| class.is_held_out()).flat_map(of).collect()
    }

    /// One for training: any that is not held out.
    pub fn seen(rng: &mut Stream, shapes: usize) -> Self {
        let classes: Vec<Class> = Class::all(shapes).filter(|class| !class.is_held_out()).collect();
        let class = classes[rng.below(classes.len())];
        class.combination(rng.below(PATTERNS.len()), rng.below(LAYOUTS.len()), rng.below(GROUNDS.len()))
    }

    /// Paints it, `side` pixels wide and high, things turned by up to `turn` degrees to either side. `short`: also a caption
    /// of size, colour and shape alone.
    pub fn draw(self, rng: &mut Stream, side: usize, turn: f64, short: bool) -> Captioned {
        let (place, choices) = LAYOUTS[self.layout];
        let places = choices[rng.below(choices.len())];
        let ground = jittered(rng, GROUNDS[self.ground]);
        let mut canvas = Canvas::new(side, &Surface::random(rng, Pattern::Plain, ground, 0.1, 2.0));
        let colour = jittered(rng, self.colour);
        let surface = Surface::random(rng, PATTERNS[self.pattern], colour, 0.6, 1.1);
        let scale = side as f64;
        for [x, y] in places {
            let mut moved = |v: f64| ((v + rng.uniform(-0.03, 0.03)) * scale) as f32;
            let centre = [moved(*x), moved(*y)];
            let shape = Placed {
                outline: Kind::ALL[self.shape].outline(),
                centre,
                radius: (SIZES[self.size].1 * rng.uniform(0.93, 1.07) * scale) as f32,
                angle: rng.uniform(-turn, turn).to_radians() as f32,
            };
            canvas.draw(&shape, &surface);
        }
        canvas.shade(Placed::random_angle(rng), rng.uniform(0.0, 0.1) as f32);
        let image = canvas.develop(rng, 0.02);
        let attributes = Attributes {
            count: places.len(),
            size: SIZES[self.size].0,
            colour: COLOURS[self.colour].0,
            pattern: PATTERNS[self.pattern].name(),
            shape: Kind::ALL[self.shape].name(),
            place,
            ground: COLOURS[GROUNDS[self.ground]].0,
        };
        Captioned { image, captions: attributes.captions(rng, short), attributes }
    }
}

impl Attributes {
    fn captions(&self, rng: &mut Stream, short: bool) -> Vec<String> {
        let mut forms = [0, 1, 2, 3];
        rng.shuffle(&mut forms);
        let mut captions: Vec<String> = forms[..2].iter().map(|form| self.sentence(*form)).collect();
        if short {
            let Self { size, colour, .. } = self;
            let (noun, beginning) = (self.noun(), ["", "a picture of ", "there is "]);
            let [first, second, other] = if self.count == 1 { beginning } else { ["", "a picture of ", "there are "] };
            let beginning = [first, second, other][rng.below(3)];
            captions.push(format!("{beginning}{} {size} {colour} {noun}", self.number(size)));
        }
        captions
    }

    /// All attributes, in one of four forms.
    fn sentence(&self, form: usize) -> String {
        let Self { size, colour, pattern, place, ground, .. } = self;
        let (noun, number) = (self.noun(), |next| self.number(next));
        match form {
            0 => format!(
                "{} {size} {pattern} {colour} {noun} {place} of {} {ground} ground",
                number(size),
                article(ground)
            ),
            1 => format!("on {ground} ground, {} {colour} {noun} {place}, {size} and {pattern}", number(colour)),
            2 => format!("{ground} ground; {place} {} {pattern} {colour} {noun} of {size} size", number(pattern)),
            _ => format!("a {ground} picture with {} {size} {noun} {place}, {colour} and {pattern}", number(size)),
        }
    }

    /// `circle`, `two crosses` without the number.
    fn noun(&self) -> String {
        let ending = match self.count {
            1 => "",
            _ if self.shape.ends_with('s') => "es",
            _ => "s",
        };
        format!("{}{ending}", self.shape)
    }

    /// The number, or the article that goes before the word `next`.
    fn number(&self, next: &str) -> &'static str {
        match self.count {
            1 => article(next),
            2 => "two",
            _ => "three",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::data::rng::Purpose;

    fn stream(index: u64) -> Stream {
        Stream::new(2, Purpose::TEST, 0, index)
    }

    #[test]
    fn a_quarter_of_the_pairs_is_held_out_and_its_parts_are_seen() {
        for shapes in 2..=12 {
            let (out, seen): (Vec<Class>, Vec<Class>) = Class::all(shapes).partition(|class| class.is_held_out());
            assert_eq!((out.len(), seen.len()), (4 * shapes, 12 * shapes));
            assert!((0..HUES).all(|colour| seen.iter().any(|class| class.colour == colour)));
            assert!((0..shapes).all(|shape| seen.iter().any(|class| class.shape == shape)));
        }
        for i in 0..500 {
            let c = Combination::seen(&mut stream(i), 6);
            assert!(c.shape < 6 && !held_out(c.colour, c.shape), "{c:?}");
        }
        let all = Combination::all_held_out(6);
        assert_eq!((all.len(), all.iter().collect::<HashSet<_>>().len()), (24 * 3 * 9 * 3, 24 * 3 * 9 * 3));
        assert!(all.iter().all(|c| held_out(c.colour, c.shape)));
    }

    #[test]
    fn captions_name_every_attribute_and_tell_combinations_apart() {
        let mut said = HashSet::new();
        for (i, combination) in Combination::all_held_out(6).into_iter().enumerate() {
            let made = combination.draw(&mut stream(i as u64), 16, 10.0, true);
            let Attributes { count, size, colour, pattern, shape, place, ground } = made.attributes;
            let [first, second, short] = &made.captions[..] else { panic!("{:?}", made.captions) };
            assert!(first != second);
            for word in [size, colour, pattern, shape, place, ground] {
                assert!(first.contains(word) && second.contains(word), "{word}: {made:?}");
            }
            let number = ["a", "two", "three"][count - 1];
            for caption in [first, second, short] {
                assert!(format!(" {caption} ").contains(&format!(" {number} ")) || count == 1, "{caption}");
                assert_eq!(
                    count > 1,
                    caption.contains(&format!("{shape}s")) || caption.contains("crosses"),
                    "{caption}"
                );
                assert!(!caption.contains("  "), "{caption}");
            }
            assert!(short.ends_with(&format!("{size} {colour} {}", made.attributes.noun())), "{short}");
            assert!(said.insert(made.attributes.sentence(0)), "said twice: {first}");
        }
        let once = Combination::seen(&mut stream(0), 6).draw(&mut stream(1), 16, 0.0, false);
        assert_eq!(once, Combination::seen(&mut stream(0), 6).draw(&mut stream(1), 16, 0.0, false));
        assert_eq!(once.captions.len(), 2);
    }

    #[test]
    fn things_stand_where_the_caption_says_and_stay_inside() {
        for class in Class::all(6).filter(|class| class.size == 1) {
            for layout in 0..LAYOUTS.len() {
                let made = class.combination(0, layout, 1).draw(&mut stream(layout as u64), 32, 15.0, false); // on black
                let bright = |x: usize, y: usize| made.image.pixel(x, y).iter().any(|v| *v > 100);
                let border = (0..32).flat_map(|i| [(i, 0), (0, i), (31, i), (i, 31)]);
                let touching = border.into_iter().filter(|(x, y)| bright(*x, *y)).count();
                assert!(touching < 5, "{touching}: {:?}", made.attributes); // tips of stars
                let quarter = |left: usize, top: usize| {
                    let inside = (0..256).filter(|i| bright(left + i % 16, top + i / 16)).count();
                    usize::from(inside > 8) // a corner may reach a little further
                };
                let quarters = quarter(0, 0) + quarter(16, 0) + quarter(0, 16) + quarter(16, 16);
                if made.attributes.place != "in the middle" {
                    assert_eq!(quarters, made.attributes.count, "{:?}", made.attributes);
                }
            }
        }
    }
}
