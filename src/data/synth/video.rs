//! One generated clip: shapes that move, turn, hide each other and pass behind bars, with the visible part of each
//! in every frame.

use std::f32::consts::TAU;

use super::paint::{COLOURS, Canvas, Pattern, Surface, contrasting, jittered};
use super::shape::{Kind, Outline, Placed};
use crate::data::image::Image;
use crate::data::label_map::LabelMap;
use crate::data::rng::Stream;

/// An object of a clip.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Object {
    /// Its number in the masks, from 1.
    pub id: u8,
    /// Shape.
    pub shape: &'static str,
    /// Colour.
    pub colour: &'static str,
    /// Pattern.
    pub pattern: &'static str,
    /// Pixels of it that can be seen, frame by frame.
    pub visible: Vec<usize>,
    /// Pixels it would cover if nothing stood before it, frame by frame.
    pub whole: Vec<usize>,
}

/// A generated clip.
pub struct Clip {
    /// The pictures.
    pub frames: Vec<Image>,
    /// Object of each pixel, one mask per frame.
    pub masks: Vec<LabelMap>,
    /// What moves in it, from back to front.
    pub objects: Vec<Object>,
    /// The same as a sentence.
    pub caption: String,
}

/// A thing that moves: position, speed, turn and pulse are functions of time alone, so frames need no order.
struct Mover {
    shape: Placed,
    surface: Surface,
    velocity: [f32; 2],
    spin: f32,
    /// Amplitude and frequency of the radius, and its phase.
    pulse: [f32; 3],
}

impl Mover {
    fn at(&self, time: f32, side: f32) -> Placed {
        let mut shape = self.shape.clone();
        let margin = 0.5 * shape.radius; // may leave the picture by half
        let bounce = |start: f32, speed: f32| {
            let (low, high) = (margin, side - margin);
            let way = (start - low + speed * time).rem_euclid(2.0 * (high - low));
            low + if way > high - low { 2.0 * (high - low) - way } else { way }
        };
        shape.centre = [0, 1].map(|i| bounce(self.shape.centre[i], self.velocity[i]));
        shape.angle += self.spin * time;
        shape.radius *= 1.0 + self.pulse[0] * (self.pulse[1] * time + self.pulse[2]).sin();
        shape
    }
}

/// Draws a clip of `frames` pictures, `size` pixels on a side, with 2 to 4 objects of the given kinds.
pub fn draw(rng: &mut Stream, kinds: &[Kind], size: usize, frames: usize) -> Clip {
    let side = size as f32;
    let ground_colour = rng.below(COLOURS.len());
    let rgb = jittered(rng, ground_colour);
    let pattern = rng.pick(&Pattern::ALL).copied().unwrap_or(Pattern::Plain);
    let ground = Surface::random(rng, pattern, rgb, 0.35, 6.0);
    let backdrop = Canvas::new(size, &ground);
    let light = (Placed::random_angle(rng), rng.uniform(0.05, 0.2) as f32);

    let mut objects = Vec::new();
    let mut movers = Vec::new();
    let mut used = ground.colours.to_vec();
    for id in 1..=2 + rng.below(3) as u8 {
        let colour = contrasting(rng, &used);
        let rgb = jittered(rng, colour);
        used.push(rgb);
        let kind = rng.pick(kinds).copied().unwrap_or(Kind::Circle);
        let patterns = [Pattern::Plain, Pattern::Striped, Pattern::Dotted, Pattern::Checked];
        let pattern = rng.pick(&patterns).copied().unwrap_or(Pattern::Plain);
        let mut coordinate = || rng.uniform(0.2, 0.8) as f32 * side;
        let centre = [coordinate(), coordinate()];
        let (direction, speed) = (rng.uniform(0.0, f64::from(TAU)) as f32, rng.uniform(0.01, 0.04) as f32 * side);
        movers.push(Mover {
            shape: Placed {
                outline: kind.outline(),
                centre,
                radius: rng.uniform(0.11, 0.2) as f32 * side,
                angle: Placed::random_angle(rng),
            },
            surface: Surface::random(rng, pattern, rgb, 0.3, 2.2),
            velocity: [speed * direction.cos(), speed * direction.sin()],
            spin: rng.uniform(-0.12, 0.12) as f32,
            pulse: [
                rng.uniform(0.0, 0.15) as f32,
                rng.uniform(0.1, 0.4) as f32,
                rng.uniform(0.0, f64::from(TAU)) as f32,
            ],
        });
        objects.push(Object {
            id,
            shape: kind.name(),
            colour: COLOURS[colour].0,
            pattern: pattern.name(),
            visible: Vec::new(),
            whole: Vec::new(),
        });
    }
    // Bars in front of everything: objects pass behind them. They belong to no object.
    let bar = |rng: &mut Stream| {
        let half_width = rng.uniform(0.03, 0.06) as f32 * side;
        let thin = half_width / side;
        let outline = Outline::Polygon(vec![[-1.0, -thin], [1.0, -thin], [1.0, thin], [-1.0, thin]]);
        let mut coordinate = || rng.uniform(0.25, 0.75) as f32 * side;
        let centre = [coordinate(), coordinate()];
        let colour = rng.below(COLOURS.len());
        let rgb = jittered(rng, colour);
        let surface = Surface::random(rng, Pattern::Cloudy, rgb, 0.3, 5.0);
        (Placed { outline, centre, radius: side, angle: Placed::random_angle(rng) }, surface)
    };
    let bars: Vec<_> = (0..rng.below(3)).map(|_| bar(rng)).collect();

    let mut clip = Clip { frames: Vec::new(), masks: Vec::new(), objects, caption: String::new() };
    for frame in 0..frames {
        let placed: Vec<Placed> = movers.iter().map(|mover| mover.at(frame as f32, side)).collect();
        let mut canvas = backdrop.clone();
        let mut mask = LabelMap { width: size, height: size, ids: vec![0; size * size] };
        for ((shape, mover), object) in placed.iter().zip(&movers).zip(&mut clip.objects) {
            canvas.draw(shape, &mover.surface);
            object.whole.push(shape.stamp(&mut mask, object.id));
        }
        for (shape, surface) in &bars {
            canvas.draw(shape, surface);
            shape.stamp(&mut mask, 0);
        }
        for object in &mut clip.objects {
            object.visible.push(mask.ids.iter().filter(|&&id| id == object.id).count());
        }
        canvas.shade(light.0, light.1);
        clip.frames.push(canvas.develop(rng, 0.015));
        clip.masks.push(mask);
    }
    clip.caption = caption(&clip.objects, COLOURS[ground_colour].0, pattern.name());
    clip
}

fn caption(objects: &[Object], ground_colour: &str, ground_pattern: &str) -> String {
    let names: Vec<String> = objects.iter().map(|o| format!("a {} {} {}", o.pattern, o.colour, o.shape)).collect();
    let (last, others) = names.split_last().map_or(("", &names[..]), |(last, others)| (last.as_str(), others));
    format!("{} and {last} moving over a {ground_pattern} {ground_colour} ground", others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Purpose;

    fn clip(index: u64) -> Clip {
        draw(&mut Stream::new(3, Purpose::SYNTH, 2, index), &Kind::ALL, 40, 6)
    }

    #[test]
    fn masks_and_counts_agree() {
        for index in 0..8 {
            let clip = clip(index);
            assert_eq!((clip.frames.len(), clip.masks.len()), (6, 6));
            assert!((2..=4).contains(&clip.objects.len()));
            for (t, mask) in clip.masks.iter().enumerate() {
                assert!(mask.ids.iter().all(|&id| usize::from(id) <= clip.objects.len()));
                for o in &clip.objects {
                    assert_eq!(o.visible[t], mask.ids.iter().filter(|&&id| id == o.id).count());
                    assert!(o.visible[t] <= o.whole[t] && o.whole[t] > 0);
                }
            }
            assert!(clip.caption.contains(clip.objects[0].shape));
        }
    }

    #[test]
    fn things_move_and_hide_each_other() {
        let clips: Vec<Clip> = (0..8).map(clip).collect();
        assert!(clips.iter().all(|c| c.masks[0] != c.masks[5]));
        assert!(clips.iter().any(|c| c.objects.iter().any(|o| (0..6).any(|t| o.visible[t] < o.whole[t] / 2))));
        assert_eq!(clip(1).frames, clips[1].frames);
    }

    #[test]
    fn movers_stay_half_inside() {
        let mover = Mover {
            shape: Placed { outline: Kind::Circle.outline(), centre: [10.0, 30.0], radius: 6.0, angle: 0.0 },
            surface: Surface::random(&mut Stream::new(0, Purpose::TEST, 0, 0), Pattern::Plain, [0.5; 3], 0.2, 2.0),
            velocity: [3.7, -2.9],
            spin: 0.1,
            pulse: [0.0; 3],
        };
        for t in 0..200 {
            assert!(mover.at(t as f32, 40.0).centre.iter().all(|c| (3.0..=37.0).contains(c)));
        }
        let step = |t: f32| mover.at(t + 1.0, 40.0).centre[0] - mover.at(t, 40.0).centre[0];
        assert!((step(0.0) - 3.7).abs() < 1e-3);
    }
}
