//! The shapes of generated pictures, as signed distances: negative inside, in units of the shape's radius.
//!
//! Distances make smooth edges cheap: the part of a pixel that a shape covers is, close enough, 1/2 minus the
//! distance of its centre in pixels, between 0 and 1.

use std::f32::consts::{PI, TAU};

use crate::data::label_map::LabelMap;
use crate::data::rng::Stream;

/// A kind of shape. The first ones, in this order, are the classes of labelled pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disc.
    Circle,
    /// Four equal sides.
    Square,
    /// Three equal sides.
    Triangle,
    /// Five points.
    Star,
    /// A plus sign.
    Cross,
    /// A disc with a hole.
    Ring,
    /// A heart.
    Heart,
    /// Six equal sides.
    Hexagon,
    /// The moon.
    Crescent,
    /// Shaft and head.
    Arrow,
    /// A drop of water.
    Drop,
    /// A flash of lightning.
    Bolt,
}

impl Kind {
    /// All kinds; a class number is an index into this list.
    pub const ALL: [Self; 12] = [
        Self::Circle,
        Self::Square,
        Self::Triangle,
        Self::Star,
        Self::Cross,
        Self::Ring,
        Self::Heart,
        Self::Hexagon,
        Self::Crescent,
        Self::Arrow,
        Self::Drop,
        Self::Bolt,
    ];

    /// Name, as in captions and class folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Cross => "cross",
            Self::Ring => "ring",
            Self::Heart => "heart",
            Self::Hexagon => "hexagon",
            Self::Crescent => "crescent",
            Self::Arrow => "arrow",
            Self::Drop => "drop",
            Self::Bolt => "bolt",
        }
    }

    /// Its outline, within a circle of about radius 1 around its middle. The y axis points down.
    pub fn outline(self) -> Outline {
        let polygon = |points: &[[f32; 2]]| Outline::Polygon(points.to_vec());
        match self {
            Self::Circle => Outline::Circle { radius: 0.92 },
            Self::Ring => Outline::Ring { radius: 0.73, half_width: 0.23 },
            Self::Square => polygon(&[[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]),
            Self::Triangle => Outline::Polygon(on_circle(3, |_| 1.08)),
            Self::Hexagon => Outline::Polygon(on_circle(6, |_| 1.0)),
            Self::Star => Outline::Polygon(on_circle(10, |i| if i % 2 == 0 { 1.08 } else { 0.46 })),
            Self::Cross => {
                let (a, b) = (0.32, 1.0);
                let quarter = [[a, -b], [a, -a], [b, -a]];
                let turned = |times| {
                    quarter.iter().map(move |&[x, y]| (0..times).fold([x, y], |[x, y], _| [-y, x])).collect::<Vec<_>>()
                };
                Outline::Polygon((0..4).flat_map(turned).collect())
            }
            Self::Heart => Outline::Polygon(curve(40, |t| {
                let y = 13.0 * t.cos() - 5.0 * (2.0 * t).cos() - 2.0 * (3.0 * t).cos() - (4.0 * t).cos();
                [16.0 * t.sin().powi(3) / 16.5, (-y - 2.0) / 15.5]
            })),
            Self::Drop => {
                Outline::Polygon(curve(40, |t| [0.78 * t.sin() * (t / 2.0).sin().powi(2), 0.95 * t.cos() + 0.08]))
            }
            Self::Crescent => {
                // The outer arc around (0, 0), the inner one around (0.5, 0) through the same two tips.
                let tip = 0.9f32;
                let inner_radius = (tip.cos() - 0.5).hypot(tip.sin());
                let inner_tip = tip.sin().atan2(tip.cos() - 0.5);
                let outer = (0..=28).map(|i| tip + (TAU - 2.0 * tip) * i as f32 / 28.0).map(|t| [t.cos(), t.sin()]);
                let inner = (1..22).map(|i| -inner_tip - (TAU - 2.0 * inner_tip) * i as f32 / 22.0);
                let inner = inner.map(|t| [0.5 + inner_radius * t.cos(), inner_radius * t.sin()]);
                Outline::Polygon(outer.chain(inner).map(|[x, y]| [x + 0.15, y]).collect())
            }
            Self::Arrow => {
                polygon(&[[1.0, 0.0], [0.2, 0.75], [0.2, 0.3], [-0.95, 0.3], [-0.95, -0.3], [0.2, -0.3], [0.2, -0.75]])
            }
            Self::Bolt => {
                polygon(&[[0.35, -1.0], [-0.6, 0.15], [-0.05, 0.15], [-0.35, 1.0], [0.6, -0.25], [0.05, -0.25]])
            }
        }
    }
}

/// Points on a circle from the top, clockwise; `radius` gives each its distance from the middle.
fn on_circle(points: usize, radius: impl Fn(usize) -> f32) -> Vec<[f32; 2]> {
    let point = |i: usize| {
        let t = TAU * i as f32 / points as f32;
        [radius(i) * t.sin(), -radius(i) * t.cos()]
    };
    (0..points).map(point).collect()
}

/// Points of a closed curve over one turn of its parameter.
fn curve(points: usize, at: impl Fn(f32) -> [f32; 2]) -> Vec<[f32; 2]> {
    (0..points).map(|i| at(TAU * i as f32 / points as f32)).collect()
}

/// What a shape is bounded by.
#[derive(Clone, Debug)]
pub enum Outline {
    /// A disc around the middle.
    Circle {
        /// Its radius.
        radius: f32,
    },
    /// What lies within `half_width` of a circle.
    Ring {
        /// Radius of the circle.
        radius: f32,
        /// Half of the width.
        half_width: f32,
    },
    /// A closed line of points.
    Polygon(Vec<[f32; 2]>),
}

impl Outline {
    /// An irregular piece that is none of the classes: a blob, a bar, a bent bar or an ellipse.
    pub fn piece(rng: &mut Stream) -> Self {
        match rng.below(4) {
            0 => {
                // A circle with a few random waves on it.
                let waves: Vec<[f32; 3]> = (2..5)
                    .map(|n| [n as f32, rng.uniform(0.08, 0.24) as f32, rng.uniform(0.0, f64::from(TAU)) as f32])
                    .collect();
                let radius =
                    |t: f32| 0.68 + waves.iter().map(|[n, size, phase]| size * (n * t + phase).sin()).sum::<f32>();
                Self::Polygon(curve(28, |t| [radius(t) * t.cos(), radius(t) * t.sin()]))
            }
            1 => {
                let thin = rng.uniform(0.14, 0.3) as f32;
                Self::Polygon(vec![[-1.0, -thin], [1.0, -thin], [1.0, thin], [-1.0, thin]])
            }
            2 => {
                let (a, long) = (rng.uniform(0.3, 0.5) as f32, rng.uniform(0.2, 0.9) as f32);
                Self::Polygon(vec![
                    [-0.8, -0.8],
                    [long, -0.8],
                    [long, -0.8 + a],
                    [-0.8 + a, -0.8 + a],
                    [-0.8 + a, 0.8],
                    [-0.8, 0.8],
                ])
            }
            _ => {
                let flat = rng.uniform(0.35, 0.55) as f32;
                Self::Polygon(curve(24, |t| [t.cos(), flat * t.sin()]))
            }
        }
    }

    /// Signed distance of a point from the outline, negative inside.
    pub fn distance(&self, [x, y]: [f32; 2]) -> f32 {
        match self {
            Self::Circle { radius } => x.hypot(y) - radius,
            Self::Ring { radius, half_width } => (x.hypot(y) - radius).abs() - half_width,
            Self::Polygon(points) => polygon_distance(points, x, y),
        }
    }
}

/// Distance to the nearest side; inside if a ray to the right crosses the sides an odd number of times.
fn polygon_distance(points: &[[f32; 2]], x: f32, y: f32) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    let Some(&last) = points.last() else { return nearest };
    let mut from = last;
    for &to in points {
        let (side_x, side_y) = (to[0] - from[0], to[1] - from[1]);
        let (dx, dy) = (x - from[0], y - from[1]);
        let along = ((dx * side_x + dy * side_y) / (side_x * side_x + side_y * side_y).max(1e-12)).clamp(0.0, 1.0);
        let (off_x, off_y) = (dx - along * side_x, dy - along * side_y);
        nearest = nearest.min(off_x * off_x + off_y * off_y);
        if (from[1] > y) != (to[1] > y) && x < from[0] + (y - from[1]) * side_x / side_y {
            inside = !inside;
        }
        from = to;
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

/// An outline put somewhere in a picture.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its form.
    pub outline: Outline,
    /// Middle, in pixels.
    pub centre: [f32; 2],
    /// Radius, in pixels.
    pub radius: f32,
    /// Turned clockwise by this angle.
    pub angle: f32,
}

impl Placed {
    /// A pixel position in the shape's own frame, in units of its radius.
    pub fn local(&self, x: f32, y: f32) -> [f32; 2] {
        let (sin, cos) = self.angle.sin_cos();
        let (dx, dy) = ((x - self.centre[0]) / self.radius, (y - self.centre[1]) / self.radius);
        [cos * dx + sin * dy, cos * dy - sin * dx]
    }

    /// Part of the pixel around (x, y) that the shape covers, 0 to 1.
    pub fn coverage(&self, x: f32, y: f32) -> f32 {
        (0.5 - self.outline.distance(self.local(x, y)) * self.radius).clamp(0.0, 1.0)
    }

    /// First and last-plus-one pixel in x and in y that it can touch in a picture of that size.
    pub fn bounds(&self, size: usize) -> [std::ops::Range<usize>; 2] {
        let reach = 1.2 * self.radius + 1.0;
        self.centre.map(|c| (c - reach).max(0.0) as usize..((c + reach).max(0.0) as usize + 1).min(size))
    }

    /// Gives the pixels that are at least half covered to `id`; returns how many they are.
    pub fn stamp(&self, mask: &mut LabelMap, id: u8) -> usize {
        let [columns, rows] = self.bounds(mask.width);
        let mut pixels = 0;
        for y in rows {
            for x in columns.clone() {
                if self.coverage(x as f32 + 0.5, y as f32 + 0.5) >= 0.5 {
                    mask.ids[y * mask.width + x] = id;
                    pixels += 1;
                }
            }
        }
        pixels
    }

    /// Any angle.
    pub fn random_angle(rng: &mut Stream) -> f32 {
        rng.uniform(-f64::from(PI), f64::from(PI)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Purpose;

    /// Area in units of the squared radius, on a grid.
    fn area(outline: &Outline) -> f32 {
        let at = |i: usize| (i as f32 + 0.5) / 100.0 - 1.5;
        let inside =
            (0..300).flat_map(|y| (0..300).map(move |x| [at(x), at(y)])).filter(|&p| outline.distance(p) < 0.0);
        inside.count() as f32 / 10_000.0
    }

    #[test]
    fn areas_are_those_of_geometry() {
        // (shape, area): circle πr², ring 4πrw, square (2·0.8)², regular n-gon n/2·r²·sin(2π/n), cross of five parts.
        for (kind, expected) in [
            (Kind::Circle, PI * 0.92 * 0.92),
            (Kind::Ring, 4.0 * PI * 0.73 * 0.23),
            (Kind::Square, 2.56),
            (Kind::Triangle, 1.5 * 1.08 * 1.08 * (TAU / 3.0).sin()),
            (Kind::Hexagon, 3.0 * (TAU / 6.0).sin()),
            (Kind::Cross, 4.0 * (2.0 * 0.32 - 0.32 * 0.32)),
        ] {
            let given = area(&kind.outline());
            assert!((given - expected).abs() < 0.01 * expected, "{kind:?}: {given}, expected {expected}");
        }
    }

    #[test]
    fn shapes_are_of_similar_size_and_stay_in_reach() {
        for kind in Kind::ALL {
            let outline = kind.outline();
            let size = area(&outline);
            assert!((0.6..2.8).contains(&size), "{kind:?}: {size}");
            let around = (0..360).map(|i| (i as f32).to_radians()).map(|t| [1.2 * t.cos(), 1.2 * t.sin()]);
            assert!(around.map(|p| outline.distance(p)).all(|d| d > 0.0), "{kind:?}");
        }
        let mut rng = Stream::new(0, Purpose::TEST, 0, 0);
        for _ in 0..50 {
            let size = area(&Outline::piece(&mut rng));
            assert!((0.4..4.0).contains(&size), "{size}");
        }
    }

    #[test]
    fn coverage_goes_from_one_to_zero_across_the_edge() {
        let shape = Placed { outline: Kind::Square.outline(), centre: [10.0, 10.0], radius: 5.0, angle: 0.0 };
        assert_eq!([10.0, 13.0, 14.0, 14.75, 15.0].map(|x| shape.coverage(x, 10.0)), [1.0, 1.0, 0.5, 0.0, 0.0]);
        let turned = Placed { angle: PI / 4.0, ..shape };
        assert_eq!((turned.coverage(14.0, 10.0), turned.coverage(13.5, 13.5)), (1.0, 0.0));
        assert_eq!(turned.bounds(16), [3..16, 3..16]);
    }
}
