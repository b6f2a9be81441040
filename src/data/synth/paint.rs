//! Colours, textures and the canvas of generated pictures.

use super::shape::Placed;
use crate::data::image::Image;
use crate::data::rng::Stream;

/// Red, green and blue, 0 to 1.
pub type Rgb = [f32; 3];

/// The named colours of captions.
pub const COLOURS: [(&str, Rgb); 12] = [
    ("red", [0.86, 0.12, 0.12]),
    ("orange", [0.96, 0.53, 0.08]),
    ("yellow", [0.95, 0.86, 0.16]),
    ("green", [0.13, 0.62, 0.20]),
    ("teal", [0.08, 0.66, 0.68]),
    ("blue", [0.13, 0.28, 0.84]),
    ("purple", [0.52, 0.18, 0.70]),
    ("pink", [0.97, 0.52, 0.74]),
    ("brown", [0.45, 0.27, 0.12]),
    ("white", [0.95, 0.95, 0.95]),
    ("black", [0.07, 0.07, 0.07]),
    ("gray", [0.52, 0.52, 0.52]),
];

/// Distance of two colours, brightness counting as the eye sees it (weights of Rec. 601, their square roots).
pub fn distance(a: Rgb, b: Rgb) -> f32 {
    let [r, g, b] = [0, 1, 2].map(|i| (a[i] - b[i]) * (a[i] - b[i]));
    (0.3 * r + 0.59 * g + 0.11 * b).sqrt()
}

/// From `a` to `b`.
pub fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * t)
}

/// One of the named colours that stands off from all of `others` as far as can be had, by its number.
pub fn contrasting(rng: &mut Stream, others: &[Rgb]) -> usize {
    let stands_off = |colour: &Rgb| others.iter().map(|o| distance(*colour, *o)).fold(f32::INFINITY, f32::min);
    let far: Vec<usize> = (0..COLOURS.len()).filter(|&i| stands_off(&COLOURS[i].1) > 0.3).collect();
    let farthest =
        || (0..COLOURS.len()).max_by(|&a, &b| stands_off(&COLOURS[a].1).total_cmp(&stands_off(&COLOURS[b].1)));
    rng.pick(&far).copied().or_else(farthest).unwrap_or_default()
}

/// A named colour, slightly changed so that no two pictures have the same.
pub fn jittered(rng: &mut Stream, colour: usize) -> Rgb {
    COLOURS[colour].1.map(|v| (v + rng.uniform(-0.05, 0.05) as f32).clamp(0.0, 1.0))
}

/// How a surface is patterned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One colour, slightly shaded.
    Plain,
    /// Parallel bands.
    Striped,
    /// Spots on a grid.
    Dotted,
    /// A chess board.
    Checked,
    /// Smooth noise of several sizes.
    Cloudy,
    /// Cells around random points.
    Tiled,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Plain, Self::Striped, Self::Dotted, Self::Checked, Self::Cloudy, Self::Tiled];

    /// Its word in captions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Striped => "striped",
            Self::Dotted => "dotted",
            Self::Checked => "checked",
            Self::Cloudy => "cloudy",
            Self::Tiled => "tiled",
        }
    }
}

/// A patterned surface of two colours.
#[derive(Clone, Debug)]
pub struct Surface {
    /// Its pattern.
    pub pattern: Pattern,
    /// The two colours.
    pub colours: [Rgb; 2],
    /// Pattern cells per unit of length.
    pub frequency: f32,
    /// Direction of bands and boards.
    pub angle: f32,
    /// Shifts the pattern.
    pub offset: [f32; 2],
    /// Chooses among patterns of noise.
    pub seed: u32,
}

impl Surface {
    /// A surface in a colour and a darker or lighter shade of it; `frequency` is drawn around the one given.
    pub fn random(rng: &mut Stream, pattern: Pattern, colour: Rgb, contrast: f32, frequency: f32) -> Self {
        let bright = distance(colour, [0.0; 3]) > 0.5;
        let towards = if bright == rng.chance(0.75) { [0.0; 3] } else { [1.0; 3] };
        Self {
            pattern,
            colours: [colour, mix(colour, towards, contrast)],
            frequency: frequency * rng.uniform(0.75, 1.35) as f32,
            angle: Placed::random_angle(rng),
            offset: [rng.uniform(0.0, 8.0) as f32, rng.uniform(0.0, 8.0) as f32],
            seed: rng.bits(),
        }
    }

    /// Colour at a position.
    pub fn at(&self, x: f32, y: f32) -> Rgb {
        let (sin, cos) = self.angle.sin_cos();
        let u = (cos * x + sin * y) * self.frequency + self.offset[0];
        let v = (cos * y - sin * x) * self.frequency + self.offset[1];
        mix(self.colours[0], self.colours[1], self.blend(u, v))
    }

    /// Share of the second colour. Edges are softened over a fifth of a cell, which keeps them free of steps.
    fn blend(&self, u: f32, v: f32) -> f32 {
        let soft = |d: f32| (0.5 + d * 5.0).clamp(0.0, 1.0);
        let wave = |t: f32| (t - t.floor() - 0.5).abs() - 0.25; // a triangle between -1/4 and 1/4, one period per cell
        match self.pattern {
            Pattern::Plain => 0.3 * noise(u * 0.5, v * 0.5, self.seed),
            Pattern::Striped => soft(wave(u)),
            Pattern::Dotted => {
                let (a, b) = (u - u.floor() - 0.5, v - v.floor() - 0.5);
                soft(0.3 - a.hypot(b))
            }
            Pattern::Checked => {
                let (a, b) = (soft(wave(u * 0.5)), soft(wave(v * 0.5)));
                a + b - 2.0 * a * b
            }
            Pattern::Cloudy => {
                let octaves = (0..4).map(|k| {
                    noise(u * (1 << k) as f32 * 0.5, v * (1 << k) as f32 * 0.5, self.seed + k) / (1 << k) as f32
                });
                ((octaves.sum::<f32>() / 1.875 - 0.5) * 2.2 + 0.5).clamp(0.0, 1.0)
            }
            Pattern::Tiled => {
                let (mut first, mut second, mut shade) = (f32::INFINITY, f32::INFINITY, 0.0);
                for dy in -1..=1 {
                    for dx in -1..=1 {
                        let (cell_x, cell_y) = (u.floor() as i32 + dx, v.floor() as i32 + dy);
                        let x = cell_x as f32 + hash(cell_x, cell_y, self.seed);
                        let y = cell_y as f32 + hash(cell_x, cell_y, self.seed ^ 0x55);
                        let d = (x - u).hypot(y - v);
                        if d < first {
                            (first, second, shade) = (d, first, hash(cell_x, cell_y, self.seed ^ 0xaa));
                        } else {
                            second = second.min(d);
                        }
                    }
                }
                let seam = ((second - first) * 8.0).clamp(0.0, 1.0); // 0 between two cells
                1.0 - seam * (1.0 - 0.7 * shade)
            }
        }
    }
}

/// A number in [0, 1) for each lattice point and seed.
fn hash(x: i32, y: i32, seed: u32) -> f32 {
    let mut h =
        (x as u32).wrapping_mul(0x85eb_ca6b) ^ (y as u32).wrapping_mul(0xc2b2_ae35) ^ seed.wrapping_mul(0x27d4_eb2f);
    for _ in 0..2 {
        h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    }
    ((h ^ (h >> 13)) >> 8) as f32 / (1 << 24) as f32
}

/// Value noise: the lattice's numbers, smoothly interpolated.
fn noise(u: f32, v: f32, seed: u32) -> f32 {
    let (x, y) = (u.floor(), v.floor());
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (a, b) = (ease(u - x), ease(v - y));
    let at = |dx: i32, dy: i32| hash(x as i32 + dx, y as i32 + dy, seed);
    let top = at(0, 0) + (at(1, 0) - at(0, 0)) * a;
    let bottom = at(0, 1) + (at(1, 1) - at(0, 1)) * a;
    top + (bottom - top) * b
}

/// A square picture being painted.
#[derive(Clone, Debug)]
pub struct Canvas {
    /// Pixels on a side.
    pub size: usize,
    /// Colours, row by row.
    pub pixels: Vec<Rgb>,
}

impl Canvas {
    /// A canvas covered with a surface whose unit of length is the side.
    pub fn new(size: usize, surface: &Surface) -> Self {
        let scale = 1.0 / size as f32;
        let at = |i: usize| surface.at((i % size) as f32 * scale, (i / size) as f32 * scale);
        Self { size, pixels: (0..size * size).map(at).collect() }
    }

    /// Paints a shape over what is there; the surface's unit of length is the shape's radius, and it turns with it.
    pub fn draw(&mut self, shape: &Placed, surface: &Surface) {
        let [columns, rows] = shape.bounds(self.size);
        for y in rows {
            for x in columns.clone() {
                let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
                let coverage = shape.coverage(px, py);
                if coverage > 0.0 {
                    let [u, v] = shape.local(px, py);
                    let pixel = &mut self.pixels[y * self.size + x];
                    *pixel = mix(*pixel, surface.at(u, v), coverage);
                }
            }
        }
    }

    /// Light that falls off to one side, as a factor between 1 - strength and 1 + strength.
    pub fn shade(&mut self, angle: f32, strength: f32) {
        let (sin, cos) = angle.sin_cos();
        let half = self.size as f32 / 2.0;
        for (i, pixel) in self.pixels.iter_mut().enumerate() {
            let (x, y) = ((i % self.size) as f32 / half - 1.0, (i / self.size) as f32 / half - 1.0);
            let factor = 1.0 + strength * (cos * x + sin * y) / std::f32::consts::SQRT_2;
            *pixel = pixel.map(|v| v * factor);
        }
    }

    /// Bytes, with normal noise of that standard deviation added.
    pub fn develop(&self, rng: &mut Stream, grain: f32) -> Image {
        let mut byte = |v: f32| ((v + grain * rng.normal() as f32) * 255.0).round().clamp(0.0, 255.0) as u8;
        let data = self.pixels.iter().flatten().map(|&v| byte(v)).collect();
        Image { width: self.size, height: self.size, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Purpose;

    #[test]
    fn chosen_colours_stand_off() {
        let mut rng = Stream::new(0, Purpose::TEST, 0, 0);
        for (name, a) in COLOURS {
            for (other, b) in COLOURS {
                let chosen = COLOURS[contrasting(&mut rng, &[a, b])].1;
                assert!(distance(a, chosen).min(distance(b, chosen)) > 0.2, "{name} {other}");
            }
        }
    }

    #[test]
    fn patterns_use_both_colours_and_stay_between_them() {
        let mut rng = Stream::new(1, Purpose::TEST, 0, 0);
        for pattern in Pattern::ALL {
            let surface = Surface::random(&mut rng, pattern, [0.2, 0.4, 0.6], 0.5, 6.0);
            let blends: Vec<f32> =
                (0..900).map(|i| surface.blend((i % 30) as f32 * 0.21, (i / 30) as f32 * 0.23)).collect();
            assert!(blends.iter().all(|b| (0.0..=1.0).contains(b)), "{pattern:?}");
            let (low, high) = blends.iter().fold((1.0f32, 0.0f32), |(l, h), &b| (l.min(b), h.max(b)));
            assert!(high - low > if pattern == Pattern::Plain { 0.1 } else { 0.7 }, "{pattern:?}: {low} {high}");
        }
    }
}
