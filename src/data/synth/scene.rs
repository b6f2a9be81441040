//! One labelled picture: a shape, the largest in the picture, among irregular pieces on a patterned ground.

use super::paint::{COLOURS, Canvas, Pattern, Rgb, Surface, contrasting, distance, jittered};
use super::shape::{Kind, Outline, Placed};
use crate::data::image::{Image, Rect};
use crate::data::label_map::LabelMap;
use crate::data::rng::Stream;

/// What is in a picture, as its caption says it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Description {
    /// Shape, the class.
    pub shape: &'static str,
    /// Colour of the shape.
    pub colour: &'static str,
    /// Pattern of the shape.
    pub pattern: &'static str,
    /// `small`, `medium` or `large`.
    pub size: &'static str,
    /// Where its middle is.
    pub place: &'static str,
    /// Colour of the ground.
    pub ground_colour: &'static str,
    /// Pattern of the ground.
    pub ground_pattern: &'static str,
    /// Number of pieces around it.
    pub pieces: usize,
    /// Columns and rows that the shape covers: left, top, width, height.
    pub bounds: [usize; 4],
}

/// A generated picture.
pub struct Scene {
    /// The picture.
    pub image: Image,
    /// 1 where the shape can be seen, 0 elsewhere.
    pub mask: LabelMap,
    /// What is in it.
    pub description: Description,
    /// The same as a sentence.
    pub caption: String,
}

/// Radius of the shape over the side of the picture: from, to.
const RADIUS: (f64, f64) = (0.2, 0.34);
/// Largest part of the shape that pieces in front may hide.
const HIDDEN: f32 = 0.15;

/// Draws a picture of a shape, `size` pixels on a side, the shape turned by up to `turn` degrees to either side.
pub fn draw(rng: &mut Stream, kind: Kind, size: usize, turn: f64) -> Scene {
    let side = size as f32;
    let ground_colour = rng.below(COLOURS.len());
    let ground_pattern = pick(rng, &Pattern::ALL);
    let ground_rgb = jittered(rng, ground_colour);
    let ground = Surface::random(rng, ground_pattern, ground_rgb, 0.38, 7.0);
    let mut canvas = Canvas::new(size, &ground);
    let grounds = ground.colours;

    let radius = rng.uniform(RADIUS.0, RADIUS.1) as f32;
    // A twentieth of the radius may reach over the border.
    let mut place = || rng.uniform(f64::from(0.95 * radius), f64::from(1.0 - 0.95 * radius)) as f32;
    let centre = [place(), place()];
    let colour = contrasting(rng, &grounds);
    let rgb = jittered(rng, colour);
    let pattern = pick(rng, &[Pattern::Plain, Pattern::Plain, Pattern::Striped, Pattern::Dotted, Pattern::Checked]);
    let surface = Surface::random(rng, pattern, rgb, 0.3, 2.2);
    let shape = Placed {
        outline: kind.outline(),
        centre: centre.map(|c| c * side),
        radius: radius * side,
        angle: rng.uniform(-turn, turn).to_radians() as f32,
    };

    let pieces = 3 + rng.below(6);
    let in_front = rng.below(3);
    for _ in in_front..pieces {
        // Behind the shape, some as long as it is; their colour must leave its outline visible.
        let radius = rng.uniform(0.05, 0.2) as f32 * side;
        let piece = random_piece(rng, radius, side);
        let surface = piece_surface(rng, rgb);
        canvas.draw(&piece, &surface);
    }
    canvas.draw(&shape, &surface);
    let mut mask = LabelMap { width: size, height: size, ids: vec![0; size * size] };
    shape.stamp(&mut mask, 1);
    let visible = covered(&shape, size);
    for _ in 0..in_front {
        let radius = rng.uniform(0.04, 0.09) as f32 * side;
        let mut piece = random_piece(rng, radius, side);
        // Moved until it hides little; the last try stands where it cannot hide much in any case, at a corner.
        for attempt in 0..12 {
            if hidden(&shape, &piece, size) <= HIDDEN / 2.0 * visible {
                break;
            }
            let mut coordinate = || rng.uniform(0.0, f64::from(side)) as f32;
            piece.centre = if attempt < 11 { [coordinate(), coordinate()] } else { far_corner(&shape, side) };
        }
        let surface = piece_surface(rng, rgb);
        canvas.draw(&piece, &surface);
        piece.stamp(&mut mask, 0);
    }
    canvas.shade(Placed::random_angle(rng), rng.uniform(0.05, 0.25) as f32);
    let image = canvas.develop(rng, 0.02);

    let size_word = ["small", "medium", "large"]
        [(3.0 * (f64::from(radius) - RADIUS.0) / (RADIUS.1 - RADIUS.0)).clamp(0.0, 2.0) as usize];
    let bounds = bounds(&shape, size);
    let description = Description {
        shape: kind.name(),
        colour: COLOURS[colour].0,
        pattern: pattern.name(),
        size: size_word,
        place: place_name(centre),
        ground_colour: COLOURS[ground_colour].0,
        ground_pattern: ground_pattern.name(),
        pieces,
        bounds: [bounds.left, bounds.top, bounds.width, bounds.height],
    };
    let caption = caption(rng, &description);
    Scene { image, mask, description, caption }
}

fn pick(rng: &mut Stream, patterns: &[Pattern]) -> Pattern {
    rng.pick(patterns).copied().unwrap_or(Pattern::Plain)
}

fn random_piece(rng: &mut Stream, radius: f32, side: f32) -> Placed {
    let mut coordinate = || rng.uniform(0.0, f64::from(side)) as f32;
    let centre = [coordinate(), coordinate()];
    Placed { outline: Outline::piece(rng), centre, radius, angle: Placed::random_angle(rng) }
}

/// A surface for a piece in any colour but one close to the shape's.
fn piece_surface(rng: &mut Stream, shape: Rgb) -> Surface {
    let others: Vec<usize> = (0..COLOURS.len()).filter(|&i| distance(COLOURS[i].1, shape) > 0.25).collect();
    let colour = rng.pick(&others).copied().unwrap_or_default();
    let rgb = jittered(rng, colour);
    let pattern = pick(rng, &[Pattern::Plain, Pattern::Striped, Pattern::Dotted, Pattern::Cloudy]);
    Surface::random(rng, pattern, rgb, 0.3, 2.0)
}

/// Pixels that a shape covers.
fn covered(shape: &Placed, size: usize) -> f32 {
    hidden(shape, shape, size)
}

/// Pixels of a shape that lie under another one.
fn hidden(shape: &Placed, over: &Placed, size: usize) -> f32 {
    let [columns, rows] = over.bounds(size);
    let at = |i: usize| i as f32 + 0.5;
    let row = |y: usize| columns.clone().map(move |x| shape.coverage(at(x), at(y)).min(over.coverage(at(x), at(y))));
    rows.flat_map(row).sum()
}

fn far_corner(shape: &Placed, side: f32) -> [f32; 2] {
    shape.centre.map(|c| if c < side / 2.0 { side } else { 0.0 })
}

/// The pixels that are at least half covered.
fn bounds(shape: &Placed, size: usize) -> Rect {
    let [columns, rows] = shape.bounds(size);
    let (mut left, mut top, mut right, mut bottom) = (size, size, 0, 0);
    for y in rows {
        for x in columns.clone() {
            if shape.coverage(x as f32 + 0.5, y as f32 + 0.5) >= 0.5 {
                (left, top, right, bottom) = (left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1));
            }
        }
    }
    Rect { left, top, width: right.saturating_sub(left), height: bottom.saturating_sub(top) }
}

fn place_name(centre: [f32; 2]) -> &'static str {
    let third = |v: f32| if v < 0.42 { 0 } else { 1 + usize::from(v >= 0.58) };
    [
        ["at the top left", "at the top", "at the top right"],
        ["on the left", "in the middle", "on the right"],
        ["at the bottom left", "at the bottom", "at the bottom right"],
    ][third(centre[1])][third(centre[0])]
}

fn caption(rng: &mut Stream, d: &Description) -> String {
    let count =
        ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"].get(d.pieces).copied().unwrap_or("many");
    let plain = |pattern: &str| if pattern == "plain" { String::new() } else { format!("{pattern} ") };
    let pattern = plain(d.pattern);
    let Description { shape, colour, size, place, ground_colour, ground_pattern, .. } = d;
    let ground_article = article(ground_pattern);
    let ground = format!("{ground_pattern} {ground_colour}");
    match rng.below(3) {
        0 => format!(
            "a {size} {colour} {pattern}{shape} {place} of {ground_article} {ground} ground, with {count} other pieces"
        ),
        1 => {
            let shape_article = if pattern.is_empty() { article(colour) } else { "a" };
            format!(
                "{ground_article} {ground} picture of {count} pieces and, {place}, {shape_article} \
                 {pattern}{colour} {shape} of {size} size"
            )
        }
        _ => format!(
            "{place} there is a {size} {shape}, {colour} and {}; the ground is {ground}, with {count} more pieces",
            d.pattern
        ),
    }
}

/// `a` or `an`.
pub fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Purpose;

    fn scene(index: u64, kind: Kind) -> Scene {
        draw(&mut Stream::new(3, Purpose::SYNTH, 0, index), kind, 48, 180.0)
    }

    #[test]
    fn equal_streams_draw_equal_pictures() {
        let (a, b) = (scene(0, Kind::Star), scene(0, Kind::Star));
        assert_eq!((a.image, a.caption), (b.image, b.caption));
        assert_ne!(scene(1, Kind::Star).image, scene(0, Kind::Star).image);
    }

    #[test]
    fn the_caption_names_what_is_drawn() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            for round in 0..6 {
                let scene = scene(100 * index as u64 + round, kind);
                let d = &scene.description;
                for word in [d.shape, d.colour, d.size, d.place, d.ground_colour, d.ground_pattern] {
                    assert!(scene.caption.contains(word), "{word}: {}", scene.caption);
                }
                assert!(!scene.caption.contains("  ") && !scene.caption.contains('\t'));
                let [left, top, width, height] = d.bounds;
                assert!(left + width <= 48 && top + height <= 48, "{d:?}");
                assert!(width >= 10 && height >= 10, "{d:?}"); // at least half of the smallest radius on each side
                // The mask is the shape without what lies before it: inside its bounds, and most of it is left.
                let seen = |at: &usize| scene.mask.ids[*at] == 1;
                let inside =
                    |at: usize| (left..left + width).contains(&(at % 48)) && (top..top + height).contains(&(at / 48));
                assert!((0..48 * 48).filter(seen).all(inside), "{d:?}");
                let count = (0..48 * 48).filter(seen).count();
                assert!(count * 8 > width * height && scene.mask.ids.iter().all(|id| *id <= 1), "{d:?}: {count}");
            }
        }
    }

    #[test]
    fn the_shape_stands_out_and_stays_visible() {
        for index in 0..60 {
            let mut rng = Stream::new(5, Purpose::SYNTH, 0, index);
            let shape = Placed { outline: Kind::Ring.outline(), centre: [20.0, 28.0], radius: 12.0, angle: 0.0 };
            let piece = random_piece(&mut rng, 4.0, 48.0);
            let part = hidden(&shape, &piece, 48);
            assert!(part >= 0.0 && part <= covered(&shape, 48).min(covered(&piece, 48)) + 1e-3);
        }
        let far = Placed { outline: Kind::Circle.outline(), centre: [0.0, 48.0], radius: 4.0, angle: 0.0 };
        let shape = Placed { centre: [30.0, 18.0], radius: 12.0, ..far.clone() };
        assert_eq!((far_corner(&shape, 48.0), hidden(&shape, &far, 48)), ([0.0, 48.0], 0.0));
    }
}
